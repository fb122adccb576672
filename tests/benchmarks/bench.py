"""Measure what docs/performance.md says: `python tests/benchmarks/bench.py [--out FILE]` (`make bench`).

Speeds are ratios between peers timed in one process, each the best of several rounds. Memory is the peak of a child
process that does one job. Nothing here is a test: machines are noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl
from bench_panel import peak_bytes

from yieldlab import simulate
from yieldlab._jit import parallel_kernel, prange, thread_limit
from yieldlab.features import rolling_mean
from yieldlab.market import Market
from yieldlab.metrics._kernels import PATH_MEASURES, measure_path
from yieldlab.panel import Panel
from yieldlab.sample import reference_study
from yieldlab.simulate.policy import policies
from yieldlab.space import Grid

#: The grid of the comparison; `lookback` belongs to the signal, the rest to the policy. 46,080 trials.
LOOKBACKS = (1, 7, 30)
POLICY = Grid(
    top_n=list(range(1, 9)),
    every=[1, 3, 7, 14, 30],
    min_apy=[0.0, 0.01, 0.02, 0.05],
    lookback=list(LOOKBACKS),
    persistence=[0.0, 0.1, 0.2, 0.5],
    max_weight=[1.0, 0.5],
    weighting=["equal", "score", "tvl"],
    cost=[0.0, 0.0005, 0.001, 0.003],
)
POLICIES = {k: policies(POLICY.with_axes({"lookback": [k]}).frame().drop("lookback")) for k in LOOKBACKS}
COMPARED = 96
HERE = Path(__file__).resolve().parent
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None, help="write the page here instead of showing it")
    parser.add_argument("--job", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(JOBS[options.job]()))
        return
    page = "\n".join([HEAD, machine(), *speed(), *breadth(), *memory(), *start_up(), FOOT])
    if options.out:
        options.out.write_text(page)
    else:
        print(page)


def best(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Seconds of the fastest of some rounds, after one that warms caches and compiles."""
    work()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def sample_panel() -> Panel:
    metrics, assets = reference_study(seed=0)
    return Panel.from_long(metrics, assets)


def run_grid(market: Market, signals: dict[int, np.ndarray], threads: int) -> pl.DataFrame:
    """All 46,080 trials with every measure, from signals and policies to a table."""
    return pl.concat(
        simulate.run(market, signals[lookback], POLICIES[lookback], threads=threads, keep_equity=False).measures()
        for lookback in LOOKBACKS
    )


# -- speed --------------------------------------------------------------------------------------------------------


def speed() -> list[str]:
    panel = sample_panel()
    market = Market.from_panel(panel)
    signals = {lookback: rolling_mean(panel["apy"], lookback) for lookback in LOOKBACKS}
    threads = thread_limit()
    ours = best(lambda: run_grid(market, signals, threads)) / len(POLICY)
    single = best(lambda: run_grid(market, signals, 1), 1) / len(POLICY)
    same = run_grid(market, signals, 1).equals(run_grid(market, signals, 2), null_equal=True)
    engines = vectorbt_seconds(panel, market, signals)
    peer = min(engines.values())
    rows, pools = market.shape
    bare = bare_seconds(market)
    return [
        "## Speed",
        "",
        f"The sample panel ({rows:,} days x {pools} pools) and a grid of {len(POLICY):,} trials: top_n 1..8 x every "
        "{1, 3, 7, 14, 30} x min_apy {0, 1, 2, 5 %} x cost {0, 5, 10, 30 bps} x lookback {1, 7, 30} x persistence "
        "{0, 0.1, 0.2, 0.5} x max_weight {1, 0.5} x weighting {equal, score, tvl}. Every trial takes all measures.",
        "",
        "| engine | time per trial | times slower than yieldlab |",
        "|---|---|---|",
        f"| yieldlab, {threads} threads, all {len(POLICY):,} trials | {ours * 1e6:.1f} us | 1 |",
        f"| yieldlab, 1 thread | {single * 1e6:.1f} us | {single / ours:.1f} |",
        *(
            f"| vectorbt {version('vectorbt')} `from_orders`, engine {name}, {COMPARED} trials of the grid "
            f"| {seconds * 1e6:,.0f} us | {seconds / ours:,.0f} |"
            for name, seconds in engines.items()
        ),
        "",
        f"**yieldlab is {peer / ours:,.0f} times faster than the better of vectorbt's engines here.** vectorbt is "
        "given the target weights ready made (`targetpercent`, cash sharing, `call_seq='auto'`), so that its time is "
        "that of the simulation and the same measures; yieldlab is given signals and policies, and its time includes "
        "ranking, choosing and weighing. An engine is timed if it is installed (`pip install vectorbt-rust` adds the "
        "one in Rust).",
        "",
        "A bare kernel that does nothing but mark four fixed holdings to market and take the same measures handles "
        f"{rows / bare / 1e6:,.0f} million trial-days a second; yieldlab {rows / ours / 1e6:,.0f} million, "
        f"{ours / bare:.1f} times as long per trial.",
        "",
        f"Results with 1 and 2 threads are {'identical bit for bit' if same else 'NOT IDENTICAL'}.",
        "",
    ]


@parallel_kernel
def _bare(index, shares, pools, capital, days, measures):  # type: ignore[no-untyped-def]
    for r in prange(shares.shape[0]):
        equity = np.zeros(index.shape[1])
        for k in range(pools.shape[1]):
            for t in range(index.shape[1]):
                equity[t] += shares[r, k] * index[pools[r, k], t]
        measure_path(equity, capital, days, 0.0, measures[r])


def bare_seconds(market: Market) -> float:
    """Seconds per trial of a kernel that holds four pools from the first to the last day."""
    draw = np.random.default_rng(0)
    trials = len(POLICY)
    pools = draw.integers(0, market.shape[1], (trials, 4))
    shares = draw.uniform(1_000.0, 3_000.0, (trials, 4))
    measures = np.empty((trials, PATH_MEASURES))
    span = float((market.times[-1] - market.times[0]) / np.timedelta64(1, "D"))
    return best(lambda: _bare(market.index, shares, pools, 10_000.0, span, measures)) / trials


def vectorbt_seconds(panel: Panel, market: Market, signals: dict[int, np.ndarray]) -> dict[str, float]:
    """Seconds per trial of each engine of vectorbt that is installed, for trials spread over the grid."""
    import warnings

    import pandas as pd
    import vectorbt as vbt

    warnings.filterwarnings("ignore")
    chosen = np.linspace(0, len(POLICY) - 1, COMPARED).astype(int)
    weights = np.hstack([target_weights(market, signals, POLICY.row(int(row))) for row in chosen])
    columns = pd.MultiIndex.from_product([range(COMPARED), panel.pool_ids], names=["trial", "pool"])
    days = pd.DatetimeIndex(panel.times)
    close = pd.DataFrame(np.tile(market.index.T, (1, COMPARED)), index=days, columns=columns)
    size = pd.DataFrame(weights, index=days, columns=columns)
    fees = np.repeat([POLICY.row(int(row))["cost"] for row in chosen], market.shape[1])

    def simulate_and_measure(engine: str) -> None:
        portfolio = vbt.Portfolio.from_orders(
            close, size, size_type="targetpercent", group_by="trial", cash_sharing=True, call_seq="auto",
            fees=fees, init_cash=10_000.0, freq="1D", engine=engine,
        )  # fmt: skip
        returns = portfolio.returns()
        accessor = portfolio.returns_acc()
        for measure in (
            "total",
            "annualized",
            "annualized_volatility",
            "sharpe_ratio",
            "sortino_ratio",
            "max_drawdown",
        ):
            getattr(accessor, measure)()
        accessor.calmar_ratio()
        returns.skew()
        returns.kurt()
        returns.apply(lambda path: path.autocorr())
        portfolio.final_value()
        portfolio.orders.count()
        portfolio.orders.fees.sum()

    seconds = {}
    for engine in ("numba", "rust"):
        try:
            seconds[engine] = best(lambda engine=engine: simulate_and_measure(engine)) / COMPARED  # type: ignore[misc]
        except ImportError:
            continue
    return seconds


def target_weights(market: Market, signals: dict[int, np.ndarray], trial: dict) -> np.ndarray:
    """(T, N) weights after each rebalance of one trial, NaN on the other days, read off its trades."""
    lookback = trial.pop("lookback")
    ledger = simulate.run(market, signals[lookback], policies(trial), trace=True)
    weights = np.full(market.shape, np.nan)
    position = np.zeros(market.shape[1])
    last = 0
    for (row,), trades in ledger.trades.group_by("row", maintain_order=True):
        position *= market.index[:, row] / market.index[:, last]
        np.add.at(position, trades["pool"].to_numpy(), trades["amount_usd"].to_numpy())
        position[position < 1e-6] = 0.0
        weights[row] = position / ledger.kept_equity[0, row]
        last = row
    return weights


# -- breadth ------------------------------------------------------------------------------------------------------


def made_up(pools: int, days: int) -> Panel:
    """A panel of any breadth, made without the store."""
    draw = np.random.default_rng(1)
    apy = np.abs(draw.normal(0.05, 0.03, pools) + np.cumsum(draw.normal(0.0, 0.002, (days, pools)), axis=0))
    tvl = np.exp(draw.normal(16.0, 2.0, (days, pools)))
    names = pl.DataFrame({"pool_id": [f"pool-{i:05}" for i in range(pools)]})
    return Panel(np.datetime64("2022-01-01") + np.arange(days), names, {"apy": apy, "tvl_usd": tvl})


def breadth() -> list[str]:
    sizes = (12, 500, 5_000)
    widths = (1, 3, 10, 30)
    lines = [
        "## Breadth",
        "",
        "Time per trial by number of pools and by `top_n` (weekly, 1,460 days, 1,000 trials, one ranking shared):",
        "",
        "| pools | " + " | ".join(f"top_n {top_n}" for top_n in widths) + " | ranking, once |",
        "|---|" + "---|" * (len(widths) + 1),
    ]
    for pools in sizes:
        panel = made_up(pools, 1_460)
        market = Market.from_panel(panel)
        ranking = simulate.rank(market, panel["apy"])
        ranked = best(lambda market=market, panel=panel: simulate.rank(market, panel["apy"]), 1)  # type: ignore[misc]
        cells = []
        for top_n in widths:
            grid = Grid(top_n=top_n, persistence=list(np.linspace(0, 1, 1_000)))
            rows = policies(grid.frame())
            seconds = best(lambda m=market, k=ranking, p=rows: simulate.run(m, k, p, keep_equity=False))  # type: ignore[misc]
            cells.append(f"{seconds / 1_000 * 1e6:.1f} us")
        lines.append(f"| {pools:,} | " + " | ".join(cells) + f" | {ranked * 1e3:,.0f} ms |")
    wide = child("wide")
    lines += [
        "",
        f"5,000 pools x 1,460 days x 1,000 trials in a process of its own: market {wide['market']:.1f} s, ranking "
        f"{wide['rank']:.1f} s, trials {wide['trials']:.2f} s; peak memory {wide['peak'] / 2**20:,.0f} MB above the "
        f"interpreter, {wide['panel'] / 2**20:,.0f} MB of it the panel's two fields, as observed and as carried.",
        "",
    ]
    return lines


def wide_job() -> dict[str, float]:
    panel = made_up(5_000, 1_460)
    begin = time.perf_counter()
    market = Market.from_panel(panel)
    built = time.perf_counter()
    ranking = simulate.rank(market, panel["apy"])
    ranked = time.perf_counter()
    grid = Grid(top_n=[1, 3, 5, 10], every=[1, 7, 14, 30, 90], persistence=list(np.linspace(0, 1, 50)))
    rows = policies(grid.frame())
    simulate.run(market, ranking, rows[:4], keep_equity=False)
    warm = time.perf_counter()
    simulate.run(market, ranking, rows, keep_equity=False)
    done = time.perf_counter()
    panel_bytes = 4 * panel.raw("apy").nbytes
    return {"market": built - begin, "rank": ranked - built, "trials": done - warm, "panel": panel_bytes, **peak()}


# -- memory and start -----------------------------------------------------------------------------------------------


def memory() -> list[str]:
    million = child("million")
    store = child("store")
    return [
        "## Memory",
        "",
        f"A sweep of {million['trials']:,} trials on the sample panel, written to its run folder with every measure: "
        f"{million['seconds']:.0f} s, peak memory {million['peak'] / 2**20:,.0f} MB above a bare interpreter (of which "
        f"libraries, compiled kernels and a first small sweep had taken {million['idle'] / 2**20:,.0f} MB before).",
        "",
        f"A panel of 5,000 pools x 1,460 days ({store['cells'] / 1e6:.1f} million rows) from the store: "
        f"{store['seconds']:.1f} s, peak memory {store['peak'] / 2**20:,.0f} MB above the interpreter with its "
        "libraries (`python tests/benchmarks/bench_panel.py`).",
        "",
    ]


def million_job() -> dict[str, float]:
    from yieldlab.strategy import bundled_folder, find
    from yieldlab.sweep import plan, sweep

    panel = sample_panel()
    strategy = find("highest_apy", [bundled_folder()])
    axes = {
        "lookback": [1, 7, 14, 30],
        "top_n": list(range(1, 9)),
        "every": [7, 14, 21, 30, 60],
        "weighting": ["equal", "score", "tvl"],
        "persistence": list(np.linspace(0.0, 1.0, 21)),
        "min_turnover": list(np.linspace(0.0, 0.2, 5)),
        "max_weight": [1.0, 0.5],
        "cost": list(np.linspace(0.0, 0.005, 10)),
    }
    trials = 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        sweep(plan(strategy, {**axes, "cost": [0.0]}, sample=100), panel, out=Path(folder) / "warm")
        idle = peak()["peak"]
        begin = time.perf_counter()
        planned = plan(strategy, axes, sample=trials, seed=1)
        result = sweep(planned, panel, out=Path(folder) / "run", max_memory=2**30)
        seconds = time.perf_counter() - begin
        height = result.scan().select(pl.len()).collect().item()
    return {"trials": height, "seconds": seconds, "idle": idle, **peak()}


def store_job() -> dict[str, float]:
    script = HERE / "bench_panel.py"
    answer = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout
    line = next(line for line in answer.splitlines() if line.startswith("read"))
    figures = json.loads(line.removeprefix("read").strip().replace("'", '"'))
    return {"cells": figures["cells"], "seconds": figures["seconds"], "peak": figures["peak_above_idle_bytes"]}


def start_up() -> list[str]:
    script = Path(sys.executable).with_name("yieldlab")
    times = []
    for _ in range(9):
        begin = time.perf_counter()
        subprocess.run([script, "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - begin)
    with tempfile.TemporaryDirectory() as folder:
        compiled = child("compile", NUMBA_CACHE_DIR=folder)["seconds"]
    return [
        "## Start",
        "",
        f"`yieldlab --help`: {statistics.median(times):.2f} s (median of 9). The kernels are compiled on their first "
        f"use on a machine, in {compiled:.0f} s, and then read from Numba's cache.",
        "",
    ]


def compile_job() -> dict[str, float]:
    panel = sample_panel()
    begin = time.perf_counter()
    simulate.run(Market.from_panel(panel), panel["apy"], policies())
    return {"seconds": time.perf_counter() - begin}


JOBS = {"wide": wide_job, "million": million_job, "store": store_job, "compile": compile_job}


def peak() -> dict[str, float]:
    """Peak memory of this process above that of an interpreter that does nothing."""
    script = f"import sys; sys.path.insert(0, {str(HERE)!r}); from bench_panel import peak_bytes; print(peak_bytes())"
    bare = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    return {"peak": peak_bytes() - int(bare)}


def child(job: str, **environment: str) -> dict[str, float]:
    call = [sys.executable, __file__, "--job", job]
    answer = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    figures: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return figures


def machine() -> str:
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":")[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "polars", "vectorbt"))
    cores = f"{os.cpu_count()} cores, {platform.system()}"
    return f"Machine: {model}, {cores}; Python {platform.python_version()}, {libraries}.\n"


HEAD = """# Performance

Written by `make bench` (`python tests/benchmarks/bench.py --out docs/performance.md`). Ratios are between peers timed
in one process, each the best of several rounds; machines are noisy, so read them as orders of magnitude.
"""

FOOT = """## What makes it fast

- Each row of a signal is sorted once and shared by all policies, so that a decision looks at the best few pools only.
- Growth is kept as a running product, pool by pool: between rebalances the equity is a sum over the pools held along
  memory that lies side by side.
- Trials that differ only in `cost` choose and weigh once; only what the trades cost is worked out for each.
- One kernel runs a trial from its first bar to its measures on one thread; nothing is allocated inside the time loop.
"""


if __name__ == "__main__":
    main()
