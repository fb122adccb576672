"""Who is at work in a data folder: the one collector, or work that has a folder of its own for a while?"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from yieldlab.errors import DataError

#: The file under the data folder that a collector locks for its life.
COLLECTOR_LOCK = "collector.lock"
#: How long a collector waits for it: whoever only asks whether it is held lets go of it at once.
PATIENCE_SECONDS = 1.0

#: How the folders of long work begin; each has a lock that its process holds.
SCRATCH = ".rebuild-"
SCRATCH_LOCK = ".lock"


@contextmanager
def scratch_folder(folder: Path, alone: Callable[[], AbstractContextManager[None]]) -> Iterator[Path]:
    """A new folder in `folder` for as long as the work takes. Those of processes that were killed are removed.

    While `alone` is held, no other process makes or removes one. Raises DataError when it cannot be made.
    """
    from filelock import FileLock, Timeout

    with ExitStack() as held:
        with alone():
            for left in folder.glob(f"{SCRATCH}*"):
                try:
                    with FileLock(left / SCRATCH_LOCK, timeout=0):
                        pass
                except (Timeout, OSError):  # at work, or not ours to remove
                    continue
                shutil.rmtree(left, ignore_errors=True)
            try:
                made = tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder, ignore_cleanup_errors=True)
                path = Path(held.enter_context(made))
                held.enter_context(FileLock(path / SCRATCH_LOCK, timeout=0))
            except OSError as error:
                raise DataError(f"cannot write to {folder}: {error.strerror or error}") from error
        yield path


@contextmanager
def collector_lock(folder: Path) -> Iterator[None]:
    """Be the one collector of this data folder; the system lets go of the lock when its process dies.

    Raises DataError when there is another one.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / COLLECTOR_LOCK, timeout=PATIENCE_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise DataError(
            f"another collector is at work in {folder} (`yieldlab data status` tells its process); "
            "stop it, or name another folder with --data"
        ) from None
    try:
        yield
    finally:
        lock.release()


def collector_at_work(folder: Path) -> bool | None:
    """Whether a process is the collector of this data folder right now; None when that cannot be told."""
    from filelock import FileLock, Timeout

    if not (folder / COLLECTOR_LOCK).exists():
        return False
    lock = FileLock(folder / COLLECTOR_LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:  # a folder of another user, which can be read and not written
        return None
    lock.release()
    return False
