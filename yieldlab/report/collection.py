"""How collecting looks: one line per poll, how it ended, and how the collector is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import RenderableType

from yieldlab.report.terminal import count, size, words

if TYPE_CHECKING:
    from yieldlab.collect.heartbeat import Status
    from yieldlab.collect.polls import Poll


def poll_line(poll: Poll, next_at: datetime | None = None) -> str:
    """What one poll did."""
    later = "" if next_at is None else f"; next at {_clock(next_at)}"
    when = _clock(poll.polled_at)
    if poll.outcome == "not due":
        return f"{when} nothing asked: the feed has nothing new yet{later}"
    if poll.failed:
        return f"{when} failed after {poll.duration_s:,.1f} s: {poll.error}{later}"
    told = f"{count(poll.pools, 'pool')}, {size(poll.size_bytes or 0)} in {poll.duration_s:,.1f} s"
    if poll.outcome == "unchanged":
        return f"{when} unchanged; {told}{later}"
    parts = [f"{poll.new:,} new", f"{poll.changed:,} changed"]
    parts += [f"{poll.vanished:,} vanished"] if poll.vanished else []
    parts += [f"{poll.refused:,} refused"] if poll.refused else []
    return f"{when} stored {', '.join(parts)}; {told}{later}"


def duration(seconds: float | None) -> str:
    """A stretch of time in its two largest units; none is never."""
    if seconds is None:
        return "never"
    left = round(seconds)
    parts: list[str] = []
    for name, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        number, left = divmod(left, length)
        if number or parts:
            parts.append(f"{number} {name}")
    return " ".join(parts[:2]) or "0 s"


def status_lines(status: Status) -> Iterator[RenderableType]:
    """How the collector is, as a table of two columns and a verdict."""
    beat = status.beat
    rows = [["collector", _running(status)]]
    if beat is not None:
        rows += [["asks", beat.url], ["for", beat.selection]]
        rows += [["every", duration(beat.every_s)]] if beat.every_s is not None else []
        rows += [["next poll", _instant(beat.next_poll_at)]] if beat.next_poll_at else []
    ago = "" if status.lag_s is None else f", {duration(status.lag_s)} ago"
    rows.append(["last success", f"{_instant(status.last_success_at)}{ago}"])
    rows.append(["failures in a row", f"{status.failures:,}"])
    if status.last_error:
        rows.append(["last error", status.last_error])
    lost = 0 if beat is None else beat.lost
    if status.waiting or lost:
        rows.append(["answers not stored yet", f"{status.waiting:,}; {lost:,} lost"])
    day = ", ".join(f"{number:,} {outcome}" for outcome, number in status.last_day.items())
    rows.append(["polls", f"{status.polls:,}; in the last 24 hours: {day or 'none'}"])
    yield words(["what", "how it is"], rows)
    limit = duration(status.max_lag_s)
    yield f"stale: no success for longer than {limit}" if status.stale else f"fresh: the limit is {limit}"


def _running(status: Status) -> str:
    beat = status.beat
    if status.running is False:
        return "not running"
    if beat is None:
        return "running" if status.running else "unknown"
    word = beat.state if status.running else f"perhaps running, {beat.state}"
    return f"{word}, process {beat.pid} on {beat.host}, since {_instant(beat.started_at)}"


def _clock(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S}Z"


def _instant(instant: datetime | None) -> str:
    return "never" if instant is None else f"{instant:%Y-%m-%d %H:%M:%S} UTC"
