"""How a command is called and how its result leaves: the flags all commands share, one text or one JSON document."""

from __future__ import annotations

import inspect
import json
import logging
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yieldlab import config

if TYPE_CHECKING:
    from rich.console import RenderableType

    from yieldlab.report.terminal import Progress
    from yieldlab.store import Store

_log = logging.getLogger(__name__)

JSON_SCHEMA_VERSION = 1
STATUS = {0: "ok", 3: "failed", 4: "partial", 5: "failed", 130: "interrupted"}


@dataclass(frozen=True, slots=True)
class Session:
    """One call of the command line: the settings in force and how much to say."""

    command: str
    settings: config.Settings
    #: The words of the command line, which a run keeps.
    words: tuple[str, ...] = ()
    json: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def store(self) -> Store:
        """The data folder's store; nothing is created or read yet."""
        from yieldlab.store import Store

        return Store(self.settings.data)

    def progress(self, title: str) -> Progress:
        """Where long work shows how far it is; silent with -q."""
        from yieldlab.report.terminal import Progress

        return Progress(title, quiet=self.quiet)

    def say(self, line: str) -> None:
        """One line on stderr; silent with -q."""
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command found: `data` for the JSON document, `view` for people, and the exit code."""

    data: Mapping[str, object]
    view: Callable[[], Iterable[RenderableType]]
    run_id: str | None = None
    warnings: Sequence[str] = field(default=())
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has done its work and not yet said so: printing happens outside Typer, which has its own views
    on a reader that stops reading."""

    session: Session
    outcome: Outcome


def _setting(*names: str, help: str, kind: object, metavar: str) -> object:
    return Annotated[kind, typer.Option(*names, help=help, metavar=metavar, show_default=False)]


#: The flag of every setting, the same on every command that has it. None = not given on this command line.
SETTINGS: Mapping[str, object] = {
    "data": _setting("--data", help="Data folder.", kind=Path | None, metavar="DIR"),
    "strategies": _setting(
        "--strategies", help="Folder of strategy files; may be repeated.", kind=list[Path] | None, metavar="DIR"
    ),
    "models": _setting("--models", help="Folder of trained models.", kind=Path | None, metavar="DIR"),
    "capital": _setting("--capital", help="USD at the start of each trial.", kind=str | None, metavar="USD"),
    "cost_bps": _setting(
        "--cost-bps", help="Cost of every deposit and withdrawal, in basis points.", kind=str | None, metavar="BPS"
    ),
    "gas_usd": _setting("--gas-usd", help="USD per pool traded.", kind=str | None, metavar="USD"),
    "seed": _setting("--seed", help="Where random choices start from.", kind=str | None, metavar="N"),
    "jobs": _setting("--jobs", help="Threads.", kind=str | None, metavar="N"),
    "max_memory": _setting("--max-memory", help="Memory a sweep may use, as 2GB.", kind=str | None, metavar="SIZE"),
    "base_url": _setting("--base-url", help="Address of the feed of yields.", kind=str | None, metavar="URL"),
    "coins_url": _setting("--coins-url", help="Address of the feed of token prices.", kind=str | None, metavar="URL"),
    "sentiment_url": _setting(
        "--sentiment-url", help="Address of the feed of sentiment.", kind=str | None, metavar="URL"
    ),
    "requests_per_minute": _setting("--requests-per-minute", help="At most.", kind=str | None, metavar="N"),
    "keep_raw_days": _setting("--keep-raw-days", help="Days to keep raw answers.", kind=str | None, metavar="N"),
}

_COMMON: Mapping[str, tuple[object, object]] = {
    "config": (
        Annotated[
            Path | None,
            typer.Option("--config", metavar="FILE", help="Configuration file instead of ./yieldlab.toml."),
        ],
        None,
    ),
    "json": (Annotated[bool, typer.Option("--json", help="Print one JSON document.")], False),
    "quiet": (Annotated[bool, typer.Option("--quiet", "-q", help="The result only.")], False),
    "verbose": (Annotated[bool, typer.Option("--verbose", "-v", help="Logs, and tracebacks of errors.")], False),
}


def command(
    group: typer.Typer, name: str, *, settings: Sequence[str] = (), more: Mapping[str, object] | None = None
) -> Callable[[Callable[..., Outcome]], Callable[..., Outcome]]:
    """Register a function `(session, ...) -> Outcome` as command `name` (with its group's word before it).

    The command also takes the flags of `settings`, which arrive as `session.settings`, and those that all share.
    Flags of `more` (name -> annotation) arrive as keywords, None where they were not given.
    """

    def register(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
        own = [
            parameter
            for parameter in list(inspect.signature(function, eval_str=True).parameters.values())[1:]
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        shared: dict[str, tuple[object, object]]
        shared = {name: (annotation, None) for name, annotation in (more or {}).items()}
        shared |= {setting: (SETTINGS[setting], None) for setting in settings} | dict(_COMMON)
        added = [
            inspect.Parameter(parameter, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for parameter, (annotation, default) in shared.items()
        ]

        def run(context: typer.Context, **arguments: object) -> Finished:
            flags = {setting: arguments.pop(setting) for setting in settings}
            flags = {setting: value for setting, value in flags.items() if value != []}  # a list not given
            file = arguments.pop("config")
            session = Session(
                command=name,
                words=("yieldlab", *context.obj),
                settings=config.load(flags, file=file if isinstance(file, Path) else None),
                json=bool(arguments.pop("json")),
                quiet=bool(arguments.pop("quiet")),
                verbose=bool(arguments.pop("verbose")),
            )
            if session.verbose:
                _listen(session)
            return Finished(session, function(session, **arguments))

        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        parameters = [context, *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own), *added]
        run.__name__ = function.__name__
        run.__doc__ = function.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        group.command(name.split()[-1])(run)
        return function

    return register


def _listen(session: Session) -> None:
    """Show what yieldlab logs; the libraries under it keep their own counsel unless they warn."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(relativeCreated)6d ms %(name)s: %(message)s"
    )
    logging.getLogger("yieldlab").setLevel(logging.DEBUG)
    _log.debug("settings: %s", session.settings)


def finish(finished: Finished) -> int:
    """Print the one result, and on stderr what has to be known about it; returns the exit code."""
    session, outcome = finished.session, finished.outcome
    _log.debug("%s: done, exit code %d", session.command, outcome.exit_code)
    if session.json:
        print(json.dumps(document(session.command, outcome), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        from yieldlab.report.terminal import show

        show(outcome.view())
        for warning in outcome.warnings:
            session.say(f"warning: {warning}")
    return outcome.exit_code


def document(command: str, outcome: Outcome) -> dict[str, object]:
    """The JSON document of a result: undefined numbers are null, rates fractions."""
    return {
        "schema_version": JSON_SCHEMA_VERSION,
        "command": command,
        "run_id": outcome.run_id,
        "status": STATUS.get(outcome.exit_code, "failed"),
        "data": plain(outcome.data),
        "warnings": list(outcome.warnings),
    }


def plain(value: object) -> object:
    """The same value in JSON's own kinds."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a NumPy scalar
        return plain(value.item())
    raise TypeError(f"{type(value).__name__} has no place in a JSON document")
