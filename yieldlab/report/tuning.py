"""How a search for settings looks in a terminal: its best trials, and the command that uses the best one."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from yieldlab.report.strategies import value_text
from yieldlab.report.terminal import count, note, number, percent, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from yieldlab.forecast.tuning import Tuned

#: Trials that are shown; all of them are in the JSON document.
SHOWN = 10


def tuned_lines(tuned: Tuned) -> Iterator[RenderableType]:
    """The best trials, how many came to nothing, what was gained, and what to type next."""
    ended = Counter(each.state for each in tuned.trials)
    others = "".join(f", {ended[state]} {state}" for state in ("pruned", "failed") if ended[state])
    yield f"{tuned.model}: {count(len(tuned.trials), 'trial')}, {ended['complete']} complete{others}"
    complete = [each for each in tuned.trials if each.value is not None]
    complete.sort(key=lambda each: (each.value, each.number))
    names = list(tuned.settings)
    reference = tuned.persistence
    rows = [
        [
            str(each.number),
            number(each.value, 4),
            *([] if reference is None or each.value is None else [percent(_skill(each.value, reference), 1)]),
            *(value_text(each.settings.get(name)) for name in names),
        ]
        for each in complete[:SHOWN]
    ]
    yield table(["trial", "score", *([] if reference is None else ["skill"]), *names], rows)
    yield note(
        f"Score: {tuned.metric}, the mean over {count(tuned.folds, 'fold')} from {tuned.first} to {tuned.last}; less "
        f"is better. The test days, from {tuned.test_begin} on, had no part in it."
    )
    if reference is not None:
        verdict = "beats" if tuned.value < reference else "does not beat"
        yield note(
            f"Skill is what is saved of persistence's {number(reference, 4)} on the same days; the best {verdict} it "
            "there, where it was chosen"
        )
    if tuned.default is None:
        yield "Trial 0, with the default settings, gave no score"
    elif tuned.value < tuned.default:
        better = percent(1.0 - tuned.value / tuned.default, 1)
        yield f"The best is {better} below the default settings, which scored {number(tuned.default, 4)} (trial 0)"
    else:
        yield "No trial was better than the default settings (trial 0)"
    for reason, times in Counter(each.reason for each in tuned.trials if each.reason).most_common(3):
        yield note(f"{count(times, 'trial')} failed: {reason}")
    yield f"Study {tuned.study}: {tuned.path}"
    if tuned.default is None or tuned.value < tuned.default:
        yield f"To use it: {command(tuned)}"


def _skill(score: float, reference: float) -> float | None:
    return 1.0 - score / reference if reference else None


def command(tuned: Tuned) -> str:
    """The command that trains the model with the best settings, and with those that were given."""
    chosen = {**tuned.fixed, **tuned.settings}
    words = ["yieldlab", "models", "train", tuned.model]
    for name, value in chosen.items():
        words += ["--set", f"{name}={value_text(value)}"]
    return shlex.join(words)
