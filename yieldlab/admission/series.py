"""Which values may enter a series beside the pools? The checks of `admission`, for rows of one value each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from yieldlab.admission import FIRST_BLOCK, REASON, ROW, instants, is_told, numbers, texts

_REPLACED = "replaced by a later row of the same series and time"


def typed_series(raw: pl.DataFrame, now: datetime, *, refuse: Sequence[tuple[pl.Expr, str]] = ()) -> pl.DataFrame:
    """The columns name, time, value and, where given, observed_at and source of `raw` in our types; `reject_row` (1 =
    first row), `reject_reason`: null for a row that may go in or has no value; and `repeated`.

    Of good rows of one series and time the last one counts: equal ones before it are `repeated`, others are refused.
    `refuse` has further reasons to refuse a row, told from these columns. No value means: not observed.
    """
    made = {
        ROW: pl.Series(range(1, raw.height + 1), dtype=pl.Int64),
        "name": texts(raw["name"]),
        "time": instants(raw["time"]),
        "value": numbers(raw["value"]),
    }
    reasons = [
        (made["name"].is_null(), "missing name"),
        (raw["time"].is_null(), "missing time"),
        (made["time"].is_null(), "unreadable time"),
        (made["time"] > now, "time in the future"),
        (made["time"] < FIRST_BLOCK, "time before the first blockchain"),
        (is_told(raw["value"]) & made["value"].is_null(), "value is not a number"),
        (made["value"].is_infinite(), "value is not finite"),
    ]
    if "observed_at" in raw.columns:
        made["observed_at"] = instants(raw["observed_at"])
        reasons += [
            (raw["observed_at"].is_not_null() & made["observed_at"].is_null(), "unreadable observed_at"),
            (made["observed_at"] > now, "observed_at in the future"),
            (made["observed_at"] < made["time"], "observed_at before the time"),
        ]
    if "source" in raw.columns:
        made["source"] = texts(raw["source"])
    told = [pl.when(pl.lit(mask.fill_null(value=False))).then(pl.lit(reason)) for mask, reason in reasons]
    told += [pl.when(wrong.fill_null(value=False)).then(pl.lit(reason)) for wrong, reason in refuse]
    return _with_repeated(
        pl.DataFrame(made).with_columns(pl.col("value").fill_nan(None), pl.coalesce(told).alias(REASON))
    )


def usable(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows that go in."""
    return rows.filter(pl.col(REASON).is_null() & pl.col("value").is_not_null() & ~pl.col("repeated"))


def refusals(rows: pl.DataFrame) -> dict[str, int]:
    """Reason -> refused rows, most frequent first."""
    bad = rows.filter(pl.col(REASON).is_not_null())
    return dict(bad.group_by(REASON).len().sort("len", REASON, descending=[True, False]).rows())


def _with_repeated(rows: pl.DataFrame) -> pl.DataFrame:
    key = [name for name in ("name", "time", "observed_at") if name in rows.columns]
    good = rows.filter(pl.col(REASON).is_null() & pl.col("value").is_not_null()).with_columns(
        pl.col("value").last().over(key).alias("last_value"),
        (pl.col(ROW) < pl.col(ROW).max().over(key)).alias("early"),
    )
    early = good.filter("early")
    repeated = early.filter(pl.col("value") == pl.col("last_value"))[ROW].implode()
    replaced = early.filter(pl.col("value") != pl.col("last_value"))[ROW].implode()
    return rows.with_columns(
        pl.col(ROW).is_in(repeated).alias("repeated"),
        pl.when(pl.col(ROW).is_in(replaced)).then(pl.lit(_REPLACED)).otherwise(REASON).alias(REASON),
    )
