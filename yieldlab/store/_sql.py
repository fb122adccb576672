"""What does DuckDB answer about the tables, locked into them? The only module that knows duckdb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from yieldlab import schema
from yieldlab.errors import DataError, UsageError

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

#: Table -> what makes a row unique in its view; of several revisions the one that sorts last by these columns is shown.
#: Other tables have all their rows in their view.
REVISED = {
    "assets": (("pool_id",), ("observed_at", "ingested_at")),
    "yield_metrics": (("pool_id", "valid_at"), ("observed_at", "ingested_at")),
    "series": (("name", "valid_at"), ("observed_at", "ingested_at")),
    "conventions": (("project", "valid_from"), ("ingested_at",)),
}

#: View of which table rows are shown only where they have a row in another view, by which columns.
SHOWN_WITH = {"forecasts": "SEMI JOIN forecast_runs USING (run_id, created_at)"}

_SQL_TYPES = {pl.String(): "VARCHAR", pl.Float64(): "DOUBLE", pl.Int64(): "BIGINT", schema.UTC: "TIMESTAMPTZ"}


def answer(query: str, files: Mapping[str, Sequence[Path]], schemas: Mapping[str, pl.Schema]) -> pl.DataFrame:
    """The rows of one SELECT over one view for each table of `files`, which read those files and nothing else.

    Raises UsageError, in one line, for anything but one SELECT and for whatever DuckDB refuses, and DataError when a
    file of the tables cannot be read.
    """
    import duckdb

    connection = duckdb.connect(":memory:", config={"autoinstall_known_extensions": "false"})
    try:
        _lock(connection, files, schemas)
        return _frame(connection.sql(_check(connection, query)).to_arrow_table())
    except duckdb.PermissionException as error:
        raise UsageError(
            f"a query reads the views of the tables and no file, network or extension ({_told(error)})"
        ) from None
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        # Nothing but the store's own files can be opened here.
        if any(path.name in str(error) for paths in files.values() for path in paths):
            raise DataError(f"a file of the tables cannot be read ({_told(error)}); restore it from a copy") from error
        raise UsageError(f"the SQL query failed: {_told(error)}") from None
    except (duckdb.Error, RuntimeError) as error:
        raise UsageError(f"the SQL query failed: {_told(error)}") from None
    finally:
        connection.close()


def _lock(
    connection: duckdb.DuckDBPyConnection, files: Mapping[str, Sequence[Path]], schemas: Mapping[str, pl.Schema]
) -> None:
    """Make the views, then take from the connection everything that they do not need, for good."""
    for view, paths in files.items():
        chosen = f" {SHOWN_WITH[view]}" if view in SHOWN_WITH else ""
        if view in REVISED:
            key, order = (", ".join(names) for names in REVISED[view])
            newest = order.replace(",", " DESC,")
            chosen = f" QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {newest} DESC) = 1"
        connection.execute(
            f"CREATE VIEW {view} AS SELECT * FROM {_source(connection, view, paths, schemas[view])}{chosen}"
        )
    allowed = ", ".join(_quoted(str(path)) for paths in files.values() for path in paths)
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET autoload_known_extensions = false")
    connection.execute("SET temp_directory = ''")
    connection.execute(f"SET allowed_paths = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _source(connection: duckdb.DuckDBPyConnection, view: str, paths: Sequence[Path], columns: pl.Schema) -> str:
    if paths:
        return f"read_parquet([{', '.join(_quoted(str(path)) for path in paths)}])"
    listed = ", ".join(f"{name} {_SQL_TYPES[dtype]}" for name, dtype in columns.items())
    connection.execute(f"CREATE TABLE no_{view} ({listed})")
    return f"no_{view}"


def _check(connection: duckdb.DuckDBPyConnection, query: str) -> str:
    """One statement that only reads, as it may be run: a COPY could overwrite the very files that a query may read."""
    import duckdb

    statements = connection.extract_statements(query)
    if len(statements) != 1:
        raise UsageError(f"give one SQL statement, not {len(statements)}")
    if statements[0].type != duckdb.StatementType.SELECT:
        word = query.split(maxsplit=1)[0].upper()
        raise UsageError(f"only a SELECT is answered here, not {word}: the tables are read-only")
    # A SELECT may hide a COPY, INSERT or DELETE in its WITH clause, but only at the top level: as a subquery it does
    # not bind. EXPLAIN binds and runs nothing.
    checked = _without_its_end(statements[0].query)
    connection.execute(f"EXPLAIN SELECT * FROM (\n{checked}\n)").fetchall()
    return checked


def _without_its_end(statement: str) -> str:
    """The statement without the semicolons and comments that come after it, as DuckDB's own tokens tell them."""
    import duckdb

    text = statement.encode()  # tokens are numbered by byte
    for start, kind in reversed(duckdb.tokenize(statement)):
        if kind != duckdb.token_type.comment and text[start:].strip() != b";":
            break
        text = text[:start]
    return text.decode()


def _told(error: Exception) -> str:
    """DuckDB's message in one line, without its drawing of the query."""
    kept: list[str] = []
    for line in str(error).splitlines():
        line = line.strip()
        if line.startswith("LINE "):
            break
        if line.strip("^"):
            kept.append(line)
    text = " ".join(kept) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:299]}…"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _frame(table: pa.Table) -> pl.DataFrame:
    try:
        frame = pl.from_arrow(table)
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"the answer has a column that no table holds ({error}); cast it to VARCHAR") from error
    return frame if isinstance(frame, pl.DataFrame) else frame.to_frame()
