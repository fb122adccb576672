"""What people see: units, separators, dashes for what is undefined, and progress that knows where it is shown."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest

from yieldlab import metrics
from yieldlab.panel import Health
from yieldlab.report import results, terminal
from yieldlab.report.strategies import value_text
from yieldlab.sample import SOURCE
from yieldlab.space import parse_value


def printed(capsys: pytest.CaptureFixture[str], *parts: object) -> str:
    terminal.show(parts)  # type: ignore[arg-type]
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (terminal.percent(0.05123), "5.12 %"),
        (terminal.percent(-0.00001), "0.00 %"),
        (terminal.percent(None), "-"),
        (terminal.usd(1234567.891), "1,234,567.89"),
        (terminal.number(None), "-"),
        (terminal.size(1_234_567), "1.2 MB"),
        (terminal.size(12), "12 B"),
        (terminal.count(1, "pool"), "1 pool"),
        (terminal.count(1200, "pool"), "1,200 pools"),
    ],
)
def test_numbers_are_written_for_people(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize("value", [None, True, 3, 0.1, 1e-9, 1234567.0, "equal"])
def test_a_value_reads_back_as_it_was(value: object) -> None:
    assert parse_value(value_text(value)) == value  # type: ignore[arg-type]


def test_plain_text_has_no_colours_and_no_trailing_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, terminal.table(["pool", "n"], [["a[b]", "1"], ["c", "22"]]), "x" * 300)
    assert "\x1b" not in out
    assert "a[b]" in out
    assert all(line == line.rstrip() for line in out.splitlines())
    assert "x" * 300 in out


MEASURES = {
    "total_return": 0.0123,
    "annualized_return": None,
    "volatility": 0.002,
    "sharpe": 25.0,
    "autocorrelation": 0.9,
    "max_drawdown": -0.001,
    "turnover": 12.0,
    "cost_paid": 34.5,
    "final_value": 10_123.4,
    "calmar": 3.0,
}


def test_sharpe_stands_beside_autocorrelation(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, results.comparison_table(["steady"], [MEASURES]))
    heading = out.splitlines()[0].split()
    assert heading[heading.index("Sharpe") + 1] == "autocorr."
    assert "1.23 %" in out
    assert "10,123.40" in out
    assert " - " in out


def test_the_leaderboard_shows_what_differs_and_what_it_is_ranked_by(capsys: pytest.CaptureFixture[str]) -> None:
    params = [{"top_n": 3, "every": 7, "cost": 0.001}, {"top_n": 5, "every": 7, "cost": 0.001}]
    out = printed(capsys, results.leaderboard(["top_n", "every"], params, [MEASURES, MEASURES], [1, 3], by="calmar"))
    assert "top_n" in out
    assert "every" not in out
    assert "Calmar" in out
    assert results.shared_line(["top_n", "every"], params) == "All of these: every=7"
    assert results.shared_line(["top_n"], params) == ""


def test_no_number_is_cut_where_nothing_limits_the_width(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = [f"{10**9 + n:,}" for n in range(20)]
    out = printed(capsys, terminal.table(["trial", *(f"measure_{n}" for n in range(20))], [["one", *numbers]]))
    assert all(number in out.splitlines()[-1] for number in numbers)


def test_the_data_line_says_what_lies_under_a_result() -> None:
    health = Health(100, 12, "2025-01-01", "2025-04-10", 1100, 0.9, 0.06, 0.04, 1100, 7, (SOURCE,))
    line = results.data_line(health.as_dict())
    for part in ("2025-01-01 to 2025-04-10", "12 pools", "90.0 %", "6.0 %", "4.0 %", "1,100 rows", "carry", "7 of 12"):
        assert part in line
    assert "12 pools, SYNTHETIC;" in line
    assert "partly SYNTHETIC" in results.data_line(replace(health, sources=("mine.csv", SOURCE)).as_dict())
    assert "SYNTHETIC" not in results.data_line(replace(health, sources=("mine.csv",)).as_dict())


def test_the_data_line_counts_what_was_done_to_the_observations() -> None:
    plain = Health(100, 12, "2025-01-01", "2025-04-10", 1100, 0.9, 0.06, 0.04, 1100, 7)
    untouched = results.data_line(plain.as_dict())
    for word in ("spike", "converted", "quoted", "entering"):
        assert word not in untouched
    treated = replace(
        plain,
        masked=3,
        masked_share=0.0025,
        winsorized=1,
        rates_converted=800,
        rates_unknown=40,
        rates_unknown_pools=2,
        rates_too_high=1,
        entering={"2024": 11, "2025": 1},
        leaving={"2025": 4},
    )
    line = results.data_line(treated.as_dict())
    for part in (
        "3 spikes masked (0.25 %)",
        "1 spike lowered to the bound",
        "800 simple rates converted to APY",
        "40 rates of 2 pools as quoted, for want of a known convention",
        "1 simple rate too high for an APY, as quoted",
        "pools entering/leaving 2024 11/0, 2025 1/4",
    ):
        assert part in line
    assert "rates as quoted" in results.data_line(replace(plain, rates="quoted").as_dict())


def test_the_best_of_many_is_never_shown_without_a_warning() -> None:
    assert "one of 2,160 trials" in results.luck_line(2160, 0.0)
    assert "autocorrelation" not in results.luck_line(2160, 0.0)
    assert "autocorrelation of 0.95" in results.luck_line(2160, 0.95)


def test_progress_without_a_terminal_is_a_line_every_30_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 31.0, 40.0, 70.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with terminal.Progress("sweep", quiet=False) as progress:
        for done in (10, 31, 40, 70):
            progress.update(done, 100, "best 5 %")
    lines = sys.stderr.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == [
        "sweep: 31/100 (1/s), about 69 s left; best 5 %",
        "sweep: 70/100 (1/s), about 30 s left; best 5 %",
    ]


def test_slow_progress_is_told_by_the_minute_and_none_promises_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 31.0, 120.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with terminal.Progress("walk", quiet=False) as progress:
        progress.update(0, 8, "epoch 3")
        progress.update(4, 8)
    lines = sys.stderr.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == ["walk: 0/8 (0/min); epoch 3", "walk: 4/8 (2/min), about 120 s left"]


def test_progress_is_silent_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with terminal.Progress("sweep", quiet=True) as progress:
        progress.update(1, 2)
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_in_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with terminal.Progress("sweep", quiet=False) as progress:
        progress.update(50, 100, "best 5 %")
    assert "50/100" in screen.getvalue()


def test_losses_of_delisted_pools_stand_beside_the_measures_where_there_are_any(
    capsys: pytest.CaptureFixture[str],
) -> None:
    calm = dict.fromkeys(metrics.MEASURES, 0.0)
    hurt = calm | {"delistings": 3, "written_off": 1234.5}
    for show in (
        lambda rows: results.comparison_table(["one"] * len(rows), rows),
        lambda rows: results.leaderboard([], [{}] * len(rows), rows, [1] * len(rows), "sharpe"),
    ):
        assert "written off" not in printed(capsys, show([calm]))
        out = printed(capsys, show([calm, hurt]))
        assert "delisted" in out
        assert "1,234.50" in out
