"""Grids: rows in order, samples without repetition, values as typed, ids made from content."""

from __future__ import annotations

import itertools
import math
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yieldlab.errors import UsageError
from yieldlab.space import Grid, alike, check_known, parse_axis, parse_value, trial_ids

values = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(-2, 2), st.sampled_from(["x", "y", "1"]))
axes = st.dictionaries(
    st.sampled_from("abcd"),
    st.lists(values, min_size=1, max_size=4, unique_by=lambda value: (type(value), value)),
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


def test_one_and_true_and_one_point_nought_are_three_values() -> None:
    assert len(Grid(a=[1, True, 1.0])) == 3


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


def test_an_id_is_made_from_the_strategy_and_the_parameters_whatever_their_order() -> None:
    trials = pl.DataFrame({"a": [1, 2], "b": [0.5, None]})
    ids = trial_ids("s", trials)
    assert ids.to_list() == trial_ids("s", trials.select("b", "a")).to_list()
    assert ids[1] == trial_ids("s", trials[1:])[0]
    others = [
        trial_ids("t", trials),
        trial_ids("s", trials.rename({"a": "c"})),
        trial_ids("s", trials.with_columns(a=3)),
    ]
    assert len({*ids, *(one for other in others for one in other)}) == 8
    assert all(len(one) == 16 for one in ids)
