"""How good are forecasts, next to saying that nothing will change?

Every model, and persistence (today's APY, which is the forecast of nobody), is measured on the same cells: those where
the APY was truly observed `horizon` rows later, an APY is known today, and every model has a forecast. Errors are
forecast less truth in APY fractions. What is undefined is null, never NaN or infinite.

- `mase` (Hyndman & Koehler 2006, with the horizon-step naive): a pool's mean absolute error over the mean absolute
  `horizon`-day change of its observed APY on the rows before the first evaluated one; the mean over pools. A pool with
  fewer than 30 such changes, or that never changed, is left out: `mase_pools` of `pools` are in.
- `smape`: mean of 2 |error| / (|truth| + |forecast|), 0 where both are 0; from 0 to 2. MAPE is not given: a truth near
  zero makes it meaningless.
- `skill`: 1 - MAE / MAE of persistence; `skill_rmse` likewise of RMSE. `skill_low` and `skill_high` hold the middle
  95 % of it under a circular block bootstrap (Politis & Romano 1992) of days: each draw strings whole blocks of days
  together, chosen with repetition, to as many days as lie between the first and the last, after which the first follows
  again, and takes the same days of the model
  and of persistence. Blocks are `2 max(horizon, 7)` days long unless given (by lead: of that lead), because errors of
  neighbouring days share most of their future. Few blocks tell too little of how far skill strays, so the ends are
  moved on from it by the ratio of Student's to the normal quantile and by sqrt(B / (B - 1)), B the whole blocks that
  fit in the days: 2.7 times for 3 of them, 1.2 times for 10. They are undefined for fewer than 3, or where persistence
  made no error in some draw.
- `rank_correlation` (Spearman 1904, ties share their mean rank): of forecast and truth over the pools of a day, then
  the mean over days. A day with fewer than 3 pools, or on which either side is the same for all, is left out:
  `rank_days` of `days` are in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab.errors import DataError, UsageError
from yieldlab.features.sets import canonical
from yieldlab.forecast.skill import Measures, Resampling, measured
from yieldlab.panel import Panel

__all__ = ["BEATS", "DOES_NOT_BEAT", "LEADS", "PERSISTENCE", "Evaluation", "compare"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: The model that every other is measured against.
PERSISTENCE = "persistence"

#: Days after which the same forecasts are also looked at, beside the run's own horizon.
LEADS = (1, 3, 7, 14, 30)

#: The two verdicts. A model beats persistence only where the whole interval of its skill lies above 0.
BEATS = "beats persistence"
DOES_NOT_BEAT = "does not beat persistence"

#: Changes that a pool needs before the first evaluated row, so that they scale its error.
_MIN_CHANGES = 30

#: Blocks of this many horizons, a week at least, so that days of one block share their future and blocks do not.
_HORIZONS_PER_BLOCK = 2
_SHORTEST_HORIZON = 7

_COUNTS = ("cells", "days", "pools", "rank_days", "mase_pools")
_COLUMNS: dict[str, pl.DataType] = {
    "model": pl.String(),
    "cells": pl.Int64(),
    "days": pl.Int64(),
    "pools": pl.Int64(),
    "rmse": pl.Float64(),
    "mae": pl.Float64(),
    "median_ae": pl.Float64(),
    "mase": pl.Float64(),
    "mase_pools": pl.Int64(),
    "smape": pl.Float64(),
    "skill": pl.Float64(),
    "skill_low": pl.Float64(),
    "skill_high": pl.Float64(),
    "skill_rmse": pl.Float64(),
    "rank_correlation": pl.Float64(),
    "rank_days": pl.Int64(),
}


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Models against persistence on common cells. Each frame has the columns that this module describes, persistence
    first; `overall` has `lacked` and `verdict` besides, the others begin with `protocol` or `lead`.

    Of `candidates` (cells between the first and the last row with any forecast that have today's APY and the truth)
    `cells` are compared; `lacked` says on how many of them each model has no forecast. `first` and `last` are the days
    on which the first and the last compared forecast was made.
    """

    overall: pl.DataFrame
    by_protocol: pl.DataFrame
    by_lead: pl.DataFrame
    horizon: int
    block_days: int
    draws: int
    seed: int
    first: str
    last: str
    cells: int
    days: int
    pools: int
    candidates: int
    lacked: Mapping[str, int]


def compare(
    panel: Panel,
    predictions: Mapping[str, Floats],
    *,
    horizon: int,
    seed: int = 0,
    draws: int = 1000,
    block_days: int | None = None,
    rows: tuple[int, int] | None = None,
) -> Evaluation:
    """Each model's (T, N) forecasts of APY `horizon` rows later, as fractions, NaN = none, against what came.

    Persistence is always among the models and always the panel's own: forecasts of that name are not read. By lead, the
    very same forecasts are held against the APY of another day, on the cells that have it.
    Only forecasts made on `rows` (begin, end) count, if given.

    Raises UsageError for a horizon, draws or blocks below 1, and DataError where shapes do not fit, a forecast is
    infinite or no cell is common.
    """
    for name, value in (("horizon", horizon), ("draws", draws), ("block_days", block_days)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be a whole number, 1 or more, not {value}")
    resampling = Resampling(_block_days(horizon, block_days), draws, seed)
    models = _models(panel, predictions)
    observed = panel.raw("apy")
    inside = np.zeros(panel.shape[0], dtype=bool)
    inside[slice(*rows) if rows is not None else slice(None)] = True
    forecast = np.logical_and.reduce([np.isfinite(values) for values in models.values()]) & inside[:, None]
    ours = _against(observed, forecast, horizon)
    answerable = np.isfinite(models[PERSISTENCE]) & np.isfinite(ours.truth) & (_asked(models) & inside)[:, None]
    lacked = {name: int(np.count_nonzero(answerable & np.isnan(values))) for name, values in models.items()}
    if not ours.common.any():
        raise DataError(_nothing_common(horizon, int(np.count_nonzero(answerable)), lacked))

    overall = _rows(models, ours, resampling)
    protocols: list[Measures] = []
    for protocol, members in _protocols(panel):
        part = ours._replace(common=ours.common & members)
        protocols += [{"protocol": protocol, **each} for each in _rows(models, part, resampling) if each["cells"]]
    leads: list[Measures] = []
    for lead in sorted({*LEADS, horizon}):
        blocks = resampling._replace(block_days=_block_days(lead, block_days))
        measures = overall if lead == horizon else _rows(models, _against(observed, forecast, lead), blocks)
        leads += [{"lead": lead, **each} for each in measures]
    compared = np.flatnonzero(ours.common.any(axis=1))
    return Evaluation(
        overall=_frame(
            [{**each, "lacked": lacked[str(each["model"])], "verdict": _verdict(each)} for each in overall],
            _COLUMNS | {"lacked": pl.Int64(), "verdict": pl.String()},
        ),
        by_protocol=_frame(protocols, {"protocol": pl.String()} | _COLUMNS),
        by_lead=_frame(leads, {"lead": pl.Int64()} | _COLUMNS),
        horizon=horizon,
        block_days=resampling.block_days,
        draws=draws,
        seed=seed,
        first=str(panel.times[compared[0]].astype("datetime64[D]")),
        last=str(panel.times[compared[-1]].astype("datetime64[D]")),
        cells=int(np.count_nonzero(ours.common)),
        days=compared.size,
        pools=int(np.count_nonzero(ours.common.any(axis=0))),
        candidates=int(np.count_nonzero(answerable)),
        lacked=lacked,
    )


class _Held(NamedTuple):
    """What forecasts are held against: `truth` (T, N), on the cells of `common` (T, N), with the pools' usual change
    (N,)."""

    truth: Floats
    common: Flags
    scale: Floats


def _block_days(days: int, given: int | None) -> int:
    return _HORIZONS_PER_BLOCK * max(days, _SHORTEST_HORIZON) if given is None else given


def _models(panel: Panel, predictions: Mapping[str, Floats]) -> dict[str, Floats]:
    """Name -> (T, N) forecasts, persistence first."""
    models = {PERSISTENCE: np.asarray(panel["apy"])}
    for name, given in predictions.items():
        if name == PERSISTENCE:
            continue
        values = np.asarray(given, dtype=np.float64)
        if values.shape != panel.shape:
            raise DataError(
                f"the forecasts of {name!r} have shape {values.shape}, not the panel's (times, pools) = {panel.shape}"
            )
        if infinite := int(np.count_nonzero(np.isinf(values))):
            raise DataError(
                f"{infinite:,} of the forecasts of {name!r} are infinite; a forecast is a finite rate, or NaN for none"
            )
        models[name] = values
    return models


def _asked(models: Mapping[str, Floats]) -> Flags:
    """(T,) the rows from the first to the last in which any model has a forecast; all where only persistence is."""
    asked = np.zeros(models[PERSISTENCE].shape[0], dtype=bool)
    given = [~np.isnan(values).all(axis=1) for name, values in models.items() if name != PERSISTENCE]
    rows = np.flatnonzero(np.logical_or.reduce(given)) if given else np.arange(asked.size)
    if rows.size:
        asked[rows[0] : rows[-1] + 1] = True
    return asked


def _nothing_common(horizon: int, answerable: int, lacked: Mapping[str, int]) -> str:
    had = ", ".join(f"{name} {answerable - gone:,}" for name, gone in lacked.items() if name != PERSISTENCE)
    return (
        f"no cell has today's APY, the APY observed {horizon} days later and a forecast of every model: of "
        f"{answerable:,} with the first two, each model alone covers: {had or 'no model was given'}"
    )


def _protocols(panel: Panel) -> Iterator[tuple[str, Flags]]:
    """Each protocol and which pools (N,) are its own, by name."""
    known = panel.pools["protocol"].to_list() if "protocol" in panel.pools.columns else [None] * panel.shape[1]
    names = np.array([canonical(name) for name in known])
    for protocol in np.unique(names):
        yield str(protocol), names == protocol


def _against(observed: Floats, forecast: Flags, rows: int) -> _Held:
    """What was observed `rows` rows later, where every model has a forecast."""
    truth = np.full(observed.shape, np.nan)
    truth[: max(0, observed.shape[0] - rows)] = observed[rows:]
    common = forecast & np.isfinite(truth)
    compared = np.flatnonzero(common.any(axis=1))
    return _Held(truth, common, _naive_change(observed, rows, int(compared[0]) if compared.size else 0))


def _naive_change(observed: Floats, rows: int, end: int) -> Floats:
    """(N,) mean absolute change over `rows` rows before row `end`; NaN where there are too few or it is 0."""
    past = observed[:end]
    changes = np.abs(past[rows:] - past[: max(0, end - rows)])
    seen = np.isfinite(changes)
    total, number = np.where(seen, changes, 0.0).sum(axis=0), seen.sum(axis=0)
    usable = (number >= _MIN_CHANGES) & (total > 0.0)
    return np.where(usable, total / np.maximum(number, 1), np.nan)


def _rows(models: Mapping[str, Floats], held: _Held, resampling: Resampling) -> list[Measures]:
    """A row of measures for each model; without a cell it has only the counts."""
    if not held.common.any():
        return [{**dict.fromkeys(_COLUMNS), **dict.fromkeys(_COUNTS, 0), "model": name} for name in models]
    return measured(models, held.truth, held.common, scale=held.scale, resampling=resampling)


def _verdict(measures: Measures) -> str | None:
    low = measures["skill_low"]
    if measures["model"] == PERSISTENCE:
        return None
    return BEATS if isinstance(low, float) and low > 0.0 else DOES_NOT_BEAT


def _frame(rows: list[Measures], columns: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """The rows as a table in which what is no finite number is null."""
    floats = pl.selectors.float()
    return pl.DataFrame(rows, schema=columns).with_columns(pl.when(floats.is_finite()).then(floats).name.keep())
