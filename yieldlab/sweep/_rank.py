"""Which trials are best: by one measure, among those that keep within limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from yieldlab.errors import UsageError, did_you_mean
from yieldlab.metrics import LESS_IS_BETTER, MEASURES

#: What trials are ranked by when nobody says otherwise: what the money grew by, after costs. Not Sharpe, since a smooth
#: yield curve has hardly any deviation to divide by.
RANKED_BY = "annualized_return"


def rank(
    trials: pl.DataFrame | pl.LazyFrame,
    by: str = RANKED_BY,
    *,
    minima: Mapping[str, float] | None = None,
    maxima: Mapping[str, float] | None = None,
    limit: int | None = None,
) -> pl.DataFrame:
    """The trials within the limits, best first: the most of `by`, or the least of a measure of which less is better.

    A trial whose measure is undefined comes last, and passes no limit on it; ties are in the order of `trial_id`.
    Raises UsageError for a measure that does not exist, with the nearest one.
    """
    minima, maxima = minima or {}, maxima or {}
    for name in (by, *minima, *maxima):
        if name not in MEASURES:
            raise UsageError(f"unknown measure {name!r}{did_you_mean(name, MEASURES)}")
    kept = trials.lazy().filter(
        *(pl.col(name) >= value for name, value in minima.items()),
        *(pl.col(name) <= value for name, value in maxima.items()),
    )
    order = kept.sort(by, "trial_id", descending=[by not in LESS_IS_BETTER, False], nulls_last=True)
    return (order if limit is None else order.head(limit)).collect(engine="streaming")


def better(measure: str, one: float | None, other: float | None) -> bool:
    """Whether `one` ranks before `other`."""
    if one is None or other is None:
        return one is not None
    return one < other if measure in LESS_IS_BETTER else one > other


def varied(trials: pl.DataFrame, parameters: Sequence[str]) -> list[str]:
    """Those of the parameters that take more than one value in these trials."""
    return [name for name in parameters if trials[name].n_unique() > 1]
