"""How good are forecasts, next to saying that nothing will change?

Every model, and persistence (today's APY, which is the forecast of nobody), is measured on the same cells: those where
the APY was truly observed `horizon` rows later, an APY is known today, and every model has a forecast. Errors are
forecast less truth in APY fractions. What is undefined is null, never NaN or infinite.

- `mase` (Hyndman & Koehler 2006, with the horizon-step naive): a pool's mean absolute error over the mean absolute
  `horizon`-day change of its observed APY on the rows before the first evaluated one; the mean over pools. A pool with
  fewer than 30 such changes, or that never changed, is left out: `mase_pools` of `pools` are in.
- `smape`: mean of 2 |error| / (|truth| + |forecast|), 0 where both are 0; from 0 to 2. MAPE is not given: a truth near
  zero makes it meaningless.
- `skill`: 1 - MAE / MAE of persistence; `skill_rmse` likewise of RMSE. `skill_low` and `skill_high` hold its middle 95 %
  under a moving-block bootstrap (Kuensch 1989) of days: each draw strings whole blocks of days together, chosen with
  repetition, to as many days as were evaluated, and takes the same days of the model and of persistence. Blocks are
  `2 max(horizon, 7)` days long unless given, because errors of neighbouring days share most of their future. They are
  undefined where two blocks do not fit, or where in some draw persistence made no error.
- `rank_correlation` (Spearman 1904, ties share their mean rank): of forecast and truth over the pools of a day, then the
  mean over days. A day with fewer than 3 pools, or on which either side is the same for all, is left out: `rank_days` of
  `days` are in.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab.errors import DataError, UsageError
from yieldlab.features.sets import UNKNOWN_PROTOCOL, canonical
from yieldlab.panel import Panel

__all__ = ["BEATS", "DOES_NOT_BEAT", "LEADS", "PERSISTENCE", "Evaluation", "compare"]

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
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

#: Pools that a day needs, so that their order means something.
_MIN_POOLS = 3

#: Blocks of this many horizons, a week at least, so that days of one block share their future and blocks do not.
_HORIZONS_PER_BLOCK = 2
_SHORTEST_HORIZON = 7

#: The ends of a 95 % interval.
_ENDS = (0.025, 0.975)

_FLOATS = ("rmse", "mae", "median_ae", "mase", "smape", "skill", "skill_low", "skill_high", "skill_rmse")
_COUNTS = ("cells", "days", "pools")
_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "model": pl.String,
    **dict.fromkeys(_COUNTS, pl.Int64),
    **dict.fromkeys(_FLOATS, pl.Float64),
    "rank_correlation": pl.Float64,
    "rank_days": pl.Int64,
    "mase_pools": pl.Int64,
}

_Measures = dict[str, str | int | float | None]


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


class _Resampling(NamedTuple):
    block_days: int
    draws: int
    seed: int

    def counts(self, days: int) -> Floats:
        """(draws, days) how often each day is taken in each draw: blocks begin anywhere where they fit, and the last
        one is cut."""
        blocks = -(-days // self.block_days)
        begins = np.random.default_rng(self.seed).integers(0, days - self.block_days + 1, size=(self.draws, blocks))
        taken = (begins[:, :, None] + np.arange(self.block_days)).reshape(self.draws, -1)[:, :days]
        taken += np.arange(self.draws)[:, None] * days
        return np.bincount(taken.ravel(), minlength=self.draws * days).reshape(self.draws, days).astype(np.float64)

    def interval(self, errors: Floats, reference: Floats) -> tuple[float, float]:
        """Of 1 - errors / reference, sums of the days (D,) of all draws; NaN where it is undefined."""
        if errors.size < 2 * self.block_days:
            return np.nan, np.nan
        above, below = self.counts(errors.size) @ np.column_stack((errors, reference)).T[:, :, None]
        if not bool(np.all(below > 0.0)):
            return np.nan, np.nan
        low, high = np.quantile(1.0 - above / below, _ENDS)
        return float(low), float(high)


def compare(
    panel: Panel,
    predictions: Mapping[str, Floats],
    *,
    horizon: int,
    seed: int = 0,
    draws: int = 1000,
    block_days: int | None = None,
) -> Evaluation:
    """Each model's (T, N) forecasts of APY `horizon` rows later, as fractions, NaN = none, against what came.

    Persistence is always among the models and always the panel's own: forecasts of that name are not read. By lead, the
    very same forecasts are held against the APY of another day, on the cells that have it.

    Raises UsageError for a horizon, draws or blocks below 1, and DataError where shapes do not fit, a forecast is
    infinite or no cell is common.
    """
    for name, value in (("horizon", horizon), ("draws", draws), ("block_days", block_days)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be a whole number, 1 or more, not {value}")
    block = _HORIZONS_PER_BLOCK * max(horizon, _SHORTEST_HORIZON) if block_days is None else block_days
    resampling = _Resampling(operator.index(block), operator.index(draws), seed)
    observed = panel.raw("apy")
    models = _models(panel, predictions)
    forecast = np.logical_and.reduce([~np.isnan(values) for values in models.values()])

    answerable = np.isfinite(models[PERSISTENCE]) & np.isfinite(_later(observed, horizon)) & _asked(models)[:, None]
    lacked = {name: int(np.count_nonzero(answerable & np.isnan(values))) for name, values in models.items()}
    common = answerable & forecast
    if not common.any():
        raise DataError(_nothing_common(horizon, int(np.count_nonzero(answerable)), lacked))
    rows = np.flatnonzero(common.any(axis=1))

    scale = _naive_change(observed, horizon, int(rows[0]))
    truth = _later(observed, horizon)
    overall = _measured(models, truth, common, scale, resampling)
    protocols = []
    for protocol, members in _protocols(panel):
        measured = _measured(models, truth, common & members, scale, resampling)
        protocols += [{"protocol": protocol} | each for each in measured if each["cells"]]
    leads = []
    for lead in sorted({*LEADS, horizon}):
        if lead == horizon:
            measured = overall
        else:
            measured = _by_lead(models, observed, forecast, lead, resampling)
        leads += [{"lead": lead} | each for each in measured]

    verdicts = [{"lacked": lacked[str(each["model"])], "verdict": _verdict(each)} for each in overall]
    days = panel.times.astype("datetime64[D]")
    return Evaluation(
        overall=_frame(
            [each | more for each, more in zip(overall, verdicts, strict=True)],
            _SCHEMA | {"lacked": pl.Int64, "verdict": pl.String},
        ),
        by_protocol=_frame(protocols, {"protocol": pl.String} | _SCHEMA),
        by_lead=_frame(leads, {"lead": pl.Int64} | _SCHEMA),
        horizon=horizon,
        block_days=resampling.block_days,
        draws=resampling.draws,
        seed=seed,
        first=str(days[rows[0]]),
        last=str(days[rows[-1]]),
        cells=int(np.count_nonzero(common)),
        days=rows.size,
        pools=int(np.count_nonzero(common.any(axis=0))),
        candidates=int(np.count_nonzero(answerable)),
        lacked=lacked,
    )


# -- which cells ---------------------------------------------------------------------------------------------------


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


def _later(observed: Floats, rows: int) -> Floats:
    """(T, N) what was observed so many rows later."""
    later = np.full(observed.shape, np.nan)
    later[: max(0, observed.shape[0] - rows)] = observed[rows:]
    return later


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
        f"no cell has today's APY, the APY observed {horizon} days later and a forecast of every model: of {answerable:,} "
        f"with the first two, forecasts cover {had or 'none'}; predict days that lie {horizon} days before data"
    )


def _protocols(panel: Panel) -> Iterator[tuple[str, Flags]]:
    """Each protocol and which pools (N,) are its own, by name."""
    known = panel.pools["protocol"].to_list() if "protocol" in panel.pools.columns else [None] * panel.shape[1]
    names = np.array([canonical(name) if name else UNKNOWN_PROTOCOL for name in known])
    for protocol in np.unique(names):
        yield str(protocol), names == protocol


def _by_lead(
    models: Mapping[str, Floats], observed: Floats, forecast: Flags, lead: int, resampling: _Resampling
) -> list[_Measures]:
    """The forecasts against the APY `lead` rows later, scaled by the pools' `lead`-row changes."""
    truth = _later(observed, lead)
    common = forecast & np.isfinite(models[PERSISTENCE]) & np.isfinite(truth)
    rows = np.flatnonzero(common.any(axis=1))
    scale = _naive_change(observed, lead, int(rows[0]) if rows.size else 0)
    return _measured(models, truth, common, scale, resampling)


def _naive_change(observed: Floats, rows: int, end: int) -> Floats:
    """(N,) mean absolute change over `rows` rows among the rows before `end`; NaN where there are too few or it is 0."""
    past = observed[:end]
    changes = np.abs(past[rows:] - past[: max(0, end - rows)])
    seen = np.isfinite(changes)
    total, number = np.where(seen, changes, 0.0).sum(axis=0), seen.sum(axis=0)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=(number >= _MIN_CHANGES) & (total > 0.0))


# -- measures on them ----------------------------------------------------------------------------------------------


def _measured(
    models: Mapping[str, Floats], truth: Floats, common: Flags, scale: Floats, resampling: _Resampling
) -> list[_Measures]:
    """The measures of each model on the cells of `common` (T, N)."""
    row, pool = np.nonzero(common)
    if not row.size:
        return [dict.fromkeys(_SCHEMA) | dict.fromkeys(_COUNTS, 0) | {"model": name} for name in models]
    day = row - row[0]
    came = truth[common]
    cells = np.bincount(pool, minlength=scale.size)
    counted: _Measures = {
        "cells": row.size,
        "days": int(np.count_nonzero(np.bincount(day))),
        "pools": int(np.count_nonzero(cells)),
        "mase_pools": int(np.count_nonzero(np.isfinite(scale) & (cells > 0))),
    }
    order = _ranks(came, day)
    measured: list[_Measures] = []
    reference: Floats | None = None
    for name, forecasts in models.items():
        said = forecasts[common]
        errors = np.abs(said - came)
        daily = np.bincount(day, weights=errors)
        reference = daily if reference is None else reference
        low, high = resampling.interval(daily, reference)
        correlation, days = _rank_correlation(_ranks(said, day), order, day)
        rmse, mae = float(np.sqrt(np.mean(errors**2))), float(np.mean(errors))
        first = measured[0] if measured else {"rmse": rmse, "mae": mae}
        measured.append(
            counted
            | {
                "model": name,
                "rmse": rmse,
                "mae": mae,
                "median_ae": float(np.median(errors)),
                "mase": _scaled(errors, pool, cells, scale),
                "smape": _symmetric(errors, said, came),
                "skill": _skill(mae, first["mae"]),
                "skill_low": low,
                "skill_high": high,
                "skill_rmse": _skill(rmse, first["rmse"]),
                "rank_correlation": correlation,
                "rank_days": days,
            }
        )
    return measured


def _skill(error: float, reference: object) -> float:
    return 1.0 - error / reference if isinstance(reference, float) and reference > 0.0 else np.nan


def _scaled(errors: Floats, pool: Whole, cells: Whole, scale: Floats) -> float:
    """MASE: the mean over pools of mean error / scale."""
    inside = np.isfinite(scale) & (cells > 0)
    means = np.bincount(pool, weights=errors, minlength=scale.size)[inside] / cells[inside]
    return float(np.mean(means / scale[inside])) if inside.any() else np.nan


def _symmetric(errors: Floats, said: Floats, came: Floats) -> float:
    size = np.abs(said) + np.abs(came)
    return float(np.mean(np.divide(2.0 * errors, size, out=np.zeros_like(errors), where=size > 0.0)))


def _ranks(values: Floats, day: Whole) -> Floats:
    """(C,) rank of each cell among its day's, ties sharing their mean rank, less the day's mean rank. Halves of whole
    numbers: sums of their products are exact, and a day on which all are equal has nothing but zeros."""
    order = np.lexsort((values, day))
    sorted_values, sorted_days = values[order], day[order]
    begins_day = np.flatnonzero(np.r_[True, np.diff(sorted_days) > 0])
    begins_tie = np.flatnonzero(np.r_[True, (np.diff(sorted_days) > 0) | (sorted_values[1:] != sorted_values[:-1])])
    ranks = np.empty(values.size)
    ranks[order] = _middles(begins_tie, values.size) - _middles(begins_day, values.size)
    return ranks


def _middles(begins: Whole, size: int) -> Floats:
    """(size,) the middle place of the run that each place is in."""
    lengths = np.diff(np.r_[begins, size])
    return np.repeat(begins + (lengths - 1) / 2.0, lengths)


def _rank_correlation(said: Floats, came: Floats, day: Whole) -> tuple[float, int]:
    """The mean over days of the correlation of centred ranks, and over how many days."""
    squares = np.bincount(day, weights=said**2) * np.bincount(day, weights=came**2)
    usable = (squares > 0.0) & (np.bincount(day) >= _MIN_POOLS)
    if not usable.any():
        return np.nan, 0
    products = np.bincount(day, weights=said * came)
    return float(np.mean(products[usable] / np.sqrt(squares[usable]))), int(np.count_nonzero(usable))


# -- as tables -----------------------------------------------------------------------------------------------------


def _verdict(measures: _Measures) -> str | None:
    low = measures["skill_low"]
    if measures["model"] == PERSISTENCE:
        return None
    return BEATS if isinstance(low, float) and low > 0.0 else DOES_NOT_BEAT


def _frame(rows: list[_Measures], columns: Mapping[str, pl.DataType | type[pl.DataType]]) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema=columns)
    floats = pl.selectors.float()
    return frame.with_columns(pl.when(floats.is_finite()).then(floats).name.keep())
