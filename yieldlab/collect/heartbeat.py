"""Is the collector alive, and how old is what it brought last?

The collector writes down how it is after every poll, in one small file beside the tables, which also tells its next
process what the last one knew. The table `polls` says the same for those polls that could be recorded.
"""

from __future__ import annotations

import json
import math
import os
import socket
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from yieldlab.collect.journal import replace_file, written
from yieldlab.collect.polls import NOTHING_CHOSEN
from yieldlab.errors import DataError
from yieldlab.store import Store, collector_at_work
from yieldlab.store._locks import COLLECTOR_LOCK

FILE_NAME = "collector.json"
#: Outcomes of a poll after which the store holds what the feed says.
SUCCESSES = ("stored", "unchanged")
#: The feed renews itself once an hour: two misses in a row and some slack are no failure yet.
MAX_LAG = timedelta(hours=3)

#: What is stamped later than this is of a clock that ran ahead, not of another computer's.
CLOCK_SLACK = timedelta(minutes=5)
#: The longest interval that a collector can have.
_LONGEST_S = timedelta(days=366).total_seconds()


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How the collector was when it last wrote: `state` is `polling`, `waiting` or `stopped`."""

    state: str
    pid: int
    host: str
    started_at: datetime
    updated_at: datetime
    #: What is asked, and for which pools: another address or selection is due at once.
    url: str
    selection: str
    every_s: float | None = None
    next_poll_at: datetime | None = None
    #: Until then the feed says nothing new.
    expires_at: datetime | None = None
    last_success_at: datetime | None = None
    last_outcome: str | None = None
    failures: int = 0
    last_error: str | None = None
    #: Answers received and not committed yet, and answers given up because nothing could be written for too long.
    waiting: int = 0
    lost: int = 0
    #: When raw answers were last looked through for those kept long enough.
    expired_at: datetime | None = None


def first(url: str, selection: str, *, every_s: float | None) -> Heartbeat:
    """The heartbeat of a collector that has just been started."""
    now = datetime.now(UTC)
    return Heartbeat("waiting", os.getpid(), socket.gethostname(), now, now, url, selection, every_s)


def write(folder: Path, beat: Heartbeat) -> None:
    """Put the heartbeat into the data folder, whole or not at all. Raises OSError."""
    document = {name: _text(value) for name, value in asdict(beat).items()}
    replace_file(folder / FILE_NAME, json.dumps(document, indent=2) + "\n")


def read(folder: Path) -> Heartbeat | None:
    """The last heartbeat of the data folder; None when there is none that can be read, or that can be true."""
    try:
        document = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        kinds = {field.name: str(field.type) for field in fields(Heartbeat) if field.name in document}
        values: dict[str, Any] = {name: _value(document[name], kind) for name, kind in kinds.items()}
        return Heartbeat(**values)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


@dataclass(frozen=True, slots=True)
class Status:
    """What `data status` tells. `running` is None when it cannot be told; a lag of None means never."""

    running: bool | None
    beat: Heartbeat | None
    last_success_at: datetime | None
    lag_s: float | None
    max_lag_s: float
    failures: int
    last_error: str | None
    polls: int
    #: Outcome -> how many polls of the last 24 hours had it.
    last_day: dict[str, int]
    #: Answers received and not committed yet.
    waiting: int

    @property
    def stale(self) -> bool:
        """Whether the last success is too long ago."""
        return self.lag_s is None or self.lag_s > self.max_lag_s


def status(store: Store, *, max_lag: timedelta | None = None, now: datetime | None = None) -> Status | None:
    """How collecting into this store goes; None when nobody ever tried.

    The limit of the lag is three intervals of the collector, and at least `MAX_LAG`. A poll that found no pool to
    store is no success, and what a clock that ran ahead has stamped tells nothing of the time until then. Raises
    DataError when a collector was here that could write nothing at all.
    """
    beat, waiting = read(store.folder), written(store.folder)
    polls = store.recorded("polls", columns=["polled_at", "outcome", "pools", "error"]).sort("polled_at")
    if beat is None and polls.is_empty() and not waiting:
        if (store.folder / COLLECTOR_LOCK).exists():
            raise DataError(
                f"a collector was at work in {store.folder} and could store nothing, not even how it is; "
                "its own output tells why, such as a disk that is full"
            )
        return None
    now = datetime.now(UTC) if now is None else now
    until = now + CLOCK_SLACK
    past = polls.filter(pl.col("polled_at") <= until)
    successes = past.filter(pl.col("outcome").is_in(SUCCESSES) & (pl.col("pools") > 0))["polled_at"]
    known = [instant for instant in (successes.max(), beat and beat.last_success_at) if isinstance(instant, datetime)]
    last_success_at = max((instant for instant in known if instant <= until), default=None)
    failures, last_error = _failures(past, beat)
    running = collector_at_work(store.folder)
    if max_lag is None:
        every = timedelta(seconds=(beat and beat.every_s) or 0)
        max_lag = max(MAX_LAG, 3 * every)
    recent = past.filter(pl.col("polled_at") > now - timedelta(days=1))["outcome"].value_counts().sort("outcome")
    return Status(
        running=running,
        beat=beat,
        last_success_at=last_success_at,
        lag_s=None if last_success_at is None else max((now - last_success_at).total_seconds(), 0.0),
        max_lag_s=max_lag.total_seconds(),
        failures=failures,
        last_error=last_error,
        polls=polls.height,
        last_day=dict(recent.iter_rows()),
        # Those in the memory of a process are only known from it, and end with it.
        waiting=waiting if running is False or beat is None else max(waiting, beat.waiting),
    )


def _failures(polls: pl.DataFrame, beat: Heartbeat | None) -> tuple[int, str | None]:
    """Failures since the last success and the latest reason; a poll on a full disk is in the heartbeat only, or not
    even there."""
    decided = polls.filter(pl.col("outcome").is_in([*SUCCESSES, "failed"]))
    failed = (decided["outcome"] == "failed") | (decided["pools"] == 0)
    in_a_row = int(failed.reverse().cum_prod().sum()) if decided.height else 0
    error = (decided["error"][-1] or NOTHING_CHOSEN) if in_a_row else None
    last = decided["polled_at"].max()
    if beat is not None and (not isinstance(last, datetime) or beat.updated_at >= last):
        return beat.failures, beat.last_error if beat.failures else None
    return in_a_row, error


def _value(value: object, kind: str) -> object:
    """A value of the file as the field of this kind (`float | None`, say) holds it; raises ValueError for any other."""
    if value is None and kind.endswith("None"):
        return None
    match kind.removesuffix(" | None"):
        case "datetime" if isinstance(value, str) and (instant := datetime.fromisoformat(value)).tzinfo is not None:
            return instant
        case "str" if isinstance(value, str):
            return value
        case "int" if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        case "float" if isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= _LONGEST_S:
            return float(value)
    raise ValueError(f"a heartbeat has no {kind} such as {value!r}")


def _text(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value
