"""Did pools die, or did their source end, or was whoever collected them down?

Death is told from silence alone. Where no pool at all was observed for days, or many fall silent for good on one and
the same day, silence has another likely cause; nobody can tell for sure, so both are counted and told.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab.units import MICROSECONDS_PER_DAY

#: So many pools, and such a share of those alive, that fall silent for good on one day are a crowd.
CROWD_POOLS = 3
CROWD_SHARE = 0.10

#: Days without an observation of any pool up to which nobody has been down.
MAX_OUTAGE_DAYS = 3

#: Crowds that a sentence names.
_NAMED = 3

OUTAGES = pl.Schema({"first": pl.Date(), "last": pl.Date(), "days": pl.Int64()})
CROWDS = pl.Schema({"day": pl.Date(), "pools": pl.Int64(), "alive": pl.Int64()})


def outages(days: pl.Series, end: date) -> pl.DataFrame:
    """Stretches of days up to `end`, between and after the `days` on which any pool was seen: first, last, days."""
    seen = pl.DataFrame({"day": days.unique().sort()})
    until = pl.col("day").shift(-1, fill_value=end + timedelta(days=1))
    return seen.select(
        (pl.col("day") + timedelta(days=1)).alias("first"),
        (until - timedelta(days=1)).alias("last"),
        ((until - pl.col("day")).dt.total_days() - 1).alias("days"),
    ).filter(pl.col("days") > 0)


def crowds(pools: pl.DataFrame) -> pl.DataFrame:
    """Days on which at least 3 and a tenth of the pools then alive were seen for the last time.

    `pools` has the first and the last day of each pool and whether it is `dead`. Gives day, pools, alive (on that day,
    they among them).
    """
    first, last = pools["first"].sort(), pools["last"].sort()
    return (
        pools.filter("dead")
        .group_by(pl.col("last").alias("day"))
        .agg(pl.len().cast(pl.Int64).alias("pools"))
        .sort("day")
        .with_columns(
            pl.col("day")
            .map_batches(lambda day: first.search_sorted(day, "right"), return_dtype=pl.UInt32)
            .cast(pl.Int64)
            .alias("born"),
            pl.col("day")
            .map_batches(lambda day: last.search_sorted(day, "left"), return_dtype=pl.UInt32)
            .cast(pl.Int64)
            .alias("gone"),
        )
        .select("day", "pools", (pl.col("born") - pl.col("gone")).alias("alive"))
        .filter(pl.col("pools") >= CROWD_POOLS, pl.col("pools") >= CROWD_SHARE * pl.col("alive"))
    )


@dataclass(frozen=True, slots=True)
class Doubt:
    """How many deaths may be none. `deaths` (a pool that comes back can die again) lie in the window looked at; of
    these `in_crowds` are of pools that fell silent for good with many others, on the days of `crowds`, and `in_outages`
    would not be without outages common to all pools; `doubtful` are one or the other."""

    dead_after_days: int
    deaths: int
    in_crowds: int
    in_outages: int
    doubtful: int
    crowds: pl.DataFrame

    @property
    def sentence(self) -> str | None:
        """What to warn of; None where no death is in doubt."""
        if not self.doubtful:
            return None
        reasons = []
        if self.in_crowds:
            named = [f"{pools} of {alive} on {day}" for day, pools, alive in self.crowds.head(_NAMED).rows()]
            more = self.crowds.height - len(named)
            told = ", ".join(named) + (f" and {more} other days" if more > 0 else "")
            reasons.append(f"{self.in_crowds:,} fell silent for good together with many others ({told})")
        if self.in_outages:
            reasons.append(f"{self.in_outages:,} only within an outage common to all pools")
        return (
            f"of {self.deaths:,} deaths of pools, told from more than {self.dead_after_days} days of silence, "
            f"{' and '.join(reasons)}: a source that ended or a collector that was down looks just like that"
        )


def doubtful_deaths(
    observed: NDArray[np.float64],
    times: NDArray[np.datetime64],
    dead_after_days: int,
    *,
    window: tuple[int, int] | None = None,
    max_outage_days: int = MAX_OUTAGE_DAYS,
) -> Doubt:
    """The deaths on rows `window` (both included; default: all) of pools that were observed where (T, N) `observed` is
    not NaN: how many there are, and how many of them may be none.

    A death is in doubt where its pool is never observed again and is one of a crowd (see `crowds`), and where the days
    of its silence are no more than `dead_after_days` without those of outages: stretches of more than `max_outage_days`
    days on which no pool at all was observed. It looks at what came later, so it is nothing to trade on.
    """
    seen = ~np.isnan(observed)
    rows = seen.shape[0]
    begin, end = (0, rows - 1) if window is None else window
    days = times.astype("datetime64[us]").astype("int64") / MICROSECONDS_PER_DAY
    last = np.where(seen, np.arange(rows, dtype=np.int32)[:, None], np.int32(-1))
    np.maximum.accumulate(last, axis=0, out=last)
    dead = (last >= 0) & (days[:, None] - days[np.maximum(last, 0)] > dead_after_days)
    onset = dead.copy()
    onset[1:] &= ~dead[:-1]
    row, pool = np.nonzero(onset[begin : end + 1])
    row += begin
    since = last[row, pool]
    # The last row of each silence: the one before the pool is observed again.
    upcoming = np.where(seen, np.arange(rows, dtype=np.int32)[:, None], np.int32(rows))
    upcoming = np.minimum.accumulate(upcoming[::-1], axis=0)[::-1]
    until = upcoming[row, pool] - 1
    out = np.concatenate([[0.0], np.cumsum(_outage_days(np.asarray(seen.any(axis=1)), days, max_outage_days))])
    silent = days[until] - days[since] - (out[until + 1] - out[since + 1])
    in_outage = silent <= dead_after_days

    born = seen.any(axis=0)
    dates = times.astype("datetime64[D]")
    told = pl.DataFrame(
        {
            "first": dates[seen.argmax(axis=0)[born]],
            "last": dates[last[-1, born]],
            "dead": dead[-1, born],
        }
    )
    together = crowds(told)
    crowded = np.isin(dates[since], together["day"].to_numpy().astype("datetime64[D]")) & (until == rows - 1)
    met = pl.Series(dates[since[crowded]], dtype=pl.Date).unique()
    return Doubt(
        dead_after_days,
        row.size,
        int(np.count_nonzero(crowded)),
        int(np.count_nonzero(in_outage)),
        int(np.count_nonzero(crowded | in_outage)),
        together.filter(pl.col("day").is_in(met.implode())),
    )


def _outage_days(anyone: NDArray[np.bool_], days: NDArray[np.float64], max_outage_days: int) -> NDArray[np.float64]:
    """(T,) days that each row adds to an outage: those since the row before it, where nobody was observed for long."""
    added = np.diff(days, prepend=days[:1])
    added[anyone] = 0.0
    stretch = np.cumsum(anyone)
    lengths = np.bincount(stretch, weights=added)
    added[lengths[stretch] <= max_outage_days] = 0.0
    return added
