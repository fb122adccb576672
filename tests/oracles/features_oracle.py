"""What the features mean, one cell at a time, written for reading: exact sums, two passes, no tricks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def rolling(values: Floats, window: int, measure: Callable[[list[float]], float]) -> Floats:
    """`measure` of the values present among the last `window` rows, NaN where today's is missing."""
    result = np.full(values.shape, np.nan)
    for t in range(values.shape[0]):
        for i in range(values.shape[1]):
            if math.isnan(values[t, i]):
                continue
            seen = [float(value) for value in values[max(0, t - window + 1) : t + 1, i]]
            result[t, i] = measure([value for value in seen if not math.isnan(value)])
    return result


def mean(present: list[float]) -> float:
    return float(sum(map(Fraction, present)) / len(present))


def deviation(present: list[float]) -> float:
    """Sample deviation from the exact mean."""
    if len(present) < 2:
        return math.nan
    centre = sum(map(Fraction, present)) / len(present)
    return math.sqrt(sum((Fraction(value) - centre) ** 2 for value in present) / (len(present) - 1))


def quantile(share: float) -> Callable[[list[float]], float]:
    return lambda present: float(np.quantile(present, share))


def rolling_sum(values: Floats, window: int) -> Floats:
    return rolling(values, window, math.fsum)


def rolling_mean(values: Floats, window: int) -> Floats:
    return rolling(values, window, mean)


def rolling_std(values: Floats, window: int) -> Floats:
    return rolling(values, window, deviation)


def rolling_min(values: Floats, window: int) -> Floats:
    return rolling(values, window, min)


def rolling_max(values: Floats, window: int) -> Floats:
    return rolling(values, window, max)


def rolling_median(values: Floats, window: int) -> Floats:
    return rolling(values, window, statistics.median)


def ewma(values: Floats, halflife: float) -> Floats:
    """The weighted mean, with every weight written out."""
    result = np.full(values.shape, np.nan)
    for t in range(values.shape[0]):
        for i in range(values.shape[1]):
            if math.isnan(values[t, i]):
                continue
            pairs = [(0.5 ** ((t - s) / halflife), float(values[s, i])) for s in range(t + 1)]
            pairs = [(weight, value) for weight, value in pairs if not math.isnan(value)]
            result[t, i] = math.fsum(w * v for w, v in pairs) / math.fsum(w for w, _ in pairs)
    return result


def lag(values: Floats, rows: int) -> Floats:
    result = np.full(values.shape, np.nan)
    for t in range(rows, values.shape[0]):
        result[t] = values[t - rows]
    return result


def change(values: Floats, rows: int) -> Floats:
    return values - lag(values, rows)


def rank(values: Floats) -> Floats:
    """Pools below, plus half of those equal, over the number of others."""
    result = np.full(values.shape, np.nan)
    for t, row in enumerate(values):
        present = row[~np.isnan(row)]
        for i, value in enumerate(row):
            if math.isnan(value):
                continue
            below, equal = int(np.sum(present < value)), int(np.sum(present == value)) - 1
            result[t, i] = (below + equal / 2) / (present.size - 1) if present.size > 1 else 0.5
    return result


def zscore(values: Floats) -> Floats:
    result = np.full(values.shape, np.nan)
    for t, row in enumerate(values):
        present = [float(value) for value in row if not math.isnan(value)]
        spread = deviation(present) if len(present) > 1 else math.nan
        for i, value in enumerate(row):
            if not math.isnan(value) and len(present) > 1:
                result[t, i] = (value - mean(present)) / spread if spread > 0 else 0.0
    return result
