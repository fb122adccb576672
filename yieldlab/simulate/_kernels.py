"""Trials through time: one rebalance after another, compiled.

Shapes: T rows, N pools, R trials, W = t_last - t_first + 1 bars simulated, K = most pools in play at once.

One bar: accrue the positions, value the portfolio V, write down and sell what has been delisted, and on a rebalance bar
decide on row `d = t - lag`: who is eligible, the best `top_n`, their weights, whether the move is large enough, and
what it costs to trade exactly. Between rebalance bars and delistings nothing but accrual happens, so `grow` takes all
those bars at once.

The portfolio is kept in two parts: its *mix* (shares of V in each pool and in cash, which sum to 1) and V itself in
USD. Costs change V and leave the mix as it was chosen, as long as every pool in play is traded. So trials that differ
only in `cost` walk together: the mix is computed once, V for each. When the mix would come to differ (a pool that is
left untraded while others move, a pool that is delisted and sold, or a trial that cannot afford its move), the walk
stops with `PARTED` and each trial walks alone, until the mixes of all have been chosen afresh on the same bar and they
can walk together again. A lone walk does the same arithmetic in the same order, so both give the same bits.
"""

from __future__ import annotations

import numpy as np

from yieldlab._jit import borrowed, inlined_kernel, keep, kernel, parallel_kernel, prange
from yieldlab.metrics._kernels import PATH_MEASURES, measure_path
from yieldlab.simulate._accrual_kernels import grow, stale_value
from yieldlab.simulate._choice_kernels import TVL, choose, weigh
from yieldlab.simulate._delisting_kernels import delist, first_death
from yieldlab.simulate._record_kernels import (
    CLEAN,
    COST_PAID,
    INVESTED,
    NOT_FINITE,
    OK,
    PARTED,
    REBALANCES,
    RUIN_TOLERANCE,
    SKIPPED,
    STALE,
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
    UNAFFORDABLE,
)

# Where a walk stands: pools held, the bar at whose end its mix stands, the next bar on which it decides, whether that
# bar's delistings are still to come; and whether it is to stop once every pool in play was traded.
HELD = 0
BAR = 1
DECIDE = 2
DUE = 3
STOPS = 4
PLACES = 5

# Tolerance, the same in the oracle.
TURNOVER_TOLERANCE = 1e-9

# What is left of 1 after the shares of n pools are taken off is rounding up to n times this, not cash.
ROUNDING = 2.3e-16

# Code of the word `hold`, by its place in policy.ON_EMPTY.
HOLD = 1

# Columns of the measures of a path.
MEASURED = PATH_MEASURES


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
def walk(
    growth, index, apy, tvl, next_missing, next_dead, loss, signal, order, ranked,
    policies, t_first, t_last, stand, pool, mix, cash_left, worth,
    slot, value, target, chosen, weight, bonus, unit,
    equity, counts, sums, trace, traced,
):  # fmt: skip
    """Take trials that differ in `cost` at most from where they stand to bar t_last; returns why it stopped.

    `stand`, `pool` (K,), `mix` (K,) and `cash_left` (1,) say where they stand in common, `worth` (R,) what each is
    worth in USD; they are left where the walk stops. Fills equity (R, W), whose first column is bar t_first, counts
    (R, COUNTS), sums (R, SUMS) and trace (R, most trades, TRADE_COLUMNS). `slot` (N,), all -1, and the arrays after it
    are scratch.
    """
    policy = policies[0]
    together = policies.size
    held = stand[HELD]
    t = stand[BAR]
    decide = stand[DECIDE]
    cash = cash_left[0]
    for h in range(held):
        slot[pool[h]] = h
    costs = np.empty(together, np.float64)
    gas = np.empty(together, np.float64)
    kept = np.empty(together, np.float64)
    paid = np.empty(together, np.float64)
    for r in range(together):
        costs[r] = policies[r]["cost"]
    every, lag, top_n = policy["every"], policy["lag"], policy["top_n"]
    favour, min_apy = policy["persistence"], policy["min_apy"]
    weighting, power, cap = policy["weighting"], policy["power"], policy["max_weight"]
    needs_tvl = weighting == TVL or not np.isnan(policy["min_tvl"])
    min_tvl = -np.inf if np.isnan(policy["min_tvl"]) else policy["min_tvl"]
    gas_usd = policy["gas_usd"]
    least_turnover = policy["min_turnover"] - TURNOVER_TOLERANCE
    holds_on = policy["on_empty"] == HOLD
    never = t_last + 1
    may_be_dead = lag > 0  # on the row decided on itself, a dead pool has no APY
    death = never
    if next_dead is not None:
        death = t if stand[DUE] else first_death(next_dead, pool, held, t + 1, never)
    outcome = OK

    while True:
        # 1 and 2: accrue up to the next rebalance bar or delisting, and value.
        t_next = min(decide, death, t_last)
        if t_next > t:
            invested = grow(index, growth, pool, mix, held, cash, value, t, t_next, decide, unit)
            grown = unit[t_next]
            if not (grown > 0.0 and np.isfinite(grown)):
                outcome = NOT_FINITE
                break
            stale = stale_value(index, growth, next_missing, pool, mix, held, t, t_next)
            if t_next > t + 1:
                for r in range(together):
                    for u in range(t + 1, t_next):
                        equity[r, u - t_first] = worth[r] * unit[u]
            for r in range(together):
                sums[r, INVESTED] += worth[r] * invested
                if stale > 0.0:
                    sums[r, STALE] += worth[r] * stale
                worth[r] *= grown
                equity[r, t_next - t_first] = worth[r]
            shrink = 1.0 / grown
            for h in range(held):
                mix[h] = value[h] * shrink
            cash *= shrink
            t = t_next

        # Delistings.
        if next_dead is not None and t == death:
            cash_left[0] = cash
            outcome, held = delist(
                next_dead, loss, costs[0], gas_usd, t, pool, mix, held, slot, cash_left, worth,
                counts, sums, trace, traced,
            )  # fmt: skip
            if outcome != OK:
                break
            cash = cash_left[0]
            for r in range(together):
                equity[r, t - t_first] = worth[r]
            death = first_death(next_dead, pool, held, t + 1, never)
        if t < decide:
            if t == t_last:
                break
            continue

        # 3a to 3d: choose and weigh.
        d = decide - lag
        decide += every
        count = choose(
            signal, apy, tvl, order, ranked, d, top_n, favour, min_apy, min_tvl, needs_tvl, next_dead, t, may_be_dead,
            pool, held, slot, chosen, bonus,
        )  # fmt: skip
        placed = 0.0
        if count > 0:
            placed = weigh(signal, tvl, d, chosen, count, weighting, power, cap, weight)
        if placed == 0.0:
            if holds_on:
                continue
            count = 0

        # 3e: the pools in play are those held, then those chosen beside them.
        playing = held
        for h in range(held):
            target[h] = 0.0
        for k in range(count):
            seat = slot[chosen[k]]
            if seat < 0:
                seat = playing
                pool[seat] = chosen[k]
                mix[seat] = 0.0
                playing += 1
            target[seat] = weight[k]
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
            outcome = PARTED
            decide = t
            break

        # 3f: trade, exactly.
        least = 1.0
        for r in range(together):
            gas[r] = gas_usd * trades / worth[r] if gas_usd > 0.0 else 0.0
            kept[r] = 1.0 - (costs[r] * moved + gas[r]) / (1.0 + costs[r] * lean)
            paid[r] = costs[r] * (moved - lean * (1.0 - kept[r]))
            if 1.0 - kept[r] > narrowest:
                kept[r] = value_kept(target, mix, playing, costs[r], gas[r])
                paid[r] = 0.0
                for k in range(playing):
                    if is_traded(target[k], mix[k]):
                        paid[r] += costs[r] * abs(target[k] * kept[r] - mix[k])
            least = min(least, kept[r])
        if least <= RUIN_TOLERANCE:
            if together > 1:
                outcome = PARTED
                decide = t
                break
            counts[0, UNAFFORDABLE] += 1
            continue
        if trace.shape[1] > 0:
            if traced[0] + trades > trace.shape[1]:
                outcome = TRACE_FULL
                break
            for r in range(together):
                for k in range(playing):
                    if is_traded(target[k], mix[k]):
                        amount = (target[k] * kept[r] - mix[k]) * worth[r]
                        trace[r, traced[r], TRADE_ROW] = t
                        trace[r, traced[r], TRADE_POOL] = pool[k]
                        trace[r, traced[r], TRADE_AMOUNT] = amount
                        trace[r, traced[r], TRADE_COST] = costs[r] * abs(amount)
                        trace[r, traced[r], TRADE_GAS] = gas_usd
                        trace[r, traced[r], TRADE_WRITTEN_OFF] = 0.0
                        traced[r] += 1
        for r in range(together):
            counts[r, REBALANCES] += 1
            counts[r, TRADES] += trades
            sums[r, TURNOVER] += turnover
            sums[r, COST_PAID] += (paid[r] + gas[r]) * worth[r]
            worth[r] *= kept[r]
            equity[r, t - t_first] = worth[r]

        # The mix after the trades: a pool that was not traded keeps its USD, a larger share of what is left.
        held = 0
        cash = 1.0
        for k in range(playing):
            share = target[k]
            if left + faint > 0 and not is_traded(target[k], mix[k]):
                share = mix[k] / least
            if share > 0.0:
                pool[held] = pool[k]
                mix[held] = share
                slot[pool[held]] = held
                cash -= share
                held += 1
            else:
                slot[pool[k]] = -1
        if abs(cash) <= playing * ROUNDING:
            cash = 0.0
        if next_dead is not None:
            death = first_death(next_dead, pool, held, t + 1, never)
        if stand[STOPS] and left == 0:
            outcome = CLEAN
            break

    stand[HELD] = held
    stand[BAR] = t
    stand[DECIDE] = decide  # the decision or the delisting on which trials part is taken again, alone
    stand[DUE] = outcome == PARTED and t == death
    cash_left[0] = cash
    for h in range(held):
        slot[pool[h]] = -1
    return outcome


@kernel
def walk_alone(
    growth, index, apy, tvl, next_missing, next_dead, loss, signal, order, ranked,
    policies, t_first, t_last, stand, pool, mix, cash_left, worth,
    slot, value, target, chosen, weight, bonus, unit,
    equity, counts, sums, trace, traced, outcomes,
):  # fmt: skip
    """Take trials on that have parted, one by one, to the next bar on which all of them chose their mix afresh.

    When they stand alike there, leaves them there and returns True. Otherwise takes each to bar t_last, fills
    `outcomes` (R,) and returns False.
    """
    together = policies.size
    stands = np.empty((together, PLACES), np.int64)
    pools = np.empty((together, pool.size), np.int64)
    mixes = np.empty((together, mix.size), np.float64)
    cash = np.empty((together, 1), np.float64)
    held = stand[HELD]
    for r in range(together):
        stands[r, :] = stand
        pools[r, :held] = pool[:held]
        mixes[r, :held] = mix[:held]
        cash[r, 0] = cash_left[0]
        outcomes[r] = CLEAN
    for stops in (1, 0):
        for r in range(together):
            if outcomes[r] == CLEAN:
                stands[r, STOPS] = stops
                outcomes[r] = walk(
                    growth, index, apy, tvl, next_missing, next_dead, loss, signal, order, ranked,
                    policies[r : r + 1], t_first, t_last, stands[r], pools[r], mixes[r], cash[r], worth[r : r + 1],
                    slot, value, target, chosen, weight, bonus, unit,
                    equity[r : r + 1], counts[r : r + 1], sums[r : r + 1], trace[r : r + 1], traced[r : r + 1],
                )  # fmt: skip
        held = stands[0, HELD]
        alike = stops == 1
        for r in range(together):
            alike = alike and outcomes[r] == CLEAN and bool(np.all(stands[r] == stands[0]))
            alike = alike and bool(np.all(pools[r, :held] == pools[0, :held]))
            alike = alike and bool(np.all(mixes[r, :held] == mixes[0, :held]))
        if alike:
            stand[:STOPS] = stands[0, :STOPS]
            pool[:held] = pools[0, :held]
            mix[:held] = mixes[0, :held]
            cash_left[0] = cash[0, 0]
            return True
    return False


@kernel
def run_group(
    growth, index, apy, tvl, next_missing, next_dead, loss, signal, order, ranked,
    policies, t_origin, t_first, t_last, capital, days, risk_free,
    state_pool, state_usd, state_cash, paths, counts, sums, measures, status, trace, traced,
):  # fmt: skip
    """Run trials that differ in `cost` at most, together as far as they go together, and measure each.

    `t_origin` is the bar from which rebalance bars are counted. The state arrays (R, S) and (R,) hold the positions and
    cash at the end of bar t_first - 1 and take those of bar t_last; S = 0 starts from `state_cash` and stores nothing.
    Without rows in `measures` nothing is measured, without rows in `paths` no equity is kept.
    """
    together = policies.size
    pools = growth.shape[1]
    stand = np.empty(PLACES, np.int64)
    cash = np.ones(1, np.float64)
    worth = state_cash.copy()
    numbers = np.empty((5, pools), np.float64)
    places = np.empty((4, pools), np.int64)
    path = np.empty(growth.shape[0], np.float64)
    mix, value, target = borrowed(numbers[0]), borrowed(numbers[1]), borrowed(numbers[2])
    weight, bonus = borrowed(numbers[3]), borrowed(numbers[4])
    pool, slot, chosen = borrowed(places[0]), borrowed(places[1]), borrowed(places[2:].reshape(-1))
    slot[:] = -1  # pool -> its seat among those held, -1 = not held
    unit = borrowed(path)  # V of one USD in the present mix, by bar
    growth, index, apy, tvl = borrowed(growth), borrowed(index), borrowed(apy), borrowed(tvl)
    next_missing, signal, order, ranked = borrowed(next_missing), borrowed(signal), borrowed(order), borrowed(ranked)
    equity = paths if paths.shape[0] > 0 else np.empty((together, t_last - t_first + 1), np.float64)
    outcomes = np.full(together, PARTED, np.int64)

    # A trial that stores its state runs alone; a fresh one has held cash since before its first bar.
    held = 0
    for k in range(state_pool.shape[1]):
        if state_usd[0, k] > 0.0:
            pool[held] = state_pool[0, k]
            mix[held] = state_usd[0, k]
            worth[0] += mix[held]
            held += 1
    for h in range(held):
        mix[h] /= worth[0]
        cash[0] -= mix[h]
    stand[HELD] = held
    stand[DUE] = 0
    stand[STOPS] = 0
    stand[BAR] = t_first - 1
    if t_first == t_origin:
        stand[BAR] = t_first
        equity[:, 0] = worth
    every = policies[0]["every"]
    soonest = max(t_first, policies[0]["lag"] + policies[0]["warmup"])
    stand[DECIDE] = t_origin + max(0, soonest - t_origin + every - 1) // every * every

    while True:
        outcome = walk(
            growth, index, apy, tvl, next_missing, next_dead, loss, signal, order, ranked,
            policies, t_first, t_last, stand, pool, mix, cash, worth,
            slot, value, target, chosen, weight, bonus, unit, equity, counts, sums, trace, traced,
        )  # fmt: skip
        if outcome != PARTED:
            outcomes[:] = outcome
            break
        if not walk_alone(
            growth, index, apy, tvl, next_missing, next_dead, loss, signal, order, ranked,
            policies, t_first, t_last, stand, pool, mix, cash, worth,
            slot, value, target, chosen, weight, bonus, unit, equity, counts, sums, trace, traced, outcomes,
        ):  # fmt: skip
            break

    for r in range(together):
        status[r] = outcomes[r]
        if status[r] == OK and not (worth[r] > 0.0 and np.isfinite(worth[r])):
            status[r] = NOT_FINITE
        if status[r] != OK:
            equity[r, :] = np.nan
        elif measures.shape[0] > 0:
            measure_path(equity[r], capital, days, risk_free, measures[r])
    if state_pool.shape[1] > 0:
        state_usd[0, :] = 0.0
        for h in range(stand[HELD]):
            state_pool[0, h] = pool[h]
            state_usd[0, h] = mix[h] * worth[0]
        state_cash[0] = cash[0] * worth[0]
    keep(numbers, places, path)


@parallel_kernel
def run_all(
    growth, index, apy, tvl, next_missing, next_dead, loss, signal, order, ranked,
    policies, starts, schedule, t_origin, t_first, t_last, capital, days, risk_free,
    state_pool, state_usd, state_cash, equity, counts, sums, measures, status, trace, traced,
):  # fmt: skip
    """Run group `schedule[g]`, which has trials starts[.] .. starts[. + 1] - 1, for every g, on all threads."""
    for g in prange(schedule.size):
        a, b = starts[schedule[g]], starts[schedule[g] + 1]
        run_group(
            growth, index, apy, tvl, next_missing, next_dead, loss, signal, order, ranked,
            policies[a:b], t_origin, t_first, t_last, capital, days, risk_free,
            state_pool[a:b], state_usd[a:b], state_cash[a:b],
            equity[a:b], counts[a:b], sums[a:b], measures[a:b], status[a:b], trace[a:b], traced[a:b],
        )  # fmt: skip
