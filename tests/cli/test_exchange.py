"""`data import postgresql://...` and `data export --to postgresql://...`, with a real server."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import postgres_server
import pytest

from yieldlab.store._postgres_export import _ADVISORY_KEY


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> postgres_server.Server:
    server = postgres_server.shared()
    monkeypatch.setenv("PGPASSWORD", server.password)
    return server


def test_the_study_goes_out_and_comes_back(yieldlab, lab: Path, server: postgres_server.Server) -> None:
    url = server.new_database("cli")
    out = yieldlab("data", "export", "--to", url)
    assert out.code == 0
    assert "Made the tables assets and yield_metrics" in out.out
    assert "13,396 rows, 13,396 new, 0 updated, 0 already there; 12 pools, 12 new" in out.out
    assert "SYNTHETIC data" in out.out
    back = yieldlab("data", "import", url, "--data", "other", "--json")
    assert back.code == 0
    (told,) = back.document["data"]["files"]
    assert (told["path"], told["new"], told["refused"]) == (url, 13_396, {})
    assert yieldlab("data", "export", "--to", url, "--json").document["data"]["unchanged"] == 13_396


def test_bad_rows_of_a_database_end_with_code_4(yieldlab, lab: Path, server: postgres_server.Server) -> None:
    url = server.new_database("cli")
    yieldlab("data", "export", "--to", url)
    server.psql("UPDATE yield_metrics SET apy_percent = -200 WHERE asset_id = 1", "cli")
    told = yieldlab("data", "import", url, "--data", "other")
    assert told.code == 4
    assert "apy of -100 % or less" in told.out
    assert list(Path("other/rejects").glob("cli-*.parquet"))


def test_made_up_rows_go_nowhere_without_their_label(yieldlab, lab: Path, server: postgres_server.Server) -> None:
    url = server.new_database("cli")
    yieldlab("data", "export", "--to", url)
    server.psql("ALTER TABLE yield_metrics DROP source, DROP observed_at", "cli")
    told = yieldlab("data", "export", "--to", url)
    assert (told.code, told.out) == (2, "")
    assert "has no column 'source', without which these rows must not go there; add it with --add-columns" in told.err
    told = yieldlab("data", "export", "--to", url, "--add-columns")
    assert told.code == 0
    assert "Added the columns yield_metrics.observed_at, yield_metrics.source" in told.out


def test_what_is_left_out_or_rounded_is_a_warning(yieldlab, lab: Path, server: postgres_server.Server) -> None:
    url = server.new_database("cli")
    yieldlab("data", "export", "--to", url)
    server.psql("ALTER TABLE yield_metrics DROP observed_at, ALTER tvl_usd TYPE numeric(12, 0)", "cli")
    told = yieldlab("data", "export", "--to", url, "--json")
    assert told.code == 0
    assert any("no column observed_at, so 13,396 values" in warning for warning in told.document["warnings"])
    assert told.document["data"]["left_out"] == {"observed_at": 13_396}


@pytest.mark.parametrize("flags", [(), ("--json",), ("--verbose",)])
def test_a_password_is_never_shown(
    yieldlab, lab: Path, server: postgres_server.Server, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    for words in (["data", "import", server.url("postgres")], ["data", "export", "--to", server.url("postgres")]):
        told = yieldlab(*words, *flags)
        assert told.code == 3
        assert "password authentication failed" in told.err
        assert "PGPASSWORD or the file ~/.pgpass" in told.err
        assert "hunter2" not in told.out + told.err
    with_password = server.url("postgres").replace("@", ":hunter2@")
    for words in (["data", "import", with_password], ["data", "import", "a.csv", with_password]):
        told = yieldlab(*words, *flags)
        assert told.code == 2
        assert "must hold no password" in told.err
        assert "hunter2" not in told.out + told.err


def test_the_password_may_lie_in_a_pgpass_file(
    yieldlab, lab: Path, server: postgres_server.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PGPASSWORD")
    secret = tmp_path / "pgpass"
    secret.write_text(f"127.0.0.1:{server.port}:*:{postgres_server.USER}:{server.password}\n")
    secret.chmod(0o600)
    url = server.new_database("cli")
    told = yieldlab("data", "export", "--to", url)
    assert told.code == 3
    assert "no password supplied" in told.err
    monkeypatch.setenv("PGPASSFILE", str(secret))
    assert yieldlab("data", "export", "--to", url).code == 0


def test_a_server_that_is_not_there_is_one_sentence(yieldlab, lab: Path) -> None:
    with postgres_server.closed_port() as port:
        told = yieldlab("data", "export", "--to", f"postgresql://lab@127.0.0.1:{port}/yields")
    assert (told.code, told.out) == (3, "")
    assert told.err.count("\n") == 1
    assert f"postgresql://lab@127.0.0.1:{port}/yields: connection to server" in told.err


def test_without_the_driver_the_extra_is_named(yieldlab, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adbc_driver_postgresql", None)
    told = yieldlab("data", "import", "postgresql://lab@127.0.0.1/yields")
    assert told.code == 2
    assert "pip install 'yieldlab[postgres]'" in told.err


def test_a_file_beside_a_database_that_fails_is_imported(yieldlab, empty: Path, server: postgres_server.Server) -> None:
    Path("rows.csv").write_text("pool_id,time,apy\na,2024-01-01,5\n")
    told = yieldlab("data", "import", "rows.csv", server.url("no_such_database"))
    assert told.code == 4
    assert "rows.csv: 1 rows read, 1 new" in told.out
    assert "no_such_database" in told.err


@contextmanager
def taken(server: postgres_server.Server, name: str) -> Iterator[None]:
    """Hold the lock that exports take turns by."""

    def hold() -> None:
        with suppress(RuntimeError):  # it ends by being ended
            server.psql(f"SELECT pg_advisory_lock({_ADVISORY_KEY}), pg_sleep(30)", name)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        while server.psql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted", name) == "0":
            time.sleep(0.02)
        yield
    finally:
        server.psql("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted", name)
        holder.join()


def test_an_export_that_waits_can_be_interrupted_and_does_not_wait_for_ever(
    yieldlab, lab: Path, server: postgres_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.new_database("cli")
    yieldlab("data", "export", "--to", url)
    with taken(server, "cli"):
        interrupt = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
        interrupt.start()
        told = yieldlab("data", "export", "--to", url)
        interrupt.join()
        assert (told.code, told.out, told.err) == (130, "", "interrupted\n")
        monkeypatch.setattr("yieldlab.store._postgres_export.LOCK_SECONDS", 0.1)
        told = yieldlab("data", "export", "--to", url)
        assert told.code == 3
        assert "canceling statement due to lock timeout" in told.err
    assert yieldlab("data", "export", "--to", url).code == 0
