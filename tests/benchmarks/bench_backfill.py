"""How long does a backfill take, and how much memory? Prints the figures; the local feed is a process of its own.

python tests/benchmarks/bench_backfill.py --pools 1000 --days 1000
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER = Path(__file__).parents[1] / "feed_server.py"


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """The address of a feed in its own process."""
    process = subprocess.Popen([sys.executable, str(SERVER), *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def measure(arguments: list[str]) -> tuple[float, float, str]:
    """Seconds, the most memory in MB, and what the command said."""
    code = "import sys; from yieldlab.cli import main; code = main(sys.argv[1:])\n"
    code += "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, code)"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    *said, last = done.stdout.splitlines()
    megabytes, exit_code = last.split()
    if exit_code != "0":
        raise SystemExit(f"{arguments} left with {exit_code}: {done.stderr}")
    return seconds, float(megabytes), said[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=int, default=1000)
    parser.add_argument("--days", type=int, default=1000)
    parser.add_argument("--fault-share", type=float, default=0.0)
    given = parser.parse_args()
    feed = ["--pools", str(given.pools), "--days", str(given.days), "--fault-share", str(given.fault_share)]
    with served(*feed, "--hang-seconds", "1", "--drip-seconds", "1") as url, tempfile.TemporaryDirectory() as folder:
        data = ["--data", f"{folder}/data"]
        asked = [*data, "--base-url", url, "--requests-per-minute", "1000000", "--min-tvl", "0", "-q"]
        for title, arguments in (
            ("backfill", ["data", "backfill", *asked]),
            ("again, nothing new", ["data", "backfill", *asked, "--refresh"]),
            ("rebuild in place", ["data", "rebuild", *data, "-q"]),
            ("rebuild into a new folder", ["data", "rebuild", *data, "--into", f"{folder}/again", "-q"]),
        ):
            seconds, megabytes, said = measure(arguments)
            print(f"{title:26} {seconds:7.1f} s {megabytes:7,.0f} MB  {said}", flush=True)


if __name__ == "__main__":
    main()
