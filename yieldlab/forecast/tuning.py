"""Which settings of a model forecast best, by a search that never sees the test days?

The rows before the test part of `train`'s split are all there is: models get a panel that ends there, and trials are
scored on its later half by `tuning_score`.

Trials are kept in an Optuna study in the data folder, named by all that decides a score, so that a search goes on where
it was stopped or killed, and ends as if it had not been. The first trial has the defaults.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yieldlab.errors import DataError, UsageError
from yieldlab.folds import chronological
from yieldlab.forecast.registry import RISK, check_package, entry, make, settings_of, windows_of
from yieldlab.forecast.tuning_score import Laid, Pruned, lay_folds, metric, nothing_changes, score
from yieldlab.forecast.windows import Windows
from yieldlab.panel import Panel
from yieldlab.space import Value

if TYPE_CHECKING:
    import optuna

__all__ = ["DATABASE", "SPACES", "Event", "Span", "TrialDone", "Tuned", "document", "tune"]

DATABASE = "tuning.db"

#: Random trials before the sampler models them, the defaults among them.
RANDOM_TRIALS = 10


@dataclass(frozen=True, slots=True)
class Span:
    """All numbers from `low` to `high`, whole where these are; with `log` even in their logarithm."""

    low: float
    high: float
    log: bool = False


Space = Mapping[str, "Span | tuple[Value, ...]"]

_NET: Space = {
    "learning_rate": Span(1e-4, 1e-2, log=True),
    "weight_decay": Span(1e-6, 1e-1, log=True),
    "dropout": Span(0.0, 0.5),
    "batch": (64, 128, 256, 512),
}

#: What is searched of each model. Not what decides the question (horizon, features, target, thresholds), nor what
#: losses are compared in (loss), nor how long is learned (epochs, trees): early stopping says that.
SPACES: Mapping[str, Space] = {
    "ewma": {"halflife": Span(0.25, 60.0, log=True)},
    "ar": {"lags": Span(1, 21), "ridge": Span(1e-5, 1.0, log=True)},
    "lstm": {**_NET, "hidden": (32, 64, 128, 192), "hidden_last": (16, 32, 64, 128)},
    "gru": {**_NET, "hidden": (40, 80, 152, 224), "hidden_last": (16, 32, 72, 144)},
    "transformer": {**_NET, "width": (32, 64, 104, 160), "layers": Span(1, 4)},
    "xgboost": {
        "learning_rate": Span(0.01, 0.3, log=True),
        "max_depth": Span(2, 10),
        "min_child_weight": Span(1.0, 100.0, log=True),
        "subsample": Span(0.5, 1.0),
        "colsample_bytree": Span(0.4, 1.0),
        "reg_lambda": Span(0.01, 100.0, log=True),
    },
    RISK: {"learning_rate": Span(0.01, 0.3, log=True), "max_depth": Span(2, 8)},
}

#: Settings that decide how fast, not what.
_NO_MATTER = ("threads",)


@dataclass(frozen=True, slots=True)
class TrialDone:
    """A trial is over. `state` is "complete", "pruned" (it was behind half of the others at the same epoch of a fold)
    or "failed", with the `reason`; only a complete one has a `value`. `best` is the least value so far and `settings`
    those that were searched. Trials are numbered from 0, without those that a stop or a kill cut short."""

    number: int
    state: str
    value: float | None
    best: float | None
    settings: Mapping[str, Value]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Tuned:
    """The search is over: the best of the searched `settings` with its score `value`, what the defaults scored (None =
    they failed) and what persistence does (None for risk, which it says nothing of), every trial, and where they are
    kept.

    `fixed` are the other settings that were given and are not the default. The scored days lie between `first` and
    `last`, and the test begins on `test_begin`, which no trial has seen.
    """

    model: str
    metric: str
    settings: Mapping[str, Value]
    value: float
    default: float | None
    persistence: float | None
    fixed: Mapping[str, Value]
    trials: tuple[TrialDone, ...]
    folds: int
    first: str
    last: str
    test_begin: str
    study: str
    path: Path


Event = TrialDone | Tuned


class _NotKept(DataError):
    """The database cannot be used, which is no fault of the trial at hand."""


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """What is tried: the settings that stay, those searched, and where trials are scored, all before row `unseen`."""

    model: str
    fixed: Mapping[str, Value]
    space: Space
    windows: Windows
    folds: Sequence[Laid]
    unseen: int
    study: str


def tune(
    panel: Panel,
    name: str,
    given: Mapping[str, Value],
    *,
    trials: int,
    folder: Path,
    n_folds: int = 3,
    seed: int = 0,
) -> Iterator[Event]:
    """Run trials until `trials` are over in all, those of earlier calls with the same input among them; last is Tuned.

    `given` settings are not searched. A trial that fails is one of them, with its reason. Raises UsageError where there
    is nothing to search, DataError when the history is too short, all trials fail, or the study in `folder` cannot be
    used; nothing is written before what is asked for has been checked.
    """
    for what, number in (("trials", trials), ("folds", n_folds)):
        if number < 1:
            raise UsageError(f"a search needs 1 or more {what}, not {number}")
    search = _planned(panel, name, given, n_folds, seed)
    with _opened(folder / DATABASE, search, seed) as study:
        done = study.finished()
        while len(done) < trials:
            done.append(_tried(study, search, done))
            yield done[-1]
    complete = [each for each in done if each.value is not None]
    if not complete:
        raise DataError(f"none of the {len(done)} trials of model {name!r} gave a score; the first: {done[0].reason}")
    best = min(complete, key=lambda each: (each.value, each.number))
    assert best.value is not None  # so chosen
    days = panel.times.astype("datetime64[D]")
    yield Tuned(
        model=name,
        metric=metric(name),
        settings=best.settings,
        value=best.value,
        default=done[0].value,
        persistence=None if name == RISK else nothing_changes(search.windows, search.folds),
        fixed={key: search.fixed[key] for key in given if search.fixed[key] != entry(name).settings[key]},
        trials=tuple(done),
        folds=n_folds,
        first=str(days[search.folds[0][0].predict[0]]),
        last=str(days[search.folds[-1][0].predict[1] - 1]),
        test_begin=str(days[search.unseen]),
        study=search.study,
        path=folder / DATABASE,
    )


def document(tuned: Tuned) -> dict[str, object]:
    """The outcome in JSON's own kinds."""
    return {**asdict(tuned), "path": str(tuned.path), "trials": [asdict(each) for each in tuned.trials]}


def _planned(panel: Panel, name: str, given: Mapping[str, Value], n_folds: int, seed: int) -> _Search:
    """Check all that can be checked, cut the test days off, and lay the folds."""
    settings = settings_of(name, given)
    if name not in SPACES:
        raise UsageError(f"model {name!r} has no setting to tune; these have: {', '.join(SPACES)}")
    space = {key: span for key, span in SPACES[name].items() if key not in given}
    if not space:
        raise UsageError(f"every setting that is searched of model {name!r} is given, so nothing is left to tune")
    _optuna()
    make(name, settings)
    t, _ = windows_of(panel, settings).samples((0, panel.shape[0]), labelled=True)
    if not t.size:
        raise DataError(f"no day has an APY {settings['horizon']} days later, so {name!r} has nothing to learn from")
    horizon = int(str(settings["horizon"]))
    split = chronological(panel.shape[0], purge=horizon, begin=int(t[0]))
    unseen = split.test[0]
    seen = panel.head(unseen)
    windows = windows_of(seen, settings)
    folds = lay_folds(windows, (split.train[0], unseen - horizon), n_folds)
    fixed = {key: value for key, value in settings.items() if key not in space}
    decides = {
        "fixed": {key: value for key, value in fixed.items() if key not in _NO_MATTER},
        "space": {key: repr(span) for key, span in space.items()},
        "panel": [seen.digest(), seen.max_stale_days],
        "folds": [(asdict(fold), fit, valid) for fold, fit, valid in folds],
        "seed": seed,
    }
    mark = hashlib.blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=6).hexdigest()
    return _Search(name, fixed, space, windows, folds, unseen, f"{name}-{mark}")


def _tried(study: _Study, search: _Search, done: Sequence[TrialDone]) -> TrialDone:
    """Ask for settings, score them, and keep what came of it."""
    trial = study.ask(len(done))
    settings = _settings(trial.params)
    value, reason = None, ""
    try:
        chosen, losses = {**search.fixed, **settings}, _Losses(study.path, trial)
        value = score(search.model, chosen, search.windows, search.folds, losses)
        state = "complete"
    except Pruned:
        state = "pruned"
    except _NotKept:
        raise
    except (DataError, UsageError) as error:
        state, reason = "failed", str(error)
    except BaseException:
        with suppress(_NotKept):  # what ends the search is told, not what became of its notes
            study.tell(trial, "failed", None, "")
        raise
    study.tell(trial, state, value, reason)
    values = [each for each in (value, *(other.value for other in done)) if each is not None]
    return TrialDone(len(done), state, value, min(values, default=None), settings, reason)


def _settings(params: Mapping[str, Value]) -> dict[str, Value]:
    """What is tried of a draw: three digits, so that settings which are typed are those that were scored."""
    return {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in params.items()}


def _optuna() -> None:
    """Raise UsageError unless Optuna is there."""
    check_package("optuna", "tuning")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)


@contextmanager
def _kept(path: Path, *also: type[Exception]) -> Iterator[None]:
    """What goes wrong with the database, or `also` may, is one sentence."""
    import sqlalchemy.exc
    from optuna.exceptions import StorageInternalError

    caught: tuple[type[Exception], ...] = (
        sqlalchemy.exc.SQLAlchemyError,
        sqlite3.Error,
        StorageInternalError,
        OSError,
        *also,
    )
    try:
        yield
    except caught as error:
        cause = error if error.__cause__ is None or not isinstance(error, StorageInternalError) else error.__cause__
        reason = (str(getattr(cause, "orig", cause)) or type(cause).__name__).splitlines()[0]
        raise _NotKept(
            f"the trials in {path} cannot be read or written ({reason}); give the folder room and leave to write, or "
            "move that file away to search from the beginning"
        ) from error


@contextmanager
def _opened(path: Path, search: _Search, seed: int) -> Iterator[_Study]:
    """The study of the search, locked; the system lets go of the lock when the process ends, however it does."""
    import optuna
    import sqlalchemy

    with _kept(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"tuning-{search.study}.lock").open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is at work on the study {search.study} in {path}; wait for it") from None
        with _kept(path, RuntimeError):  # so Optuna refuses the tables of another version
            url = sqlalchemy.URL.create("sqlite", database=str(path.absolute())).render_as_string(hide_password=False)
            storage = optuna.storages.RDBStorage(url.replace("{", "{{").replace("}", "}}"))
        try:
            with _kept(path):
                study = optuna.create_study(
                    storage=storage,
                    study_name=search.study,
                    direction="minimize",
                    load_if_exists=True,
                    pruner=optuna.pruners.MedianPruner(),
                )
                for each in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
                    study.tell(each.number, state=optuna.trial.TrialState.FAIL)
            yield _Study(path, study, search, seed)
        finally:
            storage.remove_session()
            storage.engine.dispose()


@dataclass(frozen=True, slots=True)
class _Study:
    """The trials on disk; every method may raise the DataError of `_kept`."""

    path: Path
    study: optuna.Study
    search: _Search
    seed: int

    def finished(self) -> list[TrialDone]:
        """What is over, in order. A failed trial without a reason was cut short, and is not."""
        from optuna.trial import TrialState

        names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
        done: list[TrialDone] = []
        with _kept(self.path):
            trials = self.study.get_trials(deepcopy=False, states=tuple(names))
        best: float | None = None
        for each in trials:
            reason = str(each.user_attrs.get("reason", ""))
            if each.state == TrialState.FAIL and not reason:
                continue
            value = each.value if each.state == TrialState.COMPLETE else None
            best = value if best is None else best if value is None else min(best, value)
            done.append(TrialDone(len(done), names[each.state], value, best, _settings(each.params), reason))
        return done

    def ask(self, number: int) -> optuna.Trial:
        """A new trial; what it draws depends on the seed, its number and the trials before, not on when they ran."""
        import optuna

        space = self.search.space
        with _kept(self.path):
            if number == 0 and not self.study.get_trials(states=(optuna.trial.TrialState.WAITING,)):
                defaults = entry(self.search.model).settings
                self.study.enqueue_trial({key: defaults[key] for key in space})
            draws = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
            self.study.sampler = optuna.samplers.TPESampler(seed=draws, n_startup_trials=RANDOM_TRIALS)
            return self.study.ask({key: _distribution(span) for key, span in space.items()})

    def tell(self, trial: optuna.Trial, state: str, value: float | None, reason: str) -> None:
        """Keep how a trial ended."""
        from optuna.trial import TrialState

        names = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        with _kept(self.path):
            if reason:
                trial.set_user_attr("reason", reason)
            self.study.tell(trial, value, state=names[state])


@dataclass(frozen=True, slots=True)
class _Losses:
    """The `Watch` of a trial on disk."""

    path: Path
    trial: optuna.Trial

    def report(self, step: int, loss: float) -> None:
        with _kept(self.path):
            self.trial.report(loss, step)

    def behind(self) -> bool:
        with _kept(self.path):
            return self.trial.should_prune()


def _distribution(span: Span | tuple[Value, ...]) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(span, tuple):
        return CategoricalDistribution(span)
    if isinstance(span.low, int) and isinstance(span.high, int):
        return IntDistribution(span.low, span.high, log=span.log)
    return FloatDistribution(span.low, span.high, log=span.log)
