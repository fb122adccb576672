"""`models train|walk-forward|tune|predict`: learning from the past, and asking what was learned."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from yieldlab.cli import groups, inputs
from yieldlab.cli.following import stopper
from yieldlab.cli.model_inputs import (
    Fresh,
    Members,
    Names,
    Settings,
    card_document,
    check_writable,
    days,
    members_for,
    read,
    settings_for,
    trained_card,
)
from yieldlab.cli.options import AsOf
from yieldlab.cli.runs import runs_folder
from yieldlab.cli.session import Outcome, Session, command
from yieldlab.errors import INTERRUPTED, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from yieldlab.forecast.fold_runs import FoldPlan
    from yieldlab.forecast.protocol import EpochDone
    from yieldlab.forecast.train import Trained
    from yieldlab.panel import Panel
    from yieldlab.report.training import Walked
    from yieldlab.space import Value


@command(groups.models, "models train", settings=("data", "models", "seed", "jobs"))
def train(
    session: Session,
    names: Names,
    sets: Settings = None,
    member: Members = None,
    as_of: AsOf = None,
    fresh: Fresh = False,
) -> Outcome:
    """Train models for use, with a test on the last days.

    Days are split for all pools at once: 80 % to learn from, 10 % to stop by, 10 % to test on. The best state and the
    model refitted through the validation days go into the folder of models, each with a card. An ensemble trains
    members of its own; their settings are as lstm.epochs=5, and epochs=5 is for all that have it.
    """
    from yieldlab.forecast import train as training
    from yieldlab.forecast.registry import ENSEMBLE, RISK, check_package, entry, known_settings, make

    names = list(dict.fromkeys(names))
    members: dict[str, Value] = {"members": " ".join(members_for(names, member))}
    given = settings_for(session, {name: known_settings(name, members) for name in names}, sets)
    if ENSEMBLE in given:
        given[ENSEMBLE] |= members
    for name in names:
        make(name, given[name])  # what can be refused is refused before the first of them learns
        if entry(name).needs and name != RISK:
            check_package("matplotlib", "the learning curve")
    panel, _ = read(session, as_of)
    done: list[Trained] = []
    reused = {
        name: card
        for name in names
        if not fresh and (card := training.reusable(name, given[name], panel, session.settings.models)) is not None
    }
    if len(reused) < len(names):
        check_writable(session.settings.models)
    for name in names:
        if name in reused:
            continue
        with session.progress(f"train {name}") as progress:
            for event in training.train(panel, name, given[name], folder=session.settings.models):
                match event:
                    case training.Stage():
                        samples = "" if event.samples is None else f", {event.samples:,} samples"
                        progress.say(f"{event.what}{samples}")
                    case training.Trained():
                        done.append(event)
                        if event.history:
                            from yieldlab.report.plots import learning_curve

                            picture = session.settings.models / f"{name}_learning_curve.png"
                            learning_curve(event.history, picture, title=f"{name}: learning")
                    case _:
                        progress.update(event.epoch, event.epochs, losses(event))

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.training import card_lines, trained_lines

        for card in reused.values():
            yield f"{card.name} is up to date: data and settings are those it was trained with (--fresh trains again)"
            yield from card_lines(card)
        for each in done:
            yield from trained_lines(each)

    cards = [*reused.values(), *(each.released for each in done)]
    failed = [
        f"{member} could not learn and is no part of the {card.model}: {reason}"
        for card in cards
        for member, reason in card.metrics.get("test", {}).get("failed", {}).items()
    ]
    data = {"models": [card_document(card) for card in cards]}
    return Outcome(data, view, warnings=failed, exit_code=4 if failed else 0)


@command(groups.models, "models walk-forward", settings=("data", "seed", "jobs"))
def walk_forward(
    session: Session,
    names: Names,
    sets: Settings = None,
    folds: Annotated[
        str, typer.Option("--folds", metavar="KIND", help="rolling, or expanding: all days so far.")
    ] = "rolling",
    train: Annotated[str, typer.Option("--train", metavar="DAYS", help="Days to learn from.")] = "365d",
    step: Annotated[str, typer.Option("--step", metavar="DAYS", help="Days forecast before the next fit.")] = "30d",
    purge: Annotated[
        str | None, typer.Option("--purge", metavar="DAYS", help="Days left out for labels; the horizon if not given.")
    ] = None,
    embargo: Annotated[str, typer.Option("--embargo", metavar="DAYS", help="Days left out besides.")] = "7d",
    start: Annotated[
        str | None, typer.Option("--start", metavar="DATE", help="First day forecast, instead of the first possible.")
    ] = None,
    member: Members = None,
    as_of: AsOf = None,
    fresh: Fresh = False,
) -> Outcome:
    """Forecast every day as if it were today.

    Fold by fold: fit on the days before, forecast the next step, move on. The forecasts go into the store, where
    strategies read them as panel fields (forecast_lstm, risk_class). Interrupted, the same command goes on.
    """
    from yieldlab.folds import check_purge
    from yieldlab.forecast import walk_forward as models
    from yieldlab.forecast.ensemble import FITTED, check_how
    from yieldlab.forecast.fold_ensemble import walk_forward_ensemble
    from yieldlab.forecast.fold_runs import FoldPlan
    from yieldlab.forecast.registry import ENSEMBLE, entry, make, settings_of

    names = sorted(dict.fromkeys(names), key=lambda name: name == ENSEMBLE)  # the ensemble is made of the others
    members = members_for(names, member)
    known = {name: entry(name).settings for name in names}
    if ENSEMBLE in known:  # made of what its members have walked, it takes no setting of theirs
        known[ENSEMBLE] = {key: known[ENSEMBLE][key] for key in ("horizon", "how")}
    given = settings_for(session, known, sets)
    for name in names:
        if name == ENSEMBLE:
            given[name] = {**known[name], **given[name]}
            settings_of(name, given[name])
            check_how(str(given[name]["how"]), FITTED)
        else:
            make(name, given[name])
    panel, cutoff = read(session, as_of)
    first = None if start is None else panel.window(inputs.day("--start", start))[0]
    plans: dict[str, FoldPlan] = {}
    for name in names:
        horizon = int(str({**known[name], **given[name]}["horizon"]))
        plan = FoldPlan(
            folds,
            days("--train", train),
            days("--step", step),
            horizon if purge is None else days("--purge", purge),
            days("--embargo", embargo),
            first,
        )
        if first is not None and first <= plan.purge + plan.embargo:
            raise UsageError(
                f"--start {start} is too early: {first} days of history lie before it, and {plan.purge + plan.embargo} "
                "of purge and embargo come between what is learned from and what is forecast"
            )
        check_purge(plan.purge, horizon)
        plan.folds(panel.shape[0])
        plans[name] = plan
    walked: list[Walked] = []  # what can be refused was refused before the first of them begins
    for name, plan in plans.items():
        kept = runs_folder(session.settings)
        with stopper("fold") as stop:
            walk = partial(models.walk_forward, panel, name, given[name])
            if name == ENSEMBLE:
                horizon, how = int(str(given[name]["horizon"])), str(given[name]["how"])
                walk = partial(walk_forward_ensemble, panel, members, how, horizon=horizon)
            events = walk(
                folds=plan,
                store=session.store,
                root=kept,
                cutoff=cutoff,
                argv=session.words,
                stop=stop,
                fresh=fresh,
            )
            walked.append(_followed(session, name, plan, events, panel))
        if walked[-1].interrupted:
            break

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.training import walked_lines

        yield from walked_lines(walked)

    interrupted = any(each.interrupted for each in walked)
    failed = [f"{each.model}, fold {number}: {reason}" for each in walked for number, reason in each.failures.items()]
    code = INTERRUPTED if interrupted else 4 if failed else 0
    return Outcome(
        {"runs": [each.as_dict() for each in walked]},
        view,
        run_id=walked[-1].run_id,
        warnings=failed,
        exit_code=code,
    )


@command(groups.models, "models predict", settings=("data", "models"))
def predict(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A trained model, as lstm or lstm_best.")],
    as_of: AsOf = None,
) -> Outcome:
    """Give the forecast of today for every pool.

    Ends with exit code 4 when some pools have none, each with its reason.
    """
    from yieldlab.forecast.artifacts import load
    from yieldlab.forecast.train import forecast_today

    card = trained_card(name, session.settings.models)
    model = load(card)
    panel, _ = read(session, as_of)
    made = forecast_today(panel, model, trained_through=card.trained_through)
    without = made["reason"].is_not_null().sum()

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.training import today_lines

        yield from today_lines(made, card)

    warnings = [f"{without} of {made.height} pools have no forecast"] if without else []
    if (late := (datetime.now(UTC).date() - made["day"][0]).days) > 1 + panel.max_stale_days and as_of is None:
        warnings.append(f"the data ends {late} days ago, on {made['day'][0]}; the forecast is of that day")
    data = {"model": card.name, "trained_through": card.trained_through, "forecasts": made.to_dicts()}
    return Outcome(data, view, warnings=warnings, exit_code=4 if without else 0)


@command(groups.models, "models tune", settings=("data", "seed", "jobs"))
def tune(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="One model.")],
    trials: Annotated[int, typer.Option("--trials", metavar="N", help="Finished trials wanted in all.")] = 20,
    sets: Settings = None,
    as_of: AsOf = None,
) -> Outcome:
    """Search good settings of a model, never on the test days.

    Trials are kept in the data folder; the same command goes on where it was stopped.
    """
    from yieldlab.forecast import tuning
    from yieldlab.forecast.registry import known_settings

    given = settings_for(session, {name: known_settings(name)}, sets)[name]
    panel, _ = read(session, as_of)
    last: tuning.Tuned | None = None
    try:
        with session.progress(f"tune {name}") as progress:
            for event in tuning.tune(
                panel, name, given, trials=trials, folder=session.settings.data, seed=session.settings.seed
            ):
                match event:
                    case tuning.Tuned():
                        last = event
                    case _:
                        best = "" if event.best is None else f"best {event.best:.4f}"
                        progress.update(event.number + 1, trials, best)
    except KeyboardInterrupt:
        session.say("the same command goes on after the last finished trial")
        raise
    assert last is not None  # the last event of every search

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.tuning import tuned_lines

        yield from tuned_lines(last)

    return Outcome(tuning.document(last), view)


def losses(event: EpochDone) -> str:
    """What a progress bar says of an epoch."""
    valid = "" if event.valid_loss is None else f", validation {event.valid_loss:.4f}"
    return f"epoch {event.epoch}: train {event.train_loss:.4f}{valid}"


def _followed(session: Session, name: str, plan: FoldPlan, events: Iterator[object], panel: Panel) -> Walked:
    """Show every event of a walk-forward until its last one."""
    from yieldlab.forecast import fold_ensemble, fold_runs
    from yieldlab.forecast.protocol import EpochDone
    from yieldlab.forecast.registry import ENSEMBLE
    from yieldlab.report.training import Walked

    lengths = [fold.train[1] - fold.train[0] for fold in plan.folds(panel.shape[0])]
    walked = Walked(name, plan, (min(lengths), max(lengths)))
    done = 0
    with session.progress(f"walk-forward {name}") as progress:
        for event in events:
            match event:
                case fold_runs.Planned():
                    walked.run_id, walked.path, walked.folds = event.run_id, event.path, event.folds
                    done = event.done
                    progress.update(done, event.folds)
                case EpochDone():
                    progress.update(done, walked.folds, losses(event))
                case fold_runs.FoldDone():
                    done = event.done
                    progress.update(done, event.folds)
                case fold_runs.FoldFailed():
                    done = event.done
                    walked.failures[event.number] = event.reason
                    progress.say(f"fold {event.number} failed: {event.reason}")
                case fold_runs.Interrupted():
                    walked.interrupted = True
                case fold_runs.Finished():
                    walked.rows, walked.reused = event.rows, event.reused
                    walked.trained = fold_runs.trained_span(event.path, panel)
                    walked.failures = fold_runs.failures_of(event.path)
                    if name == ENSEMBLE:
                        walked.weights, walked.lacking = fold_ensemble.told(event.path)
    return walked
