"""Forecasts are rows like others: only added, those of a finished run only, and read as they were known."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from yieldlab import schema
from yieldlab.errors import DataError, UsageError
from yieldlab.runs import describe
from yieldlab.store import Store
from yieldlab.store._tables import Table

START = datetime(2024, 1, 1, tzinfo=UTC)
FETCHED = datetime(2024, 6, 1, tzinfo=UTC)
POOLS, DAYS = ("a", "b"), 10


def day(number: float) -> datetime:
    return START + timedelta(days=number)


def told(
    value: float, *, field: str = "forecast_lstm", days: Iterable[int] = range(4, 8), trained: float = 3
) -> pl.DataFrame:
    """The same prediction for both pools on these days, by a model trained through day `trained`."""
    cells = [(pool, number) for number in days for pool in POOLS]
    return pl.DataFrame(
        {
            "field": [field] * len(cells),
            "pool_id": [pool for pool, _ in cells],
            "valid_at": [day(number) for _, number in cells],
            "prediction": [value] * len(cells),
            "trained_through": [day(trained)] * len(cells),
        }
    )


def run(model: str = "lstm", **other: object) -> dict[str, object]:
    return {"model": model, "horizon_days": 7, "settings_hash": "abc", **other}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two pools over ten days at 5 % and 6 %, the second without its row of day 5."""
    made = Store(tmp_path / "data")
    cells = [(pool, number) for pool in POOLS for number in range(DAYS) if (pool, number) != ("b", 5)]
    rows = pl.DataFrame(
        {
            "pool_id": [pool for pool, _ in cells],
            "valid_at": [day(number) for _, number in cells],
            "apy_percent": [5.0 if pool == "a" else 6.0 for pool, _ in cells],
            "tvl_usd": [1e6] * len(cells),
        }
    )
    made.append(rows, rows.select("pool_id").unique(), now=FETCHED)
    return made


FIELDS = ("apy", "forecast_lstm")


def seen(store: Store, **limits: datetime) -> list[float]:
    """What a panel has of the forecast on the days 4 to 7, for the first pool."""
    return store.panel(fields=FIELDS, **limits).raw("forecast_lstm")[4:8, 0].tolist()


def test_what_was_added_is_read_back_and_its_run_is_told(store: Store) -> None:
    before = store.cutoff()
    rows = pl.concat([told(0.04), told(0.05, days=[8], trained=5)]).sample(fraction=1.0, shuffle=True, seed=1)
    row = store.add_forecasts(rows, run())
    assert row["created_at"] > before
    assert row["known_at"] == row["created_at"]
    assert (row["first"], row["last"], row["first_trained"], row["last_trained"]) == (day(4), day(8), day(3), day(5))
    assert (row["model"], row["fields"], row["horizon_days"], row["pools"], row["rows"]) == (
        "lstm", "forecast_lstm", 7, 2, 10,
    )  # fmt: skip
    assert store.forecast_runs().rows(named=True) == [row]
    assert store.forecast_runs().schema == schema.FORECAST_RUNS
    read = store.forecasts(row["run_id"])
    assert read.schema == schema.FORECASTS
    assert read.select(rows.columns).equals(rows.cast({"valid_at": schema.UTC}).sort("field", "pool_id", "valid_at"))
    panel = store.panel(fields=FIELDS)
    assert panel.fields == FIELDS
    assert panel.raw("forecast_lstm")[:, 0].tolist() == pytest.approx(
        [*[np.nan] * 4, *[0.04] * 4, 0.05, np.nan], nan_ok=True
    )
    assert panel["forecast_lstm"][9].tolist() == [0.05, 0.05], "a prediction is carried as any field is"
    origin = panel.forecasts["forecast_lstm"]
    assert (origin.run_id, origin.model, origin.horizon_days) == (row["run_id"], "lstm", 7)
    assert (origin.first, origin.last, origin.first_trained, origin.last_trained) == (
        "2024-01-05", "2024-01-09", "2024-01-04", "2024-01-06",
    )  # fmt: skip
    assert origin.created_at == row["created_at"].isoformat()


def test_the_latest_finished_run_that_has_the_field_answers(store: Store) -> None:
    store.add_forecasts(told(0.01), run())
    store.add_forecasts(pl.concat([told(0.02), told(2.0, field="risk_class")]), run(run_id="both"))
    store.add_forecasts(told(1.0, field="risk_class"), run("risk", run_id="risk"))
    assert seen(store) == [0.02] * 4
    panel = store.panel(fields=("apy", "risk_class", "forecast_lstm"))
    assert panel.fields == ("apy", "risk_class", "forecast_lstm")
    assert panel.raw("risk_class")[4].tolist() == [1.0, 1.0]
    assert {name: origin.run_id for name, origin in panel.forecasts.items()} == {
        "risk_class": "risk",
        "forecast_lstm": "both",
    }
    assert store.forecasts("both", "risk_class")["prediction"].unique().to_list() == [2.0]


def test_a_run_killed_before_its_end_is_never_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies between its rows and the fact that it is done; another run then takes the same name."""
    store.add_forecasts(told(0.01), run(run_id="first"))
    whole = Table.append

    def dying(table: Table, rows: pl.DataFrame) -> None:
        if table.name == "forecast_runs":
            raise KeyboardInterrupt
        whole(table, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Table, "append", dying)
        with pytest.raises(KeyboardInterrupt):
            store.add_forecasts(pl.concat([told(0.66), told(0.66, days=[8])]), run(run_id="again"))
    assert store.versions()["forecasts"].rows == 8 + 10, "its rows came first, or the test proves nothing"
    assert store.sql("SELECT count(*) AS n FROM forecasts")["n"].item() == 8
    assert seen(store) == [0.01] * 4
    assert store.forecast_runs()["run_id"].to_list() == ["first"]
    with pytest.raises(UsageError, match="unknown run of forecasts 'again'"):
        store.forecasts("again")
    store.add_forecasts(told(0.02), run(run_id="again"))
    assert store.forecasts("again")["prediction"].to_list() == [0.02] * 8
    assert seen(store) == [0.02] * 4
    assert store.sql("SELECT count(*) AS n, max(prediction) AS p FROM forecasts").row(0) == (16, 0.02)


def test_as_of_chooses_by_what_the_run_was_made_from(store: Store) -> None:
    store.add_forecasts(told(0.01), run(known_at=day(20)))
    store.add_forecasts(told(0.02), run(known_at=day(30)))
    store.add_forecasts(told(0.03), run())
    assert seen(store) == [0.03] * 4
    assert seen(store, as_of=day(31)) == seen(store, as_of=day(30)) == [0.02] * 4
    assert seen(store, as_of=day(29)) == [0.01] * 4
    with pytest.raises(DataError, match=r"known by 2024-01-20T00:00:00\+00:00 has the field 'forecast_lstm'"):
        seen(store, as_of=day(19))


def test_a_read_at_a_cutoff_is_the_same_after_later_runs(store: Store) -> None:
    early = store.cutoff()
    store.add_forecasts(told(0.01), run())
    cutoff = store.cutoff()
    panel = store.panel(fields=FIELDS, ingested_by=cutoff)
    assert cutoff > early
    for value in (0.02, 0.03):
        store.add_forecasts(told(value), run())
        assert store.cutoff() > cutoff
    again = store.panel(fields=FIELDS, ingested_by=cutoff)
    assert again.digest() == panel.digest() != store.panel(fields=FIELDS, ingested_by=store.cutoff()).digest()
    assert again.health.as_dict() == panel.health.as_dict()
    with pytest.raises(DataError, match="no finished run of forecasts stored by"):
        store.panel(fields=FIELDS, ingested_by=early)


def test_a_clock_that_stands_still_puts_no_run_under_an_earlier_cutoff(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.add_forecasts(told(0.01), run())
    cutoff = store.cutoff()
    assert cutoff == first["created_at"]

    class Still(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return FETCHED

    monkeypatch.setattr("yieldlab.store.datetime", Still)
    second = store.add_forecasts(told(0.02), run())
    assert second["created_at"] == cutoff + timedelta(microseconds=1)
    assert seen(store, ingested_by=cutoff) == [0.01] * 4
    rows = pl.DataFrame({"pool_id": ["a"], "valid_at": [day(1)], "apy_percent": [9.0]})
    store.append(rows, rows.select("pool_id"))
    assert store.cutoff() > second["created_at"]
    assert store.panel(ingested_by=second["created_at"]).raw("apy")[1, 0] == 0.05


def test_persistence_is_the_observed_apy_and_needs_no_run(store: Store) -> None:
    panel = store.panel(fields=("tvl_usd", "forecast_persistence"))
    assert set(panel.fields) == {"tvl_usd", "apy", "forecast_persistence"}
    np.testing.assert_array_equal(panel.raw("forecast_persistence"), store.panel().raw("apy"))
    np.testing.assert_array_equal(panel["forecast_persistence"], store.panel()["apy"])
    assert np.isnan(panel.raw("forecast_persistence")[5, 1])
    assert panel.forecasts == {}


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        ("forecast_lstm", "has the field 'forecast_lstm'; `yieldlab models walk-forward lstm` makes one; known: "),
        ("risk_class", "has the field 'risk_class'; `yieldlab models walk-forward risk` makes one; known: "),
        ("forecast_gruu", "walk-forward gruu` makes one; did you mean 'forecast_gru'?"),
        ("risk_prob_higher", "`yieldlab models walk-forward risk` makes one; did you mean 'risk_prob_high'?"),
    ],
)
def test_a_field_of_no_run_is_told_with_the_command_that_makes_it(store: Store, field: str, sentence: str) -> None:
    if field == "risk_class":
        with pytest.raises(DataError, match=r"^no finished run of forecasts has the field 'risk_class'; .* makes one$"):
            store.panel(fields=("apy", field))
    store.add_forecasts(pl.concat([told(0.1, field="forecast_gru"), told(1.0, field="risk_prob_high")]), run("gru"))
    with pytest.raises(DataError) as caught:
        store.panel(fields=("apy", field))
    assert sentence in str(caught.value)


def test_a_field_or_run_that_is_not_there_is_refused_by_name(store: Store) -> None:
    for field in ("forecast_", "forcast_lstm"):
        with pytest.raises(UsageError, match=f"unknown panel field '{field}'"):
            store.panel(fields=("apy", field))
    run_id = store.add_forecasts(told(0.1), run())["run_id"]
    with pytest.raises(UsageError, match=f"unknown run of forecasts '.*'; did you mean '{run_id}'"):
        store.forecasts(str(run_id)[:-1])
    with pytest.raises(UsageError, match="has no forecasts of 'forecast_lst'; did you mean 'forecast_lstm'"):
        store.forecasts(str(run_id), "forecast_lst")


REFUSED = {
    "a column is missing": (told(0.1).drop("trained_through"), run(), "need a column 'trained_through'; they"),
    "infinite": (told(np.inf), run(), "8 of the forecasts .* of forecast_lstm for pool 'a' on 2024-01-05 is infinite"),
    "trained on its day": (told(0.1, trained=4), run(), "2 of .* for pool 'a' on 2024-01-05 is by a model that"),
    "trained later": (told(0.1, trained=30), run(), "8 of the forecasts"),
    "twice": (pl.concat([told(0.1), told(0.2, days=[6])]), run(), "4 of .* for pool 'a' on 2024-01-07 is there twice"),
    "no midnight": (told(0.1).with_columns(pl.col("valid_at").dt.offset_by("1h")), run(), "midnight as valid_at"),
    "no pool": (told(0.1).with_columns(pl.lit(None, pl.String).alias("pool_id")), run(), "8 .* have no pool_id"),
    "no day of training": (
        told(0.1).with_columns(pl.lit(None, schema.UTC).alias("trained_through")), run(), "8 .* no trained_through",
    ),
    "no field of a model": (told(0.1, field="apy"), run(), "begins with forecast_ or risk_, and 'apy' does not"),
    "no name after the prefix": (told(0.1, field="risk_"), run(), "'risk_' does not"),
    "two names": (told(0.1, field="risk_a,risk_b"), run(), "'risk_a,risk_b' does not"),
    "nothing": (told(np.nan), run(), "there are no forecasts to store"),
    "text": (told(0.1).with_columns(pl.lit("high").alias("prediction")), run(), "holds String, not Float64"),
    "no horizon": (told(0.1), {"model": "lstm"}, "a run of forecasts needs 'horizon_days'; it has model"),
    "no whole horizon": (told(0.1), run(horizon_days=1.5), "must be a whole number > 0, not 1.5"),
    "an unknown column": (told(0.1), run(setings_hash="x"), "has no 'setings_hash'; did you mean 'settings_hash'"),
    "a day as text": (told(0.1), run(known_at="2024-01-01"), "known_at of a run of forecasts must be an instant"),
    "known before it was learned": (told(0.1), run(known_at=day(2)), "trained through a later day than 2024-01-03"),
    "a run of that name": (told(0.1), run(run_id="first"), "the run first is stored already"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_and_leaves_no_trace(store: Store, what: str) -> None:
    store.add_forecasts(told(0.01), run(run_id="first"))
    before = store.versions()
    rows, described, sentence = REFUSED[what]
    with pytest.raises(DataError, match=sentence) as caught:
        store.add_forecasts(rows, described)
    assert "\n" not in str(caught.value)
    assert store.versions() == before


def test_a_prediction_that_is_none_is_not_stored_and_days_may_be_dates_or_naive(store: Store) -> None:
    rows = pl.concat([told(0.1, days=[4]), told(np.nan, days=[5])])
    naive = rows.with_columns(pl.col("valid_at").dt.replace_time_zone(None), pl.col("trained_through").dt.date())
    row = store.add_forecasts(naive, run())
    assert (row["rows"], row["last"], row["last_trained"]) == (2, day(4), day(3))
    assert seen(store) == pytest.approx([0.1, np.nan, np.nan, np.nan], nan_ok=True)


def test_tables_of_forecasts_are_compacted_counted_and_seen_in_sql(store: Store) -> None:
    assert store.sql("SELECT count(*) AS n FROM forecasts SEMI JOIN forecast_runs USING (run_id)")["n"].item() == 0
    assert store.forecast_runs().schema == schema.FORECAST_RUNS
    for _ in range(3):
        store.add_forecasts(told(0.1), run())
    assert store.compact().after["forecasts"].files == 1
    assert {name: state.rows for name, state in store.versions().items()} == {
        "assets": 2, "yield_metrics": 19, "forecast_runs": 3, "forecasts": 24,
    }  # fmt: skip
    query = "SELECT r.model, count(*) AS n FROM forecasts f JOIN forecast_runs r USING (run_id) GROUP BY 1"
    assert store.sql(query).rows() == [("lstm", 24)]
    assert seen(store) == [0.1] * 4


def test_the_manifest_of_what_a_panel_is_used_for_names_the_run(store: Store) -> None:
    row = store.add_forecasts(told(0.1), run())
    panel = store.panel(fields=FIELDS)
    manifest = describe("sweep", [], panel, {"capital": 1.0}, trials=1)
    assert manifest.panel_health["forecasts"]["forecast_lstm"] == {
        "run_id": row["run_id"],
        "model": "lstm",
        "created_at": row["created_at"].isoformat(),
        "horizon_days": 7,
        "first": "2024-01-05",
        "last": "2024-01-08",
        "first_trained": "2024-01-04",
        "last_trained": "2024-01-04",
    }
