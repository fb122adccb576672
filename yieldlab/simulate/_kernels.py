"""Trials through time: one rebalance after another, compiled.

Shapes: T rows, N pools, R trials, W = t_last - t_first + 1 bars simulated, K = most pools in play at once.

One bar: accrue the positions, value the portfolio V, and on a rebalance bar decide on row `d = t - lag`: who is
eligible, the best `top_n`, their weights, whether the move is large enough, and what it costs to trade exactly.
Between rebalance bars nothing but accrual happens, so `grow` takes all those bars at once.

The portfolio is kept in two parts: its *mix* (shares of V in each pool and in cash, which sum to 1) and V itself in
USD. Costs change V and leave the mix as it was chosen, as long as every pool in play is traded. So trials that differ
only in `cost` walk together: the mix is computed once, V for each. When the mix would come to differ (a pool that is
left untraded while others move, or a trial that cannot afford its move), the walk is given up with `PARTED` and each
trial walks alone. A lone walk does the same arithmetic in the same order, so both give the same bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yieldlab._jit import inlined_kernel, kernel, parallel_kernel, prange
from yieldlab.metrics._kernels import PATH_MEASURES, measure_path

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rows = NDArray[np.int32]
Records = NDArray[np.void]

# Status of a trial.
NOT_RUN = -1
OK = 0
NOT_FINITE = 1
TRACE_FULL = 2
PARTED = 3

# Tolerances, the same in the oracle.
TRADE_TOLERANCE = 1e-9
TURNOVER_TOLERANCE = 1e-9
RUIN_TOLERANCE = 1e-12
CAP_TOLERANCE = 1e-12

# Codes of words, in the order of policy.WEIGHTINGS and policy.ON_EMPTY.
SCORE = 1
TVL = 2
SIGNAL = 3
HOLD = 1

# Columns of the integer and of the USD counters of a trial.
REBALANCES = 0
TRADES = 1
SKIPPED = 2
UNAFFORDABLE = 3
COUNTS = 4
TURNOVER = 0
COST_PAID = 1
INVESTED = 2
STALE = 3
SUMS = 4

# Columns of one traced trade.
TRADE_ROW = 0
TRADE_POOL = 1
TRADE_AMOUNT = 2
TRADE_COST = 3
TRADE_GAS = 4
TRADE_COLUMNS = 5

# Columns of the measures of a path.
MEASURED = PATH_MEASURES


@inlined_kernel
def is_eligible(apy, tvl, i, min_apy, min_tvl, needs_tvl):
    """Whether a pool with a view and an APY passes the limits; a NaN `min_apy` is no limit, a NaN TVL passes none."""
    return not apy[i] < min_apy and (not needs_tvl or tvl[i] >= min_tvl)


@kernel
def choose(
    signal, apy, tvl, order, ranked, top_n, favour, min_apy, min_tvl, needs_tvl, pool, held, slot, chosen, bonus
):
    """Fill `chosen` with the best `top_n` eligible pools, best first; returns how many.

    `order[:ranked]` are the pools with a view and an APY, best signal first. A held pool's positive signal counts
    `1 + favour` times; `bonus` (K,) is scratch for those scores.
    """
    count = 0
    if favour == 0.0 or held == 0:
        for k in range(ranked):
            i = order[k]
            if is_eligible(apy, tvl, i, min_apy, min_tvl, needs_tvl):
                chosen[count] = i
                count += 1
                if count == top_n:
                    break
        return count
    # The held pools by raised score, ties by pool: `rivals` of them at the front of `bonus` and the end of `chosen`.
    rivals = 0
    base = chosen.size - held
    for h in range(held):
        i = pool[h]
        score = signal[i]
        if np.isnan(score) or np.isnan(apy[i]) or not is_eligible(apy, tvl, i, min_apy, min_tvl, needs_tvl):
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
    rival = 0
    k = 0
    while count < top_n:
        while k < ranked and (
            slot[order[k]] >= 0 or not is_eligible(apy, tvl, order[k], min_apy, min_tvl, needs_tvl)
        ):
            k += 1
        if rival < rivals and (
            k == ranked
            or bonus[rival] > signal[order[k]]
            or (bonus[rival] == signal[order[k]] and chosen[base + rival] < order[k])
        ):
            chosen[count] = chosen[base + rival]
            rival += 1
        elif k < ranked:
            chosen[count] = order[k]
            k += 1
        else:
            break
        count += 1
    return count


@kernel
def weigh(signal, tvl, chosen, count, weighting, power, cap, weight):
    """Fill `weight[:count]` for the chosen pools; returns their sum, 0 when nothing can be held."""
    if weighting == 0:
        share = min(1.0 / count, cap)
        for k in range(count):
            weight[k] = share
        return share * count
    largest = 0.0
    for k in range(count):
        value = tvl[chosen[k]] if weighting == TVL else signal[chosen[k]]
        weight[k] = max(value, 0.0)
        largest = max(largest, weight[k])
    if largest == 0.0:
        return 0.0
    total = 0.0
    for k in range(count):
        if weighting != SIGNAL:
            weight[k] /= largest  # keeps the power within range; the proportions are the same
            if power != 1.0:
                weight[k] **= power
        total += weight[k]
    if weighting != SIGNAL or total > 1.0:
        for k in range(count):
            weight[k] /= total
        total = 1.0
    if cap < 1.0:
        total = spread_excess(weight, count, total, cap)
    return total


@kernel
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


@inlined_kernel
def is_traded(target, share):
    """Whether a pool's target weight differs from its present share of V by more than rounding."""
    return abs(target - share) > TRADE_TOLERANCE


@kernel
def value_kept(target, share, count, cost, gas):
    """The share of V that is left after trading to `target` (K,) from `share` (K,), both shares of V.

    Solves `x + cost * sum over traded |target x - share| + gas = 1`. The left side is convex, piecewise linear and
    rising in x, so that Newton steps from x = 1 come down to the root and stop on its piece.
    """
    x = 1.0
    for _ in range(2 * count + 8):
        excess = x - 1.0 + gas
        slope = 1.0
        for k in range(count):
            if is_traded(target[k], share[k]):
                gap = target[k] * x - share[k]
                excess += cost * abs(gap)
                slope += cost * target[k] if gap > 0.0 else -cost * target[k]
        step = excess / slope
        x -= step
        if step <= 1e-16:
            break
    return x


@kernel
def grow(index, growth, pool, mix, held, cash, value, t, t_next, decide, unit):
    """Fill `unit[t + 1 .. t_next]` with V of one USD held in `mix` since bar t, and `value` (K,) with the mix then.

    One bar to the next decision takes that bar's growth, several take the index. Which of the two must not depend on
    where the window ends, or its end would change the last bits of the bars before it.
    """
    if decide == t + 1:
        total = 0.0
        for h in range(held):
            value[h] = mix[h] * growth[t_next, pool[h]]
            total += value[h]
        unit[t_next] = total + cash
        return
    for u in range(t + 1, t_next + 1):
        unit[u] = cash
    for h in range(held):
        path = index[pool[h]]
        shares = mix[h] / path[t]
        for u in range(t + 1, t_next + 1):
            unit[u] += shares * path[u]
        value[h] = shares * path[t_next]


@kernel
def stale_value(index, next_missing, pool, mix, held, t, t_next):
    """Value before accrual in pools whose APY is missing, summed over bars t + 1 .. t_next, for one USD at bar t."""
    total = 0.0
    for h in range(held):
        missing = next_missing[pool[h]]
        u = missing[t + 1]
        while u <= t_next:
            total += mix[h] * index[pool[h], u - 1] / index[pool[h], t]
            u = missing[u + 1]
    return total


@kernel
def walk(
    growth, index, apy, tvl, next_missing, signal, order, ranked,
    policies, t_origin, t_first, t_last, state_pool, state_usd, state_cash,
    equity, counts, sums, trace, traced,
):  # fmt: skip
    """Simulate trials that differ in `cost` at most over bars t_first .. t_last; returns a status.

    `t_origin` is the bar from which rebalance bars are counted. The state arrays (R, S) and (R,) hold the positions
    and cash at the end of bar t_first - 1 and take those of bar t_last; S = 0 starts from `state_cash` and stores
    nothing. Fills equity (R, W), counts (R, COUNTS), sums (R, SUMS) and trace (R, most trades, TRADE_COLUMNS).
    """
    policy = policies[0]
    together = policies.size
    pools = growth.shape[1]
    width = state_pool.shape[1]

    slot = np.full(pools, -1, np.int64)  # pool -> its place among those held, -1 = not held
    pool = np.empty(pools, np.int64)
    mix = np.empty(pools, np.float64)
    value = np.empty(pools, np.float64)
    target = np.empty(pools, np.float64)
    chosen = np.empty(2 * pools, np.int64)
    weight = np.empty(pools, np.float64)
    bonus = np.empty(pools, np.float64)
    unit = np.empty(growth.shape[0], np.float64)  # V of one USD in the present mix, by bar
    worth = np.empty(together, np.float64)  # V in USD, by trial

    held = 0
    cash = 1.0
    for r in range(together):
        worth[r] = state_cash[r]
    if width > 0:
        for k in range(width):
            if state_usd[0, k] > 0.0:
                pool[held] = state_pool[0, k]
                mix[held] = state_usd[0, k]
                slot[pool[held]] = held
                worth[0] += mix[held]
                held += 1
        for h in range(held):
            mix[h] /= worth[0]
        cash = state_cash[0] / worth[0]

    # `t` is the bar at whose end the mix stands; a fresh trial has held cash since before its first bar.
    t = t_first - 1
    if t_first == t_origin:
        t = t_first
        for r in range(together):
            equity[r, 0] = worth[r]
    every, lag, top_n = policy["every"], policy["lag"], policy["top_n"]
    favour, min_apy = policy["persistence"], policy["min_apy"]
    weighting, power, cap = policy["weighting"], policy["power"], policy["max_weight"]
    needs_tvl = weighting == TVL or not np.isnan(policy["min_tvl"])
    min_tvl = -np.inf if np.isnan(policy["min_tvl"]) else policy["min_tvl"]
    least_turnover = policy["min_turnover"] - TURNOVER_TOLERANCE
    holds_on = policy["on_empty"] == HOLD
    decide = t_origin
    soonest = max(t_first, lag + policy["warmup"])
    if decide < soonest:
        decide += (soonest - decide + every - 1) // every * every

    while True:
        # 1 and 2: accrue up to the next rebalance bar, and value.
        t_next = min(decide, t_last)
        if t_next > t:
            grow(index, growth, pool, mix, held, cash, value, t, t_next, decide, unit)
            grown = unit[t_next]
            if not (grown > 0.0 and np.isfinite(grown)):
                return NOT_FINITE
            invested = 0.0
            stale = 0.0
            if held > 0:
                invested = 1.0 - cash
                for u in range(t + 1, t_next):
                    invested += unit[u] - cash
                stale = stale_value(index, next_missing, pool, mix, held, t, t_next)
            for r in range(together):
                for u in range(t + 1, t_next + 1):
                    equity[r, u - t_first] = worth[r] * unit[u]
                sums[r, INVESTED] += worth[r] * invested
                sums[r, STALE] += worth[r] * stale
                worth[r] *= grown
                if not np.isfinite(worth[r]):
                    return NOT_FINITE
            shrink = 1.0 / grown
            for h in range(held):
                mix[h] = value[h] * shrink
            cash *= shrink
            t = t_next
        if decide > t_last:
            break

        # 3a to 3d: choose and weigh.
        d = decide - lag
        decide += every
        count = choose(
            signal[d], apy[d], tvl[d], order[d], ranked[d], top_n, favour, min_apy, min_tvl, needs_tvl,
            pool, held, slot, chosen, bonus,
        )  # fmt: skip
        placed = 0.0
        if count > 0:
            placed = weigh(signal[d], tvl[d], chosen, count, weighting, power, cap, weight)
        if placed == 0.0:
            if holds_on:
                continue
            count = 0

        # 3e: the pools in play are those held, then those chosen beside them.
        playing = held
        for h in range(held):
            target[h] = 0.0
        for k in range(count):
            place = slot[chosen[k]]
            if place < 0:
                place = playing
                pool[place] = chosen[k]
                mix[place] = 0.0
                playing += 1
            target[place] = weight[k]
        moved = 0.0
        lean = 0.0  # what `moved` loses as V shrinks by its whole
        narrowest = 1.0  # the smallest purchase: if V shrinks by no more, none turns into a sale
        trades = 0
        left = 0
        faint = 0
        for k in range(playing):
            gap = target[k] - mix[k]
            if abs(gap) > TRADE_TOLERANCE:
                trades += 1
                moved += abs(gap)
                lean += target[k] if gap > 0.0 else -target[k]
                narrowest = min(narrowest, gap if gap > 0.0 else 1.0)
            elif mix[k] > 0.0:
                left += 1
            else:
                faint += 1
        if trades == 0:
            continue
        turnover = 0.5 * moved
        if turnover < least_turnover and counts[0, REBALANCES] > 0:
            for r in range(together):
                counts[r, SKIPPED] += 1
            continue
        if left > 0 and together > 1:
            return PARTED

        # 3f: trade, exactly.
        kept = 1.0
        for r in range(together):
            cost = policies[r]["cost"]
            gas = policies[r]["gas_usd"] * trades / worth[r]
            kept = 1.0 - (cost * moved + gas) / (1.0 + cost * lean)
            paid = cost * (moved - lean * (1.0 - kept))
            if 1.0 - kept > narrowest:
                kept = value_kept(target, mix, playing, cost, gas)
                paid = 0.0
                for k in range(playing):
                    if is_traded(target[k], mix[k]):
                        paid += cost * abs(target[k] * kept - mix[k])
            if kept <= RUIN_TOLERANCE:
                if together > 1:
                    return PARTED
                counts[r, UNAFFORDABLE] += 1
                break
            counts[r, REBALANCES] += 1
            counts[r, TRADES] += trades
            sums[r, TURNOVER] += turnover
            sums[r, COST_PAID] += (paid + gas) * worth[r]
            if trace.shape[1] > 0:
                if traced[r] + trades > trace.shape[1]:
                    return TRACE_FULL
                for k in range(playing):
                    if is_traded(target[k], mix[k]):
                        row = trace[r, traced[r]]
                        amount = (target[k] * kept - mix[k]) * worth[r]
                        row[TRADE_ROW] = t
                        row[TRADE_POOL] = pool[k]
                        row[TRADE_AMOUNT] = amount
                        row[TRADE_COST] = cost * abs(amount)
                        row[TRADE_GAS] = policies[r]["gas_usd"]
                        traced[r] += 1
            worth[r] *= kept
            equity[r, t - t_first] = worth[r]
        if kept <= RUIN_TOLERANCE:
            continue

        # The mix after the trades: a pool that was not traded keeps its USD, a larger share of what is left.
        held = 0
        cash = 1.0
        for k in range(playing):
            share = target[k]
            if left + faint > 0 and not is_traded(target[k], mix[k]):
                share = mix[k] / kept
            if share > 0.0:
                pool[held] = pool[k]
                mix[held] = share
                slot[pool[held]] = held
                cash -= share
                held += 1
            else:
                slot[pool[k]] = -1

    if width > 0:
        state_usd[0, :] = 0.0
        for h in range(held):
            state_pool[0, h] = pool[h]
            state_usd[0, h] = mix[h] * worth[0]
        state_cash[0] = cash * worth[0]
    return OK


@kernel
def run_group(
    growth, index, apy, tvl, next_missing, signal, order, ranked,
    policies, first, last, t_origin, t_first, t_last, capital, days, risk_free,
    state_pool, state_usd, state_cash, equity, counts, sums, measures, status, trace, traced,
):  # fmt: skip
    """Walk trials first .. last - 1 together, or one by one where they part; then measure each.

    Without rows in `measures` nothing is measured, without rows in `equity` no path is kept.
    """
    bars = t_last - t_first + 1
    paths = equity[first:last] if equity.shape[0] > 0 else np.empty((last - first, bars), np.float64)
    begin = first
    end = last
    while begin < last:
        outcome = walk(
            growth, index, apy, tvl, next_missing, signal, order, ranked,
            policies[begin:end], t_origin, t_first, t_last,
            state_pool[begin:end], state_usd[begin:end], state_cash[begin:end],
            paths[begin - first : end - first], counts[begin:end], sums[begin:end], trace[begin:end], traced[begin:end],
        )  # fmt: skip
        if outcome != OK and end - begin > 1:  # start again, alone
            counts[begin:end] = 0
            sums[begin:end] = 0.0
            traced[begin:end] = 0
            end = begin + 1
            continue
        for trial in range(begin, end):
            status[trial] = outcome
            if outcome != OK:
                paths[trial - first, :] = np.nan
            elif measures.shape[0] > 0:
                measure_path(paths[trial - first], capital, days, risk_free, measures[trial])
        begin = end
        end = begin + 1


@parallel_kernel
def run_all(
    growth, index, apy, tvl, next_missing, signal, order, ranked,
    policies, starts, schedule, t_origin, t_first, t_last, capital, days, risk_free,
    state_pool, state_usd, state_cash, equity, counts, sums, measures, status, trace, traced,
):  # fmt: skip
    """Run group `schedule[g]`, which has trials starts[.] .. starts[. + 1] - 1, for every g, on all threads."""
    for g in prange(schedule.size):
        group = schedule[g]
        run_group(
            growth, index, apy, tvl, next_missing, signal, order, ranked,
            policies, starts[group], starts[group + 1], t_origin, t_first, t_last, capital, days, risk_free,
            state_pool, state_usd, state_cash, equity, counts, sums, measures, status, trace, traced,
        )  # fmt: skip
