"""What can go wrong, as classes: one tree, each with the exit code that the command line returns for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: The exit code of work that was interrupted.
INTERRUPTED = 130


class YieldlabError(Exception):
    """Something the user can mend. Its text is one sentence: what, which value, what would be right."""

    exit_code = 1


class UsageError(YieldlabError):
    """A name, value or combination that yieldlab does not accept."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file or environment variable that cannot be used."""


class MemoryLimitError(UsageError):
    """The work asked for does not fit the memory limit, whatever the chunk size."""


class MissingPackageError(UsageError):
    """What was asked for needs a package that is not installed."""


class DataError(YieldlabError):
    """Data that is missing, stale, unreadable or fails its check."""

    exit_code = 3


class StrategyError(YieldlabError):
    """A strategy that loads but gives no usable signal."""

    exit_code = 4


class AuditError(YieldlabError):
    """An audit found a disagreement: a future-dependent signal, or engines that differ."""

    exit_code = 5


class CausalityError(AuditError):
    """A value at some row depends on a later row."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'top_n'?"` when something near is known, else `"; known: ..."`.

    >>> did_you_mean("topn", ["top_n", "every"])
    "; did you mean 'top_n'?"
    >>> did_you_mean("zzz", ["top_n", "every"])
    '; known: every, top_n'
    """
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(options)}" if options else "; none is known"
