"""How one model is trained for use: a split by date, the best state on validation, its test, and a refit to release.

The days are split across all pools at once, so that no pool's future is another's past: 80 % to learn from, 10 % to
stop by, 10 % to test on, each purged so that no label reaches into the next part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from yieldlab.errors import DataError
from yieldlab.folds import Rows, Split, chronological
from yieldlab.forecast.artifacts import Card, find, load, save, versions
from yieldlab.forecast.ensemble import Ensemble
from yieldlab.forecast.evaluate import Evaluation, compare
from yieldlab.forecast.protocol import EpochDone, Model
from yieldlab.forecast.registry import ENSEMBLE, REVISION, RISK, deciding, make, released_name, settings_of, windows_of
from yieldlab.forecast.windows import Windows
from yieldlab.panel import Panel
from yieldlab.space import Value


@dataclass(frozen=True, slots=True)
class Stage:
    """What is being fitted now, and on how many samples; None where that is the model's own affair."""

    what: str
    samples: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """The cards of the best state on validation and of the model to use, and the test of the former (None for the
    classifier, whose report is in its card)."""

    best: Card
    released: Card
    test: Evaluation | None
    history: tuple[EpochDone, ...]


def day_of(panel: Panel, row: int) -> str:
    """The day of a row, as cards write it."""
    return str(panel.times[row].astype("datetime64[D]"))


def reusable(name: str, given: Mapping[str, Value], panel: Panel, folder: Path) -> Card | None:
    """The released model, when it was trained with these settings on this very panel and its file is whole."""
    try:
        cards = [find(stem, folder) for stem in (released_name(name), f"{name}_best")]
        for card in cards:
            load(card)
    except DataError:
        return None
    wanted = _origin(panel, settings_of(name, given))
    same = all(
        card.model == name
        and card.versions == versions()
        and all(card.data.get(key) == value for key, value in wanted.items())
        for card in cards
    )
    return cards[0] if same else None


def train(
    panel: Panel, name: str, given: Mapping[str, Value], *, folder: Path
) -> Iterator[Stage | EpochDone | Trained]:
    """Train, test, refit and save; the last event is `Trained`. Nothing is written before all of it has succeeded.

    Raises DataError when the history is too short for the split, or learning fails.
    """
    settings = settings_of(name, given)
    windows = windows_of(panel, settings)
    t, _ = windows.samples((0, panel.shape[0]), labelled=True)
    if not t.size:
        raise DataError(
            f"no window of {windows.lookback} days has an APY {windows.horizon} days later; model {name!r} has nothing "
            "to learn from"
        )
    # The label of the last day that a part may use lies `horizon` days on: the test part needs no purge after it.
    split = chronological(panel.shape[0], purge=windows.horizon, begin=int(t[0]))
    best = make(name, settings)
    yield Stage("learning", _samples(windows, split.train, best))
    yield from best.fit(windows, split.train, split.valid)
    history = tuple(getattr(best, "history", ()))
    metrics, test = _tested(best, windows, split)
    released = best
    if name != RISK:  # the classifier's calibration needs the validation days to stay unlearned
        through = (split.train[0], split.valid[1])
        released = make(name, best.refit_settings())
        yield Stage("refitting through the validation days", _samples(windows, through, released))
        yield from released.fit(windows, through, None)
        # Weights and the number of epochs were chosen by validation labels, whatever the refit itself has read.
        released.trained_through = max(best.trained_through, released.trained_through)
        if isinstance(released, Ensemble):
            metrics["test"]["failed"] |= released.failed
    data: dict[str, object] = {
        **_origin(panel, settings),
        "split": {part: _days(panel, getattr(split, part)) for part in ("train", "valid", "test")},
    }
    cards = [
        save(
            model,
            folder,
            stem,
            trained_through=day_of(panel, model.trained_through) if model.trained_through >= 0 else "",
            data=data,
            metrics=metrics,
        )
        for model, stem in ((best, f"{name}_best"), (released, released_name(name)))
    ]
    yield Trained(cards[0], cards[1], test, history)


def forecast_today(panel: Panel, model: Model, *, trained_through: str) -> pl.DataFrame:
    """One row per pool: pool_id, protocol, day (the panel's last), the model's fields (fractions; null = none),
    `for_day`, and `reason` where there is no forecast.

    Raises DataError when no pool has one, or the model has seen the panel's last day.
    """
    windows = windows_of(panel, model.settings)
    last = panel.shape[0] - 1
    day = panel.times[last].astype("datetime64[D]").item()
    if trained_through and trained_through >= day.isoformat():
        raise DataError(
            f"the model was trained on values of {trained_through}, and the data ends on {day}; a forecast of it would "
            "be none"
        )
    if isinstance(model, Ensemble):  # beside what it says stands what its members say
        made, _ = model.fields_and_parts(windows, (last, last + 1))
    else:
        made = model.fields(windows, (last, last + 1))
    values = {field: array[0] for field, array in made.items()}
    lacking = np.isnan(next(iter(values.values())))
    usable = windows.usable[last]
    protocols = windows.block.protocols
    if any(np.isinf(array).any() for array in values.values()):
        raise DataError(f"forecasts of model {model.name!r} for {day} are infinite, so they are not to be used")
    if lacking.all() and not usable.any():
        raise DataError(
            f"no pool has the {windows.lookback} days of history up to {day} that a forecast needs; "
            "bring newer data in, or choose an earlier day with --as-of"
        )
    unseen = model.unseen(windows)
    if lacking.all() and all(unseen[i] for i in np.flatnonzero(usable)):
        names = ", ".join(sorted({protocols[i] for i in np.flatnonzero(usable)}))
        raise DataError(f"the model saw none of this panel's protocols in training: {names}; train it on this data")
    if lacking.all():
        raise DataError(
            f"model {model.name!r} has no forecast for any pool of {day}: none was among the pools of its training "
            "with all the days that it reads; train it on this data"
        )
    now = ~np.isnan(windows.last[last])
    reasons = [_reason(*each) for each in zip(lacking, now, usable, unseen, strict=True)]
    return pl.DataFrame(
        [
            pl.Series("pool_id", panel.pool_ids, dtype=pl.String),
            pl.Series("protocol", list(protocols), dtype=pl.String),
            pl.Series("day", [day] * lacking.size, dtype=pl.Date),
            *(pl.Series(field, array).fill_nan(None) for field, array in values.items()),
            pl.Series("apy_now", windows.last[last]).fill_nan(None),
            pl.Series("for_day", [day + timedelta(days=windows.horizon)] * lacking.size, dtype=pl.Date),
            pl.Series("reason", reasons, dtype=pl.String),
        ]
    )


def _samples(windows: Windows, rows: Rows, model: Model) -> int | None:
    """Of how many samples a model learns; None for one of labels, or members, of its own."""
    if model.name in (RISK, ENSEMBLE):
        return None
    stride = int(str(model.settings.get("stride", 1)))
    return int(windows.samples(rows, labelled=True, stride=stride)[0].size)


def _reason(lacking: bool, now: bool, usable: bool, unseen: str | None) -> str | None:
    """Why a pool has no forecast."""
    if not lacking:
        return None
    if not now:
        return "no APY now"
    if not usable:
        return "too few days of history"
    if unseen:
        return f"no pool of {unseen} was in the model's training"
    return "not among the pools of the model's training, or a gap in the days that it reads"


def _tested(model: Model, windows: Windows, split: Split) -> tuple[dict[str, dict[str, Any]], Evaluation | None]:
    """What the test days say of the best state: its measures as the card keeps them."""
    if model.name == RISK:
        report = getattr(model, "report")(windows, split.test)  # noqa: B009  # only the classifier has one
        return {"test": asdict(report)}, None
    told: dict[str, Any] = {}
    if isinstance(model, Ensemble):
        made, told["lacking"] = model.fields_and_parts(windows, split.test)
        told["failed"] = dict(model.failed)
    else:
        made = model.fields(windows, split.test)
    forecast = np.full(windows.shape, np.nan)
    forecast[slice(*split.test)] = made[f"forecast_{model.name}"]
    test = compare(windows.panel, {model.name: forecast}, horizon=windows.horizon, rows=split.test)
    row = next(row for row in test.overall.to_dicts() if row["model"] == model.name)
    return {"test": {**row, **told}}, test


def _origin(panel: Panel, settings: Mapping[str, Value]) -> dict[str, object]:
    """What decides a training, but for versions: threads do not."""
    return {
        "digest": panel.digest(),
        "max_stale_days": panel.max_stale_days,
        "revision": REVISION,
        "asked": deciding(settings),
        "first": day_of(panel, 0),
        "last": day_of(panel, panel.shape[0] - 1),
    }


def _days(panel: Panel, rows: Rows) -> list[str]:
    return [day_of(panel, rows[0]), day_of(panel, rows[1] - 1)]
