"""Rates and growth: examples that can be worked out by hand, and that there and back is the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yieldlab.units import apr_to_apy, apy_to_apr, from_bps, from_percent, growth_factor, to_percent


def test_a_year_grows_by_the_yield_and_no_time_by_nothing() -> None:
    assert growth_factor(0.07, 365.0) == pytest.approx(1.07, rel=1e-15)
    assert growth_factor(0.07, 0.0) == 1.0
    assert growth_factor(-0.5, 365.0) == pytest.approx(0.5, rel=1e-15)
    np.testing.assert_array_equal(growth_factor(np.array([0.0, np.nan]), 1.0), [1.0, np.nan])


@settings(deadline=None)
@given(apy=st.floats(-0.99, 50.0), days=st.floats(0.0, 400.0), more=st.floats(0.0, 400.0))
def test_growth_over_two_spans_is_growth_over_both(apy: float, days: float, more: float) -> None:
    together = growth_factor(apy, days) * growth_factor(apy, more)
    assert together == pytest.approx(growth_factor(apy, days + more), rel=1e-12)


def test_compounding_twice_a_year_by_hand() -> None:
    assert apr_to_apy(0.10, periods=2) == pytest.approx(1.05**2 - 1.0, rel=1e-15)
    assert apy_to_apr(0.1025, periods=2) == pytest.approx(0.10, rel=1e-12)


@settings(deadline=None)
@given(apr=st.floats(-0.9, 20.0), periods=st.sampled_from([1.0, 12.0, 365.0]))
def test_a_simple_rate_there_and_back(apr: float, periods: float) -> None:
    assert apy_to_apr(apr_to_apy(apr, periods), periods) == pytest.approx(apr, rel=1e-9, abs=1e-9)
    assert apr_to_apy(apr, periods) >= apr - 1e-12


def test_percent_and_basis_points() -> None:
    assert (from_percent(5.0), to_percent(0.05), from_bps(10.0)) == (0.05, 5.0, 0.001)
    assert math.isnan(from_percent(math.nan))
