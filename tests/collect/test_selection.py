"""A selection means the pools that its words say, says what it did not find, and a name once found stays its pool."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from yieldlab.collect.selection import REFERENCE, Selection, read_watchlist
from yieldlab.errors import DataError, UsageError
from yieldlab.store import Store

NOW = datetime(2025, 7, 1, tzinfo=UTC)
IDS = [f"00000000-0000-4000-8000-00000000000{n}" for n in range(8)]
ELSEWHERE = "ffffffff-0000-4000-8000-000000000000"
POOLS = [
    (IDS[0], "aave-v3", "USDC", "Ethereum", True, 5e8),
    (IDS[1], "aave-v3", "USDC", "Ethereum", True, 9e8),
    (IDS[2], "aave-v3", "USDC", "Base", True, 2e8),
    (IDS[3], "uniswap-v3", "USDC-WETH", "Ethereum", False, 3e8),
    (IDS[4], "uniswap-v3", "WETH-USDC", "Base", None, 3e8),
    (IDS[5], "lido", "STETH", "Ethereum", False, None),
]


def feed(rows: list[tuple[object, ...]] = POOLS) -> pl.DataFrame:
    names = {"pool_id": pl.String, "protocol": pl.String, "symbol": pl.String, "chain": pl.String}
    return pl.DataFrame(rows, schema=names | {"stablecoin": pl.Boolean, "tvl_usd": pl.Float64}, orient="row")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def ids(selection: Selection, store: Store) -> list[str]:
    return selection.resolve(feed(), store).pools["pool_id"].to_list()


def pins(store: Store) -> list[tuple[str, str]]:
    return store.recorded("pins").select("entry", "pool_id").sort(pl.all()).rows()


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        (Selection(), [1, 0, 3, 4, 2, 5]),
        (Selection(pools=(IDS[5], IDS[2].upper())), [2, 5]),
        (Selection(project=("AAVE-V3",)), [1, 0, 2]),
        (Selection(project=("aave-v3", "lido"), chain=("ethereum",)), [1, 0, 5]),
        (Selection(symbol=("weth/usdc",)), [3, 4]),
        (Selection(symbol=("USDC",)), [1, 0, 2]),
        (Selection(stablecoin=True), [1, 0, 2]),
        (Selection(min_tvl=3e8), [1, 0, 3, 4]),
        (Selection(min_tvl=0), [1, 0, 3, 4, 2]),
        (Selection(top=2), [1, 0]),
        (Selection(chain=("Base",), top=1), [4]),
        (Selection(pools=(IDS[0], IDS[2]), chain=("Base",)), [2]),
    ],
)
def test_words_narrow_and_the_largest_come_first(selection: Selection, wanted: list[int], store: Store) -> None:
    assert ids(selection, store) == [IDS[n] for n in wanted]
    assert pins(store) == []


def test_a_name_means_the_largest_pool_and_stays_that_one(store: Store) -> None:
    selection = Selection(watchlist="mine", entries=("aave-v3/Ethereum/USDC", "uniswap-v3/Ethereum/WETH-USDC"))
    assert ids(selection, store) == [IDS[1], IDS[3]]
    found = [("aave-v3/Ethereum/USDC", IDS[1]), ("uniswap-v3/Ethereum/WETH-USDC", IDS[3])]
    assert pins(store) == found
    shrunk = feed([(*row[:5], 1.0 if row[0] == IDS[1] else row[5]) for row in POOLS])
    assert selection.resolve(shrunk, store).pools["pool_id"].to_list() == [IDS[3], IDS[1]]
    other = Selection(watchlist="other", entries=("AAVE-V3/ethereum/usdc",))
    assert other.resolve(shrunk, store).pools["pool_id"].to_list() == [IDS[1]]
    assert pins(store) == found


def test_a_pinned_pool_that_left_the_feed_is_still_meant(store: Store) -> None:
    selection = Selection(watchlist="mine", entries=("aave-v3/Ethereum/USDC",))
    selection.resolve(feed(), store)
    chosen = selection.resolve(feed([row for row in POOLS if row[0] != IDS[1]]), store)
    assert chosen.pools.is_empty()
    assert chosen.unlisted == (IDS[1],)
    assert chosen.missing == (f"the feed lists no usable row of the pool {IDS[1]}",)


def test_finding_writes_nothing(store: Store) -> None:
    chosen = Selection(watchlist="mine", entries=("aave-v3/Ethereum/USDC",)).find(feed(), store.recorded("pins"))
    assert chosen.pins["pool_id"].to_list() == [IDS[1]]
    assert not store.folder.exists()


def test_ties_of_size_fall_the_same_way_every_time(store: Store) -> None:
    twins = feed([(*row[:5], 1e8) for row in POOLS[:2]])
    for rows in (twins, twins.reverse()):
        chosen = Selection(watchlist="mine", entries=("aave-v3/Ethereum/USDC",)).find(rows, store.recorded("pins"))
        assert chosen.pools["pool_id"].to_list() == [IDS[0]]


def test_what_is_not_there_is_told_with_the_nearest_name(store: Store) -> None:
    selection = Selection(
        pools=(ELSEWHERE,), watchlist="mine", entries=("aave-v3/Ethereum/USDT",), project=("aave_v3", "aave-v3")
    )
    chosen = selection.resolve(feed(), store)
    assert chosen.pools.is_empty()
    assert chosen.unlisted == (ELSEWHERE,)
    assert chosen.missing == (
        "no pool of the feed is aave-v3/Ethereum/USDT; did you mean 'aave-v3/Ethereum/USDC'?",
        f"the feed lists no usable row of the pool {ELSEWHERE}",
        "no pool of the feed has the project 'aave_v3'; did you mean 'aave-v3'?",
    )
    assert pins(store) == []


def test_a_file_names_pools_by_id_or_by_project_chain_and_symbol(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(f"# ours\n{IDS[5]}  # the large one\n\n aave-v3 / Base / USDC\n{IDS[5]}\n", encoding="utf-8")
    selection = Selection.of(watchlist=str(path))
    assert selection.entries == (IDS[5], "aave-v3/Base/USDC")
    assert ids(selection, store) == [IDS[2], IDS[5]]
    assert str(selection) == "watchlist mine.txt of 2"


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(f"{IDS[5]}\n", encoding="utf-8-sig")
    assert read_watchlist(path) == (IDS[5],)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"aave-v3/USDC\n", r"line 1 of .* is 'aave-v3/USDC'; it must be the id of a pool or project/chain/symbol"),
        (b"# nothing\n", "names no pool"),
        (b"\xff\xfe", "cannot be read"),
        (b"a//b\n", "line 1"),
    ],
)
def test_a_file_that_cannot_be_a_watchlist_is_refused(tmp_path: Path, text: bytes, told: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(text)
    with pytest.raises(DataError, match=told):
        read_watchlist(path)


@pytest.mark.parametrize(
    ("criteria", "told"),
    [
        ({"pools": ["0xabc"]}, "'0xabc' is no id of a pool"),
        ({"top": 0}, "--top must be at least 1, not 0"),
        ({"min_tvl": -1.0}, "--min-tvl must be a number of USD, 0 or more, not -1"),
        ({"min_tvl": float("nan")}, "not nan"),
        (
            {"watchlist": "referense"},
            "there is no watchlist 'referense'; it is reference, or a file .*; did you mean 'reference'",
        ),
    ],
)
def test_what_cannot_be_asked_for_is_refused_at_once(criteria: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Selection.of(**criteria)


def test_a_selection_says_what_it_is() -> None:
    assert str(Selection()) == "all pools"
    told = str(Selection.of(watchlist="reference", chain=["Base", "Ethereum"], stablecoin=True, min_tvl=1e6, top=5))
    assert (
        told
        == "watchlist reference of 12, chain Base or Ethereum, stablecoins, TVL of 1,000,000 USD or more, the 5 largest"
    )


def test_the_reference_study_has_twelve_pools_on_ethereum() -> None:
    assert len(set(REFERENCE)) == 12
    assert all(entry.split("/")[1] == "Ethereum" for entry in REFERENCE)
