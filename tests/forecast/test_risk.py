"""Risk classes: learned from the past only, with probabilities that mean something, and the same after a restart."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

pytest.importorskip("xgboost", reason="needs the extra: ml")

from yieldlab.causality import assert_causal
from yieldlab.errors import DataError, UsageError
from yieldlab.forecast.registry import settings_of
from yieldlab.forecast.risk import RiskClassifier
from yieldlab.forecast.risk_features import FAMILIES, family, risk_features
from yieldlab.forecast.risk_labels import THRESHOLDS, labels
from yieldlab.forecast.risk_scores import confusion, log_loss
from yieldlab.forecast.windows import Windows
from yieldlab.panel import Panel
from yieldlab.sample import synthetic
from yieldlab.space import Value
from yieldlab.testing import tiny_panel

Floats = NDArray[np.float64]

TRAIN, VALID, TEST = (0, 400), (430, 600), (630, 720)


def world(seed: int = 0, days: int = 720, pools: int = 12) -> Panel:
    """Pools whose utilization foretells what becomes of them: at 0.95 TVL falls by 70 %, at 0.7 by 30 %."""
    frame, assets = synthetic(pools, days, seed)
    panel = Panel.from_long(frame, assets, fields=("apy", "tvl_usd"))
    generator = np.random.default_rng(seed)
    tvl = np.full(panel.shape, 1e6) * np.exp(np.cumsum(generator.normal(0.0, 0.01, panel.shape), axis=0))
    apy = 0.05 * np.exp(0.2 * generator.normal(size=panel.shape))
    warning = np.zeros(panel.shape)
    for n in range(pools):
        for start in range(60 + 17 * n, days - 30, 180):
            warning[start : start + 25, n] = 1.0
            tvl[start + 25 :, n] *= 0.3
        for start in range(120 + 17 * n, days - 30, 180):
            warning[start : start + 25, n] = 0.5
            tvl[start + 25 :, n] *= 0.7
    return panel.with_fields({"apy": apy, "tvl_usd": tvl, "utilization_rate": 0.45 + 0.5 * warning})


def classifier(**given: Value) -> RiskClassifier:
    quick: dict[str, Value] = {
        "n_estimators": 40,
        "max_depth": 3,
        "learning_rate": 0.2,
        "early_stopping": 8,
        "threads": 1,
    }
    return RiskClassifier("risk", settings_of("risk", quick | given))


def windows_of(panel: Panel) -> Windows:
    return Windows.of(panel, horizon=30)


def fitted(panel: Panel, valid: tuple[int, int] | None = VALID, **given: Value) -> tuple[RiskClassifier, Windows]:
    model, windows = classifier(**given), windows_of(panel)
    list(model.fit(windows, TRAIN, valid))
    return model, windows


@pytest.fixture(scope="module")
def learned() -> tuple[RiskClassifier, Windows]:
    return fitted(world())


# -- features ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(risk_features(tiny_panel())))
def test_every_feature_is_causal(name: str) -> None:
    assert_causal(lambda panel: risk_features(panel)[name], tiny_panel(times=70, pools=6), seconds=0.1)


def test_features_are_what_their_names_say() -> None:
    apy = np.linspace(0.10, 0.20, 41)[:, None]
    tvl = np.concatenate([np.full(35, 2e6), np.full(6, 1e6)])[:, None]
    reward = 0.25 * apy
    times = np.datetime64("2024-01-01", "D") + np.arange(41)
    apy[0] = np.nan
    pools = pl.DataFrame({"pool_id": ["a"], "protocol": ["curve-dex"]})
    found = risk_features(Panel(times, pools, {"apy": apy, "tvl_usd": tvl, "apy_reward": reward}))
    last = {name: float(values[-1, 0]) for name, values in found.items()}
    assert last["apy_percent"] == 20.0
    assert last["apy_ma_7d"] == pytest.approx(20.0 - 3 * 0.25)
    assert last["apy_over_ma_7d"] == pytest.approx(20.0 / 19.25)
    assert last["apy_trend_7d"] == pytest.approx(20.0 / 18.25 - 1.0)
    assert last["tvl_trend_7d"] == -0.5
    assert last["tvl_trend_30d"] == -0.5
    assert last["tvl_from_peak_30d"] == 0.5
    assert last["tvl_usd"] == pytest.approx(np.log1p(1e6))
    assert last["apy_tvl_ratio"] == pytest.approx(np.log1p(20.0))
    assert last["reward_share"] == 0.25
    assert last["age_days"] == 39.0
    assert last["silent_days"] == 0.0
    assert np.isnan(last["utilization_rate"])
    assert [last[f"family_{kind}"] for kind in (*FAMILIES, "other")] == [0.0, 1.0, 0.0, 0.0]


def test_a_family_is_told_by_the_beginning_of_a_protocols_name() -> None:
    assert [family(name) for name in ("Aave V2", "unverified:venus-core-pool", "morpho-blue")] == ["lending"] * 3
    assert family("fluid-dex") == "amm"
    assert family("curveball") == "other"


# -- learning ---------------------------------------------------------------------------------------------------


def test_what_foretells_a_fall_is_found(learned: tuple[RiskClassifier, Windows]) -> None:
    report = learned[0].report(learned[1], TEST)
    assert report.pr_auc_high is not None
    assert report.pr_auc_high > 0.8 > 3 * report.base_rate_high
    assert report.log_loss < 0.8 * report.log_loss_prior
    assert next(iter(report.importance)) == "utilization_rate"
    assert np.sum(report.confusion) == report.samples
    assert report.calibration.startswith("logistic regression on")


def test_classes_and_probabilities_agree_and_stand_where_a_window_may_be_used(
    learned: tuple[RiskClassifier, Windows],
) -> None:
    model, windows = learned
    found, chances = model.fields(windows, TEST), model.probabilities(windows, TEST)
    assert list(found) == ["risk_class", "risk_prob_medium", "risk_prob_high"]
    usable = windows.usable[TEST[0] : TEST[1]]
    for values in found.values():
        np.testing.assert_array_equal(~np.isnan(values), usable)
    np.testing.assert_allclose(chances[usable].sum(axis=1), 1.0)
    np.testing.assert_array_equal(found["risk_class"][usable], chances[usable].argmax(axis=1))
    np.testing.assert_array_equal(found["risk_prob_medium"], chances[:, :, 1])
    np.testing.assert_array_equal(found["risk_prob_high"], chances[:, :, 2])


def test_probabilities_come_as_often_as_they_say(learned: tuple[RiskClassifier, Windows]) -> None:
    model, windows = learned
    rows = (VALID[0], TEST[1] - 30)
    known = ~np.isnan(model.labels(windows)[rows[0] : rows[1]]) & windows.usable[rows[0] : rows[1]]
    came = model.labels(windows)[rows[0] : rows[1]][known] == 2
    assert model.fields(windows, rows)["risk_prob_high"][known].mean() == pytest.approx(came.mean(), abs=0.05)


def test_without_validation_the_classes_are_as_frequent_as_in_training_and_the_card_says_so() -> None:
    model, windows = fitted(world(), valid=None, n_estimators=10)
    assert "no validation days" in model.calibration
    t, n = windows.samples(TRAIN, labelled=False)
    happened = model.labels(windows)[t, n]
    chance = model.probabilities(windows, TRAIN)[t, n]
    for each in range(3):
        assert chance[:, each].mean() == pytest.approx((happened == each).mean(), abs=0.1)


def test_a_validation_that_lacks_a_class_calibrates_nothing_and_the_card_says_so() -> None:
    panel = world()
    tvl = panel.raw("tvl_usd").copy()
    tvl[430:] = 1e6
    model, _ = fitted(panel.with_fields({"tvl_usd": tvl}), valid=(460, 600))
    assert "class high has 0 of the 20 validation samples it needs" in model.calibration
    assert model.document()["coefficients"] is None


def test_a_class_that_training_never_saw_gets_no_chance() -> None:
    panel = world()
    still = panel.with_fields({"apy": np.where(np.isnan(panel.raw("apy")), np.nan, 0.05)})
    model, windows = fitted(still, tvl_fall_medium=1.0, tvl_fall_high=0.2)
    assert "no training sample is of class medium" in model.calibration
    assert np.nanmax(model.fields(windows, TEST)["risk_prob_medium"]) == 0.0


def test_a_training_without_high_is_refused_since_it_would_learn_nothing_of_what_is_asked() -> None:
    with pytest.raises(DataError, match=r"none of the [0-9,]+ training samples is of risk class high"):
        fitted(world(), tvl_fall_high=1.0, apy_fall_high=1.0)


def test_one_class_only_is_refused_in_one_sentence() -> None:
    panel = world()
    flat = panel.with_fields({"apy": np.full(panel.shape, 0.05), "tvl_usd": np.full(panel.shape, 1e6)})
    with pytest.raises(DataError, match="training samples are of risk class low, so there is nothing to tell apart"):
        fitted(flat)


def test_days_without_labels_are_refused() -> None:
    panel = world(days=200)
    with pytest.raises(DataError, match="no training day with a risk label"):
        list(classifier().fit(windows_of(panel), (175, 200), None))
    with pytest.raises(DataError, match="no validation day with a risk label"):
        list(classifier().fit(windows_of(panel), (0, 140), (175, 200)))
    model, windows = fitted(world())
    with pytest.raises(DataError, match="none of the 20 days reported on has a risk label"):
        model.report(windows, (700, 720))


def test_trained_through_is_where_the_last_label_ends() -> None:
    panel = world()
    assert fitted(panel)[0].trained_through == VALID[1] - 1 + 30
    assert fitted(panel, valid=None)[0].trained_through == TRAIN[1] - 1 + 30
    windows = Windows.of(panel, horizon=10)
    model = classifier(horizon=10)
    list(model.fit(windows, TRAIN, None))
    assert model.trained_through == TRAIN[1] - 1 + 10


def test_what_comes_after_trained_through_changes_no_bit() -> None:
    panel = world()
    end = VALID[1] - 1 + 30 + 1
    generator = np.random.default_rng(5)
    altered = {}
    for name in panel.fields:
        values = panel.raw(name).copy()
        values[end:] *= generator.lognormal(0.0, 1.0, values[end:].shape)
        altered[name] = values
    one, other = (fitted(each, n_estimators=15)[0] for each in (panel, panel.with_fields(altered)))
    assert one.weights() == other.weights()
    assert one.document() == other.document()


def test_classes_are_causal(learned: tuple[RiskClassifier, Windows]) -> None:
    model, windows = learned
    for field in ("risk_class", "risk_prob_medium", "risk_prob_high"):
        assert_causal(
            lambda seen, field=field: model.fields(windows_of(seen), (0, seen.shape[0]))[field],  # type: ignore[misc]
            windows.panel,
            rows=[100, 301, 650, 719],
            shortest=31,
        )


def test_the_models_own_thresholds_make_its_labels() -> None:
    panel = world()
    model = classifier(tvl_fall_high=0.25, tvl_fall_medium=0.05, apy_fall_high=0.5, deviation_quantile=0.6)
    wanted = labels(panel, tvl_fall_high=0.25, tvl_fall_medium=0.05, apy_fall_high=0.5, deviation_quantile=0.6)
    np.testing.assert_array_equal(model.labels(windows_of(panel)), wanted)
    assert not np.array_equal(wanted, labels(panel), equal_nan=True)


# -- scores -----------------------------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    label = np.array([0, 1, 2, 2])
    chance = np.array([[0.5, 0.5, 0.0], [0.25, 0.5, 0.25], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert confusion(label, chance.argmax(axis=1)) == ((1, 0, 0), (0, 1, 0), (1, 0, 1))
    assert log_loss(label, chance) == pytest.approx((2 * np.log(2.0) + 9 * np.log(10.0)) / 4)


# -- saving -----------------------------------------------------------------------------------------------------


def test_a_saved_model_gives_the_same_bits(learned: tuple[RiskClassifier, Windows]) -> None:
    model, windows = learned
    again = classifier()
    again.restore(json.loads(json.dumps(model.document(), allow_nan=False)), model.weights())
    for field, values in model.fields(windows, TEST).items():
        np.testing.assert_array_equal(again.fields(windows, TEST)[field], values)
    assert again.report(windows, TEST) == model.report(windows, TEST)
    assert again.refit_settings() == model.refit_settings()


@pytest.mark.parametrize("weights", [None, b"", b"rubbish", b"{", b'{"a": 1}', bytes(range(256))])
def test_a_file_that_holds_no_trees_is_refused(learned: tuple[RiskClassifier, Windows], weights: bytes | None) -> None:
    with pytest.raises(DataError, match="trees of model 'risk'"):
        classifier().restore(learned[0].document(), weights)


@pytest.mark.parametrize(
    "changed",
    [
        {"features": None},
        {"priors": [0.5, 0.5]},
        {"priors": ["a", "b", "c"]},
        {"coefficients": [[1.0, 2.0]]},
        {"coefficients": [[float("nan")] * 4] * 3},
        {"history": 3},
        {"features": ["apy_percent"]},
    ],
)
def test_a_card_that_is_not_its_own_is_refused(
    learned: tuple[RiskClassifier, Windows], changed: Mapping[str, object]
) -> None:
    with pytest.raises(DataError, match=r"the (card|trees) of model 'risk'"):
        classifier().restore({**learned[0].document(), **changed}, learned[0].weights())


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="n_estimators"):
        classifier(n_estimators=0)
    with pytest.raises(UsageError, match="setting tvl_fall_high of model 'risk' is a share"):
        classifier(tvl_fall_high=2.0)


def test_numbers_beyond_single_precision_are_no_obstacle() -> None:
    """A simple rate of 9,500 % compounds to more than 1e36; it is the largest a tree can hold, not a failure."""
    panel = world()
    apy = panel.raw("apy").copy()
    apy[100:110, 2], apy[640:650, 2] = 4.67e38, 1e140
    tvl = panel.raw("tvl_usd").copy()
    tvl[200:210, 3] = 1e-300
    model, windows = fitted(panel.with_fields({"apy": apy, "tvl_usd": tvl}))
    assert np.isfinite(model.fields(windows, TEST)["risk_prob_high"][windows.usable[TEST[0] : TEST[1]]]).all()


def protocols(panel: Panel, *names: str) -> Panel:
    pools = panel.pools.with_columns(pl.Series("protocol", [names[n % len(names)] for n in range(panel.shape[1])]))
    return Panel(panel.times, pools, {name: panel.raw(name) for name in panel.fields})


def test_a_family_of_protocols_that_training_never_saw_gets_no_class() -> None:
    seen, other = protocols(world(), "aave-v3", "curve-dex"), protocols(world(), "compound-v3", "uniswap-v3")
    model, _ = fitted(seen)
    windows = windows_of(other)
    found = model.fields(windows, TEST)
    lending = np.arange(12) % 2 == 0
    for values in found.values():
        np.testing.assert_array_equal(~np.isnan(values), windows.usable[TEST[0] : TEST[1]] & lending)
    assert model.unseen(windows) == [None, "the family amm of protocols"] * 6
    again = classifier()
    again.restore(json.loads(json.dumps(model.document())), model.weights())
    assert again.unseen(windows) == model.unseen(windows)
    report = model.report(windows, TEST)
    assert report.samples == np.count_nonzero(
        ~np.isnan(model.labels(windows)[TEST[0] : TEST[1]]) & windows.usable[TEST[0] : TEST[1]] & lending
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"families": ["family_x"]},
        {"families": []},
        {"families": "abc"},
        {"priors": [0.0, 0.0, 0.0]},
        {"priors": [-1.0, 1.0, 1.0]},
    ],
)
def test_a_document_that_cannot_be_is_refused(
    changes: dict[str, object], learned: tuple[RiskClassifier, Windows]
) -> None:
    model, _ = learned
    with pytest.raises(DataError, match="has no usable priors, families or calibration"):
        classifier().restore({**model.document(), **changes}, model.weights())


def test_the_models_thresholds_are_those_of_the_labels_unless_set() -> None:
    defaults = {name: each.default for name, each in inspect.signature(labels).parameters.items()}
    settings = settings_of("risk")
    assert {name: settings[name] for name in THRESHOLDS} == {name: defaults[name] for name in THRESHOLDS}
    assert (settings["horizon"], defaults["horizon"], defaults["deviation_days"]) == (30, 30, 30)
    assert [defaults[name] for name in THRESHOLDS] == [0.5, 0.8, 0.2, 0.8]


def test_a_panel_without_any_tvl_is_refused() -> None:
    panel = world()
    with pytest.raises(DataError, match=r"the feature tvl_usd has no value on any of the [0-9,]+ training samples"):
        fitted(panel.with_fields({"tvl_usd": np.full(panel.shape, np.nan)}), apy_fall_high=0.1)


def test_the_first_half_of_the_validation_days_stops_and_the_second_calibrates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def validation(self: RiskClassifier, *arguments: object) -> object:
        checked, kept = whole(self, *arguments)  # type: ignore[arg-type]
        given["stop"], given["calibrate"] = checked.get_label(), kept
        return checked, kept

    whole = RiskClassifier._validation
    monkeypatch.setattr(RiskClassifier, "_validation", validation)
    model, windows = fitted(world())
    happened = model.labels(windows)
    t, n = windows.samples(VALID, labelled=False)
    known = ~np.isnan(happened[t, n])
    t, n = t[known], n[known]
    middle = np.median(t)
    np.testing.assert_array_equal(given["stop"], happened[t[t <= middle], n[t <= middle]])
    np.testing.assert_array_equal(given["calibrate"][:2], [t[t > middle], n[t > middle]])


def test_validation_of_a_class_that_training_lacks_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    panel = world()
    still = panel.with_fields({"apy": np.where(np.isnan(panel.raw("apy")), np.nan, 0.05)})
    happened = labels(still, tvl_fall_medium=1.0, tvl_fall_high=0.2)
    happened[VALID[0] :] = np.where(np.isnan(happened[VALID[0] :]), np.nan, 1.0)
    monkeypatch.setattr(RiskClassifier, "labels", lambda self, windows: happened)
    with pytest.raises(DataError, match="no other risk class than medium, which no training sample is of"):
        fitted(still)
