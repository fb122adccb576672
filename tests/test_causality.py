"""The audit: every bundled strategy and feature passes it, every planted cheat is caught and named exactly."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from yieldlab import features
from yieldlab.causality import assert_causal, default_cuts
from yieldlab.errors import CausalityError, UsageError
from yieldlab.panel import Panel, SeriesRows
from yieldlab.strategy import bundled_folder, discover
from yieldlab.testing import corners, tiny_panel

Floats = NDArray[np.float64]

BUNDLED = [found.strategy for found in discover([bundled_folder()]) if found.strategy]
POINTS = [(strategy, params) for strategy in BUNDLED for params in corners(strategy)]

FEATURES = {
    "ewma": [(5.0,)],
    "lag": [(0,), (3,)],
    "change": [(3,)],
    "rank": [()],
    "zscore": [()],
    "rolling_quantile": [(7, 0.25)],
}
CALLS = [(name, case) for name in features.__all__ for case in FEATURES.get(name, [(1,), (7,), (30,)])]


def plain_panel(times: int = 40, pools: int = 3, seed: int = 4) -> Panel:
    """Complete, so that which row offends first can be said by heart; days from 2024-01-01."""
    generator = np.random.default_rng(seed)
    apy = generator.uniform(0.01, 0.2, (times, pools))
    tvl = generator.uniform(1e6, 2e6, (times, pools))
    return Panel(
        np.datetime64("2024-01-01", "D") + np.arange(times),
        pl.DataFrame({"pool_id": [f"pool-{i}" for i in range(pools)]}),
        {"apy": apy, "tvl_usd": tvl},
    )


def holed_panel() -> Panel:
    """As `plain_panel`, but pool-1 was not observed on rows 20..25 (2024-01-21 to 26); nothing is carried."""
    panel = plain_panel().with_max_stale_days(0)
    apy = panel.raw("apy").copy()
    apy[20:26, 1] = np.nan
    return panel.with_fields({"apy": apy})


def shifted(values: Floats) -> Floats:
    result = np.full(values.shape, np.nan)
    result[:-1] = values[1:]
    return result


def full_sample_mean(panel: Panel) -> Floats:
    return panel["apy"] - np.nanmean(panel["apy"], axis=0)


def shift_minus_one(panel: Panel) -> Floats:
    return shifted(panel["apy"])


def gap_filled_from_behind(panel: Panel) -> Floats:
    frame = pl.DataFrame(panel["apy"]).fill_nan(None).select(pl.all().backward_fill())
    return frame.to_numpy().astype(np.float64)


def full_sample_normalised(panel: Panel) -> Floats:
    apy = panel["apy"]
    return (apy - np.nanmin(apy)) / (np.nanmax(apy) - np.nanmin(apy))


def full_sample_rank(panel: Panel) -> Floats:
    apy = np.where(np.isnan(panel["apy"]), -1.0, panel["apy"])
    return np.argsort(np.argsort(apy, axis=0), axis=0).astype(np.float64)


def length_of_the_panel(panel: Panel) -> Floats:
    return panel["apy"] * len(panel.times)


def last_date_of_the_panel(panel: Panel) -> Floats:
    days_left = (panel.times[-1] - panel.times) / np.timedelta64(1, "D")
    return panel["apy"] * days_left[:, None]


def cheat_in_the_last_rows(panel: Panel) -> Floats:
    apy = panel["apy"].copy()
    apy[37:] = shifted(panel["apy"])[37:]
    return apy


def cheat_on_one_pool(panel: Panel) -> Floats:
    apy = panel["apy"].copy()
    apy[:, 2] = shifted(panel["apy"])[:, 2]
    return apy


def cheat_from_one_day_on(panel: Panel) -> Floats:
    apy = panel["apy"].copy()
    apy[17:, 1] = shifted(panel["apy"])[17:, 1]
    return apy


def cheat_on_one_weekday(panel: Panel) -> Floats:
    apy = panel["apy"].copy()
    apy[3::7, 0] = shifted(panel["apy"])[3::7, 0]
    return apy


def centred_mean(panel: Panel) -> Floats:
    apy = panel["apy"]
    padded = np.pad(apy, ((3, 3), (0, 0)), constant_values=np.nan)
    return np.nanmean(np.stack([padded[i : i + len(apy)] for i in range(7)]), axis=0)


def age_of_the_newest(panel: Panel) -> Floats:
    return panel["apy"] + panel.age("apy")[-1]


def health_of_the_panel(panel: Panel) -> Floats:
    return panel["apy"] * panel.health.observations


def another_field(panel: Panel) -> Floats:
    return panel["apy"] + 0.0 * np.isnan(panel["apy"]) + 1e-9 * shifted(panel["tvl_usd"])


def in_the_last_bit(panel: Panel) -> Floats:
    apy = panel["apy"].copy()
    if len(apy) < 6:
        return apy
    apy[5, 0] = np.nextafter(apy[5, 0], np.inf if panel["apy"][-1, 0] > 0.1 else -np.inf)
    return apy


#: The cheat, its panel, and the first row and pool it gives away: the earliest whose value a later row can move.
CHEATS: list[tuple[Callable[[Panel], Floats], Callable[[], Panel], str, str]] = [
    (full_sample_mean, plain_panel, "2024-01-01", "pool-0"),
    (shift_minus_one, plain_panel, "2024-01-01", "pool-0"),
    (gap_filled_from_behind, holed_panel, "2024-01-21", "pool-1"),
    (full_sample_normalised, plain_panel, "2024-01-01", "pool-0"),
    (full_sample_rank, plain_panel, "2024-01-01", "pool-0"),
    (length_of_the_panel, plain_panel, "2024-01-01", "pool-0"),
    (last_date_of_the_panel, plain_panel, "2024-01-01", "pool-0"),
    (cheat_in_the_last_rows, plain_panel, "2024-02-07", "pool-0"),
    (cheat_on_one_pool, plain_panel, "2024-01-01", "pool-2"),
    (cheat_from_one_day_on, plain_panel, "2024-01-18", "pool-1"),
    (cheat_on_one_weekday, plain_panel, "2024-01-04", "pool-0"),
    (centred_mean, plain_panel, "2024-01-01", "pool-0"),
    (age_of_the_newest, holed_panel, "2024-01-01", "pool-0"),
    (health_of_the_panel, plain_panel, "2024-01-01", "pool-0"),
    (another_field, plain_panel, "2024-01-01", "pool-0"),
    (in_the_last_bit, plain_panel, "2024-01-06", "pool-0"),
]


@pytest.mark.parametrize(("cheat", "make", "day", "pool"), CHEATS, ids=[cheat.__name__ for cheat, *_ in CHEATS])
def test_a_planted_cheat_is_caught_at_its_first_date_and_pool(cheat, make, day: str, pool: str) -> None:
    rows = None if cheat is not cheat_on_one_weekday else range(1, 40)
    with pytest.raises(CausalityError, match=rf"^{cheat.__name__}\(\) depends on the future: at {day}, pool '{pool}' "):
        assert_causal(cheat, make(), rows=rows)


@pytest.mark.parametrize("weekday", range(7))
@pytest.mark.parametrize("seed", [0, 1])
def test_a_cheat_on_one_weekday_meets_a_cut(weekday: int, seed: int) -> None:
    def cheat(panel: Panel) -> Floats:
        apy = panel["apy"].copy()
        apy[weekday::7, 0] = shifted(panel["apy"])[weekday::7, 0]
        return apy

    with pytest.raises(CausalityError, match="pool 'pool-0'"):
        assert_causal(cheat, plain_panel(times=345), seed=seed)  # the evenly spread cuts all meet one weekday


@pytest.mark.parametrize("row", [0, 1, 396, 397, 398])
def test_a_cheat_on_a_single_row_near_an_end_meets_a_cut(row: int) -> None:
    def cheat(panel: Panel) -> Floats:
        apy = panel["apy"].copy()
        apy[row : row + 1] = shifted(panel["apy"])[row : row + 1]
        return apy

    day = np.datetime64("2024-01-01") + row
    with pytest.raises(CausalityError, match=f"at {day}, pool 'pool-0'"):
        assert_causal(cheat, plain_panel(times=400))


@pytest.mark.parametrize(("start", "length"), [(33, 1), (150, 3), (251, 9)])
def test_whoever_fills_a_gap_from_behind_meets_a_cut_in_it(start: int, length: int) -> None:
    panel = plain_panel(times=400).with_max_stale_days(0)
    apy = panel.raw("apy").copy()
    apy[start : start + length, 2] = np.nan
    day = np.datetime64("2024-01-01") + start
    with pytest.raises(CausalityError, match=f"at {day}, pool 'pool-2' it gives 0"):
        assert_causal(gap_filled_from_behind, panel.with_fields({"apy": apy}))


@pytest.mark.parametrize("which", ["earliest", "longest"])
def test_of_many_gaps_the_earliest_and_the_longest_are_cut(which: str) -> None:
    panel = plain_panel(times=400).with_max_stale_days(0)
    apy = panel.raw("apy").copy()
    apy[23:380:7, 1] = np.nan
    apy[200:205, 1] = np.nan
    first = 23 if which == "earliest" else 200

    def cheat(seen: Panel) -> Floats:
        honest, filled = seen["apy"].copy(), gap_filled_from_behind(seen)
        honest[first : first + 5] = filled[first : first + 5]
        return honest

    with pytest.raises(CausalityError, match=f"at {np.datetime64('2024-01-01') + first}, pool 'pool-1'"):
        assert_causal(cheat, panel.with_fields({"apy": apy}))


def test_altered_yields_stay_possible() -> None:
    from yieldlab.causality import ALTERATIONS, _altered

    panel = plain_panel()
    losing = panel.with_fields({"apy": panel.raw("apy") - 0.99})
    for attack in ALTERATIONS:
        assert not (_altered(losing, 3, attack, 0).raw("apy") <= -1.0).any()


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize("cheat", [cheat for cheat, *_ in CHEATS if cheat is not in_the_last_bit])
@pytest.mark.parametrize("seed", range(3))
def test_a_cheat_is_caught_on_a_panel_with_faults_too(cheat, seed: int) -> None:
    with pytest.raises(CausalityError, match="depends on the future"):
        assert_causal(cheat, tiny_panel(times=90, pools=5, seed=seed), seed=seed)


def test_the_message_tells_both_values_and_what_was_done() -> None:
    panel = plain_panel()
    first, second = (repr(float(panel["apy"][t, 0])) for t in (1, 2))
    with pytest.raises(CausalityError) as caught:
        assert_causal(shift_minus_one, panel, rows=[2])
    assert str(caught.value) == (
        "shift_minus_one() depends on the future: at 2024-01-01, pool 'pool-0' it gives "
        f"{first}, but no value (NaN) once the rows from 2024-01-02 on are cut off"
    )
    assert second != first
    assert caught.value.exit_code == 5


def test_alteration_alone_catches_who_looks_at_the_length() -> None:
    def careful(panel: Panel) -> Floats:
        return shift_minus_one(panel) if len(panel.times) == 40 else panel["apy"] * np.nan

    def honest_when_short(panel: Panel) -> Floats:
        apy = panel["apy"]
        return np.where(np.arange(40)[:, None] < 39, apy[-1] > apy, apy) if len(panel.times) == 40 else recorded(panel)

    def recorded(panel: Panel) -> Floats:
        return WHOLE[: len(panel.times)]

    WHOLE = np.where(np.arange(40)[:, None] < 39, plain_panel()["apy"][-1] > plain_panel()["apy"], plain_panel()["apy"])
    with pytest.raises(CausalityError, match="depends on the future"):
        assert_causal(careful, plain_panel())
    with pytest.raises(CausalityError, match=r"are altered \((noise|nothing observed|other sizes|another order)\)"):
        assert_causal(honest_when_short, plain_panel())


@pytest.mark.parametrize("attack", ["noise", "nothing observed", "other sizes", "another order"])
def test_each_alteration_moves_what_depends_on_it(attack: str) -> None:
    from yieldlab.causality import _altered

    panel = tiny_panel(times=50)
    altered = _altered(panel, 30, attack, 0)
    for name in panel.fields:
        np.testing.assert_array_equal(altered.raw(name)[:30], panel.raw(name)[:30])
        assert not np.array_equal(altered.raw(name)[30:], panel.raw(name)[30:], equal_nan=True)
        assert not (altered.raw(name) <= -1.0).any()
        assert not np.isinf(altered.raw(name)).any()


def test_a_function_that_guesses_is_called_not_deterministic() -> None:
    generator = np.random.default_rng(0)

    def guess(panel: Panel) -> Floats:
        result = panel["apy"].copy()
        result[7, 2] += generator.normal()
        return result

    with pytest.raises(CausalityError, match=r"guess\(\): .*not deterministic: at 2024-01-08, pool 'pool-2' it gives"):
        assert_causal(guess, plain_panel())


def test_a_function_that_remembers_earlier_panels_is_told_so() -> None:
    calls: list[int] = []

    def tires(panel: Panel) -> Floats:
        calls.append(len(panel.times))
        return panel["apy"] + (1.0 if len(calls) > 8 else 0.0)  # 2 heads, 2 whole, then 2 attacks at each of 2 cuts

    with pytest.raises(CausalityError, match="depends on what it was called on before: at 2024-01-01, pool 'pool-0'"):
        assert_causal(tires, plain_panel(), rows=[5, 20])


def test_reshaping_or_failing_once_rows_are_altered_is_dependence() -> None:
    whole = plain_panel()

    def fails(panel: Panel) -> Floats:
        if not np.array_equal(panel["apy"], whole["apy"]):
            raise RuntimeError("cannot  \n work")
        return panel["apy"]

    with pytest.raises(CausalityError, match=r"it fails once the rows from 2024-01-02 on are altered \(noise\) \(cann"):
        assert_causal(fails, whole)
    with pytest.raises(CausalityError, match=r"it gives shape \(40, 3\) instead of \(1, 3\) once"):
        assert_causal(lambda panel: whole["apy"], whole)


class Panic(BaseException):
    """As the panics of Polars, which are no Exception."""


@pytest.mark.parametrize("kind", [RuntimeError, Panic])
def test_failing_on_few_rows_only_is_told_as_that(kind: type[BaseException]) -> None:
    def windowed(panel: Panel) -> Floats:
        if len(panel.times) < 30:
            raise kind("window  \n too long")
        return panel["apy"]

    with pytest.raises(CausalityError) as caught:
        assert_causal(windowed, plain_panel(), name="it")
    assert str(caught.value) == "it cannot be run on 1 row (window too long); give the rows it needs as its warm-up"
    with pytest.raises(CausalityError, match=r"^it cannot be run on 29 rows \("):
        assert_causal(windowed, plain_panel(), name="it", warmup=28)
    assert_causal(windowed, plain_panel(), warmup=29)
    assert_causal(windowed, plain_panel(), shortest=30)

    def and_cheats(panel: Panel) -> Floats:
        return windowed(panel) - panel["apy"][-1]

    with pytest.raises(CausalityError, match="depends on the future: at"):
        assert_causal(and_cheats, plain_panel())


def test_rows_before_the_warm_up_do_not_count_and_the_first_after_it_does() -> None:
    def early(panel: Panel) -> Floats:
        apy = panel["apy"].copy()
        apy[:10] = panel["apy"][-1]
        return apy

    assert_causal(early, plain_panel(), warmup=10)
    with pytest.raises(CausalityError, match="at 2024-01-10, pool 'pool-0'"):
        assert_causal(early, plain_panel(), warmup=9)
    with pytest.raises(UsageError, match="at least 41 rows, not 40: one after its warm-up of 39, and one more"):
        assert_causal(early, plain_panel(), warmup=39)
    with pytest.raises(UsageError, match="whole numbers from 11 to 39"):
        assert_causal(early, plain_panel(), warmup=10, rows=[10])


@pytest.mark.parametrize("signs", ["positive", "mixed"])
def test_a_matrix_product_may_differ_by_rounding_where_that_is_allowed(signs: str) -> None:
    panel = plain_panel(times=300, pools=70)
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(70, 70)) if signs == "mixed" else generator.uniform(size=(70, 70))

    def product(seen: Panel) -> Floats:  # what BLAS does: the last bits depend on the number of rows
        exact = np.round(panel["apy"][: len(seen.times)], 2) @ weights
        noise = np.random.default_rng(len(seen.times)).integers(-1, 2, exact.shape)
        return exact + noise * np.spacing(1.0)

    assert_causal(product, panel, tolerance=1e-12)
    with pytest.raises(CausalityError, match="depends on the future"):
        assert_causal(product, panel)


@pytest.mark.parametrize("sentinel", [np.nan, -1e18])
def test_what_is_more_than_rounding_is_caught_beside_any_sentinel(sentinel: float) -> None:
    def slightly(panel: Panel) -> Floats:
        apy = np.where(np.arange(3) == 2, sentinel, panel["apy"])
        apy[:, 0] *= 1.0 + 1e-9 * np.nanmax(panel["tvl_usd"][:, 0]) / 1e6
        return apy

    with pytest.raises(CausalityError, match="at 2024-01-01, pool 'pool-0'"):
        assert_causal(slightly, plain_panel(), tolerance=1e-12)


def arriving_panel(times: int = 60) -> Panel:
    """As `plain_panel` with six pools, of which the last two arrive on rows 20 and 40."""
    panel = plain_panel(times=times, pools=6)
    fields = {name: panel.raw(name).copy() for name in panel.fields}
    for values in fields.values():
        values[:20, 4] = np.nan
        values[:40, 5] = np.nan
    return panel.with_fields(fields)


@pytest.mark.parametrize(
    ("cheat", "told"),
    [
        (lambda panel: panel["apy"] * panel.shape[1], "are left out"),
        (lambda panel: panel["apy"] / len(panel.pool_ids), "are left out"),
        (lambda panel: np.where(np.isnan(panel["apy"]), 0.0, panel["apy"]) - 6.0 / panel.shape[1], "are left out"),
    ],
)
def test_who_knows_of_pools_not_yet_seen_is_caught(cheat: Callable[[Panel], Floats], told: str) -> None:
    with pytest.raises(CausalityError, match=rf"depends on the future: at 2024-01-01, pool 'pool-0' .* {told}$"):
        assert_causal(cheat, arriving_panel(), tolerance=1e-12)
    assert_causal(cheat, plain_panel())  # every pool is there from the first row on


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:All-NaN slice")
@pytest.mark.parametrize(
    "honest",
    [
        features.rank,
        features.zscore,
        lambda apy: apy - np.nanmean(apy, axis=1, keepdims=True),
        lambda apy: np.where(apy >= np.nanmax(apy, axis=1, keepdims=True), apy, np.nan),
        lambda apy: apy / (~np.isnan(apy)).sum(axis=1, keepdims=True),
    ],
)
def test_who_compares_the_pools_that_are_there_is_not_accused(honest: Callable[[Floats], Floats]) -> None:
    assert_causal(lambda panel: honest(panel["apy"]), arriving_panel(), tolerance=1e-12)


def test_who_needs_its_pools_is_not_accused() -> None:
    def by_name(panel: Panel) -> Floats:
        return panel["apy"] - panel["apy"][:, [panel.pool_ids.index("pool-5")]]

    assert_causal(by_name, arriving_panel())


@pytest.mark.parametrize("row", [37, 111, 222, 333])
def test_a_cheat_on_one_row_anywhere_is_caught_while_time_is_left(row: int) -> None:
    def cheat(panel: Panel) -> Floats:
        apy = panel["apy"].copy()
        apy[row : row + 1] = shifted(panel["apy"])[row : row + 1]
        return apy

    panel = plain_panel(times=365)
    with pytest.raises(CausalityError, match=f"at {np.datetime64('2024-01-01') + row}, pool 'pool-0'"):
        assert_causal(cheat, panel)
    if row + 1 not in default_cuts(panel):
        assert_causal(cheat, panel, seconds=0.0)


@pytest.mark.parametrize(("first", "end"), [(1, 2), (1, 3), (5, 69), (5, 70), (31, 1461)])
def test_further_cuts_are_every_row_once_and_lie_evenly(first: int, end: int) -> None:
    from yieldlab.causality import _evenly

    rows = list(_evenly(first, end))
    assert sorted(rows) == list(range(first, end))
    some = sorted(rows[: max(1, len(rows) // 8)])
    widest = max(np.diff([first, *some, end]))
    assert widest <= 4 * len(rows) / len(some) + 1


def test_the_first_calls_are_on_ascending_heads() -> None:
    calls: list[int] = []

    def seen(panel: Panel) -> Floats:
        calls.append(len(panel.times))
        return panel["apy"]

    assert_causal(seen, plain_panel(), rows=[30, 5, 20])
    assert calls[:4] == [5, 20, 30, 40]


def test_minus_zero_is_not_zero() -> None:
    def signed(panel: Panel) -> Floats:
        return np.copysign(np.zeros(panel.shape), 1.0 if len(panel.times) == 40 else -1.0)

    with pytest.raises(CausalityError, match=re.escape("it gives 0.0, but -0.0 once")):
        assert_causal(signed, plain_panel())


@pytest.mark.parametrize("rows", [[], [0], [40], [1.5], [True], ["a"], [[1]]])
def test_cut_rows_lie_inside_the_panel(rows) -> None:
    with pytest.raises(UsageError, match="cut rows that are whole numbers from 1 to 39"):
        assert_causal(lambda panel: panel["apy"], plain_panel(), rows=rows)


def test_one_row_has_no_future_to_audit() -> None:
    with pytest.raises(UsageError, match="at least 2 rows, not 1"):
        assert_causal(lambda panel: panel["apy"], plain_panel(times=1))


def test_a_wrong_shape_is_said_before_anything_else() -> None:
    with pytest.raises(UsageError, match=r"must give an array of shape \(40, 3\), not \(3,\)"):
        assert_causal(lambda panel: panel["apy"][0], plain_panel())


@pytest.mark.parametrize("times", [2, 3, 5, 30, 1461])
def test_cuts_reach_both_ends_of_any_panel(times: int) -> None:
    cuts = default_cuts(tiny_panel(times=times))
    assert cuts == sorted(set(cuts))
    assert {1, times - 1} <= set(cuts)
    assert all(1 <= cut < times for cut in cuts)
    assert len(cuts) <= 7 + 8 + 5 + 6 * len(tiny_panel().fields) + 1
    later = default_cuts(tiny_panel(times=times), lowest=2)
    assert all(2 <= cut < times for cut in later)


@pytest.mark.parametrize(("name", "case"), CALLS)
def test_every_public_feature_is_causal(name: str, case: tuple[float, ...]) -> None:
    feature = getattr(features, name)
    assert_causal(lambda panel: feature(panel["apy"], *case), tiny_panel(times=70, pools=5))
    assert_causal(lambda panel: feature(panel.raw("tvl_usd"), *case), tiny_panel(times=33, pools=1, seed=1))


def test_all_bundled_strategies_are_here() -> None:
    plain = {"highest_apy", "tvl_weighted", "steady_carry", "signal_file"}
    assert {strategy.name for strategy in BUNDLED} >= plain | {"lstm_top", "risk_adjusted", "unified"}
    assert all(found.state == "OK" for found in discover([bundled_folder()]))


@pytest.mark.parametrize(("strategy", "params"), POINTS, ids=[f"{s.name}-{p}" for s, p in POINTS])
def test_every_bundled_strategy_is_causal(strategy, params, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = tiny_panel(times=160, pools=6, fields=strategy.fields(params))
    day = panel.times.astype("datetime64[D]")
    views = [pl.DataFrame({"time": day[i::3], "value": day[i::3].astype(float)}) for i in range(6)]
    named = [frame.with_columns(pool_id=pl.lit(pool)) for frame, pool in zip(views, panel.pool_ids, strict=True)]
    pl.concat(named).write_parquet(tmp_path / "signal.parquet")
    monkeypatch.chdir(tmp_path)
    strategy.signal(panel, params)
    strategy.audit(panel, params)


def with_gas(panel: Panel) -> Panel:
    """The panel with a series that moves every day."""
    rows = panel.shape[0]
    gas = SeriesRows(np.linspace(5.0, 50.0, rows), np.zeros(rows))
    return panel.with_series({"gas_gwei": gas})


def test_a_series_may_be_read_up_to_its_row() -> None:
    def honest(panel: Panel) -> Floats:
        return panel["apy"] - panel.series("gas_gwei")[:, None] / 1000.0

    assert_causal(honest, with_gas(plain_panel()))


@pytest.mark.parametrize(
    "cheat",
    [
        lambda panel: panel["apy"] - np.nanmean(panel.series("gas_gwei")) / 1000.0,
        lambda panel: panel["apy"] - shifted(panel.series("gas_gwei")[:, None]) / 1000.0,
        lambda panel: panel["apy"] * (panel.series("gas_gwei")[-1] > 40.0),
    ],
    ids=["mean of all days", "tomorrow's", "the last day's"],
)
def test_who_reads_a_series_ahead_is_caught(cheat: Callable[[Panel], Floats]) -> None:
    with pytest.raises(CausalityError, match="depends on the future"):
        assert_causal(cheat, with_gas(plain_panel()))
