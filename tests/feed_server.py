"""A server on loopback that speaks the feed's routes and misbehaves on request: what does the client make of it?

    with FeedServer(pools=5, days=30) as server:
        server.plan("/pools", "502", "truncated")     # the next two answers; then as it should be
        Client(server.url)

A fault is chosen by `?fault=NAME`, else by the next one in the plan of the path (or of `*`), else at random with
`fault_share` (told by seed, path and how often that path was asked, so threads change nothing). As its own process:
`python tests/feed_server.py --pools 200 --days 400 --fault-share 0.33`; the first line of its output is its address.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

from feed_world import DATA_FAULTS, World, encode

#: Faults of the way here, by the name of the specification.
TRANSPORT_FAULTS = (
    *("429", "429_date", "429_noheader", "500", "502", "503", "504", "403", "html200", "truncated", "truncated_gzip"),
    *("truncated_nolen", "bad_gzip", "hang", "drip", "reset", "empty", "empty_data", "status_error", "nan_literal"),
)
FAULTS = (*TRANSPORT_FAULTS, *DATA_FAULTS)
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
PERIODS = {"h": 3_600, "d": 86_400, "w": 604_800}


class FeedServer:
    """The feed, its faults, and what it was asked. Everything may be changed while it serves.

    With `fault_share`, set `hang_s`, `drip_s` and `retry_after_s` to what a test can wait for.
    """

    def __init__(
        self,
        pools: int = 20,
        days: int = 60,
        *,
        seed: int = 1,
        port: int = 0,
        fault_share: float = 0.0,
        fault_seed: int = 0,
    ) -> None:
        self.world = World(pools, days, seed=seed)
        self.fault_share, self.fault_seed = fault_share, fault_seed
        #: The faults drawn by `fault_share`.
        self.fault_names: tuple[str, ...] = TRANSPORT_FAULTS
        #: What `Date` and `Expires` are told from.
        self.clock: Callable[[], datetime] = lambda: datetime.now(UTC)
        #: None: the next minute 22, as the feed does it; else this long after the answer.
        self.expires_after: timedelta | None = None
        self.retry_after_s = 1
        self.hang_s = 30.0
        self.drip_s = 4.0
        #: How often each path was asked, the faults it met, and when each request came (time.monotonic).
        self.hits: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self.asked_at: list[float] = []
        self._plans: dict[str, deque[str]] = {}
        self._pools = self.world.pools()
        self._aside: dict[str, dict] = {}
        self._charts: dict[str, list[dict]] = {}
        self._bodies: dict[str, tuple[bytes, bytes]] = {}
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self._http = _Http(("127.0.0.1", port), _Handler)
        self._http.feed = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def pool_ids(self) -> list[str]:
        """All pools of the world, also those that vanished."""
        return self.world.pool_ids

    def start(self) -> FeedServer:
        self._thread.start()
        return self

    def stop(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> FeedServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- what it will say ---------------------------------------------------------------------------------------------

    def plan(self, path: str, *faults: str) -> None:
        """The next answers to `path` (`/pools`, `/chart/UUID`; `*`: any) are wrong in these ways; `ok` is right."""
        unknown = set(faults) - {*FAULTS, "ok"}
        assert not unknown, f"no such fault: {sorted(unknown)}"
        with self._lock:
            self._plans.setdefault(path, deque()).extend(faults)

    def pools(self) -> list[dict]:
        """The rows of /pools as they are served now (copies)."""
        with self._lock:
            return [dict(row) for row in self._pools]

    def set_pools(self, rows: Iterable[dict]) -> None:
        with self._lock:
            self._pools = [dict(row) for row in rows]
            self._bodies.pop("/pools", None)

    def change(self, pool_id: str, **values: object) -> None:
        """Other values in the row of /pools, by the feed's names: `change(pool, apy=3.1, tvlUsd=5e6)`."""
        self.set_pools(row | values if row["pool"] == pool_id else row for row in self.pools())

    def rename(self, pool_id: str, project: str) -> None:
        self.change(pool_id, project=project)

    def vanish(self, pool_id: str) -> None:
        """The pool leaves /pools; its chart stays, as with the real feed."""
        for row in self.pools():
            if row["pool"] == pool_id:
                self._aside[pool_id] = row
        self.set_pools(row for row in self.pools() if row["pool"] != pool_id)

    def come_back(self, pool_id: str) -> None:
        self.set_pools([*self.pools(), self._aside.pop(pool_id)])

    def chart(self, pool_id: str) -> list[dict]:
        """The rows of the pool's chart as they are served now."""
        return self._charts.get(pool_id) or self.world.chart(pool_id)

    def set_chart(self, pool_id: str, rows: Iterable[dict]) -> None:
        with self._lock:
            self._charts[pool_id] = [dict(row) for row in rows]
            self._bodies.pop(f"/chart/{pool_id}", None)

    def render(self) -> None:
        """Prepare all answers at once, so that a measurement does not measure the server."""
        for path in ("/pools", *(f"/chart/{pool_id}" for pool_id in self.pool_ids)):
            self.body(path)

    def body(self, path: str, query: str = "") -> tuple[int, bytes, bytes]:
        """Status, body and compressed body of the right answer."""
        with self._lock:
            known = self._bodies.get(path)
        if known:
            return 200, *known
        status, data = self._answer(path, query)
        if isinstance(data, bytes):
            return status, data, gzip.compress(data, 1, mtime=0)
        plain = encode(data) if status == 200 else json.dumps(data).encode()
        pair = (plain, gzip.compress(plain, 1, mtime=0))
        if status == 200 and not query:
            with self._lock:
                self._bodies[path] = pair
        return status, *pair

    def rows(self, path: str) -> list[dict] | None:
        """The rows behind a path of the yields service, for faults of data."""
        if path == "/pools":
            return self.pools()
        name = path.removeprefix("/chart/")
        return self.chart(name) if UUID.fullmatch(name) else None

    def _answer(self, path: str, query: str) -> tuple[int, object]:
        told = {name: values[-1] for name, values in parse_qs(query).items()}
        if (rows := self.rows(path)) is not None:
            return 200, rows
        if path.startswith("/chart/") and ":" in path:
            period = told.get("period", "1d")
            seconds = int(period[:-1] or 1) * PERIODS[period[-1]]
            coins = path.removeprefix("/chart/").split(",")
            return 200, self.world.coins(coins, int(told.get("start", 0)), int(told.get("span", 0)), seconds)
        if path.startswith("/chart/"):
            return 400, "invalid configID!"
        if path.rstrip("/") == "/fng":
            return 200, self.world.fear_greed(int(told.get("limit", 1)))
        return 404, f"<!DOCTYPE html><html><body><pre>Cannot GET {path}</pre></body></html>".encode()

    # -- which fault is due -------------------------------------------------------------------------------------------

    def due(self, path: str, query: str) -> str:
        """Count the request and tell its fault, `ok` for none."""
        with self._lock:
            self.asked_at.append(time.monotonic())
            hit = self.hits[path]
            self.hits[path] += 1
            asked = parse_qs(query).get("fault")
            plan = self._plans.get(path) or self._plans.get("*")
            if asked:
                fault = asked[-1]
            elif plan:
                fault = plan.popleft()
            else:
                draw = random.Random(f"{self.fault_seed} {path} {hit}")
                fault = draw.choice(self.fault_names) if draw.random() < self.fault_share else "ok"
            self.met[fault] += 1
            return fault

    def expires(self) -> datetime:
        now = self.clock()
        if self.expires_after is not None:
            return now + self.expires_after
        due = now.replace(minute=22, second=0, microsecond=0)
        return due if due > now else due + timedelta(hours=1)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    feed: FeedServer

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Http

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal of the tests."""

    def do_GET(self) -> None:
        feed = self.server.feed
        asked = urlsplit(self.path)
        path = unquote(asked.path)
        fault = feed.due(path, asked.query)
        if fault in DATA_FAULTS and (rows := feed.rows(path)) is not None:
            plain = encode(DATA_FAULTS[fault](rows))
            self._send(200, plain, gzip.compress(plain, 1, mtime=0))
        elif fault in _FAULTY:
            _FAULTY[fault](self, *feed.body(path, asked.query)[1:])
        else:
            self._send(*feed.body(path, asked.query))

    # -- answers ------------------------------------------------------------------------------------------------------

    def _send(self, status: int, plain: bytes, packed: bytes) -> None:
        kind = "text/html; charset=utf-8" if plain[:1] == b"<" else "application/json; charset=utf-8"
        if "gzip" in (self.headers.get("Accept-Encoding") or ""):
            self._write(status, packed, {"Content-Type": kind, "Content-Encoding": "gzip"})
        else:
            self._write(status, plain, {"Content-Type": kind})

    def _write(self, status: int, body: bytes, headers: dict[str, str], *, claimed: int | None = None) -> None:
        """One answer in one piece. `claimed` is the length it claims to have; -1: none, the end is the connection's."""
        length = len(body) if claimed is None else claimed
        lines = {"Date": self._told(self.server.feed.clock()), "Access-Control-Allow-Origin": "*", **headers}
        if status == 200:
            lines["Expires"] = self._told(self.server.feed.expires())
        lines |= {"Content-Length": str(length)} if length >= 0 else {}
        if length != len(body):
            lines["Connection"] = "close"
            self.close_connection = True
        head = f"HTTP/1.1 {status} {self.responses.get(status, ('',))[0]}\r\n"
        self.wfile.write((head + "".join(f"{n}: {v}\r\n" for n, v in lines.items()) + "\r\n").encode() + body)

    @staticmethod
    def _told(instant: datetime) -> str:
        return format_datetime(instant.astimezone(UTC), usegmt=True)

    def _html(self, status: int, **headers: str) -> None:
        text = f"<html><head><title>{status}</title></head><body><center><h1>{status}</h1></center></body></html>"
        self._write(status, text.encode(), {"Content-Type": "text/html", **headers})

    def _too_many(self, retry_after: str) -> None:
        self._write(429, b"Too many requests", {"Content-Type": "text/plain", "Retry-After": retry_after})

    def _too_many_seconds(self, plain: bytes, packed: bytes) -> None:
        self._too_many(str(self.server.feed.retry_after_s))

    def _too_many_date(self, plain: bytes, packed: bytes) -> None:
        feed = self.server.feed
        self._too_many(self._told(feed.clock() + timedelta(seconds=feed.retry_after_s)))

    def _too_many_plain(self, plain: bytes, packed: bytes) -> None:
        self._write(429, b"error code: 1015", {"Content-Type": "text/plain; charset=UTF-8"})

    def _html200(self, plain: bytes, packed: bytes) -> None:
        self._html(200)

    def _truncated(self, plain: bytes, packed: bytes) -> None:
        self._write(200, plain[: len(plain) // 2], {"Content-Type": "application/json"}, claimed=len(plain))

    def _truncated_gzip(self, plain: bytes, packed: bytes) -> None:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        self._write(200, packed[: len(packed) // 2], headers, claimed=len(packed))

    def _truncated_nolen(self, plain: bytes, packed: bytes) -> None:
        self._write(200, plain[: len(plain) // 2], {"Content-Type": "application/json"}, claimed=-1)

    def _bad_gzip(self, plain: bytes, packed: bytes) -> None:
        self._write(200, plain, {"Content-Type": "application/json", "Content-Encoding": "gzip"})

    def _hang(self, plain: bytes, packed: bytes) -> None:
        self.close_connection = True
        self.server.feed.closing.wait(self.server.feed.hang_s)

    def _drip(self, plain: bytes, packed: bytes) -> None:
        """The whole right answer, a little at a time; no single read takes long."""
        self._write(200, b"", {"Content-Type": "application/json"}, claimed=len(plain))
        pieces = 40
        size = len(plain) // pieces + 1
        for start in range(0, len(plain), size):
            if self.server.feed.closing.wait(self.server.feed.drip_s / pieces):
                return
            self.wfile.write(plain[start : start + size])

    def _reset(self, plain: bytes, packed: bytes) -> None:
        """Half an answer, then the connection is thrown away."""
        self._write(200, plain[: len(plain) // 2], {"Content-Type": "application/json"}, claimed=len(plain))
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _empty(self, plain: bytes, packed: bytes) -> None:
        self._write(200, b"", {"Content-Type": "application/json"})

    def _empty_data(self, plain: bytes, packed: bytes) -> None:
        nothing = b'{"coins":{}}' if plain.startswith(b'{"coins"') else encode([])
        self._write(200, nothing, {"Content-Type": "application/json"})

    def _status_error(self, plain: bytes, packed: bytes) -> None:
        body = {"status": "error", "message": "the query was canceled"}
        self._write(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _nan_literal(self, plain: bytes, packed: bytes) -> None:
        """The first number of the answer is a literal that JSON does not have."""
        wrong = re.sub(rb':"?-?[0-9.]+"?([,}])', rb":NaN\1", plain, count=1)
        self._write(200, wrong, {"Content-Type": "application/json"})


def _html_of(status: int) -> Callable[[_Handler, bytes, bytes], None]:
    return lambda handler, plain, packed: handler._html(status)


_FAULTY: dict[str, Callable[[_Handler, bytes, bytes], None]] = {
    "429": _Handler._too_many_seconds,
    "429_date": _Handler._too_many_date,
    "429_noheader": _Handler._too_many_plain,
    **{str(status): _html_of(status) for status in (500, 502, 503, 504, 403)},
    **{name: getattr(_Handler, f"_{name}") for name in TRANSPORT_FAULTS if hasattr(_Handler, f"_{name}")},
}


def main() -> None:
    """Serve until killed; the address is the first line of the output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=int, default=200)
    parser.add_argument("--days", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fault-share", type=float, default=0.0)
    parser.add_argument("--fault-seed", type=int, default=0)
    parser.add_argument("--hang-seconds", type=float, default=30.0)
    parser.add_argument("--drip-seconds", type=float, default=4.0)
    given = parser.parse_args()
    server = FeedServer(
        given.pools,
        given.days,
        seed=given.seed,
        port=given.port,
        fault_share=given.fault_share,
        fault_seed=given.fault_seed,
    )
    server.hang_s, server.drip_s = given.hang_seconds, given.drip_seconds
    server.render()
    with server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
