"""What a failure looks like: one sentence on stderr, one exit code, and the only place that decides either."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import TextIO

import typer

from yieldlab.errors import INTERRUPTED, YieldlabError, did_you_mean

_NO_SPACE = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122")


def guarded(arguments: Sequence[str]) -> int:
    """Run the app on `arguments` and turn whatever happens into an exit code."""
    try:
        code = _invoke(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader (head, less) has seen enough before anything was known of the end.
        _to_nobody(sys.stdout)
        return 0
    except KeyboardInterrupt:
        return _report(arguments, "interrupted", INTERRUPTED, "KeyboardInterrupt")
    except Exception as error:  # noqa: BLE001  # the last line of defence: a sentence instead of a traceback
        if _wants(arguments, "-v", "--verbose"):
            _say(sys.stderr, traceback.format_exc().rstrip("\n"))
        sentence, code = describe(error)
        return _report(arguments, sentence, code, type(error).__name__)


def describe(error: Exception) -> tuple[str, int]:
    """The sentence and the exit code of an error."""
    if isinstance(error, YieldlabError):
        return _one_line(str(error)), error.exit_code
    if isinstance(error, typer.TyperException):
        return _one_line(_usage(error)), error.exit_code
    if any(mark in str(error) for mark in _NO_SPACE):
        where = f" for {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return f"no space left on the disk{where}; nothing was kept of the write that failed", 1
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        other = "name a folder that can be written with --data, --models or --out"
        return f"{error.strerror} for {error.filename}; {other}", 1
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror.lower()}: {error.filename}", 1
    if isinstance(error, MemoryError):
        return "out of memory; ask for less with --max-memory, --sample or fewer values in --grid", 1
    return f"unexpected {type(error).__name__}: {_one_line(str(error))} (run again with -v for where it happened)", 1


def _invoke(arguments: Sequence[str]) -> int:
    from yieldlab.cli.app import app
    from yieldlab.cli.session import Finished, finish

    returned = app(args=list(arguments), prog_name="yieldlab", standalone_mode=False, obj=tuple(arguments))
    if isinstance(returned, Finished):
        try:
            finish(returned)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has seen enough; what was asked for is done, and how it ended is known
            _to_nobody(sys.stdout)
        return returned.outcome.exit_code
    if returned == INTERRUPTED:
        raise KeyboardInterrupt
    return int(returned or 0)


def _usage(error: typer.TyperException) -> str:
    """Typer's own complaint, with the nearest name and where to look."""
    sentence = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "yieldlab"
    commands = list(getattr(getattr(context, "command", None), "commands", ()))
    unknown = re.fullmatch(r"No such command '(.*?)'.*", sentence)
    if not sentence or "Usage:" in sentence:
        return f"a command is missing; `{path}` has {', '.join(commands)}"
    if unknown:
        return f"there is no command '{path} {unknown[1]}'{did_you_mean(unknown[1], commands)}"
    return f"{sentence[0].lower()}{sentence[1:]}; see `{path} --help`"


def _report(arguments: Sequence[str], sentence: str, code: int, kind: str) -> int:
    _say(sys.stderr, f"error: {sentence}" if code != INTERRUPTED else sentence)
    if _wants(arguments, "--json"):
        document = {
            "schema_version": 1,
            "command": " ".join(_command_words(arguments)),
            "run_id": None,
            "status": "interrupted" if code == INTERRUPTED else "error",
            "data": {"error": sentence, "kind": kind, "exit_code": code},
            "warnings": [],
        }
        _say(sys.stdout, json.dumps(document, indent=2, ensure_ascii=False))
    return code


def _say(stream: TextIO, text: str) -> None:
    """Write what can still be written: an error that nobody can read, or has no room, must not become a second one."""
    try:
        print(text, file=stream, flush=True)
    except OSError:
        _to_nobody(stream)


def _to_nobody(stream: TextIO) -> None:
    """Let what is left in the stream's buffer go nowhere, also when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _command_words(arguments: Sequence[str]) -> list[str]:
    """The leading words of the command line that name the command."""
    from yieldlab.cli.groups import app

    groups = [group.name for group in app.registered_groups]
    words = [word for word in arguments if not word.startswith("-")][:2]
    return words if words and words[0] in groups else words[:1]


def _wants(arguments: Sequence[str], *flags: str) -> bool:
    head = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return any(word in flags for word in head)


def _one_line(text: str) -> str:
    return " ".join(text.split())
