"""A file of conventions is read row by row, and a bad row costs no other."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from yieldlab.collect import conventions
from yieldlab.errors import DataError
from yieldlab.ingest.conventions import Allowed, ReadConventions, read_conventions

ALLOWED = Allowed(conventions.KINDS, conventions.TVL_KINDS, conventions.BUNDLED)
NOW = datetime(2026, 8, 1, tzinfo=UTC)


def read(tmp_path: Path, text: str) -> ReadConventions:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    folder = tmp_path / "rejects"
    return read_conventions(path, ALLOWED, conventions.table(), rejects_folder=folder, now=NOW)


def test_a_file_of_the_needed_columns_is_enough(tmp_path: Path) -> None:
    told = read(tmp_path, "project,valid_from,base_kind\n spark ,2024-01-01,apr\nb,2024-01-02T03:00:00Z,apy\n")
    assert told.rows.rows() == [
        ("spark", datetime(2024, 1, 1, tzinfo=UTC), "apr", None, None, "mine.csv"),
        ("b", datetime(2024, 1, 2, 3, tzinfo=UTC), "apy", None, None, "mine.csv"),
    ]
    assert (told.rows_read, told.refused, told.rejects_path) == (2, {}, None)


REFUSED = [
    (",2024-01-01,apr,,,", "missing project"),
    ("a,,apr,,,", "missing valid_from"),
    ("a,someday,apr,,,", "unreadable valid_from"),
    ("a,2062-01-01,apr,,,", "valid_from in the future"),
    ("a,2024-01-01,,,,", "missing base_kind"),
    ("a,2024-01-01,APR,,,", "base_kind is none of apr, apy"),
    ("a,2024-01-01,apr,simple,,", "reward_kind is none of apr, apy"),
    ("a,2024-01-01,apr,apr,tvl,", "tvl_kind is none of cash, deposits, pool"),
    (
        "aave-v3,1970-01-01,apy,apr,cash,yieldlab: liquidityRate / 1e27",
        "changed, but with the source of a bundled row; say where the correction is from",
    ),
]


@pytest.mark.parametrize(("line", "reason"), REFUSED)
def test_a_bad_row_is_refused_with_its_reason_and_costs_no_other(tmp_path: Path, line: str, reason: str) -> None:
    header = "project,valid_from,base_kind,reward_kind,tvl_kind,source"
    told = read(tmp_path, f"{header}\ngood,2024-01-01,apr,apr,pool,me\n{line}\n")
    assert told.refused == {reason: 1}
    assert told.rows["project"].to_list() == ["good"]
    assert told.rejects_path is not None
    rejects = pl.read_parquet(told.rejects_path)
    assert rejects.select("reject_row", "reject_reason").rows() == [(2, reason)]


def test_the_last_row_of_a_project_and_day_counts(tmp_path: Path) -> None:
    told = read(tmp_path, "project,valid_from,base_kind\na,2024-01-01,apr\na,2024-01-01,apy\n")
    assert told.rows["base_kind"].to_list() == ["apy"]
    assert told.refused == {"replaced by a later row of the same project and valid_from": 1}


def test_the_bundled_table_can_be_given_back(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    conventions.table().with_columns(pl.lit(True).alias("recorded")).write_csv(path)
    told = read_conventions(path, ALLOWED, conventions.table(), rejects_folder=tmp_path, now=NOW)
    assert told.refused == {}
    assert told.rows.sort(conventions.KEY).equals(conventions.table())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("project,base_kind\na,apr\n", "needs a column 'valid_from'; it has: project, base_kind"),
        ("project,valid_from,base_kind,rewardkind\na,2024-01-01,apr,apr\n", "did you mean 'reward_kind'"),
        ("project,valid_from,base_kind\n", "has a header and no rows"),
        (
            "project,valid_from,base_kind\na,2024-01-01,x\n",
            "no row of .* can be used .base_kind is none of apr, apy: 1",
        ),
    ],
)
def test_a_file_that_cannot_be_used_gives_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read(tmp_path, text)
