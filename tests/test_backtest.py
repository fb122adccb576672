"""Strategies side by side: the sums by hand, one failure that costs the others nothing, and the files that are left."""

from __future__ import annotations

import dataclasses
import re
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import sweep_worlds

from yieldlab import market as markets
from yieldlab import simulate
from yieldlab.backtest import BacktestResult, backtest, checked, compare, entry, kind_of, save, split_params
from yieldlab.errors import DataError, StrategyError, UsageError
from yieldlab.market import Market
from yieldlab.metrics import MEASURES
from yieldlab.panel import Panel
from yieldlab.runs import RunFolder, describe
from yieldlab.simulate.policy import policies
from yieldlab.space import Value
from yieldlab.strategy import Strategy

#: Holds one pool, named by a parameter that the other strategies do not have.
ONE = '''"""One pool."""
import numpy as np
from yieldlab import Grid

NEEDS = ("apy",)
SIGNAL = Grid(pool=[0, 1])
POLICY = Grid(top_n=[1])


def signal(panel, pool):
    views = np.full(panel.shape, np.nan)
    views[:, pool] = 1.0
    return views
'''


@pytest.fixture
def steady(tmp_path: Path) -> Strategy:
    return sweep_worlds.strategy(tmp_path / "strategies")


@pytest.fixture
def frail(tmp_path: Path) -> Strategy:
    return sweep_worlds.strategy(tmp_path / "strategies", sweep_worlds.FRAIL, "frail")


@pytest.fixture
def one(tmp_path: Path) -> Strategy:
    return sweep_worlds.strategy(tmp_path / "strategies", ONE, "one")


def calm(rows: int = 366) -> Panel:
    """Two pools at a constant 5 % and 10 %."""
    times = np.datetime64("2024-01-01", "us") + np.arange(rows) * np.timedelta64(1, "D")
    apy = np.broadcast_to([0.05, 0.10], (rows, 2))
    return Panel(times, pl.DataFrame({"pool_id": ["a", "b"]}), {"apy": apy, "tvl_usd": np.full((rows, 2), 1e6)})


def test_a_constant_five_percent_returns_five_percent_a_year() -> None:
    panel = calm()
    result = backtest(panel, np.tile([1.0, np.nan], (366, 1)), {"top_n": 1, "cost": 0.0})
    row = result.trials.row(0, named=True)
    assert row["total_return"] == pytest.approx(0.05, rel=1e-12)
    assert row["annualized_return"] == pytest.approx(0.05, rel=1e-12)
    assert row["max_drawdown"] == 0.0
    assert (row["rebalances"], row["trades"], row["reason"]) == (1, 1, None)
    assert result.equity["equity_usd"][-1] == row["final_value"] == pytest.approx(10_500.0)
    assert result.trades.row(0, named=True)["pool_id"] == "a"


def test_two_strategies_side_by_side_are_each_as_alone(one: Strategy, steady: Strategy) -> None:
    panel = sweep_worlds.panel()
    stale = dataclasses.replace(entry(steady, {"max_stale_days": 0}), label="stale")
    entries = [entry(one, {"pool": 1}), entry(steady, {"cost": 0.0, "accrual": "leading"}), stale]
    both = compare(panel, entries, capital=77.0, start=date(2024, 1, 20), end=date(2024, 3, 1), risk_free=0.02)
    assert both.trials["strategy"].to_list() == ["one", "steady", "stale"]
    for position, each in enumerate(entries):
        alone = compare(panel, [each], capital=77.0, start=date(2024, 1, 20), end=date(2024, 3, 1), risk_free=0.02)
        assert both.trials.select("trial_id", *MEASURES)[position].equals(alone.trials.select("trial_id", *MEASURES))
        assert both.equity.filter(strategy=each.label).equals(alone.equity)
        assert both.trades.filter(strategy=each.label).equals(alone.trades)
    assert both.equity["time"].min().date() == date(2024, 1, 20)  # type: ignore[union-attr]
    assert both.equity["time"].max().date() == date(2024, 3, 1)  # type: ignore[union-attr]


def test_a_comparison_is_the_simulation_of_its_parts(steady: Strategy) -> None:
    panel = sweep_worlds.panel()
    sets = {"lookback": 10, "sign": -1, "max_stale_days": 0, "accrual": "leading", "every": 1, "gas_usd": 2}
    result = compare(panel, [entry(steady, sets)], capital=500.0)
    aged = panel.with_max_stale_days(0)
    ledger = simulate.run(
        Market.from_panel(aged, accrual="leading"),
        steady.signal(aged, {"lookback": 10, "sign": -1.0}),
        policies({"top_n": 2, "every": 1, "cost": 0.001, "weighting": "equal", "gas_usd": 2.0, "warmup": 10}),
        capital=500.0,
        trace=True,
    )
    assert result.trials.select(MEASURES).equals(ledger.measures())
    assert ledger.equity is not None
    np.testing.assert_array_equal(result.equity["equity_usd"].to_numpy(), ledger.equity[0])
    assert result.trades["amount_usd"].equals(ledger.trades["amount_usd"])


def test_one_that_fails_is_a_row_with_its_reason(steady: Strategy, frail: Strategy) -> None:
    panel = sweep_worlds.panel()
    result = compare(panel, [entry(frail, {"mood": "raise"}), entry(steady)])
    failed, ran = result.trials.to_dicts()
    assert "ZeroDivisionError" in failed["reason"]
    assert {failed[name] for name in MEASURES} == {None}
    assert ran["reason"] is None
    assert result.failures.rows() == [("frail", failed["reason"])]
    assert result.equity["strategy"].unique().to_list() == ["steady"]
    assert result.daily.columns == ["date", "steady"]
    assert result.trials.equals(
        compare(panel, [entry(steady), entry(frail, {"mood": "raise"})]).trials.reverse().select(result.trials.columns)
    )


def test_when_all_fail_the_first_reason_is_raised(frail: Strategy) -> None:
    panel = sweep_worlds.panel()
    with pytest.raises(StrategyError, match="ZeroDivisionError"):
        compare(panel, [entry(frail, {"mood": "raise"}), entry(frail, {"mood": "silent"})])
    with pytest.raises(UsageError, match="name at least one strategy"):
        compare(panel, [])


def test_a_missing_field_costs_only_who_needs_it(steady: Strategy, tmp_path: Path) -> None:
    source = sweep_worlds.STEADY.replace('("apy",)', '("apy", "utilization_rate")')
    needy = sweep_worlds.strategy(tmp_path / "strategies", source, "needy")
    result = compare(sweep_worlds.panel(), [entry(needy), entry(steady)])
    assert "needs the field 'utilization_rate'" in result.failures["reason"][0]


def test_the_same_strategy_twice_gets_two_names(one: Strategy) -> None:
    result = compare(calm(), [entry(one), entry(one, {"pool": 1}), entry(one)])
    assert result.trials["strategy"].to_list() == ["one", "one#2", "one#3"]
    assert result.trials["trial_id"][0] == result.trials["trial_id"][2] != result.trials["trial_id"][1]
    assert result.params["one#2"]["pool"] == 1
    assert result.daily.columns == ["date", "one", "one#2", "one#3"]


def test_parameters_that_others_lack_are_null(one: Strategy, steady: Strategy) -> None:
    trials = compare(sweep_worlds.panel(), [entry(one), entry(steady)]).trials
    assert trials["pool"].to_list() == [0, None]
    assert trials["lookback"].to_list() == [None, 3]
    assert trials["warmup"].to_list() == [0, 3]


def test_a_saved_result_is_read_back_whole(one: Strategy, steady: Strategy, frail: Strategy, tmp_path: Path) -> None:
    panel = sweep_worlds.panel()
    entries = [entry(one), entry(steady), entry(frail, {"mood": "silent"})]
    result = compare(panel, entries)
    folder = saved(result, entries, panel, tmp_path / "run")
    for name in ("trials", "equity", "trades", "failures"):
        assert pl.read_parquet(tmp_path / "run" / f"{name}.parquet").equals(getattr(result, name))
    csv = pl.read_csv(tmp_path / "run" / "backtest_results.csv", try_parse_dates=True)
    assert csv.columns == ["date", "one", "steady"]
    assert csv["date"][0] == date(2024, 1, 1)
    assert csv.height == 90
    assert csv["steady"].to_list() == result.equity.filter(strategy="steady")["equity_usd"].to_list()
    assert folder.status == "partial"
    assert folder.manifest.failed == 1
    assert (tmp_path / "run" / "strategies" / "one.py").read_text() == one.source


def test_one_strategy_leaves_its_file_as_it_ran(one: Strategy, tmp_path: Path) -> None:
    panel = calm()
    folder = saved(compare(panel, [entry(one)]), [entry(one)], panel, tmp_path / "run")
    assert (folder.path / "strategy.py").read_text() == one.source
    assert folder.status == "complete"
    assert not (folder.path / "failures.parquet").exists()


def saved(result: BacktestResult, entries: list, panel: Panel, out: Path) -> RunFolder:
    manifest = describe("backtest", [each.strategy for each in entries], panel, {}, trials=len(entries))
    folder = RunFolder.create(out.parent, manifest, out=out)
    save(result, folder)
    return folder


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (np.zeros((3, 2)), r"shape \(times, pools\) = \(366, 2\), not \(3, 2\)"),
        (np.full((366, 2), np.nan), "no view on any pool"),
        (np.where(np.arange(732).reshape(366, 2) == 5, np.inf, 1.0), "infinite on 2024-01-03 for pool 'b'"),
        (np.full((366, 2), "a"), "values of type <U1"),
        (np.full((366, 2), True), "values of type bool"),
        ([[1.0, 2.0]], "not list"),
    ],
)
def test_an_array_that_is_no_signal_says_why(signal: np.ndarray, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        backtest(calm(), signal)


def test_a_signal_of_whole_numbers_is_a_signal() -> None:
    signal = np.tile([2, 1], (366, 1))
    result = backtest(calm(), signal, {"top_n": 1})
    assert result.trials.select(MEASURES).equals(
        backtest(calm(), signal.astype(float), {"top_n": 1}).trials.select(MEASURES)
    )


def test_a_backtest_of_an_array_refuses_what_it_does_not_know() -> None:
    signal = np.ones((366, 2))
    with pytest.raises(UsageError, match="'topn'; did you mean 'top_n'"):
        backtest(calm(), signal, {"topn": 1})
    with pytest.raises(UsageError, match="did you mean 'leading'"):
        backtest(calm(), signal, market={"accrual": "leding"})
    with pytest.raises(DataError, match="2030-01-01 lies outside the data"):
        backtest(calm(), signal, end=date(2030, 1, 1))
    with pytest.raises(UsageError, match="capital must be a positive number"):
        backtest(calm(), signal, capital=-1.0)


def test_names_are_sorted_by_what_they_are_for(steady: Strategy) -> None:
    assert [kind_of(steady, name) for name in ("lookback", "accrual", "top_n")] == ["signal", "market", "policy"]
    params = split_params(steady, {"sign": -1, "max_stale_days": 5, "cost": 0, "min_apy": None})
    assert params.signal == {"lookback": 3, "sign": -1.0}
    assert params.market == dict(markets.DEFAULTS) | {"max_stale_days": 5}
    assert (params.policy["cost"], params.policy["min_apy"], params.policy["every"]) == (0.0, None, 7)
    assert list(params.all)[: len(markets.DEFAULTS) + 2] == [*markets.DEFAULTS, "lookback", "sign"]
    assert type(checked(steady, "cost", 0)) is float
    assert type(checked(steady, "top_n", 4.0)) is int
    assert type(checked(steady, "sign", 1)) is float


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        ({"rates": "efective"}, "unknown rates 'efective'; did you mean 'effective'"),
        ({"spikes": "masks"}, "unknown spikes 'masks'; did you mean 'mask'"),
        ({"delisted": "sell"}, "unknown delisted 'sell'"),
        ({"delisted_loss": 1.5}, "delisted_loss must be a fraction from 0 to 1, not 1.5"),
        ({"dead_after_days": -1}, "dead_after_days must be a whole number >= 0, not -1"),
        ({"delisted": "exit", "dead_after_days": 2}, "dead_after_days must be at least max_stale_days, not 2 with 3"),
    ],
)
def test_market_parameters_that_cannot_be_are_refused(steady: Strategy, sets: dict[str, Value], told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        split_params(steady, sets)


def test_the_market_is_made_before_a_strategy_sees_the_panel(one: Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    made, gave = Market.from_panel, Strategy.signal
    monkeypatch.setattr(Market, "from_panel", lambda *a, **k: (order.append("market"), made(*a, **k))[1])
    monkeypatch.setattr(Strategy, "signal", lambda *a, **k: (order.append("signal"), gave(*a, **k))[1])
    compare(calm(), [entry(one)])
    assert order == ["market", "signal"]


def test_two_files_of_one_name_are_not_compared(one: Strategy, tmp_path: Path) -> None:
    other = sweep_worlds.strategy(tmp_path / "others", ONE + "# another\n", "one")
    with pytest.raises(UsageError, match=f"two files have the name 'one', {one.path} and {other.path}; rename one"):
        compare(calm(), [entry(one), entry(other)])
    again = sweep_worlds.strategy(tmp_path / "strategies", ONE, "one")
    assert compare(calm(), [entry(one), entry(again, {"pool": 1})]).trials.height == 2
