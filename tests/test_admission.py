"""Which rows may enter: what files, databases and the feed have in common. Files have tests of their own besides."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

from yieldlab import admission
from yieldlab.admission import REASON, ROW, typed, without_repetitions

NOW = datetime(2026, 3, 1, tzinfo=UTC)
COLUMNS = {"pool_id": "pool", "apy_percent": "apy"}


def test_rows_that_come_without_a_time_are_judged_by_the_rest() -> None:
    rows = typed(pl.DataFrame({"pool": [" a ", None, "b"], "apy": [1.0, 2.0, float("nan")]}), COLUMNS, NOW)
    assert rows.columns == [ROW, "pool_id", "apy_percent", REASON]
    assert rows.rows() == [
        (1, "a", 1.0, None),
        (2, None, 2.0, "missing pool_id"),
        (3, "b", None, "apy is not finite"),
    ]


def test_a_row_has_the_first_reason_that_applies() -> None:
    columns = COLUMNS | {"time": "time", "tvl_usd": "tvl"}
    raw = pl.DataFrame({"pool": [None], "apy": ["x"], "time": ["2030-01-01"], "tvl": [-1.0]})
    assert typed(raw, columns, NOW)[REASON].to_list() == ["missing pool_id"]
    assert typed(raw.with_columns(pool=pl.lit("a")), columns, NOW)[REASON].to_list() == ["apy is not a number"]
    late = raw.with_columns(pool=pl.lit("a"), apy=pl.lit("1"))
    assert typed(late, columns, NOW)[REASON].to_list() == ["time in the future"]
    assert typed(late, columns, datetime(2031, 1, 1, tzinfo=UTC))[REASON].to_list() == ["negative tvl"]


def test_without_a_time_a_pool_is_there_once() -> None:
    raw = pl.DataFrame({"pool": ["a", "b", "a", "b", "c"], "apy": [1.0, 2.0, 1.0, 3.0, None]})
    rows, duplicates = without_repetitions(typed(raw, COLUMNS, NOW))
    assert duplicates == 1
    good = rows.filter(pl.col(REASON).is_null())
    assert good.select("pool_id", "apy_percent").rows() == [("a", 1.0), ("b", 3.0)]
    assert rows.filter(pl.col(REASON).is_not_null())[ROW].to_list() == [2, 5]


@pytest.mark.parametrize(("text", "number"), [("5.1", 5.1), (" 5.1 ", 5.1), ("1e3", 1000.0), ("5,1", None), ("", None)])
def test_a_text_is_a_number_or_none(text: str, number: float | None) -> None:
    assert admission.numbers(pl.Series([text])).to_list() == [number]


def test_a_word_for_nothing_is_not_told() -> None:
    words = [*admission.NULL_WORDS, " N/A ", None, "0", "x"]
    assert admission.is_told(pl.Series(words)).to_list() == [False] * (len(words) - 2) + [True, True]
