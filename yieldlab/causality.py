"""Whether a function of the panel reads the future: cut the later rows off, or alter them, and see what moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from yieldlab.errors import CausalityError, UsageError
from yieldlab.panel import Panel

Floats = NDArray[np.float64]

#: What alteration does to the rows from the cut on; the attacks take turns.
ALTERATIONS = ("noise", "nothing observed", "other sizes", "another order")

#: Cut rows in a row, so that something done on one weekday only meets a cut right after it.
_WEEK = 7

#: Gaps in the data that are cut just before they end, where whoever fills a gap from behind must show himself.
_GAPS = 6


def assert_causal(
    function: Callable[[Panel], ArrayLike],
    panel: Panel,
    *,
    rows: Sequence[int] | None = None,
    seed: int = 0,
    name: str | None = None,
) -> None:
    """Raise CausalityError unless row t of `function(panel)`, a (T, N) array, depends on rows <= t only.

    At each cut row k of `rows` (default: near both ends, spread between, a week of neighbours, ends of gaps) the
    function sees `panel.head(k)`, then the whole panel with the rows from k on altered. Rows < k must stay the same
    bit for bit, NaN equal to NaN. Two calls on the same panel must agree as well, before and after all this.

    A pass is evidence at the cuts tried, no proof: `rows=range(1, T)` tries them all. What a function remembers from
    its very first call stays hidden; a strategy is audited by `Strategy.audit`, which runs the file afresh.
    """
    times, _ = panel.shape
    if times < 2:
        raise UsageError(f"an audit needs a panel of at least 2 rows, not {times}")
    probe = _Probe(function, panel, name or f"{getattr(function, '__name__', type(function).__name__)}()", seed)
    cuts = default_cuts(panel, seed) if rows is None else _checked_cuts(rows, times)
    probe.expect_same_again("two calls on the same panel differ, so it is not deterministic")
    passed = 0
    for turn, cut in enumerate(cuts):
        for attack in ("cut", ALTERATIONS[turn % len(ALTERATIONS)]):
            offence = probe.attacked(cut, attack)
            if offence is not None:
                raise CausalityError(probe.first_offence(passed, offence).sentence)
        passed = cut
    probe.expect_same_again("what it gives depends on what it was called on before")


def default_cuts(panel: Panel, seed: int = 0) -> list[int]:
    """Ascending cut rows in [1, T - 1] that `assert_causal` tries when it is given none."""
    times, _ = panel.shape
    generator = np.random.default_rng(seed)
    week = int(generator.integers(1, max(2, times - _WEEK)))
    cuts = {1, 2, times - 3, times - 2, times - 1, *range(week, week + _WEEK)}
    cuts.update(int(row) for row in np.linspace(1, times - 1, 8))
    cuts.update(_gap_ends(panel, generator))
    return sorted(cut for cut in cuts if 1 <= cut < times)


def expect_same(before: Floats, after: Floats, panel: Panel, complaint: str) -> None:
    """Raise CausalityError with `complaint`, the place and both values unless two (T, N) results agree bit for bit."""
    if after.shape != before.shape:
        raise CausalityError(f"{complaint}: shape {before.shape}, then {after.shape}")
    place = _first_difference(before, after)
    if place is not None:
        values = f"{_shown(before[place])}, then {_shown(after[place])}"
        raise CausalityError(f"{complaint}: at {_where(panel, place)} it gives {values}")


def instant(time: np.datetime64) -> str:
    """A panel time as people read it: the day, or the minute when it is not a whole day.

    >>> instant(np.datetime64("2024-03-05T00:00")), instant(np.datetime64("2024-03-05T06:30"))
    ('2024-03-05', '2024-03-05 06:30')
    """
    day = time.astype("datetime64[D]")
    return str(day) if day == time else str(time.astype("datetime64[m]")).replace("T", " ")


@dataclass(frozen=True, slots=True)
class _Offence:
    """Something before the cut that moved; `row` is the first such row (the cut itself when the call failed)."""

    cut: int
    attack: str
    row: int
    sentence: str


class _Probe:
    """The function under attack, what it gives on the whole panel, and the ways to show that it moves."""

    def __init__(self, function: Callable[[Panel], ArrayLike], panel: Panel, name: str, seed: int) -> None:
        self.function = function
        self.panel = panel
        self.name = name
        self.seed = seed
        self.whole = self._called(panel)
        if self.whole.shape != panel.shape:
            raise UsageError(f"{name} must give an array of shape {panel.shape}, not {self.whole.shape}")

    def expect_same_again(self, complaint: str) -> None:
        again = self._called(_altered(self.panel, self.panel.shape[0], "", self.seed))
        expect_same(self.whole, again, self.panel, f"{self.name}: {complaint}")

    def attacked(self, cut: int, attack: str) -> _Offence | None:
        """What moves before row `cut` when the rows from it on are cut off or altered."""
        first = instant(self.panel.times[cut])
        done = f"the rows from {first} on are {'cut off' if attack == 'cut' else f'altered ({attack})'}"
        seen = self.panel.head(cut) if attack == "cut" else _altered(self.panel, cut, attack, self.seed)
        try:
            given = self._called(seen)
        except Exception as error:  # noqa: BLE001 - whatever it raises, it did not on the whole panel
            text = " ".join(str(error).split())
            return _Offence(cut, attack, cut, f"{self.name} depends on the future: it fails once {done} ({text})")
        if given.shape != seen.shape:
            told = f"it gives shape {given.shape} instead of {seen.shape} once {done}"
            return _Offence(cut, attack, cut, f"{self.name} depends on the future: {told}")
        place = _first_difference(self.whole[:cut], given[:cut])
        if place is None:
            return None
        values = f"{_shown(self.whole[place])}, but {_shown(given[place])}"
        told = f"at {_where(self.panel, place)} it gives {values} once {done}"
        return _Offence(cut, attack, place[0], f"{self.name} depends on the future: {told}")

    def first_offence(self, passed: int, offence: _Offence) -> _Offence:
        """The same attack at the earliest cut after `passed` that still shows something, found by halving."""
        low, best = passed, offence
        while best.cut - low > 1:
            middle = (low + best.cut) // 2
            earlier = self.attacked(middle, offence.attack)
            if earlier is None:
                low = middle
            else:
                best = earlier
        return best

    def _called(self, panel: Panel) -> Floats:
        return np.array(self.function(panel), dtype=np.float64)


def _checked_cuts(rows: Sequence[int], times: int) -> list[int]:
    cuts = np.asarray(rows)
    if cuts.ndim != 1 or not cuts.size or cuts.dtype.kind not in "iu" or cuts.min() < 1 or cuts.max() >= times:
        raise UsageError(f"an audit takes cut rows that are whole numbers from 1 to {times - 1}, not {rows!r}")
    return sorted({int(cut) for cut in cuts})


def _gap_ends(panel: Panel, generator: np.random.Generator) -> Iterator[int]:
    """Rows of first observations after a gap: the earliest, the one after the longest gap, and a few at random."""
    for name in panel.fields:
        present = ~np.isnan(panel.raw(name))
        rows = np.arange(1, panel.shape[0])[:, None]
        since = np.maximum.accumulate(np.where(present[:-1], rows - 1, -1), axis=0)
        ends, pools = np.nonzero(present[1:] & ~present[:-1] & (since >= 0))
        if not ends.size:
            continue
        lengths = ends - since[ends, pools]
        yield int(ends[0]) + 1
        yield int(ends[np.argmax(lengths)]) + 1
        yield from (int(row) + 1 for row in generator.choice(ends, min(_GAPS - 2, ends.size), replace=False))


def _altered(panel: Panel, cut: int, attack: str, seed: int) -> Panel:
    """A fresh panel whose raw fields differ from row `cut` on (nowhere, when the cut is the panel's end)."""
    generator = np.random.default_rng([seed, cut])
    fields: dict[str, Floats] = {}
    for name in panel.fields:
        raw = panel.raw(name)
        later = raw[cut:]
        if cut < raw.shape[0]:
            observed = raw[~np.isnan(raw)]
            pool = observed if observed.size else np.ones(1)
            if attack == "noise":
                later = _scaled(generator.choice(pool, later.shape), generator)
            elif attack == "nothing observed":
                later = np.full(later.shape, np.nan)
            elif attack == "other sizes":
                later = _scaled(later, generator)
            else:
                later = generator.permuted(generator.permutation(later, axis=0), axis=1)
        fields[name] = np.concatenate([raw[:cut], later])
        fields[name].flags.writeable = False
    return panel.with_fields(fields)


def _scaled(values: Floats, generator: np.random.Generator) -> Floats:
    """Positive values times something between a third and three, mostly; the others as they are (an APY stays > -1)."""
    return np.where(values > 0.0, values * generator.lognormal(0.0, 0.6, values.shape), values)


def _first_difference(before: Floats, after: Floats) -> tuple[int, int] | None:
    """First row, then column, where the bits differ and not both are NaN."""
    differs = (before.view(np.int64) != after.view(np.int64)) & ~(np.isnan(before) & np.isnan(after))
    if not differs.any():
        return None
    t, i = np.unravel_index(int(np.argmax(differs)), differs.shape)
    return int(t), int(i)


def _where(panel: Panel, place: tuple[int, int]) -> str:
    return f"{instant(panel.times[place[0]])}, pool {panel.pool_ids[place[1]]!r}"


def _shown(value: np.floating[Any]) -> str:
    """Every digit, since two values that look alike may differ in the last."""
    return "no value (NaN)" if np.isnan(value) else repr(float(value))
