"""What the simulation refuses, what it does at the ends of the floats, and that its compiled code is never stale."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numba
import numpy as np
import polars as pl
import pytest

import yieldlab
from yieldlab import simulate
from yieldlab.errors import DataError, UsageError
from yieldlab.market import DEFAULTS, Market, Markets
from yieldlab.metrics import PATH_MEASURES, measure
from yieldlab.panel import Panel
from yieldlab.simulate._record_kernels import LOST_ALL, OK
from yieldlab.simulate.policy import policies

COMPILED = not numba.config.DISABLE_JIT

pytestmark = pytest.mark.uncompiled


def market_of(apy: np.ndarray, tvl: np.ndarray | None = None, step_days: int = 1) -> Market:
    rows, pools = apy.shape
    times = np.datetime64("2023-01-01") + np.arange(rows) * step_days
    fields = {"apy": apy} if tvl is None else {"apy": apy, "tvl_usd": tvl}
    return Market.from_panel(Panel(times, pl.DataFrame({"pool_id": [f"p{i}" for i in range(pools)]}), fields))


SMALL = market_of(np.full((5, 3), 0.05))
SIGNAL = np.tile([3.0, 2.0, 1.0], (5, 1))


# -- refused ------------------------------------------------------------------------------------------------------


def test_a_ranking_of_another_market_is_refused() -> None:
    large = market_of(np.full((50, 30), 0.05))
    with pytest.raises(UsageError, match="another market"):
        simulate.run(SMALL, simulate.rank(large, np.ones((50, 30))), policies())
    alike = market_of(np.full((5, 3), np.nan))
    with pytest.raises(UsageError, match="another market"):
        simulate.run(alike, simulate.rank(SMALL, SIGNAL), policies())


def test_a_ranking_keeps_the_signal_that_it_ranked() -> None:
    signal = SIGNAL.copy()
    ranking = simulate.rank(SMALL, signal)
    signal[:] = 0.0
    np.testing.assert_array_equal(ranking.signal, SIGNAL)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("every", 0),
        ("lag", -1),
        ("top_n", 0),
        ("top_n", 2**40),
        ("cost", 1.0),
        ("cost", math.nan),
        ("weighting", 4),
        ("max_weight", 0.0),
        ("min_tvl", math.inf),
        ("on_empty", -1),
    ],
)
def test_records_out_of_range_are_refused(name: str, value: float) -> None:
    records = policies([{}, {}])
    records[name][1] = value
    with pytest.raises(UsageError, match=f"policy 1 has {name}"):
        simulate.run(SMALL, SIGNAL, records)


@pytest.mark.parametrize("records", [{"top_n": 3}, policies()[0], policies()[None, :], np.ones(3)])
def test_anything_but_a_row_of_records_is_refused(records: object) -> None:
    with pytest.raises(UsageError, match="must be records"):
        simulate.run(SMALL, SIGNAL, records)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"capital": 0.0}, "capital must be a positive number"),
        ({"capital": math.nan}, "capital must be a positive number"),
        ({"capital": True}, "capital must be a positive number"),
        ({"risk_free": math.inf}, "risk_free must be a finite"),
        ({"threads": 0}, "threads must be"),
        ({"t_start": 3, "t_end": 2}, "do not lie in order"),
        ({"t_end": 5}, "do not lie in order"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        simulate.run(SMALL, SIGNAL, policies(), **options)


@pytest.mark.parametrize("signal", [np.ones((4, 3)), np.full((5, 3), np.inf), np.ones(5)])
def test_an_array_that_is_no_signal_is_refused(signal: np.ndarray) -> None:
    with pytest.raises(UsageError, match="signal"):
        simulate.run(SMALL, signal, policies())


def test_a_state_of_another_market_and_several_policies_are_refused() -> None:
    other = simulate.begin(market_of(np.full((5, 9), 0.05)))
    with pytest.raises(UsageError, match="one policy and a position per pool"):
        simulate.advance(SMALL, SIGNAL, policies(), other, 2)
    with pytest.raises(UsageError, match="one policy and a position per pool"):
        simulate.advance(SMALL, SIGNAL, policies([{}, {}]), simulate.begin(SMALL), 2)
    with pytest.raises(UsageError, match="do not lie in order"):
        simulate.advance(SMALL, SIGNAL, policies(), simulate.begin(SMALL), -1)


@pytest.mark.parametrize(
    "value", [{"top_n": [1, 2]}, {"top_n": 2**31}, {"every": 1.5}, {"cost": "much"}, {"gas_usd": None}]
)
def test_a_value_that_a_parameter_does_not_take_is_refused(value: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(value))):
        policies(value)


def test_true_is_no_number_beside_numbers() -> None:
    with pytest.raises(UsageError, match="not True"):
        policies([{"top_n": 1}, {"top_n": True}])


@pytest.mark.parametrize(("field", "value"), [("apy", np.inf), ("tvl_usd", np.inf)])
def test_a_market_takes_no_infinite_value(field: str, value: float) -> None:
    fields = {"apy": np.full((5, 3), 0.05), "tvl_usd": np.full((5, 3), 1e6)}
    fields[field][2, 1] = value
    with pytest.raises(DataError, match=f"'p1' has an infinite {field} on 2023-01-03"):
        market_of(fields["apy"], fields["tvl_usd"])


def test_a_market_takes_no_yield_of_minus_a_hundred_percent() -> None:
    with pytest.raises(DataError, match="must exceed -100 %"):
        market_of(np.full((5, 3), -1.0))


@pytest.mark.parametrize(
    ("equity", "options"),
    [
        ([1.0, 0.0, 3.0], {"days": 2.0}),
        ([1.0, 2.0], {"days": 0.0}),
        ([1.0, 2.0], {"days": math.nan}),
        ([1.0, math.nan], {"days": 1.0}),
        ([1.0, 2.0], {"days": 1.0, "capital": math.inf}),
        ([[[1.0]]], {"days": 0.0}),
    ],
)
def test_a_path_that_cannot_be_measured_is_refused(equity: list, options: dict) -> None:
    with pytest.raises(UsageError):
        measure(np.array(equity), **{"capital": 1.0, **options})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"delisted": "sell"}, "unknown delisted 'sell'"),
        ({"delisted": "loss", "delisted_loss": 1.01}, "a fraction from 0 to 1, not 1.01"),
        ({"delisted": "loss", "delisted_loss": math.nan}, "a fraction from 0 to 1, not nan"),
        ({"delisted": "exit", "dead_after_days": 2}, "at least max_stale_days, not 2 with 3"),
        ({"delisted": "exit", "dead_after_days": 30.0}, "a whole number >= 0"),
    ],
)
def test_a_market_refuses_parameters_that_cannot_be(options: dict, sentence: str) -> None:
    panel = Panel(
        np.datetime64("2023-01-01") + np.arange(5), pl.DataFrame({"pool_id": ["p"]}), {"apy": np.ones((5, 1))}
    )
    with pytest.raises(UsageError, match=sentence):
        Market.from_panel(panel, **options)


# -- delisted pools -----------------------------------------------------------------------------------------------


def dying(last: dict[int, int], *, rows: int = 12, pools: int = 2, apy: float = 0.0) -> Panel:
    """Pools at one yield, observed on every row up to their last (all, where none is given) and believed for a day."""
    observed = np.full((rows, pools), apy)
    for pool, row in last.items():
        observed[row + 1 :, pool] = np.nan
    times = np.datetime64("2023-01-01") + np.arange(rows)
    return Panel(times, pl.DataFrame({"pool_id": [f"p{i}" for i in range(pools)]}), {"apy": observed}, max_stale_days=1)


def held_to_the_end(panel: Panel, policy: dict, **rule: object) -> simulate.Ledger:
    """All pools bought on the first row and never rebalanced, 1,000 USD, unless `policy` says otherwise."""
    market = Market.from_panel(panel, dead_after_days=3, **rule)  # type: ignore[arg-type]
    policy = {"top_n": 9, "every": 1_000, "cost": 0.0, **policy}
    return simulate.run(market, np.ones(market.shape), policies(policy), capital=1_000.0, trace=True)


def test_a_delisted_pool_is_sold_on_the_first_bar_after_its_grace() -> None:
    ledger = held_to_the_end(dying({1: 2}), {}, delisted="exit")
    assert ledger.trades.select("row", "pool_id", "amount_usd", "written_off_usd").rows() == [
        (0, "p0", 500.0, 0.0),
        (0, "p1", 500.0, 0.0),
        (6, "p1", -500.0, 0.0),  # last seen on row 2, three days of grace, four days old on row 6
    ]
    measures = ledger.measures().row(0, named=True)
    assert (measures["delistings"], measures["trades"], measures["rebalances"]) == (1, 3, 1)
    assert measures["written_off"] == 0.0
    assert math.isclose(measures["turnover"], (0.5 + 0.25) * 365 / 11, rel_tol=1e-12)
    np.testing.assert_array_equal(ledger.equity, 1_000.0)


def test_a_loss_is_written_off_and_the_rest_pays_for_its_sale() -> None:
    ledger = held_to_the_end(dying({1: 2}), {"cost": 0.01, "gas_usd": 2.0}, delisted="loss", delisted_loss=0.4)
    bought = (1_000.0 - 4.0) / 1.01 / 2  # of each pool
    left = 0.6 * bought
    sale = ledger.trades.row(2, named=True)
    for name, expected in {
        "amount_usd": -left, "cost_usd": 0.01 * left, "gas_usd": 2.0, "written_off_usd": 0.4 * bought
    }.items():  # fmt: skip
        assert math.isclose(sale[name], expected, rel_tol=1e-12)
    equity = np.repeat([2 * bought, bought + 0.99 * left - 2.0], [6, 6])
    np.testing.assert_allclose(ledger.equity[0], equity, rtol=1e-12)
    measures = ledger.measures().row(0, named=True)
    assert math.isclose(measures["written_off"], 0.4 * bought, rel_tol=1e-12)
    assert math.isclose(measures["cost_paid"], 0.01 * (2 * bought + left) + 6.0, rel_tol=1e-12)


def test_what_would_not_pay_for_its_sale_is_abandoned() -> None:
    for gas, sold in ((45.0, True), (46.0, False)):  # a tenth of 500 - gas is left to sell
        ledger = held_to_the_end(dying({1: 2}), {"gas_usd": gas}, delisted="loss", delisted_loss=0.9)
        bought = 500.0 - gas
        left = 0.1 * bought if sold else 0.0
        measures = ledger.measures().row(0, named=True)
        assert (measures["delistings"], measures["trades"]) == (1, 2 + sold)
        assert math.isclose(measures["written_off"], bought - left, rel_tol=1e-12)
        assert math.isclose(measures["cost_paid"], (2 + sold) * gas, rel_tol=1e-12)
        assert math.isclose(measures["final_value"], bought + (left - gas if sold else 0.0), rel_tol=1e-12)
        paid = ledger.trades.row(2, named=True)
        assert math.isclose(paid["amount_usd"], -left, rel_tol=1e-12)
        assert (paid["cost_usd"], paid["gas_usd"]) == (0.0, gas if sold else 0.0)


def test_a_delisting_comes_before_the_decision_of_its_bar() -> None:
    ledger = held_to_the_end(dying({1: 2}), {"every": 6, "cost": 0.01}, delisted="exit")
    assert [(row, pool, usd > 0) for row, pool, usd in ledger.trades.select("row", "pool", "amount_usd").rows()] == [
        (0, 0, True),
        (0, 1, True),
        (6, 1, False),
        (6, 0, True),
    ]
    bought = 1_000.0 / 1.01 / 2
    value = bought + 0.99 * bought
    np.testing.assert_allclose(ledger.equity[0, 6:], bought + (value - bought) / 1.01, rtol=1e-12)


def test_a_pool_delisted_since_the_row_decided_on_is_not_bought() -> None:
    signal = np.tile([0.0, 1.0], (12, 1))
    market = Market.from_panel(dying({1: 4}), delisted="exit", dead_after_days=1)
    for lag, pool in ((2, 1), (3, 0)):  # on row 6 p1 is two days old, and dead
        policy = policies({"top_n": 1, "lag": lag, "every": 6, "warmup": 1, "cost": 0.0})
        ledger = simulate.run(market, signal, policy, t_end=6, t_start=0, trace=True)
        assert ledger.trades["pool"].to_list() == [0], (lag, pool)
    late = simulate.run(market, signal, policies({"top_n": 1, "lag": 1, "every": 5, "warmup": 1}), trace=True, t_end=5)
    assert late.trades["pool"].to_list() == [1]  # a day old on row 5, and bought


def test_a_pool_that_comes_back_is_bought_again() -> None:
    observed = np.zeros((14, 1))
    observed[3:9] = np.nan
    times = np.datetime64("2023-01-01") + np.arange(14)
    panel = Panel(times, pl.DataFrame({"pool_id": ["p"]}), {"apy": observed}, max_stale_days=1)
    ledger = held_to_the_end(panel, {"every": 1, "on_empty": "hold"}, delisted="loss", delisted_loss=0.5)
    assert ledger.trades.select("row", "amount_usd", "written_off_usd").rows() == [
        (0, 1_000.0, 0.0),
        (6, -500.0, 500.0),
        (9, 500.0, 0.0),
    ]


def test_a_pool_never_seen_is_not_dead() -> None:
    observed = np.zeros((12, 2))
    observed[:9, 1] = np.nan
    market = Market.from_panel(
        Panel(np.datetime64("2023-01-01") + np.arange(12), pl.DataFrame({"pool_id": ["a", "b"]}), {"apy": observed}),
        delisted="exit",
    )
    assert market.next_dead is not None
    assert np.all(market.next_dead == 12)


def test_who_loses_all_fails_and_says_so() -> None:
    ledger = held_to_the_end(dying({0: 2, 1: 2}), {}, delisted="loss")
    assert ledger.status[0] == LOST_ALL
    assert ledger.reasons == ["delistings took all of it"]
    assert ledger.measures().row(0) == (None,) * len(ledger.measures().columns)
    saved = held_to_the_end(dying({0: 2, 1: 2}), {"max_weight": 0.25}, delisted="loss")
    np.testing.assert_allclose(saved.equity[0], np.repeat([1_000.0, 500.0], [6, 6]), rtol=1e-12)


def test_what_is_next_to_nothing_after_a_loss_is_nothing() -> None:
    panel = dying({0: 2}, pools=1)
    market = Market.from_panel(panel, delisted="loss", dead_after_days=3)
    for cash, failed in ((1e-11, False), (1e-13, True)):
        policy = policies({"weighting": "signal", "every": 1_000, "cost": 0.0})
        ledger = simulate.run(market, np.full(market.shape, 1.0 - cash), policy, capital=1_000.0)
        assert ledger.status[0] == (LOST_ALL if failed else OK)


def test_losing_all_to_delistings_and_leaving_the_floats_are_told_apart_side_by_side() -> None:
    panel = dying({0: 2, 1: 2}, rows=500, pools=3)
    wild = panel.raw("apy").copy()
    wild[:, 2] = 1e300
    panel = Panel(panel.times, panel.pools, {"apy": wild}, max_stale_days=1)
    market = Market.from_panel(panel, delisted="loss", dead_after_days=3)
    rows = [{"top_n": 2, "every": 1_000, "cost": cost} for cost in (0.0, 0.1)]
    lost = simulate.run(market, np.tile([3.0, 2.0, np.nan], (500, 1)), policies(rows))
    assert lost.reasons == ["delistings took all of it"] * 2
    overflown = simulate.run(market, np.tile([np.nan, np.nan, 1.0], (500, 1)), policies(rows))
    assert all("beyond what a float holds" in str(reason) for reason in overflown.reasons)
    held = simulate.advance(
        market, np.ones(market.shape) * [1.0, 1.0, np.nan], policies(rows[0]), simulate.begin(market), 5
    )
    with pytest.raises(UsageError, match="the step to row 11 failed: delistings took all of it"):
        simulate.advance(market, np.ones(market.shape) * [1.0, 1.0, np.nan], policies(rows[0]), held, 11)


def test_who_rebalances_gets_out_at_full_value_unless_death_comes_with_the_end_of_belief() -> None:
    panel = dying({1: 2})
    for dead_after_days, value in ((2, 1_000.0), (1, 500.0)):  # believed for a day, so without an APY from row 4 on
        market = Market.from_panel(panel, delisted="loss", dead_after_days=dead_after_days)
        policy = policies({"every": 1, "cost": 0.0})
        ledger = simulate.run(market, np.ones(market.shape), policy, capital=1_000.0)
        assert ledger.kept_equity[0, -1] == value


def test_a_whole_loss_does_not_part_trials_and_any_other_does_so_without_a_trace() -> None:
    panel = dying({1: 2, 2: 5, 4: 6}, rows=40, pools=6, apy=0.1)
    rows = [{"top_n": 5, "every": 13, "cost": cost, "gas_usd": 1.0} for cost in (0.0, 0.002, 0.03, 0.5)]
    for loss in (0.0, 0.3, 1.0):
        market = Market.from_panel(panel, delisted="loss", delisted_loss=loss, dead_after_days=3)
        together = simulate.run(market, np.ones(market.shape), policies(rows), trace=True)
        for r, row in enumerate(rows):
            alone = simulate.run(market, np.ones(market.shape), policies(row), trace=True)
            np.testing.assert_array_equal(alone.equity[0], together.equity[r])
            assert alone.trades.drop("trial").equals(together.trades.filter(trial=r).drop("trial"))


def test_a_state_from_before_the_rule_sells_on_its_next_row() -> None:
    panel = dying({1: 2})
    signal = np.ones(panel.shape)
    policy = policies({"top_n": 2, "every": 1_000, "cost": 0.0})
    state = simulate.advance(Market.from_panel(panel), signal, policy, simulate.begin(Market.from_panel(panel)), 8)
    assert state.positions[1] > 0.0
    after = simulate.advance(Market.from_panel(panel, delisted="exit", dead_after_days=3), signal, policy, state, 9)
    assert (after.positions[1], after.cash) == (0.0, state.positions[1])


def test_a_masked_yield_still_shows_that_its_pool_is_listed() -> None:
    observed = np.full((40, 1), 0.05)
    observed[20:30] = 90.0
    panel = Panel(np.datetime64("2023-01-01") + np.arange(40), pl.DataFrame({"pool_id": ["p"]}), {"apy": observed})
    markets = Markets(panel)
    params = {**DEFAULTS, "spikes": "mask", "delisted": "exit", "max_stale_days": 1, "dead_after_days": 4}
    market = markets.market(params)
    assert np.isnan(market.apy[25, 0])
    assert market.next_dead is not None
    assert np.all(market.next_dead == 40)


# -- the ends of the floats ---------------------------------------------------------------------------------------


def held_late(apy_before: float, *, rows: int = 60, step_days: int = 1) -> tuple[float, float]:
    """Final value of a pool at 5 % held for the last ten rows, after another life before, and what it should be."""
    apy = np.full((rows, 1), apy_before)
    apy[-10:] = 0.05
    market = market_of(apy, step_days=step_days)
    ledger = simulate.run(
        market, np.ones((rows, 1)), policies({"every": 100, "cost": 0.0}), capital=100.0, t_start=rows - 10
    )
    return ledger.kept_equity[0, -1], 100.0 * 1.05 ** (9 * step_days / 365)


@pytest.mark.parametrize(("before", "rows"), [(1e60, 60), (1e6, 60), (-0.999999, 60), (-0.999999, 64), (-0.999999, 90)])
def test_what_a_pool_was_before_the_window_does_not_matter(before: float, rows: int) -> None:
    value, expected = held_late(before, rows=rows, step_days=365)
    assert math.isclose(value, expected, rel_tol=1e-12)


def test_staleness_is_counted_where_the_index_has_left_the_floats() -> None:
    apy = np.full((60, 1), 1e60)
    apy[50:54] = 0.05
    apy[54:] = np.nan
    panel = Panel(
        np.datetime64("1900-01-01") + np.arange(60) * 365,
        pl.DataFrame({"pool_id": ["p"]}),
        {"apy": apy},
        max_stale_days=0,
    )
    ledger = simulate.run(
        Market.from_panel(panel), np.ones((60, 1)), policies({"every": 100, "cost": 0.0}), t_start=50, t_end=59
    )
    values = [1.05**k for k in (0, 1, 2, 3, 3, 3, 3, 3, 3)]  # before each accrual; the last six without an APY
    assert math.isclose(ledger.measures()["stale_share"][0], sum(values[3:]) / sum(values), rel_tol=1e-12)


@pytest.mark.parametrize("weighting", ["score", "signal", "tvl"])
def test_weights_near_the_largest_float_are_shared(weighting: str) -> None:
    market = market_of(np.full((5, 2), 0.05), np.full((5, 2), 1e308))
    policy = policies({"weighting": weighting, "cost": 0.0})
    ledger = simulate.run(market, np.full((5, 2), 1e308), policy, capital=100.0, trace=True)
    assert ledger.trades["amount_usd"].to_list() == [50.0, 50.0]


def test_stale_share_is_exact_however_little_is_invested() -> None:
    apy = np.full((9, 1), 0.05)
    apy[4:] = np.nan
    panel = Panel(
        np.datetime64("2023-01-01") + np.arange(9) * 30,
        pl.DataFrame({"pool_id": ["p"]}),
        {"apy": apy},
        max_stale_days=0,
    )
    policy = policies({"weighting": "signal", "every": 100, "cost": 0.0})
    ledger = simulate.run(Market.from_panel(panel), np.full((9, 1), 2e-9), policy)
    growth = 1.05 ** (30 / 365)
    values = [growth**k for k in (0, 1, 2, 3, 3, 3, 3, 3)]
    assert math.isclose(ledger.measures()["stale_share"][0], sum(values[3:]) / sum(values), rel_tol=1e-9)


def test_full_investment_leaves_no_cash_behind() -> None:
    apy = np.full((3, 49), -1.0 + 1e-15)
    market = market_of(apy, step_days=365)
    ledger = simulate.run(market, np.ones((3, 49)), policies({"top_n": 49, "every": 100, "cost": 0.0}), capital=100.0)
    assert ledger.status[0] == 0
    np.testing.assert_allclose(ledger.equity[0], 100.0 * (1.0 + apy[0, 0]) ** np.arange(3), rtol=1e-12)


def test_equity_that_leaves_the_floats_fails_the_trial() -> None:
    up = market_of(np.full((3, 1), 1e200), step_days=365)
    down = market_of(np.full((4, 1), -1.0 + 1e-15), step_days=3650)
    for market, capital in ((up, 1e10), (down, 1e-300)):
        ledger = simulate.run(market, np.ones(market.shape), policies({"every": 1, "cost": 0.0}), capital=capital)
        assert ledger.status[0] == 1
        assert "beyond what a float holds" in str(ledger.reasons[0])


def test_a_move_that_leaves_next_to_nothing_is_made_and_one_that_leaves_nothing_is_not() -> None:
    market = market_of(np.full((2, 1), 0.05))
    signal = np.ones((2, 1))
    # All in one pool: V' + cost V' + gas = V, so that (V - gas) / (1 + cost) is left.
    for left, moves in ((1e-6, 1), (1e-11, 1), (1e-13, 0), (-1.0, 0)):
        gas = 100.0 * (1.0 - left)
        ledger = simulate.run(market, signal, policies({"gas_usd": gas, "cost": 0.0}), capital=100.0, t_end=0)
        measures = ledger.measures().row(0, named=True)
        assert (measures["rebalances"], measures["unaffordable"]) == (moves, 1 - moves)


def test_a_deviation_just_above_rounding_is_a_deviation() -> None:
    r = 1e-4 + np.tile([5e-12, -5e-12], 50)
    measured = measure(np.cumprod(1.0 + r), capital=1.0, days=99.0)
    assert measured["volatility"][0] > 0.0
    assert math.isfinite(measured["sharpe"][0])
    flat = measure(np.cumprod(np.full(100, 1.0 + 1e-4)), capital=1.0, days=99.0)
    assert flat["volatility"][0] == 0.0
    assert math.isnan(flat["sharpe"][0])


def test_turnover_a_year_needs_a_day() -> None:
    times = np.datetime64("2023-01-01", "us") + np.arange(3) * np.timedelta64(6, "h")
    panel = Panel(times, pl.DataFrame({"pool_id": ["p"]}), {"apy": np.full((3, 1), 0.05)})
    measures = simulate.run(Market.from_panel(panel), np.ones((3, 1)), policies()).measures().row(0, named=True)
    assert measures["rebalances"] == 1
    assert measures["turnover"] is None
    assert measures["annualized_return"] is None


def test_favour_raises_no_negative_signal() -> None:
    signal = np.full((2, 3), np.nan)
    signal[0, 0] = 1.0  # p0 alone is bought
    signal[1] = [-1.0, 0.5, -1.5]  # and stays beside p1, since -1.0 counts once, not twice
    policy = policies({"top_n": 2, "every": 1, "persistence": 1.0, "cost": 0.0})
    ledger = simulate.run(market_of(np.full((2, 3), 0.05)), signal, policy, trace=True)
    assert [(row, pool) for row, pool in ledger.trades.select("row", "pool").rows()] == [(0, 0), (1, 0), (1, 1)]


# -- compiled code ------------------------------------------------------------------------------------------------


def test_the_kernel_knows_how_many_measures_a_path_has() -> None:
    from yieldlab.metrics import _kernels

    assert len(PATH_MEASURES) == _kernels.PATH_MEASURES


@pytest.mark.skipif(not COMPILED, reason="kernels run uncompiled here")
def test_one_compilation_serves_every_kind_of_argument() -> None:
    from yieldlab.simulate._kernels import run_all

    simulate.run(SMALL, SIGNAL, policies())
    before = len(run_all.signatures)
    frozen = SIGNAL.copy()
    frozen.flags.writeable = False
    records = policies([{}, {}, {}, {}])
    records.flags.writeable = False
    simulate.run(SMALL, frozen, records[::2], capital=10_000, risk_free=0)
    simulate.run(SMALL, SIGNAL.astype(np.float32), policies(), capital=np.float32(100), t_start=np.int32(1))
    simulate.run(SMALL, simulate.rank(SMALL, SIGNAL), policies(), trace=True, keep_equity=False)
    simulate.advance(SMALL, SIGNAL, policies(), simulate.begin(SMALL, capital=1000), np.int64(2))
    assert len(run_all.signatures) == before


@pytest.mark.skipif(not COMPILED, reason="kernels run uncompiled here")
def test_threads_are_given_back_and_two_callers_wait_for_each_other() -> None:
    before = numba.get_num_threads()
    expected = simulate.run(SMALL, SIGNAL, policies(), threads=1).equity
    assert numba.get_num_threads() == before
    found: list[np.ndarray] = []
    callers = [
        threading.Thread(target=lambda: found.append(simulate.run(SMALL, SIGNAL, policies()).equity)) for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 4
    assert all(np.array_equal(equity, expected) for equity in found)


@pytest.mark.slow
@pytest.mark.skipif(not COMPILED, reason="kernels run uncompiled here")
def test_a_changed_helper_is_never_run_from_the_cache(tmp_path: Path) -> None:
    """Numba alone would go on with the machine code of a kernel whose own file did not change."""
    shutil.copytree(Path(yieldlab.__file__).parent, tmp_path / "yieldlab", ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        "import numpy as np\n"
        "from yieldlab.metrics import measure\n"
        "print(measure(np.array([1.0, 2.0]), capital=1.0, days=365.0)['annualized_return'][0])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def answer() -> float:
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        return float(done.stdout)

    assert answer() == answer() == 1.0
    units = tmp_path / "yieldlab" / "units.py"
    units.write_text(units.read_text().replace("DAYS_PER_YEAR = 365.0", "DAYS_PER_YEAR = 730.0"))
    assert answer() == 3.0


@pytest.mark.parametrize("weighting", ["equal", "score", "tvl"])
def test_a_sole_pool_has_all_of_the_capital_whatever_the_weighting(weighting: str) -> None:
    g = np.random.default_rng(0)
    market = market_of(np.full((40, 1), 0.05), g.uniform(1e5, 1e9, (40, 1)))
    policy = policies({"weighting": weighting, "every": 1, "cost": 0.0})
    ledger = simulate.run(market, g.uniform(0.0, 1.0, (40, 1)), policy, capital=100.0, trace=True)
    assert ledger.trades["amount_usd"].to_list() == [100.0]
