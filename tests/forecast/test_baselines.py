"""Baselines are what plain loops give, from the past alone, and come back from their card as they were."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from oracles import forecasts_oracle as oracle

from yieldlab.causality import assert_causal
from yieldlab.errors import DataError, UsageError
from yieldlab.forecast.protocol import Model
from yieldlab.forecast.registry import make, windows_of
from yieldlab.forecast.windows import Windows
from yieldlab.panel import Panel
from yieldlab.testing import tiny_panel

NAMES = ("persistence", "ewma", "pool_mean", "ar")
SMALL = {"lookback": 5, "horizon": 3}
TRAIN, VALID = (0, 60), (63, 80)


def fitted(name: str, panel: Panel, valid: tuple[int, int] | None = None, **given: float) -> tuple[Model, Windows]:
    model = make(name, {**SMALL, **given})
    windows = windows_of(panel, model.settings)
    assert list(model.fit(windows, TRAIN, valid)) == []
    return model, windows


def forecast(model: Model, windows: Windows, rows: tuple[int, int] | None = None) -> np.ndarray:
    return model.fields(windows, rows or (0, windows.shape[0]))[f"forecast_{model.name}"]


@pytest.fixture(params=[0, 1, 2])
def panel(request: pytest.FixtureRequest) -> Panel:
    return tiny_panel(times=130, pools=5, seed=request.param)


def test_persistence_says_todays_yield_where_there_is_a_window(panel: Panel) -> None:
    model, windows = fitted("persistence", panel)
    np.testing.assert_array_equal(forecast(model, windows), np.where(windows.usable, panel["apy"], np.nan))
    assert model.trained_through == -1


def test_ewma_is_that_of_plain_loops(panel: Panel) -> None:
    model, windows = fitted("ewma", panel, halflife=4.0)
    plain = np.where(windows.usable, oracle.ewma(panel["apy"], 4.0), np.nan)
    np.testing.assert_allclose(forecast(model, windows), plain, rtol=1e-12)


@pytest.mark.parametrize("valid", [None, VALID])
def test_a_pool_mean_is_the_mean_of_the_pools_training_labels(panel: Panel, valid: tuple[int, int] | None) -> None:
    model, windows = fitted("pool_mean", panel, valid)
    end = 60 if valid is None else 80
    chosen, _ = oracle.samples(panel["apy"], panel.raw("apy"), 5, 3, 0, end)
    found = forecast(model, windows)
    for n in range(panel.shape[1]):
        labels = [panel.raw("apy")[t + 3, n] for t, pool in chosen if pool == n]
        told = found[windows.usable[:, n], n]
        if labels:
            np.testing.assert_allclose(told, np.mean(labels), rtol=1e-12)
        else:
            assert np.isnan(told).all()
    assert model.trained_through == max(t for t, _ in chosen) + 3


@pytest.mark.parametrize(("lags", "ridge"), [(1, 1e-3), (4, 1e-3), (3, 0.0), (2, 10.0)])
def test_an_autoregression_is_least_squares_pool_by_pool(panel: Panel, lags: int, ridge: float) -> None:
    model, windows = fitted("ar", panel, lags=lags, ridge=ridge)
    chosen, _ = oracle.samples(panel["apy"], panel.raw("apy"), 5, 3, *TRAIN)
    plain = oracle.autoregression(panel["apy"], panel.raw("apy"), chosen, 3, lags, ridge, 5)
    plain[~windows.usable] = np.nan
    assert np.isfinite(plain).any()
    np.testing.assert_allclose(forecast(model, windows), plain, rtol=1e-6, atol=1e-12)
    assert model.trained_through == max(t for t, _ in chosen) + 3


def test_an_autoregression_finds_the_drift_of_a_world_that_has_one() -> None:
    generator = np.random.default_rng(0)
    moved = np.zeros((400, 2))
    for t in range(1, 400):
        moved[t] = 0.9 * moved[t - 1] + 0.1 * generator.normal(size=2)
    panel = Panel(
        np.datetime64("2024-01-01", "D") + np.arange(400),
        pl.DataFrame({"pool_id": ["a", "b"]}),
        {"apy": 0.05 + 0.01 * moved, "tvl_usd": np.full(moved.shape, 1e6)},
    )
    model = make("ar", {"lags": 1, "ridge": 0.0, **SMALL})
    windows = windows_of(panel, model.settings)
    list(model.fit(windows, (0, 300), None))
    for _, slope in model.document()["coefficients"].values():  # type: ignore[attr-defined]
        assert slope == pytest.approx(0.9**3, abs=0.12)
    rows = slice(303, 397)
    error = np.abs(forecast(model, windows)[rows] - windows.label[rows]).mean()
    assert error < np.abs(windows.last[rows] - windows.label[rows]).mean()


def test_a_constant_pool_is_forecast_as_it_is_whatever_the_ridge() -> None:
    panel = tiny_panel(times=130, pools=3)
    panel = panel.with_fields({"apy": np.full(panel.shape, 0.04)})
    for ridge in (0.0, 1e-3):
        model, windows = fitted("ar", panel, ridge=ridge)
        told = forecast(model, windows)
        np.testing.assert_allclose(told[~np.isnan(told)], 0.04, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_forecast_depends_on_no_later_row(name: str) -> None:
    panel = tiny_panel(times=130, pools=4, seed=5)
    model, _ = fitted(name, panel, VALID)

    def told(seen: Panel) -> np.ndarray:
        if seen.shape[0] < 5:
            return np.full(seen.shape, np.nan)
        return forecast(model, windows_of(seen, model.settings))

    assert_causal(told, panel, name=name, seconds=0.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_reads_nothing_after_the_day_it_is_trained_through(name: str) -> None:
    panel = tiny_panel(times=130, pools=4, seed=5)
    model, windows = fitted(name, panel, VALID)
    apy = panel.raw("apy").copy()
    apy[max(model.trained_through, 0) + 1 :] *= 3.0
    changed, _ = fitted(name, panel.with_fields({"apy": apy}), VALID)
    assert changed.document() == model.document()
    np.testing.assert_array_equal(forecast(changed, windows), forecast(model, windows))


@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_the_rows_has_the_forecasts_of_the_whole(name: str) -> None:
    model, windows = fitted(name, tiny_panel(times=130, pools=4))
    np.testing.assert_array_equal(forecast(model, windows, (70, 90)), forecast(model, windows)[70:90])


@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_comes_back_from_its_document(name: str) -> None:
    model, windows = fitted(name, tiny_panel(times=130, pools=4), VALID)
    again = make(name, model.settings)
    assert model.weights() is None
    again.restore(json.loads(json.dumps(model.document())), None)
    np.testing.assert_array_equal(forecast(again, windows), forecast(model, windows))


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("pool_mean", {}),
        ("pool_mean", {"means": [1.0]}),
        ("pool_mean", {"means": {"pool-00": "much"}}),
        ("pool_mean", {"means": {"pool-00": float("nan")}}),
        ("ar", {"size": 1.0}),
        ("ar", {"size": 0.0, "coefficients": {"a": [0.0] * 8}}),
        ("ar", {"size": "big", "coefficients": {}}),
        ("ar", {"size": 1.0, "coefficients": {"a": [0.0] * 7}}),
        ("ar", {"size": 1.0, "coefficients": {"a": None}}),
        ("ar", {"size": 1.0, "coefficients": {"a": [float("inf")] * 8}}),
    ],
)
def test_a_damaged_document_is_refused(name: str, document: dict[str, object]) -> None:
    with pytest.raises(DataError, match=f"the card of model '{name}'"):
        make(name).restore(document, None)


def test_too_little_to_learn_from_is_told() -> None:
    panel = tiny_panel(times=40, pools=3)
    for name in ("pool_mean", "ar"):
        model = make(name, SMALL)
        with pytest.raises(DataError, match="no window of 5 days to learn from"):
            list(model.fit(windows_of(panel, model.settings), (0, 3), None))
    model = make("ar", SMALL)
    with pytest.raises(DataError, match="no pool has the 40 training samples that its autoregression needs"):
        list(model.fit(windows_of(panel, model.settings), (0, 20), None))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="setting lags of model 'ar' must be 1 or more, not 0"):
        make("ar", {"lags": 0})
    with pytest.raises(UsageError, match="setting halflife of model 'ewma' must be above 0"):
        make("ewma", {"halflife": 0.0})
    for value in (2.5, None, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="setting lags of model 'ar' takes a whole number"):
            make("ar", {"lags": value})
    for bad in (float("nan"), -1.0):
        with pytest.raises(UsageError, match="setting ridge of model 'ar' must be from 0 to"):
            make("ar", {"ridge": bad})
    with pytest.raises(UsageError, match="unknown model 'arr'; did you mean 'ar'"):
        make("arr")
    with pytest.raises(UsageError, match="no setting 'lag'; did you mean 'lags'"):
        make("ar", {"lag": 2})
