"""`models eval|list|show`: how good forecasts were, and which models there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yieldlab.cli import groups, inputs
from yieldlab.cli.model_inputs import Names, card_document, trained_card
from yieldlab.cli.options import AsOf, End, Start
from yieldlab.cli.session import Outcome, Session, command
from yieldlab.errors import DataError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from yieldlab.panel import Panel
    from yieldlab.runs import RunFolder


@command(groups.models, "models eval", settings=("data", "seed"))
def evaluate(
    session: Session,
    names: Names,
    start: Start = None,
    end: End = None,
    as_of: AsOf = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Also write the tables as Parquet into this folder.")
    ] = None,
) -> Outcome:
    """Measure walk-forward forecasts against what came.

    All models and persistence (today's APY stays) on the same days and pools; `risk` has a report of its own. Nothing
    is measured on days that a model has seen.
    """
    from yieldlab import schema
    from yieldlab.forecast.evaluate import Evaluation
    from yieldlab.forecast.outcomes import RISK_FIELDS, evaluated, risk_outcome
    from yieldlab.forecast.registry import RISK, entry
    from yieldlab.runs import free_folder

    for name in names:
        entry(name)
    if out is not None:
        free_folder(out)
    forecasters = [name for name in dict.fromkeys(names) if name != RISK]
    written = [f"{schema.FORECAST}{name}" for name in forecasters] + (list(RISK_FIELDS) if RISK in names else [])
    panel, _ = inputs.read_panel(session.store, [*schema.FIELDS, *written], inputs.instant("--as-of", as_of))
    window = panel.window(inputs.day("--start", start), inputs.day("--end", end))
    found: Evaluation | None = None
    if forecasters:
        found = evaluated(panel, forecasters, window, seed=session.settings.seed)
    risk = risk_outcome(panel, window, _run_of_risk(session, panel)) if RISK in names else None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        if found is not None:
            for table in ("overall", "by_protocol", "by_lead"):
                getattr(found, table).write_parquet(out / f"{table}.parquet")
        if risk is not None:
            risk.confusion.write_parquet(out / "risk_confusion.parquet")

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.models import evaluation_lines
        from yieldlab.report.training import risk_lines

        if found is not None:
            yield from evaluation_lines(found)
        if risk is not None:
            yield from risk_lines(risk)
        if out is not None:
            yield f"Tables: {out}"

    data: dict[str, object] = {}
    if found is not None:
        data |= {
            "horizon_days": found.horizon,
            "first": found.first,
            "last": found.last,
            "cells": found.cells,
            "days": found.days,
            "pools": found.pools,
            "lacked": found.lacked,
            "overall": found.overall.to_dicts(),
            "by_protocol": found.by_protocol.to_dicts(),
            "by_lead": found.by_lead.to_dicts(),
        }
    if risk is not None:
        data["risk"] = risk.as_dict()
    return Outcome(data, view)


@command(groups.models, "models list", settings=("data", "models"))
def list_models(session: Session) -> Outcome:
    """Show every model: what is trained and what has forecasts."""
    from yieldlab.forecast.artifacts import Card, listed
    from yieldlab.forecast.registry import MODELS

    found = listed(session.settings.models)
    cards = [each for each in found if isinstance(each, Card)]
    broken = [each for each in found if not isinstance(each, Card)]
    walked = session.store.forecast_runs()
    kinds = {name: each.meaning for name, each in MODELS.items()}

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.training import models_lines

        yield from models_lines(kinds, cards, walked)

    data = {
        "models": kinds,
        "trained": [card_document(card) for card in cards],
        "unreadable": {str(path): reason for path, reason in broken},
        "runs": walked.to_dicts(),
    }
    return Outcome(data, view, warnings=[reason for _, reason in broken], exit_code=4 if broken else 0)


@command(groups.models, "models show", settings=("models",))
def show(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model, or a trained one as lstm_best.")],
) -> Outcome:
    """Show a model's settings and the card of a trained one."""
    from yieldlab.forecast.artifacts import card_path, weights_of
    from yieldlab.forecast.registry import MODELS, known_settings

    folder = session.settings.models
    card = None if name in MODELS and card_path(name, folder) is None else trained_card(name, folder)
    kind = name if card is None else card.model
    defaults = known_settings(kind, None if card is None else card.settings)

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.training import card_lines, settings_lines

        yield from settings_lines(kind, MODELS[kind].meaning, defaults, None if card is None else card.settings)
        if card is not None:
            yield from card_lines(card)
        else:
            yield f"Not trained yet: yieldlab models train {name}"

    data = {
        "model": kind,
        "meaning": MODELS[kind].meaning,
        "defaults": defaults,
        "card": None if card is None else card_document(card),
    }
    lost: list[str] = []
    if card is not None:
        try:
            weights_of(card)
        except DataError as error:
            lost.append(str(error))
    return Outcome(data, view, warnings=lost, exit_code=4 if lost else 0)


def _run_of_risk(session: Session, panel: Panel) -> RunFolder | None:
    """The run that the classes of risk are of; None where it is gone."""
    from yieldlab.cli.runs import runs_folder
    from yieldlab.runs import find

    name = panel.forecasts["risk_class"].run_id.split(".")[0]
    try:
        return find(name, runs_folder(session.settings))
    except (UsageError, DataError):
        session.say(f"run {name} is no longer there; its classes are held against the default thresholds")
        return None
