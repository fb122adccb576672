"""The long tables: which columns they have, in which unit, and what makes a row unique.

Every observation has three clocks: `valid_at` (the instant it describes), `observed_at` (when it could be known) and
`ingested_at` (when the store took it). All are UTC. Rates are percent here, as every feed gives them; they become
fractions in `Panel.from_long` and nowhere else.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import NamedTuple

import polars as pl

UTC = pl.Datetime("us", "UTC")

#: One row per pool, instant and revision. Null = not observed.
YIELD_METRICS = pl.Schema(
    {
        "pool_id": pl.String(),
        "valid_at": UTC,
        "observed_at": UTC,
        "ingested_at": UTC,
        "apy_percent": pl.Float64(),
        "apy_base_percent": pl.Float64(),
        "apy_reward_percent": pl.Float64(),
        "tvl_usd": pl.Float64(),
        "volume_24h_usd": pl.Float64(),
        "utilization_rate": pl.Float64(),
        "volatility_24h": pl.Float64(),
        "source": pl.String(),
    }
)

#: What a row of `yield_metrics` measures; the rest of its columns are keys, clocks and provenance.
MEASURED = (
    "apy_percent",
    "apy_base_percent",
    "apy_reward_percent",
    "tvl_usd",
    "volume_24h_usd",
    "utilization_rate",
    "volatility_24h",
)

#: One row per pool and revision of its description.
ASSETS = pl.Schema(
    {
        "pool_id": pl.String(),
        "protocol": pl.String(),
        "symbol": pl.String(),
        "chain": pl.String(),
        "observed_at": UTC,
        "ingested_at": UTC,
        "source": pl.String(),
    }
)

#: What a row of `assets` says about its pool.
DESCRIBED = ("protocol", "symbol", "chain")

#: Where rows of the live feed come from: `source` is this word, or begins with it and a slash.
FEED = "defillama"

#: One row per answer of a feed that was kept: what was asked, when it was there in full, and the SHA-256 of its body.
FETCHES = pl.Schema(
    {
        "fetched_at": UTC,
        "url": pl.String(),
        "kind": pl.String(),
        "key": pl.String(),
        "status": pl.Int64(),
        "content_hash": pl.String(),
        "size_bytes": pl.Int64(),
    }
)

#: One row per poll of the collector, whatever became of it.
POLLS = pl.Schema(
    {
        "polled_at": UTC,
        "outcome": pl.String(),
        "http_status": pl.Int64(),
        "size_bytes": pl.Int64(),
        "content_hash": pl.String(),
        "pools": pl.Int64(),
        "new": pl.Int64(),
        "changed": pl.Int64(),
        "vanished": pl.Int64(),
        "refused": pl.Int64(),
        "duration_s": pl.Float64(),
        "error": pl.String(),
    }
)

#: What happened to a pool in the feed: it appeared, vanished, returned, or got another name.
POOL_EVENTS = pl.Schema(
    {
        "pool_id": pl.String(),
        "event_at": UTC,
        "event": pl.String(),
        "before": pl.String(),
        "after": pl.String(),
    }
)

#: One row per series beside the pools (gas price, token price, sentiment), instant and revision.
SERIES = pl.Schema(
    {
        "name": pl.String(),
        "valid_at": UTC,
        "observed_at": UTC,
        "ingested_at": UTC,
        "value": pl.Float64(),
        "source": pl.String(),
    }
)

#: Which pool an entry of a watchlist was found to be; it stays that one.
PINS = pl.Schema({"watchlist": pl.String(), "entry": pl.String(), "pool_id": pl.String(), "pinned_at": UTC})

#: From `valid_from` on, whether a project's numbers are simple ("apr") or compounded ("apy"), and what its TVL means.
CONVENTIONS = pl.Schema(
    {
        "project": pl.String(),
        "valid_from": UTC,
        "base_kind": pl.String(),
        "reward_kind": pl.String(),
        "tvl_kind": pl.String(),
        "source": pl.String(),
        "ingested_at": UTC,
    }
)


#: One row per forecast: what a model of `run_id` said at the end of the day `valid_at` (its midnight) about `pool_id`,
#: having learned from nothing after the day `trained_through`. Rates are fractions here: a model writes panel fields.
FORECASTS = pl.Schema(
    {
        "field": pl.String(),
        "model": pl.String(),
        "run_id": pl.String(),
        "created_at": UTC,
        "pool_id": pl.String(),
        "valid_at": UTC,
        "prediction": pl.Float64(),
        "trained_through": UTC,
    }
)

#: One row per finished run of forecasts; `known_at` is when all that it was made from was known, `fields` are joined by
#: commas. Rows of `forecasts` whose run is not here were left by a run that did not finish.
FORECAST_RUNS = pl.Schema(
    {
        "run_id": pl.String(),
        "model": pl.String(),
        "fields": pl.String(),
        "created_at": UTC,
        "known_at": UTC,
        "horizon_days": pl.Int64(),
        "settings_hash": pl.String(),
        "first": UTC,
        "last": UTC,
        "first_trained": UTC,
        "last_trained": UTC,
        "pools": pl.Int64(),
        "rows": pl.Int64(),
    }
)

#: How the panel fields begin that models write: forecasts of the APY, and what is said of risk.
FORECAST, RISK = "forecast_", "risk_"
MODEL_FIELDS = (FORECAST, RISK)

#: The forecast that needs no model: the APY as it was observed.
PERSISTENCE = "forecast_persistence"


class Field(NamedTuple):
    """A panel field: the stored column it comes from, and whether that column is in percent."""

    column: str
    percent: bool


#: Panel field -> where it comes from.
FIELDS = MappingProxyType(
    {
        "apy": Field("apy_percent", percent=True),
        "apy_base": Field("apy_base_percent", percent=True),
        "apy_reward": Field("apy_reward_percent", percent=True),
        "tvl_usd": Field("tvl_usd", percent=False),
        "volume_24h_usd": Field("volume_24h_usd", percent=False),
        "utilization_rate": Field("utilization_rate", percent=False),
        "volatility_24h": Field("volatility_24h", percent=False),
    }
)

#: Tokens held to one US dollar, as they are spelled in pool symbols (compared in upper case).
USD_STABLECOINS = frozenset(
    "USDC USDC.E USDBC USDT USDT.E USDT0 USD₮0 DAI XDAI FRAX FRXUSD SFRAX SFRXUSD LUSD BUSD TUSD USDP PAX GUSD SUSD "
    "USDD USDE SUSDE USDS SUSDS SDAI GHO CRVUSD SCRVUSD PYUSD FDUSD USD0 USD0++ DOLA MIM ALUSD MUSD USDY USDX SUSDX "
    "RLUSD USDA USDB USDM USDN USDR USDL USDF FEI BOLD 3CRV 3POOL CUSD AUSD DEUSD USR FXUSD USDG USD1 USDTB".split()
)


def is_model_field(name: str) -> bool:
    """Whether a panel field of this name is one that a model writes.

    >>> is_model_field("forecast_lstm"), is_model_field("forecast_"), is_model_field("apy")
    (True, False, False)
    """
    return name.startswith(MODEL_FIELDS) and name not in MODEL_FIELDS


def is_feed(source: str) -> bool:
    """Whether rows of this source came from the live feed.

    >>> is_feed("defillama/chart"), is_feed("defillama"), is_feed("mine.csv")
    (True, True, False)
    """
    return source == FEED or source.startswith(f"{FEED}/")


def is_usd_stable(symbol: str | None) -> bool:
    """Whether every token of a pool's symbol is a US dollar stablecoin; an unknown symbol is not.

    >>> is_usd_stable("USDC-USDT"), is_usd_stable("USDC/WETH"), is_usd_stable(None)
    (True, False, False)
    """
    tokens = [token for token in re.split(r"[-/_\s,]+", (symbol or "").upper()) if token]
    return bool(tokens) and all(token in USD_STABLECOINS for token in tokens)
