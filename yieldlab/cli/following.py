"""How a sweep is followed to its end: every event shown, Ctrl-C turned into a stop, the command that resumes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from yieldlab.cli.runs import runs_folder
from yieldlab.cli.session import Session

if TYPE_CHECKING:
    from yieldlab import sweep as sweeps


class _Stop:
    """Whether Ctrl-C was pressed."""

    requested = False


@contextmanager
def stopper(step: str = "chunk") -> Iterator[_Stop]:
    """The first Ctrl-C asks for an end after the step in work, a second one ends at once."""
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        print(f"stopping after this {step}; once more ends at once", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def follow(session: Session, title: str, events: Iterator[sweeps.Event]) -> sweeps.Finished | sweeps.Interrupted:
    """Show every event of a sweep until its last one."""
    from yieldlab import sweep
    from yieldlab.report.results import measure_text

    last: sweeps.Finished | sweeps.Interrupted | None = None
    planned: sweeps.Planned | None = None
    try:
        with session.progress(title) as progress:
            for event in events:
                match event:
                    case sweep.Planned():
                        planned = event
                        progress.update(event.done, event.trials)
                    case sweep.ChunkDone():
                        best = "" if event.best is None else f"best {event.by} {measure_text(event.by, event.best)}"
                        progress.update(event.done, event.total, best)
                    case sweep.TrialsFailed():
                        progress.say(f"{event.count:,} trials failed: {event.reason}")
                    case sweep.Interrupted() | sweep.Finished():
                        last = event
    except KeyboardInterrupt:
        if planned is not None:
            session.say(f"resume with: {resume_command(session, planned.run_id, planned.path)}")
        raise
    assert last is not None  # every sweep ends with one of the two
    return last


def resume_command(session: Session, run_id: str, path: Path) -> str:
    """What to type to go on with an interrupted run."""
    inside = path.parent == runs_folder(session.settings)
    data = f" --data {session.settings.data}" if "data" in session.settings.flags else ""
    return f"yieldlab sweep resume {run_id if inside else path}{data}"
