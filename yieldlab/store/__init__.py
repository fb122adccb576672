"""What was measured, when it could be known and when we took it: the tables at rest, append-only.

Delta tables lie under `<data>/tables`: `assets` and `yield_metrics`, `series` beside them, what is known of the feed,
and what models forecast. Rows are only ever added; a correction is a new row with a later `observed_at`. Every write
holds one lock around read, compare and append.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl

from yieldlab import schema
from yieldlab.errors import DataError, did_you_mean
from yieldlab.panel import DEFAULT_MAX_STALE_DAYS, Panel, utc
from yieldlab.store._compare import check_incoming, compared
from yieldlab.store._forecasts import Forecasts
from yieldlab.store._locks import collector_at_work, collector_lock, scratch_folder
from yieldlab.store._revisions import CLOCKS, METRICS, SERIES, Change, described, latest, latest_assets
from yieldlab.store._tables import Table, TableState, WriteLock

__all__ = ["Appended", "Compacted", "Store", "TableState", "collector_at_work", "collector_lock"]

#: Rows, with all their revisions, that a part of `Store.parts` has about.
PART_ROWS = 500_000

_TICK = timedelta(microseconds=1)

#: Tables whose rows are facts that nothing revises, with their columns.
RECORDS = {
    "fetches": schema.FETCHES,
    "polls": schema.POLLS,
    "pool_events": schema.POOL_EVENTS,
    "pins": schema.PINS,
    "conventions": schema.CONVENTIONS,
}


@dataclass(frozen=True, slots=True)
class Appended:
    """What one append did: rows of pools (or series) and instants never seen, other added rows, rows already known.

    `kept` of the rows added copy a value of an older row, because a measured column did not come in.
    """

    new: int
    revised: int
    unchanged: int
    pools_new: int
    version: int
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Compacted:
    """Each table before and after."""

    before: dict[str, TableState]
    after: dict[str, TableState]


class Store:
    """The tables of one data folder. Opening reads and creates nothing."""

    __slots__ = ("_assets", "_forecasts", "_lock", "_metrics", "_records", "_series", "folder")

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._assets = Table(self.folder / "tables" / "assets", schema.ASSETS)
        self._metrics = Table(self.folder / "tables" / "yield_metrics", schema.YIELD_METRICS)
        self._series = Table(self.folder / "tables" / "series", schema.SERIES)
        self._forecasts = Forecasts(self.folder / "tables")
        self._records = {name: Table(self.folder / "tables" / name, columns) for name, columns in RECORDS.items()}
        self._lock = WriteLock(self.folder / "tables")

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r})"

    @property
    def exists(self) -> bool:
        """Whether there is anything to read."""
        return self._metrics.exists

    # -- writing ------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the store's one write lock over several writes, so that no other process writes between them.

        Each write takes it by itself as well; in one thread it may be held several times over. Raises DataError when
        another process keeps it for too long.
        """
        with self._lock.held():
            yield

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder beside the tables for long work; it goes when the work ends, and what killed work left goes now.

        Raises DataError when it cannot be made.
        """
        with scratch_folder(self.folder, self.writing) as folder:
            yield folder

    def record(self, name: str, rows: pl.DataFrame) -> None:
        """Add rows to one of the tables of `RECORDS` in one commit; no rows commit nothing.

        Raises DataError when a column is missing or the table cannot be written; then nothing was added.
        """
        table = self._records[name]
        if missing := [column for column in table.schema if column not in rows.columns]:
            raise DataError(f"rows of {name} need a column {missing[0]!r}; they have {', '.join(rows.columns)}")
        if rows.height:
            with self.writing():
                table.append(rows.select(pl.col(column).cast(dtype) for column, dtype in table.schema.items()))

    def recorded(self, name: str, *, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Every row of one of the tables of `RECORDS`, in no order; none when it was never written."""
        table = self._records[name]
        wanted = list(columns) if columns is not None else table.schema.names()
        if not table.exists:
            return pl.DataFrame(schema=table.schema).select(wanted)
        return table.collect(table.scan().select(wanted))

    def append(self, metrics: pl.DataFrame, assets: pl.DataFrame, *, now: datetime | None = None) -> Appended:
        """Add what is new or changed, in one commit per table, `assets` first; the same rows again add nothing.

        `metrics` has columns of `schema.YIELD_METRICS` without `ingested_at`; pool_id, valid_at and apy_percent are
        needed. A null or absent `observed_at` means: known at `valid_at` (assumed) when the row is new, at `now` (the
        time of fetching; default: the clock) when it changes a known one; rows that were not fetched together say when
        each was in a column `fetched_at`. With a column `lacked_at`, an instant at which the source told all it had and
        a row was not there, a new row at or before that instant counts from its fetching too. A row that gives its
        `observed_at` is added unless the store has it with that very instant. A measured column that is absent
        altogether keeps what was known, and so does a description that is absent or null.

        Raises DataError when a needed column or value is missing, when a row is observed before the instant it
        describes, or when the tables cannot be read or written; then nothing was added.
        """
        check_incoming(metrics, METRICS, ("apy_percent",))
        if metrics.is_empty() and not self.exists:
            raise DataError("there are no rows to store")
        now = datetime.now(UTC) if now is None else utc(now)
        with self.writing():
            # The descriptions of an append are a tick older than its rows, so that no cutoff cuts between them twice.
            ingested_at = self.stamp(now)
            known_assets = self._all_assets()
            known_pools = known_assets["pool_id"].unique()
            listed = pl.concat([assets.select("pool_id"), metrics.select("pool_id").unique()]).unique()
            missing = listed.join(assets.select("pool_id"), on="pool_id", how="anti")
            told = described(
                known_assets,
                pl.concat([assets, missing], how="diagonal_relaxed"),
                now=now,
                ingested_at=ingested_at,
            )
            change = compared(self._metrics, metrics, METRICS, now=now, ingested_at=ingested_at + _TICK)
            if told.height:
                self._assets.append(told)
            if change.rows.height:
                self._metrics.append(change.rows)
            pools_new = told.filter(~pl.col("pool_id").is_in(known_pools.implode())).height
            return _appended(change, pools_new, self._metrics)

    def append_series(self, rows: pl.DataFrame, *, now: datetime | None = None) -> Appended:
        """Add what is new or changed of series beside the pools, in one commit; the rules are those of `append`.

        `rows` has columns of `schema.SERIES` without `ingested_at`; name, valid_at and value are needed. `pools_new`
        of the answer counts names never seen. Raises DataError as `append` does; then nothing was added.
        """
        check_incoming(rows, SERIES, ("value",))
        if rows.is_empty() and not self._series.exists:
            raise DataError("there are no rows to store")
        now = datetime.now(UTC) if now is None else utc(now)
        with self.writing():
            known = self.series_names()
            change = compared(self._series, rows, SERIES, now=now, ingested_at=self.stamp(now))
            if change.rows.height:
                self._series.append(change.rows)
            return _appended(change, len(set(change.rows["name"]) - set(known)), self._series)

    def add_forecasts(self, rows: pl.DataFrame, run: Mapping[str, object]) -> dict[str, object]:
        """Add the forecasts of a run that is done, and after them the fact that it is: without it nobody reads them.

        `rows` has field, pool_id, valid_at (midnight), prediction and trained_through; a prediction that is NaN or null
        is none and is not stored. `run` has model, horizon_days and settings_hash, and may have `known_at`, when all
        that it was made from was known (default: when it is stored), and `run_id`. Gives the row of `forecast_runs`.

        Raises DataError when something is missing, infinite or there twice, when a model was trained on the day of its
        prediction or later, or when the tables cannot be written; then nothing can be read of this run.
        """
        with self.writing():
            return self._forecasts.append(rows, run, created_at=self.stamp())

    def stamp(self, now: datetime | None = None) -> datetime:
        """The `ingested_at` of what is written at `now` (default: the clock): later than all that is stored, also
        where the clock runs behind, so that no row slips under a cutoff that was read before. Ask inside `writing()`.
        """
        now = datetime.now(UTC) if now is None else utc(now)
        latest_stored = self._last_ingested()
        return now if latest_stored is None else max(now, latest_stored + _TICK)

    def compact(self) -> Compacted:
        """Merge small files; every row and revision stays, and versions of the last week stay readable."""
        self._require()
        with self.writing():
            pairs = {table.name: table.compact() for table in self._tables if table.exists}
        return Compacted(
            before={name: pair[0] for name, pair in pairs.items()},
            after={name: pair[1] for name, pair in pairs.items()},
        )

    # -- reading ------------------------------------------------------------------------------------------------

    def assets(self, *, as_of: datetime | None = None, ingested_by: datetime | None = None) -> pl.DataFrame:
        """Of every pool the latest description observed by `as_of` (else its first), sorted by pool."""
        self._require()
        rows = self._all_assets()
        if ingested_by is not None:
            rows = rows.filter(pl.col("ingested_at") <= utc(ingested_by))
        return latest_assets(rows, None if as_of is None else utc(as_of))

    def descriptions(self) -> pl.DataFrame:
        """Every description of every pool that was ever known, with its clocks; in no order."""
        return self._all_assets()

    def metrics(
        self,
        *,
        as_of: datetime | None = None,
        ingested_by: datetime | None = None,
        columns: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """Per pool and `valid_at` the latest row observed by `as_of` and stored by `ingested_by`, sorted by both.

        Raises DataError when there is nothing to read, or a column that is not in the table.
        """
        wanted = tuple(columns) if columns is not None else tuple(schema.YIELD_METRICS.names())
        rows = self.history(as_of=as_of, ingested_by=ingested_by, columns=wanted)
        return latest(rows, METRICS.key).select(wanted)

    def history(
        self,
        *,
        as_of: datetime | None = None,
        ingested_by: datetime | None = None,
        since: datetime | None = None,
        pools: Collection[str] | None = None,
        columns: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """Every revision observed by `as_of` and stored by `ingested_by`: keys, clocks and `columns`; in no order.

        With `since` only those of instants from then on, which reads no more than the files that have such; with
        `pools` only those of these.
        """
        self._require()
        wanted = tuple(columns) if columns is not None else tuple(schema.YIELD_METRICS.names())
        for name in wanted:
            if name not in schema.YIELD_METRICS:
                raise DataError(
                    f"the table yield_metrics has no column {name!r}{did_you_mean(name, schema.YIELD_METRICS)}"
                )
        query = self._metrics.scan().select(list(dict.fromkeys((*METRICS.key, *CLOCKS, *wanted))))
        if since is not None:
            query = query.filter(pl.col("valid_at") >= utc(since))
        if pools is not None:
            query = query.filter(pl.col("pool_id").is_in(list(pools)))
        if as_of is not None:
            query = query.filter(pl.col("observed_at") <= utc(as_of))
        if ingested_by is not None:
            query = query.filter(pl.col("ingested_at") <= utc(ingested_by))
        return self._metrics.collect(query)

    def parts(self, *, ingested_by: datetime) -> Iterator[pl.DataFrame]:
        """The rows of `metrics` in parts of whole pools, one after the other, in memory for one part only."""
        self._require()
        query = self._metrics.scan().filter(pl.col("ingested_at") <= utc(ingested_by))
        sizes = self._metrics.collect(query.group_by("pool_id").len("count")).sort("pool_id")
        part = (sizes["count"].cum_sum() - sizes["count"]) // PART_ROWS
        for _, pools in sizes.with_columns(part.alias("part")).group_by("part", maintain_order=True):
            chosen = pl.col("pool_id").is_between(pl.lit(pools["pool_id"].min()), pl.lit(pools["pool_id"].max()))
            yield latest(self._metrics.collect(query.filter(chosen)), METRICS.key)

    def panel(
        self,
        *,
        fields: Sequence[str] = ("apy", "tvl_usd"),
        end: date | None = None,
        as_of: datetime | None = None,
        ingested_by: datetime | None = None,
        max_stale_days: int = DEFAULT_MAX_STALE_DAYS,
    ) -> Panel:
        """The dense daily panel of what could be known at `as_of` (default: now); see `Panel.from_long`.

        Rates of the feed are read by the conventions recorded by `ingested_by`, whatever their age: how a project
        computes its number is no observation. A field that a model writes is that of the latest finished run that has
        it, by `created_at`, of those made from what was known at `as_of` and stored by `ingested_by`.

        Raises DataError where there is no such run.
        """
        read = [*fields, *(["apy"] if schema.PERSISTENCE in fields else [])]
        columns = [schema.FIELDS[name].column for name in dict.fromkeys(read) if name in schema.FIELDS]
        conventions = self.recorded("conventions")
        if ingested_by is not None:
            conventions = conventions.filter(pl.col("ingested_at") <= utc(ingested_by))
        rewards = [] if conventions.is_empty() else ["apy_reward_percent"]
        return Panel.from_long(
            # No name holds these rows, so that they can go as soon as the panel has turned them into numbers. The
            # descriptions are read after them: an append writes those first, so that no row is without its own.
            self.history(as_of=as_of, ingested_by=ingested_by, columns=(*METRICS.key, *columns, *rewards, "source")),
            self.assets(as_of=as_of, ingested_by=ingested_by),
            fields=fields,
            end=end,
            as_of=as_of,
            max_stale_days=max_stale_days,
            conventions=conventions,
            series=self.series(as_of=as_of, ingested_by=ingested_by),
            forecasts=self._forecasts.latest(fields, as_of=as_of, ingested_by=ingested_by),
        )

    def forecast_runs(self) -> pl.DataFrame:
        """Every finished run of forecasts; of those that have a field the last one answers for it."""
        return self._forecasts.runs()

    def forecasts(self, run_id: str, field: str | None = None) -> pl.DataFrame:
        """The forecasts of one finished run, all or those of one field, sorted by field, pool and instant.

        Raises UsageError for a run or a field that is not there.
        """
        return self._forecasts.rows(run_id, field)

    def series(self, *, as_of: datetime | None = None, ingested_by: datetime | None = None) -> pl.DataFrame:
        """Per series and `valid_at` the latest row observed by `as_of` and stored by `ingested_by`, sorted by both."""
        if not self._series.exists:
            return pl.DataFrame(schema=schema.SERIES)
        query = self._series.scan()
        if as_of is not None:
            query = query.filter(pl.col("observed_at") <= utc(as_of))
        if ingested_by is not None:
            query = query.filter(pl.col("ingested_at") <= utc(ingested_by))
        return latest(self._series.collect(query), SERIES.key)

    def series_history(self) -> pl.DataFrame:
        """Every revision of every series, with its clocks; in no order."""
        return self._series.collect(self._series.scan()) if self._series.exists else pl.DataFrame(schema=schema.SERIES)

    def series_names(self) -> list[str]:
        """The names of the series beside the pools, sorted."""
        if not self._series.exists:
            return []
        return self._series.collect(self._series.scan().select(pl.col("name").unique().sort()))["name"].to_list()

    def sources(self) -> list[str]:
        """Where the rows are from, sorted."""
        self._require()
        sources = self._metrics.scan().select(pl.col("source").drop_nulls().unique().sort())
        return self._metrics.collect(sources)["source"].to_list()

    def overview(self) -> pl.DataFrame:
        """Per pool: description, first and last instant, days with a row, instants (`rows`) and revisions of them."""
        self._require()
        query = (
            self._metrics.scan()
            .group_by("pool_id")
            .agg(
                pl.col("valid_at").min().alias("first"),
                pl.col("valid_at").max().alias("last"),
                pl.col("valid_at").dt.truncate("1d").n_unique().cast(pl.Int64).alias("days"),
                pl.col("valid_at").n_unique().cast(pl.Int64).alias("rows"),
                (pl.len().cast(pl.Int64) - pl.col("valid_at").n_unique().cast(pl.Int64)).alias("revisions"),
                pl.col("source").drop_nulls().unique().sort().str.join(", ").alias("source"),
            )
        )
        seen = self._metrics.collect(query)
        descriptions = self.assets().select("pool_id", *schema.DESCRIBED)
        return (
            seen.join(descriptions, on="pool_id", how="left")
            .select("pool_id", *schema.DESCRIBED, "first", "last", "days", "rows", "revisions", "source")
            .sort("pool_id")
        )

    def versions(self) -> dict[str, TableState]:
        """Per table its version, files, rows and bytes."""
        self._require()
        return {table.name: table.state() for table in self._tables if table.exists}

    def cutoff(self) -> datetime:
        """When the latest row was stored: a read with `ingested_by` set to it gives the same rows for ever."""
        if (found := self._last_ingested()) is None:
            raise self._no_data()
        return found

    def sql(self, query: str) -> pl.DataFrame:
        """The answer of DuckDB to one SELECT over views of the tables; `assets`, `yield_metrics` and `series` show
        latest revisions, `forecasts` those of finished runs.

        The query reads these tables and nothing else: no file, no network, no extension, no write. Raises
        UsageError, with the reason in one line, for anything DuckDB or the sandbox refuses.
        """
        from yieldlab.store._sql import answer

        self._require()
        return answer(
            query,
            {table.name: table.files() if table.exists else [] for table in self._tables},
            {table.name: table.schema for table in self._tables},
        )

    # -- helpers ------------------------------------------------------------------------------------------------

    @property
    def _tables(self) -> list[Table]:
        return [self._assets, self._metrics, self._series, *self._records.values(), *self._forecasts.tables]

    def _require(self) -> None:
        if not self.exists:
            raise self._no_data()

    def _no_data(self) -> DataError:
        return DataError(
            f"no data in {self.folder}; run `yieldlab data import FILE`, `yieldlab data backfill` or "
            "`yieldlab data sample`"
        )

    def _all_assets(self) -> pl.DataFrame:
        if not self._assets.exists:
            return pl.DataFrame(schema=schema.ASSETS)
        return self._assets.collect(self._assets.scan())

    def _last_ingested(self) -> datetime | None:
        """When the latest row of the tables that a panel is made from was stored."""
        observed = (self._assets, self._metrics, self._series, self._records["conventions"])
        clocks = [(table, "ingested_at") for table in observed]
        clocks += [(table, "created_at") for table in self._forecasts.tables]
        found: list[datetime | None] = [
            table.collect(table.scan().select(pl.col(clock).max()))[clock].item()
            for table, clock in clocks
            if table.exists
        ]
        return max((instant for instant in found if instant is not None), default=None)


def _appended(change: Change, names_new: int, table: Table) -> Appended:
    return Appended(
        new=change.new,
        revised=change.revised,
        unchanged=change.unchanged,
        pools_new=names_new,
        version=table.state().version,
        kept=change.kept,
    )
