"""The groups of commands; each module of commands hangs its own on them."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    name="yieldlab",
    help="Backtests and parameter sweeps for on-chain yield.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _group(name: str, help: str) -> typer.Typer:
    group = typer.Typer(help=help, no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(group, name=name)
    return group


data = _group("data", "Bring data in, look at it, keep it in order.")
strategies = _group("strategies", "See, check and begin strategy files.")
sweep = _group("sweep", "Thousands of parameter combinations of one strategy.")
models = _group("models", "Forecasts of yields and classes of risk that never saw the future.")
runs = _group("runs", "What was run, and what it left behind.")


def _print_version(wanted: bool) -> None:
    if wanted:
        from yieldlab import __version__

        print(f"yieldlab {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Backtests and parameter sweeps for on-chain yield."""
