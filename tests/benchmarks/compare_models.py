"""How well do the models forecast real yields, and does that pay? Writes the tables of docs/models.md.

    YIELDLAB_REAL_DATA=FOLDER python tests/benchmarks/compare_models.py --out docs/models.md

Every step is a command of yieldlab in a process of its own, as a user would type it; what is done already is reused.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
FOLDS = ["--start", "2022-01-01", "--train", "730d", "--step", "180d"]
NET = ["--set", "stride=7", "--set", "epochs=5", "--set", "patience=1", "--set", "threads=1"]
LEARNED = ["ewma", "ar", "xgboost", "lstm", "ensemble"]
STRATEGIES = ["highest_apy", "lstm_top", "risk_adjusted"]
WINDOW = ["--start", "2022-02-01"]
CAREFUL = ["--set", "min_tvl=1000000", "--set", "spikes=winsorize"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="page with the two marks between which figures stand")
    parser.add_argument("--data", type=Path, help="data folder to keep, instead of one that goes")
    parser.add_argument("--days", type=int, default=365, help="days that a pool must have been observed on")
    chosen = parser.parse_args()
    real = Path(os.environ["YIELDLAB_REAL_DATA"]) / "yields.parquet"
    with tempfile.TemporaryDirectory() as scratch:
        data = chosen.data or Path(scratch) / "data"
        lines = list(figures(real, data, chosen.days))
    page = chosen.out.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    chosen.out.write_text(f"{before}{BEGIN}\n{chr(10).join(lines)}\n{END}{after}")


def figures(real: Path, data: Path, days: int) -> Iterator[str]:
    """The Markdown lines of all tables."""
    if not (data / "tables").is_dir():
        rows = pl.read_parquet(real)
        kept = rows.filter(pl.col("time").dt.date().n_unique().over("pool_id") >= days)
        data.mkdir(parents=True, exist_ok=True)
        kept.write_parquet(data / "chosen.parquet")
        yieldlab("data", "import", str(data / "chosen.parquet"), "--data", str(data), codes=(0, 4))
    shared = ["--data", str(data)]
    for names in (["ewma", "ar"], ["xgboost"], ["risk"], ["lstm"]):
        yieldlab("models", "walk-forward", *names, *FOLDS, *(NET if names == ["lstm"] else []), *shared, codes=(0, 4))
    members = [word for name in ("ewma", "xgboost", "lstm") for word in ("--member", name)]
    yieldlab("models", "walk-forward", "ensemble", *members, *FOLDS, *shared, codes=(0, 4))
    found = yieldlab("models", "eval", *LEARNED, "risk", *shared)
    yield from evaluation(found)
    yield from risk(found["risk"])
    for title, more in (("as quoted", []), ("pools of at least 1 million USD, spikes winsorized", CAREFUL)):
        yield from backtest(title, yieldlab("backtest", *STRATEGIES, *WINDOW, *more, *shared, codes=(0, 4)))


def yieldlab(*words: str, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """What a command answers."""
    done = subprocess.run([sys.executable, "-m", "yieldlab", *words, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode not in codes:
        raise SystemExit(f"yieldlab {' '.join(words)} ended with {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout)["data"]
    return answer


def evaluation(found: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield (
        f"{found['cells']:,} forecasts that every model made, of {found['pools']} pools on {found['days']:,} days from "
        f"{found['first']} to {found['last']}, {found['horizon_days']} days ahead. Errors in percentage points of APY."
    )
    yield ""
    yield "| model | RMSE | MAE | median AE | MASE | sMAPE | skill (MAE) | 95 % interval | rank correlation |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for row in found["overall"]:
        between = "-" if row["skill_low"] is None else f"{row['skill_low']:.1%} to {row['skill_high']:.1%}"
        yield (
            f"| {row['model']} | {100 * row['rmse']:.2f} | {100 * row['mae']:.3f} | {100 * row['median_ae']:.3f} "
            f"| {number(row['mase'])} | {row['smape']:.3f} | {row['skill']:.1%} | {between} "
            f"| {number(row['rank_correlation'], 3)} |"
        )
    yield ""
    yield from (f"- {row['model']} {row['verdict']}" for row in found["overall"] if row["verdict"])


def risk(found: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield (
        f"Risk: {found['samples']:,} pool-days from {found['first']} to {found['last']}. PR-AUC of high "
        f"{number(found['pr_auc_high'], 3)} at a base rate of {found['base_rate_high']:.3f}; log loss "
        f"{found['log_loss']:.3f}, by the classes' frequency on these very days {found['log_loss_base']:.3f}; "
        f"probabilities calibrated in {found['calibrated']} of {found['folds']} folds. Share of gain: "
        + ", ".join(f"{name} {share:.0%}" for name, share in list(found["importance"].items())[:5])
        + "."
    )
    yield ""
    yield "| what happened | given low | given medium | given high |"
    yield "|---|---:|---:|---:|"
    for row in found["confusion"]:
        yield f"| {row['happened']} | {row['low']:,} | {row['medium']:,} | {row['high']:,} |"


def backtest(title: str, found: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield f"Backtest from {found['start']} to {found['end']}, 10,000 USD, 0.1 % a trade, weekly; {title}:"
    yield ""
    yield "| strategy | a year | volatility | drawdown | turnover | cost USD | final USD |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for trial in found["trials"]:
        each = trial["measures"]
        if trial["reason"] is not None:
            yield f"| {trial['strategy']} | failed: {trial['reason']} | | | | | |"
            continue
        yield (
            f"| {trial['strategy']} | {each['annualized_return']:.1%} | {each['volatility']:.1%} "
            f"| {each['max_drawdown']:.2%} | {each['turnover']:.1f} | {each['cost_paid']:,.0f} "
            f"| {each['final_value']:,.0f} |"
        )


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
