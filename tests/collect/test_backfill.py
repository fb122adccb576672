"""A backfill ends complete whatever the feed does, goes on whatever ended it, and adds only what is new or changed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import polars as pl
import pytest
from feed_server import FeedServer

from yieldlab import schema
from yieldlab.collect import backfill
from yieldlab.collect._http import Client, Unreachable
from yieldlab.collect.backfill import Committed, Event, Finished, PoolFailed, PoolFetched, Started
from yieldlab.collect.selection import Selection
from yieldlab.errors import DataError, UsageError
from yieldlab.store import Store

ALL = Selection(min_tvl=0)
UNKNOWN = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def feed() -> Iterator[FeedServer]:
    with FeedServer(pools=14, days=30) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def client(feed: FeedServer, **settings: object) -> Client:
    """One that does not wait long for a feed next door."""
    impatient: dict[str, object] = {
        "requests_per_minute": 1e6,
        "read_timeout": 0.3,
        "deadline": 1.0,
        "backoff": 0.002,
        "longest_pause": 0.01,
    }
    return Client(feed.url, **(impatient | settings))


def done(store: Store, feed: FeedServer, selection: Selection = ALL, **settings: object) -> Finished:
    """The last event of a backfill."""
    return events_of(store, feed, selection, **settings)[-1]


def events_of(
    store: Store,
    feed: FeedServer,
    selection: Selection = ALL,
    *,
    refresh: bool = True,
    batch: int = 5,
    **settings: object,
) -> list[Event]:
    with client(feed, **settings) as asked:
        planned = backfill.plan(store, asked, selection, refresh=refresh)
        return list(backfill.run(store, asked, planned, batch=batch))


def stored(store: Store) -> pl.DataFrame:
    """All that was ever stored, without the clock that no two stores share."""
    return store.history().drop("ingested_at").sort(pl.all())


def told_by(feed: FeedServer, pools: list[str]) -> pl.DataFrame:
    """The plain way: the rows that the feed would tell, read one by one."""
    rows = [
        (pool, datetime.fromisoformat(row["timestamp"]), row["apy"], row["apyBase"], row["apyReward"], row["tvlUsd"])
        for pool in pools
        for row in feed.chart(pool)
    ]
    names = ("pool_id", "valid_at", "apy_percent", "apy_base_percent", "apy_reward_percent", "tvl_usd")
    return pl.DataFrame(rows, schema={name: schema.YIELD_METRICS[name] for name in names}, orient="row").sort(pl.all())


def test_the_whole_history_is_there_as_the_feed_tells_it(feed: FeedServer, store: Store) -> None:
    *events, finished = events_of(store, feed)
    assert isinstance(events[0], Started)
    assert (events[0].to_fetch, events[0].current) == (14, 0)
    assert sorted(event.pool_id for event in events if isinstance(event, PoolFetched)) == sorted(feed.pool_ids)
    assert [len(event.pools) for event in events if isinstance(event, Committed)] == [5, 5, 4]
    assert isinstance(finished, Finished)
    assert (finished.committed, finished.new, finished.revised, finished.refused) == (14, 14 * 30, 0, 0)
    assert not finished.is_partial
    rows = store.metrics()
    expected = told_by(feed, feed.pool_ids)
    assert rows.select(expected.columns).sort(pl.all()).equals(expected)
    assert rows["source"].unique().to_list() == ["defillama/chart"]
    assert (rows["observed_at"] == rows["valid_at"]).all()
    described = store.assets().select("pool_id", *schema.DESCRIBED)
    names = [(row["pool"], row["project"], row["symbol"], row["chain"]) for row in feed.pools()]
    assert described.rows() == sorted(names)


def test_the_same_again_adds_nothing(feed: FeedServer, store: Store) -> None:
    done(store, feed)
    before = stored(store), store.descriptions().sort(pl.all())
    finished = done(store, feed)
    assert (finished.new, finished.revised, finished.unchanged) == (0, 0, 14 * 30)
    assert stored(store).equals(before[0])
    assert store.descriptions().sort(pl.all()).equals(before[1])


def test_a_changed_value_is_known_from_when_its_own_answer_came(feed: FeedServer, store: Store) -> None:
    done(store, feed)
    pool = feed.pool_ids[3]
    rows = feed.chart(pool)
    feed.set_chart(pool, [*rows[:10], rows[10] | {"apy": 77.0}, *rows[11:], rows[-1] | {"timestamp": NEXT_DAY}])
    finished = done(store, feed)
    assert (finished.new, finished.revised) == (1, 1)
    fetches = store.recorded("fetches").filter(pl.col("key") == pool).sort("fetched_at")
    revised = store.history().filter(pl.col("apy_percent") == 77.0).row(0, named=True)
    assert revised["observed_at"] == fetches["fetched_at"][-1]
    assert store.metrics(as_of=revised["observed_at"] - timedelta(microseconds=1)).filter(
        (pl.col("pool_id") == pool) & (pl.col("valid_at") == revised["valid_at"])
    )["apy_percent"].to_list() == [rows[10]["apy"]]


NEXT_DAY = "2025-07-01T12:00:00.000Z"


def test_a_chart_committed_within_the_hour_is_current(feed: FeedServer, store: Store) -> None:
    done(store, feed, Selection(top=4))
    with client(feed) as asked:
        planned = backfill.plan(store, asked, ALL)
        assert (len(planned.to_fetch), planned.current) == (10, 4)
        finished = list(backfill.run(store, asked, planned))[-1]
    assert isinstance(finished, Finished)
    assert (finished.chosen, finished.committed, finished.current) == (14, 10, 4)
    assert all(feed.hits[f"/chart/{pool}"] == 1 for pool in feed.pool_ids)
    assert done(store, feed, refresh=True).committed == 14


def test_planning_writes_nothing(feed: FeedServer, store: Store) -> None:
    with client(feed) as asked:
        planned = backfill.plan(store, asked, Selection.of(watchlist="reference"))
    assert len(planned.to_fetch) == 12
    assert planned.missing == ()
    assert not store.folder.exists()
    with client(feed) as asked, pytest.raises(UsageError, match="say which pools to fetch"):
        backfill.plan(store, asked, Selection())


def test_the_reference_watchlist_is_found_and_pinned(feed: FeedServer, store: Store) -> None:
    assert done(store, feed, Selection.of(watchlist="reference")).new == 12 * 30
    held = store.assets()
    assert sorted(set(held["protocol"])) == ["aave-v3", "curve-dex", "uniswap-v3"]
    # Of the two pools of the same tokens the larger one is meant.
    assert held.filter(pl.col("symbol") == "USDC-WETH")["pool_id"].to_list() == [feed.pool_ids[8]]
    assert store.recorded("pins").height == 12
    feed.change(feed.pool_ids[8], tvlUsd=1)
    assert done(store, feed, Selection.of(watchlist="reference")).new == 0
    assert store.recorded("pins").height == 12


def test_a_pool_that_left_the_list_still_has_its_history(feed: FeedServer, store: Store) -> None:
    gone = feed.pool_ids[2]
    feed.vanish(gone)
    finished = done(store, feed, Selection(pools=(gone, UNKNOWN)))
    assert finished.unknown == (UNKNOWN,)
    assert finished.missing == tuple(f"the feed lists no usable row of the pool {pool}" for pool in (gone, UNKNOWN))
    assert (finished.committed, finished.new) == (1, 30)
    assert finished.is_partial
    assert store.assets().select("pool_id", *schema.DESCRIBED).rows() == [(gone, None, None, None)]


def test_a_pool_that_fails_costs_no_other_and_is_named(feed: FeedServer, store: Store) -> None:
    bad = feed.pool_ids[5]
    feed.plan(f"/chart/{bad}", *["502"] * 2 * backfill.ROUNDS)
    *events, finished = events_of(store, feed, attempts=2)
    assert isinstance(finished, Finished)
    assert list(finished.failed) == [bad]
    assert "502" in finished.failed[bad]
    assert (finished.committed, finished.new) == (13, 13 * 30)
    failed = [event for event in events if isinstance(event, PoolFailed)]
    assert [(event.pool_id, event.again, event.done) for event in failed] == [
        (bad, True, ANY),
        (bad, True, 13),
        (bad, False, 14),
    ]
    assert done(store, feed, refresh=False).committed == 1
    assert stored(store).height == 14 * 30


def test_a_pool_that_fails_is_asked_for_again_when_the_others_are_in_the_store(feed: FeedServer, store: Store) -> None:
    late = feed.pool_ids[5]
    feed.plan(f"/chart/{late}", *["502"] * 5)
    *events, finished = events_of(store, feed, attempts=2)
    assert isinstance(finished, Finished)
    assert (finished.failed, finished.committed, finished.new) == ({}, 14, 14 * 30)
    assert feed.hits[f"/chart/{late}"] == 6
    committed = [event.pools for event in events if isinstance(event, Committed)]
    assert committed[-1] == (late,)
    assert sum(len(pools) for pools in committed) == 14


def test_a_row_that_an_earlier_chart_lacked_is_not_known_before_it_came(feed: FeedServer, store: Store) -> None:
    """Filled in gaps and history restated under another stamp must not change what was read as of then."""
    pool, one = feed.pool_ids[3], Selection(pools=(feed.pool_ids[3],))
    full = feed.chart(pool)
    feed.set_chart(pool, [row for number, row in enumerate(full) if number not in (20, 21)])
    done(store, feed, one)
    then = datetime.now(UTC)
    before = store.metrics(as_of=then), store.panel(as_of=then)["apy"]
    restated = [full[10] | {"timestamp": full[10]["timestamp"].replace(".", ".9")[:23] + "Z", "apy": 77.0}]
    feed.set_chart(pool, [*full[:10], *restated, *full[11:], full[-1] | {"timestamp": NEXT_DAY}])
    finished = done(store, feed, one)
    assert (finished.new, finished.revised, finished.withdrawn) == (4, 0, {pool: 1})
    assert store.metrics(as_of=then).equals(before[0])
    assert np.array_equal(store.panel(as_of=then)["apy"], before[1], equal_nan=True)
    came = store.recorded("fetches").filter(pl.col("key") == pool)["fetched_at"].max()
    late = store.history().filter(pl.col("observed_at") > pl.col("valid_at")).sort("valid_at")
    assert late["observed_at"].unique().to_list() == [came]
    assert late["apy_percent"].to_list() == [77.0, full[20]["apy"], full[21]["apy"], full[-1]["apy"]]
    assert done(store, feed, one).new == 0
    # What came about since the last chart is assumed to have been known at its own time, as ever.
    time.sleep(0.003)
    recent = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"
    feed.set_chart(pool, [*feed.chart(pool), full[-1] | {"timestamp": recent}])
    assert done(store, feed, one).new == 1
    assert store.metrics()["observed_at"][-1] == store.metrics()["valid_at"][-1] == datetime.fromisoformat(recent)


def test_an_older_chart_does_not_overwrite_a_newer_one(feed: FeedServer, store: Store) -> None:
    """Two backfills at once: the one that asked first commits last."""
    pool, one = feed.pool_ids[3], Selection(pools=(feed.pool_ids[3],))
    rows = feed.chart(pool)
    with client(feed) as asked:
        first = backfill.run(store, asked, backfill.plan(store, asked, one))
        while not isinstance(next(first), PoolFetched):
            pass
        feed.set_chart(pool, [*rows[:-1], rows[-1] | {"apy": 99.0}])
        assert done(store, feed, one).new == 30
        held = stored(store), store.recorded("fetches").filter(pl.col("kind") == "chart")
        *_, finished = first
    assert isinstance(finished, Finished)
    assert (finished.superseded, finished.committed, finished.new, finished.revised) == (1, 0, 0, 0)
    assert store.metrics()["apy_percent"][-1] == 99.0
    assert stored(store).equals(held[0])
    assert store.recorded("fetches").filter(pl.col("kind") == "chart").equals(held[1])


def test_a_clock_that_ran_ahead_once_does_not_silence_a_pool(feed: FeedServer, store: Store) -> None:
    pool, one = feed.pool_ids[3], Selection(pools=(feed.pool_ids[3],))
    done(store, feed, one)
    ahead = store.recorded("fetches").filter(pl.col("kind") == "chart")
    store.record("fetches", ahead.with_columns(pl.col("fetched_at") + timedelta(days=40)))
    rows = feed.chart(pool)
    feed.set_chart(pool, [*rows[:-1], rows[-1] | {"apy": 99.0}])
    assert done(store, feed, one).revised == 1


def test_rows_that_the_feed_withdraws_are_counted_and_kept(feed: FeedServer, store: Store) -> None:
    pool, two = feed.pool_ids[3], Selection(pools=tuple(feed.pool_ids[3:5]))
    rows = feed.chart(pool)
    assert done(store, feed, two).withdrawn == {}
    feed.set_chart(pool, rows[:10])
    finished = done(store, feed, two)
    assert (finished.withdrawn, finished.unchanged, finished.is_partial) == ({pool: 20}, 40, False)
    assert store.metrics().height == 60


def test_the_row_of_the_present_day_moves_on_and_is_not_withdrawn(feed: FeedServer, store: Store) -> None:
    pool, one = feed.pool_ids[3], Selection(pools=(feed.pool_ids[3],))
    rows, now = feed.chart(pool), datetime.now(UTC)
    start = now - timedelta(hours=now.hour, minutes=now.minute, seconds=now.second)
    for seconds in (0, 0.5, 0.9):
        at = start.replace(microsecond=0) + timedelta(seconds=seconds)
        feed.set_chart(pool, [*rows, rows[-1] | {"timestamp": f"{at:%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"}])
        assert done(store, feed, one).withdrawn == {}
    feed.set_chart(pool, rows)
    assert done(store, feed, one).withdrawn == {pool: 3}


def test_a_chart_without_a_usable_row_is_no_success_and_not_current(feed: FeedServer, store: Store) -> None:
    pool, one = feed.pool_ids[3], Selection(pools=(feed.pool_ids[3],))
    rows = feed.chart(pool)
    feed.set_chart(pool, [row | {"apy": None} for row in rows])
    for _ in range(2):
        finished = done(store, feed, one, refresh=False)
        assert finished.failed == {pool: "none of its 30 rows can be used (the first: missing apy)"}
        assert (finished.refused, finished.committed, finished.current, finished.is_empty) == (30, 0, 0, True)
    feed.set_chart(pool, rows)
    assert done(store, feed, one, refresh=False).new == 30
    # It was no answer, so that nothing is said of when its rows could be known.
    assert (store.metrics()["observed_at"] == store.metrics()["valid_at"]).all()


def test_an_answer_that_no_one_foresaw_costs_no_other(
    feed: FeedServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = backfill.defillama.chart

    def chart(client: Client, pool_id: str) -> object:
        if pool_id == feed.pool_ids[0]:
            raise ZeroDivisionError("who would have thought")
        return ask(client, pool_id)

    monkeypatch.setattr(backfill.defillama, "chart", chart)
    finished = done(store, feed)
    assert finished.failed == {feed.pool_ids[0]: "ZeroDivisionError: who would have thought"}
    assert finished.committed == 13


def test_refused_rows_are_written_down_once(feed: FeedServer, store: Store) -> None:
    pool = feed.pool_ids[1]
    for _ in range(2):
        feed.plan(f"/chart/{pool}", "null_apy")
        finished = done(store, feed, Selection(pools=(pool,)))
    assert (finished.refused, finished.unchanged) == (4, 26)
    assert finished.rejects_path is not None
    assert list(finished.rejects_path.parent.iterdir()) == [finished.rejects_path]
    refused = pl.read_parquet(finished.rejects_path)
    assert refused["pool_id"].unique().to_list() == [pool]
    assert refused["reason"].unique().to_list() == ["missing apy"]
    assert refused["row"].to_list() == [4, 11, 18, 25]


def test_a_feed_that_goes_away_is_not_asked_for_ever(
    feed: FeedServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "GIVE_UP_AFTER", 3)
    with client(feed, attempts=1) as asked:
        planned = backfill.plan(store, asked, ALL)
        feed.plan("*", *["502"] * 99)
        *_, finished = backfill.run(store, asked, planned, workers=1)
    assert isinstance(finished, Finished)
    assert len(finished.failed) == 14
    assert sum("not tried" in reason for reason in finished.failed.values()) >= 8
    assert finished.committed == 0


def test_a_feed_that_is_not_there_is_one_sentence(feed: FeedServer, store: Store) -> None:
    feed.plan("*", *["503"] * 9)
    with client(feed, attempts=2) as asked, pytest.raises(Unreachable, match="2 attempts"):
        backfill.plan(store, asked, ALL)
    assert not store.folder.exists()


def test_being_told_to_stop_keeps_what_was_fetched(feed: FeedServer, store: Store) -> None:
    stop = threading.Event()
    with client(feed, stop=stop) as asked:
        fetched = []
        for event in backfill.run(store, asked, backfill.plan(store, asked, ALL), workers=2):
            if isinstance(event, PoolFetched):
                fetched.append(event.pool_id)
                if len(fetched) == 4:
                    stop.set()
    assert isinstance(event, Finished)
    assert 4 <= event.committed < 14
    assert event.committed + event.interrupted == 14
    assert set(fetched) == set(store.metrics()["pool_id"])
    assert done(store, feed, refresh=False).committed == event.interrupted
    assert stored(store).height == 14 * 30


def test_a_full_disk_ends_it_and_what_was_committed_stays(
    feed: FeedServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, times = os.fsync, []

    def fsync(handle: int) -> None:
        times.append(handle)
        if len(times) > 20:
            raise OSError(28, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        told = r"cannot write to .*/raw.*: No space left on device; \d+ charts were committed before, and the same"
        with pytest.raises(DataError, match=told):
            events_of(store, feed, batch=2)
    held = stored(store)
    assert 0 < held.height < 14 * 30
    assert done(store, feed, refresh=False).committed == 14 - held["pool_id"].n_unique()
    assert stored(store).height == 14 * 30


#: Seeds with which six attempts are not enough for one of two hundred pools or more.
STUCK = (17, 5, 22)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "days"), [(STUCK[0], 400), *((seed, 3) for seed in STUCK[1:])])
def test_faults_in_a_third_of_all_answers_change_nothing(tmp_path: Path, seed: int, days: int) -> None:
    """200 pools of 400 days, equal byte for byte to a backfill that met no fault, with the attempts of every day."""
    calm, shaken = Store(tmp_path / "calm"), Store(tmp_path / "shaken")
    with FeedServer(pools=200, days=days, fault_seed=seed) as feed:
        feed.render()
        assert done(calm, feed, batch=50).new == 200 * days
        feed.hits.clear()
        feed.fault_share, feed.hang_s, feed.drip_s = 1 / 3, 2.0, 2.0
        *events, finished = events_of(shaken, feed, batch=50, read_timeout=0.15, deadline=0.5)
        assert len(feed.met) > 15
        assert sum(feed.met.values()) - feed.met["ok"] > 80
    assert isinstance(finished, Finished)
    assert any(event.again for event in events if isinstance(event, PoolFailed))
    assert not finished.is_partial
    assert (finished.committed, finished.new) == (200, 200 * days)
    assert content(shaken) == content(calm)
    hashes = [set(store.recorded("fetches")["content_hash"]) for store in (calm, shaken)]
    assert hashes[0] == hashes[1]


def content(store: Store) -> bytes:
    return stored(store).write_csv().encode()


#: Told "go" it forks a child that backfills until it is done or killed, and names each pool that it has committed.
WORKER = """
import os, signal, sys, time
from yieldlab.collect import backfill
from yieldlab.collect._http import Client
from yieldlab.collect.selection import Selection
from yieldlab.store import Store

print("ready", flush=True)
for line in sys.stdin:
    seconds = float(line)
    if (child := os.fork()) == 0:
        store, client = Store(sys.argv[1]), Client(sys.argv[2], requests_per_minute=1e6)
        plan = backfill.plan(store, client, Selection(min_tvl=0))
        for event in backfill.run(store, client, plan, workers=4, batch=3):
            if isinstance(event, backfill.Committed):
                print(*event.pools, flush=True)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("killed", flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_of_thirty_instants_loses_and_doubles_nothing(tmp_path: Path) -> None:
    draw = random.Random(11)
    store = Store(tmp_path / "data")
    pools, days = 120, 40
    with FeedServer(pools=pools, days=days) as feed:
        feed.render()
        expected = told_by(feed, feed.pool_ids)
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(store.folder), feed.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        acknowledged: set[str] = set()
        cut_off, pace = 0, 1.0
        for _ in range(30):
            worker.stdin.write(f"{(0.05 + draw.random() * 0.3) * pace}\n")
            worker.stdin.flush()
            while (line := worker.stdout.readline()) != "killed\n":
                assert line, "the worker is gone"
                acknowledged |= set(line.split())
            held = whole(store, days) if store.exists else set()
            assert held >= acknowledged
            pace *= 1.0 if held else 1.5  # a slower machine gets more time until it has written something
            cut_off += 0 < len(held) < pools
        worker.stdin.close()
        worker.wait()
        assert acknowledged, "every kill came before the first commit and proves nothing"
        assert cut_off > 5, "the kills came too late to cut anything off"
        done(store, feed, refresh=False)
        assert whole(store, days) == set(feed.pool_ids)
    rows = store.metrics().select(expected.columns).sort(pl.all())
    assert rows.equals(expected)


def whole(store: Store, days: int) -> set[str]:
    """The pools that the store holds; fails unless every one is there with all of its rows, once."""
    history = store.history(columns=("pool_id",))
    counts = history.group_by("pool_id").len()
    assert counts["len"].unique().to_list() == [days]
    assert history.unique(["pool_id", "valid_at"]).height == history.height
    assert store.sql("SELECT count(*) AS n FROM yield_metrics")["n"].item() == history.height
    assert store.assets().height >= counts.height
    fetched = set(store.recorded("fetches").filter(pl.col("kind") == "chart")["key"])
    held = set(counts["pool_id"])
    assert fetched <= held
    return held
