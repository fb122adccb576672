"""What results and progress look like in a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from yieldlab.units import to_percent

PLAIN_WIDTH = 120
#: A word of this many letters is broken in no table.
LONGEST_WORD = 40
#: Wider than any table, so that the width a table needs is not the width there is.
MEASURING_WIDTH = 10_000
SECONDS_BETWEEN_LINES = 30.0


def show(parts: Iterable[RenderableType]) -> None:
    """Print the result on stdout: no number is ever cut, and where it is no terminal there are no colours, no trailing
    blanks and a fixed width."""
    terminal = sys.stdout.isatty()
    for part in parts:
        console = Console(highlight=False, markup=False)
        width = console.width if terminal else int(os.environ.get("COLUMNS", "0")) or PLAIN_WIDTH
        console.width = MEASURING_WIDTH
        console.width = max(width, Measurement.get(console, console.options, part).minimum)
        with console.capture() as captured:
            console.print(part, soft_wrap=isinstance(part, str))
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def note(text: str) -> Text:
    """Prose, which is wrapped where a plain line (a path, a command) is not."""
    return Text(text)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", left: int = 1) -> Table:
    """A table whose first `left` columns are words and whose others are numbers."""
    drawn = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    cells = [list(row) for row in rows]
    for index, name in enumerate(columns):
        if index < left:
            longest = max((len(word) for row in cells for word in row[index].split()), default=0)
            drawn.add_column(name, overflow="fold", min_width=min(longest, LONGEST_WORD))
        else:
            widest = max(len(name), *(len(row[index]) for row in cells)) if cells else len(name)
            drawn.add_column(name, justify="right", no_wrap=True, min_width=widest)
    for row in cells:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


def words(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> Table:
    """A table of words only."""
    return table(columns, rows, title=title, left=len(columns))


class Progress:
    """How far long work is, on stderr: a bar in a terminal, elsewhere a line every 30 s, nothing when quiet."""

    def __init__(self, title: str, *, quiet: bool) -> None:
        self._title = title
        self._quiet = quiet
        self._bar: RichProgress | None = None
        self._began = self._spoke = time.monotonic()
        if not quiet and sys.stderr.isatty():
            self._bar = RichProgress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[count]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(title, total=None, count="", note="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` are done; `note` says what is worth knowing meanwhile."""
        now = time.monotonic()
        rate = done / max(now - self._began, 1e-9)
        pace = f"{rate:,.0f}/s" if rate >= 1.0 else f"{60.0 * rate:,.0f}/min"
        count = f"{done:,}/{total:,} ({pace})"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, count=count, note=note)
        elif not self._quiet and now - self._spoke >= SECONDS_BETWEEN_LINES:
            self._spoke = now
            left = f", about {(total - done) / rate:,.0f} s left" if done else ""
            print(f"{self._title}: {count}{left}{'; ' + note if note else ''}", file=sys.stderr)

    def say(self, line: str) -> None:
        """One line that stays, above the bar."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        elif not self._quiet:
            print(f"{self._title}: {line}", file=sys.stderr)


# -- numbers as people read them -----------------------------------------------------------------------------------


def percent(fraction: float | None, digits: int = 2) -> str:
    """0.0512 -> '5.12 %'; what is undefined is a dash."""
    return "-" if fraction is None else f"{to_percent(fraction):z,.{digits}f} %"


def usd(amount: float | None, digits: int = 2) -> str:
    """10123.456 -> '10,123.46'."""
    return "-" if amount is None else f"{amount:z,.{digits}f}"


def number(value: float | None, digits: int = 2) -> str:
    """A plain number with thousands separators."""
    return "-" if value is None else f"{value:z,.{digits}f}"


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError


def count(number: int, word: str) -> str:
    """1, 'file' -> '1 file'; 1200, 'file' -> '1,200 files'."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"
