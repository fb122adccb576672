"""How a project quotes its rates is known, dated, and mended without touching an observation."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from yieldlab import schema
from yieldlab.collect import conventions
from yieldlab.store import Store

NOW = datetime(2026, 8, 1, tzinfo=UTC)
LATER = datetime(2026, 8, 2, tzinfo=UTC)

#: Said of the adapters in the description of the feed.
SIMPLE = "aave-v2 aave-v3 sparklend compound-v3 uniswap-v2 uniswap-v3 lido rocket-pool ether.fi-stake yearn-finance"
COMPOUNDED = (
    "compound-v2 venus-core-pool benqi-lending sky-lending spark-savings morpho-blue euler-v2 pendle kamino-lend"
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def row(project: str, base: str = "apr", *, source: str = "mine", since: datetime = NOW, **other: str) -> pl.DataFrame:
    told = {"project": project, "valid_from": since, "base_kind": base, "reward_kind": None, "tvl_kind": None}
    return pl.DataFrame(
        [told | {"source": source} | other],
        schema={name: dtype for name, dtype in schema.CONVENTIONS.items() if name != "ingested_at"},
    )


def observe(store: Store, project: str, *, now: datetime = NOW) -> None:
    """One pool of the feed that quotes 10 % on 1 July 2026."""
    metrics = pl.DataFrame(
        {
            "pool_id": ["p"],
            "valid_at": [datetime(2026, 7, 1, 12, tzinfo=UTC)],
            "apy_percent": [10.0],
            "source": ["defillama/chart"],
        }
    )
    store.append(metrics, pl.DataFrame({"pool_id": ["p"], "protocol": [project]}), now=now)


def test_the_bundled_table_says_what_was_read_of_the_adapters() -> None:
    table = conventions.table()
    kinds = dict(table.select("project", "base_kind").rows())
    assert {project: kinds[project] for project in SIMPLE.split()} == dict.fromkeys(SIMPLE.split(), "apr")
    assert {project: kinds[project] for project in COMPOUNDED.split()} == dict.fromkeys(COMPOUNDED.split(), "apy")
    assert kinds["ethena-usde"] == kinds["curve-dex"] == "apy"
    lending = table.filter(pl.col("project").is_in(["aave-v3", "compound-v2", "compound-v3", "sparklend"]))
    assert set(lending["tvl_kind"]) == {"cash"}


def test_the_bundled_table_is_in_order() -> None:
    table = conventions.table()
    assert table.schema == {name: dtype for name, dtype in schema.CONVENTIONS.items() if name != "ingested_at"}
    assert table.select(conventions.KEY).is_unique().all()
    assert table["base_kind"].is_in(conventions.KINDS).all()
    assert table["reward_kind"].is_in(conventions.KINDS).all()
    assert table["tvl_kind"].is_in(conventions.TVL_KINDS).all()
    assert table["source"].str.starts_with(conventions.BUNDLED).all()
    # A project whose first row began later would be unknown before.
    assert (table.group_by("project").agg(pl.col("valid_from").min())["valid_from"].dt.year() == 1970).all()


def test_syncing_records_the_table_once(store: Store) -> None:
    assert conventions.sync(store, now=NOW) == conventions.table().height
    version = store.recorded("conventions")
    assert conventions.sync(store, now=LATER) == 0
    assert store.recorded("conventions").equals(version)
    assert conventions.in_force(store)["recorded"].all()
    assert store.recorded("conventions").drop("ingested_at").sort(conventions.KEY).equals(conventions.table())


def test_what_is_bundled_but_not_recorded_is_told_so(store: Store) -> None:
    told = conventions.in_force(store)
    assert not told["recorded"].any()
    assert told.drop("recorded").equals(conventions.table())
    assert not store.folder.exists()


def test_a_mended_convention_stays_in_force_through_the_next_sync(store: Store) -> None:
    always = conventions.table().filter(project="aave-v3")["valid_from"].item()
    wrong = row("aave-v3", "apy", since=always)
    mended = conventions.mend(store, wrong, now=NOW)
    assert (mended.new, mended.changed, mended.unchanged) == (0, 1, 0)
    assert conventions.sync(store, now=LATER) == 0
    assert conventions.in_force(store).filter(project="aave-v3")["base_kind"].item() == "apy"
    assert conventions.mend(store, wrong, now=LATER) == conventions.Mended(new=0, changed=0, unchanged=1)
    # What was in force before is still there for a reader of that time.
    assert store.recorded("conventions").filter(project="aave-v3").height == 2


def test_a_bundled_convention_that_a_later_version_corrects_comes_in(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    conventions.sync(store, now=NOW)
    better = conventions.table().with_columns(
        pl.when(pl.col("project") == "lido").then(pl.lit("apy")).otherwise("base_kind").alias("base_kind")
    )
    monkeypatch.setattr(conventions, "table", lambda: better)
    assert conventions.sync(store, now=LATER) == 1
    assert conventions.in_force(store).filter(project="lido")["base_kind"].item() == "apy"


def test_mending_records_the_bundled_table_too(store: Store) -> None:
    """Otherwise one row of one's own would make all other projects unknown."""
    assert conventions.mend(store, row("newcomer"), now=NOW).new == 1
    assert store.recorded("conventions").height == conventions.table().height + 1


def test_mending_changes_the_rate_that_is_read_and_no_row(store: Store) -> None:
    conventions.sync(store, now=NOW)
    observe(store, "newcomer")
    before, rows = store.panel(), store.history()
    assert before.raw("apy").tolist() == [[0.1]]
    assert before.health.rates_unknown == 1
    cutoff = store.cutoff()
    conventions.mend(store, row("newcomer", since=datetime(2026, 6, 1, tzinfo=UTC)), now=LATER)
    assert store.history().equals(rows)
    after = store.panel(ingested_by=store.cutoff())
    assert after.raw("apy")[0, 0] == pytest.approx((1 + 0.1 / 365) ** 365 - 1, rel=1e-12)
    assert after.health.rates_unknown == 0
    # A run of before can be made again.
    assert store.panel(ingested_by=cutoff).digest() == store.panel(ingested_by=cutoff).digest()
    assert store.panel(ingested_by=cutoff).raw("apy").tolist() == [[0.1]]


def test_conventions_recorded_by_a_clock_that_runs_behind_come_after_what_is_there(store: Store) -> None:
    observe(store, "aave-v3", now=LATER)
    cutoff = store.cutoff()
    conventions.sync(store, now=NOW)
    assert store.cutoff() > cutoff
    assert store.panel(ingested_by=cutoff).raw("apy").tolist() == [[0.1]]
    assert store.panel(ingested_by=store.cutoff()).raw("apy")[0, 0] > 0.105


def test_a_method_that_changed_is_dated(store: Store) -> None:
    told = conventions.table().filter(project="morpho-blue")["valid_from"].to_list()
    assert told == [datetime(1970, 1, 1, tzinfo=UTC), datetime(2026, 5, 15, tzinfo=UTC)]
    since = row("switcher", "apr", since=datetime(2020, 1, 1, tzinfo=UTC))
    conventions.mend(store, pl.concat([since, row("switcher", "apy", since=datetime(2026, 7, 1, tzinfo=UTC))]))
    observe(store, "switcher")
    assert store.panel().raw("apy").tolist() == [[0.1]], "the day belongs to the method that began on it"
