"""`models train|walk-forward|tune|predict`: learning from the past, and asking what was learned."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from yieldlab.cli import groups, inputs
from yieldlab.cli.following import stopper
from yieldlab.cli.options import AsOf
from yieldlab.cli.runs import runs_folder
from yieldlab.cli.session import Outcome, Session, command
from yieldlab.errors import INTERRUPTED, DataError, UsageError, did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from yieldlab.forecast.artifacts import Card
    from yieldlab.forecast.fold_runs import FoldPlan
    from yieldlab.forecast.protocol import EpochDone
    from yieldlab.forecast.train import Trained
    from yieldlab.panel import Panel
    from yieldlab.report.training import Walked
    from yieldlab.space import Value

#: What can be set of an ensemble that is made of finished walk-forwards.
WALKED_ENSEMBLE: Mapping[str, Value] = {"horizon": 7, "how": "inverse_error"}

Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Models, as lstm; `models list` has all.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="K=V", help="A setting of the models; may be repeated.")
]
Members = Annotated[
    list[str] | None, typer.Option("--member", metavar="NAME", help="Of the ensemble; may be repeated.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do it again even if nothing has changed.")]


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
    from yieldlab.forecast.registry import ENSEMBLE, RISK, check_package, entry, make

    names = list(dict.fromkeys(names))
    members = members_for(names, member)
    given = settings_for(session, names, sets, {ENSEMBLE: {"members": " ".join(members)}})
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
    from yieldlab.forecast.registry import ENSEMBLE, make, settings_of

    names = list(dict.fromkeys(names))
    members = members_for(names, member)
    given = settings_for(session, names, sets, walked=True)
    panel, cutoff = read(session, as_of)
    first = None if start is None else panel.window(inputs.day("--start", start))[0]
    plans: dict[str, FoldPlan] = {}
    for name in sorted(names, key=lambda name: name == ENSEMBLE):  # the ensemble is made of the others
        if name == ENSEMBLE:
            check_how(str(given[name]["how"]), FITTED)
        else:
            make(name, given[name])
        horizon = int(str((given[name] if name == ENSEMBLE else settings_of(name, given[name]))["horizon"]))
        gap = (horizon if purge is None else days("--purge", purge)) + days("--embargo", embargo)
        if first is not None and first <= gap:
            raise UsageError(
                f"--start {start} is too early: {first} days of history lie before it, and {gap} of purge and embargo "
                "come between what is learned from and what is forecast"
            )
        plans[name] = FoldPlan(
            folds,
            days("--train", train),
            days("--step", step),
            horizon if purge is None else days("--purge", purge),
            days("--embargo", embargo),
            first,
        )
        check_purge(plans[name].purge, horizon)
        plans[name].folds(panel.shape[0])
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

    given = settings_for(session, [name], sets)[name]
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


def read(session: Session, as_of: str | None) -> tuple[Panel, datetime]:
    """The panel with every field that a feature is made of."""
    from yieldlab import schema

    return inputs.read_panel(session.store, schema.FIELDS, inputs.instant("--as-of", as_of))


def members_for(names: Sequence[str], member: Sequence[str] | None) -> tuple[str, ...]:
    """Of what the ensemble is made: what `--member` says, else the forecasters named beside it, else what is usual.

    Raises UsageError for members that cannot be, and for `--member` where there is no ensemble.
    """
    from yieldlab.forecast.registry import ENSEMBLE, MEMBERS, MODELS, members_of

    if ENSEMBLE in names:
        usual = str(MODELS[ENSEMBLE].settings["members"])
        return members_of(member or [name for name in names if name in MEMBERS] or usual)
    if member:
        raise UsageError("--member says of what the ensemble is made; name the ensemble among the models")
    return ()


def settings_for(
    session: Session,
    names: Sequence[str],
    sets: Sequence[str] | None,
    fixed: Mapping[str, Mapping[str, Value]] | None = None,
    *,
    walked: bool = False,
) -> dict[str, dict[str, Value]]:
    """By model, what is set, what `--seed` and `--jobs` say, as far as it has such a setting, and what is `fixed`.

    An ensemble takes a setting of its members for one of them, as `lstm.epochs`, or for all that have it, unless it is
    made of what they have `walked`. Raises UsageError for an unknown model, a setting that none of the models has, and
    one that is set twice.
    """
    from yieldlab.forecast.registry import ENSEMBLE, RISK, known_settings, settings_of

    fixed = fixed or {}
    known = {
        name: WALKED_ENSEMBLE if walked and name == ENSEMBLE else known_settings(name, fixed.get(name))
        for name in names
    }
    chosen = inputs.assignments(sets, session.settings)
    if "members" in chosen:
        raise UsageError("members of an ensemble are named by --member, one each")
    for key in chosen:
        if not any(_named(key, settings) for settings in known.values()):
            among = sorted({each for settings in known.values() for each in settings})
            whose = f"model {names[0]!r} has no" if len(known) == 1 else f"none of the models {', '.join(known)} has a"
            raise UsageError(f"{whose} setting {key!r}{did_you_mean(key, among)}")
    if "horizon" in chosen and RISK in known and len(known) > 1:
        raise UsageError("a horizon of risk is another one than that of forecasts; name risk in a command of its own")
    flags: dict[str, Value] = {"seed": session.settings.seed}
    if "jobs" in session.settings.flags:
        flags["threads"] = session.settings.jobs
    found: dict[str, dict[str, Value]] = {}
    for name, settings in known.items():
        # A setting by its full name goes before one that is for all.
        said = sorted({**flags, **chosen}.items(), key=lambda item: "." in item[0])
        found[name] = {full: value for key, value in said for full in _named(key, settings)}
        found[name] |= fixed.get(name, {})
        if walked and name == ENSEMBLE:
            found[name] = {**WALKED_ENSEMBLE, **found[name]}
        else:
            settings_of(name, found[name])  # a value that cannot be is said before any work
    return found


def _named(key: str, settings: Mapping[str, Value]) -> list[str]:
    """The settings that a key is for: the one of that name, else that of every member."""
    return [key] if key in settings else [each for each in settings if each.partition(".")[2] == key]


def trained_card(name: str, folder: Path) -> Card:
    """The card of a trained model. Raises UsageError for what can be none's name, DataError where it is not trained."""
    from yieldlab.forecast.artifacts import CARD_SUFFIX, find
    from yieldlab.forecast.registry import MODELS, released_name

    there = [path.name.removesuffix(CARD_SUFFIX) for path in sorted(folder.glob(f"*{CARD_SUFFIX}"))]
    kinds = {each: kind for kind in MODELS for each in (kind, f"{kind}_best", released_name(kind))}
    if name not in {*kinds, *there}:
        raise UsageError(f"unknown model {name!r}{did_you_mean(name, [*MODELS, *there])}")
    if name not in there and name not in MODELS:
        raise DataError(
            f"there is no trained model {name!r} in {folder}; `yieldlab models train {kinds[name]}` makes one"
        )
    return find(name, folder)


def check_writable(folder: Path) -> None:
    """See before a long training whether the folder can be made and written into, and leave nothing there.

    Raises UsageError where a file is in its place, and OSError as the system does.
    """
    from tempfile import TemporaryFile

    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not there.is_dir():
        raise UsageError(f"{there} is a file; name a folder with --models")
    with TemporaryFile(dir=there):
        pass


def is_there(name: str, folder: Path) -> bool:
    """Whether the folder holds a card of that name, or of the released model of that kind, whole or not."""
    from yieldlab.forecast.artifacts import CARD_SUFFIX
    from yieldlab.forecast.registry import released_name

    return any((folder / f"{stem}{CARD_SUFFIX}").exists() for stem in (name, released_name(name)))


def days(flag: str, text: str) -> int:
    """A number of days, as `30d` or `30`. Raises UsageError with the right form."""
    found = re.fullmatch(r"\s*([0-9]{1,5})\s*d?\s*", text)
    if found is None:
        raise UsageError(f"{flag} must be a whole number of days such as 30d, not {text!r}")
    return int(found[1])


def losses(event: EpochDone) -> str:
    """What a progress bar says of an epoch."""
    valid = "" if event.valid_loss is None else f", validation {event.valid_loss:.4f}"
    return f"epoch {event.epoch}: train {event.train_loss:.4f}{valid}"


def card_document(card: object) -> dict[str, object]:
    """A card as the JSON document shows it: without what was fitted, which may be long."""
    names = [name for name in type(card).__slots__ if name != "fitted"]  # type: ignore[attr-defined]
    return {name: getattr(card, name) for name in names}


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
