"""A small panel and a small strategy for tests of backtests, sweeps and run folders."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from yieldlab.panel import Panel
from yieldlab.strategy import Strategy, load

STEADY = '''"""Trailing mean of the yield."""
from yieldlab import Grid
from yieldlab.features import rolling_mean

NEEDS = ("apy",)
WARMUP = "lookback"
SIGNAL = Grid(lookback=[3, 1, 10], sign=[1.0, -1.0])
POLICY = Grid(top_n=[2, 1, 5], every=[7, 1], cost=[0.001, 0.0, 0.02], weighting=["equal", "score"])


def signal(panel, lookback, sign):
    return sign * rolling_mean(panel["apy"], lookback)
'''

#: Gives no signal for some of its points.
FRAIL = '''"""Fails here and there."""
import numpy as np
from yieldlab import Grid

NEEDS = ("apy",)
SIGNAL = Grid(mood=["good", "raise", "shape", "silent", "infinite"])
POLICY = Grid(top_n=[1, 2])


def signal(panel, mood):
    if mood == "raise":
        return 1 / 0
    if mood == "shape":
        return np.zeros(3)
    if mood == "silent":
        return np.full(panel.shape, np.nan)
    if mood == "infinite":
        return np.full(panel.shape, np.inf)
    return panel["apy"]
'''


def panel(rows: int = 90, pools: int = 5, seed: int = 7) -> Panel:
    g = np.random.default_rng(seed)
    apy = np.abs(0.05 + np.cumsum(g.normal(0.0, 0.01, (rows, pools)), axis=0))
    apy[g.random((rows, pools)) < 0.15] = np.nan
    tvl = np.exp(g.normal(14.0, 1.0, (rows, pools)))
    times = np.datetime64("2024-01-01", "us") + np.arange(rows) * np.timedelta64(1, "D")
    ids = pl.DataFrame({"pool_id": [f"pool-{i}" for i in range(pools)]})
    return Panel(times, ids, {"apy": apy, "tvl_usd": tvl}, as_of=datetime(2025, 1, 1, tzinfo=UTC))


def strategy(folder: Path, source: str = STEADY, name: str = "steady") -> Strategy:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(source)
    return load(path)
