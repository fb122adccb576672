"""Which forecasts may be stored, and which finished run answers for a field at an instant?"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from yieldlab import schema
from yieldlab.errors import DataError, UsageError, did_you_mean
from yieldlab.panel import utc
from yieldlab.store._tables import Table, first_line

#: What makes a forecast of a run unique.
KEY = ("field", "pool_id", "valid_at")

_NEEDED = (*KEY, "prediction", "trained_through")
_DESCRIBED = ("model", "horizon_days", "settings_hash")


class Forecasts:
    """The tables `forecasts` and `forecast_runs` in `folder`. A run is what it stored under one instant: rows that a
    killed one left under the same name are of another."""

    __slots__ = ("_rows", "_runs")

    def __init__(self, folder: Path) -> None:
        self._rows = Table(folder / "forecasts", schema.FORECASTS)
        self._runs = Table(folder / "forecast_runs", schema.FORECAST_RUNS)

    @property
    def tables(self) -> tuple[Table, ...]:
        """Both; that of the runs first, since what is shown of the other depends on it."""
        return self._runs, self._rows

    def append(self, rows: pl.DataFrame, run: Mapping[str, object], *, created_at: datetime) -> dict[str, Any]:
        """Add the rows, then the run; see `Store.add_forecasts`. The caller holds the lock."""
        ready, finished = prepared(rows, run, created_at=created_at, known=self.runs())
        self._rows.append(ready)
        self._runs.append(finished)
        return finished.row(0, named=True)

    def runs(self) -> pl.DataFrame:
        """Every finished run; of those that have a field the last one, which knew most, answers for it."""
        if not self._runs.exists:
            return pl.DataFrame(schema=schema.FORECAST_RUNS)
        return self._runs.collect(self._runs.scan()).sort("known_at", "created_at")

    def rows(self, run_id: str, field: str | None = None) -> pl.DataFrame:
        """Those of one finished run, see `Store.forecasts`."""
        run = run_named(self.runs(), run_id, field)
        chosen = (pl.col("run_id") == run_id) & (pl.col("created_at") == pl.lit(run["created_at"], schema.UTC))
        if field is not None:
            chosen &= pl.col("field") == field
        return self._rows.collect(self._rows.scan().filter(chosen)).sort(KEY)

    def latest(
        self, fields: Sequence[str], *, as_of: datetime | None, ingested_by: datetime | None
    ) -> dict[str, pl.DataFrame]:
        """Per field of a model among `fields` what `Panel.from_long` takes of it: the rows of the run that answers."""
        wanted = [name for name in fields if schema.is_model_field(name) and name != schema.PERSISTENCE]
        if not wanted:
            return {}
        runs = self.runs()
        found = {name: answering(runs, name, as_of=as_of, ingested_by=ingested_by) for name in wanted}
        return {
            name: self.rows(run["run_id"], name).with_columns(pl.lit(run["horizon_days"]).alias("horizon_days"))
            for name, run in found.items()
        }


def prepared(
    rows: pl.DataFrame, run: Mapping[str, object], *, created_at: datetime, known: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of `forecasts` and the row of `forecast_runs` to append; `known` are the runs that are there.

    Raises DataError when they may not be stored, see `Store.add_forecasts`.
    """
    for name in _DESCRIBED:
        if run.get(name) is None:
            raise DataError(f"a run of forecasts needs {name!r}; it has {', '.join(map(str, run)) or 'nothing'}")
    if not isinstance(run["horizon_days"], int) or run["horizon_days"] < 1:
        raise DataError(f"horizon_days of a run of forecasts must be a whole number > 0, not {run['horizon_days']!r}")
    for name in run:
        if name not in schema.FORECAST_RUNS:
            raise DataError(f"a run of forecasts has no {name!r}{did_you_mean(name, schema.FORECAST_RUNS)}")
    run_id = str(run.get("run_id") or f"{created_at:%Y%m%dT%H%M%S.%fZ}-{run['model']}")
    if run_id in known["run_id"]:
        raise DataError(f"the run {run_id} is stored already; give another run_id, or none")
    checked = _checked(rows)
    known_at = run.get("known_at") or created_at
    if not isinstance(known_at, datetime):
        raise DataError(f"known_at of a run of forecasts must be an instant, not {known_at!r}")
    _refuse(
        checked,
        pl.col("trained_through") > pl.lit(utc(known_at), schema.UTC),
        f"is by a model that was trained through a later day than {known_at}, when the run knew all that it says",
    )
    ready = checked.with_columns(
        pl.lit(str(run["model"])).alias("model"),
        pl.lit(run_id).alias("run_id"),
        pl.lit(created_at, schema.UTC).alias("created_at"),
    ).select(schema.FORECASTS.names())
    finished = {
        "run_id": run_id,
        "model": str(run["model"]),
        "fields": ",".join(ready["field"].unique().sort()),
        "created_at": created_at,
        "known_at": utc(known_at),
        "horizon_days": run["horizon_days"],
        "settings_hash": str(run["settings_hash"]),
        "first": ready["valid_at"].min(),
        "last": ready["valid_at"].max(),
        "first_trained": ready["trained_through"].min(),
        "last_trained": ready["trained_through"].max(),
        "pools": ready["pool_id"].n_unique(),
        "rows": ready.height,
    }
    return ready, pl.DataFrame([finished], schema=schema.FORECAST_RUNS)


def answering(
    runs: pl.DataFrame, field: str, *, as_of: datetime | None, ingested_by: datetime | None
) -> dict[str, Any]:
    """Of the runs made from what was known at `as_of` and stored by `ingested_by` the one that knew most and has the
    field; of several that knew the same the latest.

    Raises DataError, with the command that makes one, where there is none.
    """
    if as_of is not None:
        runs = runs.filter(pl.col("known_at") <= utc(as_of))
    if ingested_by is not None:
        runs = runs.filter(pl.col("created_at") <= utc(ingested_by))
    found = runs.filter(pl.col("fields").str.split(",").list.contains(field))
    if found.is_empty():
        model = "risk" if field.startswith(schema.RISK) else field.removeprefix(schema.FORECAST)
        limits = [f"made from what was known by {utc(as_of).isoformat()}"] if as_of is not None else []
        limits += [f"stored by {utc(ingested_by).isoformat()}"] if ingested_by is not None else []
        raise DataError(
            f"no finished run of forecasts {' and '.join(limits)}{' ' if limits else ''}has the field {field!r}; "
            f"`yieldlab models walk-forward {model}` makes one{_near(field, _fields(runs))}"
        )
    return found.row(-1, named=True)


def run_named(runs: pl.DataFrame, run_id: str, field: str | None) -> dict[str, Any]:
    """The run of this name, which has this field. Raises UsageError with the nearest one."""
    found = runs.filter(pl.col("run_id") == run_id)
    if found.is_empty():
        raise UsageError(f"unknown run of forecasts {run_id!r}{did_you_mean(run_id, runs['run_id'])}")
    if field is not None and field not in _fields(found):
        raise UsageError(f"run {run_id} has no forecasts of {field!r}{_near(field, _fields(found))}")
    return found.row(0, named=True)


def _checked(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with something to say, in the order in which they are stored."""
    for name in _NEEDED:
        if name not in rows.columns:
            raise DataError(f"rows of forecasts need a column {name!r}; they have {', '.join(rows.columns)}")
    told = rows.select(_NEEDED)
    for name in _NEEDED:
        try:
            told = told.with_columns(pl.col(name).cast(schema.FORECASTS[name]))
        except pl.exceptions.PolarsError as error:
            raise DataError(
                f"the column {name!r} of the forecasts to store holds {told[name].dtype}, not {schema.FORECASTS[name]} "
                f"({first_line(error)})"
            ) from error
    told = told.filter(pl.col("prediction").is_not_null() & pl.col("prediction").is_not_nan())
    if told.is_empty():
        raise DataError("there are no forecasts to store")
    for name in _NEEDED:
        if missing := told[name].null_count():
            raise DataError(f"{missing} of the forecasts to store have no {name}")
    for name in told["field"].unique().sort():
        if re.fullmatch(rf"({'|'.join(schema.MODEL_FIELDS)})\w+", name) is None:
            raise DataError(f"a model's field begins with {' or '.join(schema.MODEL_FIELDS)}, and {name!r} does not")
    _refuse(told, pl.col("prediction").is_infinite(), "is infinite; a model that gives it has failed")
    _refuse(
        told, pl.col("valid_at") != pl.col("valid_at").dt.truncate("1d"), "must have its day's midnight as valid_at"
    )
    _refuse(
        told,
        pl.col("trained_through") >= pl.col("valid_at"),
        "is by a model that was trained through that day or a later one",
    )
    ordered = told.sort(KEY)
    _refuse(ordered, pl.struct(KEY).is_duplicated(), "is there twice")
    return ordered


def _refuse(rows: pl.DataFrame, wrong: pl.Expr, why: str) -> None:
    refused = rows.filter(wrong)
    if refused.height:
        row = refused.row(0, named=True)
        raise DataError(
            f"{refused.height} of the forecasts to store cannot be: that of {row['field']} for pool "
            f"{row['pool_id']!r} on {row['valid_at']:%Y-%m-%d} {why}"
        )


def _fields(runs: pl.DataFrame) -> list[str]:
    return sorted({name for joined in runs["fields"] for name in joined.split(",")})


def _near(field: str, known: Iterable[str]) -> str:
    """The nearest of the known fields, else all of them. What all names begin with makes none of them alike."""
    prefix = next((prefix for prefix in schema.MODEL_FIELDS if field.startswith(prefix)), "")
    words = {name.removeprefix(prefix): name for name in known if name.startswith(prefix)}
    if near := difflib.get_close_matches(field.removeprefix(prefix), words, n=1, cutoff=0.6):
        return f"; did you mean {words[near[0]]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
