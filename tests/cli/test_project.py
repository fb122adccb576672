"""`init` and `doctor`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from yieldlab import config

ROOT = Path(__file__).parents[2]


def test_init_sets_up_a_folder_whose_strategies_load(yieldlab, empty: Path) -> None:
    told = yieldlab("init", "lab")
    assert told.code == 0
    assert "Next: cd lab" in told.out
    copied = {path.name: path.read_text() for path in (empty / "lab" / "strategies").glob("*.py")}
    assert copied == {path.name: path.read_text() for path in (ROOT / "strategies").glob("*.py")}
    os.chdir("lab")
    assert yieldlab("strategies", "list").code == 0


def test_the_settings_that_init_writes_are_the_defaults(yieldlab, empty: Path) -> None:
    yieldlab("init", "lab")
    written = empty / "lab" / "yieldlab.toml"
    before = config.load(environment={}, folder=empty)
    lines = [line.removeprefix("# ") if " = " in line else line for line in written.read_text().splitlines()]
    written.write_text("\n".join(lines))
    after = config.load(file=written, environment={})
    for name in config.KEYS:
        if name not in ("data", "strategies", "models", "jobs"):
            assert getattr(after, name) == getattr(before, name)
    assert (after.data, after.models) == (empty / "lab" / "data", empty / "lab" / "models")


def test_init_overwrites_nothing(yieldlab, empty: Path) -> None:
    (empty / "yieldlab.toml").write_text("seed = 3\n")
    told = yieldlab("init", ".")
    assert told.code == 2
    assert "already has yieldlab.toml" in told.err
    assert os.listdir() == ["yieldlab.toml"]
    assert yieldlab("init", "yieldlab.toml").code == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_sentence(yieldlab, empty: Path) -> None:
    empty.chmod(0o500)
    told = yieldlab("init", "lab")
    empty.chmod(0o700)
    assert told.code == 1
    assert told.err.count("\n") == 1


def test_doctor_says_what_is_missing_and_how_to_get_it(yieldlab, empty: Path) -> None:
    told = yieldlab("doctor", "--json")
    assert told.code == 0
    findings = {finding["name"]: finding for finding in told.document["data"]["findings"]}
    assert {"python", "numba", "polars", "threads", "kernel cache", "data folder", "settings"} <= set(findings)
    assert findings["data folder"]["state"] == "missing"
    assert "yieldlab data sample" in findings["data folder"]["remedy"]
    assert "data folder" in yieldlab("doctor").out


def test_doctor_names_the_command_for_a_missing_extra(yieldlab, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    real = metadata.version

    def version(name: str) -> str:
        if name == "vectorbt":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    told = yieldlab("doctor")
    assert told.code == 0
    assert 'vectorbt (extra vectorbt) (missing): pip install "yieldlab[vectorbt]"' in told.out


def test_doctor_fails_where_the_data_folder_cannot_be_made(yieldlab, empty: Path) -> None:
    (empty / "file").write_text("")
    told = yieldlab("doctor", "--data", "file")
    assert told.code == 1
    assert "data folder (broken): name another with --data or YIELDLAB_DATA" in told.out


def test_the_environment_and_the_file_reach_a_command(yieldlab, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert yieldlab("data", "list").code == 0
    monkeypatch.setenv("YIELDLAB_DATA", "nowhere")
    told = yieldlab("data", "list")
    assert told.code == 3
    assert "no data in nowhere" in told.err
    assert yieldlab("data", "list", "--data", "data").code == 0


def test_an_unknown_key_of_the_file_stops_every_command(yieldlab, lab: Path) -> None:
    (lab / "yieldlab.toml").write_text("captial = 5\n")
    told = yieldlab("data", "list")
    assert (told.code, told.out) == (2, "")
    assert "unknown key 'captial'; did you mean 'capital'?" in told.err
