"""Hand-made faults of the kernels: each changes what a backtest computes, and the suite must notice every one."""

from __future__ import annotations

from typing import NamedTuple

KERNEL = "yieldlab/simulate/_kernels.py"
MEASURES = "yieldlab/metrics/_kernels.py"
MARKET = "yieldlab/market.py"
RANKING = "yieldlab/simulate/__init__.py"


class Mutant(NamedTuple):
    """In `file`, `before` (which stands there once) becomes `after`."""

    fault: str
    file: str
    before: str
    after: str


MUTANTS = (
    Mutant("decides on today's row despite the lag", KERNEL, 'd = decide - policy["lag"]', "d = decide"),
    Mutant(
        "trades one row before the warm-up is over",
        KERNEL,
        'policy["lag"] + policy["warmup"])',
        'policy["lag"] + policy["warmup"] - 1)',
    ),
    Mutant("counts rebalance bars from the panel's start", KERNEL, "    decide = t_origin\n", "    decide = 0\n"),
    Mutant("excludes a pool at exactly min_apy", KERNEL, 'apy[i] < policy["min_apy"]', 'apy[i] <= policy["min_apy"]'),
    Mutant("lets a pool without TVL pass", KERNEL, "return not (np.isnan(tvl[i]) or tvl[i]", "return not (tvl[i]"),
    Mutant("favours held pools with a negative signal too", KERNEL, "        if score > 0.0:\n", "        if True:\n"),
    Mutant(
        "breaks a tie for the higher pool", KERNEL, "chosen[base + rival] < order[k]", "chosen[base + rival] > order[k]"
    ),
    Mutant(
        "ranks the held by their plain signal",
        KERNEL,
        "            score *= 1.0 + favour\n",
        "            score *= 1.0\n",
    ),
    Mutant(
        "holds one pool too many", KERNEL, "                if count == top_n:", "                if count > top_n:"
    ),
    Mutant("leaves out the power of weights", KERNEL, "                weight[k] **= power", "                pass"),
    Mutant("scales signal weights up to 1", KERNEL, "    if weighting != SIGNAL or total > 1.0:", "    if True:"),
    Mutant(
        "leaves the excess over the cap in cash",
        KERNEL,
        "        scale = (total - capped * cap) / free",
        "        scale = 1.0",
    ),
    Mutant(
        "spreads the excess only once",
        KERNEL,
        "        if not more or free == 0.0:",
        "        if not more or free == 0.0 or capped > 1:",
    ),
    Mutant(
        "sells everything when it should hold",
        KERNEL,
        '            if policy["on_empty"] == HOLD:',
        "            if False:",
    ),
    Mutant(
        "skips the first trade as too small",
        KERNEL,
        "TURNOVER_TOLERANCE and counts[0, REBALANCES] > 0",
        "TURNOVER_TOLERANCE",
    ),
    Mutant("takes turnover for the whole of what moves", KERNEL, "turnover = 0.5 * moved", "turnover = moved"),
    Mutant("charges costs on the targets before costs", KERNEL, "/ (1.0 + cost * lean)", "/ 1.0"),
    Mutant("never notices a purchase that turns into a sale", KERNEL, "if kept < nearest:", "if kept < 0.0:"),
    Mutant("charges gas once per rebalance", KERNEL, '["gas_usd"] * trades / worth[r]', '["gas_usd"] / worth[r]'),
    Mutant(
        "trades what it cannot afford",
        KERNEL,
        "            if kept <= RUIN_TOLERANCE:\n                if",
        "            if False:\n                if",
    ),
    Mutant("keeps the share, not the USD, of an untraded pool", KERNEL, "else mix[k] / kept", "else mix[k]"),
    Mutant("lets trials walk together past a parting", KERNEL, "if left > 0 and together > 1:", "if False:"),
    Mutant("leaves the bonus to a pool that was sold", KERNEL, "            slot[pool[h]] = -1", "            pass"),
    Mutant(
        "counts staleness from the bar of the trade on", KERNEL, "        u = missing[t + 1]", "        u = missing[t]"
    ),
    Mutant("lets cash earn the portfolio's growth", KERNEL, "            cash /= grown\n", ""),
    Mutant("accrues a leading rate as trailing", MARKET, 'apy if accrual == "trailing" else', "apy if True else"),
    Mutant(
        "ranks pools whose APY is missing",
        RANKING,
        "np.where(np.isnan(market.apy[rows]), np.nan, values[rows])",
        "values[rows]",
    ),
    Mutant("takes the worst pool first", RANKING, "np.argsort(-score", "np.argsort(score"),
    Mutant(
        "measures deviation of the population", MEASURES, "np.sqrt(second / (count - 1))", "np.sqrt(second / count)"
    ),
    Mutant("forgets the capital in the peak", MEASURES, "    peak = capital", "    peak = equity[0]"),
    Mutant(
        "annualizes with one period too many",
        MEASURES,
        "DAYS_PER_YEAR * (count - 1) / days",
        "DAYS_PER_YEAR * count / days",
    ),
    Mutant(
        "takes the downside over losing bars only",
        MEASURES,
        "loss = min(r - hurdle, 0.0)",
        "loss = max(hurdle - r, -r)",
    ),
)
