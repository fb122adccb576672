"""Policies: how a trial trades, as records of plain numbers; names, defaults and ranges in one table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from yieldlab.errors import UsageError
from yieldlab.space import Value, check_known

#: The largest whole number that a parameter takes: an "at most" that never binds.
LARGEST = 2**31 - 1

#: Words of a parameter, in the order of their codes.
WEIGHTINGS = ("equal", "score", "tvl", "signal")
ON_EMPTY = ("cash", "hold")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One policy parameter: its default, what values it takes, and what it means in one line."""

    default: Value
    kind: type
    meaning: str
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    words: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """The accepted values as people read them."""
        if self.words:
            return ", ".join(self.words)
        if math.isinf(self.low) and math.isinf(self.high):
            return "of any size"
        if math.isinf(self.high):
            return f"{'>' if self.low_open else '>='} {self.low:g}"
        return f"{'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"


#: Every policy parameter. `None` (stored as NaN) means that the limit is not set.
PARAMETERS: Mapping[str, Parameter] = MappingProxyType(
    {
        "top_n": Parameter(3, int, "pools held at most", low=1),
        "every": Parameter(7, int, "bars between rebalance bars", low=1),
        "lag": Parameter(0, int, "decide on the row this many bars earlier", low=0),
        "warmup": Parameter(0, int, "panel rows that must lie before the row decided on", low=0),
        "min_apy": Parameter(None, float, "least APY of an eligible pool (fraction)"),
        "min_tvl": Parameter(None, float, "least TVL of an eligible pool (USD)"),
        "weighting": Parameter("equal", str, "how the chosen pools share the capital", words=WEIGHTINGS),
        "power": Parameter(1.0, float, "exponent of score and tvl weights", low=0.0, low_open=True),
        "max_weight": Parameter(1.0, float, "cap of one pool's weight", low=0.0, high=1.0, low_open=True),
        "persistence": Parameter(0.0, float, "ranking bonus of pools held (fraction of a positive signal)", low=0.0),
        "min_turnover": Parameter(0.0, float, "smaller rebalances are skipped", low=0.0, high=1.0),
        "cost": Parameter(0.001, float, "share of every deposit and withdrawal", low=0.0, high=1.0, high_open=True),
        "gas_usd": Parameter(0.0, float, "USD per pool traded", low=0.0),
        "on_empty": Parameter("cash", str, "what to do when nothing is eligible", words=ON_EMPTY),
    }
)

POLICY = np.dtype(
    [(name, np.int64 if parameter.kind is not float else np.float64) for name, parameter in PARAMETERS.items()],
    align=True,
)


def policies(trials: pl.DataFrame | list[dict[str, Value]] | dict[str, Value] | None = None) -> NDArray[np.void]:
    """(R,) records from a table, a list of dicts or one dict; parameters not named take their default.

    Raises UsageError for an unknown name (with the nearest) and for a value outside its range.

    >>> policies({"top_n": 5})["top_n"][0], policies()["every"][0]
    (np.int64(5), np.int64(7))
    """
    if isinstance(trials, pl.DataFrame):
        return _records(trials.height, {name: _column(name, trials[name]) for name in _known(trials.columns)})
    rows = [trials or {}] if trials is None or isinstance(trials, dict) else trials
    names = _known(dict.fromkeys(name for row in rows for name in row))
    listed = {name: [row.get(name, PARAMETERS[name].default) for row in rows] for name in names}
    return _records(
        len(rows), {name: [_number(name, PARAMETERS[name], value) for value in listed[name]] for name in names}
    )


def checked(records: NDArray[np.void]) -> NDArray[np.void]:
    """(R,) records as the kernel takes them: contiguous, and every value within its range.

    Raises UsageError for anything but a row of `POLICY` records, and for a value out of range.
    """
    if getattr(records, "dtype", None) != POLICY or records.ndim != 1:
        raise UsageError("policies must be records as yieldlab.simulate.policy.policies makes them")
    for name, parameter in PARAMETERS.items():
        column = records[name]
        low, high = (0, len(parameter.words) - 1) if parameter.words else (parameter.low, parameter.high)
        high = min(high, LARGEST) if parameter.kind is int else high
        below = column <= low if parameter.low_open else column < low
        above = column >= high if parameter.high_open else column > high
        bad = below | above | np.isinf(column) | (np.isnan(column) if parameter.default is not None else False)
        if bool(np.any(bad)):
            raise UsageError(
                f"policy {np.argmax(bad)} has {name} {column[np.argmax(bad)]}; it must be {parameter.range}"
            )
    return records.copy()


def check_value(name: str, value: Value) -> None:
    """Raise UsageError unless `value` is one that policy parameter `name` takes."""
    check_known("policy parameter", [name], list(PARAMETERS))
    _number(name, PARAMETERS[name], value)


def _known(names: Iterable[str]) -> list[str]:
    listed = list(names)
    check_known("policy parameter", listed, list(PARAMETERS))
    return listed


def _records(height: int, columns: Mapping[str, ArrayLike]) -> NDArray[np.void]:
    records = np.empty(height, dtype=POLICY)
    for name, parameter in PARAMETERS.items():
        records[name] = columns[name] if name in columns else _number(name, parameter, parameter.default)
    return records


def _column(name: str, values: pl.Series) -> ArrayLike:
    """A column as the kernel's numbers; each distinct value is looked at once."""
    distinct = values.unique()
    numbers = {value: _number(name, PARAMETERS[name], value) for value in distinct.to_list()}
    empty = numbers.pop(None, None)
    kind = pl.Int64 if POLICY[name] == np.int64 else pl.Float64
    mapped = values.replace_strict(list(numbers), list(numbers.values()), default=None, return_dtype=kind)
    return (mapped if empty is None else mapped.cast(pl.Float64).fill_null(empty)).to_numpy()


def _number(name: str, parameter: Parameter, value: Value) -> float:
    if parameter.words:
        if value not in parameter.words:
            check_known(f"value of {name}", [str(value)], parameter.words)
        return parameter.words.index(str(value))
    if value is None:
        if parameter.default is None:
            return math.nan
        raise UsageError(f"{name} must be {_kind(parameter)} {parameter.range}, not none")
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not math.isfinite(value)
        or (parameter.kind is int and value != int(value))
    ):
        raise UsageError(f"{name} must be {_kind(parameter)} {parameter.range}, not {value!r}")
    below = value < parameter.low or (parameter.low_open and value == parameter.low)
    above = value > parameter.high or (parameter.high_open and value == parameter.high)
    if parameter.kind is int and value > LARGEST:
        raise UsageError(f"{name} must be at most {LARGEST}, not {value}")
    if below or above:
        raise UsageError(f"{name} must be {_kind(parameter)} {parameter.range}, not {value}")
    return value


def _kind(parameter: Parameter) -> str:
    return "a whole number" if parameter.kind is int else "a number"
