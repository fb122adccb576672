"""`demo`: everything once, on synthetic data, models and all, in a few minutes; the second time in seconds."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from typing import TYPE_CHECKING

from yieldlab.cli.groups import app
from yieldlab.cli.session import Outcome, Session, command
from yieldlab.errors import INTERRUPTED

if TYPE_CHECKING:
    from rich.console import RenderableType

#: The four strategies of the reference study; two of them need no model.
PLAIN = ("highest_apy", "tvl_weighted")
LEARNED = ("lstm_top", "risk_adjusted")
#: What each model is fitted with here: every third day's windows, and few epochs, are enough for a demonstration.
MODELS = {"lstm": ("--set", "stride=3", "--set", "epochs=10"), "risk": ()}
SWEPT = "highest_apy"
DAYS = 90
CAPITAL_USD = 10_000.0
COST_BPS = 10.0


@command(app, "demo", settings=("data", "seed", "jobs"))
def demo(session: Session) -> Outcome:
    """Show everything once on synthetic data.

    Sample data if there is none, an LSTM and a risk classifier fitted on the days before the last 90, four strategies
    side by side over those (10,000 USD, 0.1 %, weekly), a sweep of 2,160 trials over all days, its leaderboard, and
    where the files are. Models are fitted once and used again while data and settings are the same.
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
    panel, cutoff = inputs.read_panel(store, (), None)
    last = date.fromisoformat(panel.health.last)
    first = max(last - timedelta(days=DAYS), date.fromisoformat(panel.health.first))
    lacking = [name for name in ("torch", "xgboost", "sklearn") if importlib.util.find_spec(name) is None]
    names = PLAIN if lacking else (*PLAIN, *LEARNED)
    left_out = f'{lacking[0]} is not installed; get it with: pip install "yieldlab[ml]"' if lacking else ""
    if not lacking:
        session.say("models of the days before: fitted if they are not there yet, which takes a minute or two")
        missing = [model for model, settings in MODELS.items() if not _learn(session, model, first, settings)]
        if missing:
            names = PLAIN
            left_out = f"the model {missing[0]} could not be fitted on this data; its reason stands above"
    entries = [entry(find(name, folders), {"every": 7}, defaults=costs) for name in names]
    fields = [field for each in entries for field in each.strategy.fields(each.params.signal)]
    seen, known = inputs.read_panel(store, fields, None)
    session.say("comparing strategies; the first time ever, their kernels are compiled, which takes half a minute")
    compared, folder = backtest.run_and_keep(session, seen, known, entries, (first, None))
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
        for field, origin in seen.forecasts.items():
            yield f"{field} looks {origin.horizon_days} days ahead; its model was trained through {origin.last_trained}"
        yield ""
        yield f"A sweep of {SWEPT}: {len(planned):,} trials, one for each combination of its parameters"
        yield from swept.view()
        yield f"The side-by-side run, with daily equity and trades: {folder.path}"
        yield "Next: yieldlab init lab, and your own data with yieldlab data import FILE"

    return dataclasses.replace(
        swept,
        warnings=[
            *swept.warnings,
            *(f"strategies that need models are left out: {reason}" for reason in filter(None, [left_out])),
        ],
        data={"backtest": {"trials": backtest.trials_document(compared), "path": folder.path}, "sweep": swept.data},
        view=view,
    )


def _learn(session: Session, model: str, first: date, settings: tuple[str, ...]) -> bool:
    """Whether there are forecasts of one model from `first` on, made by a process of its own: what learns and what
    simulates do not share one."""
    words = ["models", "walk-forward", model, "--folds", "expanding", "--start", str(first), "--step", f"{DAYS + 1}d"]
    words += [*settings, "--data", str(session.settings.data), "--seed", str(session.settings.seed), "--json"]
    words += ["--jobs", str(session.settings.jobs)] if "jobs" in session.settings.flags else []
    quiet = ["--quiet"] if session.quiet else []
    done = subprocess.run([sys.executable, "-m", "yieldlab", *words, *quiet], stdout=subprocess.PIPE, check=False)
    if done.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    return done.returncode in (0, 4)
