"""Which rows look wrong, by which check, and how far beyond what limit?

Each check gives one row per flag: pool_id, valid_at, check, value, limit. A flag is a reason to look, no verdict: what
is above a threshold is told pool by pool in `_check`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import polars as pl

from yieldlab import schema
from yieldlab.quality._robust import MAD_TO_SIGMA, SPIKE_WINDOW
from yieldlab.quality._thresholds import Thresholds

#: Sources of the live feed: a poll sees a pool within the day, and the row of an unfinished day in a chart moves on.
POLLED = f"{schema.FEED}/pools"
CHARTED = f"{schema.FEED}/chart"

#: Daily observations before and after a day that a shift of level has to tell apart.
SHIFT_WINDOW = 14
#: Yields below so many percent count as this one in a shift, so that nothing is divided by nearly nothing.
SHIFT_FLOOR_PERCENT = 0.05
#: Quantiles that are exactly the second lowest and the second highest of a window, so that one spike hides no shift.
_SECOND_LOWEST = 1 / (SHIFT_WINDOW - 1)
_SECOND_HIGHEST = 1 - _SECOND_LOWEST

FLAGS = pl.Schema(
    {
        "pool_id": pl.String(),
        "valid_at": schema.UTC,
        "check": pl.String(),
        "value": pl.Float64(),
        "limit": pl.Float64(),
    }
)


def flags(rows: pl.DataFrame, daily: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    """All flags, sorted by pool, instant and check.

    `rows` are latest revisions sorted by pool and instant, with `day` and `revised_by` (percentage points by which a
    revision changed the APY, null where nothing was revised); `daily` has the last APY of each pool's days.
    """
    found = [
        *(_flagged(look(rows, thresholds), name) for name, look in _BY_ROW.items()),
        *(_flagged(look(daily, thresholds), name) for name, look in _BY_DAY.items()),
    ]
    return pl.concat(found).sort("pool_id", "valid_at", "check")


def _flagged(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    return frame.select(
        pl.col("pool_id").cast(pl.String),
        "valid_at",
        pl.lit(name).alias("check"),
        pl.col("value").cast(pl.Float64),
        pl.col("limit").cast(pl.Float64),
    )


def without_tvl() -> pl.Expr:
    """Rows without any money: TVL is missing or zero."""
    return pl.col("tvl_usd").is_null() | (pl.col("tvl_usd") == 0.0)


def with_parts() -> pl.Expr:
    """Rows that can contradict themselves: an APY, and at least one of the parts it should be the sum of."""
    parts = pl.col("apy_base_percent").is_not_null() | pl.col("apy_reward_percent").is_not_null()
    return pl.col("apy_percent").is_not_null() & parts


def _no_tvl(rows: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    return rows.filter(without_tvl()).with_columns(pl.col("tvl_usd").alias("value"), pl.lit(0.0).alias("limit"))


def _low_tvl(rows: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    low = (pl.col("tvl_usd") < thresholds.tvl_floor_usd) & ~without_tvl()
    return rows.filter(low).with_columns(
        pl.col("tvl_usd").alias("value"), pl.lit(thresholds.tvl_floor_usd).alias("limit")
    )


def _split(rows: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    """APY against base + reward, a part that is not there being zero."""
    parts = pl.col("apy_base_percent").fill_null(0.0) + pl.col("apy_reward_percent").fill_null(0.0)
    return (
        rows.filter(with_parts())
        .with_columns(
            (pl.col("apy_percent") - parts).abs().alias("value"), pl.lit(thresholds.split_percent).alias("limit")
        )
        .filter(pl.col("value") > pl.col("limit"))
    )


def _duplicate(rows: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    """Rows that are not the only one of their pool's day.

    Polls come many times a day by nature. So does, once a day is fetched again while it lasts, the row that the chart
    has for it: of these the one stored last speaks for the day.
    """
    charted = rows["source"] == CHARTED
    candidates = rows.filter(rows["source"].ne_missing(POLLED))
    if charted.any():
        moved_on = pl.col("ingested_at") < pl.col("ingested_at").filter(pl.col("source") == CHARTED).max().over(
            "pool_id", "day"
        )
        candidates = candidates.filter(~(moved_on & (pl.col("source") == CHARTED)).fill_null(False))
    return (
        candidates.with_columns(pl.len().over("pool_id", "day").alias("value"), pl.lit(1.0).alias("limit"))
        .filter(pl.col("value") > 1)
        .select("pool_id", "valid_at", "value", "limit")
    )


def _revised(rows: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    return rows.filter(pl.col("revised_by").is_not_null()).with_columns(
        pl.col("revised_by").alias("value"), pl.lit(0.0).alias("limit")
    )


def _gap(daily: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    """The row that ends each stretch of days without one."""
    return daily.filter(pl.col("unseen") > 0).with_columns(pl.col("unseen").alias("value"), pl.lit(0.0).alias("limit"))


def _outage(daily: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    """The rows of each day that ends a stretch of days without a row of any pool."""
    days = daily.select(pl.col("day").unique().sort())
    ends = days.with_columns((pl.col("day").diff().dt.total_days() - 1).alias("value")).filter(pl.col("value") > 0)
    return daily.join(ends, on="day", how="inner").with_columns(pl.lit(0.0).alias("limit"))


def _repeated(daily: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    """The days of a run that come after it has been going on for too long."""
    return daily.filter(pl.col("run") > thresholds.stale_days).with_columns(
        pl.col("run").alias("value"), pl.lit(thresholds.stale_days).alias("limit")
    )


def _spike(daily: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    """Distance from the median around a day, against the median of all those distances of the pool."""
    apy = pl.col("apy_percent")
    around = apy.rolling_median(SPIKE_WINDOW, min_samples=1, center=True).over("pool_id")
    deviation = pl.col("away").median().over("pool_id") * MAD_TO_SIGMA * thresholds.spike_deviations
    far = pl.max_horizontal(deviation, pl.lit(thresholds.spike_percent))
    return (
        daily.drop_nulls("apy_percent")
        .with_columns(around.alias("around"))
        .with_columns((apy - pl.col("around")).abs().alias("away"))
        .with_columns(deviation.alias("deviation"), far.alias("far"))
        .filter((pl.col("away") > pl.col("deviation")) & (pl.col("away") >= thresholds.spike_percent))
        .with_columns(
            apy.alias("value"), (pl.col("around") + pl.col("far") * (apy - pl.col("around")).sign()).alias("limit")
        )
    )


def _level_shift(daily: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    """Days on which a yield goes to another order of magnitude and stays there, as when a unit or a method changes.

    All but one of the 14 observations from the day on lie beyond all but one of the 14 before it, times the factor. Of
    neighbouring days for which that holds, the one with the largest step is flagged.
    """
    apy = pl.col("apy")
    quantiles = {"low": _of_window(apy, _SECOND_LOWEST), "high": _of_window(apy, _SECOND_HIGHEST)}
    quantiles["middle"] = apy.rolling_median(SHIFT_WINDOW)
    before = (what.shift(1).over("pool_id").alias(f"{name}_before") for name, what in quantiles.items())
    after = (what.shift(1 - SHIFT_WINDOW).over("pool_id").alias(f"{name}_after") for name, what in quantiles.items())
    step = (apy / apy.shift(1).over("pool_id")).log().abs()
    factor = thresholds.shift_factor
    rise = pl.col("low_after") > factor * pl.col("high_before")
    fall = pl.col("low_before") > factor * pl.col("high_after")
    return (
        daily.drop_nulls("apy_percent")
        .with_columns(pl.max_horizontal("apy_percent", pl.lit(SHIFT_FLOOR_PERCENT)).alias("apy"))
        .with_columns(*before, *after, step.alias("step"))
        .with_columns((rise | fall).fill_null(False).alias("shifts"))
        .with_columns(pl.struct("pool_id", "shifts").rle_id().alias("stretch"))
        .filter("shifts")
        .filter(pl.int_range(pl.len()).over("stretch") == pl.col("step").arg_max().over("stretch"))
        .with_columns(
            (pl.col("middle_after") / pl.col("middle_before")).alias("value"),
            pl.when(pl.col("middle_after") > pl.col("middle_before")).then(factor).otherwise(1 / factor).alias("limit"),
        )
    )


def _of_window(value: pl.Expr, share: float) -> pl.Expr:
    return value.rolling_quantile(share, interpolation="nearest", window_size=SHIFT_WINDOW)


_BY_ROW: MappingProxyType[str, Callable[[pl.DataFrame, Thresholds], pl.DataFrame]] = MappingProxyType(
    {"no_tvl": _no_tvl, "low_tvl": _low_tvl, "split": _split, "duplicate": _duplicate, "revised": _revised}
)
_BY_DAY: MappingProxyType[str, Callable[[pl.DataFrame, Thresholds], pl.DataFrame]] = MappingProxyType(
    {"gap": _gap, "outage": _outage, "repeated": _repeated, "spike": _spike, "level_shift": _level_shift}
)
