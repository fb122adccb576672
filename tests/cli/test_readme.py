"""The README's examples are true: every command in its blocks is run, in order, in one folder."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from feed_server import FeedServer

from yieldlab.cli import main

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [word for word in words if word]


def test_the_readme_opens_with_the_two_commands() -> None:
    assert commands()[0][:2] == ["make", "demo"]
    assert commands()[1][:2] == ["make", "test"]
    makefile = README.with_name("Makefile").read_text()
    for word, target in (command[:2] for command in commands() if command[0] == "make"):
        assert word == "make"
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A feed on loopback in place of the real one."""
    with FeedServer(pools=20, days=120) as server:
        monkeypatch.setenv("YIELDLAB_BASE_URL", server.url)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("empty", "feed")
def test_every_command_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    ran = 0
    for program, *arguments in commands():
        if program == "cd":
            os.chdir(arguments[0])
        elif program == "yieldlab":
            assert main(arguments) == 0, f"{shlex.join(arguments)}: {capsys.readouterr().err}"
            ran += 1
        else:
            assert program in ("make", "pip"), f"the README's {program} is not run by this test"
    assert ran >= 21
    for block in blocks("python"):
        if "def signal" not in block:
            exec(compile(block, "README.md", "exec"), {})


def test_the_strategy_of_the_readme_is_one(tmp_path: Path) -> None:
    from yieldlab.strategy import load

    [source] = [block for block in blocks("python") if "def signal" in block]
    (tmp_path / "steady.py").write_text(source)
    assert len(load(tmp_path / "steady.py").signal_grid) == 9


def test_every_page_that_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text())
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []


def test_the_demo_prints_what_the_readme_shows(yieldlab, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    shown = README.read_text().split("```text\nSYNTHETIC", 1)[1].split("```", 1)[0]

    def figures(text: str) -> list[str]:
        lines = [line.rstrip() for line in text.splitlines()[1:] if not re.search(r"\d{8}T\d{6}Z", line)]
        # What a net learns differs in the last digits from machine to machine, and with it whom it ranks third.
        return [
            re.sub(r"[\d.,%-]+", "#", line) if line.startswith(("lstm_top", "risk_adjusted")) else line
            for line in lines
        ]

    told = yieldlab("demo")
    assert told.code == 0, told.err
    assert figures(told.out) == figures(shown)
