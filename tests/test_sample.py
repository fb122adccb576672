"""The made-up panel has the shape of the study, behaves like yields do, and says that it is made up."""

from __future__ import annotations

import hashlib
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from yieldlab import sample, schema
from yieldlab.errors import UsageError
from yieldlab.panel import Panel

POOLS = {
    "aave-v3-usdc": "USDC",
    "aave-v3-usdt": "USDT",
    "aave-v3-dai": "DAI",
    "aave-v3-weth": "WETH",
    "aave-v3-wbtc": "WBTC",
    "curve-3pool": "3POOL",
    "curve-steth": "STETH",
    "curve-frax": "FRAX",
    "uniswap-v3-usdc-weth": "USDC/WETH",
    "uniswap-v3-wbtc-weth": "WBTC/WETH",
    "uniswap-v3-usdc-usdt": "USDC/USDT",
    "uniswap-v3-dai-usdc": "DAI/USDC",
}


@pytest.fixture(scope="module")
def study() -> tuple[pl.DataFrame, pl.DataFrame]:
    return sample.reference_study(seed=0)


@pytest.mark.parametrize("seed", [0, 1, 2, 99, 12_345])
def test_every_seed_gives_the_shape_of_the_study(seed: int) -> None:
    metrics, assets = sample.reference_study(seed=seed)
    assert metrics.height == 13_396
    assert dict(assets.select("pool_id", "symbol").rows()) == POOLS
    assert set(assets["chain"]) == {"Ethereum"}
    days = metrics["valid_at"].dt.date()
    assert (days.min(), days.max()) == (date(2022, 2, 11), date(2026, 2, 10))
    assert metrics.select("pool_id", days).is_unique().all()
    assert metrics.group_by("pool_id").agg(pl.col("valid_at").max().dt.date())["valid_at"].unique().len() == 1
    assert metrics["source"].unique().to_list() == assets["source"].unique().to_list() == ["synthetic"]
    assert metrics["apy_percent"].is_between(0.0, 2_000.0).all()
    assert metrics["tvl_usd"].min() > 1e6


def test_a_seed_is_a_panel(study: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    assert sample.reference_study(seed=0)[0].equals(study[0])
    assert not sample.reference_study(seed=1)[0].equals(study[0])


def test_the_bytes_of_seed_zero_are_known(study: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    """So that a change of the generator, of NumPy's or of a machine's arithmetic does not go unnoticed."""
    text = study[0].select("pool_id", pl.col("valid_at").dt.timestamp("us"), *schema.MEASURED).write_csv()
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "c0cb3faf0e148457"


def test_columns_are_those_of_the_store(study: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    metrics, assets = study
    assert {n: schema.YIELD_METRICS[n] for n in metrics.columns} == dict(metrics.schema)
    assert {n: schema.ASSETS[n] for n in assets.columns} == dict(assets.schema)
    assert metrics.equals(metrics.sort("pool_id", "valid_at"))
    parts = pl.col("apy_base_percent") + pl.col("apy_reward_percent").fill_null(0.0)
    assert metrics.select((parts - pl.col("apy_percent")).abs().max()).item() < 1e-5


def test_there_are_late_starts_gaps_and_volume_in_the_last_weeks_only(study: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    metrics = study[0]
    starts = metrics.group_by("pool_id").agg(pl.col("valid_at").min().dt.date().alias("start"))["start"]
    assert (starts > date(2022, 3, 1)).sum() >= 6
    assert (starts == date(2022, 2, 11)).sum() >= 3
    gaps = metrics.select(pl.col("valid_at").diff().over("pool_id").dt.total_days())["valid_at"]
    assert (gaps > 1).sum() > 200
    assert gaps.max() >= 10
    with_volume = metrics.filter(pl.col("volume_24h_usd").is_not_null())["valid_at"].dt.date()
    assert with_volume.min() > sample.LAST_DAY - timedelta(days=60)
    lending = metrics.filter(pl.col("utilization_rate").is_not_null())["pool_id"].unique()
    assert lending.str.starts_with("aave").all()


def test_yields_revert_spike_and_draw_money() -> None:
    metrics, assets = sample.synthetic(60, 900, seed=5)
    panel = Panel.from_long(metrics, assets)
    apy, tvl = np.log(panel.raw("apy")), np.log(panel.raw("tvl_usd"))
    away = apy - apy.mean(axis=0)
    ahead = apy[60:] - apy[:-60]
    slopes = [np.polyfit(away[:-60, n], ahead[:, n], 1)[0] for n in range(60)]
    assert np.median(slopes) < -0.4, "a yield away from its mean does not come back"
    jumps = np.diff(apy, axis=0)
    assert np.median((jumps > 6 * np.median(np.abs(jumps), axis=0)).sum(axis=0)) > 3, "there are no spikes"
    smooth = np.apply_along_axis(lambda x: np.convolve(x, np.ones(30) / 30, "valid"), 0, away)
    flows = tvl[59:] - tvl[29:-30]
    together = [np.corrcoef(smooth[: flows.shape[0], n], flows[:, n])[0, 1] for n in range(60)]
    assert np.median(together) > 0.2, "money does not follow yield"
    common = np.corrcoef(smooth.T)[np.triu_indices(60, 1)]
    assert np.median(common) > 0.3, "no regime is shared"


def test_any_size_is_complete() -> None:
    metrics, assets = sample.synthetic(25, 40, seed=1)
    assert metrics.height == 25 * 40
    assert assets["pool_id"].n_unique() == 25
    assert metrics["source"].unique().to_list() == ["synthetic"]
    assert metrics.equals(sample.synthetic(25, 40, seed=1)[0])
    assert not metrics.equals(sample.synthetic(25, 40, seed=2)[0])
    with pytest.raises(UsageError, match="at least 1 pool and 1 day, not 0 x 5"):
        sample.synthetic(0, 5)
