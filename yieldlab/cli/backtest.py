"""`backtest`: a few strategies side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer

from yieldlab.cli import inputs
from yieldlab.cli.groups import app
from yieldlab.cli.options import AsOf, CheckCausal, End, Out, Set, Start
from yieldlab.cli.runs import runs_folder
from yieldlab.cli.session import Outcome, Session, command
from yieldlab.cli.strategies import audit, folders

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from rich.console import RenderableType

    from yieldlab.backtest import BacktestResult, Entry
    from yieldlab.panel import Panel
    from yieldlab.runs import RunFolder


@command(app, "backtest", settings=("data", "strategies", "capital", "cost_bps", "gas_usd", "seed"))
def backtest(
    session: Session,
    names: Annotated[list[str], typer.Argument(metavar="STRATEGY...", help="Names, or paths of files.")],
    start: Start = None,
    end: End = None,
    as_of: AsOf = None,
    sets: Set = None,
    out: Out = None,
    check_causal: CheckCausal = False,
) -> Outcome:
    """Compare strategies side by side.

    Each runs with the first value of each of its axes unless --set says otherwise; equity, trades and measures go into
    a run folder.
    """
    from yieldlab import runs
    from yieldlab.backtest import entry, refuse_namesakes
    from yieldlab.strategy import find

    window = inputs.day("--start", start), inputs.day("--end", end)
    instant = inputs.instant("--as-of", as_of)
    if out is not None:
        runs.free_folder(out)
    strategies = [find(name, folders(session.settings)) for name in names]
    refuse_namesakes(strategies)
    given = inputs.assignments(sets, session.settings)
    defaults = inputs.costs(session.settings)
    entries = [
        entry(strategy, inputs.for_strategy(strategy, given, strategies), defaults=defaults) for strategy in strategies
    ]
    fields = [name for each in entries for name in each.strategy.fields(each.params.signal)]
    panel, cutoff = inputs.read_panel(session.store, fields, instant)
    panel.window(*window)
    if check_causal:
        for each in entries:
            audit(each.strategy, panel, each.params.signal, session.settings.seed)
    result, folder = run_and_keep(session, panel, cutoff, entries, window, out)

    config = folder.manifest.config

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.results import conditions_line, data_lines
        from yieldlab.report.terminal import note

        yield conditions_line(config, panel.health.as_dict())
        yield from comparison(result)
        for line in data_lines(folder.manifest.prepared):
            yield note(line)
        yield f"Run {folder.id}: {folder.path}"

    return Outcome(
        {
            "trials": trials_document(result),
            "start": config["start"],
            "end": config["end"],
            "capital": config["capital"],
            "panel": panel.health.as_dict(),
            "prepared": folder.manifest.prepared,
            "path": folder.path,
        },
        view,
        run_id=folder.id,
        warnings=[
            *(f"{name} failed: {reason}" for name, reason in result.failures.iter_rows()),
            *(
                f"{name} could not afford {count} of its rebalances: costs and gas would have taken all of it"
                for name, count in result.trials.select("strategy", "unaffordable").iter_rows()
                if count
            ),
            *(
                f"{name} had {count} positions in pools that were delisted; {lost:,.2f} USD of them was written off"
                for name, count, lost in result.trials.select("strategy", "delistings", "written_off").iter_rows()
                if count
            ),
            *inputs.doubtful_deaths(panel, [each.params.market for each in entries], window),
            *inputs.uncovered_days(panel, window),
        ],
        exit_code=4 if result.failures.height else 0,
    )


def run_and_keep(
    session: Session,
    panel: Panel,
    cutoff: datetime,
    entries: Sequence[Entry],
    window: tuple[date | None, date | None],
    out: Path | None = None,
) -> tuple[BacktestResult, RunFolder]:
    """Run the entries and write the run folder; an error leaves no folder."""
    from yieldlab import runs
    from yieldlab.backtest import compare, save

    capital = session.settings.capital
    result = compare(panel, entries, capital=capital, start=window[0], end=window[1])
    t_start, t_end = panel.window(*window)
    config: dict[str, object] = {
        "capital": capital,
        "start": str(panel.times[t_start].astype("datetime64[D]")),
        "end": str(panel.times[t_end].astype("datetime64[D]")),
        "params": {name: dict(params) for name, params in result.params.items()},
    }
    manifest = runs.describe(
        "backtest",
        [each.strategy for each in entries],
        panel,
        config,
        trials=len(entries),
        cutoff=cutoff,
        argv=session.words,
        markets=[each.params.market for each in entries],
    )
    folder = runs.RunFolder.create(runs_folder(session.settings), manifest, out=out)
    with folder.lock():
        save(result, folder)
    return result, folder


def comparison(result: BacktestResult) -> Iterator[RenderableType]:
    """The strategies that ran, side by side."""
    from yieldlab.report.results import comparison_table

    ran = [row for row in result.trials.to_dicts() if row["reason"] is None]
    yield comparison_table([row["strategy"] for row in ran], ran)


def trials_document(result: BacktestResult) -> list[dict[str, object]]:
    """Each trial as the JSON document shows it."""
    from yieldlab.metrics import MEASURES

    return [
        {
            "strategy": row["strategy"],
            "trial_id": row["trial_id"],
            "params": dict(result.params[row["strategy"]]),
            "measures": {name: row[name] for name in MEASURES},
            "reason": row["reason"],
        }
        for row in result.trials.to_dicts()
    ]
