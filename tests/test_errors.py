"""Errors carry their exit code and a near name."""

from __future__ import annotations

import pytest

from yieldlab import errors


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("YieldlabError", 1),
        ("UsageError", 2),
        ("ConfigError", 2),
        ("MemoryLimitError", 2),
        ("DataError", 3),
        ("StrategyError", 4),
        ("AuditError", 5),
        ("CausalityError", 5),
    ],
)
def test_every_class_has_its_exit_code(name: str, code: int) -> None:
    raised = getattr(errors, name)("a sentence")
    assert isinstance(raised, errors.YieldlabError)
    assert (raised.exit_code, str(raised)) == (code, "a sentence")


def test_a_near_name_is_suggested_and_far_ones_are_listed() -> None:
    assert errors.did_you_mean("lookbak", ["lookback", "every"]) == "; did you mean 'lookback'?"
    assert errors.did_you_mean("xyz", ["lookback", "every"]) == "; known: every, lookback"
    assert errors.did_you_mean("xyz", []) == "; none is known"
