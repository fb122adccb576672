"""Whether a function of the panel reads the future: cut the later rows off, or alter them, and see what moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from yieldlab.errors import CausalityError, UsageError
from yieldlab.panel import Panel, SeriesRows

Floats = NDArray[np.float64]

#: What alteration does to the rows from the cut on; the attacks take turns.
ALTERATIONS = ("noise", "nothing observed", "other sizes", "another order")

#: Cut rows in a row, so that something done on one weekday only meets a cut right after it.
_WEEK = 7

#: Gaps in the data that are cut just before they end, where whoever fills a gap from behind must show himself.
_GAPS = 6


#: Time that an audit takes for rows beyond its own choice, unless it has tried them all before.
SECONDS = 5.0


def assert_causal(
    function: Callable[[Panel], ArrayLike],
    panel: Panel,
    *,
    rows: Sequence[int] | None = None,
    seed: int = 0,
    name: str | None = None,
    warmup: int = 0,
    shortest: int = 1,
    tolerance: float = 0.0,
    seconds: float = SECONDS,
) -> None:
    """Raise CausalityError unless row t of `function(panel)`, a (T, N) array, depends on rows <= t only.

    At each cut row k of `rows` the function sees `panel.head(k)`, then that without the pools never observed before k,
    then the whole panel with the rows from k on altered. Rows < k must stay the same, NaN equal to NaN: bit for bit, or
    within `tolerance`, in parts of the values' size. Two calls on the same panel must agree as well, before and after
    all this. Rows before `warmup` do not count, and no head has fewer rows than `shortest`.

    Without `rows` the cuts are near both ends, spread between, a week of neighbours and ends of gaps; as many others as
    fit into `seconds`, evenly spread, are then cut off. A pass is evidence at the cuts tried, no proof:
    `rows=range(1, T)` tries them all. The first calls are on the heads, the shortest first, so that what is remembered
    from them is the past; a strategy is audited by `Strategy.audit`, which runs the file afresh besides.
    """
    until = time.monotonic() + seconds
    times, _ = panel.shape
    lowest = warmup + 1
    if times <= lowest:
        after = f": one after its warm-up of {warmup}, and one more" if warmup else ""
        raise UsageError(f"an audit needs a panel of at least {lowest + 1} rows, not {times}{after}")
    cuts = default_cuts(panel, seed, lowest) if rows is None else _checked_cuts(rows, times, lowest)
    named = name or f"{getattr(function, '__name__', type(function).__name__)}()"
    probe = _Probe(function, panel, named, seed, warmup, shortest, tolerance)
    probe.learn(cuts)
    probe.expect_same_again("two calls on the same panel differ, so it is not deterministic")
    for turn, cut in enumerate(cuts):
        for attack in ("cut", "unseen pools", ALTERATIONS[turn % len(ALTERATIONS)]):
            probe.expect_unmoved(cut, attack)
    if rows is None:
        for cut in _evenly(lowest, times):
            if time.monotonic() >= until:
                break
            if cut not in cuts:
                probe.expect_unmoved(cut, "cut")
    probe.expect_same_again("what it gives depends on what it was called on before")
    if probe.unable is not None:
        raise CausalityError(probe.unable.sentence)


def default_cuts(panel: Panel, seed: int = 0, lowest: int = 1) -> list[int]:
    """Ascending cut rows in [lowest, T - 1] that `assert_causal` tries first when it is given none."""
    times, _ = panel.shape
    generator = np.random.default_rng(seed)
    week = int(generator.integers(lowest, max(lowest + 1, times - _WEEK)))
    cuts = {lowest, lowest + 1, times - 3, times - 2, times - 1, *range(week, week + _WEEK)}
    cuts.update(int(row) for row in np.linspace(lowest, times - 1, 8))
    cuts.update(_gap_ends(panel, generator))
    cuts.update(_last_arrival(panel))
    return sorted(cut for cut in cuts if lowest <= cut < times)


def expect_same(
    before: Floats, after: Floats, panel: Panel, complaint: str, *, warmup: int = 0, tolerance: float = 0.0
) -> None:
    """Raise CausalityError with `complaint`, the place and both values unless two (T, N) results agree, bit for bit or
    within `tolerance`, from row `warmup` on."""
    if after.shape != before.shape:
        raise CausalityError(f"{complaint}: shape {before.shape}, then {after.shape}")
    place = _first_difference(before, after, warmup, tolerance)
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
    """Something before the cut that moved, or a call that failed (`unable`: for want of rows, it may be)."""

    cut: int
    attack: str
    sentence: str
    unable: bool = False


class _Probe:
    """The function under attack, what it gives on the whole panel, and the ways to show that it moves."""

    def __init__(
        self,
        function: Callable[[Panel], ArrayLike],
        panel: Panel,
        name: str,
        seed: int,
        warmup: int,
        shortest: int,
        tolerance: float,
    ) -> None:
        self.function = function
        self.panel = panel
        self.name = name
        self.seed = seed
        self.warmup = warmup
        self.shortest = shortest
        self.tolerance = tolerance
        self.unable: _Offence | None = None
        self.passed: dict[str, set[int]] = {}
        self.whole: Floats

    def learn(self, cuts: Sequence[int]) -> None:
        """Call the function on the heads, ascending, then on the whole panel, before it has seen any later row."""
        for cut in cuts:
            if cut >= self.shortest:
                try:
                    self._called(self.panel.head(cut))
                except KeyboardInterrupt:
                    raise
                except BaseException:  # noqa: BLE001 - whoever fails here is judged when the head is compared
                    continue
        self.whole = self._called(self.panel)
        if self.whole.shape != self.panel.shape:
            raise UsageError(f"{self.name} must give an array of shape {self.panel.shape}, not {self.whole.shape}")

    def expect_same_again(self, complaint: str) -> None:
        again = self._called(_altered(self.panel, self.panel.shape[0], "", self.seed))
        told = f"{self.name}: {complaint}"
        expect_same(self.whole, again, self.panel, told, warmup=self.warmup, tolerance=self.tolerance)

    def expect_unmoved(self, cut: int, attack: str) -> None:
        """Raise CausalityError when something moves; keep in mind the first head that the function cannot be run on."""
        offence = self._attacked(cut, attack)
        if offence is None:
            self.passed.setdefault(attack, set()).add(cut)
        elif offence.unable:
            self.unable = self.unable or offence
        else:
            raise CausalityError(self._first_offence(offence).sentence)

    def _attacked(self, cut: int, attack: str) -> _Offence | None:
        """What moves before row `cut` when the rows from it on are cut off or altered."""
        first = instant(self.panel.times[cut])
        columns: NDArray[np.bool_] | slice = slice(None)
        if attack in ("cut", "unseen pools"):
            if cut < self.shortest:
                return None
            seen, done = self.panel.head(cut), f"the rows from {first} on are cut off"
        else:
            seen = _altered(self.panel, cut, attack, self.seed)
            done = f"the rows from {first} on are altered ({attack})"
        if attack == "unseen pools":
            columns = _observed(seen)
            if columns.all() or not columns.any():
                return None
            seen, done = _of_pools(seen, columns), f"the pools not observed before {first} are left out"
        accusation = f"{self.name} depends on the future:"
        try:
            given = self._called(seen)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it raises, it did not on the whole panel
            if attack == "unseen pools":
                return None  # it may need more pools, or know them by name
            text = " ".join(str(error).split()).removeprefix(self.name).removeprefix(":").strip()
            if attack == "cut":
                told = f"cannot be run on {cut} row{'s'[: cut - 1]} ({text}); give the rows it needs as its warm-up"
                return _Offence(cut, attack, f"{self.name} {told}", unable=True)
            return _Offence(cut, attack, f"{accusation} it fails once {done} ({text})")
        if given.shape != seen.shape:
            return _Offence(
                cut, attack, f"{accusation} it gives shape {given.shape} instead of {seen.shape} once {done}"
            )
        before = self.whole[:cut, columns]
        place = _first_difference(before, given[:cut], self.warmup, self.tolerance)
        if place is None:
            return None
        values = f"{_shown(before[place])}, but {_shown(given[place])}"
        return _Offence(cut, attack, f"{accusation} at {_where(seen, place)} it gives {values} once {done}")

    def _first_offence(self, offence: _Offence) -> _Offence:
        """The same attack at the earliest cut after one that passed that still shows something, found by halving."""
        earlier = (cut for cut in self.passed.get(offence.attack, ()) if cut < offence.cut)
        low, best = max(earlier, default=self.warmup), offence
        while best.cut - low > 1:
            middle = (low + best.cut) // 2
            found = self._attacked(middle, offence.attack)
            if found is None or found.unable:
                low = middle
            else:
                best = found
        return best

    def _called(self, panel: Panel) -> Floats:
        return np.array(self.function(panel), dtype=np.float64)


def _checked_cuts(rows: Sequence[int], times: int, lowest: int) -> list[int]:
    cuts = np.asarray(rows)
    if cuts.ndim != 1 or not cuts.size or cuts.dtype.kind not in "iu" or cuts.min() < lowest or cuts.max() >= times:
        raise UsageError(f"an audit takes cut rows that are whole numbers from {lowest} to {times - 1}, not {rows!r}")
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


def _last_arrival(panel: Panel) -> Iterator[int]:
    """The row of the first observation of the pool that comes last: the longest head with a pool not yet seen."""
    seen = (
        np.any([~np.isnan(panel.raw(name)) for name in panel.fields], axis=0) if panel.fields else np.ones(panel.shape)
    )
    arrivals = np.argmax(seen, axis=0)
    yield int(arrivals.max(initial=0))


def _evenly(first: int, end: int) -> Iterator[int]:
    """Every whole number of [first, end) once, so that the numbers up to any point lie evenly."""
    bits = max(1, (end - first - 1).bit_length())
    for index in range(1 << bits):
        offset = int(f"{index:0{bits}b}"[::-1], 2)
        if first + offset < end:
            yield first + offset


def _observed(panel: Panel) -> NDArray[np.bool_]:
    """(N,) pools with an observation of any field."""
    observed = np.zeros(panel.shape[1], dtype=bool)
    for name in panel.fields:
        observed |= ~np.isnan(panel.raw(name)).all(axis=0)
    return observed


def _of_pools(panel: Panel, kept: NDArray[np.bool_]) -> Panel:
    """The panel as if there were these pools only."""
    return Panel(
        panel.times,
        panel.pools.filter(kept),
        {name: panel.raw(name)[:, kept] for name in panel.fields},
        max_stale_days=panel.max_stale_days,
        as_of=panel.as_of,
        sources=panel.sources,
        rates=panel.rates,
        series={name: panel.series_rows(name) for name in panel.series_names},
    )


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
    return panel.with_fields(fields).with_series(
        {name: _altered_series(panel.series_rows(name), cut, attack, generator) for name in panel.series_names}
    )


def _altered_series(rows: SeriesRows, cut: int, attack: str, generator: np.random.Generator) -> SeriesRows:
    """The series with other values from row `cut` on, or none there."""
    later, age = rows.values[cut:], rows.age_days[cut:]
    if attack == "nothing observed":
        later, age = np.full(later.shape, np.nan), np.full(age.shape, np.nan)
    elif cut < rows.values.size:
        later = _scaled(later, generator)
    return SeriesRows(np.concatenate([rows.values[:cut], later]), np.concatenate([rows.age_days[:cut], age]))


def _scaled(values: Floats, generator: np.random.Generator) -> Floats:
    """Positive values times something between a third and three, mostly; the others as they are (an APY stays > -1)."""
    return np.where(values > 0.0, values * generator.lognormal(0.0, 0.6, values.shape), values)


def _first_difference(before: Floats, after: Floats, warmup: int, tolerance: float) -> tuple[int, int] | None:
    """First row from `warmup` on, then column, where the bits differ and not both are NaN, nor both nearly the same.

    What counts as near is measured by the larger of the two values, or by the middle one of all different sizes where
    that is larger: what is left of a difference of large numbers is as uncertain as they were.
    """
    differs = (before.view(np.int64) != after.view(np.int64)) & ~(np.isnan(before) & np.isnan(after))
    differs[:warmup] = False
    if not differs.any():
        return None
    if tolerance:
        sizes = np.unique(np.abs(before[np.isfinite(before) & (before != 0.0)]))
        typical = float(np.median(sizes)) if sizes.size else 0.0
        places = np.nonzero(differs)
        one, other = before[places], after[places]
        allowed = tolerance * np.maximum(np.maximum(np.abs(one), np.abs(other)), typical)
        with np.errstate(invalid="ignore"):
            differs[places] = ~(np.isfinite(one) & np.isfinite(other) & (np.abs(one - other) <= allowed))
        if not differs.any():
            return None
    t, i = np.unravel_index(int(np.argmax(differs)), differs.shape)
    return int(t), int(i)


def _where(panel: Panel, place: tuple[int, int]) -> str:
    return f"{instant(panel.times[place[0]])}, pool {panel.pool_ids[place[1]]!r}"


def _shown(value: np.floating[Any]) -> str:
    """Every digit, since two values that look alike may differ in the last."""
    return "no value (NaN)" if np.isnan(value) else repr(float(value))
