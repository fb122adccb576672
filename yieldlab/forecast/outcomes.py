"""How good were the forecasts in the store? Those of walk-forward runs against what came, on days not learned from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab.errors import DataError, UsageError
from yieldlab.forecast.evaluate import Evaluation, compare
from yieldlab.forecast.registry import check_package
from yieldlab.forecast.risk_labels import CLASSES, HIGH, labels_by
from yieldlab.forecast.risk_scores import confusion, gain_shares, log_loss
from yieldlab.panel import Panel
from yieldlab.runs import RunFolder
from yieldlab.schema import FORECAST, PERSISTENCE

Floats = NDArray[np.float64]

RISK_FIELDS = ("risk_class", "risk_prob_medium", "risk_prob_high")


@dataclass(frozen=True, slots=True, eq=False)
class RiskOutcome:
    """Classes and probabilities of a walk-forward run against what happened.

    `confusion`: happened, then the number of samples given each class. `log_loss` is the mean of -log of the
    probability given to the class that came; `log_loss_base` what the classes' frequencies on these very days, which
    nobody knew before, would have scored. `pr_auc_high` is the average precision, None where nothing was high.

    `importance` is each feature's share of the gain, the largest first: the mean over the folds, and empty when the
    run's folder is gone. Of the `folds` `calibrated` had samples enough to put their probabilities right.
    """

    run_id: str
    samples: int
    confusion: pl.DataFrame
    log_loss: float
    log_loss_base: float
    pr_auc_high: float | None
    base_rate_high: float
    importance: Mapping[str, float]
    calibrated: int
    folds: int
    first: str
    last: str

    def as_dict(self) -> dict[str, object]:
        """In JSON's own kinds."""
        kept = {name: getattr(self, name) for name in self.__slots__ if name != "confusion"}
        return kept | {"confusion": self.confusion.to_dicts()}


def evaluated(panel: Panel, names: Sequence[str], window: tuple[int, int], *, seed: int = 0) -> Evaluation:
    """The models' forecasts that lie between two rows of the panel, both included, against what came.

    The panel must hold a field `forecast_<name>` for each; persistence needs none. Raises UsageError when they do not
    look equally far ahead.
    """
    fields = {name: f"{FORECAST}{name}" for name in names if f"{FORECAST}{name}" != PERSISTENCE}
    origins = panel.forecasts
    horizons = {name: origins[field].horizon_days for name, field in fields.items()}
    if len(set(horizons.values())) > 1:
        told = ", ".join(f"{name} {days} days" for name, days in horizons.items())
        raise UsageError(f"these models do not look equally far ahead ({told}); evaluate them one by one")
    predictions = {name: panel.raw(field) for name, field in fields.items()}
    return compare(
        panel, predictions, horizon=next(iter(horizons.values()), 7), seed=seed, rows=(window[0], window[1] + 1)
    )


def risk_outcome(panel: Panel, window: tuple[int, int], run: RunFolder | None = None) -> RiskOutcome:
    """The risk fields of a panel against what happened, between two rows, both included, labelled by the thresholds of
    the `run` that they are of; by the usual ones where that is gone.

    Raises DataError when no day with a class has a label.
    """
    check_package("sklearn", "the report on risk")
    from sklearn.metrics import average_precision_score

    origin = panel.forecasts["risk_class"]
    given, medium, high = (_between(panel.raw(field), window) for field in RISK_FIELDS)
    ahead = origin.horizon_days
    settings = {} if run is None else run.manifest.config.get("settings")
    happened = labels_by(panel, ahead, settings if isinstance(settings, dict) else {})
    both = ~np.isnan(given) & ~np.isnan(happened)
    if not both.any():
        raise DataError(f"no day with a class of risk lies {origin.horizon_days} days before the end of the data")
    rows = np.flatnonzero(both.any(axis=1))
    label, said = happened[both].astype(int), given[both].astype(int)
    chances = np.stack([1.0 - medium[both] - high[both], medium[both], high[both]], axis=1)
    table = np.array(confusion(label, said))
    told = [] if run is None else [note for path in run.chunks().values() for note in run.chunk_signals(path)]
    notes = [json.loads(note) for note in told]
    days = panel.times.astype("datetime64[D]")
    return RiskOutcome(
        run_id=origin.run_id,
        samples=int(label.size),
        confusion=pl.DataFrame({"happened": list(CLASSES), **{name: table[:, i] for i, name in enumerate(CLASSES)}}),
        log_loss=log_loss(label, chances),
        log_loss_base=log_loss(label, np.broadcast_to(table.sum(axis=1) / label.size, chances.shape)),
        pr_auc_high=float(average_precision_score(label == HIGH, chances[:, HIGH])) if (label == HIGH).any() else None,
        base_rate_high=float((label == HIGH).mean()),
        importance=gain_shares([each["importance"] for each in notes]),
        calibrated=sum(each["calibrated"] for each in notes),
        folds=len(notes),
        first=str(days[rows[0]]),
        last=str(days[rows[-1]]),
    )


def _between(values: Floats, window: tuple[int, int]) -> Floats:
    """The values of the rows from the first to the last of a window, NaN elsewhere."""
    chosen = np.full(values.shape, np.nan)
    chosen[window[0] : window[1] + 1] = values[window[0] : window[1] + 1]
    return chosen
