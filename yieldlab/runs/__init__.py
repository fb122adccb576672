"""Run folders: what one run leaves on disk, how it is found again, and who may write to it.

A folder is a run when it holds a `manifest.json` of our schema. Everything in it is written beside its place, flushed
to the disk and renamed, so that a name that is there is whole; `_SUCCESS` is written last. Whoever works on a run
holds a lock of the operating system on its file `.lock`, which ends with the process however that ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import polars as pl

from yieldlab.errors import DataError, UsageError, did_you_mean
from yieldlab.runs._manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    Manifest,
    describe,
    prepared_health,
    read_manifest,
    refuse_changes,
)

__all__ = [
    "MANIFEST",
    "SCHEMA_VERSION",
    "Manifest",
    "RunFolder",
    "Summary",
    "describe",
    "find",
    "free_folder",
    "listed",
    "now",
    "prepared_health",
    "refuse_changes",
    "remove",
]

SUCCESS = "_SUCCESS"
TRIALS = "trials.parquet"
EQUITY = "equity.parquet"
TRADES = "trades.parquet"
FAILURES = "failures.parquet"

#: Rows of a row group in every table of a run, so that its bytes do not depend on how it was put together.
ROW_GROUP = 65_536

_CHUNK = re.compile(r"(\d{6})-([0-9a-f]{16})\.parquet")
_LOCK = ".lock"

#: Where a chunk keeps the digests of its signals in its file's metadata.
_SIGNALS = "yieldlab.signals"


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of a list of runs. `status` is running, complete, partial (some trials failed), interrupted (can be
    resumed), failed, or unreadable; `detail` says why it failed or cannot be read."""

    id: str
    path: Path
    status: str
    kind: str
    strategies: tuple[str, ...]
    trials: int
    failed: int
    started: str
    seconds: float
    bytes: int
    detail: str


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run on disk."""

    path: Path

    @classmethod
    def create(cls, root: Path, manifest: Manifest, *, out: Path | None = None) -> Self:
        """Make the folder of a new run: `out`, which must not exist or be empty, or one named by time, kind and content
        under `root`."""
        if out is not None:
            path = free_folder(out)
            path.mkdir(parents=True, exist_ok=True)
        else:
            path = _new_folder(root, manifest)
        folder = cls(path)
        folder.write(MANIFEST, manifest.to_json().encode())
        return folder

    @property
    def id(self) -> str:
        """The folder's name, which is what the command line calls the run."""
        return self.path.resolve().name

    @property
    def manifest(self) -> Manifest:
        """What the run says about itself. Raises DataError when that cannot be read."""
        return read_manifest(self.path)

    @property
    def status(self) -> str:
        """running, complete, partial, interrupted or failed, as the folder is now."""
        return _status(self.path, self.manifest)

    def update(self, **changes: object) -> Manifest:
        """Write the manifest again with these fields changed."""
        changed = replace(self.manifest, **changes)  # type: ignore[arg-type]  # checked when it is read again
        self.write(MANIFEST, changed.to_json().encode())
        return changed

    def finish(self, status: str, **changes: object) -> None:
        """The run is over: the manifest says how, then `_SUCCESS` says that all files are in place."""
        self.update(status=status, finished=now(), **changes)
        self.write(SUCCESS, b"")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that works on this run. Raises UsageError when another one does."""
        descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            for attempt in range(5):  # somebody who only asks whether the run is locked holds it for an instant
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    owner = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
                    if attempt == 4:
                        who = f" (number {owner})" if owner else ""
                        raise UsageError(f"another process{who} is working on run {self.id}; wait for it") from None
                    time.sleep(0.05)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    # -- files --------------------------------------------------------------------------------------------------

    def write(self, name: str, content: bytes) -> None:
        """Put a small file in place, whole or not at all."""

        def fill(path: Path) -> None:
            path.write_bytes(content)

        _replace(self.path / name, fill)

    def write_frame(self, name: str, frame: pl.DataFrame | pl.LazyFrame) -> None:
        """Put a table in place; a lazy one is never in memory as a whole. Equal rows give equal bytes."""

        def fill(path: Path) -> None:
            frame.lazy().sink_parquet(path, compression="zstd", row_group_size=ROW_GROUP, maintain_order=True)

        _replace(self.path / name, fill)

    def write_csv(self, name: str, frame: pl.DataFrame) -> None:
        """Put a table in place as CSV."""
        _replace(self.path / name, frame.write_csv)

    def scan(self, name: str) -> pl.LazyFrame:
        """A table of the run. Raises DataError when it is missing or no Parquet file."""
        path = self.path / name
        try:
            lazy = pl.scan_parquet(path, glob=False)
            lazy.collect_schema()
        except FileNotFoundError:
            raise DataError(f"run {self.id} has no {name} ({self.status})") from None
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
        return lazy

    # -- chunks -------------------------------------------------------------------------------------------------

    def write_chunk(self, number: int, frame: pl.DataFrame, signals: Sequence[str] = ()) -> None:
        """Put the results of one unit of work in place, under its number and the hash of its content.

        `signals` are digests of what the results rest on; they are in the same file.
        """
        folder = self.path / "chunks"
        folder.mkdir(exist_ok=True)
        part = folder / f".{number:06d}.part"
        try:
            noted = {_SIGNALS: json.dumps(list(signals))}
            frame.write_parquet(part, compression="zstd", row_group_size=ROW_GROUP, metadata=noted)
            _flush(part)
            os.replace(part, folder / f"{number:06d}-{_digest(part)}.parquet")
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _flush(folder)

    def chunks(self) -> dict[int, Path]:
        """Number -> file of every chunk whose content is what was written; a damaged one counts as missing."""
        found: dict[int, Path] = {}
        folder = self.path / "chunks"
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            named = _CHUNK.fullmatch(path.name)
            if named and not path.is_symlink() and _digest(path) == named[2]:
                found[int(named[1])] = path
        return found

    def chunk_signals(self, path: Path) -> list[str]:
        """The digests of the signals that a chunk's results rest on, as `write_chunk` was given them."""
        noted = pl.read_parquet_metadata(path).get(_SIGNALS, "[]")
        return [str(digest) for digest in json.loads(noted)]


def now() -> str:
    """This instant as manifests write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def free_folder(out: Path) -> Path:
    """`out`, if a run may be put there. Raises UsageError when something is there already."""
    out = Path(out)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"--out {out} exists and is no folder; name a folder that does not exist yet")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"--out {out} is not empty; name a folder that does not exist yet")
    return out


def find(run: str | Path, root: Path) -> RunFolder:
    """The run of this id, of this beginning of an id if only one has it, or in this folder.

    Raises UsageError with the nearest id when there is none, and DataError when its manifest cannot be read.
    """
    text = str(run)
    ids = sorted(path.name for path in _run_folders(root))
    path = Path(text).expanduser()
    matches = [text] if text in ids else [name for name in ids if text and name.startswith(text)]
    if not matches and text and path.is_dir():
        if not (path / MANIFEST).is_file():
            raise UsageError(f"{path} is not a run folder; it has no {MANIFEST}")
        folder = RunFolder(path)
    elif len(matches) > 1:
        some = ", ".join(matches[:5])
        raise UsageError(f"{text!r} begins the names of {len(matches)} runs: {some}; write more of it")
    elif not matches:
        raise UsageError(f"unknown run {text!r}{_near(text, ids, root)}")
    else:
        folder = RunFolder(root / matches[0])
    _ = folder.manifest
    return folder


def listed(root: Path) -> list[Summary]:
    """Every run under `root`, the latest first; one that cannot be read is listed with its reason."""
    return sorted((_summary(path) for path in _run_folders(root)), key=lambda run: (run.started, run.id), reverse=True)


def remove(run: str | Path, root: Path) -> RunFolder:
    """Delete a run's folder and all in it; a link in it is deleted, never followed.

    Raises UsageError for a run that is unknown, being worked on, or a link to a folder.
    """
    folder = find(run, root)
    if folder.path.is_symlink():
        raise UsageError(f"{folder.path} is a link; remove the run it leads to, or the link itself")
    with folder.lock():
        for path in folder.path.iterdir():  # the manifest last: half removed, it is still known as a run
            if path.name != MANIFEST:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (folder.path / MANIFEST).unlink()
        folder.path.rmdir()
    return folder


def _new_folder(root: Path, manifest: Manifest) -> Path:
    instant = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    content = json.dumps([manifest.strategies, manifest.config, manifest.panel_digest], sort_keys=True)
    for attempt in range(1_000):
        mark = hashlib.blake2b(f"{content}{attempt or ''}".encode(), digest_size=4).hexdigest()
        path = root / f"{instant}-{manifest.kind}-{mark}"
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise UsageError(f"no free name for a run is left in {root}")


def _run_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [path for path in root.iterdir() if not path.name.startswith(".") and (path / MANIFEST).is_file()]


def _near(text: str, ids: list[str], root: Path) -> str:
    if not ids:
        return f"; there is no run in {root} yet"
    near = did_you_mean(text, ids)
    return near if "did you mean" in near else f"; the latest is {ids[-1]!r}, `yieldlab runs list` shows all"


def _status(path: Path, manifest: Manifest) -> str:
    if manifest.status == "running" and _is_locked(path):
        return "running"
    if manifest.status in ("complete", "partial") and (path / SUCCESS).is_file():
        return manifest.status
    return "failed" if manifest.status == "failed" else "interrupted"


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path / _LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _summary(path: Path) -> Summary:
    size = sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())
    try:
        manifest = read_manifest(path)
    except DataError as error:
        return Summary(path.name, path, "unreadable", "", (), 0, 0, "", 0.0, size, str(error))
    return Summary(
        id=path.name,
        path=path,
        status=_status(path, manifest),
        kind=manifest.kind,
        strategies=tuple(manifest.strategies),
        trials=manifest.trials,
        failed=manifest.failed,
        started=manifest.started,
        seconds=manifest.seconds,
        bytes=size,
        detail=manifest.reason or "",
    )


def _replace(path: Path, fill: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(exist_ok=True)
    try:
        fill(part)
        _flush(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
