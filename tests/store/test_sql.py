"""SQL reads the two views and nothing else, and what it refuses it refuses in one line."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import polars as pl
import pytest

from yieldlab.errors import UsageError
from yieldlab.store import Store
from yieldlab.store._sql import _check


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two pools; the second fetch corrects one row and one description."""
    store = Store(tmp_path_factory.mktemp("store") / "data")
    rows = pl.DataFrame(
        {"pool_id": ["a", "b"], "valid_at": [datetime(2024, 1, 1, 12, tzinfo=UTC)] * 2, "apy_percent": [1.0, 2.0]}
    )
    store.append(rows, pl.DataFrame({"pool_id": ["a", "b"], "symbol": ["USDC", "DAI"]}))
    store.append(rows[1:].with_columns(apy_percent=3.0), pl.DataFrame({"pool_id": ["b"], "symbol": ["WETH"]}))
    return store


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("SELECT pool_id, apy_percent FROM yield_metrics ORDER BY 1", [("a", 1.0), ("b", 3.0)]),
        ("select symbol from assets order by pool_id;", [("USDC",), ("WETH",)]),
        ("WITH x AS (SELECT max(apy_percent) AS m FROM yield_metrics) FROM x -- and that is all", [(3.0,)]),
        ("SELECT symbol, avg(apy_percent) FROM yield_metrics JOIN assets USING (pool_id) GROUP BY 1 ORDER BY 1", None),
        ("SELECT DISTINCT valid_at FROM yield_metrics", [(datetime(2024, 1, 1, 12, tzinfo=UTC),)]),
        ("SELECT valid_at::DATE::VARCHAR AS d FROM yield_metrics LIMIT 1", [("2024-01-01",)]),
        ("SELECT count(*) AS n FROM (DESCRIBE yield_metrics)", [(12,)]),
        ("SUMMARIZE assets", None),
        ("VALUES (1), (2)", [(1,), (2,)]),
        ("SELECT 1 AS x; -- and that is all", [(1,)]),
        ("SELECT 'é' AS x -- so\n; /* it; */ ; -- ends; here\n", [("é",)]),
        ("SELECT ';-- x' AS x", [(";-- x",)]),
        ("SELECT apy_percent FROM yield_metrics WHERE false", []),
    ],
)
def test_a_select_is_answered_from_the_latest_revisions(store: Store, query: str, rows: list[tuple] | None) -> None:
    answer = store.sql(query)
    assert rows is None or answer.rows() == rows


REFUSED = {
    "a file": "SELECT * FROM read_text('/etc/passwd')",
    "a file by its name": "SELECT * FROM '/etc/passwd'",
    "a blob": "SELECT * FROM read_blob('/etc/passwd')",
    "a csv": "SELECT * FROM read_csv('/etc/passwd', sep=':')",
    "a sniffed csv": "SELECT * FROM sniff_csv('/etc/passwd')",
    "parquet metadata": "SELECT * FROM parquet_metadata('/etc/passwd')",
    "a folder": "SELECT * FROM glob('/etc/*')",
    "a way up from an allowed file": "SELECT * FROM read_text('{file}/../../../secret.txt')",
    "a neighbour of an allowed file": "SELECT * FROM read_text('{folder}/secret.txt')",
    "the network": "SELECT * FROM read_parquet('https://example.com/a.parquet')",
    "s3": "SELECT * FROM 's3://bucket/a.parquet'",
    "secrets": "FROM duckdb_secrets()",
    "the environment": "SELECT getenv('HOME')",
    "a variable of the program": "SELECT * FROM files",
    "copy": "COPY (SELECT 1) TO '{folder}/out.csv'",
    "copy from": "COPY assets FROM '/etc/passwd'",
    "copy over a table": "COPY (SELECT 1) TO '{file}' (FORMAT parquet)",
    "copy over a table, hidden": "WITH x AS (COPY (SELECT 1) TO '{file}' (FORMAT parquet)) SELECT * FROM x",
    "copy, hidden deeper": "SELECT * FROM (WITH x AS (COPY (SELECT 1) TO '{file}') SELECT 7)",
    "copy, hidden in a text": "FROM query('WITH x AS (COPY (SELECT 1) TO ''{file}'') SELECT 7')",
    "copy, hidden behind a bracket": "SELECT 1) AS q, (WITH x AS (COPY (SELECT 1) TO '{file}') SELECT 7",
    "copy, explained": "EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}'",
    "export": "EXPORT DATABASE '{folder}/out'",
    "attach": "ATTACH '{folder}/other.db' AS other",
    "attach a file": "ATTACH '/etc/passwd' AS other",
    "install": "INSTALL httpfs",
    "load": "LOAD httpfs",
    "a setting": "SET enable_external_access = true",
    "a setting unlocked": "SET lock_configuration = false",
    "a reset": "RESET allowed_paths",
    "a pragma": "PRAGMA enable_external_access",
    "a table": "CREATE TABLE t AS SELECT 1",
    "an insert": "INSERT INTO assets VALUES ('x')",
    "an insert, hidden": "WITH x AS (INSERT INTO assets VALUES ('x') RETURNING *) SELECT * FROM x",
    "a delete": "DELETE FROM yield_metrics",
    "a drop": "DROP VIEW assets",
    "a second statement": "SELECT 1; COPY (SELECT 1) TO '{folder}/out.csv'",
    "a second statement behind a comment": "SELECT 1; -- x\nCOPY (SELECT 1) TO '{folder}/out.csv'",
    "copy, hidden before a comment": "WITH x AS (COPY (SELECT 1) TO '{file}') SELECT 7 AS y; -- x",
    "two statements": "SELECT 1; SELECT 2",
    "nothing": "  ;  ",
    "a comment": "-- nothing",
    "no SQL": "SELEC 1",
    "an unknown column": "SELECT apy FROM yield_metrics",
    "an unknown table": "SELECT * FROM metrics",
    "a bad cast": "SELECT CAST(pool_id AS INT) FROM assets",
    "a parameter": "SELECT ?",
    "an interval": "SELECT INTERVAL 1 DAY AS i",
}


@pytest.mark.parametrize("what", REFUSED)
def test_all_else_is_refused_in_one_line_and_leaves_no_trace(store: Store, what: str) -> None:
    folder = store.folder / "tables" / "yield_metrics"
    (folder / "secret.txt").write_text("secret")
    (store.folder / "secret.txt").write_text("secret")
    before = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}
    query = REFUSED[what].format(file=sorted(folder.glob("*.parquet"))[0], folder=folder)
    with pytest.raises(UsageError) as caught:
        store.sql(query)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 450
    assert "secret\n" not in sentence
    assert {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("query", ["WITH x AS (COPY (SELECT 1) TO '{}') FROM x", "COPY (SELECT 1) TO '{}'"])
def test_the_guard_alone_stops_a_copy_that_duckdb_would_do(tmp_path: Path, query: str) -> None:
    query = query.format(tmp_path / "out.csv")
    connection = duckdb.connect(":memory:")
    with pytest.raises((duckdb.BinderException, UsageError)):
        _check(connection, query)
    assert not (tmp_path / "out.csv").exists()
    connection.execute(query)
    assert (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("a file", "a query reads the views of the tables and no file, network or extension"),
        ("attach", "only a SELECT is answered here, not ATTACH: the tables are read-only"),
        ("copy", "only a SELECT is answered here, not COPY"),
        ("install", "only a SELECT is answered here, not INSTALL"),
        ("two statements", "give one SQL statement, not 2"),
        ("no SQL", 'the SQL query failed: Parser Error: syntax error at or near "SELEC"'),
        ("an unknown column", 'Referenced column "apy" not found'),
        ("an interval", "cast it to VARCHAR"),
    ],
)
def test_a_refusal_names_its_reason(store: Store, what: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        store.sql(REFUSED[what].format(folder="/tmp"))
    assert sentence in str(caught.value)


def test_a_store_without_descriptions_still_has_both_views(tmp_path: Path) -> None:
    import shutil

    store = Store(tmp_path)
    row = pl.DataFrame({"pool_id": ["a"], "valid_at": [datetime(2024, 1, 1, tzinfo=UTC)], "apy_percent": [1.0]})
    store.append(row, row.select("pool_id"))
    shutil.rmtree(tmp_path / "tables" / "assets")
    assert store.sql("SELECT count(*) AS n FROM assets")["n"].item() == 0
    assert store.sql("SELECT count(*) AS n FROM yield_metrics")["n"].item() == 1
