"""What does a rebuilt store know that another does not, of each instant as it was known at its time?"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime

import polars as pl

from yieldlab import schema
from yieldlab.collect import defillama, polls
from yieldlab.store import Appended, Store

#: Pools compared at a time, so that memory does not grow with the store.
POOLS_AT_A_TIME = 200

#: What the two routes of the feed tell of.
_TOLD = {defillama.CHART_SOURCE: defillama.CHART_COLUMNS, polls.SOURCE: defillama.POOLS_COLUMNS}
_KEY = ("pool_id", "valid_at")
_SERIES_KEY = ("name", "valid_at")
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_NO_METRICS = pl.DataFrame(schema={name: schema.YIELD_METRICS[name] for name in (*_KEY, "apy_percent")})


def merge(
    store: Store, replica: Store, *, with_events: bool, lost_charts: Collection[str] = ()
) -> tuple[list[Appended], int, int]:
    """Add to `store` what only `replica` knows: what was appended, and how many descriptions and events.

    Rows go in with the time at which they were known. A row is not added where the store knew the same at that time,
    nor where it has another value of that very time: what was read as of then must not change. Without `with_events`
    (polls are missing in the replica, so that its events tell of its gaps) they are taken only by a store with none.
    Of `lost_charts`, pools whose earlier charts the replica has not all seen, a row that the store has at all is not
    taken as known at its own time: a chart that is lost may have lacked it.
    """
    with store.writing():
        done, described = _merge_pools(store, replica, lost_charts) if replica.exists else ([], 0)
        series = _unknown_series(store, replica)
        if series.height:
            done.append(store.append_series(series))
        known = store.recorded("pool_events")
        events = replica.recorded("pool_events").join(
            known, on=schema.POOL_EVENTS.names(), how="anti", nulls_equal=True
        )
        if not with_events and known.height:
            events = events.clear()
        store.record("pool_events", events)
    return done, described, events.height


def _merge_pools(store: Store, replica: Store, lost_charts: Collection[str]) -> tuple[list[Appended], int]:
    assets = _unknown_assets(store, replica)
    # One append takes one description of a pool; those that come first go in with the rows.
    turns = assets.with_columns(pl.int_range(pl.len()).over("pool_id").alias("turn")).sort("turn", maintain_order=True)
    first = turns.filter(pl.col("turn") == 0).drop("turn")
    done: list[Appended] = []
    ids = replica.assets()["pool_id"]
    for start in range(0, ids.len(), POOLS_AT_A_TIME):
        pools = ids[start : start + POOLS_AT_A_TIME].to_list()
        for source, columns in _TOLD.items():
            measured = [name for name in schema.MEASURED if name in columns]
            rows = _unknown_rows(store, replica, pools, measured, source)
            if source == defillama.CHART_SOURCE and store.exists:
                rows = _without_doubtful(rows, store, [pool for pool in pools if pool in lost_charts])
            if rows.height:
                done.append(store.append(rows, first.filter(pl.col("pool_id").is_in(pools))))
    for turn in turns.partition_by("turn", maintain_order=True):
        store.append(_NO_METRICS, turn.drop("turn"))
    return done, assets.height


def _unknown_rows(
    store: Store, replica: Store, pools: Collection[str], measured: Sequence[str], source: str
) -> pl.DataFrame:
    """The revisions of `replica` that tell, of their pool and instant, what `store` did not know at their time.

    They have the columns that this route of the feed tells of, so that nothing known from elsewhere is hidden.
    """
    rows = replica.history(pools=pools, columns=(*measured, "source")).filter(pl.col("source") == source)
    rows = rows.select(*_KEY, "observed_at", *measured, "source")
    if rows.is_empty() or not store.exists:
        return rows
    known = store.history(pools=pools, columns=(*measured, "source"))
    rows = _telling(rows, known, measured, by=_KEY)
    return _changing(rows, known, measured) if source == polls.SOURCE else rows


def _without_doubtful(rows: pl.DataFrame, store: Store, pools: Collection[str]) -> pl.DataFrame:
    """The rows, but for those of `pools` that are only assumed to have been known and that the store has."""
    if rows.is_empty() or not pools:
        return rows
    held = store.history(pools=pools, columns=_KEY).select(_KEY).unique()
    doubtful = rows.filter(pl.col("observed_at") == pl.col("valid_at")).join(held, on=_KEY, how="semi")
    return rows.join(doubtful, on=[*_KEY, "observed_at"], how="anti")


def _changing(rows: pl.DataFrame, known: pl.DataFrame, measured: Sequence[str]) -> pl.DataFrame:
    """The rows of polls that do not repeat the poll stored before them on their day, as the collector has it."""
    day = pl.col("valid_at").dt.truncate("1d").alias("day")
    before = known.filter(pl.col("source") == polls.SOURCE).sort("valid_at", "observed_at", "ingested_at")
    before = before.select("pool_id", day, "valid_at", pl.lit(True).alias("seen"), *_renamed(measured))
    joined = rows.with_columns(day).sort("valid_at", maintain_order=True)
    joined = joined.join_asof(before, on="valid_at", by=["pool_id", "day"], strategy="backward", check_sortedness=False)
    return joined.filter(pl.col("seen").is_null() | _differs(measured)).select(rows.columns)


def _unknown_series(store: Store, replica: Store) -> pl.DataFrame:
    rows = replica.series_history().drop("ingested_at")
    return _telling(rows, store.series_history(), ["value"], by=_SERIES_KEY)


def _unknown_assets(store: Store, replica: Store) -> pl.DataFrame:
    """The descriptions of `replica` that `store` did not have at their time, oldest first."""
    rows = replica.descriptions().drop("ingested_at")
    # What a pool was called first holds for the time before, too.
    known = store.descriptions().sort("observed_at", "ingested_at", maintain_order=True)
    known = known.with_columns(
        pl.when(pl.col("pool_id").is_first_distinct())
        .then(pl.lit(_EARLIEST, schema.UTC))
        .otherwise("observed_at")
        .alias("observed_at")
    )
    # A description that says nothing adds nothing, except that the pool is there.
    said = rows.join(known.select("pool_id").unique(), on="pool_id", how="semi")
    silent = said.filter(pl.all_horizontal(pl.col(name).is_null() for name in schema.DESCRIBED))
    rows = rows.join(silent.select("pool_id", "observed_at"), on=["pool_id", "observed_at"], how="anti")
    return _telling(rows, known, schema.DESCRIBED, by=("pool_id",))


def _telling(rows: pl.DataFrame, known: pl.DataFrame, told: Sequence[str], *, by: Sequence[str]) -> pl.DataFrame:
    """The rows that tell something else than the last one of `known` before them, and are of another time, by time."""
    known = known.sort("observed_at", "ingested_at", maintain_order=True)
    known = known.unique([*by, "observed_at"], keep="last", maintain_order=True)
    before = known.select(
        *by,
        "observed_at",
        pl.col("observed_at").alias("known_at"),
        *_renamed(told),
    )
    joined = rows.sort("observed_at", maintain_order=True).join_asof(
        before, on="observed_at", by=list(by), strategy="backward", check_sortedness=False
    )
    is_later = pl.col("known_at") < pl.col("observed_at")
    return joined.filter(pl.col("known_at").is_null() | (_differs(told) & is_later)).select(rows.columns)


def _renamed(names: Sequence[str]) -> list[pl.Expr]:
    return [pl.col(name).alias(f"{name}_known") for name in names]


def _differs(names: Sequence[str]) -> pl.Expr:
    return pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"{name}_known")) for name in names)
