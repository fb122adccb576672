"""`data backfill` and `data rebuild` as people call them: what they say, and the code that they leave with."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from feed_server import FeedServer

from yieldlab.store import Store

UNKNOWN = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def feed() -> Iterator[FeedServer]:
    with FeedServer(pools=14, days=20) as server:
        yield server


@pytest.fixture
def asked(feed: FeedServer) -> list[str]:
    return ["--base-url", feed.url, "--requests-per-minute", "1000000"]


def test_a_backfill_says_what_came_and_leaves_with_0(yieldlab, empty: Path, asked: list[str]) -> None:
    told = yieldlab("data", "backfill", *asked, "--watchlist", "reference")
    assert told.code == 0
    assert "12 pools fetched, 0 current, 0 failed; 240 rows new, 0 revised, 0 already known, 0 refused" in told.out
    told = yieldlab("data", "backfill", *asked, "--watchlist", "reference", "--json")
    assert told.code == 0
    data = told.document["data"]
    assert (data["chosen"], data["committed"], data["current"], data["new"]) == (12, 0, 12, 0)
    told = yieldlab("data", "backfill", *asked, "--watchlist", "reference", "--refresh", "--json")
    assert told.document["data"]["unchanged"] == 240
    assert yieldlab("backtest", "highest_apy").code == 0


def test_a_dry_run_shows_what_would_be_fetched_and_writes_nothing(yieldlab, empty: Path, asked: list[str]) -> None:
    told = yieldlab("data", "backfill", *asked, "--project", "aave-v3", "--top", "3", "--dry-run")
    assert told.code == 0
    assert told.out.count("aave-v3") == 4
    assert "3 charts to fetch, 0 current" in told.out
    assert list(empty.iterdir()) == []
    told = yieldlab("data", "backfill", *asked, "--pool", UNKNOWN, "--dry-run", "--json")
    assert told.code == 4
    assert told.document["data"]["missing"] == [f"the feed lists no usable row of the pool {UNKNOWN}"]


def test_pools_and_rows_that_could_not_be_had_are_named_with_4(
    yieldlab, empty: Path, asked: list[str], feed: FeedServer
) -> None:
    pool, refused = feed.pool_ids[0], feed.pool_ids[1]
    feed.plan(f"/chart/{refused}", "null_apy")
    told = yieldlab("data", "backfill", *asked, "--pool", pool, "--pool", refused, "--pool", UNKNOWN)
    assert told.code == 4
    assert "2 pools fetched, 0 current, 1 failed" in told.out
    assert f"{UNKNOWN}   the feed has no history of it" in told.out
    rejects = list((empty / "data" / "rejects").iterdir())
    assert f"The refused rows, each with its reason, are in {rejects[0].relative_to(empty)}" in told.out


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        ([], 2, "say which pools to fetch: --pool ID, --watchlist reference or FILE"),
        (["--pool", "0x1"], 2, "'0x1' is no id of a pool"),
        (["--watchlist", "nope"], 2, "there is no watchlist 'nope'"),
        (["--top", "0"], 2, "--top must be at least 1"),
        (["--project", "aave_v3"], 3, "no pool of the feed fits: project aave_v3; no pool of the feed has the project"),
        (["--min-tvl", "1e18"], 3, "no pool of the feed fits"),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence(
    yieldlab, empty: Path, asked: list[str], flags: list[str], code: int, sentence: str
) -> None:
    told = yieldlab("data", "backfill", *asked, *flags)
    assert told.code == code
    assert sentence in told.err
    assert told.err.count("\n") == 1
    assert list(empty.iterdir()) == []


def test_pools_of_which_none_could_be_had_end_with_3(yieldlab, empty: Path, asked: list[str]) -> None:
    told = yieldlab("data", "backfill", *asked, "--pool", UNKNOWN, "--json")
    assert (told.code, told.document["status"]) == (3, "failed")
    data = told.document["data"]
    assert (data["failed"], data["unknown"]) == ({UNKNOWN: "the feed has no history of it"}, [UNKNOWN])


def test_rows_withdrawn_are_told(yieldlab, empty: Path, asked: list[str], feed: FeedServer) -> None:
    pool = feed.pool_ids[0]
    yieldlab("data", "backfill", *asked, "--pool", pool)
    feed.set_chart(pool, feed.chart(pool)[:19])
    told = yieldlab("data", "backfill", *asked, "--pool", pool, "--refresh")
    assert (told.code, "0 refused, 1 withdrawn" in told.out) == (0, True)
    assert "1 chart to fetch, 0 current" in told.err
    assert "warning: the feed withdrew 1 row of 1 pool that it told earlier; the store keeps them" in told.err


@pytest.mark.parametrize(
    "words", [["backfill", "--top", "3", "--refresh"], ["rebuild"], ["rebuild", "--into", "raw/new"]]
)
def test_what_cannot_be_written_ends_with_3_and_names_the_path(
    yieldlab, empty: Path, asked: list[str], words: list[str]
) -> None:
    """A file where a folder must be is in the way for everybody, also for the superuser."""
    assert yieldlab("data", "backfill", *asked, "--top", "3").code == 0
    if "--into" in words:
        (empty / "raw").write_text("in the way")
    else:
        tables = empty / "data" / "tables"
        shutil.rmtree(empty / "data" / "raw")
        (empty / "data" / "raw").write_text("in the way")
        (tables / ".lock").unlink(missing_ok=True)
        (tables / ".lock").mkdir()
    told = yieldlab("data", words[0], *(asked if words[0] == "backfill" else []), *words[1:])
    assert told.code == 3
    assert "cannot write to" in told.err
    if words == ["rebuild"]:
        assert "the same command does it again" in told.err
    assert ("raw" in told.err) or ("tables" in told.err)
    if words[0] == "backfill":
        assert "0 charts were committed before, and the same command goes on from there" in told.err


def test_a_data_folder_that_is_a_file_is_one_sentence_with_3(yieldlab, empty: Path, asked: list[str]) -> None:
    (empty / "afile").write_text("mine")
    told = yieldlab("data", "backfill", *asked, "--top", "2", "--data", "afile")
    assert told.code == 3
    assert "cannot write to afile" in told.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_keep_what_was_fetched_and_say_how_to_go_on(
    empty: Path, feed: FeedServer, number: int
) -> None:
    words = ["data", "backfill", "--base-url", feed.url, "--min-tvl", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "yieldlab", *words, "--requests-per-minute", "240", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while sum(feed.hits.values()) < 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    began = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - began < 10
    document = json.loads(out)
    assert document["status"] == "interrupted"
    data = document["data"]
    assert 2 <= data["committed"] < 14
    assert data["committed"] + data["interrupted"] == 14
    assert f"go on with: yieldlab {' '.join(words)}" in err
    store = Store(empty / "data")
    assert store.metrics().height == data["committed"] * 20


def test_a_rebuild_says_what_was_missing(yieldlab, empty: Path, asked: list[str]) -> None:
    told = yieldlab("data", "rebuild")
    assert told.code == 3
    assert "run `yieldlab data backfill` first" in told.err
    yieldlab("data", "backfill", *asked, "--top", "3")
    assert "4 of 4 answers replayed, 0 expired, 0 damaged; 0 rows new" in yieldlab("data", "rebuild").out
    shutil.rmtree(empty / "data" / "tables" / "yield_metrics")
    told = yieldlab("data", "rebuild", "--json")
    assert (told.code, told.document["data"]["new"]) == (0, 60)
    assert yieldlab("data", "rebuild", "--into", "again").code == 0
    assert Store(empty / "again").metrics().height == 60
    told = yieldlab("data", "rebuild", "--into", "again")
    assert (told.code, "again is not empty; name a new folder" in told.err) == (2, True)


REBUILD = """
import sys, time
from yieldlab.collect import defillama
from yieldlab.cli import main

def parse_chart(*arguments, **more):
    print("at work", flush=True)
    time.sleep(60)

defillama.parse_chart = parse_chart
sys.exit(main(["data", "rebuild"]))
"""


def test_a_rebuild_ended_by_sigterm_leaves_nothing(yieldlab, empty: Path, asked: list[str]) -> None:
    yieldlab("data", "backfill", *asked, "--top", "3")
    process = subprocess.Popen([sys.executable, "-c", REBUILD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    assert list((empty / "data").glob(".rebuild-*"))
    process.terminate()
    assert process.wait(timeout=30) == 130
    assert not list((empty / "data").glob(".rebuild-*"))


def test_a_rebuild_names_what_it_cannot_read_with_4(yieldlab, empty: Path, asked: list[str], feed: FeedServer) -> None:
    yieldlab("data", "backfill", *asked, "--top", "3")
    largest = max(feed.pools(), key=lambda row: row["tvlUsd"])["pool"]
    fetches = Store(empty / "data").recorded("fetches")
    content = fetches.filter(fetches["key"] == largest)["content_hash"].item()
    (empty / "data" / "raw" / content[:2] / f"{content}.json.gz").unlink()
    told = yieldlab("data", "rebuild")
    assert told.code == 4
    assert f"/chart/{largest}" in told.out
    assert "3 of 4 answers replayed, 0 expired, 1 damaged" in told.out
