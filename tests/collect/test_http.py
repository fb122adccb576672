"""The client against a server that misbehaves: every fault of the way here by its name, and what holds for all."""

from __future__ import annotations

import gzip
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import feed_server
import pytest
from feed_server import TRANSPORT_FAULTS, FeedServer

from yieldlab.collect import _http
from yieldlab.collect._http import (
    Answer,
    Broken,
    Client,
    FeedError,
    Refused,
    Stopped,
    Unreachable,
    parse_json,
)
from yieldlab.collect.defillama import Chart, chart, parse_chart, pools
from yieldlab.errors import UsageError

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def server() -> Iterator[FeedServer]:
    """One for each test: a request that a test left behind must not meet the plan of the next."""
    with FeedServer(pools=3, days=40) as server:
        server.drip_s = 30.0
        yield server


def quick(url: str, **given: object) -> Client:
    """A client that does not keep a test waiting."""
    settings: dict[str, object] = {"requests_per_minute": 1e6, "backoff": 0.001, "read_timeout": 10.0, "deadline": 20.0}
    return Client(url, **(settings | given))  # type: ignore[arg-type]


def honest(server: FeedServer, pool: str) -> Chart:
    return parse_chart(server.body(f"/chart/{pool}")[1], pool, fetched_at=datetime.now(UTC))


class Time:
    """A clock that goes on in waits alone; `waits` leaves out the moment until the next slot of a quick pace."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def tick(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if seconds > 1e-4:
            self.waits.append(seconds)


def recovers(server: FeedServer, fault: str, **given: object) -> list[float]:
    """Meet a fault twice, get the whole right answer on the third attempt; the waits that it took."""
    pool = server.pool_ids[0]
    path = f"/chart/{pool}"
    server.hits.clear()
    server.plan(path, fault, fault)
    time_told = Time()
    with quick(server.url, sleep=time_told.sleep, tick=time_told.tick, **given) as client:
        answer, got = chart(client, pool)
    assert answer.status == 200
    assert answer.body == server.body(path)[1]
    assert got.frame.equals(honest(server, pool).frame)
    assert server.hits[path] == 3
    return time_told.waits


def says(server: FeedServer, fault: str, **given: object) -> str:
    """What is said when a fault does not pass."""
    path = f"/chart/{server.pool_ids[0]}"
    server.hits.clear()
    server.plan(path, *[fault] * 6)
    told = Time()
    with quick(server.url, sleep=told.sleep, tick=told.tick, **given) as client, pytest.raises(Unreachable) as caught:
        chart(client, server.pool_ids[0])
    assert server.hits[path] == 6
    assert caught.value.exit_code == 3
    assert "6 attempts" in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- the faults of the specification, by name -------------------------------------------------------------------------


def test_fault_429_waits_as_long_as_it_is_told(server: FeedServer) -> None:
    server.retry_after_s = 7
    waits = recovers(server, "429")
    assert [round(wait, 1) for wait in waits] == [7.0, 7.0]
    assert says(server, "429").endswith("HTTP 429 Too Many Requests")


def test_fault_429_date_waits_until_the_date(server: FeedServer) -> None:
    server.retry_after_s = 60
    server.clock = lambda: NOW  # a server whose clock is not ours: what counts is the time between its two dates
    try:
        waits = recovers(server, "429_date")
    finally:
        server.clock = lambda: datetime.now(UTC)
    assert [round(wait) for wait in waits] == [60, 60]


def test_fault_429_noheader_waits_longer_than_for_other_faults(
    server: FeedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "_jitter", lambda client, most: most)
    assert recovers(server, "429_noheader", backoff=1.0) == [8.0, 16.0]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_fault_5xx_in_html_is_tried_again(server: FeedServer, status: int) -> None:
    recovers(server, str(status))
    assert f"HTTP {status} " in says(server, str(status))


def test_fault_403_of_cloudflare_is_too_many_requests(server: FeedServer) -> None:
    recovers(server, "403")
    assert says(server, "403").endswith("HTTP 403 Forbidden")


def test_fault_html200_is_no_answer(server: FeedServer) -> None:
    recovers(server, "html200")
    assert says(server, "html200").endswith("it is text/html, not JSON")


def test_fault_truncated_is_no_answer(server: FeedServer) -> None:
    recovers(server, "truncated")
    assert says(server, "truncated").endswith("the body ended early")


def test_fault_truncated_gzip_is_no_answer(server: FeedServer) -> None:
    recovers(server, "truncated_gzip")
    assert says(server, "truncated_gzip").endswith("the body ended early")


def test_fault_truncated_nolen_is_no_answer(server: FeedServer) -> None:
    recovers(server, "truncated_nolen")
    assert "not JSON" in says(server, "truncated_nolen")


def test_fault_bad_gzip_is_no_answer(server: FeedServer) -> None:
    recovers(server, "bad_gzip")
    assert says(server, "bad_gzip").endswith("its gzip is broken")


def test_fault_hang_ends_at_the_read_timeout(server: FeedServer) -> None:
    path = f"/chart/{server.pool_ids[0]}"
    server.plan(path, "hang")
    with quick(server.url, read_timeout=0.3, deadline=25.0) as client:
        assert chart(client, server.pool_ids[0])[0].body == server.body(path)[1]
    server.plan(path, *["hang"] * 2)
    with (
        quick(server.url, read_timeout=0.05, deadline=25.0, attempts=2) as client,
        pytest.raises(Unreachable, match=r"nothing came for 0\.05 s$"),
    ):
        chart(client, server.pool_ids[0])


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_fault_hang_and_fault_drip_end_at_the_deadline(server: FeedServer, fault: str) -> None:
    """No single read of a dripping server takes long; the whole would take half a minute."""
    path = f"/chart/{server.pool_ids[0]}"
    server.plan(path, fault)
    with quick(server.url, read_timeout=25.0, deadline=0.5) as client:
        assert chart(client, server.pool_ids[0])[0].body == server.body(path)[1]
    server.plan(path, *[fault] * 2)
    with (
        quick(server.url, read_timeout=25.0, deadline=0.05, attempts=2) as client,
        pytest.raises(Unreachable, match=r"it was not here in full after 0\.05 s$"),
    ):
        chart(client, server.pool_ids[0])


def test_fault_drip_in_time_is_an_answer(server: FeedServer) -> None:
    server.drip_s = 0.2
    pool = server.pool_ids[0]
    server.plan(f"/chart/{pool}", "drip")
    with quick(server.url, deadline=30.0, read_timeout=10.0) as client:
        answer, _ = chart(client, pool)
    assert answer.body == server.body(f"/chart/{pool}")[1]
    assert (answer.fetched_at - answer.asked_at).total_seconds() > 0.15


def test_fault_reset_is_tried_again(server: FeedServer) -> None:
    recovers(server, "reset")
    assert "Connection reset" in says(server, "reset")


def test_fault_empty_is_no_answer(server: FeedServer) -> None:
    recovers(server, "empty")
    assert "not JSON" in says(server, "empty")


def test_fault_empty_data_is_no_success(server: FeedServer) -> None:
    """The list of pools is never empty; a pool without a row is believed only when it is said three times."""
    server.plan("/pools", "empty_data", "empty_data")
    with quick(server.url) as client:
        assert pools(client)[1].frame.height == 3
        server.plan("/pools", *["empty_data"] * 6)
        with pytest.raises(Unreachable, match=r"6 attempts; the last one: its list of pools is empty$"):
            pools(client)
    recovers(server, "empty_data")


def test_fault_status_error_is_no_success(server: FeedServer) -> None:
    recovers(server, "status_error")
    assert says(server, "status_error").endswith('its status is "error", not "success"')


def test_fault_nan_literal_is_refused(server: FeedServer) -> None:
    recovers(server, "nan_literal")
    assert "NaN is no number in JSON" in says(server, "nan_literal")


def test_every_fault_of_the_way_here_has_its_test() -> None:
    for fault in TRANSPORT_FAULTS:
        name = "5xx" if fault.startswith("50") else fault
        assert any(f"fault_{name}_" in test for test in globals() if test.startswith("test_fault_")), fault


# -- what holds for all of them ---------------------------------------------------------------------------------------


def test_a_request_that_nobody_listens_to_is_unreachable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with quick(address) as client, pytest.raises(Unreachable, match="Connection refused"):
            pools(client)


def test_a_name_that_does_not_resolve_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nothing)
    with quick("http://feed.invalid") as client, pytest.raises(Unreachable, match="Name or service not known"):
        pools(client)


def test_a_name_service_that_hangs_is_bound_by_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No timeout of a socket covers this: there is no socket yet."""
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(30.0) and [])
    try:
        with quick("http://feed.invalid", attempts=2, deadline=0.1) as client, pytest.raises(Unreachable) as caught:
            pools(client)
    finally:
        released.set()
    assert str(caught.value).endswith("it was not here in full after 0.1 s")


def test_a_call_as_a_whole_ends_when_patience_does(server: FeedServer) -> None:
    """Time passes in the waits only: 3 attempts fit into 25 s when each is followed by 10 s of waiting."""
    server.retry_after_s = 10
    told = Time()
    server.plan("/pools", *["429"] * 6)
    client = quick(server.url, patience=25.0, sleep=told.sleep, tick=told.tick)
    with client, pytest.raises(Unreachable, match="in 3 attempts"):
        pools(client)
    assert server.hits["/pools"] == 3
    assert told.now < 25.0


def test_a_wait_that_is_asked_for_is_capped(server: FeedServer) -> None:
    server.retry_after_s = 100_000
    assert [round(wait) for wait in recovers(server, "429", longest_pause=90.0)] == [90, 90]


def test_what_one_call_is_told_holds_for_all(server: FeedServer) -> None:
    server.retry_after_s = 50
    told = Time()
    server.plan("/pools", "429")
    with quick(server.url, attempts=1, sleep=told.sleep, tick=told.tick) as client:
        with pytest.raises(Unreachable, match="in 1 attempt; the last one: HTTP 429"):
            pools(client)
        assert told.now < 1.0
        chart(client, server.pool_ids[0])
    assert round(told.now) == 50


def test_backoff_doubles(server: FeedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "_jitter", lambda client, most: most)
    assert recovers(server, "500", backoff=1.0) == [1.0, 2.0]


def test_a_wait_is_anywhere_in_its_range() -> None:
    waits = [Client("http://feed")._jitter(3.0) for _ in range(500)]
    assert 0.0 <= min(waits) < 0.3 < 2.7 < max(waits) <= 3.0


def test_backoff_has_an_end(server: FeedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "_jitter", lambda client, most: most)
    told = Time()
    client = quick(server.url, attempts=8, backoff=1.0, patience=1e9, sleep=told.sleep, tick=told.tick)
    server.plan("/pools", *["500"] * 8)
    with client, pytest.raises(Unreachable, match="8 attempts"):
        pools(client)
    assert max(told.waits) == 30.0


def test_threads_share_one_pace_and_retries_count(server: FeedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request takes a slot of its own, whoever asks and however often it fails; slots never come closer."""
    slots: list[float] = []
    take = _http._Pace.seconds_to_slot

    def seconds_to_slot(pace: _http._Pace, now: float) -> float:
        seconds = take(pace, now)
        slots.append(now + seconds)
        return seconds

    monkeypatch.setattr(_http._Pace, "seconds_to_slot", seconds_to_slot)
    server.plan("*", *["500", "ok"] * 6)
    with quick(server.url, requests_per_minute=6_000.0) as client:
        threads = [threading.Thread(target=chart, args=(client, pool)) for pool in server.pool_ids * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(slots) == server.hits.total() == 18
    slots.sort()
    assert min(later - earlier for earlier, later in itertools.pairwise(slots)) > 0.01 - 1e-9


def test_the_pace_is_even_and_lost_slots_do_not_pile_up() -> None:
    pace = _http._Pace(200.0)
    assert [round(pace.seconds_to_slot(5.0), 9) for _ in range(4)] == [0.0, 0.3, 0.6, 0.9]
    assert pace.seconds_to_slot(1_000.0) == 0.0
    assert round(pace.seconds_to_slot(1_000.0), 9) == 0.3


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_stop_ends_a_request_on_its_way(server: FeedServer, fault: str) -> None:
    stop = threading.Event()
    server.plan("/pools", fault)
    client = quick(server.url, stop=stop, read_timeout=25.0, deadline=25.0)
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    with client, pytest.raises(Stopped) as caught:
        pools(client)
    assert time.monotonic() - began < 5.0
    assert caught.value.exit_code == 130


def test_stop_ends_a_wait(server: FeedServer) -> None:
    stop = threading.Event()
    server.retry_after_s = 60
    server.plan("/pools", "429")
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    with quick(server.url, stop=stop) as client, pytest.raises(Stopped):
        pools(client)
    assert time.monotonic() - began < 5.0
    assert server.hits["/pools"] == 1


def test_an_answer_that_has_no_end_is_broken(server: FeedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "_MOST_BYTES", 1000)
    assert "larger than" in says(server, "truncated_nolen")


KINDS = {200: None, 204: Broken, 301: Refused, 400: Refused, 401: Refused, 403: Broken, 404: Refused, 408: Broken}
KINDS |= {410: Refused, 425: Broken, 429: Broken, 451: Refused, 500: Broken, 503: Broken, 522: Broken}


@pytest.mark.parametrize(("status", "kind"), KINDS.items())
def test_a_status_passes_by_itself_or_is_final(status: int, kind: type[FeedError] | None) -> None:
    answer = Answer("http://feed/pools", status, {"Content-Type": "application/json"}, b"", NOW, NOW)
    client = Client("http://feed")
    if kind is None:
        client._judge(answer)
    else:
        with pytest.raises(kind, match=f"HTTP {status}"):
            client._judge(answer)


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/problem+json"])
def test_json_calls_itself_so(kind: str) -> None:
    Client("http://feed")._judge(Answer("http://feed", 200, {"Content-Type": kind}, b"", NOW, NOW))


@pytest.mark.parametrize("kind", ["", "text/html", "text/plain", "application/javascript"])
def test_what_does_not_call_itself_json_is_broken(kind: str) -> None:
    with pytest.raises(Broken, match="not JSON"):
        Client("http://feed")._judge(Answer("http://feed", 200, {"Content-Type": kind}, b"", NOW, NOW))


def test_an_unknown_route_is_told_at_once(server: FeedServer) -> None:
    with quick(server.url + "/v2") as client, pytest.raises(Refused, match="404 Not Found; is the address right"):
        pools(client)
    assert server.hits["/v2/pools"] == 1


def test_what_the_check_raises_comes_through(server: FeedServer) -> None:
    def fails(answer: Answer) -> None:
        raise ZeroDivisionError

    with quick(server.url) as client, pytest.raises(ZeroDivisionError):
        client.get("/pools", check=fails)
    assert server.hits["/pools"] == 1


def test_a_connection_serves_many_requests_and_a_broken_one_none(server: FeedServer) -> None:
    with quick(server.url) as client:
        for _ in range(5):
            pools(client)
        (first,) = client._sessions
        server.plan("/pools", "truncated")
        pools(client)
        (second,) = client._sessions
        assert second is not first
    assert not client._sessions


def test_threads_that_are_left_behind_end(server: FeedServer) -> None:
    server.hang_s = 0.5
    server.plan("/pools", "drip", "hang", "drip")
    others = _asking()
    with quick(server.url, deadline=0.3, read_timeout=20.0) as client:
        pools(client)
    ends = time.monotonic() + 10.0
    while (left := _asking() - others) and time.monotonic() < ends:
        time.sleep(0.02)
    assert not left


def _asking() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "yieldlab-http"}


# -- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_tells_when_it_was_asked_for_and_when_it_was_here(server: FeedServer) -> None:
    before = datetime.now(UTC)
    with quick(server.url) as client:
        answer, _ = pools(client)
    assert before <= answer.asked_at < answer.fetched_at <= datetime.now(UTC)
    assert answer.url == f"{server.url}/pools"
    assert answer.headers["content-TYPE"].startswith("application/json")


def test_a_clock_that_stands_does_not_make_an_answer_known_before_it_was_asked_for(server: FeedServer) -> None:
    with quick(server.url, clock=lambda: NOW) as client:
        answer, _ = pools(client)
    assert answer.asked_at == NOW
    assert answer.fetched_at == NOW + timedelta(microseconds=1)


def _answer(**headers: str) -> Answer:
    return Answer("http://feed/pools", 200, headers, b"{}", NOW - timedelta(seconds=1), NOW)


def test_expires_counts_by_the_clock_of_the_one_who_says_it() -> None:
    later = "Sun, 01 Mar 2026 15:22:00 GMT"
    assert _answer(Expires=later).expires == datetime(2026, 3, 1, 15, 22, tzinfo=UTC)
    two_hours_ahead = _answer(Expires=later, Date="Sun, 01 Mar 2026 15:00:00 GMT")
    assert two_hours_ahead.expires == NOW + timedelta(minutes=22)
    assert _answer(Expires="Sun, 01 Mar 2026 15:00:00 GMT", Date=later).expires == NOW


@pytest.mark.parametrize("text", ["0", "-1", "", "soon", "Mon, 99 Foo 2026 00:00:00 GMT"])
def test_an_expiry_that_cannot_be_read_is_none(text: str) -> None:
    assert _answer(Expires=text).expires is None
    assert _answer().expires is None


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
def test_literals_that_json_does_not_have_are_refused(literal: str) -> None:
    with pytest.raises(Broken, match="no number in JSON"):
        parse_json(f'{{"a": [{literal}]}}'.encode())


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe\xfa", b"[" * 200_000, b'{"a":1}}'])
def test_a_body_that_is_not_json_is_broken(body: bytes) -> None:
    with pytest.raises(Broken, match="not JSON"):
        parse_json(body)


def test_a_body_is_unpacked_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(list(range(1000))).encode()
    assert _http._unpacked(gzip.compress(text), "gzip") == text
    assert _http._unpacked(gzip.compress(text[:50]) + gzip.compress(text[50:]), "GZIP") == text
    assert _http._unpacked(text, "") == text
    with pytest.raises(Broken, match="ends early"):
        _http._unpacked(gzip.compress(text)[:-9], "gzip")
    with pytest.raises(Broken, match="broken"):
        _http._unpacked(gzip.compress(text) + b"more", "gzip")
    with pytest.raises(Broken, match="packed as br"):
        _http._unpacked(b"...", "br")
    monkeypatch.setattr(_http, "_MOST_BYTES", 1000)
    with pytest.raises(Broken, match="larger than"):
        _http._unpacked(gzip.compress(bytes(1001)), "gzip")
    assert len(_http._unpacked(gzip.compress(bytes(1000)), "gzip")) == 1000


# -- addresses --------------------------------------------------------------------------------------------------------


def test_an_address_with_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="must not hold a name or password") as caught:
        Client("https://me:geheim@feed.example")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        *("", "yields.llama.fi", "ftp://feed", "http://", "https://feed?x=1"),
        *("http://exa mple", "http://feed:99999", "http://feed:0", "http://feed:x", "http://[::1", "http://fe\ned"),
    ],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="is no address of a feed"):
        Client(address)


@pytest.mark.parametrize("pace", [0.0, -1.0, 1e-9, float("nan"), float("inf")])
def test_a_pace_that_is_none_is_refused(pace: float) -> None:
    with pytest.raises(UsageError, match="requests_per_minute"):
        Client("https://feed", requests_per_minute=pace)


def test_what_is_at_home_in_netrc_stays_there(
    server: FeedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password geheim\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    sent: list[str | None] = []
    send = feed_server._Handler._send

    def overheard(handler: feed_server._Handler, *given: object) -> None:
        sent.append(handler.headers.get("Authorization"))
        send(handler, *given)

    monkeypatch.setattr(feed_server._Handler, "_send", overheard)
    with quick(server.url) as client:
        pools(client)
    assert sent == [None]


def test_every_error_of_the_feed_is_one_of_data() -> None:
    assert all(issubclass(kind, FeedError) for kind in (Unreachable, Refused, Stopped, Broken))
    assert FeedError.exit_code == 3
