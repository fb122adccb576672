"""The strategies that read models: what each ranks and holds, by which forecaster, and what a missing field does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from yieldlab.backtest import BacktestResult, compare, entry
from yieldlab.errors import CausalityError, DataError, StrategyError, UsageError
from yieldlab.panel import Panel
from yieldlab.space import Value
from yieldlab.strategy import Strategy, bundled_folder, find
from yieldlab.sweep import plan, sweep
from yieldlab.testing import check_strategy, tiny_panel

NAMES = ("lstm_top", "risk_adjusted", "unified")

NaN = np.nan

#: Pools in the panel's order: safe, middling, the best by far but of class high, never classified.
POOLS = ("aave", "curve", "risky", "untold")
ROWS = {
    "apy": (0.05, 0.06, 0.40, 0.07),
    "tvl_usd": (1e6, 1e6, 1e6, 1e6),
    "forecast_persistence": (0.05, 0.06, 0.40, 0.07),
    "forecast_lstm": (0.10, 0.08, 0.30, 0.20),
    "forecast_xgboost": (0.02, 0.09, 0.01, 0.03),
    "risk_class": (0.0, 1.0, 2.0, NaN),
    "risk_prob_high": (0.1, 0.3, 0.9, NaN),
}


def bundled(name: str) -> Strategy:
    return find(name, [bundled_folder()])


def four_pools(times: int = 15, **rows: tuple[float, ...]) -> Panel:
    """Every row the same: ROWS, with these in place of some."""
    return Panel(
        np.datetime64("2024-03-01", "D") + np.arange(times),
        pl.DataFrame({"pool_id": POOLS}),
        {name: np.tile(row, (times, 1)) for name, row in {**ROWS, **rows}.items()},
    )


def traded(panel: Panel, name: str, **sets: Value) -> BacktestResult:
    """10,000 USD without costs, so that every amount can be said by heart."""
    return compare(panel, [entry(bundled(name), {"cost": 0.0, **sets})])


def amounts(result: BacktestResult, row: int = 0) -> Mapping[str, float]:
    """USD put into each pool (taken out: negative) on a row of the panel."""
    day = result.equity["time"][row]
    bought = result.trades.filter(pl.col("time").cast(pl.Int64) == pl.lit(day).cast(pl.Int64))
    return dict(bought.select("pool_id", "amount_usd").iter_rows())


# -- what they rank -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "row"),
    [
        ("lstm_top", {}, (0.10, 0.08, 0.30, 0.20)),
        ("lstm_top", {"model": "xgboost"}, (0.02, 0.09, 0.01, 0.03)),
        ("risk_adjusted", {}, (0.05, 0.06, NaN, NaN)),
        ("risk_adjusted", {"model": "lstm"}, (0.10, 0.08, NaN, NaN)),
        ("risk_adjusted", {"model": "xgboost"}, (0.02, 0.09, NaN, NaN)),
        ("unified", {}, (0.10, 0.08, NaN, NaN)),
        ("unified", {"model": "xgboost"}, (0.02, 0.09, NaN, NaN)),
        ("unified", {"max_risk_class": 0}, (0.10, NaN, NaN, NaN)),
        ("unified", {"max_prob_high": 0.25}, (0.10, NaN, NaN, NaN)),
        ("unified", {"max_risk_class": 2}, (0.10, 0.08, NaN, NaN)),
        ("unified", {"max_risk_class": 2, "max_prob_high": 1}, (0.10, 0.08, 0.30, NaN)),
    ],
)
def test_the_signal_is_the_forecast_of_the_pools_that_are_acceptable(
    name: str, params: dict[str, Value], row: tuple[float, ...]
) -> None:
    panel = four_pools()
    np.testing.assert_array_equal(bundled(name).signal(panel, params), np.tile(row, (15, 1)))


def test_a_limit_of_risk_still_admits_what_stands_on_it() -> None:
    panel = four_pools(risk_prob_high=(0.5, 0.500001, 0.0, 0.0))
    np.testing.assert_array_equal(bundled("unified").signal(panel)[0], [0.10, NaN, NaN, NaN])


def test_a_pool_with_only_one_of_class_and_probability_gets_no_view_of_unified() -> None:
    panel = four_pools(risk_class=(NaN, 1.0, 0.0, 0.0), risk_prob_high=(0.1, 0.1, NaN, 0.1))
    np.testing.assert_array_equal(bundled("unified").signal(panel)[0], [NaN, 0.08, NaN, 0.20])


@pytest.mark.parametrize("name", NAMES)
def test_a_pool_without_a_forecast_gets_no_view(name: str) -> None:
    panel = four_pools(forecast_lstm=(NaN, 0.08, NaN, NaN))
    np.testing.assert_array_equal(bundled(name).signal(panel, {"model": "lstm"})[0], [NaN, 0.08, NaN, NaN])


@pytest.mark.parametrize(
    ("name", "field"), [("lstm_top", "forecast_lstm"), ("risk_adjusted", "risk_class"), ("unified", "risk_prob_high")]
)
def test_what_a_model_said_is_believed_as_long_as_any_observation_and_no_longer(name: str, field: str) -> None:
    panel = four_pools(times=6)
    said = panel.raw(field).copy()
    said[1:, 0] = NaN
    views = bundled(name).signal(panel.with_fields({field: said}))
    np.testing.assert_array_equal(np.isnan(views[:, 0]), [False, False, False, False, True, True])


# -- which forecaster ---------------------------------------------------------------------------------------------


def test_the_defaults_name_the_forecaster_and_what_the_panel_must_have() -> None:
    assert {name: bundled(name).fields() for name in NAMES} == {
        "lstm_top": ("forecast_lstm",),
        "risk_adjusted": ("forecast_persistence", "risk_class"),
        "unified": ("forecast_lstm", "risk_class", "risk_prob_high"),
    }


@pytest.mark.parametrize("model", ["xgboost", "ensemble", "gru", "transformer", "ewma", "ar", "pool_mean", "mine"])
@pytest.mark.parametrize("name", NAMES)
def test_any_forecaster_may_be_named_also_one_that_is_on_no_axis(name: str, model: str) -> None:
    strategy = bundled(name)
    assert strategy.fields({"model": model})[0] == f"forecast_{model}"
    assert entry(strategy, {"model": model}).params.signal["model"] == model
    assert plan(strategy, {"model": [model]}).fields == strategy.fields({"model": model})


def test_a_sweep_over_forecasters_reads_each_of_them_and_ranks_by_each() -> None:
    axes: dict[str, list[Value]] = {
        "model": ["lstm", "xgboost"],
        "top_n": [1],
        "every": [7],
        "weighting": ["equal"],
        "persistence": [0.0],
        "min_turnover": [0.0],
        "cost": [0.0],
    }
    planned = plan(bundled("lstm_top"), axes)
    assert planned.fields == ("forecast_lstm", "forecast_xgboost")
    trials = sweep(planned, four_pools()).trials.sort("model")
    growth = [(1.40 ** (14 / 365)) - 1, (1.06 ** (14 / 365)) - 1]  # lstm: risky; xgboost: curve
    np.testing.assert_allclose(trials["total_return"], growth, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("lstm_top", "forecast_lstm"),
        ("risk_adjusted", "risk_class"),
        ("unified", "forecast_lstm"),
        ("unified", "risk_class"),
        ("unified", "risk_prob_high"),
    ],
)
def test_without_a_field_the_sentence_says_which_command_writes_it(name: str, missing: str) -> None:
    fields = {field: np.tile(row, (15, 1)) for field, row in ROWS.items() if field != missing}
    panel = Panel(four_pools().times, pl.DataFrame({"pool_id": POOLS}), fields)
    with pytest.raises(DataError) as caught:
        bundled(name).signal(panel)
    assert f"strategy {name!r} needs the field {missing!r}, which the panel lacks" in str(caught.value)
    assert "yieldlab models walk-forward" in str(caught.value)


def test_a_panel_on_which_no_pool_is_acceptable_is_an_error_and_not_an_empty_backtest() -> None:
    with pytest.raises(StrategyError, match="'risk_adjusted' has no view on any pool"):
        bundled("risk_adjusted").signal(four_pools(risk_class=(2.0, 2.0, 2.0, NaN)))


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        ({"max_risk_class": "low"}, "parameter 'max_risk_class' takes a whole number, not 'low'"),
        ({"modle": "lstm"}, "has no parameter 'modle'; did you mean 'model'?"),
    ],
)
def test_a_parameter_that_cannot_be_is_one_sentence(sets: dict[str, Value], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        entry(bundled("unified"), sets)
    assert sentence in str(caught.value)


# -- what they hold -----------------------------------------------------------------------------------------------


def test_lstm_top_holds_the_three_highest_forecasts_in_equal_shares() -> None:
    result = traded(four_pools(), "lstm_top")
    assert amounts(result) == pytest.approx({"aave": 10_000 / 3, "risky": 10_000 / 3, "untold": 10_000 / 3})
    week = 10_000 / 3 * sum((1.0 + apy) ** (7 / 365) for apy in (0.05, 0.40, 0.07))
    assert result.equity["equity_usd"][7] == pytest.approx(week, rel=1e-12)


def test_risk_adjusted_holds_only_low_and_medium_and_the_highest_apy_of_them_first() -> None:
    assert amounts(traded(four_pools(), "risk_adjusted")) == pytest.approx({"aave": 5_000.0, "curve": 5_000.0})
    assert amounts(traded(four_pools(), "risk_adjusted", top_n=1)) == pytest.approx({"curve": 10_000.0})
    assert amounts(traded(four_pools(), "risk_adjusted", top_n=1, model="lstm")) == pytest.approx({"aave": 10_000.0})


def test_risk_adjusted_sells_at_the_next_rebalance_what_has_become_high() -> None:
    panel = four_pools()
    classes = panel.raw("risk_class").copy()
    classes[3:, 1] = 2.0
    result = traded(panel.with_fields({"risk_class": classes}), "risk_adjusted")
    curve = result.trades.filter(pl.col("pool_id") == "curve")
    assert curve["amount_usd"].to_list() == pytest.approx([5_000.0, -5_000.0 * 1.06 ** (7 / 365)])
    assert curve["time"].dt.day().to_list() == [1, 8]


@pytest.mark.parametrize(("sets", "aave"), [({}, 10 / 18), ({"power": 2.0}, 100 / 164)])
def test_unified_shares_by_the_forecast_to_the_power(sets: dict[str, Value], aave: float) -> None:
    result = traded(four_pools(), "unified", **sets)
    assert amounts(result) == pytest.approx({"aave": 10_000 * aave, "curve": 10_000 * (1 - aave)})


def rising(panel: Panel, forecast: float) -> Panel:
    """The panel with this forecast for `curve` from row 3 on; that of `aave` stays 0.10."""
    values = panel.raw("forecast_lstm").copy()
    values[3:, 1] = forecast
    return panel.with_fields({"forecast_lstm": values})


@pytest.mark.parametrize(("forecast", "moves"), [(0.12, False), (0.1251, True)])
def test_unified_leaves_a_pool_held_only_for_one_that_promises_a_quarter_more(forecast: float, moves: bool) -> None:
    panel = rising(four_pools(), forecast)
    assert ("curve" in set(traded(panel, "unified", top_n=1).trades["pool_id"])) is moves
    assert "curve" in set(traded(panel, "unified", top_n=1, persistence=0.0).trades["pool_id"])


def test_unified_does_not_trade_for_a_small_change_of_weights() -> None:
    panel = rising(four_pools(), 0.09)  # 10/18 of it in aave becomes 10/19: 3 % of the capital
    result = traded(panel, "unified")
    assert result.trials["skipped"][0] == 2
    assert result.trades["time"].n_unique() == 1
    assert traded(panel, "unified", min_turnover=0.0).trades["time"].n_unique() == 3


def test_the_three_run_side_by_side_with_costs_on_a_panel_with_the_faults_of_real_ones() -> None:
    fields = {field for name in NAMES for field in bundled(name).fields()}
    panel = tiny_panel(times=90, pools=8, seed=3, fields=sorted(fields))
    result = compare(panel, [entry(bundled(name)) for name in ("highest_apy", *NAMES)])
    assert result.failures.is_empty()
    assert result.trials["strategy"].to_list() == ["highest_apy", *NAMES]
    assert result.daily.shape == (90, 5)
    assert (result.trials["cost_paid"] > 0.0).all()
    classes, row = panel["risk_class"], {pool: i for i, pool in enumerate(panel.pool_ids)}
    days = panel.times.astype("datetime64[D]").astype(object).tolist()
    bought = result.trades.filter(pl.col("strategy").is_in(["risk_adjusted", "unified"]), pl.col("amount_usd") > 0.0)
    on_the_day = [classes[days.index(t.date()), row[pool]] for t, pool in bought.select("time", "pool_id").iter_rows()]
    assert on_the_day
    assert max(on_the_day) == 1.0


# -- the audit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_they_pass_what_users_run_on_their_own(name: str) -> None:
    assert check_strategy(bundled(name).path).name == name


READ = ["forecast_{model}", "risk_class", "risk_prob_high"]


@pytest.mark.parametrize(
    ("name", "field"),
    [("lstm_top", READ[0]), *[("risk_adjusted", f) for f in READ[:2]], *[("unified", f) for f in READ]],
)
def test_reading_a_field_a_day_ahead_is_noticed(name: str, field: str, tmp_path: Path) -> None:
    source = bundled(name).source
    read = f'panel[f"{field}"]' if "{" in field else f'panel["{field}"]'
    broken = source.replace(read, f"np.roll({read}, -1, axis=0)")
    assert broken != source
    (tmp_path / f"{name}.py").write_text(broken)
    with pytest.raises(CausalityError, match=f"strategy '{name}' depends on the future"):
        check_strategy(tmp_path / f"{name}.py")


def test_the_panel_made_for_checks_has_classes_and_shares_such_as_a_risk_model_gives() -> None:
    panel = tiny_panel(fields=["risk_class", "risk_prob_high", "forecast_lstm"])
    classes, shares = panel.raw("risk_class"), panel.raw("risk_prob_high")
    assert set(classes[~np.isnan(classes)]) == {0.0, 1.0, 2.0}
    assert 0.0 <= np.nanmin(shares) < 0.1
    assert 0.9 < np.nanmax(shares) <= 1.0
    assert (np.isnan(classes) == np.isnan(panel.raw("apy"))).all()
