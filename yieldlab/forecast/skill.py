"""How far off were forecasts on given cells, and by how much less than the first of them?

The measures are defined in `forecast.evaluate`, whose tables they fill.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
Flags = NDArray[np.bool_]

#: The measures of one model on one set of cells, by name.
Measures = dict[str, str | int | float | None]

#: Pools that a day needs, so that their order means something.
_MIN_POOLS = 3

#: The ends of a 95 % interval.
_ENDS = (0.025, 0.975)

#: Blocks that have to fit in the days, so that an interval means something.
_MIN_BLOCKS = 3


class Resampling(NamedTuple):
    """A circular block bootstrap of days: `draws` samples of whole blocks of `block_days` days."""

    block_days: int
    draws: int
    seed: int

    def drawn(self, daily: Floats) -> Floats:
        """(M, draws) sums over the days of each draw, from (M, D): blocks begin on any day, what lies beyond the last
        is the first again, and the last block is cut, so that each draw has D days and each day is as likely."""
        days = daily.shape[1]
        blocks = -(-days // self.block_days)
        begins = np.random.default_rng(self.seed).integers(0, days, size=(self.draws, blocks))
        cut = days - (blocks - 1) * self.block_days
        whole = _sums(daily, self.block_days)[:, begins[:, :-1]].sum(axis=2)
        return np.asarray(whole + _sums(daily, cut)[:, begins[:, -1]])

    def intervals(self, daily: Floats) -> Floats:
        """(M, 2) the ends of the skill of each model against the first, from sums of errors a day (M, D); every model
        has the same draws. NaN where three blocks do not fit, or the first has no error in some draw."""
        models, days = daily.shape
        blocks = days // self.block_days
        if blocks < _MIN_BLOCKS:
            return np.full((models, 2), np.nan)
        drawn = self.drawn(daily)
        if not bool(np.all(drawn[0] > 0.0)):
            return np.full((models, 2), np.nan)
        skill = 1.0 - daily.sum(axis=1) / daily[0].sum()
        low, high = np.quantile(1.0 - drawn / drawn[0], _ENDS, axis=1)
        wider = widening(blocks)
        below, above = wider * np.maximum(skill - low, 0.0), wider * np.maximum(high - skill, 0.0)
        return np.stack([skill - below, skill + above], axis=1)


def measured(
    models: Mapping[str, Floats], truth: Floats, common: Flags, *, scale: Floats, resampling: Resampling
) -> list[Measures]:
    """The measures of each model's (T, N) forecasts on the cells of `common`, of which there is at least one; skill is
    against the first model, MASE in terms of `scale` (N,), NaN = left out of it."""
    row, pool = np.nonzero(common)
    day = row - row[0]
    came = truth[common]
    counted: Measures = {
        "cells": row.size,
        "days": int(np.count_nonzero(np.bincount(day))),
        "pools": np.unique(pool).size,
        "mase_pools": int(np.count_nonzero(np.isfinite(scale[np.unique(pool)]))),
    }
    came_ranks = _ranks(came, day)
    rows: list[Measures] = []
    daily: list[Floats] = []
    mae: list[float] = []
    rmse: list[float] = []
    for name, forecasts in models.items():
        said = forecasts[common]
        errors = np.abs(said - came)
        daily.append(np.bincount(day, weights=errors).astype(np.float64))
        mae.append(float(np.mean(errors)))
        rmse.append(float(np.sqrt(np.mean(errors**2))))
        correlation, rank_days = _rank_correlation(_ranks(said, day), came_ranks, day)
        rows.append(
            {
                "model": name,
                **counted,
                "rmse": rmse[-1],
                "mae": mae[-1],
                "median_ae": float(np.median(errors)),
                "mase": _scaled(errors, pool, scale),
                "smape": _symmetric(errors, said, came),
                "skill": _skill(mae[-1], mae[0]),
                "skill_rmse": _skill(rmse[-1], rmse[0]),
                "rank_correlation": correlation,
                "rank_days": rank_days,
            }
        )
    for each, (low, high) in zip(rows, resampling.intervals(np.array(daily)), strict=True):
        each |= {"skill_low": float(low), "skill_high": float(high)}
    return rows


def widening(blocks: int) -> float:
    """What an interval that rests on so many blocks is stretched by: from few, a deviation comes out too small, and is
    known too badly for a normal distribution. Student's takes its place, with one degree of freedom less than blocks.
    """
    freedom = blocks - 1
    low, high = 0.0, math.pi / 2.0
    while high - low > 1e-15:
        middle = (low + high) / 2.0
        low, high = (low, middle) if _within(middle, freedom) > _ENDS[1] - _ENDS[0] else (middle, high)
    return math.sqrt(freedom) * math.tan(low) / NormalDist().inv_cdf(_ENDS[1]) * math.sqrt(blocks / freedom)


def _within(angle: float, freedom: int) -> float:
    """The chance that Student's |t| is at most sqrt(freedom) tan(angle): Abramowitz & Stegun 1964, 26.7.3 and 4."""
    cosine, term, total = math.cos(angle), 1.0, 0.0
    odd = freedom % 2
    for power in range(odd, freedom - 1, 2):
        total += term * cosine**power
        term *= (power + 1) / (power + 2)
    total *= math.sin(angle)
    return (angle + total) * 2.0 / math.pi if odd else total


def _sums(daily: Floats, days: int) -> Floats:
    """(M, D) sums over as many `days`, by where they begin; the first follow the last."""
    around = np.concatenate([daily, daily[:, : days - 1]], axis=1)
    return np.asarray(sliding_window_view(around, days, axis=1).sum(axis=2))


def _skill(error: float, reference: float) -> float:
    return 1.0 - error / reference if reference > 0.0 else np.nan


def _scaled(errors: Floats, pool: Whole, scale: Floats) -> float:
    """MASE: the mean over pools of a pool's mean error / scale."""
    cells = np.bincount(pool, minlength=scale.size)
    inside = np.isfinite(scale) & (cells > 0)
    means = np.bincount(pool, weights=errors, minlength=scale.size)[inside] / cells[inside]
    return float(np.mean(means / scale[inside])) if inside.any() else np.nan


def _symmetric(errors: Floats, said: Floats, came: Floats) -> float:
    size = np.abs(said) + np.abs(came)
    return float(np.mean(np.divide(2.0 * errors, size, out=np.zeros_like(errors), where=size > 0.0)))


def _ranks(values: Floats, day: Whole) -> Floats:
    """(C,) rank of each cell among its day's, ties sharing their mean rank, less the day's mean rank. Halves of whole
    numbers: sums of their products are exact, and a day on which all are equal has nothing but zeros."""
    by_value = np.argsort(values)
    order = by_value[np.argsort(day[by_value].astype(np.min_scalar_type(day[-1])), kind="stable")]  # a third of lexsort
    sorted_values, sorted_days = values[order], day[order]
    begins_day = np.flatnonzero(np.r_[True, np.diff(sorted_days) > 0])
    begins_tie = np.flatnonzero(np.r_[True, (np.diff(sorted_days) > 0) | (sorted_values[1:] != sorted_values[:-1])])
    ranks = np.empty(values.size)
    ranks[order] = _middles(begins_tie, values.size) - _middles(begins_day, values.size)
    return ranks


def _middles(begins: Whole, size: int) -> Floats:
    """(size,) the middle place of the run that each place is in."""
    lengths = np.diff(np.r_[begins, size])
    return np.repeat(begins + (lengths - 1) / 2.0, lengths)


def _rank_correlation(said: Floats, came: Floats, day: Whole) -> tuple[float, int]:
    """The mean over days of the correlation of centred ranks, and over how many days."""
    squares = np.bincount(day, weights=said**2) * np.bincount(day, weights=came**2)
    usable = (squares > 0.0) & (np.bincount(day) >= _MIN_POOLS)
    if not usable.any():
        return np.nan, 0
    products = np.bincount(day, weights=said * came)
    return float(np.mean(products[usable] / np.sqrt(squares[usable]))), int(np.count_nonzero(usable))
