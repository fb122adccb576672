"""How do we get one usable answer from a service on the web, and how do we know that there is none?

An answer is usable when it came whole and in time, says 200, is JSON without NaN or Infinity, and passes the check of
the one who asked. Anything else that may pass is tried again: with exponential backoff and full jitter, or after the
time that the service asks for. What cannot pass (another 4xx) is told at once.
"""

from __future__ import annotations

import http.client
import math
import random
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError

from yieldlab.collect.answers import (
    Answer,
    Broken,
    FeedError,
    InvalidPool,
    Refused,
    Stopped,
    UnknownPool,
    Unreachable,
    parse_json,
    retry_after,
    shown,
)
from yieldlab.errors import UsageError

__all__ = [
    "Answer",
    "Broken",
    "Client",
    "FeedError",
    "InvalidPool",
    "Refused",
    "Stopped",
    "UnknownPool",
    "Unreachable",
    "parse_json",
]

T = TypeVar("T")

#: Statuses that pass by themselves; 403 is how Cloudflare tells of too many requests (error 1015).
_PASSING = frozenset({403, 408, 425, 429})
_TOO_MANY = frozenset({403, 429})
#: Backoff grows up to this; too many requests wait this many times longer than other faults when nobody says how long.
_LONGEST_BACKOFF_S, _SLOWER = 30.0, 8.0
#: Larger answers are refused, packed or not: the whole list of pools is about 10 MB.
_MOST_BYTES = 256 * 1024 * 1024
_PIECE = 64 * 1024
#: An answer that may be a fault or the truth is the truth when it was given this often.
CONFIRMED = 3
#: Fewer requests a minute would be one in more than a day: nobody means that, and no wait is that long.
_SLOWEST_PACE = 0.0007
_HOST = re.compile(r"[A-Za-z0-9._:-]+")
_TICK = timedelta(microseconds=1)
#: How often a waiting thread looks whether it should stop.
_LOOK_S = 0.05
_TOO_LARGE = f"it is larger than {_MOST_BYTES >> 20} MiB"
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


@dataclass
class Client:
    """Asks one service, from any number of threads, never more often than `requests_per_minute` (retries included).

    `connect_timeout` and `read_timeout` bound a silence, `deadline` one attempt from start to last byte (a server that
    drips, a name service that hangs), `patience` a whole call, from its first request through all attempts and waits.
    Once `stop` is set, every call raises Stopped, whatever its request is doing. All times are in seconds.
    """

    base_url: str
    _: KW_ONLY
    requests_per_minute: float = 200.0
    connect_timeout: float = 5.0
    read_timeout: float = 20.0
    deadline: float = 90.0
    patience: float = 600.0
    attempts: int = 6
    #: The first retry waits up to this, each further one up to twice as long.
    backoff: float = 0.5
    #: The longest wait that a `Retry-After` gets.
    longest_pause: float = 120.0
    stop: threading.Event | None = None
    #: The time of day, a clock that never goes back, and the wait between requests: tests bring their own.
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    tick: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] | None = None

    def __post_init__(self) -> None:
        _check_address(self.base_url)
        if not _SLOWEST_PACE <= self.requests_per_minute < math.inf:
            raise UsageError(
                f"requests_per_minute is {self.requests_per_minute:g}; it must be a number of at least "
                f"{_SLOWEST_PACE:.1g}, which is a request a day"
            )
        self.base_url = self.base_url.rstrip("/")
        self._stop = self.stop or threading.Event()
        self._sleep = self.sleep or self._stop.wait
        self._pace = _Pace(self.requests_per_minute)
        self._random = random.Random()
        self._sessions: list[requests.Session] = []

    def get(
        self, path: str, params: Mapping[str, str | int] | None = None, *, check: Callable[[Answer], T]
    ) -> tuple[Answer, T]:
        """The answer to `path` (quoted, from `/` on) and what `check` made of it.

        `check` raises Broken for an answer that another attempt may mend, and any other error for a final one.

        Raises Unreachable after the last attempt or when patience ends, Refused for a status that no retry mends,
        Stopped, and what `check` raises.
        """
        url = self.base_url + path
        ends, pause, reason = math.inf, 0.0, "patience ended"
        truths = tried = 0
        while tried < self.attempts:
            if not self._wait(pause, ends) or not self._wait(self._pace.seconds_to_slot(self.tick()), ends):
                break
            ends = min(ends, self.tick() + self.patience)
            tried += 1
            backoff = min(self.backoff * 2.0 ** (tried - 1), _LONGEST_BACKOFF_S)
            try:
                answer = self._ask(url, params, min(self.deadline, ends - self.tick()))
                self._judge(answer)
                return answer, check(answer)
            except _TooMany as error:
                reason, pause = str(error), 0.0
                told = min(error.seconds, self.longest_pause) if error.seconds is not None else None
                wait = self._jitter(backoff * _SLOWER) if told is None else told + self._jitter(backoff)
                self._pace.hold(self.tick() + wait)
            except Broken as error:
                reason, pause = str(error), self._jitter(backoff)
                truths += error.truth is not None
                if error.truth is not None and truths >= min(CONFIRMED, self.attempts):
                    raise error.truth from error
        times = "1 attempt" if tried == 1 else f"{tried} attempts"
        raise Unreachable(f"{url} gave no usable answer in {times}; the last one: {reason}")

    def close(self) -> None:
        """Close the connections that wait for another request."""
        while self._sessions:
            self._sessions.pop().close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- waiting ------------------------------------------------------------------------------------------------------

    def _wait(self, seconds: float, ends: float) -> bool:
        """Wait; False, at once, when that would go beyond `ends`."""
        if self.tick() + seconds > ends:
            return False
        if seconds > 0:
            self._sleep(seconds)
        self._raise_if_stopped()
        return True

    def _jitter(self, most: float) -> float:
        """Anywhere up to `most`: clients that failed together do not come back together."""
        return self._random.uniform(0.0, most)

    def _raise_if_stopped(self) -> None:
        if self._stop.is_set():
            raise Stopped("stopped while asking the feed")

    # -- one attempt --------------------------------------------------------------------------------------------------

    def _ask(self, url: str, params: Mapping[str, str | int] | None, limit: float) -> Answer:
        """One attempt, in a thread of its own, as only a thread that is left behind keeps a deadline always."""
        attempt = _Attempt(url, params, time.monotonic() + limit)
        threading.Thread(target=self._run, args=(attempt,), name="yieldlab-http", daemon=True).start()
        try:
            while not attempt.done.wait(min(_LOOK_S, max(attempt.ends - time.monotonic(), 0.0))):
                self._raise_if_stopped()
                if time.monotonic() >= attempt.ends:
                    raise Broken(f"it was not here in full after {limit:.3g} s")
        finally:
            attempt.left.set()
        if attempt.error is not None:
            raise attempt.error
        assert attempt.answer is not None
        return attempt.answer

    def _run(self, attempt: _Attempt) -> None:
        try:
            attempt.answer = self._fetch(attempt)
        except (requests.RequestException, HTTPError, OSError) as error:
            attempt.error = Broken(self._why(error))
        except Exception as error:  # noqa: BLE001  # it is raised again in the thread that waits
            attempt.error = error
        finally:
            attempt.done.set()

    def _fetch(self, attempt: _Attempt) -> Answer:
        try:
            session = self._sessions.pop()
        except IndexError:
            session = _session()
        try:
            asked_at = self.clock()
            timeouts = (self.connect_timeout, self.read_timeout)
            with session.get(attempt.url, params=attempt.params, timeout=timeouts, stream=True) as response:
                packed = _read(response, attempt)
            body = _unpacked(packed, response.headers.get("Content-Encoding", ""))
            fetched_at = max(self.clock(), asked_at + _TICK)
        except BaseException:
            session.close()
            raise
        self._sessions.append(session)
        return Answer(response.url, response.status_code, response.headers, body, asked_at, fetched_at)

    def _why(self, error: Exception) -> str:
        """What broke, in words of ours: the libraries name their own objects, and addresses of proxies."""
        if isinstance(error, requests.ConnectTimeout):
            return f"there was no connection within {self.connect_timeout:g} s"
        if isinstance(error, requests.ReadTimeout | ReadTimeoutError):
            return f"nothing came for {self.read_timeout:g} s"
        if isinstance(error, requests.exceptions.ProxyError):
            return "the proxy could not be reached"
        for cause in _causes(error):
            if isinstance(cause, http.client.IncompleteRead):
                return "the body ended early"
            if isinstance(cause, OSError) and cause.strerror:
                return f"the connection failed ({shown(cause.strerror)})"
        return f"the connection broke ({type(error).__name__})"

    # -- what an answer is worth --------------------------------------------------------------------------------------

    def _judge(self, answer: Answer) -> None:
        """Raise unless it is a 200 that calls itself JSON."""
        said = f"HTTP {answer.status} {_PHRASES.get(answer.status, '')}".rstrip()
        if answer.status in _PASSING or answer.status >= 500:
            seconds = retry_after(answer)
            if seconds is not None or answer.status in _TOO_MANY:
                raise _TooMany(said, seconds)
            raise Broken(said)
        if answer.status >= 300:
            raise Refused(f"{answer.url} was refused with {said}; is the address right?", answer)
        if answer.status != 200:
            raise Broken(said)
        kind = answer.headers.get("Content-Type", "").split(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise Broken(f"it is {shown(kind) if kind else 'of no type'}, not JSON")


def _check_address(url: str) -> None:
    """Raise UsageError for what can be no address of a feed: to ask there again would not help."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # such as a port of 99999
        host = port = None
        parts = urlsplit("")
    if parts.username is not None or parts.password is not None:
        raise UsageError("the address of a feed must not hold a name or password; feeds are asked without")
    fits = (
        parts.scheme in ("http", "https") and host and _HOST.fullmatch(host) and port != 0 and not re.search(r"\s", url)
    )
    if not fits or parts.query or parts.fragment:
        raise UsageError(f"{url!r} is no address of a feed; one looks like https://yields.llama.fi")


class _TooMany(Broken):
    """We ask too often, or the service needs a rest; `seconds` when it says how long."""

    def __init__(self, sentence: str, seconds: float | None) -> None:
        super().__init__(sentence)
        self.seconds = seconds


class _Pace:
    """When may the next request go out? Evenly spaced, for all threads together."""

    def __init__(self, per_minute: float) -> None:
        self._gap = 60.0 / per_minute
        self._next = -math.inf
        self._lock = threading.Lock()

    def seconds_to_slot(self, now: float) -> float:
        """Take the next slot; the seconds until then."""
        with self._lock:
            slot = max(now, self._next)
            self._next = slot + self._gap
            return slot - now

    def hold(self, until: float) -> None:
        """No slot before this: what one thread was told holds for all."""
        with self._lock:
            self._next = max(self._next, until)


@dataclass(slots=True)
class _Attempt:
    """A request between the thread that makes it and the one that waits until `ends`."""

    url: str
    params: Mapping[str, str | int] | None
    ends: float
    answer: Answer | None = None
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)
    #: Nobody waits any more.
    left: threading.Event = field(default_factory=threading.Event)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what stands behind it, as far as the libraries tell: as a reason, an argument or a cause."""
    cause: object = error
    for _ in range(10):
        if not isinstance(cause, BaseException):
            return
        yield cause
        given = (getattr(cause, "reason", None), *cause.args, cause.__cause__, cause.__context__)
        cause = next((item for item in given if isinstance(item, BaseException)), None)


def _session() -> requests.Session:
    session = requests.Session()
    session.max_redirects = 5
    session.headers.update({"User-Agent": _agent(), "Accept": "application/json", "Accept-Encoding": "gzip"})
    # With an `auth` of its own, a session does not send what ~/.netrc has for the host.
    session.auth = _without_credentials
    return session


def _agent() -> str:
    try:
        return f"yieldlab/{version('yieldlab')}"
    except PackageNotFoundError:
        return "yieldlab"


def _without_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _read(response: requests.Response, attempt: _Attempt) -> bytes:
    """The body as it came. Piece by piece as it comes: a read of a fixed size would wait for a server that drips."""
    pieces: list[bytes] = []
    size = 0
    while piece := response.raw.read1(_PIECE, decode_content=False):
        pieces.append(piece)
        size += len(piece)
        if size > _MOST_BYTES:
            raise Broken(_TOO_LARGE)
        if attempt.left.is_set() or time.monotonic() > attempt.ends:
            raise Broken("it took too long")
    return b"".join(pieces)


def _unpacked(packed: bytes, encoding: str) -> bytes:
    encoding = encoding.strip().lower()
    if encoding in ("", "identity") or not packed:
        return packed
    if encoding not in ("gzip", "x-gzip"):
        raise Broken(f"it is packed as {shown(encoding)}, which was not asked for")
    bodies: list[bytes] = []
    size = 0
    while packed:
        member = zlib.decompressobj(wbits=31)
        try:
            bodies.append(member.decompress(packed, _MOST_BYTES - size + 1))
        except zlib.error as error:
            raise Broken("its gzip is broken") from error
        size += len(bodies[-1])
        if size > _MOST_BYTES:
            raise Broken(_TOO_LARGE)
        if not member.eof:
            raise Broken("its gzip ends early")
        packed = member.unused_data
    return b"".join(bodies)
