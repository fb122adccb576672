"""Collecting at full speed: killed at any instant, read by others meanwhile, for as long as one likes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import moving_feed
import polars as pl
import pytest
from moving_feed import MovingFeed

from yieldlab.collect.polls import SOURCE
from yieldlab.store import Store

POOLS = 12


@contextmanager
def process(kind: str, store: Store, server: MovingFeed, max_files: int) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, moving_feed.__file__, kind, str(store.folder), server.url, str(max_files)]
    path = os.pathsep.join([str(Path(moving_feed.__file__).parent), *sys.path])
    started = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def whole_polls(store: Store) -> pl.DataFrame:
    """The polls that are told; fails unless everything that each brought is there, and nothing twice.

    What is told last is read first: whatever happens meanwhile, the rows of these polls are there by then.
    """
    polls = store.recorded("polls")
    if not store.exists:
        assert polls.is_empty()
        return polls
    fetches, events = store.recorded("fetches"), store.recorded("pool_events")
    rows = store.history(columns=("pool_id", "valid_at", "observed_at", "apy_percent", "source"))
    assert rows.n_unique(["pool_id", "valid_at"]) == rows.height
    assert set(rows["source"]) == {SOURCE}
    counts = rows.group_by("valid_at").len("rows")
    stored = polls.filter(pl.col("outcome") == "stored").join(
        counts, left_on="polled_at", right_on="valid_at", how="left"
    )
    assert (stored["rows"].fill_null(0) == stored["new"] + stored["changed"]).all()
    assert polls.n_unique("polled_at") == polls.height
    assert set(stored["content_hash"]) <= set(fetches["content_hash"])
    # Each answer differs from the last, so that half of the pools change with each.
    assert (stored["rows"].fill_null(0) >= POOLS // 2 - 2).all()
    assert events.n_unique() == events.height
    assert events.filter(pl.col("event") == "appeared")["pool_id"].n_unique() == POOLS or polls.is_empty()
    return polls


@pytest.mark.slow
def test_a_kill_at_any_instant_loses_no_poll_and_doubles_nothing(tmp_path: Path) -> None:
    draw, store, acknowledged, longest = random.Random(5), Store(tmp_path / "data"), set(), 0.4
    with MovingFeed(POOLS) as server, process("children", store, server, 20) as children:
        assert children.stdin is not None
        assert children.stdout is not None
        for _ in range(30):
            print("start", file=children.stdin, flush=True)
            word, child = children.stdout.readline().split()
            assert word == "started"
            lines = [children.stdout.readline() for _ in range(draw.choice([0, 0, 1]))]
            time.sleep(draw.uniform(0.0, longest))
            os.kill(int(child), signal.SIGKILL)
            lines += iter(children.stdout.readline, "killed\n")
            longest *= 1.0 if lines else 1.2  # a slower machine gets more time to poll
            for line in lines:
                outcome, polled_at, *_ = line.split()
                assert outcome in ("stored", "unchanged"), line
                acknowledged.add(polled_at)
            told = {instant.isoformat() for instant in whole_polls(store)["polled_at"]}
            assert acknowledged <= told
    assert len(acknowledged) > 10, "the test killed before anything was stored and proves nothing"
    assert store.sql("SELECT count(*) AS n FROM yield_metrics")["n"].item() == store.history().height


@pytest.mark.slow
def test_readers_see_whole_polls_while_memory_and_files_stay_bounded(tmp_path: Path) -> None:
    store, seen, max_files = Store(tmp_path / "data"), 0, 20
    with MovingFeed(POOLS) as server, process("one", store, server, max_files) as collector:
        assert collector.stdout is not None
        memory = []
        for line in collector.stdout:
            outcome, _, resident, *notes = line.split()
            assert (outcome, notes) == ("stored", [])
            memory.append(float(resident))
            if len(memory) % 6 == 0:
                seen = whole_polls(store).height
                assert max(state.files for state in store.versions().values()) <= max_files + 5 + 20
            if len(memory) == 40:
                break
    assert seen >= 36
    assert memory[-1] - memory[10] < 50, "the memory that 30 more polls take, in MB"
