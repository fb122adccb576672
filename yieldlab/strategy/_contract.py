"""What a strategy file must declare, and how it is told when it does not: one sentence, raised as UsageError."""

from __future__ import annotations

import inspect
import string
import types
from collections.abc import Callable, Iterable
from typing import TypeGuard

from yieldlab import market, schema
from yieldlab.errors import UsageError, did_you_mean
from yieldlab.metrics import MEASURES
from yieldlab.simulate import policy
from yieldlab.space import Grid

#: Columns of a table of results that are no parameter.
_RESULTS = frozenset({"trial_id", "strategy", "reason", "status", *MEASURES})

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def grid(module: types.ModuleType, name: str) -> Grid:
    grid = getattr(module, name, Grid())
    if not isinstance(grid, Grid):
        raise UsageError(f"{name} must be a Grid, as {name} = Grid(axis=[...]), not {type(grid).__name__}")
    return grid


def check_parameters(function: Callable[..., object], grid: Grid) -> None:
    """The signature names `panel`, then exactly the axes of SIGNAL."""
    listed = list(inspect.signature(function).parameters.values())
    if not listed or listed[0].name != "panel" or listed[0].kind not in _POSITIONAL:
        first = str(listed[0]) if listed else "nothing"
        raise UsageError(f"the first parameter of signal() must be 'panel', not {first!r}")
    for parameter in listed[1:]:
        if parameter.kind not in _NAMED:
            raise UsageError(
                f"signal() takes {str(parameter)!r}; every parameter must be one that a name can be given to"
            )
    names = [parameter.name for parameter in listed[1:]]
    for name in names:
        if name not in grid.axes:
            hint = near(name, grid.axes) or f"; add SIGNAL = Grid({name}=[...])"
            raise UsageError(f"parameter {name!r} of signal() has no axis in SIGNAL{hint}")
    for name in grid.axes:
        if name not in names:
            written = ", ".join(["panel", *names])
            raise UsageError(f"axis {name!r} of SIGNAL is no parameter of signal({written}){near(name, names)}")
        taken = {"policy parameter": policy.PARAMETERS, "market parameter": market.DEFAULTS, "result column": _RESULTS}
        for kind, others in taken.items():
            if name in others:
                raise UsageError(f"signal parameter {name!r} has the name of a {kind}; give it another")


def check_policy(grid: Grid) -> None:
    for name, values in grid.axes.items():
        if name in market.DEFAULTS:
            raise UsageError(f"{name!r} is a market parameter and no axis of POLICY; set it when you run the strategy")
        for value in values:
            policy.check_value(name, value)


def needs(module: types.ModuleType, grid: Grid) -> tuple[str, ...]:
    needs = getattr(module, "NEEDS", None)
    if not isinstance(needs, tuple) or not all(isinstance(name, str) for name in needs):
        given = "nothing" if needs is None else repr(needs)
        raise UsageError(f'NEEDS must be a tuple of panel fields, as NEEDS = ("apy",), not {given}')
    for name in needs:
        if name.startswith(schema.MODEL_FIELDS):  # the rest of the name may hold {parameters}
            _check_placeholders(name, grid)
        elif name not in schema.FIELDS:
            raise UsageError(
                f"unknown field {name!r} in NEEDS{did_you_mean(name, schema.FIELDS)} (or forecast_... and risk_...)"
            )
    if len(set(needs)) < len(needs):
        raise UsageError(f"NEEDS repeats a field: {', '.join(needs)}")
    return needs


def _check_placeholders(name: str, grid: Grid) -> None:
    if name in schema.MODEL_FIELDS:
        raise UsageError(f"{name!r} in NEEDS names no model, as forecast_lstm or risk_{{model}} would")
    try:
        parts = list(string.Formatter().parse(name))
    except ValueError as error:
        raise UsageError(f"cannot read {name!r} in NEEDS: {error}") from error
    for _, placeholder, spec, conversion in parts:
        if placeholder is None:
            continue
        if placeholder not in grid.axes or spec or conversion:
            raise UsageError(f"{name!r} in NEEDS is to be filled from {placeholder!r}, which is no axis of SIGNAL")
        for value in grid.axes[placeholder]:
            if not isinstance(value, str) or not value:
                raise UsageError(
                    f"{name!r} in NEEDS is filled from {placeholder!r}, whose values must be words, not {value!r}"
                )


def warmup(module: types.ModuleType, grid: Grid) -> int | str:
    warmup = getattr(module, "WARMUP", 0)
    if isinstance(warmup, str):
        if warmup not in grid.axes:
            raise UsageError(f"WARMUP names {warmup!r}, which is no signal parameter{did_you_mean(warmup, grid.axes)}")
        for value in grid.axes[warmup]:
            if not is_rows(value):
                raise UsageError(f"WARMUP names {warmup!r}, whose values must be whole numbers >= 0, not {value!r}")
        return warmup
    if not is_rows(warmup):
        raise UsageError(f"WARMUP must be a number of rows >= 0 or the name of a signal parameter, not {warmup!r}")
    return int(warmup)


def is_rows(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def near(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names, or nothing when none is near."""
    hint = did_you_mean(name, known)
    return hint if "did you mean" in hint else ""
