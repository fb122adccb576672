"""`backtest`: strategies side by side, and one sentence for whatever cannot be run."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from yieldlab.metrics import MEASURES

RECENT = ("--start", "2025-11-12")


def runs_in(lab: Path) -> list[Path]:
    folder = lab / "data" / "runs"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def test_strategies_stand_side_by_side_with_the_data_line_under_them(yieldlab, lab: Path) -> None:
    told = yieldlab("backtest", "highest_apy", "tvl_weighted", "steady_carry", *RECENT)
    assert told.code == 0, told.err
    for word in ("highest_apy", "tvl_weighted", "steady_carry", "Sharpe", "autocorr.", "turnover", "final USD"):
        assert word in told.out
    assert "12 pools, SYNTHETIC" in told.out
    assert "carry only, no price moves (5 of 12 pools not in USD)" in " ".join(told.out.split())
    [run] = runs_in(lab)
    assert {"manifest.json", "trials.parquet", "equity.parquet", "trades.parquet", "backtest_results.csv"} <= {
        path.name for path in run.iterdir()
    }
    assert pl.read_csv(run / "backtest_results.csv").columns == ["date", "highest_apy", "tvl_weighted", "steady_carry"]


def test_the_document_holds_trials_with_every_measure(yieldlab, lab: Path) -> None:
    document = yieldlab(
        "backtest", "highest_apy", *RECENT, "--set", "top_n=2", "--set", "lookback=7", "--json"
    ).document
    assert (document["command"], document["status"]) == ("backtest", "ok")
    assert document["run_id"] == runs_in(lab)[0].name
    [trial] = document["data"]["trials"]
    assert trial["strategy"] == "highest_apy"
    assert (trial["params"]["top_n"], trial["params"]["lookback"], trial["params"]["warmup"]) == (2, 7, 7)
    assert tuple(trial["measures"]) == MEASURES
    assert document["data"]["panel"]["sources"] == ["synthetic"]
    assert list(document["data"]["prepared"]) == ["max_stale_days=3, rates=effective, spikes=keep"]


def test_undefined_measures_are_null_and_not_nan(yieldlab, lab: Path) -> None:
    told = yieldlab("backtest", "highest_apy", "--start", "2026-02-10", "--end", "2026-02-10", "--json")
    measures = told.document["data"]["trials"][0]["measures"]
    assert measures["sharpe"] is None
    assert measures["annualized_return"] is None
    assert "NaN" not in told.out


def test_costs_come_from_the_settings_and_flags_win(yieldlab, lab: Path) -> None:
    def cost(*arguments: str) -> float:
        document = yieldlab("backtest", "highest_apy", *RECENT, *arguments, "--json").document
        return document["data"]["trials"][0]["params"]["cost"]

    assert cost() == 0.001
    (lab / "yieldlab.toml").write_text("cost_bps = 20\ngas_usd = 1.5\ncapital = 5000\n")
    assert cost() == 0.002
    assert cost("--cost-bps", "30") == 0.003
    assert cost("--set", "cost=0.004") == 0.004
    document = yieldlab("backtest", "highest_apy", *RECENT, "--json").document
    assert document["data"]["trials"][0]["params"]["gas_usd"] == 1.5
    assert 4_000 < document["data"]["trials"][0]["measures"]["final_value"] < 6_000
    both = yieldlab("backtest", "highest_apy", "--cost-bps", "3", "--set", "cost=0.1")
    assert both.code == 2
    assert "name the same" in both.err


def test_a_parameter_that_one_strategy_lacks_is_set_where_it_is_known(yieldlab, lab: Path) -> None:
    document = yieldlab(
        "backtest", "highest_apy", "tvl_weighted", *RECENT, "--set", "lookback=30", "--set", "accrual=leading", "--json"
    ).document
    first, second = document["data"]["trials"]
    assert first["params"]["lookback"] == 30
    assert "lookback" not in second["params"]
    assert first["params"]["accrual"] == second["params"]["accrual"] == "leading"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["higest_apy"], 2, "unknown strategy 'higest_apy'; did you mean 'highest_apy'?"),
        (["absent.py"], 2, "there is no strategy file absent.py"),
        (["highest_apy", "--set", "topn=3"], 2, "unknown parameter 'topn'; did you mean 'top_n'?"),
        (["highest_apy", "--set", "lokback=3"], 2, "unknown parameter 'lokback'; did you mean 'lookback'?"),
        (["highest_apy", "--set", "acrual=leading"], 2, "unknown parameter 'acrual'; did you mean 'accrual'?"),
        (["highest_apy", "--set", "weighting=eqal"], 2, "did you mean 'equal'?"),
        (["highest_apy", "--set", "accrual=trailling"], 2, "did you mean 'trailing'?"),
        (["highest_apy", "--set", "top_n=0"], 2, "top_n must be a whole number >= 1, not 0"),
        (["highest_apy", "--set", "top_n=1,2"], 2, "--set takes one"),
        (["highest_apy", "--set", "top_n"], 2, "write it as name=value"),
        (["highest_apy", "--set", "top_n=1", "--set", "top_n=2"], 2, "--set names 'top_n' twice"),
        (["highest_apy", "--set", "cost=nan"], 2, "not a finite number"),
        (["highest_apy", "--capital", "0"], 2, "--capital must be a number > 0, not '0'"),
        (["highest_apy", "--start", "yesterday"], 2, "--start must be a day such as 2025-12-31, not 'yesterday'"),
        (["highest_apy", "--start", "2019-01-01"], 3, "--start 2019-01-01 lies outside the data"),
        (["highest_apy", "--end", "2031-01-01"], 3, "--end 2031-01-01 lies outside the data"),
        (["highest_apy", "--start", "2025-02-02", "--end", "2025-02-01"], 2, "lies after --end"),
        (["highest_apy", "--as-of", "2001-01-01"], 3, "no observation"),
        (["highest_apy", "--as-of", "soon"], 2, "--as-of must be a day or an instant"),
        (["signal_file"], 3, "there is no signal file signal.parquet"),
        ([], 2, "missing argument 'STRATEGY...'"),
    ],
)
def test_what_cannot_be_run_is_one_sentence_and_leaves_nothing(
    yieldlab, lab: Path, arguments: list[str], code: int, sentence: str
) -> None:
    told = yieldlab("backtest", *arguments)
    assert (told.code, told.out) == (code, "")
    assert sentence in told.err
    assert told.err.count("\n") == 1
    assert runs_in(lab) == []


STRATEGY = """
import numpy as np
from yieldlab import Grid, Panel

NEEDS = ("apy",)
SIGNAL = Grid()
POLICY = Grid()


def signal(panel: Panel) -> np.ndarray:
    {body}
"""


@pytest.mark.parametrize(
    ("body", "code", "sentence"),
    [
        ("return panel['apy'] / [][0]", 4, "IndexError"),
        ("return panel['apy'][:, :2]", 4, "shape"),
        ("return np.full(panel.shape, np.nan)", 4, "no view"),
        ("return panel['apy'] * np.inf", 4, "infinite"),
        ("return 'high'", 4, "str"),
        ("return panel['tvl']", 4, "tvl"),
    ],
)
def test_a_strategy_that_gives_no_signal_is_one_sentence(
    yieldlab, lab: Path, body: str, code: int, sentence: str
) -> None:
    (lab / "strategies" / "mine.py").write_text(STRATEGY.format(body=body))
    told = yieldlab("backtest", "mine")
    assert told.code == code, told
    assert sentence in told.err
    assert told.err.count("\n") == 1
    assert runs_in(lab) == []


def test_a_strategy_that_fails_beside_one_that_runs_makes_the_run_partial(yieldlab, lab: Path) -> None:
    (lab / "strategies" / "mine.py").write_text(STRATEGY.format(body="raise ValueError('not today')"))
    told = yieldlab("backtest", "highest_apy", "mine", "--json")
    assert told.code == 4
    document = told.document
    assert document["status"] == "partial"
    assert [trial["reason"] is None for trial in document["data"]["trials"]] == [True, False]
    assert "not today" in document["warnings"][0]
    assert yieldlab("runs", "show", document["run_id"], "--json").document["data"]["status"] == "partial"


def test_a_signal_that_reads_the_future_is_caught_on_request(yieldlab, lab: Path) -> None:
    (lab / "strategies" / "seer.py").write_text(STRATEGY.format(body="return np.roll(panel['apy'], -1, axis=0)"))
    told = yieldlab("backtest", "highest_apy", "seer", "--check-causal")
    assert (told.code, told.out) == (5, "")
    assert "seer" in told.err
    assert told.err.count("\n") == 1
    assert runs_in(lab) == []
    assert yieldlab("backtest", "highest_apy", "steady_carry", "--check-causal").code == 0


def test_as_of_shows_what_was_known_then(yieldlab, lab: Path) -> None:
    document = yieldlab("backtest", "highest_apy", "--as-of", "2024-06-30", "--json").document
    assert document["data"]["panel"]["last"] == "2024-06-30"


def test_the_run_goes_where_out_says_and_overwrites_nothing(yieldlab, lab: Path) -> None:
    assert yieldlab("backtest", "highest_apy", *RECENT, "--out", "kept").code == 0
    assert json.loads((lab / "kept" / "manifest.json").read_text())["kind"] == "backtest"
    again = yieldlab("backtest", "highest_apy", *RECENT, "--out", "kept")
    assert again.code == 2
    assert "kept is not empty" in again.err
    assert yieldlab("runs", "show", "kept").code == 0


def test_runs_are_listed_shown_and_removed(yieldlab, lab: Path) -> None:
    assert "no run in" in yieldlab("runs", "list").out
    yieldlab("backtest", "highest_apy", *RECENT)
    [run] = runs_in(lab)
    assert run.name in yieldlab("runs", "list").out
    page = yieldlab("runs", "show", run.name)
    assert page.code == 0
    for word in ("complete", "highest_apy", "SYNTHETIC", "trials.parquet"):
        assert word in page.out
    assert yieldlab("runs", "show", "absent").code == 2
    assert yieldlab("runs", "rm", run.name, "absent").code == 2
    assert runs_in(lab) == [run]
    assert yieldlab("runs", "rm", run.name).code == 0
    assert runs_in(lab) == []
    (lab / "data" / "runs" / "broken").mkdir()
    (lab / "data" / "runs" / "broken" / "manifest.json").write_text("{")
    assert "unreadable" in yieldlab("runs", "list").out
    assert yieldlab("runs", "show", "broken").code == 3


def test_two_files_of_one_name_are_refused_with_both_paths(yieldlab, lab: Path) -> None:
    for folder, pools in (("n1", 1), ("n2", 2)):
        Path(folder).mkdir()
        text = Path("strategies/highest_apy.py").read_text() + f"\nPOOLS = {pools}\n"
        Path(folder, "mine.py").write_text(text)
    told = yieldlab("backtest", "n1/mine.py", "n2/mine.py", *RECENT)
    assert (told.code, told.out) == (2, "")
    assert "two files have the name 'mine', n1/mine.py and n2/mine.py" in told.err
    assert runs_in(lab) == []


def test_one_that_fails_by_itself_does_not_stop_the_audit_of_the_others(yieldlab, lab: Path) -> None:
    (lab / "strategies" / "broken.py").write_text(
        "NEEDS = ('apy',)\n\n\ndef signal(panel):\n    raise ValueError('no')\n"
    )
    told = yieldlab("backtest", "broken", "highest_apy", *RECENT, "--check-causal")
    assert told.code == 4
    assert "warning: broken failed" in told.err
    assert yieldlab("backtest", "broken", *RECENT, "--check-causal").code == 4


def test_a_trial_that_cannot_afford_its_trades_is_not_a_quiet_one(yieldlab, lab: Path) -> None:
    result = yieldlab("backtest", "highest_apy", "--gas-usd", "1000000000")
    assert result.code == 0
    assert "could not afford" in result.err


def test_what_cleaning_changed_is_counted_under_the_result(yieldlab, lab: Path) -> None:
    told = yieldlab("backtest", "highest_apy", *RECENT, "--set", "spikes=mask", "--json")
    (name, health), *others = json.loads(told.out)["data"]["prepared"].items()
    assert name == "max_stale_days=3, rates=effective, spikes=mask"
    assert others == []
    assert health["masked"] > 0
    assert f"{health['masked']:,} spikes masked" in yieldlab(
        "backtest", "highest_apy", *RECENT, "--set", "spikes=mask"
    ).out.replace("\n", " ")


def test_a_sweep_over_cleaning_rules_counts_under_each(yieldlab, lab: Path) -> None:
    told = yieldlab(
        "sweep",
        "run",
        "highest_apy",
        "--grid",
        "spikes=keep,winsorize",
        "--grid",
        "top_n=1,2",
        "--start",
        "2025-11-12",
        "--json",
    )
    assert told.code == 0, told.err
    prepared = json.loads(told.out)["data"]["prepared"]
    assert [health["winsorized"] > 0 for health in prepared.values()] == [False, True]
    assert all(trial["params"]["spikes"] in ("keep", "winsorize") for trial in json.loads(told.out)["data"]["trials"])


def test_delistings_are_told_with_what_they_cost(yieldlab, lab: Path) -> None:
    strictly = ("--set", "max_stale_days=0", "--set", "dead_after_days=0", "--set", "delisted_loss=0.1")
    result = yieldlab("backtest", "highest_apy", "--set", "delisted=loss", *strictly, "--json")
    measures = result.document["data"]["trials"][0]["measures"]
    assert measures["delistings"] > 0
    told = f"had {measures['delistings']} positions in pools that were delisted; {measures['written_off']:,.2f} USD"
    assert any(told in warning for warning in result.document["warnings"])
    held_on = yieldlab("backtest", "highest_apy", *strictly, "--json").document
    assert held_on["data"]["trials"][0]["measures"]["delistings"] == 0
    assert not any("delisted" in warning for warning in held_on["warnings"])
