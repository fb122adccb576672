"""The panel: times x pools, what was observed and what may still be believed about it.

Row `t` of the daily grid is the *end* of the UTC day `times[t]`: it knows every observation of that day and none of
the next. `panel["apy"]` carries the last observation forward for at most `max_stale_days`; `panel.raw("apy")` is what
was observed, and nothing is ever filled in it. Yields are effective APY: what the feed quotes as a simple rate is
converted here and nowhere else, unless `with_rates("quoted")` asks for the numbers as they came.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any, Self

import numpy as np
import polars as pl

from yieldlab import schema
from yieldlab.errors import DataError, UsageError, did_you_mean
from yieldlab.panel._forecasts import ForecastOrigin, dense_forecast, parted
from yieldlab.panel._grid import (
    Floats,
    SeriesRows,
    Times,
    age_days,
    carry,
    checked,
    described,
    first_unfinished,
    frozen,
    nothing_left,
    series_rows,
    stored_field,
    utc,
)
from yieldlab.panel._health import Health, comings_and_goings
from yieldlab.rates import RATED, RATES, Quotes, with_tvl_kind
from yieldlab.units import MICROSECONDS_PER_DAY, from_percent

__all__ = ["DEFAULT_MAX_STALE_DAYS", "ForecastOrigin", "Health", "Panel", "SeriesRows", "utc"]

DEFAULT_MAX_STALE_DAYS = 3


class Panel:
    """Dense (T, N) fields over `times` and `pools`; immutable, every array read-only."""

    __slots__ = (
        "_ages",
        "_assumed_rows",
        "_carried",
        "_cleaned",
        "_counts",
        "_effective",
        "_forecasts",
        "_observed",
        "_persistence",
        "_quotes",
        "_raw",
        "_series",
        "as_of",
        "max_stale_days",
        "pools",
        "rates",
        "sources",
        "times",
    )

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
        quotes: Quotes | None = None,
        rates: str = "effective",
        series: Mapping[str, SeriesRows] | None = None,
        cleaned: tuple[int, int] = (0, 0),
        rate_counts: Mapping[str, int] | None = None,
        observed: Floats | None = None,
        forecasts: Mapping[str, ForecastOrigin] | None = None,
        persistence: bool = False,
    ) -> None:
        """Take `times` (T,) strictly increasing, `pools` with a `pool_id` per column, and (T, N) `fields`.

        `quotes` says how the rates among the fields were quoted; without it they are taken as APY. `cleaned` counts
        observations masked and winsorized; `observed` (T, N) tells, by not being NaN, where an APY had been observed
        before that; `forecasts` says of which run a field is that a model wrote; with `persistence` the APY is also
        among the fields as `forecast_persistence`. Raises DataError when shapes or order do not fit, and UsageError for
        a negative `max_stale_days` or unknown `rates`.
        """
        if rates not in RATES:
            raise UsageError(f"unknown rates {rates!r}{did_you_mean(rates, RATES)}")
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
            raw[name] = frozen(array)
        self.times = frozen(times)
        self.pools = pools
        self.max_stale_days = stale
        self.as_of = as_of
        self.sources = tuple(sources)
        self._raw = raw
        self.rates = rates
        self._assumed_rows = assumed_rows
        self._quotes = quotes
        self._series = dict(series or {})
        self._cleaned = cleaned
        self._counts = dict(rate_counts or {})
        self._observed = None if observed is None else frozen(observed)
        self._forecasts = dict(forecasts or {})
        self._persistence = persistence
        self._carried: dict[str, Floats] = {}
        self._effective: dict[str, Floats] = {}
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
        conventions: pl.DataFrame | None = None,
        series: pl.DataFrame | None = None,
        forecasts: Mapping[str, pl.DataFrame] | None = None,
    ) -> Self:
        """Cross from the long table (columns of `schema.YIELD_METRICS`) to a dense daily panel.

        Per pool and `valid_at` the latest row observed by `as_of` counts; per field, a day takes its last observation
        that is neither null nor NaN. The grid has every calendar day from the first to the last observation; days
        after `end`, and a day unfinished at `as_of` (default: now), are dropped. `observed_at` and `ingested_at` may be
        absent: then later rows of the frame count as known later; without `source` the panel has no `sources`.

        With `conventions` (columns of `schema.CONVENTIONS`) rates whose source is the feed are known as simple or
        compounded; `apy_reward_percent` of the frame then tells the reward's part, and `pools` has a column `tvl_kind`:
        what a pool's TVL counts ("cash", "deposits" or "pool"; null where it is not known). `series` (name, valid_at,
        value) become the panel's series. `forecasts` has for each field that a model wrote the rows of one run (columns
        of `schema.FORECASTS` and `horizon_days`); `forecast_persistence` needs none.

        Raises DataError when nothing is left or a column is missing, or a prediction comes from a model that was
        trained on its day or later, and UsageError for an unknown field.
        """
        stored, modelled = parted(fields, forecasts or {})
        columns = [stored_field(name).column for name in stored]
        clocks = [clock for clock in ("observed_at", "ingested_at") if clock in frame.columns]
        origin = [name for name in ("source",) if name in frame.columns]
        rewards = ["apy_reward_percent"] if conventions is not None and "apy_reward_percent" in frame.columns else []
        as_of = None if as_of is None else utc(as_of)
        frame = checked(frame, ("pool_id", "valid_at", *clocks, *dict.fromkeys((*columns, *rewards)), *origin))
        if as_of is not None and "observed_at" in clocks:
            frame = frame.filter(pl.col("observed_at") <= as_of)
        unfinished = first_unfinished(end, as_of)
        if (frame["valid_at"] >= unfinished).any():  # a filter copies, and most often there is nothing to drop
            frame = frame.filter(pl.col("valid_at") < unfinished)
        if frame.is_empty():
            raise DataError(nothing_left(end, as_of))
        sources = tuple(frame["source"].drop_nulls().unique().sort()) if origin else ()
        ids = frame["pool_id"].unique().sort()
        fed = conventions is not None and any(schema.is_feed(source) for source in sources)
        if fed:
            feed_sources = [source for source in sources if schema.is_feed(source)]
            frame = frame.with_columns(pl.col("source").is_in(feed_sources).fill_null(value=False).alias("fed"))
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
        for name, column in zip(stored, columns, strict=True):
            values = frame[column].cast(pl.Float64).gather(order).to_numpy()
            seen = latest & ~np.isnan(values)
            array = np.full(shape, np.nan)
            array[row[seen], pool[seen]] = values[seen]  # repeated cells: the last one written stays
            dense[name] = from_percent(array) if stored_field(name).percent else array
            dense[name].flags.writeable = False
        days = np.arange(shape[0]) + first
        pools = described(ids, assets)
        quotes = None
        if fed and conventions is not None:
            apy = frame["apy_percent"].cast(pl.Float64).gather(order).to_numpy() if "apy" in stored else None
            seen = latest if apy is None else latest & ~np.isnan(apy)
            from_feed = np.zeros(shape, dtype=bool)
            from_feed[row[seen], pool[seen]] = frame["fed"].gather(order).to_numpy()[seen]
            reward = np.full(shape, np.nan)
            if rewards:  # the part of the very row whose total counts
                values = frame["apy_reward_percent"].cast(pl.Float64).gather(order).to_numpy()
                reward[row[seen], pool[seen]] = values[seen]
            quotes = Quotes.join(from_feed, from_percent(reward), pools["protocol"].to_list(), days, conventions)
            pools = with_tvl_kind(pools, from_feed, conventions)
        origins: dict[str, ForecastOrigin] = {}
        for name, rows in modelled.items():
            dense[name], origins[name] = dense_forecast(name, rows, ids, days)
        return cls(
            days.astype("datetime64[D]").astype("datetime64[us]"),
            pools,
            {name: dense[name] for name in dict.fromkeys((*fields, *stored)) if name in dense},
            max_stale_days=max_stale_days,
            as_of=as_of,
            assumed_rows=assumed,
            sources=sources,
            quotes=quotes,
            series={} if series is None else series_rows(series, days),
            forecasts=origins,
            persistence=schema.PERSISTENCE in fields,
        )

    # -- what it holds ------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """(T, N)."""
        return self.times.size, self.pools.height

    @property
    def fields(self) -> tuple[str, ...]:
        """Names that `panel[name]` answers to."""
        return tuple(self._raw if not self._persistence else dict.fromkeys((*self._raw, schema.PERSISTENCE)))

    @property
    def forecasts(self) -> Mapping[str, ForecastOrigin]:
        """Per field that a model wrote, the run that it is from; none for a field given by `with_fields`."""
        return dict(self._forecasts)

    @property
    def pool_ids(self) -> list[str]:
        """The columns' pools, in order."""
        return self.pools["pool_id"].to_list()

    def raw(self, name: str) -> Floats:
        """(T, N) as observed, rates by `rates`; NaN = not observed at that time. Raises DataError for a field it does
        not hold. `forecast_persistence` is the APY, unless the panel was given another."""
        if name == schema.PERSISTENCE and name not in self._raw and "apy" in self._raw:
            return self.raw("apy")
        try:
            quoted = self._raw[name]
        except KeyError:
            raise DataError(f"the panel has no field {name!r}{did_you_mean(name, self._raw)}") from None
        if self._quotes is None or name not in RATED or self.rates == "quoted":
            return quoted
        if name not in self._effective:
            self._effective[name] = frozen(self._quotes.effective(name, quoted))
        return self._effective[name]

    @property
    def series_names(self) -> tuple[str, ...]:
        """Names that `series(name)` answers to."""
        return tuple(self._series)

    def series(self, name: str, *, max_stale_days: int | None = None) -> Floats:
        """(T,) the last value of a series beside the pools by the end of each row's day, while it is at most
        `max_stale_days` (default: the panel's) old, else NaN.

        Raises DataError for a series that the panel does not have.
        """
        try:
            rows = self._series[name]
        except KeyError:
            raise DataError(
                f"the panel has no series {name!r}{did_you_mean(name, self._series)}; "
                "`yieldlab data import-series FILE --name NAME` brings one in"
            ) from None
        limit = self.max_stale_days if max_stale_days is None else max_stale_days
        return frozen(np.where(rows.age_days <= limit, rows.values, np.nan))

    def age(self, name: str) -> Floats:
        """(T, N) days since the last observation at or before the row; 0 = observed in it, NaN = never yet."""
        if name not in self._ages:
            ages = age_days(self.raw(name), self.times)
            ages.flags.writeable = False
            self._ages[name] = frozen(ages)
        return self._ages[name]

    def __getitem__(self, name: str) -> Floats:
        """(T, N) carried: the last observation while it is at most `max_stale_days` old, else NaN."""
        if name not in self._carried:
            carried = carry(self.raw(name), self.times, self.max_stale_days)
            carried.flags.writeable = False
            self._carried[name] = frozen(carried)
        return self._carried[name]

    @property
    def health(self) -> Health:
        """How much of the panel was observed, carried and missing, and how far its clocks can be believed."""
        name = "apy" if "apy" in self._raw else next(iter(self._raw))
        cells = max(1, self.times.size * self.pools.height)
        observed = int(np.count_nonzero(~np.isnan(self.raw(name))))
        present = int(np.count_nonzero(~np.isnan(self[name])))
        masked, winsorized = self._cleaned
        entering, leaving = comings_and_goings(self.listed(name), self.times)
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
            masked=masked,
            winsorized=winsorized,
            masked_share=masked / cells,
            rates=self.rates,
            **self._rate_counts(),
            entering=entering,
            leaving=leaving,
            forecasts=self.forecasts,
        )

    def listed(self, name: str = "apy") -> Floats:
        """(T, N) not NaN where the field was observed, whatever cleaning made of it: an observation that was masked
        still shows that its pool is there. Raises DataError for a field the panel does not hold."""
        return self._observed if name == "apy" and self._observed is not None else self.raw(name)

    def _rate_counts(self) -> Mapping[str, int]:
        if self._quotes is None or "apy" not in self._raw:
            return self._counts
        counts = self._quotes.counts(self._raw["apy"])
        return counts if self.rates == "effective" else counts | {"rates_converted": 0, "rates_too_high": 0}

    def digest(self) -> str:
        """SHA-256 over times, pool ids, descriptions and raw fields: equal digests, equal input."""
        hasher = hashlib.sha256()
        hasher.update(self.times.astype("int64").tobytes())
        described = self.pools.select("pool_id", *(c for c in schema.DESCRIBED if c in self.pools.columns))
        hasher.update(repr(described.rows()).encode())
        for name in sorted(self._raw):
            hasher.update(f"{name}:{self._raw[name].shape}".encode())
            hasher.update(self._raw[name].data)
        if self._persistence:
            hasher.update(schema.PERSISTENCE.encode())
        if self._quotes is not None:
            hasher.update(self.rates.encode())
            hasher.update(np.ascontiguousarray(self._quotes.kinds).data)
            hasher.update(np.ascontiguousarray(self._quotes.reward).data)
        for name in sorted(self._series):
            hasher.update(f"series {name}".encode())
            hasher.update(np.ascontiguousarray(self._series[name].values).data)
            hasher.update(np.ascontiguousarray(self._series[name].age_days).data)
        return hasher.hexdigest()

    # -- other panels from this one -----------------------------------------------------------------------------

    def with_max_stale_days(self, max_stale_days: int) -> Panel:
        """The same observations, believed for another number of days."""
        return self if max_stale_days == self.max_stale_days else self._copy(max_stale_days=max_stale_days)

    def with_rates(self, rates: str) -> Panel:
        """The same observations with rates as "effective" APY or as "quoted". Raises UsageError for anything else."""
        return self if rates == self.rates else self._copy(rates=rates)

    def with_cleaned_apy(self, apy: Floats, *, masked: int = 0, winsorized: int = 0) -> Panel:
        """The same panel with this (T, N) effective APY in place of the observed one, of which so many cells differ."""
        before = self._cleaned
        cleaned = (before[0] + masked, before[1] + winsorized)
        return self._replaced(
            {"apy": apy},
            cleaned=cleaned,
            observed=self._observed if self._observed is not None else self._raw.get("apy"),
        )

    def head(self, rows: int) -> Panel:
        """The first `rows` rows, same pools: what was there before row `rows` happened."""
        return self._copy(
            times=self.times[:rows],
            fields={name: array[:rows] for name, array in self._raw.items()},
            quotes=None if self._quotes is None else self._quotes.head(rows),
            series={name: each.head(rows) for name, each in self._series.items()},
            observed=None if self._observed is None else self._observed[:rows],
        )

    def with_fields(self, fields: Mapping[str, Floats]) -> Panel:
        """The same times and pools with these raw (T, N) fields replaced or added; rates among them are as they are
        meant to be read, and are converted no more."""
        kept = {name: origin for name, origin in self._forecasts.items() if name not in fields}
        return self._replaced(fields, forecasts=kept, **({"observed": None} if "apy" in fields else {}))

    def with_series(self, series: Mapping[str, SeriesRows]) -> Panel:
        """The same panel with these series replaced or added."""
        return self._copy(series={**self._series, **series})

    def series_rows(self, name: str) -> SeriesRows:
        """The values and ages that `series(name)` rests on."""
        return self._series[name]

    def _replaced(self, fields: Mapping[str, Floats], **other: object) -> Panel:
        if self._quotes is None or not set(fields) & set(RATED):
            return self._copy(fields={**self._raw, **fields}, **other)
        # What is given is final, and what stays is read as `rates` says, once, now.
        read = {name: self.raw(name) for name in self._raw}
        return self._copy(fields=read | dict(fields), quotes=None, rate_counts=self._rate_counts(), **other)

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

    def _copy(self, **changed: Any) -> Panel:
        kept: dict[str, Any] = {
            "times": self.times,
            "pools": self.pools,
            "fields": self._raw,
            "max_stale_days": self.max_stale_days,
            "as_of": self.as_of,
            "assumed_rows": self._assumed_rows,
            "sources": self.sources,
            "quotes": self._quotes,
            "rates": self.rates,
            "series": self._series,
            "cleaned": self._cleaned,
            "rate_counts": self._counts,
            "observed": self._observed,
            "forecasts": self._forecasts,
            "persistence": self._persistence,
        }
        return Panel(**kept | changed)

    def __repr__(self) -> str:
        t, n = self.shape
        span = f"{self.times[0].astype('datetime64[D]')} to {self.times[-1].astype('datetime64[D]')}" if t else "empty"
        return f"Panel({t} times x {n} pools, {span}, fields: {', '.join(self._raw)})"
