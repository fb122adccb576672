"""Rates, growth and time: the only place that knows how long a year is and what a percent is.

APR is a simple annual rate, APY an effective one; both are fractions here (0.05 = 5 %).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

DAYS_PER_YEAR = 365.0
MICROSECONDS_PER_DAY = 86_400_000_000
PERCENT = 100.0
BPS = 10_000.0

Number = TypeVar("Number", float, NDArray[np.float64])


def growth_factor(apy: Number, days: Number | float) -> Number:
    """Growth over `days` at an effective annual yield: `(1 + apy) ** (days / 365)`.

    >>> round(growth_factor(0.05, 1.0) - 1.0, 16)
    0.0001336806171135
    """
    growth: Number = (1.0 + apy) ** (days / DAYS_PER_YEAR)
    return growth


def apr_to_apy(apr: Number, periods: float = DAYS_PER_YEAR) -> Number:
    """Effective yield of a simple rate compounded `periods` times a year: `(1 + apr/n)**n - 1`.

    >>> round(apr_to_apy(0.10) * 100, 8)
    10.51557816
    """
    apy: Number = (1.0 + apr / periods) ** periods - 1.0
    return apy


def apy_to_apr(apy: Number, periods: float = DAYS_PER_YEAR) -> Number:
    """The inverse of `apr_to_apy`.

    >>> round(apy_to_apr(0.10) * 100, 8)
    9.53226248
    """
    apr: Number = periods * ((1.0 + apy) ** (1.0 / periods) - 1.0)
    return apr


def from_percent(percent: Number) -> Number:
    """5.0 -> 0.05; NaN stays NaN."""
    return percent / PERCENT


def to_percent(fraction: Number) -> Number:
    """0.05 -> 5.0; NaN stays NaN."""
    return fraction * PERCENT


def from_bps(bps: float) -> float:
    """10.0 -> 0.001."""
    return bps / BPS
