"""Which trials a sweep has, in which order, and under which names."""

from __future__ import annotations

import itertools
import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import sweep_worlds

from yieldlab.backtest import compare, entry, split_params
from yieldlab.errors import DataError, MemoryLimitError, UsageError
from yieldlab.simulate.policy import POLICY, policies
from yieldlab.strategy import Strategy
from yieldlab.sweep import Plan, from_config, plan


@pytest.fixture
def steady(tmp_path: Path) -> Strategy:
    return sweep_worlds.strategy(tmp_path)


def test_every_combination_is_there_once_with_every_parameter(steady: Strategy) -> None:
    planned = plan(steady, {"accrual": ["trailing", "leading"], "gas_usd": [0, 5]})
    frame = planned.frame(0, len(planned))
    expected = set(
        itertools.product([3, 1, 10], [1.0, -1.0], [2, 1, 5], [7, 1], [0.001, 0.0, 0.02], ["equal", "score"],
                          ["trailing", "leading"], [0.0, 5.0])
    )  # fmt: skip
    names = ["lookback", "sign", "top_n", "every", "cost", "weighting", "accrual", "gas_usd"]
    assert set(frame.select(names).iter_rows()) == expected
    assert frame.height == len(expected) == frame["trial_id"].n_unique()
    assert frame.columns == ["trial_id", *planned.parameters]
    assert set(POLICY.names or ()) < set(frame.columns)


def test_the_warm_up_of_the_strategy_is_the_policys_unless_it_is_set(steady: Strategy) -> None:
    planned = plan(steady)
    assert (planned.frame(0, len(planned))["warmup"] == planned.frame(0, len(planned))["lookback"]).all()
    assert set(plan(steady, {"warmup": [0]}).frame(0, 5)["warmup"]) == {0}
    fixed = sweep_worlds.STEADY.replace('WARMUP = "lookback"', "WARMUP = 5")
    other = sweep_worlds.strategy(steady.path.parent, fixed, "fixed")
    assert set(plan(other).frame(0, 9)["warmup"]) == set(plan(other).records(0, 9)["warmup"]) == {5}
    assert split_params(steady).policy["warmup"] == 3
    assert split_params(steady, {"lookback": 10}).policy["warmup"] == 10
    assert split_params(steady, {"lookback": 10, "warmup": 4}).policy["warmup"] == 4


def test_records_are_what_the_table_says(steady: Strategy) -> None:
    planned = plan(steady, {"min_apy": [None, 0.01], "on_empty": ["cash", "hold"]})
    for begin, end in ((0, len(planned)), (17, 40), (5, 6)):
        frame = planned.frame(begin, end)
        table = policies(frame.select(POLICY.names))
        records = planned.records(begin, end)
        for name in POLICY.names:
            np.testing.assert_array_equal(records[name], table[name])


def test_trials_of_one_market_and_signal_stand_together_and_cost_turns_fastest(steady: Strategy) -> None:
    planned = plan(steady, {"accrual": ["trailing", "leading"], "max_stale_days": [3, 1]})
    frame = planned.frame(0, len(planned))
    points = frame.select("max_stale_days", "lookback", "sign", "accrual")
    changes = sum(a != b for a, b in itertools.pairwise(points.iter_rows()))
    assert changes + 1 == points.n_unique() == 24
    assert frame["cost"].to_list()[:6] == [0.001, 0.0, 0.02] * 2
    assert frame["top_n"].to_list()[:6] == [2] * 6
    assert planned.distinct() == (12, 4)


def test_points_cover_any_stretch_in_order(steady: Strategy) -> None:
    planned = plan(steady, {"accrual": ["trailing", "leading"]}, sample=150, seed=3)
    for begin, end in ((0, 150), (11, 97), (149, 150)):
        points = list(planned.points(begin, end))
        assert [points[0].begin, points[-1].end] == [begin, end]
        assert all(a.end == b.begin for a, b in itertools.pairwise(points))
        for point in points:
            rows = planned.frame(point.begin, point.end)
            for name, value in {**point.market, **point.signal}.items():
                assert set(rows[name]) == {value}


@pytest.mark.parametrize(("size", "most"), [(1, 1), (7, 2), (36, 1), (50, 100), (4096, 16)])
def test_chunks_cover_the_plan_within_their_limits(steady: Strategy, size: int, most: int) -> None:
    planned = plan(steady, sample=200, seed=1)
    bounds = planned.bounds(size, most)
    assert bounds[0] == 0
    assert bounds[-1] == len(planned)
    for begin, end in itertools.pairwise(bounds.tolist()):
        assert 0 < end - begin <= size
        assert len(list(planned.points(begin, end))) <= most


def test_a_sample_is_part_of_the_grid_with_the_same_ids(steady: Strategy) -> None:
    whole = plan(steady)
    part = plan(steady, sample=20, seed=5)
    assert len(part) == 20
    assert set(part.frame(0, 20)["trial_id"]) < set(whole.frame(0, len(whole))["trial_id"])
    assert part.frame(0, 20).equals(plan(steady, sample=20, seed=5).frame(0, 20))
    assert not part.frame(0, 20).equals(plan(steady, sample=20, seed=6).frame(0, 20))


def test_settings_give_way_to_the_strategy_and_that_to_the_command_line(steady: Strategy) -> None:
    def costs(planned: Plan) -> set[float]:
        return set(planned.frame(0, len(planned))["cost"])

    assert costs(plan(steady, defaults={"cost": 0.5})) == {0.001, 0.0, 0.02}
    assert costs(plan(steady, {"cost": [0.3]}, defaults={"cost": 0.5})) == {0.3}
    assert set(plan(steady, defaults={"gas_usd": 2}).frame(0, 9)["gas_usd"]) == {2.0}
    assert split_params(steady, defaults={"cost": 0.5, "gas_usd": 2}).policy["cost"] == 0.001
    assert split_params(steady, {"cost": 0}, defaults={"cost": 0.5}).policy["cost"] == 0.0


def test_a_plan_comes_back_from_its_configuration(steady: Strategy) -> None:
    planned = plan(steady, {"min_apy": [None, 0.01]}, sample=50, seed=9, start=date(2024, 2, 1), capital=5.0)
    again = from_config(steady, json.loads(json.dumps(planned.config)))
    assert again.config == planned.config
    assert again.frame(0, 50).equals(planned.frame(0, 50))
    with pytest.raises(DataError, match="describes no sweep of strategy 'steady'"):
        from_config(steady, {"axes": {"top_n": [1]}})


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"topn": [1]}, "no parameter 'topn'; did you mean 'top_n'"),
        ({"lookbak": [1]}, "did you mean 'lookback'"),
        ({"acrual": ["leading"]}, "did you mean 'accrual'"),
        ({"top_n": []}, "'top_n' of the grid is empty"),
        ({"top_n": [0]}, "top_n must be a whole number >= 1, not 0"),
        ({"top_n": [1.5]}, "top_n must be a whole number >= 1, not 1.5"),
        ({"cost": [1, 1.0]}, "cost must be a number"),
        ({"gas_usd": [1, 1.0]}, "repeats a value"),
        ({"weighting": ["equl"]}, "did you mean 'equal'"),
        ({"accrual": ["leding"]}, "did you mean 'leading'"),
        ({"max_stale_days": [-1]}, "max_stale_days must be a whole number >= 0, not -1"),
        ({"lookback": ["many"]}, "'lookback' takes a whole number"),
        ({"lookback": [-3]}, "-3"),
    ],
)
def test_a_grid_that_cannot_be_swept_says_why(steady: Strategy, grid: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(steady, grid)
    if all(len(values) == 1 for values in grid.values()):
        with pytest.raises(UsageError, match=message):
            split_params(steady, {name: values[0] for name, values in grid.items()})


def test_a_grid_too_large_for_the_memory_is_refused_before_it_is_made(steady: Strategy) -> None:
    huge = {"gas_usd": [float(i) for i in range(1000)], "min_tvl": [float(i) for i in range(1000)]}
    with pytest.raises(MemoryLimitError, match="216,000,000 trials need"):
        plan(steady, huge, max_memory=2_000_000_000)
    assert len(plan(steady, huge, sample=100, max_memory=2_000_000_000)) == 100


def test_sizes_are_told_without_counting(steady: Strategy) -> None:
    axis = list(range(1, 100_001))
    beyond = {"top_n": axis, "every": axis, "lag": axis, "lookback": axis}
    for how in ({}, {"sample": 10}, {"sample": 10, "max_memory": 2_000_000_000}):
        with pytest.raises(UsageError, match="combinations; a grid has at most"):
            plan(steady, beyond, **how)


def test_small_and_large_memory_are_told_in_their_unit(steady: Strategy) -> None:
    with pytest.raises(MemoryLimitError, match=r"216 trials need 89\.86 kB .* limit of 50\.00 kB"):
        plan(steady, max_memory=50_000)
    with pytest.raises(MemoryLimitError, match=r"need 8\.99 GB .* limit of 2\.00 GB"):
        plan(steady, {"gas_usd": list(range(100_000))}, max_memory=2_000_000_000)


def test_a_small_sample_of_a_grid_with_many_signals_is_planned_at_once(steady: Strategy) -> None:
    axis = list(range(1, 30_001))
    planned = plan(steady, {"lookback": axis, "every": axis}, sample=5)
    assert planned.fields == ("apy",)
    assert set(planned.records(0, 5)["every"]) == set(planned.frame(0, 5)["every"])


def test_a_trial_has_one_id_whatever_stands_beside_it_on_the_axis(tmp_path: Path) -> None:
    source = "from yieldlab import Grid\nNEEDS = ('apy',)\nSIGNAL = Grid(x=[None, 1])\n"
    odd = sweep_worlds.strategy(tmp_path, source + "def signal(panel, x):\n    return panel['apy']\n", "odd")

    def named(**grid: list) -> dict:
        planned = plan(odd, grid)
        x = [point.signal["x"] for point in planned.points(0, len(planned))]
        return dict(zip(map(repr, x), planned.frame(0, len(planned))["trial_id"], strict=True))

    alone = named(x=[1])["1"]
    for grid in ([1, 2], [1, 0.5], [None, 1], ["a", 1]):
        assert named(x=grid)["1"] == alone
    assert named(x=[1.0])["1.0"] == alone
    assert named(x=["1"])["'1'"] != alone
    assert compare(sweep_worlds.panel(), [entry(odd, {"x": 1})]).trials["trial_id"][0] == alone
    assert named(x=[0.0])["0.0"] == named(x=[-0.0, 5])["0.0"]
    with pytest.raises(UsageError, match="repeats a value"):
        plan(odd, {"x": [1, 1.0]})


@pytest.mark.parametrize(
    "bad", [{"capital": 0.0}, {"capital": float("nan")}, {"risk_free": float("inf")}, {"sample": 0}]
)
def test_conditions_that_make_no_sense_are_refused(steady: Strategy, bad: dict) -> None:
    with pytest.raises(UsageError, match=str(next(iter(bad.values())))):
        plan(steady, **bad)


def test_fields_are_those_of_every_point(tmp_path: Path) -> None:
    source = sweep_worlds.STEADY.replace('("apy",)', '("apy", "forecast_{model}")')
    source = source.replace("SIGNAL = Grid(", 'SIGNAL = Grid(model=["a", "b"], ').replace("(panel, ", "(panel, model, ")
    assert plan(sweep_worlds.strategy(tmp_path, source)).fields == ("apy", "forecast_a", "forecast_b")
