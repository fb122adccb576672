"""How do long rows and instants fall on the rows of a panel, and how long is what they say believed?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab import schema
from yieldlab.errors import DataError, UsageError, did_you_mean
from yieldlab.units import MICROSECONDS_PER_DAY

Floats = NDArray[np.float64]
Times = NDArray[np.datetime64]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False)
class SeriesRows:
    """A series beside the pools on the rows of a panel: `values` (T,), the last one known at each row, NaN = none yet,
    and `age_days` (T,), for how many days it has been the last one."""

    values: Floats
    age_days: Floats

    def head(self, rows: int) -> SeriesRows:
        """The first `rows` rows."""
        return SeriesRows(self.values[:rows], self.age_days[:rows])


def series_rows(series: pl.DataFrame, days: NDArray[np.int64]) -> dict[str, SeriesRows]:
    """The series of a long frame (name, valid_at, value) on the ends of `days` since 1970."""
    rows: dict[str, SeriesRows] = {}
    known = series.select("name", pl.col("valid_at").dt.timestamp("us"), "value").drop_nulls().drop_nans("value")
    for key, part in known.sort("valid_at", maintain_order=True).group_by("name", maintain_order=True):
        instants = part["valid_at"].to_numpy()
        last = np.searchsorted(instants, (days + 1) * MICROSECONDS_PER_DAY, side="left") - 1
        values = np.where(last < 0, np.nan, part["value"].to_numpy()[np.maximum(last, 0)])
        age = np.where(last < 0, np.nan, days - instants[np.maximum(last, 0)] // MICROSECONDS_PER_DAY)
        rows[str(key[0])] = SeriesRows(frozen(values), frozen(age))
    return rows


def stored_field(name: str) -> schema.Field:
    try:
        return schema.FIELDS[name]
    except KeyError:
        raise UsageError(f"unknown panel field {name!r}{did_you_mean(name, schema.FIELDS)}") from None


def described(ids: pl.Series, assets: pl.DataFrame | None) -> pl.DataFrame:
    pools = pl.DataFrame({"pool_id": ids})
    if assets is None:
        return pools.with_columns(pl.lit(None, pl.String).alias(name) for name in schema.DESCRIBED)
    known = assets.select("pool_id", *schema.DESCRIBED).unique("pool_id", keep="last", maintain_order=True)
    return pools.join(known, on="pool_id", how="left", maintain_order="left")


def utc(instant: datetime) -> datetime:
    """The instant in UTC; one without a zone is meant in UTC."""
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def checked(frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """These columns of a long table. Raises DataError when one is missing, or a row has no pool or no instant."""
    for name in columns:
        if name not in frame.columns:
            raise DataError(f"the long table has no column {name!r}; it has: {', '.join(frame.columns)}")
    for name in ("pool_id", "valid_at"):
        if missing := frame[name].null_count():
            raise DataError(f"{missing} rows of the long table have no {name}")
    if not isinstance(frame["valid_at"].dtype, pl.Datetime):
        raise DataError(f"the column 'valid_at' of the long table holds {frame['valid_at'].dtype}, not instants")
    frame = frame.select(pl.col("pool_id").cast(pl.String), *columns[1:])
    naive = [n for n, dtype in frame.schema.items() if isinstance(dtype, pl.Datetime) and dtype.time_zone is None]
    return frame.with_columns(pl.col(naive).dt.replace_time_zone("UTC")) if naive else frame


def first_unfinished(end: date | None, as_of: datetime | None) -> datetime:
    """The first instant that belongs to no finished day at or before `end`."""
    now = datetime.now(UTC)
    midnight = (now if as_of is None else min(as_of, now)).replace(hour=0, minute=0, second=0, microsecond=0)
    if end is None:
        return midnight
    return min(midnight, datetime(end.year, end.month, end.day, tzinfo=UTC) + timedelta(days=1))


def nothing_left(end: date | None, as_of: datetime | None) -> str:
    limits = [f"on or before {end}"] if end else []
    limits += [f"knowable by {as_of.isoformat()}"] if as_of else []
    return f"no observation of a finished day {' and '.join(limits)}".rstrip() + " is in the data"


def last_seen(raw: Floats) -> NDArray[np.int32]:
    """(T, N) row of the last observation at or before each row; -1 = never yet."""
    rows = np.arange(raw.shape[0], dtype=np.int32)[:, None]
    seen = np.where(np.isnan(raw), np.int32(-1), rows)
    np.maximum.accumulate(seen, axis=0, out=seen)
    return seen


def age_days(raw: Floats, times: Times) -> Floats:
    seen = last_seen(raw)
    days = times.astype("int64") / MICROSECONDS_PER_DAY
    age: Floats = days[:, None] - days[np.maximum(seen, 0)]
    age[seen < 0] = np.nan
    return age


def carry(raw: Floats, times: Times, max_stale_days: int) -> Floats:
    seen = last_seen(raw)
    microseconds = times.astype("int64")
    fresh = (seen >= 0) & (
        microseconds[:, None] - microseconds[np.maximum(seen, 0)] <= max_stale_days * MICROSECONDS_PER_DAY
    )
    carried = np.take_along_axis(raw, np.maximum(seen, 0), axis=0) if raw.size else raw.copy()
    carried[~fresh] = np.nan
    return carried


def frozen(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """The same values where nobody can write: a view, which cannot be unlocked, of the locked array or a copy of it."""
    if array.flags.writeable:
        array = array.copy()
        array.flags.writeable = False
    return array.view()
