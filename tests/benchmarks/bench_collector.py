"""What do 2,000 polls at full speed do to the memory of a collector and to the number of its files?

    python tests/benchmarks/bench_collector.py [--polls 2000] [--pools 200]

The collector is a process of its own, under its scheduler, against a feed in this one whose every answer differs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import moving_feed
from moving_feed import MovingFeed

from yieldlab.store import Store


def main() -> None:
    """Print memory, files and time as they go."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--polls", type=int, default=2_000)
    parser.add_argument("--pools", type=int, default=200)
    parser.add_argument("--max-files", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, MovingFeed(given.pools) as server:
        store = Store(Path(folder) / "data")
        words = [sys.executable, moving_feed.__file__, "one", str(store.folder), server.url, str(given.max_files)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        collector = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        assert collector.stdout is not None
        began, memory, failed, most_files = time.monotonic(), [], 0, 0
        for line in collector.stdout:
            outcome, _, resident, *notes = line.split()
            memory.append(float(resident))
            failed += outcome == "failed" or bool(notes)
            if len(memory) % 100 == 0:
                states = store.versions()
                files = max(state.files for state in states.values())
                most_files = max(most_files, files)
                rows = sum(state.rows for state in states.values())
                rate = (time.monotonic() - began) / len(memory)
                print(
                    f"{len(memory):,} polls: {memory[-1]:.1f} MB, {files} files at most in a table, {rows:,} rows, "
                    f"{rate * 1000:.0f} ms a poll",
                    flush=True,
                )
            if len(memory) == given.polls:
                break
        collector.kill()
        collector.wait()
        on_disk = sum(1 for _ in (store.folder / "tables").rglob("*.parquet"))
        print(
            f"from poll 100 on: {max(memory[99:]) - memory[99]:+.1f} MB at most, {memory[-1] - memory[99]:+.1f} MB at "
            f"the end; {failed} failed; {most_files} files at most in the latest version of a table, {on_disk} on disk"
        )


if __name__ == "__main__":
    main()
