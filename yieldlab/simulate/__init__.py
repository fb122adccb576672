"""Running policies on a market: check the arguments, allocate the outputs, run the kernel, name what came out."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab.errors import UsageError
from yieldlab.market import Market
from yieldlab.metrics import MEASURES, PATH_MEASURES
from yieldlab.simulate import _record_kernels as record

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Rows of a signal that are ranked at a time, so that the sort needs little memory beside its result.
_RANKED_ROWS = 128

_STATUS = {
    record.NOT_RUN: "not run",
    record.NOT_FINITE: "the equity is no finite positive number: costs or yields took it to zero or below or beyond "
    "what a float holds",
    record.TRACE_FULL: "more trades than the trace has room for",
    record.LOST_ALL: "delistings took all of it",
}


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """A signal with every row sorted once, for all policies: `order[t, :count[t]]` are the pools with a view and an
    APY on row t, best first, ties by pool. `apy` is that of the market it was ranked on."""

    signal: Floats
    order: NDArray[np.int32]
    count: NDArray[np.int32]
    apy: Floats = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Ledger:
    """What R trials left behind over W bars; arrays are in trial order.

    `equity` (R, W) is USD at the end of each bar, NaN for a failed trial, None when it was not kept. `status` (R,) is
    0 for a trial that ran; `reasons` says why another did not. The counters are the ACCOUNTING measures of those names.
    """

    times: NDArray[np.datetime64]
    capital: float
    t_start: int
    status: Ints
    equity: Floats | None
    path_measures: Floats = field(repr=False)
    counts: Ints = field(repr=False)
    sums: Floats = field(repr=False)
    trace: Floats = field(repr=False)
    traced: Ints = field(repr=False)
    pool_ids: tuple[str, ...] = field(repr=False)

    @property
    def days(self) -> float:
        """Days between the first and the last bar."""
        return _days(self.times)

    @property
    def kept_equity(self) -> Floats:
        """(R, W) the equity. Raises UsageError when the run was told not to keep it."""
        if self.equity is None:
            raise UsageError("the equity of these trials was not kept: run them with keep_equity=True")
        return self.equity

    @property
    def reasons(self) -> list[str | None]:
        """Per trial, why it failed; None when it ran."""
        return [None if code == 0 else _STATUS[int(code)] for code in self.status]

    def measures(self) -> pl.DataFrame:
        """(R rows) every measure of docs/accounting.md under its name, null where undefined or where a trial failed."""
        from yieldlab.units import DAYS_PER_YEAR

        values: dict[str, Floats | Ints] = dict(zip(PATH_MEASURES, self.path_measures.T, strict=True))
        values["turnover"] = self.sums[:, record.TURNOVER] * (DAYS_PER_YEAR / self.days if self.days >= 1.0 else np.nan)
        values["cost_paid"] = self.sums[:, record.COST_PAID]
        values["written_off"] = self.sums[:, record.WRITTEN_OFF]
        invested = self.sums[:, record.INVESTED]
        ever = (self.counts[:, record.REBALANCES] > 0) & (invested > 0.0)
        values["stale_share"] = np.where(ever, self.sums[:, record.STALE] / np.where(ever, invested, 1.0), np.nan)
        for name, column in (
            ("rebalances", record.REBALANCES),
            ("trades", record.TRADES),
            ("skipped", record.SKIPPED),
            ("unaffordable", record.UNAFFORDABLE),
            ("delistings", record.DELISTINGS),
        ):
            values[name] = self.counts[:, column]
        failed = pl.Series(self.status != 0)
        columns = [pl.Series(name, values[name], nan_to_null=True).set(failed, None) for name in MEASURES]
        return pl.DataFrame(columns)

    @property
    def trades(self) -> pl.DataFrame:
        """One row per trade of a traced run, in the order they were made: trial, row (of the panel), time, pool (column
        of the panel), pool_id, amount_usd (a deposit is positive, a withdrawal negative), cost_usd (the proportional
        part), gas_usd and written_off_usd (what a delisting took from the position beside the withdrawal; where nothing
        could be sold the amount is 0)."""
        per_trial = [self.trace[r, : self.traced[r]] for r in range(self.traced.size)]
        made = np.concatenate(per_trial) if per_trial else np.empty((0, record.TRADE_COLUMNS))
        row, pool = made[:, record.TRADE_ROW].astype(np.int64), made[:, record.TRADE_POOL].astype(np.int64)
        return pl.DataFrame(
            {
                "trial": np.repeat(np.arange(self.traced.size), self.traced),
                "row": row,
                "time": pl.Series(self.times[row - self.t_start]).dt.replace_time_zone("UTC"),
                "pool": pool,
                "pool_id": pl.Series(self.pool_ids, dtype=pl.String).gather(pl.Series(pool)),
                "amount_usd": made[:, record.TRADE_AMOUNT],
                "cost_usd": made[:, record.TRADE_COST],
                "gas_usd": made[:, record.TRADE_GAS],
                "written_off_usd": made[:, record.TRADE_WRITTEN_OFF],
            }
        )


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """Where one trial stands at the end of row `row`: what a later step needs and nothing more."""

    start: int
    row: int
    capital: float
    cash: float
    positions: Floats
    counts: Ints = field(repr=False)
    sums: Floats = field(repr=False)

    @property
    def equity(self) -> float:
        """USD in cash and in all pools."""
        return self.cash + float(self.positions.sum())


def rank(market: Market, signal: Floats) -> Ranking:
    """Sort every row of a (T, N) signal once. Raises UsageError when its shape is not the market's, or for +-inf."""
    values = np.ascontiguousarray(signal, dtype=np.float64)
    if values.shape != market.shape:
        raise UsageError(f"a signal must have the panel's shape (times, pools) = {market.shape}, not {values.shape}")
    if bool(np.isinf(values).any()):
        t, i = np.argwhere(np.isinf(values))[0]
        raise UsageError(f"the signal is infinite at row {t} for pool {market.pool_ids[i]!r}; use NaN for 'no view'")
    order = np.empty(values.shape, dtype=np.int32)
    count = np.empty(values.shape[0], dtype=np.int32)
    for begin in range(0, values.shape[0], _RANKED_ROWS):
        rows = slice(begin, begin + _RANKED_ROWS)
        score = np.where(np.isnan(market.apy[rows]), np.nan, values[rows])
        order[rows] = np.argsort(-score, axis=1, kind="stable")  # NaN sorts last
        count[rows] = np.count_nonzero(~np.isnan(score), axis=1)
    if values.flags.writeable:
        values = values.copy()  # the caller's array may change, the order would not
    for array in (values, order, count):
        array.flags.writeable = False  # and one kind of argument, so that the kernel is compiled once
    return Ranking(values, order, count, market.apy)


def run(
    market: Market,
    signal: Floats | Ranking,
    policies: NDArray[np.void],
    *,
    capital: float = 10_000.0,
    t_start: int = 0,
    t_end: int | None = None,
    risk_free: float = 0.0,
    threads: int | None = None,
    trace: bool = False,
    keep_equity: bool = True,
) -> Ledger:
    """Simulate R policies (records of `policy.POLICY`) on one signal over rows t_start .. t_end, both included.

    `capital` is USD, `risk_free` a simple annual rate. `trace` keeps every trade. The same numbers come out whatever
    the number of threads and the order or number of policies. Raises UsageError for a window or capital that makes no
    sense.
    """
    from yieldlab import _jit
    from yieldlab.simulate import _kernels as k
    from yieldlab.simulate.policy import checked

    t_start, last = _checked_window(market, t_start, market.shape[0] - 1 if t_end is None else t_end)
    capital = _checked_capital(capital)
    risk_free = _finite("risk_free", risk_free, "a finite annual rate")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be a whole number >= 1, not {threads}")
    ranking = _ranking(market, signal)
    policies = checked(policies)
    starts = _groups(policies)
    trials, bars = policies.size, last - t_start + 1
    times = market.times[t_start : last + 1]
    room = _trades_at_most(market, policies, bars) if trace else 0
    while True:
        equity = np.full((trials if keep_equity else 0, bars), np.nan)
        counts = np.zeros((trials, record.COUNTS), np.int64)
        sums = np.zeros((trials, record.SUMS))
        measures = np.full((trials, k.MEASURED), np.nan)
        status = np.full(trials, record.NOT_RUN, np.int64)
        traces = np.empty((trials, room, record.TRADE_COLUMNS))
        traced = np.zeros(trials, np.int64)
        with _jit.threads(threads) as in_force:
            schedule = _schedule(policies, starts, in_force)
            k.run_all(
                market.growth, market.index, market.apy, market.tvl_usd,
                market.next_missing, market.next_dead, market.loss,
                ranking.signal, ranking.order, ranking.count,
                policies, starts, schedule, t_start, t_start, last, capital, _days(times), risk_free,
                np.empty((trials, 0), np.int64), np.empty((trials, 0)), np.full(trials, capital),
                equity, counts, sums, measures, status, traces, traced,
            )  # fmt: skip
        if not bool(np.any(status == record.TRACE_FULL)):
            break
        room *= 2
    return Ledger(
        times=times,
        capital=capital,
        t_start=t_start,
        status=status,
        equity=equity if keep_equity else None,
        path_measures=measures,
        counts=counts,
        sums=sums,
        trace=traces,
        traced=traced,
        pool_ids=market.pool_ids,
    )


def begin(market: Market, *, capital: float = 10_000.0, t_start: int = 0) -> State:
    """A trial before its first row: all capital in cash. Take it forward with `advance`."""
    t_start, _ = _checked_window(market, t_start, t_start)
    capital = _checked_capital(capital)
    return State(
        t_start,
        t_start - 1,
        capital,
        capital,
        np.zeros(market.shape[1]),
        np.zeros(record.COUNTS, np.int64),
        np.zeros(record.SUMS),
    )


def advance(market: Market, signal: Floats | Ranking, policy: NDArray[np.void], state: State, t_end: int) -> State:
    """The state at the end of row `t_end`, one or many rows later; the same path as one `run` over all of them.

    `policy` is (1,) record. Raises UsageError when `t_end` is not after the state, when the state is of another market,
    and when the step cannot be computed.
    """
    from yieldlab import _jit
    from yieldlab.simulate import _kernels as k
    from yieldlab.simulate.policy import checked

    first, t_end = _checked_window(market, state.row + 1, t_end)
    ranking = _ranking(market, signal)
    policy = checked(policy)
    if policy.size != 1 or state.positions.shape != (market.shape[1],):
        raise UsageError(
            f"a step takes one policy and a position per pool of the market, not {policy.size} and "
            f"{state.positions.size} for {market.shape[1]} pools"
        )
    counts, sums = state.counts[None, :].copy(), state.sums[None, :].copy()
    pools = np.arange(market.shape[1])[None, :].copy()
    positions, cash = state.positions[None, :].copy(), np.array([state.cash])
    status = np.full(1, record.NOT_RUN, np.int64)
    one = np.zeros(1, np.int64)
    with _jit.threads(1):
        k.run_all(
            market.growth, market.index, market.apy, market.tvl_usd,
            market.next_missing, market.next_dead, market.loss,
            ranking.signal, ranking.order, ranking.count,
            policy, np.array([0, 1]), one, state.start, first, t_end, state.capital, 0.0, 0.0,
            pools, positions, cash,
            np.empty((1, t_end - state.row)), counts, sums, np.empty((0, k.MEASURED)), status,
            np.empty((1, 0, record.TRADE_COLUMNS)), one.copy(),
        )  # fmt: skip
    if status[0] != record.OK:
        raise UsageError(f"the step to row {t_end} failed: {_STATUS[int(status[0])]}")
    after = np.zeros(market.shape[1])
    held = positions[0] > 0.0
    after[pools[0, held]] = positions[0, held]
    return State(state.start, t_end, state.capital, float(cash[0]), after, counts[0], sums[0])


def _ranking(market: Market, signal: Floats | Ranking) -> Ranking:
    if not isinstance(signal, Ranking):
        return rank(market, signal)
    same = signal.apy is market.apy or np.array_equal(signal.apy, market.apy, equal_nan=True)
    if signal.signal.shape != market.shape or not same:
        raise UsageError("the ranking is of another market: rank the signal on the market it is to run on")
    return signal


def _checked_window(market: Market, first: int, last: int) -> tuple[int, int]:
    if not 0 <= first <= last < market.shape[0]:
        raise UsageError(f"rows {first} to {last} do not lie in order within the panel's 0 to {market.shape[0] - 1}")
    return operator.index(first), operator.index(last)


def _checked_capital(capital: float) -> float:
    if _finite("capital", capital, "a positive number of USD") <= 0.0:
        raise UsageError(f"capital must be a positive number of USD, not {capital}")
    return float(capital)


def _finite(name: str, value: float, wanted: str) -> float:
    """The value as a plain float: one kind of argument, so that the kernel is compiled once."""
    if isinstance(value, (bool, str)) or not math.isfinite(value):
        raise UsageError(f"{name} must be {wanted}, not {value!r}")
    return float(value)


def _days(times: NDArray[np.datetime64]) -> float:
    return float((times[-1] - times[0]) / np.timedelta64(1, "D"))


def _groups(policies: NDArray[np.void]) -> Ints:
    """(G + 1,) bounds of runs of neighbouring trials that differ in `cost` at most."""
    from yieldlab.simulate.policy import PARAMETERS

    fresh = np.zeros(policies.size, dtype=bool)
    fresh[:1] = True
    for name in PARAMETERS:
        if name != "cost":
            column = policies[name]
            same = (column[1:] == column[:-1]) | ((column[1:] != column[1:]) & (column[:-1] != column[:-1]))
            fresh[1:] |= ~same
    return np.append(np.flatnonzero(fresh), policies.size)


def _schedule(policies: NDArray[np.void], starts: Ints, threads: int) -> Ints:
    """(G,) groups dealt to threads like cards, dearest first: each thread takes one equal stretch of the schedule."""
    first = policies[starts[:-1]]
    work = np.sqrt(first["top_n"]) / first["every"] * np.diff(starts)
    dearest = np.argsort(-work, kind="stable")
    return np.concatenate([dearest[thread::threads] for thread in range(threads)]) if dearest.size else dearest


def _trades_at_most(market: Market, policies: NDArray[np.void], bars: int) -> int:
    """Trades of a trial if every rebalance replaced all its pools; the run grows it when dust or delistings make it
    more."""
    rebalances = -(-bars // policies["every"]) if policies.size else np.zeros(1, np.int64)
    pools = np.minimum(2 * policies["top_n"], market.shape[1]) if policies.size else np.zeros(1, np.int64)
    return max(1, int(np.max(rebalances * pools)))
