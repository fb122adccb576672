"""A model is trained on a split by date and released through its validation, or nothing is written."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest

pytest.importorskip("torch", reason="needs the extra: ml")

import torch

from yieldlab.errors import DataError, UsageError
from yieldlab.folds import chronological
from yieldlab.forecast import train as module
from yieldlab.forecast.artifacts import load
from yieldlab.forecast.lstm import YieldForecaster
from yieldlab.forecast.protocol import EpochDone, Model
from yieldlab.forecast.registry import make, windows_of
from yieldlab.forecast.train import Stage, Trained, forecast_today, reusable, train
from yieldlab.panel import Panel
from yieldlab.sample import reference_study
from yieldlab.space import Value
from yieldlab.testing import tiny_panel

SMALL: dict[str, Value] = {"lookback": 5, "horizon": 3}
TINY: dict[str, Value] = {**SMALL, "hidden": 8, "hidden_last": 8, "epochs": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def panel() -> Panel:
    torch.set_num_threads(1)
    return tiny_panel(times=160, pools=4, seed=1)


def trained(panel: Panel, name: str, folder: Path, **given: Value) -> tuple[Trained, list[object]]:
    *events, last = train(panel, name, {**(TINY if name == "lstm" else SMALL), **given}, folder=folder)
    assert isinstance(last, Trained)
    return last, events


def test_the_weights_of_a_trained_net_load_into_the_studys_net(tmp_path: Path) -> None:
    metrics, assets = reference_study()
    fields = ("apy", "tvl_usd", "volume_24h_usd")
    panel = Panel.from_long(metrics, assets, fields=fields)
    panel = panel.head(700)
    folder = tmp_path / "models"
    last, _ = trained(panel, "lstm", folder, lookback=30, horizon=7, hidden=128, hidden_last=64, epochs=1, stride=40)
    net = YieldForecaster(input_size=16)
    for file in ("lstm_best.pth", "lstm_yield_predictor.pth"):
        net.load_state_dict(torch.load(folder / file, weights_only=True))
    assert sorted(path.name for path in folder.iterdir()) == [
        "lstm_best.card.json", "lstm_best.pth", "lstm_yield_predictor.card.json", "lstm_yield_predictor.pth"
    ]  # fmt: skip
    assert len(last.released.fitted["scaler"]["names"]) + len(last.released.fitted["scaler"]["protocols"]) == 16


@pytest.mark.parametrize("name", ["lstm", "ar", "pool_mean"])
def test_the_best_and_the_released_model_have_seen_what_they_may(name: str, panel: Panel, tmp_path: Path) -> None:
    last, events = trained(panel, name, tmp_path)
    windows = windows_of(panel, {**SMALL, "features": "study"})
    first = int(windows.samples((0, 160), labelled=True)[0][0])
    split = chronological(160, purge=3, begin=first)
    day = module.day_of
    through = int(windows.samples((first, split.valid[1]), labelled=True)[0].max()) + 3
    assert through < split.test[0]
    assert last.best.trained_through == last.released.trained_through == day(panel, through)
    assert last.released.data["split"] == {
        part: [day(panel, rows[0]), day(panel, rows[1] - 1)]
        for part, rows in (("train", split.train), ("valid", split.valid), ("test", split.test))
    }
    stages = [event for event in events if isinstance(event, Stage)]
    assert [stage.samples for stage in stages] == [
        windows.samples(rows, labelled=True)[0].size for rows in (split.train, (first, split.valid[1]))
    ]
    assert last.history == tuple(event for event in events if isinstance(event, EpochDone))[: len(last.history)]
    assert last.test is not None
    assert last.best.metrics["test"]["mae"] > 0.0


def test_a_released_net_has_learned_for_the_epochs_of_the_best_one(panel: Panel, tmp_path: Path) -> None:
    last, _ = trained(panel, "lstm", tmp_path, epochs=6, learning_rate=0.05, patience=1)
    best = max(event.epoch for event in last.history if event.best)
    assert last.released.settings["epochs"] == best
    assert last.best.settings["epochs"] == 6
    assert last.released.data["asked"] == {k: v for k, v in last.best.settings.items() if k != "threads"}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("lstm", {}),
        ("lstm", {"stride": 31, "epochs": 4}),  # the last day learned from lies days before that of validation
        ("ar", {}),
        ("ensemble", {"members": "ewma persistence"}),  # nothing is fitted but the weights
        ("ensemble", {"members": "ar ewma"}),
    ],
)
def test_days_after_those_that_a_model_says_it_has_seen_change_no_bit_of_it(
    name: str, given: dict[str, Value], panel: Panel, tmp_path: Path
) -> None:
    before, _ = trained(panel, name, tmp_path / "a", **given)
    assert before.released.trained_through == before.best.trained_through
    cut = int(np.searchsorted(panel.times, np.datetime64(before.released.trained_through))) + 1
    assert cut < 160
    changed = {field: panel.raw(field).copy() for field in panel.fields}
    for values in changed.values():
        values[cut:] *= 5.0
    after, _ = trained(panel.with_fields(changed), name, tmp_path / "b", **given)
    for one, other in ((before.best, after.best), (before.released, after.released)):
        assert (one.fitted, one.weights_sha256) == (other.fitted, other.weights_sha256)


def broken(**fields: object) -> object:
    def made(panel: Panel) -> Panel:
        return panel.with_fields({name: np.full(panel.shape, value) for name, value in fields.items()})

    return made


@pytest.mark.parametrize(
    ("change", "given", "sentence"),
    [
        (lambda panel: panel.head(20), {}, "leave no row for validation"),
        (lambda panel: panel.head(4), {}, "windows of 5 days need at least 5 days of history"),
        (broken(apy=np.nan), {}, "no window of 5 days has an APY 3 days later"),
        (broken(apy=0.05), {}, "never changes"),
        (broken(tvl_usd=np.nan), {}, "the feature tvl_usd has no value"),
        (lambda panel: panel, {"learning_rate": 1e6, "weight_decay": 1.0, "epochs": 40}, "is not a number after epoch"),
    ],
)
def test_what_cannot_be_trained_is_told_and_nothing_is_written(
    change: object, given: dict[str, Value], sentence: str, panel: Panel, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as told:
        trained(change(panel), "lstm", tmp_path / "models", **given)  # type: ignore[operator]
    assert sentence in str(told.value)
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_when_the_refit_fails_or_the_work_is_stopped(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = train(panel, "lstm", TINY, folder=tmp_path)
    for event in events:
        if isinstance(event, Stage) and event.what.startswith("refitting"):
            break
    events.close()  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []
    real, calls = make, []

    def failing(name: str, settings: dict[str, Value]) -> Model:
        calls.append(name)
        if len(calls) == 2:
            raise DataError("the refit fails")
        return real(name, settings)

    monkeypatch.setattr(module, "make", failing)
    with pytest.raises(DataError, match="the refit fails"):
        trained(panel, "lstm", tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="unknown model 'lstmm'; did you mean 'lstm'"):
        trained(panel, "lstmm", tmp_path)


def test_a_model_is_used_again_only_for_the_same_settings_and_data_and_when_it_is_whole(
    panel: Panel, tmp_path: Path
) -> None:
    assert reusable("lstm", TINY, panel, tmp_path) is None
    last, _ = trained(panel, "lstm", tmp_path)
    assert reusable("lstm", TINY, panel, tmp_path) == last.released
    assert reusable("lstm", {**TINY, "seed": 1}, panel, tmp_path) is None
    assert reusable("lstm", TINY, panel.head(159), tmp_path) is None
    assert reusable("gru", TINY, panel, tmp_path) is None
    file = tmp_path / "lstm_yield_predictor.pth"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert reusable("lstm", TINY, panel, tmp_path) is None
    file.write_bytes(whole)
    stale = Panel(panel.times, panel.pools, {name: panel.raw(name) for name in panel.fields}, max_stale_days=2)
    assert stale.digest() == panel.digest()
    assert reusable("lstm", TINY, stale, tmp_path) is None
    for card in (last.best, last.released):
        text = card.path.read_text()
        for key, value in (("versions", {"torch": "1.0"}), ("data", {**card.data, "asked": {}})):
            card.path.write_text(json.dumps({**json.loads(text), key: value}))
            assert reusable("lstm", TINY, panel, tmp_path) is None
        card.path.write_text(text)
    assert reusable("lstm", TINY, panel, tmp_path) == last.released
    last.released.path.write_text("{")
    assert reusable("lstm", TINY, panel, tmp_path) is None


@pytest.mark.parametrize("name", ["persistence", "pool_mean"])
def test_a_test_is_of_the_test_days_alone(name: str, panel: Panel, tmp_path: Path) -> None:
    last, _ = trained(panel, name, tmp_path)
    assert last.test is not None
    first, end = last.best.data["split"]["test"]
    assert first <= last.test.first < last.test.last <= end


# -- today ----------------------------------------------------------------------------------------------------------


def renamed(panel: Panel, *protocols: str) -> Panel:
    pools = panel.pools.with_columns(pl.Series("protocol", protocols))
    return Panel(panel.times, pools, {name: panel.raw(name) for name in panel.fields})


def test_every_pool_has_a_row_and_one_without_a_forecast_its_reason(panel: Panel, tmp_path: Path) -> None:
    last, _ = trained(panel, "lstm", tmp_path)
    apy = panel.raw("apy").copy()
    apy[-10:] = 0.05
    apy[-8:, 3] = np.nan
    now = renamed(panel.with_fields({"apy": apy}), "protocol-0", "curve", "protocol-2", "protocol-0")
    model = load(last.released)
    made = forecast_today(now, model, trained_through=last.released.trained_through)
    assert made.columns == ["pool_id", "protocol", "day", "forecast_lstm", "apy_now", "for_day", "reason"]
    assert made["pool_id"].to_list() == list(now.pool_ids)
    assert made["reason"].to_list() == [
        None, "no pool of protocol curve was in the model's training", None, "no APY now"
    ]  # fmt: skip
    told = model.fields(windows_of(now, model.settings), (159, 160))["forecast_lstm"][0]
    np.testing.assert_array_equal(made["forecast_lstm"].fill_null(np.nan), told)
    assert made["forecast_lstm"].is_null().to_list() == [False, True, False, True]
    day = panel.times[-1].astype("datetime64[D]").item()
    assert made["day"].unique().to_list() == [day]
    assert (made["for_day"][0] - day).days == 3
    assert made["apy_now"].to_list() == [0.05, 0.05, 0.05, None]
    json.dumps(made.drop("day", "for_day").to_dicts(), allow_nan=False)


def test_a_pool_that_a_baseline_never_saw_has_its_reason(panel: Panel) -> None:
    model = make("pool_mean", SMALL)
    list(model.fit(windows_of(panel, model.settings), (0, 100), None))
    document = model.document()
    del document["means"]["pool-02"]  # type: ignore[attr-defined]
    full = panel.with_fields({"apy": np.full(panel.shape, 0.05)})
    made = forecast_today(full, model, trained_through="2024-04-20")
    assert made["reason"].to_list() == [
        None, None, "not among the pools of the model's training, or a gap in the days that it reads", None
    ]  # fmt: skip
    model.restore({"means": {}}, None)
    with pytest.raises(DataError, match="model 'pool_mean' has no forecast for any pool of 2024-06-08"):
        forecast_today(full, model, trained_through="2024-04-20")


def test_a_panel_of_protocols_that_the_model_never_saw_is_refused(panel: Panel, tmp_path: Path) -> None:
    last, _ = trained(panel, "lstm", tmp_path)
    strange = renamed(panel, "moonwell", "curve", "moonwell", "moonwell")
    with pytest.raises(DataError, match="saw none of this panel's protocols in training: curve, moonwell"):
        forecast_today(strange, load(last.released), trained_through=last.released.trained_through)


def test_a_model_that_has_seen_the_day_is_refused(panel: Panel) -> None:
    model = make("ewma", SMALL)
    day = str(panel.times[-1].astype("datetime64[D]"))
    for seen in (day, str(date(2030, 1, 1))):
        with pytest.raises(DataError, match=f"trained on values of {seen}, and the data ends on {day}"):
            forecast_today(panel, model, trained_through=seen)
    before = str(panel.times[-2].astype("datetime64[D]"))
    assert forecast_today(panel, model, trained_through=before).height == 4
    assert forecast_today(panel, model, trained_through="").height == 4


def test_a_day_without_any_history_and_infinite_forecasts_are_told(
    panel: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("ewma", SMALL)
    apy = panel.raw("apy").copy()
    apy[-8:] = np.nan
    with pytest.raises(DataError, match="no pool has the 5 days of history up to 2024-06-08 that a forecast needs"):
        forecast_today(panel.with_fields({"apy": apy}), model, trained_through="")
    monkeypatch.setattr(model, "fields", lambda windows, rows: {"forecast_ewma": np.full((1, 4), np.inf)})
    with pytest.raises(DataError, match="forecasts of model 'ewma' for 2024-06-08 are infinite"):
        forecast_today(panel, model, trained_through="")
