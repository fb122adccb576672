"""How does collecting go on, whatever happens to the network, the disk or the process?

Every answer is written down first and committed second, so that one that was received is never asked for again in vain.
What fails is told, counted and tried again at the next poll.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from yieldlab.collect import conventions, defillama, heartbeat
from yieldlab.collect._http import Client, Stopped
from yieldlab.collect.archive import Archive
from yieldlab.collect.defillama import Pools
from yieldlab.collect.journal import Journal, Waiting
from yieldlab.collect.polls import Poll, Today, commit
from yieldlab.collect.selection import Selection
from yieldlab.errors import YieldlabError
from yieldlab.store import Store

#: The feed renews itself once an hour; a longer `Expires` is not believed.
LONGEST_EXPIRY = timedelta(hours=2)
#: A table of more files than this is compacted.
MAX_FILES = 100
#: Polls between two looks at the number of files.
LOOK_EVERY = 20
#: Between two looks for raw answers that were kept long enough.
EXPIRE_EVERY = timedelta(days=1)
#: Polls at which the store takes a later answer and not this one, before this one is given up.
TRIES = 3


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
        #: Answers that another process received: what it wrote of them is not known.
        self._inherited = frozenset(entry.fetched_at for entry in self._journal.waiting())
        self._passed_over: Counter[datetime] = Counter()
        self._today = Today()
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
                self.beat, last_outcome="failed", failures=self.beat.failures + 1, last_error=_sentence(error)
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
        poll = self._ask(now) if self._is_due(now) else self._wait(now)
        if poll.failed or poll.outcome == "not due":
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
        failed = [poll for poll in settled if poll.failed]
        notes = self._notes_of(settled)
        return replace(failed[-1], polled_at=now, notes=notes) if failed else Poll(now, "not due", notes=notes)

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
        if poll.failed:
            poll = replace(poll, polled_at=now)
        elif poll.polled_at == answer.asked_at:
            limit = answer.fetched_at + LONGEST_EXPIRY
            self.beat = replace(self.beat, expires_at=min(answer.expires, limit) if answer.expires else None)
        return replace(poll, notes=(*notes, *self._notes_of(older), *poll.notes))

    def _settle(self, parsed: dict[datetime, Pools]) -> list[Poll]:
        """Commit what waits, the oldest first; after two that the store does not take, the others wait for later.

        An answer that the store never takes, while it takes later ones, is given up: it must not hold up the rest.
        """
        done: list[Poll] = []
        refused: list[Waiting] = []
        for entry in self._journal.waiting():
            try:
                answer = self._journal.answer(entry)
                pools = parsed.get(entry.fetched_at) or defillama.parse_pools(answer.body)
                inherited = entry.fetched_at in self._inherited
                poll = commit(self.store, answer, pools, self._selection, today=self._today, again=inherited)
                done.append(poll)
            except BaseException as error:  # noqa: BLE001  # the answer waits; the next poll tries again
                done.append(_failure(entry.asked_at, error))
                refused.append(entry)
                if len(refused) == 2:
                    break
                continue
            with suppress(OSError):  # it would be committed again, which adds nothing
                self._journal.done(entry)
            self._pass_over(refused)
            refused = []
        return done

    def _pass_over(self, refused: list[Waiting]) -> None:
        for entry in refused:
            self._passed_over[entry.fetched_at] += 1
            if self._passed_over[entry.fetched_at] >= TRIES:
                self._journal.give_up(entry)

    @staticmethod
    def _notes_of(polls: list[Poll]) -> tuple[str, ...]:
        """What is to be said of answers that were received earlier."""
        return tuple(
            f"the answer of {poll.polled_at:%Y-%m-%d %H:%M:%S} UTC is not in the store yet: {poll.error}"
            if poll.failed
            else f"the answer of {poll.polled_at:%Y-%m-%d %H:%M:%S} UTC, which had waited, is in the store"
            for poll in polls
        )

    def _recorded(self, poll: Poll) -> Poll:
        """The poll, after an attempt to tell it in table `polls`."""
        try:
            self.store.record("polls", poll.row())
        except BaseException as error:  # noqa: BLE001  # where the disk is full, the heartbeat still tells it
            return replace(poll, notes=(*poll.notes, f"the poll could not be recorded: {_sentence(error)}"))
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
            notes.append(f"the conventions of the feed could not be recorded: {_sentence(error)}")
        try:
            if self._polls % LOOK_EVERY == 0 and self._most_files() > MAX_FILES:
                self.store.compact()
        except BaseException as error:  # noqa: BLE001  # many small files are slow, not wrong
            notes.append(f"the tables could not be compacted: {_sentence(error)}")
        expired_at = self.beat.expired_at
        if expired_at is None or not timedelta() <= now - expired_at < EXPIRE_EVERY:
            try:
                self._archive.expire(self.store, older_than=now - self._keep_raw)
            except BaseException as error:  # noqa: BLE001  # what is kept for too long costs room only
                notes.append(f"old raw answers could not be removed: {_sentence(error)}")
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
        if poll.failed:
            beat = replace(beat, failures=beat.failures + 1, last_error=poll.error)
        elif poll.outcome != "not due":
            beat = replace(beat, failures=0, last_error=None, last_success_at=datetime.now(UTC))
        self.beat = beat

    def _first_beat(self, every: timedelta | None) -> heartbeat.Heartbeat:
        """A heartbeat that knows what the one before it knew, and when the feed is due if it is asked the same."""
        every_s = None if every is None else every.total_seconds()
        beat = heartbeat.first(self._client.base_url, str(self._selection), every_s=every_s)
        before = heartbeat.read(self.store.folder)
        self._lost_before = 0 if before is None else before.lost
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
    return Poll(polled_at, "failed", error=_sentence(error), notes=notes, raised=error)


def _sentence(error: BaseException) -> str:
    """What went wrong, in one line; what is none of our own errors tells its kind too."""
    text = " ".join(str(error).split())
    return text if isinstance(error, YieldlabError) else f"{type(error).__name__}: {text}"
