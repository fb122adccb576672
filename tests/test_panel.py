"""The crossing from long rows to the dense panel, against a plain twin; carry, windows, copies and refusals."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import panel_oracle

from yieldlab import schema
from yieldlab.errors import DataError, UsageError
from yieldlab.market import DEFAULTS, SPIKES, prepare
from yieldlab.panel import Panel

START = datetime(2024, 1, 1, tzinfo=UTC)
LATE = datetime(2024, 3, 1, tzinfo=UTC)


def long(*rows: tuple[Any, ...], columns: tuple[str, ...] = ("pool_id", "valid_at", "apy_percent")) -> pl.DataFrame:
    """A long table; an instant is written as days after 1 January 2024."""
    told = [dict(zip(columns, row, strict=True)) for row in rows]
    for row in told:
        for clock in ("valid_at", "observed_at", "ingested_at"):
            if clock in row:
                row[clock] = START + timedelta(days=row[clock])
    return pl.DataFrame(told, schema_overrides={n: t for n, t in schema.YIELD_METRICS.items() if n in columns})


def panel(frame: pl.DataFrame, **options: Any) -> Panel:
    return Panel.from_long(frame, **{"fields": ("apy",), "as_of": LATE, **options})


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows with revisions, several a day, nulls, NaN, gaps and rows learned late, in any order."""
    rows = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "pool_id": st.sampled_from(["b", "a", "ä", "B"]),
                    "valid_at": st.tuples(st.integers(0, 9), st.sampled_from([0, 1, 11, 23])),
                    "observed_at": st.integers(0, 12),
                    "ingested_at": st.integers(0, 3),
                    "apy_percent": st.sampled_from([None, math.nan, 0.0, -5.0, 1.0, 7.25]),
                    "tvl_usd": st.sampled_from([None, math.nan, 0.0, 1e6]),
                }
            ),
            min_size=1,
            max_size=40,
        )
    )
    for row in rows:
        day, hour = row["valid_at"]
        row["valid_at"] = START + timedelta(days=day, hours=hour)
        row["observed_at"] = row["valid_at"] + timedelta(days=row["observed_at"] // 2, hours=row["observed_at"] % 2)
        row["ingested_at"] = LATE + timedelta(microseconds=row["ingested_at"])
    # Two rows with the same three clocks have no order of their own.
    kept = {(r["pool_id"], r["valid_at"], r["observed_at"], r["ingested_at"]): r for r in rows}
    return list(kept.values())


def frame_of(rows: list[dict[str, Any]]) -> pl.DataFrame:
    columns = ("pool_id", "valid_at", "observed_at", "ingested_at", "apy_percent", "tvl_usd")
    return pl.DataFrame(rows, schema={name: schema.YIELD_METRICS[name] for name in columns})


as_ofs = st.integers(0, 24 * 16).map(lambda hours: START + timedelta(hours=hours))
ends = st.none() | st.integers(0, 11).map(lambda day: START.date() + timedelta(days=day))


@settings(deadline=None, max_examples=300)
@given(histories(), ends, as_ofs, st.integers(0, 5))
def test_a_panel_is_what_the_plain_twin_makes_of_the_rows(
    rows: list[dict[str, Any]], end: date | None, as_of: datetime, max_stale_days: int
) -> None:
    for column, field, scale in (("apy_percent", "apy", 100.0), ("tvl_usd", "tvl_usd", 1.0)):
        days, pools, observed, carried, ages = panel_oracle.panel(
            rows, column, end=end, as_of=as_of, max_stale_days=max_stale_days
        )
        options: dict[str, Any] = {"fields": ("apy", "tvl_usd"), "end": end, "as_of": as_of}
        if not days:
            with pytest.raises(DataError, match="no observation of a finished day"):
                Panel.from_long(frame_of(rows), max_stale_days=max_stale_days, **options)
            return
        made = Panel.from_long(frame_of(rows), max_stale_days=max_stale_days, **options)
        assert made.times.astype("datetime64[D]").tolist() == days
        assert made.pool_ids == pools
        np.testing.assert_array_equal(made.raw(field), np.array(observed) / scale)
        np.testing.assert_array_equal(made[field], np.array(carried) / scale)
        np.testing.assert_array_equal(made.age(field), np.array(ages))


@settings(deadline=None, max_examples=100)
@given(histories(), histories(), as_ofs)
def test_rows_observed_later_never_change_what_was_known_before(
    rows: list[dict[str, Any]], more: list[dict[str, Any]], as_of: datetime
) -> None:
    later = [{**row, "observed_at": as_of + timedelta(microseconds=1 + n)} for n, row in enumerate(more)]
    try:
        before = Panel.from_long(frame_of(rows), as_of=as_of)
    except DataError:
        with pytest.raises(DataError):
            Panel.from_long(frame_of(rows + later), as_of=as_of)
        return
    assert Panel.from_long(frame_of(rows + later), as_of=as_of).digest() == before.digest()


@settings(deadline=None, max_examples=50)
@given(histories(), st.randoms(use_true_random=False))
def test_the_order_of_rows_says_nothing_when_the_clocks_do(rows: list[dict[str, Any]], random: Any) -> None:
    try:
        before = Panel.from_long(frame_of(rows), as_of=LATE)
    except DataError:
        return
    shuffled = rows.copy()
    random.shuffle(shuffled)
    assert Panel.from_long(frame_of(shuffled), as_of=LATE).digest() == before.digest()


def test_a_row_knows_all_of_its_day_and_nothing_of_the_next() -> None:
    made = panel(long(("a", 0.0, 1.0), ("a", 0.999, 2.0), ("a", 1.0, 3.0)))
    assert made["apy"][:, 0].tolist() == [0.02, 0.03]


def test_the_unfinished_day_is_dropped() -> None:
    rows = long(("a", 0.5, 1.0), ("a", 1.5, 2.0))
    assert panel(rows, as_of=START + timedelta(days=1, hours=23)).shape == (1, 1)
    assert panel(rows, as_of=START + timedelta(days=2)).shape == (2, 1)


def test_today_is_dropped_without_as_of() -> None:
    now = datetime.now(UTC)
    rows = pl.DataFrame({"pool_id": ["a", "a"], "valid_at": [now - timedelta(days=3), now], "apy_percent": [1.0, 2.0]})
    assert Panel.from_long(rows, fields=("apy",)).shape[0] == 1


def test_end_is_the_last_day_itself() -> None:
    rows = long(("a", 0.5, 1.0), ("a", 1.5, 2.0), ("a", 2.5, 3.0))
    assert panel(rows, end=date(2024, 1, 2)).shape == (2, 1)


def test_without_clocks_a_later_row_of_the_frame_counts() -> None:
    assert panel(long(("a", 0.5, 1.0), ("a", 0.5, 2.0)))["apy"].tolist() == [[0.02]]


def test_an_instant_without_a_zone_is_meant_in_utc() -> None:
    rows = long(("a", 0.5, 1.0), ("a", 1.5, 2.0))
    naive = rows.with_columns(pl.col("valid_at").dt.replace_time_zone(None))
    assert panel(naive, as_of=datetime(2024, 1, 2, 23)).digest() == panel(rows, as_of=datetime(2024, 1, 2, 23)).digest()


def test_what_is_observed_at_the_very_instant_is_known() -> None:
    rows = long(("a", 0.5, 0.5, 1.0), ("a", 0.5, 2, 2.0), columns=("pool_id", "valid_at", "observed_at", "apy_percent"))
    assert panel(rows, as_of=START + timedelta(days=2))["apy"].tolist() == [[0.02]]
    assert panel(rows, as_of=START + timedelta(days=2, microseconds=-1))["apy"].tolist() == [[0.01]]


def test_of_two_rows_observed_together_the_one_ingested_last_counts() -> None:
    columns = ("pool_id", "valid_at", "observed_at", "ingested_at", "apy_percent")
    assert panel(long(("a", 0, 1, 9, 2.0), ("a", 0, 1, 8, 1.0), columns=columns))["apy"].tolist() == [[0.02]]


def test_assumed_rows_are_counted_and_sources_named() -> None:
    columns = ("pool_id", "valid_at", "observed_at", "apy_percent", "source")
    made = panel(
        long(("a", 0, 0, 1.0, "synthetic"), ("a", 1, 2, 1.0, "feed"), ("a", 50, 50, 1.0, None), columns=columns)
    )
    assert made.health.assumed_rows == 2
    assert made.sources == made.health.sources == ("feed", "synthetic")
    assert made.with_max_stale_days(9).sources == made.head(1).sources == ("feed", "synthetic")
    assert panel(long(("a", 0, 1.0))).sources == ()


def test_health_adds_up() -> None:
    assets = pl.DataFrame({"pool_id": ["a"], "protocol": ["p"], "symbol": ["USDC"], "chain": ["c"]})
    made = panel(long(("a", 0, 1.0), ("a", 9, 1.0), ("b", 2, 1.0)), assets=assets, max_stale_days=2)
    health = made.health
    assert (health.times, health.pools, health.observations, health.pools_not_usd) == (10, 2, 3, 1)
    assert health.observed_share == 3 / 20
    assert health.carried_share == pytest.approx(4 / 20)
    assert health.observed_share + health.carried_share + health.missing_share == pytest.approx(1.0)
    assert (health.first, health.last) == ("2024-01-01", "2024-01-10")
    assert health.as_dict()["sources"] == ()


def test_what_is_published_cannot_be_written_to() -> None:
    made = panel(long(("a", 0, 1.0), ("a", 3, 2.0)))
    for array in (made.times, made["apy"], made.raw("apy"), made.age("apy")):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    mine = np.zeros((4, 1))
    with_mine = made.with_fields({"mine": mine})
    mine[0, 0] = 9.0
    assert with_mine["mine"][0, 0] == 0.0


def test_a_digest_changes_with_every_input() -> None:
    made = panel(long(("a", 0, 1.0), ("a", 3, 2.0)))
    assert made.digest() == panel(long(("a", 0, 1.0), ("a", 3, 2.0))).digest()
    others = (
        panel(long(("a", 0, 1.0), ("a", 3, 2.5))),
        panel(long(("b", 0, 1.0), ("b", 3, 2.0))),
        panel(long(("a", 1, 1.0), ("a", 4, 2.0))),
        made.with_fields({"mine": np.zeros((4, 1))}),
    )
    assert len({made.digest(), *(other.digest() for other in others)}) == 5


def test_a_head_forgets_what_came_after() -> None:
    made = panel(long(("a", 0, 1.0), ("a", 3, 2.0)))
    assert made.head(2).digest() == panel(long(("a", 0, 1.0), ("a", 1, None))).digest()


def test_a_window_is_given_in_days_and_must_lie_inside() -> None:
    made = panel(long(("a", 0, 1.0), ("a", 9, 2.0)))
    assert made.window() == (0, 9)
    assert made.window(date(2024, 1, 3), date(2024, 1, 5)) == (2, 4)
    with pytest.raises(
        DataError, match="--start 2023-12-31 lies outside the data, which runs from 2024-01-01 to 2024-01-10"
    ):
        made.window(date(2023, 12, 31))
    with pytest.raises(UsageError, match="--start 2024-01-05 lies after --end 2024-01-03"):
        made.window(date(2024, 1, 5), date(2024, 1, 3))


@pytest.mark.parametrize(
    ("frame", "options", "error", "sentence"),
    [
        (long(("a", 0, 1.0)), {"fields": ("apyy",)}, UsageError, "unknown panel field 'apyy'; did you mean 'apy'?"),
        (long(("a", 0, 1.0)), {"fields": ("tvl_usd",)}, DataError, "no column 'tvl_usd'; it has: pool_id, valid_at"),
        (
            long(("a", 0, 1.0)),
            {"max_stale_days": -1},
            UsageError,
            "max_stale_days must be a whole number, 0 or more, not -1",
        ),
        (long((None, 0, 1.0)), {}, DataError, "1 rows of the long table have no pool_id"),
        (long(("a", 0, 1.0)).with_columns(valid_at=1), {}, DataError, "holds Int32, not instants"),
        (
            long(("a", 9, 1.0)),
            {"end": date(2024, 1, 2)},
            DataError,
            "finished day on or before 2024-01-02 and knowable by",
        ),
    ],
)
def test_what_cannot_be_a_panel_is_refused(
    frame: pl.DataFrame, options: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        panel(frame, **options)


def test_times_shapes_and_pools_are_checked() -> None:
    day = np.array(["2024-01-01", "2024-01-02"], dtype="datetime64[D]")
    pools = pl.DataFrame({"pool_id": ["a"]})
    with pytest.raises(DataError, match="strictly increasing"):
        Panel(day[::-1], pools, {"apy": np.zeros((2, 1))})
    with pytest.raises(DataError, match=r"field 'apy' has shape \(1, 2\), not \(times, pools\) = \(2, 1\)"):
        Panel(day, pools, {"apy": np.zeros((1, 2))})
    with pytest.raises(DataError, match="without repetitions"):
        Panel(day, pl.DataFrame({"pool_id": ["a", "a"]}), {"apy": np.zeros((2, 2))})
    with pytest.raises(DataError, match="no field 'tvl'"):
        Panel(day, pools, {"apy": np.zeros((2, 1))}).raw("tvl")


def test_no_array_of_a_panel_can_be_unlocked() -> None:
    panel = Panel(
        np.datetime64("2023-01-01") + np.arange(3),
        pl.DataFrame({"pool_id": ["a", "b"]}),
        {"apy": np.full((3, 2), 0.05)},
    )
    for array in (panel["apy"], panel.raw("apy"), panel.age("apy"), panel.times, panel.head(2)["apy"]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


def test_a_day_that_is_not_over_is_left_out_even_as_of_tomorrow() -> None:
    now = datetime.now(UTC)
    frame = pl.DataFrame(
        {
            "pool_id": ["a", "a"],
            "valid_at": [now - timedelta(days=1), now - timedelta(seconds=1)],
            "apy_percent": [1.0, 2.0],
            "tvl_usd": [1.0, 1.0],
        }
    )
    for as_of in (None, now + timedelta(days=2)):
        panel = Panel.from_long(frame, as_of=as_of)
        assert panel.times[-1] == np.datetime64((now - timedelta(days=1)).date(), "us")


def series(*rows: tuple[float, float], name: str = "gas_gwei") -> pl.DataFrame:
    """A series of (days after 1 January 2024, value)."""
    return pl.DataFrame(
        {
            "name": [name] * len(rows),
            "valid_at": [START + timedelta(days=day) for day, _ in rows],
            "value": [value for _, value in rows],
        },
        schema_overrides={"valid_at": schema.UTC, "value": pl.Float64},
    )


FIVE_DAYS = long(("a", 0, 1.0), ("a", 4, 2.0))


def test_a_series_gives_each_row_its_last_value_by_the_end_of_the_day() -> None:
    one = panel(FIVE_DAYS, series=series((0.5, 10.0), (0.9, 11.0), (2.0, 12.0), (2.99, 13.0), (9.0, 99.0)))
    assert one.series("gas_gwei").tolist() == [11.0, 11.0, 13.0, 13.0, 13.0]
    assert one.series_names == ("gas_gwei",)


def test_a_series_is_believed_as_long_as_a_field() -> None:
    one = panel(FIVE_DAYS, series=series((-1.5, 10.0)), max_stale_days=3)
    assert one.series("gas_gwei").tolist()[:2] == [10.0, 10.0]
    assert np.isnan(one.series("gas_gwei")[2:]).all()
    assert one.series("gas_gwei", max_stale_days=30).tolist() == [10.0] * 5


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-5, 5)), max_size=12), st.integers(0, 5))
def test_a_series_is_that_of_the_plain_twin(rows: list[tuple[float, float]], limit: int) -> None:
    frame = series(*rows)
    told = panel(FIVE_DAYS, series=frame, max_stale_days=limit)
    for day in range(5):
        known = [row for row in frame.rows() if row[1] < START + timedelta(days=day + 1)]
        last = max(known, key=lambda row: row[1], default=None)
        if last is None or day - math.floor((last[1] - START).total_seconds() / 86400) > limit:
            assert not rows or np.isnan(told.series("gas_gwei")[day])
        else:
            same = {row[2] for row in known if row[1] == last[1]}
            assert told.series("gas_gwei")[day] in same


def test_a_series_it_does_not_have_is_named_with_the_way_to_get_it() -> None:
    with pytest.raises(DataError, match="no series 'gasgwei'; did you mean 'gas_gwei'"):
        panel(FIVE_DAYS, series=series((0.0, 1.0))).series("gasgwei")


def test_heads_and_digests_know_the_series() -> None:
    one = panel(FIVE_DAYS, series=series((0.0, 1.0), (3.0, 2.0)))
    assert one.head(2).series("gas_gwei").tolist() == [1.0, 1.0]
    assert one.digest() != panel(FIVE_DAYS, series=series((0.0, 1.0), (3.0, 2.5))).digest()
    assert one.digest() != panel(FIVE_DAYS).digest()


def test_health_tells_who_came_and_who_left_in_each_year() -> None:
    rows = [("stays", day, 1.0) for day in range(0, 800, 5)] + [("leaves", day, 1.0) for day in range(0, 300, 5)]
    rows += [("late", day, 1.0) for day in range(400, 800, 5)]
    told = panel(long(*rows), as_of=START + timedelta(days=900)).health
    assert told.entering == {"2024": 2, "2025": 1}
    assert told.leaving == {"2024": 1}


def test_a_pool_whose_yields_are_masked_has_not_left() -> None:
    apy = np.full((400, 2), 0.05)
    apy[np.arange(400) % 4 != 0, 1] = np.nan
    apy[350:, 1][~np.isnan(apy[350:, 1])] = 0.9
    one = Panel(np.datetime64("2024-01-01") + np.arange(400), pl.DataFrame({"pool_id": ["a", "b"]}), {"apy": apy})
    for spikes in SPIKES:
        told = prepare(one, {**DEFAULTS, "spikes": spikes}).health
        assert (told.masked > 0) is (spikes == "mask")
        assert (told.entering, told.leaving) == ({"2024": 2}, {}), spikes
    masked = prepare(one, {**DEFAULTS, "spikes": "mask"})
    assert masked.head(395).health.leaving == {}
    assert masked.with_max_stale_days(9).health.leaving == {}
    assert masked.with_fields({"apy": masked.raw("apy")}).health.leaving == {"2024": 1}  # what is given is final
    with pytest.raises(ValueError, match="read-only"):
        masked.listed()[0, 0] = 1.0


def test_health_counts_what_was_cleaned() -> None:
    one = panel(FIVE_DAYS)
    told = one.with_cleaned_apy(np.full((5, 1), 0.01), masked=2).with_cleaned_apy(np.full((5, 1), 0.01), winsorized=1)
    assert (told.health.masked, told.health.winsorized, told.health.masked_share) == (2, 1, 0.4)
