"""The market: what any policy meets on these rows — growth, yield, size and staleness of every pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from yieldlab.errors import DataError, UsageError
from yieldlab.panel import DEFAULT_MAX_STALE_DAYS, Panel
from yieldlab.quality import clean_spikes
from yieldlab.rates import RATES
from yieldlab.space import Value, check_known
from yieldlab.units import MICROSECONDS_PER_DAY, growth_factor, to_percent

Floats = NDArray[np.float64]

ACCRUALS = ("trailing", "leading")

SPIKES = ("keep", "mask", "winsorize")

DELISTED = ("hold", "exit", "loss")

#: Market parameters and their defaults. `accrual` says whether the APY of row t describes the interval that ends at t
#: (trailing) or the one that begins there (leading); `max_stale_days` how long an observation is believed; `rates`
#: whether what the feed quotes as a simple rate is converted; `spikes` what becomes of yields too high to be believed.
#: With `delisted`, a pool not observed for more than `dead_after_days` is held on, sold, or written down by
#: `delisted_loss` and sold.
DEFAULTS: Mapping[str, Value] = {
    "accrual": "trailing",
    "max_stale_days": DEFAULT_MAX_STALE_DAYS,
    "rates": "effective",
    "spikes": "keep",
    "delisted": "hold",
    "delisted_loss": 1.0,
    "dead_after_days": 30,
}

#: The parameters that say what the panel is that both strategy and market see, and those that make a market of it.
PREPARING = ("max_stale_days", "rates", "spikes")
BUILDING = ("accrual", "delisted", "delisted_loss", "dead_after_days")


@dataclass(frozen=True, slots=True, eq=False)
class Market:
    """Facts about T rows and N pools that are the same for all policies; arrays are read-only.

    `growth` (T, N) is the factor between rows t-1 and t, 1 where the APY
    it rests on is missing; row 0 is 1. `index` (N, T) is its running product, pool by pool. `apy` and `tvl_usd` (T, N)
    are carried, NaN = missing. `next_missing` (N, T + 1) is the first row >= t whose growth rests on a missing APY, T
    if there is none. `next_dead` (N, T + 1) is the first row >= t on which the pool counts as delisted, T if there is
    none; it is None where a delisted pool is held on. `loss` is the share of a position that is written
    off when it does not.
    """

    times: NDArray[np.datetime64]
    pool_ids: tuple[str, ...]
    growth: Floats
    index: Floats
    apy: Floats
    tvl_usd: Floats
    next_missing: NDArray[np.int32]
    next_dead: NDArray[np.int32] | None
    loss: float
    accrual: str
    max_stale_days: int

    @classmethod
    def from_panel(
        cls,
        panel: Panel,
        *,
        accrual: str = "trailing",
        delisted: str = "hold",
        delisted_loss: float = 1.0,
        dead_after_days: int = 30,
        seen: Panel | None = None,
    ) -> Self:
        """The market of a panel that holds `apy`; without `tvl_usd` every TVL is missing.

        A pool is dead on row t when its last APY is more than `dead_after_days` old, by the observations of `seen`
        (default: the panel itself; one that has been cleaned lacks some that were made).

        Raises UsageError for a market parameter that cannot be; DataError for a panel without a row, a pool or an APY,
        and for an APY of -100 % or less or an infinite value.
        """
        given: dict[str, Value] = {
            "accrual": accrual,
            "delisted": delisted,
            "delisted_loss": delisted_loss,
            "dead_after_days": dead_after_days,
        }
        for name, value in given.items():
            check_value(name, value)
        check_together({**given, "max_stale_days": panel.max_stale_days})
        rows, pools = panel.shape
        if rows == 0 or pools == 0:
            raise DataError(f"a market needs at least one row and one pool, not {rows} x {pools}")
        apy = panel["apy"]
        if bool(np.any(apy <= -1.0)):
            t, i = np.argwhere(apy <= -1.0)[0]
            raise DataError(
                f"pool {panel.pool_ids[i]!r} has an APY of {to_percent(apy[t, i]):.2f} % on {_day(panel, t)}; "
                "it must exceed -100 %"
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
            next_dead=_next_dead(panel if seen is None else seen, delisted, dead_after_days),
            loss=float(delisted_loss) if delisted == "loss" else 0.0,
            accrual=accrual,
            max_stale_days=panel.max_stale_days,
        )
        for array in (market.growth, market.index, market.tvl_usd, market.next_missing, market.next_dead):
            if array is not None:
                array.flags.writeable = False
        return market

    @property
    def shape(self) -> tuple[int, int]:
        """(T, N)."""
        rows, pools = self.growth.shape
        return rows, pools


def prepare(panel: Panel, params: Mapping[str, Value]) -> Panel:
    """The panel that strategy and market see under the market parameters of `PREPARING`."""
    prepared = panel.with_max_stale_days(_whole(params["max_stale_days"])).with_rates(str(params["rates"]))
    if params["spikes"] == "keep":
        return prepared
    cleaned = clean_spikes(prepared.raw("apy"), str(params["spikes"]))
    changed = int(np.count_nonzero(cleaned.changed))
    if params["spikes"] == "mask":
        return prepared.with_cleaned_apy(cleaned.values, masked=changed)
    return prepared.with_cleaned_apy(cleaned.values, winsorized=changed)


def build(prepared: Panel, params: Mapping[str, Value], *, seen: Panel | None = None) -> Market:
    """The market of a prepared panel under the market parameters of `BUILDING`. `seen` is the panel before it was
    prepared: an observation that cleaning masked still shows that its pool is listed."""
    loss = params["delisted_loss"]
    assert isinstance(loss, int | float)
    return Market.from_panel(
        prepared,
        accrual=str(params["accrual"]),
        delisted=str(params["delisted"]),
        delisted_loss=float(loss),
        dead_after_days=_whole(params["dead_after_days"]),
        seen=seen,
    )


class Markets:
    """The markets of one panel, each made when it is asked for; those of one prepared panel are kept until another is
    asked for."""

    __slots__ = ("_made", "_original", "_prepared")

    def __init__(self, panel: Panel) -> None:
        self._original = panel
        self._prepared: tuple[tuple[Value, ...], Panel] | None = None
        self._made: dict[tuple[Value, ...], Market] = {}

    def panel(self, params: Mapping[str, Value]) -> Panel:
        """The panel as these market parameters show it."""
        key = tuple(params[name] for name in PREPARING)
        if self._prepared is None or self._prepared[0] != key:
            self._made.clear()
            self._prepared = key, prepare(self._original, params)
        return self._prepared[1]

    def market(self, params: Mapping[str, Value]) -> Market:
        """The market under these parameters. Raises DataError when the data cannot be one."""
        panel = self.panel(params)
        key = tuple(params[name] for name in BUILDING)
        if key not in self._made:
            self._made[key] = build(panel, params, seen=self._original)
        return self._made[key]


def check_value(name: str, value: Value) -> None:
    """Raise UsageError unless `value` is one that market parameter `name` takes."""
    check_known("market parameter", [name], list(DEFAULTS))
    if name in _WORDS:
        check_known(name, [str(value)], _WORDS[name])
    elif name == "delisted_loss":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
            raise UsageError(f"delisted_loss must be a fraction from 0 to 1, not {value!r}")
    elif isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"{name} must be a whole number >= 0, not {value!r}")


_WORDS = {"accrual": ACCRUALS, "rates": RATES, "spikes": SPIKES, "delisted": DELISTED}


def check_together(params: Mapping[str, Value]) -> None:
    """Raise UsageError when market parameters, each right by itself, contradict each other."""
    stale, dead = _whole(params["max_stale_days"]), _whole(params["dead_after_days"])
    if params["delisted"] != "hold" and dead < stale:
        raise UsageError(
            f"dead_after_days must be at least max_stale_days, not {dead} with {stale}: what is believed is not dead"
        )


def _whole(value: Value) -> int:
    assert isinstance(value, int)
    return value


def _next_true(flags: NDArray[np.bool_]) -> NDArray[np.int32]:
    """(N, T + 1) for (T, N) flags: the first row >= t that is flagged, T if none."""
    rows, pools = flags.shape
    result = np.full((pools, rows + 1), rows, dtype=np.int32)
    where = np.where(flags.T, np.arange(rows, dtype=np.int32)[None, :], np.int32(rows))
    result[:, :rows] = np.minimum.accumulate(where[:, ::-1], axis=1)[:, ::-1]
    return result


def _next_dead(panel: Panel, delisted: str, dead_after_days: int) -> NDArray[np.int32] | None:
    """(N, T + 1) as in Market; None when a delisted pool is held on."""
    if delisted == "hold":
        return None
    return _next_true(panel.age("apy") > dead_after_days)  # a pool that was never observed has no age and is not dead


def _day(panel: Panel, row: int) -> str:
    return str(panel.times[row].astype("datetime64[D]"))
