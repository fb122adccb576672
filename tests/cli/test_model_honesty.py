"""Which forecasts count, where they do not reach, and what is the same run however it is asked for."""

from __future__ import annotations

import math
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score

from yieldlab import schema
from yieldlab.cli.inputs import read_panel
from yieldlab.forecast.fold_ensemble import weights_of
from yieldlab.forecast.risk_labels import CLASSES, labels
from yieldlab.runs import RunFolder
from yieldlab.store import Store

YEARLY = ("--step", "300d")


def walked(yieldlab, *words: str):
    told = yieldlab("models", "walk-forward", *words, *YEARLY, "--json")
    assert told.code == 0, told.err
    return told.document["data"]["runs"]


def test_a_run_of_the_past_does_not_take_the_place_of_one_that_knew_more(yieldlab, lab: Path) -> None:
    walked(yieldlab, "ewma")
    walked(yieldlab, "ewma", "--as-of", "2025-09-01")
    ran = yieldlab("backtest", "lstm_top", "--set", "model=ewma", "--start", "2025-11-15", "--json").document
    origin = ran["data"]["panel"]["forecasts"]["forecast_ewma"]
    assert origin["last"] == "2026-02-10"
    assert ran["data"]["trials"][0]["measures"]["trades"] > 0
    assert ran["warnings"] == []
    past = yieldlab("backtest", "lstm_top", "--set", "model=ewma", "--as-of", "2025-09-01", "--json").document
    assert past["data"]["panel"]["forecasts"]["forecast_ewma"]["last"] == "2025-09-01"


def test_a_run_of_the_past_that_is_reused_is_not_stored_once_more(yieldlab, lab: Path) -> None:
    walked(yieldlab, "ewma")
    walked(yieldlab, "ewma", "--as-of", "2025-09-01")
    assert walked(yieldlab, "ewma", "--as-of", "2025-09-01")[0]["reused"]
    assert Store(lab / "data").forecast_runs().height == 2
    listed = yieldlab("models", "list").out
    assert "2026-02-10" in listed  # what a panel reads, not what was made last
    assert "2025-09-01" not in listed


def test_a_forecast_is_measured_on_its_own_day_and_not_as_long_as_it_is_carried(yieldlab, lab: Path) -> None:
    walked(yieldlab, "ewma", "--as-of", "2025-09-01")
    assert yieldlab("models", "eval", "ewma", "--json").document["data"]["last"] == "2025-09-01"


def test_days_on_which_a_fold_failed_are_told_too(yieldlab, lab: Path) -> None:
    store = Store(lab / "data")
    walked(yieldlab, "ewma")
    run = store.forecast_runs().row(0, named=True)
    gone = pl.col("valid_at").dt.date().is_between(date(2025, 7, 1), date(2025, 7, 31))
    rows = (
        store.forecasts(run["run_id"])
        .filter(~gone)
        .select("field", "pool_id", "valid_at", "prediction", "trained_through")
    )
    store.add_forecasts(rows, {"model": "ewma", "horizon_days": 7, "settings_hash": "holes"})
    told = yieldlab("backtest", "lstm_top", "--set", "model=ewma", "--start", "2025-06-01")
    assert "none for any pool on 28 days between 2025-06-01 and 2026-02-10" in told.err  # three days are carried


def test_a_forecast_of_no_model_is_a_wrong_name(yieldlab, lab: Path) -> None:
    for name, sentence in (
        ("foo", "no model 'foo' forecasts a yield"),
        ("lsmt", "did you mean 'lstm'?"),
        ("risk", "'risk'"),
    ):
        told = yieldlab("backtest", "lstm_top", "--set", f"model={name}")
        assert told.code == 2, told.err
        assert sentence in told.err


def test_days_without_forecasts_are_told(yieldlab, lab: Path) -> None:
    walked(yieldlab, "ewma", "--start", "2025-06-01")
    told = yieldlab("backtest", "lstm_top", "--set", "model=ewma", "--start", "2025-01-01")
    assert told.code == 0
    assert (
        "forecast_ewma has forecasts for 2025-06-01 to 2026-02-10, and none for any pool on 151 days between"
        in told.err
    )
    assert "forecast_ewma for 2025-06-01 to 2026-02-10, of run" in told.out.replace("\n", " ")
    swept = yieldlab("sweep", "run", "lstm_top", "--grid", "model=ewma", "--grid", "top_n=1,2", "--json")
    assert any("forecast_ewma has forecasts" in warning for warning in swept.document["warnings"])


def test_days_asked_for_are_the_days_measured(yieldlab, lab: Path) -> None:
    walked(yieldlab, "ewma")
    days = ("--start", "2025-10-01", "--end", "2025-10-31", "--json")
    alone = yieldlab("models", "eval", "persistence", *days).document["data"]
    beside = yieldlab("models", "eval", "ewma", *days).document["data"]
    for found in (alone, beside):
        assert (found["first"], found["last"], found["days"]) == ("2025-10-01", "2025-10-31", 31)
    assert alone["overall"][0]["mae"] == beside["overall"][0]["mae"]


def test_an_ensemble_of_equals(yieldlab, lab: Path) -> None:
    [_, _, run] = walked(yieldlab, "ewma", "ar", "ensemble", "--set", "how=mean")
    assert weights_of(RunFolder(Path(run["path"])))["weight"].unique().to_list() == [0.5]


def test_the_ensemble_is_made_of_the_forecasts_that_a_panel_reads(yieldlab, lab: Path) -> None:
    [first] = walked(yieldlab, "ewma")
    walked(yieldlab, "ewma", "--set", "halflife=2")
    walked(yieldlab, "ar")
    walked(yieldlab, "ewma")  # reused, and what a panel reads again
    [run] = walked(yieldlab, "ensemble", "--member", "ewma", "--member", "ar")
    members = RunFolder(Path(run["path"])).manifest.config["members"]
    assert members["ewma"] == first["run_id"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("ewma", "ensemble"), "two or more different members, not ewma"),
        (("ewma", "ar", "ensemble", "--set", "how=best"), "unknown way to weigh 'best'"),
        (("ewma", "risk", "--set", "horizon=3"), "name risk in a command of its own"),
        (("ewma", "risk", "--purge", "7d"), "a purge of 7 days is shorter than the horizon of 30"),
    ],
)
def test_what_can_be_refused_is_refused_before_any_model_works(
    yieldlab, lab: Path, words: tuple[str, ...], sentence: str
) -> None:
    told = yieldlab("models", "walk-forward", *words)
    assert told.code == 2
    assert sentence in told.err
    assert Store(lab / "data").forecast_runs().is_empty()
    assert not (lab / "data" / "runs").exists()


def test_the_number_of_threads_makes_no_other_run(yieldlab, lab: Path) -> None:
    trees = ("xgboost", "--set", "n_estimators=3", "--start", "2025-06-01")
    [first] = walked(yieldlab, *trees)
    [again] = walked(yieldlab, *trees, "--jobs", "1")
    assert (again["run_id"], again["reused"]) == (first["run_id"], True)


def test_a_model_that_has_lost_its_best_state_is_trained_again(yieldlab, lab: Path) -> None:
    assert yieldlab("models", "train", "ewma").code == 0
    assert "up to date" in yieldlab("models", "train", "ewma").out
    (lab / "models" / "ewma_best.card.json").unlink()
    assert "up to date" not in yieldlab("models", "train", "ewma").out
    assert (lab / "models" / "ewma_best.card.json").is_file()


def test_risk_is_held_against_the_thresholds_of_its_run(yieldlab, lab: Path) -> None:
    walked(yieldlab, "risk", "--set", "n_estimators=3", "--set", "horizon=14", "--set", "tvl_fall_high=0.01")
    found = yieldlab("models", "eval", "risk", "--json").document["data"]["risk"]
    assert found["base_rate_high"] > 0.5  # nearly every pool loses 1 % on some day of two weeks


def test_the_report_on_risk_is_what_a_plain_loop_over_the_runs_rows_gives(yieldlab, lab: Path) -> None:
    [run] = walked(yieldlab, "risk", "--set", "n_estimators=8", "--set", "tvl_fall_high=0.1", "--jobs", "1")
    told = yieldlab("models", "eval", "risk", "--start", "2025-03-01")
    assert "Log loss" in told.out
    assert "Share of gain: " in told.out
    found = yieldlab("models", "eval", "risk", "--start", "2025-03-01", "--json").document["data"]["risk"]
    panel, _ = read_panel(Store(lab / "data"), schema.FIELDS, None)
    happened = labels(panel, tvl_fall_high=0.1)
    place = {pool: n for n, pool in enumerate(panel.pool_ids)}
    day = {time: t for t, time in enumerate(panel.times.astype("datetime64[D]").tolist())}
    rows = pl.read_parquet(Path(run["path"]) / "predictions.parquet").filter(pl.col("part") == "test")
    wide = rows.pivot("field", index=["pool_id", "valid_at"], values="prediction")
    losses, counts, high, scores = [], [[0] * 3 for _ in range(3)], [], []
    for row in wide.iter_rows(named=True):
        came = happened[day[row["valid_at"].date()], place[row["pool_id"]]]
        if np.isnan(came) or row["valid_at"].date() < date(2025, 3, 1):
            continue
        medium, above = row["risk_prob_medium"], row["risk_prob_high"]
        losses.append(-math.log(max([1.0 - medium - above, medium, above][int(came)], 1e-9)))
        counts[int(came)][int(row["risk_class"])] += 1
        high.append(came == 2)
        scores.append(above)
    assert found["samples"] == len(losses) > 1_000
    assert found["log_loss"] == pytest.approx(math.fsum(losses) / len(losses))
    assert [[row[name] for name in CLASSES] for row in found["confusion"]] == counts
    shares = [sum(row) / len(losses) for row in counts]
    assert found["log_loss_base"] == pytest.approx(-sum(share * math.log(share) for share in shares if share))
    assert found["pr_auc_high"] == pytest.approx(average_precision_score(high, scores))
    assert found["base_rate_high"] == pytest.approx(shares[2])
    assert sum(found["importance"].values()) == pytest.approx(1.0)
    assert list(found["importance"].values()) == sorted(found["importance"].values(), reverse=True)
    assert 0 <= found["calibrated"] <= found["folds"] == run["folds"]


def test_a_forecast_of_old_data_says_so(yieldlab, lab: Path) -> None:
    yieldlab("models", "train", "ewma")
    assert "the data ends" in yieldlab("models", "predict", "ewma").err
