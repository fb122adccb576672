"""The laws of docs/accounting.md, as properties of random worlds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from worlds import World, make

from yieldlab import simulate
from yieldlab.errors import UsageError
from yieldlab.market import Market
from yieldlab.panel import Panel
from yieldlab.simulate.policy import policies

pytestmark = pytest.mark.uncompiled

SEEDS = st.integers(0, 2**32 - 1)
law = settings(max_examples=80, deadline=None, derandomize=True)


def run(world: World, rows: list[dict] | None = None, **options) -> simulate.Ledger:
    arguments = {"capital": world.capital, "t_start": world.t_start, "t_end": world.t_end, **options}
    return simulate.run(world.market, world.signal, policies(rows or world.policies), **arguments)


@law
@given(SEEDS)
def test_capital_plus_yield_less_cost_and_losses_is_the_final_value(seed: int) -> None:
    world = make(seed)
    ledger = run(world, trace=True)
    assume(ledger.status[0] == 0)
    measures = ledger.measures().row(0, named=True)
    growth = world.market.growth
    position = np.zeros(growth.shape[1])
    accrued = 0.0
    for t in range(world.t_start, world.t_end + 1):
        if t > world.t_start:
            accrued += float((position * (growth[t] - 1)).sum())
            position = position * growth[t]
        for pool, usd, lost in ledger.trades.filter(row=t).select("pool", "amount_usd", "written_off_usd").rows():
            position[pool] += usd - lost
    total = world.capital + accrued - measures["cost_paid"] - measures["written_off"]
    assert math.isclose(total, measures["final_value"], rel_tol=1e-9, abs_tol=1e-9 * world.capital)


@law
@given(SEEDS, st.integers(1, 9))
def test_without_cost_equal_weights_earn_the_mean_growth_of_the_chosen(seed: int, top_n: int) -> None:
    world = make(seed, smooth=True)
    apy = np.nan_to_num(world.panel["apy"], nan=0.03)
    panel = world.panel.with_fields({"apy": apy})
    signal = np.nan_to_num(world.signal, nan=-7.0) + np.arange(apy.shape[1]) * 1e-9
    ledger = simulate.run(Market.from_panel(panel), signal, policies({"top_n": top_n, "every": 1, "cost": 0.0}))
    days = np.diff(world.days)
    expected = [10_000.0]
    for t in range(1, apy.shape[0]):
        best = np.argsort(-signal[t - 1], kind="stable")[:top_n]
        expected.append(expected[-1] * np.mean((1 + apy[t, best]) ** (days[t - 1] / 365)))
    np.testing.assert_allclose(ledger.equity[0], expected, rtol=1e-9)


@law
@given(SEEDS, st.sampled_from([0.01, 3.0, 1e6]))
def test_without_gas_capital_only_scales(seed: int, factor: float) -> None:
    world = make(seed)
    rows = [{**policy, "gas_usd": 0.0} for policy in world.policies]
    small, large = run(world, rows), run(world, rows, capital=world.capital * factor)
    np.testing.assert_allclose(large.equity, small.equity * factor, rtol=1e-9)


@law
@given(SEEDS)
def test_a_higher_cost_never_gives_more(seed: int) -> None:
    world = make(seed, smooth=True)
    plain = {**world.policies[0], "gas_usd": 0.0, "persistence": 0.0, "min_turnover": 0.0}
    ledger = run(world, [{**plain, "cost": cost} for cost in (0.0, 0.0005, 0.01, 0.3)])
    assert np.all(np.diff(ledger.equity, axis=0) <= 1e-9 * world.capital)


@law
@given(SEEDS)
def test_a_larger_loss_never_gives_more(seed: int) -> None:
    world = make(seed, smooth=True)
    plain = {**world.policies[0], "gas_usd": 0.0, "min_turnover": 0.0}
    ledgers = [run(replace(world, delisted="loss", delisted_loss=loss), [plain]) for loss in (0.0, 0.1, 0.7, 1.0)]
    paths = np.vstack([np.nan_to_num(ledger.equity) for ledger in ledgers])  # who has lost all has nothing
    assert np.all(np.diff(paths, axis=0) <= 1e-9 * world.capital)
    written = [ledger.measures()["written_off"][0] for ledger in ledgers]
    assert written[0] is None or written[0] <= 1e-8 * world.capital
    sold = run(replace(world, delisted="exit"), [plain])
    np.testing.assert_array_equal(sold.equity, ledgers[0].equity)


@pytest.mark.parametrize(("seed", "without"), [(566, "min_turnover"), (315, "gas_usd")])
def test_with_gas_or_min_turnover_a_larger_loss_can_give_more(seed: int, without: str) -> None:
    world = make(seed, smooth=True)
    policy = [{**world.policies[0], without: 0.0}]
    paths = [
        run(replace(world, delisted="loss", delisted_loss=loss), policy).equity[0] for loss in (0.0, 0.1, 0.7, 1.0)
    ]
    assert np.any(np.diff(np.nan_to_num(np.vstack(paths)), axis=0) > 1e-6 * world.capital)


@law
@given(SEEDS)
def test_no_bar_ends_with_a_position_in_a_delisted_pool(seed: int) -> None:
    world = replace(make(seed), delisted="exit")
    dead = world.panel.age("apy") > world.dead_after_days
    state = simulate.begin(world.market, capital=world.capital, t_start=world.t_start)
    counted = 0
    for t in range(world.t_start, world.t_end + 1):
        before = state.positions > 0
        try:
            state = simulate.advance(world.market, world.signal, policies(world.policies), state, t)
        except UsageError:  # it has lost all
            return
        assert not np.any(dead[t] & (state.positions > 0)), (seed, t)
        counted += int(np.count_nonzero(before & dead[t]))
    assert run(world).measures()["delistings"][0] == counted


@law
@given(SEEDS)
def test_what_is_held_on_knows_no_delisting(seed: int) -> None:
    world = replace(make(seed, trials=3), delisted="hold")
    ledger = run(world)
    other = run(replace(world, delisted_loss=0.5, dead_after_days=world.dead_after_days + 7))
    np.testing.assert_array_equal(ledger.equity, other.equity)
    plain = Market.from_panel(world.panel, accrual=world.accrual)
    arguments = {"capital": world.capital, "t_start": world.t_start, "t_end": world.t_end}
    bare = simulate.run(plain, world.signal, policies(world.policies), **arguments)
    np.testing.assert_array_equal(ledger.equity, bare.equity)
    assert ledger.measures().select("delistings", "written_off").sum().row(0) == (0, 0.0)


@law
@given(SEEDS)
def test_the_order_of_pools_does_not_matter_when_nothing_ties(seed: int) -> None:
    world = make(seed, trials=2, smooth=True)
    order = np.random.default_rng(seed).permutation(world.signal.shape[1])
    moved = Panel(
        world.panel.times,
        world.panel.pools[order.tolist()],
        {name: world.panel.raw(name)[:, order] for name in world.panel.fields},
        max_stale_days=world.panel.max_stale_days,
    )
    other = replace(world, panel=moved, signal=world.signal[:, order])
    np.testing.assert_allclose(run(other).equity, run(world).equity, rtol=1e-9)


@law
@given(SEEDS)
def test_the_future_changes_no_past_equity_by_a_bit(seed: int) -> None:
    world = make(seed, trials=3)
    g = np.random.default_rng(seed)
    cut = int(g.integers(world.t_start, world.t_end + 1))
    original = run(world)
    whole = original.equity[:, : cut - world.t_start + 1]
    short = run(replace(world, panel=world.panel.head(cut + 1), signal=world.signal[: cut + 1], t_end=cut))
    sound = original.status == 0  # a trial that loses all later has no path, and nothing says so before
    np.testing.assert_array_equal(short.equity[sound], whole[sound])
    fields = {name: world.panel.raw(name).copy() for name in world.panel.fields}
    for values in fields.values():
        values[cut + 1 :] = g.choice([0.4, np.nan, 0.0], values[cut + 1 :].shape)
    signal = world.signal.copy()
    signal[cut + 1 :] = g.normal(size=signal[cut + 1 :].shape)
    altered = run(replace(world, panel=world.panel.with_fields(fields), signal=signal))
    sound &= altered.status == 0
    np.testing.assert_array_equal(altered.equity[sound, : cut - world.t_start + 1], whole[sound])


@law
@given(SEEDS)
def test_stepping_from_a_stored_state_gives_the_same_path(seed: int) -> None:
    world = make(seed)
    whole = run(world)
    g = np.random.default_rng(seed)
    state = simulate.begin(world.market, capital=world.capital, t_start=world.t_start)
    policy = policies(world.policies)
    stop = world.t_start - 1
    while stop < world.t_end:
        stop = min(stop + int(g.choice([1, 1, 4])), world.t_end)
        try:
            state = simulate.advance(world.market, world.signal, policy, state, stop)
        except UsageError:
            break
        if whole.status[0]:
            continue
        assert math.isclose(state.equity, whole.equity[0, stop - world.t_start], rel_tol=1e-9), seed
    assert (state.row < world.t_end) == bool(whole.status[0])  # the step on which all is lost is refused
    if whole.status[0]:
        return
    np.testing.assert_array_equal(state.counts, whole.counts[0])
    np.testing.assert_allclose(state.sums, whole.sums[0], rtol=1e-9, atol=1e-9)


@law
@given(SEEDS)
def test_trials_side_by_side_have_the_bits_of_trials_alone(seed: int) -> None:
    world = make(seed, trials=3)
    rows = [{**policy, "cost": cost} for policy in world.policies for cost in (0.0, 0.001, 0.02, 0.9)]
    together = run(world, rows)
    for r, row in enumerate(rows):
        alone = run(world, [row])
        np.testing.assert_array_equal(alone.equity[0], together.equity[r])
        assert alone.measures().row(0) == together.measures().row(r)


@law
@given(SEEDS)
def test_threads_order_and_slices_change_no_bit(seed: int) -> None:
    world = make(seed, trials=23)
    one = run(world, threads=1)
    two = run(world, threads=2, keep_equity=False)
    assert one.measures().equals(two.measures(), null_equal=True)
    order = np.random.default_rng(seed).permutation(23)
    shuffled = run(world, [world.policies[k] for k in order])
    np.testing.assert_array_equal(shuffled.equity, one.equity[order])
    parts = pl.concat([run(world, world.policies[k : k + 5]).measures() for k in range(0, 23, 5)])
    assert parts.equals(one.measures(), null_equal=True)


@law
@given(SEEDS)
def test_an_equal_signal_is_no_reason_to_move(seed: int) -> None:
    world = make(seed, smooth=True)
    apy = np.full(world.signal.shape, 0.05)
    flat = replace(world, panel=world.panel.with_fields({"apy": apy}), signal=apy)
    ledger = run(flat, [{"top_n": 2, "every": 1, "cost": 0.01}])
    assert ledger.measures()["rebalances"][0] == 1


def test_a_pool_at_five_percent_returns_five_percent_in_a_year() -> None:
    panel = Panel(
        np.datetime64("2023-01-01") + np.arange(366), pl.DataFrame({"pool_id": ["a"]}), {"apy": np.full((366, 1), 0.05)}
    )
    ledger = simulate.run(Market.from_panel(panel), panel["apy"], policies({"cost": 0.0}))
    measures = ledger.measures().row(0, named=True)
    assert math.isclose(measures["total_return"], 0.05, rel_tol=1e-12)
    assert math.isclose(measures["annualized_return"], 0.05, rel_tol=1e-12)


def test_a_yield_beyond_floats_fails_its_trial_and_no_other() -> None:
    apy = np.full((60, 2), 0.05)
    apy[10:, 1] = 1e300
    panel = Panel(
        np.datetime64("2023-01-01") + np.arange(60) * 300, pl.DataFrame({"pool_id": ["a", "b"]}), {"apy": apy}
    )
    rows = [{"top_n": 1, "every": 1000, "min_apy": None}, {"top_n": 1, "every": 20}]
    ledger = simulate.run(Market.from_panel(panel), panel["apy"], policies(rows))
    assert ledger.status[0] == 0
    assert np.isfinite(ledger.equity[0]).all()
    assert ledger.status[1] != 0
    assert "beyond what a float holds" in str(ledger.reasons[1])
    assert ledger.measures().row(1) == (None,) * len(ledger.measures().columns)


def test_a_pool_left_untraded_parts_trials_of_different_cost() -> None:
    rows = 12
    signal = np.tile([3.0, 2.0, 1.0], (rows, 1))
    signal[4:, 2] = 2.5  # pool 2 replaces pool 1 while pool 0 stands exactly at its target
    signal[8:, 0] = 0.5  # and later pool 0 goes, whose share of V depends on what the swap cost
    panel = Panel(
        np.datetime64("2023-01-01") + np.arange(rows),
        pl.DataFrame({"pool_id": ["a", "b", "c"]}),
        {"apy": np.full((rows, 3), 0.05)},
    )
    market = Market.from_panel(panel)
    costs = [{"top_n": 2, "every": 4, "cost": cost} for cost in (0.0, 0.01, 0.2)]
    together = simulate.run(market, signal, policies(costs), trace=True)
    for r, row in enumerate(costs):
        alone = simulate.run(market, signal, policies(row), trace=True)
        np.testing.assert_array_equal(alone.equity[0], together.equity[r])
        assert together.trades.filter(trial=r, row=4).height == 2
