"""How was a yield quoted, and what is it as an effective APY? Simple rates of the feed are converted here.

The feed gives one number per pool, whether its project computes a simple annual rate (APR) or a compounded yield (APY).
A table of conventions says which, project by project and from which day on. It is joined when rows are read, so that
mending it revises no observation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from yieldlab import schema
from yieldlab.units import DAYS_PER_YEAR, MICROSECONDS_PER_DAY, growth_factor

Floats = NDArray[np.float64]

RATES = ("effective", "quoted")

#: Fields that hold a rate.
RATED = ("apy", "apy_base", "apy_reward")

#: What is known of how a cell's yield was quoted, as bits of one number; 0: it is taken as an APY.
BASE_APR, REWARD_APR, UNKNOWN_PROJECT = 1, 2, 4


@dataclass(frozen=True, slots=True, eq=False)
class Quotes:
    """How the rates of a panel were quoted: `kinds` (T, N) in bits, and `reward` (T, N), the rewards' part of the APY
    as quoted, NaN = not said."""

    kinds: NDArray[np.int8]
    reward: Floats

    @classmethod
    def join(
        cls,
        feed: NDArray[np.bool_],
        reward: Floats,
        projects: list[str | None],
        days: NDArray[np.int64],
        conventions: pl.DataFrame,
    ) -> Self:
        """Look each cell that came from the feed (`feed` (T, N)) up by its pool's project and its day since 1970.

        `conventions` has columns of `schema.CONVENTIONS`; a row holds from the UTC day of its `valid_from` on, and of
        several rows of one project and `valid_from` the last one recorded. A day before a project's first row, and a
        project without one, is unknown.
        """
        codes = _codes(conventions)
        kinds = np.zeros(feed.shape, dtype=np.int8)
        for project in set(projects):
            columns = np.array([i for i, name in enumerate(projects) if name == project])
            starts, values = codes.get(project, (np.empty(0, np.int64), np.empty(0, np.int8)))
            position = np.searchsorted(starts, days, side="right")
            told = np.concatenate([np.array([UNKNOWN_PROJECT], dtype=np.int8), values])[position]
            kinds[:, columns] = np.where(feed[:, columns], told[:, None], 0)
        kinds.flags.writeable = False
        reward.flags.writeable = False
        return cls(kinds, reward)

    def head(self, rows: int) -> Self:
        """The first `rows` rows."""
        return type(self)(self.kinds[:rows], self.reward[:rows])

    def effective(self, name: str, quoted: Floats) -> Floats:
        """(T, N) the rate `name` as an effective APY.

        Of a total, what is simple grows by its 365th part a day and what is compounded by its 365th root, and the
        day's growth compounds over a year: `((1 + c) ** (1/365) + s / 365) ** 365 - 1` for a compounded part c and a
        simple part s. The reward's part is what the feed says it is, the rest is base. A cell that is not known to be
        simple stays as it is, and so does one whose APY would exceed what a number holds (see `too_high`).
        """
        if not self.kinds.any():
            return quoted
        result = quoted.copy()
        where, value = self._converted(name, quoted)
        fits = np.isfinite(value)
        result[where] = np.where(fits, value, quoted[where])
        return result

    def counts(self, apy: Floats) -> dict[str, int]:
        """Of the observations in `apy` as quoted, how many are converted, unknown (and of how many pools), too high."""
        seen = ~np.isnan(apy)
        unknown = seen & (self.kinds == UNKNOWN_PROJECT)
        where, value = self._converted("apy", apy)
        too_high = int(np.count_nonzero(~np.isfinite(value)))
        return {
            "rates_converted": int(np.count_nonzero(where)) - too_high,
            "rates_unknown": int(np.count_nonzero(unknown)),
            "rates_unknown_pools": int(np.count_nonzero(unknown.any(axis=0))),
            "rates_too_high": too_high,
        }

    def _converted(self, name: str, quoted: Floats) -> tuple[NDArray[np.bool_], Floats]:
        """(T, N) the cells to convert, and in their order what they become."""
        bits = {"apy": BASE_APR | REWARD_APR, "apy_base": BASE_APR, "apy_reward": REWARD_APR}[name]
        where = ~np.isnan(quoted) & ((self.kinds & bits) != 0)
        rate, kind = quoted[where], self.kinds[where]
        if name == "apy":
            reward = np.nan_to_num(self.reward[where], nan=0.0)
            # A reward that leaves the base nothing to lose contradicts its total, which then counts as base alone.
            reward[(rate - reward) <= -1.0] = 0.0
            simple = np.where(kind & BASE_APR, rate - reward, 0.0) + np.where(kind & REWARD_APR, reward, 0.0)
        else:
            simple = rate
        with np.errstate(over="ignore", invalid="ignore"):
            daily = growth_factor(rate - simple, 1.0) + simple / DAYS_PER_YEAR
            value = daily**DAYS_PER_YEAR - 1.0
        return where, np.where(simple == 0.0, rate, value)


def with_tvl_kind(pools: pl.DataFrame, fed: NDArray[np.bool_], conventions: pl.DataFrame) -> pl.DataFrame:
    """`pools` (pool_id, protocol) with what the TVL of those counts that have cells of the feed (`fed` (T, N)), by the
    last convention of their project; null for others."""
    latest = conventions.sort("valid_from", "ingested_at", maintain_order=True).unique("project", keep="last")
    kinds = latest.select(pl.col("project").alias("protocol"), "tvl_kind")
    joined = pools.join(kinds, on="protocol", how="left", maintain_order="left")
    return joined.with_columns(pl.when(pl.Series(np.any(fed, axis=0))).then("tvl_kind"))


def _codes(conventions: pl.DataFrame) -> dict[str | None, tuple[NDArray[np.int64], NDArray[np.int8]]]:
    """Per project the days from which a convention holds, and its bits."""
    latest = conventions.sort("project", "valid_from", "ingested_at", maintain_order=True).unique(
        ["project", "valid_from"], keep="last", maintain_order=True
    )
    bits = latest.select(
        "project",
        pl.col("valid_from").cast(schema.UTC).dt.timestamp("us") // MICROSECONDS_PER_DAY,
        (
            (pl.col("base_kind") == "apr").fill_null(value=False).cast(pl.Int8) * BASE_APR
            + (pl.col("reward_kind") == "apr").fill_null(value=False).cast(pl.Int8) * REWARD_APR
        )
        .cast(pl.Int8)
        .alias("code"),
    )
    return {
        str(key[0]): (part["valid_from"].to_numpy(), part["code"].to_numpy())
        for key, part in bits.group_by("project", maintain_order=True)
    }
