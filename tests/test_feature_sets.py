"""Feature sets: what each feature means (against plain lists), that none reads the future, and how models get them."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from oracles import feature_sets_oracle as oracle

from yieldlab import features
from yieldlab.errors import UsageError
from yieldlab.features import sets
from yieldlab.panel import Panel, SeriesRows
from yieldlab.testing import assert_causal, tiny_panel

Floats = NDArray[np.float64]

ADDED = (
    "volume_observed apy_base_percent apy_reward_percent apy_rank tvl_rank utilization_rate "
    "apy_lag_1d apy_lag_7d apy_lag_14d"
).split()
SERIES = {"gas_price": 30.0, "eth_price": 2500.0, "sentiment": -1.0}

#: Windows of the rolling features and what they need present.
ROLLING = {"apy_ma_7d": (7, 4), "apy_std_7d": (7, 4), "tvl_ma_7d": (7, 4), "apy_ma_30d": (30, 15)}


def with_series(panel: Panel, seed: int = 0) -> Panel:
    """The panel with series that begin late and fall silent now and then."""
    generator = np.random.default_rng(seed)
    times = panel.shape[0]
    made = {}
    for name, level in SERIES.items():
        begin = int(generator.integers(0, max(1, times // 3)))
        age = np.cumsum(np.ones(times)) * 0.0
        for t in range(times):
            age[t] = np.nan if t < begin else 0.0 if t == begin or generator.random() < 0.3 else age[t - 1] + 1.0
        values = np.where(np.isnan(age), np.nan, level * generator.lognormal(0.0, 0.3, times))
        made[name] = SeriesRows(values, age)
    return panel.with_series(made)


def world(seed: int) -> Panel:
    """A panel with zero and missing TVL and volume, a field left out now and then, and dates anywhere in the week."""
    generator = np.random.default_rng(seed)
    times, pools = int(generator.integers(1, 70)), int(generator.integers(1, 6))
    shape = (times, pools)
    made = {
        "apy": generator.choice([0.0, 0.02, 0.05, 0.05, 4.0, -0.2], shape)
        if generator.random() < 0.3
        else generator.lognormal(-3.0, 1.0, shape),
        "apy_base": generator.lognormal(-3.0, 1.0, shape),
        "apy_reward": generator.lognormal(-4.0, 1.0, shape),
        "tvl_usd": generator.choice([0.0, 1e3, 1e6, 1e6, 3e8, -7.0], shape)
        if generator.random() < 0.3
        else generator.lognormal(14.0, 2.0, shape),
        "volume_24h_usd": generator.choice([0.0, 1.0, 1e4, -3.0], shape),
        "utilization_rate": generator.uniform(0.0, 1.0, shape),
        "volatility_24h": generator.lognormal(-3.0, 1.0, shape),
    }
    for name, values in made.items():
        values[generator.random(shape) < generator.choice([0.0, 0.2, 0.7, 1.0], p=[0.3, 0.4, 0.2, 0.1])] = np.nan
        made[name] = values
    kept = {name: values for name, values in made.items() if generator.random() < 0.8}
    begin = np.datetime64("2023-01-01", "D") + int(generator.integers(0, 7))
    panel = Panel(
        begin + np.arange(times),
        pl.DataFrame({"pool_id": [f"pool-{i}" for i in range(pools)]}),
        kept or made,
        max_stale_days=int(generator.choice([0, 1, 3])),
    )
    return with_series(panel, seed) if generator.random() < 0.5 else panel


def made(panel: Panel, feature_set: str) -> dict[str, Floats]:
    return sets.extended(panel) if feature_set == "extended" else sets.study(panel)


def assert_alike(given: dict[str, Floats], wanted: dict[str, Floats]) -> None:
    assert list(given) == list(wanted)
    for name, values in given.items():
        assert values.dtype == np.float64
        np.testing.assert_allclose(values, wanted[name], rtol=1e-9, atol=1e-9, err_msg=name)


def plain(apy: Floats, **fields: Floats) -> Panel:
    """A panel of complete columns from Monday, 2024-01-01."""
    return Panel(
        np.datetime64("2024-01-01", "D") + np.arange(len(apy)),
        pl.DataFrame({"pool_id": [f"pool-{i}" for i in range(apy.shape[1])]}),
        {"apy": apy, **fields},
        max_stale_days=0,
    )


def test_the_sixteen_are_the_studys_in_its_order() -> None:
    named = (*sets.STUDY, *sets.REFERENCE_PROTOCOLS)
    assert named == (
        "apy_percent", "tvl_usd", "volume_24h_usd", "volatility_24h", "apy_ma_7d", "apy_ma_30d", "apy_std_7d",
        "tvl_ma_7d", "tvl_trend_7d", "volume_tvl_ratio", "apy_momentum", "hour", "day_of_week",
        "aave_v3", "curve", "uniswap_v3",
    )  # fmt: skip
    assert len(named) == 16
    assert tuple(sets.study(tiny_panel())) == sets.STUDY


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("feature_set", sets.SETS)
def test_every_feature_is_what_its_plain_definition_says(feature_set: str, seed: int) -> None:
    panel = world(seed)
    assert_alike(made(panel, feature_set), oracle.features(panel, extended=feature_set == "extended"))


@pytest.mark.parametrize("name", [*sets.STUDY, *ADDED, *(f"series_{each}" for each in sorted(SERIES))])
def test_no_feature_reads_the_future(name: str) -> None:
    def feature(panel: Panel) -> Floats:
        return (sets.study if name in sets.STUDY else sets.extended)(panel)[name]

    assert_causal(feature, with_series(tiny_panel()), name=name, seconds=0.1)


def test_the_extended_set_begins_with_the_studys_and_ends_with_the_series_that_there_are() -> None:
    panel = tiny_panel()
    assert list(sets.extended(panel)) == [*sets.STUDY, *ADDED]
    more = with_series(panel)
    assert list(sets.extended(more)) == [
        *sets.STUDY,
        *ADDED,
        "series_eth_price",
        "series_gas_price",
        "series_sentiment",
    ]
    for name in SERIES:
        column = sets.extended(more)[f"series_{name}"]
        np.testing.assert_array_equal(column, np.repeat(column[:, :1], panel.shape[1], axis=1))
        np.testing.assert_allclose(np.sinh(column[:, 0]), more.series(name), rtol=1e-12)


def test_a_series_too_old_to_be_believed_is_missing() -> None:
    rows = SeriesRows(np.full(6, 3.0), np.arange(6.0))
    panel = tiny_panel(times=6).with_max_stale_days(2).with_series({"gas_price": rows})
    missing = np.isnan(sets.extended(panel)["series_gas_price"][:, 0])
    assert missing.tolist() == [False, False, False, True, True, True]


def test_a_small_world_added_up_by_hand() -> None:
    apy = np.array([[0.01 * day] for day in range(1, 33)])  # 1 % on Monday the 1st, 2 % on the 2nd, ...
    tvl = np.array([[1000.0 + 100.0 * day] for day in range(32)])
    volume = np.full((32, 1), np.nan)
    volume[10] = 500.0
    given = {name: values[:, 0] for name, values in sets.study(plain(apy, tvl_usd=tvl, volume_24h_usd=volume)).items()}
    assert given["apy_percent"][9] == pytest.approx(10.0)
    assert given["apy_ma_7d"][9] == pytest.approx((4 + 5 + 6 + 7 + 8 + 9 + 10) / 7)
    assert given["apy_ma_30d"][31] == pytest.approx(sum(range(3, 33)) / 30)
    assert given["apy_momentum"][31] == pytest.approx(29.0 - 17.5)
    assert given["apy_std_7d"][9] == pytest.approx(np.sqrt(28 / 6))
    assert given["volatility_24h"][1] == pytest.approx(1.0 / np.sqrt(2.0))
    assert given["tvl_usd"][9] == pytest.approx(np.log(1901.0))
    assert given["tvl_ma_7d"][9] == pytest.approx(np.log(1601.0))
    assert given["tvl_trend_7d"][10] == pytest.approx(100.0 * 700.0 / 1300.0)
    assert np.isnan(given["tvl_trend_7d"][6])
    assert given["volume_tvl_ratio"][10] == pytest.approx(0.25)
    assert given["volume_24h_usd"][10] == pytest.approx(np.log(501.0))
    assert given["day_of_week"][:8].tolist() == [0, 1, 2, 3, 4, 5, 6, 0]


@pytest.mark.parametrize("name", ROLLING)
def test_a_rolling_feature_needs_half_its_window(name: str) -> None:
    window, least = ROLLING[name]
    level = np.full((window, 1), 0.05)
    fresh = sets.study(plain(level, tvl_usd=level))[name][:, 0]
    assert np.isnan(fresh[: least - 1]).all()
    assert not np.isnan(fresh[least - 1 :]).any()
    for present, there in ((least, True), (least - 1, False)):
        gappy = level.copy()
        gappy[: window - present] = np.nan  # today's and the latest are there
        assert np.isnan(sets.study(plain(gappy, tvl_usd=gappy))[name][-1, 0]) != there


def test_a_rolling_feature_is_missing_where_todays_value_is() -> None:
    apy = np.full((40, 1), 0.05)
    apy[35] = np.nan
    given = sets.study(plain(apy))
    for name in ("apy_ma_7d", "apy_ma_30d", "apy_std_7d", "apy_momentum"):
        assert np.isnan(given[name][35, 0])
        assert not np.isnan(given[name][36, 0])


def test_missing_volume_is_zero_and_nothing_else_is() -> None:
    ones = np.ones((20, 2))
    nothing = np.full((20, 2), np.nan)
    without = sets.study(plain(ones * 0.05, tvl_usd=ones))
    for fields in ({"volume_24h_usd": nothing}, {}):
        given = sets.study(plain(ones * 0.05, tvl_usd=ones, **fields))
        assert (given["volume_24h_usd"] == 0.0).all()
        assert (given["volume_tvl_ratio"] == 0.0).all()
    assert not np.isnan(without["tvl_usd"]).any()
    gone = sets.study(plain(nothing, tvl_usd=nothing, volume_24h_usd=nothing))
    kept = {name for name, values in gone.items() if not np.isnan(values).any()}
    assert kept == {"volume_24h_usd", "hour", "day_of_week"}
    assert all(np.isnan(values).all() for name, values in gone.items() if name not in kept)


def test_volume_that_comes_late_does_not_reach_back() -> None:
    volume = np.full((20, 1), np.nan)
    volume[12:] = 1e6
    given = sets.extended(plain(np.full((20, 1), 0.05), tvl_usd=np.ones((20, 1)), volume_24h_usd=volume))
    assert (given["volume_24h_usd"][:12] == 0.0).all()
    assert given["volume_observed"][:, 0].tolist() == [0.0] * 12 + [1.0] * 8


def test_the_stored_volatility_counts_where_there_is_one() -> None:
    apy = np.array([[0.01], [0.03], [0.03]])
    stored = np.array([[np.nan], [np.nan], [0.7]])
    given = sets.study(plain(apy, volatility_24h=stored))["volatility_24h"][:, 0]
    np.testing.assert_allclose(given, [np.nan, np.sqrt(2.0), 0.7])


def test_amounts_that_cannot_be_are_missing() -> None:
    tvl = np.array([[1e6], [-5.0], [0.0]])
    volume = np.array([[-1.0], [1.0], [1.0]])
    given = sets.extended(plain(np.full((3, 1), 0.05), tvl_usd=tvl, volume_24h_usd=volume))
    np.testing.assert_array_equal(given["tvl_usd"][:, 0], [np.log1p(1e6), np.nan, 0.0])
    np.testing.assert_array_equal(given["volume_tvl_ratio"][:, 0], [0.0, np.nan, np.nan])
    assert given["volume_observed"][:, 0].tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(("stamp", "hour"), [("00:00", 0.0), ("23:00", 23.0), ("06:30", 6.0)])
def test_the_hour_is_constant_on_a_daily_grid(stamp: str, hour: float) -> None:
    times = np.datetime64(f"1969-12-28T{stamp}", "us") + np.arange(9) * np.timedelta64(1, "D")
    panel = Panel(times, pl.DataFrame({"pool_id": ["a", "b"]}), {"apy": np.full((9, 2), 0.05)})
    given = sets.study(panel)
    assert (given["hour"] == hour).all()
    assert given["day_of_week"][:, 1].tolist() == [6, 0, 1, 2, 3, 4, 5, 6, 0]  # from a Sunday before 1970


@pytest.mark.parametrize("feature_set", sets.SETS)
def test_a_panel_that_lacks_fields_has_every_feature(feature_set: str) -> None:
    whole = tiny_panel()
    panel = plain(np.nan_to_num(whole.raw("apy"), nan=0.05))
    given = made(panel, feature_set)
    assert list(given) == list(made(whole, feature_set))
    lacking = {"tvl_usd", "tvl_ma_7d", "tvl_trend_7d", "volume_tvl_ratio"}
    if feature_set == "extended":
        lacking |= {"apy_base_percent", "apy_reward_percent", "tvl_rank", "utilization_rate"}
        assert (given["volume_observed"] == 0.0).all()
    assert {name for name, values in given.items() if np.isnan(values).all()} == lacking


@pytest.mark.parametrize("feature_set", sets.SETS)
def test_a_block_is_pool_major_float32_contiguous_and_read_only(feature_set: str) -> None:
    panel = with_series(tiny_panel(times=50, pools=5))
    given = made(panel, feature_set)
    block = sets.block(panel, feature_set)
    assert block.names == tuple(given)
    assert block.values.shape == (5, 50, len(given))
    assert block.values.dtype == np.float32
    assert block.values.flags.c_contiguous
    for place, name in enumerate(block.names):
        np.testing.assert_array_equal(block.values[:, :, place], given[name].T.astype(np.float32), err_msg=name)
    with pytest.raises(ValueError, match="read-only"):
        block.values[0, 0, 0] = 1.0
    with pytest.raises(ValueError, match="WRITEABLE"):
        block.values.flags.writeable = True


def test_the_block_is_the_studys_unless_told_otherwise() -> None:
    assert sets.block(tiny_panel()).names == sets.STUDY


@pytest.mark.filterwarnings("error")
def test_a_block_holds_no_infinity_whatever_the_yields() -> None:
    apy = np.full((40, 2), 0.05)
    apy[20, 0], apy[30:, 1] = 1e208, 1e300
    tvl = np.full((40, 2), 1e300)
    tvl[::3] = 1e-300
    block = sets.block(plain(apy, tvl_usd=tvl, volume_24h_usd=np.full((40, 2), 1e300)), "extended")
    assert not np.isinf(block.values).any()
    assert block.values[1, 35, 0] == np.finfo(np.float32).max


@pytest.mark.parametrize(
    ("protocol", "name"),
    [
        ("aave-v3", "aave_v3"),
        ("Aave V3", "aave_v3"),
        ("aave_v3", "aave_v3"),
        ("curve-dex", "curve"),
        ("Curve DEX", "curve"),
        ("curve", "curve"),
        ("uniswap-v3", "uniswap_v3"),
        ("Morpho - Blue", "morpho_blue"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_protocol_has_one_spelling(protocol: str | None, name: str) -> None:
    assert sets.canonical(protocol) == name
    pools = pl.DataFrame(
        {"pool_id": ["a", "b"], "protocol": [protocol, "lido"]}, schema_overrides={"protocol": pl.String}
    )
    panel = Panel(np.datetime64("2024-01-01", "D") + np.arange(3), pools, {"apy": np.full((3, 2), 0.05)})
    assert sets.block(panel).protocols == (name, "lido")


def test_pools_that_nobody_describes_have_an_unknown_protocol() -> None:
    assert sets.block(plain(np.full((3, 2), 0.05))).protocols == ("unknown", "unknown")


def test_an_unknown_set_is_refused_with_the_near_one() -> None:
    with pytest.raises(UsageError, match=r"unknown feature set 'extend'; did you mean 'extended'\?"):
        sets.block(tiny_panel(), "extend")


def test_the_transforms_stay_what_they_were() -> None:
    assert "sets" not in features.__all__
    assert len(features.__all__) == 12
