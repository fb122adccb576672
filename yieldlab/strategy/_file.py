"""One strategy file: the text that ran, what it declares, and the signal it gives for a panel.

A file is read once; the text that is kept and hashed is the text that ran. It runs in a module of its own that nothing
else can import.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yieldlab import schema
from yieldlab.causality import SECONDS, assert_causal, expect_same, instant
from yieldlab.errors import DataError, StrategyError, UsageError, YieldlabError
from yieldlab.panel import Panel
from yieldlab.space import Grid, Value, alike, check_known
from yieldlab.strategy import _contract
from yieldlab.strategy._contained import contained, forgetting

Floats = NDArray[np.float64]

#: Characters of a strategy's own error message that are repeated to the user.
_LONGEST = 300

#: How far two values of a signal may lie apart, in parts of their size, and still be one value rounded twice.
_ROUNDING = 1e-12

#: Rows that a strategy is called on at least when it is audited: of one row there is no difference to take.
_SHORTEST = 2

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
    _forget: Callable[[], None] = field(repr=False, compare=False)

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
        if not _contract.is_rows(value):
            raise UsageError(
                f"{self.warmup} is the warm-up of strategy {self.name!r} and must be a whole number of rows, "
                f"0 or more, not {value!r}"
            )
        return int(value)

    def signal(self, panel: Panel, params: Mapping[str, Value] | None = None) -> Floats:
        """(T, N) what each pool is worth holding: float64, C-contiguous, NaN = no view.

        Raises DataError when the panel lacks a field or the file itself raises it, UsageError for a
        parameter that does not exist, and StrategyError when the strategy raises anything else, returns something else
        than numbers of the panel's shape, or has no view at all.
        """
        filled = self.params(params)
        warmup = self.warmup_rows(filled)
        views = _views(self.name, self.path, self._function, self._provided(panel, filled), filled)
        infinite = np.isinf(views)
        if infinite.any():
            t, i = np.argwhere(infinite)[0]
            raise StrategyError(
                f"strategy {self.name!r} returned infinite values, {np.count_nonzero(infinite)} in all, the first at "
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
        seconds: float = SECONDS,
    ) -> None:
        """Raise CausalityError when the signal on this panel depends on later rows (see `causality.assert_causal`).

        Rows before the warm-up do not count; values may differ by rounding, since a matrix product's last bit depends
        on how many rows it has. The file runs afresh for every call, so that nothing it remembers can hide what it saw.
        Then one copy of it sees half the panel first, and must give what a fresh one gives.
        """
        filled = self.params(params)
        self._provided(panel, filled)
        name, warmup = f"strategy {self.name!r}", self.warmup_rows(filled)
        shortest = max(_SHORTEST, warmup + 1)

        def afresh(seen: Panel, before: Panel | None = None) -> Floats:
            self._forget()
            function = _executed(self.source, self.path).signal
            if before is not None:
                _views(self.name, self.path, function, before, filled)
            return _views(self.name, self.path, function, seen, filled)

        try:
            assert_causal(
                afresh,
                panel,
                rows=rows,
                seed=seed,
                name=name,
                warmup=warmup,
                shortest=shortest,
                tolerance=_ROUNDING,
                seconds=seconds,
            )
            remembering = afresh(panel, before=panel.head(max(shortest, panel.shape[0] // 2)))
            complaint = f"{name}: what it gives depends on what it was called on before"
            expect_same(afresh(panel), remembering, panel, complaint, warmup=warmup, tolerance=_ROUNDING)
        finally:
            self._forget()

    def _provided(self, panel: Panel, filled: Mapping[str, Value]) -> Panel:
        for name in self.fields(filled):
            if name not in panel.fields:
                raise DataError(
                    f"strategy {self.name!r} needs the field {name!r}, which the panel lacks; {_source(name)}"
                )
        return panel


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
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a declaration no check foresaw, as a number too large for a float
        raise UsageError(f"strategy {path.stem!r}: {_told(error, path)}") from error


def _executed(source: str, path: Path) -> types.ModuleType:
    """The file as a module that has run. It is importable only while it runs, which dataclasses in it rely on."""
    module = types.ModuleType(f"_yieldlab_strategy_{next(_loads)}")
    module.__file__ = str(path)
    try:
        code = compile(source.encode(), str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        where = f" (line {error.lineno})" if error.lineno else ""
        raise UsageError(f"{error.msg}{where}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    sys.modules[module.__name__] = module
    try:
        with contained():
            exec(code, module.__dict__)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # not only Exception: Polars panics are none
        verb = "" if isinstance(error, YieldlabError) else "raised "
        raise UsageError(f"{verb}{_told(error, path)} while loading") from error
    finally:
        del sys.modules[module.__name__]
    return module


def _declared(path: Path, source: str) -> Strategy:
    """What the file says of itself, checked."""
    module = _executed(source, path)
    function = getattr(module, "signal", None)
    if not inspect.isfunction(function):
        functions = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise UsageError(f"has no function signal(panel, ...){_contract.near('signal', functions)}")
    signal_grid = _contract.grid(module, "SIGNAL")
    policy_grid = _contract.grid(module, "POLICY")
    _contract.check_parameters(function, signal_grid)
    _contract.check_policy(policy_grid)
    return Strategy(
        name=path.stem,
        path=path,
        doc=inspect.cleandoc(module.__doc__ or ""),
        needs=_contract.needs(module, signal_grid),
        warmup=_contract.warmup(module, signal_grid),
        signal_grid=signal_grid,
        policy_grid=policy_grid,
        source=source,
        source_hash=hashlib.sha256(source.encode()).hexdigest(),
        _function=function,
        _forget=forgetting(function.__globals__),
    )


def _views(name: str, path: Path, function: Callable[..., object], panel: Panel, params: Mapping[str, Value]) -> Floats:
    """What the strategy returns, as a fresh float64 array of the panel's shape."""
    try:
        with contained():
            returned = function(panel, **params)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # not only Exception: Polars panics are none
        if isinstance(error, DataError) and _line(error, path)[1]:
            raise DataError(f"strategy {name!r}: {_told(error, path)}") from error
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
    """The error in one line, with the line of the strategy file that it came through last.

    A sentence that the file itself raised as one of yieldlab's errors was written for the user and stands alone.
    """
    text = " ".join(str(error).split())
    if not isinstance(error, YieldlabError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}..."
    line, inside = _line(error, path)
    if line is None or (inside and isinstance(error, YieldlabError)):
        return text
    return f"{text} (line {line})"


def _line(error: BaseException, path: Path) -> tuple[int | None, bool]:
    """The line of the strategy file that the error came through last, and whether it was raised there."""
    line, inside = None, False
    trace = error.__traceback__
    while trace is not None:
        inside = trace.tb_frame.f_code.co_filename == str(path)
        line = trace.tb_lineno if inside else line
        trace = trace.tb_next
    return line, inside


def _source(name: str) -> str:
    """Where a panel field comes from, for someone who lacks it."""
    if name in schema.FIELDS:
        return f"it is read from the column {schema.FIELDS[name].column!r} of the data"
    return "a model writes it (`yieldlab models walk-forward`), or Panel.with_fields adds it"
