"""The panel: times x pools, what was observed and what may still be believed about it.

Row `t` of the daily grid is the *end* of the UTC day `times[t]`: it knows every observation of that day and none of
the next. `panel["apy"]` carries the last observation forward for at most `max_stale_days`; `panel.raw("apy")` is what
was observed, and nothing is ever filled in it.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Self, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab import schema
from yieldlab.errors import DataError, UsageError, did_you_mean
from yieldlab.units import MICROSECONDS_PER_DAY, from_percent

Floats = NDArray[np.float64]
Times = NDArray[np.datetime64]
Scalar = TypeVar("Scalar", bound=np.generic)

DEFAULT_MAX_STALE_DAYS = 3


@dataclass(frozen=True, slots=True)
class Health:
    """What a result has to say about the data under it. Shares are fractions of the panel's T x N cells, for `apy`."""

    times: int
    pools: int
    first: str
    last: str
    observations: int
    observed_share: float
    carried_share: float
    missing_share: float
    assumed_rows: int
    pools_not_usd: int
    sources: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class Panel:
    """Dense (T, N) fields over `times` and `pools`; immutable, every array read-only."""

    __slots__ = ("_ages", "_assumed_rows", "_carried", "_raw", "as_of", "max_stale_days", "pools", "sources", "times")

    def __init__(
        self,
        times: Times,
        pools: pl.DataFrame,
        fields: Mapping[str, Floats],
        *,
        max_stale_days: int = DEFAULT_MAX_STALE_DAYS,
        as_of: datetime | None = None,
        assumed_rows: int = 0,
        sources: Sequence[str] = (),
    ) -> None:
        """Take `times` (T,) strictly increasing, `pools` with a `pool_id` per column, and (T, N) `fields`.

        Raises DataError when shapes or order do not fit, and UsageError for a negative `max_stale_days`.
        """
        times = np.asarray(times).astype("datetime64[us]")
        if times.ndim != 1 or (times.size > 1 and not bool(np.all(times[1:] > times[:-1]))):
            raise DataError("panel times must be one strictly increasing row of instants")
        if "pool_id" not in pools.columns or pools["pool_id"].n_unique() != pools.height:
            raise DataError("panel pools need a column 'pool_id' without repetitions")
        try:
            stale = operator.index(max_stale_days)
        except TypeError:
            stale = -1
        if stale < 0:
            raise UsageError(f"max_stale_days must be a whole number, 0 or more, not {max_stale_days}")
        shape = (times.size, pools.height)
        raw: dict[str, Floats] = {}
        for name, values in fields.items():
            array = np.ascontiguousarray(values, dtype=np.float64)
            if array.shape != shape:
                raise DataError(f"panel field {name!r} has shape {array.shape}, not (times, pools) = {shape}")
            raw[name] = _frozen(array)
        self.times = _frozen(times)
        self.pools = pools
        self.max_stale_days = stale
        self.as_of = as_of
        self.sources = tuple(sources)
        self._raw = raw
        self._assumed_rows = assumed_rows
        self._carried: dict[str, Floats] = {}
        self._ages: dict[str, Floats] = {}

    @classmethod
    def from_long(
        cls,
        frame: pl.DataFrame,
        assets: pl.DataFrame | None = None,
        *,
        fields: Sequence[str] = ("apy", "tvl_usd"),
        end: date | None = None,
        as_of: datetime | None = None,
        max_stale_days: int = DEFAULT_MAX_STALE_DAYS,
    ) -> Self:
        """Cross from the long table (columns of `schema.YIELD_METRICS`) to a dense daily panel.

        Per pool and `valid_at` the latest row observed by `as_of` counts; per field, a day takes its last observation
        that is neither null nor NaN. The grid has every calendar day from the first to the last observation; days
        after `end`, and a day unfinished at `as_of` (default: now), are dropped. `observed_at` and `ingested_at` may be
        absent: then later rows of the frame count as known later; without `source` the panel has no `sources`.

        Raises DataError when nothing is left or a column is missing, and UsageError for an unknown field.
        """
        columns = [_stored_field(name).column for name in fields]
        clocks = [clock for clock in ("observed_at", "ingested_at") if clock in frame.columns]
        origin = [name for name in ("source",) if name in frame.columns]
        as_of = None if as_of is None else utc(as_of)
        frame = _checked(frame, ("pool_id", "valid_at", *clocks, *dict.fromkeys(columns), *origin))
        if as_of is not None and "observed_at" in clocks:
            frame = frame.filter(pl.col("observed_at") <= as_of)
        unfinished = _first_unfinished(end, as_of)
        if (frame["valid_at"] >= unfinished).any():  # a filter copies, and most often there is nothing to drop
            frame = frame.filter(pl.col("valid_at") < unfinished)
        if frame.is_empty():
            raise DataError(_nothing_left(end, as_of))
        sources = tuple(frame["source"].drop_nulls().unique().sort()) if origin else ()
        ids = frame["pool_id"].unique().sort()
        # From here on pools are numbers: millions of texts are the larger part of the memory.
        frame = frame.drop(origin).with_columns(pl.col("pool_id").cast(pl.Enum(ids)).to_physical())
        order = frame.select(pl.arg_sort_by("pool_id", "valid_at", *clocks, maintain_order=True)).to_series()
        pool = frame["pool_id"].gather(order).to_numpy()
        valid_at = frame["valid_at"].dt.timestamp("us").gather(order).to_numpy()
        latest = np.ones(pool.size, dtype=bool)
        latest[:-1] = (pool[1:] != pool[:-1]) | (valid_at[1:] != valid_at[:-1])
        assumed = 0
        if "observed_at" in clocks:
            observed_at = frame["observed_at"].dt.timestamp("us").gather(order).to_numpy()
            assumed = int(np.count_nonzero(latest & (observed_at == valid_at)))
        row = valid_at // MICROSECONDS_PER_DAY
        first = int(row.min())
        row -= first
        shape = (int(row.max()) + 1, ids.len())
        dense: dict[str, Floats] = {}
        for name, column in zip(fields, columns, strict=True):
            values = frame[column].cast(pl.Float64).gather(order).to_numpy()
            seen = latest & ~np.isnan(values)
            array = np.full(shape, np.nan)
            array[row[seen], pool[seen]] = values[seen]  # repeated cells: the last one written stays
            dense[name] = from_percent(array) if _stored_field(name).percent else array
            dense[name].flags.writeable = False
        times = (np.arange(shape[0]) + first).astype("datetime64[D]").astype("datetime64[us]")
        return cls(
            times,
            _described(ids, assets),
            dense,
            max_stale_days=max_stale_days,
            as_of=as_of,
            assumed_rows=assumed,
            sources=sources,
        )

    # -- what it holds ------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """(T, N)."""
        return self.times.size, self.pools.height

    @property
    def fields(self) -> tuple[str, ...]:
        """Names that `panel[name]` answers to."""
        return tuple(self._raw)

    @property
    def pool_ids(self) -> list[str]:
        """The columns' pools, in order."""
        return self.pools["pool_id"].to_list()

    def raw(self, name: str) -> Floats:
        """(T, N) as observed; NaN = not observed at that time. Raises DataError for a field it does not hold."""
        try:
            return self._raw[name]
        except KeyError:
            raise DataError(f"the panel has no field {name!r}{did_you_mean(name, self._raw)}") from None

    def age(self, name: str) -> Floats:
        """(T, N) days since the last observation at or before the row; 0 = observed in it, NaN = never yet."""
        if name not in self._ages:
            ages = _age_days(self.raw(name), self.times)
            ages.flags.writeable = False
            self._ages[name] = _frozen(ages)
        return self._ages[name]

    def __getitem__(self, name: str) -> Floats:
        """(T, N) carried: the last observation while it is at most `max_stale_days` old, else NaN."""
        if name not in self._carried:
            carried = _carry(self.raw(name), self.times, self.max_stale_days)
            carried.flags.writeable = False
            self._carried[name] = _frozen(carried)
        return self._carried[name]

    @property
    def health(self) -> Health:
        """How much of the panel was observed, carried and missing, and how far its clocks can be believed."""
        name = "apy" if "apy" in self._raw else next(iter(self._raw))
        cells = max(1, self.times.size * self.pools.height)
        observed = int(np.count_nonzero(~np.isnan(self.raw(name))))
        present = int(np.count_nonzero(~np.isnan(self[name])))
        symbols = self.pools["symbol"].to_list() if "symbol" in self.pools.columns else [None] * self.pools.height
        return Health(
            times=self.times.size,
            pools=self.pools.height,
            first=str(self.times[0].astype("datetime64[D]")),
            last=str(self.times[-1].astype("datetime64[D]")),
            observations=observed,
            observed_share=observed / cells,
            carried_share=(present - observed) / cells,
            missing_share=1.0 - present / cells,
            assumed_rows=self._assumed_rows,
            pools_not_usd=sum(not schema.is_usd_stable(symbol) for symbol in symbols),
            sources=self.sources,
        )

    def digest(self) -> str:
        """SHA-256 over times, pool ids, descriptions and raw fields: equal digests, equal input."""
        hasher = hashlib.sha256()
        hasher.update(self.times.astype("int64").tobytes())
        described = self.pools.select("pool_id", *(c for c in schema.DESCRIBED if c in self.pools.columns))
        hasher.update(repr(described.rows()).encode())
        for name in sorted(self._raw):
            hasher.update(f"{name}:{self._raw[name].shape}".encode())
            hasher.update(self._raw[name].data)
        return hasher.hexdigest()

    # -- other panels from this one -----------------------------------------------------------------------------

    def with_max_stale_days(self, max_stale_days: int) -> Panel:
        """The same observations, believed for another number of days."""
        if max_stale_days == self.max_stale_days:
            return self
        return self._copy(self.times, self._raw, max_stale_days=max_stale_days)

    def head(self, rows: int) -> Panel:
        """The first `rows` rows, same pools: what was there before row `rows` happened."""
        return self._copy(self.times[:rows], {name: array[:rows] for name, array in self._raw.items()})

    def with_fields(self, fields: Mapping[str, Floats]) -> Panel:
        """The same times and pools with these raw (T, N) fields replaced or added."""
        return self._copy(self.times, {**self._raw, **fields})

    def window(self, start: date | None = None, end: date | None = None) -> tuple[int, int]:
        """Row numbers `(t_start, t_end)` of the first and last day simulated, both included.

        None means the panel's own first or last row. Raises DataError for a date outside the panel, UsageError when
        nothing lies between.
        """
        first, last = (str(t.astype("datetime64[D]")) for t in (self.times[0], self.times[-1]))
        if start is not None and end is not None and start > end:
            raise UsageError(f"--start {start} lies after --end {end}")
        for name, day in (("start", start), ("end", end)):
            if day is not None and not first <= day.isoformat() <= last:
                raise DataError(f"--{name} {day} lies outside the data, which runs from {first} to {last}")
        begin = np.datetime64(start, "us") if start else self.times[0]
        stop = np.datetime64(end, "us") + np.timedelta64(1, "D") if end else self.times[-1] + np.timedelta64(1, "us")
        t_start = int(np.searchsorted(self.times, begin, side="left"))
        t_end = int(np.searchsorted(self.times, stop, side="left")) - 1
        if t_end < t_start:
            raise UsageError(f"no panel row lies between {start} and {end}")
        return t_start, t_end

    def _copy(self, times: Times, fields: Mapping[str, Floats], max_stale_days: int | None = None) -> Panel:
        return Panel(
            times,
            self.pools,
            fields,
            max_stale_days=self.max_stale_days if max_stale_days is None else max_stale_days,
            as_of=self.as_of,
            assumed_rows=self._assumed_rows,
            sources=self.sources,
        )

    def __repr__(self) -> str:
        t, n = self.shape
        span = f"{self.times[0].astype('datetime64[D]')} to {self.times[-1].astype('datetime64[D]')}" if t else "empty"
        return f"Panel({t} times x {n} pools, {span}, fields: {', '.join(self._raw)})"


def _stored_field(name: str) -> schema.Field:
    try:
        return schema.FIELDS[name]
    except KeyError:
        raise UsageError(f"unknown panel field {name!r}{did_you_mean(name, schema.FIELDS)}") from None


def _described(ids: pl.Series, assets: pl.DataFrame | None) -> pl.DataFrame:
    pools = pl.DataFrame({"pool_id": ids})
    if assets is None:
        return pools.with_columns(pl.lit(None, pl.String).alias(name) for name in schema.DESCRIBED)
    known = assets.select("pool_id", *schema.DESCRIBED).unique("pool_id", keep="last", maintain_order=True)
    return pools.join(known, on="pool_id", how="left", maintain_order="left")


def utc(instant: datetime) -> datetime:
    """The instant in UTC; one without a zone is meant in UTC."""
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def _checked(frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
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


def _first_unfinished(end: date | None, as_of: datetime | None) -> datetime:
    """The first instant that belongs to no finished day at or before `end`."""
    now = datetime.now(UTC)
    midnight = (now if as_of is None else min(as_of, now)).replace(hour=0, minute=0, second=0, microsecond=0)
    if end is None:
        return midnight
    return min(midnight, datetime(end.year, end.month, end.day, tzinfo=UTC) + timedelta(days=1))


def _nothing_left(end: date | None, as_of: datetime | None) -> str:
    limits = [f"on or before {end}"] if end else []
    limits += [f"knowable by {as_of.isoformat()}"] if as_of else []
    return f"no observation of a finished day {' and '.join(limits)}".rstrip() + " is in the data"


def _last_seen(raw: Floats) -> NDArray[np.int32]:
    """(T, N) row of the last observation at or before each row; -1 = never yet."""
    rows = np.arange(raw.shape[0], dtype=np.int32)[:, None]
    seen = np.where(np.isnan(raw), np.int32(-1), rows)
    np.maximum.accumulate(seen, axis=0, out=seen)
    return seen


def _age_days(raw: Floats, times: Times) -> Floats:
    seen = _last_seen(raw)
    days = times.astype("int64") / MICROSECONDS_PER_DAY
    age: Floats = days[:, None] - days[np.maximum(seen, 0)]
    age[seen < 0] = np.nan
    return age


def _carry(raw: Floats, times: Times, max_stale_days: int) -> Floats:
    seen = _last_seen(raw)
    microseconds = times.astype("int64")
    fresh = (seen >= 0) & (
        microseconds[:, None] - microseconds[np.maximum(seen, 0)] <= max_stale_days * MICROSECONDS_PER_DAY
    )
    carried = np.take_along_axis(raw, np.maximum(seen, 0), axis=0) if raw.size else raw.copy()
    carried[~fresh] = np.nan
    return carried


def _frozen(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """The same values where nobody can write: a view, which cannot be unlocked, of the locked array or a copy of it."""
    if array.flags.writeable:
        array = array.copy()
        array.flags.writeable = False
    return array.view()
