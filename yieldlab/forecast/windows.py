"""Which stretches of a panel a model learns from: windows of features that end at a day, and the APY some days later.

A *sample* is a pool and a row t: the features of the `lookback` rows that end at t, and as its label the APY observed
`horizon` rows after t. Windows are a view of one block of features: a window is never copied before a batch needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from zlib import crc32

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from yieldlab.errors import DataError, UsageError
from yieldlab.features.sets import FeatureBlock, block
from yieldlab.folds import Rows
from yieldlab.panel import Panel

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]

#: A window needs this share of its rows with an observed or carried APY, today's among them.
OBSERVED_SHARE = 2.0 / 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """The samples of a panel. `label` (T, N) is the APY observed `horizon` rows later and `last` (T, N) today's carried
    one, as fractions, NaN = none. `usable` (T, N) says where a window may be used: `lookback` rows reach back into the
    panel, and today's APY and two thirds of the window's are there."""

    panel: Panel
    block: FeatureBlock
    feature_set: str
    lookback: int
    horizon: int
    label: Floats
    last: Floats
    usable: NDArray[np.bool_]

    @classmethod
    def of(cls, panel: Panel, *, feature_set: str = "study", lookback: int = 30, horizon: int = 7) -> Self:
        """The windows of a panel that holds `apy`.

        Raises UsageError for an unknown feature set or sizes below 1, DataError when the panel is shorter than one
        window or has no pool.
        """
        for name, value in (("lookback", lookback), ("horizon", horizon)):
            if value < 1:
                raise UsageError(f"{name} must be a whole number of days, 1 or more, not {value!r}")
        times, pools = panel.shape
        if not pools:
            raise DataError("windows need a panel with a pool, and this one has none")
        if times < lookback:
            raise DataError(
                f"windows of {lookback} days need at least {lookback} days of history, and the panel has {times}"
            )
        last = panel["apy"]
        label = np.full(panel.shape, np.nan)
        label[:-horizon] = panel.raw("apy")[horizon:]
        seen = np.cumsum(np.vstack([np.zeros((1, pools)), ~np.isnan(last)]), axis=0)
        usable = np.zeros(panel.shape, dtype=bool)
        within = seen[lookback:] - seen[:-lookback]
        usable[lookback - 1 :] = within >= np.ceil(lookback * OBSERVED_SHARE)
        usable &= ~np.isnan(last)
        return cls(panel, block(panel, feature_set), feature_set, lookback, horizon, label, last, usable)

    @property
    def shape(self) -> tuple[int, int]:
        """(T, N) of the panel."""
        return self.panel.shape

    def samples(self, rows: Rows, *, labelled: bool, stride: int = 1) -> tuple[Ints, Ints]:
        """`(t, n)` of every usable window that ends in `rows`, by t, then n; with `labelled` those with one. With a
        `stride` every so many days of each pool, beginning on a day that its name decides.

        Raises UsageError for a stride that leaves none of them.
        """
        begin, end = max(0, rows[0]), min(rows[1], self.shape[0])
        chosen = self.usable[begin:end]
        if labelled:
            chosen = chosen & ~np.isnan(self.label[begin:end])
        t, n = np.nonzero(chosen)
        t += begin
        if stride == 1:
            return t, n
        # By the pool's own name: its place among the pools depends on those that come later.
        shift = np.array([crc32(pool_id.encode()) for pool_id in self.panel.pool_ids], dtype=np.int64)
        kept = (t + shift[n]) % stride == 0
        if t.size and not kept.any():
            raise UsageError(f"a stride of {stride} days leaves none of the {t.size:,} windows; give a shorter one")
        return t[kept], n[kept]

    def position(self, t: Ints, n: Ints) -> Ints:
        """Where the windows that end at rows `t` of pools `n` are in `flat`."""
        return n * self.shape[0] + t - (self.lookback - 1)

    def flat(self, values: Singles) -> Singles:
        """(N * T - lookback + 1, lookback, F) read-only view of a contiguous (N, T, F) array, without a copy.

        Windows that would begin in the pool before are part of the view and of no sample.
        """
        pools, times, features = values.shape
        if not values.flags.c_contiguous:
            raise ValueError("windows are views of a contiguous block")
        row, cell = values.strides[1], values.strides[2]
        return as_strided(
            values,
            (pools * times - self.lookback + 1, self.lookback, features),
            (row, row, cell),
            writeable=False,
        )
