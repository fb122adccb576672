"""What does one answer of /pools add to the store?

A row is stored for a pool whose measured values differ from the last one that a poll stored on that UTC day, and for
one that has none on it yet; what the feed merely repeats is told in table `polls` alone. A list that lacks half of what
was there is not believed at once. All that an answer brings is written under one lock, the row of `polls` last: what a
row there tells is in the other tables.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta

import polars as pl

from yieldlab import schema
from yieldlab.collect._http import Answer
from yieldlab.collect.archive import Fetch, fetch_rows
from yieldlab.collect.defillama import Pools
from yieldlab.collect.events import happened, last_events
from yieldlab.collect.selection import Selection
from yieldlab.errors import DataError
from yieldlab.store import Store

SOURCE = f"{schema.FEED}/pools"

#: What is wrong with a poll that found no pool to store, though the feed answered.
NOTHING_CHOSEN = "the feed lists no pool of those asked for"

#: A list that lost more than half is believed when so many polls in a row said so, the last so long after the first:
#: the feed's cache repeats a bad answer for an hour.
CONFIRMED_BY = 3
CONFIRMED_AFTER = timedelta(hours=1)
#: Of fewer pools than these half may well go at once; their list is judged by its size alone.
MANY = 10

_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Poll:
    """One poll, as table `polls` tells it; `new` + `changed` are the rows that it stored.

    `new` rows are those of pools that had none on that UTC day, `changed` rows those of values other than before. The
    outcome is `stored`, `unchanged`, `not due` or `failed`.
    """

    polled_at: datetime
    outcome: str
    http_status: int | None = None
    size_bytes: int | None = None
    content_hash: str | None = None
    pools: int = 0
    new: int = 0
    changed: int = 0
    vanished: int = 0
    refused: int = 0
    duration_s: float = 0.0
    error: str | None = None
    #: What was asked for and is not in the feed.
    missing: tuple[str, ...] = ()
    #: What went wrong beside the poll itself, in sentences.
    notes: tuple[str, ...] = ()
    #: What was raised where the poll failed.
    raised: BaseException | None = field(default=None, compare=False)
    #: Whether table `polls` tells it already.
    recorded: bool = field(default=False, compare=False)

    @property
    def failed(self) -> bool:
        """Whether the store does not hold what the feed says."""
        return self.outcome == "failed"

    @property
    def trouble(self) -> str | None:
        """Why nothing of what was asked for is in the store, where that is so."""
        nothing = self.outcome in ("stored", "unchanged") and not self.pools
        return NOTHING_CHOSEN if nothing else self.error if self.failed else None

    def row(self) -> pl.DataFrame:
        """The row of table `polls`."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name in schema.POLLS}
        return pl.DataFrame([values], schema=schema.POLLS)


@dataclass(frozen=True, slots=True)
class Choice:
    """The pools to collect from one answer, what was not found, and the pools to remember from now on."""

    ids: pl.Series
    missing: tuple[str, ...]
    pins: pl.DataFrame


class Today:
    """The last row of every pool that polls stored on one UTC day, read once and then kept up to date.

    For the one process that collects: rows of polls that another one adds meanwhile are not seen.
    """

    def __init__(self) -> None:
        self._rows: pl.DataFrame | None = None
        #: The latest instant of asking whose rows are stored.
        self._until = datetime.min.replace(tzinfo=UTC)

    def before(self, store: Store, asked_at: datetime) -> pl.DataFrame:
        """Of every pool the last row of the UTC day of `asked_at` that is older than it."""
        if self._rows is None or asked_at <= self._until or asked_at.date() != self._until.date():
            return _of_days(store, asked_at, asked_at)
        return self._rows

    def keep(self, asked_at: datetime, before: pl.DataFrame, added: pl.DataFrame) -> None:
        """The rows asked for at `asked_at` are in the store."""
        if asked_at <= self._until:  # an answer that had waited longer than a later one
            self.forget()
            return
        rows = added.select(name for name in before.columns if name in added.columns)
        self._rows = pl.concat([before, rows], how="diagonal").unique("pool_id", keep="last", maintain_order=True)
        self._until = asked_at

    def forget(self) -> None:
        """What the store holds now is not known."""
        self._rows = None


def commit(
    store: Store,
    answer: Answer,
    pools: Pools,
    selection: Selection,
    *,
    today: Today | None = None,
    again: bool = False,
    wary: bool = False,
) -> Poll:
    """Write all that one answer brings; raises when the store does not take it, and may then be done again.

    `today` is kept by who commits one answer after the other. `again` says that some of it, or all, may be written
    already. `wary` says that a list which lost too much is not to be believed before it was confirmed; of such an
    answer only a failed poll is written.
    """
    began = time.monotonic()
    today = today or Today()
    with store.writing():
        polls = store.recorded("polls", columns=["polled_at", "outcome", "size_bytes", "content_hash"])
        is_told = not polls.filter(_is_decided() & (pl.col("polled_at") == answer.asked_at)).is_empty()
        polls = polls.filter(pl.col("polled_at") < answer.asked_at).sort("polled_at")
        feed = pools.frame.unique("pool_id", keep="last", maintain_order=True)
        last = last_events(store.recorded("pool_events"))
        if wary and not (again and is_told) and (doubt := _doubt(polls, last, answer, pools)):
            return _disbelieved(store, answer, pools, doubt, time.monotonic() - began)
        choice = choose(store, feed, selection, now=answer.fetched_at)
        chosen = feed.filter(_is_one_of(choice.ids))
        events = happened(
            last,
            feed,
            collected=chosen["pool_id"],
            silent=pools.refused["pool_id"].drop_nulls().to_list(),
            at=answer.fetched_at,
        )
        rows = observations(chosen, asked_at=answer.asked_at, fetched_at=answer.fetched_at)
        said_since = _said_since(polls, answer)
        if said_since is not None and said_since.date() != answer.asked_at.date():
            # The feed stands still since another day: a pool adds only what it did not have then, as one has that is
            # chosen by somebody else than who polled before.
            rows = differing(rows, _of_days(store, said_since, answer.asked_at)).drop("seen")
        before = today.before(store, answer.asked_at)
        # Whatever ends this before its end, the store is to be read again.
        today.forget()
        added = differing(rows, before)
        if added.height or (events.height and store.exists):
            followed = feed.filter(_is_one_of(last["pool_id"]) | _is_one_of(chosen["pool_id"]))
            store.append(added.drop("seen"), descriptions(followed, fetched_at=answer.fetched_at))
        poll = Poll(
            polled_at=answer.asked_at,
            outcome="unchanged" if said_since is not None and added.is_empty() else "stored",
            http_status=answer.status,
            size_bytes=len(answer.body),
            content_hash=answer.content_hash,
            pools=choice.ids.len(),
            new=int((~added["seen"]).sum()),
            changed=int(added["seen"].sum()),
            vanished=events.filter(pl.col("event") == "vanished").height,
            refused=pools.refused.height,
            duration_s=time.monotonic() - began,
            missing=choice.missing,
            recorded=True,
        )
        store.record("pins", choice.pins)
        store.record("pool_events", events)
        store.record("fetches", _fetch(store, answer, again=again))
        if not (again and is_told):
            store.record("polls", poll.row())
    today.keep(answer.asked_at, before, added)
    return poll


def observations(pools: pl.DataFrame, *, asked_at: datetime, fetched_at: datetime) -> pl.DataFrame:
    """The pools of an answer as rows of `yield_metrics`: they describe the instant of asking, and could be known once
    the answer was there."""
    measured = [name for name in schema.MEASURED if name in pools.columns]
    return pools.select(
        "pool_id",
        pl.lit(asked_at, schema.UTC).alias("valid_at"),
        # A clock that was set back in between must not make a row known before what it describes.
        pl.lit(max(fetched_at, asked_at + _TICK), schema.UTC).alias("observed_at"),
        *(pl.col(name).cast(pl.Float64).fill_nan(None) for name in measured),
        pl.lit(SOURCE).alias("source"),
    )


def descriptions(pools: pl.DataFrame, *, fetched_at: datetime) -> pl.DataFrame:
    """The pools of an answer as rows of `assets`."""
    return pools.select(
        "pool_id",
        *schema.DESCRIBED,
        pl.lit(fetched_at, schema.UTC).alias("observed_at"),
        pl.lit(SOURCE).alias("source"),
    )


def differing(rows: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
    """The rows that measure something else than the row of their pool in `before`, or whose pool has none there.

    `seen` says which of the two it is.
    """
    measured = [name for name in schema.MEASURED if name in rows.columns]
    known = before.select("pool_id", *(pl.col(name).alias(f"{name}_before") for name in measured), seen=True)
    joined = rows.join(known, on="pool_id", how="left", maintain_order="left").with_columns(
        pl.col("seen").fill_null(False)
    )
    differs = pl.any_horizontal(
        pl.lit(False), *(pl.col(name).ne_missing(pl.col(f"{name}_before")) for name in measured)
    )
    return joined.filter(differs | ~pl.col("seen")).select(*rows.columns, "seen")


def choose(store: Store, feed: pl.DataFrame, selection: Selection, *, now: datetime) -> Choice:
    """The pools to collect: those selected now and, where the selection moves, those that were selected before.

    A pool that shrinks below `min_tvl` or drops out of the `top` goes on being collected for as long as the feed has it
    and it is of the right kind; else only pools that do well would have a history.
    """
    pins = store.recorded("pins")
    found = selection.find(feed, pins, now=now)
    ids = found.pools["pool_id"]
    if selection == selection.with_no_limits():
        return Choice(ids, found.missing, found.pins)
    name = f"collected: {selection}"
    pinned = pins.filter(pl.col("watchlist") == name)["pool_id"]
    # A watchlist entry found just now is pinned for what follows too.
    kind = selection.with_no_limits().find(feed, pl.concat([pins, found.pins]), now=now)
    kept = kind.pools.filter(_is_one_of(pinned))["pool_id"]
    fresh = ids.filter(~ids.is_in(pinned.implode())).to_frame("pool_id")
    noted = fresh.select(
        pl.lit(name).alias("watchlist"),
        pl.col("pool_id").alias("entry"),
        "pool_id",
        pl.lit(now, schema.UTC).alias("pinned_at"),
    )
    return Choice(pl.concat([ids, kept]).unique(maintain_order=True), found.missing, pl.concat([found.pins, noted]))


def _doubt(polls: pl.DataFrame, last: pl.DataFrame, answer: Answer, pools: Pools) -> str | None:
    """Why an answer is not to be believed yet, if it is not; `polls` are those before it."""
    answered = polls.filter(pl.col("content_hash").is_not_null())
    believed = answered.filter(_is_decided())
    if believed.is_empty():
        return None
    followed = last.filter(pl.col("event") != "vanished")["pool_id"]
    listed = pl.concat([pools.frame["pool_id"], pools.refused["pool_id"].drop_nulls()])
    here, size = int(followed.is_in(listed.implode()).sum()), believed["size_bytes"][-1]
    if 2 * len(answer.body) >= size and (followed.len() < MANY or 2 * here >= followed.len()):
        return None
    doubted = answered.filter(pl.col("polled_at") > believed["polled_at"][-1])["polled_at"]
    if doubted.len() >= CONFIRMED_BY - 1 and answer.asked_at - doubted[0] >= CONFIRMED_AFTER:
        return None
    return (
        f"the feed's list shrank to {len(answer.body):,} bytes from {size:,} with {here:,} of {followed.len():,} "
        f"pools followed; that is believed when {CONFIRMED_BY} polls in a row, over an hour or more, say so"
    )


def _disbelieved(store: Store, answer: Answer, pools: Pools, doubt: str, seconds: float) -> Poll:
    """The failed poll of an answer that is not believed, in table `polls`: those after it know by its hash."""
    poll = Poll(
        polled_at=answer.asked_at,
        outcome="failed",
        http_status=answer.status,
        size_bytes=len(answer.body),
        content_hash=answer.content_hash,
        refused=pools.refused.height,
        duration_s=seconds,
        error=doubt,
        raised=DataError(doubt),
        recorded=True,
    )
    known = store.recorded("polls", columns=["polled_at", "content_hash"])
    store.record("polls", poll.row().join(known, on=["polled_at", "content_hash"], how="anti"))
    return poll


def _said_since(polls: pl.DataFrame, answer: Answer) -> datetime | None:
    """Since when the feed says this without a break; None when the last of `polls`, those before it, said otherwise."""
    latest_first = polls.filter(_is_decided()).reverse()
    same = (latest_first["content_hash"] == answer.content_hash).cast(pl.Int64).cum_prod()
    times: list[datetime] = latest_first.filter(same == 1)["polled_at"].to_list()
    return times[-1] if times else None


def _of_days(store: Store, since: datetime, asked_at: datetime) -> pl.DataFrame:
    """Of every pool the last row that a poll stored before `asked_at`, from the UTC day of `since` on."""
    if not store.exists:
        return pl.DataFrame(schema=schema.YIELD_METRICS).select("pool_id", *schema.MEASURED)
    midnight = since.replace(hour=0, minute=0, second=0, microsecond=0)
    rows = store.history(since=midnight, columns=("pool_id", "valid_at", *schema.MEASURED, "source"))
    return (
        rows.filter((pl.col("source") == SOURCE) & (pl.col("valid_at") < asked_at))
        .sort("pool_id", "valid_at", "observed_at", "ingested_at")
        .unique("pool_id", keep="last", maintain_order=True)
        .select("pool_id", *schema.MEASURED)
    )


def _fetch(store: Store, answer: Answer, *, again: bool) -> pl.DataFrame:
    told = (answer.fetched_at, answer.url, "pools", None, answer.status, answer.content_hash, len(answer.body))
    row = fetch_rows([Fetch(*told)])
    if not again:
        return row
    known = store.recorded("fetches", columns=["fetched_at", "content_hash"])
    return row.join(known, on=["fetched_at", "content_hash"], how="anti")


def _is_decided() -> pl.Expr:
    return pl.col("outcome").is_in(["stored", "unchanged"])


def _is_one_of(ids: pl.Series) -> pl.Expr:
    return pl.col("pool_id").is_in(ids.implode())
