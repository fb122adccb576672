"""Folders to run commands in: `lab` with the bundled strategies and the synthetic study, `empty` with nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from yieldlab.cli import main


@dataclass(frozen=True)
class Told:
    """What one command left with, and what it said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output as the one JSON document it must be."""
        return json.loads(self.out)


Yieldlab = Callable[..., Told]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One set-up folder with data, to be copied and never changed."""
    folder = tmp_path_factory.mktemp("made") / "lab"
    assert main(["init", str(folder), "--quiet"]) == 0
    assert main(["data", "sample", "--data", str(folder / "data")]) == 0
    return folder


@pytest.fixture
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("YIELDLAB_"):
            monkeypatch.delenv(name)


@pytest.fixture
def lab(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _own_environment: None) -> Path:
    """A folder with strategies and synthetic data, as the current one."""
    folder = tmp_path / "lab"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _own_environment: None) -> Path:
    """A folder with nothing in it, as the current one."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def yieldlab(capsys: pytest.CaptureFixture[str]) -> Yieldlab:
    """Run one command in this process: `yieldlab("data", "list")`."""

    def run(*arguments: str) -> Told:
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return Told(code, out, err)

    return run
