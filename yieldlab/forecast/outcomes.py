"""How good were the forecasts in the store? Those of walk-forward runs against what came, on days not learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab.errors import DataError, UsageError
from yieldlab.forecast.evaluate import Evaluation, compare
from yieldlab.forecast.risk_labels import CLASSES, HIGH, THRESHOLDS, labels
from yieldlab.panel import Panel
from yieldlab.schema import FORECAST, PERSISTENCE

Floats = NDArray[np.float64]

RISK_FIELDS = ("risk_class", "risk_prob_high")

#: A probability is never taken as surer than this in a logarithm.
LEAST_PROBABILITY = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class RiskOutcome:
    """Classes and probabilities of a walk-forward run against what happened.

    `confusion`: happened, then the number of samples given each class. `log_loss_high` is the mean of -log of the
    probability given to what came of high or not; `log_loss_base` what the base rate alone would have scored.
    `pr_auc_high` is the average precision, None where nothing was high.
    """

    run_id: str
    samples: int
    confusion: pl.DataFrame
    log_loss_high: float
    log_loss_base: float | None
    pr_auc_high: float | None
    base_rate_high: float
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


def risk_outcome(panel: Panel, window: tuple[int, int], settings: Mapping[str, object] | None = None) -> RiskOutcome:
    """The risk fields of a panel against what happened, between two rows, both included, labelled by the
    thresholds among the `settings` of its run.

    Raises DataError when no day with a class has a label.
    """
    from sklearn.metrics import average_precision_score

    origin = panel.forecasts["risk_class"]
    given, probability = (_between(panel.raw(field), window) for field in RISK_FIELDS)
    ahead = origin.horizon_days
    thresholds = {name: float(str(value)) for name, value in (settings or {}).items() if name in THRESHOLDS}
    happened = labels(panel, horizon=ahead, deviation_days=min(30, ahead), **thresholds)
    both = ~np.isnan(given) & ~np.isnan(happened)
    if not both.any():
        raise DataError(f"no day with a class of risk lies {origin.horizon_days} days before the end of the data")
    rows = np.flatnonzero(both.any(axis=1))
    label, said, chance = happened[both].astype(int), given[both].astype(int), probability[both]
    high = label == HIGH
    table = np.zeros((len(CLASSES), len(CLASSES)), dtype=np.int64)
    np.add.at(table, (label, said), 1)
    base = float(high.mean())
    sure = np.clip(np.where(high, chance, 1.0 - chance), LEAST_PROBABILITY, 1.0)
    entropy = -(base * np.log(base) + (1.0 - base) * np.log1p(-base)) if 0.0 < base < 1.0 else None
    days = panel.times.astype("datetime64[D]")
    return RiskOutcome(
        run_id=origin.run_id,
        samples=int(label.size),
        confusion=pl.DataFrame({"happened": list(CLASSES), **{name: table[:, i] for i, name in enumerate(CLASSES)}}),
        log_loss_high=float(-np.log(sure).mean()),
        log_loss_base=None if entropy is None else float(entropy),
        pr_auc_high=float(average_precision_score(high, chance)) if high.any() else None,
        base_rate_high=base,
        first=str(days[rows[0]]),
        last=str(days[rows[-1]]),
    )


def _between(values: Floats, window: tuple[int, int]) -> Floats:
    """The values of the rows from the first to the last of a window, NaN elsewhere."""
    chosen = np.full(values.shape, np.nan)
    chosen[window[0] : window[1] + 1] = values[window[0] : window[1] + 1]
    return chosen
