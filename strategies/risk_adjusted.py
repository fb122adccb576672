"""Hold the pools with the highest yield among those whose risk class is low or medium, in equal shares.

What `highest_apy` would hold, less the pools that the risk model expects to lose most of their size or yield within a
month. A pool without a class is left out, since nothing shows that its risk is acceptable. `model=persistence` ranks by
today's APY and needs no forecaster; any other ranks by what that one predicts.
"""

import numpy as np

from yieldlab import Grid, Panel

NEEDS = ("forecast_{model}", "risk_class")
SIGNAL = Grid(model=["persistence", "lstm"])
POLICY = Grid(
    top_n=[3, 1, 2, 5, 8],
    every=[7, 1, 14, 30],
    weighting=["equal", "score", "tvl"],
    persistence=[0.0, 0.1, 0.25, 0.5],
    min_turnover=[0.0, 0.05, 0.1],
)

#: Classes are 0 (low), 1 (medium) and 2 (high).
MEDIUM = 1


def signal(panel: Panel, model: str) -> np.ndarray:
    acceptable = panel["risk_class"] <= MEDIUM  # not so where the class is NaN
    return np.where(acceptable, panel[f"forecast_{model}"], np.nan)
