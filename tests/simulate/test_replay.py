"""vectorbt, rebuilt from the emitted trades, has the same equity."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from worlds import make

from yieldlab import simulate
from yieldlab.errors import UsageError
from yieldlab.market import Market
from yieldlab.panel import Panel
from yieldlab.sample import reference_study
from yieldlab.simulate.policy import policies
from yieldlab.simulate.replay import comparable, largest_difference, replay, spare_cash

pytest.importorskip("vectorbt", reason="the vectorbt extra is not installed")


def traced(seed: int, trials: int = 4) -> tuple:
    world = make(seed, trials=trials)
    market = world.market
    ledger = simulate.run(
        market,
        world.signal,
        policies(world.policies),
        capital=world.capital,
        t_start=world.t_start,
        t_end=world.t_end,
        trace=True,
    )
    return market, ledger


def test_vectorbt_has_the_same_equity_in_random_worlds() -> None:
    compared = delisted = 0
    for seed in range(150):
        market, ledger = traced(seed)
        # What is left of a ruined trial is rounding of what it was: relative differences say nothing there.
        sound = [r for r in range(4) if not ledger.status[r] and ledger.equity[r].min() > 1e-4 * ledger.capital]
        if sound:
            assert largest_difference(market, ledger, sound) < 1e-9, seed
            compared += len(sound)
            delisted += ledger.trades.filter(pl.col("trial").is_in(sound), pl.col("written_off_usd") > 0).height
    assert compared > 350
    assert delisted > 50


def test_what_keeps_above_a_millionth_of_its_highest_is_replayed_to_nine_digits_and_deeper_falls_are_not() -> None:
    deep = lost = 0
    for seed in range(400):
        market, ledger = traced(seed)
        for trial in np.flatnonzero(ledger.status == 0):
            if ledger.equity[trial].min() > 1e-4 * ledger.capital or not ledger.traced[trial]:
                continue
            if comparable(ledger, trial):
                assert largest_difference(market, ledger, [trial]) < 1e-9, (seed, trial)
                deep += 1
            else:
                lost += largest_difference(market, ledger, [trial]) > 1e-9
    assert deep >= 10
    assert lost >= 10


def test_every_trade_of_ours_is_an_order_of_vectorbt() -> None:
    market, ledger = traced(5)
    portfolio = replay(market, ledger)
    with_gas = ledger.trades.filter(ledger.trades["gas_usd"] > 0).group_by("trial", "row").len().height
    assert portfolio.orders.count().sum() == ledger.trades.height + with_gas
    fees = portfolio.orders.records["fees"].sum()
    np.testing.assert_allclose(fees, ledger.measures()["cost_paid"].sum(), rtol=1e-9)


def test_an_altered_trade_shows() -> None:
    market, ledger = traced(5)
    ledger.trace[np.argmax(ledger.traced), 0, 2] *= 0.999
    assert largest_difference(market, ledger) > 1e-9


def test_spare_cash_is_out_of_sight_where_no_pool_is_left_untraded() -> None:
    _, ledger = traced(5)
    assert np.all(spare_cash(ledger) <= 1.01e-6 * ledger.equity.max(axis=1))


def test_years_of_daily_trades_are_replayed_to_the_last() -> None:
    """Thousands of rebalances that each spend the last cent: rounding must not have vectorbt refuse one."""
    metrics, assets = reference_study(seed=0)
    panel = Panel.from_long(metrics, assets)
    market = Market.from_panel(panel)
    rows = [
        {"top_n": n, "every": 1, "weighting": w, "min_turnover": m}
        for n in (1, 8)
        for w in ("equal", "tvl")
        for m in (0.0, 0.02)
    ]
    ledger = simulate.run(market, panel["apy"], policies(rows), trace=True)
    assert ledger.trades.height > 20_000
    assert largest_difference(market, ledger) < 1e-9


def test_an_untraced_ledger_is_refused() -> None:
    world = make(3)
    ledger = simulate.run(world.market, world.signal, policies(world.policies))
    with pytest.raises(UsageError, match="trace=True"):
        replay(world.market, ledger)
