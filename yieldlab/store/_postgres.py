"""How is a PostgreSQL database reached, without its password ever being seen? The one home of ADBC."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import polars as pl

from yieldlab.errors import DataError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa
    from adbc_driver_manager.dbapi import Connection, Cursor

#: What a connection is opened with unless the URL says otherwise: nobody waits for ever for a server that is gone.
DEFAULTS = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "application_name": "yieldlab",
}
#: Bytes of rows that arrive at a time.
BATCH_BYTES = 4_000_000
PASSWORD_ADVICE = "the password is read from the variable PGPASSWORD or the file ~/.pgpass"

_CANCELED = "57014"
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]*://")
_SECRET = re.compile(r"pass(word|wd)|secret", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Database:
    """A database to connect to: `uri` for the driver, `shown` for people. Neither has a password."""

    uri: str
    shown: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column as the database declares it: the name of its base type, and the type's modifier (-1: none)."""

    name: str
    type: str
    modifier: int = -1


class _BrokenOff(Exception):
    """The rows stopped coming."""


def looks_like_a_url(text: str) -> bool:
    """Whether a word of the command line is a database's address, good or bad, and not a file.

    >>> looks_like_a_url("postgresql://lab@db/yields"), looks_like_a_url("yields.csv")
    (True, False)
    """
    return bool(_SCHEME.match(text)) or "password=" in text


def database(url: str) -> Database:
    """The database of `postgresql://[user@][host[:port]]/name[?option=value]`, with libpq's options.

    Raises UsageError for anything else, and for a URL with a password in it; the sentence does not repeat the URL.
    """
    scheme, found, rest = url.partition("://")
    if not found or scheme.lower() not in ("postgresql", "postgres"):
        raise UsageError("a database is named by a URL like postgresql://user@host:5432/name; nothing else is known")
    # What stands before the last @ may hold an unescaped password, so that no parser can tell where it ends.
    if ":" in rest.rpartition("@")[0] or "#" in rest:
        raise UsageError(
            f"the database URL must hold no password, nor a ':' before an '@', nor a '#'; {PASSWORD_ADVICE}"
        )
    parts = urlsplit(f"postgresql://{rest}")
    user, at, hosts = parts.netloc.rpartition("@")
    for host in hosts.split(","):
        if not re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(:\d*)?", host):
            raise UsageError(
                "the port in the database URL is not a number; it is like postgresql://user@host:5432/name"
            )
    try:
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise UsageError("the options after the '?' of the database URL must be name=value pairs") from None
    for name in options:
        if _SECRET.search(name):
            raise UsageError(f"the database URL must hold no option {name!r}; {PASSWORD_ADVICE}")
    # The driver takes every text for UTF-8, whatever the environment asks of the server, which refuses to send other.
    options = DEFAULTS | options | {"client_encoding": "UTF8"}
    # libpq does not read "+" as a space.
    query = urlencode(options).replace("+", "%20")
    return Database(
        uri=f"postgresql://{parts.netloc}{parts.path}?{query}",
        shown=f"postgresql://{user}{at}{hosts}{unquote(parts.path)}",
    )


@contextmanager
def transaction(where: Database) -> Iterator[Cursor]:
    """A cursor inside one transaction, which is rolled back unless the block commits it.

    Raises UsageError without the driver, and turns every error of the database in the block into one DataError.
    """
    try:
        from adbc_driver_postgresql import StatementOptions, dbapi
    except ImportError:
        raise UsageError("PostgreSQL needs its driver; install it with `pip install 'yieldlab[postgres]'`") from None
    with _one_sentence(where, dbapi.Error):
        connection: Connection = dbapi.connect(where.uri)
        try:
            with connection.cursor() as cursor:
                cursor.adbc_statement.set_options(**{StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(BATCH_BYTES)})
                yield cursor
        finally:
            connection.close()  # what is not committed by now is rolled back


def commit(cursor: Cursor) -> None:
    """Make the transaction of `transaction` last."""
    cursor.connection.commit()


def rows(cursor: Cursor, sql: str) -> list[tuple[object, ...]]:
    """All rows of a small answer."""
    cursor.execute(sql)
    return list(cursor.fetchall())


def run(cursor: Cursor, sql: str) -> int:
    """The number of rows that a statement added or changed."""
    cursor.execute(sql)
    return int(cursor.rowcount)


def count(cursor: Cursor, sql: str) -> int:
    """The one number that a query answers."""
    return int(str(rows(cursor, sql)[0][0]))


def columns(cursor: Cursor, table: str) -> Mapping[str, Column] | None:
    """The columns of the table or view that `table` means on the connection's search path; None if there is none."""
    if rows(cursor, f"SELECT to_regclass({literal(table)})::text")[0][0] is None:
        return None
    found = rows(
        cursor,
        "SELECT a.attname::text, coalesce(b.typname, t.typname)::text, "
        "CASE WHEN b.oid IS NULL THEN a.atttypmod ELSE t.typtypmod END "
        "FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
        "LEFT JOIN pg_type b ON b.oid = nullif(t.typbasetype, 0) "
        f"WHERE a.attrelid = to_regclass({literal(table)}) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
    )
    return {str(name): Column(str(name), str(kind), int(str(modifier))) for name, kind, modifier in found}


def database_name(cursor: Cursor) -> str:
    """What the database calls itself."""
    return str(rows(cursor, "SELECT current_database()::text")[0][0])


def pool_name(assets: Mapping[str, Column], database: str) -> str:
    """The SQL expression of a pool's id in the table `assets`: its pool_id, else its id.

    An id that is a number means nothing outside its database, so the database's name goes before it: `yields:7`.
    """
    numbered = assets["id"].type in ("int2", "int4", "int8", "numeric")
    own = f"{literal(database + ':')} || assets.id::text" if numbered else "assets.id::text"
    return f"coalesce(nullif(trim(assets.pool_id::text), ''), {own})" if "pool_id" in assets else own


def frames(cursor: Cursor, sql: str) -> Iterator[pl.DataFrame]:
    """The rows of a query as they arrive."""
    cursor.execute(sql)
    with cursor.fetch_record_batch() as reader:
        while (batch := _next(reader)) is not None:
            arrived = pl.from_arrow(batch)
            assert isinstance(arrived, pl.DataFrame)
            yield arrived


def _next(reader: pa.RecordBatchReader) -> pa.RecordBatch | None:
    import pyarrow as pa

    try:
        return next(reader, None)
    except (OSError, pa.ArrowException) as error:
        # Once rows flow, the driver's errors come through Arrow, which has none of its classes.
        raise _BrokenOff(str(error)) from error


def frame(cursor: Cursor, sql: str) -> pl.DataFrame:
    """All rows of a query."""
    cursor.execute(sql)
    arrived = pl.from_arrow(cursor.fetch_arrow_table())
    assert isinstance(arrived, pl.DataFrame)
    return arrived


def literal(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """A name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def _one_sentence(where: Database, errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except (errors, _BrokenOff) as error:
        if getattr(error, "sqlstate", None) == _CANCELED and "timeout" not in str(error):
            # While the driver waits it takes Ctrl-C itself, cancels the statement and tells only of that.
            raise KeyboardInterrupt from error
        told = _told(error)
        advice = f"; {PASSWORD_ADVICE}" if "password" in told else ""
        raise DataError(f"{where.shown}: {told}{advice}") from error


def _told(error: Exception) -> str:
    """PostgreSQL's own message in one line, with its detail."""
    diagnosis = {_text(name): _text(value) for name, value in getattr(error, "details", None) or ()}
    if primary := diagnosis.get("PG_DIAG_MESSAGE_PRIMARY"):
        detail = diagnosis.get("PG_DIAG_MESSAGE_DETAIL", "").rstrip(".")
        text = f"{primary}: {detail}" if detail else primary
    else:
        text = re.sub(r"^([A-Z_]+: )?(\[libpq\] )?(Failed to connect: )?", "", str(error).strip())
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:299]}…"


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
