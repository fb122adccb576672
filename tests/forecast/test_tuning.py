"""A search for settings never sees the test days, and ends the same however often it was cut short."""

from __future__ import annotations

import fcntl
import json
import math
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import optuna
import pytest

from yieldlab.errors import AuditError, DataError, UsageError
from yieldlab.folds import Rows, chronological, inner
from yieldlab.forecast import tuning, tuning_score
from yieldlab.forecast.baselines import Ewma
from yieldlab.forecast.protocol import EpochDone
from yieldlab.forecast.registry import MODELS, make, settings_of
from yieldlab.forecast.tuning import DATABASE, SPACES, Event, Span, TrialDone, Tuned, document, tune
from yieldlab.forecast.tuning_score import lay_folds, metric
from yieldlab.forecast.windows import Windows
from yieldlab.panel import Panel
from yieldlab.report.terminal import show
from yieldlab.report.tuning import command, tuned_lines
from yieldlab.space import Value
from yieldlab.testing import tiny_panel

SMALL: dict[str, Value] = {"horizon": 3, "lookback": 5}
TREES: dict[str, Value] = {**SMALL, "n_estimators": 10, "early_stopping": 0, "threads": 1}
MAKE = tuning_score.make

#: A process that dies, by SIGKILL, within its third trial.
WORKER = """
import os, signal, sys
from pathlib import Path
from yieldlab.forecast import tuning, tuning_score
from yieldlab.testing import tiny_panel

make, made = tuning_score.make, []

def deadly(name, settings):
    made.append(name)
    if len(made) == 8:  # three folds a trial
        os.kill(os.getpid(), signal.SIGKILL)
    return make(name, settings)

tuning_score.make = deadly
panel = tiny_panel(times=200, pools=4, seed=3)
list(tuning.tune(panel, "ewma", {"horizon": 3, "lookback": 5}, trials=6, folder=Path(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def panel() -> Panel:
    return tiny_panel(times=200, pools=4, seed=3)


@pytest.fixture(scope="module")
def whole(panel: Panel, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Six trials in one go."""
    return ended(tune(panel, "ewma", SMALL, trials=6, folder=tmp_path_factory.mktemp("whole")))


def ended(events: Iterator[Event]) -> Tuned:
    *_, last = events
    assert isinstance(last, Tuned)
    return last


def recorded(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """Every trial in the database, cut short or not."""
    (study,) = optuna.get_all_study_names(f"sqlite:///{folder / DATABASE}")
    return optuna.load_study(study_name=study, storage=f"sqlite:///{folder / DATABASE}").get_trials()


def altered(panel: Panel, rows: slice) -> Panel:
    """The panel with other values on these rows."""
    fields = {name: panel.raw(name).copy() for name in panel.fields if name in ("apy", "tvl_usd")}
    for values in fields.values():
        values[rows] = values[rows] * 3.0 + 0.5
    return panel.with_fields(fields)


# -- what is scored ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "given"), [("ewma", SMALL), ("ar", SMALL), ("xgboost", TREES)])
def test_altering_the_test_days_changes_no_score(
    panel: Panel, tmp_path: Path, name: str, given: dict[str, Value]
) -> None:
    mine = ended(tune(panel, name, given, trials=2, folder=tmp_path / "mine"))
    begin = int(np.searchsorted(panel.times.astype("datetime64[D]"), np.datetime64(mine.test_begin)))
    later = altered(panel, slice(begin, None))
    assert later.digest() != panel.digest()
    assert ended(tune(later, name, given, trials=2, folder=tmp_path / "later")).trials == mine.trials
    earlier = altered(panel, slice(begin - 1, begin))
    assert ended(tune(earlier, name, given, trials=2, folder=tmp_path / "earlier")).trials != mine.trials


def test_no_model_is_handed_a_test_day(panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Panel] = []

    class Spy(Ewma):
        def fit(self, windows: Windows, train: Rows, valid: Rows | None) -> Iterator[EpochDone]:
            seen.append(windows.panel)
            return super().fit(windows, train, valid)

    monkeypatch.setattr(tuning_score, "make", Spy)
    tuned = ended(tune(panel, "ewma", SMALL, trials=1, folder=tmp_path))
    assert len(seen) == 3
    windows = Windows.of(panel, lookback=5, horizon=3)
    first = int(windows.samples((0, 200), labelled=True)[0][0])
    test = chronological(200, purge=3, begin=first).test
    assert {each.shape[0] for each in seen} == {test[0]}
    assert tuned.test_begin == str(panel.times[test[0]].astype("datetime64[D]"))


def test_folds_predict_the_later_half_in_order_and_learn_before_it(panel: Panel) -> None:
    windows = Windows.of(panel, lookback=5, horizon=3)
    folds = lay_folds(windows, (20, 140), 3)
    assert [fold.predict for fold, _, _ in folds] == [(80, 100), (100, 120), (120, 140)]
    assert [fold.train for fold, _, _ in folds] == [(20, 70), (20, 90), (20, 110)]
    for fold, fit, valid in folds:
        assert (fit, valid) == inner(fold.train, 0.15, purge=3)
        assert fold.train[1] - 1 + windows.horizon < fold.predict[0]


def test_the_score_is_what_a_plain_loop_adds_up_to(panel: Panel, tmp_path: Path) -> None:
    tuned = ended(tune(panel, "ewma", SMALL, trials=1, folder=tmp_path))
    windows = Windows.of(panel, lookback=5, horizon=3)
    first = int(windows.samples((0, 200), labelled=True)[0][0])
    end = chronological(200, purge=3, begin=first).test[0] - 3
    step = (end - first) // 6
    forecast = make("ewma", SMALL).fields(windows, (0, 200))["forecast_ewma"]
    means = []
    for fold in range(3):
        begin = end - (3 - fold) * step
        learned = [
            abs(windows.label[t, n]) * 100.0
            for t in range(first, begin - 10)
            for n in range(4)
            if windows.usable[t, n] and not math.isnan(windows.label[t, n])
        ]
        size = float(np.median(learned))
        errors = [
            abs(math.asinh(forecast[t, n] * 100.0 / size) - math.asinh(windows.label[t, n] * 100.0 / size))
            for t in range(begin, begin + step)
            for n in range(4)
            if windows.usable[t, n] and not math.isnan(windows.label[t, n])
        ]
        means.append(sum(errors) / len(errors))
    assert tuned.value == tuned.default == pytest.approx(sum(means) / 3, rel=1e-12)
    assert tuned.metric == metric("ewma") == "mean absolute error of asinh(APY / c)"


def test_todays_yield_stands_where_a_trial_has_no_forecast(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Half(Ewma):
        def fields(self, windows: Windows, rows: Rows) -> dict[str, np.ndarray]:
            made = windows.last[rows[0] : rows[1]].copy()
            made[:, ::2] = np.nan
            return {"forecast_ewma": made}

    monkeypatch.setattr(tuning_score, "make", lambda name, given: MAKE("ewma", {**given, "halflife": 1e-3}))
    persistence = ended(tune(panel, "ewma", SMALL, trials=1, folder=tmp_path / "all"))
    monkeypatch.setattr(tuning_score, "make", Half)
    assert ended(tune(panel, "ewma", SMALL, trials=1, folder=tmp_path / "half")).value == persistence.value


def test_risk_is_scored_by_log_loss(tmp_path: Path) -> None:
    panel = tiny_panel(times=300, pools=6, seed=1)
    given: dict[str, Value] = {"horizon": 10, "lookback": 10, "n_estimators": 5, "threads": 1, "tvl_fall_medium": 0.05}
    given["tvl_fall_high"] = 0.1
    tuned = ended(tune(panel, "risk", given, trials=2, folder=tmp_path, n_folds=1))
    assert tuned.metric == "log loss"
    windows = Windows.of(panel, lookback=10, horizon=10)
    first = int(windows.samples((0, 300), labelled=True)[0][0])
    unseen = chronological(300, purge=10, begin=first).test[0]
    windows = Windows.of(panel.head(unseen), lookback=10, horizon=10)
    ((fold, fit, valid),) = lay_folds(windows, (first, unseen - 10), 1)
    model = make("risk", given)
    list(model.fit(windows, fit, valid))
    happened, found = model.labels(windows), model.probabilities(windows, fold.predict)  # type: ignore[attr-defined]
    losses = [
        -math.log(max(found[t - fold.predict[0], n, int(happened[t, n])], 1e-9))
        for t in range(*fold.predict)
        for n in range(6)
        if windows.usable[t, n] and not math.isnan(happened[t, n])
    ]
    assert len(losses) > 100
    assert tuned.default == pytest.approx(sum(losses) / len(losses), rel=1e-9)


def test_a_model_that_saw_what_it_is_scored_on_ends_the_search(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(name: str, settings: Mapping[str, Value]) -> Ewma:
        model = Ewma(name, settings)
        model.trained_through = 150
        return model

    monkeypatch.setattr(tuning_score, "make", late)
    with pytest.raises(AuditError, match=r"values up to row 150 in its fit"):
        ended(tune(panel, "ewma", SMALL, trials=1, folder=tmp_path))


# -- what is searched -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SPACES))
def test_every_searched_setting_is_one_of_the_models_and_its_default_is_in_reach(name: str) -> None:
    for key, span in SPACES[name].items():
        default = MODELS[name].settings[key]
        if isinstance(span, Span):
            assert isinstance(default, int | float)
            assert span.low <= default <= span.high
            assert type(span.low) is type(span.high) is type(default)
        else:
            assert default in span
            assert settings_of(name, {key: span[0]})[key] == span[0]


def test_the_first_trial_has_the_defaults_and_later_ones_are_as_they_are_typed(whole: Tuned) -> None:
    assert whole.trials[0].settings == {"halflife": 7.0}
    assert [each.number for each in whole.trials] == list(range(6))
    for each in whole.trials:
        (halflife,) = each.settings.values()
        assert isinstance(halflife, float)
        assert float(f"{halflife:.3g}") == halflife
    values = [each.value for each in whole.trials if each.value is not None]
    assert whole.value == min(values)
    assert [each.best for each in whole.trials] == np.minimum.accumulate(values).tolist()


def test_what_is_given_is_not_searched(panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Mapping[str, Value]] = []
    monkeypatch.setattr(tuning_score, "make", lambda name, given: made.append(given) or MAKE(name, given))
    tuned = ended(tune(panel, "ar", {**SMALL, "lags": 2}, trials=3, folder=tmp_path))
    assert all(set(each.settings) == {"ridge"} for each in tuned.trials)
    assert {each["lags"] for each in made} == {2}
    assert {each["horizon"] for each in made} == {3}
    assert tuned.fixed == {"horizon": 3, "lookback": 5, "lags": 2}


def test_the_same_seed_searches_the_same_and_another_does_not(panel: Panel, tmp_path: Path) -> None:
    searched = [
        ended(tune(panel, "ar", SMALL, trials=3, folder=tmp_path / str(i), seed=seed))
        for i, seed in enumerate((0, 0, 1))
    ]
    assert searched[0].trials == searched[1].trials
    assert searched[0].study == searched[1].study != searched[2].study
    assert searched[0].trials[1:] != searched[2].trials[1:]
    assert len({tuple(each.settings.values()) for each in searched[0].trials}) == 3


def test_a_study_is_one_of_the_model_the_settings_the_data_and_the_folds(panel: Panel, tmp_path: Path) -> None:
    def study(panel: Panel = panel, given: dict[str, Value] = SMALL, **options: int) -> str:
        return ended(tune(panel, "ewma", given, trials=1, folder=tmp_path, **options)).study  # type: ignore[arg-type]

    others = {
        study(given={**SMALL, "horizon": 4}),
        study(n_folds=2),
        study(seed=5),
        study(altered(panel, slice(90, 91))),
        study(panel.with_max_stale_days(1)),
    }
    assert len({study(), *others}) == 6
    assert study() == study()


# -- hopeless trials --------------------------------------------------------------------------------------------------


def learner(loss: Callable[[float, int], float], epochs: list[tuple[float, int]]) -> type[Ewma]:
    """A model of ten epochs a fold whose loss depends on its half-life and the fold (1, 2, 3); it notes every epoch."""
    fits: list[float] = []

    class Learner(Ewma):
        def fit(self, windows: Windows, train: Rows, valid: Rows | None) -> Iterator[EpochDone]:
            halflife = float(str(self.settings["halflife"]))
            fits.append(halflife)
            fold = fits.count(halflife)
            for epoch in range(1, 11):
                epochs.append((halflife, fold))
                yield EpochDone(epoch, 10, 1.0, loss(halflife, fold), True)

    return Learner


def draws(monkeypatch: pytest.MonkeyPatch, *halflives: float) -> None:
    """Let the trials have these half-lives, whatever is drawn."""
    left = list(halflives)
    monkeypatch.setattr(tuning, "_settings", lambda params: {"halflife": left.pop(0)})


def test_a_trial_behind_the_others_is_pruned_after_its_warm_up(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[tuple[float, int]] = []
    monkeypatch.setattr(tuning_score, "make", learner(lambda halflife, fold: 9.0 if halflife > 3.0 else 1.0, epochs))
    draws(monkeypatch, 2.0, 9.0, 2.1, 2.2, 2.3, 8.0, 1.0)
    events = list(tune(panel, "ewma", SMALL, trials=7, folder=tmp_path))
    trials = [event for event in events if isinstance(event, TrialDone)]
    # The second is as bad, but five must be complete before any is pruned.
    assert [each.state for each in trials] == ["complete"] * 5 + ["pruned", "complete"]
    assert trials[5].value is None
    assert trials[5].best == trials[4].best
    assert [epochs.count((8.0, fold)) for fold in (1, 2, 3)] == [4, 0, 0]
    assert [epochs.count((1.0, fold)) for fold in (1, 2, 3)] == [10, 10, 10]


def test_a_trial_is_compared_within_its_fold_though_folds_differ_in_their_losses(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(halflife: float, fold: int) -> float:
        level = 0.1 if fold == 1 else 5.0
        return level * 2.0 if (halflife, fold) == (8.0, 2) else level

    epochs: list[tuple[float, int]] = []
    monkeypatch.setattr(tuning_score, "make", learner(loss, epochs))
    draws(monkeypatch, 2.0, 2.1, 2.2, 2.3, 2.4, 8.0)
    tuned = ended(tune(panel, "ewma", SMALL, trials=6, folder=tmp_path))
    assert len(tuned.trials) == 6
    assert [epochs.count((8.0, fold)) for fold in (1, 2, 3)] == [10, 4, 0]


def test_trees_that_learn_badly_are_pruned(panel: Panel, tmp_path: Path) -> None:
    tuned = ended(tune(panel, "xgboost", TREES, trials=9, folder=tmp_path))
    states = {each.state for each in tuned.trials}
    assert states == {"complete", "pruned"}
    assert all(each.state == "complete" for each in tuned.trials[:5])


# -- going on ---------------------------------------------------------------------------------------------------------


def test_a_search_stopped_again_and_again_ends_the_same(panel: Panel, tmp_path: Path, whole: Tuned) -> None:
    for stop in (1, 2, 1):
        events = tune(panel, "ewma", SMALL, trials=6, folder=tmp_path)
        for _ in range(stop):
            next(events)
        events.close()  # type: ignore[attr-defined]
    events = list(tune(panel, "ewma", SMALL, trials=6, folder=tmp_path))
    assert [event.number for event in events if isinstance(event, TrialDone)] == [4, 5]
    assert isinstance(events[-1], Tuned)
    assert events[-1].trials == whole.trials
    assert len(recorded(tmp_path)) == 6


def test_a_search_that_is_done_runs_no_trial_again(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = ended(tune(panel, "ewma", SMALL, trials=2, folder=tmp_path))
    monkeypatch.setattr(tuning_score, "make", None)
    for trials in (1, 2):
        assert list(tune(panel, "ewma", SMALL, trials=trials, folder=tmp_path)) == [once]


def test_a_search_killed_within_a_trial_ends_the_same(panel: Panel, tmp_path: Path, whole: Tuned) -> None:
    died = subprocess.run([sys.executable, "-c", WORKER, str(tmp_path)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert [each.state.name for each in recorded(tmp_path)] == ["COMPLETE", "COMPLETE", "RUNNING"]
    events = list(tune(panel, "ewma", SMALL, trials=6, folder=tmp_path))
    assert [event.number for event in events if isinstance(event, TrialDone)] == [2, 3, 4, 5]
    assert isinstance(events[-1], Tuned)
    assert events[-1].trials == whole.trials
    names = [each.state.name for each in recorded(tmp_path)]
    assert names == ["COMPLETE", "COMPLETE", "FAIL", *["COMPLETE"] * 4]


@pytest.mark.parametrize("cut", [0, 1])
def test_an_interrupted_trial_is_no_finished_one(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Tuned, cut: int
) -> None:
    made: list[str] = []

    def interrupting(name: str, settings: Mapping[str, Value]) -> object:
        made.append(name)
        if len(made) == 3 * cut + 2:
            raise KeyboardInterrupt
        return MAKE(name, settings)

    monkeypatch.setattr(tuning_score, "make", interrupting)
    with pytest.raises(KeyboardInterrupt):
        list(tune(panel, "ewma", SMALL, trials=3, folder=tmp_path))
    assert [each.state.name for each in recorded(tmp_path)] == ["COMPLETE"] * cut + ["FAIL"]
    assert ended(tune(panel, "ewma", SMALL, trials=3, folder=tmp_path)).trials == whole.trials[:3]


# -- failing ----------------------------------------------------------------------------------------------------------


def test_a_trial_that_fails_is_told_with_its_reason_and_not_run_again(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(name: str, settings: Mapping[str, Value]) -> object:
        if settings["halflife"] == 7.0:
            raise DataError("seven brings bad luck")
        return MAKE(name, settings)

    monkeypatch.setattr(tuning_score, "make", failing)
    first, second, last = tune(panel, "ewma", SMALL, trials=2, folder=tmp_path)
    assert isinstance(first, TrialDone)
    assert isinstance(second, TrialDone)
    assert isinstance(last, Tuned)
    assert (first.state, first.value, first.best, first.reason) == ("failed", None, None, "seven brings bad luck")
    assert second.state == "complete"
    assert last.default is None
    assert last.settings == second.settings
    (again,) = tune(panel, "ewma", SMALL, trials=2, folder=tmp_path)
    assert again == last


def test_when_every_trial_fails_the_first_reason_is_raised(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(Ewma):
        def fields(self, windows: Windows, rows: Rows) -> dict[str, np.ndarray]:
            return {"forecast_ewma": np.full((rows[1] - rows[0], windows.shape[1]), np.nan)}

    monkeypatch.setattr(tuning_score, "make", Silent)
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"none of the 2 trials of model 'ewma' gave a score; .* no forecast for any"
        ):
            list(tune(panel, "ewma", SMALL, trials=2, folder=tmp_path))
    assert len(recorded(tmp_path)) == 2


@pytest.mark.parametrize(
    ("name", "given", "trials", "kind", "match"),
    [
        ("persistence", {}, 5, UsageError, "'persistence' has no setting to tune; these have: ewma, ar"),
        ("pool_mean", {}, 5, UsageError, "has no setting to tune"),
        ("ewmaa", {}, 5, UsageError, "did you mean 'ewma'"),
        ("ewma", {"halflive": 3.0}, 5, UsageError, "did you mean 'halflife'"),
        ("ewma", {"halflife": 3.0}, 5, UsageError, "nothing is left to tune"),
        ("ewma", {}, 0, UsageError, "1 or more trials, not 0"),
        ("xgboost", {"target": "levle"}, 5, UsageError, "did you mean 'level'"),
        ("ewma", {"horizon": 60}, 5, DataError, "leave no row for validation"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    panel: Panel,
    tmp_path: Path,
    name: str,
    given: dict[str, Value],
    trials: int,
    kind: type[Exception],
    match: str,
) -> None:
    with pytest.raises(kind, match=match):
        list(tune(panel.head(140), name, given, trials=trials, folder=tmp_path))
    assert not list(tmp_path.iterdir())


def test_too_many_folds_for_the_history_are_refused(panel: Panel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="days before the test days are too few for 100 folds"):
        list(tune(panel, "ewma", SMALL, trials=1, folder=tmp_path, n_folds=100))


def test_a_missing_package_is_told_with_how_to_get_it(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r'package optuna, which is not installed; .* pip install "yieldlab\[ml\]"'):
        list(tune(panel, "ewma", SMALL, trials=1, folder=tmp_path))


def test_a_database_that_is_none_is_left_alone(panel: Panel, tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"no database at all" * 500)
    with pytest.raises(DataError, match=r"tuning.db cannot be read or written \(file is not a database\)"):
        list(tune(panel, "ewma", SMALL, trials=1, folder=tmp_path))
    assert (tmp_path / DATABASE).read_bytes() == b"no database at all" * 500


def test_a_database_of_another_version_is_refused(panel: Panel, tmp_path: Path) -> None:
    list(tune(panel, "ewma", SMALL, trials=1, folder=tmp_path))
    with sqlite3.connect(tmp_path / DATABASE) as database:
        database.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    with pytest.raises(DataError, match="cannot be read or written"):
        list(tune(panel, "ewma", SMALL, trials=1, folder=tmp_path))


def test_a_database_lost_within_a_trial_ends_the_search(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrecker(Ewma):
        def fit(self, windows: Windows, train: Rows, valid: Rows | None) -> Iterator[EpochDone]:
            with sqlite3.connect(tmp_path / DATABASE) as database:
                database.execute("DROP TABLE trial_intermediate_values")
            yield EpochDone(1, 1, 1.0, 1.0, True)

    monkeypatch.setattr(tuning_score, "make", Wrecker)
    with pytest.raises(DataError, match=r"cannot be read or written \(no such table: trial_intermediate_values\)"):
        list(tune(panel, "ewma", SMALL, trials=3, folder=tmp_path))


def test_a_disk_that_is_full_within_a_trial_is_no_fault_of_the_trial(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(trial: optuna.Trial, value: float, step: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(optuna.Trial, "report", full)
        with pytest.raises(DataError, match=r"cannot be read or written .*No space left on device"):
            list(tune(panel, "xgboost", TREES, trials=1, folder=tmp_path))
    tuned = ended(tune(panel, "xgboost", TREES, trials=1, folder=tmp_path))
    assert [each.state for each in tuned.trials] == ["complete"]
    assert [each.state.name for each in recorded(tmp_path)] == ["FAIL", "COMPLETE"]


def test_a_folder_that_cannot_be_is_one_sentence(panel: Panel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be read or written \(.*Not a directory|exists"):
        list(tune(panel, "ewma", SMALL, trials=1, folder=tmp_path / "file"))


def test_two_processes_do_not_work_on_one_study(panel: Panel, tmp_path: Path) -> None:
    study = ended(tune(panel, "ewma", SMALL, trials=1, folder=tmp_path)).study
    with (tmp_path / f"tuning-{study}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match=f"another process is at work on the study {study}"):
            list(tune(panel, "ewma", SMALL, trials=2, folder=tmp_path))
    assert len(ended(tune(panel, "ewma", SMALL, trials=2, folder=tmp_path)).trials) == 2


def test_a_folder_with_odd_letters_is_a_folder(panel: Panel, tmp_path: Path) -> None:
    folder = tmp_path / "a b?c#{d}%20é"
    assert len(ended(tune(panel, "ewma", SMALL, trials=1, folder=folder)).trials) == 1
    assert (folder / DATABASE).is_file()


# -- telling ----------------------------------------------------------------------------------------------------------


def test_the_report_names_the_best_trials_and_the_command(whole: Tuned, capsys: pytest.CaptureFixture[str]) -> None:
    show(tuned_lines(whole))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ewma: 6 trials, 6 complete"
    best = whole.settings["halflife"]
    assert whole.persistence is not None
    skill = 100.0 * (1.0 - whole.value / whole.persistence)
    assert lines[3].split()[1:] == [f"{whole.value:.4f}", f"{skill:.1f}", "%", f"{best:g}"]
    assert f"Skill is what is saved of persistence's {whole.persistence:.4f}" in " ".join(lines)
    assert command(whole) == f"yieldlab models train ewma --set horizon=3 --set lookback=5 --set halflife={best:g}"
    assert lines[-1] == f"To use it: {command(whole)}"
    assert any(f"The test days, from {whole.test_begin} on" in line for line in " ".join(lines).split("Score"))


def test_the_document_is_json(whole: Tuned) -> None:
    told = json.loads(json.dumps(document(whole)))
    assert told["settings"] == dict(whole.settings)
    assert [each["number"] for each in told["trials"]] == list(range(6))


def test_persistence_scores_what_a_plain_loop_over_the_days_says(panel: Panel, whole: Tuned) -> None:
    windows = Windows.of(panel, lookback=5, horizon=3)
    first = int(windows.samples((0, panel.shape[0]), labelled=True)[0][0])
    unseen = chronological(panel.shape[0], purge=3, begin=first).test[0]
    windows = Windows.of(panel.head(unseen), lookback=5, horizon=3)
    scores = []
    for fold, _, _ in lay_folds(windows, (first, unseen - 3), whole.folds):
        size = np.median(
            [abs(windows.label[t, n]) for t, n in zip(*windows.samples(fold.train, labelled=True), strict=True)]
        )
        t, n = windows.samples(fold.predict, labelled=True)
        scores.append(np.mean(np.abs(np.arcsinh(windows.last[t, n] / size) - np.arcsinh(windows.label[t, n] / size))))
    assert whole.persistence == pytest.approx(np.mean(scores), rel=1e-9)
