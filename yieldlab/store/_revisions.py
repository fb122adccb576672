"""Which of the rows that come in are new, which change what was known, and what was known at an instant?

Pure functions on frames; they know nothing of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import polars as pl

from yieldlab import schema

CLOCKS = ("observed_at", "ingested_at")


@dataclass(frozen=True, slots=True)
class Layout:
    """A table of revisions: its columns, what a row is about (a name and an instant), and what a row measures."""

    columns: pl.Schema
    key: tuple[str, str]
    measured: tuple[str, ...]


METRICS = Layout(schema.YIELD_METRICS, ("pool_id", "valid_at"), schema.MEASURED)
SERIES = Layout(schema.SERIES, ("name", "valid_at"), ("value",))


@dataclass(frozen=True, slots=True)
class Change:
    """The rows to append, and how many of the rows that came in were new, changed or already known.

    `kept` of the rows to append have a value of an older row in a column that did not come in.
    """

    rows: pl.DataFrame
    new: int
    revised: int
    unchanged: int
    kept: int


def changes(
    known: pl.DataFrame, incoming: pl.DataFrame, *, layout: Layout, now: datetime, ingested_at: datetime
) -> Change:
    """Compare `incoming` with `known` (both with columns of `layout`) and keep what adds something.

    A row without `observed_at` takes its `valid_at` when the store has no row of that key (the assumption about
    history) and its `fetched_at` (absent: `now`) when it has, or when its source told all up to `lacked_at` without it
    and that is not before its `valid_at`. It is unchanged when the row known just before it (by `observed_at`, then
    `ingested_at`) measures the same. A row with its own `observed_at` is unchanged only when the row known at exactly
    that time measures the same: what confirms an older value must outlive a correction that comes in between later, so
    that the order of imports does not matter. The first row of a key is new, any other a revision.

    A measured column that `incoming` does not have says nothing: a row keeps what the store knows by its `observed_at`
    at this import. Of two rows with the same key and `observed_at`, the later one counts.
    """
    key = layout.key
    silent = [name for name in layout.measured if name not in incoming.columns]
    rows = _conformed(incoming, layout).with_columns(
        pl.col("observed_at").is_not_null().alias("dated"),
        _fetched(incoming, now).alias("fetched_at"),
        _lacked(incoming).alias("lacked_at"),
    )
    known = _overlap(known, rows, key)
    rows = _observed(rows, known, key).with_columns(pl.lit(ingested_at, schema.UTC).alias("ingested_at"))
    names = layout.columns.names()
    both = pl.concat(
        [
            known.select(*names, pl.lit(False).alias("dated"), pl.lit(False).alias("fresh")),
            rows.select(*names, "dated", pl.lit(True).alias("fresh")),
        ]
    ).sort(*key, *CLOCKS, "fresh", maintain_order=True)
    del rows, known
    repeated = _same_as_previous(both, (*key, "observed_at", "fresh")).shift(-1, fill_value=False) & both["fresh"]
    if repeated.any():
        both = both.filter(~repeated)
    same_key = _same_as_previous(both, key)
    fresh = both["fresh"]
    keeps = pl.repeat(False, both.height, eager=True)
    if silent:
        both, keeps = _keep_known(both, silent, same_key)
    comparable = same_key & (_same_as_previous(both, ("observed_at",)) | ~both["dated"])
    unchanged = fresh & comparable & _same_as_previous(both, layout.measured)
    added = fresh & ~unchanged
    first = np.flatnonzero(~same_key.to_numpy())
    new = int(np.count_nonzero(np.logical_and.reduceat(fresh.to_numpy(), first))) if first.size else 0
    return Change(
        rows=both.filter(added).select(names),
        new=new,
        revised=int(added.sum()) - new,
        unchanged=int(unchanged.sum()) + int(repeated.sum()),
        kept=int((added & keeps).sum()),
    )


def described(known: pl.DataFrame, incoming: pl.DataFrame, *, now: datetime, ingested_at: datetime) -> pl.DataFrame:
    """The rows of `incoming` (pool_id and some of `schema.DESCRIBED`) that tell something new about their pool.

    A missing or null description says nothing: what was known stays.
    """
    latest = latest_assets(known)
    given = _with_columns_of(incoming, schema.ASSETS).unique("pool_id", keep="last", maintain_order=True)
    joined = given.join(
        latest.select("pool_id", *schema.DESCRIBED, "observed_at"), on="pool_id", how="left", suffix="_known"
    )
    joined = joined.with_columns(pl.coalesce(name, f"{name}_known").alias(name) for name in schema.DESCRIBED)
    is_known = joined["pool_id"].is_in(latest["pool_id"].implode())
    differs = pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"{name}_known")) for name in schema.DESCRIBED)
    return (
        joined.filter(differs | ~is_known)
        .with_columns(
            # A clock that runs behind must not hide a description behind the one that it replaces.
            pl.col("observed_at").fill_null(pl.max_horizontal("observed_at_known", pl.lit(now, schema.UTC))),
            pl.lit(ingested_at, schema.UTC).alias("ingested_at"),
        )
        .select(schema.ASSETS.names())
        .sort("pool_id")
    )


def latest(frame: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """Per key the row observed last (ties: ingested last), sorted by key."""
    ordered = frame.sort(*key, *CLOCKS, maintain_order=True)
    superseded = _same_as_previous(ordered, key).shift(-1, fill_value=False)
    return ordered.filter(~superseded) if superseded.any() else ordered


def latest_assets(frame: pl.DataFrame, as_of: datetime | None = None) -> pl.DataFrame:
    """Per pool the latest description observed by `as_of`, sorted by pool.

    A pool that was not described by then has its first description: that it held before is assumed.
    """
    ordered = frame.sort("pool_id", *CLOCKS, maintain_order=True)
    if as_of is not None:
        ordered = ordered.filter((pl.col("observed_at") <= as_of) | pl.col("pool_id").is_first_distinct())
    return ordered.unique("pool_id", keep="last", maintain_order=True)


def _conformed(incoming: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    """The columns and types of `layout`; NaN is not observed, so it is null here."""
    return _with_columns_of(incoming, layout.columns).with_columns(pl.col(*layout.measured).fill_nan(None))


def _with_columns_of(frame: pl.DataFrame, wanted: pl.Schema) -> pl.DataFrame:
    return frame.select(
        (pl.col(name) if name in frame.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in wanted.items()
    )


def _overlap(known: pl.DataFrame, rows: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """The known rows that share their key with a row that comes in."""
    return known.join(rows.select(key), on=list(key), how="semi") if known.height else known


def _fetched(incoming: pl.DataFrame, now: datetime) -> pl.Expr | pl.Series:
    """When each row was received: as it says, else `now`."""
    if "fetched_at" not in incoming.columns:
        return pl.lit(now, schema.UTC)
    return incoming["fetched_at"].cast(schema.UTC).fill_null(now)


def _lacked(incoming: pl.DataFrame) -> pl.Expr | pl.Series:
    """The last instant at which the source of each row is known to have told all without it, if any is."""
    if "lacked_at" not in incoming.columns:
        return pl.lit(None, schema.UTC)
    return incoming["lacked_at"].cast(schema.UTC)


def _observed(rows: pl.DataFrame, known: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    if not rows["observed_at"].null_count():
        return rows
    came_late = pl.col("valid_at") <= pl.col("lacked_at")
    first = pl.when(came_late).then(pl.max_horizontal("valid_at", "fetched_at")).otherwise("valid_at")
    if not known.height:
        return rows.with_columns(pl.col("observed_at").fill_null(first))
    # A clock that ran ahead must not make a later correction look older than what it corrects.
    latest = known.group_by(key).agg(pl.col("observed_at").max().alias("known_at"))
    return (
        rows.join(latest, on=list(key), how="left", maintain_order="left")
        .with_columns(
            pl.coalesce(
                "observed_at",
                pl.when(pl.col("known_at").is_not_null()).then(pl.max_horizontal("known_at", "fetched_at")),
                first,
            ).alias("observed_at")
        )
        .drop("known_at")
    )


def _same_as_previous(frame: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """(rows,) whether all `columns` equal those of the row above; null equals null; False in the first row."""
    same = frame.select(
        pl.all_horizontal(pl.col(name).eq_missing(pl.col(name).shift(1)) for name in columns).alias("same")
    )["same"]
    if same.len():
        same[0] = False
    return same


def _keep_known(both: pl.DataFrame, silent: Sequence[str], same_key: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
    """Give fresh rows the values that the store last knew for their key in columns the import does not have.

    Also tells which rows have such a value. It is a copy: the tables do not tell silence from what was said.
    """
    rows = np.arange(both.height)
    fresh = both["fresh"].to_numpy()
    key_start = np.maximum.accumulate(np.where(same_key.to_numpy(), 0, rows))
    last_known = np.maximum.accumulate(np.where(fresh, -1, rows))
    source = pl.Series(np.where(fresh & (last_known >= key_start), last_known, rows))
    both = both.with_columns(both[name].gather(source).alias(name) for name in silent)
    given = both.select(pl.any_horizontal(pl.col(silent).is_not_null()).alias("given"))["given"]
    return both, both["fresh"] & given
