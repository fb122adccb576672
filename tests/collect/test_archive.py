"""An answer is kept once, whole and for as long as something may need it; damage is noticed."""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from yieldlab.collect import archive as archives
from yieldlab.collect.archive import Archive, Fetch, fetch_rows
from yieldlab.errors import DataError
from yieldlab.store import Store

NOW = datetime(2025, 7, 1, tzinfo=UTC)
LIMIT = NOW - timedelta(days=30)


@dataclass(frozen=True)
class Came:
    """An answer as far as the archive looks at it."""

    body: bytes
    fetched_at: datetime = NOW

    @property
    def content_hash(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


def came(text: str, days_ago: float = 0) -> Came:
    return Came(text.encode() * 50, NOW - timedelta(days=days_ago))


def fetch(answer: Came, kind: str = "chart", key: str | None = "a") -> Fetch:
    return Fetch(answer.fetched_at, "http://feed", kind, key, 200, answer.content_hash, len(answer.body))


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "data" / "raw")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def names(archive: Archive) -> set[str]:
    return {path.name for path in archive.folder.rglob("*") if path.is_file()}


def test_the_same_content_is_kept_once_and_read_as_it_came(archive: Archive) -> None:
    path = archive.keep(came("x", 5))
    assert path == archive.folder / path.name[:2] / f"{came('x').content_hash}.json.gz"
    assert archive.read(came("x").content_hash) == came("x").body
    before = path.read_bytes(), path.stat().st_ino
    assert archive.keep(came("x", 2)) == path
    assert (path.read_bytes(), path.stat().st_ino) == before
    assert path.stat().st_mtime == came("x", 2).fetched_at.timestamp()
    archive.keep(came("x", 9))
    assert path.stat().st_mtime == came("x", 2).fetched_at.timestamp()
    assert names(archive) == {path.name}


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"another"), gzip.compress(b"x" * 50)[:-3]])
def test_damage_is_noticed_and_mended_by_the_next_answer(archive: Archive, content: bytes) -> None:
    path = archive.keep(came("x"))
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged|is not what its name says"):
        archive.read(came("x").content_hash)
    archive.keep(came("x"))
    assert archive.read(came("x").content_hash) == came("x").body


def test_what_is_missing_or_no_hash_is_told(archive: Archive) -> None:
    with pytest.raises(DataError, match="is missing"):
        archive.read("0" * 64)
    with pytest.raises(DataError, match="is not the hash of an answer"):
        archive.read("../../secret")
    assert not archive.folder.exists()


def test_a_write_that_fails_leaves_nothing_behind(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        archive.keep(came("x"))
    assert names(archive) == set()


def test_expiry_spares_what_is_recent_and_the_newest_of_each_pool(archive: Archive, store: Store) -> None:
    old, older, fresh = came("old", 40), came("older", 50), came("fresh", 3)
    twice = came("twice", 60)
    stray = came("stray", 45)
    for answer in (old, older, fresh, twice, stray):
        archive.keep(answer)
    archive.keep(Came(twice.body, NOW - timedelta(days=1)))
    facts = [
        *(fetch(older, key="quiet"), fetch(old, key="quiet")),  # a pool not fetched for long: its history is `old`
        *(fetch(came("older", 50), key="busy"), fetch(fresh, key="busy")),
        *(fetch(twice, "pools", None), fetch(Came(twice.body, NOW - timedelta(days=1)), "pools", None)),
    ]
    store.record("fetches", fetch_rows(facts))
    told = archive.expire(store, LIMIT)
    assert names(archive) == {f"{answer.content_hash}.json.gz" for answer in (old, fresh, twice)}
    assert (told.removed, told.kept) == (2, 3)
    assert told.removed_bytes > 0
    assert archive.expire(store, LIMIT).removed == 0


def test_expiry_takes_away_what_a_killed_process_left_half_written(archive: Archive, store: Store) -> None:
    path = archive.keep(came("x"))
    for name, age in ((".old", timedelta(days=2)), (".young", timedelta(minutes=1))):
        leftover = path.with_name(name)
        leftover.write_bytes(b"half")
        stamp = (datetime.now(UTC) - age).timestamp()
        os.utime(leftover, (stamp, stamp))
    archive.expire(store, LIMIT)
    assert names(archive) == {path.name, ".young"}


def test_an_answer_that_comes_again_while_it_expires_survives(
    archive: Archive, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of the two moments between looking at a file and removing it."""
    old = came("x", 40)
    rename = Path.rename
    for after in (False, True):
        path = archive.keep(old)

        def renamed(self: Path, target: Path, after: bool = after) -> Path:
            if not after and target.name.endswith(".doomed"):
                archive.keep(came("x"))
            moved = rename(self, target)
            if after and target.name.endswith(".doomed"):
                archive.keep(came("x"))
            return moved

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", renamed)
            archive.expire(store, LIMIT)
        assert archive.read(old.content_hash) == old.body
        assert names(archive) == {path.name}
        path.unlink()


def test_many_threads_keep_the_same_answer(archive: Archive) -> None:
    threads = [threading.Thread(target=archive.keep, args=(came("x"),)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert archive.read(came("x").content_hash) == came("x").body
    assert len(names(archive)) == 1


def test_needed_is_what_is_recent_or_the_newest_of_its_kind_and_key() -> None:
    facts = [
        fetch(came("1", 50)),
        fetch(came("2", 40)),
        fetch(came("3", 50), key="b"),
        fetch(came("4", 50), "pools", None),
        fetch(came("5", 1), "pools", None),
        fetch(came("6", 2), "pools", None),
    ]
    needed = archives.needed(fetch_rows(facts), older_than=LIMIT)
    assert needed.to_list() == [False, True, True, False, True, True]
