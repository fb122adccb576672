"""What the features of a model mean, one cell at a time: lists of what a pool's last days showed, and no arrays."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np

from yieldlab.panel import Panel

NAN = math.nan
Column = list[float]


def features(panel: Panel, *, extended: bool) -> dict[str, np.ndarray]:
    """Name -> (T, N), in the order of the set."""
    times, pools = panel.shape
    columns = [of_pool(panel, i, extended=extended) for i in range(pools)]
    made = {name: np.array([column[name] for column in columns], dtype=float).T for name in columns[0]}
    if extended:
        for name, source in (("apy_rank", made["apy_percent"]), ("tvl_rank", made["tvl_usd"])):
            made[name] = np.array([places(list(source[t])) for t in range(times)])
    return made


def of_pool(panel: Panel, i: int, *, extended: bool) -> dict[str, Column]:
    apy = [100.0 * value for value in carried(panel, "apy", i)]
    tvl = [value if value >= 0.0 else NAN for value in carried(panel, "tvl_usd", i)]
    known = [value if value >= 0.0 else NAN for value in carried(panel, "volume_24h_usd", i)]
    volume = [0.0 if math.isnan(value) else value for value in known]
    stored = carried(panel, "volatility_24h", i)
    week, month = windowed(apy, 7, 4, statistics.fmean), windowed(apy, 30, 15, statistics.fmean)
    two_days = windowed(apy, 2, 2, statistics.stdev)
    stamps = [datetime.fromtimestamp(int(t) / 1e6, UTC) for t in panel.times.astype("int64")]
    made = {
        "apy_percent": apy,
        "tvl_usd": [math.log1p(value) for value in tvl],
        "volume_24h_usd": [math.log1p(value) for value in volume],
        "volatility_24h": [two if math.isnan(own) else own for own, two in zip(stored, two_days, strict=True)],
        "apy_ma_7d": week,
        "apy_ma_30d": month,
        "apy_std_7d": windowed(apy, 7, 4, statistics.stdev),
        "tvl_ma_7d": [math.log1p(value) for value in windowed(tvl, 7, 4, statistics.fmean)],
        "tvl_trend_7d": [100.0 * divided(tvl[t] - tvl[t - 7], tvl[t - 7]) if t >= 7 else NAN for t in range(len(tvl))],
        "volume_tvl_ratio": [divided(a, b) for a, b in zip(volume, tvl, strict=True)],
        "apy_momentum": [a - b for a, b in zip(week, month, strict=True)],
        "hour": [float(stamp.hour) for stamp in stamps],
        "day_of_week": [float(stamp.weekday()) for stamp in stamps],
    }
    if not extended:
        return made
    made |= {
        "volume_observed": [0.0 if math.isnan(value) else 1.0 for value in known],
        "apy_base_percent": [100.0 * value for value in carried(panel, "apy_base", i)],
        "apy_reward_percent": [100.0 * value for value in carried(panel, "apy_reward", i)],
        "apy_rank": [],  # needs the other pools
        "tvl_rank": [],
        "utilization_rate": carried(panel, "utilization_rate", i),
    }
    for days in (1, 7, 14):
        made[f"apy_lag_{days}d"] = [apy[t - days] if t >= days else NAN for t in range(len(apy))]
    for name in sorted(panel.series_names):
        rows = panel.series_rows(name)
        made[f"series_{name}"] = [
            math.asinh(value) if age <= panel.max_stale_days else NAN
            for value, age in zip(rows.values.tolist(), rows.age_days.tolist(), strict=True)
        ]
    return {name: column or [NAN] * len(apy) for name, column in made.items()}


def carried(panel: Panel, field: str, i: int) -> Column:
    """Each day's last observation of the field, while it is not older than the panel believes it."""
    if field not in panel.fields:
        return [NAN] * panel.shape[0]
    days = [int(t) / 86_400e6 for t in panel.times.astype("int64")]
    column, value, since = [], NAN, -math.inf
    for day, observed in zip(days, panel.raw(field)[:, i].tolist(), strict=True):
        if not math.isnan(observed):
            value, since = observed, day
        column.append(value if day - since <= panel.max_stale_days else NAN)
    return column


def windowed(values: Column, window: int, least: int, measure: Callable[[Column], float]) -> Column:
    """`measure` of what is present among the last `window` days, of which `least` must be, and today's one of them."""
    column = []
    for t, today in enumerate(values):
        present = [value for value in values[max(0, t - window + 1) : t + 1] if not math.isnan(value)]
        column.append(measure(present) if len(present) >= least and not math.isnan(today) else NAN)
    return column


def divided(above: float, below: float) -> float:
    return above / below if below != 0.0 else NAN


def places(row: Column) -> Column:
    """0 for the lowest of those present, 1 for the highest; equal ones share the middle of their places."""
    present = sorted(value for value in row if not math.isnan(value))
    column = []
    for value in row:
        if math.isnan(value):
            column.append(NAN)
        elif len(present) == 1:
            column.append(0.5)
        else:
            taken = [place for place, other in enumerate(present) if other == value]
            column.append(statistics.fmean(taken) / (len(present) - 1))
    return column
