"""Hand-made faults of the kernels: each changes what a backtest computes, and the suite must notice every one."""

from __future__ import annotations

from typing import NamedTuple

WALK = "yieldlab/simulate/_kernels.py"
ACCRUAL = "yieldlab/simulate/_accrual_kernels.py"
CHOICE = "yieldlab/simulate/_choice_kernels.py"
DELISTING = "yieldlab/simulate/_delisting_kernels.py"
RECORD = "yieldlab/simulate/_record_kernels.py"
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
    Mutant("decides on today's row despite the lag", WALK, "d = decide - lag", "d = decide"),
    Mutant(
        "trades one row before the warm-up is over",
        WALK,
        'policies[0]["lag"] + policies[0]["warmup"])',
        'policies[0]["lag"] + policies[0]["warmup"] - 1)',
    ),
    Mutant(
        "counts rebalance bars from the end of the warm-up",
        WALK,
        "= t_origin + max(0, soonest - t_origin + every - 1) // every * every",
        "= soonest",
    ),
    Mutant("excludes a pool at exactly min_apy", CHOICE, "not apy[d, i] < min_apy", "not apy[d, i] <= min_apy"),
    Mutant("lets a pool without TVL pass", CHOICE, "tvl[d, i] >= min_tvl)", "not tvl[d, i] < min_tvl)"),
    Mutant("favours held pools with a negative signal too", CHOICE, "        if score > 0.0:\n", "        if True:\n"),
    Mutant(
        "breaks a tie for the higher pool",
        CHOICE,
        "chosen[base + rival] < order[d, k]",
        "chosen[base + rival] > order[d, k]",
    ),
    Mutant(
        "ranks the held by their plain signal",
        CHOICE,
        "            score *= 1.0 + favour\n",
        "            score *= 1.0\n",
    ),
    Mutant(
        "never lets favour decide between a held pool and one stranger",
        CHOICE,
        "or strangers == 0:",
        "or strangers <= 1:",
    ),
    Mutant("holds one pool too many", CHOICE, "            if count == top_n:", "            if count > top_n:"),
    Mutant("leaves out the power of weights", CHOICE, "(weight[k] / largest) ** power", "weight[k] / largest"),
    Mutant("scales signal weights up to 1", CHOICE, "    if weighting != SIGNAL or total > 1.0:", "    if True:"),
    Mutant(
        "leaves the excess over the cap in cash",
        CHOICE,
        "        scale = (total - capped * cap) / free",
        "        scale = 1.0",
    ),
    Mutant(
        "spreads the excess only once",
        CHOICE,
        "        if not more or free == 0.0:",
        "        if not more or free == 0.0 or capped > 1:",
    ),
    Mutant("sells everything when it should hold", WALK, "            if holds_on:", "            if False:"),
    Mutant(
        "skips the first trade as too small",
        WALK,
        "turnover < least_turnover and counts[0, REBALANCES] > 0",
        "turnover < least_turnover",
    ),
    Mutant("takes turnover for the whole of what moves", WALK, "turnover = 0.5 * moved", "turnover = moved"),
    Mutant("charges costs on the targets before costs", WALK, "/ (1.0 + costs[r] * lean)", "/ 1.0"),
    Mutant("never notices a purchase that turns into a sale", WALK, "if 1.0 - kept[r] > narrowest:", "if False:"),
    Mutant("charges gas once per rebalance", WALK, "gas_usd * trades / worth[r]", "gas_usd / worth[r]"),
    Mutant("trades what it cannot afford", WALK, "        if least <= RUIN_TOLERANCE:", "        if False:"),
    Mutant("keeps the share, not the USD, of an untraded pool", WALK, "share = mix[k] / least", "share = mix[k]"),
    Mutant(
        "lets trials walk together past a parting", WALK, "        if left > 0 and together > 1:", "        if False:"
    ),
    Mutant(
        "takes parted trials past the decision on which they parted",
        WALK,
        "\n            decide = t\n",
        "\n",
    ),
    Mutant(
        "joins trials again without comparing their mixes",
        WALK,
        "alike and outcomes[r] == CLEAN and bool(np.all(stands[r] == stands[0]))",
        "True",
    ),
    Mutant("keeps a sold pool among the held", WALK, "                slot[pool[k]] = -1", "                pass"),
    Mutant(
        "counts staleness from the bar of the trade on",
        ACCRUAL,
        "        u = next_missing[i, t + 1]",
        "        u = next_missing[i, t]",
    ),
    Mutant("lets cash earn the portfolio's growth", WALK, "            cash *= shrink\n", ""),
    Mutant(
        "changes past bits with the end of the window",
        ACCRUAL,
        "    if decide - t <= FEW_BARS:",
        "    if t_next - t <= FEW_BARS:",
    ),
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
        "takes gains for losses",
        MEASURES,
        "loss = min(returns[t] - hurdle, 0.0)",
        "loss = max(returns[t] - hurdle, 0.0)",
    ),
    Mutant(
        "measures against no risk-free rate",
        RANKING,
        "capital, _days(times), risk_free,",
        "capital, _days(times), 0.0,",
    ),
    Mutant("writes no gas into the trace", WALK, "TRADE_GAS] = gas_usd", "TRADE_GAS] = 0.0"),
    Mutant("writes no cost into the trace", WALK, "TRADE_COST] = costs[r] * abs(amount)", "TRADE_COST] = 0.0"),
    Mutant("gives up a move that leaves little", RECORD, "RUIN_TOLERANCE = 1e-12", "RUIN_TOLERANCE = 1e-4"),
    Mutant(
        "lets equity leave the floats",
        WALK,
        "if status[r] == OK and not (worth[r] > 0.0",
        "if False and not (worth[r] > 0.0",
    ),
    Mutant("takes a small deviation for none", MEASURES, "TINY = 1e-12", "TINY = 1e-9"),
    Mutant(
        "annualizes turnover within a day", RANKING, "if self.days >= 1.0 else np.nan", "if self.days > 0.0 else np.nan"
    ),
    Mutant("trusts an index near the end of the floats", ACCRUAL, "INDEX_LIMIT = 1e100", "INDEX_LIMIT = 1e309"),
    Mutant("keeps the rounding of full investment as cash", WALK, "ROUNDING = 2.3e-16", "ROUNDING = 0.0"),
    Mutant("lets a sum of weights overflow", CHOICE, "LARGE = 1e150", "LARGE = 1e309"),
    Mutant(
        "sums what is invested after the accrual",
        ACCRUAL,
        "        invested += mix[h]\n",
        "        invested += mix[h] * growth[t + 1, pool[h]]\n",
    ),
    Mutant(
        "takes a pool for dead on the last day of its grace", MARKET, ") > dead_after_days)", ") >= dead_after_days)"
    ),
    Mutant("takes a masked yield for a pool that is gone", MARKET, "panel if seen is None else seen", "panel"),
    Mutant("writes down what is only to be sold", MARKET, 'if delisted == "loss" else', 'if delisted != "hold" else'),
    Mutant(
        "holds what was delisted until the next decision",
        WALK,
        "t_next = min(decide, death, t_last)",
        "t_next = min(decide, t_last)",
    ),
    Mutant(
        "forgets after one delisting that another may follow",
        WALK,
        "= worth[r]\n            death = first_death(next_dead, pool, held, t + 1, never)\n",
        "= worth[r]\n            death = never\n",
    ),
    Mutant(
        "looks for no death of what it has bought",
        WALK,
        "            death = first_death(next_dead, pool, held, t + 1, never)\n        if stand[STOPS]",
        "            death = min(death, never)\n        if stand[STOPS]",
    ),
    Mutant(
        "takes parted trials past the delisting on which they parted",
        WALK,
        "stand[DUE] = outcome == PARTED and t == death",
        "stand[DUE] = 0",
    ),
    Mutant(
        "leaves the equity of a delisting's bar as it was",
        WALK,
        "                equity[r, t - t_first] = worth[r]\n            death",
        "                pass\n            death",
    ),
    Mutant(
        "buys what was delisted since the row decided on",
        CHOICE,
        "and may_be_dead and next_dead[i, t] == t",
        "and False",
    ),
    Mutant(
        "lets trials of different costs walk together past a sale",
        DELISTING,
        "if worth.size > 1 and loss < 1.0:",
        "if False:",
    ),
    Mutant("writes nothing down", DELISTING, "left = mix[h] * (1.0 - loss)", "left = mix[h]"),
    Mutant(
        "sells what was delisted at no cost", DELISTING, "brings = left * (1.0 - cost) - gas", "brings = left - gas"
    ),
    Mutant("pays gas for what brings nothing", DELISTING, "is_sold = brings > TRADE_TOLERANCE", "is_sold = True"),
    Mutant("keeps a delisted pool among the held", DELISTING, "        slot[i] = -1\n", ""),
    Mutant("leaves the sale out of turnover", DELISTING, "            moved += left\n", ""),
    Mutant("counts what was sold as lost", DELISTING, "lost = mix[h] - sold", "lost = mix[h]"),
    Mutant("keeps the shares of a larger V", DELISTING, "        mix[h] /= kept\n", "        pass\n"),
    Mutant("counts only what could be sold", DELISTING, "DELISTINGS] += dead", "DELISTINGS] += sales"),
    Mutant("tells a loss of all as a matter of floats", DELISTING, "return LOST_ALL, stay", "return 1, stay"),
    Mutant("goes on after all is lost", DELISTING, "if not kept > RUIN_TOLERANCE:", "if not kept > -1e300:"),
    Mutant("writes no loss into the trace", DELISTING, "OFF] = lost * worth[r]", "OFF] = 0.0"),
    Mutant("writes no gas of a delisting into the trace", DELISTING, "gas_usd if is_sold else 0.0", "0.0"),
)
