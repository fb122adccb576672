"""Windows, scaling and baselines of forecasts in plain loops, one pool and one day at a time; nothing is shared."""

from __future__ import annotations

import math

import numpy as np


def samples(carried, observed, lookback, horizon, begin, end):
    """(labelled, any) lists of (t, n): today's APY and two thirds of the window's are there, labels are observed."""
    times, pools = carried.shape
    with_label, usable = [], []
    for t in range(max(0, begin), min(end, times)):
        for n in range(pools):
            first = t - lookback + 1
            if first < 0 or math.isnan(carried[t, n]):
                continue
            there = sum(not math.isnan(carried[s, n]) for s in range(first, t + 1))
            if 3 * there < 2 * lookback:
                continue
            usable.append((t, n))
            if t + horizon < times and not math.isnan(observed[t + horizon, n]):
                with_label.append((t, n))
    return with_label, usable


def ewma(carried, halflife):
    """Weights 0.5 ** (age / halflife) over what was there so far; NaN where today is missing."""
    out = np.full(carried.shape, np.nan)
    for n in range(carried.shape[1]):
        for t in range(carried.shape[0]):
            if math.isnan(carried[t, n]):
                continue
            weights = {s: 0.5 ** ((t - s) / halflife) for s in range(t + 1) if not math.isnan(carried[s, n])}
            out[t, n] = sum(w * carried[s, n] for s, w in weights.items()) / sum(weights.values())
    return out


def autoregression(carried, observed, chosen, horizon, lags, ridge, least):
    """(T, N) forecasts by least squares on rows that the ridge adds: `sqrt(ridge * m)` per slope on centred inputs."""
    labels = [abs(100.0 * observed[t + horizon, n]) for t, n in chosen]
    size = max(float(np.median(labels)), 1e-6)
    out = np.full(carried.shape, np.nan)
    for n in range(carried.shape[1]):
        design, wanted = [], []
        for t, pool in chosen:
            if pool != n:
                continue
            row = [carried[t - k, n] for k in range(lags) if t - k >= 0]
            if len(row) == lags and not any(math.isnan(each) for each in row):
                design.append([math.asinh(100.0 * each / size) for each in row])
                wanted.append(math.asinh(100.0 * observed[t + horizon, n] / size))
        if len(design) < least * (lags + 1):
            continue
        x, y = np.array(design), np.array(wanted)
        centre, level = x.mean(axis=0), y.mean()
        above = np.vstack([x - centre, math.sqrt(ridge * len(y)) * np.eye(lags)])
        slopes = np.linalg.lstsq(above, np.concatenate([y - level, np.zeros(lags)]), rcond=None)[0]
        for t in range(lags - 1, carried.shape[0]):
            moved = [math.asinh(100.0 * carried[t - k, n] / size) for k in range(lags)]
            out[t, n] = math.sinh(level + float((np.array(moved) - centre) @ slopes)) * size / 100.0
    return out
