"""The market: what any policy meets on these rows — growth, yield, size and staleness of every pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from yieldlab.errors import DataError, UsageError
from yieldlab.panel import DEFAULT_MAX_STALE_DAYS, Panel
from yieldlab.space import Value, check_known
from yieldlab.units import MICROSECONDS_PER_DAY, growth_factor

Floats = NDArray[np.float64]

ACCRUALS = ("trailing", "leading")

#: Market parameters and their defaults. `accrual` says whether the APY of row t describes the interval that ends at t
#: (trailing) or the one that begins there (leading); `max_stale_days` how long an observation is believed.
DEFAULTS: Mapping[str, Value] = {"accrual": "trailing", "max_stale_days": DEFAULT_MAX_STALE_DAYS}


@dataclass(frozen=True, slots=True, eq=False)
class Market:
    """Facts about T rows and N pools that are the same for all policies; arrays are read-only.

    `growth` (T, N) is the factor between rows t-1 and t, 1 where the APY
    it rests on is missing; row 0 is 1. `index` (N, T) is its running product, pool by pool. `apy` and `tvl_usd` (T, N)
    are carried, NaN = missing. `next_missing` (N, T + 1) is the first row >= t whose growth rests on a missing APY, T
    if there is none.
    """

    times: NDArray[np.datetime64]
    pool_ids: tuple[str, ...]
    growth: Floats
    index: Floats
    apy: Floats
    tvl_usd: Floats
    next_missing: NDArray[np.int32]
    accrual: str
    max_stale_days: int

    @classmethod
    def from_panel(cls, panel: Panel, *, accrual: str = "trailing") -> Self:
        """The market of a panel that holds `apy`; without `tvl_usd` every TVL is missing.

        Raises UsageError for an unknown accrual; DataError for a panel without a row, a pool or an APY, and for an APY
        of -100 % or less or an infinite value.
        """
        check_known("accrual", [accrual], ACCRUALS)
        rows, pools = panel.shape
        if rows == 0 or pools == 0:
            raise DataError(f"a market needs at least one row and one pool, not {rows} x {pools}")
        apy = panel["apy"]
        if bool(np.any(apy <= -1.0)):
            t, i = np.argwhere(apy <= -1.0)[0]
            raise DataError(
                f"pool {panel.pool_ids[i]!r} has an APY of {apy[t, i]:.2%} on {_day(panel, t)}; it must exceed -100 %"
            )
        for name in ("apy", "tvl_usd"):
            if name in panel.fields and bool(np.isinf(panel[name]).any()):
                t, i = np.argwhere(np.isinf(panel[name]))[0]
                raise DataError(f"pool {panel.pool_ids[i]!r} has an infinite {name} on {_day(panel, t)}")
        days = np.diff(panel.times.astype("int64")) / MICROSECONDS_PER_DAY
        believed = apy if accrual == "trailing" else np.vstack([np.full((1, pools), np.nan), apy[:-1]])
        growth = np.ones_like(apy)
        with np.errstate(over="ignore", under="ignore"):  # a trial that holds such a pool fails with that reason
            growth[1:] = growth_factor(believed[1:], days[:, None])
        missing = np.isnan(growth)
        growth[missing] = 1.0
        missing[1:] |= np.isnan(believed[1:])
        missing[0] = False
        with np.errstate(over="ignore", under="ignore"):
            index = np.ascontiguousarray(np.cumprod(growth, axis=0).T)
        market = cls(
            times=panel.times,
            pool_ids=tuple(panel.pool_ids),
            growth=growth,
            index=index,
            apy=apy,
            tvl_usd=panel["tvl_usd"] if "tvl_usd" in panel.fields else np.full_like(apy, np.nan),
            next_missing=_next_true(missing),
            accrual=accrual,
            max_stale_days=panel.max_stale_days,
        )
        for array in (market.growth, market.index, market.tvl_usd, market.next_missing):
            array.flags.writeable = False
        return market

    @property
    def shape(self) -> tuple[int, int]:
        """(T, N)."""
        rows, pools = self.growth.shape
        return rows, pools


def check_value(name: str, value: Value) -> None:
    """Raise UsageError unless `value` is one that market parameter `name` takes."""
    check_known("market parameter", [name], list(DEFAULTS))
    if name == "accrual":
        check_known("accrual", [str(value)], ACCRUALS)
    elif isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"max_stale_days must be a whole number >= 0, not {value!r}")


def _next_true(flags: NDArray[np.bool_]) -> NDArray[np.int32]:
    """(N, T + 1) for (T, N) flags: the first row >= t that is flagged, T if none."""
    rows, pools = flags.shape
    result = np.full((pools, rows + 1), rows, dtype=np.int32)
    where = np.where(flags.T, np.arange(rows, dtype=np.int32)[None, :], np.int32(rows))
    result[:, :rows] = np.minimum.accumulate(where[:, ::-1], axis=1)[:, ::-1]
    return result


def _day(panel: Panel, row: int) -> str:
    return str(panel.times[row].astype("datetime64[D]"))
