"""Checks count what is wrong in small worlds that can be counted by hand, and in random ones as a plain twin does."""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yieldlab import sample
from yieldlab.errors import DataError, UsageError
from yieldlab.quality import MAD_TO_SIGMA, SPIKE_WINDOW, Thresholds, check

START = datetime(2024, 1, 1, tzinfo=UTC)
DOCS = Path(__file__).parents[2] / "docs" / "data.md"


def world(**pools: dict[float, float | tuple[float | None, float | None] | None]) -> pl.DataFrame:
    """Pools as {day: apy} or {day: (apy, tvl)}; the TVL is 1 where it is not given."""
    rows = [
        (pool, START + timedelta(days=day), *(told if isinstance(told, tuple) else (told, 1.0)))
        for pool, days in pools.items()
        for day, told in days.items()
    ]
    types = {
        "pool_id": pl.String,
        "valid_at": pl.Datetime("us", "UTC"),
        "apy_percent": pl.Float64,
        "tvl_usd": pl.Float64,
    }
    return pl.DataFrame(rows, schema=types, orient="row")


def row(frame: pl.DataFrame, pool: str = "a") -> dict:
    return frame.row(by_predicate=pl.col("pool_id") == pool, named=True)


def test_gaps_are_counted_in_days_without_an_observation() -> None:
    found = row(check(world(a={0: 1.0, 1: 2.0, 4: 3.0, 5.5: 4.0, 16: 5.0})).pools)
    assert (found["gaps"], found["longest_gap_days"], found["missing_days"]) == (2, 10, 12)
    assert found["missing_share"] == 12 / 17
    assert (found["first"], found["last"], found["days"], found["rows"]) == (date(2024, 1, 1), date(2024, 1, 17), 5, 5)


def test_a_run_is_the_same_yield_to_the_last_digit_and_zero_makes_none() -> None:
    days = {0: 0.0, 1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0, 5: 2.0, 6: 2.0, 9: 2.0, 10: 2.0000001, 11: 3.0, 12: 3.0}
    assert row(check(world(a=days)).pools)["longest_stale_days"] == 2
    assert row(check(world(a={0: 0.0, 1: 0.0})).pools)["longest_stale_days"] == 0


def test_a_run_ends_where_the_pool_was_not_observed() -> None:
    assert row(check(world(a={0: 2.0, 59: 2.0})).pools)["longest_stale_days"] == 1
    assert row(check(world(a={0: 2.0, 1: 2.0, 2: 2.0, 4: 2.0, 5: 2.0})).pools)["longest_stale_days"] == 3
    assert row(check(world(a={0: 2.0, 1: None, 2: 2.0})).pools)["longest_stale_days"] == 1


def test_runs_do_not_reach_from_one_pool_into_the_next() -> None:
    pools = check(world(a={0: 1.0, 1: 2.0}, b={2: 2.0, 3: 2.0})).pools
    assert pools["longest_stale_days"].to_list() == [1, 2]


def test_a_spike_is_far_from_the_median_around_it() -> None:
    days = {n: 5.0 + 0.1 * (-1) ** n for n in range(60)}
    assert row(check(world(a=days)).pools)["spikes"] == 0
    found = row(check(world(a={**days, 30: 50.0, 31: 45.0})).pools)
    assert (found["spikes"], found["spike_share"], found["highest_apy_percent"]) == (2, 2 / 60, 50.0)
    assert row(check(world(a={**days, 30: 50.0}), Thresholds(spike_percent=46.0)).pools)["spikes"] == 0
    assert row(check(world(a={**days, 30: 50.0}), Thresholds(spike_deviations=1000.0)).pools)["spikes"] == 0


def test_a_new_level_is_no_spike() -> None:
    days = {n: (5.0 if n < 100 else 50.0) + 0.1 * (-1) ** n for n in range(200)}
    assert row(check(world(a=days)).pools)["spikes"] == 0


def test_missing_and_zero_tvl_are_counted_by_row() -> None:
    days = {0: (1.0, None), 1: (1.0, 0.0), 2: (1.0, math.nan), 3: (1.0, 5.0)}
    found = row(check(world(a=days)).pools)
    assert (found["no_tvl_rows"], found["no_tvl_share"]) == (3, 0.75)


def test_days_with_several_rows_are_counted_and_their_last_yield_is_the_days() -> None:
    found = row(check(world(a={0.1: 9.0, 0.5: 1.0, 1.1: 1.0, 2.2: 2.0, 2.3: 3.0})).pools)
    assert (found["duplicate_days"], found["duplicate_share"], found["days"]) == (2, 0.8, 3)
    assert found["longest_stale_days"] == 2


def test_late_starts_and_dead_pools() -> None:
    frame = world(a={0: 1.0, 100: 2.0}, b={40: 1.0, 69: 2.0}, c={69: 1.0, 70: 1.0})
    report = check(frame)
    assert report.pools["late_start_days"].to_list() == [0, 40, 69]
    assert report.pools["silent_days"].to_list() == [0, 31, 30]
    assert report.pools["dead"].to_list() == [False, True, False]
    assert (report.totals["late_pools"], report.totals["dead_pools"]) == (2, 1)
    later = check(frame, last_day=date(2024, 12, 31))
    assert later.pools["dead"].all()


LIMITS = {
    "max_gap_days": (world(a={0: 1.0, 9: 2.0}), 8, "a was not observed for 8 days in a row; max_gap_days is 7"),
    "max_missing_share": (world(a={0: 1.0, 9: 2.0}), 0.8, "a was not observed on 80.0% of the days of its life"),
    "max_stale_days": (world(a={0: 1.0, 1: 1.0, 2: 1.0}), 3, "a repeated one yield for 3 days; max_stale_days is 2"),
    "max_spike_share": (
        world(a={n: 500.0 if n == 9 else 5.0 for n in range(20)}),
        0.05,
        "a has spikes on 5.0% of its days",
    ),
    "max_no_tvl_share": (world(a={0: (1.0, 0.0), 1: (2.0, 1.0)}), 0.5, "a has no TVL or zero in 50.0% of its rows"),
    "max_duplicate_share": (world(a={0.1: 1.0, 0.2: 2.0, 1: 3.0, 2: 4.0}), 0.5, "a has 50.0% of its rows on days that"),
    "max_late_start_days": (world(a={9: 1.0}, b={0: 2.0, 9: 1.0}), 9, "a starts 9 days after the first pool"),
    "max_dead_share": (world(a={0: 1.0}, b={90: 2.0}), 0.5, "50.0% of the pools are dead; max_dead_share is 0.4"),
}
OFF = dict.fromkeys(LIMITS)


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_breached_above_it_and_not_at_it(name: str) -> None:
    frame, value, sentence = LIMITS[name]
    assert check(frame, Thresholds(**{**OFF, name: value})).sound
    below = value - (1 if isinstance(value, int) else 0.1 if name == "max_dead_share" else 0.01)
    report = check(frame, Thresholds(**{**OFF, name: below}))
    assert not report.sound
    assert report.breaches["check"].to_list() == [name]
    assert report.breaches["value"].item() == pytest.approx(value)
    assert report.breaches["limit"].item() == pytest.approx(below)
    assert report.breaches["message"].item().startswith(sentence)
    assert check(frame, Thresholds(**OFF)).sound


def test_every_limit_has_a_test_and_stands_in_the_documentation() -> None:
    assert {item.name for item in fields(Thresholds) if item.name.startswith("max_")} == set(LIMITS)
    listed = dict(re.findall(r"^\| `(\w+)` \| ([\w.]+) \|", DOCS.read_text(encoding="utf-8"), re.M))
    for item in fields(Thresholds):
        told = listed[item.name]
        assert (None if told == "none" else float(told)) == item.default, item.name


def test_thresholds_are_checked() -> None:
    with pytest.raises(UsageError, match="the threshold max_gap_days must be 0 or more, not -1"):
        Thresholds(max_gap_days=-1)
    with pytest.raises(UsageError, match="max_spike_share is a share between 0 and 1, not 5"):
        Thresholds(max_spike_share=5)
    with pytest.raises(UsageError, match="must be 0 or more, not nan"):
        Thresholds(max_no_tvl_share=math.nan)


def test_the_report_goes_into_json_and_the_sample_is_sound() -> None:
    report = check(sample.reference_study(seed=0)[0])
    assert report.sound
    document = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert document["totals"]["rows"] == 13_396
    assert document["pools"][0]["first"] == "2023-01-27"
    assert document["thresholds"]["max_gap_days"] == 30
    broken = check(world(a={0: 1.0, 90: None}, b={0: None}))
    document = json.loads(json.dumps(broken.as_dict(), allow_nan=False))
    assert document["breaches"][0]["check"] == "max_gap_days"
    with pytest.raises(DataError, match="there are no rows to check"):
        check(world())


@settings(deadline=None, max_examples=60)
@given(
    pools=st.dictionaries(
        st.sampled_from("abc"),
        st.dictionaries(
            st.integers(0, 300).map(lambda tenth: tenth / 2),
            st.tuples(st.sampled_from([0.0, 1.0, 2.0, 5.0, 80.0]), st.sampled_from([None, 0.0, 1.0])),
            min_size=1,
            max_size=60,
        ),
        min_size=1,
    )
)
def test_checks_count_as_a_plain_twin_does(pools: dict[str, dict[float, tuple[float, float | None]]]) -> None:
    found = check(world(**pools)).pools
    begin = min(min(days) for days in pools.values()) // 1
    end = max(max(days) for days in pools.values()) // 1
    for pool, told in pools.items():
        of_day: dict[int, float] = {}
        for instant in sorted(told):
            of_day[int(instant)] = told[instant][0]
        days = sorted(of_day)
        yields = [of_day[day] for day in days]
        holes = [after - before - 1 for before, after in itertools.pairwise(days)]
        longest, length = 0, 0
        for n, value in enumerate(yields):
            goes_on = n and value == yields[n - 1] and days[n] == days[n - 1] + 1
            length = length + 1 if goes_on else 1
            longest = max(longest, length if value else 0)
        half = SPIKE_WINDOW // 2
        away = [abs(y - statistics.median(yields[max(0, n - half) : n + half + 1])) for n, y in enumerate(yields)]
        deviation = MAD_TO_SIGMA * statistics.median(away)
        one = row(found, pool)
        assert one["gaps"] == sum(hole > 0 for hole in holes)
        assert one["longest_gap_days"] == max(holes, default=0)
        assert one["missing_days"] == sum(holes)
        assert one["longest_stale_days"] == longest
        assert one["spikes"] == sum(a > 12 * deviation and a >= 1.0 for a in away)
        assert one["no_tvl_rows"] == sum(not tvl for _, tvl in told.values())
        assert one["duplicate_days"] == sum([int(t) for t in told].count(day) > 1 for day in days)
        assert one["late_start_days"] == days[0] - begin
        assert one["dead"] == (end - days[-1] > 30)
