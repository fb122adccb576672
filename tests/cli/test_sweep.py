"""`sweep run|resume|show`: from a grid to a ranked table, stopped and resumed, and one sentence for what cannot be."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from yieldlab.cli.sweep import _EQUAL, MEASURES
from yieldlab.metrics import MEASURES as ALL_MEASURES

SMALL = ("--grid", "lookback=7,30", "--grid", "top_n=1,3", "--grid", "every=7", "--grid", "persistence=0")


def runs_in(lab: Path) -> list[Path]:
    folder = lab / "data" / "runs"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def test_the_limits_are_the_measures() -> None:
    assert MEASURES == ALL_MEASURES


def test_a_sweep_ends_with_a_leaderboard_and_a_warning(yieldlab, lab: Path) -> None:
    told = yieldlab("sweep", "run", "highest_apy", *SMALL)
    assert told.code == 0, told.err
    for part in ("lookback", "Sharpe", "autocorr.", "equal", "one of 36 trials", "SYNTHETIC", "carry only", "complete"):
        assert part in told.out
    [run] = runs_in(lab)
    trials = pl.read_parquet(run / "trials.parquet")
    assert trials.height == 36
    assert set(ALL_MEASURES) <= set(trials.columns)


def test_the_document_holds_the_best_trials(yieldlab, lab: Path) -> None:
    document = yieldlab("sweep", "run", "highest_apy", *SMALL, "--json").document
    assert (document["status"], document["data"]["count"]) == ("ok", 36)
    assert len(document["data"]["trials"]) == 10
    returns = [trial["measures"]["annualized_return"] for trial in document["data"]["trials"]]
    assert returns == sorted(returns, reverse=True)
    assert document["data"]["trials"][0]["strategy"] == "highest_apy"
    assert document["run_id"] == runs_in(lab)[0].name


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(yieldlab, lab: Path) -> None:
    told = yieldlab("sweep", "run", "highest_apy", *SMALL, "--dry-run")
    assert told.code == 0
    assert "36 trials of 2 signals on 1 market" in told.out
    assert "of memory (limit 2.0 GB)" in told.out
    assert runs_in(lab) == []
    document = yieldlab("sweep", "run", "highest_apy", *SMALL, "--dry-run", "--json").document
    assert document["data"]["trials"] == 36
    assert document["data"]["seconds"] > 0


def test_a_sample_is_drawn_with_the_seed(yieldlab, lab: Path) -> None:
    def drawn(seed: str) -> list[str]:
        document = yieldlab("sweep", "run", "highest_apy", "--sample", "20", "--seed", seed, "--json").document
        return sorted(pl.read_parquet(Path(document["data"]["path"]) / "trials.parquet")["trial_id"].to_list())

    assert drawn("1") == drawn("1") != drawn("2")
    assert len(drawn("1")) == 20


def test_settings_give_costs_and_set_fixes_one_value(yieldlab, lab: Path) -> None:
    (lab / "yieldlab.toml").write_text("cost_bps = 25\n")
    document = yieldlab(
        "sweep", "run", "highest_apy", *SMALL, "--set", "accrual=leading", "--gas-usd", "2", "--json"
    ).document
    params = document["data"]["trials"][0]["params"]
    assert (params["cost"], params["accrual"], params["gas_usd"]) == (0.0025, "leading", 2.0)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["higest_apy"], 2, "did you mean 'highest_apy'?"),
        (["highest_apy", "--grid", "topn=1,2"], 2, "did you mean 'top_n'?"),
        (["highest_apy", "--grid", "lokback=1,2"], 2, "did you mean 'lookback'?"),
        (["highest_apy", "--grid", "acrual=leading"], 2, "did you mean 'accrual'?"),
        (["highest_apy", "--grid", "top_n="], 2, "write it as name=value"),
        (["highest_apy", "--grid", "top_n=1,,2"], 2, "an empty value between commas"),
        (["highest_apy", "--grid", "top_n=3..1"], 2, "a range goes up, as 1..8"),
        (["highest_apy", "--grid", "top_n=0,1"], 2, "top_n must be a whole number >= 1, not 0"),
        (["highest_apy", "--grid", "top_n=1,1"], 2, "repeats a value"),
        (["highest_apy", "--grid", "top_n=1", "--grid", "top_n=2"], 2, "--grid names 'top_n' twice"),
        (["highest_apy", "--grid", "top_n=1", "--set", "top_n=2"], 2, "give one of them"),
        (["highest_apy", "--grid", "max_stale_days=-1"], 2, "max_stale_days must be a whole number >= 0, not -1"),
        (["highest_apy", "--sample", "0"], 2, "a sample must have at least 1 trial, not 0"),
        (["highest_apy", "--max-memory", "1MB"], 2, "more than the limit of"),
        (["highest_apy", "--grid", "top_n=1..100000", "--grid", "every=1..1000"], 2, "larger --max-memory"),
        (["highest_apy", "--grid", "every=1..30000000", "--dry-run"], 2, "a parameter takes at most"),
        (["highest_apy", "--grid", "every=1..2000000000", "--sample", "5"], 2, "a parameter takes at most"),
        (
            ["highest_apy", "--grid", "every=1..100000", "--grid", "top_n=1..100000"],
            2,
            "more than the limit of 2.00 GB",
        ),
        (
            [
                *("highest_apy", "--sample", "5"),
                *(w for n in ("every", "top_n", "lag", "lookback") for w in ("--grid", f"{n}=1..100000")),
            ],
            2,
            "a grid has at most",
        ),
        (["highest_apy", "--verify", "0"], 2, "at least 1 trial must be verified, not 0"),
        (["highest_apy", "--max-memory", "lots"], 2, "--max-memory must be a size"),
        (["highest_apy", "--by", "sharp"], 2, "unknown measure 'sharp'; did you mean 'sharpe'?"),
        (["highest_apy", "--start", "2019-01-01"], 3, "lies outside the data"),
        (["highest_apy", "--out", "strategies"], 2, "strategies is not empty"),
        (["signal_file"], 3, "there is no signal file signal.parquet"),
    ],
)
def test_what_cannot_be_swept_is_one_sentence_and_leaves_nothing(
    yieldlab, lab: Path, arguments: list[str], code: int, sentence: str
) -> None:
    told = yieldlab("sweep", "run", *arguments)
    assert (told.code, told.out) == (code, "")
    assert sentence in told.err
    assert told.err.count("\n") == 1
    assert runs_in(lab) == []


def test_show_ranks_by_any_measure_within_limits(yieldlab, lab: Path) -> None:
    yieldlab("sweep", "run", "highest_apy", *SMALL, "--out", "kept")
    document = yieldlab("sweep", "show", "kept", "--by", "turnover", "--limit", "3", "--json").document
    turnovers = [trial["measures"]["turnover"] for trial in document["data"]["trials"]]
    assert turnovers == sorted(turnovers)
    assert len(turnovers) == 3
    trials = pl.read_parquet("kept/trials.parquet")
    middle = float(trials["total_return"].median())  # type: ignore[arg-type]
    document = yieldlab("sweep", "show", "kept", "--min-total-return", str(middle), "--json").document
    assert document["data"]["within_limits"] == trials.filter(pl.col("total_return") >= middle).height
    assert yieldlab("sweep", "show", "kept", "--max-total-return", str(middle)).code == 0
    none = yieldlab("sweep", "show", "kept", "--min-sharpe", "1e9")
    assert none.code == 2
    assert "no trial of run kept keeps within these limits" in none.err
    assert yieldlab("sweep", "show", "kept", "--by", "shrpe").code == 2
    assert yieldlab("sweep", "show", "absent").code == 2
    yieldlab("backtest", "highest_apy", "--out", "other")
    told = yieldlab("sweep", "show", "other")
    assert told.code == 2
    assert "is a backtest, not a sweep" in told.err


CHEAT = """
import numpy as np
from yieldlab import Grid, Panel

NEEDS = ("apy",)
SIGNAL = Grid(ahead=[0, 1])
POLICY = Grid(top_n=[1, 2])


def signal(panel: Panel, ahead: int) -> np.ndarray:
    return np.roll(panel["apy"], -ahead, axis=0)
"""


def test_the_column_of_equal_trials_has_a_name_that_no_parameter_can_have() -> None:
    assert not _EQUAL.isidentifier()


FICKLE = CHEAT.replace("    return np", "    if ahead:\n        raise ValueError('not today')\n    return np")


def test_a_signal_that_reads_the_future_is_caught_whatever_its_parameters(yieldlab, lab: Path) -> None:
    (lab / "strategies" / "seer.py").write_text(CHEAT)
    told = yieldlab("sweep", "run", "seer", "--check-causal")
    assert (told.code, told.out) == (5, "")
    assert "seer" in told.err
    assert runs_in(lab) == []
    assert yieldlab("sweep", "run", "seer", "--grid", "ahead=0", "--check-causal").code == 0


def test_a_combination_that_fails_by_itself_is_a_failed_trial_and_no_failed_audit(yieldlab, lab: Path) -> None:
    (lab / "strategies" / "fickle.py").write_text(FICKLE)
    told = yieldlab("sweep", "run", "fickle", "--check-causal")
    assert told.code == 4, told.err
    assert "1 of 2 signals audited, 1 fails by itself; none depends on a later row" in told.err
    assert "2 trials failed" in told.err
    document = yieldlab("sweep", "run", "fickle", "--check-causal", "--json").document
    assert document["data"]["audited"] == {"signals": 2, "audited": 1, "failed": 1}


def test_it_is_told_how_many_signals_were_audited(yieldlab, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from yieldlab.strategy import Strategy

    seen: list[int] = []
    monkeypatch.setattr(Strategy, "audit", lambda self, panel, params, *, seed: seen.append(params["ahead"]))
    (lab / "strategies" / "seer.py").write_text(CHEAT.replace("[0, 1]", "list(range(40))"))
    told = yieldlab("sweep", "run", "seer", "--check-causal", "--set", "top_n=1")
    assert told.code == 0, told.err
    assert "16 of 40 signals audited; none depends on a later row" in told.err
    assert len(set(seen)) == 16
    seen.clear()
    document = yieldlab("sweep", "run", "seer", "--check-causal", "--sample", "3", "--json").document
    trials = pl.read_parquet(Path(document["data"]["path"]) / "trials.parquet")
    assert set(seen) == set(trials["ahead"]), "a sample's own signals are audited"


def test_failed_trials_are_rows_with_a_reason_and_the_sweep_is_partial(yieldlab, lab: Path) -> None:
    (lab / "strategies" / "fickle.py").write_text(FICKLE)
    told = yieldlab("sweep", "run", "fickle", "--json")
    assert told.code == 4
    document = told.document
    assert (document["status"], document["data"]["failed"]) == ("partial", 2)
    assert "failures.parquet" in document["warnings"][0]
    reasons = pl.read_parquet(Path(document["data"]["path"]) / "trials.parquet")["reason"].drop_nulls()
    assert reasons.len() == 2
    assert "not today" in reasons[0]
    shown = yieldlab("sweep", "show", document["run_id"])
    assert shown.code == 0
    assert "2 trials failed" in shown.err


def test_random_trials_are_held_to_vectorbt(yieldlab, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vectorbt", reason="vectorbt (extra vectorbt) is the second engine")
    told = yieldlab("sweep", "run", "highest_apy", *SMALL, "--verify", "3", "--json")
    assert told.code == 0, told.err
    assert told.document["data"]["verified"]["trials"] == 3
    from yieldlab.simulate import replay

    monkeypatch.setattr(replay, "largest_difference", lambda market, ledger: 1e-6)
    told = yieldlab("sweep", "run", "highest_apy", *SMALL, "--verify", "3")
    assert (told.code, told.out) == (5, "")
    assert "vectorbt's equity differs by 1.0e-06" in told.err


def test_a_resumed_sweep_is_verified_like_a_new_one(yieldlab, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vectorbt", reason="vectorbt (extra vectorbt) is the second engine")
    yieldlab("sweep", "run", "highest_apy", *SMALL, "--out", "kept")
    told = yieldlab("sweep", "resume", "kept", "--verify", "3")
    assert told.code == 0, told.err
    assert "3 trials agree with vectorbt" in told.err
    assert yieldlab("sweep", "resume", "kept", "--verify", "0").code == 2
    from yieldlab.simulate import replay

    monkeypatch.setattr(replay, "largest_difference", lambda market, ledger: 1e-6)
    assert yieldlab("sweep", "resume", "kept", "--verify", "1").code == 5


def test_without_a_trial_to_verify_it_says_so(yieldlab, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from yieldlab import sweep

    (lab / "strategies" / "fickle.py").write_text(FICKLE)
    monkeypatch.setattr(sweep, "verify", lambda *a, **k: sweep.Verified(0, 0.0))
    told = yieldlab("sweep", "run", "fickle", "--verify", "3")
    assert "there is no trial to verify: all of them failed" in told.err
    assert "agree" not in told.err


def test_what_cannot_be_replayed_is_told_beside_what_agrees(
    yieldlab, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yieldlab import sweep

    for found, told_of, not_told in (
        (sweep.Verified(2, 1e-12, 1), ("2 trials agree with vectorbt", "1 trial cannot be replayed"), "no trial"),
        (sweep.Verified(0, 0.0, 3), ("3 trials cannot be replayed in vectorbt to that precision",), "no trial"),
    ):
        monkeypatch.setattr(sweep, "verify", lambda *a, found=found, **k: found)
        told = yieldlab("sweep", "run", "highest_apy", *SMALL, "--verify", "3")
        assert told.code == 0
        assert all(words in told.err for words in told_of)
        assert not_told not in told.err
        told = yieldlab("sweep", "run", "highest_apy", *SMALL, "--verify", "3", "--json")
        assert told.document["data"]["verified"]["not_comparable"] == found.not_comparable


def test_a_signal_file_that_is_another_now_is_refused(yieldlab, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from yieldlab import sweep
    from yieldlab.store import Store

    pools = Store(lab / "data").panel(fields=("apy", "tvl_usd")).pool_ids
    days = pl.date_range(pl.date(2025, 1, 1), pl.date(2025, 6, 30), eager=True)
    views = pl.DataFrame({"pool_id": list(pools)}).join(pl.DataFrame({"time": days}), how="cross")
    views = views.with_columns(value=pl.int_range(pl.len()) * 7919 % 997)
    views.write_parquet("signal.parquet")
    begun = yieldlab("sweep", "run", "signal_file", "--out", "whole")
    assert begun.code == 0, begun.err
    real = sweep._run.RunFolder.write_chunk
    monkeypatch.setattr(sweep._run.Bench, "chunk_trials", lambda self, limit: 10)

    def died(self, number, *arguments):
        if number == 3:
            raise KeyboardInterrupt
        return real(self, number, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(sweep._run.RunFolder, "write_chunk", died)
        assert yieldlab("sweep", "run", "signal_file", "--out", "kept").code == 130
    views.with_columns(value=-pl.col("value")).write_parquet("signal.parquet")
    told = yieldlab("sweep", "resume", "kept")
    assert (told.code, told.out) == (3, "")
    assert "the signal of strategy 'signal_file' with path=signal.parquet has changed since the run began" in told.err
    views.write_parquet("signal.parquet")
    assert yieldlab("sweep", "resume", "kept").code == 0
    assert Path("kept/trials.parquet").read_bytes() == Path("whole/trials.parquet").read_bytes()


LONG = (
    "sweep",
    "run",
    "steady_carry",
    "--grid",
    "top_n=1..12",
    "--grid",
    "every=1..40",
    "--grid",
    "persistence=0,0.1,0.2",
)


def begin(*arguments: str) -> subprocess.Popen[str]:
    """A command of its own process, whose Ctrl-C reaches nobody else."""
    return subprocess.Popen(
        [sys.executable, "-m", "yieldlab", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_a_chunk(lab: Path) -> Path:
    for _ in range(6_000):
        for run in runs_in(lab):
            if any((run / "chunks").glob("*.parquet")):
                return run
        time.sleep(0.02)
    raise AssertionError("the sweep wrote no chunk in two minutes")


@pytest.mark.slow
def test_ctrl_c_finishes_the_chunk_and_prints_the_command_that_resumes(yieldlab, lab: Path) -> None:
    process = begin(*LONG)
    run = wait_for_a_chunk(lab)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the sweep was over before it could be interrupted")
    assert process.returncode == 130, err
    assert "stopping after this chunk" in err
    found = re.search(r"Interrupted with ([\d,]+) of 25,920 trials done; resume with: yieldlab (.*)", out)
    assert found
    done = int(found[1].replace(",", ""))
    assert 0 < done < 25_920
    assert json.loads((run / "manifest.json").read_text())["status"] == "interrupted"
    partly = yieldlab("sweep", "show", run.name)
    assert partly.code == 0
    assert "the run is interrupted; only finished trials are ranked" in partly.err
    resumed = yieldlab(*found[2].split())
    assert resumed.code == 0, resumed.err
    whole = yieldlab(*LONG, "--out", "whole")
    assert whole.code == 0
    assert (run / "trials.parquet").read_bytes() == Path("whole/trials.parquet").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be killed")
def test_resume_refuses_what_has_changed_since(yieldlab, lab: Path) -> None:
    process = begin(*LONG)
    run = wait_for_a_chunk(lab)
    process.kill()
    process.communicate(timeout=60)
    if (run / "_SUCCESS").exists():
        pytest.skip("the sweep was over before it could be killed")
    assert "interrupted" in yieldlab("runs", "list").out

    (lab / "yieldlab.toml").write_text("cost_bps = 20\n")
    told = yieldlab("sweep", "resume", run.name)
    assert told.code == 2
    assert "the configuration has changed since the run began: cost was 0.001, is 0.002" in told.err
    (lab / "yieldlab.toml").write_text("capital = 5\n")
    assert "capital was 10000.0, is 5.0" in yieldlab("sweep", "resume", run.name).err
    (lab / "yieldlab.toml").write_text("")

    file = lab / "strategies" / "steady_carry.py"
    source = file.read_text()
    file.write_text(source + "\n# another\n")
    told = yieldlab("sweep", "resume", run.name)
    assert told.code == 2
    assert "strategy 'steady_carry' has changed" in told.err
    file.write_text(source)

    Path("more.csv").write_text("pool_id,time,apy_percent,tvl_usd\nnew,2025-01-01,5,100\n")
    assert yieldlab("data", "import", "more.csv").code == 0
    resumed = yieldlab("sweep", "resume", run.name)
    assert resumed.code == 0, "new rows are later than the run's cutoff and change nothing"
    assert yieldlab("sweep", "resume", "absent").code == 2


def test_only_a_sweep_can_be_resumed_and_a_finished_one_is_shown(yieldlab, lab: Path) -> None:
    yieldlab("backtest", "highest_apy", "--out", "other")
    told = yieldlab("sweep", "resume", "other")
    assert told.code == 2
    assert "only a sweep can be resumed" in told.err
    yieldlab("sweep", "run", "highest_apy", *SMALL, "--capital", "5000", "--cost-bps", "3", "--out", "kept")
    before = Path("kept/trials.parquet").read_bytes()
    assert yieldlab("sweep", "resume", "kept").code == 0, "what was given as a flag is no change of the settings"
    assert Path("kept/trials.parquet").read_bytes() == before


def test_a_full_disk_leaves_a_failed_run_and_one_sentence(yieldlab, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from yieldlab.runs import RunFolder

    def full(self: RunFolder, number: int, frame: pl.DataFrame, signals: list[str]) -> None:
        raise OSError(28, "No space left on device", str(self.path / "chunks"))

    monkeypatch.setattr(RunFolder, "write_chunk", full)
    told = yieldlab("sweep", "run", "highest_apy", *SMALL)
    assert (told.code, told.out) == (1, "")
    assert told.err.startswith("error: no space left on the disk")
    assert told.err.count("\n") == 1
    assert "failed" in yieldlab("runs", "list").out


def test_the_demo_shows_everything_and_where_the_files_are(yieldlab, empty: Path) -> None:
    told = yieldlab("demo")
    assert told.code == 0, told.err
    ran = ("highest_apy", "tvl_weighted", "lstm_top", "risk_adjusted")
    for part in ("SYNTHETIC", *ran, "trained through", "2,160 trials", "data/runs/", "Next:"):
        assert part in told.out
    again = yieldlab("demo", "--json").document
    assert again["data"]["sweep"]["count"] >= 2_000
    assert len(again["data"]["backtest"]["trials"]) == len(ran)


def test_a_sample_of_more_than_there_is_says_so(yieldlab, lab: Path) -> None:
    told = yieldlab("sweep", "run", "highest_apy", *SMALL, "--sample", "100000")
    assert told.code == 0, told.err
    assert "fewer than --sample 100000; all are run" in told.err


def test_a_file_that_no_trial_of_a_sweep_finds_is_missing_data(yieldlab, lab: Path) -> None:
    for arguments in (["backtest", "signal_file"], ["sweep", "run", "signal_file"]):
        told = yieldlab(*arguments)
        assert (told.code, told.out) == (3, "")
        assert "there is no signal file signal.parquet" in told.err
