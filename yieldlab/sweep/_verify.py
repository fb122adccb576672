"""Whether a sweep's results hold: random trials run again, alone, and rebuilt in another engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from yieldlab.errors import AuditError, UsageError
from yieldlab.metrics import MEASURES
from yieldlab.panel import Panel
from yieldlab.sweep._bench import Bench
from yieldlab.sweep._plan import Plan
from yieldlab.sweep._run import SweepResult

#: Agreement of engines, relative.
TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Verified:
    """`trials` agreed with vectorbt to `largest_difference` (relative, over all bars). `not_comparable` more gave what
    the table says, but fell so far below their highest equity that vectorbt cannot replay them to that precision."""

    trials: int
    largest_difference: float
    not_comparable: int = 0


def verify(
    result: SweepResult, plan: Plan, panel: Panel, count: int, *, seed: int = 0, threads: int | None = None
) -> Verified:
    """Run `count` random trials of a finished sweep again, each alone, and rebuild them in vectorbt.

    Raises AuditError when a measure in the table is not what the trial gives, or the engines' equity differs by more
    than 1e-9; UsageError when vectorbt is missing.
    """
    if count < 1:
        raise UsageError(f"at least 1 trial must be verified, not {count}")
    trials = result.scan().select("trial_id", *MEASURES, "reason").with_row_index("position")
    ran = trials.filter(pl.col("reason").is_null()).select("position").collect().to_series().to_numpy()
    drawn = np.sort(np.random.default_rng(seed).permutation(ran)[:count])
    rows = trials.filter(pl.col("position").is_in(drawn.tolist())).collect()
    bench = Bench(plan, panel, threads=threads)
    found = [_check(bench, row["position"], row) for row in rows.iter_rows(named=True)]
    differences = [difference for difference in found if difference is not None]
    return Verified(len(differences), max(differences, default=0.0), len(found) - len(differences))


def _check(bench: Bench, position: int, row: dict[str, object]) -> float | None:
    """The difference of the engines; None where vectorbt cannot replay the trial."""
    from yieldlab.simulate.replay import comparable, largest_difference

    if row["trial_id"] != bench.plan.frame(position, position + 1)["trial_id"][0]:
        raise AuditError(f"trial {row['trial_id']} of the table is not trial {position} of the plan")
    market, ledger = bench.traced(position)
    again = ledger.measures().row(0, named=True)
    for name in MEASURES:
        if not _agree(row[name], again[name]):
            raise AuditError(
                f"trial {row['trial_id']}: {name} is {row[name]} in the table and {again[name]} when run alone"
            )
    if not comparable(ledger):
        return None
    difference = largest_difference(market, ledger)
    if not difference <= TOLERANCE:
        raise AuditError(
            f"trial {row['trial_id']}: vectorbt's equity differs by {difference:.1e}, more than {TOLERANCE:.0e}"
        )
    return difference


def _agree(one: object, other: object) -> bool:
    if not isinstance(one, int | float) or not isinstance(other, int | float):
        return one is other
    return abs(one - other) <= max(TOLERANCE * max(abs(one), abs(other)), 1e-12)
