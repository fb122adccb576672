"""The same trials in vectorbt: an independent engine for verification, and its plots and statistics for chosen runs.

A pool becomes an asset whose price is its cumulative growth index, a deposit a purchase of shares, a withdrawal a sale.
A delisting sells all shares, and what it writes off is part of that sale's fee.
vectorbt is an optional extra: `pip install "yieldlab[vectorbt]"` (Apache-2.0 with Commons Clause).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab.errors import UsageError
from yieldlab.market import Market
from yieldlab.simulate import Ledger

if TYPE_CHECKING:
    import vectorbt

Floats = NDArray[np.float64]

#: The column whose last order of a bar carries that bar's gas.
GAS = "gas"

#: Price of that order's one share: vectorbt takes a fee only with an order, and refuses a sale smaller than its fee.
_GAS_PRICE_USD = 1e-12

#: The lowest equity, over the highest, that a replay is held to: vectorbt's cash is exact to rounding of the highest,
#: which below this is no longer small beside what is left, nor is the spare cash.
COMPARABLE = 1e-6

#: Spare cash as a share of the highest equity: far above what vectorbt takes for equal (1e-9), far below what shows.
_SPARE = 1e-6


def replay(market: Market, ledger: Ledger, trials: Sequence[int] | None = None) -> vectorbt.Portfolio:
    """A vectorbt Portfolio with one cash-sharing group per trial (all by default), rebuilt from the emitted trades.

    The ledger must come from `run(..., trace=True)` on this market. Each group starts with the capital and
    `spare_cash`, and has the columns (trial, pool_id) of the pools it traded and (trial, "gas"). Raises UsageError for
    an untraced or failed trial, or when vectorbt is not installed.
    """
    import pandas as pd

    vbt = _vectorbt()
    chosen = _checked(ledger, trials)
    blocks = [_orders(market, ledger, trial) for trial in chosen]
    columns = pd.MultiIndex.from_tuples(
        [(trial, name) for trial, block in zip(chosen, blocks, strict=True) for name in block["names"]],
        names=["trial", "pool"],
    )

    def table(name: str) -> Any:
        return pd.DataFrame(
            np.hstack([block[name] for block in blocks]), index=pd.DatetimeIndex(ledger.times), columns=columns
        )

    step = np.min(np.diff(ledger.times)) if ledger.times.size > 1 else np.timedelta64(1, "D")
    return vbt.Portfolio.from_orders(
        table("price"),
        table("size"),
        size_type="amount",
        direction="longonly",
        fees=table("fee"),
        fixed_fees=table("gas"),
        call_seq=np.hstack([block["sequence"] for block in blocks]),
        init_cash=np.array([ledger.capital + spare for spare in spare_cash(ledger, chosen)]),
        cash_sharing=True,
        group_by="trial",
        allow_partial=False,
        raise_reject=True,
        freq=pd.Timedelta(step),
    )


def spare_cash(ledger: Ledger, trials: Sequence[int] | None = None) -> Floats:
    """USD, per trial, that its vectorbt group has on top of the capital; it is never touched.

    A trial that spends its last cent would be refused by vectorbt over rounding, and one that leaves a pool untraded
    can be short of cash by the cost of its other trades, of which vectorbt lends none.
    """
    spare = []
    for trial in _checked(ledger, trials):
        flows = ledger.trades.filter(trial=trial).group_by("row").agg(pl.sum("amount_usd", "cost_usd", "gas_usd"))
        spent = flows.sort("row").select(pl.sum_horizontal("amount_usd", "cost_usd", "gas_usd").cum_sum()).to_series()
        short = max(0.0, float(spent.max() or 0.0) - ledger.capital)  # type: ignore[arg-type]
        spare.append(short + _SPARE * float(ledger.kept_equity[trial].max()))
    return np.array(spare)


def comparable(ledger: Ledger, trial: int = 0) -> bool:
    """Whether a trial that ran keeps above a millionth of its highest equity, so that a replay can be held to nine
    digits of it."""
    equity = ledger.kept_equity[trial]
    return bool(equity.min() >= COMPARABLE * max(ledger.capital, float(equity.max())))


def largest_difference(market: Market, ledger: Ledger, trials: Sequence[int] | None = None) -> float:
    """Largest relative difference between vectorbt's equity and the ledger's, over all bars of the trials.

    Infinite when vectorbt finds that one of the trades cannot be made.
    """
    chosen = _checked(ledger, trials)
    rejected = _vectorbt().portfolio.enums.RejectedOrderError
    try:
        portfolio = replay(market, ledger, chosen)
    except rejected:
        return float("inf")
    value = portfolio.value().to_numpy().reshape(ledger.times.size, len(chosen))
    ours = ledger.kept_equity[chosen].T
    return float(np.max(np.abs(value - spare_cash(ledger, chosen) - ours) / ours))


def _orders(market: Market, ledger: Ledger, trial: int) -> dict[str, Any]:
    """One trial's orders as (W, C) arrays: its C - 1 pools, then the gas column."""
    trades = ledger.trades.filter(trial=trial)
    pools = trades["pool"].unique().sort().to_numpy()
    rows = slice(ledger.t_start, ledger.t_start + ledger.times.size)
    price = np.column_stack([market.index[pools, rows].T, np.full(ledger.times.size, _GAS_PRICE_USD)])
    size = np.full(price.shape, np.nan)
    fee = np.zeros(price.shape)
    gas = np.zeros(price.shape)
    bar = trades["row"].to_numpy() - ledger.t_start
    column = np.searchsorted(pools, trades["pool"].to_numpy())
    lost = trades["written_off_usd"].to_numpy()
    amount = trades["amount_usd"].to_numpy() - lost
    size[bar, column] = amount / price[bar, column]
    fee[bar, column] = (trades["cost_usd"].to_numpy() + lost) / np.abs(amount)
    np.add.at(gas[:, -1], bar, trades["gas_usd"].to_numpy())
    size[gas[:, -1] > 0.0, -1] = 1.0
    first = np.where(np.isnan(size), 0.0, np.sign(size))  # sales, then nothing, then purchases
    first[:, -1] = 2.0
    return {
        "names": [*(market.pool_ids[pool] for pool in pools), GAS],
        "price": price,
        "size": size,
        "fee": fee,
        "gas": gas,
        "sequence": np.argsort(first, axis=1, kind="stable"),
    }


def _checked(ledger: Ledger, trials: Sequence[int] | None) -> list[int]:
    chosen = list(range(ledger.status.size)) if trials is None else [int(trial) for trial in trials]
    if ledger.equity is None or ledger.trace.shape[1] == 0:
        raise UsageError("a replay needs the equity and the trades of its trials: run them with trace=True")
    for trial in chosen:
        if ledger.status[trial] != 0:
            raise UsageError(f"trial {trial} cannot be replayed: {ledger.reasons[trial]}")
    return chosen


def _vectorbt() -> Any:
    try:
        import vectorbt
    except ImportError:
        raise UsageError("vectorbt is not installed; get it with: pip install 'yieldlab[vectorbt]'") from None
    return vectorbt
