"""How gradient-boosted trees forecast a yield: from a window's last row and a few before it, to how far the APY moves.

The trees see the scaled features of the nets, and learn what they learn: see `scaling.Target`.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from yieldlab.errors import DataError, UsageError
from yieldlab.folds import Rows
from yieldlab.forecast.protocol import EpochDone
from yieldlab.forecast.scaling import Scaler, Target, check_target
from yieldlab.forecast.tree_files import check_trees
from yieldlab.forecast.windows import Ints, Singles, Windows
from yieldlab.space import Value

Floats = NDArray[np.float64]

OBJECTIVE = "reg:squarederror"

#: Rows before the last one that the trees see too; the window's first is another.
LAGS = (1, 7, 14)

#: Features whose past tells nothing that today's value does not, as the one-hot's.
WITHOUT_PAST = ("hour", "day_of_week")

#: Samples that are forecast together: what bounds the memory of a prediction.
PREDICTED_TOGETHER = 65_536


class BoostedTrees:
    """Regression trees with what they need to read windows and to give yields."""

    def __init__(self, name: str, settings: Mapping[str, Value]) -> None:
        self.name = name
        self.settings = dict(settings)
        self.trained_through = -1
        self.history: list[EpochDone] = []
        check_target(name, str(settings["target"]))
        check_rounds(name, settings)

    def fit(self, windows: Windows, train: Rows, valid: Rows | None) -> Iterator[EpochDone]:
        """Learn; an event after each tree. The trees kept are the best number on validation, all without."""
        t, n = windows.samples(train, labelled=True)
        self._scaler = Scaler.fit(windows, t, n)
        self._target = Target.fit(str(self.settings["target"]), windows, t, n)
        scaled = self._scaler.apply(windows)
        learned = self._matrix(scaled, t, n, windows.lookback, self._target.wanted(windows, t, n))
        self.trained_through = int(t.max()) + windows.horizon
        checked = None
        if valid is not None:
            t, n = self._scaler.to_stop_by(windows, valid)
            checked = self._matrix(scaled, t, n, windows.lookback, self._target.wanted(windows, t, n))
            self.trained_through = max(self.trained_through, int(t.max()) + windows.horizon)
        params = {
            "objective": OBJECTIVE,
            "eval_metric": "rmse",
            "base_score": 0.0,
            **{key: self.settings[key] for key in ("min_child_weight", "subsample", "colsample_bytree", "reg_lambda")},
            **shared_params(self.settings),
        }
        self._booster, self.history = yield from boost(self.name, self.settings, params, learned, checked)

    def fields(self, windows: Windows, rows: Rows) -> dict[str, Floats]:
        """Forecast APY of every usable window; none for a pool of a protocol that the training never saw."""
        t, n = self._scaler.samples(windows, rows, labelled=False)
        scaled = self._scaler.apply(windows)
        result = np.full((rows[1] - rows[0], windows.shape[1]), np.nan)
        for start in range(0, t.size, PREDICTED_TOGETHER):
            part = slice(start, start + PREDICTED_TOGETHER)
            answers = self._booster.predict(self._matrix(scaled, t[part], n[part], windows.lookback))
            apy = self._target.apy(windows, t[part], n[part], answers.astype(np.float64))
            result[t[part] - rows[0], n[part]] = apy
        return {f"forecast_{self.name}": result}

    def unseen(self, windows: Windows) -> list[str | None]:
        return self._scaler.unseen(windows)

    def refit_settings(self) -> dict[str, Value]:
        """As many trees as were kept."""
        return {**self.settings, "n_estimators": best_of(self.history)}

    def importance(self) -> dict[str, float]:
        """Mean gain of the splits on each feature that was split on, the largest first."""
        return gains(self._booster)

    def document(self) -> dict[str, object]:
        return {
            "scaler": self._scaler.document(),
            **self._target.document(),
            "inputs": list(self._inputs(int(str(self.settings["lookback"])))),
            "history": told(self.history),
        }

    def weights(self) -> bytes | None:
        """The trees in XGBoost's own JSON."""
        return bytes(self._booster.save_raw("json"))

    def restore(self, document: Mapping[str, Any], weights: bytes | None) -> None:
        try:
            self._scaler = Scaler.restore(document["scaler"])
            self._target = Target.restore(str(self.settings["target"]), document)
            self.history = untold(document["history"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"the card of model {self.name!r} does not describe boosted trees ({error})") from error
        inputs = self._inputs(int(str(self.settings["lookback"])))
        self._booster = booster_of(self.name, weights, OBJECTIVE, inputs)

    def _inputs(self, lookback: int) -> tuple[str, ...]:
        """Names of the columns that the trees see."""
        past = [name for name in self._scaler.names if name not in WITHOUT_PAST]
        return (*self._scaler.all_names, *(f"{name}_{lag}_days_ago" for lag in _lags(lookback) for name in past))

    def _matrix(self, scaled: Singles, t: Ints, n: Ints, lookback: int, wanted: Floats | None = None) -> xgb.DMatrix:
        past = [i for i, name in enumerate(self._scaler.names) if name not in WITHOUT_PAST]
        columns = [scaled[n, t], *(scaled[n, t - lag][:, past] for lag in _lags(lookback))]
        seen, names = np.concatenate(columns, axis=1), list(self._inputs(lookback))
        return xgb.DMatrix(seen, wanted, feature_names=names, nthread=threads(self.settings))


def _lags(lookback: int) -> tuple[int, ...]:
    """Rows before the last one that lie in the window: those of `LAGS`, and the first row."""
    return tuple(sorted({lag for lag in (*LAGS, lookback - 1) if 0 < lag < lookback}))


def boost(
    name: str,
    settings: Mapping[str, Value],
    params: Mapping[str, object],
    learned: xgb.DMatrix,
    checked: xgb.DMatrix | None,
) -> Generator[EpochDone, None, tuple[xgb.Booster, list[EpochDone]]]:
    """Add trees, an event after each round; returns the booster of the best round, and the events.

    Stops after `early_stopping` rounds that were no better on `checked` (0 = never). Raises UsageError for settings
    that XGBoost does not take, DataError when the loss is no number.
    """
    rounds, patience = int(str(settings["n_estimators"])), int(str(settings["early_stopping"]))
    watched = [(learned, "train"), *([] if checked is None else [(checked, "valid")])]
    history: list[EpochDone] = []
    best = math.inf
    try:
        booster = xgb.Booster(dict(params), [matrix for matrix, _ in watched])
        for number in range(1, rounds + 1):
            booster.update(learned, number - 1)
            losses = [float(each.rpartition(":")[2]) for each in booster.eval_set(watched, number - 1).split("\t")[1:]]
            if not np.isfinite(losses).all():
                raise DataError(
                    f"the loss of model {name!r} is not a number after tree {number}; "
                    f"lower its learning_rate ({settings['learning_rate']})"
                )
            better = checked is None or losses[1] < best
            best = losses[-1] if better else best
            history.append(EpochDone(number, rounds, losses[0], None if checked is None else losses[1], better))
            yield history[-1]
            if patience and number - best_of(history) >= patience:
                break
    except xgb.core.XGBoostError as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise UsageError(f"XGBoost does not take the settings of model {name!r}: {reason}") from error
    return booster[: best_of(history)], history


def shared_params(settings: Mapping[str, Value]) -> dict[str, object]:
    """The parameters of every booster."""
    chosen: dict[str, object] = {key: settings[key] for key in ("learning_rate", "max_depth", "seed")}
    return chosen | {"tree_method": "hist", "verbosity": 0, "nthread": threads(settings)}


def threads(settings: Mapping[str, Value]) -> int:
    """XGBoost's number of threads: 0 = all of them."""
    return int(str(settings["threads"]))


def check_rounds(name: str, settings: Mapping[str, Value]) -> None:
    """Raise UsageError for settings with which no tree would be grown."""
    for key in ("n_estimators", "max_depth"):
        if int(str(settings[key])) < 1:
            raise UsageError(f"setting {key} of model {name!r} must be 1 or more, not {settings[key]}")
    for key in ("subsample", "colsample_bytree"):
        if not 0.0 < float(str(settings.get(key, 1.0))) <= 1.0:
            raise UsageError(f"setting {key} of model {name!r} is a share above 0, 1 at the most, not {settings[key]}")


def best_of(history: list[EpochDone]) -> int:
    """The last round that was the best so far."""
    return max((each.epoch for each in history if each.best), default=0)


def told(history: list[EpochDone]) -> list[list[object]]:
    """The rounds in JSON's own kinds."""
    return [[each.epoch, each.epochs, each.train_loss, each.valid_loss, each.best] for each in history]


def untold(rows: object) -> list[EpochDone]:
    """The inverse of `told`."""
    return [EpochDone(*row) for row in rows]  # type: ignore[attr-defined]  # whoever calls catches TypeError


def gains(booster: xgb.Booster) -> dict[str, float]:
    """Feature -> mean gain of its splits, the largest first."""
    found = {name: float(np.mean(gain)) for name, gain in booster.get_score(importance_type="gain").items()}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def booster_of(name: str, weights: bytes | None, objective: str, inputs: tuple[str, ...]) -> xgb.Booster:
    """The booster in a file. Raises DataError when it is none, or one of another objective or other inputs."""
    check_trees(name, weights, objective, inputs)
    booster = xgb.Booster()
    try:
        booster.load_model(bytearray(weights or b""))
    except xgb.core.XGBoostError as error:
        raise DataError(f"the trees of model {name!r} cannot be read: they are not XGBoost's JSON") from error
    return booster
