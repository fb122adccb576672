"""Hold every pool that yields more than one percent, in proportion to its size.

An index of the market rather than a choice: capital goes where capital already is. The signal is the pool's TVL, which
also decides who stays when a grid makes `top_n` small; `min_apy` leaves out what pays next to nothing.
"""

import numpy as np

from yieldlab import Grid, Panel

NEEDS = ("apy", "tvl_usd")
SIGNAL = Grid()
POLICY = Grid(
    top_n=[10_000, 20, 10, 5],
    every=[7, 1, 30],
    weighting=["tvl"],
    power=[1.0, 0.5],
    min_apy=[0.01, 0.0, 0.02, 0.05],
    max_weight=[1.0, 0.5, 0.25],
)


def signal(panel: Panel) -> np.ndarray:
    return panel["tvl_usd"]
