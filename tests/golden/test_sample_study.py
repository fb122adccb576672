"""The bundled strategies on the sample panel give the figures that stand in sample_study.json.

A change that moves one of them says why in its commit. `python tests/golden/test_sample_study.py` writes the file anew.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl

from yieldlab.backtest import compare, entry
from yieldlab.metrics import MEASURES
from yieldlab.panel import Panel
from yieldlab.sample import reference_study
from yieldlab.strategy import bundled_folder, find

GOLDEN = Path(__file__).with_name("sample_study.json")
STRATEGIES = ("highest_apy", "tvl_weighted", "steady_carry")
SETTINGS = {
    "as they come": {},
    "daily, capped, sticky, with gas": {
        "every": 1, "max_weight": 0.4, "weighting": "score", "persistence": 0.2, "min_turnover": 0.01, "gas_usd": 2.0,
    },
    "leading, lagged, by TVL": {"accrual": "leading", "lag": 2, "weighting": "tvl", "power": 0.5, "min_tvl": 5e7},
}  # fmt: skip


def figures() -> dict[str, dict[str, dict[str, float | None]]]:
    metrics, assets = reference_study(seed=0)
    panel = Panel.from_long(metrics, assets)
    found = {name: find(name, [bundled_folder()]) for name in STRATEGIES}
    result = {}
    for setting, sets in SETTINGS.items():
        trials = compare(panel, [entry(strategy, sets) for strategy in found.values()]).trials
        rows = trials.select(pl.col("strategy"), *MEASURES).to_dicts()
        result[setting] = {row.pop("strategy"): row for row in rows}
    return result


def test_the_figures_are_the_golden_ones() -> None:
    golden = json.loads(GOLDEN.read_text())
    present = figures()
    assert present.keys() == golden.keys()
    for setting, strategies in golden.items():
        for strategy, measures in strategies.items():
            for name, expected in measures.items():
                value = present[setting][strategy][name]
                where = f"{setting}: {strategy}: {name} is {value}, was {expected}"
                same = (
                    value == expected
                    if expected is None
                    else math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-12)
                )
                assert same, where


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(figures(), indent=1) + "\n")
