"""How does the history of chosen pools come into the store, whatever the feed or the machine does meanwhile?

Charts are fetched a few at a time, kept as they came, and committed in batches: rows first, then the facts of the
fetches, under one lock. Whatever ends a backfill, what was committed stays, and the next one goes on behind it: a
pool whose chart was committed a short while ago is not asked for again, and rows that are known add nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from yieldlab import schema
from yieldlab.collect import conventions, defillama
from yieldlab.collect._charts import Earlier, FetchedChart, chart_descriptions, chart_rows, fetch_of, set_aside
from yieldlab.collect._http import Answer, Client, FeedError, Stopped, UnknownPool, Unreachable
from yieldlab.collect.archive import Archive, fetch_rows, writing_to
from yieldlab.collect.selection import Selection, pin
from yieldlab.errors import DataError, UsageError
from yieldlab.store import Appended, Store

#: Charts asked for at the same time.
WORKERS = 8
#: Charts committed together.
BATCH = 50
#: A chart committed this recently is current: the feed renews itself once an hour.
CURRENT_FOR = timedelta(hours=1)
#: After so many pools in a row for which the feed was not there, the others are not tried any more.
GIVE_UP_AFTER = 3 * WORKERS
#: How often a pool is asked for for which the feed was not there: anew when all others are done.
ROUNDS = 3


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
    """One chart cannot be had. `unknown`: the feed has no such pool; `again`: it is asked for again in the end."""

    pool_id: str
    reason: str
    unknown: bool
    done: int
    total: int
    again: bool = False


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
    #: Pools of which a newer chart came into the store before theirs could, so that theirs was not taken.
    superseded: int = 0
    #: Pool -> why its chart could not be had.
    failed: dict[str, str] = field(default_factory=dict)
    #: Those of them that the feed does not know.
    unknown: tuple[str, ...] = ()
    #: In sentences: what was asked for and is not in the feed.
    missing: tuple[str, ...] = ()
    new: int = 0
    revised: int = 0
    unchanged: int = 0
    refused: int = 0
    rejects_path: Path | None = None
    #: Pool -> rows that an earlier chart told and this one does not; they are kept.
    withdrawn: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    #: Pools not asked for, because somebody pressed Ctrl-C.
    interrupted: int = 0

    @property
    def is_partial(self) -> bool:
        """Whether a pool or a row that was asked for is not in the store."""
        return bool(self.failed or self.missing or self.refused)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of what was asked for is in the store: every pool failed."""
        return bool(self.failed) and len(self.failed) == self.chosen


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
    the rest. A pool that fails costs no other. Raises DataError when the store or the archive cannot be written, which
    tells how many charts were committed before; they stay.
    """
    began = time.monotonic()
    stop = client.stop or threading.Event()
    book = _Book(store, planned)
    executor = ThreadPoolExecutor(workers, thread_name_prefix="chart")
    try:
        yield Started(len(planned.to_fetch), planned.current)
        with writing_to(store.folder):
            archive = Archive(store.folder / "raw")
            archive.keep(planned.answer)
            pin(store, planned.pins)
            conventions.sync(store)
            yield from _rounds(
                book, lambda pool_id: executor.submit(_fetch, client, archive, pool_id), stop, workers + 2, batch
            )
            archive.expire(store, datetime.now(UTC) - timedelta(days=keep_raw_days))
            finished = book.finished()
    except DataError as error:
        stop.set()
        done = "1 chart was" if book.committed == 1 else f"{book.committed:,} charts were"
        raise DataError(f"{error}; {done} committed before, and the same command goes on from there") from error
    except BaseException:
        stop.set()  # or the process would wait for requests that nobody wants any more
        raise
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
    yield replace(finished, seconds=time.monotonic() - began)


def _rounds(
    book: _Book, ask: Callable[[str], Future[FetchedChart]], stop: threading.Event, ahead: int, batch: int
) -> Iterator[Event]:
    """Fetch and commit; pools for which the feed was not there come again when all others are in the store."""
    left: Sequence[str] = book.to_fetch
    for number in range(ROUNDS):
        again: dict[str, Future[FetchedChart]] = {}
        is_given_up = number == ROUNDS - 1
        for pool_id, future in _fetched(ask, left, stop, ahead=ahead):
            is_given_up |= isinstance(future.exception(), _NotTried)
            if isinstance(future.exception(), Unreachable) and not is_given_up:
                again[pool_id] = future
                yield book.later(pool_id, future)
            elif (event := book.take(pool_id, future)) is not None:
                yield event
            if len(book.waiting) >= batch:
                yield book.commit()
        if is_given_up:
            for pool_id, future in again.items():
                if (event := book.take(pool_id, future)) is not None:
                    yield event
        if book.waiting or book.has_news:
            yield book.commit()
        if is_given_up or not again:
            return
        left = list(again)


class _NotTried(Unreachable):
    """The feed was not there for so many pools that this one was not asked for."""


def _fetched(
    ask: Callable[[str], Future[FetchedChart]], to_fetch: Sequence[str], stop: threading.Event, *, ahead: int
) -> Iterator[tuple[str, Future[FetchedChart]]]:
    """Pools as their charts come in; no more than `ahead` are asked for or wait, so that memory does not grow."""
    left = iter(to_fetch)
    pending: dict[Future[FetchedChart], str] = {}
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
        not_tried: Future[FetchedChart] = Future()
        not_tried.set_exception(
            Stopped("not asked for")
            if stop.is_set()
            else _NotTried(f"not tried, as the feed was not there for {GIVE_UP_AFTER} pools in a row")
        )
        yield pool_id, not_tried


def _fetch(client: Client, archive: Archive, pool_id: str) -> FetchedChart:
    answer, chart = defillama.chart(client, pool_id)
    try:
        archive.keep(answer)
    except OSError as error:
        raise _NotKept(f"cannot write to {error.filename or archive.folder}: {error.strerror or error}") from error
    return FetchedChart(fetch_of(answer, "chart", pool_id), chart.frame, chart.refused)


class _NotKept(DataError):
    """The raw answers cannot be written: no fault of the pool's."""


class _Book:
    """What has come in, what waits to be committed, and what became of the rest."""

    def __init__(self, store: Store, planned: Plan) -> None:
        self._store = store
        self._plan = planned
        self._listed = planned.pools.filter(~pl.col("pool_id").is_in(planned.unlisted))
        self.to_fetch = planned.to_fetch
        self._done = 0
        self._finished = Finished(planned.pools.height, current=planned.current, missing=planned.missing)
        self._refused: list[pl.DataFrame] = []
        self._failed: dict[str, str] = {}
        self._unknown: list[str] = []
        self._withdrawn: dict[str, int] = {}
        self.waiting: list[FetchedChart] = []
        #: Whether the answer of /pools is not in table `fetches` yet.
        self.has_news = True

    @property
    def committed(self) -> int:
        """How many charts are in the store."""
        return self._finished.committed

    def later(self, pool_id: str, future: Future[FetchedChart]) -> PoolFailed:
        """A chart that is asked for again in the end."""
        return PoolFailed(pool_id, str(future.exception()), False, self._done, len(self.to_fetch), again=True)

    def take(self, pool_id: str, future: Future[FetchedChart]) -> Event | None:
        """Take in one chart, or why there is none; raises what is no fault of the pool's: the disk, an interrupt."""
        error = future.exception()
        if isinstance(error, Stopped):
            self._finished = replace(self._finished, interrupted=self._finished.interrupted + 1)
            return None
        self._done += 1
        if isinstance(error, UnknownPool):
            self._unknown.append(pool_id)
            return self._fail(pool_id, "the feed has no history of it")
        if isinstance(error, Exception) and not isinstance(error, _NotKept):
            # Also what no one foresaw: one answer that cannot be read must not cost the others.
            return self._fail(
                pool_id, str(error) if isinstance(error, FeedError) else f"{type(error).__name__}: {error}"
            )
        chart = future.result()
        if chart.refused.height:
            self._refused.append(chart.refused.with_columns(pl.lit(pool_id).alias("pool_id")))
        if chart.rows.is_empty():  # nothing of it is in the store: it is asked for again the next time
            rows, first = chart.refused.height, chart.refused["reason"][0]
            return self._fail(pool_id, f"none of its {rows:,} rows can be used (the first: {first})")
        self.waiting.append(chart)
        return PoolFetched(pool_id, chart.rows.height, chart.refused.height, self._done, len(self.to_fetch))

    def _fail(self, pool_id: str, reason: str) -> PoolFailed:
        self._failed[pool_id] = reason
        return PoolFailed(pool_id, reason, pool_id in self._unknown, self._done, len(self.to_fetch))

    def commit(self) -> Committed:
        """Put what waits into the store, the facts of the fetches last."""
        came, self.waiting = self.waiting, []
        looked_up = self._plan.answer.fetched_at
        appended = Appended(0, 0, 0, 0, 0)
        with self._store.writing():
            earlier, now = Earlier(self._store, [str(chart.fetch.key) for chart in came]), datetime.now(UTC)
            charts = [chart for chart in came if not earlier.is_newer(chart.fetch, now)]
            fetches = [chart.fetch for chart in charts]
            withdrawn = earlier.withdrawn(charts)
            if charts:
                rows = [chart_rows(chart.rows, chart.fetch.fetched_at, earlier.before(chart.fetch)) for chart in charts]
                assets = chart_descriptions(self._listed, fetches, looked_up)
                appended = self._store.append(pl.concat(rows), assets)
            if self.has_news:
                fetches = [fetch_of(self._plan.answer, "pools", None), *fetches]
            self._store.record("fetches", fetch_rows(fetches))
        self.has_news = False
        self._withdrawn |= withdrawn
        finished = self._finished
        self._finished = replace(
            finished,
            committed=finished.committed + len(charts),
            superseded=finished.superseded + len(came) - len(charts),
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
            withdrawn=self._withdrawn,
            refused=refused.height,
            rejects_path=set_aside(refused, self._store.folder / "rejects") if refused.height else None,
        )


def _current(store: Store) -> set[str]:
    """The pools whose charts were committed a short while ago."""
    fetches = store.recorded("fetches", columns=["kind", "key", "fetched_at"])
    now = datetime.now(UTC)
    recent = pl.col("fetched_at").is_between(pl.lit(now - CURRENT_FOR, schema.UTC), pl.lit(now, schema.UTC))
    return set(fetches.filter((pl.col("kind") == "chart") & recent)["key"].drop_nulls())
