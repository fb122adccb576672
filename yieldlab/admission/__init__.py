"""Which rows may enter the store? Foreign values become ours, and each row that cannot pass is told why.

What comes in, from a file, a database or the feed, is a frame of texts, numbers and instants as they were given, and
a mapping of our column names (those of `yield_metrics`, with `time` for `valid_at`, and of `assets`) to its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import polars as pl

from yieldlab import schema
from yieldlab.admission._instants import FIRST_BLOCK, instants

__all__ = [
    "FIRST_BLOCK",
    "NULL_WORDS",
    "REASON",
    "ROW",
    "instants",
    "is_told",
    "numbers",
    "texts",
    "trimmed",
    "typed",
    "without_repetitions",
]

#: The columns that `typed` adds: the number of the row (1 = first row of data), and why it is refused.
ROW, REASON = "reject_row", "reject_reason"

#: Texts that mean "not observed" in a column of numbers.
NULL_WORDS = ("", "null", "none", "na", "n/a", "-")

_PERCENT_LOSS_OF_ALL = -100.0
_SHORT = {"apy_percent": "apy", "tvl_usd": "tvl"}


def typed(raw: pl.DataFrame, columns: Mapping[str, str], now: datetime) -> pl.DataFrame:
    """Our columns in our types, `reject_row`, and `reject_reason`: null for a row that may go in.

    `columns` holds at least `pool_id` and `apy_percent`. Rows without `time` are of the instant they come at, `now`.
    """
    made: dict[str, pl.Series] = {ROW: pl.Series(range(1, raw.height + 1), dtype=pl.Int64)}
    reasons: list[tuple[pl.Series, str]] = []
    for name, column in columns.items():
        given = raw[column]
        if name in ("time", "observed_at"):
            made[name] = instants(given)
            reasons += [(given.is_not_null() & made[name].is_null(), f"unreadable {name}")]
        elif name in schema.MEASURED:
            made[name] = numbers(given)
            shown = _SHORT.get(name, name)
            reasons += [(is_told(given) & made[name].is_null(), f"{shown} is not a number")]
            reasons += [(made[name].is_infinite(), f"{shown} is not finite")]
        else:
            made[name] = texts(given)
    apy = made["apy_percent"]
    reasons = [
        (made["pool_id"].is_null(), "missing pool_id"),
        *([(raw[columns["time"]].is_null(), "missing time")] if "time" in made else []),
        *reasons,
        *(_no_time(made["time"], now) if "time" in made else []),
        (apy.is_nan(), "apy is not finite"),
        (apy.is_null(), "missing apy"),
        (apy <= _PERCENT_LOSS_OF_ALL, "apy of -100 % or less"),
    ]
    if "tvl_usd" in made:
        reasons += [(made["tvl_usd"] < 0.0, "negative tvl")]
    if "observed_at" in made and "time" in made:
        reasons += [
            (made["observed_at"] > now, "observed_at in the future"),
            (made["observed_at"] < made["time"], "observed_at before the time"),
        ]
    frame = pl.DataFrame(made).with_columns(pl.col(n).fill_nan(None) for n in made if n in schema.MEASURED)
    first = pl.coalesce(pl.when(pl.lit(mask.fill_null(value=False))).then(pl.lit(reason)) for mask, reason in reasons)
    return frame.with_columns(first.alias(REASON))


def _no_time(time: pl.Series, now: datetime) -> list[tuple[pl.Series, str]]:
    return [(time > now, "time in the future"), (time < FIRST_BLOCK, "time before the first blockchain")]


def numbers(given: pl.Series) -> pl.Series:
    """Float64; null where it is missing or cannot be read as a number."""
    if given.dtype.is_numeric():
        return given.cast(pl.Float64)
    if given.dtype == pl.String:
        return given.str.strip_chars().cast(pl.Float64, strict=False)
    return pl.Series(given.name, [None] * given.len(), dtype=pl.Float64)


def is_told(given: pl.Series) -> pl.Series:
    """(rows,) whether there is something to be read as a number."""
    if given.dtype != pl.String:
        return given.is_not_null()
    return given.is_not_null() & ~given.str.strip_chars().str.to_lowercase().is_in(NULL_WORDS)


def texts(given: pl.Series) -> pl.Series:
    """String without white space around it; null where there is nothing else."""
    stripped = given.cast(pl.String, strict=False).str.strip_chars()
    return stripped.set(stripped.str.len_chars() == 0, None)


def trimmed(raw: pl.DataFrame, columns: Mapping[str, str]) -> int:
    """The rows in which white space was taken off a text that has more than that."""
    shorter = pl.repeat(False, raw.height, eager=True)
    for name, column in columns.items():
        if name in ("pool_id", *schema.DESCRIBED, "source"):
            shorter |= (texts(raw[column]) != raw[column].cast(pl.String, strict=False)).fill_null(value=False)
    return int(shorter.sum())


# -- repetitions --------------------------------------------------------------------------------------------------


def without_repetitions(rows: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Keep the last good row of each pool and time; equal ones before it are dropped and counted, others refused."""
    key = [name for name in ("pool_id", "time", "observed_at") if name in rows.columns]
    values = [name for name in rows.columns if name in schema.MEASURED]
    good = rows.filter(pl.col(REASON).is_null())
    counts = good.group_by(key).agg(pl.len().alias("times"), pl.col(ROW).max().alias("last"))
    repeated = counts.filter(pl.col("times") > 1)
    if repeated.is_empty():
        return rows, 0
    several = good.join(repeated, on=key, how="inner", nulls_equal=True, maintain_order="left")
    kept = several.filter(pl.col(ROW) == pl.col("last")).select(*key, *values)
    earlier = several.filter(pl.col(ROW) < pl.col("last")).join(
        kept, on=key, how="left", suffix="_kept", nulls_equal=True, maintain_order="left"
    )
    equal = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"{name}_kept")) for name in values)
    exact = earlier.filter(equal)[ROW]
    conflicting = earlier.filter(~equal)[ROW]
    told = rows.filter(~pl.col(ROW).is_in(exact.implode())).with_columns(
        pl.when(pl.col(ROW).is_in(conflicting.implode()))
        .then(pl.lit("replaced by a later row of the same pool and time"))
        .otherwise(REASON)
        .alias(REASON)
    )
    return told, exact.len()
