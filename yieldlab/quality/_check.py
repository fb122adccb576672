"""How sound is the data? Gaps, frozen feeds, spikes, missing money, late starts and dead pools, pool by pool.

Nothing is changed here: checks count, and a breach says in one sentence what lies above which threshold.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from datetime import date

import polars as pl

from yieldlab.errors import DataError, UsageError
from yieldlab.quality._robust import MAD_TO_SIGMA, SPIKE_DEVIATIONS, SPIKE_WINDOW


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What is still sound. Limits are per pool; None switches a limit off. Days are calendar days of UTC."""

    #: Longest stretch of days without an observation between two observed ones.
    max_gap_days: int | None = 30
    #: Share of days without an observation between a pool's first and last.
    max_missing_share: float | None = 0.25
    #: Longest run of days, all observed, on which one yield other than zero is repeated to the last digit.
    max_stale_days: int | None = 30
    #: Share of daily observations that are spikes.
    max_spike_share: float | None = 0.05
    #: Share of rows whose TVL is missing or zero.
    max_no_tvl_share: float | None = 0.10
    #: Share of rows that are not the only one of their day.
    max_duplicate_share: float | None = 0.10
    #: Days between the first observation of all and a pool's first.
    max_late_start_days: int | None = None
    #: Share of all pools that are dead.
    max_dead_share: float | None = None
    #: A spike is this many robust deviations away from the median of the observations around it ...
    spike_deviations: float = SPIKE_DEVIATIONS
    #: ... and at least so many percentage points.
    spike_percent: float = 1.0
    #: A pool is dead when it was silent for more than so many days at the end of the data.
    dead_after_days: int = 30

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and not value >= 0:
                raise UsageError(f"the threshold {item.name} must be 0 or more, not {value}")
            if value is not None and item.name.endswith("_share") and value > 1:
                raise UsageError(f"the threshold {item.name} is a share between 0 and 1, not {value}")


@dataclass(frozen=True, slots=True)
class Report:
    """`pools`: one row per pool. `totals`: over all. `breaches`: pool_id (null = all), check, value, limit, message."""

    pools: pl.DataFrame
    totals: dict[str, int | float | str]
    breaches: pl.DataFrame
    thresholds: Thresholds

    @property
    def sound(self) -> bool:
        """Whether no threshold is exceeded."""
        return self.breaches.is_empty()

    def as_dict(self) -> dict[str, object]:
        """All of it in plain values; days as ISO texts."""
        return {
            "sound": self.sound,
            "totals": self.totals,
            "pools": self.pools.with_columns(pl.col(pl.Date).dt.to_string("%Y-%m-%d")).to_dicts(),
            "breaches": self.breaches.to_dicts(),
            "thresholds": asdict(self.thresholds),
        }


#: Per-pool limit -> the column it holds for, and what to say of a pool above it.
_LIMITS = {
    "max_gap_days": ("longest_gap_days", "was not observed for {value:.0f} days in a row"),
    "max_missing_share": ("missing_share", "was not observed on {value:.1%} of the days of its life"),
    "max_stale_days": ("longest_stale_days", "repeated one yield for {value:.0f} days"),
    "max_spike_share": ("spike_share", "has spikes on {value:.1%} of its days"),
    "max_no_tvl_share": ("no_tvl_share", "has no TVL or zero in {value:.1%} of its rows"),
    "max_duplicate_share": ("duplicate_share", "has {value:.1%} of its rows on days that have another one"),
    "max_late_start_days": ("late_start_days", "starts {value:.0f} days after the first pool"),
}


def check(metrics: pl.DataFrame, thresholds: Thresholds | None = None, *, last_day: date | None = None) -> Report:
    """Hold latest revisions (`Store.metrics()`: pool_id, valid_at, apy_percent, tvl_usd) to thresholds.

    `last_day` is the day on which the data should end (default: the last day in it), for telling dead pools.
    """
    thresholds = thresholds or Thresholds()
    if metrics.is_empty():
        raise DataError("there are no rows to check")
    rows = metrics.select(
        "pool_id", "valid_at", pl.col("valid_at").dt.date().alias("day"), "apy_percent", "tvl_usd"
    ).sort("pool_id", "valid_at")
    daily = rows.group_by("pool_id", "day", maintain_order=True).agg(pl.col("apy_percent").drop_nulls().last())
    pools = (
        _per_row(rows)
        .join(_gaps(daily), on="pool_id", how="left")
        .join(_stale(daily), on="pool_id", how="left")
        .join(_spikes(daily, thresholds), on="pool_id", how="left")
        .sort("pool_id")
    )
    end = last_day or rows["day"].max()
    silent = (pl.lit(end) - pl.col("last")).dt.total_days()
    pools = pools.with_columns(
        (pl.col("first") - pl.col("first").min()).dt.total_days().alias("late_start_days"),
        silent.alias("silent_days"),
        (silent > thresholds.dead_after_days).alias("dead"),
    )
    return Report(pools, _totals(pools), _breaches(pools, thresholds), thresholds)


def _per_row(rows: pl.DataFrame) -> pl.DataFrame:
    no_tvl = pl.col("tvl_usd").is_null() | pl.col("tvl_usd").is_nan() | (pl.col("tvl_usd") == 0.0)
    on_day = pl.len().over("pool_id", "day")
    return (
        rows.with_columns((on_day > 1).alias("shared"))
        .group_by("pool_id", maintain_order=True)
        .agg(
            pl.col("day").min().alias("first"),
            pl.col("day").max().alias("last"),
            pl.len().cast(pl.Int64).alias("rows"),
            pl.col("day").n_unique().cast(pl.Int64).alias("days"),
            pl.col("day").filter("shared").n_unique().cast(pl.Int64).alias("duplicate_days"),
            pl.col("shared").mean().alias("duplicate_share"),
            no_tvl.sum().cast(pl.Int64).alias("no_tvl_rows"),
            no_tvl.mean().alias("no_tvl_share"),
        )
    )


def _gaps(daily: pl.DataFrame) -> pl.DataFrame:
    unseen = (pl.col("day").diff().dt.total_days() - 1).fill_null(0)
    life = (pl.col("day").max() - pl.col("day").min()).dt.total_days() + 1
    return daily.group_by("pool_id", maintain_order=True).agg(
        (unseen > 0).sum().cast(pl.Int64).alias("gaps"),
        unseen.max().alias("longest_gap_days"),
        unseen.sum().alias("missing_days"),
        (unseen.sum() / life).alias("missing_share"),
    )


def _stale(daily: pl.DataFrame) -> pl.DataFrame:
    """A pool without yield honestly says zero every day, so zeros make no run; a day not observed repeats nothing."""
    runs = (
        daily.with_columns(
            pl.col("apy_percent").rle_id().alias("run"),
            # The same number as long as each row is the day after the one above it.
            (pl.col("day").to_physical() - pl.int_range(pl.len())).alias("stretch"),
        )
        .group_by("pool_id", "run", "stretch", maintain_order=True)
        .agg(pl.col("apy_percent").first(), pl.len().cast(pl.Int64).alias("length"))
    )
    counted = pl.when(pl.col("apy_percent").is_not_null() & (pl.col("apy_percent") != 0.0)).then("length").otherwise(0)
    return runs.group_by("pool_id", maintain_order=True).agg(counted.max().alias("longest_stale_days"))


def _spikes(daily: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    """Distance from the median around a day, against the median of all those distances of the pool."""
    around = pl.col("apy_percent").rolling_median(SPIKE_WINDOW, min_samples=1, center=True).over("pool_id")
    away = (
        daily.drop_nulls("apy_percent")
        .with_columns((pl.col("apy_percent") - around).abs().alias("away"))
        .with_columns((pl.col("away").median().over("pool_id") * MAD_TO_SIGMA).alias("deviation"))
    )
    spike = (pl.col("away") > pl.col("deviation") * thresholds.spike_deviations) & (
        pl.col("away") >= thresholds.spike_percent
    )
    return away.group_by("pool_id", maintain_order=True).agg(
        spike.sum().cast(pl.Int64).alias("spikes"),
        spike.mean().alias("spike_share"),
        pl.col("apy_percent").max().alias("highest_apy_percent"),
    )


def _totals(pools: pl.DataFrame) -> dict[str, int | float | str]:
    life = (pools["last"] - pools["first"]).dt.total_days() + 1
    return {
        "pools": pools.height,
        "rows": int(pools["rows"].sum()),
        "first": str(pools["first"].min()),
        "last": str(pools["last"].max()),
        "gaps": int(pools["gaps"].sum()),
        "missing_days": int(pools["missing_days"].sum()),
        "missing_share": int(pools["missing_days"].sum()) / int(life.sum()),
        "longest_gap_days": _highest(pools["longest_gap_days"]),
        "longest_stale_days": _highest(pools["longest_stale_days"]),
        "spikes": int(pools["spikes"].sum()),
        "no_tvl_rows": int(pools["no_tvl_rows"].sum()),
        "duplicate_days": int(pools["duplicate_days"].sum()),
        "late_pools": int((pools["late_start_days"] > 0).sum()),
        "dead_pools": int(pools["dead"].sum()),
    }


def _highest(days: pl.Series) -> int:
    return int(days.sort(descending=True, nulls_last=True)[0] or 0)


def _breaches(pools: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    found: list[tuple[str | None, str, float, float, str]] = []
    for name, (column, says) in _LIMITS.items():
        limit = getattr(thresholds, name)
        if limit is None:
            continue
        above = pools.filter(pl.col(column) > limit).select("pool_id", pl.col(column).cast(pl.Float64))
        found += [
            (pool, name, value, float(limit), f"{pool} {says.format(value=value)}; {name} is {limit}")
            for pool, value in above.rows()
        ]
    dead = float(pools["dead"].cast(pl.Float64).sum()) / pools.height
    if thresholds.max_dead_share is not None and dead > thresholds.max_dead_share:
        told = f"{dead:.1%} of the pools are dead; max_dead_share is {thresholds.max_dead_share}"
        found.append((None, "max_dead_share", dead, thresholds.max_dead_share, told))
    columns = {
        "pool_id": pl.String(),
        "check": pl.String(),
        "value": pl.Float64(),
        "limit": pl.Float64(),
        "message": pl.String(),
    }
    return pl.DataFrame(found, schema=columns, orient="row").sort("pool_id", "check", nulls_last=True)
