"""How does a file become rows of the store? Bad rows are set aside with a reason, the rest goes in at once."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import polars as pl

from yieldlab import schema
from yieldlab.admission import REASON, ROW, trimmed, typed, without_repetitions
from yieldlab.errors import DataError, UsageError
from yieldlab.store import Store

#: What a file's column may be called, first our own name. Upper and lower case, spaces, `_`, `-` and `.` do not matter.
ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "pool_id": ("pool_id", "pool", "id", "pool_address"),
        "time": ("time", "timestamp", "date", "datetime", "day", "ts", "valid_at"),
        "apy_percent": ("apy_percent", "apy", "apy_pct", "total_apy"),
        "apy_base_percent": ("apy_base_percent", "apy_base", "base_apy", "apy_base_pct"),
        "apy_reward_percent": ("apy_reward_percent", "apy_reward", "reward_apy", "apy_reward_pct"),
        "tvl_usd": ("tvl_usd", "tvl", "total_value_locked", "total_value_locked_usd"),
        "volume_24h_usd": ("volume_24h_usd", "volume_24h", "volume_usd_1d", "volume_usd", "volume"),
        "utilization_rate": ("utilization_rate", "utilization", "utilisation"),
        "volatility_24h": ("volatility_24h", "volatility"),
        "protocol": ("protocol", "project"),
        "symbol": ("symbol", "pool_symbol"),
        "chain": ("chain", "network", "blockchain"),
        "source": ("source", "data_source"),
        "observed_at": ("observed_at", "known_at"),
    }
)
REQUIRED = ("pool_id", "time", "apy_percent")


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a file's rows: `rows_read` is the sum of new, revised, unchanged, duplicates and all refused."""

    #: The file, or where the database is.
    path: Path | str
    rows_read: int
    new: int
    revised: int
    unchanged: int
    duplicates: int
    refused: dict[str, int]
    rejects_path: Path | None
    pools: int
    pools_new: int
    version: int
    #: Rows added that keep a value known before, because the file lacks a measured column.
    kept: int = 0
    #: Rows with white space around a text (pool_id, protocol, symbol, chain, source); it was taken off.
    trimmed: int = 0
    #: Our column -> the file's column that was read as it.
    columns: dict[str, str] = field(default_factory=dict)
    #: The file's columns that were not read.
    ignored: tuple[str, ...] = ()

    @property
    def refused_rows(self) -> int:
        return sum(self.refused.values())


def import_file(
    store: Store, path: Path | str, *, rejects_folder: Path | str | None = None, now: datetime | None = None
) -> Imported:
    """Read a Parquet or CSV file in long format, set bad rows aside and append the rest in one commit.

    Refused rows go with `reject_row` (1 = first row of data) and `reject_reason` into a Parquet file under
    `rejects_folder` (default: `rejects` in the data folder), whose name comes from the file and its content. `now` is
    the time of fetching: revisions are known from then on, and a row of a later time is refused.

    Raises DataError when the file cannot be read, lacks a needed column or has no usable row, UsageError for a file
    that is neither Parquet nor CSV. The store is then as it was.
    """
    path = Path(path)
    now = now or datetime.now(UTC)
    raw = _read(path)
    columns = match_columns(raw.columns, path.name)
    if raw.is_empty():
        raise DataError(f"{path} has a header and no rows")
    rows = typed(raw, columns, now)
    rows, duplicates = without_repetitions(rows)
    bad = rows.filter(pl.col(REASON).is_not_null())
    good = rows.filter(pl.col(REASON).is_null())
    refused = dict(bad.group_by(REASON).len().sort("len", REASON, descending=[True, False]).rows())
    rejects_path = None
    if bad.height:
        folder = Path(rejects_folder) if rejects_folder is not None else store.folder / "rejects"
        rejects_path = _set_aside(raw, bad.select(ROW, REASON).sort(ROW), path, folder)
    if good.is_empty():
        told = ", ".join(f"{reason}: {count}" for reason, count in refused.items())
        raise DataError(f"no row of {path} can be used ({told}); the rows and reasons are in {rejects_path}")
    metrics, assets = tables(good, columns, path.name)
    appended = store.append(metrics, assets, now=now)
    return Imported(
        path=path,
        rows_read=raw.height,
        new=appended.new,
        revised=appended.revised,
        unchanged=appended.unchanged,
        duplicates=duplicates,
        refused=refused,
        rejects_path=rejects_path,
        pools=assets.height,
        pools_new=appended.pools_new,
        version=appended.version,
        kept=appended.kept,
        trimmed=trimmed(raw, columns),
        columns=columns,
        ignored=tuple(name for name in raw.columns if name not in columns.values()),
    )


def match_columns(found: Sequence[str], where: str = "the file") -> dict[str, str]:
    """Our column -> the file's column, for those of ALIASES that are there; our own spelling goes before an alias.

    >>> match_columns(["timestamp", "pool", "APY", "tvlUsd", "il7d"])
    {'pool_id': 'pool', 'time': 'timestamp', 'apy_percent': 'APY', 'tvl_usd': 'tvlUsd'}

    Raises DataError when a needed column is missing or two columns could be the same one.
    """
    known = {_plain(alias): name for name, aliases in ALIASES.items() for alias in aliases}
    matches: dict[str, list[str]] = {}
    for column in found:
        if (name := known.get(_plain(column))) is not None:
            matches.setdefault(name, []).append(column)
    chosen: dict[str, str] = {}
    for name in ALIASES:
        candidates = matches.get(name, [])
        if name in candidates:
            chosen[name] = name
        elif len(candidates) > 1:
            listed = " and ".join(repr(candidate) for candidate in candidates)
            raise DataError(f"{where} has {listed}, which could each be {name!r}; keep one, or rename it to {name!r}")
        elif candidates:
            chosen[name] = candidates[0]
    for name in REQUIRED:
        if name not in chosen:
            others = ", ".join(ALIASES[name][1:])
            raise DataError(f"{where} needs a column {name!r} (or {others}); it has: {', '.join(found) or 'none'}")
    return chosen


def _plain(name: str) -> str:
    return re.sub(r"[\s_.\-]", "", name).lower()


# -- reading ----------------------------------------------------------------------------------------------------


def _read(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise DataError(f"{path} is not a file" if path.exists() else f"there is no file {path}")
    suffixes = "".join(path.suffixes).lower()
    try:
        if suffixes.endswith((".parquet", ".pq")):
            return pl.read_parquet(path, glob=False)
        if suffixes.endswith((".csv", ".csv.gz")):
            return _read_csv(path)
    except (pl.exceptions.PolarsError, ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:].upper()}: {_one_line(error)}") from error
    raise UsageError(f"cannot tell the format of {path}; its name must end in .parquet, .pq, .csv or .csv.gz")


def _read_csv(path: Path) -> pl.DataFrame:
    """All columns as text; empty fields are null. PyArrow, since it refuses rows that are too short."""
    import pyarrow as pa
    from pyarrow import csv

    parse = csv.ParseOptions(newlines_in_values=True)
    with csv.open_csv(path, parse_options=parse) as reader:
        names = reader.schema.names
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"the column {repeated[0]!r} is there twice")
    text = csv.ConvertOptions(
        column_types={name: pa.string() for name in names}, null_values=[""], strings_can_be_null=True
    )
    frame = pl.from_arrow(csv.read_csv(path, parse_options=parse, convert_options=text))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _one_line(error: Exception) -> str:
    """An error's first line without what a terminal could not show."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    shown = "".join(letter if letter.isprintable() and letter != "\ufffd" else "?" for letter in line)
    return shown if len(shown) <= 160 else shown[:159] + "…"


# -- what leaves --------------------------------------------------------------------------------------------------


def tables(good: pl.DataFrame, columns: Mapping[str, str], name: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What `Store.append` takes, `(metrics, assets)`, of rows that may go in; `name` is the source of those without."""
    source = pl.col("source").fill_null(name) if "source" in columns else pl.lit(name).alias("source")
    metrics = good.select(
        "pool_id",
        pl.col("time").alias("valid_at"),
        *([pl.col("observed_at")] if "observed_at" in columns else []),
        *(column for column in schema.MEASURED if column in columns),
        source,
    )
    told = [column for column in schema.DESCRIBED if column in columns]
    assets = (
        good.with_columns(source)
        .group_by("pool_id", maintain_order=True)
        .agg(pl.col(*told, "source").drop_nulls().last())
        .select("pool_id", *told, "source")
    )
    return metrics, assets


def _set_aside(raw: pl.DataFrame, bad: pl.DataFrame, path: Path, folder: Path) -> Path:
    """Write the refused rows as they were; the same file gives the same name, so that nothing piles up."""
    try:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=4)).hexdigest()
        target = folder / f"{path.name.split('.')[0]}-{content}.parquet"
        original = raw.drop(ROW, REASON, strict=False)
        rejects = original[bad[ROW] - 1].with_columns(bad[ROW], bad[REASON])
        folder.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            rejects.write_parquet(partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"cannot write the refused rows to {folder} ({_one_line(error)}); nothing was added") from error
    return target
