"""How does a file become a series beside the pools? One column of values, one of times; bad rows are set aside."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from yieldlab.admission import REASON, ROW, texts
from yieldlab.admission.series import refusals, typed_series, usable
from yieldlab.errors import DataError, UsageError, did_you_mean
from yieldlab.ingest import ALIASES, _plain, _read, _set_aside
from yieldlab.store import Store

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class ImportedSeries:
    """What became of a file's rows: `rows_read` is the sum of new, revised, unchanged, duplicates, empty and refused.

    `empty` rows have no value: nothing was observed then, and nothing is stored. `rows_left_out` were not asked for.
    """

    path: Path
    series: tuple[str, ...]
    series_new: int
    rows_read: int
    new: int
    revised: int
    unchanged: int
    duplicates: int
    empty: int
    rows_left_out: int
    refused: dict[str, int]
    rejects_path: Path | None
    version: int
    #: Our column -> the file's column that was read as it.
    columns: dict[str, str]
    #: The file's columns that were not read.
    ignored: tuple[str, ...]

    @property
    def refused_rows(self) -> int:
        return sum(self.refused.values())


def import_series(
    store: Store,
    path: Path | str,
    *,
    name: str,
    value: str | None = None,
    where: Mapping[str, str] | None = None,
    now: datetime | None = None,
) -> ImportedSeries:
    """Append the values of a Parquet or CSV file to the series `name`; refused rows are kept as `import_file` does it,
    under `rejects/<name>` in the data folder.

    `name` may hold columns of the file in braces: "price_{symbol}" makes one series for each symbol. `value` names
    the column of values; without it that is `value`, or else the only column that is nothing else. With `where` only
    rows are read whose columns have these texts.

    Raises DataError when the file cannot be read, lacks a column or has no usable row, UsageError for a name that
    cannot be. The store is then as it was.
    """
    path = Path(path)
    now = now or datetime.now(UTC)
    raw = _read(path)
    where = where or {}
    chosen = _chosen(raw, where, path)
    columns = _columns([column for column in chosen.columns if column != ROW], name, value, path, where)
    given = chosen.select(_names(chosen, name), *(pl.col(column).alias(ours) for ours, column in columns.items()), ROW)
    rows = typed_series(given, now).with_columns(given[ROW])
    bad = rows.filter(pl.col(REASON).is_not_null())
    good = usable(rows)
    duplicates = int(rows["repeated"].sum())
    refused = refusals(rows)
    rejects_path = None
    if bad.height:
        # One file may be read as several series; each keeps its own refused rows.
        folder = store.folder / "rejects" / re.sub(r"[^\w.-]+", "_", name)
        rejects_path = _set_aside(raw, bad.select(ROW, REASON), path, folder)
    if good.is_empty():
        told = ", ".join(f"{reason}: {count}" for reason, count in refused.items()) or "no row has a value"
        kept = f"; the rows and reasons are in {rejects_path}" if rejects_path else ""
        raise DataError(f"no row of {path} can be used ({told}){kept}")
    observed = [pl.col("observed_at")] if "observed_at" in columns else []
    source = pl.col("source").fill_null(path.name) if "source" in columns else pl.lit(path.name).alias("source")
    appended = store.append_series(
        good.select("name", pl.col("time").alias("valid_at"), "value", *observed, source), now=now
    )
    read = {*columns.values(), *_PLACEHOLDER.findall(name), *where}
    return ImportedSeries(
        path=path,
        series=tuple(good["name"].unique().sort()),
        series_new=appended.pools_new,
        rows_read=rows.height,
        rows_left_out=raw.height - rows.height,
        new=appended.new,
        revised=appended.revised,
        unchanged=appended.unchanged,
        duplicates=duplicates,
        empty=rows.height - good.height - duplicates - bad.height,
        refused=refused,
        rejects_path=rejects_path,
        version=appended.version,
        columns=columns,
        ignored=tuple(column for column in raw.columns if column not in read),
    )


def _columns(found: Sequence[str], name: str, value: str | None, path: Path, where: Collection[str]) -> dict[str, str]:
    """Our column (time, value, observed_at, source) -> the file's column."""
    parts = _PLACEHOLDER.findall(name)
    if not _PLACEHOLDER.sub("", name).strip() and not parts:
        raise UsageError("--name is empty; give the series a name, as gas_gwei")
    if re.search(r"[{}]", _PLACEHOLDER.sub("", name)):
        raise UsageError(f"--name {name!r} has a brace too many; a column of the file is named as in price_{{symbol}}")
    for part in parts:
        if part not in found:
            raise UsageError(f"--name {name!r}: {path} has no column {part!r}{did_you_mean(part, found)}")
    columns: dict[str, str] = {}
    for wanted in ("time", "observed_at", "source"):
        spelled = {_plain(alias) for alias in ALIASES[wanted]}
        candidates = [column for column in found if _plain(column) in spelled and column != value]
        if wanted in candidates:
            columns[wanted] = wanted
        elif len(candidates) > 1:
            listed = " and ".join(repr(candidate) for candidate in candidates)
            raise DataError(f"{path} has {listed}, which could each be {wanted!r}; keep one, or rename it")
        elif candidates:
            columns[wanted] = candidates[0]
    if "time" not in columns:
        others = ", ".join(ALIASES["time"][1:])
        raise DataError(f"{path} needs a column 'time' (or {others}); it has: {', '.join(found) or 'none'}")
    left = [column for column in found if column not in (*columns.values(), *parts, *where)]
    if value is not None:
        if value not in found:
            raise UsageError(f"--value: {path} has no column {value!r}{did_you_mean(value, found)}")
        return columns | {"value": value}
    chosen = [column for column in left if column == "value"] or left
    if len(chosen) != 1:
        which = f"it could be any of {', '.join(left)}" if left else "there is none"
        raise DataError(f"{path} does not tell which column has the values ({which}); name it with --value")
    return columns | {"value": chosen[0]}


def _chosen(raw: pl.DataFrame, where: Mapping[str, str], path: Path) -> pl.DataFrame:
    """The rows that are asked for, with their numbers in the file."""
    if raw.is_empty():
        raise DataError(f"{path} has a header and no rows")
    numbered = raw.drop(ROW, REASON, strict=False).with_columns(
        pl.Series(ROW, range(1, raw.height + 1), dtype=pl.Int64)
    )
    for column, text in where.items():
        if column not in raw.columns:
            raise UsageError(f"--where: {path} has no column {column!r}{did_you_mean(column, raw.columns)}")
        numbered = numbered.filter(texts(numbered[column]) == text)
        if numbered.is_empty():
            raise DataError(f"no row of {path} has {text!r} in its column {column!r}")
    return numbered


def _names(raw: pl.DataFrame, name: str) -> pl.Series:
    """(rows,) the series of each row; null where a column that the name needs is empty."""
    pieces = [
        pl.lit(text) if place % 2 == 0 else pl.lit(texts(raw[text]))
        for place, text in enumerate(_PLACEHOLDER.split(name.strip()))
    ]
    return raw.select(pl.concat_str(pl.repeat("", raw.height), *pieces).alias("name"))["name"]
