"""How runs look: the list, and the page of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType

from yieldlab.report.results import data_words
from yieldlab.report.terminal import count, number, size, table, words

if TYPE_CHECKING:
    from yieldlab.runs import Manifest, Summary

_DIGITS = 12


def summaries_table(summaries: Sequence[Summary]) -> RenderableType:
    """One line per run."""
    rows = [
        [
            run.id,
            run.status,
            ", ".join(run.strategies) or run.detail,
            f"{run.trials:,}",
            f"{run.failed:,}",
            number(run.seconds, 1),
            size(run.bytes),
        ]
        for run in summaries
    ]
    return table(["run", "status", "strategies", "trials", "failed", "seconds", "size"], rows, left=3)


def run_page(
    run_id: str, path: Path, status: str, manifest: Manifest, files: Mapping[str, int]
) -> Iterator[RenderableType]:
    """What a run was made from and what it left behind."""
    facts = {
        "run": run_id,
        "status": status if manifest.reason is None else f"{status}: {manifest.reason}",
        "kind": manifest.kind,
        "strategies": ", ".join(f"{name} ({digest[:_DIGITS]})" for name, digest in manifest.strategies.items()),
        "trials": f"{manifest.trials:,}, {manifest.failed:,} failed",
        "started": f"{manifest.started}, worked {number(manifest.seconds, 1)} s",
        "data": data_words(manifest.panel_health),
        "panel": manifest.panel_digest[:_DIGITS],
        "as of": f"{manifest.as_of or 'now'}, stored by {manifest.cutoff or 'now'}",
        "seed": "-" if manifest.seed is None else str(manifest.seed),
        "made with": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "command": " ".join(manifest.argv),
        "folder": str(path),
    }
    yield words(["", ""], [[name, value] for name, value in facts.items()])
    chunks = [bytes_ for name, bytes_ in files.items() if name.startswith("chunks/")]
    rows = [[name, size(bytes_)] for name, bytes_ in files.items() if not name.startswith("chunks/")]
    if chunks:
        rows.append([f"chunks/ ({count(len(chunks), 'file')})", size(sum(chunks))])
    yield table(["file", "size"], rows)
