"""How likely a pool is to turn bad within the month: boosted trees that give it a class and a probability of `high`.

They learn from `risk_labels` what became of a pool after each training day, the classes weighted to count the same.
What that does to the probabilities is undone afterwards: on the second half of the validation days a logistic
regression on the log-probabilities puts them right, and where these cannot carry one, they are weighted back by how
frequent each class was in training. The first half says when to stop adding trees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from yieldlab.errors import DataError, UsageError
from yieldlab.folds import Rows
from yieldlab.forecast.boosted_trees import (
    PREDICTED_TOGETHER,
    best_of,
    boost,
    booster_of,
    check_rounds,
    gains,
    shared_params,
    threads,
    told,
    untold,
)
from yieldlab.forecast.protocol import EpochDone
from yieldlab.forecast.risk_features import FAMILIES, OTHER, families_of, risk_features
from yieldlab.forecast.risk_labels import CLASSES, HIGH, MEDIUM, THRESHOLDS, labels_by
from yieldlab.forecast.risk_scores import LEAST_PROBABILITY, confusion, log_loss
from yieldlab.forecast.windows import Ints, Windows
from yieldlab.space import Value

Floats = NDArray[np.float64]

OBJECTIVE = "multi:softprob"

#: A calibration needs so many samples of every class.
SAMPLES_PER_CLASS = 20

#: Features that have to have a value in training.
NEEDED = ("apy_percent", "tvl_usd")


@dataclass(frozen=True, slots=True)
class RiskReport:
    """How classes and probabilities compare with what happened on days not learned from.

    `confusion[i][j]` counts samples of class i that were given class j. `log_loss` is the mean of -log of the
    probability of the class that came; `log_loss_prior` what the training's frequencies of the classes would have
    scored. `pr_auc_high` is the average precision of `high`, which is `base_rate_high` by guessing; None where there
    was no high. `importance` is the mean gain of the splits on each feature.
    """

    samples: int
    confusion: tuple[tuple[int, ...], ...]
    log_loss: float
    log_loss_prior: float
    pr_auc_high: float | None
    base_rate_high: float
    importance: Mapping[str, float]
    calibration: str


class RiskClassifier:
    """Classification trees with what turns their answers into probabilities. `calibration` says how, in a sentence."""

    def __init__(self, name: str, settings: Mapping[str, Value]) -> None:
        self.name = name
        self.settings = dict(settings)
        self.trained_through = -1
        self.history: list[EpochDone] = []
        self.calibration = ""
        check_rounds(name, settings)
        for key in THRESHOLDS:
            if not float(str(settings[key])) <= 1.0:
                raise UsageError(f"setting {key} of model {name!r} is a share from 0 to 1, not {settings[key]}")

    def fit(self, windows: Windows, train: Rows, valid: Rows | None) -> Iterator[EpochDone]:
        """Learn from the usable samples with a risk label; an event after each round."""
        happened = self.labels(windows)
        names, values = _inputs(windows)
        self._names = names
        t, n, label = _labelled(*windows.samples(train, labelled=False), happened)
        counts = np.bincount(label, minlength=len(CLASSES))
        if not t.size:
            raise DataError(
                f"there is no training day with a risk label, which needs {windows.horizon} more days; "
                "the history is too short"
            )
        if np.count_nonzero(counts) < 2:
            raise DataError(
                f"all {t.size:,} training samples are of risk class {CLASSES[label[0]]}, so there is nothing to tell "
                "apart; use a longer history, more pools or other thresholds"
            )
        if not counts[HIGH]:
            raise DataError(
                f"none of the {t.size:,} training samples is of risk class high, so nothing is learned of it; use a "
                "longer history, more pools or other thresholds"
            )
        for name in NEEDED:
            if np.isnan(values[t, n, names.index(name)]).all():
                raise DataError(f"the feature {name} has no value on any of the {t.size:,} training samples")
        self.trained_through = int(t.max()) + windows.horizon
        kinds = families_of(windows.panel)
        self._families = tuple(sorted({kinds[pool] for pool in np.unique(n)}))
        self._priors = counts / counts.sum()
        learned = self._matrix(values, t, n, label)
        checked, kept = None, None
        if valid is not None:
            checked, kept = self._validation(windows, values, valid, happened)
        params = {
            "objective": OBJECTIVE,
            "eval_metric": "mlogloss",
            "num_class": len(CLASSES),
            **shared_params(self.settings),
        }
        self._booster, self.history = yield from boost(self.name, self.settings, params, learned, checked)
        self._calibrate(values, kept)

    def _validation(
        self, windows: Windows, values: Floats, valid: Rows, happened: Floats
    ) -> tuple[xgb.DMatrix, tuple[Ints, Ints, Ints]]:
        """What says when to stop (the first half of the days), and the samples to calibrate on (the second)."""
        t, n, label = _labelled(*self._samples(windows, valid), happened)
        if not t.size:
            raise DataError("there is no validation day with a risk label, so nothing can be stopped by it")
        self.trained_through = max(self.trained_through, int(t.max()) + windows.horizon)
        first = t <= np.median(t)
        if not self._priors[label[first]].any():
            raise DataError(
                f"the validation days to stop by have no other risk class than {CLASSES[label[0]]}, which no training "
                "sample is of; use a longer history, more pools or other thresholds"
            )
        return self._matrix(values, t[first], n[first], label[first]), (t[~first], n[~first], label[~first])

    def _calibrate(self, values: Floats, kept: tuple[Ints, Ints, Ints] | None) -> None:
        self._coefficients: Floats | None = None
        unseen = [CLASSES[each] for each in np.flatnonzero(self._priors == 0.0)]
        if kept is None:
            reason = "there were no validation days"
        elif unseen:
            reason = f"no training sample is of class {unseen[0]}"
        else:
            t, n, label = kept
            counts = np.bincount(label, minlength=len(CLASSES))
            fewest = int(counts.argmin())
            if counts[fewest] >= SAMPLES_PER_CLASS:
                fitted = LogisticRegression(max_iter=1_000).fit(_logs(self._answers(values, t, n)), label)
                self._coefficients = np.column_stack([fitted.coef_, fitted.intercept_])
                self.calibration = f"logistic regression on {t.size:,} validation samples"
                return
            reason = (
                f"class {CLASSES[fewest]} has {counts[fewest]} of the {SAMPLES_PER_CLASS} validation samples it needs"
            )
        self.calibration = f"none but for the classes' frequencies in training: {reason}"

    def labels(self, windows: Windows) -> Floats:
        """(T, N) what happened, by this model's thresholds; NaN = no label."""
        return labels_by(windows.panel, windows.horizon, self.settings)

    def probabilities(self, windows: Windows, rows: Rows) -> Floats:
        """(rows, N, 3) calibrated probability of each class, NaN where no window may be used and for pools of a family
        of protocols that the training never saw."""
        names, values = _inputs(windows)
        if names != self._names:
            raise DataError(f"model {self.name!r} was trained with other features than this panel gives")
        t, n = self._samples(windows, rows)
        result = np.full((rows[1] - rows[0], windows.shape[1], len(CLASSES)), np.nan)
        if t.size:
            result[t - rows[0], n] = self._calibrated(self._answers(values, t, n))
        return result

    def fields(self, windows: Windows, rows: Rows) -> dict[str, Floats]:
        """`risk_class`, the likeliest (0, 1, 2), `risk_prob_medium` and `risk_prob_high`, for every usable window."""
        found = self.probabilities(windows, rows)
        missing = np.isnan(found[:, :, HIGH])
        likeliest = np.where(missing, np.nan, np.argmax(np.nan_to_num(found), axis=2))
        chances = {f"risk_prob_{CLASSES[each]}": found[:, :, each].copy() for each in (MEDIUM, HIGH)}
        return {"risk_class": likeliest, **chances}

    def report(self, windows: Windows, rows: Rows) -> RiskReport:
        """How it does on days that it should not have learned from. Raises DataError when none has a label."""
        t, n, label = _labelled(*self._samples(windows, rows), self.labels(windows))
        if not t.size:
            raise DataError(f"none of the {rows[1] - rows[0]} days reported on has a risk label and a class given")
        found = self.probabilities(windows, rows)[t - rows[0], n]
        priors = np.broadcast_to(self._priors, found.shape)
        high = label == HIGH
        return RiskReport(
            samples=int(t.size),
            confusion=confusion(label, found.argmax(axis=1)),
            log_loss=log_loss(label, found),
            log_loss_prior=log_loss(label, priors),
            pr_auc_high=float(average_precision_score(high, found[:, HIGH])) if high.any() else None,
            base_rate_high=float(high.mean()),
            importance=self.importance(),
            calibration=self.calibration,
        )

    def importance(self) -> dict[str, float]:
        """Mean gain of the splits on each feature that was split on, the largest first."""
        return gains(self._booster)

    @property
    def calibrated(self) -> bool:
        """Whether validation days put the probabilities right."""
        return self._coefficients is not None

    def refit_settings(self) -> dict[str, Value]:
        """As many rounds as were kept."""
        return {**self.settings, "n_estimators": best_of(self.history)}

    def document(self) -> dict[str, object]:
        return {
            "features": list(self._names),
            "classes": list(CLASSES),
            "families": list(self._families),
            "priors": self._priors.tolist(),
            "calibration": self.calibration,
            "coefficients": None if self._coefficients is None else self._coefficients.tolist(),
            "history": told(self.history),
        }

    def weights(self) -> bytes | None:
        """The trees in XGBoost's own JSON."""
        return bytes(self._booster.save_raw("json"))

    def restore(self, document: Mapping[str, Any], weights: bytes | None) -> None:
        try:
            self._names = tuple(document["features"])
            self._families = tuple(map(str, document["families"]))
            self._priors = np.array(document["priors"], dtype=np.float64)
            self.calibration = str(document["calibration"])
            given = document["coefficients"]
            self._coefficients = None if given is None else np.array(given, dtype=np.float64)
            self.history = untold(document["history"])
            sound = self._priors.shape == (len(CLASSES),) and bool((self._priors >= 0.0).all())
            sound = sound and bool(np.isclose(self._priors.sum(), 1.0))
            sound = sound and set(self._families) <= {*FAMILIES, OTHER} and bool(self._families)
            if self._coefficients is not None:
                fits = self._coefficients.shape == (len(CLASSES), len(CLASSES) + 1)
                sound = sound and fits and np.isfinite(self._coefficients).all()
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"the card of model {self.name!r} does not describe risk classes ({error})") from error
        if not sound:
            raise DataError(f"the card of model {self.name!r} has no usable priors, families or calibration")
        self._booster = booster_of(self.name, weights, OBJECTIVE, self._names)

    def unseen(self, windows: Windows) -> list[str | None]:
        kinds = families_of(windows.panel)
        return [None if kind in self._families else f"the family {kind} of protocols" for kind in kinds]

    def _samples(self, windows: Windows, rows: Rows) -> tuple[Ints, Ints]:
        """As `Windows.samples`, of the pools whose family of protocols the training saw."""
        t, n = windows.samples(rows, labelled=False)
        known = np.array([kind is None for kind in self.unseen(windows)])[n]
        return t[known], n[known]

    def _matrix(self, values: Floats, t: Ints, n: Ints, label: Ints | None = None) -> xgb.DMatrix:
        """Inputs, and with labels the weights that make every class of the training count the same."""
        weight = None
        if label is not None:
            frequency = np.where(self._priors > 0.0, self._priors, np.inf)
            weight = (1.0 / (np.count_nonzero(self._priors) * frequency))[label]
        names = list(self._names)
        return xgb.DMatrix(values[t, n], label, weight=weight, feature_names=names, nthread=threads(self.settings))

    def _answers(self, values: Floats, t: Ints, n: Ints) -> Floats:
        """(S, 3) what the trees say, as if every class were as frequent as the others."""
        starts = range(0, t.size, PREDICTED_TOGETHER)
        parts = [slice(start, start + PREDICTED_TOGETHER) for start in starts]
        answers = [self._booster.predict(self._matrix(values, t[part], n[part])) for part in parts]
        return np.concatenate(answers).astype(np.float64)

    def _calibrated(self, answers: Floats) -> Floats:
        if self._coefficients is None:
            weighted = answers * self._priors
            return _shares(weighted)
        scores = _logs(answers) @ self._coefficients[:, :-1].T + self._coefficients[:, -1]
        return _shares(np.exp(scores - scores.max(axis=1, keepdims=True)))


def _inputs(windows: Windows) -> tuple[tuple[str, ...], Floats]:
    """Names, and (T, N, F) values, within what trees hold in single precision."""
    made = risk_features(windows.panel)
    largest = float(np.finfo(np.float32).max)
    return tuple(made), np.clip(np.stack(list(made.values()), axis=2), -largest, largest)


def _labelled(t: Ints, n: Ints, happened: Floats) -> tuple[Ints, Ints, Ints]:
    """Of samples the rows, pools and classes of those with a label."""
    known = ~np.isnan(happened[t, n])
    return t[known], n[known], happened[t[known], n[known]].astype(np.int64)


def _shares(odds: Floats) -> Floats:
    shares: Floats = odds / odds.sum(axis=1, keepdims=True)
    return shares


def _logs(answers: Floats) -> Floats:
    logs: Floats = np.log(np.maximum(answers, LEAST_PROBABILITY))
    return logs
