"""What would the tables hold if they were made again from the answers that were kept?

Every kept answer is replayed in the order in which it came, by the same code that took it in. Into a folder of its own
that makes the tables anew. In place the replay goes to a scratch folder first, and only what the store does not know
is added, dated as it was: replaying an old answer straight into the store would look like a change back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from yieldlab import schema
from yieldlab.collect import defillama
from yieldlab.collect._http import Answer
from yieldlab.collect.archive import Archive, Fetch, fetch_rows, needed
from yieldlab.collect.backfill import chart_descriptions, chart_rows
from yieldlab.collect.polls import SOURCE as POLLS_SOURCE
from yieldlab.collect.polls import commit
from yieldlab.collect.selection import POOL_ID, Selection
from yieldlab.errors import DataError, UsageError
from yieldlab.store import Store

#: Charts replayed in one commit.
BATCH = 50

_KEY = ["pool_id", "valid_at"]
_REVISION = [*_KEY, "observed_at"]
#: What the two routes of the feed tell of.
_TOLD = {defillama.CHART_SOURCE: defillama.CHART_COLUMNS, POLLS_SOURCE: defillama.POOLS_COLUMNS}
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_NO_METRICS = pl.DataFrame(schema={name: schema.YIELD_METRICS[name] for name in ("pool_id", "valid_at", "apy_percent")})


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
    #: Answers of other services, which no table here is made from.
    others: int = 0
    #: Address and time of an answer -> why it could not be replayed.
    damaged: dict[str, str] = field(default_factory=dict)
    new: int = 0
    revised: int = 0
    #: Descriptions of pools and events that were missing.
    described: int = 0
    events: int = 0


Event = Replayed | Rebuilt


def rebuild(store: Store, *, keep_raw_days: int, into: Path | None = None) -> Iterator[Event]:
    """Replay every kept answer; what the store lacks is added, or with `into` a whole new data folder is made.

    Doing it again adds nothing. An answer whose content is missing or damaged is named and costs no other; one that
    is missing because it was older than `keep_raw_days` is only counted.

    Raises DataError when nothing was ever fetched, UsageError when `into` is not empty.
    """
    fetches = store.recorded("fetches").sort("fetched_at", maintain_order=True)
    if fetches.is_empty():
        raise DataError(f"no answer of the feed was ever taken into {store.folder}; run `yieldlab data backfill` first")
    if into is not None:
        if into.exists() and any(into.iterdir()):
            raise UsageError(f"{into} is not empty; name a new folder to rebuild into")
        yield from _replay(store, Store(into), fetches, keep_raw_days)
        return
    with tempfile.TemporaryDirectory(prefix=".rebuild-", dir=store.folder, ignore_cleanup_errors=True) as scratch:
        replica = Store(scratch)
        for event in _replay(store, replica, fetches, keep_raw_days):
            yield _merged(store, replica, event) if isinstance(event, Rebuilt) else event


# -- replaying ------------------------------------------------------------------------------------------------------


def _replay(store: Store, replica: Store, fetches: pl.DataFrame, keep_raw_days: int) -> Iterator[Event]:
    """Take every kept answer of `store` into the empty `replica`."""
    tape = _Tape(store, replica)
    result = Rebuilt(fetches.height)
    recent = needed(fetches, older_than=datetime.now(UTC) - timedelta(days=keep_raw_days))
    asked_at = _asked_at(fetches, store.recorded("polls", columns=["polled_at", "outcome", "content_hash"]))
    for number, (row, is_needed, poll) in enumerate(zip(fetches.iter_rows(), recent, asked_at, strict=True), start=1):
        fetch = Fetch(*row)
        if fetch.kind not in ("pools", "chart"):
            result = replace(result, others=result.others + 1)
            continue
        try:
            body = tape.archive.read(fetch.content_hash)
            tape.play(
                Answer(fetch.url, fetch.status, {}, body, poll or fetch.fetched_at, fetch.fetched_at), fetch, poll
            )
        except DataError as error:
            if not is_needed and not tape.archive.path(fetch.content_hash).exists():
                result = replace(result, expired=result.expired + 1)
            else:
                name = f"{fetch.url} of {fetch.fetched_at:%Y-%m-%d %H:%M:%S} UTC"
                result = replace(result, damaged=result.damaged | {name: str(error)})
            continue
        result = replace(result, replayed=result.replayed + 1)
        yield Replayed(number, fetches.height)
    tape.commit()
    yield replace(result, new=tape.new, revised=tape.revised)


def _asked_at(fetches: pl.DataFrame, polls: pl.DataFrame) -> list[datetime | None]:
    """Per fetch the instant at which a poll asked for it; none when it was no poll."""
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
    known = dict(pairs.drop_nulls("number").select("number", "polled_at").rows())
    return [known.get(number) for number in range(fetches.height)]


class _Tape:
    """Plays answers into a store: polls one by one, charts in batches."""

    def __init__(self, store: Store, replica: Store) -> None:
        self.archive = Archive(store.folder / "raw")
        self._replica = replica
        self._copies = Archive(replica.folder / "raw")
        events = store.recorded("pool_events", columns=["pool_id", "event_at", "event"])
        self._appeared = events.filter(pl.col("event") == "appeared").sort("event_at")
        self._feed: tuple[datetime, pl.DataFrame] | None = None
        self._charts: list[tuple[Fetch, pl.DataFrame]] = []
        self.new = self.revised = 0

    def play(self, answer: Answer, fetch: Fetch, polled_at: datetime | None) -> None:
        """Take in one answer; raises DataError when it cannot be read, and then nothing of it is in."""
        if fetch.kind == "chart":
            chart = defillama.parse_chart(answer.body, str(fetch.key), fetched_at=fetch.fetched_at)
            if len(self._charts) >= BATCH or fetch.key in {other.key for other, _ in self._charts}:
                self.commit()
            self._charts.append((fetch, chart.frame))
        else:
            pools = defillama.parse_pools(answer.body)
            self.commit()
            if polled_at is None:
                self._feed = (fetch.fetched_at, pools.frame)
                self._replica.record("fetches", fetch_rows([fetch]))
            elif (selection := self._collected_by(fetch.fetched_at)) is not None:
                poll = commit(self._replica, answer, pools, selection)
                self.new += poll.new + poll.changed
        self._copies.keep(answer)

    def commit(self) -> None:
        """Put the charts that wait into the replica."""
        charts, self._charts = self._charts, []
        fetches = [fetch for fetch, _ in charts]
        rows = [chart_rows(frame, fetch.fetched_at) for fetch, frame in charts if frame.height]
        looked_up_at, feed = self._feed or (datetime.now(UTC), pl.DataFrame(schema=schema.ASSETS))
        with self._replica.writing():
            if rows:
                told = self._replica.append(pl.concat(rows), chart_descriptions(feed, fetches, looked_up_at))
                self.new, self.revised = self.new + told.new, self.revised + told.revised
            self._replica.record("fetches", fetch_rows(fetches))

    def _collected_by(self, fetched_at: datetime) -> Selection | None:
        """The pools that the collector followed when this answer came: those of which it had told that they appeared.

        None when there was none yet. Where no event is left to tell, every pool of the feed is taken.
        """
        if self._appeared.is_empty():
            return Selection()
        pools = self._appeared.filter(pl.col("event_at") <= fetched_at)["pool_id"].unique(maintain_order=True)
        ids = tuple(pool for pool in pools if POOL_ID.fullmatch(pool))
        return Selection(pools=ids) if ids else None


# -- in place -------------------------------------------------------------------------------------------------------


def _merged(store: Store, replica: Store, rebuilt: Rebuilt) -> Rebuilt:
    """Add to `store` what only `replica` knows."""
    rebuilt = replace(rebuilt, new=0, revised=0)
    if not replica.exists:
        return rebuilt
    with store.writing():
        assets = _unknown_assets(store, replica)
        # One append takes one description of a pool; those that come first go in with the rows.
        turns = assets.with_columns(pl.int_range(pl.len()).over("pool_id").alias("turn")).sort("turn")
        for source, columns in _TOLD.items():
            rows = _unknown_rows(store, replica, source, columns)
            if rows.height:
                told = store.append(rows, turns.filter(pl.col("turn") == 0).drop("turn"))
                rebuilt = replace(rebuilt, new=rebuilt.new + told.new, revised=rebuilt.revised + told.revised)
        for turn in turns.partition_by("turn", maintain_order=True):
            store.append(_NO_METRICS, turn.drop("turn"))
        known = store.recorded("pool_events")
        events = replica.recorded("pool_events").join(
            known, on=schema.POOL_EVENTS.names(), how="anti", nulls_equal=True
        )
        store.record("pool_events", events)
    return replace(rebuilt, described=assets.height, events=events.height)


def _unknown_rows(store: Store, replica: Store, source: str, columns: Collection[str]) -> pl.DataFrame:
    """The revisions of `replica` that tell, of their pool and instant, what `store` did not know at their time.

    They have the columns that this route of the feed tells of, so that nothing known from elsewhere is hidden.
    """
    measured = [name for name in schema.MEASURED if name in columns]
    rows = replica.history(columns=(*measured, "source")).filter(pl.col("source") == source)
    rows = rows.select(*_REVISION, *measured, "source")
    if not store.exists:
        return rows
    known = store.history(columns=measured).sort("observed_at", "ingested_at", maintain_order=True)
    known = known.unique(_REVISION, keep="last", maintain_order=True)
    before = known.select(*_REVISION, pl.lit(True).alias("seen"), *(pl.col(n).alias(f"{n}_known") for n in measured))
    return _telling(rows.join(known, on=_REVISION, how="anti"), before, measured, by=_KEY)


def _unknown_assets(store: Store, replica: Store) -> pl.DataFrame:
    """The descriptions of `replica` that `store` did not have at their time, oldest first."""
    rows = replica.descriptions().drop("ingested_at")
    if not store.exists:
        return rows.sort("observed_at", maintain_order=True)
    known = store.descriptions().sort("observed_at", "ingested_at", maintain_order=True)
    names = (pl.col(name).alias(f"{name}_known") for name in schema.DESCRIBED)
    # What a pool was called first holds for the time before, too.
    first = pl.when(pl.col("pool_id").is_first_distinct()).then(pl.lit(_EARLIEST, schema.UTC)).otherwise("observed_at")
    before = known.select("pool_id", first.alias("observed_at"), pl.lit(True).alias("seen"), *names)
    return _telling(rows, before, schema.DESCRIBED, by=["pool_id"])


def _telling(rows: pl.DataFrame, before: pl.DataFrame, told: Sequence[str], *, by: list[str]) -> pl.DataFrame:
    """The rows that tell something else than the last one of `before` (columns `..._known`) up to their time."""
    joined = rows.sort("observed_at", maintain_order=True).join_asof(
        before.sort("observed_at", maintain_order=True),
        on="observed_at",
        by=by,
        strategy="backward",
        check_sortedness=False,
    )
    differs = pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"{name}_known")) for name in told)
    return joined.filter(pl.col("seen").is_null() | differs).select(rows.columns)
