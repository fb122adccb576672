"""How does collecting go on, whatever happens to the network, the disk or the process?

Every answer is written down first and committed second, so that one that was received is never asked for again in vain.
What fails is told, counted and tried again at the next poll.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from yieldlab.collect import conventions, defillama, heartbeat
from yieldlab.collect._http import Answer, Client, Stopped
from yieldlab.collect.archive import Archive
from yieldlab.collect.defillama import Pools
from yieldlab.collect.journal import Journal, Waiting, sentence
from yieldlab.collect.polls import Poll, Today, commit
from yieldlab.collect.selection import Selection
from yieldlab.errors import DataError
from yieldlab.store import Store

#: The feed renews itself once an hour; a longer `Expires` is not believed.
LONGEST_EXPIRY = timedelta(hours=2)
#: A table of more files than this is compacted.
MAX_FILES = 100
#: Polls between two looks at the number of files.
LOOK_EVERY = 20
#: Between two looks for raw answers that were kept long enough.
EXPIRE_EVERY = timedelta(days=1)
#: Polls at which the store takes a later answer and not this one, or that cannot read this one, before it is given up.
TRIES = 3
#: After so many in a row that the store does not take, the others wait for the next poll.
PATIENCE = 2


class Collector:
    """Polls a feed into a store. One process at a time: the caller holds `store.collector_lock`."""

    def __init__(
        self,
        store: Store,
        client: Client,
        selection: Selection,
        *,
        keep_raw_days: int = 30,
        every: timedelta | None = None,
    ) -> None:
        self.store = store
        self._client = client
        self._selection = selection
        self._keep_raw = timedelta(days=keep_raw_days)
        self._archive = Archive(store.folder / "raw")
        self._journal = Journal(store.folder / "collector", self._archive)
        #: Answers of which some may be in the store: another process received them, or a commit of them failed.
        self._begun = {entry.fetched_at for entry in self._journal.waiting()}
        #: Those that the store did not take at this poll.
        self._refused: list[Waiting] = []
        self._today = Today()
        #: When it was last alive, before the poll at work.
        self._seen_at: datetime | None = None
        self._polls = 0
        self._has_conventions = False
        self.beat = self._first_beat(every)

    @property
    def at_risk(self) -> int:
        """Answers that only this process has, and that end with it unless the disk takes them before."""
        return self._journal.in_memory

    def poll(self) -> Poll:
        """Ask the feed once, unless it said that it has nothing new yet, and store what it says.

        Whatever fails is told in the `Poll` and, if that can be written, in table `polls`. Raises Stopped when the
        client was told to stop before an answer was there; then nothing was received.
        """
        began, now = time.monotonic(), datetime.now(UTC)
        try:
            return self._poll(now, began)
        except Stopped:
            raise
        except BaseException as error:  # noqa: BLE001  # such as a data folder that cannot even be listed
            self.beat = replace(
                self.beat, last_outcome="failed", failures=self.beat.failures + 1, last_error=sentence(error)
            )
            return _failure(now, error)

    def set_state(self, state: str, *, next_poll_at: datetime | None = None) -> str | None:
        """Write the heartbeat; returns why that was not possible, if it was not."""
        self.beat = replace(self.beat, state=state, updated_at=datetime.now(UTC), next_poll_at=next_poll_at)
        try:
            heartbeat.write(self.store.folder, self.beat)
        except OSError as error:
            return f"the heartbeat could not be written: {error.strerror or error}"
        return None

    # -- one poll -----------------------------------------------------------------------------------------------------

    def _poll(self, now: datetime, began: float) -> Poll:
        self._refused = []
        poll = self._ask(now) if self._is_due(now) else self._wait(now)
        if not poll.recorded:
            poll = self._recorded(replace(poll, duration_s=time.monotonic() - began))
        if not poll.failed:
            poll = replace(poll, notes=(*poll.notes, *self._keep_house(now)))
        self._polls += 1
        self._tell(poll)
        return poll

    def _is_due(self, now: datetime) -> bool:
        expires_at = self.beat.expires_at
        # A clock that was set back must not silence the collector.
        return expires_at is None or not timedelta() < expires_at - now <= LONGEST_EXPIRY

    def _wait(self, now: datetime) -> Poll:
        """Ask nothing; only what waits from before is committed."""
        settled = self._settle({})
        waiting = [poll for poll in settled if not poll.recorded]
        notes = self._notes_of(settled)
        return replace(waiting[-1], polled_at=now, notes=notes) if waiting else Poll(now, "not due", notes=notes)

    def _ask(self, now: datetime) -> Poll:
        try:
            answer, pools = defillama.pools(self._client)
        except Stopped:
            raise
        except BaseException as error:  # noqa: BLE001  # a service outlives what nobody foresaw, and tells it
            # What waits from before does not wait for the feed to come back.
            return _failure(now, error, notes=self._notes_of(self._settle({})))
        reason = self._journal.add(answer)
        notes = (f"an answer waits in memory, for it could not be written down: {reason}",) if reason else ()
        *older, poll = self._settle({answer.fetched_at: pools})
        if not poll.recorded:
            poll = replace(poll, polled_at=now)
        elif not poll.failed and poll.polled_at == answer.asked_at:
            limit = answer.fetched_at + LONGEST_EXPIRY
            self.beat = replace(self.beat, expires_at=min(answer.expires, limit) if answer.expires else None)
        return replace(poll, notes=(*notes, *self._notes_of(older), *poll.notes))

    def _settle(self, parsed: dict[datetime, Pools]) -> list[Poll]:
        """Commit what waits, the oldest first; after `PATIENCE` that the store does not take, the others wait.

        An answer that cannot be read, or that the store never takes while it takes later ones, is given up: it must
        not hold up the rest. For the same reason one that is doubted already does not try the patience.
        """
        done: list[Poll] = []
        for entry in self._journal.waiting():
            try:
                answer = self._journal.answer(entry)
                pools = parsed.get(entry.fetched_at) or defillama.parse_pools(answer.body)
            except DataError as error:
                done.append(_failure(entry.asked_at, error, notes=self._doubted([entry], may_give_up=True)))
                continue
            except BaseException as error:  # noqa: BLE001  # such as a full disk, for one that waits in memory
                done.append(self._not_taken(entry, error))
            else:
                done.append(self._taken(entry, answer, pools))
            if sum(not entry.doubts for entry in self._refused) == PATIENCE:
                break
        return done

    def _taken(self, entry: Waiting, answer: Answer, pools: Pools) -> Poll:
        again = entry.fetched_at in self._begun
        self._begun.add(entry.fetched_at)
        try:
            poll = commit(self.store, answer, pools, self._selection, today=self._today, again=again, wary=True)
        except BaseException as error:  # noqa: BLE001  # the answer waits; the next poll tries again
            return self._not_taken(entry, error)
        with suppress(OSError):  # it would be committed again, which adds nothing
            self._journal.done(entry)
            self._begun.discard(entry.fetched_at)
        refused, self._refused = self._refused, []
        return replace(poll, notes=(*poll.notes, *self._doubted(refused, may_give_up=True)))

    def _not_taken(self, entry: Waiting, error: BaseException) -> Poll:
        self._refused.append(entry)
        return _failure(entry.asked_at, error)

    def _doubted(self, entries: list[Waiting], *, may_give_up: bool) -> tuple[str, ...]:
        """Count against these answers that others could be taken; says which are given up."""
        given_up = []
        for entry in entries:
            if self._journal.doubt(entry) >= TRIES and may_give_up:
                self._journal.give_up(entry)
                given_up.append(f"the answer of {entry.asked_at:%Y-%m-%d %H:%M:%S} UTC is given up")
        return tuple(given_up)

    @staticmethod
    def _notes_of(polls: list[Poll]) -> tuple[str, ...]:
        """What is to be said of answers that were received earlier."""
        notes: list[str] = []
        for poll in polls:
            name = f"the answer of {poll.polled_at:%Y-%m-%d %H:%M:%S} UTC"
            told = f"{name} is not in the store: {poll.error}"
            notes += [told if poll.failed else f"{name}, which had waited, is in the store", *poll.notes]
        return tuple(notes)

    def _recorded(self, poll: Poll) -> Poll:
        """The poll, after an attempt to tell it in table `polls`."""
        try:
            self.store.record("polls", poll.row())
        except BaseException as error:  # noqa: BLE001  # where the disk is full, the heartbeat still tells it
            return replace(poll, notes=(*poll.notes, f"the poll could not be recorded: {sentence(error)}"))
        # What is written now could have been written before: it is not the store alone that is in the way.
        self._doubted(self._refused, may_give_up=False)
        return poll

    # -- between polls ------------------------------------------------------------------------------------------------

    def _keep_house(self, now: datetime) -> tuple[str, ...]:
        """Note the feed's conventions, merge small files and let go of raw answers kept long enough.

        What fails is told, and tried again later.
        """
        notes: list[str] = []
        try:
            if not self._has_conventions:
                conventions.sync(self.store)
                self._has_conventions = True
        except BaseException as error:  # noqa: BLE001  # rates are read as quoted until then, and counted as such
            notes.append(f"the conventions of the feed could not be recorded: {sentence(error)}")
        try:
            if self._polls % LOOK_EVERY == 0 and self._most_files() > MAX_FILES:
                self.store.compact()
        except BaseException as error:  # noqa: BLE001  # many small files are slow, not wrong
            notes.append(f"the tables could not be compacted: {sentence(error)}")
        expired_at, seen_at = self.beat.expired_at, self._seen_at
        self._seen_at = now
        if expired_at is None or not timedelta() <= now - expired_at < EXPIRE_EVERY:
            try:
                # A clock that leaps ahead makes all answers old; whether it was right is known when it went on.
                if seen_at is None or now - seen_at <= max(self._keep_raw / 2, 2 * EXPIRE_EVERY):
                    self._archive.expire(self.store, older_than=now - self._keep_raw)
            except BaseException as error:  # noqa: BLE001  # what is kept for too long costs room only
                notes.append(f"old raw answers could not be removed: {sentence(error)}")
            self.beat = replace(self.beat, expired_at=now)
        return tuple(notes)

    def _most_files(self) -> int:
        return max(state.files for state in self.store.versions().values()) if self.store.exists else 0

    def _tell(self, poll: Poll) -> None:
        """Take the poll into the heartbeat."""
        waiting = len(self._journal.waiting())
        beat = replace(
            self.beat, last_outcome=poll.outcome, waiting=waiting, lost=self._lost_before + self._journal.lost
        )
        if poll.trouble:
            beat = replace(beat, failures=beat.failures + 1, last_error=poll.trouble)
        elif poll.outcome != "not due":
            beat = replace(beat, failures=0, last_error=None, last_success_at=datetime.now(UTC))
        self.beat = beat

    def _first_beat(self, every: timedelta | None) -> heartbeat.Heartbeat:
        """A heartbeat that knows what the one before it knew, and when the feed is due if it is asked the same."""
        every_s = None if every is None else every.total_seconds()
        beat = heartbeat.first(self._client.base_url, str(self._selection), every_s=every_s)
        before = heartbeat.read(self.store.folder)
        self._lost_before = 0 if before is None else before.lost
        self._seen_at = None if before is None else before.updated_at
        if before is None:
            return beat
        beat = replace(
            beat,
            last_success_at=before.last_success_at,
            last_outcome=before.last_outcome,
            failures=before.failures,
            last_error=before.last_error,
            lost=before.lost,
            expired_at=before.expired_at,
        )
        same = (before.url, before.selection) == (beat.url, beat.selection)
        return replace(beat, expires_at=before.expires_at) if same else beat


def _failure(polled_at: datetime, error: BaseException, *, notes: tuple[str, ...] = ()) -> Poll:
    return Poll(polled_at, "failed", error=sentence(error), notes=notes, raised=error)
