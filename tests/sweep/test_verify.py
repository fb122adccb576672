"""`verify` finds a number in the table that no engine gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import polars as pl
import pytest
import sweep_worlds

from yieldlab.errors import AuditError, UsageError
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
