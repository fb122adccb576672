"""`runs list|show|rm`: what was run, what it left behind, and its removal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yieldlab.cli import groups
from yieldlab.cli.session import Outcome, Session, command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from yieldlab.config import Settings

Run = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, the beginning of one, or its folder.")]


def runs_folder(settings: Settings) -> Path:
    """Where runs are kept unless `--out` says otherwise."""
    return settings.data / "runs"


@command(groups.runs, "runs list", settings=("data",))
def list_runs(session: Session) -> Outcome:
    """Show every run, the latest first."""
    from yieldlab.runs import listed

    summaries = listed(runs_folder(session.settings))

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.runs import summaries_table

        if summaries:
            yield summaries_table(summaries)
        else:
            yield f"no run in {runs_folder(session.settings)} yet; begin one with `yieldlab backtest` or `sweep run`"

    return Outcome({"runs": [asdict(summary) for summary in summaries]}, view)


@command(groups.runs, "runs show", settings=("data",))
def show(session: Session, run: Run) -> Outcome:
    """Show what one run was made from and its files."""
    from yieldlab.runs import find

    folder = find(run, runs_folder(session.settings))
    manifest = folder.manifest
    files = {
        path.relative_to(folder.path).as_posix(): path.stat().st_size
        for path in sorted(folder.path.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
    data = asdict(manifest) | {"status": folder.status, "path": folder.path, "files": files}

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.runs import run_page

        yield from run_page(folder.id, folder.path, folder.status, manifest, files)

    return Outcome(data, view, run_id=folder.id)


@command(groups.runs, "runs rm", settings=("data",))
def remove(
    session: Session,
    run: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids or folders of runs.")],
) -> Outcome:
    """Delete runs and all their files."""
    from yieldlab import runs

    root = runs_folder(session.settings)
    folders = [runs.find(name, root) for name in run]  # an unknown one stops all
    for folder in folders:
        runs.remove(folder.path, root)
    ids = [folder.id for folder in folders]

    def view() -> Iterator[RenderableType]:
        yield f"removed {', '.join(ids)}"

    return Outcome({"removed": ids}, view)
