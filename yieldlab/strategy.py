"""One strategy file: what it declares, whether that holds together, and the signal it gives for a panel.

A file is read once; the text that is kept and hashed is the text that ran. It runs in a module of its own that nothing
else can import.
"""

from __future__ import annotations

import hashlib
import inspect
import keyword
import string
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from yieldlab import market, schema
from yieldlab.causality import assert_causal, expect_same, instant
from yieldlab.errors import DataError, StrategyError, UsageError, YieldlabError, did_you_mean
from yieldlab.panel import Panel
from yieldlab.simulate import policy
from yieldlab.space import Grid, Value, alike, check_known

Floats = NDArray[np.float64]

#: Fields that models write; a name in NEEDS may begin so and hold {parameters}.
MODEL_FIELDS = ("forecast_", "risk_")

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

#: Characters of a strategy's own error message that are repeated to the user.
_LONGEST = 300

_loads = count()


@dataclass(frozen=True, slots=True)
class Strategy:
    """A strategy file that passed every check which needs no data.

    `needs` are the panel fields it reads, `warmup` the rows that must lie before the first row decided on (or the
    signal parameter that says how many); the first value of each axis of the two grids is its default.
    """

    name: str
    path: Path
    doc: str
    needs: tuple[str, ...]
    warmup: int | str
    signal_grid: Grid
    policy_grid: Grid
    source: str = field(repr=False)
    source_hash: str
    _function: Callable[..., object] = field(repr=False, compare=False)

    def params(self, chosen: Mapping[str, Value] | None = None) -> dict[str, Value]:
        """Every signal parameter: `chosen`, else its default. Raises UsageError for an unknown name or a wrong kind."""
        chosen = chosen or {}
        check_known(f"parameter of strategy {self.name!r}", list(chosen), list(self.signal_grid.axes))
        defaults = self.signal_grid.defaults()
        return {name: alike(name, chosen.get(name, value), value) for name, value in defaults.items()}

    def fields(self, params: Mapping[str, Value] | None = None) -> tuple[str, ...]:
        """The panel fields that the signal reads with these parameters."""
        filled = self.params(params)
        return tuple(template.format(**filled) for template in self.needs)

    def warmup_rows(self, params: Mapping[str, Value] | None = None) -> int:
        """Rows of panel that must lie before the first row decided on."""
        if isinstance(self.warmup, int):
            return self.warmup
        value = self.params(params)[self.warmup]
        if not _is_rows(value):
            raise UsageError(
                f"{self.warmup} is the warm-up of strategy {self.name!r} and must be a whole number of rows, "
                f"0 or more, not {value!r}"
            )
        return int(value)

    def signal(self, panel: Panel, params: Mapping[str, Value] | None = None) -> Floats:
        """(T, N) what each pool is worth holding: float64, C-contiguous, NaN = no view.

        Raises DataError when the panel lacks a field, UsageError for a parameter that does not exist, and StrategyError
        when the strategy raises, returns something else than numbers of the panel's shape, or has no view at all.
        """
        filled = self.params(params)
        warmup = self.warmup_rows(filled)
        views = _views(self.name, self.path, self._function, self._provided(panel, filled), filled)
        infinite = np.isinf(views)
        if infinite.any():
            t, i = np.argwhere(infinite)[0]
            raise StrategyError(
                f"strategy {self.name!r} returned {np.count_nonzero(infinite)} infinite values, the first at "
                f"{instant(panel.times[t])}, pool {panel.pool_ids[i]!r}; NaN means no view"
            )
        if np.isnan(views[warmup:]).all():
            rows = panel.shape[0]
            reason = f"; its warm-up of {warmup} rows takes the whole panel of {rows}" if warmup >= rows else ""
            raise StrategyError(f"strategy {self.name!r} has no view on any pool{reason}")
        return views

    def audit(
        self,
        panel: Panel,
        params: Mapping[str, Value] | None = None,
        *,
        rows: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        """Raise CausalityError when the signal on this panel depends on later rows (see `causality.assert_causal`).

        The file runs afresh for every call, so that nothing it remembers can hide what it saw. Then one copy of it sees
        half the panel first, and must give what a fresh one gives.
        """
        filled = self.params(params)
        self._provided(panel, filled)
        name = f"strategy {self.name!r}"

        def afresh(seen: Panel, before: Panel | None = None) -> Floats:
            function = _executed(self.source, self.path).signal
            if before is not None:
                _views(self.name, self.path, function, before, filled)
            return _views(self.name, self.path, function, seen, filled)

        assert_causal(afresh, panel, rows=rows, seed=seed, name=name)
        remembering = afresh(panel, before=panel.head(panel.shape[0] // 2))
        expect_same(afresh(panel), remembering, panel, f"{name}: what it gives depends on what it was called on before")

    def _provided(self, panel: Panel, filled: Mapping[str, Value]) -> Panel:
        for name in self.fields(filled):
            if name not in panel.fields:
                raise DataError(
                    f"strategy {self.name!r} needs the field {name!r}, which the panel lacks; {_source(name)}"
                )
        return panel


@dataclass(frozen=True, slots=True)
class Found:
    """One file of a strategies folder: `state` is OK, LOAD FAILED or DUPLICATE, `detail` says why in one line."""

    name: str
    path: Path
    state: str
    detail: str
    strategy: Strategy | None


def load(path: str | Path) -> Strategy:
    """The strategy in this file. Raises UsageError with one sentence when it cannot be one."""
    path = Path(path)
    try:
        source = path.read_bytes().decode()
    except OSError as error:
        raise UsageError(f"cannot read strategy file {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"strategy file {path} is not UTF-8 text (byte {error.start})") from error
    try:
        return _declared(path, source)
    except UsageError as error:
        raise UsageError(f"strategy {path.stem!r}: {error}") from error


def discover(folders: Iterable[str | Path]) -> list[Found]:
    """Every `*.py` of the folders whose name does not begin with `_`, by folder, then name.

    A broken file is listed with its reason and costs the others nothing; of two files with one name, the one in the
    earlier folder counts. A folder that does not exist has none.
    """
    first: dict[str, Path] = {}
    found = []
    for path in _files(folders):
        name = path.stem
        if name in first:
            found.append(Found(name, path, "DUPLICATE", f"not used: {first[name]} comes first", None))
            continue
        first[name] = path
        try:
            found.append(Found(name, path, "OK", "", load(path)))
        except UsageError as error:
            found.append(Found(name, path, "LOAD FAILED", str(error), None))
    return found


def find(name_or_path: str | Path, folders: Iterable[str | Path]) -> Strategy:
    """The strategy of this name in the first folder that has it, or in the file of this path, which ends in `.py`.

    Raises UsageError with the nearest names when there is none.
    """
    text = str(name_or_path)
    if text.endswith(".py"):
        path = Path(text).expanduser()
        if not path.is_file():
            near = did_you_mean(path.stem, {file.stem for file in _files([path.parent])})
            raise UsageError(f"there is no strategy file {path}{near}")
        return load(path)
    named: dict[str, Path] = {}
    for path in _files(folders):
        named.setdefault(path.stem, path)
    if text not in named:
        raise UsageError(f"unknown strategy {text!r}{did_you_mean(text, named)}")
    return load(named[text])


def bundled_folder() -> Path:
    """Where the strategies that come with yieldlab are: in the package, or beside it in a working copy."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_bundled" / "strategies", package.parent / "strategies"):
        if folder.is_dir():
            return folder
    raise UsageError(f"the bundled strategies are not in {package}; install yieldlab again")


def template(name: str) -> str:
    """The text of a new strategy file that works as it stands."""
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise UsageError(f"{name!r} cannot name a strategy; use letters, digits and _, beginning with a letter")
    return _TEMPLATE.replace("NAME", name)


_TEMPLATE = '''\
"""NAME: hold the pools whose yield has risen most.

Say here, in a line or two, why it should work.
"""

import numpy as np

from yieldlab import Grid, Panel
from yieldlab.features import change, rolling_mean

# Panel fields that the signal reads.
NEEDS = ("apy",)

# Rows that must lie before the first decision: a number, or the parameter that gives it.
WARMUP = "lookback"

# The parameters of signal(). The first value of an axis is its default; a sweep tries all combinations.
SIGNAL = Grid(lookback=[7, 30], horizon=[7, 14])

# How the signal is traded: any policy parameter, held to its range when the file is loaded.
POLICY = Grid(top_n=[3, 5], every=[7, 30])


def signal(panel: Panel, lookback: int, horizon: int) -> np.ndarray:
    """(T, N), higher is better, NaN = no view. Row t may read rows up to t and no later one."""
    smooth = rolling_mean(panel["apy"], lookback)
    return change(smooth, horizon)
'''


def _files(folders: Iterable[str | Path]) -> Iterator[Path]:
    for folder in dict.fromkeys(Path(folder).expanduser().resolve() for folder in folders):
        if folder.is_dir():
            files = (path for path in folder.glob("*.py") if not path.is_dir() and not path.name.startswith("_"))
            yield from sorted(files)


def _executed(source: str, path: Path) -> types.ModuleType:
    """The file as a module that has run. It is importable only while it runs, which dataclasses in it rely on."""
    module = types.ModuleType(f"_yieldlab_strategy_{next(_loads)}")
    module.__file__ = str(path)
    try:
        code = compile(source.encode(), str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise UsageError(f"{error.msg} (line {error.lineno})") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    sys.modules[module.__name__] = module
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        raise UsageError(f"raised {_told(error, path)} while loading") from error
    finally:
        del sys.modules[module.__name__]
    return module


def _declared(path: Path, source: str) -> Strategy:
    """What the file says of itself, checked."""
    module = _executed(source, path)
    function = getattr(module, "signal", None)
    if not inspect.isfunction(function):
        functions = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        hint = did_you_mean("signal", functions)
        raise UsageError(f"has no function signal(panel, ...){hint if 'did you mean' in hint else ''}")
    signal_grid = _grid(module, "SIGNAL")
    policy_grid = _grid(module, "POLICY")
    _check_parameters(function, signal_grid)
    _check_policy(policy_grid)
    return Strategy(
        name=path.stem,
        path=path,
        doc=inspect.cleandoc(module.__doc__ or ""),
        needs=_needs(module, signal_grid),
        warmup=_warmup(module, signal_grid),
        signal_grid=signal_grid,
        policy_grid=policy_grid,
        source=source,
        source_hash=hashlib.sha256(source.encode()).hexdigest(),
        _function=function,
    )


def _grid(module: types.ModuleType, name: str) -> Grid:
    grid = getattr(module, name, Grid())
    if not isinstance(grid, Grid):
        raise UsageError(f"{name} must be a Grid, as {name} = Grid(axis=[...]), not {type(grid).__name__}")
    return grid


def _check_parameters(function: Callable[..., object], grid: Grid) -> None:
    """The signature names `panel`, then exactly the axes of SIGNAL."""
    listed = list(inspect.signature(function).parameters.values())
    if not listed or listed[0].name != "panel" or listed[0].kind not in _POSITIONAL:
        first = str(listed[0]) if listed else "nothing"
        raise UsageError(f"the first parameter of signal() must be 'panel', not {first!r}")
    for parameter in listed[1:]:
        if parameter.kind not in _NAMED:
            raise UsageError(
                f"signal() takes {str(parameter)!r}; every parameter must be one that a name can be given to"
            )
    names = [parameter.name for parameter in listed[1:]]
    for name in names:
        if name not in grid.axes:
            raise UsageError(f"parameter {name!r} of signal() has no axis in SIGNAL{_near(name, grid.axes)}")
    for name in grid.axes:
        if name not in names:
            raise UsageError(f"axis {name!r} of SIGNAL is no parameter of signal(){_near(name, names)}")
        if name in policy.PARAMETERS or name in market.DEFAULTS:
            kind = "policy" if name in policy.PARAMETERS else "market"
            raise UsageError(f"signal parameter {name!r} has the name of a {kind} parameter; give it another")


def _check_policy(grid: Grid) -> None:
    for name, values in grid.axes.items():
        if name in market.DEFAULTS:
            raise UsageError(f"{name!r} is a market parameter and no axis of POLICY; set it when you run the strategy")
        for value in values:
            policy.check_value(name, value)


def _needs(module: types.ModuleType, grid: Grid) -> tuple[str, ...]:
    needs = getattr(module, "NEEDS", None)
    if not isinstance(needs, tuple) or not all(isinstance(name, str) for name in needs):
        given = "nothing" if needs is None else repr(needs)
        raise UsageError(f'NEEDS must be a tuple of panel fields, as NEEDS = ("apy",), not {given}')
    for name in needs:
        if name.startswith(MODEL_FIELDS):
            _check_placeholders(name, grid)
        elif name not in schema.FIELDS:
            raise UsageError(
                f"unknown field {name!r} in NEEDS{did_you_mean(name, schema.FIELDS)} (or forecast_... and risk_...)"
            )
    if len(set(needs)) < len(needs):
        raise UsageError(f"NEEDS repeats a field: {', '.join(needs)}")
    return needs


def _check_placeholders(name: str, grid: Grid) -> None:
    try:
        parts = list(string.Formatter().parse(name))
    except ValueError as error:
        raise UsageError(f"cannot read {name!r} in NEEDS: {error}") from error
    for _, placeholder, spec, conversion in parts:
        if placeholder is None:
            continue
        if placeholder not in grid.axes or spec or conversion:
            raise UsageError(f"{name!r} in NEEDS is to be filled from {placeholder!r}, which is no axis of SIGNAL")
        for value in grid.axes[placeholder]:
            if not isinstance(value, str) or not value:
                raise UsageError(
                    f"{name!r} in NEEDS is filled from {placeholder!r}, whose values must be words, not {value!r}"
                )


def _warmup(module: types.ModuleType, grid: Grid) -> int | str:
    warmup = getattr(module, "WARMUP", 0)
    if isinstance(warmup, str):
        if warmup not in grid.axes:
            raise UsageError(f"WARMUP names {warmup!r}, which is no signal parameter{did_you_mean(warmup, grid.axes)}")
        for value in grid.axes[warmup]:
            if not _is_rows(value):
                raise UsageError(f"WARMUP names {warmup!r}, whose values must be whole numbers >= 0, not {value!r}")
        return warmup
    if not _is_rows(warmup):
        raise UsageError(f"WARMUP must be a number of rows >= 0 or the name of a signal parameter, not {warmup!r}")
    return int(warmup)


def _views(name: str, path: Path, function: Callable[..., object], panel: Panel, params: Mapping[str, Value]) -> Floats:
    """What the strategy returns, as a fresh float64 array of the panel's shape."""
    try:
        returned = function(panel, **params)
    except (Exception, SystemExit) as error:
        verb = ":" if isinstance(error, YieldlabError) else " raised"
        raise StrategyError(f"strategy {name!r}{verb} {_told(error, path)}") from error
    expected = f"a NumPy array of numbers with shape (times, pools) = {panel.shape}"
    if not isinstance(returned, np.ndarray) or isinstance(returned, np.ma.MaskedArray):
        raise StrategyError(f"strategy {name!r} must return {expected}, not {type(returned).__name__}")
    if returned.dtype.kind == "b":
        raise StrategyError(
            f"strategy {name!r} returned true and false, which rank no pool above another and cannot say 'no view'; "
            "return np.where(condition, score, np.nan)"
        )
    if returned.dtype.kind not in "iuf":
        raise StrategyError(f"strategy {name!r} must return {expected}, not values of type {returned.dtype}")
    if returned.shape != panel.shape:
        raise StrategyError(f"strategy {name!r} must return {expected}, but returned shape {returned.shape}")
    return np.array(returned, dtype=np.float64, order="C", subok=False)


def _told(error: BaseException, path: Path) -> str:
    """The error in one line, with the line of the strategy file that it came through last."""
    text = " ".join(str(error).split())
    if not isinstance(error, YieldlabError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}..."
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return text if line is None else f"{text} (line {line})"


def _source(name: str) -> str:
    """Where a panel field comes from, for someone who lacks it."""
    if name in schema.FIELDS:
        return f"it is read from the column {schema.FIELDS[name].column!r} of the data"
    return "a model writes it (`yieldlab models walk-forward`), or Panel.with_fields adds it"


def _near(name: str, known: Iterable[str]) -> str:
    """The nearest name, or how to mend it when none is near."""
    hint = did_you_mean(name, known)
    return hint if "did you mean" in hint else "; the two must name the same parameters"


def _is_rows(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
