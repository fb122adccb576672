"""What the commands of models have in common: their flags, what is set of which model, and which files are meant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from yieldlab.cli import inputs
from yieldlab.cli.session import Session
from yieldlab.errors import DataError, UsageError, did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    from yieldlab.forecast.artifacts import Card
    from yieldlab.panel import Panel
    from yieldlab.space import Value

Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Models, as lstm; `models list` has all.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="K=V", help="A setting of the models; may be repeated.")
]
Members = Annotated[
    list[str] | None, typer.Option("--member", metavar="NAME", help="Of the ensemble; may be repeated.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do it again even if nothing has changed.")]


def read(session: Session, as_of: str | None) -> tuple[Panel, datetime]:
    """The panel with every field that a feature is made of."""
    from yieldlab import schema

    return inputs.read_panel(session.store, schema.FIELDS, inputs.instant("--as-of", as_of))


def members_for(names: Sequence[str], member: Sequence[str] | None) -> tuple[str, ...]:
    """Of what the ensemble is made: what `--member` says, else the forecasters named beside it, else what is usual.

    Raises UsageError for members that cannot be, and for `--member` where there is no ensemble.
    """
    from yieldlab.forecast.registry import ENSEMBLE, MEMBERS, MODELS, members_of

    if ENSEMBLE in names:
        usual = str(MODELS[ENSEMBLE].settings["members"])
        return members_of(member or [name for name in names if name in MEMBERS] or usual)
    if member:
        raise UsageError("--member says of what the ensemble is made; name the ensemble among the models")
    return ()


def settings_for(
    session: Session, known: Mapping[str, Mapping[str, Value]], sets: Sequence[str] | None
) -> dict[str, dict[str, Value]]:
    """Of each model, whose settings and defaults are `known`, what is set and what `--seed` and `--jobs` say of it.

    A setting of an ensemble's members is for one of them, as `lstm.epochs`, or for all that have it. Raises UsageError
    for a setting that none of the models has, and one that is set twice.
    """
    from yieldlab.forecast.registry import RISK

    chosen = inputs.assignments(sets, session.settings)
    if "members" in chosen:
        raise UsageError("members of an ensemble are named by --member, one each")
    for key in chosen:
        if not any(_named(key, settings) for settings in known.values()):
            among = sorted({each for settings in known.values() for each in settings})
            whose = f"model {next(iter(known))!r} has no"
            if len(known) > 1:
                whose = f"none of the models {', '.join(known)} has a"
            raise UsageError(f"{whose} setting {key!r}{did_you_mean(key, among)}")
    if "horizon" in chosen and RISK in known and len(known) > 1:
        raise UsageError("a horizon of risk is another one than that of forecasts; name risk in a command of its own")
    flags: dict[str, Value] = {"seed": session.settings.seed}
    if "jobs" in session.settings.flags:
        flags["threads"] = session.settings.jobs
    # A setting by its full name goes before one that is for all.
    said = sorted({**flags, **chosen}.items(), key=lambda item: "." in item[0])
    return {
        name: {full: value for key, value in said for full in _named(key, settings)} for name, settings in known.items()
    }


def _named(key: str, settings: Mapping[str, Value]) -> list[str]:
    """The settings that a key is for: the one of that name, else that of every member."""
    return [key] if key in settings else [each for each in settings if each.partition(".")[2] == key]


def trained_card(name: str, folder: Path) -> Card:
    """The card of a trained model. Raises UsageError for what can be none's name, DataError where it is not trained."""
    from yieldlab.forecast.artifacts import CARD_SUFFIX, find
    from yieldlab.forecast.registry import MODELS, released_name

    there = [path.name.removesuffix(CARD_SUFFIX) for path in sorted(folder.glob(f"*{CARD_SUFFIX}"))]
    kinds = {each: kind for kind in MODELS for each in (kind, f"{kind}_best", released_name(kind))}
    if name not in {*kinds, *there}:
        raise UsageError(f"unknown model {name!r}{did_you_mean(name, [*MODELS, *there])}")
    if name not in there and name not in MODELS:
        raise DataError(
            f"there is no trained model {name!r} in {folder}; `yieldlab models train {kinds[name]}` makes one"
        )
    return find(name, folder)


def check_writable(folder: Path) -> None:
    """See before a long training whether the folder can be made and written into, and leave nothing there.

    Raises UsageError where a file is in its place, and OSError as the system does.
    """
    from tempfile import TemporaryFile

    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not there.is_dir():
        raise UsageError(f"{there} is a file; name a folder with --models")
    with TemporaryFile(dir=there):
        pass


def days(flag: str, text: str) -> int:
    """A number of days, as `30d` or `30`. Raises UsageError with the right form."""
    found = re.fullmatch(r"\s*([0-9]{1,5})\s*d?\s*", text)
    if found is None:
        raise UsageError(f"{flag} must be a whole number of days such as 30d, not {text!r}")
    return int(found[1])


def card_document(card: Card) -> dict[str, object]:
    """A card as the JSON document shows it: without what was fitted, which may be long."""
    return {name: getattr(card, name) for name in type(card).__slots__ if name != "fitted"}
