"""A feed whose every answer differs from the last one, and processes that collect from it as fast as they can."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from feed_server import FeedServer


class MovingFeed(FeedServer):
    """In answer n to /pools, pool i yields n percent when n + i is even and n - 1 when it is odd; now and then a pool
    is away, or has another name."""

    def __init__(self, pools: int) -> None:
        super().__init__(pools=pools, days=2)
        self.expires_after = timedelta(0)
        self._first = self.pools()

    def due(self, path: str, query: str) -> str:
        fault = super().due(path, query)
        if path == "/pools":
            n = self.hits[path]
            rows = [row | {"apy": float(n - (n + i) % 2), "apyReward": None} for i, row in enumerate(self._first)]
            if n % 5 == 0:
                rows[n % len(rows)]["symbol"] = f"S{n}"
            if n % 7 == 0:
                del rows[n % len(rows)]
            self.set_pools(rows)
        return fault


def resident_mb() -> float:
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def collect_for_ever(folder: str, url: str, max_files: int, told: Callable[[str], object], *, scheduled: bool) -> None:
    """Poll without a pause, and tell of every poll that is over: outcome, instant, memory."""
    from yieldlab.collect import collector as collecting
    from yieldlab.collect.scheduler import Polled, collect
    from yieldlab.collect.selection import Selection
    from yieldlab.store import Store, collector_lock

    collecting.MAX_FILES, collecting.LOOK_EVERY = max_files, 5
    store, stop = Store(folder), threading.Event()
    with collector_lock(store.folder):
        client = collecting.Client(url, requests_per_minute=1e6, stop=stop)
        collector = collecting.Collector(store, client, Selection())
        if not scheduled:
            while True:
                poll = collector.poll()
                told(f"{poll.outcome} {poll.polled_at.isoformat()} {resident_mb():.1f} {'; '.join(poll.notes)}")
        for event in collect(collector, every=timedelta(milliseconds=20), stop=stop):
            if isinstance(event, Polled):
                poll = event.poll
                told(f"{poll.outcome} {poll.polled_at.isoformat()} {resident_mb():.1f} {'; '.join(poll.notes)}")


def serve_children() -> None:
    """For every line on stdin start a collector and tell its process; it ends by a signal, and so does the next line.

    Starting from a process that has loaded everything, and computed nothing yet, takes milliseconds.
    """
    from yieldlab.collect import scheduler  # noqa: F401  # loaded once for all children

    folder, url, max_files = sys.argv[1], sys.argv[2], int(sys.argv[3])
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            collect_for_ever(folder, url, max_files, lambda line: print(line, flush=True), scheduled=False)
        print(f"started {child}", flush=True)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print("killed" if killed else f"ended {status}", flush=True)


def run_once() -> None:
    """Collect under the scheduler until killed."""
    folder, url, max_files = sys.argv[1], sys.argv[2], int(sys.argv[3])
    collect_for_ever(folder, url, max_files, lambda line: print(line, flush=True), scheduled=True)


if __name__ == "__main__":
    {"children": serve_children, "one": run_once}[sys.argv.pop(1)]()
