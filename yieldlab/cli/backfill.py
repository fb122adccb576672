"""`data backfill` and `data rebuild`: history from the feed, and tables from the answers that were kept."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from yieldlab.cli import groups
from yieldlab.cli.selection import SELECTION, selected
from yieldlab.cli.session import Outcome, Session, command
from yieldlab.errors import INTERRUPTED, DataError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from yieldlab.collect import backfill as backfills
    from yieldlab.collect.rebuild import Rebuilt


@command(
    groups.data, "data backfill", settings=("data", "base_url", "requests_per_minute", "keep_raw_days"), more=SELECTION
)
def backfill(
    session: Session,
    refresh: Annotated[bool, typer.Option("--refresh", help="Also pools fetched within the last hour.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be fetched, and write nothing.")] = False,
    **criteria: object,
) -> Outcome:
    """Fetch the history of pools, and add what is new or changed.

    Goes on where it was interrupted. Ends with exit code 4 when a pool or a row could not be had, and with 3 when
    nothing could.
    """
    selection = selected(criteria)
    from yieldlab.collect import backfill as backfills
    from yieldlab.collect._http import Client

    settings, store = session.settings, session.store
    pace = settings.requests_per_minute
    with _stopper() as stop, Client(settings.base_url, requests_per_minute=pace, stop=stop) as client:
        plan = backfills.plan(store, client, selection, refresh=refresh)
        if dry_run:
            return _planned(plan, pace)
        if plan.pools.is_empty():
            raise DataError(f"no pool of the feed fits: {selection}{''.join(f'; {why}' for why in plan.missing)}")
        finished = _follow(session, backfills.run(store, client, plan, keep_raw_days=settings.keep_raw_days))
    if finished.interrupted:
        session.say(f"go on with: {shlex.join(session.words)}")
    code = INTERRUPTED if finished.interrupted else 3 if finished.is_empty else 4 if finished.is_partial else 0

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.backfill import finished_lines

        yield from finished_lines(finished)

    return Outcome(asdict(finished), view, warnings=_warnings(plan, finished), exit_code=code)


def _warnings(plan: backfills.Plan, finished: backfills.Finished) -> list[str]:
    from yieldlab.report.terminal import count

    warnings = []
    if plan.refused.height:
        warnings.append(f"{count(plan.refused.height, 'row')} of /pools could not be used")
    if gone := sum(finished.withdrawn.values()):
        pools = count(len(finished.withdrawn), "pool")
        warnings.append(f"the feed withdrew {count(gone, 'row')} of {pools} that it told earlier; the store keeps them")
    if finished.superseded:
        charts = count(finished.superseded, "chart")
        warnings.append(f"{charts} came too late: a newer one of the same pool is in the store, and counts")
    return warnings


@command(groups.data, "data rebuild", settings=("data", "keep_raw_days"))
def rebuild(
    session: Session,
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="DIR", help="Make a new data folder there, and change nothing here."),
    ] = None,
) -> Outcome:
    """Replay the raw answers that were kept, and add what is missing.

    Ends with exit code 4 when an answer could not be read; each is named.
    """
    from yieldlab.collect import rebuild as rebuilds

    rebuilt: Rebuilt | None = None
    with _terminable(), session.progress("rebuild") as progress:
        for event in rebuilds.rebuild(session.store, keep_raw_days=session.settings.keep_raw_days, into=into):
            match event:
                case rebuilds.Replayed():
                    progress.update(event.done, event.total)
                case rebuilds.Rebuilt():
                    rebuilt = event
    assert rebuilt is not None  # the last event
    told = rebuilt

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.backfill import rebuilt_lines

        yield from rebuilt_lines(told)

    return Outcome(asdict(told), view, exit_code=4 if told.damaged else 0)


def _planned(plan: backfills.Plan, requests_per_minute: float) -> Outcome:
    data = {
        "pools": plan.pools.to_dicts(),
        "to_fetch": len(plan.to_fetch),
        "current": plan.current,
        "missing": plan.missing,
        "refused": plan.refused.height,
    }

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.backfill import plan_lines

        yield from plan_lines(plan, requests_per_minute)

    return Outcome(data, view, exit_code=4 if plan.missing else 0)


def _follow(session: Session, events: Iterator[backfills.Event]) -> backfills.Finished:
    """Show every event of a backfill until its last one."""
    from yieldlab.collect import backfill as backfills
    from yieldlab.report.terminal import count

    finished: backfills.Finished | None = None
    committed = 0
    with session.progress("backfill") as progress:
        for event in events:
            match event:
                case backfills.Started():
                    progress.say(f"{count(event.to_fetch, 'chart')} to fetch, {event.current:,} current")
                case backfills.PoolFetched():
                    progress.update(event.done, event.total, f"{committed:,} committed")
                case backfills.PoolFailed():
                    later = "; it is asked for again in the end" if event.again else ""
                    progress.say(f"{event.pool_id} failed: {event.reason}{later}")
                    progress.update(event.done, event.total, f"{committed:,} committed")
                case backfills.Committed():
                    committed += len(event.pools)
                case backfills.Finished():
                    finished = event
    assert finished is not None  # every backfill that raises nothing ends with it
    return finished


@contextmanager
def _stopper() -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM asks for an end that keeps what was fetched, a second one ends at once."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("storing what was fetched; once more ends at once", file=sys.stderr, flush=True)

    with _handled(ask, signal.SIGINT, signal.SIGTERM):
        yield stop


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends as Ctrl-C does, so that nothing half done is left."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(end, signal.SIGTERM):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, other in before.items():
            signal.signal(number, other)
