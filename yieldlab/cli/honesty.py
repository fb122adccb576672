"""`data check` and `data revisions`: how far the observations can be believed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yieldlab.cli import groups
from yieldlab.cli.data import synthetic_pools
from yieldlab.cli.session import Outcome, Session, command
from yieldlab.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from yieldlab.quality import Thresholds


@command(groups.data, "data check", settings=("data",))
def check(
    session: Session,
    threshold: Annotated[
        list[str] | None,
        typer.Option("--threshold", metavar="K=V", help="What to let pass, as max_gap_days=10; may be repeated."),
    ] = None,
    flags: Annotated[
        Path | None,
        typer.Option("--flags", metavar="FILE", help="Write one row per suspicious row to this Parquet file."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", help="Pools shown at most, worst first; 0 for all.")
    ] = 10,
) -> Outcome:
    """Look for gaps, stale runs, spikes, contradictions, revisions.

    Ends with exit code 3 when something exceeds a threshold; docs/configuration.md lists them.
    """
    from yieldlab.quality import COLUMNS
    from yieldlab.quality import check as examine

    limits = _limits(session, threshold or ())
    store = session.store
    report = examine(store.history(columns=COLUMNS), limits)
    if flags is not None:
        report.write_flags(flags)
    synthetic = synthetic_pools(store)
    assets = store.assets()

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.honesty import check_lines

        yield from check_lines(report, assets, len(synthetic), limit)
        if flags is not None:
            yield f"The {report.flags.height:,} flags, one row each, are in {flags}"

    data = report.as_dict() | {"synthetic_pools": synthetic, "flags_path": flags}
    return Outcome(data, view, exit_code=0 if report.sound else 3)


@command(groups.data, "data revisions", settings=("data",))
def list_revisions(
    session: Session,
    pool: Annotated[
        list[str] | None, typer.Option("--pool", metavar="ID", help="This pool only; may be repeated.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Only what became known from this UTC day or instant on."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", help="Changed values shown at most, latest first; 0 for all.")
    ] = 20,
) -> Outcome:
    """Show what was changed after the fact, by how much and when.

    A value counts as changed when a later row of the same pool and time has another one.
    """
    from yieldlab.quality import revisions

    found = revisions(session.store.history(), pools=pool, since=_beginning("--since", since))
    shown = found.changes.head(limit) if limit > 0 else found.changes
    warnings = []
    if shown.height < found.changes.height:
        warnings.append(f"{shown.height:,} of {found.changes.height:,} changed values are shown; --limit 0 shows all")

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.honesty import revision_lines

        yield from revision_lines(found, shown, since)

    data = {
        "totals": found.totals(),
        "pools": found.pools.to_dicts(),
        "columns": found.columns.to_dicts(),
        "months": found.months.to_dicts(),
        "changes": shown.to_dicts(),
    }
    return Outcome(data, view, warnings=warnings)


def _limits(session: Session, texts: list[str] | tuple[()]) -> Thresholds:
    """The thresholds of the file, with those of the command line over them."""
    from yieldlab.config import check_thresholds
    from yieldlab.quality import Thresholds
    from yieldlab.space import parse_axis

    limits: dict[str, Any] = dict(session.settings.check)
    for text in texts:
        name, values = parse_axis(text)
        if len(values) != 1:
            raise UsageError(f"--threshold {text} gives {len(values)} values; a threshold is one")
        limits[name] = values[0]
    check_thresholds(limits)
    return Thresholds(**limits)


def _beginning(flag: str, text: str | None) -> datetime | None:
    """The instant a flag names; a day alone is the midnight that begins it, an instant without a zone is UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"{flag} must be a day or an instant such as 2025-12-31T12:00Z, not {text!r}") from None
    if moment > datetime.now(UTC):
        raise UsageError(f"{flag} {text} lies in the future; leave it out for all that was ever changed")
    return moment
