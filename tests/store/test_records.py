"""Tables of facts beside the observations: appended whole, read whole, seen in SQL, covered by one lock."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from yieldlab.errors import DataError
from yieldlab.store import RECORDS, Store

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def pin(pool: str) -> pl.DataFrame:
    return pl.DataFrame(
        {"watchlist": ["mine"], "entry": ["aave-v3/Ethereum/USDC"], "pool_id": [pool], "pinned_at": NOW}
    )


@pytest.mark.parametrize("name", RECORDS)
def test_a_table_never_written_is_empty_and_has_its_columns(tmp_path: Path, name: str) -> None:
    frame = Store(tmp_path).recorded(name)
    assert frame.is_empty()
    assert frame.schema == RECORDS[name]
    assert list(tmp_path.iterdir()) == []


def test_records_come_back_as_they_went_in(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.record("pins", pin("a"))
    store.record("pins", pin("b").select("pool_id", "pinned_at", "entry", "watchlist"))
    assert (
        Store(tmp_path)
        .recorded("pins")
        .sort("pool_id")
        .equals(pl.concat([pin("a"), pin("b")]).cast(dict(RECORDS["pins"])).select(RECORDS["pins"].names()))
    )
    assert store.recorded("pins", columns=["pool_id"])["pool_id"].sort().to_list() == ["a", "b"]


def test_no_rows_commit_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.record("pins", pin("a").clear())
    assert not (tmp_path / "tables" / "pins").exists()


def test_rows_without_a_column_are_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rows of pins need a column 'pinned_at'"):
        Store(tmp_path).record("pins", pin("a").drop("pinned_at"))


def test_writes_inside_one_lock_shut_others_out(tmp_path: Path) -> None:
    store, other, order = Store(tmp_path), Store(tmp_path), []

    def late() -> None:
        other.record("pins", pin("late"))
        order.append("late")

    thread = threading.Thread(target=late)
    with store.writing():
        thread.start()
        store.record("pins", pin("a"))
        thread.join(timeout=0.3)
        assert thread.is_alive()
        store.record("pins", pin("b"))
        order.append("first")
    thread.join()
    assert order == ["first", "late"]
    assert store.recorded("pins").height == 3


def test_records_are_seen_in_sql_and_compacted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    metrics = pl.DataFrame({"pool_id": ["a"], "valid_at": [NOW], "apy_percent": [1.0]})
    store.append(metrics, pl.DataFrame({"pool_id": ["a"]}))
    for number in range(3):
        store.record("pins", pin(f"p{number}"))
    assert store.sql("SELECT count(*) AS n FROM pins")["n"].item() == 3
    assert store.sql("SELECT count(*) AS n FROM polls")["n"].item() == 0
    compacted = store.compact()
    assert compacted.before["pins"].files == 3
    assert compacted.after["pins"].files == 1
    assert store.recorded("pins").height == 3
