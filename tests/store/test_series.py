"""Series beside the pools follow the rules of observations: only added, revised, and read as they were known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import yieldlab.store
from yieldlab import schema
from yieldlab.errors import DataError
from yieldlab.store import Store

START = datetime(2024, 1, 1, tzinfo=UTC)
FETCHED = datetime(2024, 6, 1, tzinfo=UTC)


def day(number: float) -> datetime:
    return START + timedelta(days=number)


def rows(*told: tuple[str, float, float | None], **columns: list[object]) -> pl.DataFrame:
    """Rows of (series, day, value), and whole columns by name."""
    return pl.DataFrame(
        {
            "name": [row[0] for row in told],
            "valid_at": [day(row[1]) for row in told],
            "value": [row[2] for row in told],
            **columns,
        },
        schema_overrides={n: t for n, t in schema.SERIES.items() if n in columns or n == "value"},
    )


def values(frame: pl.DataFrame) -> list[tuple[str, float, float]]:
    days = [(instant - START) / timedelta(days=1) for instant in frame["valid_at"]]
    return list(zip(frame["name"], days, frame["value"], strict=True))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def test_a_store_without_series_has_none(store: Store) -> None:
    assert store.series().is_empty()
    assert store.series().schema == schema.SERIES
    assert store.series_names() == []
    with pytest.raises(DataError, match="there are no rows to store"):
        store.append_series(rows())
    assert not store.folder.exists()


def test_the_same_rows_again_add_nothing(store: Store) -> None:
    told = rows(("gas", 1, 20.0), ("gas", 0, 10.0), ("eth", 0, 3000.0))
    first = store.append_series(told)
    assert (first.new, first.revised, first.unchanged, first.pools_new) == (3, 0, 0, 2)
    again = store.append_series(told)
    assert (again.new, again.revised, again.unchanged, again.pools_new) == (0, 0, 3, 0)
    assert again.version == first.version
    assert values(store.series()) == [("eth", 0.0, 3000.0), ("gas", 0.0, 10.0), ("gas", 1.0, 20.0)]
    assert store.series_names() == ["eth", "gas"]


def test_a_change_is_known_from_its_fetching_and_the_first_value_from_its_instant(store: Store) -> None:
    store.append_series(rows(("gas", 0, 10.0)), now=FETCHED)
    changed = store.append_series(rows(("gas", 0, 11.0)), now=FETCHED + timedelta(days=1))
    assert (changed.new, changed.revised) == (0, 1)
    assert values(store.series()) == [("gas", 0.0, 11.0)]
    assert values(store.series(as_of=FETCHED)) == [("gas", 0.0, 10.0)]
    assert store.series(as_of=day(-1)).is_empty()


def test_series_of_one_name_do_not_touch_those_of_another(store: Store) -> None:
    store.append_series(rows(("a", 0, 1.0), ("b", 0, 1.0)), now=FETCHED)
    assert store.append_series(rows(("b", 0, 2.0)), now=FETCHED + timedelta(1)).revised == 1
    assert values(store.series()) == [("a", 0.0, 1.0), ("b", 0.0, 2.0)]


def test_a_row_needs_a_name_an_instant_and_a_value_column(store: Store) -> None:
    with pytest.raises(DataError, match="need a column 'value'; they have name, valid_at"):
        store.append_series(rows(("a", 0, 1.0)).drop("value"))
    with pytest.raises(DataError, match="1 of the rows to store have no name"):
        store.append_series(rows(("a", 0, 1.0), (None, 1, 1.0)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="1 of the rows to store have an observed_at before their valid_at"):
        store.append_series(rows(("a", 0, 1.0), observed_at=[day(-1)]))
    assert not store.folder.exists()


def test_a_cutoff_covers_series_and_conventions(store: Store) -> None:
    """What a run reads is what was stored by its cutoff; a series imported after the pools must be under it."""
    metrics = pl.DataFrame({"pool_id": ["p"], "valid_at": [day(0)], "apy_percent": [5.0]})
    store.append(metrics, metrics.select("pool_id"), now=FETCHED)
    store.append_series(rows(("gas", 0, 10.0)), now=FETCHED + timedelta(hours=1))
    assert store.panel(ingested_by=store.cutoff()).series("gas").tolist() == [10.0]
    before = store.cutoff()
    # A clock that stands still, or runs back, must not put later rows under an earlier cutoff.
    store.append_series(rows(("gas", 0, 99.0)), now=FETCHED)
    assert store.cutoff() > before
    assert values(store.series(ingested_by=before)) == [("gas", 0.0, 10.0)]
    assert store.panel(ingested_by=store.cutoff()).series("gas").tolist() == [99.0]
    assert store.stamp(FETCHED) > store.cutoff()
    assert store.stamp(store.cutoff() + timedelta(days=1)) == store.cutoff() + timedelta(days=1)


@settings(deadline=None, max_examples=15)
@given(
    fetches=st.lists(
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    ),
    batch=st.integers(1, 4),
)
def test_a_store_remembers_what_each_fetch_knew(
    fetches: list[list[tuple[str, int, int]]], batch: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Against a dictionary that is copied after each fetch."""
    store = Store(tmp_path_factory.mktemp("store"))
    known: dict[tuple[str, int], float] = {}
    told: list[tuple[datetime, datetime, dict[tuple[str, int], float]]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yieldlab.store._compare, "BATCH_ROWS", batch)
        for number, fetched in enumerate(fetches):
            last = {(name, at): float(value) for name, at, value in fetched}
            now = FETCHED + timedelta(days=number)
            appended = store.append_series(rows(*((n, a, v) for (n, a), v in last.items())), now=now)
            assert appended.new == len(last.keys() - known.keys())
            assert appended.revised == sum(known.get(key, value) != value for key, value in last.items())
            assert appended.new + appended.revised + appended.unchanged == len(last)
            known.update(last)
            told.append((now, store.cutoff(), known.copy()))
    for now, cutoff, then in told:
        read = store.series(as_of=now, ingested_by=cutoff)
        assert {(name, int(at)): value for name, at, value in values(read)} == then
