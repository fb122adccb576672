"""Polling a real server on loopback: what is stored, what is only told, and what is made up for later."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from feed_server import FeedServer
from feed_world import encode

from yieldlab import schema
from yieldlab.collect import collector as collector_module
from yieldlab.collect import defillama, heartbeat
from yieldlab.collect._http import Answer, Client
from yieldlab.collect.archive import Archive
from yieldlab.collect.collector import Collector
from yieldlab.collect.journal import Journal
from yieldlab.collect.polls import SOURCE, Poll, Today, commit
from yieldlab.collect.selection import Selection
from yieldlab.errors import DataError
from yieldlab.store import Store

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def server() -> Iterator[FeedServer]:
    with FeedServer(pools=6, days=5) as server:
        server.expires_after = timedelta(0)
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def collector_of(server: FeedServer, store: Store, selection: Selection | None = None) -> Collector:
    client = Client(server.url, requests_per_minute=1e6, attempts=2, backoff=0.001)
    return Collector(store, client, selection or Selection())


def rows_of(store: Store) -> pl.DataFrame:
    return store.history().filter(pl.col("source") == SOURCE).sort("valid_at", "pool_id")


def outcomes(store: Store) -> list[str]:
    return store.recorded("polls").sort("polled_at")["outcome"].to_list()


def answer_of(rows: list[dict], *, at: datetime) -> Answer:
    return Answer("http://feed/pools", 200, {}, encode(rows), at, at + timedelta(seconds=1))


def commit_rows(store: Store, rows: list[dict], *, at: datetime, selection: Selection | None = None) -> Poll:
    answer = answer_of(rows, at=at)
    return commit(store, answer, defillama.parse_pools(answer.body), selection or Selection())


# -- what is stored ----------------------------------------------------------------------------------------------------


def test_the_first_poll_stores_every_pool_with_both_clocks(server: FeedServer, store: Store) -> None:
    poll = collector_of(server, store).poll()
    assert (poll.outcome, poll.pools, poll.new, poll.changed) == ("stored", 6, 6, 0)
    rows = rows_of(store)
    assert rows["valid_at"].unique().to_list() == [poll.polled_at]
    assert (rows["observed_at"] > rows["valid_at"]).all()
    told = {row["pool"]: row for row in server.pools()}
    for row in rows.iter_rows(named=True):
        feed = told[row["pool_id"]]
        assert (row["apy_percent"], row["tvl_usd"]) == (feed["apy"], feed["tvlUsd"])
        assert (row["apy_base_percent"], row["apy_reward_percent"]) == (feed["apyBase"], feed["apyReward"])
    described = store.assets().sort("pool_id").select("pool_id", *schema.DESCRIBED).rows()
    assert described == [
        (pool, told[pool]["project"], told[pool]["symbol"], told[pool]["chain"]) for pool in sorted(told)
    ]
    assert store.recorded("pool_events")["event"].to_list() == ["appeared"] * 6
    [fetch] = store.recorded("fetches").rows(named=True)
    assert (fetch["kind"], fetch["content_hash"]) == ("pools", poll.content_hash)
    assert Archive(store.folder / "raw").read(fetch["content_hash"]) == encode(server.pools())


def test_what_the_feed_repeats_is_told_and_not_stored(server: FeedServer, store: Store) -> None:
    collector = collector_of(server, store)
    collector.poll()
    assert collector.poll().outcome == "unchanged"
    server.change(server.pool_ids[0], apy=7.5)
    third = collector.poll()
    assert (third.outcome, third.new, third.changed) == ("stored", 0, 1)
    # Another content whose measured values are the same: nothing to store, and no repetition either.
    server.change(server.pool_ids[1], mu=123.0)
    fourth = collector.poll()
    assert (fourth.outcome, fourth.new, fourth.changed) == ("stored", 0, 0)
    assert rows_of(store).height == 7
    assert outcomes(store) == ["stored", "unchanged", "stored", "stored"]


def test_a_value_that_comes_back_is_stored_again(server: FeedServer, store: Store) -> None:
    collector, pool = collector_of(server, store), server.pool_ids[0]
    for apy in (1.0, 2.0, 1.0):
        server.change(pool, apy=apy)
        collector.poll()
    assert rows_of(store).filter(pl.col("pool_id") == pool)["apy_percent"].to_list() == [1.0, 2.0, 1.0]


def test_each_utc_day_has_a_row_of_every_pool_unless_the_feed_stands_still(server: FeedServer, store: Store) -> None:
    rows = server.pools()
    assert commit_rows(store, rows, at=NOON).new == 6
    moved = [row | {"mu": 1.0} for row in rows]
    assert commit_rows(store, moved, at=NOON + timedelta(hours=11)).new == 0
    next_day = commit_rows(store, [row | {"mu": 2.0} for row in rows], at=NOON + timedelta(hours=13))
    assert (next_day.outcome, next_day.new, next_day.changed) == ("stored", 6, 0)
    # The very same bytes on a third day are no news of that day.
    still = commit_rows(store, [row | {"mu": 2.0} for row in rows], at=NOON + timedelta(hours=37))
    assert (still.outcome, still.new) == ("unchanged", 0)


def test_rows_of_a_backfill_neither_replace_nor_hide_those_of_polls(server: FeedServer, store: Store) -> None:
    rows = server.pools()
    pool = rows[0]["pool"]
    commit_rows(store, rows, at=NOON)
    chart = pl.DataFrame({"pool_id": [pool], "valid_at": [NOON + timedelta(minutes=5)], "apy_percent": [99.0]})
    store.append(chart.with_columns(source=pl.lit("defillama/chart")), chart.select("pool_id"))
    changed = [row | ({"apy": 98.0} if row["pool"] == pool else {}) for row in rows]
    assert commit_rows(store, changed, at=NOON + timedelta(minutes=10)).changed == 1


def test_a_refused_row_costs_no_other_and_its_pool_has_not_vanished(server: FeedServer, store: Store) -> None:
    collector = collector_of(server, store)
    collector.poll()
    server.change(server.pool_ids[0], apy="NaN")
    server.change(server.pool_ids[1], apy=3.25)
    poll = collector.poll()
    assert (poll.outcome, poll.refused, poll.changed, poll.vanished) == ("stored", 1, 1, 0)


@pytest.mark.parametrize("today", [None, Today()], ids=["read again", "remembered"])
def test_a_random_feed_leaves_what_a_slow_reading_of_it_says(store: Store, today: Today | None) -> None:
    draw = random.Random(11)
    with FeedServer(pools=8, days=3) as server:
        world = server.pools()
    rows, last, expected = world, {}, []
    at, told = NOON, b""
    for _ in range(30):
        at += timedelta(hours=draw.choice([1, 2, 9]))
        if draw.random() < 0.8:
            world = [row | ({"apy": draw.randint(0, 3) * 1.5} if draw.random() < 0.3 else {}) for row in world]
            rows = [row for row in world if draw.random() < 0.9]
        counts = [0, 0]
        body = encode(rows)
        for row in rows if body != told else []:
            before = last.get((row["pool"], at.date()))
            now = (row["apy"], row["apyBase"], row["apyReward"], row["tvlUsd"], row["volumeUsd1d"])
            if before != now:
                expected.append((row["pool"], at, row["apy"]))
                counts[before is not None] += 1
            last[row["pool"], at.date()] = now
        answer = answer_of(rows, at=at)
        poll = commit(store, answer, defillama.parse_pools(answer.body), Selection(), today=today)
        assert (poll.new, poll.changed, poll.outcome == "unchanged") == (*counts, body == told)
        told = body
    found = rows_of(store).select("pool_id", "valid_at", "apy_percent").rows()
    assert found == sorted(expected, key=lambda row: (row[1], row[0]))


def test_an_answer_that_waited_longer_than_a_later_one_leaves_the_later_one_in_force(store: Store) -> None:
    with FeedServer(pools=1, days=3) as server:
        [row] = server.pools()
    today, selection = Today(), Selection()
    for hours, apy in [(0, 1.0), (2, 3.0), (1, 2.0), (3, 2.0), (4, 2.0)]:
        answer = answer_of([row | {"apy": apy, "mu": hours}], at=NOON + timedelta(hours=hours))
        commit(store, answer, defillama.parse_pools(answer.body), selection, today=today)
    assert rows_of(store)["apy_percent"].to_list() == [1.0, 2.0, 3.0, 2.0]


def test_the_real_snapshot_is_stored_row_by_row(store: Store) -> None:
    folder = os.environ.get("YIELDLAB_REAL_DATA")
    if not folder or not (Path(folder) / "pools_snapshot.json.gz").is_file():
        pytest.skip("set YIELDLAB_REAL_DATA to a folder with pools_snapshot.json.gz")
    body = gzip.decompress((Path(folder) / "pools_snapshot.json.gz").read_bytes())
    answer = Answer("http://feed/pools", 200, {}, body, NOON, NOON + timedelta(seconds=1))
    told = json.loads(body)["data"]
    poll = commit(store, answer, defillama.parse_pools(body), Selection())
    assert (poll.pools, poll.new, poll.refused) == (len(told), len(told), 0)
    rows = rows_of(store).select("pool_id", "apy_percent", "tvl_usd").sort("pool_id").rows()
    assert rows == sorted((row["pool"], row["apy"], row["tvlUsd"]) for row in told)


def test_two_selections_in_turn_each_get_their_rows(server: FeedServer, store: Store) -> None:
    one, other = server.pool_ids[:2]
    for turn in range(3):
        server.change(one, apy=10.0 + turn)
        server.change(other, apy=20.0 + turn)
        for pool in (one, other):
            assert collector_of(server, store, Selection(pools=(pool,))).poll().outcome == "stored"
    rows = rows_of(store)
    assert rows.filter(pl.col("pool_id") == one)["apy_percent"].to_list() == [10.0, 11.0, 12.0]
    assert rows.filter(pl.col("pool_id") == other)["apy_percent"].to_list() == [20.0, 21.0, 22.0]


def test_a_feed_that_stands_still_gives_each_selection_its_rows_of_that_content_once(
    server: FeedServer, store: Store
) -> None:
    rows = server.pools()
    one, other = (Selection(pools=(row["pool"],)) for row in rows[:2])
    commit_rows(store, rows, at=NOON, selection=other)
    moved = [row | {"apy": 9.0} for row in rows]
    days = [NOON + timedelta(days=day) for day in (1, 2, 3)]
    told = [commit_rows(store, moved, at=day, selection=one) for day in days[:2]]
    told += [commit_rows(store, moved, at=day, selection=other) for day in days[1:]]
    assert [(poll.outcome, poll.new) for poll in told] == [
        ("stored", 1),
        ("unchanged", 0),
        ("stored", 1),
        ("unchanged", 0),
    ]


# -- lists that are not believed ---------------------------------------------------------------------------------------


def poll_rows(collector: Collector, rows: list[dict], *, at: datetime) -> Poll:
    """One poll of a feed that says this at that time."""
    answer = answer_of(rows, at=at)
    collector._journal.add(answer)
    [poll] = collector._settle({})
    return poll


def test_a_list_that_lost_half_is_believed_after_three_polls_and_an_hour(server: FeedServer, store: Store) -> None:
    collector, rows = collector_of(server, store), server.pools()
    assert poll_rows(collector, rows, at=NOON).outcome == "stored"
    minutes = [15, 30, 45, 60]
    doubted = [poll_rows(collector, rows[:2], at=NOON + timedelta(minutes=after)) for after in minutes]
    assert [poll.outcome for poll in doubted] == ["failed"] * 4
    assert "2 of 6 pools" in str(doubted[0].error)
    assert isinstance(doubted[0].raised, DataError)
    assert store.recorded("fetches").height == 1, "a rebuild does not replay what was not believed"
    assert set(store.recorded("pool_events")["event"]) == {"appeared"}
    believed = poll_rows(collector, rows[:2], at=NOON + timedelta(minutes=75))
    assert (believed.outcome, believed.vanished) == ("stored", 4)
    back = poll_rows(collector, rows, at=NOON + timedelta(minutes=90))
    assert (back.outcome, back.vanished) == ("stored", 0)
    # A list in between that is whole begins the count anew.
    again = [poll_rows(collector, rows[:2], at=NOON + timedelta(hours=hours)) for hours in (3, 4)]
    whole = poll_rows(collector, rows, at=NOON + timedelta(hours=5))
    again.append(poll_rows(collector, rows[:2], at=NOON + timedelta(hours=6)))
    assert (whole.failed, [poll.failed for poll in again]) == (False, [True] * 3)


def test_a_list_of_full_length_without_the_pools_that_are_followed_is_doubted(server: FeedServer, store: Store) -> None:
    with FeedServer(pools=24, days=3) as other:
        rows = other.pools()
    collector = collector_of(server, store, Selection(pools=tuple(row["pool"] for row in rows[:12])))
    poll_rows(collector, rows, at=NOON)
    unknown = [row | {"pool": row["pool"][::-1].replace("-", "0")[:36]} for row in rows[:7]]
    poll = poll_rows(collector, unknown + rows[7:], at=NOON + timedelta(hours=1))
    assert (poll.failed, "5 of 12 pools" in str(poll.error)) == (True, True)
    assert not poll_rows(collector, unknown[:6] + rows[6:], at=NOON + timedelta(hours=2)).failed


def test_a_doubted_poll_is_told_once_and_the_collector_goes_on(server: FeedServer, store: Store) -> None:
    collector, rows = collector_of(server, store), server.pools()
    collector.poll()
    server.set_pools(rows[:1])
    assert collector.poll().outcome == "failed"
    assert (collector.beat.failures, collector.beat.waiting) == (1, 0)
    server.set_pools(rows)
    assert collector.poll().outcome == "unchanged"
    assert (outcomes(store), collector.beat.failures) == (["stored", "failed", "unchanged"], 0)


# -- which pools -------------------------------------------------------------------------------------------------------


def test_a_pool_once_large_enough_is_collected_when_it_shrinks(server: FeedServer, store: Store) -> None:
    large = Selection(top=2)
    rows = sorted(server.pools(), key=lambda row: -row["tvlUsd"])
    names = [row["pool"] for row in rows]
    commit_rows(store, rows, at=NOON, selection=large)
    assert set(rows_of(store)["pool_id"]) == set(names[:2])
    shrunk = [row | ({"tvlUsd": 1_000} if row["pool"] == names[0] else {}) for row in rows]
    assert commit_rows(store, shrunk, at=NOON + timedelta(hours=1), selection=large).pools == 3
    last = rows_of(store).filter(pl.col("valid_at") > NOON)
    assert set(last["pool_id"]) == {names[0], names[2]}, "the second did not change"
    # Of another kind it is not collected any more, and under another selection it never was.
    only = Selection(project=(rows[1]["project"],), top=1)
    assert commit_rows(store, shrunk, at=NOON + timedelta(hours=2), selection=only).pools == 1


def test_pools_outside_the_selection_are_not_events(server: FeedServer, store: Store) -> None:
    one = Selection(pools=(server.pool_ids[0],))
    collector = collector_of(server, store, one)
    collector.poll()
    server.vanish(server.pool_ids[1])
    assert collector.poll().vanished == 0
    server.vanish(server.pool_ids[0])
    poll = collector.poll()
    assert (poll.vanished, poll.pools) == (1, 0)
    assert any(server.pool_ids[0] in sentence for sentence in poll.missing)
    events = store.recorded("pool_events").sort("event_at")
    assert events.select("pool_id", "event").rows() == [(server.pool_ids[0], word) for word in ("appeared", "vanished")]


def test_a_pool_chosen_later_is_stored_though_the_feed_says_nothing_new(server: FeedServer, store: Store) -> None:
    collector_of(server, store, Selection(pools=(server.pool_ids[0],))).poll()
    poll = collector_of(server, store, Selection(pools=tuple(server.pool_ids[:2]))).poll()
    assert (poll.outcome, poll.new, poll.pools) == ("stored", 1, 2)


def test_a_renamed_pool_is_an_event_and_has_a_new_description(server: FeedServer, store: Store) -> None:
    collector, pool = collector_of(server, store), server.pool_ids[0]
    collector.poll()
    server.rename(pool, "another-name")
    collector.poll()
    last = store.recorded("pool_events").sort("event_at").rows(named=True)[-1]
    assert (last["pool_id"], last["event"]) == (pool, "renamed")
    assert store.assets().filter(pl.col("pool_id") == pool)["protocol"].item() == "another-name"


# -- when --------------------------------------------------------------------------------------------------------------


def test_nothing_is_asked_before_the_answer_expires(server: FeedServer, store: Store) -> None:
    server.expires_after = timedelta(minutes=30)
    collector = collector_of(server, store)
    assert [collector.poll().outcome for _ in range(3)] == ["stored", "not due", "not due"]
    assert collector.set_state("stopped") is None
    assert collector_of(server, store).poll().outcome == "not due", "another process knows it too"
    assert server.hits["/pools"] == 1
    assert outcomes(store) == ["stored", "not due", "not due", "not due"]
    collector_of(server, store, Selection(top=1)).poll()
    assert server.hits["/pools"] == 2, "other pools are due at once"


@pytest.mark.parametrize("ahead", [timedelta(hours=-1), timedelta(days=400)])
def test_a_wrong_clock_does_not_silence_the_collector(server: FeedServer, store: Store, ahead: timedelta) -> None:
    collector = collector_of(server, store)
    collector.poll()
    collector.beat = replace(collector.beat, expires_at=datetime.now(UTC) + ahead)
    assert collector.poll().outcome == "unchanged"


def test_an_answer_that_never_expires_is_believed_for_two_hours(server: FeedServer, store: Store) -> None:
    server.expires_after = timedelta(days=1000)
    collector = collector_of(server, store)
    poll = collector.poll()
    assert collector.beat.expires_at is not None
    assert timedelta(hours=1) < collector.beat.expires_at - poll.polled_at < timedelta(hours=3)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_failed_poll_is_told_with_its_reason_and_counted(server: FeedServer, store: Store) -> None:
    collector = collector_of(server, store)
    server.plan("/pools", "502", "502", "truncated", "html200", "ok")
    first, second, third = (collector.poll() for _ in range(3))
    assert (first.outcome, second.outcome, third.outcome) == ("failed", "failed", "stored")
    assert first.error is not None
    assert "502" in first.error
    polls = store.recorded("polls").sort("polled_at")
    assert polls["error"].to_list() == [first.error, second.error, None]
    assert (collector.beat.failures, collector.beat.last_error) == (0, None)


def test_without_a_store_that_can_be_written_the_answer_waits(
    server: FeedServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = collector_of(server, store)
    with monkeypatch.context() as broken:
        broken.setattr(Store, "record", no_room)
        first = collector.poll()
        server.change(server.pool_ids[0], apy=8.0)
        second = collector.poll()
    assert (first.outcome, second.outcome) == ("failed", "failed")
    assert any("could not be recorded" in note for note in second.notes)
    assert (collector.beat.waiting, collector.beat.failures, collector.at_risk) == (2, 2, 0)
    server.change(server.pool_ids[0], apy=9.0)
    third = collector.poll()
    assert (third.outcome, third.changed, collector.beat.waiting) == ("stored", 1, 0)
    pool = rows_of(store).filter(pl.col("pool_id") == server.pool_ids[0])
    assert pool["apy_percent"].to_list()[1:] == [8.0, 9.0]
    assert pool["valid_at"].to_list() == [*sorted(pool["valid_at"])]


def test_an_answer_that_waits_is_committed_by_the_next_process_without_the_network(
    server: FeedServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Store, "record", no_room)
        received = collector_of(server, store).poll()
    assert not store.recorded("polls").height
    server.plan("/pools", "503", "503")
    collector = collector_of(server, store)
    assert collector.poll().outcome == "failed"
    polls = store.recorded("polls").sort("polled_at")
    assert polls["outcome"].to_list() == ["stored", "failed"]
    assert rows_of(store).height == 6
    assert rows_of(store)["valid_at"][0] == polls["polled_at"][0] <= received.polled_at + timedelta(seconds=5)


@pytest.mark.parametrize("last", ["assets", "yield_metrics", "pins", "pool_events", "fetches", "polls"])
def test_an_answer_committed_in_part_is_completed_and_doubled_nowhere(
    server: FeedServer, store: Store, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """As if the process were killed right after the commit to table `last`."""
    from yieldlab.store._tables import Table

    write = Table.append

    def killed_after(table: Table, rows: pl.DataFrame) -> None:
        write(table, rows)
        if table.name == last:
            raise OSError(errno.EIO, "killed")

    selection = Selection(top=4)
    with monkeypatch.context() as broken:
        broken.setattr(Table, "append", killed_after)
        collector_of(server, store, selection).poll()
    server.plan("/pools", "503", "503")
    collector_of(server, store, selection).poll()
    assert rows_of(store).height == 4
    assert rows_of(store).n_unique(["pool_id", "valid_at"]) == 4
    assert store.recorded("pool_events")["event"].to_list() == ["appeared"] * 4
    assert store.recorded("fetches").height == 1
    decided = store.recorded("polls").filter(pl.col("outcome") != "failed")
    assert decided.select("outcome", "new").rows() == [("stored", 4)]


def test_on_a_full_disk_answers_wait_in_memory_and_the_oldest_is_given_up(
    server: FeedServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = collector_of(server, store)
    collector.poll()
    monkeypatch.setattr("yieldlab.collect.journal.IN_MEMORY", 3)
    with monkeypatch.context() as broken:
        broken.setattr(Store, "record", no_room)
        broken.setattr(Archive, "keep", no_room)
        for apy in range(5):
            server.change(server.pool_ids[0], apy=float(apy))
            poll = collector.poll()
            assert poll.outcome == "failed"
            assert any("waits in memory" in note for note in poll.notes)
    assert (collector.at_risk, collector.beat.lost) == (3, 2)
    server.change(server.pool_ids[0], apy=5.0)
    assert collector.poll().outcome == "stored"
    values = rows_of(store).filter(pl.col("pool_id") == server.pool_ids[0])["apy_percent"].to_list()
    assert values[1:] == [2.0, 3.0, 4.0, 5.0]
    assert (collector.at_risk, collector.beat.waiting) == (0, 0)


def test_an_answer_that_the_store_never_takes_holds_up_no_other(
    server: FeedServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = collector_of(server, store)
    usual, poison = collector_module.commit, {"hash": ""}

    def choosy(store: Store, answer: Answer, *rest: object, **more: object) -> Poll:
        if answer.content_hash == poison["hash"]:
            raise DataError("the store does not take this")
        return usual(store, answer, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(collector_module, "commit", choosy)
    from hashlib import sha256

    poison["hash"] = sha256(encode(server.pools())).hexdigest()
    assert collector.poll().outcome == "failed"
    for apy in range(collector_module.TRIES):
        server.change(server.pool_ids[0], apy=float(apy))
        assert collector.poll().outcome == "stored"
    assert (collector.beat.waiting, collector.beat.lost) == (0, 1)
    assert len(list((store.folder / "collector").glob("*.given_up"))) == 1


def wait_in_vain(store: Store, rows: list[dict], count: int, *, at: datetime = NOON) -> None:
    """Answers written down whose content is gone since."""
    archive = Archive(store.folder / "raw")
    journal = Journal(store.folder / "collector", archive)
    for number in range(count):
        answer = answer_of([row | {"apy": 40.0 + number} for row in rows], at=at + timedelta(minutes=number))
        assert journal.add(answer) is None
        archive.path(answer.content_hash).unlink()


@pytest.mark.parametrize("processes", ["one", "many"])
def test_answers_whose_content_is_gone_hold_up_no_other(server: FeedServer, store: Store, processes: str) -> None:
    wait_in_vain(store, server.pools(), 3)
    collector = collector_of(server, store)
    for turn in range(collector_module.TRIES):
        server.change(server.pool_ids[0], apy=float(turn))
        poll = collector.poll()
        assert poll.outcome == "stored"
        assert collector.set_state("stopped") is None
        if processes == "many":
            collector = collector_of(server, store)
    assert sum("is given up" in note for note in poll.notes) == 3
    assert heartbeat.read(store.folder).lost == 3
    assert len(list((store.folder / "collector").glob("*.given_up"))) == 3
    assert not list((store.folder / "collector").glob("*.json"))


@pytest.mark.parametrize("processes", ["one", "many"])
def test_neighbours_that_the_store_never_takes_hold_up_no_other(
    server: FeedServer, store: Store, monkeypatch: pytest.MonkeyPatch, processes: str
) -> None:
    usual = collector_module.commit

    def choosy(store: Store, answer: Answer, *rest: object, **more: object) -> Poll:
        if answer.asked_at < NOON + timedelta(hours=1):
            raise DataError("the store does not take this")
        return usual(store, answer, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(collector_module, "commit", choosy)
    journal = Journal(store.folder / "collector", Archive(store.folder / "raw"))
    for number in range(5):
        journal.add(answer_of([*server.pools()], at=NOON + timedelta(minutes=number)))
    collector = collector_of(server, store)
    told = []
    for turn in range(6):
        server.change(server.pool_ids[0], apy=float(turn))
        told.append(collector.poll().outcome)
        assert collector.set_state("stopped") is None
        if processes == "many":
            collector = collector_of(server, store)
    assert told == ["failed"] * 2 + ["stored"] * 4
    assert not list((store.folder / "collector").glob("*.json"))
    assert heartbeat.read(store.folder).lost == 5
    values = rows_of(store).filter(pl.col("pool_id") == server.pool_ids[0])["apy_percent"].to_list()
    assert values == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "no other answer is lost"


def test_a_store_that_takes_nothing_for_long_costs_no_answer(
    server: FeedServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small writes go through, large ones do not: as on a disk that is nearly full."""
    collector = collector_of(server, store)
    with monkeypatch.context() as broken:
        broken.setattr(Store, "append", no_room)
        for turn in range(6):
            server.change(server.pool_ids[0], apy=float(turn))
            assert collector.poll().outcome == "failed"
    assert (collector.beat.lost, collector.beat.waiting) == (0, 6)
    server.change(server.pool_ids[0], apy=6.0)
    assert collector.poll().outcome == "stored"
    values = rows_of(store).filter(pl.col("pool_id") == server.pool_ids[0])["apy_percent"].to_list()
    assert values == [float(turn) for turn in range(7)]


def test_an_answer_that_one_process_commits_at_the_second_attempt_is_in_every_table_once(
    server: FeedServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yieldlab.store._tables import Table

    write = Table.append

    def fails_after_fetches(table: Table, rows: pl.DataFrame) -> None:
        write(table, rows)
        if table.name == "fetches":
            raise OSError(errno.EIO, "input/output error")

    collector = collector_of(server, store)
    with monkeypatch.context() as broken:
        broken.setattr(Table, "append", fails_after_fetches)
        assert collector.poll().outcome == "failed"
    server.plan("/pools", "503", "503")
    collector.poll()
    assert store.recorded("fetches").height == 1
    assert outcomes(store).count("stored") == 1


def test_what_nobody_foresaw_is_a_failed_poll(
    server: FeedServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = collector_of(server, store)
    with monkeypatch.context() as broken:
        broken.setattr("yieldlab.collect.journal.Journal.waiting", no_room)
        poll = collector.poll()
    assert (poll.outcome, collector.beat.failures) == ("failed", 1)
    assert poll.error == "no space left on device"
    collector.poll()
    assert outcomes(store) == ["stored", "unchanged"], "what had been received came first"


def test_a_damaged_journal_costs_only_itself(server: FeedServer, store: Store) -> None:
    folder = store.folder / "collector"
    folder.mkdir(parents=True)
    (folder / "20260101T000000.000000-aaaaaaaa.json").write_text("{")
    (store.folder / heartbeat.FILE_NAME).write_text("no heartbeat")
    collector = collector_of(server, store)
    assert collector.poll().outcome == "stored"
    assert collector.beat.waiting == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    except OSError as error:
        pytest.skip(f"there is no mount command: {error}")
    if mounted.returncode:
        pytest.skip("mounting a small disk needs rights that this process does not have")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_after_hours_on_a_disk_that_is_really_full_all_is_stored(server: FeedServer, small_disk: Path) -> None:
    store = Store(small_disk / "data")
    collector = collector_of(server, store)
    assert collector.poll().outcome == "stored"
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"x" * 512):
            pass
    for apy in (1.0, 2.0):
        server.change(server.pool_ids[0], apy=apy)
        assert collector.poll().outcome == "failed"
        assert collector.set_state("waiting") is not None, "the heartbeat has no room either"
        assert rows_of(store).height == 6
    filler.unlink()
    server.change(server.pool_ids[0], apy=3.0)
    assert collector.poll().outcome == "stored"
    values = rows_of(store).filter(pl.col("pool_id") == server.pool_ids[0])["apy_percent"].to_list()
    assert values[1:] == [1.0, 2.0, 3.0]
    assert (collector.at_risk, collector.beat.lost, collector.set_state("waiting")) == (0, 0, None)
    assert not [path for path in store.folder.iterdir() if path.name.startswith(".collector")], "no half heartbeat"


def no_room(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# -- between polls -----------------------------------------------------------------------------------------------------


def test_files_stay_few_and_no_row_is_lost_by_merging_them(
    server: FeedServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector_module, "MAX_FILES", 5)
    monkeypatch.setattr(collector_module, "LOOK_EVERY", 2)
    collector = collector_of(server, store)
    for apy in range(20):
        server.change(server.pool_ids[0], apy=float(apy))
        assert collector.poll().notes == ()
        assert max(state.files for state in store.versions().values()) <= 5 + 2
    assert rows_of(store).height == 6 + 19


def test_raw_answers_are_let_go_after_their_time_once_a_day(
    server: FeedServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[datetime] = []
    monkeypatch.setattr(Archive, "expire", lambda self, store, *, older_than: asked.append(older_than))
    collector = collector_of(server, store)
    collector.poll()
    collector.poll()
    assert len(asked) == 1
    assert abs(datetime.now(UTC) - timedelta(days=30) - asked[0]) < timedelta(minutes=1)
    collector.beat = replace(collector.beat, expired_at=datetime.now(UTC) - timedelta(days=2))
    collector.poll()
    assert len(asked) == 2


def test_an_answer_that_waits_is_not_let_go_however_old(server: FeedServer, store: Store) -> None:
    collector_of(server, store).poll()
    archive = Archive(store.folder / "raw")
    journal = Journal(store.folder / "collector", archive)
    old = datetime.now(UTC) - timedelta(days=31)
    journal.add(answer_of([row | {"apy": 42.0} for row in server.pools()], at=old))
    lone = answer_of([row | {"apy": 43.0} for row in server.pools()], at=old)
    archive.keep(lone)
    archive.expire(store, older_than=datetime.now(UTC) - timedelta(days=30))
    assert not archive.path(lone.content_hash).exists()
    collector_of(server, store).poll()
    assert (rows_of(store)["apy_percent"] == 42.0).sum() == 6


def test_a_clock_that_leaps_ahead_lets_go_of_no_answer(
    server: FeedServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = collector_of(server, store)
    collector.poll()
    leap = datetime.now(UTC) + timedelta(days=40)
    asked: list[datetime] = []
    monkeypatch.setattr(Archive, "expire", lambda self, store, *, older_than: asked.append(older_than))
    assert collector._keep_house(leap) == ()
    assert asked == []
    assert collector._keep_house(datetime.now(UTC)) == ()
    assert len(asked) == 1, "the clock is right again"
    # A clock that goes on was right, and so was whoever slept for so long.
    collector._keep_house(leap)
    collector._keep_house(leap + timedelta(days=1, minutes=1))
    assert len(asked) == 2


def test_the_feeds_conventions_are_in_the_store_after_the_first_poll(server: FeedServer, store: Store) -> None:
    collector_of(server, store).poll()
    assert store.recorded("conventions").height > 0


# -- how it is ---------------------------------------------------------------------------------------------------------


def test_the_status_tells_success_lag_and_failures_in_a_row(server: FeedServer, store: Store) -> None:
    assert heartbeat.status(store) is None
    collector = collector_of(server, store)
    server.plan("/pools", "ok", "502", "502", "503", "503")
    for _ in range(3):
        collector.poll()
    assert collector.set_state("waiting") is None
    told = heartbeat.status(store)
    assert told is not None
    assert (told.failures, told.polls, told.last_day) == (2, 3, {"failed": 2, "stored": 1})
    assert told.last_error is not None
    assert "503" in told.last_error
    assert not told.stale
    later = heartbeat.status(store, now=datetime.now(UTC) + timedelta(hours=4))
    assert later is not None
    assert later.stale
    (store.folder / heartbeat.FILE_NAME).unlink()
    without = heartbeat.status(store)
    assert without is not None
    assert (without.failures, without.last_error, without.running) == (2, told.last_error, False)


def test_a_success_that_never_was_is_stale(server: FeedServer, store: Store) -> None:
    server.plan("/pools", "502", "502")
    collector_of(server, store).poll()
    told = heartbeat.status(store)
    assert told is not None
    assert (told.stale, told.lag_s, told.failures) == (True, None, 1)


def test_a_clock_that_ran_ahead_once_blinds_nobody(server: FeedServer, store: Store) -> None:
    collector, now = collector_of(server, store), datetime.now(UTC)
    poll_rows(collector, server.pools(), at=now - timedelta(hours=5))
    poll_rows(collector, server.pools(), at=now + timedelta(days=300))
    collector.beat = replace(collector.beat, last_success_at=now + timedelta(days=300))
    assert collector.set_state("stopped") is None
    told = heartbeat.status(store)
    assert told is not None
    assert (told.stale, told.last_success_at, told.last_day) == (True, now - timedelta(hours=5), {"stored": 1})


@pytest.mark.parametrize(
    "wrong",
    [
        {"failures": "many"},
        {"pid": None},
        {"last_success_at": 7},
        {"updated_at": "2026-01-01T00:00:00"},
        {"every_s": float("nan")},
        {"every_s": 1e300},
        {"lost": True},
        {"waiting": -1},
        {"url": ["http://feed"]},
    ],
    ids=str,
)
def test_a_heartbeat_that_cannot_be_is_none(server: FeedServer, store: Store, wrong: dict[str, object]) -> None:
    collector = collector_of(server, store)
    store.folder.mkdir()
    assert collector.set_state("stopped") is None
    path = store.folder / heartbeat.FILE_NAME
    assert heartbeat.read(store.folder) is not None
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    assert heartbeat.read(store.folder) is None
    assert heartbeat.status(store) is None
    assert collector_of(server, store).poll().outcome == "stored"


def test_the_status_counts_the_answers_that_lie_on_the_disk(server: FeedServer, store: Store) -> None:
    collector = collector_of(server, store)
    collector.poll()
    assert collector.set_state("polling") is None
    journal = Journal(store.folder / "collector", Archive(store.folder / "raw"))
    journal.add(answer_of(server.pools(), at=NOON))
    told = heartbeat.status(store)
    assert told is not None
    assert (told.waiting, told.beat and told.beat.waiting) == (1, 0)
