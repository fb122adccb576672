"""Which settings are in force: flags, then the environment, then `yieldlab.toml`, then defaults.

Nothing here is a secret, and an unknown key is an error: a misspelt setting would otherwise be a setting ignored.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from yieldlab.errors import ConfigError, UsageError, YieldlabError, did_you_mean

FILE_NAME = "yieldlab.toml"
ENVIRONMENT_PREFIX = "YIELDLAB_"

_BYTES = {"": 1, "B": 1}
_BYTES |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)}
_BYTES |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", start=1)}


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting with its default; paths of a file are relative to that file."""

    data: Path = Path("data")
    strategies: tuple[Path, ...] = ()
    models: Path = Path("models")
    capital: float = 10_000.0
    cost_bps: float = 10.0
    gas_usd: float = 0.0
    seed: int = 0
    jobs: int = 1
    max_memory: int = 2 * 1000**3
    base_url: str = "https://yields.llama.fi"
    coins_url: str = "https://coins.llama.fi"
    sentiment_url: str = "https://api.alternative.me"
    requests_per_minute: float = 200.0
    keep_raw_days: int = 30
    check: Mapping[str, float | None] = field(default_factory=dict)
    #: The file that was read, if any.
    file: Path | None = None
    #: Settings named by a flag, which win over what a strategy file says.
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: what a value must be in words, how it is read, and what it means."""

    right: str
    read: Callable[[object, Path], object]
    default: str
    meaning: str


def load(
    flags: Mapping[str, object] | None = None,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Settings:
    """The settings in force. A flag that is None was not given.

    `file` must exist when named; otherwise `yieldlab.toml` of `folder` (default: the current one) is read if it is
    there. Raises ConfigError for a file or variable that cannot be used, UsageError for a flag.
    """
    folder = Path() if folder is None else folder
    environment = os.environ if environment is None else environment
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    found = _find(file, folder, environment)
    values: dict[str, object] = {"jobs": _available_cores()}
    if found is not None:
        values |= _from_file(found)
    values |= _from_environment(environment, folder)
    for name, value in given.items():
        values[name] = _read(name, value, folder, f"--{name.replace('_', '-')}", UsageError)
    return Settings(**values, file=found, flags=frozenset(given))  # type: ignore[arg-type]  # read by KEYS


def parse_bytes(text: str) -> int:
    """Bytes of a size as people write it: GB is 1000 to the third, GiB 1024 to the third.

    >>> parse_bytes("2GB"), parse_bytes("1.5 MiB"), parse_bytes("4096")
    (2000000000, 1572864, 4096)
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in _BYTES:
        raise ValueError(text)
    return int(float(found[1]) * _BYTES[found[2].upper()])


def _find(file: Path | None, folder: Path, environment: Mapping[str, str]) -> Path | None:
    if file is None and environment.get("YIELDLAB_CONFIG"):
        file = Path(environment["YIELDLAB_CONFIG"])
    if file is not None:
        if not file.is_file():
            raise ConfigError(f"there is no configuration file {file}; name one that exists with --config")
        return file
    here = folder / FILE_NAME
    return here if here.is_file() else None


def _from_file(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    values: dict[str, object] = {}
    for name, value in document.items():
        if name == "check":
            values[name] = _thresholds(value, path)
        elif name in KEYS:
            values[name] = _read(name, value, path.parent, f"{path}: {name}", ConfigError)
        else:
            raise ConfigError(f"{path}: unknown key {name!r}{did_you_mean(name, [*KEYS, 'check'])}")
    return values


def _from_environment(environment: Mapping[str, str], folder: Path) -> dict[str, object]:
    known = {ENVIRONMENT_PREFIX + name.upper(): name for name in KEYS}
    values: dict[str, object] = {}
    for variable in sorted(environment):
        if variable in known:
            values[known[variable]] = _read(known[variable], environment[variable], folder, variable, ConfigError)
        elif near := difflib.get_close_matches(variable, known, n=1, cutoff=0.9):
            raise ConfigError(f"unknown environment variable {variable!r}; did you mean {near[0]!r}?")
    return values


def _thresholds(value: object, path: Path) -> Mapping[str, float | None]:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: check must be a table, [check], not {value!r}")
    limits = {name: None if limit == "none" else limit for name, limit in value.items()}
    try:
        check_thresholds(limits)
    except UsageError as error:
        raise ConfigError(f"{path}: {error}") from error
    return MappingProxyType(limits)


def check_thresholds(limits: Mapping[str, object]) -> None:
    """Raise UsageError for a threshold of `data check` that does not exist or cannot be; None switches one off."""
    from yieldlab.quality import Thresholds

    known = {threshold.name: threshold for threshold in fields(Thresholds)}
    for name, limit in limits.items():
        if name not in known:
            raise UsageError(f"unknown threshold {name!r} of `data check`{did_you_mean(name, known)}")
        if limit is None and "None" in str(known[name].type):
            continue
        whole = str(known[name].type).startswith("int")
        kind = "a whole number" if whole else "a number"
        if isinstance(limit, bool) or not isinstance(limit, int if whole else int | float) or not math.isfinite(limit):
            raise UsageError(f"the threshold {name} must be {kind} or none, not {limit!r}")
    Thresholds(**limits)  # type: ignore[arg-type]  # checked above; its own checks of the range follow


def _read(name: str, value: object, folder: Path, where: str, error: type[YieldlabError]) -> object:
    key = KEYS[name]
    try:
        return key.read(value, folder)
    except (ValueError, TypeError, OverflowError):
        # An address that holds a password must not be repeated.
        shown = "one that has them" if key.right == _WEB and "@" in str(value) else repr(value)
        raise error(f"{where} must be {key.right}, not {shown}") from None


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- how a value of each kind is read: from TOML (typed), the environment (text) or a flag (either) ------------------


def _path(value: object, folder: Path) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        raise TypeError
    return folder / Path(value).expanduser()


def _paths(value: object, folder: Path) -> tuple[Path, ...]:
    parts: object = value.split(os.pathsep) if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise TypeError
    return tuple(_path(part, folder) for part in parts)


def _number(low: float, *, low_open: bool = False, below: float = math.inf) -> Callable[[object, Path], float]:
    def read(value: object, folder: Path) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError
        number = float(value)
        if not math.isfinite(number) or number < low or (low_open and number == low) or number >= below:
            raise ValueError
        return number

    return read


def _whole(low: int) -> Callable[[object, Path], int]:
    def read(value: object, folder: Path) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise TypeError
        number = int(value)
        if number < low:
            raise ValueError
        return number

    return read


def _url(value: object, folder: Path) -> str:
    if not isinstance(value, str):
        raise TypeError
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError
    if parts.username or parts.password:
        raise ValueError
    return value.rstrip("/")


def _size(value: object, folder: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    size = parse_bytes(value) if isinstance(value, str) else value
    if size < 1_000_000:
        raise ValueError
    return size


_WEB = "an address such as https://yields.llama.fi, without a query, a user or a password"

#: Every key of `yieldlab.toml` except the table `[check]`; upper case with `YIELDLAB_` before it, each is a variable.
KEYS: Mapping[str, Key] = MappingProxyType(
    {
        "data": Key("a folder", _path, '"data"', "folder of tables, runs and rejected rows"),
        "strategies": Key(
            "a list of folders",
            _paths,
            '["strategies"] if that folder is there, else the bundled strategies',
            "folders where strategy files are looked for, in order",
        ),
        "models": Key("a folder", _path, '"models"', "folder of trained models"),
        "capital": Key("a number > 0", _number(0, low_open=True), "10000", "USD at the start of every trial"),
        "cost_bps": Key(
            "a number >= 0 and below 10000",
            _number(0, below=10_000),
            "10",
            "cost of every deposit and every withdrawal, in basis points of its value",
        ),
        "gas_usd": Key("a number >= 0", _number(0), "0", "USD per pool traded"),
        "seed": Key("a whole number >= 0", _whole(0), "0", "where samples and synthetic data start from"),
        "jobs": Key("a whole number >= 1", _whole(1), "all cores", "threads"),
        "max_memory": Key(
            'a size of at least 1MB, such as "2GB"', _size, '"2GB"', "memory that a sweep may use above the panel"
        ),
        "base_url": Key(_WEB, _url, '"https://yields.llama.fi"', "where the feed of yields is asked"),
        "coins_url": Key(_WEB, _url, '"https://coins.llama.fi"', "where token prices are asked"),
        "sentiment_url": Key(_WEB, _url, '"https://api.alternative.me"', "where market sentiment is asked"),
        "requests_per_minute": Key("a number > 0", _number(0, low_open=True), "200", "requests to a feed at most"),
        "keep_raw_days": Key("a whole number >= 1", _whole(1), "30", "days for which raw answers of a feed are kept"),
    }
)
