"""A few strategies side by side: each under its own parameters on the same panel, with every measure, bar and trade."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab import market as markets
from yieldlab import simulate
from yieldlab.errors import DataError, StrategyError, UsageError, did_you_mean
from yieldlab.market import Market, Markets
from yieldlab.metrics import MEASURES
from yieldlab.panel import Panel
from yieldlab.runs import EQUITY, FAILURES, TRADES, TRIALS, RunFolder
from yieldlab.simulate import policy as policy_table
from yieldlab.simulate.policy import PARAMETERS, policies
from yieldlab.space import Value, alike, canonical, column, trial_ids
from yieldlab.strategy import Strategy

Floats = NDArray[np.float64]

DAILY_EQUITY = "backtest_results.csv"


@dataclass(frozen=True, slots=True)
class Params:
    """The parameters of one trial, or the axes of many, by what they are for."""

    market: Mapping[str, Value]
    signal: Mapping[str, Value]
    policy: Mapping[str, Value]

    @property
    def all(self) -> dict[str, Value]:
        """Every parameter by name, the order of tables."""
        return {**self.market, **self.signal, **self.policy}


@dataclass(frozen=True, slots=True)
class Entry:
    """A strategy with every parameter it runs under; `label` is what results call it."""

    strategy: Strategy
    params: Params
    label: str


@dataclass(frozen=True, slots=True, eq=False)
class BacktestResult:
    """What strategies did side by side.

    `trials`: one row per strategy: trial_id, strategy, its parameters (null where a strategy has no such one), the
    measures of docs/accounting.md, and the reason if it failed. `equity`: time, strategy, equity_usd. `trades`:
    strategy, time, pool_id, amount_usd (a withdrawal is negative), cost_usd, gas_usd, written_off_usd. `failures`:
    strategy, reason.
    `params` maps each strategy to its parameters, `sources` to the text of its file.
    """

    trials: pl.DataFrame
    equity: pl.DataFrame
    trades: pl.DataFrame
    failures: pl.DataFrame
    params: Mapping[str, Mapping[str, Value]]
    sources: Mapping[str, str] = field(repr=False)
    seconds: float

    @property
    def daily(self) -> pl.DataFrame:
        """The equity curves: one row per bar, one column of USD per strategy that ran."""
        wide = self.equity.pivot("strategy", index="time", values="equity_usd", maintain_order=True)
        on_days = bool((wide["time"].dt.truncate("1d") == wide["time"]).all())
        return wide.rename({"time": "date"}).with_columns(pl.col("date").dt.date()) if on_days else wide


def kind_of(strategy: Strategy, name: str) -> str:
    """Whether `name` is a signal, market or policy parameter. Raises UsageError with the nearest one."""
    if name in strategy.signal_grid.axes:
        return "signal"
    if name in markets.DEFAULTS:
        return "market"
    if name in PARAMETERS:
        return "policy"
    known = [*strategy.signal_grid.axes, *markets.DEFAULTS, *PARAMETERS]
    raise UsageError(f"strategy {strategy.name!r} has no parameter {name!r}{did_you_mean(name, known)}")


def checked(strategy: Strategy, name: str, value: Value) -> Value:
    """`value` in the type of parameter `name` of the strategy. Raises UsageError for one that it does not take."""
    kind = kind_of(strategy, name)
    if isinstance(value, float):
        value += 0.0  # one zero only, as in a grid
    if kind == "signal":
        return strategy.params({name: value})[name]
    if kind == "market":
        value = alike(name, value, markets.DEFAULTS[name])
        markets.check_value(name, value)
        return value
    policy_table.check_value(name, value)
    if value is None or PARAMETERS[name].words:
        return value
    return PARAMETERS[name].kind(value)  # type: ignore[no-any-return]  # int or float, checked above


def split_params(
    strategy: Strategy, sets: Mapping[str, Value] | None = None, *, defaults: Mapping[str, Value] | None = None
) -> Params:
    """Every parameter of one trial: what is set, else what the strategy declares first, else `defaults` (settings),
    else yieldlab's own. The strategy's warm-up becomes the policy's, unless that is set.

    Raises UsageError for a name or value that does not exist, with the nearest one.
    """
    given = {name: checked(strategy, name, value) for name, value in (sets or {}).items()}
    wanted = {name: checked(strategy, name, value) for name, value in (defaults or {}).items()}
    declared = {name: checked(strategy, name, value) for name, value in strategy.policy_grid.defaults().items()}
    signal = strategy.params({name: given[name] for name in strategy.signal_grid.axes if name in given})
    policy: dict[str, Value] = {name: parameter.default for name, parameter in PARAMETERS.items()}
    policy["warmup"] = strategy.warmup_rows(signal)
    market = dict(markets.DEFAULTS)
    for source in (wanted, declared, given):
        market |= {name: value for name, value in source.items() if name in market}
        policy |= {name: value for name, value in source.items() if name in policy}
    markets.check_together(market)
    return Params(market, signal, policy)


def entry(
    strategy: Strategy, sets: Mapping[str, Value] | None = None, *, defaults: Mapping[str, Value] | None = None
) -> Entry:
    """A strategy to `compare`, under `split_params`."""
    return Entry(strategy, split_params(strategy, sets, defaults=defaults), strategy.name)


def backtest(
    panel: Panel,
    signal: Floats,
    policy: Mapping[str, Value] | None = None,
    *,
    capital: float = 10_000.0,
    start: date | None = None,
    end: date | None = None,
    market: Mapping[str, Value] | None = None,
    risk_free: float = 0.0,
) -> BacktestResult:
    """Trade a signal made anywhere: (T, N) as the panel, higher is better, NaN = no view.

    `policy` and `market` hold parameters, the others take their default; `max_stale_days` and `rates` are the panel's
    unless they are given. Raises StrategyError when the array is no signal, and UsageError for a parameter that does
    not exist.
    """
    views = _checked_signal(panel, signal)
    chosen = policies(dict(policy or {}))
    window = panel.window(start, end)
    facts = dict(markets.DEFAULTS)
    facts["max_stale_days"], facts["rates"] = panel.max_stale_days, panel.rates
    facts |= dict(market or {})
    for name, value in facts.items():
        markets.check_value(name, value)
    markets.check_together(facts)
    traded: dict[str, Value] = {
        name: (policy or {}).get(name, parameter.default) for name, parameter in PARAMETERS.items()
    }
    ledger = _run(Markets(panel).market(facts), views, chosen, capital, window, risk_free)
    return _result([("signal", "signal", {**facts, **traded})], [ledger])


def refuse_namesakes(strategies: Sequence[Strategy]) -> None:
    """Raise UsageError when two different files have one name, by which results and trials are known."""
    first: dict[str, Strategy] = {}
    for each in strategies:
        other = first.setdefault(each.name, each)
        if (other.path.resolve(), other.source_hash) != (each.path.resolve(), each.source_hash):
            raise UsageError(f"two files have the name {each.name!r}, {other.path} and {each.path}; rename one of them")


def compare(
    panel: Panel,
    entries: Sequence[Entry],
    *,
    capital: float = 10_000.0,
    start: date | None = None,
    end: date | None = None,
    risk_free: float = 0.0,
) -> BacktestResult:
    """Run each entry on the same panel and window. One that fails becomes a row with its reason; raises its error when
    no other is left, and UsageError when two files have one name."""
    began = time.perf_counter()
    refuse_namesakes([each.strategy for each in entries])
    window = panel.window(start, end)
    made = Markets(panel)
    outcomes: list[simulate.Ledger | StrategyError | DataError] = []
    for each in entries:
        try:
            outcomes.append(_run_entry(made, each, capital, window, risk_free))
        except (StrategyError, DataError) as error:
            outcomes.append(error)
    failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if not entries:
        raise UsageError("there is nothing to run; name at least one strategy")
    if len(failures) == len(outcomes):
        raise failures[0]
    rows = [(_label(entries, i), each.strategy.name, each.params.all) for i, each in enumerate(entries)]
    result = _result(rows, [outcome if isinstance(outcome, simulate.Ledger) else str(outcome) for outcome in outcomes])
    sources = {each.strategy.name: each.strategy.source for each in entries}
    return replace(result, sources=sources, seconds=time.perf_counter() - began)


def save(result: BacktestResult, folder: RunFolder) -> None:
    """Write the result's tables and end the run: complete, or partial when a strategy failed."""
    folder.write_frame(TRIALS, result.trials)
    folder.write_frame(EQUITY, result.equity)
    folder.write_frame(TRADES, result.trades)
    folder.write_csv(DAILY_EQUITY, result.daily)
    if result.failures.height:
        folder.write_frame(FAILURES, result.failures)
    for name, source in result.sources.items():
        folder.write("strategy.py" if len(result.sources) == 1 else f"strategies/{name}.py", source.encode())
    failed = result.failures.height
    folder.finish("partial" if failed else "complete", failed=failed, seconds=round(result.seconds, 3))


def _run_entry(
    made: Markets, each: Entry, capital: float, window: tuple[int, int], risk_free: float
) -> simulate.Ledger:
    market = made.market(each.params.market)  # before the strategy sees the panel
    views = each.strategy.signal(made.panel(each.params.market), each.params.signal)
    return _run(market, views, policies(dict(each.params.policy)), capital, window, risk_free)


def _run(
    market: Market,
    signal: Floats,
    records: NDArray[np.void],
    capital: float,
    window: tuple[int, int],
    risk_free: float,
) -> simulate.Ledger:
    return simulate.run(
        market, signal, records, capital=capital, t_start=window[0], t_end=window[1], risk_free=risk_free, trace=True
    )


def _checked_signal(panel: Panel, signal: object) -> Floats:
    expected = f"an array of numbers with the panel's shape (times, pools) = {panel.shape}"
    if not isinstance(signal, np.ndarray) or signal.dtype.kind not in "iuf":
        kind = f"values of type {signal.dtype}" if isinstance(signal, np.ndarray) else type(signal).__name__
        raise StrategyError(f"a signal must be {expected}, not {kind}")
    if signal.shape != panel.shape:
        raise StrategyError(f"a signal must be {expected}, not {signal.shape}")
    views = np.array(signal, dtype=np.float64, order="C", subok=False)
    if bool(np.isinf(views).any()):
        t, i = np.argwhere(np.isinf(views))[0]
        day = panel.times[t].astype("datetime64[D]")
        raise StrategyError(f"the signal is infinite on {day} for pool {panel.pool_ids[i]!r}; NaN means no view")
    if bool(np.isnan(views).all()):
        raise StrategyError("the signal has no view on any pool: all its values are NaN")
    return views


def _label(entries: Sequence[Entry], position: int) -> str:
    """The entry's label, numbered from its second use on."""
    label = entries[position].label
    before = sum(other.label == label for other in entries[:position])
    return f"{label}#{before + 1}" if before else label


def _result(
    rows: Sequence[tuple[str, str, Mapping[str, Value]]], outcomes: Sequence[simulate.Ledger | str]
) -> BacktestResult:
    """`rows` are (label, strategy, parameters) of each outcome: one trial's ledger, or why there is none."""
    names = list(dict.fromkeys(name for _, _, params in rows for name in params))
    ids = [
        trial_ids(strategy, {name: [canonical(value)] for name, value in params.items()})[0]
        for _, strategy, params in rows
    ]
    labels = [label for label, _, _ in rows]
    reasons = [outcome if isinstance(outcome, str) else outcome.reasons[0] for outcome in outcomes]
    trials = pl.DataFrame(
        [
            pl.Series("trial_id", ids, dtype=pl.String),
            pl.Series("strategy", labels, dtype=pl.String),
            *(column(name, [params.get(name) for _, _, params in rows]) for name in names),
        ]
    )
    measures = pl.concat([no_measures(1) if isinstance(each, str) else each.measures() for each in outcomes])
    trials = pl.concat([trials, measures], how="horizontal").with_columns(pl.Series("reason", reasons, dtype=pl.String))
    ran = [(label, each) for label, each in zip(labels, outcomes, strict=True) if isinstance(each, simulate.Ledger)]
    equity = [path(each, 0, strategy=label) for label, each in ran if each.status[0] == 0]
    trades = [
        each.trades.select(pl.lit(label).alias("strategy"), pl.exclude("trial", "row", "pool")) for label, each in ran
    ]
    failures = trials.filter(pl.col("reason").is_not_null()).select("strategy", "reason")
    if not equity:
        raise StrategyError(f"no strategy could be followed: {failures['reason'][0]}")
    return BacktestResult(
        trials=trials,
        equity=pl.concat(equity),
        trades=pl.concat(trades),
        failures=failures,
        params={label: params for label, _, params in rows},
        sources={},
        seconds=0.0,
    )


def no_measures(rows: int) -> pl.DataFrame:
    """(R rows) every measure as null, in the types of a ledger's: what a trial that failed has."""
    counts = ("rebalances", "trades", "skipped", "unaffordable", "delistings")
    return pl.DataFrame(
        [
            pl.Series(name, [None], pl.Int64 if name in counts else pl.Float64).new_from_index(0, rows)
            for name in MEASURES
        ]
    )


def path(ledger: simulate.Ledger, trial: int, **named: str) -> pl.DataFrame:
    """The equity of one trial over time: time, the columns `named`, equity_usd."""
    assert ledger.equity is not None
    return pl.DataFrame(
        [
            pl.Series("time", ledger.times).dt.replace_time_zone("UTC"),
            *(
                pl.Series(name, [value], pl.String).new_from_index(0, ledger.times.size)
                for name, value in named.items()
            ),
            pl.Series("equity_usd", ledger.equity[trial]),
        ]
    )
