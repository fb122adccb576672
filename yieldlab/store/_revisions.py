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

KEY = ("pool_id", "valid_at")
CLOCKS = ("observed_at", "ingested_at")


@dataclass(frozen=True, slots=True)
class Change:
    """The rows to append, and how many of the rows that came in were new, changed or already known."""

    rows: pl.DataFrame
    new: int
    revised: int
    unchanged: int


def changes(known: pl.DataFrame, incoming: pl.DataFrame, *, now: datetime, ingested_at: datetime) -> Change:
    """Compare `incoming` with `known` (both with columns of `schema.YIELD_METRICS`) and keep what adds something.

    A row without `observed_at` takes its `valid_at` when the store has no row of that pool and instant (the assumption
    about history) and `now` when it has. A row is unchanged when the row known just before it (by `observed_at`, then
    `ingested_at`) measures the same. A measured column that `incoming` does not have says nothing: a revision keeps
    what was known. Of two rows with the same pool, instant and `observed_at`, the later one counts.
    """
    silent = [name for name in schema.MEASURED if name not in incoming.columns]
    rows = _conformed(incoming)
    known = _overlap(known, rows)
    rows = _observed(rows, known, now)
    both = pl.concat(
        [
            known.select(*schema.YIELD_METRICS.names(), pl.lit(False).alias("fresh")),
            rows.with_columns(pl.lit(ingested_at, schema.UTC).alias("ingested_at")).select(
                *schema.YIELD_METRICS.names(), pl.lit(True).alias("fresh")
            ),
        ]
    ).sort(*KEY, *CLOCKS, "fresh", maintain_order=True)
    del rows, known
    repeated = _same_as_previous(both, (*KEY, "observed_at", "fresh")).shift(-1, fill_value=False) & both["fresh"]
    if repeated.any():
        both = both.filter(~repeated)
    same_key = _same_as_previous(both, KEY)
    if silent:
        both = _keep_known(both, silent, same_key)
    fresh = both["fresh"]
    unchanged = fresh & same_key & _same_as_previous(both, schema.MEASURED)
    added = fresh & ~unchanged
    new = int((added & ~same_key).sum())
    return Change(
        rows=both.filter(added).drop("fresh"),
        new=new,
        revised=int(added.sum()) - new,
        unchanged=int(unchanged.sum()) + int(repeated.sum()),
    )


def described(known: pl.DataFrame, incoming: pl.DataFrame, *, now: datetime, ingested_at: datetime) -> pl.DataFrame:
    """The rows of `incoming` (pool_id and some of `schema.DESCRIBED`) that tell something new about their pool.

    A missing or null description says nothing: what was known stays.
    """
    latest = latest_assets(known)
    given = _with_columns_of(incoming, schema.ASSETS).unique("pool_id", keep="last", maintain_order=True)
    joined = given.join(latest.select("pool_id", *schema.DESCRIBED), on="pool_id", how="left", suffix="_known")
    joined = joined.with_columns(pl.coalesce(name, f"{name}_known").alias(name) for name in schema.DESCRIBED)
    is_known = joined["pool_id"].is_in(latest["pool_id"].implode())
    differs = pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"{name}_known")) for name in schema.DESCRIBED)
    return (
        joined.filter(differs | ~is_known)
        .with_columns(
            pl.col("observed_at").fill_null(pl.lit(now, schema.UTC)),
            pl.lit(ingested_at, schema.UTC).alias("ingested_at"),
        )
        .select(schema.ASSETS.names())
        .sort("pool_id")
    )


def latest_metrics(frame: pl.DataFrame) -> pl.DataFrame:
    """Per pool and `valid_at` the row observed last (ties: ingested last), sorted by pool and instant."""
    ordered = frame.sort(*KEY, *CLOCKS, maintain_order=True)
    superseded = _same_as_previous(ordered, KEY).shift(-1, fill_value=False)
    return ordered.filter(~superseded) if superseded.any() else ordered


def latest_assets(frame: pl.DataFrame) -> pl.DataFrame:
    """Per pool its latest description, sorted by pool."""
    return frame.sort("pool_id", *CLOCKS, maintain_order=True).unique("pool_id", keep="last", maintain_order=True)


def _conformed(incoming: pl.DataFrame) -> pl.DataFrame:
    """The columns and types of `yield_metrics`; NaN is not observed, so it is null here."""
    return _with_columns_of(incoming, schema.YIELD_METRICS).with_columns(pl.col(*schema.MEASURED).fill_nan(None))


def _with_columns_of(frame: pl.DataFrame, wanted: pl.Schema) -> pl.DataFrame:
    return frame.select(
        (pl.col(name) if name in frame.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in wanted.items()
    )


def _overlap(known: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The known rows that share pool and instant with a row that comes in."""
    return known.join(rows.select(KEY), on=list(KEY), how="semi") if known.height else known


def _observed(rows: pl.DataFrame, known: pl.DataFrame, now: datetime) -> pl.DataFrame:
    if not rows["observed_at"].null_count():
        return rows
    if not known.height:
        return rows.with_columns(pl.col("observed_at").fill_null(pl.col("valid_at")))
    # A clock that ran ahead must not make a later correction look older than what it corrects.
    latest = known.group_by(KEY).agg(pl.col("observed_at").max().alias("known_at"))
    return (
        rows.join(latest, on=list(KEY), how="left", maintain_order="left")
        .with_columns(
            pl.coalesce(
                "observed_at",
                pl.when(pl.col("known_at").is_not_null()).then(pl.max_horizontal("known_at", pl.lit(now, schema.UTC))),
                "valid_at",
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


def _keep_known(both: pl.DataFrame, silent: Sequence[str], same_key: pl.Series) -> pl.DataFrame:
    """Give fresh rows the values that the store last knew for their key in columns the import does not have."""
    rows = np.arange(both.height)
    fresh = both["fresh"].to_numpy()
    key_start = np.maximum.accumulate(np.where(same_key.to_numpy(), 0, rows))
    last_known = np.maximum.accumulate(np.where(fresh, -1, rows))
    source = pl.Series(np.where(fresh & (last_known >= key_start), last_known, rows))
    return both.with_columns(both[name].gather(source).alias(name) for name in silent)
