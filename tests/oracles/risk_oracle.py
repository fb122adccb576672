"""What the risk labels mean, one pool and day at a time, written for reading."""

from __future__ import annotations

import math
import statistics

import numpy as np
from numpy.typing import NDArray

from yieldlab.panel import Panel

Floats = NDArray[np.float64]


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
    times, pools = panel.shape
    result = np.full((times, pools), np.nan)
    for n in range(pools):
        apy = panel.raw("apy")[:, n].tolist()
        tvl = panel.raw("tvl_usd")[:, n].tolist()
        apy_carried = panel["apy"][:, n].tolist()
        tvl_carried = panel["tvl_usd"][:, n].tolist()
        past = [deviation(apy, end - deviation_days + 1, deviation_days) for end in range(times)]
        for t in range(times):
            if t + horizon > times - 1 or math.isnan(apy_carried[t]):
                continue
            later_apy = seen(apy[t + 1 : t + horizon + 1])
            later_tvl = seen(tvl[t + 1 : t + horizon + 1])
            lowest_tvl = min(later_tvl, default=math.nan)
            mean = statistics.fmean(seen(apy_carried[max(0, t - 6) : t + 1]))
            last_half = apy[t + horizon + 1 - math.ceil(horizon / 2) : t + horizon + 1]
            rest = panel.raw("apy")[t + horizon + 1 - math.ceil(horizon / 2) : t + horizon + 1].ravel().tolist()
            known = seen(past[: t + 1])
            threshold = float(np.quantile(known, deviation_quantile)) if len(known) >= deviation_days else math.nan
            if (
                lowest_tvl < (1.0 - tvl_fall_high) * tvl_carried[t]
                or (mean > 0.0 and any(value < (1.0 - apy_fall_high) * mean for value in later_apy))
                or (not seen(last_half) and seen(rest))
            ):
                result[t, n] = 2.0
            elif (
                lowest_tvl < (1.0 - tvl_fall_medium) * tvl_carried[t]
                or deviation(apy, t + 1, deviation_days) > threshold
            ):
                result[t, n] = 1.0
            else:
                result[t, n] = 0.0
    return result


def seen(values: list[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def deviation(apy: list[float], first: int, days: int) -> float:
    """Of `days` rows from row `first` on, NaN where the panel does not have them or less than half were observed."""
    if first < 0 or first + days > len(apy):
        return math.nan
    present = seen(apy[first : first + days])
    return statistics.stdev(present) if len(present) >= max(2, math.ceil(days / 2)) else math.nan
