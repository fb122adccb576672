"""What does a model get to see of a panel: which features, in which order and unit, and what is missing?

The study's 16 are the 13 of `STUDY` and a one-hot over the pool's protocol, which the scaler appends because only
training data says how many protocols there are. Nothing is scaled here and nothing is filled from later rows. Missing
volume, true of most of history, counts as 0; everything else that is missing stays NaN.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from yieldlab.errors import UsageError, did_you_mean
from yieldlab.features import change, lag, rank, rolling_mean, rolling_std, rolling_sum
from yieldlab.panel import Panel
from yieldlab.units import to_percent

__all__ = [
    "REFERENCE_PROTOCOLS",
    "SETS",
    "STUDY",
    "UNKNOWN_PROTOCOL",
    "FeatureBlock",
    "block",
    "canonical",
    "extended",
    "study",
]

Floats = NDArray[np.float64]

#: The reference study's features before its one-hot, in its order.
STUDY = (
    "apy_percent",
    "tvl_usd",
    "volume_24h_usd",
    "volatility_24h",
    "apy_ma_7d",
    "apy_ma_30d",
    "apy_std_7d",
    "tvl_ma_7d",
    "tvl_trend_7d",
    "volume_tvl_ratio",
    "apy_momentum",
    "hour",
    "day_of_week",
)

#: The protocols of the reference study's one-hot, in its order.
REFERENCE_PROTOCOLS = ("aave_v3", "curve", "uniswap_v3")

SETS = ("study", "extended")

#: The protocol of a pool that nothing is known of.
UNKNOWN_PROTOCOL = "unknown"

#: Other spellings of a protocol, once in lower case and with underscores.
_SPELLINGS = MappingProxyType({"curve_dex": "curve"})

#: Days of age of the yields that the extended set looks back to.
_LAGS = (1, 7, 14)


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBlock:
    """Features of every pool and row: `values` (N, T, F) float32, pool-major, contiguous and read-only, NaN = missing;
    and the protocol of each pool (N,), for the one-hot that is not among them."""

    names: tuple[str, ...]
    values: NDArray[np.float32]
    protocols: tuple[str, ...]


@np.errstate(over="ignore")  # a yield of 1e200 has no finite deviation
def study(panel: Panel) -> dict[str, Floats]:
    """Name -> (T, N) of the 13 of `STUDY`, in its order, from what the panel carries.

    Yields, their means, deviation and momentum are in percent; TVL, its mean and volume are log1p of US dollars; the
    trend is a change in percent. A mean or deviation over 7 or 30 rows needs half of them (4, 15), and today's value.
    `volatility_24h` is the stored one, and where there is none the deviation of yesterday's and today's yield.
    """
    apy = to_percent(_carried(panel, "apy"))
    tvl = _amount(panel, "tvl_usd")
    volume = np.nan_to_num(_amount(panel, "volume_24h_usd"))
    stored = _carried(panel, "volatility_24h")
    week, month = _half(rolling_mean, apy, 7), _half(rolling_mean, apy, 30)
    earlier = lag(tvl, 7)
    return {
        "apy_percent": apy,
        "tvl_usd": np.log1p(tvl),
        "volume_24h_usd": np.log1p(volume),
        "volatility_24h": np.where(np.isnan(stored), rolling_std(apy, 2), stored),
        "apy_ma_7d": week,
        "apy_ma_30d": month,
        "apy_std_7d": _half(rolling_std, apy, 7),
        "tvl_ma_7d": np.log1p(_half(rolling_mean, tvl, 7)),
        "tvl_trend_7d": to_percent(_ratio(change(tvl, 7), earlier)),
        "volume_tvl_ratio": _ratio(volume, tvl),
        "apy_momentum": week - month,
        "hour": _every_pool(panel, _hour(panel)),
        "day_of_week": _every_pool(panel, _day_of_week(panel)),
    }


def extended(panel: Panel) -> dict[str, Floats]:
    """Name -> (T, N): the study's, then whether volume is known (1, else 0), base and reward yield in percent, the
    pool's rank by yield and by TVL among the row's, utilization, yields of earlier days, and asinh of each series."""
    apy = to_percent(_carried(panel, "apy"))
    return (
        study(panel)
        | {
            "volume_observed": (~np.isnan(_amount(panel, "volume_24h_usd"))).astype(np.float64),
            "apy_base_percent": to_percent(_carried(panel, "apy_base")),
            "apy_reward_percent": to_percent(_carried(panel, "apy_reward")),
            "apy_rank": rank(apy),
            "tvl_rank": rank(_amount(panel, "tvl_usd")),
            "utilization_rate": _carried(panel, "utilization_rate"),
        }
        | {f"apy_lag_{days}d": lag(apy, days) for days in _LAGS}
        | {f"series_{name}": _every_pool(panel, np.arcsinh(panel.series(name))) for name in sorted(panel.series_names)}
    )


_MAKERS: Mapping[str, Callable[[Panel], dict[str, Floats]]] = MappingProxyType({"study": study, "extended": extended})


def block(panel: Panel, feature_set: str = "study") -> FeatureBlock:
    """The features of a set as models read them. Raises UsageError for a set that is none of `SETS`."""
    if feature_set not in _MAKERS:
        raise UsageError(f"unknown feature set {feature_set!r}{did_you_mean(str(feature_set), SETS)}")
    made = _MAKERS[feature_set](panel)
    times, pools = panel.shape
    largest = float(np.finfo(np.float32).max)
    values = np.empty((pools, times, len(made)), dtype=np.float32)
    for place, feature in enumerate(made.values()):
        values[:, :, place] = np.clip(feature, -largest, largest).T
    values.flags.writeable = False
    return FeatureBlock(tuple(made), values.view(), _protocols(panel))


def canonical(protocol: str | None) -> str:
    """A protocol's name as the one-hot spells it.

    >>> canonical("Aave-V3"), canonical("curve-dex"), canonical(None)
    ('aave_v3', 'curve', 'unknown')
    """
    name = re.sub(r"[-\s]+", "_", (protocol or "").strip().lower())
    return _SPELLINGS.get(name, name) or UNKNOWN_PROTOCOL


def _protocols(panel: Panel) -> tuple[str, ...]:
    if "protocol" not in panel.pools.columns:
        return (UNKNOWN_PROTOCOL,) * panel.shape[1]
    return tuple(canonical(protocol) for protocol in panel.pools["protocol"].to_list())


def _carried(panel: Panel, field: str) -> Floats:
    """The field as the panel carries it; all NaN where the panel has no such field."""
    return panel[field] if field in panel.fields else np.full(panel.shape, np.nan)


def _amount(panel: Panel, field: str) -> Floats:
    """The field as the panel carries it, in US dollars; NaN where it is below 0, which no amount can be."""
    carried = _carried(panel, field)
    return np.where(carried >= 0.0, carried, np.nan)


def _half(measure: Callable[[Floats, int], Floats], values: Floats, window: int) -> Floats:
    """The rolling `measure` where at least half of the window's rows have a value, else NaN."""
    count = rolling_sum((~np.isnan(values)).astype(np.float64), window)
    return np.where(count >= (window + 1) // 2, measure(values, window), np.nan)


def _ratio(above: Floats, below: Floats) -> Floats:
    """`above / below`; NaN where that is no finite number."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = above / below
    return np.where(np.isfinite(quotient), quotient, np.nan)


def _hour(panel: Panel) -> Floats:
    hours = panel.times.astype("datetime64[h]").astype("int64")
    return np.asarray(hours % 24, dtype=np.float64)


def _day_of_week(panel: Panel) -> Floats:
    """Monday = 0; the first day of 1970 was a Thursday."""
    days = panel.times.astype("datetime64[D]").astype("int64")
    return np.asarray((days + 3) % 7, dtype=np.float64)


def _every_pool(panel: Panel, row_values: Floats) -> Floats:
    """(T,) as (T, N): the same for every pool."""
    return np.repeat(row_values[:, None], panel.shape[1], axis=1)
