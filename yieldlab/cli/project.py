"""`init` and `doctor`: a folder to work in, and whether this machine is ready for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yieldlab import config
from yieldlab.cli.groups import app
from yieldlab.cli.session import Outcome, Session, command
from yieldlab.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

_README = """# A yieldlab folder

`strategies/` holds one strategy per file, `yieldlab.toml` the settings, `data/` what was imported and what was run.

    yieldlab data sample              # or: yieldlab data import FILE
    yieldlab backtest highest_apy
    yieldlab strategies new my_idea
"""


@command(app, "init")
def init(
    session: Session,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to set up; made if it is not there.")],
) -> Outcome:
    """Set up a folder: strategies, settings, a note."""
    from yieldlab.strategy import bundled_folder

    texts = {Path("strategies") / path.name: path.read_text() for path in sorted(bundled_folder().glob("*.py"))}
    texts[Path(config.FILE_NAME)] = _settings_file()
    texts[Path(".gitignore")] = "/data/\n/models/\n__pycache__/\n"
    texts[Path("README.md")] = _README
    taken = [str(name) for name in texts if (folder / name).exists()]
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder")
    if taken:
        raise UsageError(f"{folder} already has {', '.join(taken)}; name another folder, nothing is overwritten")
    written: list[Path] = []
    try:
        for name, text in texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            written.append(path)
            path.write_text(text)
    except OSError:
        for path in written:
            path.unlink(missing_ok=True)
        raise

    def view() -> Iterator[RenderableType]:
        yield f"{folder} is ready: {', '.join(str(name) for name in texts)}"
        yield f"Next: cd {folder} && yieldlab data sample && yieldlab backtest highest_apy"

    return Outcome({"folder": folder.resolve(), "files": [str(name) for name in texts]}, view)


def _settings_file() -> str:
    lines = ["# Settings of yieldlab; each line shows the default. Flags and YIELDLAB_* variables win over this file."]
    for name, key in config.KEYS.items():
        default = (
            key.default if name not in ("strategies", "jobs") else {"strategies": '["strategies"]', "jobs": "2"}[name]
        )
        lines += ["", f"# {key.meaning}", f"# {name} = {default}"]
    return "\n".join(lines) + "\n"


@command(app, "doctor", settings=("data", "strategies"))
def doctor(session: Session) -> Outcome:
    """Report what is here, what is missing, how to get it."""
    from yieldlab.cli.health import examine

    findings = examine(session.settings)

    def view() -> Iterator[RenderableType]:
        from yieldlab.report.terminal import words

        yield words(["", "", "state"], [[found.name, found.value, found.state] for found in findings])
        for found in findings:
            if found.remedy:
                yield f"{found.name} ({found.state}): {found.remedy}"

    broken = any(finding.state == "broken" for finding in findings)
    return Outcome({"findings": [asdict(finding) for finding in findings]}, view, exit_code=1 if broken else 0)
