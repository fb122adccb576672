"""Folds: the arithmetic of purge and embargo by a plain twin, and that no label reaches into what is predicted."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yieldlab.errors import DataError, UsageError
from yieldlab.folds import MODES, Fold, Split, check_purge, chronological, inner, walk_forward

SIZES = {
    "mode": st.sampled_from(MODES),
    "train": st.integers(1, 60),
    "step": st.integers(1, 25),
    "purge": st.integers(0, 9),
    "embargo": st.integers(0, 9),
}
CHOICES = st.fixed_dictionaries(SIZES, optional={"first": st.integers(19, 120)})


def twin(times: int, mode: str, train: int, step: int, purge: int, embargo: int, first: int | None) -> list[Fold]:
    """Day by day: which rows are predicted by which fold, and which may be learned from."""
    begin = first if first is not None else train + purge + embargo
    predicted: dict[int, list[int]] = {}
    for row in range(begin, times):
        predicted.setdefault((row - begin) // step, []).append(row)
    folds = []
    for number, rows in predicted.items():
        learned = [row for row in range(times) if rows[0] - row > purge + embargo]
        if mode == "rolling":
            learned = learned[-train:]
        folds.append(Fold(number, (learned[0], learned[-1] + 1), (rows[0], rows[-1] + 1)))
    return folds


def lowest(choice: dict) -> int:
    """The fewest rows that have a fold."""
    first = choice.get("first")
    return 1 + (choice["train"] + choice["purge"] + choice["embargo"] if first is None else first)


@given(CHOICES, st.integers(0, 150))
def test_folds_are_what_counting_rows_one_by_one_gives(choice: dict, more: int) -> None:
    times = lowest(choice) + more
    assert walk_forward(times, **choice) == twin(times, **{"first": None, **choice})


@given(CHOICES, st.integers(0, 150), st.integers(1, 9))
def test_no_label_reaches_into_the_embargo(choice: dict, more: int, horizon: int) -> None:
    choice["purge"] = max(choice["purge"], horizon)
    choice.pop("first", None)
    check_purge(choice["purge"], horizon)
    for fold in walk_forward(lowest(choice) + more, **choice):
        begin, end = fold.train
        labels = [row + horizon for row in range(begin, end)]
        assert max(labels) <= fold.predict[0] - choice["embargo"] - 1


@given(CHOICES, st.integers(0, 150))
def test_every_row_from_the_first_on_is_predicted_once(choice: dict, more: int) -> None:
    times = lowest(choice) + more
    folds = walk_forward(times, **choice)
    assert [fold.number for fold in folds] == list(range(len(folds)))
    rows = [row for fold in folds for row in range(*fold.predict)]
    assert rows == list(range(lowest(choice) - 1, times))


@given(CHOICES, st.integers(0, 150), st.integers(0, 60))
def test_folds_of_a_shorter_panel_are_the_same_but_for_where_the_last_is_cut(choice: dict, more: int, cut: int) -> None:
    times = lowest(choice) + more
    short, long = walk_forward(times, **choice), walk_forward(times + cut, **choice)
    assert short[:-1] == long[: len(short) - 1]
    last, whole = short[-1], long[len(short) - 1]
    assert (last.number, last.train, last.predict[0]) == (whole.number, whole.train, whole.predict[0])
    assert last.predict[1] == min(whole.predict[1], times)


@given(CHOICES, st.integers(0, 150))
def test_rolling_forgets_and_expanding_does_not(choice: dict, more: int) -> None:
    times = lowest(choice) + more
    rolling = walk_forward(times, **{**choice, "mode": "rolling"})
    expanding = walk_forward(times, **{**choice, "mode": "expanding"})
    for one, other in zip(rolling, expanding, strict=True):
        assert one.predict == other.predict
        assert one.train[1] == other.train[1]
        assert other.train[0] == 0
        assert one.train[1] - one.train[0] == min(choice["train"], one.train[1])


def test_the_defaults_by_hand() -> None:
    folds = walk_forward(440)
    assert folds == [Fold(0, (0, 365), (379, 409)), Fold(1, (30, 395), (409, 439)), Fold(2, (60, 425), (439, 440))]
    assert walk_forward(440, mode="expanding")[1] == Fold(1, (0, 395), (409, 439))


def test_an_early_first_row_learns_from_fewer_rows() -> None:
    assert walk_forward(40, train=20, step=10, purge=2, embargo=1, first=9)[:2] == [
        Fold(0, (0, 6), (9, 19)),
        Fold(1, (0, 16), (19, 29)),
    ]


@pytest.mark.parametrize("choice", [{}, {"first": 400}, {"mode": "expanding", "train": 10, "purge": 0, "embargo": 3}])
def test_a_panel_too_short_for_a_fold_is_told_how_many_rows_are_needed(choice: dict) -> None:
    needed = lowest({"train": 365, "purge": 7, "embargo": 7, **choice})
    assert len(walk_forward(needed, **choice)) == 1
    with pytest.raises(DataError, match=rf"at least {needed} days of history, and the panel has {needed - 1};"):
        walk_forward(needed - 1, **choice)
    with pytest.raises(DataError, match="the panel has 0;"):
        walk_forward(0, **choice)


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ({"mode": "rollin"}, r"unknown folds 'rollin'; did you mean 'rolling'\?"),
        ({"mode": "zzz"}, "unknown folds 'zzz'; known: expanding, rolling"),
        ({"train": 0}, "train must be a whole number of days, 1 or more, not 0"),
        ({"step": 0}, "step must be a whole number of days, 1 or more, not 0"),
        ({"step": 2.5}, r"step must be a whole number of days, 1 or more, not 2\.5"),
        ({"train": True}, "train must be a whole number of days, 1 or more, not True"),
        ({"purge": -1}, "purge must be a whole number of days, 0 or more, not -1"),
        ({"embargo": -1}, "embargo must be a whole number of days, 0 or more, not -1"),
        ({"first": -3}, "first must be a whole number of days, 0 or more, not -3"),
        ({"first": 14}, "it is 15 or later, not 14"),
    ],
)
def test_sizes_that_cannot_be_are_refused(choice: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        walk_forward(1000, **choice)


def test_the_earliest_first_row_learns_from_one_row() -> None:
    assert walk_forward(20, first=15)[0].train == (0, 1)


def test_a_purge_shorter_than_the_horizon_is_refused() -> None:
    check_purge(7, 7)
    check_purge(8, 7)
    with pytest.raises(UsageError, match=r"a purge of 6 days is shorter than the horizon of 7: .* give 7 or more"):
        check_purge(6, 7)
    with pytest.raises(UsageError, match="horizon must be a whole number of days, 1 or more, not 0"):
        check_purge(6, 0)


@given(st.integers(0, 400), st.integers(0, 12), st.integers(0, 40), st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.3, 0.2)]))
def test_a_split_by_date_keeps_every_label_in_its_part(
    times: int, purge: int, begin: int, shares: tuple[float, float, float]
) -> None:
    try:
        split = chronological(times, shares, purge=purge, begin=begin)
    except DataError:
        parts = [round((times - begin) * share) for share in shares]
        assert times <= begin or min(parts[0], parts[1]) <= purge + 1 or parts[2] <= 1
        return
    assert split.train[0] == begin
    assert split.test[1] == times
    for before, after in pairwise((split.train, split.valid, split.test)):
        assert before[0] < before[1]
        assert after[0] - before[1] == purge  # so that a label `purge` rows ahead of the last stays before `after`
    rows = times - begin
    sizes = (split.valid[0] - begin, split.test[0] - split.valid[0], times - split.test[0])
    for size, share in zip(sizes, shares, strict=True):
        assert abs(size - rows * share) <= 1.0


def test_the_split_of_a_thousand_days_by_hand() -> None:
    assert chronological(1000) == Split((0, 793), (800, 893), (900, 1000))
    assert chronological(1100, purge=0, begin=100) == Split((100, 900), (900, 1000), (1000, 1100))
    assert chronological(10, (0.7, 0.2, 0.1), purge=0) == Split((0, 7), (7, 9), (9, 10))  # 0.7 + 0.2 is below 0.9


@pytest.mark.parametrize(
    ("times", "keywords", "part"),
    [
        (0, {}, "train"),
        (8, {}, "train"),
        (70, {}, "validation"),
        (4, {"purge": 0, "shares": (0.5, 0.4, 0.1)}, "test"),
        (50, {"begin": 60}, "train"),
    ],
)
def test_a_split_with_an_empty_part_is_refused(times: int, keywords: dict, part: str) -> None:
    with pytest.raises(DataError, match=f"leave no row for {part}, with shares of"):
        chronological(times, **keywords)


@pytest.mark.parametrize(
    "shares", [(0.8, 0.2), (0.8, 0.1, 0.2), (1.0, 0.0, 0.0), (1.2, -0.1, -0.1), (0.8, 0.2, float("nan"))]
)
def test_shares_that_are_none_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="must be three above 0 that add up to 1"):
        chronological(1000, shares)


@given(st.integers(0, 300), st.integers(0, 300), st.floats(0.01, 0.99), st.integers(0, 20))
def test_inner_validation_is_the_last_rows_and_purged(begin: int, rows: int, share: float, purge: int) -> None:
    valid_rows = round(rows * share)
    fit_rows = rows - valid_rows - purge
    if valid_rows < 1 or fit_rows < 1:
        with pytest.raises(DataError, match=f"{rows} training rows cannot be cut"):
            inner((begin, begin + rows), share, purge=purge)
        return
    fit, valid = inner((begin, begin + rows), share, purge=purge)
    assert fit == (begin, begin + fit_rows)
    assert valid == (begin + rows - valid_rows, begin + rows)
    assert valid[0] - fit[1] == purge


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="the share of validation must lie between 0 and 1"):
        inner((0, 100), share)


def test_the_fewest_rows_that_can_be_cut_are_cut() -> None:
    assert inner((3, 13), 0.2, purge=7) == ((3, 4), (11, 13))
    with pytest.raises(DataError, match=r"10 training rows cannot be cut .* a share of 0\.2 for validation"):
        inner((3, 13), 0.2, purge=8)
    with pytest.raises(DataError, match="0 training rows cannot be cut"):
        inner((5, 5))
