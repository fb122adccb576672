"""What people see of an evaluation: percentage points, dashes, and in words who does not beat persistence."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from yieldlab.forecast.evaluate import Evaluation, compare
from yieldlab.panel import Panel
from yieldlab.report import models, terminal


@pytest.fixture(autouse=True)
def _page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def evaluated(rows: int = 90, protocols: tuple[str, ...] = ("aave-v3", "curve-dex")) -> Evaluation:
    g = np.random.default_rng(2)
    apy = 0.05 + np.cumsum(g.normal(0.0, 0.002, (rows, 6)), axis=0)
    pools = pl.DataFrame({"pool_id": list("abcdef"), "protocol": [protocols[i % len(protocols)] for i in range(6)]})
    panel = Panel(np.datetime64("2024-01-01", "D") + np.arange(rows), pools, {"apy": apy})
    truth = np.vstack([apy[7:], np.full((7, 6), np.nan)])
    truth[:40] = np.nan
    holes = apy + 0.02
    holes[50, :4] = np.nan
    return compare(panel, {"seer": truth, "worse": holes}, horizon=7, block_days=10, draws=50)


def printed(capsys: pytest.CaptureFixture[str], evaluation: Evaluation) -> str:
    terminal.show(models.evaluation_lines(evaluation))
    return capsys.readouterr().out


def test_errors_are_percentage_points_and_skill_is_in_percent(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = evaluated()
    worse = evaluation.overall.row(2, named=True)
    line = next(line for line in printed(capsys, evaluation).splitlines() if line.startswith("worse"))
    for shown in (
        f"{worse['rmse'] * 100:.3f}",
        f"{worse['mae'] * 100:.3f}",
        f"{worse['skill'] * 100:.1f} %",
        f"{worse['skill_low'] * 100:.1f} % to {worse['skill_high'] * 100:.1f} %",
        f"{worse['rank_correlation']:.3f}",
    ):
        assert f" {shown}" in line


def test_a_model_that_does_not_beat_persistence_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, evaluated())
    assert "seer beats persistence: skill 100.0 %, 95 % interval 100.0 % to 100.0 %" in out.replace("\n", " ")
    assert "\nworse does not beat persistence: skill -" in out
    assert "persistence beats" not in out


def test_too_few_days_for_an_interval_are_told_and_what_is_undefined_is_a_dash(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = printed(capsys, evaluated(rows=62))
    assert "seer does not beat persistence: skill 100.0 %, on too few days for an interval" in out.replace("\n", " ")
    assert next(line for line in out.splitlines() if line.startswith("30 days")).split()[3:] == ["0"] + ["-"] * 6
    for word in ("nan", "inf ", "None"):
        assert word not in out


def test_what_was_compared_is_told_with_what_each_model_lacked(capsys: pytest.CaptureFixture[str]) -> None:
    out = " ".join(printed(capsys, evaluated()).split())
    assert "254 cells (6 pools, 43 days from 2024-02-10 to 2024-03-23) of 498 that have today's APY" in out
    assert "the same cells; seer lacked 240; worse lacked 4" in out
    assert "50 draws of blocks of 10 days (seed 0)" in out
    assert "MASE over 6 of 6 pools" in out


def test_protocols_stand_side_by_side_where_there_are_several(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, evaluated())
    assert "aave_v3" in out
    assert "curve" in out
    assert "By protocol" not in printed(capsys, evaluated(protocols=("aave-v3",)))


def test_an_exact_persistence_leaves_no_skill_to_speak_of(capsys: pytest.CaptureFixture[str]) -> None:
    apy = np.full((40, 3), 0.05)
    panel = Panel(
        np.datetime64("2024-01-01", "D") + np.arange(40), pl.DataFrame({"pool_id": list("abc")}), {"apy": apy}
    )
    out = printed(capsys, compare(panel, {"same": apy}, horizon=7, block_days=5, draws=20))
    assert "same does not beat persistence: persistence made no error" in out


@pytest.mark.parametrize("columns", ["80", "120"])
def test_no_line_of_words_is_broken_on_a_page_of_ordinary_width(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    out = printed(capsys, evaluated())
    assert out.count("persistence  ") == 1 + 2 + 5
