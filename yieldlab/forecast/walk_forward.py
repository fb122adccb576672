"""What would a model have forecast, day after day, had it only ever learned from the days before?

Fold by fold a fresh model is fitted on the training rows, the last of which decide when to stop, and forecasts the rows
of the next step. `fold_runs` makes a run of it that can be taken up again.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import polars as pl

from yieldlab.folds import Fold, check_purge, inner
from yieldlab.forecast.fold_runs import (
    TEST,
    VALIDATION,
    Computed,
    Event,
    Finished,
    FoldDone,
    FoldFailed,
    FoldPlan,
    Interrupted,
    Job,
    Planned,
    Stop,
    carry_out,
    forecast_rows,
)
from yieldlab.forecast.protocol import EpochDone, Model
from yieldlab.forecast.registry import (
    ENSEMBLE,
    REVISION,
    deciding,
    entry,
    make,
    members_of,
    settings_of,
    to_judge,
    windows_of,
)
from yieldlab.forecast.windows import Windows
from yieldlab.panel import Panel
from yieldlab.space import Value
from yieldlab.store import Store

__all__ = [
    "VALIDATION_SHARE",
    "Event",
    "Finished",
    "FoldDone",
    "FoldFailed",
    "FoldPlan",
    "Interrupted",
    "Planned",
    "Stop",
    "walk_forward",
]

#: Of a fold's training rows this share, the last of them, is for early stopping, calibration and weights.
VALIDATION_SHARE = 0.15


def walk_forward(
    panel: Panel,
    name: str,
    settings: Mapping[str, Value] | None = None,
    *,
    folds: FoldPlan | None = None,
    store: Store | None,
    root: Path,
    cutoff: datetime | None = None,
    argv: Sequence[str] = (),
    stop: Stop | None = None,
    fresh: bool = False,
) -> Iterator[Event]:
    """Retrain, forecast the next step, move on; a run under `root`, and forecasts of unseen days in `store`.

    `cutoff` is the store's when the panel was read. What was done before with the same input is not done again unless
    `fresh`; see `fold_runs.carry_out`. What can be refused is refused before anything is written: an unknown model or
    setting, a missing package, a purge shorter than the horizon, a panel too short for one fold.
    """
    plan = folds or FoldPlan()
    chosen = settings_of(name, settings)
    check_purge(plan.purge, int(str(chosen["horizon"])))
    steps = plan.folds(panel.shape[0])
    make(name, chosen)
    windows = windows_of(panel, chosen)
    config = {
        "model": name,
        "settings": deciding(chosen),
        "folds": asdict(plan),
        **{key: chosen[key] for key in ("horizon", "lookback", "features")},
        "validation_share": VALIDATION_SHARE,
        "revision": REVISION,
        "max_stale_days": panel.max_stale_days,
        "package": _packages(members_of(str(chosen["members"])) if name == ENSEMBLE else (name,)),
    }

    def compute(fold: Fold) -> Generator[EpochDone, None, Computed]:
        return (yield from _forecast(windows, name, chosen, plan.purge, fold))

    job = Job(name, panel, config, steps, compute)
    yield from carry_out(job, store=store, root=root, cutoff=cutoff, argv=argv, stop=stop, fresh=fresh)


def _forecast(
    windows: Windows, name: str, settings: Mapping[str, Value], purge: int, fold: Fold
) -> Generator[EpochDone, None, Computed]:
    fit, valid = inner(fold.train, VALIDATION_SHARE, purge=purge)
    model = make(name, settings)
    yield from model.fit(windows, fit, valid)
    notes = _notes(model)
    unseen = forecast_rows(
        windows.panel, fold, TEST, fold.predict[0], model.fields(windows, fold.predict), model.trained_through
    )
    judged = yield from to_judge(model, windows, fit)
    checked = forecast_rows(
        windows.panel, fold, VALIDATION, valid[0], judged.fields(windows, valid), judged.trained_through
    )
    return pl.concat([unseen, checked]), notes


def _notes(model: Model) -> tuple[str, ...]:
    """What a model of trees tells of itself, for the reports on its run."""
    if not hasattr(model, "importance"):
        return ()
    return (json.dumps({"importance": model.importance(), "calibrated": getattr(model, "calibrated", None)}),)


def _packages(names: Sequence[str]) -> str | None:
    """The packages that models are made with and their versions: others may give other digits."""
    needed = sorted({package for name in names for package in entry(name).needs})
    return ", ".join(map(_package, needed)) or None


def _package(name: str) -> str:
    try:
        return f"{name} {version({'sklearn': 'scikit-learn'}.get(name, name))}"
    except PackageNotFoundError:  # it was installed under another name
        return name
