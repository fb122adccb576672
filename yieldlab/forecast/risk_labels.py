"""What became of a pool in the days after: low, medium or high risk, by what was observed and no rule on today.

Row t of a pool is labelled from rows t+1 .. t+horizon, and from rows up to t only where its own past is the measure:

- **high** (2): its lowest TVL is below `1 - tvl_fall_high` of today's; or its lowest APY is below `1 - apy_fall_high`
  of the mean APY of the 7 rows that end today, if that is above 0; or it vanishes: no APY was observed in the last
  half of those rows, `ceil(horizon / 2)`, so one that falls silent within the first half and stays so counts, and a
  shorter gap does not; nor does it count where no other pool was observed in them either.
- **medium** (1): its lowest TVL is below `1 - tvl_fall_medium` of today's; or the sample deviation of its APY over the
  next `deviation_days` is above the `deviation_quantile` of all its deviations over as many days known today.
- **low** (0): none of these.

Today's APY and TVL are the carried ones, later ones those observed. A deviation needs half of its days observed, and
the quantile `deviation_days` deviations; where there are fewer, or no TVL, that sign is not there and others decide.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from yieldlab.errors import UsageError
from yieldlab.features import rolling_mean
from yieldlab.panel import Panel

Floats = NDArray[np.float64]

LOW, MEDIUM, HIGH = 0, 1, 2

#: The parameters of `labels` that are shares.
THRESHOLDS = ("tvl_fall_high", "apy_fall_high", "tvl_fall_medium", "deviation_quantile")
CLASSES = ("low", "medium", "high")

#: Rows of the mean that an APY collapses from.
MEAN_ROWS = 7


def labels(
    panel: Panel,
    *,
    horizon: int = 30,
    tvl_fall_high: float = 0.5,
    apy_fall_high: float = 0.8,
    tvl_fall_medium: float = 0.2,
    deviation_quantile: float = 0.8,
    deviation_days: int = 30,
) -> Floats:
    """(T, N) 0 low, 1 medium, 2 high; NaN = no label: the last `horizon` rows, and where a pool has no APY today.

    Raises UsageError for a share outside [0, 1], or days below 1 or above `horizon`; DataError when the panel has no
    `apy` or `tvl_usd`.
    """
    if horizon < 1:
        raise UsageError(f"horizon must be a whole number of days, 1 or more, not {horizon}")
    if not 1 <= deviation_days <= horizon:
        raise UsageError(
            f"deviation_days must be a whole number of days, 1 to {horizon} (the horizon), not {deviation_days}"
        )
    shares = {
        "tvl_fall_high": tvl_fall_high,
        "apy_fall_high": apy_fall_high,
        "tvl_fall_medium": tvl_fall_medium,
        "deviation_quantile": deviation_quantile,
    }
    for name, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise UsageError(f"{name} must lie in [0, 1], not {share}")
    apy, tvl = panel["apy"], panel["tvl_usd"]
    later = max(0, panel.shape[0] - horizon)
    mean = rolling_mean(apy, MEAN_ROWS)[:later]
    tvl_low = _lowest_ahead(panel.raw("tvl_usd"), horizon)
    apy_low = _lowest_ahead(panel.raw("apy"), horizon)
    threshold, ahead = _deviations(panel.raw("apy"), deviation_days, deviation_quantile)
    # A comparison with NaN is false: a sign that cannot be seen is not there.
    high = (
        (tvl_low < (1.0 - tvl_fall_high) * tvl[:later])
        | ((mean > 0.0) & (apy_low < (1.0 - apy_fall_high) * mean))
        | _vanished(panel.listed("apy"), horizon)
    )
    medium = (tvl_low < (1.0 - tvl_fall_medium) * tvl[:later]) | (ahead[:later] > threshold[:later])
    result = np.full(panel.shape, np.nan)
    result[:later] = np.where(high, HIGH, np.where(medium, MEDIUM, LOW))
    result[np.isnan(apy)] = np.nan
    return result


def labels_by(panel: Panel, horizon: int, settings: Mapping[str, object]) -> Floats:
    """`labels` by the thresholds among a model's `settings`, for as long as it looks ahead, deviations over 30 days at
    the most."""
    thresholds = {name: float(str(settings[name])) for name in THRESHOLDS if name in settings}
    return labels(panel, horizon=horizon, deviation_days=min(30, horizon), **thresholds)


def _lowest_ahead(observed: Floats, horizon: int) -> Floats:
    """(T - horizon, N) least of rows t+1 .. t+horizon, NaN = none observed."""
    rows = max(0, observed.shape[0] - horizon)
    lowest = np.full((rows, observed.shape[1]), np.nan)
    for ahead in range(1, horizon + 1) if rows else ():
        np.fmin(lowest, observed[ahead : ahead + rows], out=lowest)
    return lowest


def _vanished(listed: Floats, horizon: int) -> NDArray[np.bool_]:
    """(T - horizon, N) whether nothing of the pool is observed in the last half of rows t+1 .. t+horizon, and something
    of another is."""
    rows = max(0, listed.shape[0] - horizon)
    silent = np.ones((rows, listed.shape[1]), dtype=bool)
    for ahead in range(horizon - math.ceil(horizon / 2) + 1, horizon + 1) if rows else ():
        silent &= np.isnan(listed[ahead : ahead + rows])
    return silent & ~silent.all(axis=1, keepdims=True)  # where nobody is observed, it is the observer who was away


def _deviations(apy: Floats, days: int, quantile: float) -> tuple[Floats, Floats]:
    """(T, N) the quantile of the deviations over `days` rows that end at or before each row, and the deviation over the
    `days` rows after it."""
    times, pools = apy.shape
    threshold, ahead = np.full(apy.shape, np.nan), np.full(apy.shape, np.nan)
    if times < days:
        return threshold, ahead
    deviation = _deviation_from(apy, days)
    ahead[: times - days] = deviation[1:]
    for pool in range(pools):
        known: list[float] = []
        for first, value in enumerate(deviation[:, pool].tolist()):
            if not math.isnan(value):
                insort(known, value)
            if len(known) >= days:
                threshold[first + days - 1, pool] = _quantile(known, quantile)
    return threshold, ahead


def _deviation_from(apy: Floats, days: int) -> Floats:
    """(T - days + 1, N) sample deviation of rows s .. s+days-1; NaN where fewer than half, or than two, are observed.

    Taken from the least of the rows, so that equal yields deviate by exactly nothing.
    """
    rows = apy.shape[0] - days + 1
    pieces = [apy[first : first + rows] for first in range(days)]
    least = pieces[0].copy()
    count, total, squares = (np.zeros(least.shape) for _ in range(3))
    for piece in pieces[1:]:
        np.fmin(least, piece, out=least)
    for piece in pieces:
        present = ~np.isnan(piece)
        count += present
        total += np.where(present, piece - least, 0.0)
    mean = total / np.maximum(count, 1.0)
    for piece in pieces:
        squares += np.where(np.isnan(piece), 0.0, piece - least - mean) ** 2
    enough = count >= max(2, math.ceil(days / 2))
    return np.where(enough, np.sqrt(squares / np.maximum(count - 1.0, 1.0)), np.nan)


def _quantile(ordered: list[float], share: float) -> float:
    """Linear between neighbours of an ascending list."""
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
