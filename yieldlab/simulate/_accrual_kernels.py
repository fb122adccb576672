"""What a mix of pools grows to between two decisions, compiled.

Shapes: T rows, N pools, K most pools in play at once; `growth` (T, N), `index` (N, T), `next_missing` (N, T + 1) as in
Market. All of it is merged into the walk that calls it.
"""

from __future__ import annotations

from yieldlab._jit import inlined_kernel
from yieldlab.metrics._kernels import total_of

# Up to so many bars between decisions, going bar by bar is faster than along the index.
FEW_BARS = 4

# Where a pool's growth index is this far from 1, growth is multiplied bar by bar: the index may yet leave the floats.
INDEX_LIMIT = 1e100


@inlined_kernel
def has_index(index, i, t):
    """Whether pool i's growth since row t can be read off its index; depends on no later row."""
    return 1.0 / INDEX_LIMIT < index[i, t] < INDEX_LIMIT


@inlined_kernel
def grow(index, growth, pool, mix, held, cash, value, t, t_next, decide, unit):
    """Fill `unit[t + 1 .. t_next]` with V of one USD held in `mix` since bar t, and `value` (K,) with the mix then.

    Returns the value in pools before each accrual, summed over the bars. A few bars to the next decision take each
    bar's growth, more take the index. Which of the two must not depend on where the window ends, or its end would
    change the last bits of the bars before it.
    """
    invested = 0.0
    for h in range(held):
        invested += mix[h]
    if decide - t <= FEW_BARS:
        for h in range(held):
            value[h] = mix[h]
        for u in range(t + 1, t_next + 1):
            total = 0.0
            for h in range(held):
                value[h] *= growth[u, pool[h]]
                total += value[h]
            unit[u] = total + cash
            if u < t_next:
                invested += total
        return invested
    for u in range(t + 1, t_next + 1):
        unit[u] = 0.0
    for h in range(held):
        i = pool[h]
        if has_index(index, i, t):
            shares = mix[h] / index[i, t]
            for u in range(t + 1, t_next + 1):
                unit[u] += shares * index[i, u]
            value[h] = shares * index[i, t_next]
        else:
            value[h] = mix[h]
            for u in range(t + 1, t_next + 1):
                value[h] *= growth[u, i]
                unit[u] += value[h]
    invested += total_of(unit[t + 1 : t_next])
    for u in range(t + 1, t_next + 1):
        unit[u] += cash
    return invested


@inlined_kernel
def stale_value(index, growth, next_missing, pool, mix, held, t, t_next):
    """Value before accrual in pools whose APY is missing, summed over bars t + 1 .. t_next, for one USD at bar t."""
    total = 0.0
    for h in range(held):
        i = pool[h]
        u = next_missing[i, t + 1]
        while u <= t_next:
            if has_index(index, i, t):
                total += mix[h] * index[i, u - 1] / index[i, t]
            else:
                value = mix[h]
                for before in range(t + 1, u):
                    value *= growth[before, i]
                total += value
            u = next_missing[i, u + 1]
    return total
