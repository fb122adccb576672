"""From words on the command line to what a backtest or a sweep takes: parameters, dates, the panel."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from yieldlab.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from yieldlab.config import Settings
    from yieldlab.panel import Panel
    from yieldlab.space import Value
    from yieldlab.store import Store
    from yieldlab.strategy import Strategy

_log = logging.getLogger(__name__)

#: Settings that are policy parameters under another name.
_COSTS = {"cost_bps": "cost", "gas_usd": "gas_usd"}


def day(flag: str, text: str | None) -> date | None:
    """The day a flag names. Raises UsageError with the right form."""
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{flag} must be a day such as 2025-12-31, not {text!r}") from None


def instant(flag: str, text: str | None) -> datetime | None:
    """The past instant a flag names; a day alone is the midnight that ends it, an instant without a zone is UTC."""
    if text is None:
        return None
    try:
        alone = _day_alone(text)
        moment = datetime.fromisoformat(text) if alone is None else datetime(alone.year, alone.month, alone.day)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"{flag} must be a day or an instant such as 2025-12-31T12:00Z, not {text!r}") from None
    length = timedelta(days=alone is not None)
    # Not `moment + length > now`: the last day of the calendar has no end.
    if moment > datetime.now(UTC) - length:
        what = f"{flag} {text}" if alone is None else f"the end of {flag} {text}"
        raise UsageError(f"{what} lies in the future; leave it out for all that is known now")
    return moment + length


def _day_alone(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def axes(texts: Sequence[str] | None) -> dict[str, tuple[Value, ...]]:
    """`--grid` as axes. Raises UsageError for one that cannot be read or comes twice."""
    from yieldlab.space import parse_axis

    found: dict[str, tuple[Value, ...]] = {}
    for text in texts or ():
        name, values = parse_axis(text)
        if name in found:
            raise UsageError(f"--grid names {name!r} twice; give all its values at once, as {name}=1,2")
        found[name] = values
    return found


def assignments(texts: Sequence[str] | None, settings: Settings) -> dict[str, Value]:
    """`--set`, and the costs given as flags. Raises UsageError for one that cannot be read or comes twice."""
    from yieldlab.space import parse_axis

    found: dict[str, Value] = {}
    for text in texts or ():
        name, values = parse_axis(text)
        if len(values) != 1:
            raise UsageError(f"--set {text} gives {len(values)} values; --set takes one, a sweep's --grid takes more")
        if name in found:
            raise UsageError(f"--set names {name!r} twice")
        found[name] = values[0]
    for flag, name in _COSTS.items():
        if flag in settings.flags:
            if name in found:
                raise UsageError(f"--{flag.replace('_', '-')} and --set {name} name the same; give one of them")
            found[name] = costs(settings)[name]
    return found


def costs(settings: Settings) -> dict[str, Value]:
    """What a trade costs by the settings, as policy parameters."""
    from yieldlab.units import from_bps

    return {"cost": from_bps(settings.cost_bps), "gas_usd": settings.gas_usd}


def for_strategy(strategy: Strategy, sets: Mapping[str, Value], among: Iterable[Strategy]) -> dict[str, Value]:
    """Of what is set, what this strategy has. Raises UsageError for a name that none of `among` has."""
    from yieldlab.market import DEFAULTS
    from yieldlab.simulate.policy import PARAMETERS

    shared = {*DEFAULTS, *PARAMETERS}
    known = shared.union(*(other.signal_grid.axes for other in among))
    for name in sets:
        if name not in known:
            raise UsageError(f"unknown parameter {name!r}{did_you_mean(name, known)}")
    return {name: value for name, value in sets.items() if name in shared or name in strategy.signal_grid.axes}


def doubtful_deaths(
    panel: Panel, markets: Iterable[Mapping[str, Value]], window: tuple[date | None, date | None]
) -> list[str]:
    """A warning where a market acts on deaths that may be none: one sentence at most, on the deaths most in doubt."""
    from yieldlab.quality import doubtful_deaths

    graces = {int(str(params["dead_after_days"])) for params in markets if params["delisted"] != "hold"}
    rows = panel.window(*window)
    found = [doubtful_deaths(panel.listed(), panel.times, grace, window=rows) for grace in sorted(graces)]
    worst = max(found, key=lambda doubt: doubt.doubtful, default=None)
    return [worst.sentence] if worst is not None and worst.sentence is not None else []


def uncovered_days(panel: Panel, window: tuple[date | None, date | None]) -> list[str]:
    """A warning for each field of a model that says nothing on days of the window: there its strategy has no view."""
    import numpy as np

    from yieldlab.report.terminal import count

    t_start, t_end = panel.window(*window)
    first, last = (str(panel.times[t].astype("datetime64[D]")) for t in (t_start, t_end))
    silent = {field: int(np.isnan(panel[field][t_start : t_end + 1]).all(axis=1).sum()) for field in panel.forecasts}
    return [
        f"{field} has forecasts for {origin.first} to {origin.last}, and none for any pool on "
        f"{count(silent[field], 'day')} between {first} and {last}: there a strategy that needs it has no view and "
        "holds what on_empty says"
        for field, origin in panel.forecasts.items()
        if silent[field]
    ]


def read_panel(store: Store, fields: Iterable[str], as_of: datetime | None) -> tuple[Panel, datetime]:
    """The panel with these fields beside APY and TVL, and the store's cutoff it was read at.

    Raises UsageError for a forecast of a model that there is not.
    """
    cutoff = store.cutoff()
    wanted = list(dict.fromkeys(("apy", "tvl_usd", *fields)))
    check_models(store, wanted)
    panel = store.panel(fields=wanted, as_of=as_of, ingested_by=cutoff)
    _log.debug("read %r from %r as stored by %s", panel, store, cutoff)
    return panel, cutoff


def check_models(store: Store, fields: Iterable[str]) -> None:
    """Raise UsageError for a forecast that no model of ours makes and no run in the store has."""
    from yieldlab import schema

    forecasts = [field for field in fields if field.startswith(schema.FORECAST)]
    if not forecasts:
        return
    from yieldlab.forecast.registry import FORECASTERS

    stored = {each for listed in store.forecast_runs()["fields"] for each in listed.split(",")}
    known = {f"{schema.FORECAST}{name}" for name in FORECASTERS} | stored
    for field in forecasts:
        if field not in known:
            name = field.removeprefix(schema.FORECAST)
            among = [each.removeprefix(schema.FORECAST) for each in known if each.startswith(schema.FORECAST)]
            raise UsageError(f"no model {name!r} forecasts a yield{did_you_mean(name, among)}")
