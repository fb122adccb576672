"""What a sweep leaves: every trial as it would be alone, whatever the chunks and threads, and nothing on bad input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import sweep_worlds

from yieldlab._jit import thread_limit
from yieldlab.backtest import backtest, compare, entry
from yieldlab.errors import DataError, MemoryLimitError, StrategyError, UsageError
from yieldlab.metrics import MEASURES
from yieldlab.panel import Panel
from yieldlab.runs import RunFolder
from yieldlab.strategy import Strategy
from yieldlab.sweep import (
    ChunkDone,
    Finished,
    Interrupted,
    Plan,
    Planned,
    SweepResult,
    TrialsFailed,
    estimate,
    plan,
    run,
    sweep,
)

MARKETS = {"accrual": ["trailing", "leading"], "max_stale_days": [3, 0]}


@pytest.fixture(scope="module")
def panel() -> Panel:
    return sweep_worlds.panel()


@pytest.fixture
def steady(tmp_path: Path) -> Strategy:
    return sweep_worlds.strategy(tmp_path / "strategies")


@pytest.fixture
def frail(tmp_path: Path) -> Strategy:
    return sweep_worlds.strategy(tmp_path / "strategies", sweep_worlds.FRAIL, "frail")


def bytes_of(result: SweepResult) -> dict[str, bytes]:
    names = ("trials.parquet", "equity.parquet", "trades.parquet", "plan.parquet")
    return {name: (result.path / name).read_bytes() for name in names}


def swept(planned: Plan, panel: Panel, out: Path, **how: int) -> SweepResult:
    *_, last = run(planned, panel, out=out, **how)
    assert isinstance(last, Finished)
    return last.result


@pytest.mark.parametrize("grid", [{"gas_usd": [0, 3]}, {"lookback": [3], "sign": [1.0], "top_n": [1, 2]}])
def test_each_trial_of_a_sweep_is_the_backtest_of_its_parameters(
    steady: Strategy, panel: Panel, tmp_path: Path, grid: dict
) -> None:
    planned = plan(steady, {**MARKETS, **grid}, sample=60, seed=2, capital=500.0, risk_free=0.01)
    trials = sweep(planned, panel, out=tmp_path / "run").trials
    assert trials.height == 60
    for row in trials.iter_rows(named=True):
        sets = {name: row[name] for name in planned.parameters}
        alone = compare(panel, [entry(steady, sets)], capital=500.0, risk_free=0.01).trials.row(0, named=True)
        assert {name: row[name] for name in ("trial_id", *MEASURES)} == {
            name: alone[name] for name in ("trial_id", *MEASURES)
        }


def test_a_trial_is_the_backtest_of_its_signal(steady: Strategy, panel: Panel, tmp_path: Path) -> None:
    planned = plan(steady, sample=12, seed=4)
    for row in sweep(planned, panel, out=tmp_path / "run").trials.iter_rows(named=True):
        signal = steady.signal(panel, {"lookback": row["lookback"], "sign": row["sign"]})
        names = ("top_n", "every", "cost", "weighting", "warmup")
        alone = backtest(panel, signal, {name: row[name] for name in names}).trials.row(0, named=True)
        assert {name: row[name] for name in MEASURES} == {name: alone[name] for name in MEASURES}


def test_chunks_and_threads_change_no_byte(steady: Strategy, panel: Panel, tmp_path: Path) -> None:
    planned = plan(steady, MARKETS)
    results = [
        bytes_of(swept(planned, panel, tmp_path / f"run{size}-{threads}", chunk_trials=size, threads=threads))
        for size, threads in ((4096, thread_limit()), (1000, 1), (37, 2), (5, 1))
    ]
    assert all(result == results[0] for result in results[1:])


def test_the_order_of_values_changes_no_trial(steady: Strategy, panel: Panel, tmp_path: Path) -> None:
    forth = {"top_n": [1, 2, 5], "cost": [0.0, 0.001, 0.02], "lookback": [1, 3, 10]}
    back = {name: values[::-1] for name, values in forth.items()}
    one, other = (
        sweep(plan(steady, grid), panel, out=tmp_path / name).trials.sort("trial_id")
        for name, grid in (("forth", forth), ("back", back))
    )
    assert one.equals(other)


def test_a_run_folder_holds_what_the_run_was_made_from(steady: Strategy, panel: Panel, tmp_path: Path) -> None:
    planned = plan(steady, sample=50, seed=8)
    *_, last = run(planned, panel, root=tmp_path / "runs", argv=["yieldlab", "sweep", "run"])
    assert isinstance(last, Finished)
    folder = last.result.folder
    manifest = folder.manifest
    assert folder.path.parent == tmp_path / "runs"
    assert folder.status == manifest.status == "complete"
    assert (manifest.kind, manifest.trials, manifest.failed, manifest.seed) == ("sweep", 50, 0, 8)
    assert manifest.strategies == {"steady": steady.source_hash}
    assert manifest.panel_digest == panel.digest()
    assert manifest.as_of_instant == panel.as_of
    assert manifest.argv == ("yieldlab", "sweep", "run")
    assert manifest.seconds > 0
    assert set(manifest.versions) == {"python", "yieldlab", "numpy", "polars", "numba"}
    assert (folder.path / "strategy.py").read_text() == steady.source
    assert pl.read_parquet(folder.path / "plan.parquet").equals(planned.frame(0, 50))
    assert (folder.path / "_SUCCESS").is_file()
    assert not [path.name for path in folder.path.rglob("*.part")]
    assert not (folder.path / "failures.parquet").exists()
    assert last.result.trials.columns == ["trial_id", *planned.parameters, *MEASURES, "reason"]


def test_the_best_leave_their_equity_and_trades(steady: Strategy, panel: Panel, tmp_path: Path) -> None:
    no_effect = {"min_tvl": [None, 0.0], "power": [1.0, 2.0], "weighting": ["equal"]}
    result = sweep(plan(steady, no_effect), panel, out=tmp_path / "run")
    best = result.best(limit=80).unique(MEASURES, keep="first", maintain_order=True).head(10)
    assert best.height == 10
    assert best["annualized_return"].is_sorted(descending=True)
    assert best["annualized_return"][0] == result.trials["annualized_return"].max()
    assert result.equity["trial_id"].unique(maintain_order=True).to_list() == best["trial_id"].to_list()
    for row in best.iter_rows(named=True):
        equity = result.equity.filter(trial_id=row["trial_id"])
        assert equity.height == 90
        assert equity["equity_usd"][-1] == row["final_value"]
        trades = result.trades.filter(trial_id=row["trial_id"])
        assert trades.height == row["trades"]
        paid = (trades["cost_usd"] + trades["gas_usd"]).sum()
        assert paid == pytest.approx(row["cost_paid"], rel=1e-12)


def test_events_tell_how_far_it_is(steady: Strategy, panel: Panel, tmp_path: Path) -> None:
    events = list(run(plan(steady), panel, out=tmp_path / "run", chunk_trials=50))
    first, *chunks, last = events
    assert isinstance(first, Planned)
    assert (first.trials, first.signals, first.markets, first.done) == (216, 6, 1, 0)
    assert first.path == tmp_path / "run"
    assert isinstance(last, Finished)
    assert [chunk.done for chunk in chunks if isinstance(chunk, ChunkDone)] == [50, 100, 150, 200, 216]
    assert len(chunks) == first.chunks == 5
    seen = [chunk.best for chunk in chunks if isinstance(chunk, ChunkDone)]
    assert seen == sorted(seen)  # type: ignore[type-var]
    assert isinstance(chunks[-1], ChunkDone)
    assert chunks[-1].best == last.result.trials["annualized_return"].max()
    assert chunks[-1].best_trial == last.result.best(limit=1)["trial_id"][0]


def test_the_best_so_far_is_the_least_where_less_is_better(steady: Strategy, panel: Panel, tmp_path: Path) -> None:
    *chunks, last = run(plan(steady), panel, out=tmp_path / "run", chunk_trials=50, by="volatility")
    seen = [chunk.best for chunk in chunks if isinstance(chunk, ChunkDone)]
    assert isinstance(last, Finished)
    assert seen[-1] == last.result.trials["volatility"].min()
    assert seen == sorted(seen, reverse=True)  # type: ignore[type-var]
    assert last.result.equity["trial_id"][0] == last.result.best("volatility", 1)["trial_id"][0]


def test_a_point_without_a_signal_costs_only_its_trials(frail: Strategy, panel: Panel, tmp_path: Path) -> None:
    events = list(run(plan(frail), panel, out=tmp_path / "run"))
    result = events[-1].result  # type: ignore[union-attr]
    trials = result.trials
    assert trials.height == 10
    good = trials.filter(pl.col("reason").is_null())
    assert set(good["mood"]) == {"good"}
    assert good["final_value"].null_count() == 0
    bad = trials.filter(pl.col("reason").is_not_null())
    assert bad.select(MEASURES).null_count().row(0) == (8,) * len(MEASURES)
    reasons = dict(bad.select("mood", "reason").iter_rows())
    assert "ZeroDivisionError" in reasons["raise"]
    assert "shape (3,)" in reasons["shape"]
    assert "no view on any pool" in reasons["silent"]
    assert "infinite" in reasons["infinite"]
    assert result.failures.height == result.folder.manifest.failed == 8
    assert pl.read_parquet(result.path / "failures.parquet").equals(result.failures)
    assert result.folder.status == "partial"
    told = [event for event in events if isinstance(event, TrialsFailed)]
    assert sum(event.count for event in told) == 8
    assert set(result.equity["trial_id"]) == set(good["trial_id"])


def test_a_yield_that_compounds_beyond_numbers_fails_its_trials_only(steady: Strategy, tmp_path: Path) -> None:
    base = sweep_worlds.panel(rows=500)
    apy = base.raw("apy").copy()
    apy[20:, 0] = 1e300
    wild = base.with_fields({"apy": apy})
    result = sweep(plan(steady, {"sign": [1.0, -1.0]}), wild, out=tmp_path / "run")
    assert 0 < result.failures.height < result.trials.height
    assert "no finite positive number" in result.failures["reason"][0]
    assert result.folder.status == "partial"


def test_nothing_is_written_when_no_point_gives_a_signal(frail: Strategy, panel: Panel, tmp_path: Path) -> None:
    planned = plan(frail, {"mood": ["raise", "silent"]})
    with pytest.raises(StrategyError, match="ZeroDivisionError"):
        next(run(planned, panel, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_nothing_is_written_when_the_data_or_the_limits_do_not_allow_it(
    steady: Strategy, panel: Panel, tmp_path: Path
) -> None:
    from datetime import date

    out = tmp_path / "run"
    with pytest.raises(DataError, match="2020-01-01 lies outside the data"):
        next(run(plan(steady, start=date(2020, 1, 1)), panel, out=out))
    with pytest.raises(MemoryLimitError, match=r"need 137\.\d\d kB, more than the limit of 1\.00 kB"):
        next(run(plan(steady), panel, out=out, max_memory=1000))
    with pytest.raises(UsageError, match="unknown measure 'sharp'; did you mean 'sharpe'"):
        next(run(plan(steady), panel, out=out, by="sharp"))
    source = sweep_worlds.STEADY.replace('("apy",)', '("apy", "utilization_rate")')
    needy = sweep_worlds.strategy(tmp_path / "strategies", source, "needy")
    with pytest.raises(DataError, match="no field 'utilization_rate'"):
        next(run(plan(needy), panel, out=out))
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="is not empty"):
        next(run(plan(steady), panel, out=out))
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_a_small_memory_limit_makes_small_chunks_and_the_same_table(
    steady: Strategy, panel: Panel, tmp_path: Path
) -> None:
    planned = plan(steady)
    roomy = estimate(planned, panel)
    limit = roomy.peak_bytes - 150 * 1200
    tight = estimate(planned, panel, max_memory=limit)
    assert tight.peak_bytes <= limit < roomy.peak_bytes
    assert 1 <= tight.chunk_trials < roomy.chunk_trials
    one, other = swept(planned, panel, tmp_path / "a"), swept(planned, panel, tmp_path / "b", max_memory=limit)
    assert other.folder.manifest.config["chunk_trials"] == tight.chunk_trials
    assert bytes_of(one) == bytes_of(other)


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    steady: Strategy, panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    found = estimate(plan(steady, MARKETS), panel)
    assert (found.trials, found.signals, found.markets) == (864, 12, 4)
    assert found.seconds > 0
    assert sorted(tmp_path.rglob("*")) == before


@dataclass
class StopAfter:
    """Asks to stop once it has been looked at `times`."""

    times: int

    @property
    def requested(self) -> bool:
        self.times -= 1
        return self.times < 0


def test_a_stop_finishes_the_chunk_and_leaves_an_interrupted_run(
    steady: Strategy, panel: Panel, tmp_path: Path
) -> None:
    events = list(run(plan(steady), panel, out=tmp_path / "run", chunk_trials=50, stop=StopAfter(2)))
    last = events[-1]
    assert isinstance(last, Interrupted)
    assert (last.done, last.total) == (100, 216)
    folder = RunFolder(tmp_path / "run")
    assert folder.status == folder.manifest.status == "interrupted"
    assert len(folder.chunks()) == 2
    assert SweepResult.open(folder).trials.height == 100


def test_closing_the_events_leaves_an_interrupted_run(steady: Strategy, panel: Panel, tmp_path: Path) -> None:
    events = run(plan(steady), panel, out=tmp_path / "run", chunk_trials=50)
    next(events)
    events.close()  # type: ignore[attr-defined]
    folder = RunFolder(tmp_path / "run")
    assert folder.status == folder.manifest.status == "interrupted"
    with pytest.raises(DataError, match="has no finished trial yet"):
        _ = SweepResult.open(folder).trials


def test_measures_are_null_where_they_are_undefined(steady: Strategy, panel: Panel, tmp_path: Path) -> None:
    trials = sweep(plan(steady), panel, out=tmp_path / "run").trials
    floats = trials.select(pl.col(pl.Float64)).fill_null(0.0).to_numpy()
    assert np.isfinite(floats).all()


def test_the_example_in_the_documentation_runs(panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    _, example = (root / "docs" / "runs.md").read_text().split("```python\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strategies").symlink_to(root / "strategies")
    names: dict[str, object] = {"panel": panel, "signal": panel["apy"]}
    exec(example.split("```")[0], names)  # the text is our own
    assert isinstance(names["calm"], pl.DataFrame)
    assert (tmp_path / "my-run" / "_SUCCESS").is_file()
