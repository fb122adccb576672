"""What could be known at an instant never moves when something is corrected later: no panel, no backtest."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from yieldlab.backtest import backtest
from yieldlab.panel import Panel
from yieldlab.schema import YIELD_METRICS
from yieldlab.store import Store

START = datetime(2024, 1, 1, tzinfo=UTC)
POOLS = ("a", "b", "c")
DAYS = 25


def fetches(g: np.random.Generator) -> list[tuple[datetime, pl.DataFrame]]:
    """What came in, and when: each fetch brings days again, some changed, and days never seen before."""
    found = []
    hours = 0
    for _ in range(int(g.integers(2, 6))):
        hours += int(g.integers(24, 24 * 9))
        now = START + timedelta(hours=hours)
        rows = []
        for pool in POOLS:
            for day in range(min(DAYS, hours // 24)):
                if g.random() < 0.4:
                    continue
                valid_at = START + timedelta(days=day, hours=int(g.choice([0, 12, 23])))
                if valid_at > now:
                    continue
                # A few rows say themselves when they could be known: anywhere between their time and now.
                observed_at = valid_at + (now - valid_at) * float(g.random()) if g.random() < 0.2 else None
                apy = None if g.random() < 0.05 else float(g.choice([1.0, 5.0, 9.0, 400.0]))
                tvl = float(g.choice([1e5, 1e6, 3e6]))
                rows.append((pool, valid_at, observed_at, apy, tvl, "test"))
        columns = ("pool_id", "valid_at", "observed_at", "apy_percent", "tvl_usd", "source")
        types = {name: YIELD_METRICS[name] for name in columns}
        frame = pl.DataFrame(rows, schema=types, orient="row").unique(["pool_id", "valid_at"], maintain_order=True)
        found.append((now, frame))
    return found


def filled(
    folder: Path, told: list[tuple[datetime, pl.DataFrame]], *, unrevised_after: datetime | None = None
) -> Store:
    """A store of these fetches; from those after an instant it takes no revision that became known after it."""
    store = Store(folder)
    seen = pl.DataFrame(schema={"pool_id": pl.String, "valid_at": YIELD_METRICS["valid_at"]})
    assets = pl.DataFrame({"pool_id": POOLS, "protocol": "p", "symbol": "USDC", "chain": "Ethereum"})
    for now, frame in told:
        rows = frame
        if unrevised_after is not None and now > unrevised_after:
            news = frame.join(seen, on=["pool_id", "valid_at"], how="anti")
            known_then = frame.join(seen, on=["pool_id", "valid_at"], how="semi").filter(
                pl.col("observed_at") <= unrevised_after
            )
            rows = pl.concat([news, known_then])
        if rows.height:
            store.append(rows, assets, now=now)
        seen = pl.concat([seen, frame.select("pool_id", "valid_at")]).unique()
    return store


def same(one: Panel, other: Panel) -> bool:
    return (
        one.pool_ids == other.pool_ids
        and np.array_equal(one.times, other.times)
        and all(np.array_equal(one.raw(name), other.raw(name), equal_nan=True) for name in ("apy", "tvl_usd"))
    )


def instant(g: np.random.Generator, told: list[tuple[datetime, pl.DataFrame]]) -> datetime:
    """An instant by which some finished day could be known."""
    first = min(frame["valid_at"].min() for _, frame in told if frame.height) + timedelta(days=1)
    return first + (told[-1][0] - first) * float(g.uniform(0.1, 1.0))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1))
def test_a_panel_and_a_backtest_as_of_an_instant_see_no_later_revision(seed: int) -> None:
    g = np.random.default_rng(seed)
    told = fetches(g)
    as_of = instant(g, told)
    with TemporaryDirectory() as folder:
        whole = filled(Path(folder) / "whole", told)
        honest = filled(Path(folder) / "honest", told, unrevised_after=as_of)
        assume(whole.history(as_of=as_of).filter(pl.col("valid_at") < as_of - timedelta(days=1)).height)
        seen, expected = whole.panel(as_of=as_of), honest.panel(as_of=as_of)
    assert same(seen, expected)
    one, other = (backtest(panel, panel["apy"], {"top_n": 1, "every": 1}) for panel in (seen, expected))
    assert one.equity.equals(other.equity)
    assert one.trades.equals(other.trades)
    assert one.trials.equals(other.trials)


def test_without_as_of_the_same_histories_do_differ(tmp_path: Path) -> None:
    differ = 0
    for seed in range(4):
        g = np.random.default_rng(seed)
        told = fetches(g)
        as_of = instant(g, told)
        whole = filled(tmp_path / f"whole-{seed}", told)
        honest = filled(tmp_path / f"honest-{seed}", told, unrevised_after=as_of)
        differ += not same(whole.panel(), honest.panel())
    assert differ >= 2
