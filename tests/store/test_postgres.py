"""Against a real PostgreSQL server: what is written is what was stored, whole or not at all; it is read as it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import postgres_server
import pytest

from yieldlab.errors import DataError, UsageError
from yieldlab.sample import reference_study
from yieldlab.store import Store, postgres

#: The tables as the reference system has them.
REFERENCE = """
CREATE TABLE assets (id serial PRIMARY KEY, symbol varchar(20) NOT NULL, address varchar(42), decimals integer,
    protocol varchar(50), chain varchar(20));
CREATE TABLE yield_metrics (time timestamptz NOT NULL, asset_id integer REFERENCES assets(id), apy_percent {0},
    tvl_usd {0}, volume_24h_usd {0}, utilization_rate {0}, volatility_24h {0}, block_number bigint,
    UNIQUE (time, asset_id));
"""
START = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> postgres_server.Server:
    server = postgres_server.shared()
    monkeypatch.setenv("PGPASSWORD", server.password)
    return server


@pytest.fixture
def study(tmp_path: Path) -> Store:
    store = Store(tmp_path / "data")
    store.append(*reference_study(seed=0))
    return store


def stored(folder: Path, rows: pl.DataFrame, **assets: list[str]) -> Store:
    store = Store(folder)
    named = rows.select("pool_id").unique(maintain_order=True).with_columns(pl.Series(k, v) for k, v in assets.items())
    store.append(rows.with_columns(source=pl.lit("test")), named)
    return store


def few(pool: str = "pool-a", days: int = 3, apy: float = 5.0) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "pool_id": [pool] * days,
            "valid_at": [START + timedelta(days=day) for day in range(days)],
            "apy_percent": [apy + day for day in range(days)],
        }
    )


def content(server: postgres_server.Server, name: str, columns: str, order: str = "1, 2") -> list[list[str]]:
    """The table as PostgreSQL's own client prints it."""
    query = f"SELECT {columns} FROM yield_metrics m JOIN assets a ON a.id = m.asset_id ORDER BY {order}"
    return [line.split("|") for line in server.psql(query, name).splitlines()]


# -- the address --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://lab:hunter2@db/yields",
        "postgres://lab:hunter2@db/yields",
        "PostgreSQL://lab:hunter2@db/yields",
        "postgresql://lab:hunter2/x@db/yields",
        "postgresql://lab:hunter2#x@db/yields",
        "postgresql://lab:hunter2?x@db/yields",
        "postgresql://lab:hunter2",
        "postgresql://db/yields#hunter2",
        "postgresql://db/yields?password=hunter2",
        "postgresql://db/yields?PASSWORD=hunter2",
        "postgresql://db/yields?sslpassword=hunter2",
        "postgresql://db/yields?oauth_client_secret=hunter2",
        "postgresql://db/yields?hunter2",
        "mysql://lab:hunter2@db/yields",
        "host=db password=hunter2",
    ],
)
def test_a_url_that_may_hold_a_password_is_refused_and_never_repeated(url: str) -> None:
    assert postgres.looks_like_a_url(url)
    with pytest.raises(UsageError) as refused:
        postgres.database(url)
    assert "hunter2" not in str(refused.value)


def test_what_is_shown_of_a_url_is_who_and_where() -> None:
    where = postgres.database("postgres://lab@[::1]:5433/my%20yields?connect_timeout=3&application_name=a%20b")
    assert where.shown == "postgresql://lab@[::1]:5433/my yields"
    assert "connect_timeout=3" in where.uri
    assert "application_name=a%20b" in where.uri
    assert "client_encoding=UTF8" in where.uri


# -- writing ------------------------------------------------------------------------------------------------------


def test_the_study_is_written_to_the_last_digit(server: postgres_server.Server, study: Store) -> None:
    url = server.new_database("defi_yield_db")
    exported = postgres.export(study, postgres.database(url))
    assert (exported.rows, exported.new, exported.updated, exported.unchanged) == (13_396, 13_396, 0, 0)
    assert (exported.pools, exported.pools_new, exported.created) == (12, 12, ("assets", "yield_metrics"))
    assert (exported.left_out, exported.rounded, exported.added) == ({}, {}, ())
    names = ["apy_percent", "apy_base_percent", "apy_reward_percent", "tvl_usd", "volume_24h_usd", "utilization_rate"]
    printed = content(
        server, "defi_yield_db", f'a.pool_id COLLATE "C", m.time, m.observed_at, m.source, {", ".join(names)}'
    )
    expected = study.metrics()
    assert len(printed) == expected.height
    for line, row in zip(printed, expected.iter_rows(named=True), strict=True):
        assert line[0] == row["pool_id"]
        assert [datetime.fromisoformat(text) for text in line[1:3]] == [row["valid_at"], row["observed_at"]]
        assert line[3] == "synthetic"
        assert [float(text) if text else None for text in line[4:]] == [row[name] for name in names]


def test_what_leaves_the_store_leaves_in_parts_of_whole_pools(study: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yieldlab.store.PART_ROWS", 3_000)
    parts = list(study.parts(ingested_by=study.cutoff()))
    assert len(parts) > 3
    assert pl.concat(parts).equals(study.metrics())
    assert sum(part["pool_id"].n_unique() for part in parts) == 12
    assert list(study.parts(ingested_by=START)) == []


def test_an_export_again_changes_only_what_changed(server: postgres_server.Server, tmp_path: Path) -> None:
    where = postgres.database(server.new_database("again"))
    store = stored(tmp_path / "data", few(), symbol=["USDC"])
    postgres.export(store, where)
    server.psql("UPDATE yield_metrics SET block_number = 7; UPDATE assets SET address = '0xA', decimals = 6", "again")
    rows_before = server.psql("SELECT xmin, * FROM yield_metrics", "again")
    same = postgres.export(store, where)
    assert (same.new, same.updated, same.unchanged, same.pools_new, same.pools_updated) == (0, 0, 3, 0, 0)
    assert server.psql("SELECT xmin, * FROM yield_metrics", "again") == rows_before
    store.append(
        few(days=4).with_columns(pl.Series("apy_percent", [5.0, 6.5, 7.0, 8.0])), named("pool-a", symbol="USDT")
    )
    more = postgres.export(store, where)
    assert (more.new, more.updated, more.unchanged, more.pools_new, more.pools_updated) == (1, 1, 2, 0, 1)
    assert content(server, "again", "m.time::date, apy_percent, block_number, symbol, address, decimals") == [
        ["2024-01-01", "5", "7", "USDT", "0xA", "6"],
        ["2024-01-02", "6.5", "7", "USDT", "0xA", "6"],
        ["2024-01-03", "7", "7", "USDT", "0xA", "6"],
        ["2024-01-04", "8", "", "USDT", "0xA", "6"],
    ]


def named(pool: str, **described: str) -> pl.DataFrame:
    return pl.DataFrame({"pool_id": [pool]} | {name: [text] for name, text in described.items()})


def test_rows_of_others_stay_and_silence_overwrites_nothing(server: postgres_server.Server, tmp_path: Path) -> None:
    where = postgres.database(server.new_database("others"))
    store = stored(tmp_path / "data", few())
    postgres.export(store, where)
    server.psql(
        "UPDATE yield_metrics SET volume_24h_usd = 11; INSERT INTO assets (pool_id, symbol) VALUES ('theirs', 'X'); "
        "INSERT INTO yield_metrics (time, asset_id, apy_percent) SELECT now(), id, 1 FROM assets",
        "others",
    )
    # The store has never seen a volume: it says nothing about it.
    assert postgres.export(store, where).unchanged == 3
    assert server.psql("SELECT count(*), sum(volume_24h_usd) FROM yield_metrics", "others") == "5|33"


def test_the_reference_schema_takes_what_it_has_columns_for(server: postgres_server.Server, tmp_path: Path) -> None:
    where = postgres.database(server.new_database("reference"))
    server.psql(REFERENCE.format("double precision"), "reference")
    store = stored(tmp_path / "data", few(), symbol=["USDC"], protocol=["aave-v3"])
    with pytest.raises(UsageError, match="no column pool_id, where the names of 1 pools could go"):
        postgres.export(store, where)
    with pytest.raises(UsageError, match="no column 'source', without which"):
        postgres.export(store, where, must_keep=("source",))
    server.psql("ALTER TABLE assets ADD COLUMN pool_id text", "reference")
    exported = postgres.export(store, where)
    assert exported.left_out == {"observed_at": 3, "source": 3}
    assert content(
        server, "reference", "m.time::date, m.apy_percent, a.id, a.pool_id, a.symbol, a.protocol, a.chain"
    ) == [[f"2024-01-0{day}", str(4 + day), "1", "pool-a", "USDC", "aave-v3", ""] for day in (1, 2, 3)]
    exported = postgres.export(store, where, add_columns=True)
    assert exported.left_out == {}
    assert exported.added == (
        "yield_metrics.apy_base_percent",
        "yield_metrics.apy_reward_percent",
        "yield_metrics.observed_at",
        "yield_metrics.source",
    )
    assert (exported.new, exported.updated) == (0, 3)
    assert server.psql("SELECT DISTINCT source FROM yield_metrics", "reference") == "test"


def test_a_pool_of_a_numbered_asset_goes_back_to_it(server: postgres_server.Server, tmp_path: Path) -> None:
    where = postgres.database(server.new_database("numbered"))
    server.psql(REFERENCE.format("double precision"), "numbered")
    server.psql(
        "INSERT INTO assets (id, symbol, address) VALUES (7, 'DAI', '0xD'); "
        "INSERT INTO yield_metrics (time, asset_id, apy_percent) VALUES ('2024-01-01Z', 7, 5)",
        "numbered",
    )
    with postgres.reading(where) as look:
        (part,) = look.parts()
    assert part.select("pool_id", "symbol", "time", "apy_percent").rows() == [("numbered:7", "DAI", START, 5.0)]
    exported = postgres.export(stored(tmp_path / "data", few("numbered:7"), symbol=["DAI"]), where)
    assert (exported.new, exported.unchanged, exported.pools_new) == (2, 1, 0)
    assert server.psql("SELECT count(*), min(id) FROM assets", "numbered") == "1|7"


@pytest.mark.parametrize(("kind", "pool"), [("text", "aave-usdc"), ("uuid", "aa70268e-4b52-42bf-a116-608b370f9501")])
def test_an_asset_with_a_name_for_an_id_has_that_name(
    server: postgres_server.Server, tmp_path: Path, kind: str, pool: str
) -> None:
    where = postgres.database(server.new_database("names"))
    server.psql(
        f"CREATE TABLE assets (id {kind} PRIMARY KEY, symbol text); CREATE TABLE yield_metrics (time timestamptz, "
        f"asset_id {kind}, apy_percent double precision, PRIMARY KEY (asset_id, time))",
        "names",
    )
    store = stored(tmp_path / "data", few(pool), symbol=["USDC"])
    assert postgres.export(store, where).pools_new == 1
    assert postgres.export(store, where).unchanged == 3
    with postgres.reading(where) as look:
        assert look.pools.rows() == [(pool, pool, None, "USDC", None)]


def test_decimals_keep_every_digit_or_the_loss_is_counted(server: postgres_server.Server, tmp_path: Path) -> None:
    random = np.random.Generator(np.random.PCG64(4))
    numbers = np.concatenate([random.uniform(0, 100, 50), [0.1 + 0.2, 1e-17, 5.0, 5.25]])
    rows = few(days=numbers.size).with_columns(pl.Series("apy_percent", numbers), pl.Series("tvl_usd", numbers * 1e9))
    where = postgres.database(server.new_database("decimals"))
    server.psql(REFERENCE.format("numeric"), "decimals")
    server.psql(
        "ALTER TABLE assets ADD pool_id text; ALTER TABLE yield_metrics ALTER tvl_usd TYPE numeric(20, 2)", "decimals"
    )
    store = stored(tmp_path / "data", rows, symbol=["USDC"])
    exported = postgres.export(store, where)
    expected = sum(round(float(tvl), 2) != tvl for tvl in numbers * 1e9)
    assert exported.rounded == {"tvl_usd": expected}
    with postgres.reading(where) as look:
        (part,) = look.parts()
    assert [float(text) for text in part["apy_percent"]] == list(numbers)
    assert postgres.export(store, where).unchanged == numbers.size  # what was rounded is not written again and again


def test_columns_without_a_zone_hold_utc(server: postgres_server.Server, tmp_path: Path) -> None:
    where = postgres.database(server.new_database("zones"))
    server.psql(REFERENCE.format("double precision").replace("timestamptz", "timestamp"), "zones")
    server.psql("ALTER TABLE assets ADD pool_id text", "zones")
    postgres.export(stored(tmp_path / "data", few(), symbol=["USDC"]), where)
    assert [line[0] for line in content(server, "zones", "m.time, m.asset_id")] == [
        f"2024-01-0{day} 00:00:00" for day in (1, 2, 3)
    ]
    server.psql("DELETE FROM yield_metrics; ALTER TABLE yield_metrics ALTER time TYPE timestamp(0)", "zones")
    with pytest.raises(DataError, match="cannot hold an instant to the microsecond"):
        postgres.export(Store(tmp_path / "data"), where)


# -- whole or not at all --------------------------------------------------------------------------------------------


def test_an_export_that_is_refused_leaves_nothing(server: postgres_server.Server, tmp_path: Path) -> None:
    where = postgres.database(server.new_database("refused"))
    server.psql("CREATE TABLE assets (id serial PRIMARY KEY, pool_id text UNIQUE, symbol varchar(3))", "refused")
    store = stored(tmp_path / "data", few(), symbol=["A SYMBOL"])
    with pytest.raises(DataError, match=r"refused: value too long for type character varying\(3\)"):
        postgres.export(store, where)
    assert server.psql("SELECT to_regclass('yield_metrics'), (SELECT count(*) FROM assets)", "refused") == "|0"


def test_rows_that_cannot_be_read_end_an_export_with_their_own_sentence(
    server: postgres_server.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Store, *, ingested_by: datetime) -> Iterator[pl.DataFrame]:
        yield self.metrics()
        raise DataError("a file of the tables is gone")

    where = postgres.database(server.new_database("broken"))
    store = stored(tmp_path / "data", few())
    monkeypatch.setattr(Store, "parts", broken)
    with pytest.raises(DataError, match=r"^a file of the tables is gone$"):
        postgres.export(store, where)
    assert server.psql("SELECT to_regclass('assets')", "broken") == ""


def test_a_table_without_its_unique_key_is_refused(server: postgres_server.Server, tmp_path: Path) -> None:
    where = postgres.database(server.new_database("keyless"))
    server.psql(
        REFERENCE.format("double precision").replace("UNIQUE (time, asset_id)", "UNIQUE (time, block_number)"),
        "keyless",
    )
    server.psql("ALTER TABLE assets ADD pool_id text", "keyless")
    with pytest.raises(DataError, match=r"no unique \(time, asset_id\)"):
        postgres.export(stored(tmp_path / "data", few(), symbol=["USDC"]), where)


def test_readers_see_all_of_an_export_or_nothing_and_two_exports_take_turns(
    server: postgres_server.Server, study: Store
) -> None:
    where = postgres.database(server.new_database("turns"))
    postgres.export(study, where)
    server.psql("DELETE FROM yield_metrics", "turns")
    done: list[postgres.Exported] = []
    writers = [threading.Thread(target=lambda: done.append(postgres.export(study, where))) for _ in range(2)]
    seen = set()
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        seen.add(server.psql("SELECT count(*) FROM yield_metrics", "turns"))
    assert seen | {"13396"} <= {"0", "13396"}
    assert sorted((one.new, one.unchanged) for one in done) == [(0, 13_396), (13_396, 0)]


# -- reading ------------------------------------------------------------------------------------------------------


def test_parts_are_whole_pools_of_one_moment(
    server: postgres_server.Server, study: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = postgres.database(server.new_database("parts"))
    postgres.export(study, where)
    monkeypatch.setattr(postgres, "PART_ROWS", 500)  # less than a pool has
    monkeypatch.setattr("yieldlab.store._postgres.BATCH_BYTES", 20_000)
    with postgres.reading(where) as look:
        server.psql(
            "INSERT INTO assets (pool_id) VALUES ('late'); "
            "INSERT INTO yield_metrics (time, asset_id, apy_percent) SELECT now(), max(id), 1 FROM assets",
            "parts",
        )
        parts = look.parts()
        first = next(parts)
        server.psql("UPDATE yield_metrics SET apy_percent = 1; DELETE FROM yield_metrics WHERE asset_id = 12", "parts")
        parts = [first, *parts]
    assert len(parts) > 3
    assert all(part.height >= 500 for part in parts)
    pools = [set(part["pool_id"]) for part in parts]
    assert sum(len(some) for some in pools) == len(set().union(*pools)) == 12
    together = pl.concat(parts).sort("pool_id", "time")
    expected = study.metrics()
    assert together["apy_percent"].equals(expected["apy_percent"])
    assert together["time"].equals(expected["valid_at"].alias("time"))


@pytest.mark.parametrize(
    ("setup", "sentence"),
    [
        ("SELECT 1", "has no table assets"),
        ("CREATE TABLE assets (id int)", "has no table yield_metrics"),
        (
            "CREATE TABLE assets (id int); CREATE TABLE yield_metrics (time date, apy_percent int)",
            "has no column 'asset_id'; it has: time, apy_percent",
        ),
        (
            REFERENCE.format("real") + "ALTER TABLE assets ADD pool_id text; "
            "INSERT INTO assets (symbol, pool_id) VALUES ('A', 'x'), ('B', ' x')",
            "has the pool 'x' more than once",
        ),
    ],
)
def test_what_cannot_be_read_is_told_in_a_sentence(server: postgres_server.Server, setup: str, sentence: str) -> None:
    where = postgres.database(server.new_database("odd"))
    server.psql(setup, "odd")
    with pytest.raises(DataError, match=sentence), postgres.reading(where) as look:
        list(look.parts())


def test_a_database_without_an_encoding_sends_no_broken_text(server: postgres_server.Server) -> None:
    server.psql("DROP DATABASE IF EXISTS bytes")
    server.psql("CREATE DATABASE bytes ENCODING 'SQL_ASCII' TEMPLATE template0")
    server.psql(REFERENCE.format("real") + r"INSERT INTO assets (symbol) VALUES (E'\xff')", "bytes")
    with (
        pytest.raises(DataError, match="invalid byte sequence"),
        postgres.reading(postgres.database(server.url("bytes"))),
    ):
        pass
