"""The bundled strategies: what each one ranks and holds, and what a signal file may and may not say."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from yieldlab.errors import CausalityError, DataError, StrategyError
from yieldlab.panel import Panel
from yieldlab.simulate.policy import POLICY, check_value, policies
from yieldlab.strategy import Strategy, bundled_folder, discover, find
from yieldlab.testing import check_strategy, corners, tiny_panel

NAMES = ["highest_apy", "lstm_top", "risk_adjusted", "signal_file", "steady_carry", "tvl_weighted", "unified"]


def bundled(name: str) -> Strategy:
    return find(name, [bundled_folder()])


def three_pools(times: int = 6) -> Panel:
    apy = np.full((times, 3), np.nan)
    apy[:, 0] = [0.10, 0.20, 0.30, 0.10, 0.10, 0.10][:times]
    apy[:, 1] = 0.15
    return Panel(
        np.datetime64("2024-03-01", "D") + np.arange(times),
        pl.DataFrame({"pool_id": ["aave", "curve", "late"]}),
        {"apy": apy, "tvl_usd": np.tile([1e6, 5e6, 2e6], (times, 1))},
    )


def test_exactly_these_are_bundled_and_all_load() -> None:
    assert [(found.name, found.state) for found in discover([bundled_folder()])] == [(name, "OK") for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_strategy_says_what_it_does_and_trades_sensibly(name: str) -> None:
    found = bundled(name)
    assert found.doc.splitlines()[0].endswith((".", "value."))
    for axis, values in found.policy_grid.axes.items():
        for value in values:
            check_value(axis, value)
    assert policies(found.policy_grid.defaults()).dtype == POLICY
    assert found.policy_grid.defaults()["every"] == 7
    assert "cost" not in found.policy_grid.axes


@pytest.mark.parametrize("name", ["highest_apy", "steady_carry", "tvl_weighted"])
def test_a_bundled_strategy_passes_what_users_run_on_their_own(name: str) -> None:
    assert check_strategy(bundled(name).path).name == name


def test_highest_apy_is_todays_by_default_and_a_mean_on_request() -> None:
    found = bundled("highest_apy")
    panel = three_pools()
    assert found.params() == {"lookback": 1}
    assert {name: found.policy_grid.defaults()[name] for name in ("top_n", "every", "weighting")} == {
        "top_n": 3,
        "every": 7,
        "weighting": "equal",
    }
    np.testing.assert_array_equal(found.signal(panel), panel["apy"])
    np.testing.assert_allclose(found.signal(panel, {"lookback": 3})[:4, 0], [0.10, 0.15, 0.20, 0.20], rtol=1e-15)
    assert [found.warmup_rows({"lookback": n}) for n in (1, 30)] == [1, 30]


def test_tvl_weighted_holds_all_above_one_percent_by_size() -> None:
    found = bundled("tvl_weighted")
    panel = three_pools()
    np.testing.assert_array_equal(found.signal(panel), panel["tvl_usd"])
    defaults = found.policy_grid.defaults()
    assert (defaults["weighting"], defaults["min_apy"], defaults["power"]) == ("tvl", 0.01, 1.0)
    assert int(defaults["top_n"] or 0) >= 10_000


def test_steady_carry_takes_a_multiple_of_the_deviation_off_the_mean() -> None:
    found = bundled("steady_carry")
    views = found.signal(three_pools(), {"lookback": 3, "risk_aversion": 0.5})
    assert views[2, 0] == pytest.approx(0.20 - 0.5 * 0.10)
    assert views[5, 1] == pytest.approx(0.15)
    assert np.isnan(views[0]).all()
    assert np.isnan(views[:, 2]).all()


# -- signal files -------------------------------------------------------------------------------------------------


def followed(folder: Path, frame: pl.DataFrame, panel: Panel | None = None) -> NDArray[np.float64]:
    path = folder / "views.parquet"
    frame.write_parquet(path)
    return bundled("signal_file").signal(panel or three_pools(), {"path": str(path)})


def frame_of(**columns: object) -> pl.DataFrame:
    return pl.DataFrame({"pool_id": ["aave", "curve"], "time": [date(2024, 3, 2)] * 2, "value": [0.5, -1.0], **columns})


def test_a_row_of_the_file_is_the_view_of_its_day_and_of_no_other(tmp_path: Path) -> None:
    wanted = np.full((6, 3), np.nan)
    wanted[1, :2] = [0.5, -1.0]
    np.testing.assert_array_equal(followed(tmp_path, frame_of()), wanted)


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2024, 3, 2),
        datetime(2024, 3, 2, 23, 59, 59, 999_999),
        datetime(2024, 3, 2, 12, tzinfo=UTC),
        datetime(2024, 3, 3, 1, tzinfo=timezone(timedelta(hours=3))),
    ],
)
def test_an_instant_belongs_to_its_utc_day(tmp_path: Path, moment: datetime) -> None:
    column = pl.Series([moment, moment])
    assert followed(tmp_path, frame_of(time=column))[1, 0] == 0.5
    if moment.tzinfo is not None:
        elsewhere = column.dt.convert_time_zone("Asia/Tokyo")
        assert followed(tmp_path, frame_of(time=elsewhere))[1, 0] == 0.5


def test_null_and_nan_are_no_view_and_other_days_and_columns_are_not_used(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "model": ["m"] * 5,
            "value": [None, float("nan"), 3.0, 4.0, 5.0],
            "time": [date(2024, 3, 1), date(2024, 3, 2), date(2024, 3, 6), date(2024, 3, 7), date(2020, 1, 1)],
            "pool_id": ["aave", "aave", "curve", "curve", "aave"],
        }
    )
    views = followed(tmp_path, frame)
    assert views[5, 1] == 3.0
    assert np.isnan(views).sum() == 17


def test_whole_numbers_are_values_too(tmp_path: Path) -> None:
    assert followed(tmp_path, frame_of(value=[1, 2]))[1, 1] == 2.0


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        (
            frame_of().drop("value"),
            "has no column 'value'; known: pool_id, time; a signal file has pool_id, time, value",
        ),
        (frame_of().rename({"time": "times"}), "has no column 'time'; did you mean 'times'?; a signal file has"),
        (
            frame_of(pool_id=["aave", "curv"]),
            "names pools that the panel does not have, 1 in all, the first 'curv'; did you mean",
        ),
        (frame_of(pool_id=["x", "y"]), "names pools that the panel does not have, 2 in all, the first 'x'"),
        (frame_of(pool_id=["aave", "aave"]), "2 rows share their pool and day, the first 'aave' on 2024-03-02"),
        (
            frame_of(pool_id=["aave", "aave"], time=[datetime(2024, 3, 2, 1), datetime(2024, 3, 2, 2)]),
            "2 rows share their pool and day, the first 'aave' on 2024-03-02",
        ),
        (frame_of(time=["2024-03-02"] * 2), "column 'time' must hold dates or instants, not String"),
        (frame_of(time=[1, 2]), "column 'time' must hold dates or instants, not Int64"),
        (frame_of(value=["a", "b"]), "column 'value' must hold numbers, not String"),
        (frame_of(value=[True, False]), "column 'value' must hold numbers, not Boolean"),
        (frame_of(value=[1.0, float("-inf")]), "infinite values, 1 in all, the first of pool 'curve'"),
        (frame_of(pool_id=["aave", None]), "rows without a pool_id or a time, 1 in all"),
        (frame_of(time=[None, None], pool_id=["aave", "curve"]), "column 'time' must hold dates or instants, not Null"),
        (frame_of(pool_id=[1, 2]), "column 'pool_id' must hold words, not Int64"),
        (frame_of(time=[date(2019, 1, 1)] * 2), "has no view on any pool"),
        (frame_of().clear(), "has no view on any pool"),
    ],
)
def test_a_signal_file_that_cannot_be_used_gets_one_sentence(
    tmp_path: Path, frame: pl.DataFrame, sentence: str
) -> None:
    with pytest.raises(StrategyError if "no view" in sentence else DataError) as caught:
        followed(tmp_path, frame)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("strategy 'signal_file'")
    assert "\n" not in str(caught.value)
    assert "(line" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "there is no signal file"),
        (lambda path: path.mkdir(), "there is no signal file"),
        (lambda path: path.write_bytes(b"PAR1 nothing PAR1"), "cannot be read as Parquet"),
        (lambda path: path.write_bytes(b""), "cannot be read as Parquet"),
        (lambda path: frame_of().write_csv(path), "cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_no_parquet_gets_one_sentence(
    tmp_path: Path, make: Callable[[Path], object], sentence: str
) -> None:
    path = tmp_path / "odd[1]*.parquet"
    make(path)
    with pytest.raises(DataError, match=sentence):
        bundled("signal_file").signal(three_pools(), {"path": str(path)})


def test_a_name_is_a_name_and_no_pattern(tmp_path: Path) -> None:
    frame_of().write_parquet(tmp_path / "odd[1]*.parquet")
    views = bundled("signal_file").signal(three_pools(), {"path": str(tmp_path / "odd[1]*.parquet")})
    assert views[1, 0] == 0.5


def test_a_signal_file_over_all_days_is_audited_as_causal(tmp_path: Path) -> None:
    panel = tiny_panel(times=40)
    days = panel.times.astype("datetime64[D]")
    frames = [
        pl.DataFrame({"time": days, "value": np.arange(40.0)}).with_columns(pool_id=pl.lit(p)) for p in panel.pool_ids
    ]
    pl.concat(frames).write_parquet(tmp_path / "all.parquet")
    found = bundled("signal_file")
    found.audit(panel, {"path": str(tmp_path / "all.parquet")})
    assert corners(found) == [{"path": "signal.parquet"}]


@pytest.mark.parametrize("name", ["highest_apy", "steady_carry"])
def test_breaking_a_bundled_strategy_is_noticed(name: str, tmp_path: Path) -> None:
    source = bundled(name).source
    broken = source.replace('panel["apy"]', 'np.roll(panel["apy"], -1, axis=0)')
    assert broken != source
    (tmp_path / f"{name}.py").write_text(broken)
    with pytest.raises(CausalityError, match=f"strategy '{name}' depends on the future"):
        check_strategy(tmp_path / f"{name}.py")
