"""The manifest of a run: what it was made from, with what, and how it went; and whether that is still the same."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import UTC, date, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from yieldlab.errors import DataError, UsageError
from yieldlab.market import PREPARING, prepare
from yieldlab.panel import Panel
from yieldlab.space import Value
from yieldlab.strategy import Strategy

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1

#: Another version of one of these may write other bytes from the same input.
_LIBRARIES = ("yieldlab", "numpy", "polars", "numba")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a run says about itself.

    `strategies` maps names to the SHA-256 of their source, `config` is everything else that decides the numbers beside
    the panel. `panel_health` tells of the panel as it was read, `prepared` of what strategies and market saw of it (see
    `prepared_health`). `as_of` is what the panel was asked for, `cutoff` the latest `ingested_at` in the store at that
    time. `seconds` is time spent working, over all sittings.
    """

    kind: str
    status: str
    started: str
    strategies: Mapping[str, str]
    strategy_path: str | None
    config: Mapping[str, object]
    config_hash: str
    panel_digest: str
    panel_health: Mapping[str, object]
    prepared: Mapping[str, object]
    as_of: str | None
    cutoff: str | None
    seed: int | None
    argv: tuple[str, ...]
    versions: Mapping[str, str]
    git_commit: str | None
    trials: int
    failed: int = 0
    finished: str | None = None
    seconds: float = 0.0
    reason: str | None = None
    schema_version: int = field(default=SCHEMA_VERSION)

    def to_json(self) -> str:
        """The manifest as its file holds it."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @property
    def as_of_instant(self) -> datetime | None:
        """`as_of` to read the same panel with."""
        return None if self.as_of is None else datetime.fromisoformat(self.as_of)

    @property
    def cutoff_instant(self) -> datetime | None:
        """`cutoff` to read the same panel with."""
        return None if self.cutoff is None else datetime.fromisoformat(self.cutoff)

    @property
    def last_day(self) -> date:
        """The panel's last day: its `end` when it is read again, since more days may have ended since."""
        return date.fromisoformat(str(self.panel_health["last"]))


def describe(
    kind: str,
    strategies: Sequence[Strategy],
    panel: Panel,
    config: Mapping[str, object],
    *,
    trials: int,
    seed: int | None = None,
    cutoff: datetime | None = None,
    argv: Sequence[str] = (),
    markets: Iterable[Mapping[str, Value]] = (),
) -> Manifest:
    """The manifest of a run that begins now. `config` holds JSON values only, `markets` the market parameters of its
    trials."""
    config = json.loads(json.dumps(config))
    return Manifest(
        kind=kind,
        status="running",
        started=datetime.now(UTC).isoformat(timespec="milliseconds"),  # of two runs the later is told by it
        strategies={strategy.name: strategy.source_hash for strategy in strategies},
        strategy_path=str(strategies[0].path.resolve()) if len(strategies) == 1 else None,
        config=config,
        config_hash=_hash(config),
        panel_digest=panel.digest(),
        panel_health=json.loads(json.dumps(panel.health.as_dict())),
        prepared=json.loads(json.dumps(prepared_health(panel, markets))),
        as_of=None if panel.as_of is None else panel.as_of.isoformat(),
        cutoff=None if cutoff is None else cutoff.isoformat(),
        seed=seed,
        argv=tuple(argv),
        versions=versions(),
        git_commit=_git_commit(strategies[0].path.parent) if strategies else None,
        trials=trials,
    )


def prepared_health(panel: Panel, markets: Iterable[Mapping[str, Value]]) -> dict[str, dict[str, object]]:
    """What each way of preparing the panel makes of it: the parameters as text, and the fields of `panel.Health`."""
    found: dict[str, dict[str, object]] = {}
    for params in markets:
        name = ", ".join(f"{each}={params[each]}" for each in PREPARING)
        if name not in found:
            found[name] = prepare(panel, params).health.as_dict()
    return found


def versions() -> dict[str, str]:
    """What a run was made with."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}}


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`. Raises DataError when it is missing, damaged or of a newer schema."""
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{folder} has no {MANIFEST}, so it is no run") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    schema = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(schema, int):
        raise DataError(f"{path} is not the manifest of a run; it has no schema_version")
    if schema > SCHEMA_VERSION:
        raise DataError(
            f"{path} was written by a newer yieldlab (manifest schema {schema}, this one reads up to "
            f"{SCHEMA_VERSION}); install that version to use the run"
        )
    values: dict[str, object] = {}
    for known in fields(Manifest):
        if known.name not in document and known.default is MISSING:
            raise DataError(f"{path} is damaged: {known.name} is missing")
        values[known.name] = document.get(known.name, known.default)
        if not _fits(str(known.type), values[known.name]):
            raise DataError(f"{path} is damaged: {known.name} is {values[known.name]!r}")
    values["argv"] = tuple(document["argv"])
    manifest = Manifest(**values)  # type: ignore[arg-type]  # checked above, field by field
    if _hash(manifest.config) != manifest.config_hash:
        raise DataError(f"{path} is damaged: its config is not the one that the run began with")
    return manifest


def refuse_changes(recorded: Manifest, present: Manifest) -> None:
    """Raise, saying what differs, unless both would give the same numbers.

    UsageError for another strategy, configuration or version, DataError for another panel.
    """
    for name, source_hash in recorded.strategies.items():
        if present.strategies.get(name) != source_hash:
            raise UsageError(
                f"strategy {name!r} has changed since the run began (its source was {source_hash[:8]}, "
                f"is {present.strategies.get(name, 'missing')[:8]}); run it anew, or put back the run's strategy.py"
            )
    for name in recorded.versions:
        if name in _LIBRARIES and present.versions[name] != recorded.versions[name]:
            raise UsageError(
                f"the run began with {name} {recorded.versions[name]} and this is {present.versions[name]}, "
                "which may compute other digits; run the sweep anew"
            )
    for name in sorted({*recorded.config, *present.config}):
        was, is_now = recorded.config.get(name), present.config.get(name)
        if was != is_now:
            raise UsageError(
                f"the configuration has changed since the run began: {name} was {_shown(was)}, is {_shown(is_now)}; "
                "set it back or run the sweep anew"
            )
    if present.panel_digest != recorded.panel_digest:
        raise DataError(
            f"the panel has changed since the run began: it was {_panel(recorded)}, is {_panel(present)}; "
            "read it with the run's as_of and cutoff, or run the sweep anew"
        )


def _panel(manifest: Manifest) -> str:
    health = manifest.panel_health
    return (
        f"{health.get('observations')} observations of {health.get('pools')} pools from {health.get('first')} to "
        f"{health.get('last')} ({manifest.panel_digest[:8]})"
    )


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _hash(config: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "str | None": (str, type(None)),
    "int | None": (int, type(None)),
    "tuple[str, ...]": (list, tuple),
}


def _fits(annotation: str, value: object) -> bool:
    kind = dict if annotation.startswith("Mapping") else _KINDS[annotation]
    return isinstance(value, kind) and not isinstance(value, bool)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _git_commit(folder: Path) -> str | None:
    """The commit that the strategy's folder is at, if it is under git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
