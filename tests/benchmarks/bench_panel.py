"""How long does a panel of 5,000 pools x 1,460 days take from the store, and how much memory?

Run it as `python tests/benchmarks/bench_panel.py [POOLS DAYS]`; every step runs in a fresh process.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def peak_bytes() -> int:
    """The most memory this process has held so far.

    Linux keeps it per program; elsewhere `ru_maxrss` has to do, which a child inherits from its parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fill(folder: Path, pools: int, days: int) -> dict[str, float]:
    """Write a synthetic store."""
    from yieldlab.sample import synthetic
    from yieldlab.store import Store

    metrics, assets = synthetic(pools, days, seed=1)
    begin = time.perf_counter()
    appended = Store(folder).append(metrics, assets)
    return {"rows": appended.new, "seconds": time.perf_counter() - begin, "peak_bytes": peak_bytes()}


def read(folder: Path) -> dict[str, float]:
    """Build the panel: seconds, and peak memory above the interpreter with its libraries loaded."""
    import deltalake  # noqa: F401  (loaded before the clock starts, as the interpreter's share of the memory)

    from yieldlab.store import Store

    store = Store(folder)
    idle = peak_bytes()
    begin = time.perf_counter()
    panel = store.panel()
    seconds = time.perf_counter() - begin
    cells = panel.shape[0] * panel.shape[1]
    return {"cells": cells, "seconds": seconds, "peak_above_idle_bytes": peak_bytes() - idle, "idle_bytes": idle}


def again(folder: Path, pools: int, days: int) -> dict[str, float]:
    """Append the same rows a second time: nothing is added, all is compared."""
    from yieldlab.sample import synthetic
    from yieldlab.store import Store

    metrics, assets = synthetic(pools, days, seed=1)
    begin = time.perf_counter()
    appended = Store(folder).append(metrics, assets)
    return {"unchanged": appended.unchanged, "seconds": time.perf_counter() - begin, "peak_bytes": peak_bytes()}


def count(folder: Path) -> dict[str, float]:
    """Count the latest revisions in SQL."""
    from yieldlab.store import Store

    begin = time.perf_counter()
    rows = Store(folder).sql("SELECT count(*) AS n, avg(apy_percent) AS apy FROM yield_metrics")["n"].item()
    return {"rows": rows, "seconds": time.perf_counter() - begin, "peak_bytes": peak_bytes()}


def main() -> None:
    pools, days = (int(word) for word in sys.argv[1:3]) if len(sys.argv) > 2 else (5_000, 1_460)
    with tempfile.TemporaryDirectory() as folder:
        for step, arguments in (
            ("fill", (pools, days)),
            ("read", ()),
            ("count", ()),
            ("again", (pools, days)),
        ):
            call = [sys.executable, __file__, "--step", step, folder, *map(str, arguments)]
            answer = subprocess.run(call, check=True, capture_output=True, text=True)
            print(f"{step:6}", {name: round(value, 2) for name, value in json.loads(answer.stdout).items()})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        step, folder, *numbers = sys.argv[2:]
        print(json.dumps(globals()[step](Path(folder), *map(int, numbers))))
    else:
        main()
