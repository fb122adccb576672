"""What does a result have to say about the data under it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from yieldlab.panel._forecasts import ForecastOrigin

#: A pool silent for more days than this before the end of the data has left.
GONE_AFTER_DAYS = 30


@dataclass(frozen=True, slots=True)
class Health:
    """Shares are fractions of the panel's T x N cells, for `apy`."""

    times: int
    pools: int
    first: str
    last: str
    observations: int
    observed_share: float
    carried_share: float
    missing_share: float
    assumed_rows: int
    pools_not_usd: int
    sources: tuple[str, ...] = ()
    #: Observations that a cleaning rule took out or lowered, and the share of the cells.
    masked: int = 0
    winsorized: int = 0
    masked_share: float = 0.0
    #: Observations converted from a simple rate, and those of feed projects whose convention is not known or whose rate
    #: is beyond what an APY can say, which stay as quoted.
    rates: str = "effective"
    rates_converted: int = 0
    rates_unknown: int = 0
    rates_unknown_pools: int = 0
    rates_too_high: int = 0
    #: Pools whose first observation lies in a year, and whose last one does, of those silent since.
    entering: Mapping[str, int] = field(default_factory=dict)
    leaving: Mapping[str, int] = field(default_factory=dict)
    #: Fields that a model wrote, with the run that each is from.
    forecasts: Mapping[str, ForecastOrigin] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def comings_and_goings(
    raw: NDArray[np.float64], times: NDArray[np.datetime64]
) -> tuple[dict[str, int], dict[str, int]]:
    """Per calendar year the columns of `raw` (T, N; NaN = not observed) first observed in it, and those last observed
    in it and silent since."""
    seen = ~np.isnan(raw)
    born = seen.any(axis=0)
    if not born.any():
        return {}, {}
    first = seen.argmax(axis=0)[born]
    last = seen.shape[0] - 1 - seen[::-1].argmax(axis=0)[born]
    silent = (times[-1] - times[last]) > np.timedelta64(GONE_AFTER_DAYS, "D")
    return _per_year(times[first]), _per_year(times[last[silent]])


def _per_year(times: NDArray[np.datetime64]) -> dict[str, int]:
    years, counts = np.unique(times.astype("datetime64[Y]").astype(str), return_counts=True)
    return {str(year): int(count) for year, count in zip(years, counts, strict=True)}
