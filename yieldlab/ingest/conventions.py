"""How does a file of conventions become rows of their table? Each row is checked; bad ones are set aside.

The columns are those of `schema.CONVENTIONS`: project, valid_from and base_kind are needed, reward_kind, tvl_kind and
source may be absent or empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from yieldlab import schema
from yieldlab.admission import REASON, ROW, instants, texts
from yieldlab.errors import DataError, did_you_mean
from yieldlab.ingest import _read, _set_aside

_COLUMNS = tuple(name for name in schema.CONVENTIONS if name != "ingested_at")
_NEEDED = ("project", "valid_from", "base_kind")
_KEY = ("project", "valid_from")
#: What `data conventions` tells beside a convention, so that its own output can be given back.
_TOLD_BESIDE = ("ingested_at", "recorded")
_REPLACED = "replaced by a later row of the same project and valid_from"


@dataclass(frozen=True, slots=True)
class ReadConventions:
    """The usable rows of a file, and what became of the others."""

    rows: pl.DataFrame
    rows_read: int
    refused: dict[str, int]
    rejects_path: Path | None

    @property
    def refused_rows(self) -> int:
        return sum(self.refused.values())


@dataclass(frozen=True, slots=True)
class Allowed:
    """The words that a convention may use, and how the sources of bundled ones begin."""

    kinds: tuple[str, ...]
    tvl_kinds: tuple[str, ...]
    bundled: str


def read_conventions(
    path: Path | str, allowed: Allowed, bundled: pl.DataFrame, *, rejects_folder: Path, now: datetime | None = None
) -> ReadConventions:
    """Read a CSV or Parquet file; refused rows go with their reasons into a file under `rejects_folder`.

    A row without a source takes the file's name. One that has the source of a bundled row but differs from all of
    `bundled` is refused: a correction has to say where it is from.

    Raises DataError when the file cannot be read, lacks a needed column, has an unknown one or no usable row.
    """
    path = Path(path)
    raw = _read(path)
    for name in raw.columns:
        if name not in (*_COLUMNS, *_TOLD_BESIDE, ROW, REASON):
            raise DataError(f"{path} has a column {name!r} that a convention does not{did_you_mean(name, _COLUMNS)}")
    for name in _NEEDED:
        if name not in raw.columns:
            raise DataError(f"{path} needs a column {name!r}; it has: {', '.join(raw.columns) or 'none'}")
    if raw.is_empty():
        raise DataError(f"{path} has a header and no rows")
    rows = _checked(raw, allowed, bundled, path.name, now or datetime.now(UTC))
    bad = rows.filter(pl.col(REASON).is_not_null())
    refused = dict(bad.group_by(REASON).len().sort("len", REASON, descending=[True, False]).rows())
    rejects_path = _set_aside(raw, bad.select(ROW, REASON), path, rejects_folder) if bad.height else None
    good = rows.filter(pl.col(REASON).is_null()).select(_COLUMNS)
    if good.is_empty():
        told = ", ".join(f"{reason}: {count}" for reason, count in refused.items())
        raise DataError(f"no row of {path} can be used ({told}); the rows and reasons are in {rejects_path}")
    return ReadConventions(good, raw.height, refused, rejects_path)


def _checked(raw: pl.DataFrame, allowed: Allowed, bundled: pl.DataFrame, name: str, now: datetime) -> pl.DataFrame:
    """Our columns in our types, `reject_row`, and `reject_reason`: null for a row that may go in."""
    absent = pl.Series([None] * raw.height, dtype=pl.String)
    told = {column: texts(raw[column]) if column in raw.columns else absent for column in _COLUMNS}
    since = instants(raw["valid_from"])
    frame = pl.DataFrame(
        {
            **told,
            "valid_from": since,
            "source": told["source"].fill_null(name),
            ROW: pl.Series(range(1, raw.height + 1), dtype=pl.Int64),
        }
    )
    same = (
        frame.select(_COLUMNS)
        .join(
            bundled.with_columns(pl.lit(True).alias("same")),
            on=list(_COLUMNS),
            how="left",
            nulls_equal=True,
            maintain_order="left",
        )["same"]
        .fill_null(value=False)
    )
    reasons = [
        (told["project"].is_null(), "missing project"),
        (told["valid_from"].is_null(), "missing valid_from"),
        (since.is_null(), "unreadable valid_from"),
        (since > now, "valid_from in the future"),
        (told["base_kind"].is_null(), "missing base_kind"),
        (~told["base_kind"].is_in(allowed.kinds), f"base_kind is none of {', '.join(allowed.kinds)}"),
        (~told["reward_kind"].is_in(allowed.kinds), f"reward_kind is none of {', '.join(allowed.kinds)}"),
        (~told["tvl_kind"].is_in(allowed.tvl_kinds), f"tvl_kind is none of {', '.join(allowed.tvl_kinds)}"),
        (
            frame["source"].str.starts_with(allowed.bundled) & ~same,
            "changed, but with the source of a bundled row; say where the correction is from",
        ),
    ]
    first = pl.coalesce(pl.when(pl.lit(mask.fill_null(value=False))).then(pl.lit(reason)) for mask, reason in reasons)
    frame = frame.with_columns(first.alias(REASON))
    good = frame.filter(pl.col(REASON).is_null())
    last = good.group_by(_KEY).agg(pl.col(ROW).max())
    replaced = pl.col(REASON).is_null() & ~pl.col(ROW).is_in(last[ROW].implode())
    return frame.with_columns(pl.when(replaced).then(pl.lit(_REPLACED)).otherwise(REASON).alias(REASON))
