"""The crossing from long rows to a daily panel, once more: plain loops over plain rows, written for reading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

Row = dict[str, object]


def panel(
    rows: Sequence[Row], column: str, *, end: date | None, as_of: datetime, max_stale_days: int
) -> tuple[list[date], list[str], list[list[float]], list[list[float]], list[list[float]]]:
    """Days, pools, and for one column [day][pool]: as observed, carried, and age in days; NaN = nothing."""
    known = [row for row in rows if row["observed_at"] <= as_of]
    known = [row for row in known if is_finished(row["valid_at"].date(), as_of)]
    if end is not None:
        known = [row for row in known if row["valid_at"].date() <= end]
    latest: dict[tuple[str, datetime], Row] = {}
    for row in known:
        key = (row["pool_id"], row["valid_at"])
        other = latest.get(key)
        if other is None or clocks(row) >= clocks(other):
            latest[key] = row
    if not latest:
        return [], [], [], [], []
    pools = sorted({pool for pool, _ in latest})
    first = min(instant.date() for _, instant in latest)
    last = max(instant.date() for _, instant in latest)
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    observed, carried, ages = [], [], []
    for day in days:
        observed.append([of_day(latest, pool, day, column) for pool in pools])
        carried.append([])
        ages.append([])
        for i in range(len(pools)):
            value, age = math.nan, math.nan
            for back in range(len(observed)):
                seen = observed[-1 - back][i]
                if not math.isnan(seen):
                    value, age = (seen if back <= max_stale_days else math.nan), float(back)
                    break
            carried[-1].append(value)
            ages[-1].append(age)
    return days, pools, observed, carried, ages


def clocks(row: Row) -> tuple[datetime, datetime]:
    return row["observed_at"], row["ingested_at"]


def is_finished(day: date, as_of: datetime) -> bool:
    """Whether the end of the UTC day is not after `as_of`."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1) <= as_of


def of_day(latest: dict[tuple[str, datetime], Row], pool: str, day: date, column: str) -> float:
    """The last observation of a pool's day that is neither null nor NaN."""
    value, when = math.nan, None
    for (other, instant), row in latest.items():
        seen = row[column]
        if other != pool or instant.date() != day or seen is None or math.isnan(seen):
            continue
        if when is None or instant > when:
            value, when = seen, instant
    return value
