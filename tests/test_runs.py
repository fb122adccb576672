"""Run folders: named, found, listed and removed without harm to anything else."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
import sweep_worlds

from yieldlab import runs
from yieldlab.errors import DataError, UsageError
from yieldlab.runs import Manifest, RunFolder, describe, find, listed, remove
from yieldlab.strategy import Strategy


@pytest.fixture
def steady(tmp_path: Path) -> Strategy:
    return sweep_worlds.strategy(tmp_path / "strategies")


@pytest.fixture
def manifest(steady: Strategy) -> Manifest:
    panel = sweep_worlds.panel(rows=5)
    cutoff = datetime(2025, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    return describe(
        "sweep", [steady], panel, {"capital": 1.0}, trials=7, seed=3, cutoff=cutoff, argv=["yieldlab", "sweep"]
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "runs"


def test_a_manifest_comes_back_as_it_was_written(manifest: Manifest, root: Path) -> None:
    folder = RunFolder.create(root, manifest)
    assert folder.manifest == manifest
    assert folder.manifest.cutoff_instant == datetime(2025, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    assert folder.manifest.last_day == sweep_worlds.panel(rows=5).times[-1].astype("datetime64[D]").item()
    assert json.loads((folder.path / "manifest.json").read_text())["schema_version"] == 1
    folder.update(status="failed", reason="it rained")
    assert folder.manifest.reason == "it rained"


def test_a_folder_is_named_by_time_kind_and_content(manifest: Manifest, root: Path) -> None:
    first, second = RunFolder.create(root, manifest), RunFolder.create(root, manifest)
    assert first.path != second.path
    stamp, kind, mark = first.id.split("-")
    assert datetime.strptime(stamp, "%Y%m%dT%H%M%SZ")
    assert kind == "sweep"
    assert len(mark) == 8
    assert int(mark, 16) >= 0


def test_out_names_the_folder_itself(manifest: Manifest, root: Path, tmp_path: Path) -> None:
    assert RunFolder.create(root, manifest, out=tmp_path / "deep" / "mine").path == tmp_path / "deep" / "mine"
    (tmp_path / "empty").mkdir()
    assert RunFolder.create(root, manifest, out=tmp_path / "empty").id == "empty"
    with pytest.raises(UsageError, match=r"--out .*empty is not empty"):
        RunFolder.create(root, manifest, out=tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is no folder"):
        RunFolder.create(root, manifest, out=tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is no folder"):
        RunFolder.create(root, manifest, out=tmp_path / "link")
    assert not root.exists()


def test_a_run_is_found_by_id_prefix_or_path(manifest: Manifest, root: Path, tmp_path: Path) -> None:
    a = RunFolder.create(root, manifest, out=root / "20260101T000000Z-sweep-aaaaaaaa")
    b = RunFolder.create(root, manifest, out=root / "20260101T000000Z-sweep-aabbbbbb")
    elsewhere = RunFolder.create(root, manifest, out=tmp_path / "elsewhere")
    assert find(a.id, root).path == a.path
    assert find("20260101T000000Z-sweep-aab", root).path == b.path
    assert find(a.path, root).path == a.path
    assert find(str(elsewhere.path), root).id == "elsewhere"
    with pytest.raises(UsageError, match=r"begins the names of 2 runs: .*aaaaaaaa, .*aabbbbbb"):
        find("2026", root)
    with pytest.raises(UsageError, match="unknown run '20260101T000000Z-sweep-aaaaaaab'; did you mean"):
        find("20260101T000000Z-sweep-aaaaaaab", root)
    with pytest.raises(UsageError, match="unknown run 'zzz'; the latest is '20260101T000000Z-sweep-aabbbbbb'"):
        find("zzz", root)
    with pytest.raises(UsageError, match="unknown run ''"):
        find("", root)
    with pytest.raises(UsageError, match="is not a run folder"):
        find(tmp_path / "strategies", root)
    with pytest.raises(UsageError, match=r"unknown run 'any'; there is no run in .*none yet"):
        find("any", tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "no schema_version"),
        ('{"schema_version": 1}', "damaged: kind is missing"),
        ('{"schema_version": 2}', r"written by a newer yieldlab \(manifest schema 2, this one reads up to 1\)"),
        ("\udcff".encode(errors="surrogateescape"), "is damaged"),
    ],
)
def test_a_manifest_that_cannot_be_read_says_so(
    manifest: Manifest, root: Path, content: str | bytes, message: str
) -> None:
    folder = RunFolder.create(root, manifest)
    (folder.path / "manifest.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        find(folder.id, root)
    with pytest.raises(DataError, match=message):
        remove(folder.id, root)
    (summary,) = listed(root)
    assert summary.status == "unreadable"
    assert folder.path.is_dir()


@pytest.mark.parametrize("field", ["kind", "strategies", "trials", "argv", "seconds", "panel_health", "git_commit"])
def test_a_field_of_the_wrong_kind_is_damage(manifest: Manifest, root: Path, field: str) -> None:
    folder = RunFolder.create(root, manifest)
    document = json.loads(manifest.to_json()) | {field: True}
    folder.write("manifest.json", json.dumps(document).encode())
    with pytest.raises(DataError, match=f"{field} is True"):
        find(folder.id, root)


def test_a_configuration_changed_by_hand_is_noticed(manifest: Manifest, root: Path) -> None:
    folder = RunFolder.create(root, manifest)
    text = (folder.path / "manifest.json").read_text()
    (folder.path / "manifest.json").write_text(text.replace('"capital": 1.0', '"capital": 2.0'))
    with pytest.raises(DataError, match="its config is not the one that the run began with"):
        find(folder.id, root)


def test_status_is_what_the_folder_shows(manifest: Manifest, root: Path) -> None:
    folder = RunFolder.create(root, manifest)
    assert folder.status == "interrupted"  # nobody works on it
    with folder.lock():
        assert folder.status == "running"
        with pytest.raises(UsageError, match=r"another process .* is working on run"), folder.lock():
            pass
        with pytest.raises(UsageError, match="is working on run"):
            remove(folder.id, root)
    assert folder.status == "interrupted"
    folder.finish("partial", failed=2)
    assert folder.status == "partial"
    (folder.path / "_SUCCESS").unlink()
    assert folder.status == "interrupted"
    folder.finish("complete")
    assert folder.status == "complete"
    folder.update(status="failed", reason="no")
    assert folder.status == "failed"


def test_the_list_has_every_run_the_latest_first(manifest: Manifest, root: Path) -> None:
    assert listed(root) == []
    from dataclasses import replace

    RunFolder.create(root, replace(manifest, started="2026-01-01T00:00:00+00:00"), out=root / "old").finish("complete")
    RunFolder.create(root, replace(manifest, started="2026-01-02T00:00:00+00:00"), out=root / "new")
    (root / "notes").mkdir()
    (root / ".hidden").mkdir()
    (root / "file").write_text("")
    new, old = listed(root)
    assert (new.id, new.status, old.id, old.status) == ("new", "interrupted", "old", "complete")
    assert (old.kind, old.strategies, old.trials, old.failed) == ("sweep", ("steady",), 7, 0)
    assert old.bytes == sum(path.stat().st_size for path in (root / "old").rglob("*"))


def test_removing_a_run_removes_nothing_else(manifest: Manifest, root: Path, tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "gold").write_text("gold")
    folder = RunFolder.create(root, manifest)
    folder.write_chunk(0, pl.DataFrame({"a": [1]}))
    (folder.path / "link").symlink_to(treasure)
    (folder.path / "chunks" / "link").symlink_to(treasure)
    (root / "shortcut").symlink_to(folder.path)
    other = RunFolder.create(root, manifest)
    with pytest.raises(UsageError, match="is a link"):
        remove("shortcut", root)
    with pytest.raises(UsageError, match="is not a run folder"):
        remove(treasure, root)
    remove(folder.id, root)
    assert not folder.path.exists()
    assert other.path.exists()
    assert (treasure / "gold").read_text() == "gold"


def test_a_table_that_is_missing_or_broken_says_so(manifest: Manifest, root: Path) -> None:
    folder = RunFolder.create(root, manifest)
    with pytest.raises(DataError, match=rf"run {folder.id} has no trials\.parquet \(interrupted\)"):
        folder.scan("trials.parquet")
    folder.write("trials.parquet", b"PAR1 not really PAR1")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        folder.scan("trials.parquet")


def test_equal_tables_have_equal_bytes(manifest: Manifest, root: Path) -> None:
    folder = RunFolder.create(root, manifest)
    frame = pl.DataFrame({"a": range(200_000), "b": ["x", "y"] * 100_000})
    for name, table in {"one": frame, "lazy": frame.lazy(), "parts": pl.concat([frame[:7], frame[7:]])}.items():
        folder.write_frame(f"{name}.parquet", table)
    contents = {(folder.path / f"{name}.parquet").read_bytes() for name in ("one", "lazy", "parts")}
    assert len(contents) == 1


def test_a_failed_write_leaves_what_was_there(manifest: Manifest, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(root, manifest)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for write in (
            lambda: folder.update(status="failed"),
            lambda: folder.write_chunk(0, pl.DataFrame({"a": [1]})),
            lambda: folder.write_frame("trials.parquet", pl.DataFrame({"a": [1]})),
        ):
            with pytest.raises(OSError, match="No space left"):
                write()
    assert folder.manifest == manifest
    assert folder.chunks() == {}
    assert sorted(path.name for path in folder.path.rglob("*")) == ["chunks", "manifest.json"]


def test_the_commit_of_the_strategy_is_recorded(manifest: Manifest, steady: Strategy, tmp_path: Path) -> None:
    assert manifest.git_commit is None or len(manifest.git_commit) == 40
    assert set(runs.describe("backtest", [], sweep_worlds.panel(rows=5), {}, trials=0).versions) >= {"python", "numba"}
