"""What do rows that come in add to a stored table? They are compared with what it has, part by part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import polars as pl

from yieldlab import schema
from yieldlab.errors import DataError
from yieldlab.store._revisions import Change, Layout, changes
from yieldlab.store._tables import Table

#: Rows that are compared at a time.
BATCH_ROWS = 1_000_000


def check_incoming(rows: pl.DataFrame, layout: Layout, needed: Sequence[str]) -> None:
    """Raise DataError for rows that lack a column or a key, or are observed before the instant they describe."""
    for name in (*layout.key, *needed):
        if name not in rows.columns:
            raise DataError(f"rows to store need a column {name!r}; they have {', '.join(rows.columns)}")
    for name in layout.key:
        if rows[name].null_count():
            raise DataError(f"{rows[name].null_count()} of the rows to store have no {name}")
    if "observed_at" not in rows.columns:
        return
    observed_at, valid_at = (rows[name].cast(schema.UTC) for name in ("observed_at", "valid_at"))
    if early := int((observed_at < valid_at).sum()):
        raise DataError(f"{early} of the rows to store have an observed_at before their valid_at")


def compared(table: Table, rows: pl.DataFrame, layout: Layout, *, now: datetime, ingested_at: datetime) -> Change:
    """What `rows` add to a table, compared with the stored rows that they could revise, part by part."""
    parts = [
        changes(_known(table, part, layout), part, layout=layout, now=now, ingested_at=ingested_at)
        for part in _batches(rows, layout.key[0])
    ]
    return Change(
        rows=pl.concat([part.rows for part in parts]),
        new=sum(part.new for part in parts),
        revised=sum(part.revised for part in parts),
        unchanged=sum(part.unchanged for part in parts),
        kept=sum(part.kept for part in parts),
    )


def _known(table: Table, rows: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    """The stored rows that could be revised by these."""
    if not table.exists or rows.is_empty():
        return pl.DataFrame(schema=layout.columns)
    spans = [pl.col(name).is_between(pl.lit(rows[name].min()), pl.lit(rows[name].max())) for name in layout.key]
    name = layout.key[0]
    return table.collect(table.scan().filter(*spans, pl.col(name).is_in(rows[name].unique().implode())))


def _batches(rows: pl.DataFrame, name: str) -> Iterator[pl.DataFrame]:
    """The rows in parts of whole pools or series, so that comparing takes memory for a part and not for all."""
    if rows.height <= BATCH_ROWS:
        yield rows
        return
    sizes = rows[name].value_counts(sort=False).sort(name)
    part = sizes["count"].cum_sum() // BATCH_ROWS
    for _, names in sizes.with_columns(part.alias("part")).group_by("part", maintain_order=True):
        yield rows.filter(pl.col(name).is_in(names[name].implode()))
