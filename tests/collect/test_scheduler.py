"""When polls happen, and how they end: a collector that only counts, under the real scheduler."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from yieldlab.collect import scheduler
from yieldlab.collect._http import Stopped
from yieldlab.collect.polls import Poll
from yieldlab.collect.scheduler import Ended, Event, Polled

SOON = timedelta(milliseconds=30)


class Counting:
    """Stands where a `Collector` would: how often it was polled, how many polls ran at once, and its states."""

    at_risk = 0

    def __init__(self, work: Callable[[], object] = lambda: None) -> None:
        self.work = work
        self.polls = self.at_once = self.most_at_once = 0
        self.states: list[str] = []

    def poll(self) -> Poll:
        self.polls += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.work()
        finally:
            self.at_once -= 1
        return Poll(datetime.now(UTC), "stored")

    def set_state(self, state: str, *, next_poll_at: datetime | None = None) -> str | None:
        self.states.append(state)
        return None


def events_of(collector: Counting, *, polls: int, every: timedelta = SOON) -> list[Event]:
    """Follow until so many polls are over, then stop."""
    stop, events = threading.Event(), []
    for event in scheduler.collect(collector, every=every, stop=stop):  # type: ignore[arg-type]  # it only counts
        events.append(event)
        if sum(isinstance(event, Polled) for event in events) >= polls:
            stop.set()
    return events


def test_it_polls_at_once_then_at_its_interval_and_ends_with_the_count() -> None:
    collector = Counting()
    *polled, ended = events_of(collector, polls=4)
    assert isinstance(ended, Ended)
    assert all(isinstance(event, Polled) for event in polled)
    assert (ended.polls, ended.failed, ended.at_rest) == (len(polled), 0, True)
    assert isinstance(polled[0], Polled)
    assert polled[0].next_at is not None
    assert collector.states[:3] == ["polling", "waiting", "polling"]
    assert collector.states[-1] == "stopped"


def test_two_polls_never_overlap_and_missed_ones_are_made_up_for_by_one() -> None:
    collector = Counting(work=lambda: time.sleep(0.2))
    events = events_of(collector, polls=3, every=timedelta(milliseconds=10))
    assert collector.most_at_once == 1
    assert collector.polls <= len(events) + 1


def test_a_poll_that_does_not_end_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "GRACE_SECONDS", 0.1)
    stop, going_on = threading.Event(), threading.Event()

    def hang() -> None:
        stop.set()
        going_on.wait(30)

    events = list(scheduler.collect(Counting(hang), every=SOON, stop=stop))  # type: ignore[arg-type]
    going_on.set()
    [ended] = events
    assert isinstance(ended, Ended)
    assert (ended.at_rest, ended.polls) == (False, 0)


def test_a_poll_cut_short_is_no_failure() -> None:
    stop = threading.Event()

    def cut_short() -> None:
        stop.set()
        raise Stopped("stopped while asking the feed")

    for follow in (
        scheduler.once(Counting(cut_short), stop=stop),  # type: ignore[arg-type]
        scheduler.collect(Counting(cut_short), every=SOON, stop=stop),  # type: ignore[arg-type]
    ):
        [ended] = follow
        assert isinstance(ended, Ended)
        assert (ended.polls, ended.failed, ended.at_rest) == (0, 0, True)
        stop.clear()


def test_a_single_poll_is_one() -> None:
    collector = Counting()
    polled, _ = scheduler.once(collector, stop=threading.Event())  # type: ignore[arg-type]
    assert isinstance(polled, Polled)
    assert (polled.next_at, collector.polls, collector.states) == (None, 1, ["polling", "waiting", "stopped"])


def test_a_clock_set_back_does_not_put_the_next_poll_off(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(scheduler.IntervalTrigger):
        """As if the clock were set back by ten days right after each poll."""

        def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
            return now + timedelta(days=10)

    monkeypatch.setattr(scheduler, "IntervalTrigger", Late)
    monkeypatch.setattr(scheduler, "WATCH_SECONDS", 0.05)
    collector = Counting()
    assert len(events_of(collector, polls=3)) >= 4
