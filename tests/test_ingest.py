"""Files become rows: what is accepted under which name, what is refused with which reason, and nothing half."""

from __future__ import annotations

import os
import re
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yieldlab.admission import NULL_WORDS, instants
from yieldlab.errors import DataError, UsageError
from yieldlab.ingest import ALIASES, REQUIRED, import_file, match_columns
from yieldlab.store import Store

DOCS = Path(__file__).parents[1] / "docs" / "data.md"
NOW = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def csv(folder: Path, *lines: str, name: str = "yields.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


# -- rows that go in --------------------------------------------------------------------------------------------


def test_a_file_goes_in_once(store: Store, tmp_path: Path) -> None:
    path = csv(
        tmp_path,
        "pool_id,time,apy_percent,tvl_usd,protocol,symbol,chain,remark",
        "a,2024-01-01,5,1000,aave,USDC,Ethereum,x",
        "a,2024-01-02,6,,aave,USDC,Ethereum,y",
        "b,2024-01-02,-3.5,0,,,,z",
    )
    first = import_file(store, path)
    assert (first.rows_read, first.new, first.pools, first.pools_new, first.refused) == (3, 3, 2, 2, {})
    assert first.rejects_path is None
    assert first.ignored == ("remark",)
    assert not (store.folder / "rejects").exists()
    assert store.metrics(columns=("pool_id", "valid_at", "observed_at", "apy_percent", "tvl_usd", "source")).rows() == [
        ("a", utc(2024, 1, 1), utc(2024, 1, 1), 5.0, 1000.0, "yields.csv"),
        ("a", utc(2024, 1, 2), utc(2024, 1, 2), 6.0, None, "yields.csv"),
        ("b", utc(2024, 1, 2), utc(2024, 1, 2), -3.5, 0.0, "yields.csv"),
    ]
    assert store.assets().select("pool_id", "protocol", "symbol", "chain").rows() == [
        ("a", "aave", "USDC", "Ethereum"),
        ("b", None, None, None),
    ]
    again = import_file(store, path)
    assert (again.new, again.revised, again.unchanged, again.version) == (0, 0, 3, first.version)


def test_a_changed_value_becomes_a_revision_known_from_now_on(store: Store, tmp_path: Path) -> None:
    import_file(store, csv(tmp_path, "pool,date,apy", "a,2024-01-01,5"))
    changed = import_file(store, csv(tmp_path, "pool,date,apy", "a,2024-01-01,6"), now=NOW)
    assert (changed.new, changed.revised) == (0, 1)
    assert store.metrics(as_of=NOW - timedelta(seconds=1))["apy_percent"].to_list() == [5.0]
    assert store.metrics(as_of=NOW)["apy_percent"].to_list() == [6.0]


def test_parquet_and_csv_say_the_same(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "pool_id": ["a", "b"],
            "time": [utc(2024, 1, 1, 23), utc(2024, 1, 2, 23)],
            "apy_percent": [1.5, 2.0],
            "tvl_usd": [10, None],
            "symbol": pl.Series(["USDC", None], dtype=pl.Categorical),
        }
    )
    frame.write_parquet(tmp_path / "y.parquet")
    frame.write_csv(tmp_path / "y.csv")
    stores = [Store(tmp_path / kind) for kind in ("parquet", "csv")]
    for store in stores:
        import_file(store, tmp_path / f"y.{store.folder.name}")
    columns = ("pool_id", "valid_at", "apy_percent", "tvl_usd")
    assert stores[0].metrics(columns=columns).equals(stores[1].metrics(columns=columns))
    assert stores[0].assets()["symbol"].to_list() == stores[1].assets()["symbol"].to_list() == ["USDC", None]


def test_a_stores_own_rows_can_be_carried_to_another_store(tmp_path: Path) -> None:
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    import_file(here, csv(tmp_path, "pool,date,apy,source", "a,2024-01-01,5,feed"))
    import_file(here, csv(tmp_path, "pool,date,apy", "a,2024-01-01,6"), now=NOW)
    here.history().write_parquet(tmp_path / "all.parquet")
    taken = import_file(there, tmp_path / "all.parquet")
    assert (taken.new, taken.revised, taken.ignored) == (1, 1, ("ingested_at",))
    kept = [name for name in here.history().columns if name != "ingested_at"]
    assert (
        there.history(columns=kept)
        .select(kept)
        .sort("observed_at")
        .equals(here.history(columns=kept).select(kept).sort("observed_at"))
    )


def test_white_space_around_a_text_is_no_part_of_it_and_is_counted(store: Store, tmp_path: Path) -> None:
    path = csv(
        tmp_path,
        "pool,date,apy,protocol,symbol,chain",
        " a,2024-01-01,1,aave,USDC,Base",
        "a,2024-01-02,1,aave ,USDC\t,\u00a0Base",
        "a,2024-01-03,1,aave,USDC,Base",
        "b,2024-01-01,1,,  ,Base",
    )
    done = import_file(store, path)
    assert (done.new, done.pools, done.trimmed) == (4, 2, 2)
    assert store.assets().select("pool_id", "protocol", "symbol", "chain").rows() == [
        ("a", "aave", "USDC", "Base"),
        ("b", None, None, "Base"),
    ]
    assert import_file(store, csv(tmp_path, "pool,date,apy", "a,2024-01-01,1", name="clean.csv")).trimmed == 0


def test_a_row_known_before_the_instant_it_describes_is_refused(store: Store, tmp_path: Path) -> None:
    path = csv(
        tmp_path,
        "pool,time,apy,observed_at",
        "a,2024-01-02,1,2024-01-01T23:59:59",
        "a,2024-01-02,1,1970-01-01",
        "a,2024-01-02,1,2024-01-02",
        "a,2024-01-03,1,",
        "a,2024-01-03,1,soon",
        "a,2024-01-03,1,2999-01-01",
    )
    done = import_file(store, path)
    refused = {"observed_at before the time": 2, "unreadable observed_at": 1, "observed_at in the future": 1}
    assert (done.new, done.refused) == (2, refused)
    text = DOCS.read_text(encoding="utf-8")
    assert all(f"`{reason}`" in text for reason in refused if reason != "unreadable observed_at")


def test_a_file_that_leaves_a_column_out_says_how_many_rows_kept_it(store: Store, tmp_path: Path) -> None:
    assert import_file(store, csv(tmp_path, "pool,date,apy,tvl", "a,2024-01-01,5,9", "a,2024-01-02,5,")).kept == 0
    assert import_file(store, csv(tmp_path, "pool,date,apy", "a,2024-01-01,6", "a,2024-01-02,6")).kept == 1


# -- rows that do not -------------------------------------------------------------------------------------------

BAD = {
    ",2024-01-01,1,1": "missing pool_id",
    "  ,2024-01-01,1,1": "missing pool_id",
    "a,,1,1": "missing time",
    "a,yesterday,1,1": "unreadable time",
    "a,2024-02-30,1,1": "unreadable time",
    "a,2024-01-01T24:30,1,1": "unreadable time",
    "a,01/02/2024,1,1": "unreadable time",
    "a,20240101,1,1": "time before the first blockchain",
    "a,2999-01-01,1,1": "time in the future",
    "a,2024-01-01,,1": "missing apy",
    "a,2024-01-01,null,1": "missing apy",
    "a,2024-01-01,nan,1": "apy is not finite",
    "a,2024-01-01,inf,1": "apy is not finite",
    "a,2024-01-01,-inf,1": "apy is not finite",
    "a,2024-01-01,-100,1": "apy of -100 % or less",
    "a,2024-01-01,-250,1": "apy of -100 % or less",
    "a,2024-01-01,5%,1": "apy is not a number",
    'a,2024-01-01,"1,5",1': "apy is not a number",
    "a,2024-01-01,1,-1": "negative tvl",
    "a,2024-01-01,1,inf": "tvl is not finite",
    "a,2024-01-01,1,lots": "tvl is not a number",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_row_is_set_aside_with_its_reason_and_the_rest_goes_in(store: Store, tmp_path: Path, line: str) -> None:
    path = csv(tmp_path, "pool_id,time,apy_percent,tvl_usd", "good,2024-01-01,1,1", line, "good,2024-01-02,1,1")
    done = import_file(store, path)
    assert done.refused == {BAD[line]: 1}
    assert (done.rows_read, done.new, done.refused_rows) == (3, 2, 1)
    assert done.rejects_path is not None
    rejects = pl.read_parquet(done.rejects_path)
    assert rejects.columns == ["pool_id", "time", "apy_percent", "tvl_usd", "reject_row", "reject_reason"]
    assert rejects.select("reject_row", "reject_reason").rows() == [(2, BAD[line])]
    assert store.metrics()["pool_id"].unique().to_list() == ["good"]


def test_rejects_keep_the_values_as_they_were(store: Store, tmp_path: Path) -> None:
    frame = pl.DataFrame({"Pool": ["a", "b"], "ts": [1704067200, 1704067200], "APY": [1.0, None], "note": ["x", "y"]})
    frame.write_parquet(tmp_path / "y.parquet")
    done = import_file(store, tmp_path / "y.parquet", rejects_folder=tmp_path / "elsewhere")
    assert done.rejects_path is not None
    assert done.rejects_path.parent == tmp_path / "elsewhere"
    assert pl.read_parquet(done.rejects_path).rows() == [("b", 1704067200, None, "y", 2, "missing apy")]
    again = import_file(store, tmp_path / "y.parquet", rejects_folder=tmp_path / "elsewhere")
    assert again.rejects_path == done.rejects_path
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


def test_a_mended_rejects_file_can_be_imported(store: Store, tmp_path: Path) -> None:
    done = import_file(store, csv(tmp_path, "pool,date,apy", "a,2024-01-01,1", "a,2024-01-02,", "a,2024-01-03,x"))
    mended = pl.read_parquet(done.rejects_path).with_columns(apy=pl.Series(["7", "y"]))
    mended.write_parquet(tmp_path / "mended.parquet")
    second = import_file(store, tmp_path / "mended.parquet")
    assert (second.new, second.refused) == (1, {"apy is not a number": 1})
    assert pl.read_parquet(second.rejects_path).columns == ["pool", "date", "apy", "reject_row", "reject_reason"]


def test_infinite_numbers_are_refused_in_every_column_and_nan_is_not_observed(store: Store, tmp_path: Path) -> None:
    optional = [name for name in ALIASES if name.startswith(("apy_b", "apy_r", "volume", "util", "vola"))]
    assert len(optional) == 5
    for name in optional:
        path = csv(
            tmp_path, f"pool,date,apy,{name}", "a,2024-01-01,1,inf", "a,2024-01-02,1,nan", f"{name},2024-01-01,1,2"
        )
        done = import_file(store, path)
        assert done.refused == {f"{name} is not finite": 1}
        assert store.metrics(columns=("pool_id", name)).filter(pl.col("pool_id") == name)[name].to_list() == [2.0]
    frame = pl.DataFrame({"pool": ["n"], "date": [date(2024, 1, 1)], "apy": [1.0], "tvl": [float("nan")]})
    frame.write_parquet(tmp_path / "nan.parquet")
    assert import_file(store, tmp_path / "nan.parquet").new == 1


def test_the_last_of_conflicting_rows_counts_and_equal_ones_are_counted(store: Store, tmp_path: Path) -> None:
    path = csv(
        tmp_path,
        "pool,time,apy,tvl,symbol",
        "a,2024-01-01,1,9,old",
        "a,2024-01-01T00:00:00Z,2,9,USDC",
        "b,2024-01-01,1,9,DAI",
        "a,1704067200,2.0,9,USDC",
        "a,2024-01-01,3,,USDC",
        "a,2024-01-01,2,9,USDC",
    )
    done = import_file(store, path)
    assert (done.rows_read, done.new, done.duplicates) == (6, 2, 2)
    assert done.refused == {"replaced by a later row of the same pool and time": 2}
    assert pl.read_parquet(done.rejects_path)["reject_row"].to_list() == [1, 5]
    assert store.metrics(columns=("pool_id", "apy_percent")).rows() == [("a", 2.0), ("b", 1.0)]


def test_nothing_usable_writes_nothing_but_the_rejects(store: Store, tmp_path: Path) -> None:
    path = csv(tmp_path, "pool,date,apy", "a,2024-01-01,nan", "a,soon,1", "b,2024-01-01,inf")
    with pytest.raises(
        DataError, match=r"no row of .* can be used \(apy is not finite: 2, unreadable time: 1\); the rows"
    ):
        import_file(store, path)
    assert not store.exists
    assert [entry.name for entry in store.folder.iterdir()] == ["rejects"]


cells = {
    "pool": ["a", "b", "", "Ü"],
    "time": ["2024-01-01", "2024-01-02T10:00+01:00", "1704067200", "1704067200000", "", "never", "2999-01-01"],
    "apy": ["1", "-99.9", "-100", "nan", "inf", "", "x", "1e3"],
    "tvl": ["", "0", "5", "-5", "inf", "x"],
}


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(*(st.sampled_from(values) for values in cells.values())), min_size=1, max_size=12))
def test_every_row_is_counted_once(rows: list[tuple[str, ...]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("import")
    path = csv(folder, ",".join(cells), *(",".join(row) for row in rows))
    store = Store(folder / "data")
    for _ in range(2):
        try:
            done = import_file(store, path)
        except DataError:
            assert not store.exists
            assert pl.read_parquet(next((store.folder / "rejects").iterdir())).height == len(rows)
            return
        counted = done.new + done.revised + done.unchanged + done.duplicates + done.refused_rows
        assert counted == done.rows_read == len(rows)
        assert store.metrics().height == done.new + done.unchanged
        if done.rejects_path is not None:
            assert pl.read_parquet(done.rejects_path).height == done.refused_rows
    assert (done.new, done.revised) == (0, 0)


# -- names ------------------------------------------------------------------------------------------------------


def test_the_result_says_which_column_was_read_as_which(store: Store, tmp_path: Path) -> None:
    path = csv(tmp_path, "Pool,TimeStamp,apy,apyBase,tvlUsd,project,il7d", "a,2024-01-01,1,1,1,aave,0")
    done = import_file(store, path)
    assert done.columns == {
        "pool_id": "Pool",
        "time": "TimeStamp",
        "apy_percent": "apy",
        "apy_base_percent": "apyBase",
        "tvl_usd": "tvlUsd",
        "protocol": "project",
    }
    assert done.ignored == ("il7d",)


@pytest.mark.parametrize(("name", "alias"), [(name, alias) for name, aliases in ALIASES.items() for alias in aliases])
def test_every_alias_is_read_however_it_is_spelled(name: str, alias: str) -> None:
    for spelled in (alias, alias.upper(), alias.replace("_", " "), alias.title().replace("_", "")):
        columns = [required for required in REQUIRED if required != name]
        assert match_columns([*columns, spelled])[name] == spelled


def test_no_alias_means_two_things() -> None:
    plain = [re.sub("_", "", alias) for aliases in ALIASES.values() for alias in aliases]
    assert len(plain) == len(set(plain))


def test_our_own_spelling_goes_before_an_alias_and_two_aliases_are_refused() -> None:
    assert match_columns(["pool_id", "time", "date", "apy_percent", "apy"])["time"] == "time"
    with pytest.raises(
        DataError, match="has 'timestamp' and 'date', which could each be 'time'; keep one, or rename it"
    ):
        match_columns(["pool_id", "timestamp", "date", "apy"])


def test_a_missing_column_is_named_with_what_was_found() -> None:
    with pytest.raises(DataError) as caught:
        match_columns(["timestamp", "value"], "y.csv")
    assert str(caught.value) == ("y.csv needs a column 'pool_id' (or pool, id, pool_address); it has: timestamp, value")


def test_the_documentation_lists_every_column_alias_reason_and_word() -> None:
    text = DOCS.read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\w+)` \| (`[^|]*`) \|", text, re.M))
    documented = {name: tuple(re.findall(r"`([^`]+)`", aliases)) for name, aliases in listed.items()}
    for name, aliases in ALIASES.items():
        assert documented[name] == aliases, name
    for reason in {re.sub("^(apy|tvl) is not", "… is not", reason) for reason in BAD.values()}:
        assert f"`{reason}`" in text
    for word in NULL_WORDS:
        assert not word or f"`{word}`" in text


# -- times ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ("2024-01-02", utc(2024, 1, 2)),
        (" 2024-01-02 ", utc(2024, 1, 2)),
        ("2024-01-02T03:04", utc(2024, 1, 2, 3, 4)),
        ("2024-01-02 3:04:05", utc(2024, 1, 2, 3, 4, 5)),
        ("2024-01-02T03:04:05Z", utc(2024, 1, 2, 3, 4, 5)),
        ("2024-01-02 03:04:05 UTC", utc(2024, 1, 2, 3, 4, 5)),
        ("2024-01-02T03:04:05.678901Z", utc(2024, 1, 2, 3, 4, 5, 678901)),
        ("2024-01-02T03:04:05.6789019Z", utc(2024, 1, 2, 3, 4, 5, 678901)),
        ("2024-01-02T03:04:05,5", utc(2024, 1, 2, 3, 4, 5, 500000)),
        ("2024-01-02T00:30:00+02:00", utc(2024, 1, 1, 22, 30)),
        ("2024-01-02T00:30:00-0530", utc(2024, 1, 2, 6)),
        ("2024-01-02T00:30:00+05", utc(2024, 1, 1, 19, 30)),
        ("1704164645", utc(2024, 1, 2, 3, 4, 5)),
        ("1704164645.25", utc(2024, 1, 2, 3, 4, 5, 250000)),
        ("1704164645123", utc(2024, 1, 2, 3, 4, 5, 123000)),
        ("2024-13-01", None),
        ("2024-1-1", None),
        ("2024-01-02T25:00", None),
        ("2024-01-02T03:60", None),
        ("2024-01-02T03:04:05+25:00", None),
        ("nan", None),
        ("inf", None),
        ("", None),
        (None, None),
    ],
)
def test_a_time_as_text(told: str | None, meant: datetime | None) -> None:
    assert instants(pl.Series([told], dtype=pl.String)).to_list() == [meant]


def test_times_of_other_types() -> None:
    at = utc(2024, 1, 2, 3, 4, 5)
    seconds = int(at.timestamp())
    for series in (
        pl.Series([at]),
        pl.Series([at.replace(tzinfo=None)]),
        pl.Series([at]).dt.cast_time_unit("ns"),
        pl.Series([at]).dt.cast_time_unit("ms"),
        pl.Series([at.astimezone(timezone(timedelta(hours=5)))]),
        pl.Series([at]).dt.convert_time_zone("America/New_York"),
        pl.Series([seconds], dtype=pl.UInt32),
        pl.Series([seconds * 1_000]),
        pl.Series([seconds * 1_000_000]),
        pl.Series([seconds * 1_000_000_000]),
        pl.Series([float(seconds)]),
        pl.Series([at.isoformat()], dtype=pl.Categorical),
    ):
        assert instants(series).to_list() == [at], series
    assert instants(pl.Series([date(2024, 1, 2)])).to_list() == [utc(2024, 1, 2)]
    assert instants(pl.Series([True])).to_list() == [None]


@settings(deadline=None, max_examples=200)
@given(at=st.datetimes(datetime(2010, 1, 1), datetime(2100, 1, 1)), minutes=st.integers(-840, 840))
def test_iso_texts_are_read_as_python_reads_them(at: datetime, minutes: int) -> None:
    told = at.replace(tzinfo=timezone(timedelta(minutes=minutes))).isoformat()
    assert instants(pl.Series([told])).to_list() == [datetime.fromisoformat(told)]


# -- files that are none ----------------------------------------------------------------------------------------

BROKEN = {
    "empty": (b"", "Empty CSV file"),
    "blank": (b"\n\n\n", "Empty CSV file"),
    "a short row": (b"pool,date,apy\na,2024-01-01,1\na,2024-01-02\n", "Expected 3 columns, got 2"),
    "a long row": (b"pool,date,apy\na,2024-01-01,1,2\n", "Expected 3 columns, got 4"),
    "an open quote": (b'pool,date,apy\n"a,2024-01-01,1\n', "Expected 3 columns, got 1"),
    "another encoding": ("pool,date,apy\n\u00e9,2024-01-01,1\n".encode("latin-1"), "invalid UTF8 data"),
    "utf-16": ("pool,date,apy\na,2024-01-01,1\n".encode("utf-16"), "cannot be read as CSV"),
    "noise": (bytes(range(256)) * 40, "cannot be read as CSV"),
    "a column twice": (b"pool,date,apy,apy\na,2024-01-01,1,1\n", "the column 'apy' is there twice"),
    "a header only": (b"pool,date,apy\n", "has a header and no rows"),
    "no header": (b"a,2024-01-01,1\n", "needs a column 'pool_id'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_csv_gives_one_sentence_and_writes_nothing(store: Store, tmp_path: Path, what: str) -> None:
    content, sentence = BROKEN[what]
    path = tmp_path / "broken.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        import_file(store, path)
    assert sentence in str(caught.value)
    assert str(caught.value).isprintable()
    assert not store.folder.exists()


def test_other_files_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*nothing\.csv"):
        import_file(store, tmp_path / "nothing.csv")
    with pytest.raises(DataError, match="is not a file"):
        import_file(store, tmp_path)
    with pytest.raises(UsageError, match=r"its name must end in \.parquet, \.pq, \.csv or \.csv\.gz"):
        import_file(store, csv(tmp_path, "pool,date,apy", "a,2024-01-01,1", name="y.xlsx"))
    (tmp_path / "y.parquet").write_bytes(os.urandom(500))
    with pytest.raises(DataError, match="cannot be read as PARQUET"):
        import_file(store, tmp_path / "y.parquet")
    assert not store.folder.exists()


def test_a_byte_order_mark_windows_lines_and_compression_are_no_obstacle(store: Store, tmp_path: Path) -> None:
    import gzip

    text = b"\xef\xbb\xbfpool,date,apy\r\na,2024-01-01,1\r\n\r\na,2024-01-02,2\r\n"
    (tmp_path / "y.csv.gz").write_bytes(gzip.compress(text))
    assert import_file(store, tmp_path / "y.csv.gz").new == 2


def test_rejects_that_cannot_be_written_stop_the_import(store: Store, tmp_path: Path) -> None:
    (tmp_path / "in_the_way").write_text("a file")
    path = csv(tmp_path, "pool,date,apy", "a,2024-01-01,1", "a,2024-01-02,x")
    with pytest.raises(DataError, match=r"cannot write the refused rows to .*; nothing was added"):
        import_file(store, path, rejects_folder=tmp_path / "in_the_way")
    assert not store.exists


# -- the real file ----------------------------------------------------------------------------------------------


def test_the_real_file_goes_in_whole(store: Store) -> None:
    folder = os.environ.get("YIELDLAB_REAL_DATA")
    if not folder or not (Path(folder) / "yields.parquet").exists():
        pytest.skip("set YIELDLAB_REAL_DATA to a folder with yields.parquet")
    path = Path(folder) / "yields.parquet"
    done = import_file(store, path)
    raw = pl.read_parquet(path)
    assert (done.rows_read, done.new, done.refused, done.duplicates) == (raw.height, raw.height, {}, 0)
    assert import_file(store, path).unchanged == raw.height
    assert store.panel().shape[1] == done.pools == raw["pool_id"].n_unique()
