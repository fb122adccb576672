"""Forecasts cross to a panel cell by cell, none that knew its own day, and the panel remembers whose they are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yieldlab import schema
from yieldlab.errors import DataError, UsageError
from yieldlab.market import DEFAULTS, prepare
from yieldlab.panel import Panel
from yieldlab.report.results import data_line

START = datetime(2024, 1, 1, tzinfo=UTC)
LATE = datetime(2024, 6, 1, tzinfo=UTC)


def day(number: float) -> datetime:
    return START + timedelta(days=number)


def observed(*cells: tuple[str, int, float]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "pool_id": [pool for pool, _, _ in cells],
            "valid_at": [day(number) for _, number, _ in cells],
            "apy_percent": [value for _, _, value in cells],
        }
    )


OBSERVED = observed(*((pool, number, 5.0 + number) for pool in ("a", "b") for number in range(6)))


def forecasts(*cells: tuple[str, int, float | None, float | None], run_id: str = "r1") -> pl.DataFrame:
    """Rows of (pool, day, prediction, day trained through)."""
    return pl.DataFrame(
        {
            "pool_id": [cell[0] for cell in cells],
            "valid_at": [day(cell[1]) for cell in cells],
            "prediction": pl.Series([cell[2] for cell in cells], dtype=pl.Float64),
            "trained_through": pl.Series(
                [None if cell[3] is None else day(cell[3]) for cell in cells], dtype=schema.UTC
            ),
        }
    ).with_columns(
        pl.lit(run_id).alias("run_id"),
        pl.lit("lstm").alias("model"),
        pl.lit(LATE).alias("created_at"),
        pl.lit(7).alias("horizon_days"),
    )


def panel(rows: pl.DataFrame, frame: pl.DataFrame = OBSERVED, **options: Any) -> Panel:
    given = {"fields": ("apy", "forecast_lstm"), "as_of": LATE, "forecasts": {"forecast_lstm": rows}}
    return Panel.from_long(frame, **{**given, **options})


cells = st.tuples(
    st.sampled_from(["a", "b", "ä", "gone"]),
    st.integers(-3, 12),
    st.sampled_from([None, np.nan, 0.0, -0.5, 0.07, 3.0]),
    st.integers(1, 5),
)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from(["b", "a", "ä"]), st.integers(0, 9)), min_size=1, max_size=20, unique=True),
    st.lists(cells, min_size=1, max_size=30, unique_by=lambda cell: cell[:2]),
    st.integers(0, 4),
)
def test_each_prediction_stands_on_its_own_day_and_pool(
    rows: list[tuple[str, int]], told: list[tuple[str, int, float | None, int]], stale: int
) -> None:
    """Against a loop over the cells of a panel made without the forecasts."""
    frame = observed(*((pool, number, 1.0) for pool, number in rows))
    plain = Panel.from_long(frame, fields=("apy",), as_of=LATE)
    expected = np.full(plain.shape, np.nan)
    for t, stamp in enumerate(plain.times):
        for n, pool in enumerate(plain.pool_ids):
            for other, number, value, _ in told:
                if other == pool and np.datetime64(day(number).replace(tzinfo=None)) == stamp and value is not None:
                    expected[t, n] = value
    given_rows = forecasts(*((pool, number, value, number - before) for pool, number, value, before in told))
    if np.isnan(expected).all():
        with pytest.raises(DataError, match="run r1 has no prediction of forecast_lstm for a pool and a day"):
            panel(given_rows, frame)
        return
    made = panel(given_rows, frame, max_stale_days=stale)
    np.testing.assert_array_equal(made.raw("forecast_lstm"), expected)
    np.testing.assert_array_equal(made.raw("apy"), plain.raw("apy"))
    for t in range(made.shape[0]):
        for n in range(made.shape[1]):
            back = [value for value in expected[max(0, t - stale) : t + 1, n] if not np.isnan(value)]
            assert np.array_equal(made["forecast_lstm"][t, n], back[-1] if back else np.nan, equal_nan=True)


@pytest.mark.parametrize(
    ("trained", "sentence"),
    [
        (3, "for pool 'b' on 2024-01-04 was trained through 2024-01-04; that must be a day before it"),
        (3.9, "for pool 'b' on 2024-01-04 was trained through 2024-01-04"),
        (9, "for pool 'b' on 2024-01-04 was trained through 2024-01-10"),
        (None, "for pool 'b' on 2024-01-04 has no day that it was trained through"),
    ],
)
def test_a_prediction_whose_model_knew_its_day_is_refused(trained: float | None, sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        panel(forecasts(("a", 3, 0.1, 2), ("b", 3, 0.1, trained)))
    assert str(caught.value).startswith("the model behind the prediction of forecast_lstm ")
    assert sentence in str(caught.value)
    assert panel(forecasts(("a", 3, 0.1, 2), ("b", 3, 0.1, 2.9))).raw("forecast_lstm")[3].tolist() == [0.1, 0.1]


def test_rows_that_are_no_forecast_of_one_run_are_refused() -> None:
    with pytest.raises(DataError, match=r"forecast_lstm has two predictions for pool 'b' on 2024-01-03"):
        panel(forecasts(("a", 1, 0.1, 0), ("b", 2, 0.1, 0), ("b", 2, 0.2, 1)))
    with pytest.raises(DataError, match="the predictions of forecast_lstm are of 2 runs"):
        panel(pl.concat([forecasts(("a", 1, 0.1, 0)), forecasts(("a", 2, 0.1, 0), run_id="r2")]))
    with pytest.raises(DataError, match="no column 'trained_through'"):
        panel(forecasts(("a", 1, 0.1, 0)).drop("trained_through"))
    with pytest.raises(UsageError, match="'forecast_gru' is written by a model; give its rows"):
        panel(forecasts(("a", 1, 0.1, 0)), fields=("apy", "forecast_gru"))


ROWS = forecasts(("a", 2, 0.1, 0), ("b", 2, 0.2, 0), ("a", 4, 0.3, 3))


def test_the_run_of_a_field_stays_with_it_until_the_field_is_replaced() -> None:
    made = panel(ROWS)
    origin = made.forecasts["forecast_lstm"]
    assert (origin.run_id, origin.horizon_days, origin.first_trained, origin.last_trained) == (
        "r1", 7, "2024-01-01", "2024-01-04",
    )  # fmt: skip
    kept = (
        made.head(3),
        made.with_max_stale_days(0),
        made.with_rates("quoted"),
        made.with_series({}),
        made.with_fields({"apy": made.raw("apy"), "mine": made.raw("apy")}),
        made.with_cleaned_apy(made.raw("apy"), masked=1),
        prepare(made, {**DEFAULTS, "spikes": "mask"}),
    )
    for other in kept:
        assert other.forecasts == other.health.forecasts == {"forecast_lstm": origin}
    assert made.with_fields({"forecast_lstm": made.raw("apy")}).forecasts == {}
    assert Panel.from_long(OBSERVED, fields=("apy",), as_of=LATE).health.as_dict()["forecasts"] == {}


def test_a_head_and_a_digest_know_the_forecasts() -> None:
    made = panel(ROWS)
    assert made.head(3).digest() == panel(ROWS[:2], OBSERVED.filter(pl.col("valid_at") < day(3))).digest()
    others = (
        panel(ROWS.with_columns(pl.col("prediction") * 2)),
        panel(ROWS[:2]),
        Panel.from_long(OBSERVED, fields=("apy",), as_of=LATE),
    )
    assert len({made.digest(), *(other.digest() for other in others)}) == 4
    assert panel(ROWS.with_columns(pl.lit("r2").alias("run_id"))).digest() == made.digest(), "the input is the same"


def test_persistence_is_the_apy_however_the_panel_reads_it() -> None:
    made = panel(ROWS, fields=("forecast_persistence", "forecast_lstm"))
    assert set(made.fields) == {"apy", "forecast_lstm", "forecast_persistence"}
    assert made.head(2).fields == made.fields
    cleaned = made.with_cleaned_apy(made.raw("apy") / 2, winsorized=1)
    for each in (made, made.head(3), made.with_max_stale_days(0), cleaned):
        np.testing.assert_array_equal(each.raw("forecast_persistence"), each.raw("apy"))
        np.testing.assert_array_equal(each["forecast_persistence"], each["apy"])
    own = made.with_fields({"forecast_persistence": np.zeros(made.shape)})
    assert own.raw("forecast_persistence").max() == 0.0
    assert sorted(own.fields) == sorted(made.fields)
    plain = panel(ROWS)
    assert "forecast_persistence" not in plain.fields
    assert plain.raw("forecast_persistence").tolist() == plain.raw("apy").tolist()
    bare = Panel(plain.times, plain.pools, {"tvl_usd": plain.raw("apy")})
    with pytest.raises(DataError, match="the panel has no field 'forecast_persistence'"):
        bare.raw("forecast_persistence")


def test_the_data_line_tells_the_run_and_how_far_its_models_had_learned() -> None:
    line = data_line(panel(ROWS).health.as_dict())
    assert "; forecast_lstm for 2024-01-03 to 2024-01-05, of run r1, trained through 2024-01-01 to 2024-01-04; " in line
    assert ", of run r1, trained through 2024-01-01; " in data_line(panel(ROWS[:2]).health.as_dict())
    assert "forecast" not in data_line(Panel.from_long(OBSERVED, fields=("apy",), as_of=LATE).health.as_dict())
