"""`strategies list|show|new`: which strategy files there are, and whether they can be used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yieldlab.cli import groups
from yieldlab.cli.session import Outcome, Session, command
from yieldlab.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from yieldlab.config import Settings
    from yieldlab.panel import Panel
    from yieldlab.space import Value
    from yieldlab.strategy import Found, Strategy

DEFAULT_FOLDER = Path("strategies")


def folders(settings: Settings) -> list[Path]:
    """Where strategies are looked for: the folders named, else `./strategies`, else those that come with yieldlab.

    Raises UsageError for a folder named that is not there.
    """
    for folder in settings.strategies:
        if not folder.is_dir():
            raise UsageError(f"there is no folder {folder} of strategies; name one that exists with --strategies")
    if settings.strategies:
        return list(settings.strategies)
    if DEFAULT_FOLDER.is_dir():
        return [DEFAULT_FOLDER]
    from yieldlab.strategy import bundled_folder

    return [bundled_folder()]


def audit(strategy: Strategy, panel: Panel, params: Mapping[str, Value], seed: int) -> bool:
    """Raise CausalityError when the signal depends on later rows; False when there is none to audit, since the strategy
    fails by itself with these parameters, which is for the trials to say."""
    from yieldlab.errors import DataError, StrategyError

    try:
        strategy.signal(panel, params)
    except (StrategyError, DataError):
        return False
    strategy.audit(panel, params, seed=seed)
    return True


@command(groups.strategies, "strategies list", settings=("strategies",))
def list_strategies(session: Session) -> Outcome:
    """Show every strategy file with its state, parameters and warm-up."""
    from yieldlab.strategy import discover

    found = discover(folders(session.settings))
    failed = [one for one in found if one.state == "LOAD FAILED"]

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.strategies import found_table

        yield found_table(found)

    return Outcome(
        {"strategies": [_described(one) for one in found]},
        view,
        exit_code=4 if failed else 0,
    )


@command(groups.strategies, "strategies show", settings=("strategies",))
def show(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="STRATEGY", help="Name, or path of a file.")],
) -> Outcome:
    """Show what one strategy needs, its two grids and its source."""
    from yieldlab.strategy import find

    strategy = find(name, folders(session.settings))

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.strategies import strategy_page

        yield from strategy_page(strategy)

    return Outcome(_facts(strategy) | {"source": strategy.source}, view)


@command(groups.strategies, "strategies new", settings=("strategies",))
def new(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A new name, such as my_idea.")],
) -> Outcome:
    """Begin a strategy file from a template that runs as it is."""
    from yieldlab.strategy import template

    text = template(name)
    folder = session.settings.strategies[0] if session.settings.strategies else DEFAULT_FOLDER
    path = folder / f"{name}.py"
    if path.exists():
        raise UsageError(f"{path} is there already; nothing is overwritten, choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

    def view() -> Iterator[RenderableType]:
        yield f"{path} is there; edit it, then: yieldlab backtest {name}"

    return Outcome({"path": path}, view)


def _described(found: Found) -> dict[str, object]:
    facts: dict[str, object] = {"name": found.name, "path": found.path, "state": found.state, "detail": found.detail}
    return facts | (_facts(found.strategy) if found.strategy is not None else {})


def _facts(strategy: Strategy) -> dict[str, object]:
    return {
        "name": strategy.name,
        "path": strategy.path,
        "doc": strategy.doc,
        "needs": strategy.needs,
        "warmup": strategy.warmup,
        "signal": strategy.signal_grid.axes,
        "policy": strategy.policy_grid.axes,
        "trials": strategy.signal_grid.size * strategy.policy_grid.size,
        "source_hash": strategy.source_hash,
    }
