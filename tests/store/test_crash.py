"""Whatever ends a write, the tables are as they were before it or after it."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from yieldlab.store import Store

BATCH = 2_000

#: Appends batches for ever: batch n is BATCH rows whose yield is n, over ten pools; each third batch compacts.
WRITER = """
import sys
from datetime import UTC, datetime, timedelta
import polars as pl
from yieldlab.store import Store

store, number, batch = Store(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
while True:
    start = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=number)
    rows = pl.DataFrame({
        "pool_id": [f"pool-{i % 10}" for i in range(batch)],
        "valid_at": [start + timedelta(seconds=i) for i in range(batch)],
        "apy_percent": float(number),
    })
    store.append(rows, rows.select("pool_id").unique())
    if number % 3 == 2:
        store.compact()
    number += 1
"""


def whole_batches(store: Store) -> int:
    """How many batches the store holds; fails unless each is there with all of its rows."""
    if not store.exists:
        return 0
    counts = store.history(columns=("apy_percent",)).group_by("apy_percent").len().sort("apy_percent")
    assert counts["apy_percent"].to_list() == [float(n) for n in range(counts.height)]
    assert counts["len"].unique().to_list() == [BATCH]
    assert store.assets().height == 10
    assert store.sql("SELECT count(*) AS n FROM yield_metrics")["n"].item() == counts.height * BATCH
    return counts.height


@pytest.mark.slow
def test_a_kill_at_any_instant_leaves_whole_batches(tmp_path: Path) -> None:
    draw = random.Random(7)
    store = Store(tmp_path / "data")
    done, longest = 0, 0.6
    for _ in range(15):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(store.folder), str(done), str(BATCH)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(draw.random() ** 2 * longest)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        held = whole_batches(store)
        assert held >= done
        longest *= 1.5 if held == done else 1.0  # a slower machine gets more time until it has written something
        done = held
    assert done > 5, "the test killed before anything was written and proves nothing"
    row = pl.DataFrame({"pool_id": ["b"], "valid_at": [datetime(2023, 1, 1, tzinfo=UTC)], "apy_percent": [1.0]})
    assert store.append(row, row.select("pool_id")).new == 1


@pytest.mark.slow
def test_two_processes_write_one_after_the_other(tmp_path: Path) -> None:
    code = """
import sys
from datetime import UTC, datetime, timedelta
import polars as pl
from yieldlab.store import Store

for number in range(8):
    rows = pl.DataFrame({"pool_id": ["a"] * 50, "apy_percent": 1.0, "valid_at": [
        datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=i + 50 * (number // 2)) for i in range(50)]})
    Store(sys.argv[1]).append(rows, rows.select("pool_id").unique())
"""
    store = Store(tmp_path / "data")
    writers = [subprocess.Popen([sys.executable, "-c", code, str(store.folder)]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    # The same rows from everybody: read, compare and append happen under one lock, so none is there twice.
    assert store.history().height == 200
    assert store.versions()["assets"].rows == 1


def rows_of(count: int, number: int) -> pl.DataFrame:
    """`count` rows that do not compress."""
    draw = random.Random(number)
    start = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=400 * number)
    return pl.DataFrame(
        {
            "pool_id": [f"pool-{draw.random()}" for _ in range(count)],
            "valid_at": [start + timedelta(seconds=i) for i in range(count)],
            "apy_percent": [draw.random() for _ in range(count)],
            "tvl_usd": [draw.random() for _ in range(count)],
        }
    )


FAILING = """
import resource, sys
import polars as pl
from yieldlab.errors import DataError
from yieldlab.store import Store

limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
rows = pl.read_parquet(sys.argv[2])
try:
    Store(sys.argv[1]).append(rows, rows.select("pool_id"))
except DataError as error:
    print(error)
    sys.exit(3)
"""


def failing_append(store: Store, rows: Path, limit: int = 0) -> str:
    """What an append that must fail says; a full disk is told in that sentence alone, with no noise besides."""
    done = subprocess.run(
        [sys.executable, "-c", FAILING, str(store.folder), str(rows), str(limit)], capture_output=True, text=True
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert limit or done.stderr == ""
    return done.stdout


def files_of(store: Store) -> dict[Path, int]:
    return {path: path.stat().st_size for path in store.folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("limit", [100, 1_000, 50_000])
def test_a_file_that_may_not_grow_adds_nothing(tmp_path: Path, limit: int) -> None:
    store = Store(tmp_path / "data")
    store.append(rows_of(50, 0), pl.DataFrame(schema={"pool_id": pl.String}))
    before, files = store.history().sort(pl.all()), files_of(store)
    rows_of(20_000, 1).write_parquet(tmp_path / "rows.parquet")
    told = failing_append(store, tmp_path / "rows.parquet", limit)
    assert told.count("\n") == 1
    assert "nothing was added" in told
    assert "the disk is full or a file may not grow further" in told
    assert store.history().sort(pl.all()).equals(before)
    assert {path.name for path in files_of(store)} >= {path.name for path in files}
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.fixture
def small_disk(tmp_path: Path):
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


def test_a_full_disk_adds_nothing_and_gives_its_room_back(small_disk: Path, tmp_path: Path) -> None:
    store = Store(small_disk / "data")
    store.append(rows_of(50, 0), pl.DataFrame(schema={"pool_id": pl.String}))
    before = store.history().sort(pl.all())
    rows_of(60_000, 1).write_parquet(tmp_path / "rows.parquet")
    for _ in range(2):
        told = failing_append(store, tmp_path / "rows.parquet")
        assert told.count("\n") == 1
        assert "the disk is full" in told
        assert store.history().sort(pl.all()).equals(before)
        assert store.panel().shape[1] == 50
    assert store.append(rows_of(50, 2), pl.DataFrame(schema={"pool_id": pl.String})).new == 50


def test_a_disk_full_from_the_start_holds_no_half_store(small_disk: Path, tmp_path: Path) -> None:
    rows_of(60_000, 1).write_parquet(tmp_path / "rows.parquet")
    store = Store(small_disk / "data")
    assert "the disk is full" in failing_append(store, tmp_path / "rows.parquet")
    assert not store.exists
    assert store.append(rows_of(50, 2), pl.DataFrame(schema={"pool_id": pl.String})).new == 50
