"""What the measures of forecasts mean, one cell at a time, written for reading: plain loops, no arrays of results."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping

import numpy as np
from scipy import stats

Cell = tuple[int, int]


def cells(observed, carried, predictions: Mapping[str, object], lead: int, pools: list[int]) -> list[Cell]:
    """Where truth, today's APY and every model have a value."""
    times = len(observed)
    return [
        (t, n)
        for t in range(times)
        for n in pools
        if t + lead < times
        and not math.isnan(observed[t + lead][n])
        and not math.isnan(carried[t][n])
        and all(not math.isnan(values[t][n]) for values in predictions.values())
    ]


def changes(observed, lead: int, end: int, pool: int) -> list[float]:
    """Absolute `lead`-row changes of a pool that lie before row `end`."""
    found = [abs(observed[s + lead][pool] - observed[s][pool]) for s in range(max(0, end - lead))]
    return [change for change in found if not math.isnan(change)]


def mean_ranks(values: list[float]) -> list[float]:
    return [sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]


def spearman(xs: list[float], ys: list[float]) -> float | None:
    """Pearson's correlation of mean ranks."""
    if len(xs) < 3 or len(set(xs)) == 1 or len(set(ys)) == 1:
        return None
    return statistics.correlation(mean_ranks(xs), mean_ranks(ys))


def draws_of_days(days: int, block: int, draws: int, seed: int) -> list[list[int]]:
    """Day numbers of each draw, block by block."""
    begins = np.random.default_rng(seed).integers(0, days, size=(draws, math.ceil(days / block)))
    return [[day % days for begin in each for day in range(begin, begin + block)][:days] for each in begins.tolist()]


def measures(
    observed,
    carried,
    predictions: Mapping[str, object],
    name: str,
    common: list[Cell],
    *,
    lead: int,
    first: int,
    block: int,
    draws: int,
    seed: int,
) -> dict[str, float | int | None]:
    """Of one model ("persistence" among them) on these cells; `first` is the row that ends what scales MASE."""

    def said(model: str, cell: Cell) -> float:
        t, n = cell
        return float(carried[t][n] if model == "persistence" else predictions[model][t][n])

    def error(model: str, cell: Cell) -> float:
        return abs(said(model, cell) - came(cell))

    def came(cell: Cell) -> float:
        return float(observed[cell[0] + lead][cell[1]])

    def skill(among: list[Cell], power: int = 1) -> float | None:
        total = math.fsum(error(name, cell) ** power for cell in among)
        reference = math.fsum(error("persistence", cell) ** power for cell in among)
        return None if reference == 0.0 else 1 - (total / reference) ** (1 / power)

    errors = [error(name, cell) for cell in common]
    pools, days = sorted({n for _, n in common}), sorted({t for t, _ in common})

    scaled = []
    for pool in pools:
        past = changes(observed, lead, first, pool)
        if len(past) >= 30 and math.fsum(past) > 0:
            mine = [error(name, cell) for cell in common if cell[1] == pool]
            scaled.append(statistics.fmean(mine) / statistics.fmean(past))

    ratios = []
    for cell in common:
        size = abs(said(name, cell)) + abs(came(cell))
        ratios.append(0.0 if size == 0 else 2 * error(name, cell) / size)

    correlations = []
    for day in days:
        todays = [cell for cell in common if cell[0] == day]
        correlations.append(spearman([said(name, cell) for cell in todays], [came(cell) for cell in todays]))
    correlations = [each for each in correlations if each is not None]

    span = days[-1] - days[0] + 1
    ends: tuple[float | None, float | None] = (None, None)
    if (blocks := span // block) >= 3:
        drawn = []
        for taken in draws_of_days(span, block, draws, seed):
            often = Counter(days[0] + day for day in taken)
            drawn.append(skill([cell for cell in common for _ in range(often[cell[0]])]))
        if all(each is not None for each in drawn):
            wider = stats.t.ppf(0.975, blocks - 1) / stats.norm.ppf(0.975) * math.sqrt(blocks / (blocks - 1))
            middle = skill(common)
            low, high = (float(end) for end in np.quantile(drawn, [0.025, 0.975]))
            ends = middle - wider * max(0.0, middle - low), middle + wider * max(0.0, high - middle)

    return {
        "model": name,
        "cells": len(common),
        "days": len(days),
        "pools": len(pools),
        "rmse": math.sqrt(statistics.fmean(e * e for e in errors)),
        "mae": statistics.fmean(errors),
        "median_ae": statistics.median(errors),
        "mase": statistics.fmean(scaled) if scaled else None,
        "mase_pools": len(scaled),
        "smape": statistics.fmean(ratios),
        "skill": skill(common),
        "skill_low": ends[0],
        "skill_high": ends[1],
        "skill_rmse": skill(common, 2),
        "rank_correlation": statistics.fmean(correlations) if correlations else None,
        "rank_days": len(correlations),
    }
