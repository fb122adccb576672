"""How data looks: what an import did, which pools there are, what the tables hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import RenderableType

from yieldlab.report.terminal import count, size, table, words

if TYPE_CHECKING:
    import polars as pl

    from yieldlab.ingest import Imported
    from yieldlab.store import Compacted, TableState


def imported_lines(imported: Imported) -> Iterator[RenderableType]:
    """What one file gave."""
    refused = imported.refused_rows
    yield (
        f"{imported.path}: {imported.rows_read:,} rows read, {imported.new:,} new, {imported.revised:,} revised, "
        f"{imported.unchanged:,} already known, {imported.duplicates:,} repeated, {refused:,} refused; "
        f"{count(imported.pools, 'pool')}"
    )
    if imported.trimmed:
        yield f"White space around a name was taken off in {count(imported.trimmed, 'row')}"
    if imported.kept:
        yield f"A column that the file lacks keeps what was known before in {count(imported.kept, 'row')}"
    if imported.ignored:
        yield f"Columns not read: {', '.join(imported.ignored)}"
    if refused:
        yield words(["refused because", "rows"], [[reason, f"{n:,}"] for reason, n in imported.refused.items()])
        yield f"The refused rows, each with its reason, are in {imported.rejects_path}"


def overview_table(overview: pl.DataFrame) -> RenderableType:
    """One line per pool."""
    rows = [
        [
            *(row[name] or "-" for name in ("pool_id", "protocol", "symbol", "chain")),
            day(row["first"]),
            day(row["last"]),
            f"{row['days']:,}",
            f"{row['rows']:,}",
            f"{row['revisions']:,}",
        ]
        for row in overview.iter_rows(named=True)
    ]
    names = ["pool", "protocol", "symbol", "chain", "first", "last", "days", "rows", "revisions"]
    return table(names, rows, left=4)


def versions_line(
    overview: pl.DataFrame, versions: Mapping[str, TableState], synthetic: Sequence[str]
) -> RenderableType:
    """How many pools and rows, and the state of each table."""
    parts = [f"{count(overview.height, 'pool')}, {overview['rows'].sum():,} observations"]
    if synthetic:
        parts.append(synthetic_note(len(synthetic), overview.height))
    parts += [
        f"{name}: version {state.version}, {count(state.files, 'file')}, {size(state.size_bytes)}"
        for name, state in versions.items()
    ]
    return "; ".join(parts)


def compacted_lines(compacted: Compacted) -> Iterator[RenderableType]:
    """Each table before and after."""
    for name, before in compacted.before.items():
        after = compacted.after[name]
        yield (
            f"{name}: {count(before.files, 'file')} became {count(after.files, 'file')}, "
            f"{size(before.size_bytes)} became {size(after.size_bytes)}; {after.rows:,} rows, version {after.version}"
        )


def answer_table(answer: pl.DataFrame) -> RenderableType:
    """The rows of a query as they are."""
    numeric = [dtype.is_numeric() for dtype in answer.dtypes]
    left = len(numeric) if not any(numeric) else numeric.index(True)
    return table(answer.columns, [[cell(value) for value in row] for row in answer.rows()], left=left)


def synthetic_note(synthetic: int, pools: int) -> str:
    """The label of made-up data: all of it, or how much."""
    return "SYNTHETIC data" if synthetic == pools else f"SYNTHETIC: {synthetic:,} of {pools:,} pools"


def day(instant: datetime | None) -> str:
    """The UTC day of an instant."""
    return "-" if instant is None else instant.date().isoformat()


def cell(value: object) -> str:
    """One value of a table of unknown columns."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    return str(value)
