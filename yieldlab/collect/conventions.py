"""Is the feed's number of a project a simple APR or a compounded APY, and what does its TVL count?

The feed tells neither. What stands here was read in the code of its adapters, project by project; what was not read is
not guessed, and pools of such projects stay as quoted and are counted. A convention is no observation: it is joined
when rows are read, so that mending one revises no row.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from yieldlab import schema
from yieldlab.store import Store

#: How a rate can be quoted.
KINDS = ("apr", "apy")
#: What `tvl_usd` can count: what is not lent out (supply - borrow), all that was deposited, or what lies in a pool.
TVL_KINDS = ("cash", "deposits", "pool")
#: What identifies a convention; of several rows the one recorded last counts.
KEY = ("project", "valid_from")
#: The sources of rows that come with this program begin so.
BUNDLED = "yieldlab: "

_ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)
_TOLD = ("base_kind", "reward_kind", "tvl_kind", "source")

#: Project, kind of the base rate, what its TVL counts, and how its adapter computes the base rate. The reward part is
#: a simple rate with all of them: emission a year over TVL, from the protocol or from Merkl.
_SINCE_EVER = (
    ("aave-v2", "apr", "cash", "liquidityRate / 1e27"),
    ("aave-v3", "apr", "cash", "liquidityRate / 1e27"),
    ("sparklend", "apr", "cash", "liquidityRate / 1e27"),
    ("compound-v3", "apr", "cash", "supply rate per second x 31,536,000"),
    ("uniswap-v2", "apr", "pool", "fees of 24 h x 365 / TVL"),
    ("uniswap-v3", "apr", "pool", "fees of 24 h x 365 / TVL"),
    ("pancakeswap-amm-v3", "apr", "pool", "fees of 24 h x 365 / TVL"),
    ("lido", "apr", "deposits", "the protocol's field apr"),
    ("rocket-pool", "apr", "deposits", "the protocol's APR"),
    ("ether.fi-stake", "apr", "deposits", "the protocol's APR"),
    ("yearn-finance", "apr", "deposits", "forwardAPR, else netAPR"),
    ("compound-v2", "apy", "cash", "(rate per block x blocks a day + 1)^365"),
    ("venus-core-pool", "apy", "cash", "daily rate compounded 365 times"),
    ("benqi-lending", "apy", "cash", "daily rate compounded 365 times"),
    ("sky-lending", "apy", "deposits", "rate per second compounded"),
    ("spark-savings", "apy", "deposits", "rate per second compounded"),
    ("morpho-blue", "apy", "deposits", "netApy less rewards"),
    # The same pools under the name that they had before.
    ("morpho-v1", "apy", "deposits", "netApy less rewards"),
    ("euler-v2", "apy", "cash", "supply APY"),
    ("pendle", "apy", "pool", "implied or aggregated APY"),
    ("kamino-lend", "apy", "cash", "supply APY"),
    ("ethena-usde", "apy", "deposits", "weekly rate compounded 52 times"),
    ("curve-dex", "apy", "pool", "(1 + daily growth of the virtual price)^365"),
    ("curve", "apy", "pool", "(1 + daily growth of the virtual price)^365"),
)

#: Methods that changed: project, first day, kind of the base rate, TVL, and what is computed from then on.
_SINCE = tuple(
    (project, datetime(2026, 5, 15, tzinfo=UTC), "apy", "deposits", "realised growth of one day, compounded; noisier")
    for project in ("morpho-blue", "morpho-v1")
)


@dataclass(frozen=True, slots=True)
class Mended:
    """What became of given conventions: of a project and day not had before, other than before, already so."""

    new: int
    changed: int
    unchanged: int


def table() -> pl.DataFrame:
    """The conventions that come with this program: columns of `schema.CONVENTIONS` without `ingested_at`."""
    always = [(project, _ALWAYS, base, tvl, how) for project, base, tvl, how in _SINCE_EVER]
    rows = [(project, since, base, "apr", tvl, BUNDLED + how) for project, since, base, tvl, how in (*always, *_SINCE)]
    columns = {name: dtype for name, dtype in schema.CONVENTIONS.items() if name != "ingested_at"}
    return pl.DataFrame(rows, schema=columns, orient="row").sort(KEY)


def sync(store: Store, *, now: datetime | None = None) -> int:
    """Record the bundled conventions that the store does not have; how many that were.

    What somebody else recorded for a project and day stays in force.
    """
    with store.writing():
        known = _latest(store.recorded("conventions"))
        foreign = known.filter(~pl.col("source").str.starts_with(BUNDLED).fill_null(value=False))
        rows = _telling(table().join(foreign, on=KEY, how="anti"), known)
        _record(store, rows, now)
    return rows.height


def mend(store: Store, rows: pl.DataFrame, *, now: datetime | None = None) -> Mended:
    """Record those of `rows` (columns as of `table`, one row per project and day) that tell something else than what
    is in force; the bundled conventions are recorded first, so that the store has the whole table."""
    with store.writing():
        sync(store, now=now)
        known = _latest(store.recorded("conventions"))
        telling = _telling(rows, known)
        _record(store, telling, now)
    new = telling.join(known, on=KEY, how="anti").height
    return Mended(new=new, changed=telling.height - new, unchanged=rows.height - telling.height)


def in_force(store: Store) -> pl.DataFrame:
    """Per project and day the convention in force, sorted, with `recorded`: whether the store has it already.

    A bundled convention that it does not have comes in with the next backfill, poll or mending.
    """
    known = _latest(store.recorded("conventions"))
    bundled = table().join(known, on=KEY, how="anti")
    return pl.concat(
        [
            known.drop("ingested_at").with_columns(pl.lit(True).alias("recorded")),
            bundled.with_columns(pl.lit(False).alias("recorded")),
        ]
    ).sort(KEY)


def _latest(recorded: pl.DataFrame) -> pl.DataFrame:
    return recorded.sort(*KEY, "ingested_at", maintain_order=True).unique(list(KEY), keep="last", maintain_order=True)


def _telling(rows: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """The rows that differ from what is known of their project and day, and those of which nothing is."""
    return rows.join(known.select(*KEY, *_TOLD), on=[*KEY, *_TOLD], how="anti", nulls_equal=True)


def _record(store: Store, rows: pl.DataFrame, now: datetime | None) -> None:
    if rows.height:
        store.record("conventions", rows.with_columns(pl.lit(store.stamp(now), schema.UTC).alias("ingested_at")))
