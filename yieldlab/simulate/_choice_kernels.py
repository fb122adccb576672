"""One decision: which pools to hold and with which weights, compiled.

Shapes: T rows, N pools, K most pools in play at once; `d` is the row decided on. All of it is merged into the walk that
calls it, since a call with this many arrays costs more than the work in it.
"""

from __future__ import annotations

import numpy as np

from yieldlab._jit import inlined_kernel

# Tolerance, the same in the oracle.
CAP_TOLERANCE = 1e-12

# Weights above this are taken as shares of the largest first, so that their sum stays within the floats.
LARGE = 1e150

# Codes of words, by their place in policy.WEIGHTINGS.
EQUAL = 0
TVL = 2
SIGNAL = 3


@inlined_kernel
def is_eligible(apy, tvl, d, i, min_apy, min_tvl, needs_tvl, next_dead, t, may_be_dead):
    """Whether a pool with a view and an APY on row d passes the limits, and takes deposits on bar t.

    A NaN `min_apy` is no limit, a NaN TVL passes none.
    """
    if next_dead is not None and may_be_dead and next_dead[i, t] == t:
        return False
    return not apy[d, i] < min_apy and (not needs_tvl or tvl[d, i] >= min_tvl)


@inlined_kernel
def choose(
    signal, apy, tvl, order, ranked, d, top_n, favour, min_apy, min_tvl, needs_tvl, next_dead, t, may_be_dead,
    pool, held, slot, chosen, bonus,
):  # fmt: skip
    """Fill `chosen` with the best `top_n` eligible pools of row d, best first; returns how many.

    `order[d, :ranked[d]]` are the pools with a view and an APY, best signal first. A held pool's positive signal
    counts `1 + favour` times; `bonus` (K,) is scratch for those scores. `may_be_dead`: one of them may have been
    delisted between row d and bar t.
    """
    count = 0
    strangers = 0
    for k in range(ranked[d]):
        i = order[d, k]
        if is_eligible(apy, tvl, d, i, min_apy, min_tvl, needs_tvl, next_dead, t, may_be_dead):
            chosen[count] = i
            count += 1
            strangers += slot[i] < 0
            if count == top_n:
                break
    if favour == 0.0 or held == 0 or strangers == 0:  # favour cannot drive out those who are held already
        return count
    # The held pools by raised score, ties by pool: `rivals` of them at the front of `bonus` and the end of `chosen`.
    rivals = 0
    base = chosen.size - held
    for h in range(held):
        i = pool[h]
        score = signal[d, i]
        if np.isnan(score) or np.isnan(apy[d, i]):
            continue
        if not is_eligible(apy, tvl, d, i, min_apy, min_tvl, needs_tvl, next_dead, t, may_be_dead):
            continue
        if score > 0.0:
            score *= 1.0 + favour
        k = rivals
        while k > 0 and (bonus[k - 1] < score or (bonus[k - 1] == score and chosen[base + k - 1] > i)):
            bonus[k] = bonus[k - 1]
            chosen[base + k] = chosen[base + k - 1]
            k -= 1
        bonus[k] = score
        chosen[base + k] = i
        rivals += 1
    # Merge them with the others, who are in order already.
    count = 0
    rival = 0
    k = 0
    while count < top_n:
        while k < ranked[d] and (
            slot[order[d, k]] >= 0
            or not is_eligible(apy, tvl, d, order[d, k], min_apy, min_tvl, needs_tvl, next_dead, t, may_be_dead)
        ):
            k += 1
        if rival < rivals and (
            k == ranked[d]
            or bonus[rival] > signal[d, order[d, k]]
            or (bonus[rival] == signal[d, order[d, k]] and chosen[base + rival] < order[d, k])
        ):
            chosen[count] = chosen[base + rival]
            rival += 1
        elif k < ranked[d]:
            chosen[count] = order[d, k]
            k += 1
        else:
            break
        count += 1
    return count


@inlined_kernel
def weigh(signal, tvl, d, chosen, count, weighting, power, cap, weight):
    """Fill `weight[:count]` for the chosen pools; returns their sum, 0 when nothing can be held."""
    if weighting == EQUAL:
        share = min(1.0 / count, cap)
        for k in range(count):
            weight[k] = share
        return share * count
    largest = 0.0
    for k in range(count):
        value = tvl[d, chosen[k]] if weighting == TVL else signal[d, chosen[k]]
        weight[k] = max(value, 0.0)
        largest = max(largest, weight[k])
    if largest == 0.0:
        return 0.0
    total = 0.0
    if largest > LARGE:
        for k in range(count):
            weight[k] /= largest
        largest = 1.0
    for k in range(count):
        if power != 1.0 and weighting != SIGNAL:
            weight[k] = (weight[k] / largest) ** power  # shares of the largest stay within range
        total += weight[k]
    if power != 1.0 and weighting != SIGNAL:
        largest = 1.0
    if weighting != SIGNAL or total > 1.0:
        for k in range(count):
            weight[k] /= total  # not times 1 / total: a sole pool's weight is exactly 1
        largest /= total
        total = 1.0
    if largest > cap + CAP_TOLERANCE:
        total = spread_excess(weight, count, total, cap)
    return total


@inlined_kernel
def spread_excess(weight, count, total, cap):
    """Cap `weight[:count]`, the excess going to uncapped ones in proportion; returns the sum that could be placed."""
    capped = 0
    scale = 1.0
    while True:
        more = False
        for k in range(count):
            if weight[k] * scale > cap + CAP_TOLERANCE:
                weight[k] = -1.0  # marked: its weight will be the cap
                capped += 1
                more = True
        free = 0.0
        for k in range(count):
            free += max(weight[k], 0.0)
        if not more or free == 0.0:
            break
        scale = (total - capped * cap) / free
    placed = 0.0
    for k in range(count):
        weight[k] = cap if weight[k] < 0.0 else weight[k] * scale
        placed += weight[k]
    return placed
