"""What a strategy file may not change for everyone else while it runs, and what it may not remember outside itself."""

from __future__ import annotations

import builtins
import contextlib
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping

import numpy as np

#: What a strategy can hang an attribute on without holding it itself.
_OWNERS = (types.ModuleType, types.FunctionType, type)


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Run a strategy's code: what it prints goes to stderr, since stdout is for results; afterwards the working folder,
    NumPy's error state and the warning filters are what they were."""
    folder, filters = _folder(), list(warnings.filters)
    with contextlib.redirect_stdout(sys.stderr), np.errstate():
        try:
            yield
        finally:
            if list(warnings.filters) != filters:  # no catch_warnings: it would show each warning anew at every call
                warnings.resetwarnings()
                warnings.filters = filters
            if folder is not None and _folder() != folder:
                os.chdir(folder)


def forgetting(namespace: Mapping[str, object]) -> Callable[[], None]:
    """Something to call: it takes away the attributes that have been added since to the built-ins, to NumPy, and to the
    modules, classes and functions of a strategy's `namespace`. Modules, and names like `__this__`, stay."""
    owners = [builtins, np, *(value for value in namespace.values() if isinstance(value, _OWNERS))]
    before = [(owner, set(vars(owner))) for owner in owners]

    def forget() -> None:
        for owner, known in before:
            added = [name for name in vars(owner) if name not in known and not name.startswith("__")]
            for name in added:
                if not isinstance(vars(owner)[name], types.ModuleType):
                    delattr(owner, name)

    return forget


def _folder() -> str | None:
    """The working folder, or None when it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return None
