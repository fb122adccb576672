"""The kernel and the plain oracle compute the same numbers, in worlds where every branch of the accounting binds."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import accounting_oracle as oracle
from worlds import World, make

from yieldlab import simulate
from yieldlab.metrics import MEASURES, measure
from yieldlab.simulate._record_kernels import LOST_ALL, OK
from yieldlab.simulate.policy import policies

pytestmark = pytest.mark.uncompiled

SEEDS = st.integers(0, 2**32 - 1)

#: Higher moments magnify the rounding of returns; they are compared on the kernel's own path.
MOMENTS = ("volatility", "sharpe", "sortino", "skewness", "kurtosis", "autocorrelation", "calmar", "max_drawdown")


def run(world: World, **options) -> simulate.Ledger:
    return simulate.run(
        world.market,
        world.signal,
        policies(world.policies),
        capital=world.capital,
        t_start=world.t_start,
        t_end=world.t_end,
        risk_free=world.risk_free,
        **options,
    )


def by_hand(world: World, trial: int) -> oracle.Result:
    days = world.days
    stale = world.panel.max_stale_days
    held_on = world.delisted == "hold"
    return oracle.simulate(
        days,
        oracle.carry(world.panel.raw("apy"), days, stale),
        oracle.carry(world.panel.raw("tvl_usd"), days, stale),
        world.signal,
        world.policies[trial],
        capital=world.capital,
        t_start=world.t_start,
        t_end=world.t_end,
        accrual=world.accrual,
        dead=None if held_on else oracle.deaths(world.panel.raw("apy"), days, world.dead_after_days),
        loss=world.loss,
    )


def close(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(SEEDS)
def test_kernel_and_oracle_agree(seed: int) -> None:
    world = make(seed, trials=3)
    ledger = run(world, trace=True)
    days = world.days[world.t_end] - world.days[world.t_start]
    got = ledger.measures().to_dicts()
    for trial in range(3):
        plain = by_hand(world, trial)
        assert ledger.status[trial] == (LOST_ALL if plain.failed else OK), seed
        if plain.failed:
            continue
        np.testing.assert_allclose(ledger.equity[trial], plain.equity, rtol=1e-9, atol=0, err_msg=f"seed {seed}")
        expected = oracle.measures(plain, world.capital, days, world.risk_free)
        expected |= {
            k: v
            for k, v in oracle.path_measures(ledger.equity[trial], world.capital, days, world.risk_free).items()
            if k in MOMENTS
        }
        for name in MEASURES:
            assert close(got[trial][name], expected[name]), (seed, trial, name, got[trial][name], expected[name])
        emitted = ledger.trades.filter(trial=trial)
        buried = (
            emitted.filter(pl.col("written_off_usd") > 0).select("row", "pool", "written_off_usd").sort("row", "pool")
        )
        lost = sorted((t, i, usd) for t, i, _, usd in plain.buried if usd > 0)
        assert buried.select("row", "pool").rows() == [(t, i) for t, i, _ in lost]
        np.testing.assert_allclose(buried["written_off_usd"], [usd for _, _, usd in lost], rtol=1e-6)
        trades = emitted.filter(pl.col("amount_usd") != 0)
        assert sorted(trades.select("row", "pool").rows()) == sorted((t, i) for t, i, _ in plain.trades)
        amounts = {(t, i): usd for t, i, usd in plain.trades}
        for row, pool, usd in trades.select("row", "pool", "amount_usd").rows():
            assert math.isclose(usd, amounts[row, pool], rel_tol=1e-6, abs_tol=1e-9 * world.capital), seed
        policy = world.policies[trial]
        costs = trades["amount_usd"].abs() * policy["cost"]
        np.testing.assert_allclose(trades["cost_usd"], costs, rtol=1e-12)
        assert trades["gas_usd"].to_list() == [policy["gas_usd"]] * trades.height


def test_the_worlds_make_every_branch_bind() -> None:
    seen: set[str] = set()
    for seed in range(400):
        world = make(seed)
        plain = by_hand(world, 0)
        seen |= plain.branches
        if plain.stale > 0:
            seen.add("stale")
        if plain.equity[-1] < world.capital * 0.5:
            seen.add("ruin")
    assert seen >= {
        "persistence", "tie", "empty", "hold", "nothing to trade", "skipped", "unaffordable", "left untraded",
        "purchase turned sale", "cap", "cap spread", "stale", "ruin", "delisted and sold", "delisted and abandoned",
        "delisted and lost", "lost all", "dead since the decision",
    }  # fmt: skip


@settings(max_examples=100, deadline=None, derandomize=True)
@given(SEEDS, st.sampled_from([0.0, 0.02]))
def test_measures_agree_on_any_path(seed: int, risk_free: float) -> None:
    g = np.random.default_rng(seed)
    equity = 100 * np.cumprod(1 + g.choice([0.0, 1e-4, 0.01, -0.02, g.normal()], g.integers(1, 40)).clip(-0.9))
    days = float(g.choice([0.0, 0.5, 1.0, 39.0])) if equity.size > 1 else 0.0
    days = max(days, 0.25) if equity.size > 1 else days
    got = measure(equity, capital=100.0, days=days, risk_free=risk_free)
    for name, expected in oracle.path_measures(equity, 100.0, days, risk_free).items():
        value = float(got[name][0])
        assert close(None if math.isnan(value) else value, expected), (seed, name, value, expected)
