"""Revisions are what was changed after the fact, counted as a plain twin counts them."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yieldlab.errors import DataError
from yieldlab.quality import CHANGES, check, revisions

START = datetime(2024, 1, 1, tzinfo=UTC)
COLUMNS = ("apy_percent", "tvl_usd")

#: (pool, day, days until observed, hours until ingested, APY, TVL)
Line = tuple[str, int, int, int, float | None, float | None]

lines = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.integers(0, 3),
        st.integers(0, 40),
        st.integers(0, 10_000),
        st.sampled_from([None, 0.0, 5.0, 6.0, 500.0]),
        st.sampled_from([None, 1e6, 2e6]),
    ),
    min_size=1,
    max_size=25,
    unique_by=lambda line: (line[0], line[1], line[2], line[3]),
)


def history(told: list[Line]) -> pl.DataFrame:
    types = {
        "pool_id": pl.String,
        **dict.fromkeys(("valid_at", "observed_at", "ingested_at"), pl.Datetime("us", "UTC")),
        **dict.fromkeys(COLUMNS, pl.Float64),
        "source": pl.String,
    }
    rows = [
        (
            pool,
            START + timedelta(days=day),
            START + timedelta(days=day + later),
            START + timedelta(days=100, hours=hours),
            apy,
            tvl,
            "test",
        )
        for pool, day, later, hours, apy, tvl in told
    ]
    return pl.DataFrame(rows, schema=types, orient="row")


def plain(told: list[Line]) -> list[tuple[str, int, str, float | None, float | None, int]]:
    """(pool, day, column, before, after, days until known) of every changed value."""
    found = []
    for pool, day in {(line[0], line[1]) for line in told}:
        known = sorted((line for line in told if line[:2] == (pool, day)), key=lambda line: line[2:4])
        for n in range(1, len(known)):
            for name, place in zip(COLUMNS, (4, 5), strict=True):
                if known[n][place] != known[n - 1][place]:
                    found.append((pool, day, name, known[n - 1][place], known[n][place], known[n][2]))
    return found


def in_plain_values(changes: pl.DataFrame) -> list[tuple[str, int, str, float | None, float | None, int]]:
    columns = ("pool_id", "valid_at", "column", "before", "after", "days_after")
    return [
        (pool, (at - START).days, column, before, after, round(days))
        for pool, at, column, before, after, days in changes.select(columns).rows()
    ]


@settings(deadline=None, max_examples=150)
@given(told=lines, since=st.one_of(st.none(), st.integers(0, 45)))
def test_changes_are_those_of_a_plain_twin(told: list[Line], since: int | None) -> None:
    found = revisions(history(told), since=None if since is None else START + timedelta(days=since))
    assert found.changes.schema == CHANGES
    expected = [line for line in plain(told) if since is None or line[1] + line[5] >= since]
    order = [str(line) for line in expected]
    assert sorted(map(str, in_plain_values(found.changes))) == sorted(order)
    assert found.changes["observed_at"].is_sorted(descending=True)
    totals = found.totals()
    assert totals["rows"] == len({line[:2] for line in told})
    assert totals["revised_rows"] == len({line[:2] for line in expected})
    assert totals["revised_pools"] == len({line[0] for line in expected})
    assert totals["changed_values"] == len(expected) == found.months["changed_values"].sum()
    later = [
        (line[0], line[1], line[2], line[3])
        for line in told
        if any(other[:2] == line[:2] and other[2:4] < line[2:4] for other in told)
        and (since is None or line[1] + line[2] >= since)
    ]
    changed = found.changes.select("pool_id", "valid_at", "observed_at", "ingested_at").n_unique() if expected else 0
    assert totals["confirmed_rows"] == len(later) - changed
    assert totals["changed_before"] == len(plain(told)) - len(expected)
    for row in found.columns.iter_rows(named=True):
        of_column = [line for line in expected if line[2] == row["column"]]
        sizes = [abs(line[4] - line[3]) for line in of_column if line[3] is not None and line[4] is not None]
        assert row["changed_values"] == len(of_column)
        assert row["added"] == sum(line[3] is None for line in of_column)
        assert row["withdrawn"] == sum(line[4] is None for line in of_column)
        assert row["median_change"] == (statistics.median(sizes) if sizes else None)
        assert row["largest_change"] == max(sizes, default=None)
    if since is None:  # the check counts the same rows
        flagged = check(history(told)).flags.filter(pl.col("check") == "revised")
        assert flagged.height == totals["revised_rows"]


def test_one_pool_and_a_time_of_becoming_known() -> None:
    frame = history(
        [
            ("a", 0, 0, 0, 5.0, 1e6),
            ("a", 0, 9, 1, 6.0, 1e6),
            ("a", 0, 20, 2, 6.0, None),
            ("b", 0, 0, 0, 5.0, 1e6),
            ("b", 0, 3, 1, 4.0, 2e6),
        ]
    )
    found = revisions(frame, pools=["a"])
    assert in_plain_values(found.changes) == [("a", 0, "tvl_usd", 1e6, None, 20), ("a", 0, "apy_percent", 5.0, 6.0, 9)]
    assert found.changes["change"].to_list() == [None, 1.0]
    assert in_plain_values(revisions(frame, since=START + timedelta(days=10)).changes) == [
        ("a", 0, "tvl_usd", 1e6, None, 20)
    ]
    assert revisions(frame, since=START + timedelta(days=21)).changes.is_empty()
    [a, b] = revisions(frame).pools.sort("pool_id").iter_rows(named=True)
    assert (a["revised_rows"], a["changed_values"], a["largest_apy_change"]) == (1, 2, 1.0)
    assert (b["revised_rows"], b["changed_values"], b["latest_days_after"]) == (1, 2, 3.0)
    with pytest.raises(DataError, match="there is no pool 'c' in the data; known: a, b"):
        revisions(frame, pools=["a", "c"])


def test_rows_that_only_confirm_change_nothing() -> None:
    found = revisions(history([("a", 0, n, 0, 5.0, None) for n in range(4)]))
    assert found.changes.is_empty()
    assert found.totals() == {
        "rows": 1,
        "revised_rows": 0,
        "revised_pools": 0,
        "changed_values": 0,
        "confirmed_rows": 3,
        "changed_before": 0,
    }
