"""Risk labels: what they mean in worlds to add up by hand, against a plain twin, and that none looks too far ahead."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from oracles import risk_oracle as oracle

from yieldlab.errors import DataError, UsageError
from yieldlab.forecast.risk_labels import HIGH, LOW, MEDIUM, labels
from yieldlab.panel import Panel
from yieldlab.testing import tiny_panel

Floats = NDArray[np.float64]
NAN = np.nan


def one_pool(apy: list[float], tvl: list[float] | None = None) -> Panel:
    """A panel of one pool beside another that is always there; TVL stays at 100 unless given."""
    times, still = np.datetime64("2024-01-01", "D") + np.arange(len(apy)), [100.0] * len(apy)
    fields = {"apy": np.column_stack([apy, [0.05] * len(apy)]), "tvl_usd": np.column_stack([tvl or still, still])}
    return Panel(times, pl.DataFrame({"pool_id": ["a", "b"]}), fields)


def risky_panel(seed: int, times: int = 140, pools: int = 5) -> Panel:
    """Jumpy yields and TVL, gaps, and a pool that stops, so that every class occurs."""
    generator = np.random.default_rng(seed)
    calm = generator.uniform(0.02, 0.15, pools)
    apy = generator.uniform(0.01, 0.2, pools) * np.exp(np.cumsum(generator.normal(0.0, calm, (times, pools)), axis=0))
    tvl = 1e6 * np.exp(np.cumsum(generator.normal(0.0, 0.03, (times, pools)), axis=0))
    apy[generator.random(apy.shape) < 0.15] = NAN
    tvl[generator.random(tvl.shape) < 0.15] = NAN
    apy[times // 3 : times // 3 + 9, 1] = NAN
    apy[times // 2 :, 2] = NAN
    pool_ids = pl.DataFrame({"pool_id": [f"p{n}" for n in range(pools)]})
    return Panel(np.datetime64("2024-01-01", "D") + np.arange(times), pool_ids, {"apy": apy, "tvl_usd": tvl})


def given(panel: Panel, **other: float) -> list[float]:
    settings = {"horizon": 4, "deviation_days": 4} | other
    return labels(panel, **settings)[:, 0].tolist()  # type: ignore[arg-type]


def test_a_quiet_pool_is_low_and_its_last_days_have_no_label() -> None:
    assert given(one_pool([0.05] * 8))[:4] == [LOW] * 4
    assert np.isnan(given(one_pool([0.05] * 8))[4:]).all()


def test_tvl_must_fall_below_half_for_high_and_below_four_fifths_for_medium() -> None:
    apy = [0.05] * 6
    assert given(one_pool(apy, [100.0, 100, 49.9, 100, 100, 100]))[:2] == [HIGH, HIGH]
    assert given(one_pool(apy, [100.0, 100, 50.0, 100, 100, 100]))[:2] == [MEDIUM, MEDIUM]
    assert given(one_pool(apy, [100.0, 100, 80.0, 100, 100, 100]))[:2] == [LOW, LOW]


def test_a_yield_below_zero_collapses_no_further_by_staying_there() -> None:
    assert given(one_pool([-0.01] * 8))[:4] == [LOW] * 4
    assert given(one_pool([0.05] * 4 + [-0.01] * 8))[3] == HIGH


def test_a_dip_of_today_is_no_fall_from_today() -> None:
    apy = [0.05] * 6 + [0.001] + [0.05] * 6
    assert given(one_pool(apy))[5] == HIGH
    assert given(one_pool(apy))[6] == LOW


def test_a_fall_is_measured_from_today_on_and_todays_own_does_not_count() -> None:
    assert given(one_pool([0.05] * 6, [100.0, 40, 40, 40, 40, 40]))[:2] == [HIGH, LOW]


def test_an_apy_collapses_from_the_mean_of_the_last_seven_days() -> None:
    apy = [0.1] * 6 + [0.8] + [0.1] * 4  # the mean on day 6 is 0.2: what follows is half of it
    assert given(one_pool(apy))[6] == LOW
    apy = [0.4] * 6 + [0.1] + [0.07] * 4  # the mean on day 6 is 0.3571..., a fifth of it is 0.0714
    assert given(one_pool(apy))[6] == HIGH


def test_a_pool_vanishes_when_the_last_half_of_the_window_is_silent() -> None:
    apy = [0.05, 0.05, 0.05, 0.05, NAN, NAN, 0.05, 0.05, 0.05, 0.05]
    found = given(one_pool(apy))
    assert found[1] == HIGH  # rows 4 and 5, the last half of rows 2 to 5
    assert found[:1] + found[2:6] == [LOW] * 5  # the silence begins later, or it ends
    gone = given(one_pool([0.05] * 3 + [NAN] * 7))
    assert gone[:1] == [HIGH]
    assert gone[1:6] == [HIGH] * 5  # carried for three days after the last observation
    assert np.isnan(given(one_pool([0.05] * 2 + [NAN] * 9))[5:]).all()  # and unknown thereafter


def test_where_no_pool_is_observed_none_has_vanished() -> None:
    """An outage of whoever observes says nothing of the pools; one pool that is seen says it of the others."""
    panel = one_pool([0.05] * 3 + [NAN] * 7)
    alone = panel.raw("apy").copy()
    alone[3:, 1] = NAN
    assert given(panel.with_fields({"apy": alone}))[:6] == [LOW] * 6
    alone[4, 1] = 0.05  # in the last half of rows 1 to 4, and of rows 2 to 5
    assert given(panel.with_fields({"apy": alone}))[:6] == [HIGH, HIGH] + [LOW] * 4


def test_a_deviation_above_the_pools_own_is_medium_once_enough_are_known() -> None:
    steps = [0.050, 0.051] * 6
    apy = [*steps, 0.050, 0.060, 0.050, 0.060, 0.050]
    found = given(one_pool(apy))
    assert found[11] == MEDIUM  # rows 12 to 15 move ten times as far as any four before
    assert found[6] == LOW
    early = [0.050, 0.051, 0.050, 0.051, 0.050, 0.060, 0.050, 0.060, 0.050]
    assert given(one_pool(early))[4] == LOW  # two deviations are known, four are needed


def test_equal_yields_do_not_deviate_whatever_days_are_missing() -> None:
    generator = np.random.default_rng(4)
    apy = np.where(generator.random(300) < 0.3, NAN, 0.1 + 0.2)
    found = labels(one_pool(apy.tolist()))
    assert np.nanmax(found) == LOW


def test_without_tvl_today_only_the_apy_decides() -> None:
    assert given(one_pool([0.05] * 6, [NAN, NAN, 10.0, 1.0, 1.0, 1.0]))[:2] == [LOW, LOW]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"horizon": 7, "deviation_days": 5},
        {"horizon": 1, "deviation_days": 1},
        {
            "horizon": 20,
            "deviation_days": 10,
            "tvl_fall_high": 0.3,
            "apy_fall_high": 0.5,
            "tvl_fall_medium": 0.1,
            "deviation_quantile": 0.5,
        },
    ],
)
def test_labels_are_what_their_plain_definition_says(seed: int, settings: dict[str, float]) -> None:
    panel = risky_panel(seed)
    found = labels(panel, **settings)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, oracle.labels(panel, **settings))  # type: ignore[arg-type]


def test_every_class_occurs_in_the_worlds_compared() -> None:
    found = np.concatenate([labels(risky_panel(seed)).ravel() for seed in range(4)])
    assert all((found == each).sum() > 50 for each in (LOW, MEDIUM, HIGH))


@pytest.mark.parametrize("horizon", [5, 30])
def test_no_label_reads_past_its_horizon(horizon: int) -> None:
    panel = risky_panel(9)
    whole = labels(panel, horizon=horizon, deviation_days=5)
    for rows in range(1, panel.shape[0]):
        head = labels(panel.head(rows), horizon=horizon, deviation_days=5)
        assert np.isnan(head[max(0, rows - horizon) :]).all()
        np.testing.assert_array_equal(head[: max(0, rows - horizon)], whole[: max(0, rows - horizon)])


def test_an_observation_that_cleaning_masked_shows_that_the_pool_is_there() -> None:
    panel = one_pool([0.05] * 10)
    masked = np.column_stack([np.where(np.arange(10) < 4, 0.05, NAN), [0.05] * 10])
    assert given(panel.with_cleaned_apy(masked, masked=6))[:4] == [LOW] * 4
    assert given(panel.with_fields({"apy": masked}))[3] == HIGH


def test_a_panel_shorter_than_the_horizon_has_no_label() -> None:
    assert np.isnan(labels(tiny_panel(times=20))).all()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"horizon": 0}, "horizon must be a whole number of days, 1 or more, not 0"),
        ({"horizon": 7}, r"deviation_days must be a whole number of days, 1 to 7 \(the horizon\), not 30"),
        ({"tvl_fall_high": 1.5}, r"tvl_fall_high must lie in \[0, 1\], not 1.5"),
        ({"deviation_quantile": NAN}, r"deviation_quantile must lie in \[0, 1\]"),
    ],
)
def test_a_threshold_that_cannot_be_is_refused(settings: dict[str, float], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        labels(tiny_panel(), **settings)  # type: ignore[arg-type]


def test_a_panel_without_tvl_is_refused() -> None:
    panel = tiny_panel()
    bare = Panel(panel.times, panel.pools, {"apy": panel.raw("apy")})
    with pytest.raises(DataError, match="tvl_usd"):
        labels(bare)
