"""How a backfill and a rebuild look: what will be fetched, what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType

from yieldlab.report.terminal import count, note, table, usd, words

if TYPE_CHECKING:
    from yieldlab.collect.backfill import Finished, Plan
    from yieldlab.collect.rebuild import Rebuilt


def plan_lines(plan: Plan, requests_per_minute: float) -> Iterator[RenderableType]:
    """One line per pool, and how long it will take."""
    rows = [
        [
            row["pool_id"],
            *(row[name] or "-" for name in ("protocol", "chain", "symbol")),
            "current" if row["current"] else "fetch",
            usd(row["tvl_usd"], 0),
        ]
        for row in plan.pools.iter_rows(named=True)
    ]
    if rows:
        yield table(["pool", "project", "chain", "symbol", "", "TVL, USD"], rows, left=5)
    yield from (note(f"Missing: {sentence}") for sentence in plan.missing)
    if plan.refused.height:
        yield note(f"{count(plan.refused.height, 'row')} of /pools could not be used and is not looked at")
    minutes = len(plan.to_fetch) / requests_per_minute
    yield (
        f"{plan.selection}: {count(len(plan.to_fetch), 'chart')} to fetch, {plan.current:,} current; "
        f"at least {minutes:,.1f} min at {requests_per_minute:,g} requests a minute"
    )


def finished_lines(finished: Finished) -> Iterator[RenderableType]:
    """What became of the pools and of their rows."""
    if finished.failed:
        yield words(["failed", "because"], [[pool, reason] for pool, reason in finished.failed.items()])
    if finished.withdrawn:
        rows = [[pool, f"{number:,}"] for pool, number in finished.withdrawn.items()]
        yield table(["told earlier, not any more, kept", "rows"], rows)
    yield from (note(f"Missing: {sentence}") for sentence in finished.missing)
    if finished.refused:
        yield f"The refused rows, each with its reason, are in {finished.rejects_path}"
    parts = [
        f"{count(finished.committed, 'pool')} fetched",
        f"{finished.current:,} current",
        f"{len(finished.failed):,} failed",
        *([f"{finished.superseded:,} superseded by a newer chart"] if finished.superseded else []),
        *([f"{finished.interrupted:,} not asked for"] if finished.interrupted else []),
    ]
    withdrawn = f", {sum(finished.withdrawn.values()):,} withdrawn" if finished.withdrawn else ""
    yield (
        f"{', '.join(parts)}; {count(finished.new, 'row')} new, {finished.revised:,} revised, "
        f"{finished.unchanged:,} already known, {finished.refused:,} refused{withdrawn}; {finished.seconds:,.1f} s"
    )


def rebuilt_lines(rebuilt: Rebuilt) -> Iterator[RenderableType]:
    """What the kept answers gave, and which could not be read."""
    if rebuilt.damaged:
        yield words(["not replayed", "because"], [[name, reason] for name, reason in rebuilt.damaged.items()])
    yield (
        f"{rebuilt.replayed:,} of {count(rebuilt.answers, 'answer')} replayed, {rebuilt.expired:,} expired, "
        f"{len(rebuilt.damaged):,} damaged; {count(rebuilt.new, 'row')} new, "
        f"{rebuilt.revised:,} revised, {count(rebuilt.described, 'description')} and "
        f"{count(rebuilt.events, 'event')} added"
    )
