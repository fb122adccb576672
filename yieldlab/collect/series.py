"""How do token prices and market sentiment come from the web into the table of series?

Prices are those of coins.llama.fi, one coin and one calendar year a request: `/chart/{coin}` gives the record nearest
to each instant that is asked for, or nothing where there is none within a tenth of the step. Days are asked for at
21:30 UTC, so that every record found lies on its day, and near its end. Sentiment is the Fear & Greed index of
alternative.me, one value a day from 0 to 100, stamped with the day's first instant.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from urllib.parse import quote

import polars as pl

from yieldlab import schema
from yieldlab.admission import REASON, ROW
from yieldlab.admission.series import refusals, typed_series, usable
from yieldlab.collect._http import Answer, Broken, Client, FeedError, Stopped, parse_json
from yieldlab.collect.archive import Archive, Fetch, fetch_rows, writing_to
from yieldlab.errors import UsageError
from yieldlab.store import Store

COINS_SOURCE = "coins.llama.fi"
SENTIMENT_SOURCE = "alternative.me"
#: The word for the Fear & Greed index where a coin could stand.
SENTIMENT = "fear_greed"
#: Kinds of answers in table `fetches`.
COINS_KIND, SENTIMENT_KIND = "coins", "sentiment"
#: The earliest price that is asked for.
FIRST_DAY = date(2015, 1, 1)

_ASKED_AT = time(21, 30, tzinfo=UTC)
_MISSING = (pl.col("value").is_null() | pl.col("value").is_nan(), "missing value")
_PRICE = (_MISSING, (pl.col("value") <= 0.0, "price of 0 or less"))
_INDEX = (_MISSING, (~pl.col("value").is_between(0.0, 100.0), "value outside 0 to 100"))


class UnknownCoin(FeedError):
    """The service has no price of this coin."""


class _NoPrices(FeedError):
    """There is no price in the time that was asked for, as this answer says."""

    def __init__(self, sentence: str, answer: Answer) -> None:
        super().__init__(sentence)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Wanted:
    """A series to fetch: its name here, and the coin (`chain:address`, `coingecko:id`) or `fear_greed`."""

    name: str
    what: str


@dataclass(frozen=True, slots=True)
class Part:
    """What one answer gave: usable rows for `Store.append_series`, refused ones as they came, days without a price."""

    answer: Answer
    fetch: Fetch
    rows: pl.DataFrame
    refused: pl.DataFrame
    #: Reason -> refused rows.
    reasons: dict[str, int]
    missing: int = 0


@dataclass(frozen=True, slots=True)
class Fetched:
    """What fetching one series came to; `error` says why nothing of it, or not all, was taken in."""

    name: str
    what: str
    new: int = 0
    revised: int = 0
    unchanged: int = 0
    #: Reason -> refused values.
    refused: Mapping[str, int] = field(default_factory=dict)
    #: Days that the service has no price for.
    missing: int = 0
    first: datetime | None = None
    last: datetime | None = None
    error: str | None = None

    @property
    def refused_rows(self) -> int:
        return sum(self.refused.values())


@dataclass(frozen=True, slots=True)
class Clients:
    """Who asks the two services."""

    coins: Client
    sentiment: Client


def wanted(texts: Sequence[str]) -> tuple[Wanted, ...]:
    """What is named by `NAME=chain:address`, `NAME=coingecko:id`, `NAME=fear_greed` or `fear_greed` alone.

    >>> wanted(["eth_usd=coingecko:ethereum", "fear_greed"])
    (Wanted(name='eth_usd', what='coingecko:ethereum'), Wanted(name='fear_greed', what='fear_greed'))

    Raises UsageError for a text that is none of these, and for a name that comes twice.
    """
    found: dict[str, Wanted] = {}
    for text in texts:
        name, _, what = (part.strip() for part in text.rpartition("="))
        name = name or (what if what == SENTIMENT else "")
        if not name or not (what == SENTIMENT or re.fullmatch(r"[\w-]+:[^\s,/?#%]+", what)):
            raise UsageError(
                f"{text!r} is no series to fetch; give NAME=chain:address, as eth_usd=coingecko:ethereum, or "
                f"{SENTIMENT}"
            )
        if name in found:
            raise UsageError(f"the series {name!r} is named twice")
        found[name] = Wanted(name, what)
    if not found:
        raise UsageError(f"name at least one series to fetch, as eth_usd=coingecko:ethereum or {SENTIMENT}")
    return tuple(found.values())


def fetch(
    store: Store, clients: Clients, series: Sequence[Wanted], *, start: date, end: date | None = None
) -> Iterator[Fetched]:
    """Bring each series up to date and tell what came, one after the other; prices of the days from `start` to `end`
    (default: today), sentiment as far as it goes.

    Answers are kept as they come, the rows of a series committed together and then written down as fetched. A series
    that cannot be had is told with its reason and costs no other. Raises Stopped when a client was stopped; what came
    before is in.
    """
    archive = Archive(store.folder / "raw")
    for each in series:
        parts, failure = _received(archive, _parts(clients, each, start, end))
        told = _taken_in(store, each, parts)
        if isinstance(failure, Stopped):
            raise failure
        yield told if failure is None else replace(told, error=str(failure))


def _received(archive: Archive, parts: Iterator[Part]) -> tuple[list[Part], FeedError | None]:
    """The parts that came, each kept as it came, and what ended them early."""
    done: list[Part] = []
    try:
        for part in parts:
            with writing_to(archive.folder):
                archive.keep(part.answer)
            done.append(part)
    except FeedError as failure:
        return done, failure
    return done, None


def _taken_in(store: Store, each: Wanted, parts: Sequence[Part]) -> Fetched:
    """Add the rows of all parts in one commit, then write down that they were fetched; what that came to."""
    reasons: Counter[str] = Counter()
    for part in parts:
        reasons.update(part.reasons)
    told = Fetched(each.name, each.what, refused=dict(reasons.most_common()), missing=sum(p.missing for p in parts))
    if not parts:
        return told
    # Each row is known from the answer that it came in, also where it corrects another.
    rows = pl.concat(
        part.rows.with_columns(pl.lit(part.answer.fetched_at, schema.UTC).alias("fetched_at")) for part in parts
    )
    with store.writing():
        if rows.height:
            appended = store.append_series(rows, now=max(part.answer.fetched_at for part in parts))
            told = replace(told, new=appended.new, revised=appended.revised, unchanged=appended.unchanged)
        store.record("fetches", fetch_rows([part.fetch for part in parts]))
    first, last = rows.select(pl.col("valid_at").min().alias("first"), pl.col("valid_at").max().alias("last")).row(0)
    return replace(told, first=first, last=last)


# -- asking -----------------------------------------------------------------------------------------------------------


def _parts(clients: Clients, each: Wanted, start: date, end: date | None) -> Iterator[Part]:
    if each.what == SENTIMENT:
        yield fear_greed(clients.sentiment, each.name)
    else:
        yield from coins_chart(clients.coins, each.name, each.what, start=start, end=end)


def coins_chart(
    client: Client, name: str, coin: str, *, start: date, end: date | None = None, now: datetime | None = None
) -> Iterator[Part]:
    """The daily prices of a coin as the series `name`, the latest year first.

    Raises UnknownCoin when there is no price at all, and what `Client.get` raises.
    """
    now = now or datetime.now(UTC)
    prices = 0
    for first, days in _years(max(start, FIRST_DAY), end, now):
        asked: dict[str, str | int] = {"start": int(first.timestamp()), "span": days - 1, "period": "1d"}

        def check(answer: Answer, first: datetime = first) -> pl.DataFrame:
            points = _prices(answer.body, coin)
            if not points:
                reason = f"{COINS_SOURCE} has no price of {coin} in {first.year}"
                raise Broken(reason, truth=_NoPrices(reason, answer))
            return _price_rows(points, name, answer.fetched_at)

        try:
            answer, rows = client.get(f"/chart/{quote(coin, safe=':')}", asked, check=check)
        except _NoPrices as none:
            answer, rows = none.answer, _price_rows([], name, none.answer.fetched_at)
        prices += rows.height
        yield _part(answer, (COINS_KIND, f"{name}={coin}/{first.year}"), rows, missing=max(days - rows.height, 0))
    if not prices:
        raise UnknownCoin(
            f"{COINS_SOURCE} has no price of {coin!r} from {start} on; a coin is named by its chain and address, as "
            "ethereum:0xC02aaA39b223FE8D0A0e5C4F27eAD9083C756Cc2, or as coingecko:ethereum"
        )


def _years(start: date, end: date | None, now: datetime) -> Iterator[tuple[datetime, int]]:
    """Per calendar year, latest first, the first instant to ask for and the number of days; none in the future."""
    last = now.date() if now.timetz() >= _ASKED_AT else now.date() - timedelta(days=1)
    last = last if end is None else min(last, end)
    for year in range(last.year, start.year - 1, -1):
        first_day, last_day = max(start, date(year, 1, 1)), min(last, date(year, 12, 31))
        if first_day <= last_day:
            yield datetime.combine(first_day, _ASKED_AT), (last_day - first_day).days + 1


def fear_greed(client: Client, name: str = SENTIMENT) -> Part:
    """The whole history of the Fear & Greed index as the series `name`. Raises what `Client.get` raises."""

    def check(answer: Answer) -> pl.DataFrame:
        return _index_rows(_index(answer.body), name, answer.fetched_at)

    answer, rows = client.get("/fng/", {"limit": 0, "format": "json"}, check=check)
    return _part(answer, (SENTIMENT_KIND, name), rows)


def parse(kind: str, key: str, body: bytes, fetched_at: datetime) -> pl.DataFrame:
    """The rows for `Store.append_series` that a kept answer of table `fetches` gives, as when it was taken in."""
    if kind == SENTIMENT_KIND:
        return _given(_index_rows(_index(body), key, fetched_at))
    name, _, what = key.rpartition("=")
    return _given(_price_rows(_prices(body, what.rpartition("/")[0]), name, fetched_at))


# -- what an answer says --------------------------------------------------------------------------------------------


def _prices(body: bytes, coin: str) -> list[object]:
    """The points of a coin; none when the answer does not have it. Raises Broken for an answer of another form."""
    told = parse_json(body)
    coins = told.get("coins") if isinstance(told, dict) else None
    if not isinstance(coins, dict):
        raise Broken("the body has no 'coins'")
    # The service may spell an address in another case than it was asked.
    entries = [entry for spelled, entry in coins.items() if spelled.lower() == coin.lower()]
    points = entries[0].get("prices") if entries and isinstance(entries[0], dict) else []
    if not isinstance(points, list):
        raise Broken(f"the prices of {coin} are no list")
    return points


def _index(body: bytes) -> list[object]:
    told = parse_json(body)
    if not isinstance(told, dict) or not isinstance(told.get("data"), list):
        raise Broken("the body has no list 'data'")
    error = told["metadata"].get("error") if isinstance(told.get("metadata"), dict) else None
    if error or told.get("status") == "error":
        raise Broken("the service tells of an error of its own")
    if not told["data"]:
        raise Broken("the list 'data' is empty")
    return list(told["data"])


def _price_rows(points: Sequence[object], name: str, fetched_at: datetime) -> pl.DataFrame:
    return typed_series(_frame(points, name, "price", COINS_SOURCE), fetched_at, refuse=_PRICE)


def _index_rows(points: Sequence[object], name: str, fetched_at: datetime) -> pl.DataFrame:
    # Newest first as it comes; of two rows of one time the first is the newer.
    return typed_series(_frame(points[::-1], name, "value", SENTIMENT_SOURCE), fetched_at, refuse=_INDEX)


def _frame(points: Sequence[object], name: str, value: str, source: str) -> pl.DataFrame:
    """Name, time, value and source as texts; what is no text and no number stays what it is in words, to be refused."""

    def column(key: str) -> list[str | None]:
        given = (point.get(key) if isinstance(point, dict) else repr(point) for point in points)
        return [None if each is None else str(each) for each in given]

    return pl.DataFrame(
        {"time": column("timestamp"), "value": column(value)}, schema={"time": pl.String, "value": pl.String}
    ).with_columns(pl.lit(name).alias("name"), pl.lit(source).alias("source"))


def _part(answer: Answer, fetched: tuple[str, str], rows: pl.DataFrame, *, missing: int = 0) -> Part:
    kind, key = fetched
    return Part(
        answer,
        Fetch(answer.fetched_at, answer.url, kind, key, answer.status, answer.content_hash, len(answer.body)),
        _given(rows),
        rows.filter(pl.col(REASON).is_not_null()).drop("repeated", ROW),
        refusals(rows),
        missing,
    )


def _given(rows: pl.DataFrame) -> pl.DataFrame:
    return usable(rows).select("name", pl.col("time").alias("valid_at"), "value", "source")
