"""How does an ensemble walk forward without running its members once more?

They have finished walk-forwards on the same folds and panel, and their rows are read. Per fold the weights come from
the members' forecasts of the validation rows: see `ensemble.Weights`.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab.errors import DataError
from yieldlab.folds import Fold, Rows, check_purge, inner
from yieldlab.forecast.ensemble import FITTED, Weights, check_how
from yieldlab.forecast.fold_runs import (
    TEST,
    VALIDATION,
    Computed,
    Event,
    FoldPlan,
    Job,
    Stop,
    carry_out,
    failures_of,
    finished_runs,
    forecast_rows,
)
from yieldlab.forecast.protocol import EpochDone
from yieldlab.forecast.registry import ENSEMBLE, REVISION, members_of
from yieldlab.forecast.walk_forward import VALIDATION_SHARE
from yieldlab.panel import Panel
from yieldlab.runs import RunFolder
from yieldlab.store import Store

__all__ = ["told", "walk_forward_ensemble", "weights_of"]

Floats = NDArray[np.float64]


def walk_forward_ensemble(
    panel: Panel,
    members: Sequence[str],
    how: str = "inverse_error",
    *,
    horizon: int = 7,
    folds: FoldPlan | None = None,
    store: Store | None,
    root: Path,
    cutoff: datetime | None = None,
    argv: Sequence[str] = (),
    stop: Stop | None = None,
    fresh: bool = False,
) -> Iterator[Event]:
    """Combine the latest finished walk-forwards of the members under `root` into a run of its own.

    `trained_through` of a fold is the latest of its members', and of the truth that weighed them. A member that failed
    in a fold is left out there. Raises UsageError for members or a way to weigh that cannot be, and DataError naming
    the command to run for one that has no finished walk-forward with these folds on this panel.
    """
    plan = folds or FoldPlan()
    members = members_of(members)
    check_how(how, FITTED)
    check_purge(plan.purge, horizon)
    steps = plan.folds(panel.shape[0])
    found = _finished(panel, members, plan, horizon, root, _answering(store))
    config = {
        "model": ENSEMBLE,
        "settings": {"how": how, "members": list(members), "horizon": horizon},
        "folds": asdict(plan),
        "horizon": horizon,
        "validation_share": VALIDATION_SHARE,
        "revision": REVISION,
        "max_stale_days": panel.max_stale_days,
        "members": {name: folder.id for name, folder in found.items()},
    }
    chunks = {name: folder.chunks() for name, folder in found.items()}
    for name, folder in found.items():
        if lost := {fold.number for fold in steps} - set(chunks[name]) - set(failures_of(folder.path)):
            raise DataError(
                f"run {folder.id} has lost its forecasts of fold {min(lost)}; "
                f"`{_command(name, panel, plan, horizon)} --fresh` makes them anew"
            )
    truth = np.full(panel.shape, np.nan)
    truth[:-horizon] = panel.raw("apy")[horizon:]

    def compute(fold: Fold) -> Generator[EpochDone, None, Computed]:
        yield from ()
        parts = {name: pl.read_parquet(there[fold.number]) for name, there in chunks.items() if fold.number in there}
        if not parts:
            raise DataError(f"every member of the ensemble failed in fold {fold.number}")
        return _combined(panel, fold, parts, how, plan.purge, truth, horizon, lost=len(members) - len(parts))

    job = Job(ENSEMBLE, panel, config, steps, compute)
    yield from carry_out(job, store=store, root=root, cutoff=cutoff, argv=argv, stop=stop, fresh=fresh)


def weights_of(folder: RunFolder) -> pl.DataFrame:
    """fold, member, weight, cells (validation cells weighed on) and lacking (forecasts made without all members) of an
    ensemble's run."""
    rows = []
    for number, path in sorted(folder.chunks().items()):
        for note in folder.chunk_signals(path):
            each = json.loads(note)
            rows += [(number, name, weight, each["cells"], each["lacking"]) for name, weight in each["weights"].items()]
    columns = {"fold": pl.Int64, "member": pl.String, "weight": pl.Float64, "cells": pl.Int64, "lacking": pl.Int64}
    return pl.DataFrame(rows, schema=columns, orient="row")


def told(path: Path) -> tuple[dict[str, float], int]:
    """Of a finished run of an ensemble each member's weight, the mean over the folds (0 where it failed), and how many
    forecasts lack a member."""
    found = weights_of(RunFolder(path))
    folds = found["fold"].n_unique()
    weights = found.group_by("member").agg(pl.col("weight").sum() / folds).sort("member")
    return dict(weights.iter_rows()), int(found.group_by("fold").agg(pl.first("lacking"))["lacking"].sum())


def _combined(
    panel: Panel,
    fold: Fold,
    parts: Mapping[str, pl.DataFrame],
    how: str,
    purge: int,
    truth: Floats,
    horizon: int,
    *,
    lost: int,
) -> Computed:
    _, valid = inner(fold.train, VALIDATION_SHARE, purge=purge)
    checked = {name: _dense(panel, rows, name, VALIDATION, valid) for name, rows in parts.items()}
    weights = Weights.fit(checked, truth[valid[0] : valid[1]], how)
    unseen = {name: _dense(panel, rows, name, TEST, fold.predict) for name, rows in parts.items()}
    combined, lacking = weights.combine(unseen)
    if lost:  # a member that has no forecast in the whole fold is lacking in every cell
        lacking = int(np.count_nonzero(~np.isnan(combined)))
    through = max(_through(panel, rows) for rows in parts.values())
    if weights.cells:
        through = max(through, valid[0] + weights.last + horizon)
    note = json.dumps({"weights": dict(weights.values), "cells": weights.cells, "lacking": lacking})
    rows = forecast_rows(panel, fold, TEST, fold.predict[0], {f"forecast_{ENSEMBLE}": combined}, through)
    return rows, (note,)


def _answering(store: Store | None) -> dict[str, str]:
    """Field -> the run whose forecasts a panel reads."""
    if store is None:
        return {}
    return {
        field: run.split(".")[0]
        for run, fields in store.forecast_runs().select("run_id", "fields").rows()
        for field in fields.split(",")
    }


def _finished(
    panel: Panel, members: Sequence[str], plan: FoldPlan, horizon: int, root: Path, answering: Mapping[str, str]
) -> dict[str, RunFolder]:
    """The finished run of each member that may be combined: the one that a panel reads, else the latest."""
    digest, wanted = panel.digest(), set(members)
    alike = {
        "folds": asdict(plan),
        "horizon": horizon,
        "max_stale_days": panel.max_stale_days,
        "revision": REVISION,
    }
    found: dict[str, RunFolder] = {}
    for folder, manifest in finished_runs(root):
        name = str(manifest.config.get("model"))
        same = all(manifest.config.get(key) == value for key, value in alike.items())
        better = name not in found or answering.get(f"forecast_{name}") == folder.id
        if name in wanted and better and same and manifest.panel_digest == digest:
            found[name] = folder
    for name in members:
        if name not in found:
            raise DataError(
                f"the ensemble has no finished walk-forward of {name!r} with the same folds on this data; "
                f"`{_command(name, panel, plan, horizon)}` makes one"
            )
    return {name: found[name] for name in members}


def _command(name: str, panel: Panel, plan: FoldPlan, horizon: int) -> str:
    """What walks a member forward with these folds."""
    return " ".join(["yieldlab models walk-forward", name, *_flags(panel, plan, horizon)])


def _flags(panel: Panel, plan: FoldPlan, horizon: int) -> Iterator[str]:
    """What is typed for these folds and this horizon where they are not the usual ones."""
    usual = FoldPlan(purge=horizon)
    if plan.mode != usual.mode:
        yield f"--folds {plan.mode}"
    for flag in ("train", "step", "purge", "embargo"):
        if getattr(plan, flag) != getattr(usual, flag):
            yield f"--{flag} {getattr(plan, flag)}d"
    if plan.first is not None:
        yield f"--start {panel.times[plan.first].astype('datetime64[D]')}"
    if horizon != 7:
        yield f"--set horizon={horizon}"
    if panel.as_of is not None:
        yield f"--as-of {panel.as_of.isoformat()}"


def _dense(panel: Panel, rows: pl.DataFrame, name: str, part: str, between: Rows) -> Floats:
    """(rows, N) forecasts of a member in one part of a fold."""
    chosen = rows.filter((pl.col("part") == part) & (pl.col("field") == f"forecast_{name}"))
    values = np.full((between[1] - between[0], panel.shape[1]), np.nan)
    place = {pool: n for n, pool in enumerate(panel.pool_ids)}
    t = np.searchsorted(panel.times, chosen["valid_at"].dt.replace_time_zone(None).to_numpy())
    n = [place[pool] for pool in chosen["pool_id"]]
    values[t - between[0], n] = chosen["prediction"].to_numpy()
    return values


def _through(panel: Panel, rows: pl.DataFrame) -> int:
    """The last row that what made these forecasts had seen, -1 = none."""
    latest = rows["trained_through"].dt.replace_time_zone(None).to_numpy()
    return int(np.searchsorted(panel.times, latest.max(), side="right")) - 1 if latest.size else -1
