"""How models, their training and their forecasts look in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from yieldlab.errors import DataError
from yieldlab.forecast.risk_scores import gain_shares
from yieldlab.report.terminal import count, note, number, percent, table, words

if TYPE_CHECKING:
    from rich.console import RenderableType

    from yieldlab.forecast.artifacts import Card
    from yieldlab.forecast.fold_runs import FoldPlan
    from yieldlab.forecast.outcomes import RiskOutcome
    from yieldlab.forecast.train import Trained

_CLASSES = ("low", "medium", "high")


@dataclass(slots=True)
class Walked:
    """What one walk-forward told on its way."""

    model: str
    plan: FoldPlan
    #: The fewest and the most days that a fold learns from.
    learned: tuple[int, int]
    run_id: str = ""
    path: Path = Path()
    folds: int = 0
    rows: int = 0
    reused: bool = False
    interrupted: bool = False
    #: The first and the last day that a fold learned through, None where nothing is fitted.
    trained: tuple[str, str] | None = None
    failures: dict[int, str] = field(default_factory=dict)
    #: Of an ensemble: each member's weight, the mean over the folds, and the forecasts made without some member.
    weights: dict[str, float] = field(default_factory=dict)
    lacking: int = 0

    def as_dict(self) -> dict[str, object]:
        """In JSON's own kinds."""
        return {
            "model": self.model,
            "run_id": self.run_id,
            "path": self.path,
            "folds": self.folds,
            "rows": self.rows,
            "reused": self.reused,
            "trained_through": self.trained,
            "interrupted": self.interrupted,
            "failures": {str(number): reason for number, reason in self.failures.items()},
            **({"weights": self.weights, "lacking": self.lacking} if self.weights else {}),
        }


def walked_lines(walked: Sequence[Walked]) -> Iterator[RenderableType]:
    """One row per walk-forward."""
    rows = []
    for each in walked:
        state = "interrupted" if each.interrupted else "unchanged, reused" if each.reused else "done"
        state += f", {count(len(each.failures), 'fold')} failed" if each.failures else ""
        through = " to ".join(each.trained) if each.trained else "-"
        rows.append([each.model, state, through, f"{each.folds:,}", f"{each.rows:,}"])
    yield table(["model", "state", "trained through", "folds", "values"], rows, left=3)
    plans: dict[str, list[str]] = {}
    for each in walked:
        plans.setdefault(_plan_words(each), []).append(each.model)
    for plan, models in plans.items():
        yield note(f"Folds{'' if len(plans) == 1 else ' of ' + ', '.join(models)}: {plan}")
    for each in walked:
        if each.weights:
            yield (
                f"Weights of {each.model}, the mean over the folds: {_weighed(each.weights)}; "
                f"{each.lacking:,} of {each.rows:,} forecasts were made without some member"
            )
        yield f"Run {each.run_id}: {each.path}"
    if any(each.interrupted for each in walked):
        yield "Interrupted: the same command, without --fresh, goes on after the last finished fold"


def _plan_words(walked: Walked) -> str:
    plan, (fewest, most) = walked.plan, walked.learned
    days = count(most, "day") if fewest == most else f"{fewest:,} to {count(most, 'day')}"
    return (
        f"{plan.mode}, {days} to learn from, {count(plan.step, 'day')} forecast, {plan.purge} purged and "
        f"{plan.embargo} embargoed between"
    )


def trained_lines(trained: Trained) -> Iterator[RenderableType]:
    """The test of what was trained, and where it is."""
    if trained.test is not None:
        from yieldlab.report.models import evaluation_lines

        yield f"Test of {trained.best.name} on days it has not seen:"
        yield from evaluation_lines(trained.test)
    yield from card_lines(trained.released)


def card_lines(card: Card) -> list[RenderableType]:
    """What is known of a trained model. Raises DataError when its card says what cannot be."""
    try:
        return list(_card_lines(card))
    except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError) as error:
        raise DataError(f"the card {card.path} is damaged: what it says of its test or weights cannot be") from error


def _card_lines(card: Card) -> Iterator[RenderableType]:
    test = card.metrics.get("test", {})
    through = f"trained through {card.trained_through}" if card.trained_through else "nothing is fitted"
    yield f"{card.name}: model {card.model}, {through}, made {card.created}"
    if "confusion" in test:
        yield from _confusion(pl.DataFrame(_confusion_rows(test["confusion"]), orient="row"))
        yield from _risk_figures(test)
        yield _gain(gain_shares([test["importance"]]))
        yield note(f"Calibration: {test['calibration']}")
    elif test:
        skill = "" if test.get("skill") is None else f", skill against persistence {percent(test['skill'], 1)}"
        verdict = f": {card.model} {test['verdict']}" if test.get("verdict") else ""
        yield note(f"Test of {card.model}_best: MAE {percent(test.get('mae'))}-points{skill}{verdict}")
    if "weights" in card.fitted:
        yield note(f"Weights: {_weighed(card.fitted['weights'])}")
    if test.get("lacking"):
        yield note(f"{count(test['lacking'], 'forecast')} of the test days were made without some member")
    yield f"Card: {card.path}"


def _weighed(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {percent(weight, 1)}" for name, weight in weights.items())


def today_lines(made: pl.DataFrame, card: Card) -> Iterator[RenderableType]:
    """Every pool's forecast, the best first."""
    fields = [name for name in made.columns if name.startswith(("forecast_", "risk_"))]
    ranked = made.filter(pl.col("reason").is_null()).sort(fields[0], descending=True)
    rows = [
        [
            row["pool_id"],
            row["protocol"],
            percent(row["apy_now"]),
            *(_CLASSES[int(row[name])] if name == "risk_class" else percent(row[name]) for name in fields),
        ]
        for row in ranked.to_dicts()
    ]
    day, ahead = made["day"][0], made["for_day"][0]
    yield f"{card.name} at the end of {day}, for {ahead}; trained through {card.trained_through or '(nothing fitted)'}"
    yield table(["pool", "protocol", "APY now", *fields], rows, left=2)
    for name in fields[1:]:
        if name.startswith("forecast_") and (gone := ranked[name].null_count()):
            yield f"{count(gone, 'pool')} had no {name}, so there the weights of the others count"
    missing = made.filter(pl.col("reason").is_not_null()).group_by("reason").len().sort("reason")
    for reason, pools in missing.iter_rows():
        yield f"No forecast for {count(pools, 'pool')}: {reason}"


def models_lines(kinds: Mapping[str, str], cards: Sequence[Card], walked: pl.DataFrame) -> Iterator[RenderableType]:
    """Every kind of model, what is trained of it and the forecasts that a panel reads."""
    rows = []
    for name, meaning in kinds.items():
        trained = ", ".join(card.name for card in cards if card.model == name) or "-"
        runs = walked.filter(pl.col("model") == name).to_dicts()
        forecasts = f"{runs[-1]['first'].date()} to {runs[-1]['last'].date()}" if runs else "-"
        rows.append([name, meaning, trained, forecasts])
    yield words(["model", "what it is", "trained", "forecasts in the store"], rows)
    if walked.is_empty():
        yield "No forecasts in the store yet: yieldlab models walk-forward NAME makes them"


def settings_lines(
    name: str, meaning: str, defaults: Mapping[str, Any], settings: Mapping[str, Any] | None
) -> Iterator[RenderableType]:
    """A model's settings with their defaults, and what a trained one has."""
    yield f"{name}: {meaning}"
    rows = [
        [key, str(value), *([] if settings is None else [str(settings.get(key, "-"))])]
        for key, value in defaults.items()
    ]
    yield words(["setting", "default", *([] if settings is None else ["trained with"])], rows)


def risk_lines(found: RiskOutcome) -> Iterator[RenderableType]:
    """What became of pools against the classes they were given."""
    yield f"risk of run {found.run_id}: {found.samples:,} pool-days from {found.first} to {found.last}"
    yield from _confusion(found.confusion)
    yield from _risk_figures(found.as_dict())
    if found.folds:
        yield _gain(found.importance)
        yield note(f"Probabilities calibrated in {found.calibrated:,} of {count(found.folds, 'fold')}")


def _confusion(frame: pl.DataFrame) -> Iterator[RenderableType]:
    rows = [[row["happened"], *(f"{row[name]:,}" for name in _CLASSES)] for row in frame.to_dicts()]
    yield table(["what happened", *(f"given {name}" for name in _CLASSES)], rows)


def _confusion_rows(matrix: Sequence[Sequence[int]]) -> list[dict[str, object]]:
    return [
        {"happened": name, **dict(zip(_CLASSES, row, strict=True))} for name, row in zip(_CLASSES, matrix, strict=True)
    ]


def _risk_figures(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    ranked = "undefined, since nothing was high" if found["pr_auc_high"] is None else number(found["pr_auc_high"], 3)
    yield f"PR-AUC of high {ranked}, base rate {number(found['base_rate_high'], 3)}"
    if "log_loss_prior" in found:
        base, known = found["log_loss_prior"], "the classes' frequency in training"
    else:
        base, known = found["log_loss_base"], "the classes' frequency on these very days"
    verdict = "beats" if found["log_loss"] < base else "does not beat"
    yield f"Log loss {number(found['log_loss'], 3)} {verdict} {known}, {number(base, 3)}"


def _gain(shares: Mapping[str, float]) -> str:
    return "Share of gain: " + ", ".join(f"{name} {percent(share, 0)}" for name, share in list(shares.items())[:8])
