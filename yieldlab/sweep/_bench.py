"""The results of any stretch of a plan: each market and signal made once, its policies run together.

Which trials are asked for together, and on how many threads, changes no bit of their results.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab import simulate
from yieldlab._jit import thread_limit
from yieldlab.backtest import no_measures, path
from yieldlab.errors import DataError, MemoryLimitError, StrategyError
from yieldlab.market import BUILDING, PREPARING, Market, Markets
from yieldlab.panel import Panel
from yieldlab.simulate import Ledger, Ranking
from yieldlab.sweep._plan import PLAN_BYTES, ROW_BYTES, Plan, Point, size_text

T = TypeVar("T")

#: Most trials, and most pairs of market and signal, of one chunk: the unit that is written, resumed and stopped after.
CHUNK_TRIALS = 4_096
CHUNK_POINTS = 16

#: Stretches of trials that an estimate runs, and the trials of one.
PROBES = 4
PROBE_TRIALS = 256

#: Bytes per cell of the panel beside its fields: one market, one ranked signal, and what a strategy makes on the way.
_MARKET_BYTES = 20
_SIGNAL_BYTES = 68

#: Bytes per cell where delisted pools are not held on: when each market's pools die, and how that is found out.
_DEATH_BYTES = 4
_AGE_BYTES = 20


#: Stands for the digest of a signal that the strategy does not give.
NO_SIGNAL = "none"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a sweep will take. `peak_bytes` is memory above the panel's own observations; `seconds` comes from running a
    few of its trials."""

    trials: int
    signals: int
    markets: int
    chunks: int
    chunk_trials: int
    peak_bytes: int
    seconds: float


class Bench:
    """A plan and the panel it runs on."""

    def __init__(self, plan: Plan, panel: Panel, *, threads: int | None = None) -> None:
        """Raises DataError when the panel lacks a field or the days simulated, UsageError for a window of no bar."""
        self.plan = plan
        self.panel = panel
        self.threads = min(threads or thread_limit(), thread_limit())
        self.t_start, self.t_end = panel.window(plan.conditions.start, plan.conditions.end)
        for name in dict.fromkeys(("apy", *plan.fields)):
            panel.raw(name)
        self._markets = Markets(panel)
        self._signal: tuple[object, Ranking | str, str] = (None, "", "")
        self._known: dict[int, str] = {}
        self._refusal: StrategyError | DataError | None = None

    def market(self, point: Point) -> Market:
        """The market of these trials. Raises DataError when the data cannot be one."""
        return self._markets.market(point.market)

    def ranking(self, point: Point) -> Ranking | str:
        """The ranked signal of these trials, or why the strategy gives none."""
        market = self.market(point)
        key = (tuple(point.market[name] for name in PREPARING), tuple(point.signal.values()))
        if self._signal[0] != key:
            try:
                signal = self.plan.strategy.signal(self._markets.panel(point.market), point.signal)
                ranking: Ranking | str = simulate.rank(market, signal)
                digest = _digest(signal)
            except (StrategyError, DataError) as error:
                ranking, digest = str(error), NO_SIGNAL
                self._refusal = self._refusal or error
            self._hold(point, digest)
            self._signal = (key, ranking, digest)
        return self._signal[1]

    def digest(self, point: Point) -> str:
        """What tells the signal of these trials from any other; `NO_SIGNAL` when there is none."""
        self.ranking(point)
        return self._signal[2]

    def know(self, point: Point, digest: str) -> None:
        """From now on the signal of these trials is the one of this digest. Raises DataError when it already was
        another one, and from `ranking` when it is another one."""
        self._hold(point, digest)
        self._known[self.plan.number(point.begin)] = digest

    def _hold(self, point: Point, digest: str) -> None:
        if self._known.get(self.plan.number(point.begin), digest) != digest:
            params = ", ".join(f"{name}={value}" for name, value in point.signal.items())
            raise DataError(
                f"the signal of strategy {self.plan.strategy.name!r}{f' with {params}' if params else ''} has changed "
                "since the run began, and finished trials rest on the old one; put back what the strategy reads, or "
                "run the sweep anew"
            )

    def ledger(self, point: Point, ranking: Ranking, *, trace: bool = False) -> Ledger:
        """Simulate the trials of one point."""
        conditions = self.plan.conditions
        return simulate.run(
            self.market(point),
            ranking,
            self.plan.records(point.begin, point.end),
            capital=conditions.capital,
            t_start=self.t_start,
            t_end=self.t_end,
            risk_free=conditions.risk_free,
            threads=self.threads,
            trace=trace,
            keep_equity=trace,
        )

    def results(self, begin: int, end: int) -> tuple[pl.DataFrame, list[str]]:
        """Trials begin .. end - 1 as rows (trial_id, parameters, measures, and the reason of one that failed), and the
        digest of the signal of each of their points."""
        measures: list[pl.DataFrame] = []
        reasons: list[str | None] = []
        digests: list[str] = []
        for point in self.plan.points(begin, end):
            ranking = self.ranking(point)
            digests.append(self.digest(point))
            if isinstance(ranking, str):
                measures.append(no_measures(point.end - point.begin))
                reasons += [ranking] * (point.end - point.begin)
            else:
                ledger = self.ledger(point, ranking)
                measures.append(ledger.measures())
                reasons += ledger.reasons
        reason = pl.Series("reason", reasons, dtype=pl.String)
        rows = pl.concat([self.plan.frame(begin, end), pl.concat(measures)], how="horizontal").with_columns(reason)
        return rows, digests

    def traced(self, trial: int) -> tuple[Market, Ledger]:
        """One trial of the plan again, with its equity and its trades."""
        point = next(self.plan.points(trial, trial + 1))
        ranking = self.ranking(point)
        if isinstance(ranking, str):
            raise StrategyError(ranking)
        return self.market(point), self.ledger(point, ranking, trace=True)

    def paths(self, trials: list[int]) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Equity (trial_id, time, equity_usd) and trades (trial_id, time, pool_id, amount_usd, cost_usd, gas_usd,
        written_off_usd) of these trials of the plan, in their order."""
        made: dict[int, tuple[pl.DataFrame, pl.DataFrame]] = {}
        for trial in sorted(trials):  # in the plan's order each signal is made once
            _, ledger = self.traced(trial)
            name = self.plan.frame(trial, trial + 1)["trial_id"][0]
            trades = ledger.trades.select(pl.lit(name).alias("trial_id"), pl.exclude("trial", "row", "pool"))
            made[trial] = path(ledger, 0, trial_id=name).select("trial_id", "time", "equity_usd"), trades
        return pl.concat(made[trial][0] for trial in trials), pl.concat(made[trial][1] for trial in trials)

    def first_signal(self) -> None:
        """Raise the first reason, as strategy or data gave it, when there is no signal for any of the trials."""
        if not any(not isinstance(self.ranking(point), str) for point in self.plan.points(0, len(self.plan))):
            raise self._refusal or StrategyError("the sweep has no trial")

    def peak_bytes(self, chunk_trials: int) -> int:
        """Memory that the sweep takes at most beside the panel's observations, its table of results read at once
        included."""
        rows, pools = self.panel.shape
        fields = len({"apy", "tvl_usd", *self.plan.fields})
        built = math.prod(len(self.plan.grid.axes[name]) for name in BUILDING)
        deaths = 0 if set(self.plan.grid.axes["delisted"]) == {"hold"} else _DEATH_BYTES * built + _AGE_BYTES
        cells = rows * pools * (8 * fields + _MARKET_BYTES * built + deaths + _SIGNAL_BYTES)
        group = min(len(self.plan.grid.axes["cost"]), chunk_trials)
        paths = self.threads * group * (self.t_end - self.t_start + 1) * 8
        return cells + paths + 3 * ROW_BYTES * chunk_trials + (PLAN_BYTES + ROW_BYTES) * len(self.plan)

    def chunk_trials(self, max_memory: int | None) -> int:
        """Trials of a chunk, so that the sweep keeps within `max_memory` bytes.

        Raises MemoryLimitError when not even one trial at a time does.
        """
        size = min(CHUNK_TRIALS, max(1, len(self.plan)))
        while max_memory is not None and self.peak_bytes(size) > max_memory:
            if size == 1:
                raise MemoryLimitError(
                    f"{len(self.plan):,} trials on {self.panel.shape[0]:,} times x {self.panel.shape[1]:,} pools need "
                    f"{size_text(self.peak_bytes(1))}, more than the limit of {size_text(max_memory)}; "
                    "take a --sample, fewer values in --grid or a larger --max-memory"
                )
            size //= 2
        return size

    def estimate(self, *, max_memory: int | None = None) -> Estimate:
        """What the sweep will take, from running a few stretches of its trials.

        Raises MemoryLimitError and StrategyError as `run` would.
        """
        size = self.chunk_trials(max_memory)
        signals, markets = self.plan.distinct()
        chunks = self.plan.bounds(size, CHUNK_POINTS).size - 1
        self.first_signal()
        probes = [self._probe(int(start)) for start in np.random.default_rng(0).integers(0, len(self.plan), PROBES)]
        signal, trial, rows = (sum(part) / PROBES for part in zip(*probes, strict=True))
        seconds = signals * signal + len(self.plan) * trial + chunks * rows
        return Estimate(len(self.plan), signals, markets, chunks, size, self.peak_bytes(size), seconds)

    def _probe(self, begin: int) -> tuple[float, float, float]:
        """Seconds of a signal, of one trial, and of making a chunk of rows, measured from trial `begin` on."""
        point = next(self.plan.points(begin, min(begin + PROBE_TRIALS, len(self.plan))))
        self.market(point)
        self._signal = (None, "", "")
        signal, ranking = _timed(lambda: self.ranking(point))
        if isinstance(ranking, str):
            return signal, 0.0, 0.0
        self.ledger(point._replace(end=point.begin + 1), ranking)  # compiles, if that is still to be done
        simulated, _ = _timed(lambda: self.ledger(point, ranking))
        with_rows, _ = _timed(lambda: self.results(point.begin, point.end))
        table, _ = _timed(lambda: self.plan.frame(point.begin, point.end))
        trials = point.end - point.begin
        return signal, (simulated + table) / trials, max(0.0, with_rows - simulated - table)


def _digest(signal: NDArray[np.float64]) -> str:
    """Sixteen bytes made from the values; every NaN is the same."""
    plain = np.ascontiguousarray(np.where(np.isnan(signal), np.nan, signal))
    return hashlib.blake2b(plain.data, digest_size=16).hexdigest()


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made
