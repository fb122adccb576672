"""Flags that more than one command has, beside the settings: the same name and the same meaning everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Start = Annotated[str | None, typer.Option("--start", metavar="DATE", help="First day simulated or measured.")]
End = Annotated[str | None, typer.Option("--end", metavar="DATE", help="Last day simulated.")]
AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of",
        metavar="TIME",
        help="Use only what could be known at this UTC instant, or by the end of this UTC day.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="One signal, market or policy parameter; may be repeated."),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Run folder to make, instead of one under the data folder.")
]
CheckCausal = Annotated[
    bool, typer.Option("--check-causal", help="First prove on this data that no signal depends on the future.")
]
