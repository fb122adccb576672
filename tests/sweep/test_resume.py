"""A run that was cut short ends with the bytes of one that was not, and refuses to go on from something else."""

from __future__ import annotations

import os
import random
import signal as signals
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sweep_worlds

from yieldlab import runs
from yieldlab.errors import DataError, UsageError
from yieldlab.panel import Panel
from yieldlab.runs import RunFolder
from yieldlab.strategy import Strategy
from yieldlab.sweep import ChunkDone, Event, Finished, Planned, SweepResult, plan, resume, run, sweep

TABLES = ("trials.parquet", "equity.parquet", "trades.parquet", "plan.parquet")

#: A process that starts the sweep in the folder, or goes on with it, and stops when it is asked to.
WORKER = """
import signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import sweep_worlds
from yieldlab.runs import RunFolder
from yieldlab.strategy import load
from yieldlab.sweep import Interrupted, Planned, plan, resume, run, sweep

class Stop:
    requested = False
    def __call__(self, number, frame): self.requested = True

stop = Stop()
signal.signal(signal.SIGINT, stop)
folder = Path(sys.argv[1])
strategy, panel = load(folder / "strategies" / "steady.py"), sweep_worlds.panel()
out = folder / "run"
if (out / "manifest.json").exists():
    events = resume(RunFolder(out), strategy, panel, stop=stop)
else:
    events = run(plan(strategy, {"gas_usd": [0.0, 1.0]}), panel, out=out, chunk_trials=4, stop=stop)
for event in events:
    if isinstance(event, Planned):
        print(event.done, flush=True)
    if isinstance(event, Interrupted):
        sys.exit(130)
"""


@pytest.fixture(scope="module")
def panel() -> Panel:
    return sweep_worlds.panel()


@pytest.fixture
def steady(tmp_path: Path) -> Strategy:
    return sweep_worlds.strategy(tmp_path / "strategies")


@pytest.fixture
def cut_short(steady: Strategy, panel: Panel, tmp_path: Path) -> RunFolder:
    """A run with 2 of its 5 chunks."""
    events = run(plan(steady), panel, out=tmp_path / "run", chunk_trials=50)
    for _ in range(3):
        next(events)
    events.close()  # type: ignore[attr-defined]
    return RunFolder(tmp_path / "run")


def tables(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in TABLES}


def complete(steady: Strategy, panel: Panel, out: Path, **grid: list[float]) -> dict[str, bytes]:
    *_, last = run(plan(steady, grid), panel, out=out)
    assert isinstance(last, Finished)
    return tables(out)


def worker(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), str(Path(__file__).parents[1])], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_ends_with_the_same_bytes(
    steady: Strategy, panel: Panel, tmp_path: Path
) -> None:
    expected = complete(steady, panel, tmp_path / "whole", gas_usd=[0.0, 1.0])
    dice = random.Random(20_260_211)
    done, kills = 0, 0
    for _ in range(8):
        process = worker(tmp_path)
        assert process.stdout is not None
        now_done = int(process.stdout.readline())
        assert now_done >= done
        done = now_done
        time.sleep(dice.uniform(0.0, 0.25))
        process.kill()
        if process.wait() == 0:
            break
        kills += 1
        assert RunFolder(tmp_path / "run").status == "interrupted"
        assert not (tmp_path / "run" / "_SUCCESS").exists()
    assert kills >= 2
    if RunFolder(tmp_path / "run").status != "complete":
        assert worker(tmp_path).wait() == 0
    assert tables(tmp_path / "run") == expected
    assert RunFolder(tmp_path / "run").status == "complete"


@pytest.mark.slow
def test_ctrl_c_finishes_the_chunk_and_resume_ends_with_the_same_bytes(
    steady: Strategy, panel: Panel, tmp_path: Path
) -> None:
    expected = complete(steady, panel, tmp_path / "whole", gas_usd=[0.0, 1.0])
    process = worker(tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signals.SIGINT)
    assert process.wait() == 130
    folder = RunFolder(tmp_path / "run")
    assert folder.status == folder.manifest.status == "interrupted"
    assert len(folder.chunks()) < 108  # none at all if the signal came before the first
    assert worker(tmp_path).wait() == 0
    assert tables(tmp_path / "run") == expected


class Died(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_dying_at_any_write_loses_nothing(
    steady: Strategy, panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    planned = plan(steady, sample=12, seed=1)
    sweep(planned, panel, out=tmp_path / "whole")
    expected = tables(tmp_path / "whole")
    real: Callable[..., None] = getattr(os, call)
    for deadly in range(1, 60):
        left = [deadly]

        def dying(*arguments: object, left: list[int] = left) -> None:
            if call == "replace" and not str(arguments[0]).startswith(str(tmp_path)):
                return real(*arguments)  # a compiler that keeps what it made
            left[0] -= 1
            if left[0] == 0:
                raise Died
            if left[0] < 0:  # dead processes write no more
                raise Died
            return real(*arguments)

        out = tmp_path / f"run{deadly}"
        monkeypatch.setattr(os, call, dying)
        try:
            list(run(planned, panel, out=out, chunk_trials=6))
            died = False
        except Died:
            died = True
        monkeypatch.setattr(os, call, real)
        if not died:
            break
        if (out / "manifest.json").exists():
            assert RunFolder(out).status != "running"
            list(resume(RunFolder(out), steady, panel))
            assert tables(out) == expected
            assert RunFolder(out).status == "complete"
    assert deadly > 10


def test_resume_computes_only_what_is_missing(
    cut_short: RunFolder, steady: Strategy, panel: Panel, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in cut_short.chunks().values()}
    events = list(resume(cut_short, steady, panel))
    assert isinstance(events[0], Planned)
    assert events[0].done == 100
    assert [event.done for event in events if isinstance(event, ChunkDone)] == [150, 200, 216]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert tables(cut_short.path) == complete(steady, panel, tmp_path / "whole")
    assert cut_short.status == "complete"


def test_resuming_a_complete_run_computes_nothing(steady: Strategy, panel: Panel, tmp_path: Path) -> None:
    expected = complete(steady, panel, tmp_path / "run")
    (tmp_path / "run" / "trials.parquet").unlink()
    events = resume(RunFolder(tmp_path / "run"), steady, panel)
    assert isinstance(next(events), Planned)
    assert not (tmp_path / "run" / "_SUCCESS").exists()
    assert [type(event) for event in events] == [Finished]
    assert tables(tmp_path / "run") == expected


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty", "link"])
def test_a_damaged_chunk_is_computed_again(
    cut_short: RunFolder, steady: Strategy, panel: Panel, tmp_path: Path, harm: str
) -> None:
    chunk = cut_short.chunks()[0]
    content = chunk.read_bytes()
    if harm == "truncate":
        chunk.write_bytes(content[: len(content) // 2])
    elif harm == "flip":
        middle = len(content) // 2
        chunk.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif harm == "empty":
        chunk.write_bytes(b"")
    else:
        elsewhere = tmp_path / "elsewhere.parquet"
        chunk.rename(elsewhere)
        chunk.symlink_to(elsewhere)
    assert list(cut_short.chunks()) == [1]
    list(resume(cut_short, steady, panel))
    assert tables(cut_short.path) == complete(steady, panel, tmp_path / "whole")


def test_a_changed_strategy_is_refused(cut_short: RunFolder, panel: Panel, tmp_path: Path) -> None:
    changed = sweep_worlds.strategy(tmp_path / "other", sweep_worlds.STEADY.replace("mean(", "mean( "))
    with pytest.raises(UsageError, match="strategy 'steady' has changed since the run began"):
        next(resume(cut_short, changed, panel))
    renamed = sweep_worlds.strategy(tmp_path / "other", name="stead")
    with pytest.raises(UsageError, match="strategy 'steady' has changed"):
        next(resume(cut_short, renamed, panel))
    assert cut_short.manifest.status == "interrupted"


def test_a_changed_configuration_is_refused_by_its_name(cut_short: RunFolder, steady: Strategy, panel: Panel) -> None:
    with pytest.raises(UsageError, match=r"capital was 10000\.0, is 5\.0"):
        next(resume(cut_short, steady, panel, settings={"capital": 5.0}))
    assert list(resume(cut_short, steady, panel, settings={"capital": 10_000.0}))


def test_a_changed_panel_is_refused(cut_short: RunFolder, steady: Strategy, panel: Panel) -> None:
    apy = panel.raw("apy").copy()
    apy[-1, -1] = np.nextafter(apy[-1, -1], 1.0) if np.isfinite(apy[-1, -1]) else 0.5
    for changed in (panel.with_fields({"apy": apy}), panel.head(80)):
        with pytest.raises(DataError, match="the panel has changed since the run began: it was"):
            next(resume(cut_short, steady, changed))


def test_another_version_is_refused(
    cut_short: RunFolder, steady: Strategy, panel: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = cut_short.manifest
    older = replace(manifest, versions={**manifest.versions, "numba": "0.1"})
    cut_short.write("manifest.json", older.to_json().encode())
    with pytest.raises(UsageError, match=r"began with numba 0\.1 and this is"):
        next(resume(cut_short, steady, panel))


def test_two_processes_do_not_work_on_one_run(cut_short: RunFolder, steady: Strategy, panel: Panel) -> None:
    first = resume(cut_short, steady, panel)
    next(first)
    assert cut_short.status == "running"
    with pytest.raises(UsageError, match=f"another process .number {os.getpid()}. is working on run run"):
        next(resume(cut_short, steady, panel))
    assert cut_short.status == "running"
    assert isinstance(list(first)[-1], Finished)
    assert cut_short.status == "complete"


def test_a_full_disk_keeps_what_was_done(
    steady: Strategy, panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    with monkeypatch.context() as patched:
        written = RunFolder.write_chunk

        def full(folder: RunFolder, number: int, *rest: object) -> None:
            if number == 2:
                raise OSError(28, "No space left on device")
            written(folder, number, *rest)  # type: ignore[arg-type]

        patched.setattr(runs.RunFolder, "write_chunk", full)
        with pytest.raises(OSError, match="No space left"):
            events.extend(run(plan(steady), panel, out=tmp_path / "run", chunk_trials=50))
    folder = RunFolder(tmp_path / "run")
    assert folder.status == "failed"
    assert "No space left" in (folder.manifest.reason or "")
    assert len(folder.chunks()) == 2
    assert isinstance(list(resume(folder, steady, panel))[-1], Finished)
    assert tables(folder.path) == complete(steady, panel, tmp_path / "whole")


def test_only_a_sweep_is_resumed(steady: Strategy, panel: Panel, tmp_path: Path) -> None:
    manifest = runs.describe("backtest", [steady], panel, {}, trials=1)
    folder = RunFolder.create(tmp_path / "runs", manifest)
    with pytest.raises(UsageError, match="is a backtest; only a sweep can be resumed"):
        next(resume(folder, steady, panel))
    with pytest.raises(UsageError, match="is a backtest, not a sweep"):
        SweepResult.open(folder)


#: Two signals: numbers read from a file, and the yield.
OUTSIDE = """import json
from pathlib import Path
import numpy as np
from yieldlab import Grid

NEEDS = ("apy",)
SIGNAL = Grid(path=["FOLDER/a.json", "FOLDER/b.json", "FOLDER/c.json"])
POLICY = Grid(top_n=[1, 2], every=[7, 1], cost=[0.001, 0.0])


def signal(panel, path):
    return panel["apy"] * np.array(json.loads(Path(path).read_text()))
"""


@pytest.fixture
def outside(tmp_path: Path) -> Strategy:
    for name, numbers in (("a", "[1, 2, 3, 4, 5]"), ("b", "[5, 4, 3, 2, 1]"), ("c", "[1, 1, 1, 1, 1]")):
        (tmp_path / f"{name}.json").write_text(numbers)
    return sweep_worlds.strategy(tmp_path / "strategies", OUTSIDE.replace("FOLDER", str(tmp_path)), "outside")


def stopped(strategy: Strategy, panel: Panel, out: Path, chunks: int, size: int) -> RunFolder:
    events = run(plan(strategy), panel, out=out, chunk_trials=size)
    for _ in range(1 + chunks):
        next(events)
    events.close()  # type: ignore[attr-defined]
    assert len(RunFolder(out).chunks()) == chunks
    return RunFolder(out)


@pytest.mark.parametrize(("chunks", "size"), [(1, 4), (3, 4), (1, 12), (1, 8)])
def test_a_signal_that_is_another_now_is_refused(
    outside: Strategy, panel: Panel, tmp_path: Path, chunks: int, size: int
) -> None:
    folder = stopped(outside, panel, tmp_path / "run", chunks, size)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    file = tmp_path / ("b.json" if chunks * size > 8 else "a.json")
    numbers = file.read_text()
    file.write_text(numbers.replace("2", "2.5"))
    with pytest.raises(DataError, match=f"the signal of strategy 'outside' with path={file} has changed since the run"):
        list(resume(folder, outside, panel))
    assert {path: path.read_bytes() for path in before} == before
    file.unlink()
    with pytest.raises(DataError, match="has changed since the run"):
        list(resume(folder, outside, panel))
    file.write_text(numbers)
    list(resume(folder, outside, panel))
    assert tables(folder.path) == complete(outside, panel, tmp_path / "whole")


def test_a_signal_that_failed_and_now_does_not_is_refused(outside: Strategy, panel: Panel, tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    numbers = file.read_text()
    file.unlink()
    folder = stopped_with_failures(outside, panel, tmp_path / "run")
    file.write_text(numbers)
    with pytest.raises(DataError, match=f"path={file} has changed since the run"):
        list(resume(folder, outside, panel))
    file.unlink()
    list(resume(folder, outside, panel))
    assert tables(folder.path) == complete(outside, panel, tmp_path / "whole")


def stopped_with_failures(strategy: Strategy, panel: Panel, out: Path) -> RunFolder:
    events = run(plan(strategy), panel, out=out, chunk_trials=12)
    for event in events:
        if isinstance(event, ChunkDone):
            break
    events.close()  # type: ignore[attr-defined]
    return RunFolder(out)


def test_a_signal_that_no_finished_trial_rests_on_may_change(outside: Strategy, panel: Panel, tmp_path: Path) -> None:
    folder = stopped(outside, panel, tmp_path / "run", chunks=2, size=4)
    (tmp_path / "b.json").write_text("[1, 3, 2, 5, 4]")
    list(resume(folder, outside, panel))
    assert tables(folder.path) == complete(outside, panel, tmp_path / "whole")


def test_of_many_signals_one_of_each_chunk_is_held_to_the_run(
    outside: Strategy, panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yieldlab.sweep._run.RECALLED", 0)
    folder = stopped(outside, panel, tmp_path / "run", chunks=1, size=24)
    for name in "abc":
        (tmp_path / f"{name}.json").write_text("[1, 3, 2, 5, 4]")
    with pytest.raises(DataError, match="has changed since the run"):
        list(resume(folder, outside, panel))


def test_a_signal_that_changes_after_it_was_looked_at_is_refused_too(
    outside: Strategy, panel: Panel, tmp_path: Path
) -> None:
    folder = stopped(outside, panel, tmp_path / "run", chunks=1, size=4)
    events = resume(folder, outside, panel)
    assert isinstance(next(events), Planned)
    (tmp_path / "a.json").write_text("[1, 3, 2, 5, 4]")  # after all was looked at
    with pytest.raises(DataError, match="has changed since the run"):
        list(events)
