"""How an exchange with another system looks: what an export did."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType

from yieldlab.report.data import synthetic_note
from yieldlab.report.terminal import count

if TYPE_CHECKING:
    from yieldlab.store.postgres import Exported


def exported_lines(exported: Exported, synthetic: int) -> Iterator[RenderableType]:
    """What was made, and what became of the rows and pools."""
    if exported.created:
        yield f"Made the tables {' and '.join(exported.created)}"
    if exported.added:
        yield f"Added the columns {', '.join(exported.added)}"
    label = f"; {synthetic_note(synthetic, exported.pools)}" if synthetic else ""
    yield (
        f"{exported.database}: {count(exported.rows, 'row')}, {exported.new:,} new, {exported.updated:,} updated, "
        f"{exported.unchanged:,} already there; {count(exported.pools, 'pool')}, {exported.pools_new:,} new, "
        f"{exported.pools_updated:,} described anew{label}"
    )
