"""Hold the pools whose yield has been high and steady.

The mean of the last `lookback` days less `risk_aversion` times their deviation: of two pools that paid the same, the
calmer one ranks first, and a pool that had one good day does not rank at all.
"""

import numpy as np

from yieldlab import Grid, Panel
from yieldlab.features import rolling_mean, rolling_std

NEEDS = ("apy", "tvl_usd")
WARMUP = "lookback"
SIGNAL = Grid(lookback=[30, 7, 90], risk_aversion=[1.0, 0.0, 0.5])
POLICY = Grid(top_n=[3, 5, 10], every=[7, 1, 30], min_turnover=[0.0, 0.05])


def signal(panel: Panel, lookback: int, risk_aversion: float) -> np.ndarray:
    apy = panel["apy"]
    return rolling_mean(apy, lookback) - risk_aversion * rolling_std(apy, lookback)
