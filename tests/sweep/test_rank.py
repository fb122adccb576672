"""Ranking: the best first by any measure, ties and undefined values in a fixed place."""

from __future__ import annotations

import polars as pl
import pytest

from yieldlab.errors import UsageError
from yieldlab.metrics import LESS_IS_BETTER, MEASURES
from yieldlab.sweep import rank, varied
from yieldlab.sweep._rank import better

TRIALS = pl.DataFrame(
    {
        "trial_id": ["e", "d", "c", "b", "a"],
        "sharpe": [1.0, None, 3.0, 1.0, -2.0],
        "volatility": [0.1, 0.5, None, 0.2, 0.1],
        "max_drawdown": [-0.5, -0.1, 0.0, -0.1, None],
        "annualized_return": [0.1, 0.2, 0.3, 0.4, 0.5],
    }
)


def ids(frame: pl.DataFrame) -> str:
    return "".join(frame["trial_id"])


def test_more_is_better_unless_less_is() -> None:
    assert ids(rank(TRIALS, "sharpe")) == "cbead"
    assert ids(rank(TRIALS, "volatility")) == "aebdc"
    assert ids(rank(TRIALS, "max_drawdown")) == "cbdea"  # a drawdown is at most 0
    assert ids(rank(TRIALS)) == "abcde"
    assert ids(rank(TRIALS.lazy(), "sharpe", limit=2)) == "cb"
    assert "max_drawdown" not in LESS_IS_BETTER < set(MEASURES)


def test_limits_keep_what_reaches_them_and_nothing_undefined() -> None:
    assert ids(rank(TRIALS, "sharpe", minima={"sharpe": 1.0})) == "cbe"
    assert ids(rank(TRIALS, "sharpe", maxima={"volatility": 0.2}, minima={"max_drawdown": -0.1})) == "b"
    assert ids(rank(TRIALS, "sharpe", minima={"sharpe": 9.0})) == ""


@pytest.mark.parametrize("how", [{"by": "sharp"}, {"minima": {"sharp": 1.0}}, {"maxima": {"sharp": 1.0}}])
def test_an_unknown_measure_suggests_the_nearest(how: dict) -> None:
    with pytest.raises(UsageError, match="unknown measure 'sharp'; did you mean 'sharpe'"):
        rank(TRIALS, **how)


def test_the_order_of_rows_changes_nothing() -> None:
    shuffled = TRIALS.sample(fraction=1.0, shuffle=True, seed=3)
    assert rank(shuffled, "sharpe").equals(rank(TRIALS, "sharpe"))


def test_varied_names_the_parameters_that_differ() -> None:
    frame = pl.DataFrame({"a": [1, 1], "b": [1, 2], "c": [None, 1]})
    assert varied(frame, ["a", "b", "c"]) == ["b", "c"]


def test_better_is_what_ranks_before() -> None:
    assert better("sharpe", 2.0, 1.0)
    assert not better("sharpe", 1.0, 2.0)
    assert better("volatility", 1.0, 2.0)
    assert not better("volatility", 2.0, 1.0)
    assert better("sharpe", -1.0, None)
    assert not better("sharpe", None, -1.0)
    assert not better("sharpe", 1.0, 1.0)
