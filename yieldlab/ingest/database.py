"""How do the rows of a PostgreSQL database become rows of the store? By the same checks as those of a file."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from yieldlab.admission import REASON, ROW, trimmed, typed, without_repetitions
from yieldlab.errors import DataError
from yieldlab.ingest import ALIASES, Imported, tables
from yieldlab.store import Appended, Store
from yieldlab.store.postgres import Database, Reading, reading

if TYPE_CHECKING:
    import pyarrow as pa


def import_database(
    store: Store, where: Database, *, rejects_folder: Path | str | None = None, now: datetime | None = None
) -> Imported:
    """Read all rows of a database, set bad ones aside and append the rest.

    Everything is read and checked before anything is appended: a connection that breaks leaves the store as it was.
    What arrives waits in a nameless file in the data folder, so that memory holds one part of the rows at a time; each
    part (whole pools, see `store.postgres.PART_ROWS`) is one commit, under one lock for all. An import that was killed
    between two of them is completed by the next one.

    Refused rows go with `reject_row` and `reject_reason` into a Parquet file under `rejects_folder` (default:
    `rejects` in the data folder), whose name comes from the database's and their content. `now` is the time of
    fetching.

    Raises DataError when the database cannot be read, has no rows or none that can be used.
    """
    now = now or datetime.now(UTC)
    reasons: Counter[str] = Counter()
    rows_read = duplicates = rows_trimmed = 0
    columns: dict[str, str] = {}
    with ExitStack() as stack:
        with reading(where) as look:
            good, bad = (stack.enter_context(_Waiting(store.folder)) for _ in range(2))
            for raw in look.parts():
                columns = {name: name for name in ALIASES if name in raw.columns}
                rows, repeated = without_repetitions(typed(raw, columns, now))
                refused = rows.filter(pl.col(REASON).is_not_null()).sort(ROW)
                reasons.update(refused[REASON].to_list())
                bad.add(_as_it_was(raw, refused, rows_read))
                good.add(rows.filter(pl.col(REASON).is_null()))
                rows_read += raw.height
                duplicates += repeated
                rows_trimmed += trimmed(raw, columns)
        if not rows_read:
            raise DataError(f"the table yield_metrics of {where.shown} has no rows")
        counted = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
        rejects_path = None
        if bad.rows:
            folder = Path(rejects_folder) if rejects_folder is not None else store.folder / "rejects"
            rejects_path = bad.keep(folder, look.name)
        if not good.rows:
            told = ", ".join(f"{reason}: {number}" for reason, number in counted.items())
            raise DataError(f"no row of {where.shown} can be used ({told}); the rows and reasons are in {rejects_path}")
        appended, pools = _append(store, good, columns, look, now)
    return Imported(
        path=where.shown,
        rows_read=rows_read,
        new=appended.new,
        revised=appended.revised,
        unchanged=appended.unchanged,
        duplicates=duplicates,
        refused=counted,
        rejects_path=rejects_path,
        pools=pools,
        pools_new=appended.pools_new,
        version=appended.version,
        kept=appended.kept,
        trimmed=rows_trimmed,
        columns=columns,
        ignored=look.ignored,
    )


def _append(
    store: Store, good: _Waiting, columns: dict[str, str], look: Reading, now: datetime
) -> tuple[Appended, int]:
    """Store the parts one by one; what all of them did, and of how many pools they were."""
    done: list[Appended] = []
    pools = 0
    with store.writing():
        for part in good.parts():
            metrics, assets = tables(part, columns, look.name)
            done.append(store.append(metrics, assets, now=now))
            pools += assets.height
    sums = {
        name: sum(getattr(one, name) for one in done) for name in ("new", "revised", "unchanged", "pools_new", "kept")
    }
    return Appended(version=done[-1].version, **sums), pools


def _as_it_was(raw: pl.DataFrame, refused: pl.DataFrame, rows_before: int) -> pl.DataFrame:
    """The refused rows as the database gave them, all as text, with their number among all rows and the reason."""
    rows = raw[refused[ROW] - 1].with_columns(
        pl.col(pl.Datetime).dt.to_string("iso:strict"), pl.exclude(pl.Datetime).cast(pl.String)
    )
    return rows.with_columns(refused[ROW] + rows_before, refused[REASON])


class _Waiting:
    """Frames of one schema, on disk until they are needed; gone when closed, and when the process is."""

    def __init__(self, folder: Path) -> None:
        self.rows = 0
        self._content = hashlib.blake2b(digest_size=4)
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed with this
        except OSError as error:
            raise _cannot_write("the data folder", folder, error) from error

    def __enter__(self) -> _Waiting:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, frame: pl.DataFrame) -> None:
        """Put a frame behind the others; an empty one is none."""
        from pyarrow import ipc

        if frame.is_empty():
            return
        table = frame.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
        try:
            if self._writer is None:
                self._writer = ipc.new_stream(self._file, table.schema, options=ipc.IpcWriteOptions(compression="zstd"))
            self._writer.write_table(table)
        except OSError as error:
            raise _cannot_write("the data folder", self._folder, error) from error
        self._content.update(frame.hash_rows().to_numpy().tobytes())
        self.rows += frame.height

    def parts(self) -> Iterator[pl.DataFrame]:
        """The frames as they were added."""
        for batch in self._batches():
            part = pl.from_arrow(batch)
            assert isinstance(part, pl.DataFrame)
            yield part

    def keep(self, folder: Path, name: str) -> Path:
        """Write all rows to a Parquet file under `folder`; the same rows give the same file."""
        from pyarrow import parquet

        target = folder / f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)}-{self._content.hexdigest()}.parquet"
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            batches = self._batches()
            try:
                first = next(batches)
                with parquet.ParquetWriter(partial, first.schema, compression="zstd") as writer:
                    writer.write_batch(first)
                    for batch in batches:
                        writer.write_batch(batch)
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write("the folder of refused rows", folder, error) from error
        return target

    def _batches(self) -> Iterator[pa.RecordBatch]:
        from pyarrow import ipc

        if self._writer is None:
            return
        self._writer.close()
        self._file.seek(0)
        with ipc.open_stream(self._file) as stream:
            yield from stream


def _cannot_write(what: str, folder: Path, error: OSError) -> DataError:
    return DataError(f"cannot write to {what} {folder} ({error.strerror or error}); nothing was added")
