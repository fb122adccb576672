"""The command line: parse, call one function, print. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code and never raises for what a user can cause."""
    from yieldlab.cli.failures import guarded

    return guarded(list(arguments))
