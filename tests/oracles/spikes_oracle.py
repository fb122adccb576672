"""What cleaning does to spikes, once more: one pool and one day at a time, with plain lists."""

from __future__ import annotations

import math
import statistics

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def bound(known: list[float]) -> float:
    """The highest yield believed of the last observation in `known`, a pool's observations up to it."""
    if len(known) < 8:
        return math.inf
    medians = [statistics.median(known[max(0, k - 30) : k + 1]) for k in range(len(known))]
    distances = [abs(x - median) for x, median in zip(known, medians, strict=True)]
    deviation = statistics.median(distances[-31:])
    return medians[-1] + max(12 * 1.4826 * deviation, 0.01)


def clean(apy: Floats, how: str) -> tuple[Floats, NDArray[np.bool_]]:
    values, changed = apy.copy(), np.zeros(apy.shape, dtype=bool)
    for i in range(apy.shape[1]):
        known: list[float] = []
        for t in range(apy.shape[0]):
            if math.isnan(apy[t, i]):
                continue
            known.append(float(apy[t, i]))
            highest = bound(known)
            if known[-1] > highest + 1e-12:
                changed[t, i] = True
                values[t, i] = math.nan if how == "mask" else highest
    return values, changed
