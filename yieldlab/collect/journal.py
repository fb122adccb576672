"""Which answers were received and are not in the store yet?

An answer is written down before anything is done with it and struck out once it is committed, so that a collector that
is killed, or finds the store locked or its disk full, goes on from there. Where not even that can be written, answers
wait in memory, a bounded number of them.
"""

from __future__ import annotations

import gzip
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from yieldlab.collect._http import Answer
from yieldlab.collect.archive import WAITING_FOLDER, Archive
from yieldlab.errors import DataError, YieldlabError

#: Answers that wait in memory while nothing can be written; beyond it the oldest is given up, and counted.
IN_MEMORY = 12

_HEADERS = ("Content-Type", "Date", "Expires")


@dataclass(frozen=True, slots=True)
class Waiting:
    """One answer that waits: where it was written down, or its body in memory."""

    url: str
    status: int
    headers: dict[str, str]
    asked_at: datetime
    fetched_at: datetime
    content_hash: str
    #: Polls at which it was not taken though others could be.
    doubts: int = 0
    path: Path | None = None
    packed: bytes | None = None


class Journal:
    """The answers that wait, oldest first. `lost` counts those that were given up."""

    def __init__(self, folder: Path, archive: Archive) -> None:
        self._folder = folder
        self._archive = archive
        self._memory: list[Waiting] = []
        self._doubts: Counter[datetime] = Counter()
        self.lost = 0

    def add(self, answer: Answer) -> str | None:
        """Write an answer down; where that fails it waits in memory, and the reason is returned."""
        entry = Waiting(
            url=answer.url,
            status=answer.status,
            headers={name: answer.headers[name] for name in _HEADERS if name in answer.headers},
            asked_at=answer.asked_at,
            fetched_at=answer.fetched_at,
            content_hash=answer.content_hash,
        )
        try:
            self._archive.keep(answer)
            self._write(entry)
        except (OSError, DataError) as error:
            self._memory.append(replace(entry, packed=gzip.compress(answer.body, 1, mtime=0)))
            if len(self._memory) > IN_MEMORY:
                del self._memory[0]
                self.lost += 1
            return sentence(error)
        return None

    def waiting(self) -> list[Waiting]:
        """What is not committed yet, in the order in which it was received."""
        entries = sorted([*self._written(), *self._memory], key=lambda entry: entry.fetched_at)
        return [replace(entry, doubts=max(entry.doubts, self._doubts[entry.fetched_at])) for entry in entries]

    @property
    def in_memory(self) -> int:
        """How many answers would be lost if this process ended now."""
        return len(self._memory)

    def answer(self, entry: Waiting) -> Answer:
        """The answer as it was received, its body kept in the archive; raises DataError when that cannot be read."""
        if entry.packed is None:
            body = self._archive.read(entry.content_hash)
            return _answer(entry, body)
        answer = _answer(entry, gzip.decompress(entry.packed))
        self._archive.keep(answer)
        return answer

    def done(self, entry: Waiting) -> None:
        """Strike an answer out."""
        if entry.path is not None:
            entry.path.unlink(missing_ok=True)
        else:
            self._forget(entry)

    def doubt(self, entry: Waiting) -> int:
        """Count that it was not taken though others could be; how often that was, also in processes before this one."""
        doubts = entry.doubts + 1
        self._doubts[entry.fetched_at] = doubts
        if entry.path is not None:
            with suppress(OSError):  # then only this process knows
                replace_file(entry.path, _document(replace(entry, doubts=doubts)))
        return doubts

    def give_up(self, entry: Waiting) -> None:
        """Let go of an answer that will never be taken; written down, it stays beside the others by that name."""
        with suppress(OSError):
            if entry.path is None:
                self._forget(entry)
            else:
                entry.path.rename(entry.path.with_suffix(".given_up"))
        self.lost += 1

    def _write(self, entry: Waiting) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{entry.fetched_at:%Y%m%dT%H%M%S.%f}-{entry.content_hash[:8]}.json"
        replace_file(path, _document(entry))

    def _forget(self, entry: Waiting) -> None:
        self._memory = [other for other in self._memory if other.fetched_at != entry.fetched_at]

    def _written(self) -> Iterator[Waiting]:
        for path in sorted(self._folder.glob("*.json")):
            try:
                entry = _read(path)
            except (OSError, ValueError, KeyError, TypeError):
                # Files are renamed into place whole: this is nothing that a collector wrote, and it tells nothing.
                with suppress(OSError):
                    path.rename(path.with_suffix(".given_up"))
                self.lost += 1
                continue
            yield entry


def written(data: Path) -> int:
    """How many answers wait on the disk of a data folder, whichever process wrote them down."""
    return len(list((data / WAITING_FOLDER).glob("*.json")))


def sentence(error: BaseException) -> str:
    """What went wrong, in one line; what is none of our own errors tells its kind too."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower() + (f": {error.filename}" if error.filename else "")
    text = " ".join(str(error).split())
    return text if isinstance(error, YieldlabError) else f"{type(error).__name__}: {text}"


def replace_file(path: Path, text: str) -> None:
    """Write a small file so that a reader, also after a crash, sees the old one or the new one whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _document(entry: Waiting) -> str:
    return json.dumps(
        {
            "url": entry.url,
            "status": entry.status,
            "headers": entry.headers,
            "asked_at": entry.asked_at.isoformat(),
            "fetched_at": entry.fetched_at.isoformat(),
            "content_hash": entry.content_hash,
            "doubts": entry.doubts,
        }
    )


def _read(path: Path) -> Waiting:
    document = json.loads(path.read_text(encoding="utf-8"))
    return Waiting(
        url=document["url"],
        status=document["status"],
        headers=dict(document["headers"]),
        asked_at=_instant(document["asked_at"]),
        fetched_at=_instant(document["fetched_at"]),
        content_hash=document["content_hash"],
        doubts=int(document.get("doubts", 0)),
        path=path,
    )


def _instant(text: str) -> datetime:
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return instant


def _answer(entry: Waiting, body: bytes) -> Answer:
    return Answer(
        url=entry.url,
        status=entry.status,
        headers=entry.headers,
        body=body,
        asked_at=entry.asked_at,
        fetched_at=entry.fetched_at,
    )
