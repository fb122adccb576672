"""What the live feed gets wrong in its numbers, and passes on as good rows, is flagged by the check that is for it."""

from __future__ import annotations

import functools
from datetime import UTC, datetime

import polars as pl
import pytest
from feed_world import DATA_FAULTS, World, encode

from yieldlab.collect.defillama import parse_chart
from yieldlab.quality import check

LATER = datetime(2027, 1, 1, tzinfo=UTC)
WORLD = World(pools=12, days=400, seed=1)


@functools.cache
def flags_of(fault: str | None) -> dict[str, int]:
    """Flags by check on the charts of the world's pools, all with the fault (None: as they are)."""
    charts = []
    for pool in WORLD.pools():
        rows = WORLD.chart(pool["pool"])
        body = encode({"status": "success", "data": DATA_FAULTS[fault](rows) if fault else rows})
        charts.append(parse_chart(body, pool["pool"], fetched_at=LATER).frame)
    return dict(check(pl.concat(charts)).flags.group_by("check").len().rows())


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("spike", "spike"),
        ("zero_tvl", "no_tvl"),
        ("gap", "gap"),
        ("stale_repeat", "repeated"),
        ("units_switch", "level_shift"),
        ("same_day_twice", "duplicate"),
    ],
)
def test_a_fault_in_the_numbers_is_flagged(fault: str, name: str) -> None:
    assert flags_of(fault).get(name, 0) > flags_of(None).get(name, 0)


def test_a_change_of_unit_is_flagged_in_nearly_every_pool() -> None:
    assert flags_of("units_switch")["level_shift"] >= 11  # a yield below 1 % may hide it


def test_a_change_from_apr_to_apy_is_not_told_from_a_change_of_the_rate() -> None:
    assert flags_of("apr_switch").get("level_shift", 0) == flags_of(None).get("level_shift", 0)
