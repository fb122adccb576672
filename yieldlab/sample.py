"""What does a made-up panel look like that behaves like the real thing? Everything here is synthetic and says so.

The yield of a pool reverts in logarithms to its own level, shifted by a regime that all pools share; spikes come and
fade. Money follows yield with a delay and dilutes it. Only sums, products, `exp` and uniform draws of PCG64 are used
and what leaves is rounded, so that one seed gives one panel everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab import schema
from yieldlab.errors import UsageError
from yieldlab.units import MICROSECONDS_PER_DAY

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

SOURCE = "synthetic"
FIRST_DAY = date(2022, 2, 11)
LAST_DAY = date(2026, 2, 10)
REFERENCE_ROWS = 13_396
#: Volume is told only for the last days of a panel, as a collector that learned it late would have it.
VOLUME_DAYS = 42
#: Days that a fresh collector was down for all pools of one protocol at once.
OUTAGE_DAYS = 18
#: The hour of the day at which every observation is made.
HOUR = 23

#: Shift of the logarithm of every yield in calm, normal and hot markets, and the chance per day to change.
REGIMES = (-0.35, 0.0, 0.55)
REGIME_CHANGE = 1.0 / 90.0


@dataclass(frozen=True, slots=True)
class _Pool:
    pool_id: str
    protocol: str
    symbol: str
    apy_percent: float
    tvl_usd: float
    noise: float
    spikes_per_year: float
    reward_share: float
    lending: bool
    late_days: int


_AAVE_LATE = 350  # the market opened in January 2023

_REFERENCE = (
    _Pool("aave-v3-usdc", "aave-v3", "USDC", 4.2, 9.0e8, 0.09, 3.0, 0.0, True, _AAVE_LATE),
    _Pool("aave-v3-usdt", "aave-v3", "USDT", 4.4, 8.0e8, 0.10, 3.5, 0.0, True, _AAVE_LATE + 4),
    _Pool("aave-v3-dai", "aave-v3", "DAI", 4.6, 2.5e8, 0.09, 3.0, 0.0, True, _AAVE_LATE),
    _Pool("aave-v3-weth", "aave-v3", "WETH", 1.9, 3.0e9, 0.06, 2.0, 0.0, True, _AAVE_LATE),
    _Pool("aave-v3-wbtc", "aave-v3", "WBTC", 0.12, 2.2e9, 0.08, 1.0, 0.0, True, _AAVE_LATE + 2),
    _Pool("curve-3pool", "curve", "3POOL", 1.6, 4.0e8, 0.11, 3.0, 0.45, False, 0),
    _Pool("curve-steth", "curve", "STETH", 3.4, 1.1e9, 0.08, 2.0, 0.40, False, 0),
    _Pool("curve-frax", "curve", "FRAX", 2.6, 2.0e8, 0.12, 3.0, 0.50, False, 118),
    _Pool("uniswap-v3-usdc-weth", "uniswap-v3", "USDC/WETH", 19.0, 2.6e8, 0.22, 7.0, 0.0, False, 0),
    _Pool("uniswap-v3-wbtc-weth", "uniswap-v3", "WBTC/WETH", 9.0, 1.9e8, 0.22, 6.0, 0.0, False, 47),
    _Pool("uniswap-v3-usdc-usdt", "uniswap-v3", "USDC/USDT", 3.1, 5.5e7, 0.24, 6.0, 0.0, False, 403),
    _Pool("uniswap-v3-dai-usdc", "uniswap-v3", "DAI/USDC", 2.2, 8.0e7, 0.20, 5.0, 0.0, False, 296),
)


def reference_study(seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Twelve pools from 2022-02-11 to 2026-02-10: the long tables `(metrics, assets)`, 13,396 observations.

    Pools start late, have gaps, and tell their volume in the last weeks only; every row has `source` = "synthetic".
    """
    days = (LAST_DAY - FIRST_DAY).days + 1
    draw = np.random.Generator(np.random.PCG64(seed))
    world = _world(_REFERENCE, days, draw)
    present = np.arange(days)[:, None] >= np.array([pool.late_days for pool in _REFERENCE])
    _outage(present, draw)
    _gaps(present, int(present.sum()) - REFERENCE_ROWS, draw)
    return _long(_REFERENCE, world, present), _assets(_REFERENCE)


def synthetic(pools: int, days: int, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`pools` pools that are all observed on each of `days` days until 2026-02-10: `(metrics, assets)`.

    The same behaviour as `reference_study` at any size, for benchmarks: exactly `pools * days` rows.
    """
    if pools < 1 or days < 1:
        raise UsageError(f"a synthetic panel needs at least 1 pool and 1 day, not {pools} x {days}")
    draw = np.random.Generator(np.random.PCG64(seed))
    varied = _varied(pools, draw)
    return _long(varied, _world(varied, days, draw), np.ones((days, pools), dtype=bool)), _assets(varied)


@dataclass(frozen=True, slots=True)
class _World:
    """(T, N) values of the measured columns."""

    base: Floats
    reward: Floats
    tvl: Floats
    volume: Floats
    utilization: Floats


def _varied(count: int, draw: np.random.Generator) -> tuple[_Pool, ...]:
    """The reference pools again and again, each copy with its own level and size."""
    stretch = np.exp(0.6 * _normal(draw, (count, 2)))
    copies = []
    for number in range(count):
        model = _REFERENCE[number % len(_REFERENCE)]
        copies.append(
            _Pool(
                f"{model.pool_id}-{number:05d}",
                model.protocol,
                model.symbol,
                model.apy_percent * float(stretch[number, 0]),
                model.tvl_usd * float(stretch[number, 1]) ** 2,
                model.noise,
                model.spikes_per_year,
                model.reward_share,
                model.lending,
                0,
            )
        )
    return tuple(copies)


def _world(pools: tuple[_Pool, ...], days: int, draw: np.random.Generator) -> _World:
    count = len(pools)
    level = np.log(np.array([pool.apy_percent for pool in pools]))
    size = np.log(np.array([pool.tvl_usd for pool in pools]))
    noise = np.array([pool.noise for pool in pools])
    spike_chance = np.array([pool.spikes_per_year for pool in pools]) / 365.0
    shift = _regimes(days, draw)
    shocks = _normal(draw, (days, count))
    flows = _normal(draw, (days, count))
    jumps = np.where(draw.random((days, count)) < spike_chance, 0.5 + 1.5 * draw.random((days, count)), 0.0)
    log_apy, log_tvl = np.empty((days, count)), np.empty((days, count))
    yields, money, spike = level + shift[0], size.copy(), np.zeros(count)
    smooth = yields.copy()  # what investors look at: a fortnight's mean
    for t in range(days):
        spike = 0.62 * spike + jumps[t]
        crowded = money - size
        yields = yields + 0.06 * (level + shift[t] - 0.35 * crowded - yields) + noise * shocks[t]
        log_apy[t] = yields + spike
        smooth = smooth + (log_apy[t] - smooth) / 14.0
        money = money + 0.012 * (smooth - level) - 0.008 * crowded + 0.018 * flows[t]
        log_tvl[t] = money
    apy, tvl = np.exp(log_apy), np.exp(log_tvl)
    rewards = np.array([pool.reward_share for pool in pools])
    lending = np.array([pool.lending for pool in pools])
    volume = tvl * apy / (0.05 * 365.0) * (0.6 + 0.8 * draw.random((days, count)))
    utilization = np.clip(0.45 + 0.22 * (log_apy - level) + 0.02 * shocks, 0.01, 0.99)
    volume[: max(0, days - VOLUME_DAYS)] = np.nan
    utilization[:, ~lending] = np.nan
    return _World(apy * (1.0 - rewards), apy * rewards, tvl, volume, utilization)


def _regimes(days: int, draw: np.random.Generator) -> Floats:
    """(T,) the shared shift, which moves to its new regime over a few weeks."""
    change = draw.random(days) < REGIME_CHANGE
    pick = draw.random(days)
    shift = np.empty(days)
    state, now = 1, REGIMES[1]
    for t in range(days):
        if change[t]:
            state = (state + 1 + int(pick[t] * 2.0)) % 3
        now += 0.08 * (REGIMES[state] - now)
        shift[t] = now
    return shift


def _outage(present: Booleans, draw: np.random.Generator) -> None:
    """Take away the same days from all pools of the last protocol."""
    start = 600 + int(draw.random() * 600.0)
    present[start : start + OUTAGE_DAYS, -4:] = False


def _gaps(present: Booleans, missing: int, draw: np.random.Generator) -> None:
    """Take exactly `missing` observations away in runs of 1 to 9 days, never a pool's first or last."""
    days, count = present.shape
    first = present.argmax(axis=0)
    while missing > 0:
        pool = int(draw.random() * count)
        length = min(missing, 1 + int(9.0 * draw.random() ** 3))
        start = int(first[pool]) + 1 + int(draw.random() * (days - 2 - int(first[pool])))
        stop = min(start + length, days - 1)
        missing -= int(present[start:stop, pool].sum())
        present[start:stop, pool] = False


def _long(pools: tuple[_Pool, ...], world: _World, present: Booleans) -> pl.DataFrame:
    """Rows in the order of pool and day."""
    days = present.shape[0]
    order = sorted(range(len(pools)), key=lambda n: pools[n].pool_id)
    seen = np.ascontiguousarray(present[:, order].T)
    pool, day = np.nonzero(seen)
    start = np.datetime64(LAST_DAY, "us").astype(np.int64) - (days - 1) * MICROSECONDS_PER_DAY
    valid_at = start + day * MICROSECONDS_PER_DAY + HOUR * 3_600_000_000

    def column(values: Floats, decimals: int) -> pl.Series:
        told = np.round(values.T[order][seen], decimals)
        return pl.Series(told).fill_nan(None)

    base, reward = column(world.base, 6), column(world.reward, 6)
    has_rewards = np.array([pools[n].reward_share > 0.0 for n in order])[pool]
    ids = pl.Series([pools[n].pool_id for n in order], dtype=pl.String)
    instants = pl.Series(valid_at).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return pl.DataFrame(
        {
            "pool_id": ids.gather(pl.Series(pool)),
            "valid_at": instants,
            "observed_at": instants,
            "apy_percent": (base + reward).round(6),
            "apy_base_percent": base,
            "apy_reward_percent": reward.set(pl.Series(~has_rewards), None),
            "tvl_usd": column(world.tvl, 0),
            "volume_24h_usd": column(world.volume, 0),
            "utilization_rate": column(world.utilization, 4),
        }
    ).with_columns(
        pl.lit(None, pl.Float64).alias("volatility_24h"),
        pl.lit(SOURCE).alias("source"),
    )


def _assets(pools: tuple[_Pool, ...]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "pool_id": [pool.pool_id for pool in pools],
            "protocol": [pool.protocol for pool in pools],
            "symbol": [pool.symbol for pool in pools],
            "chain": "Ethereum",
            "source": SOURCE,
        },
        schema_overrides={name: schema.ASSETS[name] for name in ("pool_id", *schema.DESCRIBED, "source")},
    ).sort("pool_id")


def _normal(draw: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Nearly normal numbers (mean 0, deviation 1, at most 3.5): four uniform ones added, the same on every machine."""
    total = draw.random(shape)
    for _ in range(3):
        total += draw.random(shape)
    return (total - 2.0) * 1.7320508075688772
