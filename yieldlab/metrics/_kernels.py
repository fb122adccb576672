"""Measures of one equity path, in two passes over it.

Shapes: `equity` (W,) USD at the end of each bar of the window, `out` (len(PATH_MEASURES),).
The first return is against the capital that was there before the first bar, so W bars have W returns.
A deviation or drawdown of at most `TINY` counts as zero. NaN in `out` = the measure is undefined.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yieldlab._jit import kernel
from yieldlab.units import DAYS_PER_YEAR

Floats = NDArray[np.float64]

#: Deviations and drawdowns up to here are rounding, not risk.
TINY = 1e-12

TOTAL_RETURN = 0
ANNUALIZED_RETURN = 1
VOLATILITY = 2
SHARPE = 3
SORTINO = 4
MAX_DRAWDOWN = 5
CALMAR = 6
SKEWNESS = 7
KURTOSIS = 8
AUTOCORRELATION = 9
FINAL_VALUE = 10
PATH_MEASURES = 11


@kernel
def total_of(values):
    """The sum of `values` (W,), in four strands that run side by side."""
    a = b = c = d = 0.0
    whole = values.size - values.size % 4
    for t in range(0, whole, 4):
        a += values[t]
        b += values[t + 1]
        c += values[t + 2]
        d += values[t + 3]
    for t in range(whole, values.size):
        a += values[t]
    return (a + b) + (c + d)


@kernel
def moments_of(returns, mean, hurdle):
    """Sums over bars of the deviation's powers 2, 3 and 4, of its product with the bar's before, of squared losses."""
    second = third = fourth = lagged = losses = 0.0
    previous = 0.0
    for t in range(returns.size):
        deviation = returns[t] - mean
        square = deviation * deviation
        second += square
        third += square * deviation
        fourth += square * square
        lagged += deviation * previous
        previous = deviation
        loss = min(returns[t] - hurdle, 0.0)
        losses += loss * loss
    return second, third, fourth, lagged, losses


@kernel
def measure_path(equity: Floats, capital: float, days: float, risk_free: float, out: Floats) -> None:
    """Fill `out` with the measures of `equity` over `days`, against an annual `risk_free` rate."""
    count = equity.size
    for k in range(PATH_MEASURES):
        out[k] = np.nan
    total_return = equity[count - 1] / capital - 1.0
    out[TOTAL_RETURN] = total_return
    out[FINAL_VALUE] = equity[count - 1]
    if days >= 1.0:
        annualized = (equity[count - 1] / capital) ** (DAYS_PER_YEAR / days) - 1.0
        if np.isfinite(annualized):  # a day's windfall, compounded for a year, can pass what a float holds
            out[ANNUALIZED_RETURN] = annualized

    returns = np.empty(count, np.float64)
    returns[0] = equity[0] / capital - 1.0
    for t in range(1, count):
        returns[t] = equity[t] / equity[t - 1] - 1.0

    peak = capital
    trough = 0.0
    for t in range(count):
        if equity[t] > peak:
            peak = equity[t]
        elif equity[t] - peak < trough * peak:
            trough = equity[t] / peak - 1.0
    drawdown = trough if trough < -TINY else 0.0
    out[MAX_DRAWDOWN] = drawdown
    if drawdown < 0.0:
        out[CALMAR] = out[ANNUALIZED_RETURN] / -drawdown
    if count < 2:
        return

    mean = total_of(returns) / count
    periods = DAYS_PER_YEAR * (count - 1) / days
    hurdle = risk_free / periods
    second, third, fourth, lagged, losses = moments_of(returns, mean, hurdle)
    deviation = np.sqrt(second / (count - 1))
    if deviation <= TINY:
        deviation = 0.0
    out[VOLATILITY] = deviation * np.sqrt(periods)
    if deviation > 0.0:
        variance = second / count
        out[SKEWNESS] = third / count / variance**1.5
        out[KURTOSIS] = fourth / count / (variance * variance)
        out[AUTOCORRELATION] = lagged / second
    if count < 3:
        return
    if deviation > 0.0:
        out[SHARPE] = (mean - hurdle) / deviation * np.sqrt(periods)
    downside = np.sqrt(losses / count)
    if downside > TINY:
        out[SORTINO] = (mean - hurdle) / downside * np.sqrt(periods)
