"""Hold the pools with the highest predicted yield among those of acceptable risk, more of those that promise more.

Forecast and risk in one: pools of a class above `max_risk_class` (0 low, 1 medium, 2 high) or whose probability of
`high` exceeds `max_prob_high` are left out, and so are those without a class or a probability. The rest share the
capital in proportion to their predicted APY to the `power`. A pool held ranks `persistence` higher than it is, and a
rebalance below `min_turnover` is skipped: a forecast that wavers is no reason to pay for a trade.
"""

import numpy as np

from yieldlab import Grid, Panel

NEEDS = ("forecast_{model}", "risk_class", "risk_prob_high")
SIGNAL = Grid(model=["lstm"], max_risk_class=[1, 0, 2], max_prob_high=[0.5, 0.25, 1.0])
POLICY = Grid(
    top_n=[5, 3, 8],
    every=[7, 1, 14],
    weighting=["score"],
    power=[1.0, 0.5, 2.0],
    persistence=[0.25, 0.0, 0.1, 0.5],
    min_turnover=[0.05, 0.0, 0.1],
)


def signal(panel: Panel, model: str, max_risk_class: int, max_prob_high: float) -> np.ndarray:
    acceptable = (panel["risk_class"] <= max_risk_class) & (panel["risk_prob_high"] <= max_prob_high)
    return np.where(acceptable, panel[f"forecast_{model}"], np.nan)
