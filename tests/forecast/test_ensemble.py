"""An ensemble weighs its members by what they were worth before the days it forecasts, and never by those days."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

pytest.importorskip("torch", reason="needs the extra: ml")
pytest.importorskip("xgboost", reason="needs the extra: ml")

import torch

from yieldlab.errors import DataError, UsageError
from yieldlab.folds import Rows
from yieldlab.forecast.artifacts import Card, load, read_card, save
from yieldlab.forecast.baselines import AutoRegression
from yieldlab.forecast.ensemble import Ensemble, Weights
from yieldlab.forecast.fold_ensemble import walk_forward_ensemble
from yieldlab.forecast.lstm import YieldForecaster
from yieldlab.forecast.protocol import EpochDone
from yieldlab.forecast.registry import known_settings, make, members_of, settings_of, windows_of
from yieldlab.forecast.train import Trained, forecast_today, reusable, train
from yieldlab.forecast.walk_forward import Finished, FoldPlan, walk_forward
from yieldlab.forecast.windows import Windows
from yieldlab.panel import Panel
from yieldlab.space import Value
from yieldlab.testing import assert_causal, tiny_panel

NAN = math.nan
TRAIN, VALID, TEST = (0, 60), (63, 80), (83, 100)
OWN: dict[str, dict[str, Value]] = {
    "ar": {"lags": 2},
    "ewma": {"halflife": 3.0},
    "pool_mean": {},
    "lstm": {"hidden": 8, "hidden_last": 8, "epochs": 2, "device": "cpu"},
    "xgboost": {"n_estimators": 6, "threads": 1},
}
SHARED: dict[str, Value] = {"lookback": 5, "horizon": 3}


def of(*members: str, **more: Value) -> dict[str, Value]:
    """The settings of a small ensemble."""
    own = {f"{name}.{key}": value for name in members for key, value in OWN[name].items()}
    return {**SHARED, "members": " ".join(members), **own, **more}


@pytest.fixture(scope="module")
def panel() -> Panel:
    torch.set_num_threads(1)
    return tiny_panel(times=110, pools=4, seed=5)


def fitted(panel: Panel, *members: str, **more: Value) -> Ensemble:
    settings = settings_of("ensemble", of(*members, **more))
    model = make("ensemble", settings)
    assert isinstance(model, Ensemble)
    list(model.fit(windows_of(panel, settings), TRAIN, VALID))
    return model


# -- weights --------------------------------------------------------------------------------------------------------


def test_weights_are_in_proportion_to_one_over_the_mean_squared_error() -> None:
    truth = np.array([[0.05, 0.05]])
    step = 0.05 * math.sinh(math.asinh(1.0) + 0.1)  # an error of 0.1 where APY is asinh(APY / 5 %)
    near, far = 0.05 * math.sinh(math.asinh(1.0) - 0.1), 0.05 * math.sinh(math.asinh(1.0) + 0.3)
    weights = Weights.fit({"a": np.array([[step, near]]), "b": np.array([[far, far]])}, truth)
    assert weights.values == pytest.approx({"a": 0.9, "b": 0.1})
    assert weights.cells == 2


def test_only_cells_that_all_members_and_the_truth_have_count() -> None:
    truth = np.array([[0.05, 0.05, NAN, 0.05]])
    a = np.array([[0.06, 9.0, 9.0, 0.06]])
    b = np.array([[0.06, NAN, 0.05, 0.06]])
    weights = Weights.fit({"a": a, "b": b}, truth)
    assert weights.values == {"a": 0.5, "b": 0.5}
    assert weights.cells == 2


def test_members_that_were_right_share_all_the_weight() -> None:
    truth = np.array([[0.05, 0.07]])
    weights = Weights.fit({"a": truth, "b": truth + 0.01, "c": truth}, truth)
    assert weights.values == {"a": 0.5, "b": 0.0, "c": 0.5}


def test_a_mean_needs_no_truth_and_weighs_all_alike() -> None:
    nothing = np.full((2, 2), NAN)
    assert Weights.fit({"a": nothing, "b": nothing}, nothing, "mean") == Weights({"a": 0.5, "b": 0.5}, 0)


def test_members_without_a_common_day_cannot_be_weighed() -> None:
    truth = np.array([[0.05, 0.05]])
    with pytest.raises(DataError, match="no validation day has the truth and a forecast of each of a, b"):
        Weights.fit({"a": np.array([[0.05, NAN]]), "b": np.array([[NAN, 0.05]])}, truth)


def test_where_a_member_has_no_forecast_the_others_make_up_for_it_and_are_counted() -> None:
    weights = Weights({"a": 0.6, "b": 0.3, "c": 0.1}, 7)
    forecasts = {
        "a": np.array([[0.10, NAN, NAN, NAN]]),
        "b": np.array([[0.20, 0.20, NAN, NAN]]),
        "c": np.array([[0.40, 0.60, 0.40, NAN]]),
    }
    values, lacking = weights.combine(forecasts)
    assert values[0].tolist() == pytest.approx([0.16, 0.30, 0.40, NAN], nan_ok=True)
    assert lacking == 2


def test_a_cell_that_only_members_without_weight_forecast_has_no_forecast() -> None:
    values, lacking = Weights({"a": 1.0, "b": 0.0}, 7).combine({"a": np.array([[NAN]]), "b": np.array([[0.1]])})
    assert np.isnan(values).all()
    assert lacking == 0  # no forecast, so none that lacks a member


# -- learning and forecasting ---------------------------------------------------------------------------------------


def test_it_is_what_its_members_say_alone_weighed_in_a_plain_loop(panel: Panel) -> None:
    """pool_mean, which is fitted on the validation days too, is weighed by what it said of them before."""
    model = fitted(panel, "pool_mean", "lstm", "xgboost")
    windows = windows_of(panel, model.settings)
    said, checked = {}, {}
    for name in ("lstm", "pool_mean", "xgboost"):
        alone = make(name, {**SHARED, **OWN[name]})
        list(alone.fit(windows, TRAIN, VALID))
        said[name] = alone.fields(windows, TEST)[f"forecast_{name}"]
        if name == "pool_mean":
            alone = make(name, SHARED)
            list(alone.fit(windows, TRAIN, None))
        checked[name] = alone.fields(windows, VALID)[f"forecast_{name}"]
    apy = panel.raw("apy")
    cells = [
        (t, n)
        for t in range(17)
        for n in range(4)
        if not math.isnan(apy[63 + t + 3, n]) and not any(math.isnan(checked[name][t, n]) for name in checked)
    ]
    size = float(np.median([abs(apy[63 + t + 3, n]) for t, n in cells]))
    inverse = {
        name: 1.0
        / math.fsum((math.asinh(values[t, n] / size) - math.asinh(apy[63 + t + 3, n] / size)) ** 2 for t, n in cells)
        for name, values in checked.items()
    }
    expected = np.full((17, 4), NAN)
    for t in range(17):
        for n in range(4):
            there = [name for name in said if not math.isnan(said[name][t, n])]
            if there:
                total = sum(inverse[name] for name in there)
                expected[t, n] = sum(inverse[name] * said[name][t, n] for name in there) / total
    found = model.fields(windows, TEST)
    assert list(found) == ["forecast_ensemble"]
    np.testing.assert_allclose(found["forecast_ensemble"], expected, rtol=1e-9)
    assert not np.isnan(expected).all()
    weights = model.document()["weights"]
    assert weights == pytest.approx({name: each / sum(inverse.values()) for name, each in inverse.items()})
    both, lacking = model.fields_and_parts(windows, TEST)
    assert list(both) == ["forecast_ensemble", "forecast_lstm", "forecast_pool_mean", "forecast_xgboost"]
    for name, values in said.items():
        np.testing.assert_array_equal(both[f"forecast_{name}"], values)
    holes = np.isnan(np.stack(list(said.values())))
    assert lacking == np.count_nonzero(holes.any(axis=0) & ~holes.all(axis=0))


def test_fitted_anew_in_each_fold_it_says_what_its_members_walk_forwards_say(panel: Panel, tmp_path: Path) -> None:
    """Two ways to the same numbers: members refitted inside the ensemble, and rows of the members' own runs."""
    plan = FoldPlan(train=60, step=20, purge=3, embargo=1)
    members = ("ewma", "pool_mean", "xgboost")
    for name in members:
        list(walk_forward(panel, name, {**SHARED, **OWN[name]}, folds=plan, store=None, root=tmp_path))
    *_, read = walk_forward_ensemble(panel, members, horizon=3, folds=plan, store=None, root=tmp_path)
    *_, made = walk_forward(panel, "ensemble", of(*members), folds=plan, store=None, root=tmp_path)
    assert isinstance(read, Finished)
    assert isinstance(made, Finished)
    one, other = (
        pl.read_parquet(each.path / "predictions.parquet").filter(pl.col("part") == "test").sort("pool_id", "valid_at")
        for each in (read, made)
    )
    assert one.height > 100
    assert one.drop("prediction").equals(other.drop("prediction"))
    np.testing.assert_allclose(one["prediction"], other["prediction"], rtol=1e-12)


@pytest.mark.parametrize("how", ["inverse_error", "mean"])
def test_days_after_those_it_learned_from_change_no_bit_of_it(panel: Panel, how: str) -> None:
    before = fitted(panel, "ar", "ewma", how=how)
    assert before.trained_through == 79 + 3  # the label of the last validation day
    changed = {field: panel.raw(field).copy() for field in panel.fields}
    for values in changed.values():
        values[83:] *= 5.0
    assert fitted(panel.with_fields(changed), "ar", "ewma", how=how).document() == before.document()


def test_members_that_nothing_is_fitted_of_have_seen_what_weighed_them(panel: Panel) -> None:
    for how, through in (("inverse_error", 82), ("mean", -1)):
        settings = {**SHARED, "members": "ewma persistence", "how": how}
        model = make("ensemble", settings)
        list(model.fit(windows_of(panel, model.settings), TRAIN, VALID))
        assert model.trained_through == through


def test_no_forecast_depends_on_a_later_day(panel: Panel) -> None:
    model = fitted(panel, "ar", "ewma", "xgboost")

    def forecasts(panel: Panel) -> np.ndarray:
        return model.fields(windows_of(panel, model.settings), (0, panel.shape[0]))["forecast_ensemble"]

    assert_causal(forecasts, panel, name="ensemble", rows=(84, 90, 108), warmup=4, tolerance=1e-12)


def test_weights_may_be_given_and_a_member_of_weight_0_is_not_asked(panel: Panel) -> None:
    model = fitted(panel, "ar", "ewma", "pool_mean", how="given", **{"ar.weight": 3.0, "pool_mean.weight": 0.0})
    assert model.document()["weights"] == {"ar": 0.75, "ewma": 0.25, "pool_mean": 0.0}
    windows = windows_of(panel, model.settings)
    both, _ = model.fields_and_parts(windows, TEST)
    assert list(both) == ["forecast_ensemble", "forecast_ar", "forecast_ewma"]
    _, ar, ewma = both.values()
    found = model.fields(windows, TEST)["forecast_ensemble"]
    np.testing.assert_allclose(found, np.where(np.isnan(ar), ewma, 0.75 * ar + 0.25 * ewma), rtol=1e-12)


def test_what_cannot_be_is_refused(panel: Panel) -> None:
    for given, match in (
        (of("ar", "ewma", how="best"), "unknown way to weigh 'best'; known: given, inverse_error, mean"),
        (
            of("ar", "ewma", how="given", **{"ar.weight": 0.0, "ewma.weight": 0.0}),
            "are all 0; give one a weight",
        ),
        (of("ar", "ewma", **{"lstm.epochs": 3}), "has no setting 'lstm.epochs'"),
        ({"members": "ar"}, "two or more different members, not ar"),
        ({"members": "ar risk"}, "'risk' cannot be a member"),
        ({"members": "ar ensemble"}, "'ensemble' cannot be a member"),
        (of("ar", "lstm", **{"lstm.loss": "hubr"}), "unknown loss 'hubr' of model 'lstm'"),
    ):
        with pytest.raises(UsageError, match=match):
            make("ensemble", given)
    model = make("ensemble", of("ar", "ewma"))
    with pytest.raises(UsageError, match="no validation days to weigh its members by; set how=mean"):
        list(model.fit(windows_of(panel, model.settings), TRAIN, None))


def test_its_members_are_the_same_in_whatever_order_they_are_named() -> None:
    assert members_of(["lstm", "ewma"]) == members_of("ewma lstm") == ("ewma", "lstm")
    assert settings_of("ensemble", of("ewma", "ar")) == settings_of("ensemble", of("ar", "ewma"))
    assert {"ar.lags", "ewma.weight"} < set(known_settings("ensemble", of("ewma", "ar")))


# -- training, saving and loading -----------------------------------------------------------------------------------


def test_it_is_trained_tested_refitted_and_used_again(panel: Panel, tmp_path: Path) -> None:
    given = of("ar", "ewma", "xgboost")
    *_, last = train(panel, "ensemble", given, folder=tmp_path)
    assert isinstance(last, Trained)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ensemble_best.card.json",
        "ensemble_best.zip",
        "ensemble_yield_predictor.card.json",
        "ensemble_yield_predictor.zip",
    ]
    assert last.test is not None
    weights = last.best.fitted["weights"]
    assert last.released.fitted["weights"] == pytest.approx(weights)
    assert last.released.settings["how"] == "given"
    assert last.best.settings["how"] == "inverse_error"
    assert {name: last.released.settings[f"{name}.weight"] for name in weights} == weights
    assert reusable("ensemble", given, panel, tmp_path) == last.released
    assert reusable("ensemble", {**given, "xgboost.threads": 2}, panel, tmp_path) == last.released
    assert reusable("ensemble", {**given, "xgboost.n_estimators": 7}, panel, tmp_path) is None
    made = forecast_today(panel, load(last.released), trained_through=last.released.trained_through)
    forecasts = [name for name in made.columns if name.startswith("forecast_")]
    assert forecasts == ["forecast_ensemble", "forecast_ar", "forecast_ewma", "forecast_xgboost"]
    for row in made.filter(pl.col("reason").is_null()).to_dicts():
        said = [row[f"forecast_{name}"] for name in weights]
        if None not in said:
            expected = sum(weight * each for weight, each in zip(weights.values(), said, strict=True))
            assert row["forecast_ensemble"] == pytest.approx(expected)


def test_forecasts_of_the_test_days_without_some_member_are_counted(panel: Panel, tmp_path: Path) -> None:
    apy = panel.raw("apy").copy()
    apy[:97, 2] = NAN  # too late to be learned, and still asked on the days of the test
    late = panel.with_fields({"apy": apy})
    *_, last = train(late, "ensemble", of("ar", "ewma"), folder=tmp_path)
    assert isinstance(last, Trained)
    windows = windows_of(late, settings_of("ensemble", of("ar", "ewma")))
    days = [str(time.astype("datetime64[D]")) for time in late.times]
    begin, end = (days.index(day) for day in last.best.data["split"]["test"])
    best = load(last.best)
    assert isinstance(best, Ensemble)
    parts, _ = best.fields_and_parts(windows, (begin, end + 1))
    expected = int((np.isnan(parts["forecast_ar"]) & ~np.isnan(parts["forecast_ewma"])).sum())
    assert last.best.metrics["test"]["lacking"] == expected > 5


@pytest.fixture
def card(panel: Panel, tmp_path: Path) -> Card:
    model = fitted(panel, "lstm", "ar", "xgboost")
    return save(model, tmp_path, "ensemble_best", trained_through="2024-03-23", data={}, metrics={})


def test_a_loaded_ensemble_forecasts_what_the_saved_one_did(panel: Panel, card: Card) -> None:
    model, again = fitted(panel, "ar", "lstm", "xgboost"), load(read_card(card.path))
    windows = windows_of(panel, model.settings)
    for field, values in model.fields(windows, TEST).items():
        np.testing.assert_array_equal(again.fields(windows, TEST)[field], values)
    with zipfile.ZipFile(card.path.with_name("ensemble_best.zip")) as archive:
        assert sorted(archive.namelist()) == ["lstm.pth", "xgboost.json"]
        state = torch.load(io.BytesIO(archive.read("lstm.pth")), weights_only=True)
        json.loads(archive.read("xgboost.json"))
    YieldForecaster(input_size=len(state["first.weight_ih_l0"][0]), hidden=8, hidden_last=8).load_state_dict(state)


def test_the_same_ensemble_has_the_same_bytes(panel: Panel, card: Card) -> None:
    again = fitted(panel, "lstm", "ar", "xgboost").weights()
    assert again == card.path.with_name("ensemble_best.zip").read_bytes()


def archived(files: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", kind) as archive:
        for name, each in files.items():
            archive.writestr(name, each)
    return content.getvalue()


def test_a_file_that_is_no_archive_of_its_members_is_refused(card: Card) -> None:
    whole = card.path.with_name("ensemble_best.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        own = {name: archive.read(name) for name in archive.namelist()}
    model = make("ensemble", card.settings)
    damaged = bytearray(whole)
    damaged[200] ^= 0xFF
    for weights in (
        None,
        b"",
        whole[:-30],
        bytes(damaged),
        archived({"lstm.pth": own["lstm.pth"]}),
        archived({**own, "../lstm.pth": b"x"}),
        archived(own, zipfile.ZIP_DEFLATED),
        archived({"lstm.pth": own["xgboost.json"], "xgboost.json": own["lstm.pth"]}),
    ):
        with pytest.raises(DataError):
            model.restore(card.fitted, weights)
    model.restore(card.fitted, whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": {"ar": 0.5, "lstm": 0.5}},
        {"weights": {"ar": 0.5, "lstm": 0.5, "xgboost": 0.5}},
        {"weights": {"ar": 1.5, "lstm": -0.5, "xgboost": 0.0}},
        {"weights": {"ar": "nan", "lstm": 0.5, "xgboost": 0.5}},
        {"weights": None},
        {"cells": "many"},
        {"members": {}},
        {"members": {"ar": {}, "lstm": {}, "xgboost": {}}},
    ],
)
def test_a_card_that_describes_no_ensemble_is_refused(card: Card, changes: dict[str, object]) -> None:
    document = json.loads(card.path.read_text())
    card.path.write_text(json.dumps({**document, "fitted": {**document["fitted"], **changes}}))
    with pytest.raises(DataError) as told:
        load(read_card(card.path))
    assert "\n" not in str(told.value)


def test_an_infinite_forecast_is_not_made_a_number() -> None:
    said = {"a": np.array([[np.inf, np.inf, -np.inf]]), "b": np.array([[0.1, NAN, 0.1]])}
    combined, lacking = Weights({"a": 0.5, "b": 0.5, "c": 0.0}, 1).combine({**said, "c": np.full((1, 3), NAN)})
    np.testing.assert_array_equal(combined, [[np.inf, np.inf, -np.inf]])
    assert lacking == 1
    combined, _ = Weights({"a": 0.0, "b": 1.0}, 1).combine(said)
    np.testing.assert_array_equal(combined, [[0.1, NAN, 0.1]])


def test_a_member_that_is_infinite_on_validation_days_has_no_weight() -> None:
    truth = np.array([[0.05, 0.06]])
    wild = np.array([[np.inf, 0.06]])
    assert Weights.fit({"a": wild, "b": truth + 0.01}, truth).values == {"a": 0.0, "b": 1.0}
    with pytest.raises(DataError, match="each of a, b has an infinite forecast on the validation days"):
        Weights.fit({"a": wild, "b": wild}, truth)


def test_a_member_that_cannot_learn_is_left_out_and_told(panel: Panel, tmp_path: Path) -> None:
    """A constant APY leaves trees nothing to learn, and a smoothed one still stands."""
    still = panel.with_fields({"apy": np.where(np.isnan(panel.raw("apy")), NAN, 0.05)})
    model = fitted(still, "ewma", "pool_mean", "xgboost")
    assert list(model.failed) == ["xgboost"]
    assert "never changes" in model.failed["xgboost"]
    assert sum(model.document()["weights"].values()) == 1.0  # type: ignore[attr-defined]
    assert model.document()["weights"]["xgboost"] == 0.0  # type: ignore[index]
    windows = windows_of(still, model.settings)
    made = model.fields(windows, TEST)["forecast_ensemble"]
    assert np.nanmax(np.abs(made - 0.05)) < 1e-12
    *_, last = train(still, "ensemble", of("ewma", "pool_mean", "xgboost"), folder=tmp_path)
    assert isinstance(last, Trained)
    assert list(last.released.metrics["test"]["failed"]) == ["xgboost"]
    again = load(read_card(last.released.path))
    assert isinstance(again, Ensemble)
    np.testing.assert_allclose(again.fields(windows, TEST)["forecast_ensemble"], made, rtol=1e-12)
    with pytest.raises(DataError, match="never changes"):
        fitted(still, "lstm", "xgboost")


def test_a_member_that_fails_only_in_the_refit_is_told_too(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = AutoRegression.fit

    def failing(self: AutoRegression, windows: Windows, train: Rows, valid: Rows | None) -> Iterator[EpochDone]:
        if train[1] > 90 and valid is None:  # through the validation days
            raise DataError("the refit fails")
        yield from fit(self, windows, train, valid)

    monkeypatch.setattr(AutoRegression, "fit", failing)
    *_, last = train(panel, "ensemble", of("ar", "ewma"), folder=tmp_path)
    assert isinstance(last, Trained)
    assert last.best.fitted["weights"]["ar"] > 0.0
    assert last.released.fitted["weights"] == {"ar": 0.0, "ewma": 1.0}
    assert last.released.metrics["test"]["failed"] == {"ar": "the refit fails"}


def test_weights_that_would_not_count_are_refused() -> None:
    for how in ("inverse_error", "mean"):
        with pytest.raises(UsageError, match=f"how is {how}; set how=given with them"):
            make("ensemble", of("ar", "ewma", how=how, **{"ar.weight": 2.0}))
