"""A walk-forward forecasts each day from the days before it alone, and ends the same however often it was cut short."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from yieldlab import runs
from yieldlab.errors import AuditError, CausalityError, DataError, UsageError
from yieldlab.features.sets import FeatureBlock
from yieldlab.folds import Rows
from yieldlab.forecast import walk_forward as module
from yieldlab.forecast.fold_runs import ROWS
from yieldlab.forecast.protocol import EpochDone
from yieldlab.forecast.registry import MODELS, windows_of
from yieldlab.forecast.scaling import Scaler, YieldTransform
from yieldlab.forecast.walk_forward import (
    Event,
    Finished,
    FoldDone,
    FoldFailed,
    FoldPlan,
    Interrupted,
    Planned,
    walk_forward,
)
from yieldlab.forecast.windows import Windows
from yieldlab.panel import Panel
from yieldlab.runs import RunFolder
from yieldlab.store import Store
from yieldlab.testing import assert_causal, tiny_panel

SMALL = {"horizon": 3, "lookback": 5}
SHORT = {**SMALL, "lags": 2}
PLAN = FoldPlan(train=45, step=12, purge=3, embargo=1)
FIRST = 45 + 3 + 1

#: Rows that the future is cut off or altered from: inside of a fold, at its first row and after it.
CUTS = (52, 61, 62, 84, 108)

#: A process that walks forward and dies, by SIGKILL, right after its second fold.
WORKER = """
import os, signal, sys
from pathlib import Path
from yieldlab.forecast.walk_forward import FoldDone, FoldPlan, walk_forward
from yieldlab.store import Store
from yieldlab.testing import tiny_panel

folder = Path(sys.argv[1])
plan = FoldPlan(train=45, step=12, purge=3, embargo=1)
settings = {"horizon": 3, "lookback": 5, "lags": 2}
panel = tiny_panel(times=110, pools=4, seed=3)
for event in walk_forward(panel, "ar", settings, folds=plan, store=Store(folder), root=folder / "runs"):
    if isinstance(event, FoldDone) and event.done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def panel() -> Panel:
    return tiny_panel(times=110, pools=4, seed=3)


class Stop:
    """Asks for an end as soon as so many folds are done."""

    requested = False


class Line:
    """A least-squares line on the scaled features of a window's last day: the simplest model that reads them."""

    def __init__(self, name: str, settings: Mapping[str, object]) -> None:
        self.name, self.settings, self.trained_through = name, settings, -1

    def fit(self, windows: Windows, train: Rows, valid: Rows | None) -> Iterator[EpochDone]:
        t, n = windows.samples(train, labelled=True)
        self.scaler = Scaler.fit(windows, t, n)
        self.transform = YieldTransform.fit(windows.label[t, n])
        inputs = self.scaler.apply(windows)[n, t].astype(np.float64)
        gram = inputs.T @ inputs + 0.1 * np.eye(inputs.shape[1])
        self.slopes = np.linalg.solve(gram, inputs.T @ self.transform.forward(windows.label[t, n]))
        self.trained_through = int(t.max()) + windows.horizon
        yield EpochDone(1, 1, 0.0, None, best=True)

    def fields(self, windows: Windows, rows: Rows) -> dict[str, np.ndarray]:
        t, n = windows.samples(rows, labelled=False)
        result = np.full((rows[1] - rows[0], windows.shape[1]), np.nan)
        scaled = self.scaler.apply(windows)[n, t].astype(np.float64)
        result[t - rows[0], n] = self.transform.inverse((scaled * self.slopes).sum(axis=1))
        return {"forecast_line": result}


def walked(panel: Panel, name: str, root: Path, **options: object) -> list[Event]:
    options = {"folds": PLAN, "store": None, **options}
    return list(walk_forward(panel, name, SHORT if name == "ar" else SMALL, root=root, **options))  # type: ignore[arg-type]


def predictions(event: Event) -> pl.DataFrame:
    assert isinstance(event, Finished)
    return pl.read_parquet(event.path / "predictions.parquet")


def dense(panel: Panel, rows: pl.DataFrame, part: str = "test") -> np.ndarray:
    """(T, N) forecasts of one part, NaN where there is none."""
    values = np.full(panel.shape, np.nan)
    day = {time: t for t, time in enumerate(panel.times.astype("datetime64[D]").tolist())}
    for row in rows.filter(pl.col("part") == part).iter_rows(named=True):
        cell = day[row["valid_at"].date()], panel.pool_ids.index(row["pool_id"])
        assert math.isnan(values[cell])
        values[cell] = row["prediction"]
    return values


def forecasts_of(name: str, panel: Panel) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        return dense(panel, predictions(walked(panel, name, Path(folder))[-1]))


# -- what is forecast -----------------------------------------------------------------------------------------------


def test_a_pool_that_earns_its_day_number_is_forecast_by_the_mean_of_its_training_labels(tmp_path: Path) -> None:
    times = np.datetime64("2024-01-01", "D") + np.arange(31)
    apy = np.arange(31.0)[:, None] / 1000.0
    panel = Panel(times, pl.DataFrame({"pool_id": ["a"]}), {"apy": apy, "tvl_usd": np.full((31, 1), 1e6)})
    plan = FoldPlan(train=10, step=9, purge=2, embargo=1)
    *_, last = walk_forward(panel, "pool_mean", {"horizon": 2, "lookback": 1}, folds=plan, store=None, root=tmp_path)
    rows = predictions(last)
    assert rows.schema == ROWS
    told = [
        (fold, part, first.date().isoformat(), count, round(value, 12), through.date().isoformat())
        for fold, part, first, count, value, through in rows.group_by("fold", "part", maintain_order=True)
        .agg(pl.col("valid_at").min(), pl.len(), pl.col("prediction").mean(), pl.col("trained_through").max())
        .rows()
    ]
    assert told == [  # rows 0..9 have the labels 2..11; without the validation rows 0..5 have 2..7
        (0, "test", "2024-01-14", 9, 0.0065, "2024-01-12"),
        (0, "validation", "2024-01-09", 2, 0.0045, "2024-01-08"),
        (1, "test", "2024-01-23", 9, 0.0155, "2024-01-21"),
        (1, "validation", "2024-01-18", 2, 0.0135, "2024-01-17"),
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode", ["rolling", "expanding"])
def test_pool_means_are_those_of_a_plain_loop_over_folds(mode: str, seed: int, tmp_path: Path) -> None:
    panel = tiny_panel(times=110, pools=6, seed=seed)
    plan = FoldPlan(mode, train=40, step=17, purge=4, embargo=2)
    *_, last = walk_forward(panel, "pool_mean", SMALL, folds=plan, store=None, root=tmp_path)
    raw, carried = panel.raw("apy").tolist(), panel["apy"].tolist()

    def usable(t: int, n: int) -> bool:
        window = [carried[row][n] for row in range(t - 4, t + 1)] if t >= 4 else [math.nan]
        return not math.isnan(window[-1]) and sum(not math.isnan(value) for value in window) >= 4

    expected = np.full(panel.shape, np.nan)
    for begin in range(46, 110, 17):
        learned = range(begin - 6 - 40 if mode == "rolling" else 0, begin - 6)
        for n in range(6):
            labels = [raw[t + 3][n] for t in learned if usable(t, n) and not math.isnan(raw[t + 3][n])]
            for t in range(begin, min(begin + 17, 110)):
                if labels and usable(t, n):
                    expected[t, n] = math.fsum(labels) / len(labels)
    np.testing.assert_allclose(dense(panel, predictions(last)), expected, rtol=1e-12)


def test_what_made_a_forecast_is_older_than_its_day_and_the_panel_reads_it(panel: Panel, tmp_path: Path) -> None:
    for name in ("pool_mean", "ar", "persistence"):
        rows = predictions(walked(panel, name, tmp_path / "runs", store=Store(tmp_path))[-1])
        unseen = rows.filter(pl.col("part") == "test")
        assert unseen.height > 100
        assert unseen.filter(pl.col("trained_through") >= pl.col("valid_at")).is_empty()
        # with a purge and an embargo no label reaches nearer than the embargo
        gap = (pl.col("valid_at").min().over("fold") - pl.col("trained_through")).dt.total_days()
        assert unseen.select(gap.min()).item() >= PLAN.embargo + 1


# -- causality ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pool_mean", "ar"])
def test_no_forecast_depends_on_a_later_day(panel: Panel, name: str) -> None:
    assert_causal(lambda panel: forecasts_of(name, panel), panel, name=name, rows=CUTS, warmup=FIRST, tolerance=1e-12)


def audit_line(panel: Panel) -> None:
    assert_causal(
        lambda panel: forecasts_of("line", panel), panel, name="line", rows=CUTS, warmup=FIRST, tolerance=1e-9
    )


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> None:
    """`line` is a model that the walk-forward knows."""
    monkeypatch.setattr(module, "make", Line)
    monkeypatch.setattr(module, "settings_of", lambda name, given: {**SMALL, "features": "study"})
    monkeypatch.setitem(MODELS, "line", MODELS["persistence"])  # type: ignore[arg-type]  # a Mapping to its readers


@pytest.mark.usefixtures("line")
def test_a_model_that_reads_the_features_passes(panel: Panel) -> None:
    audit_line(panel)


@pytest.mark.usefixtures("line")
def test_a_label_among_the_features_is_found(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(panel: Panel, settings: Mapping[str, object]) -> Windows:
        windows = windows_of(panel, settings)  # type: ignore[arg-type]
        label = windows.label.T[:, :, None].astype(np.float32)
        values = np.concatenate([windows.block.values, label], axis=2)
        block = FeatureBlock((*windows.block.names, "apy_in_3d"), values, windows.block.protocols)
        return Windows(
            panel, block, "study", windows.lookback, windows.horizon, windows.label, windows.last, windows.usable
        )

    monkeypatch.setattr(module, "windows_of", leaking)
    with pytest.raises(CausalityError, match="line depends on the future"):
        audit_line(panel)


@pytest.mark.usefixtures("line")
def test_a_scaler_fitted_on_everything_is_found(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Scaler.fit

    def leaking(windows: Windows, t: np.ndarray, n: np.ndarray) -> Scaler:
        return fit(windows, *np.nonzero(windows.usable))

    monkeypatch.setattr(Scaler, "fit", leaking)
    with pytest.raises(CausalityError, match="line depends on the future"):
        audit_line(panel)


@pytest.mark.usefixtures("line")
def test_having_seen_the_first_day_that_is_forecast_is_one_day_too_much(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(Line):
        through = FIRST

        def fit(self, windows: Windows, train: Rows, valid: Rows | None) -> Iterator[EpochDone]:
            yield from super().fit(windows, train, valid)
            self.trained_through = max(self.trained_through, self.through)

    monkeypatch.setattr(module, "make", Late)
    with pytest.raises(AuditError, match="fold 0 forecasts 2024-02-19"):
        walked(panel, "line", tmp_path)
    Late.through = FIRST - 1
    assert isinstance(walked(panel, "line", tmp_path)[-1], Finished)


@pytest.mark.usefixtures("line")
def test_a_model_that_saw_what_it_forecasts_is_refused(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(Line):
        def fit(self, windows: Windows, train: Rows, valid: Rows | None) -> Iterator[EpochDone]:
            yield from super().fit(windows, (train[0], train[1] + 30), valid)

    monkeypatch.setattr(module, "make", Late)
    with pytest.raises(AuditError, match=r"fold 0 forecasts 2024-02-19 to 2024-03-01 \(rows 49 to 60\) with values up"):
        walked(panel, "line", tmp_path, store=Store(tmp_path / "data"))
    (run,) = runs.listed(tmp_path)
    assert run.status == "failed"
    assert run.detail.startswith("AuditError: fold 0")
    assert Store(tmp_path / "data").forecast_runs().is_empty()


# -- going on -------------------------------------------------------------------------------------------------------


def kept(folder: Path, event: Event) -> tuple[bytes, pl.DataFrame]:
    """What a run left on disk and in the store."""
    assert isinstance(event, Finished)
    assert event.stored_as is not None
    rows = Store(folder).forecasts(event.stored_as).drop("run_id", "created_at")
    return (event.path / "predictions.parquet").read_bytes(), rows


def test_a_walk_killed_after_two_folds_ends_with_the_same_rows(panel: Panel, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = kept(whole, walked(panel, "ar", whole / "runs", store=Store(whole))[-1])
    died = subprocess.run([sys.executable, "-c", WORKER, str(cut)], check=False)
    assert died.returncode == -signal.SIGKILL
    (left,) = runs.listed(cut / "runs")
    assert left.status == "interrupted"
    assert Store(cut).forecast_runs().is_empty()
    before = RunFolder(left.path).chunks()
    first, *between, last = walked(panel, "ar", cut / "runs", store=Store(cut))
    assert isinstance(first, Planned)
    assert (first.run_id, first.done, first.folds) == (left.id, 2, 6)
    assert [event.done for event in between if isinstance(event, FoldDone)] == [3, 4, 5, 6]
    assert before.items() <= RunFolder(left.path).chunks().items()
    bytes_, rows = kept(cut, last)
    assert bytes_ == expected[0]
    assert rows.equals(expected[1])


def test_a_walk_stopped_again_and_again_computes_no_fold_twice(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = predictions(walked(panel, "ar", tmp_path / "whole")[-1])
    computed: list[int] = []
    forecast = module._forecast
    monkeypatch.setattr(
        module, "_forecast", lambda *given: (computed.append(given[-1].number), (yield from forecast(*given)))[1]
    )
    for sitting in range(6):
        stop, events = Stop(), []
        for event in walk_forward(panel, "ar", SHORT, folds=PLAN, store=None, root=tmp_path / "cut", stop=stop):
            events.append(event)
            stop.requested = isinstance(event, FoldDone)
        if sitting < 5:
            assert isinstance(events[-1], Interrupted)
            assert events[-1].done == sitting + 1
    assert computed == list(range(6))
    assert predictions(events[-1]).equals(expected)
    assert len(runs.listed(tmp_path / "cut")) == 1


def test_a_generator_that_is_closed_leaves_an_interrupted_run(panel: Panel, tmp_path: Path) -> None:
    events = walk_forward(panel, "ar", SHORT, folds=PLAN, store=None, root=tmp_path)
    next(events), next(events)
    events.close()  # type: ignore[attr-defined]
    assert [run.status for run in runs.listed(tmp_path)] == ["interrupted"]


def test_a_finished_walk_is_reused_until_something_changes(panel: Panel, tmp_path: Path) -> None:
    store, root = Store(tmp_path), tmp_path / "runs"
    once = walked(panel, "ar", root, store=store)[-1]
    again = walked(panel, "ar", root, store=store)
    assert [type(event) for event in again] == [Planned, Finished]
    assert isinstance(once, Finished)
    assert isinstance(again[-1], Finished)
    assert again[-1].reused
    assert again[-1].path == once.path
    assert store.forecast_runs().height == 1
    altered = panel.with_fields({"apy": panel.raw("apy") * 1.5})
    for other, options in (
        (altered, {}),
        (panel.with_max_stale_days(1), {}),
        (panel, {"folds": FoldPlan(train=46, step=12, purge=3, embargo=1)}),
        (panel, {"fresh": True}),
    ):
        last = walked(other, "ar", root, store=store, **options)[-1]
        assert isinstance(last, Finished)
        assert not last.reused
        assert last.path != once.path
    assert store.forecast_runs().height == 5


def test_a_reused_walk_is_again_the_one_that_the_panel_reads(panel: Panel, tmp_path: Path) -> None:
    store, root = Store(tmp_path), tmp_path / "runs"
    mine = walked(panel, "ar", root, store=store)[-1]
    walked(panel, "ar", root, store=store, folds=FoldPlan(train=46, step=12, purge=3, embargo=1))
    assert isinstance(mine, Finished)
    for _ in range(2):
        last = walked(panel, "ar", root, store=store)[-1]
        assert isinstance(last, Finished)
        assert last.reused
        assert last.stored_as == f"{mine.run_id}.2" == store.forecast_runs()["run_id"][-1]
    assert store.forecast_runs().height == 3


def test_a_walk_asked_for_afresh_and_interrupted_is_gone_on_with(panel: Panel, tmp_path: Path) -> None:
    once = walked(panel, "ar", tmp_path)[-1]

    class Later:
        requested = False

    stop = Later()
    for event in walk_forward(panel, "ar", SHORT, folds=PLAN, store=None, root=tmp_path, stop=stop, fresh=True):
        stop.requested = stop.requested or isinstance(event, FoldDone)
    assert isinstance(event, Interrupted)
    begun = walk_forward(panel, "ar", SHORT, folds=PLAN, store=None, root=tmp_path, fresh=True)
    next(begun)
    begun.close()  # type: ignore[attr-defined]
    newest = RunFolder(runs.listed(tmp_path)[0].path)
    newest.update(status="failed")  # one that fails after it is not taken for it
    first, *_, last = walked(panel, "ar", tmp_path)
    assert isinstance(first, Planned)
    assert isinstance(last, Finished)
    assert isinstance(once, Finished)
    assert (first.run_id, first.done, last.reused) == (event.run_id, 1, False)
    assert last.run_id != once.run_id


def test_a_finished_walk_that_is_damaged_says_how_to_get_another(panel: Panel, tmp_path: Path) -> None:
    last = walked(panel, "ar", tmp_path)[-1]
    assert isinstance(last, Finished)
    file = last.path / "predictions.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="the same command with --fresh makes another run"):
        walked(panel, "ar", tmp_path)


def test_a_walk_that_is_done_on_disk_is_brought_to_a_store_that_lacks_it(panel: Panel, tmp_path: Path) -> None:
    walked(panel, "ar", tmp_path / "runs")
    last = walked(panel, "ar", tmp_path / "runs", store=Store(tmp_path))[-1]
    assert isinstance(last, Finished)
    assert last.reused
    assert Store(tmp_path).forecast_runs()["rows"].to_list() == [last.rows]


# -- failing --------------------------------------------------------------------------------------------------------


def quiet_until(row: int) -> Panel:
    """A panel of 110 days with nothing observed before `row`."""
    panel = tiny_panel(times=110, pools=4, seed=3)
    fields = {name: panel.raw(name).copy() for name in panel.fields}
    for values in fields.values():
        values[:row] = np.nan
    return panel.with_fields(fields)


def test_a_fold_that_fails_costs_that_fold_only(tmp_path: Path) -> None:
    store = Store(tmp_path)
    events = walked(quiet_until(50), "ar", tmp_path / "runs", store=store)
    failed = [event for event in events if isinstance(event, FoldFailed)]
    assert [event.number for event in failed] == [0, 1, 2]
    assert "the history is too short" in failed[0].reason
    assert [event.number for event in events if isinstance(event, FoldDone)] == [3, 4, 5]
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.failed == 3
    folder = RunFolder(last.path)
    assert (folder.status, folder.manifest.failed) == ("partial", 3)
    told = pl.read_parquet(last.path / "failures.parquet").rows()
    assert told == [(event.number, event.reason) for event in failed]
    assert store.forecast_runs()["rows"].to_list() == [last.rows]


def test_when_every_fold_fails_the_first_reason_is_raised_and_nothing_is_stored(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the history is too short"):
        walked(quiet_until(105), "pool_mean", tmp_path / "runs", store=Store(tmp_path))
    (run,) = runs.listed(tmp_path / "runs")
    assert run.status == "failed"
    assert Store(tmp_path).forecast_runs().is_empty()


@pytest.mark.usefixtures("line")
def test_an_infinite_forecast_is_a_failed_fold(panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(YieldTransform, "inverse", lambda self, moved: np.full(moved.shape, np.inf))
    with pytest.raises(DataError, match="the forecasts forecast_line of fold 0 are infinite"):
        walked(panel, "line", tmp_path)


@pytest.mark.parametrize(
    ("name", "settings", "plan", "kind", "match"),
    [
        ("arr", {}, PLAN, UsageError, "did you mean 'ar'"),
        ("ar", {"lag": 3}, PLAN, UsageError, "did you mean 'lags'"),
        ("ar", SMALL, FoldPlan(purge=2), UsageError, "a purge of 2 days is shorter than the horizon of 3"),
        ("ar", SMALL, FoldPlan("rollin"), UsageError, "did you mean 'rolling'"),
        ("ar", SMALL, FoldPlan(), DataError, "needs at least 380 days of history, and the panel has 110"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    panel: Panel,
    tmp_path: Path,
    name: str,
    settings: dict[str, int],
    plan: FoldPlan,
    kind: type[Exception],
    match: str,
) -> None:
    with pytest.raises(kind, match=match):
        list(walk_forward(panel, name, settings, folds=plan, store=Store(tmp_path), root=tmp_path / "runs"))
    assert not list(tmp_path.iterdir())
