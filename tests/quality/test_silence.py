"""Outages and pools that fall silent together are told from deaths as a plain twin tells them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yieldlab.quality import CROWDS, OUTAGES, check, doubtful_deaths

START = datetime(2024, 1, 1, tzinfo=UTC)


def told(seen: np.ndarray) -> pl.DataFrame:
    """A row for each (day, pool) that was seen."""
    days, pools = np.nonzero(seen)
    return pl.DataFrame(
        {
            "pool_id": [f"p{pool}" for pool in pools],
            "valid_at": [START + timedelta(days=int(day)) for day in days],
            "apy_percent": [float(day % 7) for day in days],
            "tvl_usd": [1e6] * len(days),
        },
        schema_overrides={"valid_at": pl.Datetime("us", "UTC")},
    )


def doubt(seen: np.ndarray, grace: int, **options: object) -> tuple[int, int, int, int]:
    times = np.datetime64("2024-01-01") + np.arange(seen.shape[0])
    found = doubtful_deaths(np.where(seen, 0.05, np.nan), times, grace, **options)  # type: ignore[arg-type]
    return found.deaths, found.in_crowds, found.in_outages, found.doubtful


def plain(seen: np.ndarray, grace: int, window: tuple[int, int], longest: int) -> tuple[int, int, int, int]:
    """Day by day and pool by pool."""
    rows, pools = seen.shape
    out = [False] * rows
    for day in range(rows):
        first = last = day
        while first > 0 and not seen[first - 1].any():
            first -= 1
        while last + 1 < rows and not seen[last + 1].any():
            last += 1
        out[day] = not seen[day].any() and last - first + 1 > longest
    lives = {
        p: (min(np.flatnonzero(seen[:, p])), max(np.flatnonzero(seen[:, p]))) for p in range(pools) if any(seen[:, p])
    }
    gone = [p for p in lives if rows - 1 - lives[p][1] > grace]
    crowd = []
    for p in gone:
        together = sum(lives[other][1] == lives[p][1] for other in gone)
        alive = sum(lives[other][0] <= lives[p][1] <= lives[other][1] for other in lives)
        if together >= 3 and together >= alive / 10:
            crowd.append(p)
    counts = [0, 0, 0, 0]
    for p in lives:
        for day in range(window[0], window[1] + 1):
            before = [d for d in range(day + 1) if seen[d, p]]
            if not before or day - before[-1] != grace + 1:
                continue
            silence = []
            for d in range(before[-1] + 1, rows):
                if seen[d, p]:
                    break
                silence.append(d)
            in_crowd = p in crowd and before[-1] == lives[p][1]
            in_outage = sum(not out[d] for d in silence) <= grace
            for place, holds in enumerate((True, in_crowd, in_outage, in_crowd or in_outage)):
                counts[place] += holds
    return tuple(counts)  # type: ignore[return-value]


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_deaths_in_doubt_are_those_of_a_plain_twin(seed: int) -> None:
    g = np.random.default_rng(seed)
    rows, pools = int(g.integers(2, 60)), int(g.integers(1, 35))
    seen = g.random((rows, pools)) < g.choice([0.2, 0.6, 1.0])
    for _ in range(g.integers(0, 3)):
        first = int(g.integers(0, rows))
        seen[first : first + int(g.integers(1, 15))] = False
    for day in g.integers(0, rows, g.integers(0, 3)):
        seen[day:, g.random(pools) < g.choice([0.1, 0.5])] = False
    grace, longest = int(g.choice([0, 1, 4, 10])), int(g.choice([0, 3]))
    begin = int(g.integers(0, rows))
    window = (begin, int(g.integers(begin, rows)))
    assert doubt(seen, grace, window=window, max_outage_days=longest) == plain(seen, grace, window, longest)
    assert doubt(seen, grace) == plain(seen, grace, (0, rows - 1), 3)


def test_a_source_that_ends_is_a_crowd_and_a_pool_that_dies_alone_is_none() -> None:
    seen = np.ones((100, 40), dtype=bool)
    seen[50:, :4] = False
    seen[20:, 7] = False
    assert doubt(seen, 30) == (5, 4, 0, 4)
    assert doubt(seen, 30, window=(81, 99)) == (0, 0, 0, 0)
    assert doubt(seen, 60) == (1, 0, 0, 0)
    few = seen.copy()
    few[50:, 3] = True
    few[50:, 2] = True
    assert doubt(few, 30) == (3, 0, 0, 0)
    returned = seen.copy()
    returned[99, :4] = True
    assert doubt(returned, 30) == (5, 0, 0, 0)
    many = np.ones((100, 41), dtype=bool)
    many[50:, :4] = False
    assert doubt(many, 30) == (4, 0, 0, 0)  # less than a tenth


def test_a_collector_that_was_down_kills_nobody_who_was_gone_no_longer() -> None:
    seen = np.ones((100, 3), dtype=bool)
    seen[20:60] = False
    assert doubt(seen, 30) == (3, 0, 3, 3)
    seen[60:91, 0] = False  # silent among others for too long as well
    assert doubt(seen, 30) == (3, 0, 2, 2)
    seen[90, 0] = True
    assert doubt(seen, 30) == (3, 0, 3, 3)
    short = np.ones((100, 3), dtype=bool)
    short[20:50, 0] = False
    short[47:50] = False
    assert doubt(short, 29, max_outage_days=3) == (1, 0, 0, 0)
    assert doubt(short, 29, max_outage_days=2) == (1, 0, 1, 1)


def test_the_sentence_has_the_dates_and_the_numbers() -> None:
    seen = np.ones((200, 40), dtype=bool)
    seen[50:, :4] = False
    seen[100:140] = False
    times = np.datetime64("2024-01-01") + np.arange(200)
    found = doubtful_deaths(np.where(seen, 0.05, np.nan), times, 30)
    assert found.sentence == (
        "of 40 deaths of pools, told from more than 30 days of silence, 4 fell silent for good together with many "
        "others (4 of 40 on 2024-02-19) and 36 only within an outage common to all pools: a source that ended or a "
        "collector that was down looks just like that"
    )
    for day in range(5):
        seen[20 + day :, 10 + 4 * day : 14 + 4 * day] = False
    many = doubtful_deaths(np.where(seen, 0.05, np.nan), times, 30).sentence
    assert "(4 of 40 on 2024-01-20, 4 of 36 on 2024-01-21, 4 of 32 on 2024-01-22 and 3 other days)" in str(many)
    assert doubtful_deaths(np.full((5, 2), 0.05), times[:5], 30).sentence is None


def test_a_check_counts_outages_and_crowds() -> None:
    seen = np.ones((120, 40), dtype=bool)
    seen[10] = False
    seen[20:32] = False
    seen[60:, :5] = False
    seen[70:, 6] = False
    report = check(told(seen))
    assert report.outages.schema == OUTAGES
    assert report.crowds.schema == CROWDS
    assert report.outages.rows() == [
        (date(2024, 1, 11), date(2024, 1, 11), 1),
        (date(2024, 1, 21), date(2024, 2, 1), 12),
    ]
    assert report.crowds.rows() == [(date(2024, 2, 29), 5, 40)]
    totals = {
        name: report.totals[name] for name in ("outage_days", "longest_outage_days", "crowd_pools", "outage_rows")
    }
    assert totals == {"outage_days": 13, "longest_outage_days": 12, "crowd_pools": 5, "outage_rows": 80}
    assert report.breaches.filter(check="max_outage_days")["message"].to_list() == [
        "no pool at all was observed for 12 days in a row, 2024-01-21 to 2024-02-01; max_outage_days is 3"
    ]
    flags = report.flags.filter(check="outage")
    ends = [START + timedelta(days=11), START + timedelta(days=32)]
    assert flags.group_by("valid_at", "value", "limit").len().sort("valid_at").rows() == [
        (ends[0], 1.0, 0.0, 40),
        (ends[1], 12.0, 0.0, 40),
    ]
    later = check(told(seen), last_day=date(2024, 5, 3))
    assert later.outages.row(2) == (date(2024, 4, 30), date(2024, 5, 3), 4)
    sound = check(told(np.ones((50, 5), dtype=bool)))
    assert (sound.outages.height, sound.crowds.height, sound.totals["longest_outage_days"]) == (0, 0, 0)


@pytest.mark.parametrize("rows", [1, 2])
def test_the_smallest_panels(rows: int) -> None:
    assert doubt(np.ones((rows, 1), dtype=bool), 0) == (0, 0, 0, 0)
    assert doubt(np.zeros((rows, 2), dtype=bool), 0) == (0, 0, 0, 0)
