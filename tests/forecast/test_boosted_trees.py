"""Boosted trees: they learn what is there to learn, from the past only, and come back from their file as they were."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

pytest.importorskip("xgboost", reason="needs the extra: ml")

import xgboost as xgb

from yieldlab.causality import assert_causal
from yieldlab.errors import DataError, UsageError
from yieldlab.forecast.boosted_trees import BoostedTrees, boost
from yieldlab.forecast.registry import settings_of
from yieldlab.forecast.windows import Windows
from yieldlab.panel import Panel
from yieldlab.sample import synthetic
from yieldlab.space import Value

Floats = NDArray[np.float64]

FIELDS = ("apy", "tvl_usd", "volume_24h_usd")
TRAIN, VALID, TEST = (0, 200), (207, 250), (257, 320)


def world(seed: int = 0, days: int = 320, pools: int = 6) -> Panel:
    frame, assets = synthetic(pools, days, seed)
    return Panel.from_long(frame, assets, fields=FIELDS)


def trees(**given: Value) -> BoostedTrees:
    quick = {"n_estimators": 60, "max_depth": 3, "learning_rate": 0.1, "early_stopping": 10, "threads": 1}
    return BoostedTrees("xgboost", settings_of("xgboost", quick | given))


def fitted(panel: Panel, valid: tuple[int, int] | None = VALID, **given: Value) -> tuple[BoostedTrees, Windows]:
    model, windows = trees(**given), Windows.of(panel)
    list(model.fit(windows, TRAIN, valid))
    return model, windows


def forecast(model: BoostedTrees, windows: Windows, rows: tuple[int, int] = TEST) -> Floats:
    return model.fields(windows, rows)["forecast_xgboost"]


def swinging() -> Panel:
    """Yields that go up and down by half within a fortnight: a week later each is on the other side."""
    panel = world()
    days = np.arange(panel.shape[0])[:, None]
    apy = 0.08 + 0.04 * np.sin(2.0 * np.pi * (days / 14.0 + np.arange(panel.shape[1])[None, :] / 6.0))
    return panel.with_fields({"apy": apy})


@pytest.mark.parametrize("target", ["change", "level"])
def test_what_can_be_known_is_learned(target: str) -> None:
    model, windows = fitted(swinging(), target=target)
    label = windows.label[TEST[0] : TEST[1]]
    error = np.nanmean(np.abs(forecast(model, windows) - label))
    today = np.nanmean(np.abs(windows.last[TEST[0] : TEST[1]] - label))
    assert error < 0.15 * today


def test_a_forecast_is_where_a_window_may_be_used_and_nowhere_else() -> None:
    model, windows = fitted(world())
    found = forecast(model, windows, (0, 320))
    np.testing.assert_array_equal(~np.isnan(found), windows.usable)


def test_the_same_seed_gives_the_same_forecasts_and_another_gives_others() -> None:
    panel = world()
    first, again, other = (forecast(*fitted(panel, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other, equal_nan=True)


def test_it_stops_on_validation_and_keeps_the_best_number_of_trees() -> None:
    model, _ = fitted(world(), n_estimators=500)
    best = min(model.history, key=lambda each: each.valid_loss or 0.0)
    assert model.refit_settings()["n_estimators"] == best.epoch
    assert len(model.history) == model.refit_settings()["n_estimators"] + 10
    assert model.history[-1].epochs == 500
    assert (
        len(json.loads(model.weights() or b"")["learner"]["gradient_booster"]["model"]["trees"])
        == model.refit_settings()["n_estimators"]
    )


def test_without_validation_every_tree_is_kept() -> None:
    model, _ = fitted(world(), valid=None, n_estimators=7)
    assert [each.valid_loss for each in model.history] == [None] * 7
    assert model.refit_settings()["n_estimators"] == 7


def test_trained_through_is_where_the_last_label_ends() -> None:
    panel = world()
    assert fitted(panel)[0].trained_through == VALID[1] - 1 + 7
    assert fitted(panel, valid=None)[0].trained_through == TRAIN[1] - 1 + 7


def test_what_comes_after_trained_through_changes_no_bit() -> None:
    panel = world()
    end = VALID[1] - 1 + 7 + 1
    generator = np.random.default_rng(5)
    altered = {}
    for name in FIELDS:
        values = panel.raw(name).copy()
        values[end:] = values[end:] * generator.lognormal(0.0, 1.0, values[end:].shape)
        altered[name] = values
    one, other = (fitted(each)[0] for each in (panel, panel.with_fields(altered)))
    assert one.weights() == other.weights()
    assert one.document() == other.document()


def test_forecasts_are_causal() -> None:
    panel = world(days=330)
    model, _ = fitted(panel)
    assert_causal(
        lambda seen: forecast(model, Windows.of(seen), (0, seen.shape[0])),
        panel,
        rows=[100, 260, 261, 300, 329],
        shortest=31,
    )


def test_lags_are_rows_of_the_window_and_the_calendar_has_none() -> None:
    model, _ = fitted(world())
    inputs = model.document()["inputs"]
    assert isinstance(inputs, list)
    for days in (1, 7, 14, 29):
        assert f"apy_percent_{days}_days_ago" in inputs
    assert not [name for name in inputs if "day_of_week_" in name or "hour_" in name or "protocol_curve_" in name]
    short = trees(lookback=5)
    windows = Windows.of(world(), lookback=5)
    list(short.fit(windows, TRAIN, VALID))
    assert "apy_percent_4_days_ago" in short.document()["inputs"]  # type: ignore[operator]
    assert "apy_percent_7_days_ago" not in short.document()["inputs"]  # type: ignore[operator]


def test_a_column_of_a_lag_is_the_feature_so_many_days_before() -> None:
    model, windows = fitted(world())
    scaled = model._scaler.apply(windows)
    t, n = windows.samples(TEST, labelled=False)
    given = model._matrix(scaled, t, n, 30).get_data().toarray()
    place = model._inputs(30).index("tvl_trend_7d_14_days_ago")
    column = model._scaler.names.index("tvl_trend_7d")
    np.testing.assert_array_equal(
        given[:, place], [scaled[pool, row - 14, column] for row, pool in zip(t, n, strict=True)]
    )


def test_a_saved_model_forecasts_the_same_bits() -> None:
    model, windows = fitted(world())
    document = json.loads(json.dumps(model.document(), allow_nan=False))
    again = trees()
    again.restore(document, model.weights())
    np.testing.assert_array_equal(forecast(again, windows), forecast(model, windows))
    assert again.refit_settings() == model.refit_settings()
    assert again.importance() == model.importance()


@pytest.mark.parametrize("weights", [None, b"", b"rubbish", b"{", b'{"a": 1}', bytes(range(256))])
def test_a_file_that_holds_no_trees_is_refused(weights: bytes | None) -> None:
    model, _ = fitted(world(), n_estimators=3)
    with pytest.raises(DataError, match="trees of model 'xgboost'"):
        trees().restore(model.document(), weights)


def test_trees_that_read_other_features_are_refused() -> None:
    model, _ = fitted(world(), n_estimators=3)
    other = trees(lookback=5)
    list(other.fit(Windows.of(world(), lookback=5), TRAIN, VALID))
    with pytest.raises(DataError, match="not those of its card"):
        trees().restore(model.document(), other.weights())


def test_damaged_trees_are_refused_before_xgboost_reads_them() -> None:
    model, _ = fitted(world(), n_estimators=3)
    content = json.loads(model.weights() or b"")
    first = content["learner"]["gradient_booster"]["model"]["trees"][0]
    for column, value in (
        ("left_children", 10_000),
        ("split_indices", 999),
        ("right_children", 0),
        ("left_children", -7),
    ):
        kept = first[column][0]
        first[column][0] = value
        with pytest.raises(DataError, match="trees of model 'xgboost' are damaged"):
            trees().restore(model.document(), json.dumps(content).encode())
        first[column][0] = kept
    trees().restore(model.document(), json.dumps(content).encode())
    first["base_weights"].pop()
    with pytest.raises(DataError, match="trees of model 'xgboost' are damaged"):
        trees().restore(model.document(), json.dumps(content).encode())


@pytest.mark.parametrize("missing", ["scaler", "transform", "target", "history"])
def test_a_card_that_lacks_something_is_refused(missing: str) -> None:
    model, _ = fitted(world(), n_estimators=3)
    document: Mapping[str, object] = {key: value for key, value in model.document().items() if key != missing}
    with pytest.raises(DataError, match="does not describe boosted trees"):
        trees().restore(document, model.weights())


def test_a_pool_of_a_protocol_never_seen_has_no_forecast() -> None:
    panel = world()
    model, _ = fitted(panel)
    protocols = panel.pools["protocol"].to_list()
    pools = panel.pools.with_columns(pl.Series("protocol", ["novel-swap", *protocols[1:]]))
    stranger = Panel(panel.times, pools, {name: panel.raw(name) for name in FIELDS})
    found = forecast(model, Windows.of(stranger))
    assert np.isnan(found[:, 0]).all()
    assert not np.isnan(found[:, 1:]).any()


def test_too_little_history_a_constant_yield_and_no_validation_are_told() -> None:
    panel = world()
    with pytest.raises(DataError, match="never changes"):
        fitted(panel.with_fields({"apy": np.full(panel.shape, 0.05)}))
    with pytest.raises(DataError, match="no window of 30 days"):
        list(trees().fit(Windows.of(panel), (0, 10), None))
    with pytest.raises(DataError, match="validation days"):
        fitted(panel, valid=(318, 320))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"n_estimators": 0}, "n_estimators"),
        ({"max_depth": 0}, "max_depth"),
        ({"target": "levle"}, "did you mean 'level'"),
        ({"subsample": 3.0}, "setting subsample of model 'xgboost' is a share above 0, 1 at the most"),
        ({"colsample_bytree": 0.0}, "setting colsample_bytree of model 'xgboost' is a share above 0"),
        ({"learning_rate": 0.0}, "with a learning_rate of 0 model 'xgboost' learns nothing"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Value], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        fitted(world(days=320), **given)


def test_what_xgboost_does_not_take_is_told_in_its_words() -> None:
    matrix = xgb.DMatrix(np.zeros((4, 1)), np.arange(4.0))
    with pytest.raises(UsageError, match="XGBoost does not take the settings of model 'xgboost'"):
        list(boost("xgboost", settings_of("xgboost", {"n_estimators": 2}), {"objective": "no:such"}, matrix, None))
