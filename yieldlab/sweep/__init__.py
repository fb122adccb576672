"""Thousands of trials of one strategy: plan them, run them into a run folder, resume, rank and verify them.

planned = plan(strategy, {"top_n": [1, 3, 5]})
result = sweep(planned, panel)
result.best()
"""

from __future__ import annotations

from pathlib import Path

from yieldlab.panel import Panel
from yieldlab.sweep._bench import Estimate
from yieldlab.sweep._plan import Conditions, Plan, from_config, plan
from yieldlab.sweep._rank import RANKED_BY, rank, varied
from yieldlab.sweep._run import (
    ChunkDone,
    Event,
    Finished,
    Interrupted,
    Planned,
    Stop,
    SweepResult,
    TrialsFailed,
    estimate,
    resume,
    run,
)
from yieldlab.sweep._verify import Verified, verify

__all__ = [
    "RANKED_BY",
    "ChunkDone",
    "Conditions",
    "Estimate",
    "Event",
    "Finished",
    "Interrupted",
    "Plan",
    "Planned",
    "Stop",
    "SweepResult",
    "TrialsFailed",
    "Verified",
    "estimate",
    "from_config",
    "plan",
    "rank",
    "resume",
    "run",
    "sweep",
    "varied",
    "verify",
]


def sweep(
    planned: Plan,
    panel: Panel,
    *,
    root: Path = Path("data/runs"),
    out: Path | None = None,
    threads: int | None = None,
    max_memory: int | None = None,
) -> SweepResult:
    """Run a plan to its end and return its result; `run` is the same with progress, stop and more choices."""
    result = None
    for event in run(planned, panel, root=root, out=out, threads=threads, max_memory=max_memory):
        if isinstance(event, Finished):
            result = event.result
    assert result is not None  # nobody asked it to stop
    return result
