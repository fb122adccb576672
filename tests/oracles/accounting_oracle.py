"""The accounting of docs/accounting.md in plain NumPy: one trial, one bar, one pool at a time, written for reading.

Nothing here is shared with the package, and nothing is fast. Positions are USD per pool, accrual multiplies them bar by
bar, and the value after trading is found by bisection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

TOLERANCE = 1e-9
RUIN = 1e-12
CAP_TOLERANCE = 1e-12
TINY = 1e-12

DEFAULTS = {
    "top_n": 3, "every": 7, "lag": 0, "warmup": 0, "min_apy": None, "min_tvl": None, "weighting": "equal", "power": 1.0,
    "max_weight": 1.0, "persistence": 0.0, "min_turnover": 0.0, "cost": 0.001, "gas_usd": 0.0, "on_empty": "cash",
}  # fmt: skip


@dataclass
class Result:
    equity: np.ndarray
    trades: list[tuple[int, int, float]] = field(default_factory=list)  # (row, pool, USD into the pool)
    buried: list[tuple[int, int, float, float]] = field(default_factory=list)  # (row, pool, USD sold, USD written off)
    failed: bool = False
    turnover: float = 0.0
    cost_paid: float = 0.0
    yield_accrued: float = 0.0
    rebalances: int = 0
    skipped: int = 0
    unaffordable: int = 0
    invested: float = 0.0
    stale: float = 0.0
    written_off: float = 0.0
    branches: set[str] = field(default_factory=set)


def carry(raw, days, max_stale_days):
    """The last observation at or before each row, while it is young enough."""
    carried = np.full(raw.shape, np.nan)
    for i in range(raw.shape[1]):
        seen = None
        for t in range(raw.shape[0]):
            if not np.isnan(raw[t, i]):
                seen = t
            if seen is not None and days[t] - days[seen] <= max_stale_days:
                carried[t, i] = raw[seen, i]
    return carried


def deaths(raw, days, dead_after_days):
    """(T, N) whether the pool was observed before, and last so long ago that it counts as delisted."""
    dead = np.zeros(raw.shape, dtype=bool)
    for i in range(raw.shape[1]):
        seen = None
        for t in range(raw.shape[0]):
            if not np.isnan(raw[t, i]):
                seen = t
            dead[t, i] = seen is not None and days[t] - days[seen] > dead_after_days
    return dead


def simulate(days, apy, tvl, signal, policy, *, capital, t_start, t_end, accrual="trailing", dead=None, loss=0.0):
    """Walk one policy over carried `apy`, `tvl` and `signal` (T, N); returns a Result.

    `dead` (T, N) says when pools count as delisted; without it they are held on. `loss` is written off then.
    """
    p = {**DEFAULTS, **policy}
    pools = apy.shape[1]
    position = np.zeros(pools)
    cash = float(capital)
    result = Result(np.zeros(t_end - t_start + 1))
    for t in range(t_start, t_end + 1):
        if t > t_start:
            for i in range(pools):
                rate = apy[t, i] if accrual == "trailing" else apy[t - 1, i]
                if position[i] > 0:
                    result.invested += position[i]
                    if math.isnan(rate):
                        result.stale += position[i]
                if not math.isnan(rate):
                    grown = position[i] * (1 + rate) ** ((days[t] - days[t - 1]) / 365)
                    result.yield_accrued += grown - position[i]
                    position[i] = grown
        if dead is not None:
            cash = _bury(t, position, cash, dead[t], loss, p, result)
            if result.failed:
                return result
        d = t - p["lag"]
        if (t - t_start) % p["every"] == 0 and d >= 0 and d >= p["warmup"]:
            listed = np.full(apy.shape[1], True) if dead is None else ~dead[t]
            position, cash = _rebalance(t, d, position, cash, apy, tvl, np.where(listed, signal, np.nan), p, result)
            if any(math.isfinite(signal[d, i]) and not math.isnan(apy[d, i]) and not listed[i] for i in range(pools)):
                result.branches.add("dead since the decision")
        result.equity[t - t_start] = cash + position.sum()
    return result


def _bury(t, position, cash, dead, loss, p, result):
    """Write down and sell what is held in dead pools, in place; returns the cash."""
    value = cash + position.sum()
    for i in range(position.size):
        if not (position[i] > 0 and dead[i]):
            continue
        left = position[i] * (1 - loss)
        brings = left * (1 - p["cost"]) - p["gas_usd"]
        if brings > TOLERANCE * value:
            result.branches.add("delisted and sold")
            result.trades.append((t, i, -left))
            result.turnover += left / (2 * value)
            result.cost_paid += p["cost"] * left + p["gas_usd"]
            cash += brings
            sold = left
        else:
            result.branches.add("delisted and abandoned" if left > 0 else "delisted and lost")
            sold = 0.0
        result.written_off += position[i] - sold
        result.buried.append((t, i, sold, position[i] - sold))
        position[i] = 0.0
    if cash + position.sum() <= RUIN * value:
        result.branches.add("lost all")
        result.failed = True
    return cash


def _rebalance(t, d, position, cash, apy, tvl, signal, p, result):
    value = cash + position.sum()
    weights = target_weights(d, position > 0, apy, tvl, signal, p, result.branches)
    if weights is None:
        result.branches.add("hold")
        return position, cash
    traded = [i for i in range(position.size) if abs(weights[i] * value - position[i]) > TOLERANCE * value]
    if not traded:
        result.branches.add("nothing to trade")
        return position, cash
    turnover = sum(abs(weights[i] * value - position[i]) for i in traded) / (2 * value)
    if turnover < p["min_turnover"] - TOLERANCE and result.rebalances:
        result.branches.add("skipped")
        result.skipped += 1
        return position, cash
    gas = p["gas_usd"] * len(traded)
    after = value_after(value, position, weights, traded, p["cost"], gas)
    if after <= RUIN * value:
        result.branches.add("unaffordable")
        result.unaffordable += 1
        return position, cash
    if any(position[i] > 0 for i in range(position.size) if i not in traded):
        result.branches.add("left untraded")
    new = position.copy()
    for i in traded:
        new[i] = weights[i] * after
        if (new[i] > position[i]) != (weights[i] * value > position[i]):
            result.branches.add("purchase turned sale")
        result.trades.append((t, i, new[i] - position[i]))
        result.cost_paid += p["cost"] * abs(new[i] - position[i])
    result.cost_paid += gas
    result.turnover += turnover
    result.rebalances += 1
    return new, after - new.sum()


def target_weights(d, held, apy, tvl, signal, p, branches):
    """(N,) weights decided on row d, or None for "do not trade"."""
    needs_tvl = p["min_tvl"] is not None or p["weighting"] == "tvl"
    eligible = []
    for i in range(apy.shape[1]):
        ok = math.isfinite(signal[d, i]) and not math.isnan(apy[d, i])
        ok = ok and (p["min_apy"] is None or apy[d, i] >= p["min_apy"])
        if needs_tvl:
            ok = ok and not math.isnan(tvl[d, i]) and (p["min_tvl"] is None or tvl[d, i] >= p["min_tvl"])
        if ok:
            eligible.append(i)

    def score(i):
        bonus = 1 + p["persistence"] if held[i] and signal[d, i] > 0 else 1
        return signal[d, i] * bonus

    best = sorted(eligible, key=lambda i: (-score(i), i))[: p["top_n"]]
    if best != sorted(eligible, key=lambda i: (-signal[d, i], i))[: p["top_n"]]:
        branches.add("persistence")
    if len({score(i) for i in eligible}) < len(eligible):
        branches.add("tie")
    weights = np.zeros(apy.shape[1])
    for i in best:
        if p["weighting"] == "equal":
            weights[i] = 1
        elif p["weighting"] == "tvl":
            weights[i] = tvl[d, i]
        else:
            weights[i] = max(signal[d, i], 0)
    if p["weighting"] in ("score", "tvl") and weights.max() > 0:
        weights = (weights / weights.max()) ** p["power"]
    if weights.sum() == 0:
        branches.add("empty")
        return None if p["on_empty"] == "hold" else np.zeros(apy.shape[1])
    if p["weighting"] != "signal" or weights.sum() > 1:
        weights = weights / weights.sum()
    return cap_weights(weights, p["max_weight"], branches)


def cap_weights(weights, cap, branches):
    """Hand the excess over `cap` to uncapped pools in proportion, again until none exceeds it."""
    weights = weights.copy()
    capped = set()
    while True:
        over = [i for i in range(weights.size) if weights[i] > cap + CAP_TOLERANCE]
        if not over:
            return weights
        branches.add("cap spread" if capped else "cap")
        excess = sum(weights[i] - cap for i in over)
        capped |= set(over)
        weights[over] = cap
        others = [i for i in range(weights.size) if i not in capped and weights[i] > 0]
        room = sum(weights[i] for i in others)
        if not others:
            return weights
        for i in others:
            weights[i] += excess * weights[i] / room


def value_after(value, position, weights, traded, cost, gas):
    """V' of `V' + cost * sum |w V' - p| + gas = V`, by bisection; the left side rises with V'."""

    def gap(x):
        return x + cost * sum(abs(weights[i] * x - position[i]) for i in traded) + gas - value

    low, high = -(value + gas + cost * position.sum()) / (1 - cost), value
    while low < (middle := (low + high) / 2) < high:
        if gap(middle) > 0:
            high = middle
        else:
            low = middle
    return middle


def path_measures(equity, capital, days, risk_free=0.0):
    """Measures of one equity path over `days`; None where undefined."""
    before = np.concatenate([[capital], equity[:-1]])
    r = equity / before - 1
    n = r.size
    out = dict.fromkeys(
        ("annualized_return", "volatility", "sharpe", "sortino", "calmar", "skewness", "kurtosis", "autocorrelation")
    )
    out["total_return"] = equity[-1] / capital - 1
    out["final_value"] = equity[-1]
    if days >= 1:
        ratio = equity[-1] / capital
        finite = math.log(ratio) * 365 / days < 709.7
        out["annualized_return"] = ratio ** (365 / days) - 1 if finite else None
    drawdown = min(equity[t] / max(capital, equity[: t + 1].max()) - 1 for t in range(n))
    out["max_drawdown"] = 0.0 if drawdown >= -TINY else drawdown
    if out["max_drawdown"] != 0 and out["annualized_return"] is not None:
        out["calmar"] = out["annualized_return"] / abs(out["max_drawdown"])
    if n < 2:
        return out
    periods = 365 * (n - 1) / days
    std = r.std(ddof=1)
    if std <= TINY:
        std = 0.0
    out["volatility"] = std * math.sqrt(periods)
    excess = r - risk_free / periods
    if std > 0:
        deviation = r - r.mean()
        out["skewness"] = (deviation**3).mean() / (deviation**2).mean() ** 1.5
        out["kurtosis"] = (deviation**4).mean() / (deviation**2).mean() ** 2
        out["autocorrelation"] = (deviation[1:] * deviation[:-1]).sum() / (deviation**2).sum()
    if n >= 3:
        if std > 0:
            out["sharpe"] = excess.mean() / std * math.sqrt(periods)
        downside = math.sqrt((np.minimum(excess, 0) ** 2).mean())
        if downside > TINY:
            out["sortino"] = excess.mean() / downside * math.sqrt(periods)
    return out


def measures(result, capital, days, risk_free=0.0):
    """Every measure of one trial; None where undefined."""
    out = path_measures(result.equity, capital, days, risk_free)
    out["turnover"] = result.turnover * 365 / days if days >= 1 else None
    out["rebalances"] = result.rebalances
    out["trades"] = len(result.trades)
    out["skipped"] = result.skipped
    out["unaffordable"] = result.unaffordable
    out["delistings"] = len(result.buried)
    out["cost_paid"] = result.cost_paid
    out["written_off"] = result.written_off
    out["stale_share"] = result.stale / result.invested if result.invested > 0 else None
    return out
