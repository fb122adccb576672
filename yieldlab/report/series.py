"""How series beside the pools and conventions look: what a file or a service gave, and what is in force."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType

from yieldlab.report.data import day
from yieldlab.report.terminal import count, table, words

if TYPE_CHECKING:
    import polars as pl

    from yieldlab.collect.conventions import Mended
    from yieldlab.collect.series import Fetched
    from yieldlab.ingest.conventions import ReadConventions
    from yieldlab.ingest.series import ImportedSeries

_MANY = 10


def imported_lines(imported: ImportedSeries) -> Iterator[RenderableType]:
    """What one file gave."""
    refused = imported.refused_rows
    yield (
        f"{imported.path}: {imported.rows_read:,} rows read, {imported.new:,} new, {imported.revised:,} revised, "
        f"{imported.unchanged:,} already known, {imported.duplicates:,} repeated, {imported.empty:,} without a value, "
        f"{refused:,} refused"
    )
    shown = ", ".join(imported.series[:_MANY])
    more = f" and {len(imported.series) - _MANY:,} more" if len(imported.series) > _MANY else ""
    yield f"Series: {shown}{more}; read from the column {imported.columns['value']}"
    if imported.rows_left_out:
        yield f"Rows left out by --where: {imported.rows_left_out:,}"
    if imported.ignored:
        yield f"Columns not read: {', '.join(imported.ignored)}"
    if refused:
        yield words(["refused because", "rows"], [[reason, f"{n:,}"] for reason, n in imported.refused.items()])
        yield f"The refused rows, each with its reason, are in {imported.rejects_path}"


def fetched_lines(done: Sequence[Fetched]) -> Iterator[RenderableType]:
    """One line per series, then why values were refused."""
    rows = [
        [
            fetched.name,
            fetched.what,
            day(fetched.first),
            day(fetched.last),
            f"{fetched.new:,}",
            f"{fetched.revised:,}",
            f"{fetched.unchanged:,}",
            f"{fetched.refused_rows:,}",
            f"{fetched.missing:,}",
            "failed" if fetched.error is not None else "",
        ]
        for fetched in done
    ]
    yield table(
        ["series", "from", "first", "last", "new", "revised", "already known", "refused", "missing days", ""],
        rows,
        left=2,
    )
    reasons = [[each.name, reason, f"{n:,}"] for each in done for reason, n in each.refused.items()]
    if reasons:
        yield words(["series", "refused because", "values"], reasons)


def conventions_table(conventions: pl.DataFrame) -> RenderableType:
    """One line per project and day from which on it holds."""
    rows = [
        [
            row["project"],
            "always" if row["valid_from"].year == 1970 else day(row["valid_from"]),
            row["base_kind"],
            row["reward_kind"] or "-",
            row["tvl_kind"] or "-",
            row["source"] or "-",
            "" if row["recorded"] else "not recorded yet",
        ]
        for row in conventions.iter_rows(named=True)
    ]
    return words(["project", "from", "base", "reward", "TVL", "source", ""], rows)


def mended_lines(read: ReadConventions, mended: Mended) -> Iterator[RenderableType]:
    """What a file of conventions did."""
    yield (
        f"{count(read.rows_read, 'row')} read, {mended.new:,} new, {mended.changed:,} changed, "
        f"{mended.unchanged:,} as they were, {read.refused_rows:,} refused"
    )
    if read.refused_rows:
        yield words(["refused because", "rows"], [[reason, f"{n:,}"] for reason, n in read.refused.items()])
        yield f"The refused rows, each with its reason, are in {read.rejects_path}"
