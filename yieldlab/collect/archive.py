"""Where are the feed's answers kept as they came, and for how long?

An answer lies compressed under `<folder>/<hh>/<sha256 of its body>.json.gz`, so that the same content is kept once and
a damaged file is noticed. A file's own time is when its content was last received. When and from where it came is in
the table `fetches`, which is written after the rows that the answer brought: what is there was taken in completely.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Protocol

import polars as pl

from yieldlab import schema
from yieldlab.errors import DataError
from yieldlab.store import Store

#: What a killed process left half written is taken away after this long.
LEFTOVER_AGE = timedelta(days=1)

#: The folder beside the archive's where the collector notes answers that wait; their hashes' heads end the names.
WAITING_FOLDER = "collector"

_HASH = re.compile(r"[0-9a-f]{64}")


class Received(Protocol):
    """What the archive has to know of an answer."""

    @property
    def body(self) -> bytes: ...
    @property
    def content_hash(self) -> str: ...
    @property
    def fetched_at(self) -> datetime: ...


class Fetch(NamedTuple):
    """One row of the table `fetches`."""

    fetched_at: datetime
    url: str
    kind: str
    key: str | None
    status: int
    content_hash: str
    size_bytes: int


def fetch_rows(fetches: Iterable[Fetch]) -> pl.DataFrame:
    """Rows for `Store.record("fetches", ...)`."""
    return pl.DataFrame(list(fetches), schema=schema.FETCHES, orient="row")


def needed(fetches: pl.DataFrame, *, older_than: datetime) -> pl.Series:
    """(rows,) whether a fetch is recent, or the newest of its kind and key: answers that expiry spares."""
    newest = pl.col("fetched_at") == pl.col("fetched_at").max().over("kind", "key")
    return fetches.select((newest | (pl.col("fetched_at") >= older_than)).alias("needed"))["needed"]


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Make one sentence with the path of what the system has against writing there: a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write to {error.filename or folder}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class Expired:
    """What expiry took away, and what is left."""

    removed: int
    removed_bytes: int
    kept: int
    kept_bytes: int


@dataclass(frozen=True, slots=True)
class Archive:
    """The answers kept in one folder, `<data>/raw`. Making one reads and creates nothing."""

    folder: Path

    def path(self, content_hash: str) -> Path:
        """Where the answer of this content is, or would be."""
        if not _HASH.fullmatch(content_hash):
            raise DataError(f"{content_hash!r} is not the hash of an answer; it has 64 digits from 0-9 and a-f")
        return self.folder / content_hash[:2] / f"{content_hash}.json.gz"

    def keep(self, answer: Received) -> Path:
        """Write the answer down, unless its content is there already and whole; on return it outlives a crash.

        Raises OSError when it cannot be written; then nothing is left behind.
        """
        path = self.path(answer.content_hash)
        if self._renew(path, answer):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
        try:
            with temporary.open("wb") as file:
                file.write(gzip.compress(answer.body, 6, mtime=0))
                file.flush()
                os.fsync(file.fileno())
            _stamp(temporary, answer.fetched_at)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
        return path

    def read(self, content_hash: str) -> bytes:
        """The body of an answer. Raises DataError when it is missing, damaged or not what its name says."""
        path = self.path(content_hash)
        try:
            body = gzip.decompress(path.read_bytes())
        except FileNotFoundError:
            raise DataError(f"the raw answer {path} is missing") from None
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"the raw answer {path} is damaged ({error}); remove it and fetch again") from error
        if hashlib.sha256(body).hexdigest() != content_hash:
            raise DataError(f"the raw answer {path} is not what its name says; remove it and fetch again")
        return body

    def expire(self, store: Store, older_than: datetime) -> Expired:
        """Remove answers last received before `older_than`, except the newest of each kind and key of `fetches`.

        The newest chart of a pool holds its history and is kept however old it is. So is an answer of which the
        collector's journal says that the store does not have it yet, and one that is being kept at this very moment.
        """
        removed = removed_bytes = kept = kept_bytes = 0
        with store.writing():
            fetches = store.recorded("fetches", columns=["fetched_at", "kind", "key", "content_hash"])
            wanted = set(fetches.filter(needed(fetches, older_than=older_than))["content_hash"])
            waiting = {path.stem[-8:] for path in (self.folder.parent / WAITING_FOLDER).glob("*.json")}
            for path, size, received_at in self._files():
                content_hash = path.name.removesuffix(".json.gz")
                if not _HASH.fullmatch(content_hash):
                    if datetime.now(UTC) - received_at > LEFTOVER_AGE:
                        path.unlink(missing_ok=True)
                    continue
                spared = content_hash in wanted or content_hash[:8] in waiting or received_at >= older_than
                if spared or not _remove(path, older_than):
                    kept, kept_bytes = kept + 1, kept_bytes + size
                else:
                    removed, removed_bytes = removed + 1, removed_bytes + size
        return Expired(removed, removed_bytes, kept, kept_bytes)

    def _renew(self, path: Path, answer: Received) -> bool:
        """Whether the content is there and whole; it is then stamped as received again."""
        try:
            whole = gzip.decompress(path.read_bytes()) == answer.body
            if whole and path.stat().st_mtime < answer.fetched_at.timestamp():
                _stamp(path, answer.fetched_at)
        except (OSError, EOFError, zlib.error):  # not there, just expired, or damaged: it is written anew
            return False
        return whole

    def _files(self) -> Iterator[tuple[Path, int, datetime]]:
        """Every file with its size and time, also what was left half written."""
        if not self.folder.is_dir():
            return
        for folder in sorted(self.folder.glob("[0-9a-f][0-9a-f]")):
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                with suppress(FileNotFoundError):
                    told = entry.stat()
                    yield Path(entry.path), told.st_size, datetime.fromtimestamp(told.st_mtime, UTC)


def _stamp(path: Path, received_at: datetime) -> None:
    os.utime(path, (received_at.timestamp(), received_at.timestamp()))


def _remove(path: Path, older_than: datetime) -> bool:
    """Take the file away, unless it was renewed since it was looked at."""
    doomed = path.with_name(f".{path.name}.doomed")
    with suppress(FileNotFoundError):
        path.rename(doomed)
        # Whoever renews it from here on finds it gone and writes it anew.
        if doomed.stat().st_mtime >= older_than.timestamp():
            doomed.rename(path)
            return False
        doomed.unlink()
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename outlive a crash of the machine, where the system can do that for folders."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
