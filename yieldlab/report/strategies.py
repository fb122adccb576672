"""How strategies look: the list with states, and the page of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType

from yieldlab.report.terminal import words

if TYPE_CHECKING:
    from yieldlab.space import Value
    from yieldlab.strategy import Found, Strategy


def found_table(found: Sequence[Found]) -> RenderableType:
    """One line per file; what failed says why instead of its parameters."""
    rows = []
    for one in found:
        if one.strategy is None:
            rows.append([one.name, one.state, "-", one.detail])
        else:
            grids = {**one.strategy.signal_grid.axes, **one.strategy.policy_grid.axes}
            rows.append([one.name, one.state, str(one.strategy.warmup), axes(grids)])
    return words(["strategy", "state", "warm-up", "parameters"], rows)


def strategy_page(strategy: Strategy) -> Iterator[RenderableType]:
    """What it does, what it needs, its grids and its source."""
    yield f"{strategy.name} ({strategy.path})"
    yield strategy.doc
    needs = ", ".join(strategy.needs) or "no field of the panel"
    yield f"Needs {needs}; warm-up {strategy.warmup}."
    yield words(
        ["parameter", "kind", "values (the first is the default)"],
        [
            [name, kind, ", ".join(value_text(value) for value in values)]
            for kind, grid in (("signal", strategy.signal_grid), ("policy", strategy.policy_grid))
            for name, values in grid.axes.items()
        ],
    )
    yield strategy.source.rstrip()


def axes(grid: Mapping[str, Sequence[Value]]) -> str:
    """`lookback=7,30 top_n=3,5`."""
    return " ".join(f"{name}={','.join(value_text(value) for value in values)}" for name, values in grid.items())


def value_text(value: Value) -> str:
    """A value as it is typed in `--set`."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:.15g}" if isinstance(value, float) else str(value)
