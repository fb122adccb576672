"""Hold the pools with the highest yield, in equal shares.

The plain thing to do, and the yardstick for everything cleverer: rank the pools by APY, hold the best three, look
again every week. `lookback` smooths the yield over that many days; 1 means today's.
"""

import numpy as np

from yieldlab import Grid, Panel
from yieldlab.features import rolling_mean

NEEDS = ("apy",)
WARMUP = "lookback"
SIGNAL = Grid(lookback=[1, 7, 30])
POLICY = Grid(
    top_n=[3, 1, 2, 5, 8],
    every=[7, 1, 14, 30],
    weighting=["equal", "score", "tvl"],
    persistence=[0.0, 0.1, 0.25, 0.5],
    min_turnover=[0.0, 0.05, 0.1],
)


def signal(panel: Panel, lookback: int) -> np.ndarray:
    return rolling_mean(panel["apy"], lookback)
