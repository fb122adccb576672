"""How does a walk-forward become a run: a chunk per fold, taken up where it broke off, its forecasts in the store?

Whatever computes the forecasts of a fold, a model or a combination of others, is a `Job`; here it is carried out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab import folds as splitting
from yieldlab import runs, schema
from yieldlab.errors import AuditError, DataError
from yieldlab.folds import Fold
from yieldlab.forecast.protocol import EpochDone
from yieldlab.panel import Panel
from yieldlab.runs import FAILURES, Manifest, RunFolder
from yieldlab.store import Store

Floats = NDArray[np.float64]

KIND = "walk-forward"
PREDICTIONS = "predictions.parquet"

#: Forecasts of days that no fold has seen, and those of the days that early stopping or weights were chosen by.
TEST, VALIDATION = "test", "validation"

#: One row per forecast. The day of `trained_through` is the day before the panel where nothing was fitted.
ROWS = pl.Schema(
    {
        "fold": pl.Int64(),
        "part": pl.String(),
        "field": pl.String(),
        "pool_id": pl.String(),
        "valid_at": schema.UTC,
        "prediction": pl.Float64(),
        "trained_through": schema.UTC,
    }
)

_DAY = np.timedelta64(1, "D")


class Stop(Protocol):
    """Something that can ask a walk-forward to end after the fold in work."""

    @property
    def requested(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class FoldPlan:
    """The sizes that `folds.walk_forward` takes, in days."""

    mode: str = "rolling"
    train: int = 365
    step: int = 30
    purge: int = 7
    embargo: int = 7
    first: int | None = None

    def folds(self, times: int) -> list[Fold]:
        """The folds of a panel of `times` rows; raises what `folds.walk_forward` raises."""
        return splitting.walk_forward(times, **asdict(self))


@dataclass(frozen=True, slots=True)
class Planned:
    """The run folder is there; `done` of the `folds` are in it. `reused`: all that was asked for had been done."""

    run_id: str
    path: Path
    model: str
    folds: int
    done: int
    reused: bool


@dataclass(frozen=True, slots=True)
class FoldDone:
    """A fold is on disk with `rows` forecasts of unseen days; `done` of `folds` are behind us, failed ones included.
    `trained_through` is the last day of any value used in fitting, None where nothing is fitted."""

    number: int
    done: int
    folds: int
    rows: int
    trained_through: str | None


@dataclass(frozen=True, slots=True)
class FoldFailed:
    """A fold that gives no forecasts, and why; the others go on."""

    number: int
    done: int
    folds: int
    reason: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The walk-forward was asked to stop; called again it goes on from here."""

    run_id: str
    path: Path
    done: int
    folds: int


@dataclass(frozen=True, slots=True)
class Finished:
    """All folds are on disk, `failed` of them without forecasts; `rows` forecasts are in the store as run `stored_as`,
    None where there is no store."""

    run_id: str
    path: Path
    rows: int
    failed: int
    stored_as: str | None
    reused: bool


Event = Planned | EpochDone | FoldDone | FoldFailed | Interrupted | Finished

#: The rows of a fold, in the columns of `ROWS`, and notes on what they rest on.
Computed = tuple[pl.DataFrame, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be carried out: `config` is all that decides the numbers beside the panel, and `compute` gives a
    fold's rows, telling events on the way."""

    model: str
    panel: Panel
    config: Mapping[str, object]
    folds: Sequence[Fold]
    compute: Callable[[Fold], Generator[EpochDone, None, Computed]]


def carry_out(
    job: Job,
    *,
    store: Store | None,
    root: Path,
    cutoff: datetime | None = None,
    argv: Sequence[str] = (),
    stop: Stop | None = None,
    fresh: bool = False,
) -> Iterator[Event]:
    """Compute the folds that are not on disk yet; the last event is Finished or Interrupted.

    A run under `root` of the same configuration, panel and versions is taken up again, or reused if it is finished,
    unless `fresh`. A fold that fails with a DataError costs that fold only; when all fail, the first one is raised.
    """
    manifest = runs.describe(KIND, [], job.panel, job.config, trials=len(job.folds), cutoff=cutoff, argv=argv)
    folder = None if fresh else _same(root, manifest)
    if folder is not None and folder.status in ("complete", "partial"):
        recorded = folder.manifest
        try:
            rows = _unseen(folder)
        except DataError as error:
            raise DataError(f"{error}; the same command with --fresh makes another run") from error
        stored_as = _keep(store, folder, rows)
        yield Planned(folder.id, folder.path, job.model, len(job.folds), len(job.folds), reused=True)
        yield Finished(folder.id, folder.path, rows.height, recorded.failed, stored_as, reused=True)
        return
    if folder is None:
        folder = RunFolder.create(root, manifest)
    with folder.lock():
        began = time.perf_counter() - folder.manifest.seconds
        folder.update(status="running", reason=None, finished=None)
        try:
            yield from _work(folder, job, store, stop, began)
        except (GeneratorExit, KeyboardInterrupt):
            folder.update(status="interrupted", seconds=_since(began))
            raise
        except BaseException as error:
            with suppress(OSError):  # a full disk has no room for its own obituary
                folder.update(status="failed", seconds=_since(began), reason=f"{type(error).__name__}: {error}")
            raise


def _work(folder: RunFolder, job: Job, store: Store | None, stop: Stop | None, began: float) -> Iterator[Event]:
    total, finished = len(job.folds), folder.chunks()
    missing = [fold for fold in job.folds if fold.number not in finished]
    done = total - len(missing)
    yield Planned(folder.id, folder.path, job.model, total, done, reused=False)
    failures: dict[int, DataError] = {}
    for fold in missing:
        if stop is not None and stop.requested:
            folder.update(status="interrupted", seconds=_since(began))
            yield Interrupted(folder.id, folder.path, done, total)
            return
        done += 1
        try:
            rows, notes = yield from job.compute(fold)
        except DataError as error:
            failures[fold.number] = error
            yield FoldFailed(fold.number, done, total, str(error))
            continue
        folder.write_chunk(fold.number, rows, notes)
        unseen = rows.filter(pl.col("part") == TEST)
        yield FoldDone(fold.number, done, total, unseen.height, _last_day(unseen, job.panel))
    if len(failures) == total:
        raise next(iter(failures.values()))
    yield _assembled(folder, job, store, failures, began)


def _assembled(
    folder: RunFolder, job: Job, store: Store | None, failures: Mapping[int, DataError], began: float
) -> Finished:
    """One table of all chunks, its unseen days in the store, and then the run is over."""
    finished = folder.chunks()
    for fold in job.folds:
        if fold.number not in finished and fold.number not in failures:
            raise DataError(f"run {folder.id} lost the chunk of fold {fold.number}; the same command computes it")
    folder.write_frame(PREDICTIONS, pl.scan_parquet([finished[number] for number in sorted(finished)], glob=False))
    if failures:
        reasons = {"fold": list(failures), "reason": [str(error) for error in failures.values()]}
        folder.write_frame(FAILURES, pl.DataFrame(reasons))
    rows = _unseen(folder)
    if not rows.height:
        raise DataError(
            f"model {job.model!r} has no forecast for any day of the {len(job.folds)} folds: no pool has a whole window"
        )
    stored_as = _keep(store, folder, rows)
    folder.finish("partial" if failures else "complete", failed=len(failures), seconds=_since(began))
    return Finished(folder.id, folder.path, rows.height, len(failures), stored_as, reused=False)


def _keep(store: Store | None, folder: RunFolder, rows: pl.DataFrame) -> str | None:
    """See to it that the run is the one that answers for its fields; gives its name in the store.

    A run that was stored before and is no longer the latest is stored once more, under its name and a number.
    """
    if store is None:
        return None
    manifest = folder.manifest
    with store.writing():
        known = store.forecast_runs()
        rivals = known
        if manifest.as_of_instant is not None:
            rivals = rivals.filter(pl.col("known_at") <= manifest.as_of_instant)
        # The store answers for each field with the last run in this order that has it, whatever else it has.
        holders = [
            rivals.filter(pl.col("fields").str.split(",").list.contains(name)) for name in rows["field"].unique()
        ]
        if all(each.height and str(each["run_id"][-1]).startswith(folder.id) for each in holders):
            return str(holders[0]["run_id"][-1])
        stored = known["run_id"].str.starts_with(folder.id).sum()
        name = f"{folder.id}.{stored + 1}" if stored else folder.id
        run = {
            "run_id": name,
            "model": manifest.config["model"],
            "horizon_days": manifest.config["horizon"],
            "settings_hash": manifest.config_hash,
            "known_at": manifest.as_of_instant,
        }
        store.add_forecasts(rows, run)
    return name


def forecast_rows(
    panel: Panel, fold: Fold, part: str, begin: int, fields: Mapping[str, Floats], trained_through: int
) -> pl.DataFrame:
    """Rows of `ROWS` for every cell of the (rows, N) `fields` that is not NaN; their first row is `begin`.

    Raises AuditError when a forecast of an unseen day was made by what had seen that day, and DataError for an infinite
    forecast.
    """
    if part == TEST and trained_through >= fold.predict[0]:
        first, last = _day(panel, fold.predict[0]), _day(panel, fold.predict[1] - 1)
        raise AuditError(
            f"fold {fold.number} forecasts {first} to {last} (rows {fold.predict[0]} to {fold.predict[1] - 1}) with "
            f"values up to {_day(panel, trained_through)} (row {trained_through}) in its fit, which must end before"
        )
    learned = panel.times[trained_through] if trained_through >= 0 else panel.times[0] - _DAY
    ids, tables = np.array(panel.pool_ids, dtype=object), []
    for field, values in fields.items():
        if np.isinf(values).any():
            raise DataError(f"the forecasts {field} of fold {fold.number} are infinite, so they are not to be used")
        t, n = np.nonzero(~np.isnan(values))
        table = pl.DataFrame(
            {
                "pool_id": pl.Series(ids[n].tolist(), dtype=pl.String),
                "valid_at": pl.Series(panel.times[begin + t], dtype=pl.Datetime("us")).dt.replace_time_zone("UTC"),
                "prediction": values[t, n],
            }
        )
        tables.append(
            table.select(
                pl.lit(fold.number, dtype=pl.Int64).alias("fold"),
                pl.lit(part).alias("part"),
                pl.lit(field).alias("field"),
                "pool_id",
                "valid_at",
                "prediction",
                pl.lit(learned.item()).cast(pl.Datetime("us")).dt.replace_time_zone("UTC").alias("trained_through"),
            )
        )
    return pl.concat(tables) if tables else pl.DataFrame(schema=ROWS)


def finished_runs(root: Path) -> Iterator[tuple[RunFolder, Manifest]]:
    """Every finished walk-forward under `root`, the latest first."""
    for each in runs.listed(root):
        if each.kind == KIND and each.status in ("complete", "partial"):
            folder = RunFolder(each.path)
            yield folder, folder.manifest


def trained_span(path: Path, panel: Panel) -> tuple[str, str] | None:
    """The first and the last day that folds of a finished run learned through, None where nothing was fitted."""
    days = _unseen(RunFolder(path))["trained_through"].dt.date().cast(pl.String)
    fitted = days.filter(days >= _day(panel, 0)).sort()
    return (fitted[0], fitted[-1]) if fitted.len() else None


def failures_of(path: Path) -> dict[int, str]:
    """The folds of a finished run that failed, and why."""
    file = path / FAILURES
    return dict(pl.read_parquet(file).iter_rows()) if file.is_file() else {}


def _same(root: Path, wanted: Manifest) -> RunFolder | None:
    """The latest run of the same input. One that is later than a finished one was asked for afresh, so it is gone on
    with; one that failed is not, where there is a finished one."""
    unfinished: RunFolder | None = None
    failed: RunFolder | None = None
    for each in runs.listed(root):
        if each.kind != KIND:
            continue
        folder = RunFolder(each.path)
        manifest = folder.manifest
        if any(
            getattr(manifest, name) != getattr(wanted, name)
            for name in ("config_hash", "panel_digest", "as_of", "versions")
        ):
            continue
        if each.status in ("complete", "partial"):
            return unfinished or folder
        if each.status == "failed":
            failed = failed or folder
        else:
            unfinished = unfinished or folder
    return unfinished or failed


def _unseen(folder: RunFolder) -> pl.DataFrame:
    """The forecasts of a run that are for the store."""
    return folder.scan(PREDICTIONS).filter(pl.col("part") == TEST).drop("fold", "part").collect()


def _last_day(rows: pl.DataFrame, panel: Panel) -> str | None:
    latest = rows["trained_through"].max()
    if not isinstance(latest, datetime):
        return None
    day = str(latest.date())
    return None if day < _day(panel, 0) else day


def _day(panel: Panel, row: int) -> str:
    return str(panel.times[row].astype("datetime64[D]"))


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 3)
