"""What a walk writes down: how it ended, its counters and its trades, as columns; and what counts as nothing.

Taken by the compiled steps and by what allocates and reads their outputs.
"""

from __future__ import annotations

# Status of a trial.
NOT_RUN = -1
OK = 0
NOT_FINITE = 1
TRACE_FULL = 2
LOST_ALL = 5
# Why a walk stopped before its last bar.
PARTED = 3
CLEAN = 4

# Columns of the integer and of the USD counters of a trial.
REBALANCES = 0
TRADES = 1
SKIPPED = 2
UNAFFORDABLE = 3
DELISTINGS = 4
COUNTS = 5
TURNOVER = 0
COST_PAID = 1
INVESTED = 2
STALE = 3
WRITTEN_OFF = 4
SUMS = 5

# Columns of one traced trade.
TRADE_ROW = 0
TRADE_POOL = 1
TRADE_AMOUNT = 2
TRADE_COST = 3
TRADE_GAS = 4
TRADE_WRITTEN_OFF = 5
TRADE_COLUMNS = 6

# Tolerances as shares of V, the same in the oracle: what is less than the first is not traded, what leaves less than
# the second leaves nothing.
TRADE_TOLERANCE = 1e-9
RUIN_TOLERANCE = 1e-12
