"""What a failure looks like: one sentence on stderr, the exit code of its kind, a JSON document on request."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from yieldlab.cli import failures, main
from yieldlab.errors import AuditError, ConfigError, DataError, StrategyError, UsageError


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UsageError("no such axis"), 2, "no such axis"),
        (ConfigError("bad\nfile"), 2, "bad file"),
        (DataError("no data"), 3, "no data"),
        (StrategyError("no signal"), 4, "no signal"),
        (AuditError("engines differ"), 5, "engines differ"),
        (OSError(errno.ENOSPC, "No space left on device", "x.parquet"), 1, "no space left on the disk for x.parquet"),
        (RuntimeError("Generic error: IO: No space left on device (os error 28)"), 1, "no space left on the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "Permission denied for /x"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x/y"), 1, "not a directory: x/y"),
        (MemoryError(), 1, "out of memory"),
        (KeyError("k"), 1, "unexpected KeyError: 'k'"),
    ],
)
def test_every_kind_of_error_has_its_code_and_one_sentence(error: Exception, code: int, sentence: str) -> None:
    told, left_with = failures.describe(error)
    assert left_with == code
    assert told.startswith(sentence)
    assert "\n" not in told


Run = Callable[[list[str]], int]


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def raise_it(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(failures, "_invoke", raise_it)


def test_an_error_goes_to_stderr_and_stdout_stays_empty(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, DataError("no data in x"))
    assert main(["data", "list"]) == 3
    assert capsys.readouterr() == ("", "error: no data in x\n")


def test_a_traceback_is_shown_with_v_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, ZeroDivisionError("oops"))
    assert main(["data", "list"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert main(["data", "list", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_with_json_an_error_is_a_document_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, DataError("no data in x"))
    assert main(["data", "list", "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document == {
        "schema_version": 1,
        "command": "data list",
        "run_id": None,
        "status": "error",
        "data": {"error": "no data in x", "kind": "DataError", "exit_code": 3},
        "warnings": [],
    }


def test_an_interrupt_leaves_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["dcotor"], "there is no command 'yieldlab dcotor'; did you mean 'doctor'?"),
        (["data", "lits"], "there is no command 'yieldlab data lits'; did you mean 'list'?"),
        (["init"], "missing argument 'DIR'; see `yieldlab init --help`"),
        (["doctor", "--jsn"], "--json"),
        ([], "a command is missing; `yieldlab` has init, doctor, demo, backtest, sql, data"),
        (["runs"], "a command is missing; `yieldlab runs` has"),
        (["doctor", "--config", "absent.toml"], "there is no configuration file absent.toml"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_exit_2(
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert sentence in err


def test_a_reader_that_stops_reading_is_no_failure() -> None:
    command = [sys.executable, "-c", "import sys; from yieldlab.cli import main; sys.exit(main(['doctor', '--json']))"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_an_error_that_nobody_reads_is_no_second_error() -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; from yieldlab.cli import main; sys.exit(main(['sql', 'x', '--json']))",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    told = process.stderr.read()
    assert process.wait() == 3
    assert told.startswith("error: ")
    assert told.count("\n") == 1


def test_an_error_with_both_streams_closed_leaves_with_its_code() -> None:
    script = f"{sys.executable} -m yieldlab sql x --json -v 2>&1 | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_an_error_document_on_a_full_disk_is_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "yieldlab", "sql", "x", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_is_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "yieldlab", "doctor"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no space left on the disk")
    assert "Traceback" not in done.stderr


def test_v_shows_our_logs_and_not_those_of_libraries() -> None:
    command = [sys.executable, "-m", "yieldlab", "doctor", "-v"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "yieldlab.cli.session: settings:" in done.stderr
    assert all("yieldlab" in line for line in done.stderr.splitlines())


def test_a_reader_that_stops_reading_does_not_hide_how_it_ended(lab: Path) -> None:
    check = f"{sys.executable} -m yieldlab data check --limit 0 --threshold max_gap_days=0"
    script = check + " | true; echo ${PIPESTATUS[0]}"
    told = subprocess.run(["bash", "-c", script], cwd=lab, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "3"
    assert "Traceback" not in told.stderr
