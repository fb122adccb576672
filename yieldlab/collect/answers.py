"""What can come back from a service on the web: an answer, or one of the ways in which there is none."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import NoReturn

from yieldlab.errors import DataError


class FeedError(DataError):
    """A service on the web did not give what was asked for."""


class Unreachable(FeedError):
    """No attempt brought a usable answer."""


class Refused(FeedError):
    """The service does not do what was asked, and will not do it later either."""

    def __init__(self, sentence: str, answer: Answer) -> None:
        super().__init__(sentence)
        self.answer = answer


class UnknownPool(FeedError):
    """The feed has no history of a pool of this id."""


class InvalidPool(FeedError):
    """The feed does not take this text for the id of a pool."""


class Stopped(FeedError):
    """We were asked to stop before there was an answer."""

    exit_code = 130


class Broken(FeedError):
    """An answer that cannot be used; the next one may be. With `truth`, it may also be so: raised once confirmed."""

    def __init__(self, sentence: str, *, truth: FeedError | None = None) -> None:
        super().__init__(sentence)
        self.truth = truth


@dataclass(frozen=True, slots=True)
class Answer:
    """What came, when it was asked for and when it was here in full (later than `asked_at` even if clocks stand)."""

    url: str
    status: int
    #: Upper and lower case do not matter.
    headers: Mapping[str, str]
    #: Unpacked.
    body: bytes
    asked_at: datetime
    fetched_at: datetime

    def json(self) -> object:
        """The body as data; raises Broken when it is not JSON."""
        return parse_json(self.body)

    @property
    def content_hash(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    @property
    def expires(self) -> datetime | None:
        """When the service will have something new, by our clock: the time left by the service's own clock from now."""
        expires, date = _instant(self.headers.get("Expires")), _instant(self.headers.get("Date"))
        if expires is None or date is None:
            return expires
        return self.fetched_at + max(expires - date, timedelta(0))


def parse_json(body: bytes) -> object:
    """JSON as the standard has it: Python's own reader would take NaN and Infinity for numbers.

    >>> parse_json(b'[1, null]')
    [1, None]
    """
    try:
        return json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Broken(f"the body is not JSON ({shown(str(error))})") from error


def _no_number(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is no number in JSON")


def retry_after(answer: Answer) -> float | None:
    """The seconds that the service asks for, in either form of the header."""
    given = answer.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d*)?", given):
        return float(given)
    until = _instant(given)
    if until is None:
        return None
    return max((until - (_instant(answer.headers.get("Date")) or answer.fetched_at)).total_seconds(), 0.0)


def _instant(text: str | None) -> datetime | None:
    """The instant of a header; null when it has none (`Expires: 0` is common)."""
    try:
        instant = parsedate_to_datetime(text or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def shown(text: str) -> str:
    """A foreign text as a terminal can show it, on one line and not long."""
    line = "".join(letter if letter.isprintable() else "?" for letter in text.strip())
    return line if len(line) <= 120 else line[:119] + "…"
