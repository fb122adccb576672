"""`data import-series`, `data fetch-series` and `data conventions`: what stands beside the observations of pools."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yieldlab.cli import groups
from yieldlab.cli.inputs import day
from yieldlab.cli.session import Outcome, Session, command
from yieldlab.errors import DataError, UsageError, did_you_mean

if TYPE_CHECKING:
    import polars as pl
    from rich.console import RenderableType

    from yieldlab.collect.series import Fetched

#: Before this the feed of yields has nothing that a price could stand beside.
DEFAULT_START = date(2022, 1, 1)


@command(groups.data, "data import-series", settings=("data",))
def import_series(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Parquet or CSV, one row per time.")],
    name: Annotated[
        str,
        typer.Option("--name", metavar="NAME", help="Name of the series; {column} stands for a column's text."),
    ],
    value: Annotated[
        str | None, typer.Option("--value", metavar="COLUMN", help="Column of the values, if it is not plain.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="COLUMN=TEXT", help="Only rows that have this text; may be repeated."),
    ] = None,
) -> Outcome:
    """Take a series beside the pools from a file: gas, a token's price.

    Refused rows go to a file under the data folder, each with its reason. Ends with exit code 4 when there are such.
    """
    from yieldlab.ingest.series import import_series as take_in

    imported = take_in(session.store, file, name=name, value=value, where=_conditions(where or ()))

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.series import imported_lines

        yield from imported_lines(imported)

    return Outcome(asdict(imported), view, exit_code=4 if imported.refused_rows else 0)


def _conditions(texts: list[str] | tuple[()]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        column, equals, wanted = (part.strip() for part in text.partition("="))
        if not column or not equals:
            raise UsageError(f"--where must be COLUMN=TEXT, as symbol=ETH, not {text!r}")
        if column in found:
            raise UsageError(f"--where names the column {column!r} twice")
        found[column] = wanted
    return found


@command(groups.data, "data fetch-series", settings=("data", "coins_url", "sentiment_url", "requests_per_minute"))
def fetch_series(
    session: Session,
    series: Annotated[
        list[str],
        typer.Argument(metavar="NAME=COIN...", help="As eth_usd=coingecko:ethereum, NAME=chain:address or fear_greed."),
    ],
    start: Annotated[
        str | None, typer.Option("--start", metavar="DATE", help="First day of prices (2022-01-01).")
    ] = None,
    end: Annotated[str | None, typer.Option("--end", metavar="DATE", help="Last day of prices (today).")] = None,
) -> Outcome:
    """Fetch daily token prices and the Fear & Greed index.

    Ends with exit code 4 when a series or a value could not be had, and with 3 when none could.
    """
    from yieldlab.collect import series as feeds
    from yieldlab.collect._http import Client

    wanted = feeds.wanted(series)
    first, last = day("--start", start) or DEFAULT_START, day("--end", end)
    if last is not None and last < first:
        raise UsageError(f"--end {last} lies before --start {first}")
    settings = session.settings
    pace = settings.requests_per_minute
    done: list[Fetched] = []
    with (
        Client(settings.coins_url, requests_per_minute=pace) as coins,
        Client(settings.sentiment_url, requests_per_minute=pace) as sentiment,
        session.progress("fetch-series") as progress,
    ):
        for fetched in feeds.fetch(session.store, feeds.Clients(coins, sentiment), wanted, start=first, end=last):
            done.append(fetched)
            progress.update(len(done), len(wanted), fetched.name)
    failed = {fetched.name: fetched.error for fetched in done if fetched.error is not None}
    if len(failed) == len(done) and all(fetched.last is None for fetched in done):
        raise DataError("; ".join(f"{name}: {why}" for name, why in failed.items()))
    refused = sum(fetched.refused_rows for fetched in done)

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.series import fetched_lines

        yield from fetched_lines(done)

    warnings = [f"{name}: {why}" for name, why in failed.items()]
    data = {"series": [asdict(fetched) for fetched in done], "failed": failed}
    return Outcome(data, view, warnings=warnings, exit_code=4 if failed or refused else 0)


@command(groups.data, "data conventions", settings=("data",))
def show_conventions(
    session: Session,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="CSV or Parquet of conventions to add or to mend.")
    ] = None,
    project: Annotated[
        list[str] | None, typer.Option("--project", metavar="NAME", help="Show this one only; may be repeated.")
    ] = None,
) -> Outcome:
    """Show which projects quote simple rates, or mend the table.

    With FILE its rows are recorded; no observation changes. Ends with exit code 4 when a row was refused.
    """
    from yieldlab.collect import conventions
    from yieldlab.ingest.conventions import Allowed, read_conventions

    store = session.store
    read = mended = None
    if file is not None:
        allowed = Allowed(conventions.KINDS, conventions.TVL_KINDS, conventions.BUNDLED)
        read = read_conventions(file, allowed, conventions.table(), rejects_folder=store.folder / "rejects")
        mended = conventions.mend(store, read.rows)
    table = conventions.in_force(store)
    unknown = [_unknown_project(name, table) for name in project or () if name not in table["project"]]
    if unknown and mended is None:
        raise DataError("; ".join(unknown))
    if project:
        table = table.filter(table["project"].is_in(project))
    changed = (
        None
        if read is None or mended is None
        else asdict(mended) | {"rows_read": read.rows_read, "refused": read.refused, "rejects_path": read.rejects_path}
    )

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.series import conventions_table, mended_lines

        if read is not None and mended is not None:
            yield from mended_lines(read, mended)
        yield conventions_table(table)

    data = {"conventions": table.to_dicts(), "mended": changed}
    return Outcome(data, view, warnings=unknown, exit_code=4 if read is not None and read.refused_rows else 0)


def _unknown_project(name: str, table: pl.DataFrame) -> str:
    hint = did_you_mean(name, table["project"].unique().to_list())
    near = hint if "did you mean" in hint else "; its rates are read as compounded ones"
    return f"no convention is recorded for the project {name!r}{near}"
