"""Who is the one collector of a data folder?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yieldlab.errors import DataError

#: The file under the data folder that a collector locks for its life.
COLLECTOR_LOCK = "collector.lock"
#: How long a collector waits for it: whoever only asks whether it is held lets go of it at once.
PATIENCE_SECONDS = 1.0


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
