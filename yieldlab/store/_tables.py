"""How does one Delta table take rows, give its files and stay whole? The one home of deltalake and of the lock."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import polars as pl

from yieldlab.errors import DataError, UsageError

if TYPE_CHECKING:
    from deltalake import DeltaTable, PostCommitHookProperties, WriterProperties
    from filelock import FileLock

#: How long a write waits for another process's write to end.
LOCK_SECONDS = 600.0
#: Files of table versions younger than this are kept when a table is compacted: no reader takes so long.
RETENTION_HOURS = 7 * 24
#: A table writes a checkpoint of its log every so many versions, so that opening it stays fast.
CHECKPOINT_EVERY = 50
#: Rows per row group: the unit that readers decode side by side.
ROW_GROUP = 512 * 1024
ZSTD_LEVEL = 3
#: Room for the log and for what a small file has besides its rows.
SPARE_BYTES = 1 << 20
#: Characters of a path that the Delta library cannot carry, or that DuckDB takes for a pattern.
UNUSABLE = "[]|^%\\*?"


@dataclass(frozen=True, slots=True)
class TableState:
    """What one table is made of right now."""

    version: int
    files: int
    rows: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Table:
    """One Delta table: `folder` holds its Parquet files and its log."""

    folder: Path
    schema: pl.Schema

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def exists(self) -> bool:
        """Whether a first commit was made; a folder left by an import killed before it is no table yet."""
        log = self.folder / "_delta_log"
        return any(log.glob("*.json")) or any(log.glob("*.checkpoint*.parquet"))

    def files(self) -> list[Path]:
        """The Parquet files of the latest version, in the order of their names."""
        with self._reading():
            return self._files()

    def scan(self) -> pl.LazyFrame:
        """All rows ever appended, lazily. Collect inside `reading()` so that a broken file becomes one sentence."""
        paths = self.files()
        if not paths:
            return pl.DataFrame(schema=self.schema).lazy()
        return pl.scan_parquet(paths, glob=False)

    def collect(self, query: pl.LazyFrame) -> pl.DataFrame:
        """The rows of a query over `scan()`. Raises DataError when a file is missing or broken."""
        with self._reading():
            return query.collect()

    def state(self) -> TableState:
        """Version, files, rows and bytes."""
        with self._reading():
            table = self._open()
            added = pl.DataFrame(table.get_add_actions(flatten=True))
            return TableState(
                version=table.version(),
                files=added.height,
                rows=int(added["num_records"].sum()),
                size_bytes=int(added["size_bytes"].sum()),
            )

    def append(self, rows: pl.DataFrame) -> None:
        """Add rows in one atomic commit, or nothing at all. The caller holds the lock."""
        from deltalake import write_deltalake

        before = set(self.folder.glob("*.parquet"))
        try:
            with self._writing():
                self._find_room(rows)
                write_deltalake(
                    str(self.folder),
                    rows.select(self.schema.names()),
                    mode="append",
                    writer_properties=_writer_properties(),
                    post_commithook_properties=_no_hooks(),
                )
        except BaseException:
            self._drop_leftovers(before)
            raise
        self._checkpoint_now_and_then()

    def compact(self) -> tuple[TableState, TableState]:
        """Merge small files and remove those that no recent version needs; rows and their clocks stay as they are."""
        before = self.state()
        with self._writing():
            table = self._open()
            table.optimize.compact(writer_properties=_writer_properties(), post_commithook_properties=_no_hooks())
            table = self._open()
            table.create_checkpoint()
            # full=True also takes the files that a killed import left outside every version.
            table.vacuum(
                retention_hours=RETENTION_HOURS, dry_run=False, full=True, post_commithook_properties=_no_hooks()
            )
            # Entries of the log that lie before a checkpoint and are older than the table keeps them (30 days).
            table.cleanup_metadata()
        return before, self.state()

    def _open(self) -> DeltaTable:
        from deltalake import DeltaTable

        table = DeltaTable(str(self.folder))
        held = {field.name for field in table.schema().fields}
        missing = [name for name in self.schema.names() if name not in held]
        if missing:
            raise DataError(f"the table {self.folder} has no column {missing[0]!r}; it was not written by this version")
        return table

    def _files(self) -> list[Path]:
        # Not file_uris(): those are percent-encoded, so a folder with a space or an accent in its name is not found.
        paths = pl.DataFrame(self._open().get_add_actions(flatten=True))["path"].sort()
        return [self.folder / unquote(path) for path in paths]

    def _find_room(self, rows: pl.DataFrame) -> None:
        """Where the disk may be too small, write for trial first: the Delta writer fails with noise on stderr."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.folder).free > rows.estimated_size() + SPARE_BYTES:
            return
        trial = self.folder / ".trial"
        try:
            rows.write_parquet(trial, compression_level=ZSTD_LEVEL)
        finally:
            trial.unlink(missing_ok=True)

    def _drop_leftovers(self, before: set[Path]) -> None:
        """Take away what a failed write left behind: on a full disk its bytes are the ones that are missing."""
        try:
            kept = set(self.files()) if self.exists else set()
            for path in set(self.folder.glob("*.parquet")) - before - kept:
                path.unlink(missing_ok=True)
        except (DataError, OSError):  # the first error is the one to tell; a leftover is in nobody's way
            return

    def _checkpoint_now_and_then(self) -> None:
        try:
            with self._writing():
                table = self._open()
                if table.version() and table.version() % CHECKPOINT_EVERY == 0:
                    table.create_checkpoint()
        except DataError:  # the rows are committed; a checkpoint only makes opening faster and is tried again later
            return

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with _one_sentence(
            f"the table {self.folder} cannot be read",
            "restore it from a copy, or remove this one folder and bring its rows in again (rows of the feed: "
            "`yieldlab data rebuild`)",
        ):
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with _one_sentence(f"cannot write to the table {self.folder}", "nothing was added to it"):
            yield


class WriteLock:
    """The one lock of the store in `folder`; the system lets go of it when its process dies."""

    __slots__ = ("_lock", "folder")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: FileLock | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it; in one thread several times over if need be. Raises DataError when another process does not let go,
        UsageError for a folder that tables cannot have."""
        from filelock import FileLock, Timeout

        folder = self.folder
        if unusable := sorted(set(str(folder.absolute())) & set(UNUSABLE)):
            raise UsageError(
                f"the path of the data folder {str(folder)!r} has a {unusable[0]!r}, which tables cannot have; "
                "rename it"
            )
        with _one_sentence(f"cannot write to the data folder {folder}", "nothing was added"):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock or FileLock(folder / ".lock", timeout=LOCK_SECONDS)
            try:
                self._lock.acquire()
            except Timeout:
                raise DataError(
                    f"another process has been writing to {folder} for {LOCK_SECONDS:.0f} s; try again when it is done"
                ) from None
        try:
            yield
        finally:
            self._lock.release()


def first_line(error: BaseException) -> str:
    """The first line of an error's text, shortened to what fits in a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0].rstrip(".") if lines else type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


@contextmanager
def _one_sentence(what: str, advice: str) -> Iterator[None]:
    try:
        yield
    except (DataError, UsageError):
        raise
    except BaseException as error:
        # The libraries below also fail with "panics", which are no Exception; interrupts pass through untouched.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if _disk_is_full(error):
            raise DataError(f"{what}: the disk is full or a file may not grow further; {advice}") from error
        raise DataError(f"{what} ({first_line(error)}); {advice}") from error


def _disk_is_full(error: BaseException) -> bool:
    text = str(error)
    full = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(f"os error {code}" in text for code in full)


def _writer_properties() -> WriterProperties:
    from deltalake import WriterProperties

    return WriterProperties(compression="ZSTD", compression_level=ZSTD_LEVEL, max_row_group_size=ROW_GROUP)


def _no_hooks() -> PostCommitHookProperties:
    # A hook that fails after the commit would report a failure of rows that are safely in.
    from deltalake import PostCommitHookProperties

    return PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
