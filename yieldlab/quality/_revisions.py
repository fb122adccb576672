"""What was changed after the fact, by how much, and when did it become known?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from yieldlab import schema
from yieldlab.errors import DataError, did_you_mean

KEY = ("pool_id", "valid_at")
CLOCKS = ("observed_at", "ingested_at")

#: One row per revised row and measured column that it changed.
CHANGES = pl.Schema(
    {
        "pool_id": pl.String(),
        "valid_at": schema.UTC,
        "column": pl.String(),
        "before": pl.Float64(),
        "after": pl.Float64(),
        "change": pl.Float64(),
        "observed_at": schema.UTC,
        "ingested_at": schema.UTC,
        "days_after": pl.Float64(),
        "source": pl.String(),
    }
)


@dataclass(frozen=True, slots=True)
class Revisions:
    """`changes`: one row per changed value, latest knowledge first; null in `before` or `after` = not observed then.

    `pools`, `columns` and `months` (of `observed_at`) sum them up. `rows` are the instants looked at, `confirmed` the
    rows that came in again with the same values, `earlier` the values changed before what was asked for.
    """

    changes: pl.DataFrame
    pools: pl.DataFrame
    columns: pl.DataFrame
    months: pl.DataFrame
    rows: int
    confirmed: int
    earlier: int = 0

    def totals(self) -> dict[str, int]:
        """How many instants there are, how many of them were changed, and in how many pools and values."""
        return {
            "rows": self.rows,
            "revised_rows": self.changes.select(KEY).n_unique() if self.changes.height else 0,
            "revised_pools": self.pools.height,
            "changed_values": self.changes.height,
            "confirmed_rows": self.confirmed,
            "changed_before": self.earlier,
        }


def revisions(history: pl.DataFrame, *, pools: Sequence[str] | None = None, since: datetime | None = None) -> Revisions:
    """The changes in all revisions (`Store.history()`), of `pools` only and known at `since` or later only.

    Each row is compared with the one known just before it (by `observed_at`, then `ingested_at`). Raises DataError for
    a pool that is not in the data.
    """
    if pools:
        known = history["pool_id"].unique().to_list()
        for pool in pools:
            if pool not in known:
                raise DataError(f"there is no pool {pool!r} in the data{did_you_mean(pool, known)}")
        history = history.filter(pl.col("pool_id").is_in(list(pools)))
    rows = history.select(KEY).n_unique()
    several = history.filter(pl.len().over(KEY) > 1).sort(*KEY, *CLOCKS, maintain_order=True)
    follows = _follows(several)
    measured = [name for name in schema.MEASURED if name in several.columns]
    compared = several.with_columns(follows.alias("follows")).with_columns(
        pl.col(name).shift(1).alias(f"{name}_before") for name in measured
    )
    compared, earlier = compared.filter("follows"), 0
    if since is not None:
        before = compared.filter(pl.col("observed_at") < since)
        earlier = sum(_of_column(before, name).height for name in measured)
        compared = compared.filter(pl.col("observed_at") >= since)
    changes = pl.concat([CHANGES.to_frame(), *(_of_column(compared, name) for name in measured)]).sort(
        "observed_at", "ingested_at", *KEY, "column", descending=[True, True, False, False, False]
    )
    return Revisions(
        changes,
        _by_pool(changes),
        _by_column(changes),
        _by_month(changes),
        rows,
        compared.height - changes.select(*KEY, *CLOCKS).n_unique() if changes.height else compared.height,
        earlier,
    )


def revised_by(frame: pl.DataFrame) -> pl.DataFrame:
    """The latest revisions of a frame sorted by key and clocks, with `revised_by`.

    That is the largest change of the APY at one revision, in percentage points (0 where another value was changed, or
    the APY was not there before or after), and null for a row that was never changed.
    """
    measured = [name for name in schema.MEASURED if name in frame.columns]
    differs = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift(1)) for name in measured)
    moved = (pl.col("apy_percent") - pl.col("apy_percent").shift(1)).abs().fill_null(0.0)
    follows = _follows(frame)
    last = ~follows.shift(-1, fill_value=False)
    if not follows.any():
        return frame.with_columns(pl.lit(None, pl.Float64).alias("revised_by"))
    group = (~follows).cum_sum()
    return (
        frame.with_columns(pl.when(follows & differs).then(moved).alias("revised_by"), group.alias("group"))
        .with_columns(pl.col("revised_by").max().over("group"))
        .filter(last)
        .drop("group")
    )


def _follows(frame: pl.DataFrame) -> pl.Series:
    """(rows,) whether the row above is of the same pool and instant."""
    same = frame.select(pl.all_horizontal(pl.col(name) == pl.col(name).shift(1) for name in KEY).alias("same"))["same"]
    return same.fill_null(False)


def _of_column(compared: pl.DataFrame, name: str) -> pl.DataFrame:
    before, after = pl.col(f"{name}_before"), pl.col(name)
    return compared.filter(after.ne_missing(before)).select(
        *KEY,
        pl.lit(name).alias("column"),
        before.cast(pl.Float64).alias("before"),
        after.cast(pl.Float64).alias("after"),
        (after - before).cast(pl.Float64).alias("change"),
        *CLOCKS,
        ((pl.col("observed_at") - pl.col("valid_at")).dt.total_microseconds() / 86_400e6).alias("days_after"),
        (pl.col("source") if "source" in compared.columns else pl.lit(None, pl.String)).alias("source"),
    )


def _by_pool(changes: pl.DataFrame) -> pl.DataFrame:
    apy = pl.col("change").filter(pl.col("column") == "apy_percent").abs()
    return (
        changes.group_by("pool_id")
        .agg(
            pl.col("valid_at").n_unique().cast(pl.Int64).alias("revised_rows"),
            pl.len().cast(pl.Int64).alias("changed_values"),
            apy.max().alias("largest_apy_change"),
            pl.col("days_after").max().alias("latest_days_after"),
            pl.col("observed_at").min().alias("first_observed_at"),
            pl.col("observed_at").max().alias("last_observed_at"),
        )
        .sort("revised_rows", "pool_id", descending=[True, False])
    )


def _by_column(changes: pl.DataFrame) -> pl.DataFrame:
    size = pl.col("change").abs()
    found = changes.group_by("column").agg(
        pl.len().cast(pl.Int64).alias("changed_values"),
        pl.col("before").is_null().sum().cast(pl.Int64).alias("added"),
        pl.col("after").is_null().sum().cast(pl.Int64).alias("withdrawn"),
        size.median().alias("median_change"),
        size.max().alias("largest_change"),
    )
    order = pl.DataFrame({"column": schema.MEASURED})
    return order.join(found, on="column", how="inner", maintain_order="left")


def _by_month(changes: pl.DataFrame) -> pl.DataFrame:
    return (
        changes.group_by(pl.col("observed_at").dt.strftime("%Y-%m").alias("month"))
        .agg(
            pl.col("pool_id").n_unique().cast(pl.Int64).alias("pools"),
            pl.struct(KEY).n_unique().cast(pl.Int64).alias("revised_rows"),
            pl.len().cast(pl.Int64).alias("changed_values"),
            pl.col("valid_at").min().alias("first_valid_at"),
            pl.col("valid_at").max().alias("last_valid_at"),
        )
        .sort("month")
    )
