"""Random worlds nasty enough that every branch of the accounting binds: ties, gaps, dying pools, caps, ruinous gas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from hypothesis import strategies as st

from yieldlab.market import Market
from yieldlab.panel import Panel


@dataclass
class World:
    panel: Panel
    signal: np.ndarray
    policies: list[dict]
    capital: float
    t_start: int
    t_end: int
    accrual: str
    risk_free: float
    delisted: str
    delisted_loss: float
    dead_after_days: int

    @property
    def market(self) -> Market:
        return self.market_of(self.panel)

    def market_of(self, panel: Panel) -> Market:
        """The market of this or another panel under this world's parameters."""
        return Market.from_panel(
            panel,
            accrual=self.accrual,
            delisted=self.delisted,
            delisted_loss=self.delisted_loss,
            dead_after_days=self.dead_after_days,
        )

    @property
    def loss(self) -> float:
        return self.delisted_loss if self.delisted == "loss" else 0.0

    @property
    def days(self) -> np.ndarray:
        return self.panel.times.astype("int64") / 86_400e6


def make(seed: int, *, trials: int = 1, smooth: bool = False) -> World:
    """A world from a seed. `smooth` ones have continuous values, so that nothing ties."""
    g = np.random.default_rng(seed)
    rows, pools = int(g.integers(2, 60)), int(g.integers(1, 9))
    regular = g.random() < 0.8
    steps = np.ones(rows) if regular else g.choice([0.25, 1.0, 1.0, 2.0, 5.0], rows)
    times = np.datetime64("2023-01-01", "us") + (np.cumsum(steps) * 86_400e6).astype("timedelta64[us]")
    coarse = not smooth and g.random() < 0.5
    if coarse:
        apy = g.choice([0.0, 0.01, 0.05, 0.05, 0.1, -0.3, 4.0], (rows, pools))
        if g.random() < 0.4:
            apy = np.repeat(apy[:1], rows, axis=0)
        tvl = g.choice([0.0, 1e5, 1e6, 1e6, 5e7], (rows, pools))
        signal = g.choice([-1.0, -0.0, 0.0, 0.05, 0.05, 0.1, 0.2, 0.9], (rows, pools))
    else:
        apy = g.normal(0.08, 0.1, (rows, pools)).clip(-0.9)
        tvl = np.exp(g.normal(14, 3, (rows, pools)))
        signal = g.normal(0.05, 0.1, (rows, pools)) if g.random() < 0.5 else np.abs(apy) * g.choice([0.1, 1, 3])
    apy[g.random((rows, pools)) < g.choice([0.0, 0.1, 0.6])] = np.nan
    tvl[g.random((rows, pools)) < g.choice([0.0, 0.1, 0.5])] = np.nan
    signal[g.random((rows, pools)) < g.choice([0.0, 0.1, 0.7])] = np.nan
    for i in range(pools):
        if g.random() < 0.25:  # a pool that dies
            apy[int(g.integers(0, rows)) :, i] = np.nan
        if g.random() < 0.15:  # a pool that starts late
            apy[: int(g.integers(0, rows)), i] = np.nan
    panel = Panel(
        times,
        pl.DataFrame({"pool_id": [f"pool-{i}" for i in range(pools)]}),
        {"apy": apy, "tvl_usd": tvl},
        max_stale_days=int(g.choice([0, 1, 3, 10])),
    )
    deaths = np.random.default_rng([seed, 1])  # a generator of its own, so that a world is the same without deaths
    t_start = int(g.integers(0, rows))
    t_end = int(g.integers(t_start, rows))
    if g.random() < 0.6:
        t_start, t_end = 0, rows - 1
    return World(
        panel=panel,
        signal=signal,
        policies=[_policy(g) for _ in range(trials)],
        capital=float(g.choice([25.0, 1_000.0, 10_000.0])),
        t_start=t_start,
        t_end=t_end,
        accrual=str(g.choice(["trailing", "leading"])),
        risk_free=float(g.choice([0.0, 0.0, 0.03])),
        delisted=str(deaths.choice(["hold", "exit", "loss"])),
        delisted_loss=float(deaths.choice([0.0, 0.2, 0.5, 0.999, 1.0, 1.0])),
        dead_after_days=panel.max_stale_days + int(deaths.choice([0, 0, 1, 4])),
    )


def _policy(g: np.random.Generator) -> dict:
    return {
        "top_n": int(g.choice([1, 2, 3, 4, 20])),
        "every": int(g.choice([1, 1, 1, 2, 3, 7, 30])),
        "lag": int(g.choice([0, 0, 0, 1, 3])),
        "warmup": int(g.choice([0, 0, 0, 2, 6])),
        "min_apy": _some(g, [None, None, 0.0, 0.04, 0.05]),
        "min_tvl": _some(g, [None, None, 1e5, 1e6]),
        "weighting": str(g.choice(["equal", "score", "tvl", "signal"])),
        "power": float(g.choice([0.5, 1.0, 1.0, 2.0])),
        "max_weight": float(g.choice([1.0, 1.0, 0.5, 0.3, 0.1])),
        "persistence": float(g.choice([0.0, 0.0, 0.2, 1.0, 3.0])),
        "min_turnover": float(g.choice([0.0, 0.0, 0.02, 0.2, 0.5])),
        "cost": float(g.choice([0.0, 0.001, 0.01, 0.3, 0.9])),
        "gas_usd": float(g.choice([0.0, 0.0, 0.1, 3.0, 12.0])),
        "on_empty": str(g.choice(["cash", "hold"])),
    }


def _some(g: np.random.Generator, values: list) -> object:
    return values[int(g.integers(0, len(values)))]


def worlds(*, trials: int = 1, smooth: bool = False) -> st.SearchStrategy[World]:
    """A Hypothesis strategy over seeds; a failing example prints the seed that makes it."""
    return st.integers(0, 2**32 - 1).map(lambda seed: make(seed, trials=trials, smooth=smooth))
