"""`data collect` and `data status` as people and service managers use them."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from feed_server import FeedServer

from yieldlab.errors import UsageError
from yieldlab.store import Store

UNKNOWN = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
def server() -> Iterator[FeedServer]:
    with FeedServer(pools=5, days=5) as server:
        server.expires_after = timedelta(0)
        yield server


@pytest.fixture
def once(yieldlab, empty: Path, server: FeedServer) -> Callable[..., object]:
    return lambda *more: yieldlab("data", "collect", "--once", "--base-url", server.url, *more)


@contextmanager
def collecting(server: FeedServer, folder: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A collector in a process of its own, after its first line."""
    words = [
        "data",
        "collect",
        "--base-url",
        server.url,
        "--data",
        str(folder),
        "--requests-per-minute",
        "100000",
        *more,
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "yieldlab", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert "collecting all pools" in first
        assert "every 0:" not in first, "as people write it"
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(what: Callable[[], object], seconds: float = 30.0) -> None:
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)


def polls(folder: Path) -> list[str]:
    return Store(folder).recorded("polls").sort("polled_at")["outcome"].to_list()


def test_one_poll_says_what_it_stored(once, server: FeedServer) -> None:
    told = once()
    assert told.code == 0
    assert "stored 5 new, 0 changed; 5 pools" in told.out
    again = once("--json").document
    assert again["status"] == "ok"
    assert again["data"]["last"]["outcome"] == "unchanged"
    server.expires_after = timedelta(minutes=20)
    assert once().code == 0
    told = once()
    assert (told.code, "nothing asked" in told.out) == (0, True)


def test_a_feed_that_is_not_there_is_a_data_error_and_is_recorded(yieldlab, empty: Path, server: FeedServer) -> None:
    told = yieldlab("data", "collect", "--once", "--base-url", f"{server.url}/elsewhere")
    assert (told.code, told.out) == (3, "")
    assert told.err.count("error:") == 1
    assert polls(Path("data")) == ["failed"]


def test_real_pools_beside_made_up_ones_are_worth_a_warning(yieldlab, once) -> None:
    yieldlab("data", "sample")
    assert "also holds synthetic pools" in once().err
    assert "also holds synthetic pools" not in once().err


def test_refused_rows_and_unknown_pools_make_one_poll_partial(once, server: FeedServer) -> None:
    server.change(server.pool_ids[0], apy="NaN")
    told = once()
    assert (told.code, "1 refused" in told.out) == (4, True)
    server.change(server.pool_ids[0], apy=1.0)
    told = once("--pool", server.pool_ids[0], "--pool", UNKNOWN)
    assert (told.code, told.err.count("warning:")) == (4, 1)
    assert UNKNOWN in told.err


def test_a_selection_that_fits_no_pool_is_a_failure_and_makes_no_data_fresh(yieldlab, once) -> None:
    told = once("--chain", "Ethereeum")
    assert told.code == 3
    assert "the feed lists no pool of those asked for" in told.err
    assert "did you mean 'Ethereum'" in told.err
    document = once("--chain", "Ethereeum", "--json").document
    assert len(document["warnings"]) == 2
    told = yieldlab("data", "status")
    assert (told.code, "stale" in told.out, "the feed lists no pool" in told.out) == (3, True, True)
    Path("data/collector.json").unlink()
    status = yieldlab("data", "status", "--json")
    assert (status.code, status.document["data"]["failures"]) == (3, 2)
    assert once().code == 0
    assert yieldlab("data", "status").code == 0


def test_a_data_folder_that_cannot_be_one_is_a_data_error(yieldlab, empty: Path, server: FeedServer) -> None:
    Path("file").write_text("")
    told = yieldlab("data", "collect", "--once", "--base-url", server.url, "--data", "file")
    assert (told.code, told.out, told.err.count("\n")) == (3, "", 1)
    assert "the data folder file cannot be written" in told.err
    assert "--out" not in told.err


def test_a_full_disk_is_told_with_what_is_lost(yieldlab, once, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("yieldlab.store.Store.record", no_room)
    monkeypatch.setattr("yieldlab.collect.archive.Archive.keep", no_room)
    monkeypatch.setattr("yieldlab.collect.heartbeat.replace_file", no_room)
    told = once()
    assert (told.code, told.out) == (3, "")
    assert "the disk did not take 1 of the answers received; they are lost" in told.err
    assert "the data folder data cannot be written (no space left on device)" in told.err
    assert "Errno" not in told.err
    told = once("--json")
    assert (told.code, told.document["data"]["exit_code"]) == (3, 3)
    assert "the data folder data cannot be written" in told.document["data"]["error"]
    assert any("they are lost" in warning for warning in told.document["warnings"])
    assert len(told.document["warnings"]) >= 3
    status = yieldlab("data", "status")
    assert (status.code, "could store nothing" in status.err) == (3, True)


@pytest.mark.slow
def test_a_single_poll_ended_before_its_answer_is_interrupted(server: FeedServer, tmp_path: Path) -> None:
    server.plan("/pools", *["hang"] * 10)
    words = ["data", "collect", "--once", "--base-url", server.url, "--data", str(tmp_path / "data")]
    with subprocess.Popen([sys.executable, "-m", "yieldlab", *words], stdout=subprocess.PIPE) as process:
        wait_for(lambda: server.hits["/pools"])
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=5)
    assert process.returncode == 130


@pytest.mark.parametrize("words", [["--once", "--every", "5m"], ["--every", "soon"], ["--every", "0s"], ["--top", "0"]])
def test_what_cannot_be_meant_is_a_usage_error(yieldlab, empty: Path, words: list[str]) -> None:
    told = yieldlab("data", "collect", *words)
    assert told.code == 2
    assert told.err.count("\n") == 1
    assert not Path("data").exists()


def test_times_are_read_as_people_write_them() -> None:
    from yieldlab.cli.collect import parse_time

    assert [parse_time(text).total_seconds() for text in ("90s", "15m", "1.5h", " 1d ")] == [90, 900, 5400, 86_400]
    for wrong in ("15", "m", "-5m", "1w", "0.5s", "400d", "1h30m", ""):
        with pytest.raises(UsageError, match="--every must be a time"):
            parse_time(wrong)


def test_the_status_is_stale_without_a_recent_success(yieldlab, once, server: FeedServer) -> None:
    never = yieldlab("data", "status")
    assert (never.code, "nothing was ever collected" in never.err) == (3, True)
    once()
    told = yieldlab("data", "status")
    assert told.code == 0
    assert "fresh" in told.out
    assert "not running" in told.out
    time.sleep(1.1)
    told = yieldlab("data", "status", "--max-lag", "1s")
    assert (told.code, "stale" in told.out) == (3, True)
    document = yieldlab("data", "status", "--json").document
    assert (document["data"]["stale"], document["data"]["failures"], document["data"]["running"]) == (False, 0, False)
    assert document["data"]["heartbeat"]["state"] == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_cleanly(server: FeedServer, tmp_path: Path, number: int, code: int) -> None:
    folder = tmp_path / "data"
    with collecting(server, folder, "--every", "1s", "--json") as process:
        wait_for(lambda: len(polls(folder)) >= 2)
        process.send_signal(number)
        out, err = process.communicate(timeout=5)
    assert process.returncode == code
    assert "Traceback" not in err
    document = json.loads(out)
    assert document["data"]["polls"] == len(polls(folder)) >= 2
    assert document["data"]["outcomes"]["stored"] == 1
    heartbeat = json.loads((folder / "collector.json").read_text())
    assert (heartbeat["state"], heartbeat["every_s"]) == ("stopped", 1.0)


@pytest.mark.slow
def test_it_ends_in_time_while_the_feed_hangs(server: FeedServer, tmp_path: Path) -> None:
    server.plan("/pools", *["hang"] * 10)
    with collecting(server, tmp_path / "data") as process:
        wait_for(lambda: server.hits["/pools"])
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=5)
        assert process.returncode == 0


HOLDER = """
import sys
from yieldlab.store import Store
with Store(sys.argv[1]).writing():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_it_ends_in_time_while_another_process_writes_and_loses_nothing(server: FeedServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with collecting(server, folder) as process:
        wait_for(lambda: list((folder / "collector").glob("*.json")))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=5)
        assert process.returncode == 0
    holder.communicate("")
    assert polls(folder) == []
    server.change(server.pool_ids[0], apy=77.0)
    with collecting(server, folder):
        wait_for(lambda: len(polls(folder)) == 2 and not list((folder / "collector").glob("*.json")))
    rows = Store(folder).history()
    assert rows.height == 6, "five of the answer that waited, one of the next"


@pytest.mark.slow
def test_a_second_collector_gets_one_clear_sentence(server: FeedServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    words = ["data", "collect", "--once", "--base-url", server.url, "--data", str(folder)]
    with collecting(server, folder, "--every", "1h") as process:
        wait_for(lambda: (folder / "collector.json").exists())
        second = subprocess.run([sys.executable, "-m", "yieldlab", *words], capture_output=True, text=True)
        assert (second.returncode, second.stdout) == (3, "")
        assert second.stderr.count("\n") == 1
        assert "another collector is at work" in second.stderr
        status = [sys.executable, "-m", "yieldlab", "data", "status", "--json", "--data", str(folder)]
        wait_for(lambda: polls(folder))
        told = json.loads(subprocess.run(status, capture_output=True, text=True).stdout)
        assert (told["data"]["running"], told["data"]["heartbeat"]["pid"]) == (True, process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
    # The lock of a process that is gone holds nobody up.
    assert (
        subprocess.run([sys.executable, "-m", "yieldlab", *words], env=os.environ, capture_output=True).returncode == 0
    )
