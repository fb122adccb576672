"""What would the feed say about a made-up world, and how do its rows look when something is wrong with them?

One seed gives one world, byte for byte. Nothing in it is real. The routes and shapes are those of yields.llama.fi,
coins.llama.fi and alternative.me; `tests/feed_server.py` serves them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import numpy as np

NAMESPACE = uuid.UUID("0d9ff5b0-6c1c-4d5c-9a34-7f8a4a3f3a11")
LAST_DAY = date(2025, 6, 30)
#: Rows of days before this one are stamped at midnight, as the feed's first era was.
SEAM = date(2022, 9, 6)

#: project, symbol, poolMeta, base APY in percent, reward in percent, TVL: the pools of the reference study come first,
#: one of them twice (the larger one is meant).
REFERENCE = (
    ("aave-v3", "USDC", None, 4.2, None, 9.0e8),
    ("aave-v3", "USDT", None, 4.4, None, 8.0e8),
    ("aave-v3", "DAI", None, 4.6, None, 2.5e8),
    ("aave-v3", "WETH", None, 1.9, None, 3.0e9),
    ("aave-v3", "WBTC", None, 0.12, None, 2.2e9),
    ("curve-dex", "DAI-USDC-USDT", None, 1.6, 0.7, 4.0e8),
    ("curve-dex", "ETH-STETH", None, 3.4, 1.1, 1.1e9),
    ("curve-dex", "FRAX-USDC", None, 2.6, 1.4, 2.0e8),
    ("uniswap-v3", "USDC-WETH", "0.05%", 19.0, None, 2.6e8),
    ("uniswap-v3", "WBTC-WETH", "0.3%", 9.0, None, 1.9e8),
    ("uniswap-v3", "USDC-USDT", "0.01%", 3.1, None, 5.5e7),
    ("uniswap-v3", "DAI-USDC", "0.01%", 2.2, None, 8.0e7),
    ("uniswap-v3", "USDC-WETH", "0.3%", 14.0, None, 1.2e8),
)
PROJECTS = ("compound-v3", "morpho-blue", "lido", "aerodrome-v1", "sky-lending", "pendle", "fluid-lending", "beefy")
CHAINS = ("Ethereum", "Base", "Arbitrum", "BSC", "Optimism")
SYMBOLS = ("USDC", "WETH", "USDT", "WSTETH-WETH", "CBBTC", "DAI", "GHO-USDC", "LINK")


class World:
    """The rows of `pools` pools on the `days` days up to `last_day`, and of what other services say of those days."""

    def __init__(self, pools: int = 20, days: int = 60, *, seed: int = 1, last_day: date = LAST_DAY) -> None:
        self.days, self.seed, self.last_day = days, seed, last_day
        self.first_day = last_day - timedelta(days=days - 1)
        self._described = {pool["pool"]: (index, pool) for index, pool in enumerate(map(self._describe, range(pools)))}
        self.pool_ids = list(self._described)

    def pools(self) -> list[dict]:
        """The rows of /pools, largest first, as they would be a little after the last row of each chart."""
        rows = []
        for pool_id, (_, described) in self._described.items():
            last = self.chart(pool_id)[-1]
            apy = last["apy"]
            rows.append(
                described
                | {name: last[name] for name in ("tvlUsd", "apy", "apyBase", "apyReward", "apyBase7d", "il7d")}
                | {"apyMean30d": apy, "apyPct1D": 0.01, "mu": apy, "sigma": 0.05, "count": self.days, "outlier": False}
                | {"volumeUsd1d": round(last["tvlUsd"] * 0.1, 2), "volumeUsd7d": None}
                | {"predictions": {"predictedClass": None, "predictedProbability": None, "binnedConfidence": None}}
            )
        return sorted(rows, key=lambda row: -row["tvlUsd"])

    def chart(self, pool_id: str) -> list[dict]:
        """The rows of /chart/{pool_id}: the last one of each day, oldest first; empty for an unknown pool."""
        if pool_id not in self._described:
            return []
        index, described = self._described[pool_id]
        draw = np.random.default_rng([self.seed, index])
        walk = np.exp(np.cumsum(draw.normal(0.0, 0.03, self.days)))
        base = np.round(described["_base"] * walk, 5).tolist()
        given = described["_reward"]
        reward = np.round(given * walk[::-1], 5).tolist() if given is not None else [None] * self.days
        tvl = np.round(described["_tvl"] * np.exp(np.cumsum(draw.normal(0.0, 0.01, self.days)))).astype(int).tolist()
        seconds = draw.integers(0, 120, self.days).tolist()
        return [
            {
                "timestamp": self._stamp(self.first_day + timedelta(days=t), seconds[t]),
                "tvlUsd": tvl[t],
                "apy": round(base[t] + (reward[t] or 0.0), 5),
                "apyBase": base[t],
                "apyReward": reward[t],
                "il7d": None,
                "apyBase7d": None,
                "pricePerShare": None,
            }
            for t in range(self.days)
        ]

    def coins(self, coins: list[str], start: int, span: int, period_s: int) -> dict:
        """The answer of coins.llama.fi /chart for `span` + 1 prices; a coin whose name ends in `unknown` is absent."""
        told = {}
        for coin in coins:
            if coin.endswith("unknown"):
                continue
            level = 1.0 + (uuid.uuid5(NAMESPACE, coin).int % 4000)
            prices = [
                {"timestamp": start + i * period_s + 7, "price": round(level * (1 + 0.001 * (i % 9)), 6)}
                for i in range(span + 1)
            ]
            told[coin] = {"symbol": coin.split(":")[-1][:6].upper(), "confidence": 0.99, "prices": prices}
        return {"coins": told}

    def fear_greed(self, limit: int) -> dict:
        """The answer of alternative.me /fng/: newest first, every value a text; `limit` 0 means all days."""
        rows = []
        for t in range(self.days - 1, -1, -1):
            midnight = datetime.combine(self.first_day + timedelta(days=t), datetime.min.time(), UTC)
            value = (t * 37 + self.seed) % 101
            named = "Fear" if value < 50 else "Greed"
            rows.append(
                {"value": str(value), "value_classification": named, "timestamp": str(int(midnight.timestamp()))}
            )
        chosen = rows[:limit] if limit else rows
        return {"name": "Fear and Greed Index", "data": chosen, "metadata": {"error": None}}

    def _describe(self, index: int) -> dict:
        draw = np.random.default_rng([self.seed, index, 1])
        if index < len(REFERENCE):
            project, symbol, meta, base, reward, tvl = REFERENCE[index]
            chain = "Ethereum"
        else:
            project = PROJECTS[index % len(PROJECTS)]
            chain = CHAINS[index // len(PROJECTS) % len(CHAINS)]
            symbol = SYMBOLS[index // (len(PROJECTS) * len(CHAINS)) % len(SYMBOLS)]
            meta = None
            base = float(np.round(draw.uniform(0.5, 15.0), 3))
            reward = float(np.round(draw.uniform(0.1, 5.0), 3)) if index % 3 == 0 else None
            tvl = float(np.round(10 ** draw.uniform(4.5, 8.5)))
        return {
            "pool": str(uuid.uuid5(NAMESPACE, f"{self.seed}-{index}")),
            "project": project,
            "chain": chain,
            "symbol": symbol,
            "poolMeta": meta,
            "stablecoin": all(token in ("USDC", "USDT", "DAI", "FRAX", "GHO") for token in symbol.split("-")),
            "ilRisk": "yes" if "-" in symbol else "no",
            "exposure": "multi" if "-" in symbol else "single",
            "underlyingTokens": ["0x" + f"{index:040x}"],
            "rewardTokens": [],
            "_base": base,
            "_reward": reward,
            "_tvl": tvl,
        }

    @staticmethod
    def _stamp(day: date, second: int) -> str:
        return f"{day}T00:00:00.000Z" if day < SEAM else f"{day}T23:{second // 60:02d}:{second % 60:02d}.670Z"


def encode(data: object) -> bytes:
    """The JSON that the feed would send; keys that begin with `_` stay behind the curtain."""
    if isinstance(data, list):
        data = [{name: value for name, value in row.items() if name[0] != "_"} for row in data]
        data = {"status": "success", "data": data}
    return json.dumps(data, separators=(",", ":")).encode()


# -- what may be wrong with rows: each takes the rows of a chart (or of /pools) and gives others --------------------


def _every_seventh(change: Callable[[dict], dict]) -> Callable[[list[dict]], list[dict]]:
    return lambda rows: [change(row) if index % 7 == 3 else row for index, row in enumerate(rows)]


def _at(places: dict[float, dict]) -> Callable[[list[dict]], list[dict]]:
    """Other values in the rows at these shares of the way."""

    def changed(rows: list[dict]) -> list[dict]:
        other = {int(share * len(rows)): values for share, values in places.items()}
        return [row | other.get(index, {}) for index, row in enumerate(rows)]

    return changed


def _dup_ts(rows: list[dict]) -> list[dict]:
    """Two stamps that are there twice: once with the same values, once with others (the later one counts)."""
    third, half = len(rows) // 3, len(rows) // 2
    return [*rows[: third + 1], rows[third], *rows[third + 1 : half], rows[half] | {"apy": 99.0}, *rows[half:]]


def _same_day_twice(rows: list[dict]) -> list[dict]:
    half = len(rows) // 2
    day = rows[half]["timestamp"][:10]
    return [*rows[:half], rows[half] | {"timestamp": f"{day}T11:01:00.000Z", "apy": 3.5}, *rows[half:]]


def _gap(rows: list[dict]) -> list[dict]:
    start = len(rows) // 3
    return rows[:start] + rows[start + 30 :]


def _stale_repeat(rows: list[dict]) -> list[dict]:
    """Ten days repeat the yield and TVL of the day before them."""
    start = len(rows) // 2
    said = {name: rows[start][name] for name in ("tvlUsd", "apy", "apyBase", "apyReward")}
    return [row | said if start < index <= start + 10 else row for index, row in enumerate(rows)]


def _from_half(change: Callable[[float], float]) -> Callable[[list[dict]], list[dict]]:
    def switched(rows: list[dict]) -> list[dict]:
        names = ("apy", "apyBase", "apyReward")
        return [
            row | {n: round(change(row[n]), 5) if row[n] is not None else None for n in names}
            if index >= len(rows) // 2
            else row
            for index, row in enumerate(rows)
        ]

    return switched


#: Name -> the rows as they then are.
DATA_FAULTS: dict[str, Callable[[list[dict]], list[dict]]] = {
    "null_apy": _every_seventh(lambda row: row | {"apy": None}),
    "nan_string": _every_seventh(lambda row: row | {"apy": "NaN"}),
    "num_string": _every_seventh(lambda row: row | {"apy": str(row["apy"]), "tvlUsd": str(row["tvlUsd"])}),
    "missing_field": _every_seventh(lambda row: {name: row[name] for name in row if name != "apy"}),
    "dup_ts": _dup_ts,
    "same_day_twice": _same_day_twice,
    "unordered": lambda rows: [rows[i] for i in np.random.default_rng(5).permutation(len(rows))],
    "negative": _at({0.25: {"apy": -5.0}, 0.5: {"apy": -100.0}, 0.75: {"tvlUsd": -1}}),
    "spike": _at({0.3: {"apy": 1_000_000.0}, 0.6: {"apy": 50_000.0}}),
    "zero_tvl": _at({0.1 * k: {"tvlUsd": 0} for k in range(1, 6)}),
    "gap": _gap,
    "stale_repeat": _stale_repeat,
    "apr_switch": _from_half(lambda percent: ((1 + percent / 36_500) ** 365 - 1) * 100),
    "units_switch": _from_half(lambda percent: percent / 100),
}
