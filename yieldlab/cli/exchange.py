"""`data export`: hand the observations to another system."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from yieldlab.cli import groups
from yieldlab.cli.session import Outcome, Session, command

if TYPE_CHECKING:
    from rich.console import RenderableType


@command(groups.data, "data export", settings=("data",))
def export(
    session: Session,
    to: Annotated[str, typer.Option("--to", metavar="URL", help="As postgresql://user@host:5432/name, no password.")],
    add_columns: Annotated[
        bool,
        typer.Option("--add-columns", help="Add the columns that existing tables lack, instead of leaving them out."),
    ] = False,
) -> Outcome:
    """Write all observations to PostgreSQL, in one transaction.

    Missing tables are made; rows that are there are brought up to date. PGPASSWORD or ~/.pgpass has the password.
    """
    from yieldlab.cli.data import synthetic_pools
    from yieldlab.report.terminal import count
    from yieldlab.store import postgres

    where = postgres.database(to)
    store = session.store
    synthetic = synthetic_pools(store)
    exported = postgres.export(store, where, add_columns=add_columns, must_keep=("source",) if synthetic else ())
    warnings = [
        f"the database has no column {name}, so {count(number, 'value')} of it stayed here; --add-columns makes one"
        for name, number in exported.left_out.items()
    ]
    warnings += [
        f"the database's column {name} holds fewer digits, so {count(number, 'value')} of it did not arrive as sent"
        for name, number in exported.rounded.items()
    ]

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.exchange import exported_lines

        yield from exported_lines(exported, len(synthetic))

    return Outcome(asdict(exported) | {"synthetic_pools": synthetic}, view, warnings=warnings)
