"""`data collect` and `data status`: keep the present coming in, and see that it does."""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from yieldlab.cli import groups
from yieldlab.cli.data import synthetic_pools
from yieldlab.cli.selection import SELECTION, selected
from yieldlab.cli.session import Outcome, Session, command
from yieldlab.errors import INTERRUPTED, DataError, UsageError, YieldlabError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from yieldlab.collect.polls import Poll
    from yieldlab.collect.scheduler import Ended, Event

DEFAULT_EVERY = "15m"
#: More often than this is no use with any feed, and a burden to all.
SHORTEST = timedelta(seconds=1)

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@command(
    groups.data, "data collect", settings=("data", "base_url", "requests_per_minute", "keep_raw_days"), more=SELECTION
)
def collect(
    session: Session,
    once: Annotated[bool, typer.Option("--once", help="Poll a single time and leave, as from cron.")] = False,
    every: Annotated[
        str | None, typer.Option("--every", metavar="TIME", help=f"Between two polls; {DEFAULT_EVERY} if not given.")
    ] = None,
    **criteria: object,
) -> Outcome:
    """Poll the feed and keep what it says now.

    One call serves all pools. Runs until SIGTERM or Ctrl-C, and ends within five seconds of it.
    """
    if once and every is not None:
        raise UsageError("--once polls a single time and --every again and again; give one of them")
    interval = parse_time(DEFAULT_EVERY if every is None else every)
    selection = selected(criteria)
    from yieldlab.collect import scheduler
    from yieldlab.collect._http import Client
    from yieldlab.collect.collector import Collector
    from yieldlab.report.collection import duration
    from yieldlab.store import collector_lock

    settings, store = session.settings, session.store
    if store.exists and store.recorded("polls", columns=["outcome"]).is_empty() and synthetic_pools(store):
        session.say("warning: this data folder also holds synthetic pools; keep real data in a folder of its own")
    with _one_sentence(store.folder), collector_lock(store.folder), _stopper() as stop:
        client = Client(settings.base_url, requests_per_minute=settings.requests_per_minute, stop=stop.event)
        collector = Collector(
            store, client, selection, keep_raw_days=settings.keep_raw_days, every=None if once else interval
        )
        if once:
            told = _follow(session, scheduler.once(collector, stop=stop.event), quiet=True)
        else:
            often = duration(interval.total_seconds())
            session.say(f"collecting {selection} from {settings.base_url} every {often} into {store.folder}")
            told = _follow(session, scheduler.collect(collector, every=interval, stop=stop.event), quiet=False)
        return _outcome(session, told, stop, once=once)


@command(groups.data, "data status", settings=("data",))
def status(
    session: Session,
    max_lag: Annotated[
        str | None,
        typer.Option(
            "--max-lag",
            metavar="TIME",
            help="Age of the last success above which it is stale; 3h if not given, or three intervals if longer.",
        ),
    ] = None,
) -> Outcome:
    """Tell how the collector is and how old its last success.

    Ends with exit code 3 when that is too long ago, whether or not a collector is at work.
    """
    limit = None if max_lag is None else parse_time(max_lag, flag="--max-lag")
    from yieldlab.collect import heartbeat

    store = session.store
    found = heartbeat.status(store, max_lag=limit)
    if found is None:
        raise DataError(f"nothing was ever collected into {store.folder}; run `yieldlab data collect`")

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.collection import status_lines

        yield from status_lines(found)

    beat = None if found.beat is None else asdict(found.beat)
    data = {name: value for name, value in asdict(found).items() if name != "beat"}
    return Outcome(data | {"stale": found.stale, "heartbeat": beat}, view, exit_code=3 if found.stale else 0)


def parse_time(text: str, *, flag: str = "--every") -> timedelta:
    """A stretch of time as people write it.

    >>> parse_time("15m"), parse_time("1.5h")
    (datetime.timedelta(seconds=900), datetime.timedelta(seconds=5400))
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([smhd])\s*", text)
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not SHORTEST.total_seconds() <= seconds <= timedelta(days=365).total_seconds():
        raise UsageError(f"{flag} must be a time of at least 1s such as 90s, 15m, 1h or 1d, not {text!r}")
    return timedelta(seconds=seconds)


@dataclass(slots=True)
class _Told:
    """What there is to say in the end."""

    last: Poll | None = None
    ended: Ended | None = None
    outcomes: dict[str, int] = field(default_factory=dict)


def _follow(session: Session, events: Iterator[Event], *, quiet: bool) -> _Told:
    """Say every poll on stderr, and what is wrong when it changes; nobody wants to read it every quarter of an hour."""
    from yieldlab.collect.scheduler import Polled
    from yieldlab.report.collection import poll_line

    told = _Told()
    for event in events:
        if not isinstance(event, Polled):
            told.ended = event
            continue
        known = [] if told.last is None else _complaints(told.last)
        told.last = event.poll
        told.outcomes[event.poll.outcome] = told.outcomes.get(event.poll.outcome, 0) + 1
        if quiet:
            continue
        session.say(poll_line(event.poll, event.next_at))
        for line in _complaints(event.poll):
            if line not in known:
                session.say(f"warning: {line}")
    return told


def _complaints(poll: Poll) -> list[str]:
    """What is wrong with a poll, but for the failure itself."""
    nothing = [poll.trouble] if poll.trouble and not poll.failed else []
    return [*nothing, *poll.missing, *poll.notes]


def _outcome(session: Session, told: _Told, stop: _Stop, *, once: bool) -> Outcome:
    poll, ended = told.last, told.ended
    assert ended is not None  # every run of the scheduler ends with one
    # Those of a single poll are told here, of a service as they come.
    warnings = _complaints(poll) if poll is not None and (once or session.json) else []
    if ended.not_stored:
        warnings.append(f"the disk did not take {ended.not_stored:,} of the answers received; they are lost")
    code = INTERRUPTED if stop.number == signal.SIGINT or (once and poll is None) else 0
    failure: dict[str, object] = {}
    if once and code == 0 and poll is not None:
        code = 3 if poll.trouble else 4 if poll.refused or poll.missing else 0
        if (raised := poll.raised) is not None:
            if not session.json or not isinstance(raised, YieldlabError | OSError):
                for line in warnings:
                    session.say(f"warning: {line}")
                raise raised
            told_as = _not_writable(session.store.folder, raised) if isinstance(raised, OSError) else raised
            code = told_as.exit_code
            failure = {"error": str(told_as), "kind": type(told_as).__name__, "exit_code": code}
            print(f"error: {told_as}", file=sys.stderr, flush=True)
    if not ended.at_rest:
        _leave_at_once(code)
    data = {
        "polls": ended.polls,
        "outcomes": told.outcomes,
        "seconds": ended.seconds,
        "not_stored": ended.not_stored,
        "last": None if poll is None else poll.row().to_dicts()[0],
        "missing": [] if poll is None else list(poll.missing),
    } | failure

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.collection import duration, poll_line

        if once:
            yield "interrupted before there was an answer" if poll is None else poll_line(poll)
            return
        parts = [f"{number:,} {outcome}" for outcome, number in told.outcomes.items()]
        yield f"collected for {duration(ended.seconds)}; polls: {', '.join(parts) or 'none'}"

    return Outcome(data, view, warnings=warnings, exit_code=code)


@contextmanager
def _one_sentence(folder: Path) -> Iterator[None]:
    """A data folder that cannot be written is told as such, wherever that is noticed."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"the data folder {folder} cannot be written ({(error.strerror or str(error)).lower()}); "
        "mend that, or name another one with --data"
    )


class _Stop:
    """Whether the end was asked for, and by which signal."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.number = 0


@contextmanager
def _stopper() -> Iterator[_Stop]:
    """SIGTERM or Ctrl-C asks for a clean end; a second one ends at once."""
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.number:
            raise KeyboardInterrupt
        stop.number = number
        stop.event.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        stop.event.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_at_once(code: int) -> None:
    """End the process with its last words, and without the poll that is still at work.

    It may be inside a library that does not survive the end of the interpreter around it. What it had received is
    written down, and committed by the next collector.
    """

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(leave)
