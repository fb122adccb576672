"""Hold the pools with the highest predicted yield, in equal shares.

`highest_apy` with a forecast in the place of today's yield: rank the pools by the APY that `model` predicts, hold the
best three, look again every week. Any forecaster serves, as `--set model=xgboost`; a pool without a forecast is not
ranked.
"""

import numpy as np

from yieldlab import Grid, Panel

NEEDS = ("forecast_{model}",)
SIGNAL = Grid(model=["lstm"])
POLICY = Grid(
    top_n=[3, 1, 2, 5, 8],
    every=[7, 1, 14, 30],
    weighting=["equal", "score"],
    persistence=[0.0, 0.1, 0.25, 0.5],
    min_turnover=[0.0, 0.05, 0.1],
)


def signal(panel: Panel, model: str) -> np.ndarray:
    return panel[f"forecast_{model}"]
