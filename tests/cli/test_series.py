"""`data import-series`, `data fetch-series` and `data conventions`: what they say and how they end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from feed_server import FeedServer


@pytest.fixture
def server() -> Iterator[FeedServer]:
    with FeedServer(pools=1, days=10) as running:
        yield running


def test_a_file_becomes_a_series(yieldlab, empty: Path) -> None:
    (empty / "gas.csv").write_text("date,price\n2024-01-01,10\n2024-01-02,11\n")
    told = yieldlab("data", "import-series", "gas.csv", "--name", "gas_gwei")
    assert told.code == 0
    assert "gas.csv: 2 rows read, 2 new, 0 revised, 0 already known" in told.out
    assert "Series: gas_gwei; read from the column price" in told.out
    again = yieldlab("data", "import-series", "gas.csv", "--name", "gas_gwei", "--json").document
    assert (again["data"]["unchanged"], again["data"]["new"], again["status"]) == (2, 0, "ok")


def test_refused_rows_of_a_series_end_with_code_4(yieldlab, empty: Path) -> None:
    (empty / "p.csv").write_text("date,symbol,price\n2024-01-01,A,1\n2024-01-01,B,x\n2024-01-01,C,3\n")
    told = yieldlab("data", "import-series", "p.csv", "--name", "price_{symbol}")
    assert told.code == 4
    assert "value is not a number" in told.out
    assert "The refused rows, each with its reason, are in data/rejects/price__symbol_/p-" in told.out
    chosen = yieldlab("data", "import-series", "p.csv", "--name", "c", "--where", "symbol=C")
    assert chosen.code == 0
    assert "Rows left out by --where: 2" in chosen.out


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["none.csv", "--name", "x"], 3, "there is no file none.csv"),
        (["p.csv", "--name", "x"], 3, "name it with --value"),
        (["p.csv", "--name", "x", "--value", "cc"], 2, "no column 'cc'"),
        (["p.csv", "--name", "{z}", "--value", "a"], 2, "no column 'z'"),
        (["p.csv", "--name", "x", "--value", "a", "--where", "b"], 2, "--where must be COLUMN=TEXT"),
        (["p.csv", "--name", "x", "--value", "a", "--where", "b=1", "--where", "b=2"], 2, "the column 'b' twice"),
        (["p.txt", "--name", "x"], 2, "cannot tell the format"),
    ],
)
def test_a_series_that_cannot_be_read_is_one_sentence(
    yieldlab, empty: Path, arguments: list[str], code: int, sentence: str
) -> None:
    (empty / "p.csv").write_text("date,a,b\n2024-01-01,1,1\n")
    (empty / "p.txt").write_text("date,a\n")
    told = yieldlab("data", "import-series", *arguments)
    assert (told.code, told.out) == (code, "")
    assert sentence in told.err
    assert not (empty / "data").exists()


def fetch(yieldlab, server: FeedServer, *arguments: str):
    urls = ["--coins-url", server.url, "--sentiment-url", server.url, "--requests-per-minute", "60000"]
    return yieldlab("data", "fetch-series", *arguments, *urls, "--start", "2024-03-01", "--end", "2024-03-10")


def test_prices_and_sentiment_are_fetched(yieldlab, empty: Path, server: FeedServer) -> None:
    told = fetch(yieldlab, server, "eth_usd=coingecko:ethereum", "fear_greed")
    assert told.code == 0
    assert "eth_usd" in told.out
    assert "2024-03-10" in told.out
    again = fetch(yieldlab, server, "eth_usd=coingecko:ethereum", "fear_greed", "--json").document
    assert [each["unchanged"] for each in again["data"]["series"]] == [10, 10]


def test_a_series_that_cannot_be_had_ends_with_code_4_and_none_at_all_with_3(
    yieldlab, empty: Path, server: FeedServer
) -> None:
    told = fetch(yieldlab, server, "x=ethereum:0xunknown", "fear_greed")
    assert told.code == 4
    assert "warning: x: coins.llama.fi has no price of 'ethereum:0xunknown'" in told.err
    alone = fetch(yieldlab, server, "x=ethereum:0xunknown")
    assert (alone.code, alone.out) == (3, "")
    assert "x: coins.llama.fi has no price" in alone.err


def test_a_refused_value_ends_with_code_4(yieldlab, empty: Path, server: FeedServer) -> None:
    rows = [{"value": "40", "timestamp": "1709251200"}, {"value": "400", "timestamp": "1709164800"}]
    server.world.fear_greed = lambda limit: {"data": rows}  # type: ignore[method-assign]
    told = fetch(yieldlab, server, "fear_greed")
    assert told.code == 4
    assert "value outside 0 to 100" in told.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["eth"], "'eth' is no series to fetch"),
        (["fear_greed", "--start", "soon"], "--start must be a day"),
        (["fear_greed", "--start", "2024-02-01", "--end", "2024-01-01"], "--end 2024-01-01 lies before --start"),
        (["fear_greed", "--coins-url", "ftp://x"], "--coins-url must be an address"),
    ],
)
def test_what_cannot_be_fetched_is_told_before_anything_is_asked(
    yieldlab, empty: Path, arguments: list[str], sentence: str
) -> None:
    told = yieldlab("data", "fetch-series", *arguments)
    assert (told.code, told.out) == (2, "")
    assert sentence in told.err


def test_conventions_are_shown_without_touching_anything(yieldlab, empty: Path) -> None:
    told = yieldlab("data", "conventions")
    assert told.code == 0
    assert "aave-v3" in told.out
    assert "not recorded yet" in told.out
    assert not (empty / "data").exists()
    one = yieldlab("data", "conventions", "--project", "lido", "--json").document["data"]["conventions"]
    assert [(row["project"], row["base_kind"], row["tvl_kind"]) for row in one] == [("lido", "apr", "deposits")]


def test_a_project_without_a_convention_is_told_with_3(yieldlab, empty: Path) -> None:
    told = yieldlab("data", "conventions", "--project", "aave-v33", "--project", "lido")
    assert (told.code, told.out) == (3, "")
    assert "no convention is recorded for the project 'aave-v33'; did you mean 'aave-v3'?" in told.err
    told = yieldlab("data", "conventions", "--project", "nosuch")
    assert told.code == 3
    assert "the project 'nosuch'; its rates are read as compounded ones" in told.err
    (empty / "mine.csv").write_text("project,valid_from,base_kind\nnewcomer,2024-01-01,apr\n")
    told = yieldlab("data", "conventions", "mine.csv", "--project", "newcomer", "--project", "nosuch")
    assert (told.code, "1 new" in told.out, "newcomer" in told.out, "'nosuch'" in told.err) == (0, True, True, True)


def test_conventions_are_mended_from_a_file(yieldlab, empty: Path) -> None:
    (empty / "mine.csv").write_text("project,valid_from,base_kind\naave-v3,1970-01-01,apy\nnewcomer,2024-01-01,apr\n")
    told = yieldlab("data", "conventions", "mine.csv")
    assert told.code == 0
    assert "2 rows read, 1 new, 1 changed, 0 as they were, 0 refused" in told.out
    rows = yieldlab("data", "conventions", "--json").document["data"]["conventions"]
    kinds = {row["project"]: row["base_kind"] for row in rows}
    assert (kinds["aave-v3"], kinds["newcomer"], kinds["aave-v2"]) == ("apy", "apr", "apr")
    assert all(row["recorded"] for row in rows)
    again = yieldlab("data", "conventions", "mine.csv", "--json").document["data"]["mended"]
    assert (again["new"], again["changed"], again["unchanged"]) == (0, 0, 2)


def test_refused_conventions_end_with_code_4_and_a_useless_file_with_3(yieldlab, empty: Path) -> None:
    (empty / "mine.csv").write_text("project,valid_from,base_kind\na,2024-01-01,apr\nb,2024-01-01,simple\n")
    told = yieldlab("data", "conventions", "mine.csv")
    assert told.code == 4
    assert "base_kind is none of apr, apy" in told.out
    (empty / "none.csv").write_text("project,valid_from,base_kind\nb,2024-01-01,simple\n")
    useless = yieldlab("data", "conventions", "none.csv")
    assert (useless.code, useless.out) == (3, "")
