"""An ensemble walks forward on its members' walk-forwards: what it weighs by, what it combines, and what it refuses."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from yieldlab import runs
from yieldlab.errors import DataError, UsageError
from yieldlab.folds import inner
from yieldlab.forecast.fold_ensemble import walk_forward_ensemble, weights_of
from yieldlab.forecast.walk_forward import Finished, FoldFailed, FoldPlan, walk_forward
from yieldlab.panel import Panel
from yieldlab.runs import RunFolder
from yieldlab.store import Store
from yieldlab.testing import assert_causal, tiny_panel

NAN = math.nan
SETTINGS = {"horizon": 3, "lookback": 5}
PLAN = FoldPlan(train=45, step=12, purge=3, embargo=1)
FIRST = 45 + 3 + 1
MEMBERS = ("ewma", "persistence", "pool_mean")


@pytest.fixture(scope="module")
def panel() -> Panel:
    return tiny_panel(times=110, pools=4, seed=5)


def walked(panel: Panel, root: Path, names: tuple[str, ...] = MEMBERS) -> dict[str, pl.DataFrame]:
    """Member -> its rows."""
    found = {}
    for name in names:
        *_, last = walk_forward(panel, name, SETTINGS, folds=PLAN, store=None, root=root)
        assert isinstance(last, Finished)
        found[name] = pl.read_parquet(last.path / "predictions.parquet")
    return found


def combined(panel: Panel, root: Path, how: str = "inverse_error", **options: object) -> Finished:
    options = {"store": None, "horizon": 3, **options}
    *_, last = walk_forward_ensemble(panel, MEMBERS, how, folds=PLAN, root=root, **options)  # type: ignore[arg-type]
    assert isinstance(last, Finished)
    return last


def dense(panel: Panel, rows: pl.DataFrame) -> np.ndarray:
    values = np.full(panel.shape, np.nan)
    day = {time: t for t, time in enumerate(panel.times.astype("datetime64[D]").tolist())}
    for row in rows.iter_rows(named=True):
        values[day[row["valid_at"].date()], panel.pool_ids.index(row["pool_id"])] = row["prediction"]
    return values


def test_it_is_what_a_plain_loop_over_folds_and_cells_gives(panel: Panel, tmp_path: Path) -> None:
    members = walked(panel, tmp_path)
    last = combined(panel, tmp_path)
    rows = pl.read_parquet(last.path / "predictions.parquet")
    apy = panel.raw("apy")
    expected, weights = np.full(panel.shape, NAN), []
    for fold in PLAN.folds(110):
        parts = {
            (name, part): dense(panel, member.filter((pl.col("fold") == fold.number) & (pl.col("part") == part)))
            for name, member in members.items()
            for part in ("validation", "test")
        }
        _, (begin, end) = inner(fold.train, 0.15, purge=3)
        cells = [
            (t, n)
            for t in range(begin, end)
            for n in range(4)
            if not any(math.isnan(parts[name, "validation"][t, n]) for name in MEMBERS)
            and not math.isnan(apy[t + 3, n])
        ]
        size = float(np.median([abs(apy[t + 3, n]) for t, n in cells]))
        inverse = {}
        for name in MEMBERS:
            errors = [
                math.asinh(parts[name, "validation"][cell] / size) - math.asinh(apy[cell[0] + 3, cell[1]] / size)
                for cell in cells
            ]
            inverse[name] = len(cells) / math.fsum(error * error for error in errors)
        weights += [(fold.number, name, inverse[name] / sum(inverse.values()), len(cells)) for name in MEMBERS]
        for t in range(*fold.predict):
            for n in range(4):
                there = {name: parts[name, "test"][t, n] for name in MEMBERS}
                there = {name: value for name, value in there.items() if not math.isnan(value)}
                if there:
                    total = sum(inverse[name] for name in there)
                    expected[t, n] = sum(inverse[name] * value for name, value in there.items()) / total
    np.testing.assert_allclose(dense(panel, rows), expected, rtol=1e-9)
    told = weights_of(RunFolder(last.path))
    assert told.select("fold", "member", "cells").rows() == [row[:2] + row[3:] for row in weights]
    assert told["weight"].to_list() == pytest.approx([row[2] for row in weights])


def test_it_knew_what_its_members_and_the_truth_of_the_validation_days_knew(panel: Panel, tmp_path: Path) -> None:
    members = walked(panel, tmp_path)
    for how in ("inverse_error", "mean"):
        rows = pl.read_parquet(combined(panel, tmp_path, how).path / "predictions.parquet")
        latest = members["pool_mean"].filter(pl.col("part") == "test").group_by("fold").agg(pl.max("trained_through"))
        own = rows.group_by("fold").agg(pl.max("trained_through"))
        assert own.sort("fold").equals(latest.sort("fold"))
        assert rows.filter(pl.col("trained_through") >= pl.col("valid_at")).is_empty()
        assert rows["field"].unique().to_list() == ["forecast_ensemble"]


def test_what_weighs_members_that_are_not_fitted_counts_as_seen(panel: Panel, tmp_path: Path) -> None:
    walked(panel, tmp_path, ("persistence", "ewma"))
    through = {}
    for how in ("inverse_error", "mean"):
        events = walk_forward_ensemble(
            panel, ["persistence", "ewma"], how, horizon=3, folds=PLAN, store=None, root=tmp_path
        )
        *_, last = events
        assert isinstance(last, Finished)
        rows = pl.read_parquet(last.path / "predictions.parquet")
        through[how] = rows["trained_through"].min().date().isoformat()  # type: ignore[union-attr]
    # training rows end before row 45, and the label of row 44 is read at row 47; nothing is fitted for a mean
    assert through == {"inverse_error": "2024-02-17", "mean": "2023-12-31"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["inverse_error", "mean"])
def test_no_combined_forecast_depends_on_a_later_day(panel: Panel, how: str) -> None:
    def forecasts(panel: Panel) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            walked(panel, Path(folder))
            last = combined(panel, Path(folder), how)
            return dense(panel, pl.read_parquet(last.path / "predictions.parquet"))

    assert_causal(forecasts, panel, name="ensemble", rows=(52, 62, 84, 108), warmup=FIRST, tolerance=1e-12)


def test_it_is_stored_and_reused_until_a_member_is_walked_anew(panel: Panel, tmp_path: Path) -> None:
    store, root = Store(tmp_path), tmp_path / "runs"
    walked(panel, root)
    once = combined(panel, root, store=store)
    assert combined(panel, root, store=store).reused
    assert store.forecast_runs()["fields"].to_list() == ["forecast_ensemble"]
    list(walk_forward(panel, "ewma", SETTINGS, folds=PLAN, store=None, root=root, fresh=True))
    again = combined(panel, root, store=store)
    assert not again.reused
    assert again.path != once.path


def test_a_member_that_failed_in_a_fold_is_left_out_there_and_counted(tmp_path: Path) -> None:
    panel = tiny_panel(times=110, pools=4, seed=5)
    fields = {name: panel.raw(name).copy() for name in panel.fields}
    for values in fields.values():
        values[:15] = NAN
    panel = panel.with_fields(fields)
    *events, last = walk_forward(
        panel, "ar", {**SETTINGS, "lags": 4}, folds=PLAN, store=None, root=tmp_path
    )  # 25 samples are not there in the first fold
    assert isinstance(last, Finished)
    assert [event.number for event in events if isinstance(event, FoldFailed)] == [0]
    walked(panel, tmp_path, ("persistence", "ewma"))
    *_, last = walk_forward_ensemble(
        panel, ["ar", "persistence", "ewma"], horizon=3, folds=PLAN, store=None, root=tmp_path
    )
    assert isinstance(last, Finished)
    told = weights_of(RunFolder(last.path))
    assert told.filter(pl.col("fold") == 0)["member"].to_list() == ["ewma", "persistence"]
    rows = pl.read_parquet(last.path / "predictions.parquet")
    assert told.filter(pl.col("fold") == 0)["lacking"].unique().to_list() == [rows.filter(pl.col("fold") == 0).height]
    assert told.filter(pl.col("fold") == 1)["member"].to_list() == ["ar", "ewma", "persistence"]


def test_a_member_without_a_run_on_this_data_is_named_with_the_command_that_makes_one(
    panel: Panel, tmp_path: Path
) -> None:
    walked(panel, tmp_path, ("pool_mean", "ewma"))
    other_folds = FoldPlan("expanding", 44, 12, 3, 7, first=60)
    for members, folds, other, command in (
        (["pool_mean", "lstm"], PLAN, panel, "lstm --train 45d --step 12d --embargo 1d --set horizon=3"),
        (
            ["pool_mean", "ewma"],
            other_folds,
            panel,
            "ewma --folds expanding --train 44d --step 12d --start 2024-03-01 --set horizon=3",
        ),
        (["ewma", "pool_mean"], PLAN, panel.with_fields({"apy": panel.raw("apy") * 1.1}), "ewma --train 45d"),
    ):
        with pytest.raises(DataError, match=rf"`yieldlab models walk-forward {command}[^`]*` makes one"):
            list(walk_forward_ensemble(other, members, horizon=3, folds=folds, store=None, root=tmp_path))
    assert {run.strategies for run in runs.listed(tmp_path)} == {()}
    assert len(runs.listed(tmp_path)) == 2


def test_a_member_that_lost_a_fold_is_not_taken_for_one_that_failed_in_it(panel: Panel, tmp_path: Path) -> None:
    walked(panel, tmp_path)
    (folder,) = (each for each in runs.listed(tmp_path) if RunFolder(each.path).manifest.config["model"] == "ewma")
    chunk = RunFolder(folder.path).chunks()[1]
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=r"has lost its forecasts of fold 1; `yieldlab models walk-forward ewma .*--fresh`"
    ):
        combined(panel, tmp_path)
    assert len(runs.listed(tmp_path)) == len(MEMBERS)


def test_members_that_carried_values_otherwise_are_others(panel: Panel, tmp_path: Path) -> None:
    walked(panel, tmp_path)
    stale = Panel(panel.times, panel.pools, {name: panel.raw(name) for name in panel.fields}, max_stale_days=2)
    assert stale.digest() == panel.digest()
    with pytest.raises(DataError, match="no finished walk-forward of 'ewma'"):
        combined(stale, tmp_path)


@pytest.mark.parametrize(
    ("members", "how", "match"),
    [
        (["lstm"], "mean", "two or more different members, not lstm"),
        (["lstm", "lstm"], "mean", "two or more different members"),
        (["lstm", "risk"], "mean", "'risk' cannot be a member"),
        (["lstm", "xgbost"], "mean", "did you mean 'xgboost'"),
        (["lstm", "ar"], "inverse_eror", "did you mean 'inverse_error'"),
    ],
)
def test_members_that_cannot_be_are_refused(
    panel: Panel, tmp_path: Path, members: list[str], how: str, match: str
) -> None:
    with pytest.raises(UsageError, match=match):
        list(walk_forward_ensemble(panel, members, how, store=None, root=tmp_path))
