"""How fast does the net learn next to a bare PyTorch loop, and how much memory does forecasting every window take?

`python tests/benchmarks/bench_models.py [--samples N --rounds R --pools P --days D --threads K]` prints Markdown. Both
loops train the same net on the same batches; the bare one has its windows in memory already, as one tensor. The peak is
that of a fresh process that makes a panel and forecasts every window of it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
from bench_panel import peak_bytes

from yieldlab.forecast.registry import settings_of, windows_of
from yieldlab.panel import Panel
from yieldlab.sample import reference_study, synthetic
from yieldlab.space import Value

FIELDS = ("apy", "tvl_usd", "volume_24h_usd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000, help="windows of the sample panel to learn from")
    parser.add_argument("--rounds", type=int, default=5, help="epochs of either loop, in turn")
    parser.add_argument("--pools", type=int, default=500)
    parser.add_argument("--days", type=int, default=1_460)
    parser.add_argument("--threads", type=int, default=0, help="0 = as PyTorch likes")
    parser.add_argument("--job", choices=("epoch", "memory"), default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job == "epoch":
        print(json.dumps(epoch(options.samples, options.rounds, options.threads)))
    elif options.job == "memory":
        print(json.dumps(memory(options.pools, options.days, options.threads)))
    else:
        print(page({job: child(job) for job in ("epoch", "memory")}), end="")


def child(job: str) -> dict[str, float]:
    """The answer of a fresh process with the same options."""
    call = [sys.executable, __file__, *sys.argv[1:], "--job", job]
    answer: dict[str, float] = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
    return answer


def epoch(samples: int, rounds: int, threads: int) -> dict[str, float]:
    """Seconds of an epoch of either loop, in turn; the first of each only warms up."""
    import torch

    from yieldlab.forecast.training import NetForecaster

    if threads:
        torch.set_num_threads(threads)
    metrics, assets = reference_study()
    panel = Panel.from_long(metrics, assets, fields=FIELDS)
    given: dict[str, Value] = {"epochs": rounds + 1, "device": "cpu", "target": "level"}
    model = NetForecaster("lstm", settings_of("lstm", given))
    windows = windows_of(panel, model.settings)
    t, n = windows.samples((0, panel.shape[0]), labelled=True)
    end = int(t[min(samples, t.size) - 1]) + 1
    t, n = windows.samples((0, end), labelled=True)
    ours: list[float] = []
    bare: list[float] = []
    learning = model.fit(windows, (0, end), None)
    next(learning)  # scaler, net, and an epoch to warm up
    scaled = model._scaler.apply(windows)
    inputs = torch.from_numpy(windows.flat(scaled)[windows.position(t, n)])
    wanted = torch.from_numpy(model._target.wanted(windows, t, n).astype(np.float32))
    loop = BareLoop(inputs, wanted, int(str(model.settings["batch"])))
    loop.epoch()
    for _ in range(rounds):
        begin = time.perf_counter()
        next(learning)
        ours.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        loop.epoch()
        bare.append(time.perf_counter() - begin)
    return {
        "samples": t.size,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "ours": statistics.median(ours),
        "bare": statistics.median(bare),
    }


class BareLoop:
    """What one writes by hand: the study's net, AdamW, Huber loss, clipped gradients, shuffled batches of a tensor."""

    def __init__(self, inputs: object, wanted: object, batch: int) -> None:
        import torch

        from yieldlab.forecast.lstm import YieldForecaster

        self.inputs, self.wanted, self.batch = inputs, wanted, batch
        self.net = YieldForecaster(input_size=inputs.shape[2])  # type: ignore[attr-defined]
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3, weight_decay=1e-4)

    def epoch(self) -> float:
        import torch

        self.net.train()
        total = 0.0
        for chosen in torch.split(torch.randperm(self.wanted.shape[0]), self.batch):  # type: ignore[attr-defined]
            self.optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.huber_loss(self.net(self.inputs[chosen]), self.wanted[chosen])  # type: ignore[index]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            total += float(loss.detach()) * chosen.shape[0]
        return total


def memory(pools: int, days: int, threads: int) -> dict[str, float]:
    """Forecast every window of a synthetic panel with a net that learned from few; the peak is the whole process's."""
    import torch

    from yieldlab.forecast.training import NetForecaster

    if threads:
        torch.set_num_threads(threads)
    panel = Panel.from_long(*synthetic(pools, days, seed=1), fields=FIELDS)
    model = NetForecaster("lstm", settings_of("lstm", {"epochs": 1, "device": "cpu"}))
    windows = windows_of(panel, model.settings)
    first = model_rows(windows.lookback, days, pools)
    list(model.fit(windows, first, None))
    before = peak_bytes()
    begin = time.perf_counter()
    told = model.fields(windows, (0, days))["forecast_lstm"]
    seconds = time.perf_counter() - begin
    forecasts = int(np.count_nonzero(np.isfinite(told)))
    if forecasts != pools * (days - windows.lookback + 1):
        raise SystemExit(f"{forecasts} forecasts are not those of every window")
    in_memory = forecasts * windows.lookback * model._scaler.width * 4
    return {
        "pools": pools, "days": days, "forecasts": forecasts, "seconds": seconds, "peak_bytes": peak_bytes(),
        "before_bytes": before, "windows_bytes": in_memory,
    }  # fmt: skip


def model_rows(lookback: int, days: int, pools: int) -> tuple[int, int]:
    """Window ends to learn from: about 1,000 samples, which take seconds."""
    return lookback - 1, min(days - 10, lookback - 1 + max(2, 1_000 // pools))


def page(answers: dict[str, dict[str, float]]) -> str:
    told, peak = answers["epoch"], answers["memory"]
    where = f"{platform.system()} {platform.machine()}, {told['threads']} threads, PyTorch {version('torch')}"
    return f"""Measured on {where}.

| one LSTM epoch of {told["samples"]:,} windows, median of {told["rounds"]} | seconds | ratio |
| --- | ---: | ---: |
| bare PyTorch loop, windows in memory | {told["bare"]:.2f} | 1.00 |
| `NetForecaster` | {told["ours"]:.2f} | {told["ours"] / told["bare"]:.2f} |

| every window of {peak["pools"]:,} pools x {peak["days"]:,} days | |
| --- | ---: |
| forecasts | {peak["forecasts"]:,} |
| seconds | {peak["seconds"]:.1f} |
| peak RSS of the process | {peak["peak_bytes"] / 1e9:.2f} GB |
| peak RSS before the forecast | {peak["before_bytes"] / 1e9:.2f} GB |
| the same windows in memory | {peak["windows_bytes"] / 1e9:.2f} GB |
"""


if __name__ == "__main__":
    main()
