"""Which strategy files there are, which one a name means, and what a new one looks like."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from yieldlab.errors import UsageError, did_you_mean
from yieldlab.strategy._file import Strategy, load


@dataclass(frozen=True, slots=True)
class Found:
    """One file of a strategies folder: `state` is OK, LOAD FAILED or DUPLICATE, `detail` says why in one line."""

    name: str
    path: Path
    state: str
    detail: str
    strategy: Strategy | None


def discover(folders: Iterable[str | Path]) -> list[Found]:
    """Every `*.py` of the folders whose name does not begin with `_`, by folder, then name.

    A broken file is listed with its reason and costs the others nothing; of two files with one name, the one in the
    earlier folder counts. A folder that does not exist has none.
    """
    first: dict[str, Path] = {}
    found = []
    for path in _files(folders):
        name = path.stem
        if name in first:
            found.append(Found(name, path, "DUPLICATE", f"not used: {first[name]} comes first", None))
            continue
        first[name] = path
        try:
            found.append(Found(name, path, "OK", "", load(path)))
        except UsageError as error:
            found.append(Found(name, path, "LOAD FAILED", str(error), None))
    return found


def find(name_or_path: str | Path, folders: Iterable[str | Path]) -> Strategy:
    """The strategy of this name in the first folder that has it, or in the file of this path, which ends in `.py`.

    Raises UsageError with the nearest names when there is none.
    """
    text = str(name_or_path)
    if text.endswith(".py"):
        path = Path(text).expanduser()
        if not path.is_file():
            near = did_you_mean(path.stem, {file.stem for file in _files([path.parent])})
            raise UsageError(f"there is no strategy file {path}{near}")
        return load(path)
    named: dict[str, Path] = {}
    for path in _files(folders):
        named.setdefault(path.stem, path)
    if text not in named:
        raise UsageError(f"unknown strategy {text!r}{did_you_mean(text, named)}")
    return load(named[text])


def bundled_folder() -> Path:
    """Where the strategies that come with yieldlab are: in the package, or beside it in a working copy."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_bundled" / "strategies", package.parent / "strategies"):
        if folder.is_dir():
            return folder
    raise UsageError(f"the bundled strategies are not in {package}; install yieldlab again")


def template(name: str) -> str:
    """The text of a new strategy file that works as it stands."""
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise UsageError(f"{name!r} cannot name a strategy; use letters, digits and _, beginning with a letter")
    return _TEMPLATE.replace("NAME", name)


_TEMPLATE = '''\
"""NAME: hold the pools whose yield has risen most.

Say here, in a line or two, why it should work.
"""

import numpy as np

from yieldlab import Grid, Panel
from yieldlab.features import change, rolling_mean

# Panel fields that the signal reads.
NEEDS = ("apy",)

# Rows that must lie before the first decision: a number, or the parameter that gives it.
WARMUP = "lookback"

# The parameters of signal(). The first value of an axis is its default; a sweep tries all combinations.
SIGNAL = Grid(lookback=[7, 30], horizon=[7, 14])

# How the signal is traded: any policy parameter, held to its range when the file is loaded.
POLICY = Grid(top_n=[3, 5], every=[7, 30])


def signal(panel: Panel, lookback: int, horizon: int) -> np.ndarray:
    """(T, N), higher is better, NaN = no view. Row t may read rows up to t and no later one."""
    smooth = rolling_mean(panel["apy"], lookback)
    return change(smooth, horizon)
'''


def _files(folders: Iterable[str | Path]) -> Iterator[Path]:
    for folder in dict.fromkeys(Path(folder).expanduser().resolve() for folder in folders):
        if folder.is_dir():
            files = (path for path in folder.glob("*.py") if not path.is_dir() and not path.name.startswith("_"))
            yield from sorted(files)
