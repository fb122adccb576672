"""`data ...` and `sql` on real stores."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_the_sample_is_labelled_and_adds_nothing_twice(yieldlab, empty: Path) -> None:
    first = yieldlab("data", "sample")
    assert first.code == 0
    assert "SYNTHETIC" in first.out
    assert "13,396 observations of 12 pools, 13,396 of them new" in first.out
    assert yieldlab("data", "sample", "--json").document["data"]["appended"]["new"] == 0


def test_a_sample_of_any_size(yieldlab, empty: Path) -> None:
    told = yieldlab("data", "sample", "--pools", "30", "--days", "40", "--json")
    assert told.code == 0
    assert told.document["data"]["pools"] == 30
    assert yieldlab("data", "sample", "--pools", "30").code == 2


def test_the_list_shows_pools_and_versions(yieldlab, lab: Path) -> None:
    told = yieldlab("data", "list")
    assert told.code == 0
    assert "curve-3pool" in told.out
    assert "SYNTHETIC" in told.out
    document = yieldlab("data", "list", "--json").document
    assert len(document["data"]["pools"]) == 12
    assert document["data"]["tables"]["yield_metrics"]["rows"] == 13_396


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "list"],
        ["data", "check"],
        ["data", "compact"],
        ["sql", "SELECT 1"],
        ["backtest", "highest_apy", "--strategies", "."],
        ["sweep", "run", "highest_apy", "--strategies", "."],
    ],
)
def test_without_data_every_command_says_how_to_get_some(yieldlab, empty: Path, arguments: list[str]) -> None:
    import shutil

    from yieldlab.strategy import bundled_folder

    shutil.copy(bundled_folder() / "highest_apy.py", empty)
    told = yieldlab(*arguments)
    assert (told.code, told.out) == (3, "")
    assert "run `yieldlab data import FILE` or `yieldlab data sample`" in told.err
    assert not (empty / "data").exists()


def test_a_corrupt_table_is_a_data_error(yieldlab, lab: Path) -> None:
    for path in (lab / "data" / "tables" / "yield_metrics").glob("*.parquet"):
        path.write_bytes(path.read_bytes()[:100])
    for arguments in (["data", "list"], ["sql", "SELECT count(*) FROM yield_metrics"], ["backtest", "highest_apy"]):
        told = yieldlab(*arguments)
        assert told.code == 3, told.err
        assert told.err.count("\n") == 1


def test_sql_answers_and_cannot_write(yieldlab, lab: Path) -> None:
    told = yieldlab("sql", "SELECT protocol, count(*) AS pools FROM assets GROUP BY protocol ORDER BY protocol")
    assert told.code == 0
    assert "aave-v3" in told.out
    document = yieldlab("sql", "SELECT count(*) AS n FROM yield_metrics", "--json").document
    assert document["data"]["rows"] == [{"n": 13_396}]
    for query in ("SELCT 1", "DROP VIEW assets", "COPY assets TO 'x.csv'", "SELECT * FROM 'yieldlab.toml'"):
        told = yieldlab("sql", query)
        assert told.code == 2, query
        assert told.err.count("\n") == 1
    assert not (lab / "x.csv").exists()


def test_sql_shows_a_thousand_rows_unless_told_otherwise(yieldlab, lab: Path) -> None:
    told = yieldlab("sql", "SELECT pool_id FROM yield_metrics")
    assert "1,000 of 13,396 rows are shown" in told.err
    assert told.out.count("\n") < 1_010
    assert (
        len(yieldlab("sql", "SELECT pool_id FROM yield_metrics", "--limit", "0", "--json").document["data"]["rows"])
        > 13_000
    )


def test_compact_keeps_every_row(yieldlab, lab: Path) -> None:
    told = yieldlab("data", "compact", "--json")
    assert told.code == 0
    assert told.document["data"]["after"]["yield_metrics"]["rows"] == 13_396
