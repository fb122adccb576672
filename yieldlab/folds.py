"""On which rows does a model learn, and on which later ones is it tried, so that neither knows of the other?

Rows are the days of a panel and `(begin, end)` is the half-open range of them. A training row is the day at which a
sample's window *ends*; its label is read `horizon` rows later. So `purge` rows before what is predicted are left out:
with `purge >= horizon` no label reaches into it. `embargo` rows more keep what still echoes apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from yieldlab.errors import DataError, UsageError, did_you_mean

__all__ = ["MODES", "Fold", "Rows", "Split", "check_purge", "chronological", "inner", "walk_forward"]

#: Row numbers from the first to before the last.
Rows = tuple[int, int]

#: Whether a fold learns from a window of fixed length or from all that lies before it.
MODES = ("rolling", "expanding")


@dataclass(frozen=True, slots=True)
class Fold:
    """One step of a walk forward: learn on the rows of `train`, then forecast those of `predict`."""

    number: int
    train: Rows
    predict: Rows


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to fit on, rows to choose by, and rows that neither has seen, in this order of time."""

    train: Rows
    valid: Rows
    test: Rows


def walk_forward(
    times: int,
    *,
    mode: str = "rolling",
    train: int = 365,
    step: int = 30,
    purge: int = 7,
    embargo: int = 7,
    first: int | None = None,
) -> list[Fold]:
    """The folds of a panel of `times` rows: each predicts the next `step` rows, the first one from row `first` on.

    Without `first` it is the earliest row that has `train` training rows before it. Training rows end `purge` plus
    `embargo` rows before the first row predicted; a rolling fold has the last `train` of them, an expanding one all. A
    longer panel has the same folds and more, but that the last one of the shorter is cut off at its end.

    Raises UsageError for a mode or a size that cannot be, DataError when the panel is too short for one fold.

    >>> walk_forward(31, train=10, step=9, purge=2, embargo=1)[0]
    Fold(number=0, train=(0, 10), predict=(13, 22))
    >>> walk_forward(31, train=10, step=9, purge=2, embargo=1)[1]
    Fold(number=1, train=(9, 19), predict=(22, 31))
    """
    if mode not in MODES:
        raise UsageError(f"unknown folds {mode!r}{did_you_mean(str(mode), MODES)}")
    _whole("times", times, 0)
    _whole("train", train, 1)
    _whole("step", step, 1)
    gap = _whole("purge", purge, 0) + _whole("embargo", embargo, 0)
    begin = train + gap if first is None else _whole("first", first, 0)
    if begin <= gap:
        raise UsageError(
            f"the first row predicted must lie after a training row and the {gap} rows of purge and embargo, "
            f"so it is {gap + 1} or later, not {begin}"
        )
    if times <= begin:
        raise DataError(
            f"no fold fits: the first one predicts from row {begin} on, which needs at least {begin + 1} days of "
            f"history, and the panel has {times}; a shorter train, purge or embargo needs fewer"
        )
    folds = []
    for number, start in enumerate(range(begin, times, step)):
        end = start - gap
        learned = (max(0, end - train), end) if mode == "rolling" else (0, end)
        folds.append(Fold(number, learned, (start, min(start + step, times))))
    return folds


def check_purge(purge: int, horizon: int) -> None:
    """Raise UsageError unless `purge` rows keep labels `horizon` rows ahead out of what follows."""
    if _whole("purge", purge, 0) < _whole("horizon", horizon, 1):
        raise UsageError(
            f"a purge of {purge} days is shorter than the horizon of {horizon}: labels would reach into what is "
            f"predicted; give {horizon} or more"
        )


def chronological(times: int, shares: Sequence[float] = (0.8, 0.1, 0.1), *, purge: int = 7, begin: int = 0) -> Split:
    """The rows from `begin` on cut by date, the same for every pool, into train, validation and test.

    The shares are cut to the nearest row; train and validation then end `purge` rows before what follows them.

    Raises UsageError for shares that are not three above 0 with the sum 1, DataError when a part would have no row.

    >>> chronological(100, purge=7)
    Split(train=(0, 73), valid=(80, 83), test=(90, 100))
    """
    _whole("times", times, 0)
    _whole("purge", purge, 0)
    _whole("begin", begin, 0)
    numbers = tuple(shares)
    if len(numbers) != 3 or not all(share > 0.0 for share in numbers) or not math.isclose(sum(numbers), 1.0):
        raise UsageError(f"shares of train, validation and test must be three above 0 that add up to 1, not {shares!r}")
    rows = max(0, times - begin)
    middle = begin + round(rows * numbers[0])
    last = begin + round(rows * (numbers[0] + numbers[1]))
    split = Split((begin, middle - purge), (middle, last - purge), (last, times))
    for name, part in (("train", split.train), ("validation", split.valid), ("test", split.test)):
        if part[0] >= part[1]:
            raise DataError(
                f"{rows} days of history leave no row for {name}, with shares of {', '.join(map(str, numbers))} and "
                f"{purge} days of purge; a longer history or a shorter purge is needed"
            )
    return split


def inner(train: Rows, share: float = 0.15, *, purge: int = 7) -> tuple[Rows, Rows]:
    """`(fit, valid)` of training rows: validation is the last `share` of them, to the nearest row, and what is fitted
    ends `purge` rows before it.

    Raises UsageError for a share outside (0, 1), DataError when either would have no row.

    >>> inner((0, 100), 0.15, purge=7)
    ((0, 78), (85, 100))
    """
    _whole("purge", purge, 0)
    if not 0.0 < share < 1.0:
        raise UsageError(f"the share of validation must lie between 0 and 1, not {share!r}")
    begin, end = train
    start = end - round(max(0, end - begin) * share)
    if start >= end or start - purge <= begin:
        raise DataError(
            f"{max(0, end - begin)} training rows cannot be cut into rows to fit on, {purge} rows of purge and a share "
            f"of {share} for validation; train on more rows"
        )
    return (begin, start - purge), (start, end)


def _whole(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} must be a whole number of days, {least} or more, not {value!r}")
    return value
