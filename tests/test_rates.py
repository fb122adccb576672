"""Simple rates of the feed become effective yields in one place, by dated conventions; all else stays as it came."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yieldlab import schema
from yieldlab.errors import UsageError
from yieldlab.panel import Panel
from yieldlab.store import Store
from yieldlab.units import apr_to_apy

START = datetime(2024, 1, 1, tzinfo=UTC)
LATE = datetime(2024, 3, 1, tzinfo=UTC)

#: project -> (days after START, base_kind, reward_kind) of its conventions, in any order.
KNOWN: dict[str, list[tuple[int, str, str | None]]] = {
    "lender": [(-4000, "apr", "apr")],
    "mixed": [(-4000, "apy", "apr")],
    "vault": [(-4000, "apy", None)],
    "switched": [(3, "apy", None), (-4000, "apr", None)],
}


def conventions(known: dict[str, list[tuple[int, str, str | None]]] | None = None) -> pl.DataFrame:
    rows = [
        (project, START + timedelta(days=day), base, reward, "pool", "test", START)
        for project, dated in (KNOWN if known is None else known).items()
        for day, base, reward in dated
    ]
    return pl.DataFrame(rows, schema=schema.CONVENTIONS, orient="row")


def panel(rows: list[dict[str, Any]], projects: dict[str, str | None], **options: Any) -> Panel:
    """`rows` with day (after START), pool_id, apy, reward and source."""
    long = pl.DataFrame(
        [
            {
                "pool_id": row["pool_id"],
                "valid_at": START + timedelta(days=row["day"], hours=12),
                "apy_percent": row["apy"],
                "apy_reward_percent": row.get("reward"),
                "source": row.get("source", "defillama/chart"),
            }
            for row in rows
        ],
        schema_overrides={"valid_at": schema.UTC, "apy_percent": pl.Float64, "apy_reward_percent": pl.Float64},
    )
    assets = pl.DataFrame(
        {"pool_id": list(projects), "protocol": list(projects.values())}, schema_overrides={"protocol": pl.String}
    ).with_columns(symbol=pl.lit("USDC"), chain=pl.lit("Ethereum"))
    told = {"fields": ("apy",), "as_of": LATE, "conventions": conventions(), **options}
    return Panel.from_long(long, assets, **told)


def plain_effective(apy: float, reward: float | None, base_simple: bool, reward_simple: bool) -> float:
    """One cell, day by day: what one dollar is after 365 days of its parts' daily growth."""
    extra = reward or 0.0
    if apy - extra <= -1.0:
        extra = 0.0
    base = apy - extra
    simple = (base if base_simple else 0.0) + (extra if reward_simple else 0.0)
    if simple == 0.0:
        return apy
    daily = math.exp(math.log1p(apy - simple) / 365.0) + simple / 365.0
    money = 1.0
    for _ in range(365):
        money *= daily
    return money - 1.0


def test_the_published_vector_of_a_simple_ten_percent() -> None:
    one = panel([{"day": 0, "pool_id": "a", "apy": 10.0}], {"a": "lender"})
    assert one["apy"][0, 0] * 100 == pytest.approx(10.515578161623251, rel=1e-12)
    assert one.with_rates("quoted")["apy"][0, 0] == 0.1


@pytest.mark.parametrize(
    ("percent", "basis_points"), [(3.0, 4.5), (5.0, 12.7), (10.0, 51.6), (20.0, 213.4), (50.0, 1481.6)]
)
def test_what_is_missed_when_a_simple_rate_is_taken_for_an_apy(percent: float, basis_points: float) -> None:
    one = panel([{"day": 0, "pool_id": "a", "apy": percent}], {"a": "lender"})
    assert (one["apy"][0, 0] - percent / 100) * 10_000 == pytest.approx(basis_points, abs=0.06)


def test_a_compounded_yield_stays_bit_for_bit() -> None:
    one = panel([{"day": 0, "pool_id": "a", "apy": 5.4321}], {"a": "vault"})
    assert one["apy"][0, 0] == 5.4321 / 100
    assert one.health.rates_converted == 0


def test_only_the_simple_part_of_a_mixed_yield_is_converted() -> None:
    one = panel([{"day": 0, "pool_id": "a", "apy": 9.0, "reward": 4.0}], {"a": "mixed"})
    assert one["apy"][0, 0] == pytest.approx((1.05 ** (1 / 365) + 0.04 / 365) ** 365 - 1, rel=1e-13)
    assert 0.09 < one["apy"][0, 0] < apr_to_apy(0.09)


def test_a_convention_holds_from_its_day_on() -> None:
    rows = [{"day": day, "pool_id": "a", "apy": 5.0} for day in range(6)]
    values = panel(rows, {"a": "switched"})["apy"][:, 0]
    assert values == pytest.approx([apr_to_apy(0.05)] * 3 + [0.05] * 3, rel=1e-13)


def test_before_the_first_row_of_a_project_nothing_is_known() -> None:
    later = conventions({"lender": [(2, "apr", None)]})
    rows = [{"day": day, "pool_id": "a", "apy": 5.0} for day in range(4)]
    one = panel(rows, {"a": "lender"}, conventions=later)
    assert one["apy"][:, 0] == pytest.approx([0.05, 0.05, apr_to_apy(0.05), apr_to_apy(0.05)], rel=1e-13)
    assert (one.health.rates_unknown, one.health.rates_unknown_pools, one.health.rates_converted) == (2, 1, 2)


def test_unknown_projects_and_files_that_do_not_say_stay_as_quoted() -> None:
    rows = [
        {"day": 0, "pool_id": "a", "apy": 5.0},
        {"day": 0, "pool_id": "b", "apy": 5.0, "source": "mine.csv"},
        {"day": 0, "pool_id": "c", "apy": 5.0, "source": None},
        {"day": 0, "pool_id": "d", "apy": 5.0},
    ]
    one = panel(rows, {"a": "nobody-knows", "b": "lender", "c": "lender", "d": None})
    assert one["apy"][0].tolist() == [0.05] * 4
    assert (one.health.rates_unknown, one.health.rates_unknown_pools) == (2, 2)


def test_of_a_day_with_two_sources_the_last_row_decides() -> None:
    rows = [
        {"day": 0, "pool_id": "a", "apy": 5.0, "source": "mine.csv"},
        {"day": 0.2, "pool_id": "a", "apy": 6.0},
        {"day": 1, "pool_id": "a", "apy": 5.0},
        {"day": 1.2, "pool_id": "a", "apy": 6.0, "source": "mine.csv"},
    ]
    assert panel(rows, {"a": "lender"})["apy"][:, 0] == pytest.approx([apr_to_apy(0.06), 0.06], rel=1e-13)


def test_a_rate_beyond_what_an_apy_can_say_stays_as_quoted_and_is_counted() -> None:
    rows = [{"day": 0, "pool_id": "a", "apy": 355_083.0}, {"day": 1, "pool_id": "a", "apy": 1.0}]
    one = panel(rows, {"a": "lender"})
    assert one["apy"][0, 0] == 3550.83
    assert (one.health.rates_too_high, one.health.rates_converted) == (1, 1)


@given(
    apy=st.floats(-50, 2000),
    reward=st.none() | st.floats(0, 400),
    project=st.sampled_from(sorted(KNOWN)),
)
def test_every_conversion_is_that_of_the_plain_twin(apy: float, reward: float | None, project: str) -> None:
    rows = [{"day": 0, "pool_id": "a", "apy": apy, "reward": reward}]
    _, base, rewarded = max(dated for dated in KNOWN[project] if dated[0] <= 0)
    expected = plain_effective(apy / 100, None if reward is None else reward / 100, base == "apr", rewarded == "apr")
    assert panel(rows, {"a": project})["apy"][0, 0] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_base_and_reward_are_converted_each_by_its_own_kind() -> None:
    long = pl.DataFrame(
        {
            "pool_id": ["a"],
            "valid_at": [START],
            "apy_percent": [9.0],
            "apy_base_percent": [5.0],
            "apy_reward_percent": [4.0],
            "source": ["defillama/chart"],
        }
    )
    assets = pl.DataFrame({"pool_id": ["a"], "protocol": ["mixed"], "symbol": ["X"], "chain": ["E"]})
    one = Panel.from_long(long, assets, fields=("apy", "apy_base", "apy_reward"), as_of=LATE, conventions=conventions())
    assert one["apy_base"][0, 0] == 0.05
    assert one["apy_reward"][0, 0] == pytest.approx(apr_to_apy(0.04), rel=1e-13)


def test_heads_copies_and_replaced_fields_keep_what_they_read() -> None:
    rows = [{"day": day, "pool_id": "a", "apy": 5.0} for day in range(4)]
    one = panel(rows, {"a": "lender"})
    simple = apr_to_apy(0.05)
    assert one.head(2)["apy"][:, 0] == pytest.approx([simple] * 2, rel=1e-13)
    assert one.with_max_stale_days(9)["apy"][:, 0] == pytest.approx([simple] * 4, rel=1e-13)
    final = np.full((4, 1), 0.07)
    assert one.with_fields({"apy": final})["apy"][:, 0].tolist() == [0.07] * 4
    assert one.with_fields({"apy": final}).health.rates_converted == 4
    other = one.with_fields({"forecast_mine": final})
    assert other["apy"][:, 0] == pytest.approx([simple] * 4, rel=1e-13)
    assert one.digest() != one.with_rates("quoted").digest()


def test_rates_are_effective_or_quoted() -> None:
    with pytest.raises(UsageError, match="unknown rates 'efective'; did you mean 'effective'"):
        panel([{"day": 0, "pool_id": "a", "apy": 5.0}], {"a": "lender"}).with_rates("efective")


def test_mending_a_convention_changes_what_is_read_and_revises_no_row(tmp_path: Path) -> None:
    store = Store(tmp_path)
    metrics = pl.DataFrame(
        {"pool_id": ["a"], "valid_at": [START], "apy_percent": [10.0], "source": ["defillama/chart"]}
    )
    store.append(metrics, pl.DataFrame({"pool_id": ["a"], "protocol": ["lender"]}))
    assert store.panel()["apy"][0, 0] == 0.1
    before = store.cutoff()
    row = conventions({"lender": [(-10, "apr", None)]})
    store.record("conventions", row.with_columns(ingested_at=pl.lit(before + timedelta(seconds=1))))
    assert store.panel()["apy"][0, 0] == pytest.approx(apr_to_apy(0.10), rel=1e-13)
    assert store.panel(ingested_by=before)["apy"][0, 0] == 0.1
    mended = row.with_columns(pl.lit("apy").alias("base_kind"), ingested_at=pl.lit(before + timedelta(seconds=2)))
    store.record("conventions", mended)
    assert store.panel()["apy"][0, 0] == 0.1
    assert store.history().height == 1


def test_a_pool_of_the_feed_says_what_its_tvl_counts() -> None:
    rows = [
        {"day": 0, "pool_id": "a", "apy": 5.0},
        {"day": 0, "pool_id": "b", "apy": 5.0, "source": "mine.csv"},
        {"day": 0, "pool_id": "c", "apy": 5.0},
    ]
    dated = conventions({"lender": [(-10, "apr", None), (-5, "apr", None)]})
    dated = dated.with_columns(tvl_kind=pl.Series(["deposits", "cash"]))
    one = panel(rows, {"a": "lender", "b": "lender", "c": "nobody-knows"}, conventions=dated)
    assert one.pools["tvl_kind"].to_list() == ["cash", None, None]
