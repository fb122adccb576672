"""What a forecast has to beat: today's yield, a smoothed one, a pool's mean, and a straight line per pool."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from yieldlab.errors import DataError, UsageError
from yieldlab.features import ewma, lag
from yieldlab.folds import Rows
from yieldlab.forecast.protocol import EpochDone
from yieldlab.forecast.scaling import YieldTransform
from yieldlab.forecast.windows import Windows
from yieldlab.space import Value

Floats = NDArray[np.float64]

#: An autoregression of a pool is fitted on this many samples for each of its numbers, else the pool has none.
SAMPLES_PER_NUMBER = 5


class _Baseline(ABC):
    """What the baselines share: no file of their own, one field, and a forecast only where a window may be used."""

    fitted: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str, settings: Mapping[str, Value]) -> None:
        self.name = name
        self.settings = dict(settings)
        self.trained_through = -1

    def fit(self, windows: Windows, train: Rows, valid: Rows | None) -> Iterator[EpochDone]:
        yield from ()

    def fields(self, windows: Windows, rows: Rows) -> dict[str, Floats]:
        begin, end = rows
        usable = windows.usable[begin:end]
        return {f"forecast_{self.name}": np.where(usable, self._forecast(windows)[begin:end], np.nan)}

    def unseen(self, windows: Windows) -> list[str | None]:
        return [None] * windows.shape[1]

    def refit_settings(self) -> dict[str, Value]:
        return dict(self.settings)

    def document(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.fitted}

    def weights(self) -> bytes | None:
        return None

    def restore(self, document: Mapping[str, Any], weights: bytes | None) -> None:
        for name in self.fitted:
            if name not in document:
                raise DataError(f"the card of model {self.name!r} has no {name}; it is not one of this model")
            setattr(self, name, document[name])
        try:
            sound = self._sound()
        except (TypeError, ValueError, AttributeError, OverflowError):
            sound = False
        if not sound:
            raise DataError(f"the card of model {self.name!r} is damaged: {' or '.join(self.fitted)} is no such thing")

    def _sound(self) -> bool:
        """Whether what was restored can be what was fitted."""
        return True

    @abstractmethod
    def _forecast(self, windows: Windows) -> Floats:
        """(T, N) what the model says at every row, whether or not a window may be used there."""


class Persistence(_Baseline):
    """Today's carried APY."""

    def _forecast(self, windows: Windows) -> Floats:
        return windows.last


class Ewma(_Baseline):
    """The exponentially weighted mean of all APYs so far; `halflife` in days."""

    def __init__(self, name: str, settings: Mapping[str, Value]) -> None:
        super().__init__(name, settings)
        if not float(str(settings["halflife"])) > 0.0:
            raise UsageError(f"setting halflife of model {name!r} must be above 0, not {settings['halflife']}")

    def _forecast(self, windows: Windows) -> Floats:
        return ewma(windows.last, float(str(self.settings["halflife"])))


class PoolMean(_Baseline):
    """Each pool's mean over the labels of the training rows; a pool without one has no forecast."""

    fitted = ("means",)

    def fit(self, windows: Windows, train: Rows, valid: Rows | None) -> Iterator[EpochDone]:
        t, n = _training(windows, train, valid)
        ids = windows.panel.pool_ids
        self.means = {ids[pool]: float(windows.label[t[n == pool], pool].mean()) for pool in np.unique(n)}
        self.trained_through = int(t.max()) + windows.horizon
        yield from ()

    def _sound(self) -> bool:
        self.means = {pool: float(mean) for pool, mean in self.means.items()}
        return bool(np.isfinite(list(self.means.values())).all())

    def _forecast(self, windows: Windows) -> Floats:
        means = [self.means.get(pool, np.nan) for pool in windows.panel.pool_ids]
        return np.broadcast_to(np.array(means), windows.shape)


class AutoRegression(_Baseline):
    """Per pool the ridge regression of the APY `horizon` days later on today's and the `lags` - 1 before, in the
    transformed space; a pool with too few training samples has no forecast."""

    fitted = ("size", "coefficients")

    def __init__(self, name: str, settings: Mapping[str, Value]) -> None:
        super().__init__(name, settings)
        if self._lags < 1:
            raise UsageError(f"setting lags of model {name!r} must be 1 or more, not {settings['lags']}")

    def fit(self, windows: Windows, train: Rows, valid: Rows | None) -> Iterator[EpochDone]:
        t, n = _training(windows, train, valid)
        transform = YieldTransform.fit(windows.label[t, n])
        inputs = self._inputs(windows, transform)
        target = transform.forward(windows.label)
        numbers, ridge = inputs.shape[-1] + 1, float(str(self.settings["ridge"]))
        self.size, self.coefficients = transform.size, {}
        for pool in np.unique(n):
            rows = t[n == pool]
            design, wanted = inputs[rows, pool], target[rows, pool]
            whole = ~np.isnan(design).any(axis=1)
            if whole.sum() < SAMPLES_PER_NUMBER * numbers:
                continue
            centre, level = design[whole].mean(axis=0), float(wanted[whole].mean())
            moved = design[whole] - centre
            gram = moved.T @ moved / whole.sum() + ridge * np.eye(numbers - 1)
            # The shortest of the best slopes, where a ridge of 0 leaves more than one.
            slopes = np.linalg.lstsq(gram, moved.T @ (wanted[whole] - level) / whole.sum())[0]
            intercept = level - float(centre @ slopes)
            self.coefficients[windows.panel.pool_ids[pool]] = [intercept, *slopes.tolist()]
        if not self.coefficients:
            raise DataError(
                f"no pool has the {SAMPLES_PER_NUMBER * numbers} training samples that its autoregression needs"
            )
        self.trained_through = int(t.max()) + windows.horizon
        yield from ()

    @property
    def _lags(self) -> int:
        return int(str(self.settings["lags"]))

    def _sound(self) -> bool:
        self.size = float(self.size)
        self.coefficients = {pool: [float(each) for each in row] for pool, row in self.coefficients.items()}
        numbers = np.array([self.size, *(each for row in self.coefficients.values() for each in row)])
        whole = all(len(row) == self._lags + 1 for row in self.coefficients.values())
        return whole and self.size > 0.0 and bool(np.isfinite(numbers).all())

    def _inputs(self, windows: Windows, transform: YieldTransform) -> Floats:
        moved = transform.forward(windows.last)
        return np.stack([lag(moved, rows) for rows in range(self._lags)], axis=-1)

    def _forecast(self, windows: Windows) -> Floats:
        transform = YieldTransform(self.size)
        inputs = self._inputs(windows, transform)
        result = np.full(windows.shape, np.nan)
        for pool, name in enumerate(windows.panel.pool_ids):
            if name in self.coefficients:
                intercept, *slopes = self.coefficients[name]
                # A sum row by row: a matrix product's last bits depend on how many rows there are.
                result[:, pool] = transform.inverse(intercept + (inputs[:, pool] * np.array(slopes)).sum(axis=1))
        return result


def _training(windows: Windows, train: Rows, valid: Rows | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A baseline has nothing to stop early: it learns from the validation rows as well."""
    t, n = windows.samples(train if valid is None else (train[0], valid[1]), labelled=True)
    if not t.size:
        raise DataError(f"there is no window of {windows.lookback} days to learn from; the history is too short")
    return t, n
