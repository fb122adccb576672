"""`data ...` and `sql`: bring observations in, look at them, keep them in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yieldlab.cli import groups
from yieldlab.cli.session import Outcome, Session, command
from yieldlab.errors import DataError, UsageError

if TYPE_CHECKING:
    import polars as pl
    from rich.console import RenderableType

    from yieldlab.ingest import Imported
    from yieldlab.store import Store


@command(groups.data, "data import", settings=("data",))
def import_files(
    session: Session,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE|URL...", help="Parquet or CSV, one row per pool and time; or postgresql://..."),
    ],
) -> Outcome:
    """Take files or databases in, and refuse bad rows one by one.

    Refused rows go to a file under the data folder, each with its reason; the rest lands in one commit per source.
    """
    from yieldlab.ingest import import_file
    from yieldlab.ingest.database import import_database
    from yieldlab.store import postgres

    # Every URL is looked at before a sentence could name one that has a password in it.
    sources = [postgres.database(text) if postgres.looks_like_a_url(text) else Path(text) for text in files]
    missing = [str(source) for source in sources if isinstance(source, Path) and not source.is_file()]
    if missing:
        raise DataError(f"there is no file {', '.join(missing)}; nothing was imported")
    store = session.store
    done: list[Imported] = []
    failed: dict[str, str] = {}
    for source in sources:
        try:
            if isinstance(source, Path):
                done.append(import_file(store, source, rejects_folder=store.folder / "rejects"))
            else:
                done.append(import_database(store, source))
        except (DataError, UsageError) as error:
            if len(sources) == 1:
                raise
            failed[str(source) if isinstance(source, Path) else source.shown] = str(error)
    if not done:
        raise DataError("; ".join(failed.values()))
    _record_conventions(store)
    refused = sum(imported.refused_rows for imported in done)
    data = {"files": [asdict(imported) for imported in done], "failed": failed}
    warnings = [f"{path}: {reason}" for path, reason in failed.items()]
    if synthetic_pools(store) and any(imported.new for imported in done):
        warnings.append("this data folder also holds synthetic pools; keep real data in a folder of its own")

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.data import imported_lines

        for imported in done:
            yield from imported_lines(imported)

    return Outcome(data, view, warnings=warnings, exit_code=4 if refused or failed else 0)


def _record_conventions(store: Store) -> None:
    """Rows of the feed that came by way of a file are read as those that came straight from it."""
    from yieldlab.collect import conventions
    from yieldlab.schema import is_feed

    if any(is_feed(source) for source in store.sources()):
        conventions.sync(store)


@command(groups.data, "data sample", settings=("data", "seed"))
def sample(
    session: Session,
    pools: Annotated[
        int | None, typer.Option("--pools", metavar="N", help="Any number of pools instead of 12.")
    ] = None,
    days: Annotated[int | None, typer.Option("--days", metavar="N", help="Days per pool, with --pools.")] = None,
) -> Outcome:
    """Make synthetic data: a four-year study, or any size.

    Without --pools and --days: 12 pools with 13,396 observations, late starts, gaps, regimes and spikes.
    """
    store = session.store
    data, line = add_sample(store, session.settings.seed, pools=pools, days=days)

    def view() -> Iterator[RenderableType]:
        yield line

    return Outcome(data, view)


def add_sample(
    store: Store, seed: int, *, pools: int | None = None, days: int | None = None
) -> tuple[dict[str, object], str]:
    """Put the sample into the store; raises UsageError where real observations are already in it."""
    from yieldlab.sample import reference_study, synthetic

    if (pools is None) != (days is None):
        raise UsageError("--pools and --days go together, as in --pools 5000 --days 1460")
    if store.exists and len(synthetic_pools(store)) < store.overview().height:
        raise UsageError(f"{store.folder} already holds real observations; name another folder with --data")
    if pools is None or days is None:
        metrics, assets = reference_study(seed=seed)
    else:
        metrics, assets = synthetic(pools, days, seed)
    if store.exists:
        refuse_another_sample(store, metrics, assets)
    appended = store.append(metrics, assets)
    line = (
        f"SYNTHETIC sample in {store.folder}: {metrics.height:,} observations of {assets.height:,} pools, "
        f"{appended.new:,} of them new"
    )
    data = {"synthetic": True, "observations": metrics.height, "pools": assets.height, "appended": asdict(appended)}
    return data, line


def refuse_another_sample(store: Store, metrics: pl.DataFrame, assets: pl.DataFrame) -> None:
    """Raise UsageError when the store has these synthetic pools with other observations: two made-up worlds in one."""
    key = ["pool_id", "valid_at"]
    known = store.metrics(columns=[*key, "apy_percent"]).join(assets, on="pool_id", how="semi")
    same = known.join(metrics, on=[*key, "apy_percent"], how="semi", nulls_equal=True)
    if known.height and not known.height == same.height == metrics.height:
        raise UsageError(f"{store.folder} already holds another synthetic sample; name another folder with --data")


@command(groups.data, "data list", settings=("data",))
def list_pools(session: Session) -> Outcome:
    """Show every pool with its days and rows."""
    store = session.store
    overview = store.overview()
    versions = store.versions()
    synthetic = synthetic_pools(store)
    tables = {name: asdict(version) for name, version in versions.items()}

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.data import overview_table, versions_line

        yield overview_table(overview)
        yield versions_line(overview, versions, synthetic)

    return Outcome({"pools": overview.to_dicts(), "tables": tables, "synthetic_pools": synthetic}, view)


@command(groups.data, "data compact", settings=("data",))
def compact(session: Session) -> Outcome:
    """Merge the tables' small files; no row changes."""
    compacted = session.store.compact()

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.data import compacted_lines

        yield from compacted_lines(compacted)

    return Outcome(asdict(compacted), view)


@command(groups.app, "sql", settings=("data",))
def sql(
    session: Session,
    query: Annotated[str, typer.Argument(metavar="SELECT", help="Over the views assets and yield_metrics.")],
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="Rows shown at most; 0 for all.")] = 1000,
) -> Outcome:
    """Ask the tables a question in SQL (DuckDB, read-only)."""
    answer = session.store.sql(query)
    shown = answer.head(limit) if limit > 0 else answer
    warnings = []
    if shown.height < answer.height:
        warnings.append(f"{shown.height:,} of {answer.height:,} rows are shown; --limit 0 shows all")

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.data import answer_table

        yield answer_table(shown)

    return Outcome({"columns": shown.columns, "rows": shown.to_dicts(), "height": answer.height}, view, None, warnings)


def synthetic_pools(store: Store) -> list[str]:
    """The pools with rows that the sample made."""
    from yieldlab.sample import SOURCE

    overview = store.overview()  # counted where the rows are, not in memory
    return overview.filter(overview["source"].str.split(", ").list.contains(SOURCE))["pool_id"].to_list()
