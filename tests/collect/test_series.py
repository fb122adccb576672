"""Prices and sentiment from services that misbehave: what is true comes in whole, once, and dated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from feed_server import TRANSPORT_FAULTS, FeedServer

from yieldlab.collect import series
from yieldlab.collect._http import Broken, Client, Stopped, Unreachable
from yieldlab.collect.archive import Archive
from yieldlab.collect.series import Clients, Fetched, Part, UnknownCoin, Wanted, coins_chart, fear_greed, parse, wanted
from yieldlab.errors import DataError, UsageError
from yieldlab.store import Store

COIN = "ethereum:0xC02aaA39b223FE8D0A0e5C4F27eAD9083C756Cc2"
NOW = datetime(2024, 3, 10, 22, tzinfo=UTC)
DAYS = {"start": date(2024, 3, 1), "end": date(2024, 3, 10)}


@pytest.fixture(scope="module")
def _server() -> Iterator[FeedServer]:
    with FeedServer(pools=1, days=40) as server:
        yield server


@pytest.fixture
def server(_server: FeedServer) -> Iterator[FeedServer]:
    """A server of this test's own, as far as it can tell."""
    _server._plans.clear()
    _server.hits.clear()
    _server.hang_s, _server.drip_s, _server.retry_after_s = 30.0, 30.0, 0
    world = _server.world
    coins, index = world.coins, world.fear_greed
    yield _server
    world.coins, world.fear_greed = coins, index  # type: ignore[method-assign]


def quick(url: str, **given: object) -> Client:
    """A client that does not keep a test waiting."""
    settings: dict[str, object] = {"requests_per_minute": 1e6, "backoff": 0.001, "read_timeout": 0.3, "deadline": 0.6}
    return Client(url, **(settings | given | {"sleep": lambda seconds: None}))  # type: ignore[arg-type]


def prices(client: Client, coin: str = COIN) -> Part:
    (part,) = coins_chart(client, "eth_usd", coin, **DAYS, now=NOW)
    return part


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def fetched(store: Store, server: FeedServer, *texts: str, **given: object) -> list[Fetched]:
    with quick(server.url, **given) as client:
        return list(series.fetch(store, Clients(client, client), wanted(texts), **DAYS))


# -- the faults of the way here, with both services -------------------------------------------------------------------


@pytest.mark.parametrize("fault", TRANSPORT_FAULTS)
def test_a_fault_of_the_way_costs_no_price(server: FeedServer, fault: str) -> None:
    with quick(server.url) as client:
        honest = prices(client)
        server.plan(f"/chart/{COIN}", fault, fault)
        server.hits.clear()
        told = prices(client)
    assert server.hits[f"/chart/{COIN}"] == 3
    assert told.rows.equals(honest.rows)
    assert told.rows.height == 10


@pytest.mark.parametrize("fault", TRANSPORT_FAULTS)
def test_a_fault_of_the_way_costs_no_sentiment(server: FeedServer, fault: str) -> None:
    with quick(server.url) as client:
        honest = fear_greed(client)
        server.plan("/fng/", fault, fault)
        server.hits.clear()
        told = fear_greed(client)
    assert server.hits["/fng/"] == 3
    assert told.rows.equals(honest.rows)
    assert told.rows.height == 40


@pytest.mark.parametrize("path", [f"/chart/{COIN}", "/fng/"])
def test_a_service_that_does_not_recover_is_told_in_one_sentence(server: FeedServer, path: str) -> None:
    server.plan(path, *["truncated_nolen"] * 6)
    with quick(server.url) as client, pytest.raises(Unreachable, match=r"6 attempts; the last one: .*not JSON"):
        _ = prices(client) if path.startswith("/chart") else fear_greed(client)


def test_with_faults_in_a_third_of_all_answers_all_prices_are_there(server: FeedServer, tmp_path: Path) -> None:
    texts = [f"coin_{number}=coingecko:coin-{number}" for number in range(12)]
    honest, troubled = Store(tmp_path / "honest"), Store(tmp_path / "troubled")
    fetched(honest, server, *texts, "fear_greed")
    server.fault_names = tuple(fault for fault in TRANSPORT_FAULTS if fault not in ("hang", "drip"))
    server.fault_share, before = 0.33, sum(server.met[fault] for fault in TRANSPORT_FAULTS)
    try:
        told = fetched(troubled, server, *texts, "fear_greed", attempts=12)
    finally:
        server.fault_names, server.fault_share = TRANSPORT_FAULTS, 0.0
    assert [each.error for each in told] == [None] * 13
    assert sum(server.met[fault] for fault in TRANSPORT_FAULTS) > before + 3
    columns = ["name", "valid_at", "observed_at", "value", "source"]
    assert troubled.series().select(columns).equals(honest.series().select(columns))


# -- what is asked, and what is made of it ----------------------------------------------------------------------------


def test_days_are_asked_for_near_their_end_and_never_in_the_future(server: FeedServer) -> None:
    asked: list[tuple[int, int]] = []
    honest = server.world.coins

    def coins(names: list[str], start: int, span: int, period_s: int) -> dict:
        asked.append((start, span))
        assert period_s == 86_400
        return honest(names, start, span, period_s)

    server.world.coins = coins  # type: ignore[method-assign]
    with quick(server.url) as client:
        parts = list(coins_chart(client, "eth_usd", COIN, start=date(2022, 12, 30), now=NOW.replace(hour=21)))
    first = [datetime.fromtimestamp(start, UTC) for start, _ in asked]
    assert first == [
        datetime(year, *day, 21, 30, tzinfo=UTC) for year, day in ((2024, (1, 1)), (2023, (1, 1)), (2022, (12, 30)))
    ]
    # It is 21:00 on 10 March: that day's price cannot be known yet.
    assert [span + 1 for _, span in asked] == [31 + 29 + 9, 365, 2]
    stamps = pl.concat([part.rows for part in parts])["valid_at"]
    assert stamps.max() < NOW
    assert stamps.dt.date().n_unique() == stamps.len() == 31 + 29 + 9 + 365 + 2
    assert [part.fetch.key for part in parts] == [f"eth_usd={COIN}/{year}" for year in (2024, 2023, 2022)]


def test_a_coin_without_a_price_is_unknown_once_that_is_confirmed(server: FeedServer) -> None:
    with (
        quick(server.url) as client,
        pytest.raises(UnknownCoin, match="no price of 'ethereum:0xunknown' from 2024-03-01 on"),
    ):
        list(coins_chart(client, "x", "ethereum:0xunknown", **DAYS, now=NOW))
    assert server.hits["/chart/ethereum:0xunknown"] == 3


def test_years_before_a_coin_are_counted_as_missing_and_cost_no_others(server: FeedServer) -> None:
    honest = server.world.coins
    born = datetime(2023, 6, 1, tzinfo=UTC).timestamp()

    def coins(names: list[str], start: int, span: int, period_s: int) -> dict:
        told = honest(names, start, span, period_s)["coins"]
        for entry in told.values():
            entry["prices"] = [point for point in entry["prices"] if point["timestamp"] > born]
        return {"coins": {name: entry for name, entry in told.items() if entry["prices"]}}

    server.world.coins = coins  # type: ignore[method-assign]
    with quick(server.url) as client:
        parts = list(coins_chart(client, "x", COIN, start=date(2022, 1, 1), end=date(2024, 1, 5), now=NOW))
    assert [part.rows.height for part in parts] == [5, 214, 0]
    assert [part.missing for part in parts] == [0, 151, 365]


def chart_of(*points: object, spelled: str = COIN.lower()) -> bytes:
    return json.dumps({"coins": {spelled: {"symbol": "WETH", "prices": list(points)}}}).encode()


AT = int(datetime(2024, 3, 1, 21, 30, tzinfo=UTC).timestamp())
BAD_POINTS = [
    ({"timestamp": AT, "price": None}, "missing value"),
    ({"timestamp": AT}, "missing value"),
    ({"timestamp": AT, "price": "NaN"}, "missing value"),
    ({"timestamp": AT, "price": "dear"}, "value is not a number"),
    ({"timestamp": AT, "price": [1.0]}, "value is not a number"),
    ({"timestamp": AT, "price": "inf"}, "value is not finite"),
    ({"timestamp": AT, "price": 0}, "price of 0 or less"),
    ({"timestamp": AT, "price": -1.5}, "price of 0 or less"),
    ({"price": 1.0}, "missing time"),
    ({"timestamp": "soon", "price": 1.0}, "unreadable time"),
    ({"timestamp": AT + 10 * 365 * 86_400, "price": 1.0}, "time in the future"),
    ({"timestamp": 1000, "price": 1.0}, "time before the first blockchain"),
    ("nonsense", "unreadable time"),
]


@pytest.mark.parametrize(("point", "reason"), BAD_POINTS)
def test_a_bad_price_is_refused_and_costs_no_other(server: FeedServer, point: object, reason: str) -> None:
    good = [{"timestamp": AT + 86_400 * day, "price": f"{day}.5"} for day in (1, 2)]
    body = json.loads(chart_of(good[0], point, good[1]))
    server.world.coins = lambda *asked: body  # type: ignore[method-assign]
    with quick(server.url) as client:
        told = prices(client)
    assert told.rows["value"].to_list() == [1.5, 2.5], "numbers as texts are numbers"
    assert told.reasons == {reason: 1}
    assert told.refused["reject_reason"].to_list() == [reason]


def test_prices_that_repeat_or_contradict_a_time_are_told_apart() -> None:
    points = [{"timestamp": AT, "price": price} for price in (3.0, 2.0, 2.0)]
    rows = parse("coins", f"eth_usd={COIN}/2024", chart_of(*points), NOW)
    assert rows.select("name", "value").rows() == [("eth_usd", 2.0)]


BAD_INDICES = [
    ({"value": "101", "timestamp": str(AT)}, "value outside 0 to 100"),
    ({"value": "-1", "timestamp": str(AT)}, "value outside 0 to 100"),
    ({"value": "Fear", "timestamp": str(AT)}, "value is not a number"),
    ({"value": "", "timestamp": str(AT)}, "missing value"),
]


@pytest.mark.parametrize(("point", "reason"), BAD_INDICES)
def test_a_bad_index_is_refused_and_costs_no_other(server: FeedServer, point: dict, reason: str) -> None:
    good = {"value": "40", "timestamp": str(AT + 86_400)}
    server.world.fear_greed = lambda limit: {"data": [good, point], "metadata": {"error": None}}  # type: ignore[method-assign]
    with quick(server.url) as client:
        told = fear_greed(client)
    assert told.rows["value"].to_list() == [40.0]
    assert told.reasons == {reason: 1}


def test_of_two_indices_of_one_day_the_newer_one_counts() -> None:
    """The newest comes first."""
    points = [{"value": value, "timestamp": str(AT)} for value in ("41", "40")]
    rows = parse("sentiment", "mood", json.dumps({"data": points}).encode(), NOW)
    assert rows.select("name", "value", "source").rows() == [("mood", 41.0, "alternative.me")]


@pytest.mark.parametrize(
    ("kind", "key", "body"),
    [
        ("coins", f"eth_usd={COIN}/2024", b"[]"),
        ("coins", f"eth_usd={COIN}/2024", b'{"coins": []}'),
        ("coins", f"eth_usd={COIN}/2024", chart_of().replace(b"[]", b"5")),
        ("sentiment", "fear_greed", b'{"data": {}}'),
        ("sentiment", "fear_greed", b'{"data": []}'),
        ("sentiment", "fear_greed", b'{"data": [], "metadata": {"error": "down"}}'),
        ("sentiment", "fear_greed", b"null"),
    ],
)
def test_a_body_of_another_form_is_broken(kind: str, key: str, body: bytes) -> None:
    with pytest.raises(Broken):
        parse(kind, key, body, NOW)


def test_an_address_in_another_case_is_the_same_coin() -> None:
    body = chart_of({"timestamp": AT, "price": 1.0}, spelled=COIN.upper())
    assert parse("coins", f"eth_usd={COIN}/2024", body, NOW)["value"].to_list() == [1.0]


# -- into the store ---------------------------------------------------------------------------------------------------


def test_fetching_again_adds_nothing_and_answers_are_kept(server: FeedServer, store: Store) -> None:
    first = fetched(store, server, f"eth_usd={COIN}", "fear_greed")
    assert [(each.name, each.new, each.unchanged, each.error) for each in first] == [
        ("eth_usd", 10, 0, None),
        ("fear_greed", 40, 0, None),
    ]
    again = fetched(store, server, f"eth_usd={COIN}", "fear_greed")
    assert [(each.new, each.revised, each.unchanged) for each in again] == [(0, 0, 10), (0, 0, 40)]
    assert store.series_names() == ["eth_usd", "fear_greed"]
    fetches = store.recorded("fetches").sort("fetched_at")
    assert fetches["kind"].to_list() == ["coins", "sentiment"] * 2
    archive = Archive(store.folder / "raw")
    kept = [
        parse(kind, key, archive.read(content_hash), fetched_at)
        for kind, key, content_hash, fetched_at in fetches.select("kind", "key", "content_hash", "fetched_at")
        .head(2)
        .rows()
    ]
    columns = ["name", "valid_at", "value", "source"]
    assert pl.concat(kept).sort("name", "valid_at").equals(store.series().select(columns))


def test_a_price_that_is_changed_later_is_a_revision(server: FeedServer, store: Store) -> None:
    fetched(store, server, f"eth_usd={COIN}")
    before = store.cutoff()
    honest = server.world.coins

    def coins(*asked: object) -> dict:
        told = honest(*asked)  # type: ignore[arg-type]
        next(iter(told["coins"].values()))["prices"][3]["price"] = 1234.5
        return told

    server.world.coins = coins  # type: ignore[method-assign]
    (again,) = fetched(store, server, f"eth_usd={COIN}")
    assert (again.new, again.revised, again.unchanged) == (0, 1, 9)
    assert 1234.5 in store.series()["value"].to_list()
    assert 1234.5 not in store.series(ingested_by=before)["value"].to_list()
    assert 1234.5 not in store.series(as_of=before)["value"].to_list()


def test_a_series_that_fails_costs_no_other(server: FeedServer, store: Store) -> None:
    server.plan("/fng/", *["502"] * 6)
    told = fetched(store, server, "fear_greed", "x=ethereum:0xunknown", f"eth_usd={COIN}")
    assert [each.error is None for each in told] == [False, False, True]
    assert "502" in str(told[0].error)
    assert "no price of 'ethereum:0xunknown'" in str(told[1].error)
    assert store.series_names() == ["eth_usd"]


def test_a_series_that_breaks_off_keeps_the_years_that_came(server: FeedServer, store: Store) -> None:
    path = f"/chart/{COIN}"
    server.plan(path, "ok", *["503"] * 6)
    with quick(server.url) as client:
        clients = Clients(client, client)
        (told,) = series.fetch(store, clients, wanted([f"x={COIN}"]), start=date(2022, 1, 1), end=date(2023, 1, 20))
    assert (told.new, told.error is not None) == (20, True)
    assert store.recorded("fetches")["key"].to_list() == [f"x={COIN}/2023"]
    assert str(store.series()["valid_at"].min()) > "2023"


def test_what_was_fetched_before_a_stop_is_kept(server: FeedServer, store: Store) -> None:
    with quick(server.url) as client:
        both = series.fetch(store, Clients(client, client), wanted(["fear_greed", f"eth_usd={COIN}"]), **DAYS)
        assert next(both).new == 40
        client._stop.set()
        with pytest.raises(Stopped):
            next(both)
    assert store.series_names() == ["fear_greed"]


def test_a_full_disk_loses_no_row_that_was_told(
    server: FeedServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are in before their answer counts as fetched; the next time they are known already."""

    def full(*_: object) -> None:
        raise DataError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "record", full)
        with pytest.raises(DataError, match="the disk is full"):
            fetched(store, server, "fear_greed")
    assert store.recorded("fetches").is_empty()
    assert fetched(store, server, "fear_greed")[0].unchanged == 40


def test_a_fetched_series_is_read_beside_the_pools(server: FeedServer, store: Store) -> None:
    fetched(store, server, f"eth_usd={COIN}")
    days = [datetime(2024, 3, 1, 5, tzinfo=UTC) + timedelta(days=n) for n in range(3)]
    metrics = pl.DataFrame({"pool_id": ["p"] * 3, "valid_at": days, "apy_percent": [1.0, 2.0, 3.0]})
    store.append(metrics, metrics.select("pool_id").unique())
    told = store.series().filter(pl.col("valid_at") < datetime(2024, 3, 4, tzinfo=UTC))["value"]
    assert store.panel(ingested_by=store.cutoff()).series("eth_usd").tolist() == told.to_list()


# -- what may be asked for --------------------------------------------------------------------------------------------


def test_series_to_fetch_are_named() -> None:
    assert wanted(["a=coingecko:wrapped-bitcoin", "mood=fear_greed"]) == (
        Wanted("a", "coingecko:wrapped-bitcoin"),
        Wanted("mood", "fear_greed"),
    )


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ([], "name at least one series"),
        (["coingecko:ethereum"], "'coingecko:ethereum' is no series to fetch"),
        (["eth=ethereum"], "'eth=ethereum' is no series to fetch"),
        (["eth=ethereum:0x1/../../pools"], "is no series to fetch"),
        (["eth=a:b,c:d"], "is no series to fetch"),
        (["=a:b"], "is no series to fetch"),
        (["a=x:1", "a=x:2"], "the series 'a' is named twice"),
    ],
)
def test_what_is_no_series_is_told(texts: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        wanted(texts)


def test_a_raw_folder_that_cannot_be_written_is_told_with_its_path(server: FeedServer, store: Store) -> None:
    store.folder.mkdir()
    (store.folder / "raw").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write to .*raw"):
        fetched(store, server, f"eth_usd={COIN}")
