"""How sound is the data? Gaps, frozen feeds, spikes, contradictions, missing money, shifts and who is left, by pool.

Nothing is changed here: checks count, and a breach says in one sentence what lies above which threshold.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import polars as pl

from yieldlab.errors import DataError, UsageError
from yieldlab.quality._flags import flags, with_parts, without_tvl
from yieldlab.quality._revisions import revised_by
from yieldlab.quality._silence import crowds, outages
from yieldlab.quality._thresholds import Thresholds
from yieldlab.units import to_percent

KEY = ("pool_id", "valid_at")

#: Columns that a check reads; those from `source` on are optional.
COLUMNS = ("pool_id", "valid_at", "apy_percent", "tvl_usd", "apy_base_percent", "apy_reward_percent", "source")

#: Endings of a file of flags.
SUFFIXES = (".parquet", ".pq")

#: Flag -> the column that counts it per pool. Their sum is the number of flags.
COUNTED = {
    "gap": "gaps",
    "outage": "outage_rows",
    "repeated": "repeated_days",
    "spike": "spikes",
    "split": "split_rows",
    "no_tvl": "no_tvl_rows",
    "low_tvl": "low_tvl_rows",
    "duplicate": "duplicate_rows",
    "level_shift": "level_shifts",
    "revised": "revised_rows",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found.

    `pools`: one row per pool. `years`: pools seen, appeared, left and still alive at the end, by year. `outages`:
    stretches of days without a row of any pool. `crowds`: days on which many pools fell silent for good. `totals`: over
    all. `breaches`: pool_id (null = all), check, value, limit, message. `flags`: one row per row of data that looks
    wrong to a check (pool_id, valid_at, check, value, limit).
    """

    pools: pl.DataFrame
    years: pl.DataFrame
    outages: pl.DataFrame
    crowds: pl.DataFrame
    totals: dict[str, int | float | str]
    breaches: pl.DataFrame
    flags: pl.DataFrame
    thresholds: Thresholds

    @property
    def sound(self) -> bool:
        """Whether no threshold is exceeded."""
        return self.breaches.is_empty()

    def write_flags(self, path: Path) -> None:
        """Write `flags` as Parquet, whole or not at all. Raises UsageError where the file cannot be written."""
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(f"flags are written as Parquet, so name a file that ends with .parquet, not {str(path)!r}")
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            self.flags.write_parquet(unfinished)
            unfinished.replace(path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise UsageError(f"the flags cannot be written to {path}: {error.strerror or error}") from error

    def as_dict(self) -> dict[str, object]:
        """All of it but the single flags in plain values; days as ISO texts."""
        return {
            "sound": self.sound,
            "totals": self.totals,
            "years": self.years.to_dicts(),
            "outages": _plain(self.outages),
            "crowds": _plain(self.crowds),
            "pools": _plain(self.pools),
            "breaches": self.breaches.to_dicts(),
            "thresholds": asdict(self.thresholds),
        }


def _plain(frame: pl.DataFrame) -> list[dict[str, object]]:
    return frame.with_columns(pl.col(pl.Date).dt.to_string("%Y-%m-%d")).to_dicts()


#: Per-pool limit -> the column it holds for, and what to say of a pool above it.
LIMITS = {
    "max_gap_days": ("longest_gap_days", "was not observed for {value:.0f} days in a row"),
    "max_missing_share": ("missing_share", "was not observed on {percent:.1f} % of the days of its life"),
    "max_stale_days": ("longest_stale_days", "repeated one yield for {value:.0f} days"),
    "max_spike_share": ("spike_share", "has spikes on {percent:.1f} % of its days"),
    "max_split_share": ("split_share", "has an APY that is not base + reward in {percent:.1f} % of its rows"),
    "max_no_tvl_share": ("no_tvl_share", "has no TVL or zero in {percent:.1f} % of its rows"),
    "max_low_tvl_share": ("low_tvl_share", "has a TVL below the floor in {percent:.1f} % of its rows"),
    "max_duplicate_share": ("duplicate_share", "has {percent:.1f} % of its rows on days that have another one"),
    "max_level_shifts": ("level_shifts", "has lasting shifts to another order of magnitude, {value:.0f} in number"),
    "max_revised_share": ("revised_share", "was changed after the fact in {percent:.1f} % of its rows"),
    "max_late_start_days": ("late_start_days", "starts {value:.0f} days after the first pool"),
}


def check(metrics: pl.DataFrame, thresholds: Thresholds | None = None, *, last_day: date | None = None) -> Report:
    """Hold observations to thresholds: all revisions (`Store.history()`) or only the latest (`Store.metrics()`).

    pool_id, valid_at, apy_percent and tvl_usd are needed. Revisions are counted where `observed_at` tells them apart,
    contradictions where there are apy_base_percent or apy_reward_percent; `source` tells polls of the live feed.
    `last_day` is the day on which the data should end (default: the last day in it), for telling dead pools.
    """
    thresholds = thresholds or Thresholds()
    if metrics.is_empty():
        raise DataError("there are no rows to check")
    rows = _latest(metrics)
    daily = _daily(rows)
    flagged = flags(rows, daily, thresholds)
    pools = _pools(rows, daily, flagged)
    end = last_day or pl.select(rows["day"].max()).item()
    silent = (pl.lit(end) - pl.col("last")).dt.total_days()
    pools = pools.with_columns(
        (pl.col("first") - pl.col("first").min()).dt.total_days().alias("late_start_days"),
        silent.alias("silent_days"),
        (silent > thresholds.dead_after_days).alias("dead"),
    ).sort("pool_id")
    years = _years(daily, pools)
    out, together = outages(daily["day"], end), crowds(pools)
    totals = _totals(pools, flagged) | {
        "outage_days": int(out["days"].sum()),
        "longest_outage_days": _highest(out["days"]),
        "crowd_pools": int(together["pools"].sum()),
    }
    breaches = _breaches(pools, years, out, thresholds)
    return Report(pools, years, out, together, totals, breaches, flagged, thresholds)


def _latest(metrics: pl.DataFrame) -> pl.DataFrame:
    """Sorted latest revisions with `day`, `revised_by`, and null for what is NaN or not there."""
    clocks = [name for name in ("observed_at", "ingested_at") if name in metrics.columns]
    present = [name for name in COLUMNS if name in metrics.columns]
    types = {"source": pl.String}
    absent = [pl.lit(None, types.get(name, pl.Float64)).alias(name) for name in COLUMNS if name not in present]
    # As numbers in their order, millions of pool ids are compared many times faster than as texts.
    pools = pl.Enum(metrics["pool_id"].unique().sort())
    frame = metrics.select(*dict.fromkeys((*present, *clocks)), *absent).with_columns(
        pl.col("pool_id").cast(pools),
        pl.col("apy_percent", "tvl_usd", "apy_base_percent", "apy_reward_percent").cast(pl.Float64).fill_nan(None),
    )
    if "ingested_at" not in clocks:
        frame = frame.with_columns(pl.lit(None, frame.schema["valid_at"]).alias("ingested_at"))
    frame = frame.sort(*KEY, *clocks, maintain_order=True)
    if "observed_at" in clocks:
        frame = revised_by(frame)
    else:
        frame = frame.with_columns(pl.lit(None, pl.Float64).alias("revised_by"))
    return frame.with_columns(pl.col("valid_at").dt.date().alias("day"))


def _daily(rows: pl.DataFrame) -> pl.DataFrame:
    """Per pool and day the last APY that is there and its instant, `unseen` days before it, `run` of days repeated.

    A pool without yield honestly says zero every day, so zeros make no run; a day not observed repeats nothing.
    """
    observed = pl.col("apy_percent").is_not_null().alias("observed")
    daily = rows.select("pool_id", "day", "apy_percent", "valid_at", observed)
    daily = daily.sort("pool_id", "day", "observed", maintain_order=True)  # what is observed after what is not
    of_another_day = pl.any_horizontal(pl.col(name) != pl.col(name).shift(-1) for name in ("pool_id", "day"))
    daily = daily.filter(of_another_day.fill_null(True)).drop("observed")
    unseen = (pl.col("day").diff().dt.total_days() - 1).over("pool_id").fill_null(0)
    apy, place = pl.col("apy_percent"), pl.int_range(pl.len(), dtype=pl.Int64)
    goes_on = (
        (pl.col("pool_id") == pl.col("pool_id").shift(1))
        & (pl.col("day").diff().dt.total_days() == 1)
        & (apy == apy.shift(1))
    ).fill_null(False)
    began = pl.when(~goes_on).then(place).forward_fill()
    repeats = (apy.is_not_null() & (apy != 0.0)).fill_null(False)
    return daily.with_columns(
        unseen.alias("unseen"), pl.when(repeats).then(place - began + 1).otherwise(0).alias("run")
    )


def _pools(rows: pl.DataFrame, daily: pl.DataFrame, flagged: pl.DataFrame) -> pl.DataFrame:
    """One row per pool: its life, how often it was flagged, and the shares and lengths that limits hold for."""
    of_rows = rows.group_by("pool_id", maintain_order=True).agg(
        pl.col("day").min().alias("first"),
        pl.col("day").max().alias("last"),
        pl.len().cast(pl.Int64).alias("rows"),
        pl.col("day").n_unique().cast(pl.Int64).alias("days"),
        with_parts().sum().cast(pl.Int64).alias("rows_with_parts"),
        without_tvl().mean().alias("no_tvl_share"),
    )
    life = (pl.col("day").max() - pl.col("day").min()).dt.total_days() + 1
    of_days = daily.group_by("pool_id", maintain_order=True).agg(
        pl.col("unseen").max().alias("longest_gap_days"),
        pl.col("unseen").sum().alias("missing_days"),
        (pl.col("unseen").sum() / life).alias("missing_share"),
        pl.col("run").max().cast(pl.Int64).alias("longest_stale_days"),
        pl.col("apy_percent").count().cast(pl.Int64).alias("observed_days"),
        pl.col("apy_percent").max().alias("highest_apy_percent"),
    )
    counts = flagged.group_by("pool_id").agg(
        *((pl.col("check") == name).sum().cast(pl.Int64).alias(column) for name, column in COUNTED.items()),
        pl.col("valid_at")
        .filter(pl.col("check") == "duplicate")
        .dt.date()
        .n_unique()
        .cast(pl.Int64)
        .alias("duplicate_days"),
    )
    counted = [*COUNTED.values(), "duplicate_days"]
    return (
        of_rows.join(of_days, on="pool_id", how="left")
        .with_columns(pl.col("pool_id").cast(pl.String))
        .join(counts, on="pool_id", how="left")
        .with_columns(pl.col(counted).fill_null(0))
        .with_columns(
            _share("spikes", "observed_days").alias("spike_share"),
            _share("split_rows", "rows_with_parts").alias("split_share"),
            _share("low_tvl_rows", "rows").alias("low_tvl_share"),
            _share("duplicate_rows", "rows").alias("duplicate_share"),
            _share("revised_rows", "rows").alias("revised_share"),
        )
    )


def _share(part: str, whole: str) -> pl.Expr:
    """Null where there is no whole to have a share of."""
    return pl.when(pl.col(whole) > 0).then(pl.col(part) / pl.col(whole))


def _years(daily: pl.DataFrame, pools: pl.DataFrame) -> pl.DataFrame:
    """Who was there, year by year, and who of them is alive at the end: survivorship."""
    seen = (
        daily.select(pl.col("pool_id").cast(pl.String), pl.col("day").dt.year().cast(pl.Int64).alias("year"))
        .unique()
        .join(pools.select("pool_id", "first", "last", "dead"), on="pool_id")
    )
    alive = int((~pools["dead"]).sum())
    year = pl.col("year")
    return (
        seen.group_by("year")
        .agg(
            pl.len().cast(pl.Int64).alias("pools"),
            (pl.col("first").dt.year() == year).sum().cast(pl.Int64).alias("appeared"),
            ((pl.col("last").dt.year() == year) & pl.col("dead")).sum().cast(pl.Int64).alias("left"),
            (~pl.col("dead")).sum().cast(pl.Int64).alias("survivors"),
        )
        .with_columns(
            (pl.col("survivors") / pl.col("pools")).alias("survivor_share"),
            (pl.col("survivors") / pl.lit(alive) if alive else pl.lit(None, pl.Float64)).alias("share_of_today"),
        )
        .sort("year")
    )


def _totals(pools: pl.DataFrame, flagged: pl.DataFrame) -> dict[str, int | float | str]:
    life = (pools["last"] - pools["first"]).dt.total_days() + 1
    return {
        "pools": pools.height,
        "rows": int(pools["rows"].sum()),
        "first": str(pools["first"].min()),
        "last": str(pools["last"].max()),
        "missing_days": int(pools["missing_days"].sum()),
        "missing_share": int(pools["missing_days"].sum()) / int(life.sum()),
        "longest_gap_days": _highest(pools["longest_gap_days"]),
        "longest_stale_days": _highest(pools["longest_stale_days"]),
        **{column: int(pools[column].sum()) for column in (*COUNTED.values(), "duplicate_days")},
        "late_pools": int((pools["late_start_days"] > 0).sum()),
        "dead_pools": int(pools["dead"].sum()),
        "flags": flagged.height,
    }


def _highest(days: pl.Series) -> int:
    highest = days.sort(descending=True, nulls_last=True).head(1).to_list()
    return int((highest or [0])[0] or 0)


def _breaches(pools: pl.DataFrame, years: pl.DataFrame, out: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    found: list[tuple[str | None, str, float, float, str]] = []
    for name, (column, says) in LIMITS.items():
        limit = getattr(thresholds, name)
        if limit is None:
            continue
        above = pools.filter(pl.col(column) > limit).select("pool_id", pl.col(column).cast(pl.Float64))
        found += [
            (
                pool,
                name,
                value,
                float(limit),
                f"{pool} {says.format(value=value, percent=to_percent(value))}; {name} is {limit}",
            )
            for pool, value in above.rows()
        ]
    if thresholds.max_outage_days is not None and _highest(out["days"]) > thresholds.max_outage_days:
        first, last, days = out.sort("days", "first", descending=[True, False]).row(0)
        told = f"no pool at all was observed for {days} days in a row, {first} to {last}"
        told += f"; max_outage_days is {thresholds.max_outage_days}"
        found.append((None, "max_outage_days", float(days), float(thresholds.max_outage_days), told))
    dead = float(pools["dead"].cast(pl.Float64).sum()) / pools.height
    if thresholds.max_dead_share is not None and dead > thresholds.max_dead_share:
        told = f"{to_percent(dead):.1f} % of the pools are dead; max_dead_share is {thresholds.max_dead_share}"
        found.append((None, "max_dead_share", dead, thresholds.max_dead_share, told))
    if thresholds.max_survivor_share is not None:
        limit = thresholds.max_survivor_share
        # The last year's pools have hardly had the time to die.
        for year, share in years[:-1].filter(pl.col("survivor_share") > limit).select("year", "survivor_share").rows():
            told = f"{to_percent(share):.1f} % of the pools of {year} are still alive at the end"
            told += f"; max_survivor_share is {limit}"
            found.append((None, "max_survivor_share", share, limit, told))
    columns = {
        "pool_id": pl.String(),
        "check": pl.String(),
        "value": pl.Float64(),
        "limit": pl.Float64(),
        "message": pl.String(),
    }
    return pl.DataFrame(found, schema=columns, orient="row").sort("pool_id", "check", nulls_last=True)
