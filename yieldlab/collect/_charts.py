"""What do charts bring into the store, when others of the same pools came before them?

A chart tells the whole history of its pool. So a row that it has and the one before it lacked was not known when that
one came; a chart that is older than one in the store tells nothing any more; and a row that the feed told once and
tells no longer is kept, and counted.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from yieldlab import schema
from yieldlab.collect import defillama
from yieldlab.collect.answers import Answer
from yieldlab.collect.archive import Fetch
from yieldlab.store import Store

POOLS_SOURCE = f"{schema.FEED}/pools"

#: The feed tells the last row of a day for good this long after the day's end, at the latest.
SETTLED_AFTER = timedelta(hours=2)

_KEY = ("pool_id", "valid_at")


@dataclass(frozen=True, slots=True)
class FetchedChart:
    """A chart that was kept: its rows, without its body."""

    fetch: Fetch
    rows: pl.DataFrame
    refused: pl.DataFrame


def fetch_of(answer: Answer, kind: str, key: str | None) -> Fetch:
    """What table `fetches` says of an answer."""
    return Fetch(answer.fetched_at, answer.url, kind, key, answer.status, answer.content_hash, len(answer.body))


def chart_rows(rows: pl.DataFrame, fetched_at: datetime, before: datetime | None) -> pl.DataFrame:
    """The rows of a chart as the store takes them: what they revise was revised when they came.

    `before` is when the chart before it came. What that one had no row of was not known by then.
    """
    return rows.with_columns(
        pl.lit(fetched_at, schema.UTC).alias("fetched_at"), pl.lit(before, schema.UTC).alias("lacked_at")
    )


def chart_descriptions(feed: pl.DataFrame, charts: Sequence[Fetch], looked_up_at: datetime) -> pl.DataFrame:
    """Rows of `assets` for the pools of these charts, by the /pools answer that they were looked up in.

    A pool that is not listed there is described by nothing, from when its chart came.
    """
    asked = pl.DataFrame(
        {"pool_id": [chart.key for chart in charts], "came_at": [chart.fetched_at for chart in charts]},
        schema={"pool_id": pl.String, "came_at": schema.UTC},
    )
    listed = feed.select("pool_id", *schema.DESCRIBED, pl.lit(looked_up_at, schema.UTC).alias("observed_at"))
    return asked.join(listed.unique("pool_id", keep="last"), on="pool_id", how="left", maintain_order="left").select(
        "pool_id",
        *schema.DESCRIBED,
        pl.coalesce("observed_at", "came_at"),
        pl.lit(POOLS_SOURCE).alias("source"),
    )


class Earlier:
    """The charts of some pools that are in the store. Ask while nothing else can write."""

    def __init__(self, store: Store, pools: Sequence[str]) -> None:
        self._store = store
        fetches = store.recorded("fetches", columns=["kind", "key", "fetched_at"])
        fetches = fetches.filter((pl.col("kind") == "chart") & pl.col("key").is_in(list(pools)))
        self._fetches = fetches.select(pl.col("key").alias("pool_id"), "fetched_at").sort("fetched_at")
        self._instants: dict[str, list[datetime]] = {}
        for pool_id, fetched_at in self._fetches.rows():
            self._instants.setdefault(pool_id, []).append(fetched_at)

    def before(self, fetch: Fetch) -> datetime | None:
        """When the chart before this one came."""
        instants = self._instants.get(str(fetch.key), [])
        return max((instant for instant in instants if instant < fetch.fetched_at), default=None)

    def is_newer(self, fetch: Fetch, now: datetime) -> bool:
        """Whether a later chart of this one's pool is here; one from a clock that runs ahead does not count."""
        return any(fetch.fetched_at < instant <= now for instant in self._instants.get(str(fetch.key), []))

    def withdrawn(self, charts: Sequence[FetchedChart]) -> dict[str, int]:
        """Pool -> the rows that earlier charts told and its chart here does not.

        The row of a day that was not over when it was told is not among them when a later one of that day took its
        place: that is how the feed tells the present day.
        """
        known_pools = [str(chart.fetch.key) for chart in charts if chart.fetch.key in self._instants]
        if not known_pools or not self._store.exists:
            return {}
        told = self._store.history(pools=known_pools, columns=(*_KEY, "source"))
        told = told.filter(pl.col("source") == defillama.CHART_SOURCE).select(_KEY).unique()
        tells = pl.concat([chart.rows.select(_KEY) for chart in charts])
        gone = told.join(tells, on=_KEY, how="anti").with_columns(pl.col("valid_at").dt.date().alias("day"))
        if gone.is_empty():
            return {}
        last = tells.group_by("pool_id", pl.col("valid_at").dt.date().alias("day")).agg(pl.col("valid_at").max())
        open_days = pl.concat(
            self._fetches.select("pool_id", (pl.col("fetched_at") - late).dt.date().alias("day"))
            for late in (timedelta(), SETTLED_AFTER)
        )
        moved_on = (
            gone.join(last, on=["pool_id", "day"], suffix="_last")
            .filter(pl.col("valid_at") < pl.col("valid_at_last"))
            .join(open_days, on=["pool_id", "day"], how="semi")
        )
        counts = gone.join(moved_on, on=_KEY, how="anti").group_by("pool_id").len().sort("pool_id")
        return dict(counts.rows())


def set_aside(refused: pl.DataFrame, folder: Path) -> Path:
    """Write the refused rows down; the same rows give the same name, so that nothing piles up."""
    refused = refused.sort(pl.all())
    content = hashlib.sha256(refused.write_json().encode()).hexdigest()[:8]
    target = folder / f"chart-{content}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        refused.write_parquet(temporary)
        temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return target
