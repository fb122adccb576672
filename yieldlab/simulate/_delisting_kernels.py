"""What becomes of positions in pools that have been delisted, compiled.

Shapes: N pools, T rows, K most pools in play at once, R trials walking together; `next_dead` (N, T + 1) as in Market.
It is None where delisted pools are held on: then the kernels are compiled without any of this, and cost nothing for it.
"""

from __future__ import annotations

from yieldlab._jit import inlined_kernel, kernel
from yieldlab.simulate._record_kernels import (
    COST_PAID,
    DELISTINGS,
    LOST_ALL,
    OK,
    PARTED,
    RUIN_TOLERANCE,
    TRACE_FULL,
    TRADE_AMOUNT,
    TRADE_COST,
    TRADE_GAS,
    TRADE_POOL,
    TRADE_ROW,
    TRADE_TOLERANCE,
    TRADE_WRITTEN_OFF,
    TRADES,
    TURNOVER,
    WRITTEN_OFF,
)


@inlined_kernel
def first_death(next_dead, pool, held, t, never):
    """The first bar >= t on which one of the pools held is dead, `never` if there is none."""
    first = never
    for h in range(held):
        first = min(first, next_dead[pool[h], t])
    return first


@kernel
def delist(
    next_dead, loss, cost, gas_usd, t, pool, mix, held, slot, cash_left, worth, counts, sums, trace, traced
):  # fmt: skip
    """Write down the held pools that are dead on bar t by `loss` and sell what is left of them; returns an outcome
    and how many pools are held then.

    A position that would bring nothing after its cost and gas is not sold but written off whole. `mix` (K,) and
    `cash_left` (1,) are shares of V before and after. Trials that walk together part, with nothing done yet, unless
    the loss is whole: then no cost is paid and all have the same mix afterwards.
    """
    if worth.size > 1 and loss < 1.0:
        return PARTED, held
    dead = 0
    for h in range(held):
        dead += next_dead[pool[h], t] == t
    if trace.shape[1] > 0 and traced[0] + dead > trace.shape[1]:
        return TRACE_FULL, held
    gas = gas_usd / worth[0]
    cash = cash_left[0]
    staying = 0.0
    written = 0.0
    paid = 0.0
    moved = 0.0
    sales = 0
    stay = 0
    for h in range(held):
        i = pool[h]
        if next_dead[i, t] != t:
            pool[stay] = i
            mix[stay] = mix[h]
            slot[i] = stay
            staying += mix[h]
            stay += 1
            continue
        slot[i] = -1
        left = mix[h] * (1.0 - loss)
        brings = left * (1.0 - cost) - gas
        is_sold = brings > TRADE_TOLERANCE
        sold = left if is_sold else 0.0
        lost = mix[h] - sold
        written += lost
        if is_sold:
            cash += brings
            paid += cost * left + gas
            moved += left
            sales += 1
        if trace.shape[1] > 0:
            for r in range(worth.size):
                trace[r, traced[r], TRADE_ROW] = t
                trace[r, traced[r], TRADE_POOL] = i
                trace[r, traced[r], TRADE_AMOUNT] = -sold * worth[r]
                trace[r, traced[r], TRADE_COST] = cost * sold * worth[r]
                trace[r, traced[r], TRADE_GAS] = gas_usd if is_sold else 0.0
                trace[r, traced[r], TRADE_WRITTEN_OFF] = lost * worth[r]
                traced[r] += 1
    kept = cash + staying
    if not kept > RUIN_TOLERANCE:
        return LOST_ALL, stay
    for h in range(stay):
        mix[h] /= kept
    cash_left[0] = cash / kept
    for r in range(worth.size):
        counts[r, DELISTINGS] += dead
        counts[r, TRADES] += sales
        sums[r, TURNOVER] += 0.5 * moved
        sums[r, COST_PAID] += paid * worth[r]
        sums[r, WRITTEN_OFF] += written * worth[r]
        worth[r] *= kept
    return OK, stay
