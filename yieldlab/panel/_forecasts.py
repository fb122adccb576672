"""How do a model's forecasts fall on the cells of a panel, and which of them may not stand there at all?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab import schema
from yieldlab.errors import DataError, UsageError
from yieldlab.panel._grid import Floats, checked
from yieldlab.units import MICROSECONDS_PER_DAY

_COLUMNS = ("pool_id", "valid_at", "prediction", "trained_through", "run_id", "model", "created_at", "horizon_days")


@dataclass(frozen=True, slots=True)
class ForecastOrigin:
    """The run that a field is from: when it was stored, how many days ahead it looks, the first and last day that it
    says something about, and the first and last day that its models were trained through."""

    run_id: str
    model: str
    created_at: str
    horizon_days: int
    first: str
    last: str
    first_trained: str
    last_trained: str


def parted(
    fields: Sequence[str], forecasts: Mapping[str, pl.DataFrame]
) -> tuple[tuple[str, ...], dict[str, pl.DataFrame]]:
    """Of the panel fields asked for, those that are observed, and the rows of those that a model wrote.

    Raises UsageError for a model's field without rows.
    """
    observed = [name for name in fields if not schema.is_model_field(name)]
    if schema.PERSISTENCE in fields:  # it is the APY, and that must be there
        observed.append("apy")
    modelled: dict[str, pl.DataFrame] = {}
    for name in fields:
        if schema.is_model_field(name) and name != schema.PERSISTENCE:
            if name not in forecasts:
                raise UsageError(f"the panel field {name!r} is written by a model; give its rows in `forecasts`")
            modelled[name] = forecasts[name]
    return tuple(dict.fromkeys(observed)), modelled


def dense_forecast(
    field: str, rows: pl.DataFrame, pools: pl.Series, days: NDArray[np.int64]
) -> tuple[Floats, ForecastOrigin]:
    """(T, N) predictions of one run on these `days` since 1970, one after the other, and pools; NaN = none. Pools and
    days that are not among them are left out.

    Raises DataError when a model was trained on the day of a prediction or later, for two predictions of one pool and
    day, for rows of several runs, and when nothing falls on the panel.
    """
    rows = checked(rows, _COLUMNS)
    if rows["run_id"].n_unique() != 1:
        raise DataError(f"the predictions of {field} are of {rows['run_id'].n_unique()} runs; give those of one")
    told = rows.select("pool_id", "prediction", _day("valid_at"), _day("trained_through"))
    late = told.filter((pl.col("trained_through") < pl.col("valid_at")).fill_null(value=False).not_())
    if late.height:
        raise DataError(_refusal(field, late.row(0, named=True)))
    row = pl.col("valid_at") - int(days[0])
    cells = told.select(
        row.alias("row"), pl.col("pool_id").cast(pl.Enum(pools), strict=False).to_physical(), "prediction"
    ).filter(
        pl.col("row").is_between(0, days.size - 1), pl.col("pool_id").is_not_null(), pl.col("prediction").is_not_nan()
    )
    origin = _origin(rows, told)
    if cells.is_empty():
        raise DataError(
            f"run {origin.run_id} has no prediction of {field} for a pool and a day of the panel; it has days from "
            f"{origin.first} to {origin.last}"
        )
    array = np.full((days.size, pools.len()), np.nan)
    array[cells["row"].to_numpy(), cells["pool_id"].to_numpy()] = cells["prediction"].cast(pl.Float64).to_numpy()
    if np.count_nonzero(~np.isnan(array)) != cells.height:
        twice = cells.filter(cells.select("row", "pool_id").is_duplicated()).row(0, named=True)
        raise DataError(
            f"{field} has two predictions for pool {pools[twice['pool_id']]!r} on {_date(days[twice['row']])}; "
            "there may be one"
        )
    array.flags.writeable = False
    return array, origin


def _day(column: str) -> pl.Expr:
    return pl.col(column).dt.timestamp("us") // MICROSECONDS_PER_DAY


def _refusal(field: str, row: Mapping[str, Any]) -> str:
    through = row["trained_through"]
    trained = "has no day that it was trained through" if through is None else f"was trained through {_date(through)}"
    return (
        f"the model behind the prediction of {field} for pool {row['pool_id']!r} on {_date(row['valid_at'])} "
        f"{trained}; that must be a day before it"
    )


def _origin(rows: pl.DataFrame, told: pl.DataFrame) -> ForecastOrigin:
    first = rows.row(0, named=True)
    return ForecastOrigin(
        run_id=first["run_id"],
        model=first["model"],
        created_at=first["created_at"].isoformat(),
        horizon_days=int(first["horizon_days"]),
        first=_date(told["valid_at"].min()),
        last=_date(told["valid_at"].max()),
        first_trained=_date(told["trained_through"].min()),
        last_trained=_date(told["trained_through"].max()),
    )


def _date(day: object) -> str:
    return str(np.datetime64(int(str(day)), "D"))
