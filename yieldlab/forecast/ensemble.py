"""What do several models say together, with weights that no forecast day had a part in?

Weights come from the members' forecasts of validation rows, on the cells that all of them have, and what came true.
With `inverse_error` they are proportional to 1 / MSE, where errors are those of `asinh(APY / c)` and c is the median
size of the truth: one pool with an APY of 10,000 % does not decide alone. With `mean` all are the same, and with
`given` they are in proportion to the members' settings `weight`.

The ensemble loads no library of its members: each is made by name.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from yieldlab.errors import DataError, UsageError, did_you_mean
from yieldlab.folds import Rows
from yieldlab.forecast.protocol import EpochDone, Model
from yieldlab.forecast.registry import entry, make, members_of, to_judge
from yieldlab.forecast.scaling import YieldTransform
from yieldlab.forecast.windows import Windows
from yieldlab.space import Value

__all__ = ["FITTED", "HOW", "Ensemble", "Weights", "check_how"]

Floats = NDArray[np.float64]

#: Ways to weigh that look at validation rows, or at nothing; and all of them.
FITTED = ("inverse_error", "mean")
HOW = (*FITTED, "given")


@dataclass(frozen=True, slots=True)
class Weights:
    """Member -> weight, which add up to 1, the validation cells that they rest on and the last row of truth that was
    looked at (0 and -1 where none was)."""

    values: Mapping[str, float]
    cells: int = 0
    last: int = -1

    @classmethod
    def fit(cls, predictions: Mapping[str, Floats], truth: Floats, how: str = "inverse_error") -> Self:
        """From each member's (T, N) forecasts and what came true, fractions, NaN = none.

        Members without any error share all the weight, and one that is infinite somewhere has none. Raises DataError
        when no cell has the truth and a forecast of every member, or all are infinite, UsageError for an unknown `how`.
        """
        check_how(how, FITTED)
        if how == "mean":
            return cls({name: 1.0 / len(predictions) for name in predictions})
        common = ~np.isnan(truth) & ~np.isnan(np.stack(list(predictions.values()))).any(axis=0)
        if not common.any():
            raise DataError(
                f"no validation day has the truth and a forecast of each of {', '.join(predictions)}, so they cannot "
                "be weighed; leave one out, or combine them by their mean"
            )
        transform = YieldTransform.fit(truth[common])
        wanted = transform.forward(truth[common])
        errors = {
            name: _mean_square(transform.forward(values[common]) - wanted) for name, values in predictions.items()
        }
        least = min(errors.values())
        if not np.isfinite(least):
            raise DataError(
                f"each of {', '.join(predictions)} has an infinite forecast on the validation days, so they cannot be "
                "weighed"
            )
        shares = {name: least / error if error else 1.0 for name, error in errors.items()}
        total = sum(shares.values())
        last = int(np.flatnonzero(~np.isnan(truth).all(axis=1))[-1])
        return cls({name: share / total for name, share in shares.items()}, int(common.sum()), last)

    @property
    def counting(self) -> list[str]:
        """The members that have a weight."""
        return [name for name, weight in self.values.items() if weight]

    def combine(self, predictions: Mapping[str, Floats]) -> tuple[Floats, int]:
        """The weighted mean of the members that have a weight, and how many of these forecasts lack one of them: there
        the weights of those present are scaled up to 1. NaN where none has one."""
        values = np.stack([predictions[name] for name in self.counting])
        weights = np.array([self.values[name] for name in self.counting])[:, None, None]
        present = ~np.isnan(values)
        whole = np.sum(weights * present, axis=0)
        weighed = np.sum(weights * np.where(present, values, 0.0), axis=0)
        combined = np.full(whole.shape, np.nan)
        np.divide(weighed, whole, out=combined, where=whole > 0.0)
        return combined, int(np.count_nonzero(present.any(axis=0) & ~present.all(axis=0)))


class Ensemble:
    """Models that learn from the same days, and how much each counts."""

    def __init__(self, name: str, settings: Mapping[str, Value]) -> None:
        self.name = name
        self.settings = dict(settings)
        self.trained_through = -1
        #: Members that could not learn, and why; told by the training, and not kept.
        self.failed: dict[str, str] = {}
        self._how = str(settings["how"])
        check_how(self._how, HOW)
        self._models = {member: self._made(member) for member in members_of(str(settings["members"]))}
        given = self._given()
        if self._how == "given" and not any(given.values()):
            raise UsageError(
                f"the weights of model {name!r} are all 0; give one a weight, as {next(iter(given))}.weight=1"
            )
        if self._how != "given" and set(given.values()) != {1.0}:
            raise UsageError(f"weights of model {name!r} are given, and how is {self._how}; set how=given with them")

    def fit(self, windows: Windows, train: Rows, valid: Rows | None) -> Iterator[EpochDone]:
        """Let every member learn, then weigh them by their forecasts of the validation rows. One that cannot learn is
        left out and told in `failed`; one that is given no weight is not asked to.

        Raises UsageError for weights by errors without such rows, and what the first member raises when all fail.
        """
        if valid is None and self._how == "inverse_error":
            raise UsageError(f"model {self.name!r} has no validation days to weigh its members by; set how=mean")
        given = self._given() if self._how == "given" else dict.fromkeys(self._models, 1.0)
        checked: dict[str, Floats] = {}
        failures: dict[str, DataError] = {}
        for member in [member for member, weight in given.items() if weight]:
            model = self._models[member]
            try:
                yield from model.fit(windows, train, valid)
                if valid is not None and self._how == "inverse_error":
                    judged = yield from to_judge(model, windows, train)
                    checked[member] = judged.fields(windows, valid)[f"forecast_{member}"]
            except DataError as error:
                failures[member], given[member] = error, 0.0
                continue
            self.trained_through = max(self.trained_through, model.trained_through)
        if not any(given.values()):
            raise next(iter(failures.values()))
        self.failed = {member: str(error) for member, error in failures.items()}
        self._weights = Weights({member: weight / sum(given.values()) for member, weight in given.items()})
        if valid is not None and self._how == "inverse_error":
            found = Weights.fit(checked, windows.label[valid[0] : valid[1]], self._how)
            self._weights = replace(found, values={**given, **found.values})
            self.trained_through = max(self.trained_through, valid[0] + found.last + windows.horizon)

    def fields(self, windows: Windows, rows: Rows) -> dict[str, Floats]:
        """Weighted mean of the members' forecasts; of those that are there where one has none."""
        field = f"forecast_{self.name}"
        return {field: self.fields_and_parts(windows, rows)[0][field]}

    def fields_and_parts(self, windows: Windows, rows: Rows) -> tuple[dict[str, Floats], int]:
        """The field of the ensemble, then that of each member which counts, and how many of its forecasts lack one."""
        said = {
            member: self._models[member].fields(windows, rows)[f"forecast_{member}"]
            for member in self._weights.counting
        }
        combined, lacking = self._weights.combine(said)
        parts = {f"forecast_{member}": values for member, values in said.items()}
        return {f"forecast_{self.name}": combined, **parts}, lacking

    def unseen(self, windows: Windows) -> list[str | None]:
        """The kinds that no member has seen."""
        kinds = [self._models[member].unseen(windows) for member in self._weights.counting]
        return [each[0] if all(each) else None for each in zip(*kinds, strict=True)]

    def refit_settings(self) -> dict[str, Value]:
        """The members' own, and the weights that were found."""
        weights = {f"{member}.weight": weight for member, weight in self._weights.values.items()}
        settings: dict[str, Value] = {**self.settings, "how": "given", **weights}
        for member in self._weights.counting:
            own = self._models[member].refit_settings()
            settings |= {f"{member}.{key}": value for key, value in own.items() if f"{member}.{key}" in settings}
        return settings

    def document(self) -> dict[str, object]:
        return {
            "weights": dict(self._weights.values),
            "cells": self._weights.cells,
            "members": {member: self._models[member].document() for member in self._weights.counting},
        }

    def weights(self) -> bytes | None:
        """A ZIP archive of the members' own files, stored as they are."""
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
            for member in self._weights.counting:
                own = self._models[member].weights()
                if own is not None:
                    archive.writestr(zipfile.ZipInfo(_file(member)), own)  # without a date: equal models, equal bytes
        return content.getvalue()

    def restore(self, document: Mapping[str, Any], weights: bytes | None) -> None:
        try:
            values = {member: float(document["weights"][member]) for member in self._models}
            self._weights = Weights(values, int(document["cells"]))
            fitted = {member: dict(document["members"][member]) for member in self._weights.counting}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"the card of model {self.name!r} does not describe an ensemble ({error})") from error
        shares = np.array(list(values.values()))
        if not (np.isfinite(shares).all() and (shares >= 0.0).all() and np.isclose(shares.sum(), 1.0)):
            raise DataError(f"the card of model {self.name!r} has weights that are no shares of 1")
        own = _unpacked(self.name, weights or b"", [_file(each) for each in fitted if entry(each).suffix])
        for member, each in fitted.items():
            self._models[member].restore(each, own.get(_file(member)))

    def _made(self, member: str) -> Model:
        """A fresh member: its own settings, and those of the windows, which all share."""
        prefix = f"{member}."
        shared = {key: self.settings[key] for key in ("horizon", "lookback", "features")}
        own = {key.removeprefix(prefix): value for key, value in self.settings.items() if key.startswith(prefix)}
        own.pop("weight")
        return make(member, {**shared, **own})

    def _given(self) -> dict[str, float]:
        return {member: float(str(self.settings[f"{member}.weight"])) for member in self._models}


def _mean_square(errors: Floats) -> float:
    with np.errstate(over="ignore"):
        return float(np.mean(errors**2))


def check_how(how: str, known: Sequence[str]) -> None:
    """Raise UsageError for a way to weigh that is not `known`."""
    if how not in known:
        raise UsageError(f"unknown way to weigh {how!r}{did_you_mean(how, known)}")


def _file(member: str) -> str:
    """What a member's own file is called in the archive."""
    return f"{member}.{entry(member).suffix}"


def _unpacked(name: str, content: bytes, files: Sequence[str]) -> dict[str, bytes]:
    """The files of an archive. Raises DataError unless they are these, whole and not compressed."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            whole = all(each.compress_type == zipfile.ZIP_STORED for each in archive.infolist())
            if not whole or sorted(archive.namelist()) != sorted(files):
                raise DataError(f"the file of model {name!r} does not hold its members' files {', '.join(files)}")
            return {each: archive.read(each) for each in files}
    except (zipfile.BadZipFile, struct.error, OSError, RuntimeError, ValueError, EOFError) as error:
        raise DataError(f"the file of model {name!r} is no archive of its members' files") from error
