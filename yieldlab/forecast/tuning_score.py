"""How well do given settings of a model forecast, on days before those of the test?

The later half of the rows is walked through in expanding folds, each with validation rows to stop by as a walk-forward
has them, and the score is the mean over the folds: for forecasts the mean absolute error of `asinh(APY / c)`, c the
median size of the APY learned from, and for risk classes the multi-class log loss. The same cells count whatever the
settings: where there is no forecast, today's yield stands for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from yieldlab.errors import AuditError, DataError
from yieldlab.folds import Fold, Rows, inner, walk_forward
from yieldlab.forecast.protocol import EpochDone, Floats, Model
from yieldlab.forecast.registry import RISK, make
from yieldlab.forecast.scaling import YieldTransform
from yieldlab.forecast.walk_forward import VALIDATION_SHARE
from yieldlab.forecast.windows import Windows
from yieldlab.space import Value

#: A fold, and of what it learns from the rows to fit on and those to stop by.
Laid = tuple[Fold, Rows, Rows]

#: Days between what a fold learned from and what it is scored on, beside the purge.
EMBARGO = 7

#: Validation losses kept per fold, besides the fold's best; and the share of a fold's epochs or rounds in which none of
#: them ends a trial, since a low learning rate begins behind.
REPORTS = 10
WARM_UP = 1.0 / 3.0


class Watch(Protocol):
    """Who keeps a trial's losses at steps that count on over the folds, and knows those of others."""

    def report(self, step: int, loss: float) -> None: ...

    def behind(self) -> bool: ...


class Pruned(Exception):
    """What is being scored is not worth its end."""


def metric(name: str) -> str:
    """What a model's trials are scored by, in words."""
    return "log loss" if name == RISK else "mean absolute error of asinh(APY / c)"


def lay_folds(windows: Windows, rows: Rows, n_folds: int) -> list[Laid]:
    """Folds that predict the later half of the rows, whose labels all lie in the panel."""
    begin, end = rows
    step = max(0, end - begin) // (2 * n_folds)
    first = end - begin - n_folds * step
    if step < 1 or first <= windows.horizon + EMBARGO:
        raise DataError(
            f"{max(0, end - begin)} days before the test days are too few for {n_folds} folds with {windows.horizon} "
            f"days of purge and {EMBARGO} of embargo; a longer history is needed"
        )
    folds = []
    for fold in walk_forward(
        end - begin, mode="expanding", step=step, purge=windows.horizon, embargo=EMBARGO, first=first
    ):
        train, predict = ((low + begin, high + begin) for low, high in (fold.train, fold.predict))
        fit, valid = inner(train, VALIDATION_SHARE, purge=windows.horizon)
        for part in (fit, valid, predict):
            if not windows.samples(part, labelled=True)[0].size:
                raise DataError(
                    f"fold {fold.number} of {n_folds} has no window with an APY {windows.horizon} days later on rows "
                    f"{part[0]} to {part[1] - 1}; the history is too short or too full of gaps"
                )
        folds.append((Fold(fold.number, train, predict), fit, valid))
    return folds


def score(
    name: str,
    settings: Mapping[str, Value],
    windows: Windows,
    folds: Sequence[Laid],
    watch: Watch,
) -> float:
    """Mean over the folds; `watch` is told of losses on the validation rows. Raises Pruned when it says "behind"."""
    scores = []
    for place, (fold, fit, valid) in enumerate(folds):
        model = make(name, settings)
        _learn(model.fit(windows, fit, valid), place, len(folds), watch)
        if model.trained_through >= fold.predict[0]:
            raise AuditError(
                f"fold {fold.number} is scored from row {fold.predict[0]} on with values up to row "
                f"{model.trained_through} in its fit, which must end before"
            )
        scores.append(_error(model, windows, fold))
    return float(np.mean(scores))


def _learn(events: Iterator[EpochDone], place: int, places: int, watch: Watch) -> None:
    """Fit a fold, reporting the best validation loss so far at steps that are the same for every trial.

    A trial is judged by its least loss of all steps, and folds differ in theirs, so each loss is brought into [0, 1),
    which keeps their order, and below those of the fold before: the least is then always one of the fold at hand.
    """
    best, begin = math.inf, place * (REPORTS + 1)
    for event in events:
        if event.valid_loss is None:
            continue
        best = min(best, event.valid_loss)
        every = math.ceil(event.epochs / REPORTS)
        if event.epoch % every == 0:
            watch.report(begin + event.epoch // every, best / (1.0 + best) - place)
            if event.epoch > event.epochs * WARM_UP and watch.behind():
                raise Pruned
    if best < math.inf:
        watch.report(begin + REPORTS + 1, best / (1.0 + best) - place)
        if place + 1 < places and watch.behind():
            raise Pruned


def nothing_changes(windows: Windows, folds: Sequence[Laid]) -> float:
    """What today's yield scores as the forecast of every day."""
    return float(np.mean([_distance(windows, fold, windows.last) for fold, _, _ in folds]))


def _error(model: Model, windows: Windows, fold: Fold) -> float:
    """The score of the fold's predicted rows."""
    if model.name == RISK:
        return float(getattr(model, "report")(windows, fold.predict).log_loss)  # noqa: B009  # only this one has it
    t, n = windows.samples(fold.predict, labelled=True)
    made = windows.last.copy()
    begin, end = fold.predict
    said = model.fields(windows, fold.predict)[f"forecast_{model.name}"]
    if np.isnan(said[t - begin, n]).all():
        raise DataError(f"there is no forecast for any of the {t.size:,} pool-days of fold {fold.number}")
    made[begin:end] = np.where(np.isnan(said), made[begin:end], said)
    error = _distance(windows, fold, made)
    if not math.isfinite(error):
        raise DataError(f"the forecasts of fold {fold.number} are infinite, so they have no score")
    return error


def _distance(windows: Windows, fold: Fold, made: Floats) -> float:
    """The mean absolute error of (T, N) forecasts on the fold's predicted rows, in the transformed space."""
    transform = YieldTransform.fit(windows.label[windows.samples(fold.train, labelled=True)])
    t, n = windows.samples(fold.predict, labelled=True)
    return float(np.abs(transform.forward(made[t, n]) - transform.forward(windows.label[t, n])).mean())
