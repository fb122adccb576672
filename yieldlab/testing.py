"""What a test of your own strategy needs: a small panel with the faults of real ones, and the checks yieldlab makes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice, product
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab import schema
from yieldlab.causality import SECONDS, assert_causal
from yieldlab.errors import UsageError
from yieldlab.panel import Panel
from yieldlab.space import Value
from yieldlab.strategy import Strategy, load

__all__ = ["assert_causal", "check_strategy", "corners", "tiny_panel"]

Floats = NDArray[np.float64]

#: Rows that a panel made for a strategy has after its longest warm-up.
_ROWS_AFTER_WARMUP = 60

#: Corners of a grid that are tried at most.
_CORNERS = 32


def tiny_panel(*, times: int = 60, pools: int = 4, seed: int = 0, fields: Iterable[str] = ()) -> Panel:
    """A daily panel from 2024-01-01 with every field of the store, and `fields` besides; the same for the same seed.

    `risk_class` among them holds 0, 1 and 2, `risk_prob_*` shares, and any other an APY that is somewhat off.

    It has what real data has: pools that start late, days missing here and there, a gap longer than the carry, a pool
    that stops reporting, a yield of exactly zero, and a jump.

    >>> tiny_panel().shape, tiny_panel().pool_ids[:2]
    ((60, 4), ['pool-00', 'pool-01'])
    """
    if times < 1 or pools < 1:
        raise UsageError(f"a panel needs at least one row and one pool, not {times} x {pools}")
    generator = np.random.default_rng(seed)
    level = generator.uniform(0.01, 0.12, pools)
    walk = np.cumsum(generator.normal(0.0, 0.03, (times, pools)), axis=0)
    apy = level * np.exp(walk)
    apy[times // 2, 0] = 0.0
    apy[times * 2 // 3 :, pools // 2] *= 4.0
    tvl_usd = generator.lognormal(16.0, 1.5, pools) * np.exp(np.cumsum(generator.normal(0.0, 0.02, apy.shape), axis=0))
    share = generator.uniform(0.0, 1.0, apy.shape)
    made = {
        "apy": apy,
        "apy_base": apy * share,
        "apy_reward": apy * (1.0 - share),
        "tvl_usd": tvl_usd,
        "volume_24h_usd": tvl_usd * generator.lognormal(-3.0, 0.5, apy.shape),
        "utilization_rate": generator.uniform(0.2, 0.95, apy.shape),
        "volatility_24h": generator.lognormal(-4.0, 0.5, apy.shape),
    }
    for name in fields:
        if name not in schema.FIELDS:
            made[name] = _model_field(name, apy, generator)
    missing = _missing(times, pools, generator)
    for values in made.values():
        values[missing] = np.nan
    described = pl.DataFrame(
        {
            "pool_id": [f"pool-{i:02}" for i in range(pools)],
            "protocol": [f"protocol-{i % 3}" for i in range(pools)],
            "symbol": [("USDC", "WETH", "DAI-USDC")[i % 3] for i in range(pools)],
            "chain": ["ethereum"] * pools,
        }
    )
    return Panel(np.datetime64("2024-01-01", "D") + np.arange(times), described, made)


def check_strategy(path: str | Path, panel: Panel | None = None) -> Strategy:
    """Load a strategy file, take its signal and audit it at its defaults and at the corners of its grid.

    `panel` is `tiny_panel` with the fields and rows that the strategy needs, unless given. Raises what loading, the
    signal or the audit raises; returns the strategy when all is well.
    """
    strategy = load(path)
    points = corners(strategy)
    if panel is None:
        fields = {name: None for params in points for name in strategy.fields(params)}
        longest = max(strategy.warmup_rows(params) for params in points)
        panel = tiny_panel(times=longest + _ROWS_AFTER_WARMUP, pools=6, fields=fields)
    for params in points:
        strategy.audit(panel, params, seconds=SECONDS / len(points))
        strategy.signal(panel, params)  # after the audit, whose first calls must be the strategy's first
    return strategy


def corners(strategy: Strategy) -> list[dict[str, Value]]:
    """The defaults of a strategy's signal, then every combination of its axes' first and last values (32 at most)."""
    ends = {name: dict.fromkeys((values[0], values[-1])) for name, values in strategy.signal_grid.axes.items()}
    combined = (dict(zip(ends, values, strict=True)) for values in product(*ends.values()))
    return list(islice(combined, _CORNERS))


def _model_field(name: str, apy: Floats, generator: np.random.Generator) -> Floats:
    """(times, pools) values such as a model gives under this name."""
    if name == "risk_class":
        return generator.integers(0, 3, apy.shape).astype(np.float64)
    if name.startswith("risk_prob_"):
        return generator.uniform(0.0, 1.0, apy.shape)
    return apy * generator.lognormal(0.0, 0.2, apy.shape)


def _missing(times: int, pools: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """(times, pools) what was not observed. The first pool is complete from the first row on."""
    missing = generator.random((times, pools)) < 0.05
    missing[:, 0] = False
    for i in range(1, pools):
        if i % 4 == 1:
            missing[: times // 6, i] = True
        elif i % 4 == 2:
            missing[times // 3 : times // 3 + 6, i] = True
        elif i % 4 == 3:
            missing[times - times // 5 :, i] = True
    return missing
