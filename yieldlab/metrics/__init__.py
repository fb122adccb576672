"""What an equity path amounts to: returns, risk and the shape of the returns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yieldlab.errors import UsageError

Floats = NDArray[np.float64]

#: Measures of an equity path, in the order of the columns of `measure`.
PATH_MEASURES = (
    "total_return",
    "annualized_return",
    "volatility",
    "sharpe",
    "sortino",
    "max_drawdown",
    "calmar",
    "skewness",
    "kurtosis",
    "autocorrelation",
    "final_value",
)

#: Every measure of a trial, in the order in which results show them.
MEASURES = (
    *PATH_MEASURES[:-1],
    "turnover",
    "rebalances",
    "trades",
    "skipped",
    "unaffordable",
    "delistings",
    "cost_paid",
    "written_off",
    "stale_share",
    "final_value",
)

#: Measures of which less is better. A drawdown is at most 0, so that more of it is better.
LESS_IS_BETTER = frozenset(
    {
        "volatility",
        "turnover",
        "trades",
        "rebalances",
        "skipped",
        "unaffordable",
        "delistings",
        "cost_paid",
        "written_off",
        "stale_share",
    }
)


def measure(equity: Floats, *, capital: float, days: float, risk_free: float = 0.0) -> dict[str, Floats]:
    """Each of `PATH_MEASURES` as (R,) for `equity` (R, W), USD at the end of each bar over `days`.

    NaN = undefined. Rates are fractions a year; `risk_free` is a simple annual rate. Formulas: docs/accounting.md.
    Raises UsageError unless the equity and the capital are finite and positive, W >= 1, `days` is at least 0, and more
    than 0 when W > 1.
    """
    from yieldlab.metrics._kernels import measure_path

    paths = np.array(np.atleast_2d(equity), dtype=np.float64)
    if paths.ndim != 2 or paths.shape[1] < 1 or not bool(np.all(np.isfinite(paths) & (paths > 0.0))):
        raise UsageError("measures need equity paths of one bar or more, every value finite and positive")
    if not (np.isfinite(capital) and capital > 0.0):
        raise UsageError(f"capital must be a positive number of USD, not {capital}")
    if not np.isfinite(days) or days < 0.0 or (days == 0.0 and paths.shape[1] > 1):
        raise UsageError(f"{paths.shape[1]} bars cannot span {days} days")
    capital, days, risk_free = float(capital), float(days), float(risk_free)  # one kind each, one compilation
    out = np.empty((paths.shape[0], len(PATH_MEASURES)))
    for r in range(paths.shape[0]):
        measure_path(paths[r], capital, days, risk_free, out[r])
    return dict(zip(PATH_MEASURES, out.T, strict=True))
