"""`models train|walk-forward|tune|eval|list|show|predict` as typed, and the strategies that read what they make."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from matplotlib.axes import Axes

from yieldlab.cli.models import losses
from yieldlab.forecast import fold_runs, registry
from yieldlab.forecast.fold_ensemble import weights_of
from yieldlab.forecast.protocol import EpochDone
from yieldlab.report.plots import learning_curve
from yieldlab.runs import RunFolder
from yieldlab.store import Store

YEARLY = ("--step", "300d")
FORECAST_ROWS = ("field", "pool_id", "valid_at", "prediction", "trained_through")
TREES = ("--set", "n_estimators=5")


def folds(yieldlab, *words: str):
    """A walk-forward of few folds, which must succeed."""
    told = yieldlab("models", "walk-forward", *words, *YEARLY, "--json")
    assert told.code == 0, told.err
    return told.document


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("train", "lsmt"), 2, "unknown model 'lsmt'; did you mean 'lstm'?"),
        (("train", "ewma", "ensembel"), 2, "did you mean 'ensemble'?"),
        (("train", "ensemble", "--set", "hiden=3"), 2, "has no setting 'hiden'"),
        (("train", "ensemble", "--set", "lstm.epoch=3"), 2, "did you mean 'lstm.epochs'?"),
        (("train", "ensemble", "--set", "gru.epochs=3"), 2, "has no setting 'gru.epochs'"),
        (("train", "ensemble", "--set", "members=ar"), 2, "members of an ensemble are named by --member, one each"),
        (("train", "ewma", "ensemble"), 2, "two or more different members, not ewma"),
        (("train", "ar", "--member", "ewma"), 2, "--member says of what the ensemble is made"),
        (("predict", "ensemble"), 3, "`yieldlab models train ensemble` makes one"),
        (("tune", "ensemble"), 2, "model 'ensemble' has no setting to tune; these have: ewma, ar, lstm"),
        (("train", "ewma", "--set", "halflive=3"), 2, "has no setting 'halflive'; did you mean 'halflife'?"),
        (("train", "ewma", "--set", "hidden=8"), 2, "model 'ewma' has no setting 'hidden'"),
        (("train", "ewma", "ar", "--set", "halflive=3"), 2, "none of the models ewma, ar has a setting 'halflive'"),
        (("train", "ewma", "--set", "halflife=3,4"), 2, "gives 2 values; --set takes one"),
        (("train", "ewma", "--set", "halflife=3", "--set", "halflife=4"), 2, "--set names 'halflife' twice"),
        (("train", "ewma", "--set", "horizon=soon"), 2, "parameter 'horizon' takes a whole number, not 'soon'"),
        (("train", "ewma", "--set", "halflife"), 2, "write it as name=value"),
        (("tune", "lsmt"), 2, "did you mean 'lstm'?"),
        (("tune", "ewma", "--set", "halflive=3"), 2, "did you mean 'halflife'?"),
        (("tune", "ewma", "--trials", "0"), 2, "a search needs 1 or more trials, not 0"),
        (("walk-forward", "xgbost"), 2, "did you mean 'xgboost'?"),
        (("walk-forward", "ensemble", "--set", "horizn=3"), 2, "has no setting 'horizn'; did you mean 'horizon'?"),
        (("walk-forward", "ensemble", "--set", "halflife=3"), 2, "model 'ensemble' has no setting 'halflife'"),
        (("walk-forward", "ensemble", "--member", "ewma", "--member", "zzz"), 2, "'zzz' cannot be a member"),
        (("walk-forward", "ewma", "--member", "ar"), 2, "--member says of what the ensemble is made"),
        (("walk-forward", "ewma", "--purge", "3d"), 2, "a purge of 3 days is shorter than the horizon of 7"),
        (("walk-forward", "ewma", "--step", "x"), 2, "--step must be a whole number of days such as 30d, not 'x'"),
        (("walk-forward", "ewma", "--folds", "roling"), 2, "did you mean 'rolling'?"),
        (("walk-forward", "ewma", "--start", "soon"), 2, "--start must be a day"),
        (("walk-forward", "ewma", "--start", "2030-01-01"), 3, "lies outside the data"),
        (("walk-forward", "ar", "--train", "3000d"), 3, "no fold fits"),
        (("eval", "lsmt"), 2, "did you mean 'lstm'?"),
        (("eval", "ar"), 3, "`yieldlab models walk-forward ar` makes one"),
        (("eval", "risk"), 3, "`yieldlab models walk-forward risk` makes one"),
        (("predict", "ar"), 3, "there is no trained model 'ar' in models; `yieldlab models train ar` makes one"),
        (("predict", "lstm_best"), 3, "'lstm_best' in models; `yieldlab models train lstm` makes one"),
        (("predict", "lstn"), 2, "unknown model 'lstn'; did you mean 'lstm'?"),
        (("show", "lstn"), 2, "unknown model 'lstn'; did you mean 'lstm'?"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(yieldlab, lab: Path, words, code: int, sentence: str) -> None:
    told = yieldlab("models", *words)
    assert told.code == code, told.err
    [line] = told.err.splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert told.out == ""
    assert not (lab / "models").exists()
    assert not (lab / "data" / "runs").exists()


@pytest.mark.parametrize("words", [("train", "ar"), ("walk-forward", "ar"), ("tune", "ewma"), ("eval", "ar")])
def test_without_data_the_commands_that_bring_some_are_named(yieldlab, empty: Path, words) -> None:
    told = yieldlab("models", *words)
    assert told.code == 3
    assert "no data in data; run `yieldlab data import FILE`" in told.err
    assert list(empty.iterdir()) == []


def test_an_empty_folder_lists_every_model_and_says_that_there_are_no_forecasts(yieldlab, empty: Path) -> None:
    told = yieldlab("models", "list")
    assert told.code == 0, told.err
    for name in ("persistence", "ewma", "lstm", "xgboost", "risk", "ensemble"):
        assert name in told.out
    assert "No forecasts in the store yet" in told.out
    data = yieldlab("models", "list", "--json").document["data"]
    assert (data["trained"], data["unreadable"], data["runs"]) == ([], {}, [])
    assert list(empty.iterdir()) == []


def test_trained_once_used_again_and_trained_afresh_when_asked(yieldlab, lab: Path) -> None:
    told = yieldlab("models", "train", "ar", "ewma", "ar", "--set", "halflife=3")
    assert told.code == 0, told.err
    assert "skill" in told.out
    names = {path.name for path in (lab / "models").iterdir()}
    assert names == {f"{name}_{kind}.card.json" for name in ("ar", "ewma") for kind in ("best", "yield_predictor")}
    card = lab / "models" / "ar_yield_predictor.card.json"
    before = card.stat().st_mtime_ns
    again = yieldlab("models", "train", "ar")
    assert again.code == 0
    assert "ar_yield_predictor is up to date" in again.out
    assert card.stat().st_mtime_ns == before
    assert "up to date" not in yieldlab("models", "train", "ar", "--fresh").out
    assert card.stat().st_mtime_ns > before
    assert "up to date" not in yieldlab("models", "train", "ewma").out  # another half-life
    assert "up to date" not in yieldlab("models", "train", "ar", "--set", "lags=3").out
    [document] = yieldlab("models", "train", "ar", "--set", "lags=3", "--json").document["data"]["models"]
    assert document["model"] == "ar"
    assert document["settings"]["lags"] == 3
    assert "fitted" not in document


def test_show_tells_settings_and_the_card(yieldlab, lab: Path) -> None:
    told = yieldlab("models", "show", "ar")
    assert told.code == 0
    assert "Not trained yet: yieldlab models train ar" in told.out
    assert yieldlab("models", "train", "ar", "--set", "lags=3").code == 0
    assert "trained with" in yieldlab("models", "show", "ar").out
    data = yieldlab("models", "show", "ar_best", "--json").document["data"]
    assert (data["model"], data["defaults"]["lags"], data["card"]["settings"]["lags"]) == ("ar", 7, 3)
    assert "ar_best, ar_yield_predictor" in yieldlab("models", "list").out


def test_predict_gives_every_pool_one_line_of_the_last_day(yieldlab, lab: Path) -> None:
    assert yieldlab("models", "train", "ar").code == 0
    told = yieldlab("models", "predict", "ar")
    assert told.code in (0, 4), told.err
    assert "ar_yield_predictor at the end of 2026-02-10, for 2026-02-17" in told.out
    document = yieldlab("models", "predict", "ar", "--json").document
    rows = document["data"]["forecasts"]
    assert len(rows) == 12
    assert all((row["forecast_ar"] is None) == (row["reason"] is not None) for row in rows)
    assert document["data"]["trained_through"] < "2026-02-10"
    early = yieldlab("models", "predict", "ar", "--as-of", "2024-01-01")
    assert early.code == 3
    assert "the model was trained on values of" in early.err


@pytest.mark.parametrize("content", ["{", "{}", '{"schema_version": 1, "model": "ar"}', "[]"])
def test_a_corrupt_card_is_one_sentence_and_the_others_are_listed(yieldlab, lab: Path, content: str) -> None:
    assert yieldlab("models", "train", "ar").code == 0
    (lab / "models" / "ar_yield_predictor.card.json").write_text(content)
    told = yieldlab("models", "predict", "ar")
    assert told.code == 3
    assert "ar_yield_predictor.card.json" in told.err
    listed = yieldlab("models", "list")
    assert listed.code == 4
    assert "ar_yield_predictor.card.json" in listed.err
    assert "ar_best" in listed.out
    assert yieldlab("models", "train", "ar").code == 0  # which heals it
    assert yieldlab("models", "list").code == 0


def test_weights_that_are_not_those_of_the_card_are_refused(yieldlab, lab: Path) -> None:
    told = yieldlab("models", "train", "xgboost", *TREES, "--jobs", "1", "--json")
    assert told.code == 0, told.err
    assert told.document["data"]["models"][0]["settings"]["threads"] == 1
    weights = lab / "models" / "xgboost_yield_predictor.json"
    weights.write_bytes(weights.read_bytes() + b" ")
    told = yieldlab("models", "predict", "xgboost")
    assert told.code == 3
    assert "does not match its card xgboost_yield_predictor.card.json; train the model again" in told.err
    weights.unlink()
    told = yieldlab("models", "predict", "xgboost")
    assert told.code == 3
    assert "cannot be read" in told.err


def test_a_network_leaves_its_state_and_its_learning_curve(yieldlab, lab: Path) -> None:
    small = [
        word for each in ("hidden=8", "hidden_last=8", "epochs=1", "stride=30", "threads=1") for word in ("--set", each)
    ]
    told = yieldlab("models", "train", "lstm", *small)
    assert told.code == 0, told.err
    names = {path.name for path in (lab / "models").iterdir()}
    assert {"lstm_best.pth", "lstm_yield_predictor.pth", "lstm_learning_curve.png"} <= names
    assert yieldlab("models", "predict", "lstm").code in (0, 4)


def test_walk_forward_goes_into_the_store_and_is_reused(yieldlab, lab: Path) -> None:
    first = folds(yieldlab, "ar", "ewma", "ensemble")
    assert [run["model"] for run in first["data"]["runs"]] == ["ar", "ewma", "ensemble"]
    assert first["run_id"] == first["data"]["runs"][-1]["run_id"]
    assert all(run["rows"] and not run["reused"] and not run["failures"] for run in first["data"]["runs"])
    second = folds(yieldlab, "ensemble", "ewma", "ar")  # the ensemble is last whatever the order
    assert [run["reused"] for run in second["data"]["runs"]] == [True] * 3
    assert {run["run_id"]: run["trained_through"] for run in second["data"]["runs"]} == {
        run["run_id"]: run["trained_through"] for run in first["data"]["runs"]
    }
    [again] = folds(yieldlab, "ar", "--fresh")["data"]["runs"]
    assert again["run_id"] not in {run["run_id"] for run in first["data"]["runs"]}
    told = yieldlab("models", "list", "--json").document["data"]
    assert sorted(run["model"] for run in told["runs"]) == ["ar", "ar", "ensemble", "ewma"]
    assert "No forecasts" not in yieldlab("models", "list").out


def test_the_weights_of_an_ensemble_and_what_it_lacked_are_told(yieldlab, lab: Path) -> None:
    [_, _, run] = folds(yieldlab, "ar", "ewma", "ensemble")["data"]["runs"]
    found = weights_of(RunFolder(Path(run["path"])))
    for member in ("ar", "ewma"):
        each = found.filter(pl.col("member") == member)["weight"]
        assert run["weights"][member] == pytest.approx(sum(each) / len(each))
    rows = pl.read_parquet(Path(run["path"]) / "predictions.parquet")
    runs = Store(lab / "data").forecast_runs()
    paths = [lab / "data" / "runs" / name for name in runs.filter(pl.col("model") != "ensemble")["run_id"]]
    members = [pl.read_parquet(path / "predictions.parquet").filter(pl.col("part") == "test") for path in paths]
    keys = ["pool_id", "valid_at"]
    whole = members[0].join(members[1], on=keys)
    assert run["lacking"] == rows.join(whole, on=keys, how="anti").height > 0
    told = yieldlab("models", "walk-forward", "ar", "ewma", "ensemble", *YEARLY).out.replace("\n", " ")
    assert f"ewma {100 * run['weights']['ewma']:.1f} %" in told
    assert f"{run['lacking']:,} of {run['rows']:,} forecasts were made without some member" in told


def test_an_ensemble_is_trained_of_the_models_named_beside_it_and_says_what_each_says(yieldlab, lab: Path) -> None:
    told = yieldlab(
        "models", "train", "ar", "ewma", "ensemble", "--set", "lags=3", "--set", "ewma.halflife=2", "--json"
    )
    assert told.code == 0, told.err
    card = told.document["data"]["models"][-1]
    assert (card["model"], card["settings"]["members"]) == ("ensemble", "ar ewma")
    assert (card["settings"]["ar.lags"], card["settings"]["ewma.halflife"]) == (3, 2.0)
    assert told.document["data"]["models"][1]["settings"]["halflife"] == 7.0  # ewma beside it keeps its own
    assert (
        "ensemble_yield_predictor is up to date"
        in yieldlab(
            "models",
            "train",
            "ensemble",
            "--member",
            "ewma",
            "--member",
            "ar",
            "--set",
            "lags=3",
            "--set",
            "ewma.halflife=2",
        ).out
    )
    shown = yieldlab("models", "show", "ensemble").out
    assert "Weights: ar " in shown
    assert "ewma.halflife" in shown
    said = yieldlab("models", "predict", "ensemble", "--json").document["data"]["forecasts"]
    assert {"forecast_ensemble", "forecast_ar", "forecast_ewma"} <= set(said[0])
    assert "forecast_ewma" in yieldlab("models", "predict", "ensemble").out
    both = ("--set", "ar.lags=5", "--set", "lags=3")  # what is for one goes before what is for all
    told = yieldlab("models", "train", "ensemble", "--member", "ewma", "--member", "ar", *both, "--json")
    assert told.document["data"]["models"][0]["settings"]["ar.lags"] == 5


def test_a_folder_that_cannot_be_is_found_before_anything_is_learned(yieldlab, lab: Path) -> None:
    (lab / "file").write_text("")
    told = yieldlab("models", "train", "ar", "--models", "file/models")
    assert told.code == 2
    assert "file is a file; name a folder with --models" in told.err
    assert "learning" not in told.err


def test_a_model_that_has_lost_its_weights_is_not_listed_as_trained(yieldlab, lab: Path) -> None:
    yieldlab("models", "train", "xgboost", *TREES, "--jobs", "1")
    (lab / "models" / "xgboost_best.json").unlink()
    told = yieldlab("models", "list", "--json")
    assert told.code == 4
    assert [card["path"] for card in told.document["data"]["trained"]] == ["models/xgboost_yield_predictor.card.json"]
    assert "xgboost_best.json cannot be read" in told.document["warnings"][0]
    told = yieldlab("models", "show", "xgboost_best")
    assert told.code == 4
    assert "xgboost_best.json cannot be read" in told.err


def test_a_member_that_could_not_learn_is_a_warning_and_code_4(yieldlab, empty: Path) -> None:
    days = pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 12, 31), "1d", eager=True)
    frame = pl.DataFrame({"time": days, "pool_id": "a", "protocol": "aave-v3", "apy": 5.0, "tvl_usd": 1e6})
    frame.write_parquet("still.parquet")
    assert yieldlab("data", "import", "still.parquet").code in (0, 4)
    told = yieldlab("models", "train", "ensemble", "--member", "ewma", "--member", "pool_mean", "--member", "xgboost")
    assert told.code == 4, told.err
    assert "xgboost could not learn and is no part of the ensemble: the APY to forecast never changes" in told.err


def test_the_days_that_a_fold_learns_from_are_told_as_they_are(yieldlab, lab: Path) -> None:
    told = yieldlab("models", "walk-forward", "ewma", "--start", "2022-06-01", "--step", "300d")
    assert "rolling, 96 to 365 days to learn from" in told.out
    told = yieldlab("models", "walk-forward", "ewma", "--start", "2022-02-20")
    assert told.code == 2
    assert "--start 2022-02-20 is too early" in told.err
    assert "9 days of history lie before it, and 14 of purge and embargo come between" in told.err


def test_a_card_that_tells_what_cannot_be_is_one_sentence(yieldlab, lab: Path) -> None:
    yieldlab("models", "train", "ensemble", "--member", "ewma", "--member", "ar")
    path = lab / "models" / "ensemble_yield_predictor.card.json"
    whole = json.loads(path.read_text())
    for changes in (
        {"metrics": {"test": {**whole["metrics"]["test"], "mae": "x"}}},
        {"fitted": {**whole["fitted"], "weights": ["ar"]}},
        {"fitted": {**whole["fitted"], "weights": {"ar": "half"}}},
        {"settings": {**whole["settings"], "members": "ar foo"}},
    ):
        path.write_text(json.dumps({**whole, **changes}))
        told = yieldlab("models", "show", "ensemble")
        assert told.code == 3, told.err
        assert "is damaged" in told.err
    path.write_text(json.dumps({**whole, "metrics": {}}))
    assert yieldlab("models", "train", "ensemble", "--member", "ewma", "--member", "ar").code == 0


def test_a_picture_that_cannot_be_drawn_is_found_before_anything_is_learned(
    yieldlab, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = registry.find_spec
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "matplotlib" else there(name))
    told = yieldlab("models", "train", "xgboost", *TREES)
    assert told.code == 2
    assert (
        'the learning curve needs the package matplotlib, which is not installed; get it with: pip install "yi'
        in told.err
    )
    assert not (lab / "models").exists()
    assert yieldlab("models", "train", "ewma").code == 0  # it has none


def test_the_member_that_an_ensemble_of_the_past_lacks_is_one_of_the_past(yieldlab, lab: Path) -> None:
    told = yieldlab("models", "walk-forward", "ensemble", "--member", "ewma", "--member", "ar", "--as-of", "2025-09-01")
    assert "models walk-forward ar --as-of 2025-09-02T00:00:00+00:00` makes one" in told.err
    told = yieldlab("models", "walk-forward", "ar", "--as-of", "2025-09-02T00:00:00+00:00")
    assert told.code == 0
    told = yieldlab("models", "walk-forward", "ensemble", "--member", "ewma", "--member", "ar", "--as-of", "2025-09-01")
    assert "walk-forward ewma" in told.err


def test_a_walk_forward_learns_from_a_year_and_forecasts_a_month_unless_told(yieldlab, lab: Path) -> None:
    told = yieldlab("models", "walk-forward", "persistence", "--start", "2025-11-12")
    assert "rolling, 365 days to learn from, 30 days forecast, 7 purged and 7 embargoed between" in told.out


def test_progress_tells_both_losses() -> None:
    assert losses(EpochDone(3, 20, 0.34567, 0.4, True)) == "epoch 3: train 0.3457, validation 0.4000"
    assert losses(EpochDone(3, 20, 0.34567, None, True)) == "epoch 3: train 0.3457"


def test_a_learning_curve_shows_both_losses_and_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[list[float], list[float], object]] = []
    plot = Axes.plot

    def spied(self: Axes, x: list[float], y: list[float], **options: object) -> object:
        drawn.append((list(x), list(y), options["label"]))
        return plot(self, x, y, **options)

    monkeypatch.setattr(Axes, "plot", spied)
    history = [EpochDone(1, 3, 0.9, 0.8, True), EpochDone(2, 3, 0.7, 0.6, True), EpochDone(3, 3, 0.5, 0.65, False)]
    learning_curve(history, tmp_path / "curve.png", title="lstm")
    assert drawn == [([1, 2, 3], [0.9, 0.7, 0.5], "train"), ([1, 2, 3], [0.8, 0.6, 0.65], "validation")]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


@pytest.mark.parametrize(
    "words",
    [
        ("sweep", "run", "lstm_top", "--grid", "model=ewma", "--grid", "top_n=1,2", "--quiet"),
        ("backtest", "lstm_top", "--set", "model=ewma"),
        ("models", "list"),
    ],
)
def test_no_process_that_simulates_loads_what_learns(yieldlab, lab: Path, words: tuple[str, ...]) -> None:
    folds(yieldlab, "ewma")
    script = (
        "import sys\n"
        "from yieldlab.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "loaded = {'torch', 'xgboost', 'sklearn', 'optuna', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'{code} {sorted(loaded)}' if code or loaded else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_ensemble_names_the_member_that_has_not_been_run(yieldlab, lab: Path) -> None:
    told = yieldlab("models", "walk-forward", "ensemble", "--member", "ewma", "--member", "ar", *YEARLY)
    assert told.code == 3
    assert "`yieldlab models walk-forward ar --step 300d` makes one" in told.err


def test_when_every_fold_fails_there_is_no_result(yieldlab, lab: Path) -> None:
    words = ("walk-forward", "ar", "--set", "lookback=1440", "--train", "10d", *YEARLY)
    told = yieldlab("models", *words)
    assert told.code == 3, told.out
    assert told.err.splitlines()[-1].startswith("error: ")
    assert yieldlab("models", "list", "--json").document["data"]["runs"] == []


def test_a_failed_fold_is_told_each_time_the_run_is_used(yieldlab, lab: Path) -> None:
    words = ("models", "walk-forward", "ar", "--set", "lookback=400", "--train", "200d", "--step", "200d", "--json")
    first, second = yieldlab(*words), yieldlab(*words)
    for told in (first, second):
        assert told.code == 4
        assert told.document["warnings"]
        assert told.document["data"]["runs"][0]["failures"]
    assert second.document["data"]["runs"][0]["reused"]
    assert second.document["warnings"] == first.document["warnings"]


def test_ctrl_c_ends_after_the_fold_in_work_and_the_same_command_goes_on(
    yieldlab, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fold_runs.RunFolder.write_chunk

    def pressed(*arguments: object) -> None:
        whole(*arguments)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(fold_runs.RunFolder, "write_chunk", pressed)
        told = yieldlab("models", "walk-forward", "ar", "ewma", *YEARLY)
    assert told.code == 130
    assert "stopping after this fold" in told.err
    assert "Interrupted: the same command, without --fresh, goes on" in told.out
    [run] = (lab / "data" / "runs").iterdir()
    assert json.loads((run / "manifest.json").read_text())["status"] == "interrupted"
    assert yieldlab("models", "eval", "ar").code == 3  # an unfinished run answers for nothing
    went_on = folds(yieldlab, "ar", "ewma")["data"]["runs"]
    assert went_on[0]["run_id"] == run.name
    straight = folds(yieldlab, "ar", "--fresh")["data"]["runs"][0]
    assert (went_on[0]["rows"], went_on[0]["trained_through"]) == (straight["rows"], straight["trained_through"])


def test_eval_measures_against_persistence_and_writes_its_tables(yieldlab, lab: Path) -> None:
    folds(yieldlab, "ar", "ewma")
    told = yieldlab("models", "eval", "ar", "ewma", "--out", "tables")
    assert told.code == 0, told.err
    assert "persistence" in told.out
    overall = pl.read_parquet(lab / "tables" / "overall.parquet")
    assert overall["model"].to_list() == ["persistence", "ar", "ewma"]
    assert {path.name for path in (lab / "tables").iterdir()} == {
        f"{name}.parquet" for name in ("overall", "by_protocol", "by_lead")
    }
    data = yieldlab("models", "eval", "ar", "--start", "2025-01-01", "--json").document["data"]
    assert data["horizon_days"] == 7
    assert data["first"] >= "2025-01-01"
    again = yieldlab("models", "eval", "ar", "--out", "tables")
    assert again.code == 2
    assert "tables" in again.err


def test_models_that_look_unequally_far_ahead_are_not_compared(yieldlab, lab: Path) -> None:
    folds(yieldlab, "ar")
    folds(yieldlab, "ewma", "--set", "horizon=3")
    told = yieldlab("models", "eval", "ar", "ewma")
    assert told.code == 2
    assert "do not look equally far ahead (ar 7 days, ewma 3 days)" in told.err
    assert yieldlab("models", "eval", "ewma", "--json").document["data"]["horizon_days"] == 3


def test_tune_goes_on_to_the_trials_wanted_in_all(yieldlab, lab: Path) -> None:
    assert yieldlab("models", "tune", "ewma", "--trials", "1").code == 0
    told = yieldlab("models", "tune", "ewma", "--trials", "2", "--json")
    assert told.code == 0, told.err
    assert len(told.document["data"]["trials"]) == 2
    assert (lab / "data" / "tuning.db").is_file()


def test_lstm_top_runs_on_any_forecast_and_the_manifest_names_its_run(yieldlab, lab: Path) -> None:
    told = yieldlab("backtest", "lstm_top")
    assert told.code == 3
    assert "`yieldlab models walk-forward lstm` makes one" in told.err
    [run] = folds(yieldlab, "ar")["data"]["runs"]
    told = yieldlab("backtest", "lstm_top", "--set", "model=ar", "--start", "2025-06-01", "--json")
    assert told.code == 0, told.err
    manifest = json.loads((lab / "data" / "runs" / told.document["run_id"] / "manifest.json").read_text())
    assert manifest["panel_health"]["forecasts"]["forecast_ar"]["run_id"] == run["run_id"]


def test_risk_adjusted_runs_on_classes_of_a_walk_forward(yieldlab, lab: Path) -> None:
    told = yieldlab("backtest", "risk_adjusted")
    assert told.code == 3
    assert "`yieldlab models walk-forward risk` makes one" in told.err
    [run] = folds(yieldlab, "risk", *TREES, "--jobs", "1")["data"]["runs"]
    told = yieldlab("backtest", "risk_adjusted", "--start", "2025-06-01", "--json")
    assert told.code == 0, told.err
    manifest = json.loads((lab / "data" / "runs" / told.document["run_id"] / "manifest.json").read_text())
    assert manifest["panel_health"]["forecasts"]["risk_class"]["run_id"] == run["run_id"]
    told = yieldlab("models", "eval", "risk", "--out", "tables", "--json")
    assert told.code == 0, told.err
    assert told.document["data"]["risk"]["run_id"] == run["run_id"]
    assert pl.read_parquet(lab / "tables" / "risk_confusion.parquet").height == 3


def test_a_run_that_no_longer_answers_for_its_field_is_stored_again(yieldlab, lab: Path) -> None:
    [run] = folds(yieldlab, "ar")["data"]["runs"]
    store = Store(lab / "data")
    rows = store.forecasts(run["run_id"])
    rows = pl.concat([rows, rows.with_columns(field=pl.lit("forecast_gru"))])
    described = {"model": "gru", "horizon_days": 7, "settings_hash": "0", "known_at": None}
    store.add_forecasts(rows.select(*FORECAST_ROWS), {"run_id": "two-fields", **described})
    folds(yieldlab, "ar")
    told = yieldlab("models", "eval", "ar")
    assert told.code == 0, told.err
    assert store.panel(fields=["forecast_ar"]).forecasts["forecast_ar"].run_id == f"{run['run_id']}.2"
    folds(yieldlab, "ar")
    assert store.forecast_runs()["run_id"].to_list() == [run["run_id"], "two-fields", f"{run['run_id']}.2"]
