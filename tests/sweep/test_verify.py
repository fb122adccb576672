"""`verify` finds a number in the table that no engine gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import sweep_worlds

from yieldlab.errors import AuditError, UsageError
from yieldlab.panel import Panel
from yieldlab.sweep import plan, sweep, verify

needs_vectorbt = pytest.mark.skipif(importlib.util.find_spec("vectorbt") is None, reason="vectorbt is not installed")


@needs_vectorbt
@pytest.mark.slow
def test_random_trials_agree_with_vectorbt(tmp_path: Path) -> None:
    panel = sweep_worlds.panel(rows=40)
    planned = plan(sweep_worlds.strategy(tmp_path), {"gas_usd": [0.0, 2.0], "accrual": ["trailing", "leading"]})
    result = sweep(planned, panel, out=tmp_path / "run")
    found = verify(result, planned, panel, 6, seed=3)
    assert found.trials == 6
    assert 0.0 <= found.largest_difference <= 1e-9


@needs_vectorbt
@pytest.mark.slow
@pytest.mark.parametrize("measure", ["final_value", "sharpe", "trades"])
def test_a_wrong_number_in_the_table_is_found(tmp_path: Path, measure: str) -> None:
    panel = sweep_worlds.panel(rows=40)
    planned = plan(sweep_worlds.strategy(tmp_path), sample=3, seed=1)
    result = sweep(planned, panel, out=tmp_path / "run")
    shifted = pl.col(measure) + 1 if measure == "trades" else pl.col(measure) * (1 + 1e-8)
    result.folder.write_frame("trials.parquet", result.trials.with_columns(shifted))
    with pytest.raises(AuditError, match=f"{measure} is .* in the table and .* when run alone"):
        verify(result, planned, panel, 3)


@needs_vectorbt
@pytest.mark.slow
def test_what_fell_too_far_to_be_replayed_is_told_and_is_no_difference(tmp_path: Path) -> None:
    apy = np.full((60, 3), 0.05)
    apy[10:, :2] = np.nan
    times = np.datetime64("2024-01-01") + np.arange(60)
    ids = pl.DataFrame({"pool_id": ["a", "b", "c"]})
    panel = Panel(times, ids, {"apy": apy, "tvl_usd": np.array([2e6, 1e6, 1e3]) + 0.0 * np.nan_to_num(apy)})
    lost = {"delisted": ["loss"], "delisted_loss": [1 - 3e-9, 0.5], "dead_after_days": [5], "max_stale_days": [5]}
    traded = {"top_n": [2], "every": [1], "cost": [0.001], "weighting": ["tvl"], "power": [1.0]}
    named = {"lookback": [1], "sign": [1.0]}
    strategy = sweep_worlds.strategy(tmp_path)
    planned = plan(strategy, {**lost, **traded, **named, "min_tvl": [1e5]})
    result = sweep(planned, panel, out=tmp_path / "run")
    found = verify(result, planned, panel, 2)
    assert (found.trials, found.not_comparable) == (1, 1)
    assert found.largest_difference <= 1e-9
    spoilt = result.trials.with_columns(pl.col("final_value") * (1 + 1e-8))  # they are still held to the table
    result.folder.write_frame("trials.parquet", spoilt)
    with pytest.raises(AuditError, match=r"in the table and .* when run alone"):
        verify(result, planned, panel, 2)


def test_a_table_of_another_plan_is_found(tmp_path: Path) -> None:
    panel = sweep_worlds.panel(rows=40)
    strategy = sweep_worlds.strategy(tmp_path)
    result = sweep(plan(strategy, sample=3, seed=1), panel, out=tmp_path / "run")
    with pytest.raises(AuditError, match="is not trial"):
        verify(result, plan(strategy, sample=3, seed=2), panel, 1)
    with pytest.raises(UsageError, match="at least 1 trial must be verified, not 0"):
        verify(result, plan(strategy, sample=3, seed=1), panel, 0)


@needs_vectorbt
@pytest.mark.slow
def test_engines_that_differ_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from yieldlab.simulate import replay

    panel = sweep_worlds.panel(rows=40)
    planned = plan(sweep_worlds.strategy(tmp_path), sample=3, seed=1)
    result = sweep(planned, panel, out=tmp_path / "run")
    monkeypatch.setattr(replay, "largest_difference", lambda market, ledger: 2e-9)
    with pytest.raises(AuditError, match=r"vectorbt's equity differs by 2\.0e-09, more than 1e-09"):
        verify(result, planned, panel, 1)
