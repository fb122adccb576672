"""The one JSON document: undefined numbers are null, everything else is in JSON's own kinds."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest

from yieldlab.cli.session import Outcome, document, plain


def test_a_document_holds_no_number_that_json_does_not_have() -> None:
    values = {"a": math.nan, "b": [math.inf, -math.inf, 1.5], "c": np.float64("nan"), "d": np.int64(3)}
    assert plain(values) == {"a": None, "b": [None, None, 1.5], "c": None, "d": 3}


def test_times_paths_and_tuples_become_text_and_lists() -> None:
    moment = datetime(2025, 1, 2, 3, tzinfo=UTC)
    assert plain({"t": moment, "d": date(2025, 1, 2), "p": Path("a/b"), "n": (1, None, True)}) == {
        "t": "2025-01-02T03:00:00+00:00",
        "d": "2025-01-02",
        "p": "a/b",
        "n": [1, None, True],
    }
    with pytest.raises(TypeError, match="object has no place"):
        plain(object())


@pytest.mark.parametrize(
    ("code", "status"), [(0, "ok"), (3, "failed"), (4, "partial"), (5, "failed"), (130, "interrupted")]
)
def test_the_status_follows_the_exit_code(code: int, status: str) -> None:
    told = document("sql", Outcome({"rows": []}, list, run_id="r", warnings=["w"], exit_code=code))
    assert json.loads(json.dumps(told)) == {
        "schema_version": 1,
        "command": "sql",
        "run_id": "r",
        "status": status,
        "data": {"rows": []},
        "warnings": ["w"],
    }
