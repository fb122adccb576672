"""When is the feed polled, and how does polling end?

APScheduler says when: at once and then at an interval with some jitter, never two polls at a time, polls that were
missed (a computer asleep, a poll that took long) made up for by one. Polls run in threads of their own, so that whoever
follows them can end at once, also while one waits for a lock or a disk: what was received is written down by then.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from apscheduler.executors.base import BaseExecutor, run_job
from apscheduler.job import Job
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from yieldlab.collect._http import Stopped
from yieldlab.collect.collector import Collector
from yieldlab.collect.polls import Poll

#: How long an end waits for the poll at work; a service manager or a person waits five seconds.
GRACE_SECONDS = 4.0
#: At most so much is added to an interval, and at most this share of it: not all are to ask at the same second.
JITTER_SECONDS = 30.0
JITTER_SHARE = 0.1
#: How often to look whether the clock was set back, which would put the next poll off.
WATCH_SECONDS = 30.0

_JOB = "poll"
_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Polled:
    """One poll is over; `next_at` is when the next one is due."""

    poll: Poll
    next_at: datetime | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The end: whether the last poll was over by then, and how many answers the disk did not take.

    What a poll that was not over had received is committed by the next collector.
    """

    polls: int
    failed: int
    at_rest: bool
    not_stored: int
    seconds: float


Event = Polled | Ended


def once(collector: Collector, *, stop: threading.Event) -> Iterator[Event]:
    """Poll a single time; ends early, with no `Polled`, when `stop` is set before an answer is there."""
    began = time.monotonic()
    done = _Done(stop)
    work = _Work(collector, done, stop)
    threading.Thread(target=work.poll, name="poll", daemon=True).start()
    if (polled := done.next(None)) is not None:
        yield polled
    yield from work.end(began)


def collect(collector: Collector, *, every: timedelta, stop: threading.Event) -> Iterator[Event]:
    """Poll until `stop` is set; the last event is `Ended`, at most `GRACE_SECONDS` after that.

    `stop` is that of the collector's client too, so that a request at work ends with it.
    """
    began = time.monotonic()
    done = _Done(stop)
    scheduler = BackgroundScheduler(timezone=UTC, executors={"default": _Threads()}, logger=_log)
    work = _Work(collector, done, stop, scheduler)
    jitter = min(JITTER_SECONDS, JITTER_SHARE * every.total_seconds())
    scheduler.add_job(
        work.poll,
        IntervalTrigger(seconds=every.total_seconds(), timezone=UTC, jitter=jitter),
        id=_JOB,
        coalesce=True,
        max_instances=1,
        misfire_grace_time=None,
        next_run_time=datetime.now(UTC),
    )
    scheduler.start()
    try:
        while not stop.is_set():
            if (polled := done.next(WATCH_SECONDS)) is not None:
                yield polled
            due_at = work.next_at()
            if due_at is not None and due_at - datetime.now(UTC) > every + timedelta(seconds=2 * JITTER_SECONDS):
                scheduler.modify_job(_JOB, next_run_time=datetime.now(UTC))
    finally:
        stop.set()
        scheduler.shutdown(wait=False)
    yield from work.end(began)


class _Done:
    """What is over and was not followed yet; setting `stop` wakes whoever waits for it."""

    def __init__(self, stop: threading.Event) -> None:
        # A signal handler may set `stop` at any instant, so that who is interrupted by it must not hold its lock: only
        # this thread waits for it. A put never blocks.
        self._queue: queue.SimpleQueue[Polled | None] = queue.SimpleQueue()
        threading.Thread(target=self._wake, args=(stop,), name="stop", daemon=True).start()

    def put(self, polled: Polled | None) -> None:
        self._queue.put(polled)

    def next(self, seconds: float | None) -> Polled | None:
        """What is over next; None after so many seconds, when a poll was cut short, or at the stop."""
        with suppress(queue.Empty):
            return self._queue.get(timeout=seconds)
        return None

    def rest(self) -> Iterator[Polled]:
        """What is over by now."""
        with suppress(queue.Empty):
            while True:
                if (polled := self._queue.get_nowait()) is not None:
                    yield polled

    def _wake(self, stop: threading.Event) -> None:
        stop.wait()
        self._queue.put(None)


class _Work:
    """Polling as the job of a scheduler: whatever happens, it ends with something put into `done`."""

    def __init__(
        self, collector: Collector, done: _Done, stop: threading.Event, scheduler: BackgroundScheduler | None = None
    ) -> None:
        self._collector = collector
        self._done = done
        self._stop = stop
        self._scheduler = scheduler
        self._resting = threading.Event()
        self._resting.set()
        self.polls = self.failed = 0

    def next_at(self) -> datetime | None:
        """When the next poll is due, if one is."""
        job = None if self._scheduler is None else self._scheduler.get_job(_JOB)
        return None if job is None else job.next_run_time

    def poll(self) -> None:
        """Poll once, unless the end has come."""
        if self._stop.is_set():
            return
        self._resting.clear()
        polled = None
        try:
            self._collector.set_state("polling")
            poll = self._collector.poll()
            self.polls, self.failed = self.polls + 1, self.failed + poll.failed
            next_at = self.next_at()
            note = self._collector.set_state("waiting", next_poll_at=next_at)
            polled = Polled(replace(poll, notes=(*poll.notes, note)) if note else poll, next_at)
        except Stopped:
            _log.debug("the poll was cut short before an answer was there")
        finally:
            self._resting.set()
            self._done.put(polled)

    def end(self, began: float) -> Iterator[Event]:
        """Wait a little for the poll at work, then say how it all ended."""
        at_rest = self._resting.wait(GRACE_SECONDS)
        yield from self._done.rest()
        self._collector.set_state("stopped")
        yield Ended(self.polls, self.failed, at_rest, self._collector.at_risk, time.monotonic() - began)


class _Threads(BaseExecutor):  # type: ignore[misc]  # APScheduler has no types
    """Runs each job in a thread of its own, which nobody has to wait for at the end."""

    def _do_submit_job(self, job: Job, run_times: list[datetime]) -> None:
        threading.Thread(target=self._run, args=(job, run_times), name="poll", daemon=True).start()

    def _run(self, job: Job, run_times: list[datetime]) -> None:
        self._run_job_success(job.id, run_job(job, job._jobstore_alias, run_times, self._logger.name))
