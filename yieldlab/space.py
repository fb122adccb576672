"""Parameter grids: axes of values, their combinations as rows, samples of them, and ids made from content."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from yieldlab.errors import UsageError, did_you_mean

#: What one parameter may be. None means "not set".
Value = int | float | str | bool | None

#: Values that one parameter takes at most when they are typed, so that a range without end is not made.
LONGEST_RANGE = 100_000

#: Combinations that a grid has at most where they are numbered.
_MOST_ROWS = 2**63 - 1

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(\d+))?")


@dataclass(frozen=True, slots=True, init=False)
class Grid:
    """Axes in order, each with one or more values; the first value of an axis is its default.

    >>> grid = Grid(lookback=[7, 30], risk=[0.0, 0.5])
    >>> len(grid), grid.defaults(), grid.row(3)
    (4, {'lookback': 7, 'risk': 0.0}, {'lookback': 30, 'risk': 0.5})
    """

    axes: Mapping[str, tuple[Value, ...]]

    def __init__(self, /, **axes: Sequence[Value] | Value) -> None:
        """Take `name=[value, ...]` or `name=value` per axis. Raises UsageError for an empty or repeating axis."""
        checked: dict[str, tuple[Value, ...]] = {}
        for name, values in axes.items():
            listed = (values,) if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) else values
            axis = tuple(_plain(name, value) for value in listed)
            if not axis:
                raise UsageError(f"axis {name!r} of the grid is empty; give it at least one value")
            if len({canonical(value) for value in axis}) < len(axis):
                shown = ", ".join(map(str, axis[:20])) + (", ..." if len(axis) > 20 else "")
                raise UsageError(f"axis {name!r} of the grid repeats a value: {shown}")
            checked[name] = axis
        object.__setattr__(self, "axes", checked)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[dict[str, Value]]:
        return (self.row(index) for index in range(self.size))

    @property
    def size(self) -> int:
        """The number of combinations, also where it is larger than `len` can tell."""
        return math.prod(len(values) for values in self.axes.values())

    def defaults(self) -> dict[str, Value]:
        """The first value of every axis."""
        return {name: values[0] for name, values in self.axes.items()}

    def row(self, index: int) -> dict[str, Value]:
        """Combination `index`; the last axis turns fastest."""
        if not 0 <= index < self.size:
            raise IndexError(index)
        picked: dict[str, Value] = {}
        for name, values in reversed(list(self.axes.items())):
            index, position = divmod(index, len(values))
            picked[name] = values[position]
        return {name: picked[name] for name in self.axes}

    def frame(self, rows: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]] | None = None) -> pl.DataFrame:
        """One row per combination (of `rows`, or all), one column per axis; None becomes null."""
        index = np.arange(self.size) if rows is None else np.asarray(rows, dtype=np.int64)
        columns: dict[str, pl.Series] = {}
        stride = 1
        for name, values in reversed(list(self.axes.items())):
            positions = (index // stride) % len(values)
            columns[name] = column(name, values).gather(pl.Series(positions))
            stride *= len(values)
        if not columns:
            return pl.DataFrame(height=index.size)
        return pl.DataFrame([columns[name] for name in self.axes])

    def sample(self, count: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """`count` different rows drawn evenly with `seed`, ascending; all of them when there are no more."""
        if count < 1:
            raise UsageError(f"a sample must have at least 1 trial, not {count}")
        size = self.size
        check_size(size)
        if count >= size:
            return np.arange(size)
        generator = np.random.default_rng(seed)
        if count * 3 >= size:
            return np.sort(generator.permutation(size)[:count])
        drawn = np.unique(generator.integers(0, size, count))
        while drawn.size < count:
            drawn = np.unique(np.concatenate([drawn, generator.integers(0, size, count - drawn.size)]))
        return drawn

    def with_axes(self, axes: Mapping[str, Sequence[Value]]) -> Grid:
        """This grid with these axes put in place of those of the same name, or added at the end."""
        return Grid(**{**self.axes, **{name: tuple(values) for name, values in axes.items()}})


def parse_axis(text: str) -> tuple[str, tuple[Value, ...]]:
    """`"top_n=1,3,5"` -> `("top_n", (1, 3, 5))`; whole numbers may be a range, `1..8` or `10..90..20`, ends included.

    >>> parse_axis("min_apy=none,0.01"), parse_axis("every=1..3")
    (('min_apy', (None, 0.01)), ('every', (1, 2, 3)))
    """
    name, equals, listed = text.partition("=")
    name = name.strip()
    if not equals or not name or not listed.strip():
        raise UsageError(f"cannot read {text!r}; write it as name=value or name=value,value")
    values: list[Value] = []
    for part in listed.split(","):
        part = part.strip()
        if not part:
            raise UsageError(f"cannot read {text!r}: an empty value between commas")
        span = _RANGE.fullmatch(part)
        if span:
            low, high, step = int(span[1]), int(span[2]), int(span[3] or 1)
            if high < low or step < 1:
                raise UsageError(f"cannot read {part!r} in {text!r}; a range goes up, as 1..8 or 10..90..20")
            many = len(values) + (high - low) // step + 1
            if many > LONGEST_RANGE:
                raise UsageError(
                    f"{text!r} has {many:,} values and a parameter takes at most {LONGEST_RANGE:,}; "
                    "give the range a step, as 10..90..20"
                )
            values.extend(range(low, high + 1, step))
        else:
            values.append(parse_value(part))
    return name, tuple(values)


def parse_value(text: str) -> Value:
    """A value as typed on the command line: none, true, false, a whole number, a finite number, or text."""
    word = text.strip()
    constant = {"none": None, "null": None, "true": True, "false": False}
    if word.lower() in constant:
        return constant[word.lower()]
    for kind in (int, float):
        try:
            number = kind(word)
        except ValueError:
            continue
        if not math.isfinite(number):
            raise UsageError(f"{text!r} is not a finite number")
        return number
    return word


def alike(name: str, value: Value, pattern: Value) -> Value:
    """`value` in the type of `pattern` (the axis's default): 1 becomes 1.0 on an axis of numbers with a fraction.

    Raises UsageError when that would change what was meant.
    """
    if pattern is None or value is None or type(value) is type(pattern):
        return value
    if isinstance(pattern, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(pattern, int) and not isinstance(pattern, bool) and isinstance(value, float):
        if value.is_integer():
            return int(value)
        return value
    if isinstance(pattern, str):
        return str(value)
    raise UsageError(f"parameter {name!r} takes a {_KINDS[type(pattern)]}, not {value!r}")


def check_known(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise UsageError for the first of `names` that is not `known`, with the nearest one."""
    for name in names:
        if name not in known:
            raise UsageError(f"unknown {kind} {name!r}{did_you_mean(name, known)}")


def check_size(combinations: int) -> None:
    """Raise UsageError when there are more combinations than can be numbered."""
    if combinations > _MOST_ROWS:
        raise UsageError(
            f"the grid has {combinations:,} combinations; a grid has at most {_MOST_ROWS:,}, also for a sample of it: "
            "give fewer values"
        )


def canonical(value: Value) -> str:
    """One text per parameter value: 1 and 1.0 are the same number, -0.0 is 0; 1, true and the word "1" are three."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value)


def trial_ids(strategy: str, texts: Mapping[str, Sequence[str]]) -> pl.Series:
    """(R,) sixteen hexadecimal digits made from the strategy's name and each row's parameters, whatever their order.

    `texts` has, for each parameter, the R `canonical` values.
    """
    names = sorted(texts)
    stem = json.dumps([strategy, names]).encode()
    base = hashlib.blake2b(stem, digest_size=8)
    ids: list[str] = []
    for row in zip(*(texts[name] for name in names), strict=True):
        hasher = base.copy()
        hasher.update("\x1f".join(row).encode())
        ids.append(hasher.hexdigest())
    return pl.Series("trial_id", ids, dtype=pl.String)


def column(name: str, values: Sequence[Value]) -> pl.Series:
    """The values of one axis as a typed column: whole numbers Int64, mixed numbers Float64, anything mixed String."""
    present = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in present) or len({isinstance(v, bool) for v in present}) > 1:
        return pl.Series(name, [None if value is None else str(value) for value in values], dtype=pl.String)
    if present and all(isinstance(value, bool) for value in present):
        return pl.Series(name, list(values), dtype=pl.Boolean)
    if any(isinstance(value, float) for value in present) or not present:
        return pl.Series(name, [None if value is None else float(value) for value in values], dtype=pl.Float64)
    return pl.Series(name, list(values), dtype=pl.Int64)


_KINDS = {int: "whole number", float: "number", bool: "true or false", str: "word"}


def _plain(name: str, value: object) -> Value:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UsageError(f"axis {name!r} of the grid has {value}; whole numbers lie within 64 bits")
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value + 0.0  # one zero only
    raise UsageError(f"axis {name!r} of the grid has {value!r}; values are finite numbers, words, true, false or None")
