"""Flags that more than one command has, beside the settings: the same name and the same meaning everywhere."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from yieldlab.errors import UsageError

Start = Annotated[str | None, typer.Option("--start", metavar="DATE", help="First day simulated.")]
End = Annotated[str | None, typer.Option("--end", metavar="DATE", help="Last day simulated.")]
AsOf = Annotated[
    str | None, typer.Option("--as-of", metavar="TIME", help="Use only what could be known at this instant (UTC).")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="One signal, market or policy parameter; may be repeated."),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Run folder to make, instead of one under the data folder.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
CheckCausal = Annotated[
    bool, typer.Option("--check-causal", help="First prove on this data that no signal depends on the future.")
]


def day(flag: str, text: str | None) -> date | None:
    """The day a flag names. Raises UsageError with the right form."""
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{flag} must be a day such as 2025-12-31, not {text!r}") from None


def instant(flag: str, text: str | None) -> datetime | None:
    """The instant a flag names; a day alone is the midnight that ends it, an instant without a zone is UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{flag} must be a day or an instant such as 2025-12-31T12:00Z, not {text!r}") from None
    if "T" not in text and " " not in text.strip():
        moment += timedelta(days=1)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
