"""A day alone is its whole UTC day, an instant is itself, and the future is known to nobody."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from yieldlab.cli.inputs import instant
from yieldlab.errors import UsageError


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (None, None),
        ("2024-12-31", datetime(2025, 1, 1, tzinfo=UTC)),
        ("20241231", datetime(2025, 1, 1, tzinfo=UTC)),
        ("2024-W01-1", datetime(2024, 1, 2, tzinfo=UTC)),
        ("2024-12-31T12:00", datetime(2024, 12, 31, 12, tzinfo=UTC)),
        ("2024-12-31t12:00", datetime(2024, 12, 31, 12, tzinfo=UTC)),
        ("2024-12-31 12:00", datetime(2024, 12, 31, 12, tzinfo=UTC)),
        ("2024-12-31_12:00Z", datetime(2024, 12, 31, 12, tzinfo=UTC)),
        ("2024-12-31T00:00+02:00", datetime(2024, 12, 30, 22, tzinfo=UTC)),
    ],
)
def test_an_instant_on_the_command_line(text: str | None, meant: datetime | None) -> None:
    assert instant("--as-of", text) == meant


@pytest.mark.parametrize("text", ["2024-02-30", "31/12/2024", "", "2024-12-31T25:00", "0001-01-01T00:00+05:00"])
def test_what_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--as-of must be a day or an instant such as 2025-12-31T12:00Z"):
        instant("--as-of", text)


def test_the_future_is_refused_and_so_is_a_day_that_is_not_over() -> None:
    now = datetime.now(UTC)
    for text in ((now + timedelta(minutes=5)).isoformat(), now.date().isoformat(), "9999-12-31"):
        with pytest.raises(UsageError, match=r"--as-of .* lies in the future; leave it out for all that is known now"):
            instant("--as-of", text)
    assert instant("--as-of", (now.date() - timedelta(days=1)).isoformat()) <= now
