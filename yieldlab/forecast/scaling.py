"""In which scale a model sees numbers: what is fitted on training samples only and kept in the model's card.

Yields are heavy-tailed: an APY of 100,000 % lies among those of 5 %. They go through `asinh(x / c)`, linear for small
yields and logarithmic for large ones, with `c` the median size on the training rows, and are inverted on the way out.
Then every feature is centred and divided by its deviation; one that is constant has the scale 1. What is missing is 0
afterwards, the mean of the training rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from yieldlab.errors import DataError, UsageError, did_you_mean
from yieldlab.features.sets import REFERENCE_PROTOCOLS, STUDY
from yieldlab.folds import Rows
from yieldlab.forecast.windows import Ints, Singles, Windows
from yieldlab.units import from_percent, to_percent

Floats = NDArray[np.float64]

#: Features in units of a yield, or ratios as heavy-tailed as one; the others are taken as they are.
HEAVY = (
    "apy_percent volatility_24h apy_ma_7d apy_ma_30d apy_std_7d tvl_trend_7d volume_tvl_ratio apy_momentum "
    "apy_base_percent apy_reward_percent apy_lag_1d apy_lag_7d apy_lag_14d"
).split()

#: What can be learned of a yield.
TARGETS = ("change", "level")

#: The least `c`, so that a pool which pays nothing at all does not make it zero.
LEAST_SIZE = 1e-6


@dataclass(frozen=True, slots=True)
class YieldTransform:
    """`asinh(apy_percent / size)` and back."""

    size: float

    @classmethod
    def fit(cls, apy: Floats) -> Self:
        """From training APY (fractions, any shape, NaN left out)."""
        present = np.abs(to_percent(apy[~np.isnan(apy)]))
        return cls(max(float(np.median(present)) if present.size else 1.0, LEAST_SIZE))

    def forward(self, apy: Floats) -> Floats:
        """Fractions in, transformed numbers out; NaN stays NaN."""
        moved: Floats = np.arcsinh(to_percent(apy) / self.size)
        return moved

    def inverse(self, moved: Floats) -> Floats:
        """The inverse of `forward`; infinite where that is beyond every number."""
        with np.errstate(over="ignore"):
            apy: Floats = from_percent(np.sinh(moved) * self.size)
        return apy


@dataclass(frozen=True, slots=True)
class Target:
    """What a net or trees learn, in units of its deviation on the training samples: with the kind "change" how far the
    transformed APY moves until the label, so that one which knows nothing says that today's yield stays; with "level"
    where it will be, less the mean."""

    kind: str
    transform: YieldTransform
    centre: float
    spread: float

    @classmethod
    def fit(cls, kind: str, windows: Windows, t: Ints, n: Ints) -> Self:
        """From training samples. Raises DataError when there is nothing to learn on them."""
        transform = YieldTransform.fit(windows.label[t, n])
        wanted = _towards(kind, transform, windows, t, n)
        spread = float(wanted.std())
        if not spread > 1e-9:
            raise DataError(
                f"the APY to forecast never changes on the {t.size:,} training samples, so there is nothing to learn"
            )
        return cls(kind, transform, float(wanted.mean()) if kind == "level" else 0.0, spread)

    def wanted(self, windows: Windows, t: Ints, n: Ints) -> Floats:
        """What is to be answered for labelled samples."""
        wanted: Floats = (_towards(self.kind, self.transform, windows, t, n) - self.centre) / self.spread
        return wanted

    def apy(self, windows: Windows, t: Ints, n: Ints, answers: Floats) -> Floats:
        """The APY that answers for samples mean, as fractions."""
        moved = answers * self.spread + self.centre
        if self.kind == "change":
            moved = moved + self.transform.forward(windows.last[t, n])
        return self.transform.inverse(moved)

    def document(self) -> dict[str, object]:
        """Two parts of a card: what transforms a yield, and what is learned of it."""
        return {
            "transform": {"kind": "asinh", "apy_percent_size": self.transform.size},
            "target": {"centre": self.centre, "spread": self.spread},
        }

    @classmethod
    def restore(cls, kind: str, document: Mapping[str, Any]) -> Self:
        """The target of `document()`. Raises KeyError, TypeError or ValueError when it is none."""
        if document["transform"]["kind"] != "asinh":
            raise ValueError(f"unknown transform {document['transform']['kind']!r}")
        size = float(document["transform"]["apy_percent_size"])
        centre, spread = float(document["target"]["centre"]), float(document["target"]["spread"])
        if not np.isfinite([size, centre, spread]).all() or size <= 0.0 or spread <= 0.0:
            raise ValueError("its numbers are none")
        return cls(kind, YieldTransform(size), centre, spread)


def _towards(kind: str, transform: YieldTransform, windows: Windows, t: Ints, n: Ints) -> Floats:
    level = transform.forward(windows.label[t, n])
    return level - transform.forward(windows.last[t, n]) if kind == "change" else level


def check_target(name: str, kind: str) -> None:
    """Raise UsageError for a target that model `name` cannot have."""
    if kind not in TARGETS:
        raise UsageError(f"unknown target {kind!r} of model {name!r}{did_you_mean(kind, TARGETS)}")


@dataclass(frozen=True, slots=True)
class Scaler:
    """Names, sizes (0 = not transformed), means and scales of the features, the protocols of the one-hot, and those of
    them that the training samples had: the reference study's always have a column, and may never have been seen."""

    names: tuple[str, ...]
    protocols: tuple[str, ...]
    seen: tuple[str, ...]
    sizes: tuple[float, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]

    @property
    def width(self) -> int:
        """Features with the one-hot."""
        return len(self.names) + len(self.protocols)

    @property
    def all_names(self) -> tuple[str, ...]:
        """Features, then the one-hot."""
        return (*self.names, *(f"protocol_{name}" for name in self.protocols))

    @classmethod
    def fit(cls, windows: Windows, t: Ints, n: Ints) -> Self:
        """From the last row of each training window: neighbouring windows share the others. A feature beyond the
        study's that has no value there is left out.

        Raises DataError when one of the study's has none, or there is no sample.
        """
        if not t.size:
            raise DataError(
                f"there is no window of {windows.lookback} days with an APY {windows.horizon} days later to learn "
                "from; the history is too short or too full of gaps"
            )
        rows = windows.block.values[n, t].astype(np.float64)
        present = np.count_nonzero(~np.isnan(rows), axis=0)
        for name, values in zip(windows.block.names, present, strict=True):
            if not values and name in STUDY:
                raise DataError(f"the feature {name} has no value on any of the {t.size:,} training samples")
        kept = np.flatnonzero(present)
        names = tuple(windows.block.names[i] for i in kept)
        sizes, means, scales = [], [], []
        for i, name in zip(kept, names, strict=True):
            column = rows[:, i]
            column = column[~np.isnan(column)]
            size = 0.0
            if name in HEAVY:
                size = max(float(np.median(np.abs(column))), LEAST_SIZE)
                column = np.arcsinh(column / size)
            spread = float(column.std())
            sizes.append(size)
            means.append(float(column.mean()))
            scales.append(spread if spread > 1e-9 else 1.0)
        seen = sorted({windows.block.protocols[i] for i in np.unique(n)})
        protocols = (*REFERENCE_PROTOCOLS, *(name for name in seen if name not in REFERENCE_PROTOCOLS))
        return cls(names, protocols, tuple(seen), tuple(sizes), tuple(means), tuple(scales))

    def samples(self, windows: Windows, rows: Rows, *, labelled: bool) -> tuple[Ints, Ints]:
        """As `Windows.samples`, of the pools whose protocol the training samples had."""
        t, n = windows.samples(rows, labelled=labelled)
        known = np.array([kind is None for kind in self.unseen(windows)])[n]
        return t[known], n[known]

    def unseen(self, windows: Windows) -> list[str | None]:
        """Of each pool its protocol, in words, if the training samples had none of it."""
        return [None if each in self.seen else f"protocol {each}" for each in windows.block.protocols]

    def to_stop_by(self, windows: Windows, valid: Rows) -> tuple[Ints, Ints]:
        """The labelled samples of the validation rows. Raises DataError when there is none."""
        t, n = self.samples(windows, valid, labelled=True)
        if not t.size:
            raise DataError("there is no window with a label on the validation days, so nothing can be stopped by it")
        return t, n

    def apply(self, windows: Windows) -> Singles:
        """(N, T, width) scaled features, contiguous; what is missing is 0.

        Raises DataError when the windows lack a feature that the scaler was fitted with.
        """
        available = {name: i for i, name in enumerate(windows.block.names)}
        lacking = [name for name in self.names if name not in available]
        if lacking:
            raise DataError(f"the model was trained with the feature {lacking[0]}, which this panel does not have")
        pools, times, _ = windows.block.values.shape
        scaled = np.zeros((pools, times, self.width), dtype=np.float32)
        for place, (name, size, mean, scale) in enumerate(
            zip(self.names, self.sizes, self.means, self.scales, strict=True)
        ):
            # In double precision, as it was fitted: a ratio of 1e38 divided by a size of 1e-6 is no single.
            column = windows.block.values[:, :, available[name]].astype(np.float64)
            if size:
                column = np.arcsinh(column / size)
            scaled[:, :, place] = (column - mean) / scale
        np.nan_to_num(scaled, copy=False)
        for place, protocol in enumerate(self.protocols, start=len(self.names)):
            scaled[[name == protocol for name in windows.block.protocols], :, place] = 1.0
        return scaled

    def document(self) -> dict[str, object]:
        """The scaler in JSON's own kinds."""
        return {name: list(getattr(self, name)) for name in self.__slots__}

    @classmethod
    def restore(cls, document: Mapping[str, Sequence[object]]) -> Self:
        """The scaler of `document()`. Raises DataError when it is none."""
        try:
            found: dict[str, tuple[Any, ...]] = {name: tuple(document[name]) for name in cls.__slots__}
            for name in ("sizes", "means", "scales"):
                found[name] = tuple(float(each) for each in found[name])
            sizes, means, scales = (np.array(found[name], np.float64) for name in ("sizes", "means", "scales"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError("the model's card has no usable scaler") from error
        named = all(isinstance(name, str) for key in ("names", "protocols", "seen") for name in found[key])
        fit = all(
            each.shape == (len(found["names"]),) and bool(np.isfinite(each).all()) for each in (sizes, means, scales)
        )
        if not (named and fit and bool((sizes >= 0.0).all()) and bool((scales > 0.0).all())):
            raise DataError("the model's card has no usable scaler: its names, means and scales do not fit together")
        return cls(**found)
