"""What is still sound? The limits of `data check`, each with its default."""

from __future__ import annotations

from dataclasses import dataclass, fields

from yieldlab.errors import UsageError
from yieldlab.quality._robust import SPIKE_DEVIATIONS
from yieldlab.quality._silence import MAX_OUTAGE_DAYS


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Limits that begin with `max_` are per pool unless they say otherwise; None switches one off. The others say what
    is flagged. Days are calendar days of UTC."""

    #: Longest stretch of days without an observation between two observed ones.
    max_gap_days: int | None = 30
    #: Share of days without an observation between a pool's first and last.
    max_missing_share: float | None = 0.25
    #: Longest run of days, all observed, on which one yield other than zero is repeated to the last digit.
    max_stale_days: int | None = 30
    #: Share of daily observations that are spikes.
    max_spike_share: float | None = 0.05
    #: Share of the rows with a base or a reward APY whose APY is not their sum.
    max_split_share: float | None = 0.05
    #: Share of rows whose TVL is missing or zero.
    max_no_tvl_share: float | None = 0.10
    #: Share of rows whose TVL is above zero and below the floor.
    max_low_tvl_share: float | None = 0.25
    #: Share of rows that are not the only one of their day; polls of the live feed do not count.
    max_duplicate_share: float | None = 0.10
    #: Lasting shifts of the yield to another order of magnitude.
    max_level_shifts: int | None = 0
    #: Share of rows that were changed after the fact.
    max_revised_share: float | None = 0.10
    #: Longest stretch of days on which no pool at all was observed.
    max_outage_days: int | None = MAX_OUTAGE_DAYS
    #: Days between the first observation of all and a pool's first.
    max_late_start_days: int | None = None
    #: Share of all pools that are dead.
    max_dead_share: float | None = None
    #: Share of the pools of a past year that are still alive at the end: 1 says that dead pools were never collected.
    max_survivor_share: float | None = None
    #: A spike is this many robust deviations away from the median of the observations around it ...
    spike_deviations: float = SPIKE_DEVIATIONS
    #: ... and at least so many percentage points.
    spike_percent: float = 1.0
    #: A repeated yield is flagged from the day on which its run is longer than this.
    stale_days: int = 7
    #: Percentage points that an APY may be away from base + reward.
    split_percent: float = 0.01
    #: USD of TVL below which a pool is hardly there.
    tvl_floor_usd: float = 10_000.0
    #: A shift of level multiplies or divides the yield by more than this.
    shift_factor: float = 20.0
    #: A pool is dead when it was silent for more than so many days at the end of the data.
    dead_after_days: int = 30

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and not value >= 0:
                raise UsageError(f"the threshold {item.name} must be 0 or more, not {value}")
            if value is not None and item.name.endswith("_share") and value > 1:
                raise UsageError(f"the threshold {item.name} is a share between 0 and 1, not {value}")
        if self.shift_factor < 1:
            raise UsageError(f"the threshold shift_factor is a factor of 1 or more, not {self.shift_factor}")
