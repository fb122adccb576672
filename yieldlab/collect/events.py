"""What has happened to the pools of the feed since it was last looked at?

Pure functions on frames. An event tells the name of its pool as `protocol/chain/symbol` (a slash in one of the first
two stands there as %2F), so that the last event of a pool says both whether it is in the feed and under which name.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

import polars as pl

from yieldlab import schema

#: Events in the order in which those of one pool and instant happened.
ORDER = {"appeared": 0, "returned": 1, "renamed": 2, "symbol_changed": 3, "vanished": 4}

_TICK = timedelta(microseconds=1)
_PARTS = ("protocol", "chain", "symbol")


def last_events(events: pl.DataFrame) -> pl.DataFrame:
    """Of every pool the last event, with `name`: what it is called since."""
    return (
        events.with_columns(pl.col("event").replace_strict(ORDER, return_dtype=pl.Int8).alias("place"))
        .sort("pool_id", "event_at", "place", maintain_order=True)
        .unique("pool_id", keep="last", maintain_order=True)
        .select("pool_id", "event_at", "event", pl.coalesce("after", "before").alias("name"))
    )


def happened(
    last: pl.DataFrame, feed: pl.DataFrame, *, collected: pl.Series, silent: Collection[str], at: datetime
) -> pl.DataFrame:
    """The events, rows of `schema.POOL_EVENTS`, between `last` (see `last_events`) and what the feed says now.

    `feed` is the whole answer (pool_id and `schema.DESCRIBED`), `collected` the pools that are followed from now on,
    `silent` the pools whose row was refused: they are there, but nothing is known of their name. Whether a pool has
    vanished is judged against the whole answer. What the feed does not tell of a name is as it was. An event is later
    than the pool's last one, whatever the clock does.
    """
    present = feed.select("pool_id", *_told(), _name().alias("now"))
    known = last.join(present, on="pool_id", how="left", maintain_order="left").with_columns(
        pl.max_horizontal(pl.lit(at, schema.UTC), pl.col("event_at") + _TICK).alias("event_at")
    )
    gone = pl.col("event") == "vanished"
    # A refused row proves that its pool is in the feed; it has come back once a row of it can be read.
    missing = pl.col("now").is_null() & ~pl.col("pool_id").is_in(list(silent))
    vanished = known.filter(~gone & missing).select(
        "pool_id", "event_at", _event("vanished"), pl.col("name").alias("before"), _none("after")
    )
    returned = known.filter(gone & pl.col("now").is_not_null()).select(
        "pool_id", "event_at", _event("returned"), _none("before"), pl.col("name").alias("after")
    )
    appeared = (
        present.filter(pl.col("pool_id").is_in(collected.implode()))
        .join(last, on="pool_id", how="anti")
        .select(
            "pool_id",
            pl.lit(at, schema.UTC).alias("event_at"),
            _event("appeared"),
            _none("before"),
            pl.col("now").alias("after"),
        )
    )
    return pl.concat([appeared, returned, *_new_names(known), vanished]).select(schema.POOL_EVENTS.names())


def _new_names(known: pl.DataFrame) -> list[pl.DataFrame]:
    """Who is called otherwise now; a pool that changed both is first renamed and then gets its symbol."""
    before = pl.col("name").str.splitn("/", 3).struct.rename_fields(list(_PARTS))
    parts = known.filter(pl.col("now").is_not_null()).with_columns(
        before.struct.field(part).alias(f"old_{part}") for part in _PARTS
    )
    parts = parts.with_columns(pl.coalesce(part, f"old_{part}").alias(f"new_{part}") for part in _PARTS)
    between = pl.concat_str("new_protocol", "new_chain", "old_symbol", separator="/")
    after = pl.concat_str("new_protocol", "new_chain", "new_symbol", separator="/")
    is_elsewhere = pl.any_horizontal(pl.col(f"old_{part}") != pl.col(f"new_{part}") for part in ("protocol", "chain"))
    renamed = parts.filter(is_elsewhere).select(
        "pool_id", "event_at", _event("renamed"), pl.col("name").alias("before"), between.alias("after")
    )
    symbols = parts.filter(pl.col("old_symbol") != pl.col("new_symbol")).select(
        "pool_id", "event_at", _event("symbol_changed"), between.alias("before"), after.alias("after")
    )
    return [renamed, symbols]


def _told() -> list[pl.Expr]:
    """The parts of a name as they stand in it: a symbol, the last one, may have a slash, the others must not."""
    escaped = [pl.col(part).str.replace_all("/", "%2F", literal=True) for part in ("protocol", "chain")]
    return [*escaped, pl.col("symbol")]


def _name() -> pl.Expr:
    return pl.concat_str([part.fill_null("") for part in _told()], separator="/")


def _event(name: str) -> pl.Expr:
    return pl.lit(name).alias("event")


def _none(name: str) -> pl.Expr:
    return pl.lit(None, pl.String).alias(name)
