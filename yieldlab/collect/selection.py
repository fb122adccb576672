"""Which pools of the feed are meant: by id, by a watchlist, by what they are, by how large they are?

A watchlist names pools by id or as `project/chain/symbol`. A name may fit several pools; the largest is meant, and once
found it stays that one: its id is pinned in the store, so that a history does not change pools when sizes change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Self

import polars as pl

from yieldlab import schema
from yieldlab.errors import DataError, UsageError, did_you_mean
from yieldlab.store import Store

#: The twelve pools of the reference study, all on Ethereum.
REFERENCE = (
    *(f"aave-v3/Ethereum/{symbol}" for symbol in ("USDC", "USDT", "DAI", "WETH", "WBTC")),
    *(f"curve-dex/Ethereum/{symbol}" for symbol in ("DAI-USDC-USDT", "ETH-STETH", "FRAX-USDC")),
    *(f"uniswap-v3/Ethereum/{symbol}" for symbol in ("USDC-WETH", "WBTC-WETH", "USDC-USDT", "DAI-USDC")),
)
#: Watchlists that come with the house, by name.
WATCHLISTS: Mapping[str, tuple[str, ...]] = MappingProxyType({"reference": REFERENCE})

POOL_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The pools that a selection means in one answer of the feed."""

    #: Rows of the feed, largest first.
    pools: pl.DataFrame
    #: Pools known by their id that the feed does not list, or not any more; their history may still be there.
    unlisted: tuple[str, ...]
    #: In sentences: what was asked for and is not in the feed, the unlisted pools included.
    missing: tuple[str, ...]
    #: Entries found for the first time, as rows of the table `pins`.
    pins: pl.DataFrame


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user asked for. Pools named by `pools` or `entries`, else all, narrowed by what they are.

    Values of one kind are alternatives, different kinds must all hold. Nothing at all means every pool.
    """

    pools: tuple[str, ...] = ()
    #: The name of the watchlist, and its entries.
    watchlist: str | None = None
    entries: tuple[str, ...] = ()
    project: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()
    symbol: tuple[str, ...] = ()
    stablecoin: bool = False
    min_tvl: float | None = None
    top: int | None = None

    def __post_init__(self) -> None:
        for pool in self.pools:
            if not POOL_ID.fullmatch(pool):
                raise UsageError(f"{pool!r} is no id of a pool, such as 747c1d2a-c668-4682-b9f9-296708a3dd90")
        if self.top is not None and self.top < 1:
            raise UsageError(f"--top must be at least 1, not {self.top}")
        if self.min_tvl is not None and not 0 <= self.min_tvl < float("inf"):
            raise UsageError(f"--min-tvl must be a number of USD, 0 or more, not {self.min_tvl:g}")

    @classmethod
    def of(cls, *, watchlist: str | None = None, **criteria: object) -> Self:
        """A selection with the entries of a bundled watchlist or a file.

        Raises UsageError for a criterion that cannot be, DataError for a watchlist that cannot be read.
        """
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in criteria.items()}
        given = {name: value for name, value in given.items() if value is not None}
        if watchlist is None:
            return cls(**given)  # type: ignore[arg-type]  # an unknown name is a TypeError
        if watchlist in WATCHLISTS:
            return cls(watchlist=watchlist, entries=WATCHLISTS[watchlist], **given)  # type: ignore[arg-type]
        path = Path(watchlist)
        return cls(watchlist=path.name, entries=read_watchlist(path), **given)  # type: ignore[arg-type]

    def __str__(self) -> str:
        parts = [
            *(f"pool {pool}" for pool in self.pools),
            *([f"watchlist {self.watchlist} of {len(self.entries)}"] if self.watchlist else []),
            *(f"{name} {' or '.join(getattr(self, name))}" for name in _WORDS if getattr(self, name)),
            *(["stablecoins"] if self.stablecoin else []),
            *([f"TVL of {self.min_tvl:,.0f} USD or more"] if self.min_tvl is not None else []),
            *([f"the {self.top:,} largest"] if self.top is not None else []),
        ]
        return ", ".join(parts) or "all pools"

    @property
    def is_everything(self) -> bool:
        """Whether nothing narrows it."""
        return self == Selection()

    @property
    def names_pools(self) -> bool:
        """Whether it names pools, and is not only a description of them."""
        return bool(self.pools or self.watchlist)

    def resolve(self, feed: pl.DataFrame, store: Store) -> Chosen:
        """The pools meant in `feed` (pool_id, protocol, symbol, chain, stablecoin, tvl_usd); new pins are recorded."""
        chosen = self.find(feed, store.recorded("pins"))
        pin(store, chosen.pins)
        return chosen

    def find(self, feed: pl.DataFrame, pins: pl.DataFrame, *, now: datetime | None = None) -> Chosen:
        """The pools meant in `feed`, where `pins` were found before; writes nothing."""
        feed = _largest_first(feed)
        named, unlisted, missing = feed, [], []
        found: dict[str, str] = {}
        if self.names_pools:
            pinned = dict(
                pins.sort("pinned_at", descending=True).select(pl.col("entry").str.to_lowercase(), "pool_id").rows()
            )
            ids = [pool.lower() for pool in self.pools]
            for entry in self.entries:
                known = entry if POOL_ID.fullmatch(entry) else pinned.get(entry.lower())
                pool_id = known or _find(feed, entry)
                if pool_id is None:
                    missing.append(f"no pool of the feed is {entry}{_nearest(feed, entry)}")
                    continue
                if known is None:
                    found[entry] = pool_id
                ids.append(pool_id.lower())
            ids = list(dict.fromkeys(ids))
            listed = set(feed["pool_id"].str.to_lowercase())
            unlisted = [pool for pool in ids if pool not in listed]
            missing += [f"the feed lists no usable row of the pool {pool}" for pool in unlisted]
            named = feed.filter(pl.col("pool_id").str.to_lowercase().is_in(ids))
        missing += self._unknown_words(feed)
        return Chosen(
            pools=self._narrowed(named),
            unlisted=tuple(unlisted),
            missing=tuple(missing),
            pins=_pins(self.watchlist or "", found, now or datetime.now(UTC)),
        )

    def with_no_limits(self) -> Selection:
        """The same without what moves from day to day: the size of a pool and its rank."""
        return replace(self, min_tvl=None, top=None)

    def _narrowed(self, feed: pl.DataFrame) -> pl.DataFrame:
        for word, column in _WORDS.items():
            if wanted := [_plain(word, value) for value in getattr(self, word)]:
                feed = feed.filter(_plain_column(feed, word, column).is_in(wanted))
        if self.stablecoin:
            feed = feed.filter(pl.col("stablecoin").fill_null(False))
        if self.min_tvl is not None:
            feed = feed.filter(pl.col("tvl_usd") >= self.min_tvl)
        return feed if self.top is None else feed.head(self.top)

    def _unknown_words(self, feed: pl.DataFrame) -> list[str]:
        """A word that no pool of the feed has, with the nearest that one has."""
        told = []
        for word, column in _WORDS.items():
            if not getattr(self, word):
                continue
            there = set(_plain_column(feed, word, column).drop_nulls())
            for value in getattr(self, word):
                if _plain(word, value) not in there:
                    near = _did_you_mean(value, feed[column].drop_nulls().unique().to_list())
                    told.append(f"no pool of the feed has the {word} {value!r}{near}")
        return told


def pin(store: Store, pins: pl.DataFrame) -> None:
    """Record which pools entries were found to be, unless another process was faster."""
    if pins.height:
        with store.writing():
            known = store.recorded("pins", columns=["entry"])["entry"].str.to_lowercase()
            store.record("pins", pins.filter(~pl.col("entry").str.to_lowercase().is_in(known.implode())))


#: The words that describe a pool, and the column of the feed that each is looked up in.
_WORDS = {"project": "protocol", "chain": "chain", "symbol": "symbol"}


def read_watchlist(path: Path) -> tuple[str, ...]:
    """The entries of a file: one id or `project/chain/symbol` a line; what follows a # is a comment."""
    if not path.is_file():
        named = " or ".join(WATCHLISTS)
        near = _did_you_mean(str(path), list(WATCHLISTS))
        raise UsageError(f"there is no watchlist {str(path)!r}; it is {named}, or a file of one pool a line{near}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # editors on Windows begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the watchlist {path} cannot be read: {error}") from error
    entries: list[str] = []
    for number, line in enumerate(lines, start=1):
        entry = line.split("#", 1)[0].strip()
        if not entry:
            continue
        parts = [part.strip() for part in entry.split("/", 2)]
        if not POOL_ID.fullmatch(entry) and (len(parts) != 3 or not all(parts)):
            raise DataError(
                f"line {number} of {path} is {entry!r}; it must be the id of a pool or project/chain/symbol, "
                "as aave-v3/Ethereum/USDC"
            )
        entries.append("/".join(parts))
    if not entries:
        raise DataError(f"the watchlist {path} names no pool")
    return tuple(dict.fromkeys(entries))


def _find(feed: pl.DataFrame, entry: str) -> str | None:
    """The id of the largest pool that an entry fits."""
    fits = feed
    for (word, column), value in zip(_WORDS.items(), entry.split("/", 2), strict=True):
        fits = fits.filter(_plain_column(fits, word, column) == _plain(word, value))
    return None if fits.is_empty() else str(fits["pool_id"][0])


def _nearest(feed: pl.DataFrame, entry: str) -> str:
    if POOL_ID.fullmatch(entry):
        return ""
    names = feed.select(pl.concat_str("protocol", "chain", "symbol", separator="/"))["protocol"].drop_nulls().unique()
    return _did_you_mean(entry, names.to_list())


def _did_you_mean(value: str, known: Sequence[str]) -> str:
    """The nearest name, where one is near: a list of all the feed's names would help nobody."""
    hint = did_you_mean(value, known)
    return hint if "did you mean" in hint else ""


def _largest_first(feed: pl.DataFrame) -> pl.DataFrame:
    """By TVL, then by id, so that ties fall the same way every time; a pool of unknown TVL comes last."""
    return feed.sort("tvl_usd", "pool_id", descending=[True, False], nulls_last=True)


def _plain(word: str, value: str) -> str:
    """Upper and lower case do not matter, nor does the order of a symbol's tokens."""
    value = value.strip().lower()
    return "-".join(sorted(re.split(r"[-/\s]+", value))) if word == "symbol" else value


def _plain_column(feed: pl.DataFrame, word: str, column: str) -> pl.Series:
    texts = feed[column].str.strip_chars().str.to_lowercase()
    if word != "symbol":
        return texts
    tokens = texts.str.replace_all(r"[-/\s]+", "-").str.split("-")
    return tokens.list.sort().list.join("-")


def _pins(watchlist: str, found: Mapping[str, str], now: datetime) -> pl.DataFrame:
    rows = [(watchlist, entry, pool_id, now) for entry, pool_id in found.items()]
    return pl.DataFrame(rows, schema=schema.PINS, orient="row")
