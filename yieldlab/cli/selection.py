"""Which pools of the feed a command is about: the flags that `data backfill` and `data collect` share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from yieldlab.collect.selection import Selection


def _words(flag: str, help: str) -> object:
    return Annotated[list[str] | None, typer.Option(flag, metavar="NAME", help=f"{help}; may be repeated.")]


#: Name -> annotation, for `command(more=SELECTION)`.
SELECTION: Mapping[str, object] = {
    "pool": Annotated[
        list[str] | None, typer.Option("--pool", metavar="ID", help="A pool by its id; may be repeated.")
    ],
    "watchlist": Annotated[
        str | None,
        typer.Option(
            "--watchlist",
            metavar="NAME|FILE",
            help="`reference`, or a file of ids or project/chain/symbol, one a line.",
        ),
    ],
    "project": _words("--project", "Only pools of this project"),
    "chain": _words("--chain", "Only pools on this chain"),
    "symbol": _words("--symbol", "Only pools of these tokens, as USDC-WETH"),
    "stablecoin": Annotated[
        bool | None, typer.Option("--stablecoin", help="Only pools that the feed calls stable.", show_default=False)
    ],
    "min_tvl": Annotated[
        float | None, typer.Option("--min-tvl", metavar="USD", help="Only pools of at least this size.")
    ],
    "top": Annotated[int | None, typer.Option("--top", metavar="N", help="Of these the N largest.")],
}


def selected(criteria: Mapping[str, object]) -> Selection:
    """The selection that the flags of `SELECTION` tell; raises UsageError or DataError for one that cannot be."""
    from yieldlab.collect.selection import Selection

    given = {name: value for name, value in criteria.items() if value is not None and value != []}
    if "pool" in given:
        given["pools"] = given.pop("pool")
    watchlist = given.pop("watchlist", None)
    return Selection.of(watchlist=None if watchlist is None else str(watchlist), **given)
