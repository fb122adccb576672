"""The list of planted faults fits the kernels as they are; `make mutants` shows that the suite notices each."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fault)
def test_a_planted_fault_changes_one_place(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.before) == 1
    assert mutant.before != mutant.after


def test_no_fault_is_planted_twice() -> None:
    assert len({mutant.fault for mutant in MUTANTS}) == len({mutant[1:] for mutant in MUTANTS}) == len(MUTANTS)
