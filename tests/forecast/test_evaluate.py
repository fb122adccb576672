"""Evaluation: common cells, measures against a plain twin and by hand, and no praise that persistence would share."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from oracles import evaluation_oracle as oracle
from scipy import stats

from yieldlab.errors import DataError, UsageError
from yieldlab.forecast.evaluate import BEATS, DOES_NOT_BEAT, LEADS, Evaluation, compare
from yieldlab.forecast.skill import Resampling, widening
from yieldlab.panel import Panel

NAN = math.nan


def panel_of(apy: list[list[float]] | np.ndarray, protocols: list[str | None] | None = None, stale: int = 3) -> Panel:
    values = np.asarray(apy, dtype=np.float64)
    pools = pl.DataFrame({"pool_id": [f"pool-{i}" for i in range(values.shape[1])]})
    if protocols is not None:
        pools = pools.with_columns(pl.Series("protocol", protocols, dtype=pl.String))
    times = np.datetime64("2024-01-01", "D") + np.arange(values.shape[0])
    return Panel(times, pools, {"apy": values}, max_stale_days=stale)


def row(frame: pl.DataFrame, **keys: object) -> dict:
    found = frame.filter(*(pl.col(name) == value for name, value in keys.items()))
    assert found.height == 1
    return found.row(0, named=True)


def world(seed: int) -> tuple[Panel, dict[str, np.ndarray]]:
    """Ties, gaps, zeros, a pool that never changes, one that comes late; models with holes of their own."""
    g = np.random.default_rng(seed)
    times, pools = 110, 6
    apy = np.abs(0.05 + np.cumsum(g.normal(0.0, 0.004, (times, pools)), axis=0)).round(3)
    apy[g.random(apy.shape) < 0.03] = 0.0
    apy[:, 1] = 0.04
    apy[:60, 2] = NAN
    apy[g.random(apy.shape) < 0.15] = NAN
    panel = panel_of(apy, ["aave-v3", "Aave V3", "curve-dex", "curve", None, "lone"])
    carried = np.nan_to_num(panel["apy"], nan=0.05)
    near = (carried + g.normal(0.0, 0.01, apy.shape)).round(2)
    near[g.random(apy.shape) < 0.1] = NAN
    near[:50] = NAN
    flat = np.full(apy.shape, 0.05)
    flat[g.random(apy.shape) < 0.05] = NAN
    flat[70] = NAN
    return panel, {"near": near, "flat": flat}


def agree(found: dict, wanted: dict) -> None:
    for name, value in wanted.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
        else:
            assert found[name] == value, name


@pytest.mark.parametrize("seed", range(4))
def test_every_measure_is_what_its_plain_definition_says(seed: int) -> None:
    panel, predictions = world(seed)
    options = {"seed": seed, "draws": 60}
    evaluation = compare(panel, predictions, horizon=5, block_days=9, **options)
    observed, carried = panel.raw("apy"), panel["apy"]
    every = list(range(panel.shape[1]))
    groups: list[tuple[pl.DataFrame, dict, int, list[int]]] = [(evaluation.overall, {}, 5, every)]
    for protocol, pools in {"aave_v3": [0, 1], "curve": [2, 3], "unknown": [4], "lone": [5]}.items():
        groups.append((evaluation.by_protocol, {"protocol": protocol}, 5, pools))
    groups += [(evaluation.by_lead, {"lead": lead}, lead, every) for lead in (1, 3, 5, 7, 14, 30)]
    for frame, key, lead, pools in groups:
        common = oracle.cells(observed, carried, predictions, lead, pools)
        first = oracle.cells(observed, carried, predictions, lead, every)[0][0]
        for name in ("persistence", "near", "flat"):
            wanted = oracle.measures(
                observed, carried, predictions, name, common, lead=lead, first=first, block=9, **options
            )
            agree(row(frame, model=name, **key), wanted)
    assert evaluation.by_protocol.height == 4 * 3
    assert evaluation.by_lead["lead"].unique().sort().to_list() == [1, 3, 5, 7, 14, 30]


def test_figures_of_four_cells_can_be_added_up_by_hand() -> None:
    # Tomorrow's truths: pool 0: 0.02, 0.04; pool 1: 0.10, 0.10.
    panel = panel_of([[0.01, 0.10], [0.02, 0.10], [0.04, 0.10]])
    model = np.array([[0.02, 0.13], [0.03, 0.10], [NAN, NAN]])
    evaluation = compare(panel, {"model": model}, horizon=1, draws=10)
    persistence, mine = evaluation.overall.rows(named=True)
    assert persistence["model"] == "persistence"
    # Errors of persistence: 0.01, 0.02, 0, 0; of the model: 0, 0.01, 0.03, 0.
    assert persistence["mae"] == pytest.approx(0.03 / 4)
    assert mine["mae"] == pytest.approx(0.04 / 4)
    assert mine["rmse"] == pytest.approx(math.sqrt(0.001 / 4))
    assert mine["median_ae"] == pytest.approx(0.005)
    assert mine["skill"] == pytest.approx(1 - 4 / 3)
    assert mine["skill_rmse"] == pytest.approx(1 - math.sqrt(2))
    assert mine["smape"] == pytest.approx((2 * 0.01 / 0.07 + 2 * 0.03 / 0.23) / 4)
    assert mine["rank_correlation"] is None
    assert mine["rank_days"] == 0
    assert (mine["cells"], mine["days"], mine["pools"], mine["mase_pools"]) == (4, 2, 2, 0)
    assert mine["mase"] is None
    assert mine["skill_low"] is None
    assert (evaluation.first, evaluation.last) == ("2024-01-01", "2024-01-02")


def test_all_models_are_measured_on_the_cells_that_all_have_and_what_each_lacked_is_told() -> None:
    panel = panel_of(np.arange(40.0).reshape(10, 4) / 1000)
    full = panel["apy"] + 0.001
    holes = full.copy()
    holes[2, :3] = NAN
    late = full.copy()
    late[:5] = NAN
    evaluation = compare(panel, {"full": full, "holes": holes, "late": late}, horizon=2, draws=10)
    # Rows 0 to 7 have a truth: 32 candidates, of which `late` has 12.
    assert evaluation.candidates == 32
    assert evaluation.lacked == {"persistence": 0, "full": 0, "holes": 3, "late": 20}
    assert set(evaluation.overall["cells"]) == {12} == {evaluation.cells}
    assert (evaluation.days, evaluation.pools) == (3, 4)
    assert evaluation.overall["lacked"].to_list() == [0, 0, 3, 20]


def test_truth_is_what_was_observed_and_persistence_what_was_known() -> None:
    panel = panel_of([[0.01], [NAN], [0.03], [NAN], [0.05]])
    evaluation = compare(panel, {"model": np.full((5, 1), 0.03)}, horizon=1, draws=10)
    # Rows 1 (0.01 carried, then 0.03) and 3 (0.03 carried, then 0.05); a carried APY is nobody's truth.
    assert evaluation.cells == 2
    assert row(evaluation.overall, model="persistence")["mae"] == pytest.approx(0.02)
    assert row(evaluation.overall, model="model")["mae"] == pytest.approx(0.01)
    stale = compare(panel_of([[0.01], [NAN], [0.03], [0.03]], stale=0), {}, horizon=1, draws=10)
    assert stale.cells == 1


def test_rows_before_the_first_and_after_the_last_forecast_are_nobodys_lack() -> None:
    panel = panel_of(np.full((20, 1), 0.05))
    model = np.full((20, 1), NAN)
    model[8:12] = 0.05
    evaluation = compare(panel, {"model": model}, horizon=1, draws=10)
    assert evaluation.candidates == evaluation.cells == 4
    assert evaluation.lacked["model"] == 0


def test_mase_rests_on_what_lay_before_the_first_evaluated_row() -> None:
    apy = np.full((80, 3), 0.05)
    apy[:, 0] += np.where(np.arange(80) % 2, 0.01, 0.0)  # moves by 0.01 a day
    apy[40:, 1] += np.where(np.arange(40) % 2, 0.01, 0.0)  # moved only after the first evaluated row
    apy[:15, 2] = NAN
    apy[:, 2] += np.where(np.arange(80) % 2, 0.01, 0.0)  # has 24 changes before it
    model = panel_of(apy)["apy"] + 0.0
    model[:40] = NAN
    evaluation = compare(panel_of(apy), {"model": model}, horizon=1, draws=10)
    mine = row(evaluation.overall, model="model")
    assert (mine["pools"], mine["mase_pools"]) == (3, 1)
    assert mine["mase"] == pytest.approx(1.0)
    apy[40:, 0] += np.where(np.arange(40) % 2, 0.02, 0.0)  # three times as far, measured on the old scale
    later = compare(panel_of(apy), {"model": np.where(np.isnan(model), NAN, apy)}, horizon=1, draws=10)
    assert row(later.overall, model="model")["mase"] == pytest.approx(3.0)


def test_thirty_changes_scale_a_pool_and_twenty_nine_do_not() -> None:
    apy = np.where(np.arange(60) % 2, 0.05, 0.06)[:, None]
    for first, pools in ((31, 1), (30, 0)):
        model = apy.copy()
        model[:first] = NAN
        assert compare(panel_of(apy), {"m": model}, horizon=1, draws=10).overall["mase_pools"].to_list() == [pools] * 2


def test_smape_is_zero_where_truth_and_forecast_are_and_two_where_only_one_is() -> None:
    panel = panel_of([[0.0, 0.05], [0.0, 0.0]])
    evaluation = compare(panel, {"zero": np.zeros((2, 2))}, horizon=1, draws=10)
    assert row(evaluation.overall, model="zero")["smape"] == 0.0
    assert row(evaluation.overall, model="persistence")["smape"] == pytest.approx((0.0 + 2.0) / 2)


def test_ties_share_ranks_and_days_without_an_order_are_left_out_and_counted() -> None:
    today = [[1, 2, 3, 4], [1, 1, 2, 3], [1, 1, 1, 1], [NAN, NAN, 1, 2], [1, 2, 3, 4]]
    later = [[4, 3, 2, 1], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [5, 5, 5, 5]]
    apy = np.array([day for pair in zip(today, later, strict=True) for day in pair]) / 100
    model = panel_of(apy, stale=0)["apy"].copy()
    model[1::2] = NAN
    mine = row(compare(panel_of(apy, stale=0), {"m": model}, horizon=1, draws=10).overall, model="m")
    # Day 0: -1. Day 1: ranks 1.5, 1.5, 3, 4 against 1, 2, 3, 4. Then a constant forecast, two pools, a constant truth.
    assert (mine["days"], mine["rank_days"]) == (5, 2)
    assert mine["rank_correlation"] == pytest.approx((-1 + 4.5 / math.sqrt(4.5 * 5)) / 2)


def noisy(seed: int, share: float) -> Evaluation:
    """A model whose errors are `share` of persistence's, give or take."""
    g = np.random.default_rng(seed)
    apy = 0.05 + np.cumsum(g.normal(0.0, 0.001, (300, 5)), axis=0)
    truth = np.full(apy.shape, NAN)
    truth[:-7] = apy[7:]
    model = truth + share * (apy - truth) + g.normal(0.0, 0.0003, apy.shape)
    return compare(panel_of(apy), {"model": model}, horizon=7)


def test_only_a_model_whose_whole_interval_lies_above_zero_beats_persistence() -> None:
    good, equal, bad = (row(noisy(1, share).overall, model="model") for share in (0.8, 0.995, 1.3))
    assert good["skill_low"] > 0
    assert good["verdict"] == BEATS
    assert equal["skill_low"] < 0 < equal["skill_high"]
    assert equal["verdict"] == DOES_NOT_BEAT
    assert bad["skill_high"] < 0
    assert bad["verdict"] == DOES_NOT_BEAT
    assert row(noisy(1, 0.8).overall, model="persistence")["verdict"] is None


def test_skill_without_enough_days_for_an_interval_is_not_praised() -> None:
    g = np.random.default_rng(0)
    apy = g.uniform(0.01, 0.1, (34, 3))
    truth = np.vstack([apy[7:], np.full((7, 3), NAN)])
    few = compare(panel_of(apy), {"oracle": truth}, horizon=7)
    assert few.block_days == 14
    mine = row(few.overall, model="oracle")
    assert (mine["skill"], mine["skill_low"], mine["verdict"]) == (1.0, None, DOES_NOT_BEAT)
    enough = compare(panel_of(apy), {"oracle": truth}, horizon=7, block_days=9)
    assert row(enough.overall, model="oracle")["verdict"] == BEATS


@pytest.mark.parametrize("blocks", [2, 3, 4, 7, 10, 31, 200])
def test_few_blocks_widen_an_interval_as_students_distribution_does(blocks: int) -> None:
    expected = stats.t.ppf(0.975, blocks - 1) / stats.norm.ppf(0.975) * math.sqrt(blocks / (blocks - 1))
    assert widening(blocks) == pytest.approx(expected, rel=1e-9)


def test_an_interval_holds_its_skill_and_every_day_is_as_likely_in_a_draw() -> None:
    """A model that is 10 % better on each day but the first, which costs it all: no draw may leave that day out more
    often than another."""
    daily = np.ones((2, 1_370))
    daily[1] = 0.9
    daily[1, 0] = 950.0
    for seed in range(5):
        low, high = Resampling(60, 500, seed).intervals(daily)[1]
        skill = 1.0 - daily[1].sum() / daily[0].sum()
        assert low <= skill <= high
        assert low < 0.0
    g = np.random.default_rng(1)
    for _ in range(60):
        daily = g.lognormal(0.0, 2.0, (2, 45))
        low, high = Resampling(14, 100, 0).intervals(daily)[1]
        assert low <= 1.0 - daily[1].sum() / daily[0].sum() <= high
    ones = Resampling(7, 4_000, 0).drawn(np.eye(30))
    np.testing.assert_allclose(ones.mean(axis=1), 1.0, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("errors", ["normal", "heavy-tailed", "log-normal"])
def test_of_two_equally_good_models_one_is_seldom_said_to_be_better(errors: str) -> None:
    """2.5 % of the time, if intervals were exact; those of the plain percentiles were wrong five times as often."""
    g = np.random.default_rng(0)
    drawn = {
        "normal": lambda shape: g.normal(size=shape),
        "heavy-tailed": lambda shape: g.standard_t(2.5, size=shape),
        "log-normal": lambda shape: g.lognormal(0.0, 1.5, size=shape) * g.choice([-1, 1], size=shape),
    }[errors]
    for days, most in ((45, 0.07), (90, 0.07), (180, 0.06)):
        praised = 0
        for _ in range(400):
            noise = drawn((2, days + 6, 4))
            daily = np.abs(np.lib.stride_tricks.sliding_window_view(noise, 7, axis=1).sum(axis=-1)).sum(axis=2)
            praised += Resampling(14, 200, 0).intervals(daily)[1, 0] > 0.0
        assert praised / 400 < most


def test_the_interval_is_of_the_same_days_for_both() -> None:
    """A model twice as wrong as persistence on every cell has the skill -1 in every draw, however wild the days."""
    g = np.random.default_rng(3)
    apy = np.exp(np.cumsum(g.normal(0.0, 0.2, (200, 4)), axis=0)) / 100
    truth = np.vstack([apy[7:], np.full((7, 4), NAN)])
    mine = row(compare(panel_of(apy), {"m": truth + 2 * (apy - truth)}, horizon=7).overall, model="m")
    assert mine["skill_low"] == pytest.approx(-1.0)
    assert mine["skill_high"] == pytest.approx(-1.0)


def test_the_same_seed_gives_the_same_interval_and_longer_blocks_follow_a_longer_horizon() -> None:
    one, two = noisy(5, 0.9), noisy(5, 0.9)
    assert one.overall.equals(two.overall)
    panel, predictions = world(0)
    other = compare(panel, predictions, horizon=5, block_days=9, seed=1, draws=60)
    assert not other.overall["skill_low"].equals(
        compare(panel, predictions, horizon=5, block_days=9, seed=2, draws=60).overall["skill_low"]
    )
    assert compare(panel, predictions, horizon=5).block_days == 14
    assert compare(panel, predictions, horizon=20).block_days == 40


def test_blocks_are_as_long_as_each_lead_needs_unless_given() -> None:
    panel = panel_of(0.05 + np.cumsum(np.random.default_rng(4).normal(0.0, 0.001, (260, 4)), axis=0))
    model = {"m": panel["apy"] * 1.001}
    by_lead = compare(panel, model, horizon=7, draws=50).by_lead
    for lead, block in ((1, 14), (7, 14), (14, 28), (30, 60)):
        given = compare(panel, model, horizon=7, draws=50, block_days=block).by_lead
        assert row(by_lead, model="m", lead=lead) == row(given, model="m", lead=lead)
        assert row(by_lead, model="m", lead=lead)["skill_low"] is not None


def test_no_number_is_nan_or_infinite_even_where_persistence_is_perfect() -> None:
    panel = panel_of(np.full((120, 4), 0.05))
    evaluation = compare(panel, {"off": np.full((120, 4), 0.06), "same": np.full((120, 4), 0.05)}, horizon=7)
    for frame in (evaluation.overall, evaluation.by_protocol, evaluation.by_lead):
        for column in frame.select(pl.selectors.float()):
            assert column.drop_nulls().is_finite().all()
    for name in ("off", "same"):
        mine = row(evaluation.overall, model=name)
        assert [mine[key] for key in ("skill", "skill_rmse", "skill_low", "mase", "rank_correlation")] == [None] * 5
        assert mine["verdict"] == DOES_NOT_BEAT


def test_a_lead_beyond_the_data_is_a_row_without_a_figure() -> None:
    evaluation = compare(panel_of(np.linspace(0.01, 0.05, 12)[:, None]), {}, horizon=2, draws=10)
    assert evaluation.by_lead["lead"].to_list() == sorted({*LEADS, 2})
    beyond = row(evaluation.by_lead, lead=30)
    assert (beyond["cells"], beyond["mae"], beyond["mase_pools"]) == (0, None, 0)
    assert row(evaluation.by_lead, lead=7)["cells"] == 5


def test_forecasts_of_that_name_do_not_replace_persistence() -> None:
    panel = panel_of(np.linspace(0.01, 0.05, 12)[:, None])
    alone = compare(panel, {}, horizon=2, draws=10)
    assert compare(panel, {"persistence": np.full((12, 1), NAN)}, horizon=2, draws=10).overall.equals(alone.overall)
    assert alone.overall["model"].to_list() == ["persistence"]


def test_forecasts_are_left_as_they_were() -> None:
    panel, predictions = world(1)
    before = {name: values.copy() for name, values in predictions.items()}
    for values in predictions.values():
        values.flags.writeable = False
    compare(panel, predictions, horizon=5, draws=10)
    for name, values in predictions.items():
        np.testing.assert_array_equal(values, before[name])


def test_what_cannot_be_compared_is_refused_in_one_sentence() -> None:
    panel = panel_of(np.full((10, 2), 0.05))
    early, late = np.full((10, 2), NAN), np.full((10, 2), NAN)
    early[0], late[1] = 0.05, 0.05
    with pytest.raises(DataError, match=r"no cell has .* 3 days later .* of 4 with .*: early 2, late 2$"):
        compare(panel, {"early": early, "late": late}, horizon=3)
    with pytest.raises(DataError, match="no cell has"):
        compare(panel, {"early": early}, horizon=10)
    with pytest.raises(DataError, match=r"'m' have shape \(2, 10\), not .* \(10, 2\)"):
        compare(panel, {"m": early.T}, horizon=3)
    with pytest.raises(DataError, match="1 of the forecasts of 'm' are infinite"):
        compare(panel, {"m": np.where(np.arange(20).reshape(10, 2) == 3, np.inf, 0.05)}, horizon=3)
    for wrong in ({"horizon": 0}, {"horizon": 7, "draws": 0}, {"horizon": 7, "block_days": 0}):
        with pytest.raises(UsageError, match="1 or more, not 0"):
            compare(panel, {}, **wrong)
