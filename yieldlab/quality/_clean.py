"""What becomes of a yield that is too high to be believed, told from what was known when it was observed?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab.errors import DataError, UsageError, did_you_mean
from yieldlab.quality._robust import MAD_TO_SIGMA, SPIKE_DEVIATIONS, SPIKE_WINDOW

Floats = NDArray[np.float64]

#: What `clean_spikes` can do with a spike; a market that keeps them does not call it.
HOW = ("mask", "winsorize")
#: Observations of a pool, the one in question among them, from which on it is judged at all.
LEAST_OBSERVATIONS = 8
#: A yield within this of the median is never a spike: one percentage point, as a fraction.
LEAST_DISTANCE = 0.01
#: A yield this close to its bound is at it, not above it: no spike hangs on the last bit of a median.
TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Cleaned:
    """(T, N) values after cleaning and which of them were changed; both read-only."""

    values: Floats
    changed: NDArray[np.bool_]


def clean_spikes(apy: Floats, how: str) -> Cleaned:
    """Mask (make NaN) or winsorize (lower to the bound) yields too high to be believed, row t from rows <= t only.

    `apy` is (T, N) raw, as fractions, NaN where nothing was observed. Per pool, over its last 31 observations x up to
    and with row t: m = median(x), d = median(|x - m at that x|), and the bound is m + max(12 * 1.4826 * d, 0.01).
    Nothing is judged before the pool's 8th observation, and d and m rest on what was observed, not on what cleaning
    made of it; so a level that stays is believed as soon as it fills more than half of the window: from its 16th
    observation on, earlier in a young pool.

    Only what is too high is cleaned. A fall is believed at once: to mask it would be to carry the old, higher yield on.

    Raises UsageError for another `how`, DataError for an array that is not (T, N).
    """
    if how not in HOW:
        raise UsageError(f"spikes are cleaned by mask or winsorize, not {how!r}{did_you_mean(how, HOW)}")
    observed = np.asarray(apy, dtype=np.float64)
    if observed.ndim != 2:
        raise DataError(f"yields to clean are (times, pools), not an array of shape {observed.shape}")
    by_pool = observed.T
    seen = ~np.isnan(by_pool)
    bounds = np.full(by_pool.shape, np.inf)
    bounds[seen] = _bounds(by_pool[seen], np.count_nonzero(seen, axis=1))
    bound = bounds.T
    with np.errstate(invalid="ignore"):  # NaN is above nothing
        changed = np.ascontiguousarray(observed > bound + TOLERANCE)
    values = np.where(changed, np.nan if how == "mask" else bound, observed)
    for array in (values, changed):
        array.flags.writeable = False
    return Cleaned(values, changed)


def _bounds(observations: Floats, counts: NDArray[np.intp]) -> Floats:
    """The bound of each observation, pool after pool as `counts` tells; infinite where nothing is judged yet."""
    rows = pl.DataFrame({"pool": np.repeat(np.arange(counts.size, dtype=np.int32), counts), "apy": observations})
    distance = (pl.col("apy") - pl.col("median")).abs()
    with_median = rows.with_columns(_trailing_median("apy").alias("median")).with_columns(distance.alias("distance"))
    deviation = SPIKE_DEVIATIONS * MAD_TO_SIGMA * _trailing_median("distance")
    bound = pl.col("median") + pl.max_horizontal(deviation, pl.lit(LEAST_DISTANCE))
    judged = pl.int_range(1, pl.len() + 1).over("pool") >= LEAST_OBSERVATIONS
    return with_median.select(pl.when(judged).then(bound).otherwise(float("inf")).alias("bound"))["bound"].to_numpy()


def _trailing_median(column: str) -> pl.Expr:
    return pl.col(column).rolling_median(SPIKE_WINDOW, min_samples=1).over("pool")
