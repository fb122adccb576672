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
from yieldlab.quality import COUNTED, FLAGS, MAD_TO_SIGMA, SHIFT_WINDOW, SPIKE_WINDOW, Thresholds, check

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


def told(*rows: dict[str, object]) -> pl.DataFrame:
    """Rows of pool a with any columns: `day` and `apy`, and what else a check reads."""
    times = {"valid_at": pl.Datetime("us", "UTC"), "observed_at": pl.Datetime("us", "UTC")}
    times["ingested_at"] = pl.Datetime("us", "UTC")
    frame = pl.DataFrame(
        [
            {
                "pool_id": "a",
                "valid_at": START + timedelta(days=line["day"]),
                "apy_percent": line["apy"],
                "tvl_usd": line.get("tvl", 1e6),
                **{name: line[name] for name in line if name not in ("day", "apy", "tvl")},
            }
            for line in rows
        ],
        infer_schema_length=None,
    )
    return frame.cast({name: dtype for name, dtype in times.items() if name in frame.columns})


def flagged(frame: pl.DataFrame, name: str, **limits: float) -> list[tuple[float, float | None, float]]:
    """(day, value, limit) of the flags of one check."""
    found = check(frame, Thresholds(**limits)).flags.filter(pl.col("check") == name)
    return [((at - START) / timedelta(days=1), value, limit) for _, at, _, value, limit in found.rows()]


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


def test_a_row_without_a_yield_does_not_hide_the_one_before_it() -> None:
    frame = world(a=dict.fromkeys(range(20), 5.0) | {9.1: 500.0, 9.2: None} | {9: 5.0})
    assert flagged(frame, "spike") == [(pytest.approx(9.1), 500.0, 6.0)]


def test_late_starts_and_dead_pools() -> None:
    frame = world(a={0: 1.0, 100: 2.0}, b={40: 1.0, 69: 2.0}, c={69: 1.0, 70: 1.0})
    report = check(frame)
    assert report.pools["late_start_days"].to_list() == [0, 40, 69]
    assert report.pools["silent_days"].to_list() == [0, 31, 30]
    assert report.pools["dead"].to_list() == [False, True, False]
    assert (report.totals["late_pools"], report.totals["dead_pools"]) == (2, 1)
    later = check(frame, last_day=date(2024, 12, 31))
    assert later.pools["dead"].all()


def test_an_apy_that_is_not_the_sum_of_its_parts() -> None:
    lines = [
        {"day": 0, "apy": 5.0, "apy_base_percent": 3.0, "apy_reward_percent": 2.0},
        {"day": 1, "apy": 5.0, "apy_base_percent": 3.0, "apy_reward_percent": 2.009},  # rounding
        {"day": 2, "apy": 5.0, "apy_base_percent": 3.0, "apy_reward_percent": 1.0},
        {"day": 3, "apy": 5.0, "apy_base_percent": 5.0, "apy_reward_percent": None},
        {"day": 4, "apy": 5.0, "apy_base_percent": None, "apy_reward_percent": 2.0},
        {"day": 5, "apy": 5.0, "apy_base_percent": None, "apy_reward_percent": None},
        {"day": 6, "apy": None, "apy_base_percent": 1.0, "apy_reward_percent": None},
        {"day": 7, "apy": 0.0, "apy_base_percent": -3.0, "apy_reward_percent": math.nan},  # a loss cut off at zero
    ]
    assert flagged(told(*lines), "split") == [(2.0, 1.0, 0.01), (4.0, 3.0, 0.01), (7.0, 3.0, 0.01)]
    found = row(check(told(*lines)).pools)
    assert (found["split_rows"], found["rows_with_parts"], found["split_share"]) == (3, 6, 0.5)
    assert flagged(told(*lines), "split", split_percent=2.0) == [(4.0, 3.0, 2.0), (7.0, 3.0, 2.0)]
    assert row(check(world(a={0: 1.0})).pools)["split_share"] is None


def test_a_tvl_below_the_floor_is_not_one_of_zero() -> None:
    frame = world(a={0: (1.0, 0.0), 1: (1.0, 9_999.0), 2: (1.0, 10_000.0), 3: (1.0, None), 4: (1.0, math.nan)})
    assert flagged(frame, "low_tvl") == [(1.0, 9_999.0, 10_000.0)]
    assert [day for day, _, _ in flagged(frame, "no_tvl")] == [0.0, 3.0, 4.0]
    assert flagged(frame, "low_tvl", tvl_floor_usd=0.0) == []


def test_a_repeated_yield_is_flagged_once_its_run_is_too_long() -> None:
    frame = world(a=dict.fromkeys(range(10), 2.0) | {10: 3.0})
    assert flagged(frame, "repeated") == [(7.0, 8.0, 7.0), (8.0, 9.0, 7.0), (9.0, 10.0, 7.0)]
    assert len(flagged(frame, "repeated", stale_days=1)) == 9


def test_a_gap_is_flagged_where_it_ends_and_a_spike_with_the_bound_it_crossed() -> None:
    assert flagged(world(a={0: 1.0, 5: 2.0}), "gap") == [(5.0, 4.0, 0.0)]
    assert flagged(world(a=dict.fromkeys(range(20), 5.0) | {9: 500.0}), "spike") == [(9.0, 500.0, 6.0)]
    assert flagged(world(a=dict.fromkeys(range(20), 5.0) | {9: 0.0}), "spike") == [(9.0, 0.0, 4.0)]


def test_polls_of_the_live_feed_are_no_duplicates_of_their_day() -> None:
    polls = [{"day": n / 10, "apy": 5.0 + n, "source": "defillama/pools"} for n in range(10)]
    assert flagged(told(*polls), "duplicate") == []
    chart = {"day": 0.97, "apy": 9.0, "source": "defillama/chart"}
    assert flagged(told(*polls, chart), "duplicate") == []
    imported = {"day": 0.5, "apy": 9.0, "source": "mine.csv"}
    assert flagged(told(*polls, chart, imported), "duplicate") == [(0.5, 2.0, 1.0), (0.97, 2.0, 1.0)]


def test_the_row_of_an_unfinished_day_moves_on_and_is_no_duplicate() -> None:
    fetched = [
        {"day": day, "apy": 5.0, "source": "defillama/chart", "ingested_at": START + timedelta(days=day, hours=1)}
        for day in (0.4, 0.6, 0.9)
    ]
    assert flagged(told(*fetched), "duplicate") == []
    twice = {"day": 0.8, "apy": 5.0, "source": "defillama/chart", "ingested_at": START + timedelta(days=0.9, hours=1)}
    assert [day for day, _, _ in flagged(told(*fetched, twice), "duplicate")] == [0.8, 0.9]
    assert [day for day, _, _ in flagged(told(*fetched).drop("ingested_at"), "duplicate")] == [0.4, 0.6, 0.9]


def test_a_shift_of_level_is_flagged_on_its_day_even_beside_a_spike() -> None:
    calm = {n: 0.41 + 0.01 * (n % 3) for n in range(30)}
    percent = {n: 41.0 + n % 3 for n in range(30, 60)}
    assert flagged(world(a=calm | percent), "level_shift") == [(30.0, pytest.approx(100.0, rel=0.05), 20.0)]
    assert flagged(world(a=calm | percent | {25: 99.0, 33: 0.4}), "level_shift")[0][0] == 30.0
    back = world(a={59 - n: value for n, value in (calm | percent).items()})
    assert flagged(back, "level_shift") == [(30.0, pytest.approx(0.01, rel=0.05), 0.05)]
    assert flagged(world(a=calm | percent), "level_shift", shift_factor=200.0) == []
    for high, found in ((99.9, 0), (100.1, 1)):
        steps = [5.0] * 20 + [high] * 20
        assert len(flagged(world(a=dict(enumerate(steps))), "level_shift")) == found
        assert len(flagged(world(a=dict(enumerate(reversed(steps)))), "level_shift")) == found


def test_what_fades_or_is_tiny_is_no_shift_of_level() -> None:
    assert flagged(world(a=dict.fromkeys(range(30), 5.0) | {12: 500.0, 13: 400.0}), "level_shift") == []
    assert flagged(world(a={n: 0.001 if n < 20 else 0.09 for n in range(40)}), "level_shift") == []
    assert flagged(world(a={n: 5.0 if n < 12 else 500.0 for n in range(40)}), "level_shift") == []  # too few before


def test_revised_rows_are_counted_and_the_latest_is_what_is_checked() -> None:
    def known(day: float, apy: float | None, after: int, tvl: float = 1e6) -> dict[str, object]:
        at = START + timedelta(days=day + after)
        return {"day": day, "apy": apy, "tvl": tvl, "observed_at": at, "ingested_at": at}

    frame = told(
        known(0, 5.0, 0),
        known(1, 5.0, 0),
        known(1, 500.0, 9),
        known(1, 5.5, 20),
        known(2, 5.0, 0),
        known(2, 5.0, 3),
        known(3, 5.0, 0, tvl=0.0),
        known(3, 5.0, 4),
        known(4, None, 0),
        known(4, 5.0, 1),
    )
    for shuffled in (frame, frame.reverse(), frame.sample(fraction=1.0, shuffle=True, seed=3)):
        assert flagged(shuffled, "revised") == [(1.0, 495.0, 0.0), (3.0, 0.0, 0.0), (4.0, 0.0, 0.0)]
        report = check(shuffled)
        found = row(report.pools)
        assert (found["rows"], found["revised_rows"], found["revised_share"]) == (5, 3, 0.6)
        assert (found["spikes"], found["no_tvl_rows"], found["highest_apy_percent"]) == (0, 0, 5.5)


def test_survivorship_says_who_of_each_year_is_alive_at_the_end() -> None:
    frame = world(a={0: 1.0, 400: 2.0, 800: 3.0}, b={0: 1.0, 100: 2.0}, c={400: 1.0, 790: 1.0}, d={380: 1.0, 390: 1.0})
    years = check(frame).years
    assert years.rows() == [
        (2024, 2, 2, 1, 1, 0.5, 0.5),
        (2025, 3, 2, 1, 2, 2 / 3, 1.0),
        (2026, 2, 0, 0, 2, 1.0, 1.0),
    ]
    assert check(frame, last_day=date(2030, 1, 1)).years["share_of_today"].to_list() == [None, None, None]
    breached = check(frame, Thresholds(**OFF | {"max_survivor_share": 0.6})).breaches
    assert breached["message"].to_list() == [
        "66.7 % of the pools of 2025 are still alive at the end; max_survivor_share is 0.6"
    ]


def test_flags_add_up_to_the_counts_of_every_pool() -> None:
    metrics, _ = sample.synthetic(5, 300, seed=1)
    spoilt = metrics.with_columns(
        pl.when(pl.int_range(pl.len()) % 37 == 0).then(0.0).otherwise("tvl_usd").alias("tvl_usd"),
        pl.when(pl.int_range(pl.len()) % 41 == 0).then(9e3).otherwise("apy_percent").alias("apy_percent"),
    ).filter(pl.int_range(pl.len()) % 29 != 0)
    report = check(spoilt)
    assert report.flags.schema == FLAGS
    assert report.flags.equals(report.flags.sort("pool_id", "valid_at", "check"))
    counts = report.flags.group_by("pool_id", "check").len()
    for pool in report.pools.iter_rows(named=True):
        for name, column in COUNTED.items():
            seen = counts.filter((pl.col("pool_id") == pool["pool_id"]) & (pl.col("check") == name))["len"].sum()
            assert seen == pool[column], (pool["pool_id"], name)
    assert report.totals["flags"] == report.flags.height > 50


def test_flags_go_into_a_parquet_file_whole_or_not_at_all(tmp_path: Path) -> None:
    report = check(world(a={0: 1.0, 9: 2.0}))
    report.write_flags(tmp_path / "flags.parquet")
    assert pl.read_parquet(tmp_path / "flags.parquet").equals(report.flags)
    report.write_flags(tmp_path / "flags.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["flags.parquet"]
    with pytest.raises(UsageError, match=r"name a file that ends with \.parquet, not"):
        report.write_flags(tmp_path / "flags.csv")
    with pytest.raises(UsageError, match=r"the flags cannot be written to .*: No such file or directory"):
        report.write_flags(tmp_path / "nowhere" / "flags.parquet")
    (tmp_path / "taken.parquet").mkdir()
    with pytest.raises(UsageError, match="the flags cannot be written to"):
        report.write_flags(tmp_path / "taken.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flags.parquet", "taken.parquet"]


LATER = {"day": 1, "apy": 1.0, "observed_at": START + timedelta(days=1)}
LIMITS = {
    "max_gap_days": (world(a={0: 1.0, 9: 2.0}), 8, "a was not observed for 8 days in a row; max_gap_days is 7"),
    "max_missing_share": (world(a={0: 1.0, 9: 2.0}), 0.8, "a was not observed on 80.0 % of the days of its life"),
    "max_stale_days": (world(a={0: 1.0, 1: 1.0, 2: 1.0}), 3, "a repeated one yield for 3 days; max_stale_days is 2"),
    "max_spike_share": (
        world(a={n: 500.0 if n == 9 else 5.0 for n in range(20)}),
        0.05,
        "a has spikes on 5.0 % of its days",
    ),
    "max_no_tvl_share": (world(a={0: (1.0, 0.0), 1: (2.0, 1.0)}), 0.5, "a has no TVL or zero in 50.0 % of its rows"),
    "max_duplicate_share": (
        world(a={0.1: 1.0, 0.2: 2.0, 1: 3.0, 2: 4.0}),
        0.5,
        "a has 50.0 % of its rows on days that",
    ),
    "max_split_share": (
        told(*({"day": n, "apy": 5.0, "apy_base_percent": 4.0 if n == 9 else 5.0} for n in range(20))),
        0.05,
        "a has an APY that is not base + reward in 5.0 % of its rows",
    ),
    "max_low_tvl_share": (world(a={0: (1.0, 5.0), 1: (2.0, 1e6)}), 0.5, "a has a TVL below the floor in 50.0 %"),
    "max_level_shifts": (
        world(a={n: (500.0 if n >= 30 else 5.0) + n / 100 for n in range(60)}),
        1,
        "a has lasting shifts to another order of magnitude, 1 in number; max_level_shifts is 0",
    ),
    "max_revised_share": (
        told(*({"day": 0, "apy": n, "observed_at": START + timedelta(days=n)} for n in (1.0, 2.0)), LATER),
        0.5,
        "a was changed after the fact in 50.0 % of its rows",
    ),
    "max_survivor_share": (
        world(a={0: 1.0, 400: 1.0}, b={0: 2.0}),
        0.5,
        "50.0 % of the pools of 2024 are still alive at the end",
    ),
    "max_outage_days": (
        world(a={0: 1.0, 9: 2.0}, b={5: 1.0, 9: 2.0, 11: 3.0}),
        4,
        "no pool at all was observed for 4 days in a row, 2024-01-02 to 2024-01-05; max_outage_days is 3",
    ),
    "max_late_start_days": (world(a={9: 1.0}, b={0: 2.0, 9: 1.0}), 9, "a starts 9 days after the first pool"),
    "max_dead_share": (world(a={0: 1.0}, b={90: 2.0}), 0.5, "50.0 % of the pools are dead; max_dead_share is 0.4"),
}
OFF = dict.fromkeys(LIMITS)


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_breached_above_it_and_not_at_it(name: str) -> None:
    frame, value, sentence = LIMITS[name]
    assert check(frame, Thresholds(**{**OFF, name: value})).sound
    below = value - (1 if isinstance(value, int) else 0.1 if name in ("max_dead_share", "max_survivor_share") else 0.01)
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
        assert one["low_tvl_rows"] == sum(bool(tvl) for _, tvl in told.values())
        assert one["level_shifts"] == shifts(yields)


def shifts(yields: list[float]) -> int:
    """Stretches of neighbouring days of which each tells two levels apart, by the definition."""
    floored = [max(value, 0.05) for value in yields]
    apart = []
    for n in range(len(floored)):
        before, after = sorted(floored[max(0, n - SHIFT_WINDOW) : n]), sorted(floored[n : n + SHIFT_WINDOW])
        whole = len(before) == len(after) == SHIFT_WINDOW
        apart.append(whole and (after[1] > 20 * before[-2] or before[1] > 20 * after[-2]))
    return sum(here and not before for before, here in itertools.pairwise([False, *apart]))
