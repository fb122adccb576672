"""What lies in a PostgreSQL database with the tables `assets` and `yield_metrics`, and how do our rows get there?

    assets          id, symbol, address, decimals, protocol, chain
    yield_metrics   time, asset_id, apy_percent, tvl_usd, volume_24h_usd, utilization_rate, volatility_24h,
                    block_number; unique (time, asset_id)

Where the tables have them, `assets.pool_id` names a pool as we do, and `yield_metrics` has the rest of our columns:
`apy_base_percent`, `apy_reward_percent`, `observed_at` and `source`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from yieldlab import schema
from yieldlab.errors import DataError
from yieldlab.store._postgres import (
    Column,
    Database,
    columns,
    database,
    database_name,
    frame,
    frames,
    literal,
    looks_like_a_url,
    pool_name,
    quoted,
    transaction,
)
from yieldlab.store._postgres_export import Exported, export

if TYPE_CHECKING:
    from adbc_driver_manager.dbapi import Cursor

__all__ = ["Database", "Exported", "Reading", "database", "export", "looks_like_a_url", "reading"]

#: Rows that a part of a reading has at least, unless it is the last.
PART_ROWS = 250_000

#: The columns of `yield_metrics` that are read, where the database has them.
READ = ("time", "block_number", "observed_at", *schema.MEASURED, "source")
#: ... and of these, what is kept of a row besides its keys.
STORED = (*schema.MEASURED, "observed_at", "source")
NEEDED = {"assets": ("id",), "yield_metrics": ("time", "asset_id", "apy_percent")}

_AS_THEY_ARE = ("float8", "int2", "int4", "int8")
_INSTANTS = {"timestamptz": "timestamptz", "timestamp": "timestamp", "date": "timestamp"}
#: Instants outside these have no place in a frame; PostgreSQL also knows infinite ones.
_FIRST_INSTANT, _LAST_INSTANT = "0001-01-01 00:00:00Z", "9999-12-31 00:00:00Z"
_OUTSIDE = "outside_"


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a database, in which nothing moves: `parts` gives its rows, `ignored` the columns that they lack.

    `name` is the database's own name. `pools` has every asset: asset_id, pool_id, protocol, symbol, chain.
    """

    name: str
    pools: pl.DataFrame
    measured: Mapping[str, Column]
    ignored: tuple[str, ...]
    _cursor: Cursor = field(repr=False)

    def parts(self) -> Iterator[pl.DataFrame]:
        """The rows in parts of whole pools, each sorted by time: `asset_id`, the pool and the columns of `READ`.

        Numbers that are no float8 and all other types come as text, as PostgreSQL writes them, so that a value which
        is no number is one bad row. Instants without a zone are UTC. An `asset_id` that is not in `assets` has no pool.
        """
        known = [self.measured[name] for name in READ if name in self.measured]
        order = ", ".join(f"yield_metrics.{quoted(column.name)}" for column in known)
        query = (
            f"SELECT asset_id::text AS asset_id, {', '.join(_chosen(column) for column in known)} "
            f"FROM yield_metrics ORDER BY yield_metrics.asset_id, {order}"
        )
        for part in _whole_pools(frames(self._cursor, query)):
            yield self._named(part)

    def _named(self, part: pl.DataFrame) -> pl.DataFrame:
        for name in ("time", "observed_at"):
            outside = f"{_OUTSIDE}{name}"
            if outside in part.columns:
                if part[outside].null_count() < part.height:
                    text = pl.coalesce(outside, pl.col(name).dt.to_string("iso:strict"))
                    part = part.with_columns(text.alias(name))
                part = part.drop(outside)
        return part.join(self.pools, on="asset_id", how="left", maintain_order="left").select(
            "asset_id", "pool_id", *schema.DESCRIBED, pl.exclude("asset_id", "pool_id", *schema.DESCRIBED)
        )


@contextmanager
def reading(where: Database) -> Iterator[Reading]:
    """One look at a database, inside a read-only transaction that ends with the block.

    Raises DataError when the database cannot be reached, lacks a table or a column, or gives two assets one pool id.
    """
    with transaction(where) as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        name = database_name(cursor)
        assets, measured = (_columns(cursor, where, table) for table in NEEDED)
        used = ("id", "pool_id", *schema.DESCRIBED)
        yield Reading(
            name=name,
            pools=_pools(cursor, where, name, assets),
            measured=measured,
            ignored=(
                *(f"assets.{column}" for column in assets if column not in used),
                *(f"yield_metrics.{column}" for column in measured if column not in (*STORED, "time", "asset_id")),
            ),
            _cursor=cursor,
        )


def _columns(cursor: Cursor, where: Database, table: str) -> Mapping[str, Column]:
    found = columns(cursor, table)
    if found is None:
        raise DataError(f"{where.shown} has no table {table}; what is read is assets and yield_metrics")
    if missing := [column for column in NEEDED[table] if column not in found]:
        raise DataError(f"the table {table} of {where.shown} has no column {missing[0]!r}; it has: {', '.join(found)}")
    return found


def _pools(cursor: Cursor, where: Database, name: str, assets: Mapping[str, Column]) -> pl.DataFrame:
    """asset_id, pool_id, protocol, symbol and chain of every asset, all as text."""
    given = {column: f"{quoted(column)}::text" if column in assets else "NULL::text" for column in schema.DESCRIBED}
    listed = ", ".join(f"{text} AS {column}" for column, text in given.items())
    pools = frame(
        cursor,
        f"SELECT id::text AS asset_id, {pool_name(assets, name)} AS pool_id, {listed} FROM assets "
        "WHERE id IS NOT NULL ORDER BY id",
    )
    pools = pools.with_columns(pl.col("pool_id").str.strip_chars())
    for column in ("asset_id", "pool_id"):
        repeated = pools[column].filter(pools[column].is_duplicated())
        if repeated.len():
            told = "id" if column == "asset_id" else "pool"
            raise DataError(
                f"the table assets of {where.shown} has the {told} {repeated[0]!r} more than once; keep one"
            )
    return pools


def _chosen(column: Column) -> str:
    """How a column of `yield_metrics` is asked for, under its own name."""
    name = quoted(column.name)
    if column.type in _AS_THEY_ARE:
        return name
    if column.type not in _INSTANTS or column.name not in ("time", "observed_at"):
        return f"{name}::text AS {name}"
    instant = f"{name}::{_INSTANTS[column.type]}"
    inside = f"{instant} BETWEEN {literal(_FIRST_INSTANT)} AND {literal(_LAST_INSTANT)}"
    return (
        f"CASE WHEN {inside} THEN {instant} END AS {name}, "
        f"CASE WHEN NOT ({inside}) THEN {name}::text END AS {_OUTSIDE}{column.name}"
    )


def _whole_pools(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Join frames sorted by `asset_id` into parts that end where a pool does."""
    held: pl.DataFrame | None = None
    for batch in frames:
        held = batch if held is None else held.vstack(batch)
        if held.height < PART_ROWS:
            continue
        open_pool = held["asset_id"].eq_missing(held["asset_id"][-1])
        begins = open_pool.arg_max() or 0
        if begins:
            yield held.head(begins).rechunk()
            held = held.slice(begins)
    if held is not None and held.height:
        yield held.rechunk()
