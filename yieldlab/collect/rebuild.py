"""What would the tables hold if they were made again from the answers that were kept?

Every kept answer is replayed in the order in which it came, by the same code that took it in. Into a folder of its own
that makes the tables anew. In place the replay goes to a scratch folder first, and only what the store does not know
is added, dated as it was: replaying an old answer straight into the store would look like a change back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from yieldlab import schema
from yieldlab.collect import defillama, polls, series
from yieldlab.collect._charts import chart_descriptions, chart_rows
from yieldlab.collect._http import Answer
from yieldlab.collect._merging import merge
from yieldlab.collect.archive import Archive, Fetch, fetch_rows, needed, writing_to
from yieldlab.collect.defillama import Pools
from yieldlab.collect.selection import POOL_ID, Selection
from yieldlab.errors import DataError, UsageError
from yieldlab.store import Appended, Store

#: Charts replayed in one commit.
BATCH = 50

#: How descriptions are dated that no answer of /pools is left for.
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Replayed:
    """How far a rebuild is."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What the kept answers gave; the last event."""

    #: Answers received, of which so many could be replayed.
    answers: int
    replayed: int = 0
    #: Answers removed on purpose, after the time for which they are kept.
    expired: int = 0
    #: Address and time of an answer -> why it could not be replayed.
    damaged: dict[str, str] = field(default_factory=dict)
    new: int = 0
    revised: int = 0
    #: Descriptions of pools and events that were missing.
    described: int = 0
    events: int = 0
    #: Answers of polls that are not there any more, for whatever reason.
    lost_polls: int = 0
    #: Pools of which a chart is not there any more, or cannot be read.
    lost_charts: tuple[str, ...] = ()


Event = Replayed | Rebuilt


def rebuild(store: Store, *, keep_raw_days: int, into: Path | None = None) -> Iterator[Event]:
    """Replay every kept answer; what the store lacks is added, or with `into` a whole new data folder is made.

    Doing it again adds nothing. An answer whose content is missing or damaged is named and costs no other; one that
    is missing because it was older than `keep_raw_days` is only counted.

    Raises DataError when nothing was ever fetched or what is rebuilt cannot be written, UsageError when `into` is not
    empty.
    """
    fetches = store.recorded("fetches").sort("fetched_at", maintain_order=True)
    if fetches.is_empty():
        raise DataError(f"no answer of the feed was ever taken into {store.folder}; run `yieldlab data backfill` first")
    if into is not None:
        if into.exists() and any(into.iterdir()):
            raise UsageError(f"{into} is not empty; name a new folder to rebuild into")
        replica = Store(into)
        with _telling(f"remove {into} and do it again"), writing_to(into):
            yield from _replay(store, replica, fetches, keep_raw_days, copies=Archive(into / "raw"))
            for name in ("pins", "conventions"):  # what was decided here, and not told by any answer
                replica.record(name, store.recorded(name))
        return
    with _telling("the same command does it again"), store.scratch() as scratch, writing_to(scratch):
        replica = Store(scratch)
        for event in _replay(store, replica, fetches, keep_raw_days):
            yield _merged(store, replica, event) if isinstance(event, Rebuilt) else event


@contextmanager
def _telling(how_to_go_on: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"{error}; {how_to_go_on}") from error


def _replay(
    store: Store, replica: Store, fetches: pl.DataFrame, keep_raw_days: int, copies: Archive | None = None
) -> Iterator[Event]:
    """Take every kept answer of `store` into the empty `replica`, and into `copies`, the archive it may have."""
    archive, tape = Archive(store.folder / "raw"), _Tape(store, replica)
    result, lost_charts = Rebuilt(fetches.height), set[str]()
    recent = needed(fetches, older_than=datetime.now(UTC) - timedelta(days=keep_raw_days))
    polled_at = _asked_at(fetches, store.recorded("polls", columns=["polled_at", "outcome", "content_hash"]))
    for number, (row, is_needed) in enumerate(zip(fetches.iter_rows(), recent, strict=True)):
        fetch = Fetch(*row)
        try:
            body = archive.read(fetch.content_hash)
            told = _parsed(fetch, body)
        except DataError as error:
            if not is_needed and not archive.path(fetch.content_hash).exists():
                result = replace(result, expired=result.expired + 1)
            else:
                name = f"{fetch.url} of {fetch.fetched_at:%Y-%m-%d %H:%M:%S.%f} UTC"
                result = replace(result, damaged=result.damaged | {name: str(error)})
            result = replace(result, lost_polls=result.lost_polls + (number in polled_at))
            if fetch.kind == "chart":
                lost_charts.add(str(fetch.key))
        else:
            asked_at = polled_at.get(number)
            answer = Answer(fetch.url, fetch.status, {}, body, asked_at or fetch.fetched_at, fetch.fetched_at)
            if copies is not None:
                copies.keep(answer)
            tape.play(fetch, told, poll=answer if asked_at else None)
            result = replace(result, replayed=result.replayed + 1)
        yield Replayed(number + 1, fetches.height)
    tape.commit()
    yield replace(result, new=tape.new, revised=tape.revised, lost_charts=tuple(sorted(lost_charts)))


def _parsed(fetch: Fetch, body: bytes) -> Pools | pl.DataFrame:
    """What an answer tells: all pools, or the rows of one pool or series. Raises DataError when it cannot be read."""
    if fetch.kind == "pools":
        return defillama.parse_pools(body)
    if fetch.kind == "chart":
        return defillama.parse_chart(body, str(fetch.key), fetched_at=fetch.fetched_at).frame
    return series.parse(fetch.kind, str(fetch.key), body, fetch.fetched_at)


def _asked_at(fetches: pl.DataFrame, polls: pl.DataFrame) -> dict[int, datetime]:
    """Number of a fetch -> the instant at which a poll asked for it; for a fetch that was no poll there is none."""
    taken = polls.filter(pl.col("outcome").is_in(["stored", "unchanged"])).sort("polled_at")
    numbered = fetches.with_row_index("number").filter(pl.col("kind") == "pools").sort("fetched_at")
    pairs = taken.join_asof(
        numbered.select("number", "content_hash", "fetched_at"),
        left_on="polled_at",
        right_on="fetched_at",
        by="content_hash",
        strategy="forward",
        check_sortedness=False,
    )
    return dict(pairs.drop_nulls("number").select("number", "polled_at").rows())


class _Tape:
    """Plays answers into a store: polls and series one by one, charts in batches."""

    def __init__(self, store: Store, replica: Store) -> None:
        self._replica = replica
        events = store.recorded("pool_events", columns=["pool_id", "event_at", "event"])
        self._appeared = events.filter(pl.col("event") == "appeared").sort("event_at")
        self._feed: tuple[datetime, pl.DataFrame] | None = None
        self._charts: list[tuple[Fetch, pl.DataFrame]] = []
        #: Pool -> when the last chart of it came that was replayed.
        self._charted: dict[str | None, datetime] = {}
        self.new = self.revised = 0

    def play(self, fetch: Fetch, told: Pools | pl.DataFrame, *, poll: Answer | None) -> None:
        """Take in what one answer told; `poll` is the answer itself when it was one of the collector's."""
        if isinstance(told, Pools):
            self._pools(fetch, told, poll)
        elif fetch.kind == "chart":
            if len(self._charts) >= BATCH or fetch.key in {other.key for other, _ in self._charts}:
                self.commit()
            self._charts.append((fetch, told))
        else:
            with self._replica.writing():
                if told.height:
                    self._count(self._replica.append_series(told, now=fetch.fetched_at))
                self._replica.record("fetches", fetch_rows([fetch]))

    def commit(self) -> None:
        """Put the charts that wait into the replica."""
        charts, self._charts = self._charts, []
        fetches = [fetch for fetch, _ in charts]
        charted = self._charted
        rows = [chart_rows(frame, fetch.fetched_at, charted.get(fetch.key)) for fetch, frame in charts if frame.height]
        looked_up_at, feed = self._feed or (_EARLIEST, pl.DataFrame(schema=schema.ASSETS))
        with self._replica.writing():
            if rows:
                told = self._replica.append(pl.concat(rows), chart_descriptions(feed, fetches, looked_up_at))
                self._count(told)
            self._replica.record("fetches", fetch_rows(fetches))
        charted.update((fetch.key, fetch.fetched_at) for fetch, frame in charts if frame.height)

    def _pools(self, fetch: Fetch, pools: Pools, poll: Answer | None) -> None:
        self.commit()
        if poll is None:
            self._feed = (fetch.fetched_at, pools.frame)
            self._replica.record("fetches", fetch_rows([fetch]))
        elif (selection := self._collected_by(fetch.fetched_at)) is not None:
            done = polls.commit(self._replica, poll, pools, selection)
            self.new += done.new + done.changed

    def _count(self, told: Appended) -> None:
        self.new, self.revised = self.new + told.new, self.revised + told.revised

    def _collected_by(self, fetched_at: datetime) -> Selection | None:
        """The pools that the collector followed when this answer came: those of which it had told that they appeared.

        None when there was none yet. Where no event is left to tell, every pool of the feed is taken.
        """
        if self._appeared.is_empty():
            return Selection()
        pools = self._appeared.filter(pl.col("event_at") <= fetched_at)["pool_id"].unique(maintain_order=True)
        ids = tuple(pool for pool in pools if POOL_ID.fullmatch(pool))
        return Selection(pools=ids) if ids else None


def _merged(store: Store, replica: Store, rebuilt: Rebuilt) -> Rebuilt:
    """Add what only the replica knows; what that came to."""
    done, described, events = merge(store, replica, with_events=not rebuilt.lost_polls, lost_charts=rebuilt.lost_charts)
    return replace(
        rebuilt,
        new=sum(told.new for told in done),
        revised=sum(told.revised for told in done),
        described=described,
        events=events,
    )
