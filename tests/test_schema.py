"""The long tables: what measures, what is a key, and which symbols are dollars."""

from __future__ import annotations

import polars as pl
import pytest

from yieldlab import schema


def test_every_column_is_a_key_a_clock_a_measure_or_provenance() -> None:
    assert set(schema.YIELD_METRICS.names()) == {
        "pool_id", "valid_at", "observed_at", "ingested_at", *schema.MEASURED, "source",
    }  # fmt: skip
    assert set(schema.ASSETS.names()) == {"pool_id", *schema.DESCRIBED, "observed_at", "ingested_at", "source"}


def test_every_measure_is_a_panel_field_and_those_in_percent_say_so() -> None:
    assert {field.column for field in schema.FIELDS.values()} == set(schema.MEASURED)
    for name, field in schema.FIELDS.items():
        assert field.percent == field.column.endswith("_percent")
        assert "percent" not in name
        assert schema.YIELD_METRICS[field.column] == pl.Float64()


@pytest.mark.parametrize(
    "symbol", ["USDC", "usdt", "3POOL", "DAI/USDC", "USDC-USDT", "USDC.e", "FRAX USDC", "crvUSD_GHO"]
)
def test_dollars(symbol: str) -> None:
    assert schema.is_usd_stable(symbol)


@pytest.mark.parametrize("symbol", ["WETH", "USDC/WETH", "STETH", "", "-", None, "USDCX", "EURC-USDC"])
def test_not_dollars(symbol: str | None) -> None:
    assert not schema.is_usd_stable(symbol)
