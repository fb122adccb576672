"""Windows are views of one block, end at their day, and their labels are what was observed a horizon later."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from oracles import forecasts_oracle as oracle

from yieldlab.errors import DataError, UsageError
from yieldlab.folds import chronological
from yieldlab.forecast.windows import Windows
from yieldlab.panel import Panel
from yieldlab.testing import tiny_panel


def plain(apy: np.ndarray, **other: np.ndarray) -> Panel:
    times = np.datetime64("2024-01-01", "D") + np.arange(apy.shape[0])
    pools = pl.DataFrame({"pool_id": [f"p{n}" for n in range(apy.shape[1])], "protocol": ["curve"] * apy.shape[1]})
    return Panel(times, pools, {"apy": apy, "tvl_usd": np.full(apy.shape, 1e6), **other})


def test_windows_are_views_that_cannot_be_written() -> None:
    windows = Windows.of(tiny_panel(times=90, pools=5))
    values = windows.block.values
    view = windows.flat(values)
    assert view.shape == (5 * 90 - 29, 30, values.shape[2]) == (421, 30, 13)
    assert np.shares_memory(view, values)
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0, 0] = 1.0
    with pytest.raises(ValueError, match="contiguous"):
        windows.flat(values[:, ::2])


def test_a_window_is_the_plain_slice_of_its_pool() -> None:
    windows = Windows.of(tiny_panel(times=90, pools=5, seed=2), lookback=7, horizon=3)
    values, view = windows.block.values, windows.flat(windows.block.values)
    t, n = windows.samples((0, 90), labelled=False)
    assert t.size > 200
    for row, pool, place in zip(t, n, windows.position(t, n), strict=True):
        np.testing.assert_array_equal(view[place], values[pool, row - 6 : row + 1])


def test_no_window_of_a_sample_reaches_into_the_pool_before() -> None:
    apy = np.repeat(np.array([[0.01, 0.02, 0.03]]), 40, axis=0)
    windows = Windows.of(plain(apy), lookback=5, horizon=2)
    t, n = windows.samples((0, 40), labelled=False)
    assert t.min() == 4
    assert t.size == 36 * 3
    percent = windows.flat(windows.block.values)[windows.position(t, n), :, 0]
    np.testing.assert_array_equal(percent, np.repeat(np.float32([1.0, 2.0, 3.0])[n][:, None], 5, axis=1))


def test_a_label_is_the_yield_observed_exactly_a_horizon_later() -> None:
    apy = np.arange(1.0, 31.0)[:, None] / 1000.0
    apy[20] = np.nan  # carried over, so that it is known at row 20 and no label
    windows = Windows.of(plain(apy), lookback=4, horizon=7)
    assert windows.label[3, 0] == apy[10, 0]
    assert np.isnan(windows.label[13, 0])
    assert np.isnan(windows.label[23:]).all()
    assert windows.last[20, 0] == apy[19, 0]
    t, _ = windows.samples((0, 30), labelled=True)
    assert t.tolist() == [t for t in range(3, 23) if t != 13]


@pytest.mark.parametrize("seed", range(6))
def test_samples_are_those_of_plain_loops(seed: int) -> None:
    panel = tiny_panel(times=70, pools=4, seed=seed)
    generator = np.random.default_rng(seed)
    apy = panel.raw("apy").copy()
    apy[generator.random(apy.shape) < 0.35] = np.nan
    panel = panel.with_fields({"apy": apy})
    lookback, horizon = int(generator.integers(1, 15)), int(generator.integers(1, 10))
    windows = Windows.of(panel, lookback=lookback, horizon=horizon)
    rows = (int(generator.integers(0, 30)), int(generator.integers(31, 90)))
    labelled, usable = oracle.samples(panel["apy"], panel.raw("apy"), lookback, horizon, *rows)
    for expected, found in ((labelled, True), (usable, False)):
        t, n = windows.samples(rows, labelled=found)
        assert list(zip(t.tolist(), n.tolist(), strict=True)) == expected


@pytest.mark.parametrize("horizon", [1, 7, 20])
def test_no_label_of_a_part_reaches_into_the_next(horizon: int) -> None:
    windows = Windows.of(tiny_panel(times=260, pools=4), lookback=10, horizon=horizon)
    t, _ = windows.samples((0, 260), labelled=True)
    split = chronological(260, purge=horizon, begin=int(t[0]))
    for part, following in ((split.train, split.valid), (split.valid, split.test)):
        t, _ = windows.samples(part, labelled=True)
        assert t.max() + horizon == following[0] - 1  # as far as it may, and no further


def test_a_horizon_beyond_the_panel_has_windows_and_no_labels() -> None:
    for horizon in (19, 20, 40):
        windows = Windows.of(plain(np.full((20, 2), 0.05)), lookback=5, horizon=horizon)
        assert windows.samples((0, 20), labelled=False)[0].size == 32
        assert windows.samples((0, 20), labelled=True)[0].size == 0


@pytest.mark.parametrize("sizes", [{"lookback": 0}, {"horizon": 0}, {"horizon": -1}])
def test_a_size_below_one_day_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="must be a whole number of days, 1 or more"):
        Windows.of(tiny_panel(), **sizes)


def test_a_panel_of_one_window_has_its_samples() -> None:
    windows = Windows.of(plain(np.full((30, 2), 0.05)))
    assert [part.tolist() for part in windows.samples((0, 30), labelled=False)] == [[29, 29], [0, 1]]


def test_too_little_history_is_told_with_its_days() -> None:
    with pytest.raises(DataError, match="need at least 30 days of history, and the panel has 29"):
        Windows.of(tiny_panel(times=29))
    with pytest.raises(UsageError, match="unknown feature set 'studdy'; did you mean 'study'"):
        Windows.of(tiny_panel(), feature_set="studdy")
    empty = Panel(np.datetime64("2024-01-01", "D") + np.arange(40), pl.DataFrame({"pool_id": []}), {})
    with pytest.raises(DataError, match="a panel with a pool"):
        Windows.of(empty)
