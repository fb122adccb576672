"""What is saved comes back as it was; what is damaged, foreign or meant to harm is refused before it does anything."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra: ml")

import torch

from yieldlab.errors import DataError
from yieldlab.forecast.artifacts import Card, find, listed, load, read_card, save
from yieldlab.forecast.protocol import Model
from yieldlab.forecast.registry import make, windows_of
from yieldlab.panel import Panel
from yieldlab.testing import tiny_panel

TINY = {"lookback": 5, "horizon": 3, "hidden": 8, "hidden_last": 8, "epochs": 1, "device": "cpu"}
SMALL = {"lookback": 5, "horizon": 3}


@pytest.fixture(scope="module")
def panel() -> Panel:
    torch.set_num_threads(1)
    return tiny_panel(times=100, pools=4, seed=1)


def fitted(name: str, panel: Panel) -> Model:
    model = make(name, TINY if name == "lstm" else SMALL)
    list(model.fit(windows_of(panel, model.settings), (0, 60), (63, 80)))
    return model


def kept(model: Model, folder: Path, name: str) -> Card:
    return save(model, folder, name, trained_through="2024-03-23", data={"digest": "d"}, metrics={"mae": 0.1})


@pytest.fixture(scope="module")
def lstm(panel: Panel) -> Model:
    return fitted("lstm", panel)


@pytest.fixture
def card(lstm: Model, tmp_path: Path) -> Iterator[Card]:
    made = kept(lstm, tmp_path / "models", "lstm_best")
    yield made
    assert not [path for path in tmp_path.rglob("*") if path.name in ("harmed", ".part")]


def edited(card: Card, **changes: object) -> Path:
    document = json.loads(card.path.read_text())
    card.path.write_text(json.dumps({**document, **changes}))
    return card.path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as told:
        load(read_card(path))
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize("name", ["persistence", "ewma", "pool_mean", "ar", "lstm"])
def test_a_loaded_model_forecasts_what_the_saved_one_did(name: str, panel: Panel, tmp_path: Path) -> None:
    model = fitted(name, panel)
    card = kept(model, tmp_path, f"{name}_best")
    assert card == read_card(card.path)
    again = load(card)
    windows = windows_of(panel, model.settings)
    np.testing.assert_array_equal(
        again.fields(windows, (0, 100))[f"forecast_{name}"], model.fields(windows, (0, 100))[f"forecast_{name}"]
    )
    assert again.settings == model.settings
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {f"{name}_best.card.json"} | ({"lstm_best.pth"} if name == "lstm" else set())


def test_a_card_tells_what_the_weights_are(card: Card, lstm: Model) -> None:
    document = json.loads(card.path.read_text())
    weights = (card.path.parent / "lstm_best.pth").read_bytes()
    assert document["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert document["fitted"]["scaler"]["names"][0] == "apy_percent"
    assert len(document["fitted"]["scaler"]["means"]) == 13
    assert document["settings"] == dict(lstm.settings)
    assert {"python", "numpy", "torch", "yieldlab"} <= set(document["versions"])
    assert (document["trained_through"], document["data"], document["metrics"]) == (
        "2024-03-23", {"digest": "d"}, {"mae": 0.1}
    )  # fmt: skip


def test_damaged_weights_are_refused(card: Card) -> None:
    file = card.path.parent / "lstm_best.pth"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"text", whole + b" ", bytes([whole[0] ^ 1]) + whole[1:]):
        file.write_bytes(damaged)
        assert "does not match its card lstm_best.card.json; train the model again" in refusal(card.path)
    file.unlink()
    assert "cannot be read: No such file or directory; train the model again" in refusal(card.path)


def test_weights_that_are_no_numbers_are_refused(card: Card) -> None:
    file = card.path.parent / "lstm_best.pth"
    state = torch.load(file, weights_only=True)
    torch.save({name: torch.full_like(each, torch.nan) for name, each in state.items()}, file)
    path = edited(card, weights_sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    assert "the weights of model 'lstm' are not those of its card" in refusal(path)


class Harm:
    """What, unpickled, would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("way", ["pickle", "torch", "old torch"])
@pytest.mark.parametrize("signed", [False, True])
def test_a_pickle_that_would_do_something_is_refused_and_does_nothing(
    way: str, signed: bool, card: Card, tmp_path: Path
) -> None:
    harmed, file = tmp_path / "harmed", card.path.parent / "lstm_best.pth"
    if way == "pickle":
        file.write_bytes(pickle.dumps(Harm(harmed)))
    else:
        torch.save({"output.bias": Harm(harmed)}, file, _use_new_zipfile_serialization=way == "torch")
    if signed:  # by one who can write the card too
        edited(card, weights_sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    told = refusal(card.path)
    assert ("are not those of its card" if signed else "does not match its card") in told
    assert not harmed.exists()
    with suppress(RuntimeError):
        torch.load(file, weights_only=False)  # the pickle would have
    assert harmed.is_dir()
    harmed.rmdir()


def test_a_card_that_lies_about_its_net_is_refused(card: Card, panel: Panel) -> None:
    settings = dict(card.settings)
    for changes in (
        {"settings": {**settings, "hidden": 16}},
        {"settings": {**settings, "heads": 3}},
        {"settings": {**settings, "heads": 2.5}},
        {"settings": {**settings, "wings": 2}},
        {"settings": {**settings, "lookback": None}},
        {"settings": {key: value for key, value in settings.items() if key != "dropout"}},
        {"fitted": {**card.fitted, "transform": {**card.fitted["transform"], "kind": "log"}}},
        {"fitted": {}},
        {"fitted": {**card.fitted, "scaler": {}}},
        {"model": "gru"},
        {"model": "ewma"},
        {"model": ["lstm"]},
        {"model": "nothing"},
        {"weights_file": None},
        {"weights_file": 7},
        {"weights_file": "../lstm_best.pth"},
        {"weights_sha256": None},
        {"settings": []},
        {"fitted": None},
        {"trained_through": 7},
        {"settings": {**settings, "lookback": 0}},
        {"settings": {**settings, "features": "all"}},
        {"metrics": {"test": 5}},
        {"fitted": {**card.fitted, "scaler": {**card.fitted["scaler"], "means": ["x"] * 16}}},
        {"schema_version": 2},
        {"schema_version": "1"},
        {"schema_version": 0},
    ):
        before = card.path.read_text()
        refusal(edited(card, **changes))
        card.path.write_text(before)
    load(read_card(card.path))


def test_a_file_that_is_no_card_is_refused(card: Card) -> None:
    whole = card.path.read_text()
    damaged = (
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        whole[: len(whole) // 2].encode(),
        b"[" * 100_000,
        b'{"model": {}}',
    )
    for content in damaged:
        card.path.write_bytes(content)
        refusal(card.path)
    for name in ("trained_through", "fitted", "weights_file", "versions"):
        document = json.loads(whole)
        del document[name]
        card.path.write_text(json.dumps(document))
        assert f"is damaged: {name} is missing" in refusal(card.path)
    assert "there is no card" in refusal(card.path.with_name("other.card.json"))


def test_a_card_under_anothers_name_is_refused(card: Card, panel: Panel) -> None:
    folder = card.path.parent
    (folder / "gru_yield_predictor.card.json").write_bytes(card.path.read_bytes())
    with pytest.raises(DataError, match=r"is of a model 'lstm' with the file lstm_best.pth, so it has another's name"):
        find("gru", folder)
    ewma = kept(fitted("ewma", panel), folder, "ewma_best")
    (folder / "pool_mean_yield_predictor.card.json").write_bytes(ewma.path.read_bytes())
    with pytest.raises(DataError, match=r"is of a model 'ewma', not 'pool_mean'"):
        find("pool_mean", folder)
    other = kept(fitted("lstm", panel), folder, "lstm_yield_predictor")
    first, second = card.path.read_bytes(), other.path.read_bytes()
    card.path.write_bytes(second)
    other.path.write_bytes(first)
    for path in (card.path, other.path):
        assert "another's name" in refusal(path)


def test_models_are_found_by_their_name_and_by_that_of_their_file(card: Card, lstm: Model) -> None:
    folder = card.path.parent
    assert find("lstm_best", folder).name == "lstm_best"
    with pytest.raises(DataError, match=r"no trained model 'lstm' in .*; `yieldlab models train lstm` makes one"):
        find("lstm", folder)
    with pytest.raises(DataError, match=r"no trained model 'lstm_bets' in .*; did you mean 'lstm_best'"):
        find("lstm_bets", folder)
    released = kept(lstm, folder, "lstm_yield_predictor")
    assert find("lstm", folder) == released
    (folder / "broken.card.json").write_text("{")
    found = listed(folder)
    assert [each.name if isinstance(each, Card) else each[0].name for each in found] == [
        "broken.card.json", "lstm_best", "lstm_yield_predictor"
    ]  # fmt: skip
    assert listed(folder / "nowhere") == []
    with pytest.raises(DataError, match=r"no trained model 'lstm'"):
        find("lstm", folder / "nowhere")


def test_a_save_that_fails_leaves_what_was_there(card: Card, lstm: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in card.path.parent.iterdir()}
    with pytest.raises(ValueError, match="JSON compliant"):
        save(lstm, card.path.parent, "lstm_best", trained_through="", data={}, metrics={"mae": float("nan")})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        kept(lstm, card.path.parent, "lstm_best")
    assert {path.name: path.read_bytes() for path in card.path.parent.iterdir()} == before


def test_a_model_that_learned_on_an_accelerator_is_asked_anywhere(card: Card) -> None:
    edited(card, settings={**card.settings, "device": "cuda"})
    assert load(read_card(card.path)).settings["device"] == "auto"


@pytest.mark.parametrize(
    ("name", "fitted_as"),
    [
        ("pool_mean", {"means": {"pool-00": "much"}}),
        ("pool_mean", {"means": {"pool-00": None}}),
        ("ar", {"size": 1.0, "coefficients": {"pool-00": {"a": 1}}}),
        ("ar", {"size": "x", "coefficients": {}}),
        ("ar", {"size": 1.0, "coefficients": {"pool-00": [1e400] * 8}}),
    ],
)
def test_numbers_that_are_none_are_refused(
    name: str, fitted_as: dict[str, object], panel: Panel, tmp_path: Path
) -> None:
    made = kept(fitted(name, panel), tmp_path, f"{name}_best")
    assert "is damaged" in refusal(edited(made, fitted=fitted_as))


def test_numbers_written_as_text_are_numbers(panel: Panel, tmp_path: Path) -> None:
    """A scaler and coefficients whose numbers are text would otherwise fail in the middle of a forecast."""
    made = kept(fitted("ar", panel), tmp_path, "ar_best")
    rows = {pool: [str(each) for each in row] for pool, row in made.fitted["coefficients"].items()}
    again = load(read_card(edited(made, fitted={**made.fitted, "coefficients": rows})))
    windows = windows_of(panel, again.settings)
    np.testing.assert_array_equal(
        again.fields(windows, (80, 100))["forecast_ar"], load(made).fields(windows, (80, 100))["forecast_ar"]
    )
