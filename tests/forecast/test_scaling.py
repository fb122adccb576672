"""Scales come from training samples alone, and a yield comes back as it went in."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from yieldlab.errors import DataError
from yieldlab.features.sets import STUDY
from yieldlab.forecast.scaling import HEAVY, Scaler, Target, YieldTransform
from yieldlab.forecast.windows import Windows
from yieldlab.panel import Panel
from yieldlab.testing import tiny_panel

TRAIN = (0, 60)


def fitted(panel: Panel, rows: tuple[int, int] = TRAIN, feature_set: str = "study") -> tuple[Scaler, Windows]:
    windows = Windows.of(panel, feature_set=feature_set, lookback=10, horizon=3)
    return Scaler.fit(windows, *windows.samples(rows, labelled=True)), windows


def named(panel: Panel, *protocols: str) -> Panel:
    """The panel with these protocols of its pools."""
    pools = panel.pools.with_columns(pl.Series("protocol", protocols))
    fields = {name: panel.raw(name) for name in panel.fields}
    return Panel(panel.times, pools, fields)


def test_a_yield_of_355_083_percent_comes_back() -> None:
    apy = np.array([3550.83, 0.05, 0.0, -0.3, 1e-9, 1e6])
    for size in (1e-6, 4.2, 1e5):
        transform = YieldTransform(size)
        back = transform.inverse(transform.forward(apy))
        np.testing.assert_allclose(back, apy, rtol=1e-9, atol=1e-15)
    assert YieldTransform(1.0).inverse(np.array([1e4]))[0] == np.inf  # and says nothing on the way


def test_the_size_of_a_transform_is_the_median_yield_in_percent() -> None:
    assert YieldTransform.fit(np.array([[0.02, np.nan], [-0.04, 0.09]])).size == 4.0
    assert YieldTransform.fit(np.zeros(5)).size == 1e-6
    assert YieldTransform.fit(np.array([np.nan])).size == 1.0


def test_days_after_the_training_change_no_bit_of_a_scaler() -> None:
    panel = tiny_panel(times=120, pools=4, seed=1)
    before, windows = fitted(panel)
    t, _ = windows.samples(TRAIN, labelled=True)
    cut = int(t.max()) + windows.horizon + 1
    changed = {name: panel.raw(name).copy() for name in panel.fields}
    for values in changed.values():
        values[cut:] *= 37.0
    after, _ = fitted(panel.with_fields(changed))
    assert after == before
    changed["apy"][cut - 30] *= 37.0  # and a day of the training does
    assert fitted(panel.with_fields(changed))[0] != before


def test_numbers_are_those_of_the_last_row_of_training_windows() -> None:
    scaler, windows = fitted(tiny_panel(times=120, pools=4, seed=4))
    t, n = windows.samples(TRAIN, labelled=True)
    assert scaler.names == STUDY
    for place, name in enumerate(scaler.names):
        column = [float(windows.block.values[pool, row, place]) for row, pool in zip(t, n, strict=True)]
        column = [value for value in column if value == value]
        size = max(float(np.median(np.abs(column))), 1e-6) if name in HEAVY else 0.0
        moved = np.arcsinh(np.array(column) / size) if size else np.array(column)
        spread = moved.std()
        assert scaler.sizes[place] == pytest.approx(size, rel=1e-12)
        assert scaler.means[place] == pytest.approx(moved.mean(), rel=1e-9, abs=1e-12)
        assert scaler.scales[place] == pytest.approx(spread if spread > 1e-9 else 1.0, rel=1e-9)


def test_training_samples_have_mean_zero_and_deviation_one() -> None:
    scaler, windows = fitted(tiny_panel(times=120, pools=4))
    t, n = windows.samples(TRAIN, labelled=True)
    scaled = scaler.apply(windows)
    assert scaled.flags.c_contiguous
    assert scaled.dtype == np.float32
    assert scaled.shape == (4, 120, scaler.width)
    for place, name in enumerate(scaler.names):
        present = ~np.isnan(windows.block.values[n, t, place])
        column = scaled[n, t, place][present].astype(float)
        assert abs(column.mean()) < 1e-4
        assert abs(column.std() - (0.0 if name == "hour" else 1.0)) < 1e-4


def test_what_is_constant_has_the_scale_one_and_what_is_missing_is_zero() -> None:
    panel = tiny_panel(times=120, pools=4)
    tvl = panel.raw("tvl_usd").copy()
    tvl[70:100, 1] = np.nan
    scaler, windows = fitted(panel.with_fields({"tvl_usd": tvl}))
    assert scaler.scales[STUDY.index("hour")] == 1.0
    scaled = scaler.apply(windows)
    assert (scaled[:, :, STUDY.index("hour")] == 0.0).all()
    missing = np.isnan(windows.block.values)
    assert missing[1, 80, STUDY.index("tvl_usd")]
    assert (scaled[:, :, :13][missing] == 0.0).all()
    assert np.isfinite(scaled).all()


def test_a_pool_of_dust_with_a_huge_volume_stays_a_number_of_moderate_size() -> None:
    panel = tiny_panel(times=120, pools=4)
    tvl, volume = panel.raw("tvl_usd").copy(), np.full(panel.shape, np.nan)
    tvl[80, 0], volume[80, 0] = 1e-30, 1e9
    volume[20, 1] = 5.0
    scaler, windows = fitted(panel.with_fields({"tvl_usd": tvl, "volume_24h_usd": volume}))
    scaled = scaler.apply(windows)
    assert np.isfinite(scaled).all()
    moved = np.arcsinh(float(np.finfo(np.float32).max) / scaler.sizes[9])  # a block holds no more
    expected = (moved - scaler.means[9]) / scaler.scales[9]
    assert scaled[0, 80, 9] == pytest.approx(expected, rel=1e-6)


def test_the_one_hot_has_the_studys_protocols_and_grows_by_those_of_the_training() -> None:
    panel = named(tiny_panel(times=120, pools=4), "Curve-DEX", "aave-v3", "moonwell", "moonwell")
    scaler, windows = fitted(panel)
    assert scaler.protocols == ("aave_v3", "curve", "uniswap_v3", "moonwell")
    assert scaler.all_names[13:] == ("protocol_aave_v3", "protocol_curve", "protocol_uniswap_v3", "protocol_moonwell")
    assert scaler.width == 17
    hot = scaler.apply(windows)[:, :, 13:]
    np.testing.assert_array_equal(hot[:, 0], [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]])
    assert (hot == hot[:, :1]).all()


def test_with_the_studys_protocols_there_are_16_features() -> None:
    panel = named(tiny_panel(times=120, pools=4), "curve", "aave-v3", "uniswap-v3", "curve")
    assert fitted(panel)[0].width == 16


def test_a_protocol_without_a_training_sample_is_not_known_even_if_it_has_a_column() -> None:
    panel = named(tiny_panel(times=120, pools=4), "curve", "curve", "aave-v3", "curve")
    apy = panel.raw("apy").copy()
    apy[:80, 2] = np.nan  # aave begins after the training
    scaler, windows = fitted(panel.with_fields({"apy": apy}))
    assert "aave_v3" in scaler.protocols

    def pools(windows: Windows) -> list[int]:
        t, n = scaler.samples(windows, (0, 120), labelled=False)
        every = windows.samples((0, 120), labelled=False)
        kept = np.isin(every[1], n)
        np.testing.assert_array_equal([t, n], [every[0][kept], every[1][kept]])
        return sorted(set(n.tolist()))

    assert pools(windows) == [0, 1, 3]
    later = named(panel, "uniswap-v3", "curve", "newcomer", "curve")
    assert pools(Windows.of(later, lookback=10, horizon=3)) == [1, 3]


def test_a_feature_of_the_study_without_a_value_is_told_by_name() -> None:
    panel = tiny_panel(times=120, pools=4)
    with pytest.raises(DataError, match=r"the feature tvl_usd has no value on any of the [0-9,]+ training samples"):
        fitted(panel.with_fields({"tvl_usd": np.full(panel.shape, np.nan)}))
    with pytest.raises(DataError, match="no window of 10 days with an APY 3 days later"):
        fitted(panel, rows=(0, 5))


def test_an_extra_feature_without_a_value_is_left_out_and_one_that_a_panel_lacks_is_told() -> None:
    panel = tiny_panel(times=120, pools=4)
    whole, _ = fitted(panel, feature_set="extended")
    less, windows = fitted(panel.with_fields({"apy_reward": np.full(panel.shape, np.nan)}), feature_set="extended")
    assert set(whole.names) - set(less.names) == {"apy_reward_percent"}
    assert less.apply(windows).shape[2] == less.width == whole.width - 1
    with pytest.raises(DataError, match="trained with the feature volume_observed, which this panel does not have"):
        whole.apply(Windows.of(panel, lookback=10, horizon=3))


def test_a_scaler_comes_back_from_json_bit_for_bit() -> None:
    scaler, _ = fitted(tiny_panel(times=120, pools=4), feature_set="extended")
    assert Scaler.restore(json.loads(json.dumps(scaler.document()))) == scaler


@pytest.mark.parametrize(
    "damage",
    [
        {"scales": [0.0] * 13},
        {"scales": [1.0] * 12},
        {"scales": [float("nan")] * 13},
        {"sizes": [-1.0] * 13},
        {"means": ["much"] * 13},
        {"means": None},
        {"names": [1] * 13},
        {"seen": [None]},
        {"sizes": [[1.0]] * 13},
    ],
)
def test_a_damaged_scaler_is_refused(damage: dict[str, object]) -> None:
    scaler, _ = fitted(tiny_panel(times=120, pools=4))
    with pytest.raises(DataError, match="no usable scaler"):
        Scaler.restore({**scaler.document(), **damage})  # type: ignore[dict-item]
    for nothing in ({}, [], None, "scaler"):
        with pytest.raises(DataError, match="no usable scaler"):
            Scaler.restore(nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["change", "level"])
def test_what_is_learned_comes_back_as_an_apy(kind: str) -> None:
    windows = Windows.of(tiny_panel(times=120, pools=4), lookback=10, horizon=3)
    t, n = windows.samples((0, 80), labelled=True)
    target = Target.fit(kind, windows, t, n)
    wanted = target.wanted(windows, t, n)
    assert wanted.std() == pytest.approx(1.0)
    if kind == "level":
        assert wanted.mean() == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(target.apy(windows, t, n, wanted), windows.label[t, n], rtol=1e-9, atol=1e-12)
    nothing = target.apy(windows, t, n, np.zeros(t.size))
    if kind == "change":
        np.testing.assert_allclose(nothing, windows.last[t, n], rtol=1e-9, atol=1e-12)
    else:
        assert nothing == pytest.approx(nothing[0])
    assert Target.restore(kind, target.document()) == target
