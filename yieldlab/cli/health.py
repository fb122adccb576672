"""What `doctor` looks at: the installation, the machine and the folders, each with the way to mend it."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from yieldlab.config import FILE_NAME, Settings


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `state` is ok, missing (optional) or broken (needed)."""

    name: str
    value: str
    state: str = "ok"
    remedy: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Everything that decides whether yieldlab works here, without importing any of it."""
    return [*_versions(), *_packages(), *_machine(settings), *_folders(settings)]


def _versions() -> Iterator[Finding]:
    yield Finding("yieldlab", metadata.version("yieldlab"))
    yield Finding("python", f"{platform.python_version()} at {sys.executable}")


def _packages() -> Iterator[Finding]:
    """The distribution's own requirements, core first and then each extra."""
    for requirement in metadata.requires("yieldlab") or []:
        found = re.match(r"(?P<name>[A-Za-z0-9_.-]+)[^;]*(?:;\s*extra\s*==\s*['\"](?P<extra>\w+)['\"])?", requirement)
        if found is None or found["name"] == "yieldlab" or found["extra"] in ("dev", "all"):
            continue
        extra = found["extra"]
        label = found["name"] + (f" (extra {extra})" if extra else "")
        try:
            yield Finding(label, metadata.version(found["name"]))
        except metadata.PackageNotFoundError:
            if extra:
                yield Finding(label, "not installed", "missing", f'pip install "yieldlab[{extra}]"')
            else:
                yield Finding(label, "not installed", "broken", "pip install --force-reinstall yieldlab")


def _machine(settings: Settings) -> Iterator[Finding]:
    threads = os.environ.get("NUMBA_NUM_THREADS", "")
    limit = f", NUMBA_NUM_THREADS={threads}" if threads else ""
    yield Finding("threads", f"{settings.jobs} in use of {os.cpu_count()} cores{limit}")
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        yield Finding(
            "compiler", "off", "missing", "unset NUMBA_DISABLE_JIT; without it a sweep is a thousand times slower"
        )
    named = os.environ.get("NUMBA_CACHE_DIR")
    cache = Path(named) if named else Path(__file__).parents[1] / "simulate" / "__pycache__"
    if _writable(cache):
        yield Finding("kernel cache", str(cache))
    else:
        remedy = "set NUMBA_CACHE_DIR to a folder you can write; without one, kernels may compile again on every start"
        yield Finding("kernel cache", f"{cache} cannot be written", "missing", remedy)


def _folders(settings: Settings) -> Iterator[Finding]:
    if settings.file:
        yield Finding("settings", str(settings.file))
    else:
        yield Finding("settings", f"defaults (no {FILE_NAME} here)")
    data = settings.data
    if not _writable(data):
        yield Finding("data folder", f"{data} cannot be written", "broken", "name another with --data or YIELDLAB_DATA")
    elif (data / "tables").is_dir():
        yield Finding("data folder", str(data.resolve()))
    else:
        yield Finding(
            "data folder", f"{data} has no tables", "missing", "yieldlab data sample, or yieldlab data import FILE"
        )
    for folder in settings.strategies:
        if folder.is_dir():
            yield Finding("strategies", f"{folder}, {len(list(folder.glob('*.py')))} files")
        else:
            yield Finding("strategies", f"{folder} is not there", "missing", f"mkdir {folder}, or yieldlab init DIR")


def _writable(folder: Path) -> bool:
    """Whether files can be made in it, or it can be made."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return existing.is_dir() and os.access(existing, os.W_OK)
