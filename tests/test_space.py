"""Grids: rows in order, samples without repetition, values as typed, ids made from content."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yieldlab.errors import UsageError
from yieldlab.space import LONGEST_RANGE, Grid, Value, alike, canonical, check_known, parse_axis, parse_value, trial_ids

values = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(-2, 2), st.sampled_from(["x", "y", "1"]))


def same(value: Any) -> object:
    """Equal for two values that are one and the same parameter: 1 and 1.0, not 1 and true, not 1 and "1"."""
    return (float(value) if type(value) in (int, float) else value, type(value) in (int, float), type(value) is str)


axes = st.dictionaries(
    st.sampled_from("abcd"),
    st.lists(values, min_size=1, max_size=4, unique_by=same),
    max_size=4,
)


@settings(deadline=None)
@given(axes=axes)
def test_rows_are_the_product_of_the_axes_the_last_one_turning_fastest(axes: dict[str, list[Any]]) -> None:
    grid = Grid(**axes)
    rows = [dict(zip(axes, row, strict=True)) for row in itertools.product(*axes.values())]
    assert list(grid) == rows
    assert len(grid) == len(rows)
    assert grid.row(0) == grid.defaults()
    with pytest.raises(IndexError):
        grid.row(len(rows))


@settings(deadline=None)
@given(axes=axes, data=st.data())
def test_a_frame_has_the_rows_asked_for(axes: dict[str, list[Any]], data: st.DataObject) -> None:
    grid = Grid(**axes)
    rows = data.draw(st.lists(st.integers(0, len(grid) - 1), max_size=6))
    frame = grid.frame(rows)
    assert frame.height == (len(rows) if axes else frame.height)
    for number, index in enumerate(rows if axes else []):
        for name, value in grid.row(index).items():
            told = frame[name][number]
            assert told == (str(value) if isinstance(told, str) else value)


@settings(deadline=None)
@given(size=st.integers(1, 400), count=st.integers(1, 500), seed=st.integers(0, 9))
def test_a_sample_is_rows_drawn_once_each(size: int, count: int, seed: int) -> None:
    grid = Grid(a=list(range(size)), b=[0, 1])
    drawn = grid.sample(count, seed)
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert drawn.size == min(count, 2 * size)
    assert drawn.min() >= 0
    assert drawn.max() < len(grid)
    assert drawn.tolist() == grid.sample(count, seed).tolist()


def test_a_small_sample_of_a_huge_grid_takes_no_room() -> None:
    grid = Grid(**{f"a{n}": list(range(1_000)) for n in range(5)})
    assert grid.sample(1_000, 1).size == 1_000


def test_a_sample_is_even() -> None:
    drawn = [int(row) for seed in range(400) for row in Grid(a=list(range(10))).sample(2, seed)]
    assert all(50 < drawn.count(row) < 110 for row in range(10))


@pytest.mark.parametrize(
    ("axis", "sentence"),
    [
        ([], "axis 'a' of the grid is empty"),
        ([1, 2, 1], "axis 'a' of the grid repeats a value: 1, 2, 1"),
        ([math.nan], "axis 'a' of the grid has nan"),
        ([[1]], "axis 'a' of the grid has"),
    ],
)
def test_an_axis_that_is_none_is_refused(axis: list[Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        Grid(a=axis)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("axis", [[1, 1.0], [0.0, -0.0], [0, -0.0], ["x", "x"], [None, None], [True, 1, True]])
def test_values_that_are_one_number_repeat(axis: list[Any]) -> None:
    with pytest.raises(UsageError, match="repeats a value"):
        Grid(a=axis)


def test_one_and_true_and_the_word_are_three_values() -> None:
    assert len(Grid(a=[1, True, "1"])) == 3


def test_an_axis_may_have_any_name_that_a_parameter_has() -> None:
    assert Grid(self=[1, 2]).row(1) == {"self": 2}


def test_a_whole_number_beyond_64_bits_is_no_value() -> None:
    with pytest.raises(UsageError, match="whole numbers lie within 64 bits"):
        Grid(a=[2**63])


def test_the_size_of_a_grid_is_told_however_large_it_is() -> None:
    axis = list(range(1_000))
    grid = Grid(**{f"a{n}": axis for n in range(10)})
    assert grid.size == 10**30
    with pytest.raises(UsageError, match=r"has 1(,000){10} combinations; a grid has at most"):
        grid.sample(3, 1)


def test_axes_are_replaced_in_place_or_added_at_the_end() -> None:
    grid = Grid(a=[1], b=[2]).with_axes({"a": [3, 4], "c": [5]})
    assert dict(grid.axes) == {"a": (3, 4), "b": (2,), "c": (5,)}


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("top_n=1,3,5", ("top_n", (1, 3, 5))),
        (" every = 1..3 ", ("every", (1, 2, 3))),
        ("lookback=10..30..10,60", ("lookback", (10, 20, 30, 60))),
        ("x=none,0.5,true,word", ("x", (None, 0.5, True, "word"))),
        ("x=-3..-1", ("x", (-3, -2, -1))),
        ("x=1e-3", ("x", (0.001,))),
    ],
)
def test_an_axis_as_typed(text: str, axis: tuple[str, tuple[Any, ...]]) -> None:
    assert parse_axis(text) == axis


@pytest.mark.parametrize("text", ["", "x", "x=", "=1", "x=1,,2", "x=3..1", "x=1..9..0", "x=nan", "x=inf"])
def test_what_is_no_axis_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(UsageError):
        parse_axis(text)


@pytest.mark.parametrize("text", ["x=1..30000000", "x=1..2000000000", f"x=0..{10**40}", "x=1..600000,700000..1300000"])
def test_a_range_without_end_is_refused_before_it_is_made(text: str) -> None:
    with pytest.raises(UsageError, match=f"a parameter takes at most {LONGEST_RANGE:,}"):
        parse_axis(text)


def test_a_long_range_with_a_long_step_is_short() -> None:
    assert parse_axis("x=0..2000000000..1000000000") == ("x", (0, 1_000_000_000, 2_000_000_000))


def test_a_value_as_typed() -> None:
    typed = [parse_value(word) for word in ("1", "1.0", "TRUE", "None", "usd", " 7 ")]
    assert typed == [1, 1.0, True, None, "usd", 7]
    assert [type(value) for value in typed] == [int, float, bool, type(None), str, int]


def test_a_value_takes_the_type_of_its_axis_or_is_refused() -> None:
    assert type(alike("a", 1, 0.5)) is float
    assert alike("a", 2.0, 1) == 2
    assert type(alike("a", 2.0, 1)) is int
    assert alike("a", 7, "word") == "7"
    assert alike("a", None, 1) is None
    with pytest.raises(UsageError, match="parameter 'a' takes a number, not 'x'"):
        alike("a", "x", 0.5)
    with pytest.raises(UsageError, match="parameter 'a' takes a true or false, not 1"):
        alike("a", 1, True)


def test_an_unknown_name_suggests_the_nearest() -> None:
    check_known("policy parameter", ["top_n"], ["top_n"])
    with pytest.raises(UsageError, match="unknown policy parameter 'topn'; did you mean 'top_n'"):
        check_known("policy parameter", ["topn"], ["top_n"])


def ids(strategy: str, **columns: list[Value]) -> list[str]:
    texts = {name: [canonical(value) for value in column] for name, column in columns.items()}
    return trial_ids(strategy, texts).to_list()


def test_an_id_is_made_from_the_strategy_and_the_parameters_whatever_their_order() -> None:
    one = ids("s", a=[1, 2], b=[0.5, None])
    assert one == ids("s", b=[0.5, None], a=[1, 2])
    assert one[1] == ids("s", a=[2], b=[None])[0]
    others = [ids("t", a=[1, 2], b=[0.5, None]), ids("s", c=[1, 2], b=[0.5, None]), ids("s", a=[3, 3], b=[0.5, None])]
    assert len({*one, *(each for other in others for each in other)}) == 8
    assert all(len(each) == 16 for each in one)


def test_an_id_takes_a_number_as_a_number_and_a_word_as_a_word() -> None:
    assert len(set(ids("s", a=[1, 1.0, np.float64(1.0).item()]))) == 1
    assert len(set(ids("s", a=[0, 0.0, -0.0]))) == 1
    assert len(set(ids("s", a=[1, "1", True, "true", None, "null", 1.5, "1.5"]))) == 8
