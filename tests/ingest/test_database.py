"""Against a real PostgreSQL server: a database is judged as a file with the same rows would be, and lands whole."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import postgres_server
import pytest

from yieldlab.errors import DataError
from yieldlab.ingest import database as ingest_database
from yieldlab.ingest import import_file
from yieldlab.ingest.database import import_database
from yieldlab.sample import reference_study
from yieldlab.store import Store, postgres

NOW = datetime(2026, 3, 1, tzinfo=UTC)

#: A database of someone else: numbers as decimals, times without a zone, a key of its own, and rows of every bad kind.
FOREIGN = """
CREATE TABLE assets (id integer PRIMARY KEY, symbol text, address text, decimals integer, protocol text, chain text);
CREATE TABLE yield_metrics (id bigserial PRIMARY KEY, time timestamp, asset_id integer, apy_percent numeric,
    tvl_usd numeric, volume_24h_usd real, utilization_rate double precision, block_number bigint, created_at timestamp);
INSERT INTO assets VALUES (1, 'USDC', '0xA', 6, 'aave-v3', 'Ethereum'), (2, ' DAI ', '0xB', 18, 'aave-v3', 'Ethereum');
INSERT INTO yield_metrics (time, asset_id, apy_percent, tvl_usd, volume_24h_usd, utilization_rate, block_number) VALUES
    ('2024-01-01', 1, 3.300000000000000001, 1e6, 3.3, 0.5, 10),
    ('2024-01-02 23:01:24.67', 1, 0, 0, 'NaN', 'NaN', 11),
    ('2024-01-03', 1, 'NaN', 1, 1, 1, 12),
    ('2024-01-04', 1, NULL, 1, 1, 1, 13),
    ('2024-01-05', 1, 1e400, 1, 1, 1, 14),
    ('2024-01-06', 1, -100, 1, 1, 1, 15),
    ('2024-01-07', 1, 5, -1, 1, 1, 16),
    ('2024-01-08', 1, 5, 'Infinity', 1, 1, 17),
    ('2024-01-09', 1, 5, 1, '-Infinity', 1, 18),
    ('infinity', 1, 5, 1, 1, 1, 19),
    ('-infinity', 1, 5, 1, 1, 1, 20),
    ('2030-01-01', 1, 5, 1, 1, 1, 21),
    ('1999-01-01', 1, 5, 1, 1, 1, 22),
    (NULL, 1, 5, 1, 1, 1, 23),
    ('2024-01-10', NULL, 5, 1, 1, 1, 24),
    ('2024-01-10', 9, 5, 1, 1, 1, 25),
    ('2024-01-11', 2, 5, 2, 1, 1, 27),
    ('2024-01-11', 2, 6, 1, 1, 1, 26),
    ('2024-01-12', 2, 7, 1, 1, 1, 28),
    ('2024-01-12', 2, 7, 1, 1, 1, 28);
"""
REFUSED = {
    "apy is not finite": 2,
    "missing pool_id": 2,
    "unreadable time": 2,
    "apy of -100 % or less": 1,
    "missing apy": 1,
    "missing time": 1,
    "negative tvl": 1,
    "replaced by a later row of the same pool and time": 1,
    "time before the first blockchain": 1,
    "time in the future": 1,
    "tvl is not finite": 1,
    "volume_24h_usd is not finite": 1,
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> postgres_server.Server:
    server = postgres_server.shared()
    monkeypatch.setenv("PGPASSWORD", server.password)
    return server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def test_a_round_trip_of_the_study_is_exact(server: postgres_server.Server, store: Store, tmp_path: Path) -> None:
    where = postgres.database(server.new_database("round_trip"))
    study = Store(tmp_path / "study")
    study.append(*reference_study(seed=0))
    postgres.export(study, where)
    imported = import_database(store, where)
    assert (imported.rows_read, imported.new, imported.refused, imported.pools_new) == (13_396, 13_396, {}, 12)
    assert store.metrics().drop("ingested_at").equals(study.metrics().drop("ingested_at"))
    described = ["pool_id", "protocol", "symbol", "chain"]
    assert store.assets().select(described).equals(study.assets().select(described))
    again = import_database(store, where)
    assert (again.new, again.revised, again.unchanged) == (0, 0, 13_396)
    back = postgres.export(store, where)
    assert (back.new, back.updated, back.unchanged) == (0, 0, 13_396)


def test_a_revision_keeps_its_clock_on_the_way(server: postgres_server.Server, store: Store, tmp_path: Path) -> None:
    where = postgres.database(server.new_database("clocks"))
    source = Store(tmp_path / "source")
    rows = pl.DataFrame({"pool_id": ["a"], "valid_at": [datetime(2024, 1, 1, tzinfo=UTC)], "apy_percent": [5.0]})
    source.append(rows, rows.select("pool_id"))
    mended = datetime(2025, 6, 1, 12, 0, 0, 1, tzinfo=UTC)
    source.append(rows.with_columns(apy_percent=pl.lit(4.0)), rows.select("pool_id"), now=mended)
    postgres.export(source, where)
    import_database(store, where)
    assert store.metrics(columns=["apy_percent", "observed_at"]).rows() == [(4.0, mended)]


def test_bad_rows_of_a_foreign_database_are_refused_one_by_one(server: postgres_server.Server, store: Store) -> None:
    where = postgres.database(server.new_database("foreign_yields"))
    server.psql(FOREIGN, "foreign_yields")
    imported = import_database(store, where, now=NOW)
    assert imported.refused == REFUSED
    assert (imported.rows_read, imported.new, imported.duplicates, imported.pools) == (20, 4, 1, 2)
    assert imported.trimmed == 4  # the four rows of ' DAI '
    assert imported.ignored == (
        "assets.address",
        "assets.decimals",
        "yield_metrics.id",
        "yield_metrics.block_number",
        "yield_metrics.created_at",
    )
    columns = ["pool_id", "valid_at", "apy_percent", "tvl_usd", "volume_24h_usd", "utilization_rate", "source"]
    assert store.metrics(columns=columns).rows() == [
        ("foreign_yields:1", datetime(2024, 1, 1, tzinfo=UTC), 3.3, 1e6, 3.3, 0.5, "foreign_yields"),
        ("foreign_yields:1", datetime(2024, 1, 2, 23, 1, 24, 670_000, tzinfo=UTC), 0, 0, None, None, "foreign_yields"),
        ("foreign_yields:2", datetime(2024, 1, 11, tzinfo=UTC), 5, 2, 1, 1, "foreign_yields"),  # the later block
        ("foreign_yields:2", datetime(2024, 1, 12, tzinfo=UTC), 7, 1, 1, 1, "foreign_yields"),
    ]
    assert store.assets().select("pool_id", "protocol", "symbol", "chain").rows() == [
        ("foreign_yields:1", "aave-v3", "USDC", "Ethereum"),
        ("foreign_yields:2", "aave-v3", "DAI", "Ethereum"),
    ]
    assert imported.rejects_path is not None
    rejects = pl.read_parquet(imported.rejects_path)
    assert rejects.height == imported.refused_rows == sum(REFUSED.values())
    told = {reason: rejects.filter(rejects["reject_reason"] == reason) for reason in REFUSED}
    assert sorted(told["unreadable time"]["time"]) == ["-infinity", "infinity"]
    assert sorted(told["apy is not finite"]["apy_percent"]) == ["1" + "0" * 400, "NaN"]  # as it was, digit by digit
    assert set(told["missing pool_id"]["asset_id"]) == {None, "9"}


def test_a_database_is_judged_as_a_file_with_the_same_rows(
    server: postgres_server.Server, store: Store, tmp_path: Path
) -> None:
    where = postgres.database(server.new_database("twins"))
    server.psql(FOREIGN, "twins")
    printed = server.psql(
        "COPY (SELECT CASE WHEN a.id IS NOT NULL THEN 'twins:' || a.id END AS pool_id, m.time, apy_percent, tvl_usd, "
        "volume_24h_usd, utilization_rate, protocol, symbol, chain, 'twins' AS source FROM yield_metrics m "
        "LEFT JOIN assets a ON a.id = m.asset_id ORDER BY m.asset_id, m.time, block_number) TO STDOUT WITH CSV HEADER",
        "twins",
    )
    file = tmp_path / "twins.csv"
    file.write_text(printed + "\n")
    twin = Store(tmp_path / "twin")
    from_file, from_database = import_file(twin, file, now=NOW), import_database(store, where, now=NOW)
    for name in ("rows_read", "new", "duplicates", "refused", "pools", "trimmed"):
        assert getattr(from_file, name) == getattr(from_database, name), name
    assert store.metrics().drop("ingested_at").equals(twin.metrics().drop("ingested_at"))


def test_many_parts_give_what_one_gives(
    server: postgres_server.Server, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = postgres.database(server.new_database("many_parts"))
    study = Store(tmp_path / "study")
    study.append(*reference_study(seed=0))
    monkeypatch.setattr("yieldlab.store.PART_ROWS", 1_500)
    postgres.export(study, where)
    server.psql("UPDATE yield_metrics SET apy_percent = 'NaN' WHERE extract(day FROM time) = 3", "many_parts")
    whole = Store(tmp_path / "whole")
    once = import_database(whole, where)
    monkeypatch.setattr(postgres, "PART_ROWS", 1_500)
    monkeypatch.setattr("yieldlab.store._postgres.BATCH_BYTES", 20_000)
    several = import_database(store, where)
    assert several.version > once.version == 0
    for name in ("rows_read", "new", "unchanged", "refused", "pools", "pools_new", "trimmed"):
        assert getattr(once, name) == getattr(several, name), name
    assert store.metrics().drop("ingested_at").equals(whole.metrics().drop("ingested_at"))
    assert once.rejects_path is not None
    assert several.rejects_path is not None
    assert pl.read_parquet(once.rejects_path).equals(pl.read_parquet(several.rejects_path))
    assert several.rejects_path.name == import_database(store, where).rejects_path.name
    assert not [path for path in store.folder.iterdir() if path.is_file()]


def test_a_connection_that_breaks_leaves_the_store_as_it_was(
    server: postgres_server.Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = postgres.database(server.new_database("cut"))
    server.psql(
        "CREATE TABLE assets (id int, symbol text); INSERT INTO assets SELECT i, 'S' FROM generate_series(1, 10) i; "
        "CREATE TABLE yield_metrics AS SELECT timestamptz '2020-01-01' + i % 20000 * interval '1 h' AS time, "
        "i / 20000 + 1 AS asset_id, 5.0::double precision AS apy_percent, repeat('x', 50) AS source "
        "FROM generate_series(0, 199999) i",
        "cut",
    )
    judged = ingest_database.typed
    parts: list[int] = []

    def cut(raw: pl.DataFrame, *rest: object) -> pl.DataFrame:
        parts.append(raw.height)
        if len(parts) == 1:
            server.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'yieldlab'")
        return judged(raw, *rest)

    monkeypatch.setattr(postgres, "PART_ROWS", 10_000)
    monkeypatch.setattr(ingest_database, "typed", cut)
    with pytest.raises(DataError, match="cut: "):
        import_database(store, where)
    assert len(parts) < 10
    assert not store.exists
    monkeypatch.undo()
    monkeypatch.setenv("PGPASSWORD", server.password)
    assert import_database(store, where).new == 200_000


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("", "yield_metrics of .* has no rows"),
        ("INSERT INTO yield_metrics VALUES (now(), 1, -100)", "no row of .* can be used"),
    ],
)
def test_nothing_to_import_is_told(server: postgres_server.Server, store: Store, rows: str, sentence: str) -> None:
    where = postgres.database(server.new_database("nothing"))
    server.psql(
        "CREATE TABLE assets (id int); CREATE TABLE yield_metrics (time timestamptz, asset_id int, apy_percent int);"
        "INSERT INTO assets VALUES (1);" + rows,
        "nothing",
    )
    with pytest.raises(DataError, match=sentence):
        import_database(store, where)
    assert not store.exists
