"""A series from a file: which column it is, which rows pass, and that nothing is lost without being counted."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yieldlab.errors import DataError, UsageError
from yieldlab.ingest.series import ImportedSeries, import_series
from yieldlab.store import Store

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REAL = Path(os.environ.get("YIELDLAB_REAL_DATA", "no such folder"))
needs_real_data = pytest.mark.skipif(
    not (REAL / "gas.csv").is_file(),
    reason="YIELDLAB_REAL_DATA names no folder with gas.csv, prices.csv, fear_greed.csv",
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def take(store: Store, text: str, name: str = "gas_gwei", **given: object) -> ImportedSeries:
    path = store.folder.parent / "file.csv"
    path.write_text(text)
    return import_series(store, path, name=name, now=NOW, **given)  # type: ignore[arg-type]


def values(store: Store) -> list[tuple[str, str, float]]:
    rows = store.series().select("name", pl.col("valid_at").dt.strftime("%m-%dT%H"), "value").rows()
    return [(str(name), str(at), float(value)) for name, at, value in rows]


def test_the_only_other_column_is_the_value(store: Store) -> None:
    told = take(store, "Date,price\n2024-01-01,1.5\n2024-01-02T06:00Z,2\n")
    assert values(store) == [("gas_gwei", "01-01T00", 1.5), ("gas_gwei", "01-02T06", 2.0)]
    assert told.columns == {"time": "Date", "value": "price"}
    assert (told.rows_read, told.new, told.series, told.series_new) == (2, 2, ("gas_gwei",), 1)
    assert store.series()["source"].unique().to_list() == ["file.csv"]
    assert take(store, "Date,price\n2024-01-01,1.5\n2024-01-02T06:00Z,2\n").unchanged == 2


def test_a_column_called_value_goes_before_others_and_those_are_told(store: Store) -> None:
    told = take(store, "date,value,classification,source\n2024-01-01,40,Fear,me\n")
    assert told.ignored == ("classification",)
    assert store.series().select("value", "source").rows() == [(40.0, "me")]


def test_where_two_columns_could_be_the_value_it_must_be_named(store: Store) -> None:
    text = "date,wei,gwei\n2024-01-01,1000000000,1\n"
    with pytest.raises(DataError, match=r"could be any of wei, gwei.; name it with --value"):
        take(store, text)
    assert take(store, text, value="gwei").ignored == ("wei",)
    assert values(store) == [("gas_gwei", "01-01T00", 1.0)]
    with pytest.raises(UsageError, match="no column 'gwai'; did you mean 'gwei'"):
        take(store, text, value="gwai")
    with pytest.raises(DataError, match=r"does not tell which column has the values .there is none."):
        take(store, "date\n2024-01-01\n")


def test_a_name_may_hold_a_column(store: Store) -> None:
    text = "date,symbol,price\n2024-01-01,ETH,2000\n2024-01-01, BTC ,40000\n2024-01-01,,7\n"
    told = take(store, text, "price_{symbol}")
    assert told.series == ("price_BTC", "price_ETH")
    assert told.refused == {"missing name": 1}
    assert told.ignored == ()
    with pytest.raises(UsageError, match="has no column 'symbl'; did you mean 'symbol'"):
        take(store, text, "price_{symbl}")
    with pytest.raises(UsageError, match="a brace too many"):
        take(store, text, "price_{symbol")
    with pytest.raises(UsageError, match="--name is empty"):
        take(store, text, " ")


def test_only_rows_that_are_asked_for_are_read(store: Store) -> None:
    text = "date,symbol,price\n2024-01-01,BTC,x\n2024-01-01,ETH,2000\n2024-01-02,ETH,y\n"
    told = take(store, text, "eth_usd", where={"symbol": "ETH"})
    assert (told.rows_read, told.rows_left_out, told.new) == (2, 1, 1)
    assert told.rejects_path is not None
    assert pl.read_parquet(told.rejects_path).select("reject_row", "symbol").rows() == [(3, "ETH")]
    with pytest.raises(DataError, match=r"no row of .* has 'DAI' in its column 'symbol'"):
        take(store, text, "dai_usd", where={"symbol": "DAI"})
    with pytest.raises(UsageError, match=r"--where: .* has no column 'sym'"):
        take(store, text, "dai_usd", where={"sym": "DAI"})


REFUSED = [
    (",1", "missing time"),
    ("someday,1", "unreadable time"),
    ("20240131,1", "time before the first blockchain"),
    ("2062-01-01,1", "time in the future"),
    ("2024-01-01,dear", "value is not a number"),
    ("2024-01-01,inf", "value is not finite"),
]


@pytest.mark.parametrize(("line", "reason"), REFUSED)
def test_a_bad_row_is_set_aside_with_its_reason_and_costs_no_other(store: Store, line: str, reason: str) -> None:
    told = take(store, f"date,price\n2024-03-01,5\n{line}\n")
    assert told.refused == {reason: 1}
    assert values(store) == [("gas_gwei", "03-01T00", 5.0)]
    assert told.rejects_path is not None
    assert told.rejects_path.parent == store.folder / "rejects" / "gas_gwei"
    rejects = pl.read_parquet(told.rejects_path)
    assert rejects.select("reject_row", "reject_reason").rows() == [(2, reason)]


def test_mended_rejects_can_be_imported(store: Store) -> None:
    told = take(store, "date,price\n2024-03-01,5\n2024-03-02,x\n")
    assert told.rejects_path is not None
    mended = store.folder.parent / "mended.parquet"
    pl.read_parquet(told.rejects_path).with_columns(pl.lit("6").alias("price")).write_parquet(mended)
    assert import_series(store, mended, name="gas_gwei", now=NOW).new == 1
    assert [value for _, _, value in values(store)] == [5.0, 6.0]


def test_rows_without_a_value_are_counted_and_not_refused(store: Store) -> None:
    told = take(store, "date,price\n2024-01-01,\n2024-01-02,null\n2024-01-03,NaN\n2024-01-04,1\n")
    assert (told.empty, told.new, told.refused) == (3, 1, {})


def test_a_value_observed_later_is_not_known_before(store: Store) -> None:
    text = "date,value,observed_at\n2024-01-01,1,2024-01-05\n2024-01-02,1,2024-01-01\n2024-01-03,1,soon\n"
    told = take(store, text + "2024-01-03,1,2062-01-01\n")
    assert told.refused == {
        "observed_at before the time": 1,
        "observed_at in the future": 1,
        "unreadable observed_at": 1,
    }
    assert store.series(as_of=datetime(2024, 1, 4, tzinfo=UTC)).is_empty()
    assert store.series(as_of=datetime(2024, 1, 5, tzinfo=UTC)).height == 1


@settings(deadline=None, max_examples=30)
@given(
    rows=st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.sampled_from(["1", "2", "x", ""])), min_size=1)
)
def test_every_row_is_counted_once_and_the_last_of_a_time_counts(
    rows: list[tuple[str, int, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Against a loop over the rows."""
    store = Store(tmp_path_factory.mktemp("folder") / "data")
    text = "date,what,value\n" + "".join(f"2024-01-0{day},{name},{value}\n" for name, day, value in rows)
    last: dict[tuple[str, int], str] = {(name, day): value for name, day, value in rows if value in ("1", "2")}
    if not last:
        with pytest.raises(DataError, match=r"no row of .* can be used"):
            take(store, text, "{what}")
        return
    told = take(store, text, "{what}")
    assert {(name, int(at[3:5])): value for name, at, value in values(store)} == {k: float(v) for k, v in last.items()}
    good = [(name, day, value) for name, day, value in rows if value in ("1", "2")]
    equal = sum(last[name, day] == value for name, day, value in good) - len(last)
    assert (told.new, told.duplicates) == (len(last), equal)
    assert told.empty == sum(value == "" for _, _, value in rows)
    assert told.refused_rows == len(rows) - told.new - told.duplicates - told.empty


@needs_real_data
def test_real_gas_prices_and_sentiment_are_taken_in(store: Store) -> None:
    gas = import_series(store, REAL / "gas.csv", name="gas_gwei", value="avg_gas_price_gwei")
    assert (gas.new, gas.refused, gas.ignored) == (3961, {}, ("avg_gas_price_wei",))
    mood = import_series(store, REAL / "fear_greed.csv", name="fear_greed")
    assert (mood.new, mood.refused) == (2615, {})
    source = "ccwhgetgit/Covered-Interest-Parity (coingecko)"
    prices = import_series(store, REAL / "prices.csv", name="{symbol}_usd", where={"source": source})
    assert set(store.series().filter(name="BTC_usd")["source"]) == {source}
    assert (prices.new, prices.refused, prices.series) == (9020, {}, ("BTC_usd", "USDC_usd", "USDT_usd"))
    # Of two sources that disagree, one must be refused, not averaged: the file holds several for one day.
    everything = import_series(store, REAL / "prices.csv", name="any_{symbol}")
    assert everything.refused == {"replaced by a later row of the same series and time": 8516}
    raw = pl.read_csv(REAL / "gas.csv")
    assert store.series().filter(name="gas_gwei")["value"].to_list() == raw["avg_gas_price_gwei"].to_list()
