"""How does the history of chosen pools come into the store, whatever the feed or the machine does meanwhile?

Charts are fetched a few at a time, kept as they came, and committed in batches: rows first, then the facts of the
fetches, under one lock. Whatever ends a backfill, what was committed stays, and the next one goes on behind it: a
pool whose chart was committed a short while ago is not asked for again, and rows that are known add nothing.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from yieldlab import schema
from yieldlab.collect import conventions, defillama
from yieldlab.collect._http import Answer, Client, FeedError, Stopped, UnknownPool, Unreachable
from yieldlab.collect.archive import Archive, Fetch, fetch_rows
from yieldlab.collect.selection import Selection, pin
from yieldlab.errors import UsageError
from yieldlab.store import Appended, Store

#: Charts asked for at the same time.
WORKERS = 8
#: Charts committed together.
BATCH = 50
#: A chart committed this recently is current: the feed renews itself once an hour.
CURRENT_FOR = timedelta(hours=1)
#: After so many pools in a row for which the feed was not there, the others are not tried any more.
GIVE_UP_AFTER = 3 * WORKERS

POOLS_SOURCE = f"{schema.FEED}/pools"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a backfill will do; making it asks for /pools and writes nothing."""

    selection: Selection
    #: The answer of /pools, whose content the archive keeps once the backfill runs.
    answer: Answer
    #: pool_id, protocol, symbol, chain, tvl_usd and `current` of the chosen pools, largest first, unlisted ones last.
    pools: pl.DataFrame
    #: Those of them that the feed does not list; their charts are asked for all the same.
    unlisted: tuple[str, ...]
    #: In sentences: what was asked for and is not in the feed.
    missing: tuple[str, ...]
    #: Rows of /pools that could not be used.
    refused: pl.DataFrame
    pins: pl.DataFrame

    @property
    def to_fetch(self) -> tuple[str, ...]:
        """The pools whose charts will be asked for."""
        return tuple(self.pools.filter(~pl.col("current"))["pool_id"])

    @property
    def current(self) -> int:
        """The pools whose charts were committed a short while ago."""
        return int(self.pools["current"].sum())


@dataclass(frozen=True, slots=True)
class Started:
    """The first event."""

    to_fetch: int
    current: int


@dataclass(frozen=True, slots=True)
class PoolFetched:
    """One chart is here; its rows are not committed yet."""

    pool_id: str
    rows: int
    refused: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class PoolFailed:
    """One chart cannot be had. `unknown`: the feed has no such pool."""

    pool_id: str
    reason: str
    unknown: bool
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Committed:
    """The rows of these pools are in the store, and outlive whatever comes next."""

    pools: tuple[str, ...]
    appended: Appended


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event: what became of every chosen pool, and of every row."""

    chosen: int
    #: Pools committed by this backfill.
    committed: int = 0
    #: Pools passed over, for they were committed a short while ago.
    current: int = 0
    #: Pools that the feed does not know.
    unknown: tuple[str, ...] = ()
    #: Pool -> why its chart could not be had.
    failed: dict[str, str] = field(default_factory=dict)
    #: In sentences: what was asked for and is not in the feed.
    missing: tuple[str, ...] = ()
    new: int = 0
    revised: int = 0
    unchanged: int = 0
    refused: int = 0
    rejects_path: Path | None = None
    seconds: float = 0.0
    #: Pools not asked for, because somebody pressed Ctrl-C.
    interrupted: int = 0

    @property
    def is_partial(self) -> bool:
        """Whether a pool or a row that was asked for is not in the store."""
        return bool(self.failed or self.unknown or self.missing or self.refused)


Event = Started | PoolFetched | PoolFailed | Committed | Finished


def plan(store: Store, client: Client, selection: Selection, *, refresh: bool = False) -> Plan:
    """Look the pools up in /pools. With `refresh` no pool counts as current.

    Raises UsageError for a selection that narrows nothing, FeedError when the feed does not answer.
    """
    if selection.is_everything:
        raise UsageError(
            "say which pools to fetch: --pool ID, --watchlist reference or FILE, --project, --chain, --symbol, "
            "--stablecoin, --min-tvl USD or --top N"
        )
    answer, feed = defillama.pools(client)
    chosen = selection.find(feed.frame, store.recorded("pins"))
    unlisted = pl.DataFrame({"pool_id": chosen.unlisted}, schema={"pool_id": pl.String})
    pools = pl.concat([chosen.pools, unlisted], how="diagonal")
    current = set() if refresh else _current(store)
    return Plan(
        selection=selection,
        answer=answer,
        pools=pools.select(
            "pool_id", *schema.DESCRIBED, "tvl_usd", pl.col("pool_id").is_in(list(current)).alias("current")
        ),
        unlisted=chosen.unlisted,
        missing=chosen.missing,
        refused=feed.refused,
        pins=chosen.pins,
    )


def run(
    store: Store, client: Client, planned: Plan, *, keep_raw_days: int = 30, workers: int = WORKERS, batch: int = BATCH
) -> Iterator[Event]:
    """Fetch and commit the charts of a plan, and let go of raw answers kept for long enough; then comes `Finished`.

    When `client.stop` is set nothing more is asked for, what is here is committed, and `Finished.interrupted` counts
    the rest. A pool that fails costs no other. Raises DataError or OSError when the store or the archive cannot be
    written; whatever was committed stays.
    """
    began = time.monotonic()
    archive = Archive(store.folder / "raw")
    to_fetch = planned.to_fetch
    yield Started(len(to_fetch), planned.current)
    archive.keep(planned.answer)
    pin(store, planned.pins)
    conventions.sync(store)
    book = _Book(store, planned)
    stop = client.stop or threading.Event()
    executor = ThreadPoolExecutor(workers, thread_name_prefix="chart")

    def ask(pool_id: str) -> Future[_Chart]:
        return executor.submit(_fetch, client, archive, pool_id)

    try:
        for pool_id, future in _fetched(ask, to_fetch, stop, ahead=workers + 2):
            if (event := book.take(pool_id, future)) is not None:
                yield event
            if len(book.waiting) >= batch:
                yield book.commit()
        if book.waiting or book.has_news:
            yield book.commit()
        archive.expire(store, datetime.now(UTC) - timedelta(days=keep_raw_days))
    except BaseException:
        stop.set()  # or the process would wait for requests that nobody wants any more
        raise
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
    yield replace(book.finished(), seconds=time.monotonic() - began)


@dataclass(frozen=True, slots=True)
class _Chart:
    """A chart that was kept: its rows, without its body."""

    fetch: Fetch
    rows: pl.DataFrame
    refused: pl.DataFrame


def _fetched(
    ask: Callable[[str], Future[_Chart]], to_fetch: Sequence[str], stop: threading.Event, *, ahead: int
) -> Iterator[tuple[str, Future[_Chart]]]:
    """Pools as their charts come in; no more than `ahead` are asked for or wait, so that memory does not grow."""
    left = iter(to_fetch)
    pending: dict[Future[_Chart], str] = {}
    unreachable = 0
    while True:
        while len(pending) < ahead and not stop.is_set() and unreachable < GIVE_UP_AFTER:
            if (pool_id := next(left, None)) is None:
                break
            pending[ask(pool_id)] = pool_id
        if not pending:
            break
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            unreachable = unreachable + 1 if isinstance(future.exception(), Unreachable) else 0
            yield pending.pop(future), future
    for pool_id in left:
        not_tried: Future[_Chart] = Future()
        not_tried.set_exception(
            Stopped("not asked for")
            if stop.is_set()
            else Unreachable(f"not tried, as the feed was not there for {GIVE_UP_AFTER} pools in a row")
        )
        yield pool_id, not_tried


def _fetch(client: Client, archive: Archive, pool_id: str) -> _Chart:
    answer, chart = defillama.chart(client, pool_id)
    archive.keep(answer)
    return _Chart(fetch_of(answer, "chart", pool_id), chart.frame, chart.refused)


def fetch_of(answer: Answer, kind: str, key: str | None) -> Fetch:
    """What table `fetches` says of an answer."""
    return Fetch(answer.fetched_at, answer.url, kind, key, answer.status, answer.content_hash, len(answer.body))


def chart_rows(rows: pl.DataFrame, fetched_at: datetime) -> pl.DataFrame:
    """The rows of a chart as the store takes them: what they revise was revised when they came."""
    return rows.with_columns(pl.lit(fetched_at, schema.UTC).alias("fetched_at"))


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


class _Book:
    """What has come in, what waits to be committed, and what became of the rest."""

    def __init__(self, store: Store, planned: Plan) -> None:
        self._store = store
        self._plan = planned
        self._listed = planned.pools.filter(~pl.col("pool_id").is_in(planned.unlisted))
        self._total = len(planned.to_fetch)
        self._done = 0
        self._finished = Finished(planned.pools.height, current=planned.current, missing=planned.missing)
        self._refused: list[pl.DataFrame] = []
        self._failed: dict[str, str] = {}
        self._unknown: list[str] = []
        self.waiting: list[_Chart] = []
        #: Whether the answer of /pools is not in table `fetches` yet.
        self.has_news = True

    def take(self, pool_id: str, future: Future[_Chart]) -> Event | None:
        """Take in one chart, or why there is none; raises what is no fault of the pool's: the disk, an interrupt."""
        error = future.exception()
        if isinstance(error, Stopped):
            self._finished = replace(self._finished, interrupted=self._finished.interrupted + 1)
            return None
        self._done += 1
        if isinstance(error, UnknownPool):
            self._unknown.append(pool_id)
            return PoolFailed(pool_id, str(error), True, self._done, self._total)
        if isinstance(error, Exception) and not isinstance(error, OSError):
            # Also what no one foresaw: one answer that cannot be read must not cost the others.
            self._failed[pool_id] = str(error) if isinstance(error, FeedError) else f"{type(error).__name__}: {error}"
            return PoolFailed(pool_id, self._failed[pool_id], False, self._done, self._total)
        chart = future.result()
        self.waiting.append(chart)
        if chart.refused.height:
            self._refused.append(chart.refused.with_columns(pl.lit(pool_id).alias("pool_id")))
        return PoolFetched(pool_id, chart.rows.height, chart.refused.height, self._done, self._total)

    def commit(self) -> Committed:
        """Put what waits into the store, the facts of the fetches last."""
        charts, self.waiting = self.waiting, []
        fetches = [chart.fetch for chart in charts]
        looked_up = self._plan.answer.fetched_at
        rows = [chart_rows(chart.rows, chart.fetch.fetched_at) for chart in charts if chart.rows.height]
        appended = Appended(0, 0, 0, 0, 0)
        with self._store.writing():
            if rows:
                assets = chart_descriptions(self._listed, fetches, looked_up)
                appended = self._store.append(pl.concat(rows), assets)
            if self.has_news:
                fetches = [fetch_of(self._plan.answer, "pools", None), *fetches]
            self._store.record("fetches", fetch_rows(fetches))
        self.has_news = False
        finished = self._finished
        self._finished = replace(
            finished,
            committed=finished.committed + len(charts),
            new=finished.new + appended.new,
            revised=finished.revised + appended.revised,
            unchanged=finished.unchanged + appended.unchanged,
        )
        return Committed(tuple(str(chart.fetch.key) for chart in charts), appended)

    def finished(self) -> Finished:
        """What became of everything; refused rows are written down."""
        refused = pl.concat(self._refused, how="diagonal_relaxed") if self._refused else pl.DataFrame()
        return replace(
            self._finished,
            unknown=tuple(self._unknown),
            failed=self._failed,
            refused=refused.height,
            rejects_path=_set_aside(refused, self._store.folder / "rejects") if refused.height else None,
        )


def _current(store: Store) -> set[str]:
    """The pools whose charts were committed a short while ago."""
    fetches = store.recorded("fetches", columns=["kind", "key", "fetched_at"])
    now = datetime.now(UTC)
    recent = pl.col("fetched_at").is_between(pl.lit(now - CURRENT_FOR, schema.UTC), pl.lit(now, schema.UTC))
    return set(fetches.filter((pl.col("kind") == "chart") & recent)["key"].drop_nulls())


def _set_aside(refused: pl.DataFrame, folder: Path) -> Path:
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
