"""Features: what they mean (against plain oracles), how exact they are, and that the future does not touch a bit."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import features_oracle as oracle

from yieldlab import features
from yieldlab.errors import UsageError

Floats = NDArray[np.float64]

#: Second arguments with which each feature is tried; a feature that takes none has [()].
ARGUMENTS = {
    "ewma": [(0.5,), (7.0,), (100.0,)],
    "lag": [(0,), (1,), (9,), (500,)],
    "change": [(1,), (9,), (500,)],
    "rank": [()],
    "zscore": [()],
    "rolling_quantile": [(1, 0.0), (5, 0.25), (30, 0.9), (500, 1.0)],
}
WINDOWS = [(1,), (2,), (3,), (7,), (8,), (30,), (61,), (500,)]
CASES = [(name, case) for name in features.__all__ for case in ARGUMENTS.get(name, WINDOWS)]


def world(seed: int, times: int = 60, pools: int = 5, missing: float = 0.2) -> Floats:
    generator = np.random.default_rng(seed)
    values = generator.normal(0.05, 0.03, (times, pools)).round(3)  # rounding makes ties
    values[generator.random(values.shape) < missing] = np.nan
    return values


def wild(seed: int, times: int = 80, pools: int = 4) -> Floats:
    """Levels of 1e6 and 1e-6 in one series, both signs in the last column, with gaps."""
    generator = np.random.default_rng(seed)
    size = np.where(generator.random((times, pools)) < 0.3, 1e6, 1e-6)
    values = generator.uniform(1.0, 2.0, (times, pools)) * size
    values[:, -1] *= generator.choice([-1.0, 1.0], times)
    values[generator.random(values.shape) < 0.1] = np.nan
    return values


def expected(name: str, values: Floats, case: tuple[float, ...]) -> Floats:
    if name == "rolling_quantile":
        return oracle.rolling(values, int(case[0]), oracle.quantile(case[1]))
    return getattr(oracle, name)(values, *case)


@pytest.mark.parametrize(("name", "case"), CASES)
@pytest.mark.parametrize("make", [world, wild])
def test_a_feature_is_what_its_plain_definition_says(name: str, case: tuple[float, ...], make) -> None:
    values = make(3)
    given = getattr(features, name)(values, *case)
    wanted = expected(name, values, case)
    np.testing.assert_array_equal(np.isnan(given), np.isnan(wanted))
    np.testing.assert_allclose(given, wanted, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_cutting_the_future_off_changes_no_bit(name: str, case: tuple[float, ...]) -> None:
    feature = getattr(features, name)
    values = wild(5, times=131, pools=7)
    whole = feature(values, *case)
    for rows in (1, 2, 3, 8, 64, 100, 130):
        np.testing.assert_array_equal(feature(values[:rows], *case).view(np.int64), whole[:rows].view(np.int64))


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_feature_is_fresh_contiguous_and_leaves_its_input_alone(name: str, case: tuple[float, ...]) -> None:
    values = world(1)
    values.flags.writeable = False
    result = getattr(features, name)(values, *case)
    assert result.flags.c_contiguous
    assert result.flags.writeable
    assert not np.shares_memory(result, values)
    assert result.dtype == np.float64


@pytest.mark.parametrize(("name", "case"), CASES)
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (1, 1)])
def test_an_empty_panel_gives_an_empty_feature(name: str, case: tuple[float, ...], shape: tuple[int, int]) -> None:
    assert getattr(features, name)(np.ones(shape), *case).shape == shape


@pytest.mark.parametrize("name", [n for n in features.__all__ if n.startswith("rolling") and n != "rolling_quantile"])
def test_blocks_of_pools_do_not_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = world(2, times=40, pools=23)
    whole = getattr(features, name)(values, 7)
    monkeypatch.setattr(features, "_BLOCK_CELLS", 100)
    np.testing.assert_array_equal(getattr(features, name)(values, 7).view(np.int64), whole.view(np.int64))


@given(
    level=st.floats(-1e9, 1e9, allow_subnormal=False),
    window=st.integers(1, 40),
    times=st.integers(1, 50),
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_a_flat_yield_has_itself_as_mean_and_no_deviation(level: float, window: int, times: int) -> None:
    values = np.full((times, 1), level)
    assert (features.rolling_mean(values, window) == level).all()
    assert (features.rolling_std(values, window)[1:] == 0.0).all() or window == 1
    assert (features.ewma(values, 5.0) == level).all()
    assert (features.zscore(np.full((1, times), level)) == 0.0).all() or times == 1


def test_a_window_forgets_a_large_value_once_it_has_left() -> None:
    values = np.full((50, 1), 1e-6)
    values[:5] = 1e6
    assert (features.rolling_mean(values, 10)[15:] == 1e-6).all()
    assert (features.rolling_std(values, 10)[15:] == 0.0).all()


def test_a_deviation_survives_a_high_level() -> None:
    values = 1e6 + 1e-3 * np.random.default_rng(0).normal(size=(100, 1))
    np.testing.assert_allclose(features.rolling_std(values, 20), oracle.rolling_std(values, 20), rtol=1e-10)


def test_permuting_pools_permutes_features() -> None:
    values = world(8, pools=11)
    order = np.random.default_rng(1).permutation(11)
    for name in ("rank", "rolling_mean", "rolling_std", "ewma"):
        case = ARGUMENTS.get(name, [(5,)])[0]
        feature = getattr(features, name)
        np.testing.assert_array_equal(feature(values[:, order], *case), feature(values, *case)[:, order])
    np.testing.assert_allclose(features.zscore(values[:, order]), features.zscore(values)[:, order], rtol=1e-13)


def test_a_lone_pool_ranks_in_the_middle_and_has_no_score() -> None:
    values = np.array([[np.nan, 0.3], [np.nan, np.nan]])
    np.testing.assert_array_equal(features.rank(values), [[np.nan, 0.5], [np.nan, np.nan]])
    assert np.isnan(features.zscore(values)).all()


@pytest.mark.parametrize("name", [n for n in features.__all__ if n.startswith("rolling")])
@pytest.mark.parametrize("window", [0, -1, 2.0, 1.5, True, None, "7", np.nan])
def test_a_window_is_a_whole_number_of_rows(name: str, window: object) -> None:
    extra = (0.5,) if name == "rolling_quantile" else ()
    with pytest.raises(UsageError, match="window must be a whole number of rows, 1 or more"):
        getattr(features, name)(np.ones((3, 2)), window, *extra)


def test_numpy_integers_are_whole_numbers() -> None:
    np.testing.assert_array_equal(features.rolling_sum([[1], [2]], np.int32(2)), [[1.0], [3.0]])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda v: features.lag(v, -1), "rows must be a whole number of rows, 0 or more, not -1"),
        (lambda v: features.change(v, 0), "rows must be a whole number of rows, 1 or more, not 0"),
        (lambda v: features.ewma(v, 0), "halflife must be a number of rows above 0"),
        (lambda v: features.ewma(v, np.inf), "halflife must be a finite number"),
        (lambda v: features.ewma(v, "7"), "halflife must be a finite number"),
        (lambda v: features.rolling_quantile(v, 3, 1.5), r"quantile must lie in \[0, 1\], not 1.5"),
        (lambda v: features.rank(v[:, 0]), r"not one of shape \(3,\)"),
        (lambda v: features.rank(v[None]), r"not one of shape \(1, 3, 2\)"),
        (lambda v: features.rank(1.0), r"not one of shape \(\)"),
        (lambda v: features.rank([["a"]]), "array of numbers, not list"),
        (
            lambda v: features.rank(np.where(v > 0, np.inf, v)),
            "6 in all, the first in row 0, column 0",
        ),
    ],
)
def test_an_argument_that_makes_no_sense_gets_a_sentence(call, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        call(np.ones((3, 2)))


def test_every_public_function_is_listed() -> None:
    public = {
        name
        for name, value in vars(features).items()
        if inspect.isfunction(value) and value.__module__ == features.__name__ and not name.startswith("_")
    }
    assert public == set(features.__all__)
