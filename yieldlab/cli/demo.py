"""`demo`: everything once, on synthetic data, in under a minute."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import date, timedelta
from typing import TYPE_CHECKING

from yieldlab.cli.groups import app
from yieldlab.cli.session import Outcome, Session, command

if TYPE_CHECKING:
    from rich.console import RenderableType

SIDE_BY_SIDE = ("highest_apy", "tvl_weighted", "steady_carry")
SWEPT = "highest_apy"
DAYS = 90
CAPITAL_USD = 10_000.0
COST_BPS = 10.0


@command(app, "demo", settings=("data", "seed", "jobs"))
def demo(session: Session) -> Outcome:
    """Show everything once on synthetic data.

    Sample data if there is none, strategies side by side over the last 90 days (10,000 USD, 0.1 %, weekly), a sweep of
    2,160 trials over all of it, its leaderboard, and where the files are.
    """
    from yieldlab import sweep as sweeps
    from yieldlab.backtest import entry
    from yieldlab.cli import backtest, data, following, inputs, sweep
    from yieldlab.cli.runs import runs_folder
    from yieldlab.strategy import bundled_folder, find

    session = dataclasses.replace(
        session, settings=dataclasses.replace(session.settings, capital=CAPITAL_USD, cost_bps=COST_BPS, gas_usd=0.0)
    )
    store = session.store
    sampled = "" if store.exists else data.add_sample(store, session.settings.seed)[1]
    folders = [bundled_folder()]
    costs = inputs.costs(session.settings)
    entries = [entry(find(name, folders), {"every": 7}, defaults=costs) for name in SIDE_BY_SIDE]
    panel, cutoff = inputs.read_panel(store, ("apy", "tvl_usd"), None)
    last = date.fromisoformat(panel.health.last)
    first = max(last - timedelta(days=DAYS), date.fromisoformat(panel.health.first))
    session.say("comparing strategies; the first time ever, their kernels are compiled, which takes half a minute")
    compared, folder = backtest.run_and_keep(session, panel, cutoff, entries, (first, None))
    planned = sweeps.plan(find(SWEPT, folders), capital=CAPITAL_USD, defaults=costs)
    session.say(f"sweeping {len(planned):,} trials")
    with following.stopper() as stop:
        events = sweeps.run(
            planned,
            panel,
            root=runs_folder(session.settings),
            argv=session.words,
            cutoff=cutoff,
            threads=session.settings.jobs,
            stop=stop,
        )
        swept = sweep.ended(session, following.follow(session, SWEPT, events), planned, panel)

    def view() -> Iterator[RenderableType]:
        yield from filter(None, [sampled])
        yield f"{len(entries)} strategies from {first} to {last}, {CAPITAL_USD:,.0f} USD, 0.1 % a trade, weekly"
        yield ""
        yield from backtest.comparison(compared)
        yield ""
        yield f"A sweep of {SWEPT}: {len(planned):,} trials, one for each combination of its parameters"
        yield from swept.view()
        yield f"The side-by-side run, with daily equity and trades: {folder.path}"
        yield "Next: yieldlab init lab, and your own data with yieldlab data import FILE"

    return dataclasses.replace(
        swept,
        data={"backtest": {"trials": backtest.trials_document(compared), "path": folder.path}, "sweep": swept.data},
        view=view,
    )
