"""What of a pool's day speaks for or against it: the size and trends of its yield and money, its age, and its kind.

Row t reads rows up to t only, and nothing is scaled: the trees that read it do not mind. Missing = NaN, which they take
as a value of its own. Rolling windows need half of their rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from yieldlab.features import lag, rolling_max, rolling_mean, rolling_std, rolling_sum
from yieldlab.features.sets import canonical
from yieldlab.panel import Panel
from yieldlab.units import to_percent

Floats = NDArray[np.float64]

#: Kinds of protocol and the beginnings of their canonical names, up to an underscore or the end. All else is "other".
FAMILIES = {
    "lending": (
        "aave compound morpho spark sparklend fluid_lending venus justlend kamino_lend euler radiant benqi moonwell "
        "silo sky_lending maker goldfinch dolomite maple"
    ).split(),
    "stable_swap": "curve convex ellipsis saddle stargate".split(),
    "amm": (
        "uniswap pancakeswap sushiswap balancer raydium orca vvs arrakis aerodrome velodrome camelot quickswap "
        "trader_joe fluid_dex"
    ).split(),
}
OTHER = "other"


def risk_features(panel: Panel) -> dict[str, Floats]:
    """Name -> (T, N), from the carried fields; those that the panel does not hold are NaN throughout.

    Yields, their means, deviations and volatility are in percent, TVL and the percent of yield per million of it are
    log1p; trends are fractions of what was there 7 or 30 days ago, `tvl_from_peak_30d` of the most in 30 days;
    `variation_30d` is the deviation over the mean. `age_days` counts from the pool's first day in the panel, and
    `silent_days` from its last observation; each family of protocols is 0 or 1.
    """
    apy, tvl = to_percent(_carried(panel, "apy")), _carried(panel, "tvl_usd")
    tvl = np.where(tvl >= 0.0, tvl, np.nan)
    week, month, deviation = _half(rolling_mean, apy, 7), _half(rolling_mean, apy, 30), _half(rolling_std, apy, 30)
    volatility = _carried(panel, "volatility_24h")
    made = {
        "apy_percent": apy,
        "apy_ma_7d": week,
        "apy_ma_30d": month,
        "apy_over_ma_7d": _ratio(apy, week),
        "apy_trend_7d": _ratio(apy, lag(apy, 7)) - 1.0,
        "apy_trend_30d": _ratio(apy, lag(apy, 30)) - 1.0,
        "volatility_24h": np.where(np.isnan(volatility), rolling_std(apy, 2), volatility),
        "apy_std_7d": _half(rolling_std, apy, 7),
        "apy_std_30d": deviation,
        "variation_30d": _ratio(deviation, month),
        "tvl_usd": np.log1p(tvl),
        "tvl_trend_7d": _ratio(tvl, lag(tvl, 7)) - 1.0,
        "tvl_trend_30d": _ratio(tvl, lag(tvl, 30)) - 1.0,
        "tvl_from_peak_30d": _ratio(tvl, _half(rolling_max, tvl, 30)),
        "apy_tvl_ratio": np.log1p(_ratio(np.maximum(apy, 0.0), tvl / 1e6)),
        "utilization_rate": _carried(panel, "utilization_rate"),
        "reward_share": _ratio(_carried(panel, "apy_reward"), _carried(panel, "apy")),
        "age_days": _age(panel),
        "silent_days": panel.age("apy"),
    }
    kinds = families_of(panel)
    for kind in (*FAMILIES, OTHER):
        made[f"family_{kind}"] = np.tile(np.array([float(each == kind) for each in kinds]), (panel.shape[0], 1))
    return made


def family(protocol: str | None) -> str:
    """The kind of a protocol.

    >>> family("aave-v3"), family("curve-dex"), family("pancakeswap-amm-v3"), family("lido"), family(None)
    ('lending', 'stable_swap', 'amm', 'other', 'other')
    """
    name = canonical(protocol).removeprefix("unverified:")
    for kind, beginnings in FAMILIES.items():
        if any(name == each or name.startswith(f"{each}_") for each in beginnings):
            return kind
    return OTHER


def families_of(panel: Panel) -> list[str]:
    """The kind of each pool's protocol."""
    known = panel.pools["protocol"].to_list() if "protocol" in panel.pools.columns else [None] * panel.shape[1]
    return [family(protocol) for protocol in known]


def _carried(panel: Panel, field: str) -> Floats:
    return panel[field] if field in panel.fields else np.full(panel.shape, np.nan)


def _age(panel: Panel) -> Floats:
    """(T, N) days since the first row with an APY; NaN before it."""
    seen = np.logical_or.accumulate(~np.isnan(panel.raw("apy")), axis=0)
    days = panel.times.astype("datetime64[D]").astype("int64").astype(np.float64)
    first = days[np.argmax(seen, axis=0)] if days.size else np.zeros(panel.shape[1])
    return np.where(seen, days[:, None] - first, np.nan)


def _half(measure: Callable[[Floats, int], Floats], values: Floats, window: int) -> Floats:
    """The rolling `measure` where at least half of the window's rows have a value, else NaN."""
    count = rolling_sum((~np.isnan(values)).astype(np.float64), window)

    return np.where(count >= math.ceil(window / 2), measure(values, window), np.nan)


def _ratio(above: Floats, below: Floats) -> Floats:
    """`above / below`; NaN where that is no finite number."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = above / below
    return np.where(np.isfinite(quotient), quotient, np.nan)
