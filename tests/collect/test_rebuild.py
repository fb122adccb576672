"""From the answers that were kept the tables can be made again, row for row, and nothing is changed by trying."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from feed_server import FeedServer

from yieldlab import schema
from yieldlab.collect import backfill, series
from yieldlab.collect._http import Client
from yieldlab.collect.archive import Archive, Fetch
from yieldlab.collect.collector import Collector
from yieldlab.collect.rebuild import Rebuilt, Replayed, rebuild
from yieldlab.collect.selection import Selection
from yieldlab.errors import DataError, UsageError
from yieldlab.store import Store

TABLES = ("yield_metrics", "assets", "series", "pool_events")


@pytest.fixture(scope="module")
def feed() -> Iterator[FeedServer]:
    with FeedServer(pools=9, days=12) as server:
        server.expires_after = timedelta(0)
        yield server


def fetch(store: Store, feed: FeedServer, selection: Selection) -> None:
    with Client(feed.url, requests_per_minute=1e6) as client:
        planned = backfill.plan(store, client, selection, refresh=True)
        list(backfill.run(store, client, planned, batch=4))


def poll(store: Store, feed: FeedServer, selection: Selection) -> None:
    with Client(feed.url, requests_per_minute=1e6) as client:
        assert not Collector(store, client, selection).poll().failed


@pytest.fixture(scope="module")
def made(feed: FeedServer, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a life: history, polls in between, revisions that change back, a gap that is filled in afterwards,
    other names, pools that go."""
    store, pools = Store(tmp_path_factory.mktemp("made") / "data"), feed.pool_ids
    whole = feed.chart(pools[2])
    feed.set_chart(pools[2], [*whole[:6], *whole[7:]])
    some = Selection(pools=tuple(pools[:6]))
    chart = feed.chart(pools[0])
    fetch(store, feed, Selection(pools=tuple(pools[:4])))
    poll(store, feed, some)
    feed.set_chart(pools[0], [*chart[:5], chart[5] | {"apy": 50.0}, *chart[6:]])
    other = feed.chart(pools[1])
    feed.set_chart(pools[1], [*other[:4], other[4] | {"apy": 60.0}, *other[5:]])
    feed.set_chart(pools[2], whole)
    feed.change(pools[1], apy=9.5, project="aave-v4")
    fetch(store, feed, Selection(pools=tuple(pools[:5])))
    poll(store, feed, some)
    feed.set_chart(pools[0], chart)
    feed.vanish(pools[2])
    fetch(store, feed, Selection(pools=tuple(pools[:3])))
    poll(store, feed, some)
    poll(store, feed, some)
    feed.come_back(pools[2])
    poll(store, feed, Selection(pools=tuple(pools[:7])))
    with Client(feed.url, requests_per_minute=1e6) as client:
        clients = series.Clients(coins=client, sentiment=client)
        wanted = series.wanted(["eth_usd=coingecko:ethereum", "fear_greed"])
        list(series.fetch(store, clients, wanted, start=date(2025, 6, 1), end=date(2025, 6, 9)))
    return store


@pytest.fixture
def lived(made: Store, tmp_path: Path) -> Store:
    return copy_of(made, tmp_path / "data")


def held(store: Store) -> dict[str, pl.DataFrame]:
    """Every row of the tables that are made from answers, but for the clock that no two stores share."""
    tables = {
        "yield_metrics": store.history(),
        "assets": store.descriptions(),
        "series": store.series_history(),
        "pool_events": store.recorded("pool_events"),
    }
    return {name: rows.drop("ingested_at", strict=False).sort(pl.all()) for name, rows in tables.items()}


def assert_equal(store: Store, other: Store) -> None:
    mine, others = held(store), held(other)
    for name in TABLES:
        assert mine[name].equals(others[name]), name


def rebuilt(store: Store, into: Path | None = None, keep_raw_days: int = 30) -> Rebuilt:
    *events, last = rebuild(store, keep_raw_days=keep_raw_days, into=into)
    assert isinstance(last, Rebuilt)
    assert [event.done for event in events if isinstance(event, Replayed)] == list(range(1, last.answers + 1))
    return last


def copy_of(store: Store, folder: Path) -> Store:
    shutil.copytree(store.folder, folder)
    return Store(folder)


def test_the_life_that_is_replayed_has_everything_in_it(lived: Store) -> None:
    assert lived.history().height > lived.metrics().height
    assert set(lived.recorded("pool_events")["event"]) == {"appeared", "renamed", "vanished", "returned"}
    assert lived.descriptions().height > lived.assets().height
    assert lived.series_names() == ["eth_usd", "fear_greed"]
    charts = lived.history().filter(pl.col("source") == "defillama/chart")
    once = charts.filter(pl.len().over("pool_id", "valid_at") == 1, pl.col("observed_at") > pl.col("valid_at"))
    assert once.height == 1, "the gap that was filled in"


def test_a_new_folder_gets_the_same_rows(lived: Store, tmp_path: Path) -> None:
    told = rebuilt(lived, tmp_path / "again")
    again = Store(tmp_path / "again")
    assert (told.damaged, told.expired, told.replayed) == ({}, 0, told.answers)
    assert_equal(lived, again)
    for name in ("pins", "conventions"):
        assert again.recorded(name).sort(pl.all()).equals(lived.recorded(name).sort(pl.all()))
    assert again.recorded("fetches").sort(pl.all()).equals(lived.recorded("fetches").sort(pl.all()))
    # The new folder stands by itself.
    assert rebuilt(again).damaged == {}
    assert_equal(lived, again)


def test_in_place_nothing_is_added_to_what_is_complete(lived: Store) -> None:
    before, versions = held(lived), {name: state.version for name, state in lived.versions().items()}
    told = rebuilt(lived)
    assert (told.new, told.revised, told.described, told.events) == (0, 0, 0, 0)
    assert all(before[name].equals(rows) for name, rows in held(lived).items())
    assert {name: state.version for name, state in lived.versions().items()} == versions
    assert not list(lived.folder.glob(".rebuild-*"))


def test_what_killed_rebuilds_left_is_removed_and_what_is_at_work_stays(lived: Store) -> None:
    killed = lived.folder / ".rebuild-killed"
    (killed / "tables").mkdir(parents=True)
    with lived.scratch() as at_work:
        assert at_work.parent == lived.folder
        (at_work / "mine").write_text("mine")
        assert not killed.exists()
        rebuilt(lived)
        assert (at_work / "mine").exists()
    assert not list(lived.folder.glob(".rebuild-*"))


@pytest.mark.parametrize("lost", [("yield_metrics",), ("assets",), ("series",), ("pool_events",), TABLES[:3]])
def test_lost_tables_come_back(lived: Store, lost: tuple[str, ...], tmp_path: Path) -> None:
    broken = copy_of(lived, tmp_path / "broken")
    for name in lost:
        shutil.rmtree(broken.folder / "tables" / name)
    rebuilt(broken)
    if lost != ("pool_events",):  # without events, nothing tells which pools of a poll were followed
        assert_equal(lived, broken)
        told = rebuilt(broken)
        assert (told.new, told.revised, told.described, told.events) == (0, 0, 0, 0)
    held_rows = held(broken)["yield_metrics"]
    missing = held(lived)["yield_metrics"].join(held_rows, on=held_rows.columns, how="anti", nulls_equal=True)
    assert missing.is_empty()


def test_only_what_is_missing_is_added(lived: Store, feed: FeedServer, tmp_path: Path) -> None:
    """An older copy of the tables, and the answers that came since."""
    older = copy_of(lived, tmp_path / "older")
    pool = feed.pool_ids[3]
    chart = feed.chart(pool)
    feed.set_chart(pool, [*chart[:2], chart[2] | {"apy": 31.0}, *chart[3:]])
    fetch(lived, feed, Selection(pools=(pool, feed.pool_ids[8])))
    for name in ("yield_metrics", "assets"):
        shutil.rmtree(lived.folder / "tables" / name)
        shutil.copytree(older.folder / "tables" / name, lived.folder / "tables" / name)
    told = rebuilt(lived)
    assert (told.new, told.revised, told.described) == (12, 1, 1)
    row = lived.history().filter(pl.col("apy_percent") == 31.0)
    assert (row["observed_at"] > row["valid_at"]).all()
    assert rebuilt(lived).new == 0


def test_an_answer_that_is_lost_or_damaged_is_named_and_costs_no_other(
    lived: Store, feed: FeedServer, tmp_path: Path
) -> None:
    archive = Archive(lived.folder / "raw")
    fetches = lived.recorded("fetches").filter(pl.col("kind") == "chart").sort("fetched_at")
    gone, broken = fetches.filter(pl.col("key") == feed.pool_ids[4]), fetches.filter(pl.col("key") == feed.pool_ids[3])
    archive.path(gone["content_hash"][0]).unlink()
    archive.path(broken["content_hash"][0]).write_bytes(b"noise")
    told = rebuilt(lived, tmp_path / "again")
    assert len(told.damaged) == gone.height + broken.height
    assert told.replayed == told.answers - len(told.damaged)
    reasons = " ".join(told.damaged.values())
    assert "is missing" in reasons
    assert "is damaged" in reasons
    assert all(any(pool in name for pool in feed.pool_ids[3:5]) for name in told.damaged)
    again = held(Store(tmp_path / "again"))["yield_metrics"]
    lost = pl.col("pool_id").is_in(feed.pool_ids[3:5]) & (pl.col("source") == "defillama/chart")
    assert again.equals(held(lived)["yield_metrics"].filter(~lost))


def test_what_expired_is_counted_and_changes_nothing_that_was_known(lived: Store, feed: FeedServer) -> None:
    before = held(lived)
    now = datetime.now(UTC)
    assert Archive(lived.folder / "raw").expire(lived, now + timedelta(days=1)).removed > 0
    # All is older than so many days; of each pool the newest chart is left, and tells values as if always known.
    told = rebuilt(lived, keep_raw_days=-2)
    assert told.expired > 0
    assert told.damaged == {}
    # A revision that is all that is left of its row must not be read as of the time before it.
    assert lived.recorded("fetches").filter(pl.col("key") == feed.pool_ids[1]).height > 1
    assert (told.new, told.revised, told.described, told.events) == (0, 0, 0, 0)
    assert all(before[name].equals(rows) for name, rows in held(lived).items())


def test_values_known_from_elsewhere_are_not_hidden(feed: FeedServer, tmp_path: Path) -> None:
    store, pool = Store(tmp_path / "data"), feed.pool_ids[0]
    fetch(store, feed, Selection(pools=(pool,)))
    rows = store.metrics().select("pool_id", "valid_at", "apy_percent", pl.lit(7.0).alias("volume_24h_usd"))
    store.append(rows, pl.DataFrame(schema={"pool_id": pl.String}))
    before = held(store)
    assert rebuilt(store).revised == 0
    assert all(before[name].equals(rows) for name, rows in held(store).items())
    assert store.metrics()["volume_24h_usd"].to_list() == [7.0] * 12


def test_what_cannot_be_rebuilt_is_told(feed: FeedServer, tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    with pytest.raises(DataError, match=r"no answer of the feed was ever taken into .*; run `yieldlab data backfill`"):
        list(rebuild(store, keep_raw_days=30))
    fetch(store, feed, Selection(top=1))
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty; name a new folder"):
        list(rebuild(store, keep_raw_days=30, into=full))


def test_the_columns_of_a_fetch_are_those_of_its_table() -> None:
    assert list(Fetch._fields) == schema.FETCHES.names()
