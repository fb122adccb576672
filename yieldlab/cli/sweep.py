"""`sweep run|resume|show`: thousands of trials of one strategy, and which of them were best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yieldlab.cli import groups, inputs
from yieldlab.cli.following import follow, resume_command, stopper
from yieldlab.cli.options import AsOf, CheckCausal, End, Out, Set, Start
from yieldlab.cli.runs import Run, runs_folder
from yieldlab.cli.session import Outcome, Session, command
from yieldlab.cli.strategies import audit, folders
from yieldlab.errors import UsageError

if TYPE_CHECKING:
    import polars as pl
    from rich.console import RenderableType

    from yieldlab import sweep as sweeps
    from yieldlab.panel import Panel
    from yieldlab.runs import Manifest, RunFolder
    from yieldlab.space import Value
    from yieldlab.strategy import Strategy

SHOWN = 10
#: Trials looked at for each line shown: those that differ in what had no effect share a line.
LOOKED_AT = 100
#: Combinations of signal parameters that are audited at most.
AUDITED = 16

#: Measures that `--min-...` and `--max-...` limit, as metrics.MEASURES has them; written out so that help stays fast.
MEASURES = (
    "total_return",
    "annualized_return",
    "volatility",
    "sharpe",
    "sortino",
    "max_drawdown",
    "calmar",
    "skewness",
    "kurtosis",
    "autocorrelation",
    "turnover",
    "rebalances",
    "trades",
    "skipped",
    "unaffordable",
    "delistings",
    "cost_paid",
    "written_off",
    "stale_share",
    "final_value",
)

By = Annotated[str, typer.Option("--by", metavar="MEASURE", help="What trials are ranked by.")]

Verify = Annotated[
    int | None,
    typer.Option("--verify", metavar="N", help="Hold N random trials to vectorbt; exit 5 if they differ."),
]

_RANKED_BY = "annualized_return"

#: A column that no parameter can have the name of.
_EQUAL = "# of equal trials"


@command(
    groups.sweep,
    "sweep run",
    settings=("data", "strategies", "capital", "cost_bps", "gas_usd", "seed", "jobs", "max_memory"),
)
def run(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="STRATEGY", help="Name, or path of a file.")],
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="K=V1,V2", help="Values of one parameter, also 1..8; may be repeated."),
    ] = None,
    sets: Set = None,
    sample: Annotated[
        int | None, typer.Option("--sample", metavar="N", help="Only N combinations, drawn evenly with --seed.")
    ] = None,
    start: Start = None,
    end: End = None,
    as_of: AsOf = None,
    by: By = _RANKED_BY,
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how long it would take, and do nothing.")] = False,
    verify: Verify = None,
    check_causal: CheckCausal = False,
) -> Outcome:
    """Run every combination of parameters.

    The strategy's own grids are the combinations; --grid puts other values in their place or adds a parameter.
    """
    from yieldlab import runs, sweep
    from yieldlab.strategy import find

    settings = session.settings
    _check_verify(verify)
    if out is not None:
        runs.free_folder(out)
    strategy = find(name, folders(settings))
    planned = sweep.plan(
        strategy,
        _axes(grid, inputs.assignments(sets, settings)),
        sample=sample,
        seed=settings.seed,
        capital=settings.capital,
        start=inputs.day("--start", start),
        end=inputs.day("--end", end),
        defaults=inputs.costs(settings),
        max_memory=settings.max_memory,
    )
    if sample is not None and sample > planned.grid.size:
        session.say(f"the grid has {planned.grid.size:,} combinations, fewer than --sample {sample}; all are run")
    panel, cutoff = inputs.read_panel(session.store, planned.fields, inputs.instant("--as-of", as_of))
    if dry_run:
        return _estimated(session, planned, panel)
    extra = {"audited": _audit(session, planned, panel)} if check_causal else {}
    with stopper() as stop:
        events = sweep.run(
            planned,
            panel,
            root=runs_folder(settings),
            out=out,
            by=by,
            argv=session.words,
            cutoff=cutoff,
            threads=settings.jobs,
            max_memory=settings.max_memory,
            stop=stop,
        )
        last = follow(session, strategy.name, events)
    return ended(session, last, planned, panel, verify, extra)


@command(groups.sweep, "sweep resume", settings=("data", "strategies", "jobs"))
def resume(session: Session, run: Run, verify: Verify = None) -> Outcome:
    """Compute what an interrupted sweep lacks.

    Refused when the strategy, its signals, the settings or the data are no longer those of the run.
    """
    from datetime import date

    from yieldlab import runs, sweep

    _check_verify(verify)
    folder = runs.find(run, runs_folder(session.settings))
    manifest = folder.manifest
    if manifest.kind != "sweep":
        raise UsageError(f"run {folder.id} is a {manifest.kind}; only a sweep can be resumed")
    strategy = _strategy_of(session, manifest)
    _refuse_other_settings(session, manifest, strategy)
    planned = sweep.from_config(strategy, manifest.config)
    panel = session.store.panel(
        fields=list(dict.fromkeys(("apy", "tvl_usd", *planned.fields))),
        end=date.fromisoformat(str(manifest.panel_health["last"])),  # a day that was unfinished then stays out
        as_of=manifest.as_of_instant,
        ingested_by=manifest.cutoff_instant,
    )
    with stopper() as stop:
        events = sweep.resume(folder, strategy, panel, threads=session.settings.jobs, stop=stop)
        last = follow(session, strategy.name, events)
    return ended(session, last, planned, panel, verify)


def _limits() -> dict[str, object]:
    """`--min-...` and `--max-...` for every measure; a few stand in help for all."""
    shown = {"annualized_return", "max_drawdown", "sharpe", "turnover", "final_value"}
    flags: dict[str, object] = {}
    for side, words in (("min", "at least"), ("max", "at most")):
        for measure in MEASURES:
            flag = f"--{side}-{measure.replace('_', '-')}"
            text = f"Only trials with {measure} {words} this (any measure can be limited so)."
            flags[f"{side}_{measure}"] = Annotated[
                float | None, typer.Option(flag, metavar="X", help=text, hidden=side == "max" or measure not in shown)
            ]
    return flags


@command(groups.sweep, "sweep show", settings=("data",), more=_limits())
def show(
    session: Session,
    run: Run,
    by: By = _RANKED_BY,
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="Trials shown.")] = SHOWN,
    **limits: float | None,
) -> Outcome:
    """Rank a sweep's trials.

    Rates are fractions in --min-... and --max-..., as everywhere on the command line.
    """
    from yieldlab import runs
    from yieldlab.sweep import SweepResult, rank

    if limit < 1:
        raise UsageError(f"--limit must be a whole number >= 1, not {limit}")
    folder = runs.find(run, runs_folder(session.settings))
    result = SweepResult.open(folder)
    minima = {name[4:]: value for name, value in limits.items() if name.startswith("min_") and value is not None}
    maxima = {name[4:]: value for name, value in limits.items() if name.startswith("max_") and value is not None}
    kept = rank(result.scan().select("trial_id", *{by, *minima, *maxima}), by, minima=minima, maxima=maxima).height
    if kept == 0:
        raise UsageError(f"no trial of run {folder.id} keeps within these limits; loosen --min-... or --max-...")
    first = rank(result.scan(), by, minima=minima, maxima=maxima, limit=LOOKED_AT * limit)
    return replace(leaders(folder, first, by, limit, {"within_limits": kept}), exit_code=0)


def ended(
    session: Session,
    last: sweeps.Finished | sweeps.Interrupted,
    planned: sweeps.Plan,
    panel: Panel,
    verify: int | None = None,
    extra: Mapping[str, object] | None = None,
) -> Outcome:
    """What a sweep that was followed to its end, or interrupted, comes to."""
    from yieldlab import sweep

    if isinstance(last, sweep.Interrupted):
        again = resume_command(session, last.run_id, last.path)
        return _interrupted(last, again)
    folder = last.result.folder
    more = dict(extra or {})
    if verify is not None:
        verified = sweep.verify(last.result, planned, panel, verify, seed=planned.seed, threads=session.settings.jobs)
        if verified.trials:
            agreed = f"{verified.trials:,} trial{'s agree' if verified.trials > 1 else ' agrees'}"
            session.say(f"{agreed} with vectorbt to {verified.largest_difference:.1e}")
        if verified.not_comparable:
            session.say(
                f"{verified.not_comparable:,} trial{'s' if verified.not_comparable > 1 else ''} cannot be replayed in "
                "vectorbt to that precision: the equity falls below a millionth of its highest"
            )
        if not verified.trials and not verified.not_comparable:
            session.say("there is no trial to verify: all of them failed")
        more["verified"] = asdict(verified)
    by = str(folder.manifest.config["by"])
    outcome = leaders(folder, sweep.rank(last.result.scan(), by, limit=LOOKED_AT * SHOWN), by, SHOWN, more)
    window = planned.conditions.start, planned.conditions.end
    doubts = [*inputs.doubtful_deaths(panel, planned.markets, window), *inputs.uncovered_days(panel, window)]
    return replace(outcome, warnings=[*outcome.warnings, *doubts])


def leaders(
    folder: RunFolder, ranked: pl.DataFrame, by: str, limit: int, extra: Mapping[str, object] | None = None
) -> Outcome:
    """The leaderboard of ranked trials as the outcome of a command: all `limit` in the document, equal ones in one line
    on screen."""
    import polars as pl

    manifest, status = folder.manifest, folder.status
    [strategy] = manifest.strategies
    names = [name for name in ranked.columns if name not in ("trial_id", "reason", *MEASURES)]
    varied = [name for name in names if _values_of(manifest, name) > 1]
    data: dict[str, object] = {
        "trials": [
            {
                "strategy": strategy,
                "trial_id": row["trial_id"],
                "params": {name: row[name] for name in names},
                "measures": {name: row[name] for name in MEASURES},
                "reason": row["reason"],
            }
            for row in ranked.head(limit).to_dicts()
        ],
        "by": by,
        "count": manifest.trials,
        "start": manifest.config["start"] or manifest.panel_health["first"],
        "end": manifest.config["end"] or manifest.panel_health["last"],
        "capital": manifest.config["capital"],
        "failed": manifest.failed,
        "panel": manifest.panel_health,
        "prepared": manifest.prepared,
        "path": folder.path,
    } | dict(extra or {})

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.results import conditions_line, data_lines, leaderboard, luck_line, shared_line
        from yieldlab.report.terminal import note

        distinct = ranked.group_by(MEASURES, maintain_order=True).agg(pl.first(*names), pl.len().alias(_EQUAL))
        rows = distinct.head(limit).to_dicts()
        params = [{name: row[name] for name in names} for row in rows]
        yield conditions_line(manifest.config, manifest.panel_health)
        yield leaderboard(varied, params, rows, [row[_EQUAL] for row in rows], by)
        yield from filter(None, [shared_line(varied, params)])
        yield note(luck_line(manifest.trials, rows[0]["autocorrelation"]))
        for line in data_lines(manifest.prepared):
            yield note(line)
        yield f"Run {folder.id} ({status}): {folder.path}"

    warnings = [] if status in ("complete", "partial") else [f"the run is {status}; only finished trials are ranked"]
    if manifest.failed:
        warnings.append(f"{manifest.failed:,} trials failed; {folder.path}/failures.parquet says why")
    return Outcome(data, view, run_id=folder.id, warnings=warnings, exit_code=4 if manifest.failed else 0)


def _interrupted(last: sweeps.Interrupted, again: str) -> Outcome:
    def view() -> Iterator[RenderableType]:
        yield f"Interrupted with {last.done:,} of {last.total:,} trials done; resume with: {again}"

    data = {"done": last.done, "total": last.total, "resume": again, "path": last.path}
    return Outcome(data, view, run_id=last.run_id, exit_code=130)


def _estimated(session: Session, planned: sweeps.Plan, panel: Panel) -> Outcome:
    from yieldlab.runs import prepared_health
    from yieldlab.sweep import estimate

    settings = session.settings
    told = estimate(planned, panel, threads=settings.jobs, max_memory=settings.max_memory)
    prepared = prepared_health(panel, planned.markets)

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.results import data_lines
        from yieldlab.report.terminal import count, note, number, size

        yield (
            f"{count(told.trials, 'trial')} of {count(told.signals, 'signal')} on {count(told.markets, 'market')}, "
            f"in {count(told.chunks, 'chunk')} of at most {told.chunk_trials:,}"
        )
        limit = size(settings.max_memory)
        yield f"about {number(told.seconds, 1)} s and {size(told.peak_bytes)} of memory (limit {limit})"
        for line in data_lines(prepared):
            yield note(line)
        yield "Nothing was run."

    return Outcome(asdict(told) | {"dry_run": True, "panel": panel.health.as_dict(), "prepared": prepared}, view)


def _audit(session: Session, planned: sweeps.Plan, panel: Panel) -> dict[str, int]:
    """Say how many of the signals were audited. Raises CausalityError when one of them depends on later rows; one that
    fails by itself becomes failed trials."""
    import numpy as np

    signals, grid, seed = planned.signals, planned.signal_grid, session.settings.seed
    drawn = np.sort(np.random.default_rng(seed).permutation(signals)[:AUDITED])
    audited = sum(audit(planned.strategy, panel, grid.row(int(index)), seed) for index in drawn)
    failed = len(drawn) - audited
    own = ", 1 fails by itself" if failed == 1 else f", {failed} fail by themselves"
    session.say(f"{audited} of {len(signals):,} signals audited{own if failed else ''}; none depends on a later row")
    return {"signals": len(signals), "audited": audited, "failed": failed}


def _check_verify(verify: int | None) -> None:
    if verify is not None and verify < 1:
        raise UsageError(f"at least 1 trial must be verified, not {verify}")


def _axes(grid: Sequence[str] | None, sets: Mapping[str, Value]) -> dict[str, tuple[Value, ...]]:
    axes = inputs.axes(grid)
    for name, value in sets.items():
        if name in axes:
            raise UsageError(f"--grid and a value for {name!r} are both given; give one of them")
        axes[name] = (value,)
    return axes


def _strategy_of(session: Session, manifest: Manifest) -> Strategy:
    """The strategy file of the run as it is now."""
    from yieldlab.strategy import find

    [name] = manifest.strategies
    path = Path(manifest.strategy_path or "")
    return find(str(path) if path.is_file() else name, folders(session.settings))


def _refuse_other_settings(session: Session, manifest: Manifest, strategy: Strategy) -> None:
    """Raise UsageError when a setting that the run took from file, environment or default is another one now."""
    words = {word.removeprefix("--set=").removeprefix("--grid=").partition("=")[0] for word in manifest.argv}
    axes = manifest.config["axes"]
    assert isinstance(axes, dict)
    now: dict[str, tuple[str, object, object]] = {
        "capital": ("--capital", manifest.config["capital"], session.settings.capital)
    }
    for name, value in inputs.costs(session.settings).items():
        if name not in strategy.policy_grid.axes and name not in words:
            now[name] = (f"--{'cost-bps' if name == 'cost' else 'gas-usd'}", *axes[name], value)
    for name, (flag, was, is_now) in now.items():
        if flag not in words and was != is_now:
            raise UsageError(
                f"the configuration has changed since the run began: {name} was {was}, is {is_now}; "
                "set it back or run the sweep anew"
            )


def _values_of(manifest: Manifest, name: str) -> int:
    axes = manifest.config["axes"]
    return len(axes.get(name, ())) if isinstance(axes, dict) else 0
