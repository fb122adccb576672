"""What a trained model leaves on disk: its weights and a card beside them that says what they are. No pickle is read.

The card is JSON and holds the SHA-256 of the weights: a file that does not match its card is refused. Both are written
beside their place and then renamed, the weights first, so that a card that is there describes weights that are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import UnionType
from typing import Any

from yieldlab.errors import DataError, MissingPackageError, UsageError, did_you_mean
from yieldlab.forecast.protocol import Model
from yieldlab.forecast.registry import MODELS, entry, make, released_name, settings_of

CARD_SCHEMA = 1
CARD_SUFFIX = ".card.json"

#: What the parts of a card are in JSON, where they are no text.
_KINDS: Mapping[str, type | UnionType] = {
    **dict.fromkeys(("settings", "data", "metrics", "versions", "fitted"), dict),
    **dict.fromkeys(("weights_file", "weights_sha256"), str | None),
}

_VERSIONS = ("yieldlab", "numpy", "polars", "torch", "xgboost", "scikit-learn")


@dataclass(frozen=True, slots=True)
class Card:
    """What is known of one trained model: `path` is the card's own file, `fitted` the model's document."""

    path: Path
    model: str
    settings: Mapping[str, Any]
    trained_through: str
    data: Mapping[str, Any]
    metrics: Mapping[str, Any]
    created: str
    versions: Mapping[str, str]
    weights_file: str | None
    weights_sha256: str | None
    fitted: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The file's name without its endings, as `lstm_best`."""
        return self.path.name.removesuffix(CARD_SUFFIX)


def save(
    model: Model,
    folder: Path,
    name: str,
    *,
    trained_through: str,
    data: Mapping[str, object],
    metrics: Mapping[str, object],
) -> Card:
    """Write a fitted model as `name` into `folder`. `trained_through` is a day, `data` says what it learned from."""
    weights, file = model.weights(), _weights_file(model.name, name)
    if (weights is None) != (file is None):
        raise ValueError(f"model {model.name} and its entry disagree about a file of its own")
    document = {
        "schema_version": CARD_SCHEMA,
        "model": model.name,
        "settings": dict(model.settings),
        "trained_through": trained_through,
        "data": dict(data),
        "metrics": dict(metrics),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "weights_file": file,
        "weights_sha256": None if weights is None else hashlib.sha256(weights).hexdigest(),
        "fitted": model.document(),
    }
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{CARD_SUFFIX}"
    own = {} if weights is None or file is None else {folder / file: weights}
    _replace({**own, path: text.encode()})
    return read_card(path)


def read_card(path: Path) -> Card:
    """The card in a file. Raises DataError when it is damaged, of a newer schema or no card."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"there is no card {path}; `yieldlab models train NAME` writes one") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise DataError(f"the card {path} cannot be read: {reason}") from error
    if not isinstance(document, dict) or str(document.get("model")) not in MODELS:
        raise DataError(f"{path} is no card of a model that yieldlab knows")
    schema = document.get("schema_version")
    if not isinstance(schema, int) or schema < 1:
        raise DataError(f"{path} is no card of a model that yieldlab knows")
    if schema > CARD_SCHEMA:
        raise DataError(
            f"the card {path} was written by a newer yieldlab (schema {schema}); this one reads {CARD_SCHEMA}"
        )
    names = [name for name in Card.__slots__ if name != "path"]
    if missing := [name for name in names if name not in document]:
        raise DataError(f"the card {path} is damaged: {missing[0]} is missing")
    for name in names:
        kind = _KINDS.get(name, str)
        if not isinstance(document[name], kind):
            raise DataError(f"the card {path} is damaged: {name} is {type(document[name]).__name__}")
    card = Card(path=path, **{name: document[name] for name in names})
    if not isinstance(card.metrics.get("test", {}), dict):
        raise DataError(f"the card {path} is damaged: its test is {type(card.metrics['test']).__name__}")
    try:
        settings_of(card.model, card.settings)
    except UsageError as error:
        raise DataError(f"the card {path} is damaged: {error}") from error
    if card.weights_file != _weights_file(card.model, card.name):
        raise DataError(
            f"the card {path} is of a model {card.model!r} with the file {card.weights_file or 'none'}, "
            "so it has another's name; train the model again"
        )
    return card


def load(card: Card) -> Model:
    """The model that a card describes, ready to forecast.

    Raises DataError when its weights are missing or are not those of the card, MissingPackageError where its package
    is not installed.
    """
    weights = weights_of(card)
    # Where a model learned does not bind where it is asked.
    elsewhere = {
        key: "auto" for key, value in card.settings.items() if key.rpartition(".")[2] == "device" and value == "cuda"
    }
    try:
        settings = settings_of(card.model, {**card.settings, **elsewhere})
        if missing := settings.keys() - card.settings.keys():
            raise UsageError(f"it does not say its {min(missing)}")
        model = make(card.model, settings)
        model.restore(card.fitted, weights)
    except MissingPackageError:
        raise
    except UsageError as error:  # settings that make no such model
        raise DataError(f"the card {card.path} is damaged: {error}") from error
    return model


def weights_of(card: Card) -> bytes | None:
    """The content of the model's own file, if it has one. Raises DataError when it is missing or is not the card's."""
    if card.weights_file is None:
        return None
    file = card.path.parent / card.weights_file
    try:
        weights = file.read_bytes()
    except OSError as error:
        raise DataError(f"the weights {file} cannot be read: {error.strerror}; train the model again") from error
    if hashlib.sha256(weights).hexdigest() != card.weights_sha256:
        raise DataError(f"the file {file} does not match its card {card.path.name}; train the model again")
    return weights


def listed(folder: Path) -> list[Card | tuple[Path, str]]:
    """Every card of a folder by name; of one that cannot be read, or has lost its weights, its path and the reason."""
    found: list[Card | tuple[Path, str]] = []
    for path in sorted(folder.glob(f"*{CARD_SUFFIX}")) if folder.is_dir() else []:
        try:
            card = read_card(path)
            weights_of(card)
            found.append(card)
        except DataError as error:
            found.append((path, str(error)))
    return found


def card_path(name: str, folder: Path) -> Path | None:
    """The file of the card called `name`, or of the released model of that name, if there is one."""
    paths = (folder / f"{stem}{CARD_SUFFIX}" for stem in (name, released_name(name)))
    return next((path for path in paths if path.is_file()), None)


def find(name: str, folder: Path) -> Card:
    """The card called `name`, or of the released model of that name. Raises DataError with the nearest one."""
    if (path := card_path(name, folder)) is not None:
        card = read_card(path)
        if name in MODELS and card.model != name:
            raise DataError(f"the card {path} is of a model {card.model!r}, not {name!r}; train the model again")
        return card
    names = [path.name.removesuffix(CARD_SUFFIX) for path in folder.glob(f"*{CARD_SUFFIX}")]
    train = f"; `yieldlab models train {name}` makes one" if name in MODELS else did_you_mean(name, names)
    raise DataError(f"there is no trained model {name!r} in {folder}{train}")


def _weights_file(model: str, name: str) -> str | None:
    """The file beside the card `name`, if such a model has one."""
    suffix = entry(model).suffix
    return None if suffix is None else f"{name}.{suffix}"


def versions() -> dict[str, str]:
    """What a model was made with."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _replace(contents: Mapping[Path, bytes]) -> None:
    """Put files in place, in order, once all are written: no more than the time of a rename lies between them."""
    mark = f".{os.getpid()}.part"  # two trainings at once do not mix
    parts = {path.with_name(f".{path.name}{mark}"): (path, content) for path, content in contents.items()}
    try:
        for part, (_, content) in parts.items():
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for part, (path, _) in parts.items():
            os.replace(part, path)
    except BaseException:
        for part in parts:
            part.unlink(missing_ok=True)
        raise
