"""How the evaluation of models looks: errors in percentage points of APY, skill in percent, and who beats nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from yieldlab.report.terminal import count, note, number, percent, table
from yieldlab.units import to_percent

if TYPE_CHECKING:
    import polars as pl

    from yieldlab.forecast.evaluate import Evaluation

#: Heading -> how a row of measures is written under it.
_COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], str]] = MappingProxyType(
    {
        "RMSE pp": lambda row: _points(row["rmse"]),
        "MAE pp": lambda row: _points(row["mae"]),
        "median pp": lambda row: _points(row["median_ae"]),
        "MASE": lambda row: number(row["mase"]),
        "sMAPE": lambda row: percent(row["smape"], 1),
        "skill": lambda row: percent(row["skill"], 1),
        "95 % interval": lambda row: _interval(row),
        "rank corr.": lambda row: number(row["rank_correlation"], 3),
    }
)

#: Those of a table that also says what its rows are grouped by, so that it is not wider than a page.
_GROUPED = ("RMSE pp", "MAE pp", "MASE", "skill", "95 % interval", "rank corr.")


def evaluation_lines(evaluation: Evaluation) -> Iterator[RenderableType]:
    """What was compared, the tables over all, by protocol and by lead, the verdicts, and how to read them."""
    yield note(_compared(evaluation))
    yield _table(evaluation.overall, f"{count(evaluation.horizon, 'day')} ahead")
    if evaluation.by_protocol["protocol"].n_unique() > 1:
        yield _grouped_table(evaluation.by_protocol, "protocol", "By protocol")
    yield _grouped_table(evaluation.by_lead, "lead", "The same forecasts against the APY of other days")
    yield "\n".join(verdict_lines(evaluation))
    yield note(_explained(evaluation))


def verdict_lines(evaluation: Evaluation) -> Iterator[str]:
    """Of each model, whether it beats persistence, and by how much."""
    for row in evaluation.overall.iter_rows(named=True):
        if row["verdict"] is not None:
            yield f"{row['model']} {row['verdict']}: {_skill_words(row)}"


def _skill_words(row: Mapping[str, Any]) -> str:
    if row["skill"] is None:
        return "persistence made no error"
    if row["skill_low"] is None:
        return f"skill {percent(row['skill'], 1)}, on too few days for an interval"
    return f"skill {percent(row['skill'], 1)}, 95 % interval {_interval(row)}"


def _compared(evaluation: Evaluation) -> str:
    told = [
        f"{count(evaluation.cells, 'cell')} ({count(evaluation.pools, 'pool')}, {count(evaluation.days, 'day')} from "
        f"{evaluation.first} to {evaluation.last}) of {evaluation.candidates:,} that have today's APY and the later "
        "one; every model is measured on the same cells"
    ]
    told += [f"{name} lacked {lacked:,}" for name, lacked in evaluation.lacked.items() if lacked]
    return "; ".join(told)


def _explained(evaluation: Evaluation) -> str:
    row = evaluation.overall.row(0, named=True)
    return (
        "Persistence says that today's APY stays. Errors in percentage points of APY (pp); skill is the MAE saved on "
        f"persistence, its interval from {count(evaluation.draws, 'draw')} of blocks of "
        f"{count(evaluation.block_days, 'day')} (seed {evaluation.seed}), none where fewer than three fit; MASE over "
        f"{row['mase_pools']:,} of {count(row['pools'], 'pool')} with enough history before; rank correlation of a "
        f"day's pools, the mean of {_rank_days(evaluation.overall)} of {count(row['days'], 'day')}."
    )


def _rank_days(overall: pl.DataFrame) -> str:
    """The days with an order: of every model the same, or from the fewest to the most."""
    fewest, most = min(overall["rank_days"]), max(overall["rank_days"])
    return f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"


def _table(frame: pl.DataFrame, title: str) -> RenderableType:
    rows = [_line(row, _COLUMNS) for row in frame.iter_rows(named=True)]
    return table(["model", "cells", *_COLUMNS], rows, title=title)


def _grouped_table(frame: pl.DataFrame, by: str, title: str) -> RenderableType:
    """A line for each row of measures; the group is told on its first line."""
    rows: list[list[str]] = []
    told: object = None
    for row in frame.iter_rows(named=True):
        group = count(row[by], "day") if by == "lead" else str(row[by])
        rows.append(["" if row[by] == told else group, *_line(row, _GROUPED)])
        told = row[by]
    return table([by, "model", "cells", *_GROUPED], rows, title=title, left=2)


def _line(row: Mapping[str, Any], headings: Iterable[str]) -> list[str]:
    return [row["model"], f"{row['cells']:,}", *(_COLUMNS[heading](row) for heading in headings)]


def _points(fraction: float | None) -> str:
    """Percentage points of APY."""
    return "-" if fraction is None else number(to_percent(fraction), 3)


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row["skill_low"], row["skill_high"]
    return "-" if low is None or high is None else f"{percent(low, 1)} to {percent(high, 1)}"
