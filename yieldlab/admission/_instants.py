"""Which instant does a file's time mean? ISO texts, dates, and seconds to nanoseconds since 1970, all to UTC."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl

from yieldlab import schema

#: No yield on a chain is older than the first chain; a number below is no time (20240131 would be August 1970).
FIRST_BLOCK = datetime(2009, 1, 3, tzinfo=UTC)

#: Numbers below these are seconds, milliseconds, microseconds since 1970; anything above, nanoseconds.
_SECONDS_BELOW, _MILLI_BELOW, _MICRO_BELOW = 1e11, 1e14, 1e17
_ISO = (
    r"^(\d{4}-\d{2}-\d{2})"
    r"(?:[T ]+(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?)?"
    r"\s*(?:(Z|z|UTC|GMT)|([+-])(\d{2}):?(\d{2})?)?$"
)
_PARTS = ("day", "hour", "minute", "second", "fraction", "utc", "sign", "zone_hour", "zone_minute")


def instants(given: pl.Series) -> pl.Series:
    """UTC instants in microseconds, null where there is none or it cannot be read; without a zone UTC is meant."""
    if isinstance(given.dtype, pl.Datetime):
        zoned = (
            given.dt.replace_time_zone("UTC") if given.dtype.time_zone is None else given.dt.convert_time_zone("UTC")
        )
        return zoned.cast(schema.UTC)
    if given.dtype == pl.Date:
        return given.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if given.dtype.is_numeric():
        return _since_1970(given.cast(pl.Float64) if given.dtype.is_float() else given.cast(pl.Int64, strict=False))
    if given.dtype in (pl.String, pl.Categorical) or isinstance(given.dtype, pl.Enum):
        return _read_once(given.cast(pl.String))
    return pl.Series(given.name, [None] * given.len(), dtype=schema.UTC)


def _read_once(given: pl.Series) -> pl.Series:
    """Every different text is read once: a file has few days and many pools."""
    different = pl.DataFrame({"text": given.unique()})
    read = different.with_columns(_from_text(different["text"].str.strip_chars()).alias("instant"))
    return pl.DataFrame({"text": given}).join(read, on="text", how="left", maintain_order="left")["instant"]


def _from_text(texts: pl.Series) -> pl.Series:
    numbers = texts.cast(pl.Float64, strict=False)
    return _from_iso(texts).zip_with(numbers.is_null(), _since_1970(numbers))


def _since_1970(numbers: pl.Series) -> pl.Series:
    size = numbers.abs()
    whole = numbers.dtype.is_integer()

    def scaled(up: int, down: int) -> pl.Series:
        return (numbers * up) // down if whole else (numbers * up / down).round()

    microseconds = scaled(1, 1_000)
    microseconds = scaled(1, 1).zip_with(size < _MICRO_BELOW, microseconds)
    microseconds = scaled(1_000, 1).zip_with(size < _MILLI_BELOW, microseconds)
    microseconds = scaled(1_000_000, 1).zip_with(size < _SECONDS_BELOW, microseconds)
    if not whole:
        microseconds = microseconds.set(~microseconds.is_finite(), None)
    return microseconds.cast(pl.Int64, strict=False).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _from_iso(texts: pl.Series) -> pl.Series:
    found = pl.DataFrame({"text": texts}).select(
        pl.col("text").str.extract(_ISO, group).alias(name) for group, name in enumerate(_PARTS, start=1)
    )

    def number(name: str) -> pl.Expr:
        return pl.col(name).cast(pl.Int64).fill_null(0)

    offset = (number("zone_hour") * 60 + number("zone_minute")) * pl.when(pl.col("sign") == "-").then(-1).otherwise(1)
    microsecond = pl.col("fraction").str.pad_end(9, "0").cast(pl.Int64).fill_null(0) // 1_000
    # 24:00 and leap seconds are read by no two programs alike, so they are not read at all.
    possible = (number("hour") < 24) & (number("minute") < 60) & (number("second") < 60) & (number("zone_hour") < 15)
    instant = pl.col("day").str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")) + pl.duration(
        hours=number("hour"), minutes=number("minute") - offset, seconds=number("second"), microseconds=microsecond
    )
    return found.select(pl.when(possible).then(instant).dt.replace_time_zone("UTC").alias("instant"))["instant"]
