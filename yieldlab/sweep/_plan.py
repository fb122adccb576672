"""Which trials a sweep has: its axes, the order of work, and what each trial's parameters are.

The order puts everything that is dear to make on the outside: staleness (which changes the carried panel), the signal's
parameters, accrual, then the policy with `cost` turning fastest, since the kernel computes trials that differ only in
cost together. A plan is row numbers of a grid; its table is made a slice at a time.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab import market as markets
from yieldlab.backtest import checked, kind_of
from yieldlab.errors import DataError, MemoryLimitError, UsageError
from yieldlab.simulate.policy import PARAMETERS, POLICY, policies
from yieldlab.space import Grid, Value, canonical, check_size, trial_ids
from yieldlab.strategy import Strategy

Ints = NDArray[np.int64]

#: Bytes that one trial takes in memory in the plan and, as one row, in the table of results.
PLAN_BYTES = 8
ROW_BYTES = 400


@dataclass(frozen=True, slots=True)
class Conditions:
    """What all trials of a sweep share beside the panel: USD at the start, the days simulated, the risk-free rate."""

    capital: float = 10_000.0
    start: date | None = None
    end: date | None = None
    risk_free: float = 0.0


class Point(NamedTuple):
    """Trials begin .. end - 1 of a plan, which share one market and one signal."""

    begin: int
    end: int
    market: Mapping[str, Value]
    signal: Mapping[str, Value]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The trials of a sweep and the conditions that all share. `rows` (R,) are combinations of `grid`, ascending."""

    strategy: Strategy
    grid: Grid
    rows: Ints = field(repr=False)
    sample: int | None
    seed: int
    conditions: Conditions

    def __len__(self) -> int:
        return int(self.rows.size)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters' columns, in the order of tables: market, signal, policy."""
        return (*markets.DEFAULTS, *self.strategy.signal_grid.axes, *PARAMETERS)

    @property
    def fields(self) -> tuple[str, ...]:
        """Every panel field that some trial's signal reads; simulation needs `apy` and `tvl_usd` beside them."""
        parts = [part for template in self.strategy.needs for part in string.Formatter().parse(template)]
        filled = {placeholder for _, placeholder, _, _ in parts if placeholder is not None}
        signal = Grid(**{name: axis for name, axis in self.signal_grid.axes.items() if name in filled})
        return tuple(dict.fromkeys(name for params in signal for name in self.strategy.fields(params)))

    @property
    def signal_grid(self) -> Grid:
        """The signal's parameters as this plan varies them."""
        return Grid(**{name: self.grid.axes[name] for name in self.strategy.signal_grid.axes})

    @property
    def signals(self) -> Ints:
        """The rows of `signal_grid` that some trial uses, ascending."""
        return np.unique(self.rows // (self._policies * len(self.grid.axes["accrual"])) % self.signal_grid.size)

    @property
    def config(self) -> dict[str, object]:
        """What decides the numbers beside strategy and panel, in JSON values; `from_config` makes the plan again."""
        return {
            "axes": {name: list(values) for name, values in self.grid.axes.items()},
            "sample": self.sample,
            "seed": self.seed,
            "capital": self.conditions.capital,
            "start": None if self.conditions.start is None else self.conditions.start.isoformat(),
            "end": None if self.conditions.end is None else self.conditions.end.isoformat(),
            "risk_free": self.conditions.risk_free,
        }

    def frame(self, begin: int, end: int) -> pl.DataFrame:
        """Trials begin .. end - 1 as a table: trial_id, then `parameters`."""
        rows = self.rows[begin:end]
        table = self.grid.frame(rows)
        texts = {name: self._texts(name, rows) for name in self.grid.axes}
        if "warmup" not in table.columns:
            table = table.with_columns(pl.col(str(self.strategy.warmup)).cast(pl.Int64).alias("warmup"))
            texts["warmup"] = texts[str(self.strategy.warmup)]
        return table.select(self.parameters).insert_column(0, trial_ids(self.strategy.name, texts))

    def records(self, begin: int, end: int) -> NDArray[np.void]:
        """The policies of trials begin .. end - 1, for the kernel."""
        rows = self.rows[begin:end]
        records = np.empty(rows.size, dtype=POLICY)
        for name in PARAMETERS:
            axis = name if name in self.grid.axes else str(self.strategy.warmup)
            listed = self.grid.axes[axis]
            positions = (rows // self._stride(axis)) % len(listed)
            if len(listed) > rows.size:  # of a long axis, only what is used
                used, positions = np.unique(positions, return_inverse=True)
                listed = tuple(listed[position] for position in used)
            records[name] = policies([{name: value} for value in listed])[name][positions]
        return records

    def points(self, begin: int, end: int) -> Iterator[Point]:
        """Trials begin .. end - 1 in stretches that share market and signal."""
        size = self._policies
        number = self.rows[begin:end] // size
        starts = np.flatnonzero(np.diff(number, prepend=-1))
        for first, last in zip(starts, np.append(starts[1:], number.size), strict=True):
            params = self.grid.row(int(number[first]) * size)
            yield Point(
                begin + int(first),
                begin + int(last),
                {name: params[name] for name in markets.DEFAULTS},
                {name: params[name] for name in self.strategy.signal_grid.axes},
            )

    @property
    def markets(self) -> list[dict[str, Value]]:
        """Every combination of market parameters in the full grid."""
        axes = [self.grid.axes[name] for name in markets.DEFAULTS]
        return [dict(zip(markets.DEFAULTS, values, strict=True)) for values in itertools.product(*axes)]

    def distinct(self) -> tuple[int, int]:
        """How many signals and how many markets the trials need."""
        number = self.rows // self._policies
        signals = number // self._builds
        prepared = self.rows // self._stride(markets.PREPARING[-1])
        return int(np.unique(signals).size), int(np.unique(prepared * self._builds + number % self._builds).size)

    def bounds(self, size: int, points: int) -> Ints:
        """(C + 1,) where chunks begin and end: at most `size` trials on at most `points` pairs of market and signal."""
        number = self.rows // self._policies
        fresh = np.append(np.flatnonzero(np.diff(number, prepend=-1)), len(self))
        bounds = [0]
        while bounds[-1] < len(self):
            within = int(np.searchsorted(fresh, bounds[-1], side="right")) - 1
            bounds.append(min(bounds[-1] + size, int(fresh[min(within + points, fresh.size - 1)])))
        return np.array(bounds, dtype=np.int64)

    def number(self, trial: int) -> int:
        """Which pair of prepared panel and signal a trial rests on: one number for each."""
        return int(self.rows[trial]) // (self._policies * self._builds)

    def _texts(self, name: str, rows: Ints) -> list[str]:
        """The canonical text of a parameter in each of these rows, made from its own value."""
        values = self.grid.axes[name]
        positions = ((rows // self._stride(name)) % len(values)).tolist()
        texts = {position: canonical(values[position]) for position in set(positions)}
        return [texts[position] for position in positions]

    @property
    def _policies(self) -> int:
        """Policies of one point in the full grid."""
        return self._stride(markets.BUILDING[-1])

    @property
    def _builds(self) -> int:
        """Markets of one prepared panel in the full grid."""
        return math.prod(len(self.grid.axes[name]) for name in markets.BUILDING)

    def _stride(self, name: str) -> int:
        names = list(self.grid.axes)
        return math.prod(len(self.grid.axes[after]) for after in names[names.index(name) + 1 :])


def plan(
    strategy: Strategy,
    grid: Mapping[str, Sequence[Value]] | None = None,
    *,
    sample: int | None = None,
    seed: int = 0,
    capital: float = 10_000.0,
    start: date | None = None,
    end: date | None = None,
    risk_free: float = 0.0,
    defaults: Mapping[str, Value] | None = None,
    max_memory: int | None = None,
) -> Plan:
    """All combinations of the strategy's two grids, with the axes of `grid` in place of or beside them; of them, an
    even `sample`. Parameters without an axis take `defaults` (settings), else yieldlab's own; the strategy's warm-up
    becomes the policy's.

    Raises UsageError for a name or value that does not exist, with the nearest one, and MemoryLimitError when the
    results would not fit into `max_memory` bytes.
    """
    axes: dict[str, tuple[Value, ...]] = {name: (value,) for name, value in markets.DEFAULTS.items()}
    axes |= {name: (parameter.default,) for name, parameter in PARAMETERS.items() if name != "warmup"}
    if isinstance(strategy.warmup, int):
        axes["warmup"] = (strategy.warmup,)
    axes |= {name: (value,) for name, value in (defaults or {}).items()}
    axes |= {name: tuple(values) for name, values in strategy.signal_grid.axes.items()}
    axes |= {name: tuple(values) for name, values in strategy.policy_grid.axes.items()}
    axes |= {name: tuple(values) for name, values in (grid or {}).items()}
    for name in axes:
        kind_of(strategy, name)
    _check_size(math.prod(max(1, len(values)) for values in axes.values()), sample, max_memory)
    typed = {name: tuple(checked(strategy, name, value) for value in values) for name, values in axes.items()}
    for values in itertools.product(*(typed[name] for name in markets.DEFAULTS)):
        markets.check_together(dict(zip(markets.DEFAULTS, values, strict=True)))
    if isinstance(strategy.warmup, str):
        for value in typed[strategy.warmup]:
            strategy.warmup_rows({strategy.warmup: value})
    return _plan(strategy, _in_order(strategy, typed), sample, seed, Conditions(capital, start, end, risk_free))


def from_config(strategy: Strategy, config: Mapping[str, Any]) -> Plan:
    """The plan whose `config` this is. Raises DataError when it is of no plan for this strategy."""
    try:
        axes = {name: tuple(values) for name, values in config["axes"].items()}
        start, end = (None if config[name] is None else date.fromisoformat(config[name]) for name in ("start", "end"))
        conditions = Conditions(config["capital"], start, end, config["risk_free"])
        return _plan(strategy, _in_order(strategy, axes), config["sample"], config["seed"], conditions)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the run's configuration describes no sweep of strategy {strategy.name!r}: {error}") from error


def _plan(strategy: Strategy, grid: Grid, sample: int | None, seed: int, conditions: Conditions) -> Plan:
    if not (math.isfinite(conditions.capital) and conditions.capital > 0.0):
        raise UsageError(f"capital must be a positive number of USD, not {conditions.capital}")
    if not math.isfinite(conditions.risk_free):
        raise UsageError(f"risk_free must be a finite annual rate, not {conditions.risk_free}")
    check_size(grid.size)
    rows = np.arange(grid.size) if sample is None else grid.sample(sample, seed)
    rows.flags.writeable = False
    return Plan(strategy, grid, rows, sample, seed, conditions)


def size_text(count: float) -> str:
    """Bytes in the largest unit of which there is at least one."""
    unit, bytes_of = next((each for each in (("GB", 1e9), ("MB", 1e6)) if count >= each[1]), ("kB", 1e3))
    return f"{count / bytes_of:,.2f} {unit}"


def _check_size(combinations: int, sample: int | None, max_memory: int | None) -> None:
    check_size(combinations)
    trials = combinations if sample is None else min(sample, combinations)
    drawn = combinations if sample is not None and sample * 3 >= combinations else trials
    needed = trials * (PLAN_BYTES + ROW_BYTES) + drawn * PLAN_BYTES
    if max_memory is not None and needed > max_memory:
        raise MemoryLimitError(
            f"{trials:,} trials need {size_text(needed)} for their table, more than the limit of "
            f"{size_text(max_memory)}; take a --sample, fewer values in --grid or a larger --max-memory"
        )


def _in_order(strategy: Strategy, axes: Mapping[str, tuple[Value, ...]]) -> Grid:
    policy = [name for name in PARAMETERS if name in axes and name != "cost"]
    order = [*markets.PREPARING, *strategy.signal_grid.axes, *markets.BUILDING, *policy, "cost"]
    for name in axes:
        kind_of(strategy, name)
    return Grid(**{name: axes[name] for name in order})
