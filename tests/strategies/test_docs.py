"""The strategies page shows what works, and leaves no feature or field out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from yieldlab import features, schema
from yieldlab.strategy import bundled_folder, discover
from yieldlab.testing import check_strategy

PAGE = Path(__file__).parents[2] / "docs" / "strategies.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_the_strategy_on_the_page_passes_every_check(tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(blocks()[0])
    assert check_strategy(tmp_path / "shown.py").warmup == "lookback"


def test_the_audit_on_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundled_folder().parent)
    exec(compile(blocks()[1], str(PAGE), "exec"), {})


def test_every_feature_field_and_bundled_strategy_stands_on_the_page() -> None:
    text = PAGE.read_text()
    names = [*features.__all__, *schema.FIELDS, *(found.name for found in discover([bundled_folder()]))]
    assert [name for name in names if not re.search(rf"`{name}\b", text)] == []
