"""How backtests and sweeps look: measures with units, the data under them, and what they must not be read as."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from yieldlab.report.strategies import value_text
from yieldlab.report.terminal import count, number, percent, table, usd
from yieldlab.schema import is_feed

if TYPE_CHECKING:
    from yieldlab.space import Value

#: The source of rows that the sample made up.
SYNTHETIC = "synthetic"

#: Measure -> (heading, how it is written). Sharpe never stands without autocorrelation beside it.
_COLUMNS = {
    "total_return": ("return", percent),
    "annualized_return": ("a year", percent),
    "volatility": ("volatility", percent),
    "sharpe": ("Sharpe", number),
    "autocorrelation": ("autocorr.", number),
    "max_drawdown": ("drawdown", percent),
    "turnover": ("turnover", number),
    "cost_paid": ("cost USD", usd),
    "final_value": ("final USD", usd),
}
_COMPARED = tuple(_COLUMNS)
_RANKED = ("annualized_return", "sharpe", "autocorrelation", "max_drawdown", "turnover", "final_value")
_MORE = {
    "sortino": ("Sortino", number),
    "calmar": ("Calmar", number),
    "skewness": ("skewness", number),
    "kurtosis": ("kurtosis", number),
    "rebalances": ("rebalances", lambda value: number(value, 0)),
    "trades": ("trades", lambda value: number(value, 0)),
    "skipped": ("skipped", lambda value: number(value, 0)),
    "unaffordable": ("unafford.", lambda value: number(value, 0)),
    "delistings": ("delisted", lambda value: number(value, 0)),
    "written_off": ("written off", usd),
    "stale_share": ("stale", percent),
}


def comparison_table(labels: Sequence[str], measures: Sequence[Mapping[str, float | None]]) -> RenderableType:
    """Trials side by side, one line each."""
    shown = (*_COMPARED, *_losses(measures))
    rows = [[label, *_cells(row, shown)] for label, row in zip(labels, measures, strict=True)]
    return table(["strategy", *_headings(shown)], rows)


def leaderboard(
    names: Sequence[str],
    params: Sequence[Mapping[str, Value]],
    measures: Sequence[Mapping[str, float | None]],
    equal: Sequence[int],
    by: str,
) -> RenderableType:
    """Ranked trials: those of the parameters `names` in which they differ, and the measure they are ranked by. `equal`
    says how many trials each stands for."""
    differing = [name for name in names if len({row[name] for row in params}) > 1]
    shown = tuple(dict.fromkeys(((() if by in _RANKED else (by,)) + _RANKED) + _losses(measures)))
    rows = [
        [str(rank), *(value_text(row[name]) for name in differing), *_cells(measured, shown), f"{same:,}"]
        for rank, (row, measured, same) in enumerate(zip(params, measures, equal, strict=True), start=1)
    ]
    return table(["#", *differing, *_headings(shown), "equal"], rows, left=0)


def _losses(measures: Sequence[Mapping[str, float | None]]) -> tuple[str, ...]:
    """The measures of delisted pools, where any trial met one."""
    return ("delistings", "written_off") if any(row.get("delistings") for row in measures) else ()


def shared_line(names: Sequence[str], params: Sequence[Mapping[str, Value]]) -> str:
    """Those of the parameters `names` in which the trials shown agree."""
    same = [name for name in names if len({row[name] for row in params}) == 1]
    return "All of these: " + " ".join(f"{name}={value_text(params[0][name])}" for name in same) if same else ""


def conditions_line(config: Mapping[str, Any], health: Mapping[str, Any]) -> str:
    """The days simulated and the money at the start, which all trials share."""
    start, end = config["start"] or health["first"], config["end"] or health["last"]
    return f"Simulated from {start} to {end}, {usd(config['capital'], 0)} USD at the start"


def data_lines(prepared: Mapping[str, Any]) -> Iterator[str]:
    """The data line of each way in which the panel was prepared, named where there are several."""
    for name, health in prepared.items():
        yield data_line(health) + (f"; with {name}" if len(prepared) > 1 else "")


def data_line(health: Mapping[str, Any]) -> str:
    """What lies under a result (fields of `panel.Health`): span, pools, how much was observed, what was done to it and
    what is left out."""
    told = [
        f"Data: {data_words(health)}",
        f"{percent(health['observed_share'], 1)} observed, {percent(health['carried_share'], 1)} carried forward, "
        f"{percent(health['missing_share'], 1)} missing",
        *_cleaning(health),
        f"{count(health['assumed_rows'], 'row')} with an assumed time of knowledge",
        *_comings_and_goings(health),
        *_forecasts(health),
        f"carry only, no price moves ({health['pools_not_usd']:,} of {count(health['pools'], 'pool')} not in USD)",
    ]
    return "; ".join(told)


def _cleaning(health: Mapping[str, Any]) -> Iterator[str]:
    """What was done to observations, and what could not be; nothing where nothing was."""
    if masked := health.get("masked"):
        yield f"{count(masked, 'spike')} masked ({percent(health['masked_share'], 2)})"
    if winsorized := health.get("winsorized"):
        yield f"{count(winsorized, 'spike')} lowered to the bound"
    if health.get("rates") == "quoted":
        yield "rates as quoted"
    elif any(source != SYNTHETIC and not is_feed(source) for source in health.get("sources", ())):
        yield "rates of imported rows taken as APY"
    if converted := health.get("rates_converted"):
        yield f"{count(converted, 'simple rate')} converted to APY"
    if unknown := health.get("rates_unknown"):
        pools = count(health["rates_unknown_pools"], "pool")
        yield f"{count(unknown, 'rate')} of {pools} as quoted, for want of a known convention"
    if too_high := health.get("rates_too_high"):
        yield f"{count(too_high, 'simple rate')} too high for an APY, as quoted"


def _comings_and_goings(health: Mapping[str, Any]) -> Iterator[str]:
    entering, leaving = health.get("entering") or {}, health.get("leaving") or {}
    years = sorted({*entering, *leaving})
    if years:
        told = ", ".join(f"{year} {entering.get(year, 0)}/{leaving.get(year, 0)}" for year in years)
        yield f"pools entering/leaving {told}"


def _forecasts(health: Mapping[str, Any]) -> Iterator[str]:
    """Which run each field of a model is from, and up to when that model had learned."""
    for name, origin in (health.get("forecasts") or {}).items():
        first, last = origin["first_trained"], origin["last_trained"]
        trained = first + (f" to {last}" if last != first else "")
        yield f"{name} for {origin['first']} to {origin['last']}, of run {origin['run_id']}, trained through {trained}"


def data_words(health: Mapping[str, Any]) -> str:
    """The span and the pools of a panel, and whether it was made up."""
    words = f"{health['first']} to {health['last']}, {count(health['pools'], 'pool')}"
    sources = list(health.get("sources", ()))
    if SYNTHETIC in sources:
        words += ", SYNTHETIC" if sources == [SYNTHETIC] else ", partly SYNTHETIC"
    return words


def luck_line(trials: int, autocorrelation: float | None) -> str:
    """What the best of many trials is worth, and what a smooth curve does to a Sharpe ratio."""
    line = (
        f"The first is one of {count(trials, 'trial')}: the best of so many is partly luck; look at it on other days."
    )
    if autocorrelation is not None and abs(autocorrelation) > SMOOTH:
        line += (
            f" Its returns have an autocorrelation of {number(autocorrelation)}: the curve is smooth, and its Sharpe "
            "ratio says that, not that the risk is small."
        )
    return line


#: Above this lag-1 autocorrelation of daily returns, a Sharpe ratio scaled by the root of time means little.
SMOOTH = 0.3


def measure_text(name: str, value: float | None) -> str:
    """A measure in its unit."""
    return (_COLUMNS | _MORE)[name][1](value)


def _headings(names: Iterable[str]) -> list[str]:
    known = _COLUMNS | _MORE
    return [known[name][0] for name in names]


def _cells(row: Mapping[str, float | None], names: Iterable[str]) -> list[str]:
    known = _COLUMNS | _MORE
    return [known[name][1](row[name]) for name in names]
