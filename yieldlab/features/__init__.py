"""Causal transforms: what the last rows, or today's other pools, say about a value.

Every function takes a (T, N) array, time on axis 0, and gives a fresh (T, N) float64 array in which row t depends on
rows <= t only. NaN means "not observed"; infinities are refused. Rolling features look at the values present among
the last `window` rows (fewer at the start of the panel) and are NaN where today's value is missing.

Results are the same bits whatever comes after a row: sums run in a fixed order and in twice the working precision,
so a window forgets a large value completely once it has left.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from yieldlab.errors import UsageError

__all__ = [
    "change",
    "ewma",
    "lag",
    "rank",
    "rolling_max",
    "rolling_mean",
    "rolling_median",
    "rolling_min",
    "rolling_quantile",
    "rolling_std",
    "rolling_sum",
    "zscore",
]

Floats = NDArray[np.float64]

#: Cells worked on at a time, so that the half dozen arrays of a rolling sum stay in the cache.
_BLOCK_CELLS = 65_536

#: Clears the low 27 bits of a float64: what is left, times a whole number below 2**26, is exact.
_HIGH_BITS = np.int64(-(1 << 27))


def rolling_sum(values: ArrayLike, window: int) -> Floats:
    """(T, N) sum of the values present among the last `window` rows.

    >>> rolling_sum([[1.0], [2.0], [4.0]], 2).ravel().tolist()
    [1.0, 3.0, 6.0]
    """
    return _by_pools(_sum, _checked(values), _whole("window", window, 1))


def rolling_mean(values: ArrayLike, window: int) -> Floats:
    """(T, N) mean of the values present among the last `window` rows; equal values have exactly that mean.

    >>> rolling_mean([[1.0], [2.0], [np.nan], [6.0]], 3).ravel().tolist()
    [1.0, 1.5, nan, 4.0]
    """
    return _by_pools(_mean, _checked(values), _whole("window", window, 1))


def rolling_std(values: ArrayLike, window: int) -> Floats:
    """(T, N) sample deviation (ddof = 1) of the values present among the last `window` rows; NaN for fewer than two.

    >>> rolling_std([[1.0], [3.0], [3.0]], 2).ravel().round(6).tolist()
    [nan, 1.414214, 0.0]
    """
    return _by_pools(_std, _checked(values), _whole("window", window, 1))


def rolling_min(values: ArrayLike, window: int) -> Floats:
    """(T, N) least of the values present among the last `window` rows."""
    return _by_pools(_min, _checked(values), _whole("window", window, 1))


def rolling_max(values: ArrayLike, window: int) -> Floats:
    """(T, N) greatest of the values present among the last `window` rows."""
    return _by_pools(_max, _checked(values), _whole("window", window, 1))


def rolling_median(values: ArrayLike, window: int) -> Floats:
    """(T, N) median of the values present among the last `window` rows; of an even number, the mean of the middle two.

    >>> rolling_median([[1.0], [9.0], [2.0]], 3).ravel().tolist()
    [1.0, 5.0, 2.0]
    """
    return rolling_quantile(values, window, 0.5)


def rolling_quantile(values: ArrayLike, window: int, quantile: float) -> Floats:
    """(T, N) quantile in [0, 1] of the values present among the last `window` rows, linear between neighbours."""
    array, rows = _checked(values), _whole("window", window, 1)
    share = _number("quantile", quantile)
    if not 0.0 <= share <= 1.0:
        raise UsageError(f"quantile must lie in [0, 1], not {quantile}")
    if not array.size:
        return array.copy()
    rows = min(rows, array.shape[0])
    padded = np.concatenate([np.full((rows - 1, array.shape[1]), np.nan), array])
    windows = sliding_window_view(padded, rows, axis=0)
    result = np.full(array.shape, np.nan)
    step = max(1, _BLOCK_CELLS * 16 // max(1, rows * array.shape[1]))
    for start in range(0, array.shape[0], step):
        block = slice(start, start + step)
        ordered = np.sort(windows[block], axis=2)  # NaN sorts to the end
        result[block] = _between(ordered, share)
    result[np.isnan(array)] = np.nan
    return result


def ewma(values: ArrayLike, halflife: float) -> Floats:
    """(T, N) mean of all values so far, each counting half as much per `halflife` rows of age; NaN where missing today.

    >>> ewma([[1.0], [4.0]], 1.0).ravel().tolist()
    [1.0, 3.0]
    """
    array, rows = _checked(values), _number("halflife", halflife)
    if rows <= 0.0:
        raise UsageError(f"halflife must be a number of rows above 0, not {halflife}")
    decay = 0.5 ** (1.0 / rows)
    result = np.full(array.shape, np.nan)
    weight = np.zeros(array.shape[1])
    mean = np.zeros(array.shape[1])
    for t, row in enumerate(array):
        present = ~np.isnan(row)
        weight *= decay
        weight[present] += 1.0
        mean[present] += (row[present] - mean[present]) / weight[present]
        result[t, present] = mean[present]
    return result


def lag(values: ArrayLike, rows: int) -> Floats:
    """(T, N) the value `rows` rows ago; NaN where the panel does not reach back so far."""
    array, shift = _checked(values), _whole("rows", rows, 0)
    result = np.full(array.shape, np.nan)
    if shift < array.shape[0]:
        result[shift:] = array[: array.shape[0] - shift]
    return result


def change(values: ArrayLike, rows: int) -> Floats:
    """(T, N) today's value less the one `rows` rows ago; NaN where either is missing.

    >>> change([[1.0], [4.0]], 1).ravel().tolist()
    [nan, 3.0]
    """
    return _checked(values) - lag(values, _whole("rows", rows, 1))


def rank(values: ArrayLike) -> Floats:
    """(T, N) place among the pools present in the row: 0 the lowest, 1 the highest, ties share; 0.5 for a lone pool.

    >>> rank([[0.02, 0.08, np.nan, 0.05]]).tolist()
    [[0.0, 1.0, nan, 0.5]]
    """
    array = _checked(values)
    if not array.size:
        return array.copy()
    order = np.argsort(array, axis=1, kind="stable")
    ordered = np.take_along_axis(array, order, axis=1)
    count = np.count_nonzero(~np.isnan(array), axis=1)[:, None]
    place = np.arange(array.shape[1])[None, :]
    new = np.ones(array.shape, dtype=bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    last = np.ones(array.shape, dtype=bool)
    last[:, :-1] = new[:, 1:]
    low = np.maximum.accumulate(np.where(new, place, 0), axis=1)
    high = np.minimum.accumulate(np.where(last, place, array.shape[1])[:, ::-1], axis=1)[:, ::-1]
    shared = np.where(count > 1, (low + high) / (2.0 * np.maximum(count - 1, 1)), 0.5)
    result = np.empty(array.shape)
    np.put_along_axis(result, order, np.where(np.isnan(ordered), np.nan, shared), axis=1)
    return result


def zscore(values: ArrayLike) -> Floats:
    """(T, N) distance from the mean of the pools present in the row, in sample deviations (ddof = 1).

    0 where all present are equal, NaN where fewer than two are.

    >>> zscore([[1.0, 2.0, 3.0]]).tolist()
    [[-1.0, 0.0, 1.0]]
    """
    array = _checked(values)
    across = np.ascontiguousarray(array.T)
    present = ~np.isnan(across)
    count = np.count_nonzero(present, axis=0).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = _divided(*_total(np.where(present, across, 0.0)), count)
        distance = np.where(present, across - mean, 0.0)
        high, low = _total(distance * distance)
        spread = np.sqrt((high + low) / (count - 1.0))
        scores = np.where(spread > 0.0, distance / spread, 0.0)
    scores[:, count < 2] = np.nan
    scores[~present] = np.nan
    return np.ascontiguousarray(scores.T)


def _checked(values: ArrayLike) -> Floats:
    """`values` as contiguous float64 (T, N), or a sentence saying why not."""
    try:
        array = np.ascontiguousarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"a feature takes a (times, pools) array of numbers, not {type(values).__name__}") from error
    if array.ndim != 2 or np.ndim(values) != 2:
        raise UsageError(f"a feature takes a (times, pools) array, not one of shape {np.shape(values)}")
    infinite = np.isinf(array)
    if infinite.any():
        t, i = (int(place) for place in np.argwhere(infinite)[0])
        raise UsageError(
            "a feature takes finite numbers or NaN, not infinite ones: "
            f"{np.count_nonzero(infinite)} in all, the first in row {t}, column {i}"
        )
    return array


def _whole(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise UsageError(f"{name} must be a whole number of rows, {least} or more, not {value!r}")
    return int(value)


def _number(name: str, value: object) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.integer, np.floating))
        or not math.isfinite(value)
    ):
        raise UsageError(f"{name} must be a finite number, not {value!r}")
    return float(value)


def _by_pools(transform: Callable[[Floats, int], Floats], array: Floats, window: int) -> Floats:
    """`transform` on a few columns at a time; NaN where today's value is missing."""
    result = np.empty(array.shape)
    step = max(1, _BLOCK_CELLS // max(1, array.shape[0]))
    with np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, array.shape[1], step):
            block = np.ascontiguousarray(array[:, start : start + step])
            result[:, start : start + step] = transform(block, window)
    result[np.isnan(array)] = np.nan
    return result


def _sum(block: Floats, window: int) -> Floats:
    high, low = _window_total(np.where(np.isnan(block), 0.0, block), window)
    return high + low


def _mean(block: Floats, window: int) -> Floats:
    present = ~np.isnan(block)
    high, low = _window_total(np.where(present, block, 0.0), window)
    return _divided(high, low, _spread(present.astype(np.float64), window, np.add))


def _std(block: Floats, window: int) -> Floats:
    """In two passes: deviations are taken from each window's own mean, so no large numbers cancel."""
    present = (~np.isnan(block)).astype(np.float64)
    filled = np.where(np.isnan(block), 0.0, block)
    count = _spread(present, window, np.add)
    mean = _divided(*_window_total(filled, window), count)
    squares = np.zeros(block.shape)
    for offset in range(min(window, block.shape[0])):
        rows = block.shape[0] - offset
        deviation = filled[:rows] - mean[offset:]
        deviation *= deviation
        deviation *= present[:rows]
        squares[offset:] += deviation
    return np.where(count >= 2.0, np.sqrt(squares / (count - 1.0)), np.nan)


def _min(block: Floats, window: int) -> Floats:
    return _spread(np.where(np.isnan(block), np.inf, block), window, np.minimum)


def _max(block: Floats, window: int) -> Floats:
    return _spread(np.where(np.isnan(block), -np.inf, block), window, np.maximum)


def _spread(block: Floats, window: int, join: np.ufunc) -> Floats:
    """`join` over the last `window` rows, by doubling: log2(window) passes, in an order that T does not change."""
    rows = block.shape[0]
    piece, width = block, 1
    result, covered = block, 0
    while True:
        if window & width:
            longer = piece.copy() if not covered else result.copy()
            if 0 < covered < rows:
                join(result[covered:], piece[: rows - covered], out=longer[covered:])
            result, covered = longer, covered + width
        if 2 * width > window:
            return result
        longer = piece.copy()
        join(piece[width:], piece[:-width], out=longer[width:])
        piece, width = longer, 2 * width


def _window_total(filled: Floats, window: int) -> tuple[Floats, Floats]:
    """Sum over the last `window` rows as (high, low) with high + low good to about 32 digits; by doubling."""
    piece, width = (filled, np.zeros(filled.shape)), 1
    result, covered = piece, 0
    while True:
        if window & width:
            result = _joined(result, piece, covered) if covered else piece
            covered += width
        if 2 * width > window:
            return result
        piece, width = _joined(piece, piece, width), 2 * width


def _joined(near: tuple[Floats, Floats], far: tuple[Floats, Floats], shift: int) -> tuple[Floats, Floats]:
    """`near` plus `far` of `shift` rows before; rows before the first count nothing."""
    high, low = near[0].copy(), near[1].copy()
    rows = high.shape[0] - shift
    if rows > 0:
        high[shift:], low[shift:] = _two_sum(near[0][shift:], near[1][shift:], far[0][:rows], far[1][:rows])
    return high, low


def _two_sum(a: Floats, a_low: Floats, b: Floats, b_low: Floats) -> tuple[Floats, Floats]:
    """Knuth's error-free sum: high is the rounded a + b, low what rounding lost (plus the low parts)."""
    high = a + b
    virtual = high - a
    lost = (a - (high - virtual)) + (b - virtual)
    return high, lost + (a_low + b_low)


def _total(filled: Floats) -> tuple[Floats, Floats]:
    """Sum over axis 0 as (high, low), halving the rows until one is left."""
    high, low = filled, np.zeros(filled.shape)
    if not filled.shape[0]:
        return np.zeros(filled.shape[1]), np.zeros(filled.shape[1])
    while high.shape[0] > 1:
        half = high.shape[0] // 2
        odd = slice(2 * half, high.shape[0])
        joined = _two_sum(high[:half], low[:half], high[half : 2 * half], low[half : 2 * half])
        high, low = np.concatenate([joined[0], high[odd]]), np.concatenate([joined[1], low[odd]])
    return high[0], low[0]


def _divided(high: Floats, low: Floats, count: Floats) -> Floats:
    """(high + low) / count, rounded once: what n equal values give is that value, not a neighbour of it."""
    quotient = np.asarray((high + low) / count)
    top = (quotient.view(np.int64) & _HIGH_BITS).view(np.float64)
    remainder = ((high - top * count) - (quotient - top) * count) + low
    corrected: Floats = quotient + remainder / count
    return corrected


def _between(ordered: Floats, share: float) -> Floats:
    """Quantile of each last-axis row of ascending values followed by NaN."""
    count = np.count_nonzero(~np.isnan(ordered), axis=-1)
    position = share * np.maximum(count - 1, 0)
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    low: Floats = np.take_along_axis(ordered, below[..., None], axis=-1)[..., 0]
    high: Floats = np.take_along_axis(ordered, above[..., None], axis=-1)[..., 0]
    between: Floats = low + (high - low) * (position - below)
    return between
