"""What do the answers of the DefiLlama yields service mean in our words?

Two routes: `/pools` (every pool as it is now) and `/chart/{pool}` (the last row of each day of one pool). Percent stay
percent, and nothing is computed, clipped or filled: what a row lacks is null. Rows pass the same checks as those of a
file, one by one; a row that cannot pass is set aside with a reason and costs the others nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING
from urllib.parse import quote

import polars as pl

from yieldlab import admission, schema
from yieldlab.collect.answers import Answer, Broken, InvalidPool, Refused, UnknownPool, parse_json, shown

if TYPE_CHECKING:
    from yieldlab.collect._http import Client

CHART_SOURCE = f"{schema.FEED}/chart"

#: Our column -> the feed's, in `/pools`.
POOLS_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "pool_id": "pool",
        "protocol": "project",
        "symbol": "symbol",
        "chain": "chain",
        "apy_percent": "apy",
        "apy_base_percent": "apyBase",
        "apy_reward_percent": "apyReward",
        "tvl_usd": "tvlUsd",
        "volume_24h_usd": "volumeUsd1d",
    }
)
#: Our column -> the feed's, in `/chart`.
CHART_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "pool_id": "pool",
        "time": "timestamp",
        "apy_percent": "apy",
        "apy_base_percent": "apyBase",
        "apy_reward_percent": "apyReward",
        "tvl_usd": "tvlUsd",
    }
)

#: What `Pools.frame` tells of a pool besides what it measures.
POOLS = ("pool_id", "protocol", "symbol", "chain", "pool_meta", "stablecoin")


@dataclass(frozen=True, slots=True)
class Pools:
    """The pools of the feed at one instant.

    `frame`: `POOLS` (pool_meta tells pools of one symbol apart), then apy_percent, apy_base_percent,
    apy_reward_percent, tvl_usd, volume_24h_usd; one row per pool, in the order of the feed.
    `refused`: row (1 = first), pool_id, reason. A pool that is refused is in the feed all the same.
    """

    frame: pl.DataFrame
    refused: pl.DataFrame
    rows_read: int
    #: Rows that say again what another row says.
    duplicates: int


@dataclass(frozen=True, slots=True)
class Chart:
    """The history of one pool: `rows_read` is the sum of the rows of `frame`, of `refused` and of `duplicates`.

    `frame`: the columns of `schema.YIELD_METRICS` that the feed tells of (a column that it does not know is not there,
    so that no value known from elsewhere is hidden), without the clocks of the store, sorted by `valid_at`.
    `refused`: row (1 = first), pool_id, reason.
    """

    pool_id: str
    frame: pl.DataFrame
    refused: pl.DataFrame
    rows_read: int
    #: Rows that say again what another row of their instant says.
    duplicates: int
    #: Rows beyond the first of their UTC day; they are kept, as each is of its own instant.
    same_day: int
    #: Rows that came before an earlier one.
    out_of_order: int


def pools(client: Client) -> tuple[Answer, Pools]:
    """Every pool as the feed tells it now. Raises what `Client.get` raises."""
    return client.get("/pools", check=lambda answer: parse_pools(answer.body))


def chart(client: Client, pool_id: str) -> tuple[Answer, Chart]:
    """The history of one pool.

    Raises UnknownPool when the feed says several times that it has no row, InvalidPool when it does not take the id,
    and what `Client.get` raises.
    """
    try:
        return client.get(
            f"/chart/{quote(pool_id, safe='')}",
            check=lambda answer: parse_chart(answer.body, pool_id, fetched_at=answer.fetched_at),
        )
    except Refused as error:
        if error.answer.status == 400 and b"invalid configID" in error.answer.body:
            raise InvalidPool(f"the feed does not take {shown(pool_id)!r} for the id of a pool (a UUID)") from error
        raise


def parse_pools(body: bytes) -> Pools:
    """The pools in a body of `/pools`; raises Broken when it is none, or has no row that can be used."""
    rows = _rows(body)
    if not rows:
        raise Broken("its list of pools is empty")
    raw = pl.DataFrame(
        [
            *(_texts(rows, name) for name in ("pool", "project", "symbol", "chain", "poolMeta")),
            *(_values(rows, POOLS_COLUMNS[name]) for name in POOLS_COLUMNS if name in schema.MEASURED),
        ]
    )
    typed = admission.typed(raw, POOLS_COLUMNS, datetime.now(UTC)).with_columns(
        admission.texts(raw["poolMeta"]).alias("pool_meta"), _flags(rows, "stablecoin")
    )
    good, refused, duplicates = _sorted_out(typed)
    if good.is_empty():
        raise Broken(f"none of its {len(rows)} rows can be used (the first: {refused['reason'][0]})")
    frame = good.select(*POOLS, *(name for name in schema.MEASURED if name in POOLS_COLUMNS))
    return Pools(frame, refused, rows_read=len(rows), duplicates=duplicates)


def parse_chart(body: bytes, pool_id: str, *, fetched_at: datetime) -> Chart:
    """The history in a body of `/chart/{pool_id}` that came at `fetched_at`: rows of a later time are refused.

    Raises Broken when it is no such body, with UnknownPool as its truth when it has no row.
    """
    rows = _rows(body)
    if not rows:
        raise Broken("it has no row", truth=UnknownPool(f"the feed knows no history of pool {shown(pool_id)!r}"))
    raw = pl.DataFrame(
        [
            pl.repeat(pool_id, len(rows), dtype=pl.String, eager=True).alias("pool"),
            *(_values(rows, column) for column in CHART_COLUMNS.values() if column != "pool"),
        ]
    )
    good, refused, duplicates = _sorted_out(admission.typed(raw, CHART_COLUMNS, fetched_at))
    times = good["time"]
    frame = good.select(
        "pool_id",
        pl.col("time").alias("valid_at"),
        *(name for name in schema.MEASURED if name in CHART_COLUMNS),
        pl.lit(CHART_SOURCE).alias("source"),
    ).sort("valid_at")
    return Chart(
        pool_id=pool_id,
        frame=frame,
        refused=refused,
        rows_read=len(rows),
        duplicates=duplicates,
        same_day=frame.height - frame["valid_at"].dt.date().n_unique(),
        out_of_order=int((times < times.cum_max()).sum()),
    )


def _rows(body: bytes) -> list[Mapping[str, object]]:
    """The rows of an answer that says it is a success; what is not a row has no values."""
    data = parse_json(body)
    if not isinstance(data, dict):
        raise Broken(f"it is not the feed's envelope but {_kind(data)}")
    if data.get("status") != "success":
        raise Broken(f'its status is {shown(json.dumps(data.get("status")))}, not "success"')
    rows = data.get("data")
    if not isinstance(rows, list):
        raise Broken(f"its data are not a list of rows but {_kind(rows)}")
    return [row if isinstance(row, dict) else {} for row in rows]


def _kind(data: object) -> str:
    return "nothing" if data is None else f"of type {type(data).__name__}"


def _sorted_out(typed: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """The good rows, the refused ones (row, pool_id, reason), and how many rows were repetitions."""
    rows, duplicates = admission.without_repetitions(typed)
    refused = pl.col(admission.REASON).is_not_null()
    told = rows.filter(refused).select(
        pl.col(admission.ROW).alias("row"), "pool_id", pl.col(admission.REASON).alias("reason")
    )
    return rows.filter(~refused), told.sort("row"), duplicates


def _values(rows: Sequence[Mapping[str, object]], name: str) -> pl.Series:
    """What stands there, for the checks to judge: all numbers as they are, else all as the texts that they came as."""
    values = [row.get(name) for row in rows]
    kinds = set(map(type, values))
    if kinds <= {float, NoneType}:
        return pl.Series(name, values, dtype=pl.Float64)
    if kinds <= {int, float, NoneType}:
        return pl.Series(name, [_float(value) for value in values], dtype=pl.Float64)
    return _encodable(
        name, [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    )


def _float(value: object) -> float | None:
    if not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _texts(rows: Sequence[Mapping[str, object]], name: str) -> pl.Series:
    """The texts of a field; anything else is as if it were not there."""
    return _encodable(name, [value if isinstance(value := row.get(name), str) else None for row in rows])


def _encodable(name: str, values: list[str | None]) -> pl.Series:
    """A column of texts. JSON can hold half a character (a lone surrogate), which no table can: no text then."""
    try:
        return pl.Series(name, values, dtype=pl.String)
    except UnicodeEncodeError:
        whole = [value if value is None or _is_whole(value) else None for value in values]
        return pl.Series(name, whole, dtype=pl.String)


def _is_whole(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _flags(rows: Sequence[Mapping[str, object]], name: str) -> pl.Series:
    values = [value if isinstance(value := row.get(name), bool) else None for row in rows]
    return pl.Series(name, values, dtype=pl.Boolean)
