"""Rows are only added, corrections are revisions, and any past knowledge can be read again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import yieldlab.store
from yieldlab import sample, schema
from yieldlab.errors import DataError, UsageError
from yieldlab.store import Store

START = datetime(2024, 1, 1, tzinfo=UTC)
FETCHED = datetime(2024, 6, 1, tzinfo=UTC)
AGAIN = datetime(2024, 7, 1, tzinfo=UTC)
NO_ASSETS = pl.DataFrame(schema={"pool_id": pl.String})


def day(number: float) -> datetime:
    return START + timedelta(days=number)


def metrics(*rows: tuple[str, float, float], **columns: Any) -> pl.DataFrame:
    """Rows of (pool, day, apy), and whole columns by name."""
    return pl.DataFrame(
        {
            "pool_id": [row[0] for row in rows],
            "valid_at": [day(row[1]) for row in rows],
            "apy_percent": [row[2] for row in rows],
            **columns,
        },
        schema_overrides={n: t for n, t in schema.YIELD_METRICS.items() if n in columns or n == "apy_percent"},
    )


def values(frame: pl.DataFrame) -> list[tuple[str, float, float]]:
    days = [(instant - START) / timedelta(days=1) for instant in frame["valid_at"]]
    return list(zip(frame["pool_id"], days, frame["apy_percent"], strict=True))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def test_opening_a_store_creates_nothing(store: Store) -> None:
    assert not store.exists
    for read in (store.assets, store.metrics, store.panel, store.overview, store.versions, store.cutoff, store.compact):
        with pytest.raises(
            DataError,
            match=r"no data in .*; run `yieldlab data import FILE`, `yieldlab data backfill` or `yieldlab data sample`",
        ):
            read()
    with pytest.raises(DataError, match="no data in"):
        store.sql("SELECT 1")
    assert not store.folder.exists()


def test_the_same_rows_again_add_nothing(store: Store) -> None:
    rows = metrics(("b", 0, 1.0), ("a", 0, 2.0), ("a", 1, 3.0))
    assets = pl.DataFrame({"pool_id": ["a", "b"], "symbol": ["USDC", None]})
    first = store.append(rows, assets)
    assert (first.new, first.revised, first.unchanged, first.pools_new) == (3, 0, 0, 2)
    before = store.versions()
    again = store.append(rows, assets)
    assert (again.new, again.revised, again.unchanged, again.pools_new) == (0, 0, 3, 0)
    assert store.versions() == before
    assert again.version == first.version


def test_a_new_row_is_assumed_to_be_known_at_its_instant_and_a_change_from_its_fetching(store: Store) -> None:
    store.append(metrics(("a", 0, 1.0), ("a", 1, 2.0)), NO_ASSETS, now=FETCHED)
    changed = store.append(metrics(("a", 0, 1.0), ("a", 1, 2.5)), NO_ASSETS, now=AGAIN)
    assert (changed.new, changed.revised, changed.unchanged) == (0, 1, 1)
    history = store.history().sort("valid_at", "observed_at")
    assert history["observed_at"].to_list() == [day(0), day(1), AGAIN]
    assert values(store.metrics()) == [("a", 0, 1.0), ("a", 1, 2.5)]
    assert values(store.metrics(as_of=AGAIN - timedelta(microseconds=1))) == [("a", 0, 1.0), ("a", 1, 2.0)]
    assert values(store.metrics(as_of=day(0.5))) == [("a", 0, 1.0)]


def test_a_value_that_changes_back_is_a_revision_too(store: Store) -> None:
    for number, apy in enumerate((1.0, 2.0, 1.0)):
        store.append(metrics(("a", 0, apy)), NO_ASSETS, now=FETCHED + timedelta(days=number))
    assert store.history().height == 3
    assert [values(store.metrics(as_of=FETCHED + timedelta(days=n)))[0][2] for n in range(3)] == [1.0, 2.0, 1.0]


def test_a_cutoff_gives_the_same_rows_for_ever(store: Store) -> None:
    rows = metrics(("a", 0, 1.0))
    store.append(rows, pl.DataFrame({"pool_id": ["a"], "symbol": ["USDC"]}), now=FETCHED)
    cutoff = store.cutoff()
    # A clock that stands still, or runs back, must not put later rows under an earlier cutoff.
    store.append(
        metrics(("a", 0, 9.0), ("b", 0, 1.0)), pl.DataFrame({"pool_id": ["a"], "symbol": ["DAI"]}), now=FETCHED
    )
    assert store.cutoff() > cutoff
    assert values(store.metrics(ingested_by=cutoff)) == [("a", 0, 1.0)]
    assert store.assets(ingested_by=cutoff)["symbol"].to_list() == ["USDC"]
    assert store.assets().select("pool_id", "symbol").rows() == [("a", "DAI"), ("b", None)]
    assert values(store.metrics()) == [("a", 0, 9.0), ("b", 0, 1.0)]


def test_no_cutoff_lies_between_descriptions_and_rows_of_one_append(store: Store) -> None:
    """A reader who comes between the two commits takes the descriptions' instant as cutoff, and keeps what it saw."""
    store.append(metrics(("a", 0, 1.0)), NO_ASSETS, now=FETCHED)
    between = store.assets()["ingested_at"].item()
    assert store.metrics(ingested_by=between).is_empty()


def test_a_correction_by_a_clock_that_runs_behind_still_counts(store: Store) -> None:
    store.append(metrics(("a", 0, 1.0), observed_at=[AGAIN]), NO_ASSETS, now=AGAIN)
    store.append(metrics(("a", 0, 2.0)), NO_ASSETS, now=FETCHED)
    assert values(store.metrics()) == [("a", 0, 2.0)]


def test_a_column_that_an_import_does_not_have_keeps_what_was_known(store: Store) -> None:
    store.append(metrics(("a", 0, 1.0), ("a", 1, 1.0), tvl_usd=[5.0, 6.0]), NO_ASSETS)
    same = store.append(metrics(("a", 0, 1.0)), NO_ASSETS)
    assert (same.revised, same.unchanged) == (0, 1)
    store.append(metrics(("a", 0, 2.0), ("a", 2, 2.0)), NO_ASSETS)
    assert store.metrics()["tvl_usd"].to_list() == [5.0, 6.0, None]
    store.append(metrics(("a", 0, 2.0), tvl_usd=[None]), NO_ASSETS)
    assert store.metrics()["tvl_usd"].to_list() == [None, 6.0, None]


def test_rows_not_fetched_together_say_when_each_was(store: Store) -> None:
    store.append(metrics(("a", 0, 1.0), ("b", 0, 1.0), ("c", 0, 1.0)), NO_ASSETS, now=FETCHED)
    again = metrics(("a", 0, 2.0), ("b", 0, 2.0), ("c", 0, 1.0), ("d", 0, 1.0))
    earlier = AGAIN - timedelta(seconds=9)
    told = store.append(
        again.with_columns(fetched_at=pl.Series([earlier, None, earlier, earlier])), NO_ASSETS, now=AGAIN
    )
    assert (told.new, told.revised, told.unchanged) == (1, 2, 1)
    assert dict(store.metrics().select("pool_id", "observed_at").rows()) == {
        "a": earlier,
        "b": AGAIN,
        "c": START,
        "d": START,
    }


def test_a_new_row_that_its_source_lacked_before_is_known_from_its_fetching(store: Store) -> None:
    """The plain rule: a row never seen is assumed known at its time, unless a whole answer at or after it lacked it."""
    store.append(metrics(("a", 0, 1.0)), NO_ASSETS, now=FETCHED)
    cases = [(name, number, lacked) for name in "a" for number in (0, 2, 3) for lacked in (None, 2, 2.5)]
    for case, (name, number, lacked) in enumerate(cases):
        pool = f"{name}{case}"
        store.append(metrics((pool, 9, 1.0)), NO_ASSETS, now=FETCHED)  # the pool is known, the row is not
        rows = metrics((pool, number, 1.0)).with_columns(
            fetched_at=pl.lit(AGAIN), lacked_at=pl.lit(None if lacked is None else day(lacked), schema.UTC)
        )
        for _ in range(2):
            store.append(rows, NO_ASSETS)
        came_late = lacked is not None and number <= lacked
        seen = store.history(pools=[pool]).filter(pl.col("valid_at") == day(number))
        assert seen["observed_at"].to_list() == [AGAIN if came_late else day(number)]
    # What is known, or says itself when, is no such row.
    known = metrics(("a", 0, 1.0), ("c", 0, 1.0), observed_at=[None, day(0.5)])
    store.append(known.with_columns(fetched_at=pl.lit(AGAIN), lacked_at=pl.lit(AGAIN)), NO_ASSETS)
    assert store.history(pools=["a", "c"]).sort("pool_id")["observed_at"].to_list() == [day(0), day(0.5)]


def test_nan_is_not_observed(store: Store) -> None:
    store.append(metrics(("a", 0, 1.0), tvl_usd=[float("nan")]), NO_ASSETS)
    assert store.metrics()["tvl_usd"].to_list() == [None]
    assert store.append(metrics(("a", 0, 1.0), tvl_usd=[None]), NO_ASSETS).unchanged == 1


def test_a_history_of_revisions_can_come_in_at_once(store: Store) -> None:
    rows = metrics(("a", 0, 1.0), ("a", 0, 1.0), ("a", 0, 2.0), ("a", 0, 3.0))
    rows = rows.with_columns(observed_at=pl.Series([day(1), day(2), day(3), day(3)]))
    appended = store.append(rows, NO_ASSETS)
    assert (appended.new, appended.revised, appended.unchanged) == (1, 2, 1)
    assert [values(store.metrics(as_of=day(n)))[0][2] for n in (1, 2, 3)] == [1.0, 1.0, 3.0]
    assert store.append(rows, NO_ASSETS).unchanged == 4


def told(*rows: tuple[float, float, float]) -> pl.DataFrame:
    """Rows of pool a at day 0 as (day observed, apy, tvl)."""
    return metrics(
        *(("a", 0, apy) for _, apy, _ in rows),
        observed_at=[day(observed) for observed, _, _ in rows],
        tvl_usd=[tvl for _, _, tvl in rows],
    )


def test_a_value_confirmed_later_outlives_a_correction_that_comes_in_between(store: Store) -> None:
    for row in ((1, 5.0, 1.0), (29, 5.0, 1.0), (19, 7.0, 1.0)):
        store.append(told(row), NO_ASSETS)
    assert store.metrics().select("apy_percent", "observed_at").rows() == [(5.0, day(29))]
    assert [values(store.metrics(as_of=day(n)))[0][2] for n in (1, 19, 28, 29)] == [5.0, 7.0, 7.0, 5.0]
    again = store.append(told((29, 5.0, 1.0), (1, 5.0, 1.0), (19, 7.0, 1.0)), NO_ASSETS)
    assert (again.new, again.revised, again.unchanged) == (0, 0, 3)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from([1.0, 2.0]), st.sampled_from([1.0, 2.0])),
        min_size=2,
        max_size=5,
        unique_by=lambda row: row[0],
    ),
    random=st.randoms(use_true_random=False),
)
def test_rows_with_their_own_clock_say_the_same_in_any_order(
    rows: list[tuple[int, float, float]], random: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Against the list itself: as of a day, the row observed last by then."""
    store = Store(tmp_path_factory.mktemp("store"))
    for row in random.sample(rows, len(rows)):
        store.append(told(row), NO_ASSETS)
    for at in range(5):
        then = max((row for row in rows if row[0] <= at), default=None)
        read = store.metrics(as_of=day(at)).select("apy_percent", "tvl_usd").rows()
        assert read == ([] if then is None else [then[1:]])
    assert store.append(told(*rows), NO_ASSETS).unchanged == len(rows)


def test_a_known_instant_told_of_earlier_is_a_revision(store: Store) -> None:
    store.append(told((9, 5.0, 1.0)), NO_ASSETS)
    earlier = store.append(told((2, 4.0, 1.0), (3, 4.5, 1.0)), NO_ASSETS)
    assert (earlier.new, earlier.revised, earlier.unchanged) == (0, 2, 0)


def test_values_kept_from_an_older_row_are_those_known_at_the_import_and_are_counted(store: Store) -> None:
    """What a column's silence stands for is decided once: a row that comes in between later does not reach it."""
    assert store.append(told((1, 5.0, 100.0)), NO_ASSETS).kept == 0
    silent = told((19, 5.0, 0.0)).drop("tvl_usd")
    assert store.append(silent, NO_ASSETS).kept == 1
    assert store.append(silent, NO_ASSETS).kept == 0
    assert store.append(told((9, 5.0, 200.0)), NO_ASSETS).kept == 0
    assert [store.metrics(as_of=day(n))["tvl_usd"].item() for n in (1, 9, 19)] == [100.0, 200.0, 100.0]
    assert store.append(silent, NO_ASSETS).unchanged == 1


def test_nothing_is_known_before_the_instant_it_describes(store: Store) -> None:
    with pytest.raises(DataError, match="1 of the rows to store have an observed_at before their valid_at"):
        store.append(told((-1, 5.0, 1.0), (0, 5.0, 1.0)), NO_ASSETS)
    assert not store.folder.exists()


def test_a_description_that_came_later_is_not_known_before(store: Store) -> None:
    rows = metrics(("a", 0, 1.0), ("b", 0, 1.0))
    for symbol, now in (("USDC", FETCHED), ("DAI", AGAIN)):
        store.append(rows, pl.DataFrame({"pool_id": ["a"], "symbol": [symbol]}), now=now)
    # Before the first description there is only the assumption that it held already.
    for as_of, symbol in ((day(3), "USDC"), (AGAIN - timedelta(seconds=1), "USDC"), (AGAIN, "DAI"), (None, "DAI")):
        assert store.panel(as_of=as_of).pools["symbol"].to_list() == [symbol, None]
        assert store.assets(as_of=as_of)["symbol"].to_list() == [symbol, None]
    before = store.cutoff()
    store.append(rows, pl.DataFrame({"pool_id": ["a"], "symbol": ["WETH"]}), now=FETCHED)
    assert store.assets()["symbol"].to_list() == ["WETH", None], "a clock that runs behind hides no description"
    assert store.assets(ingested_by=before)["symbol"].to_list() == ["DAI", None]


def test_descriptions_change_by_revision_and_null_says_nothing(store: Store) -> None:
    rows = metrics(("a", 0, 1.0))
    store.append(rows, pl.DataFrame({"pool_id": ["a"], "protocol": ["aave"], "symbol": ["USDC"]}))
    store.append(rows, pl.DataFrame({"pool_id": ["a"], "protocol": [None], "symbol": ["DAI"]}))
    store.append(rows, NO_ASSETS)
    assert store.assets().select("pool_id", "protocol", "symbol", "chain").rows() == [("a", "aave", "DAI", None)]
    assert store.versions()["assets"].rows == 2


def test_the_overview_counts_days_rows_and_revisions(store: Store) -> None:
    store.append(metrics(("a", 0.2, 1.0), ("a", 0.4, 1.0), ("a", 5, 1.0), ("b", 2, 1.0), source=["s"] * 4), NO_ASSETS)
    store.append(metrics(("a", 5, 2.0)), NO_ASSETS)
    columns = ("pool_id", "first", "last", "days", "rows", "revisions", "source")
    assert store.overview().select(columns).rows() == [
        ("a", day(0.2), day(5), 2, 3, 1, "s"),
        ("b", day(2), day(2), 1, 1, 0, "s"),
    ]


def test_compaction_changes_no_row_and_keeps_recent_versions(store: Store) -> None:
    from deltalake import DeltaTable

    for number in range(6):
        store.append(metrics(("a", number, 1.0), ("a", 0, float(number))), NO_ASSETS)
    history = store.history().sort(pl.all())
    before = store.versions()["yield_metrics"]
    compacted = store.compact()
    assert compacted.before["yield_metrics"] == before
    assert (before.files, compacted.after["yield_metrics"].files) == (6, 1)
    assert compacted.after["yield_metrics"].rows == before.rows
    assert store.history().sort(pl.all()).equals(history)
    folder = store.folder / "tables" / "yield_metrics"
    for version in range(before.version + 1):
        assert DeltaTable(str(folder), version=version).to_pyarrow_table().num_rows > 0
    assert store.append(metrics(("a", 5, 1.0)), NO_ASSETS).unchanged == 1


def test_many_appends_are_checkpointed_and_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yieldlab.store._tables, "CHECKPOINT_EVERY", 3)
    for number in range(8):
        store.append(metrics(("a", number, 1.0)), NO_ASSETS)
    log = store.folder / "tables" / "yield_metrics" / "_delta_log"
    assert len(list(log.glob("*.checkpoint.parquet"))) == 2
    assert store.metrics().height == 8


def test_the_panel_of_a_store_is_the_panel_of_its_rows(store: Store) -> None:
    made, assets = sample.reference_study(seed=3)
    store.append(made, assets)
    panel = store.panel(fields=("apy", "utilization_rate"), max_stale_days=5)
    assert panel.shape == (1461, 12)
    assert panel.sources == ("synthetic",)
    assert panel.health.assumed_rows == panel.health.observations == sample.REFERENCE_ROWS
    assert panel.pools["symbol"].to_list() == assets.sort("pool_id")["symbol"].to_list()
    with pytest.raises(UsageError, match="unknown panel field 'apyy'"):
        store.panel(fields=("apyy",))
    with pytest.raises(DataError, match="no column 'tvl'; did you mean 'tvl_usd'"):
        store.metrics(columns=("tvl",))


@settings(deadline=None, max_examples=15)
@given(
    fetches=st.lists(
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    ),
    batch=st.integers(1, 4),
)
def test_a_store_remembers_what_each_fetch_knew(
    fetches: list[list[tuple[str, int, int]]], batch: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Against a dictionary that is copied after each fetch."""
    store = Store(tmp_path_factory.mktemp("store"))
    known: dict[tuple[str, int], float] = {}
    told: list[tuple[datetime, datetime, dict[tuple[str, int], float]]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yieldlab.store._compare, "BATCH_ROWS", batch)
        for number, rows in enumerate(fetches):
            last = {(pool, at): float(apy) for pool, at, apy in rows}
            now = FETCHED + timedelta(days=number)
            appended = store.append(metrics(*((p, a, v) for (p, a), v in last.items())), NO_ASSETS, now=now)
            assert appended.new == len(last.keys() - known.keys())
            assert appended.revised == sum(known.get(key, apy) != apy for key, apy in last.items())
            assert appended.new + appended.revised + appended.unchanged == len(last)
            known.update(last)
            told.append((now, store.cutoff(), known.copy()))
    for now, cutoff, then in told:
        rows = store.metrics(as_of=now, ingested_by=cutoff)
        assert {(pool, int(at)): apy for pool, at, apy in values(rows)} == then


def test_rows_without_a_key_are_refused_before_anything_is_written(store: Store) -> None:
    with pytest.raises(DataError, match="need a column 'apy_percent'; they have pool_id, valid_at"):
        store.append(metrics(("a", 0, 1.0)).drop("apy_percent"), NO_ASSETS)
    with pytest.raises(DataError, match="1 of the rows to store have no pool_id"):
        store.append(metrics((None, 0, 1.0)), NO_ASSETS)
    with pytest.raises(DataError, match="there are no rows to store"):
        store.append(metrics(("a", 0, 1.0)).clear(), NO_ASSETS)
    assert not store.folder.exists()


@pytest.mark.parametrize("name", ["with space", "ünï 日本", "it's", "a#b;c", "x=1&y"])
def test_any_ordinary_folder_name_will_do(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / name)
    store.append(metrics(("a", 0, 1.0)), NO_ASSETS)
    store.append(metrics(("b", 0, 1.0)), NO_ASSETS)
    assert store.metrics().height == 2
    assert store.sql("SELECT count(*) AS n FROM yield_metrics")["n"].item() == 2
    assert store.compact().after["yield_metrics"].files == 1


@pytest.mark.parametrize("name", ["a[b]", "100%", "why?", "*", "a|b", "a^b", "a\\b"])
def test_a_folder_that_delta_tables_cannot_be_in_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"the path of the data folder .* has a .*; rename it"):
        Store(tmp_path / name).append(metrics(("a", 0, 1.0)), NO_ASSETS)
    assert list(tmp_path.iterdir()) == []


# -- what is broken ---------------------------------------------------------------------------------------------


def broken(store: Store, how: str) -> None:
    store.append(metrics(("a", 0, 1.0), ("b", 0, 1.0)), NO_ASSETS)
    store.append(metrics(("a", 1, 1.0)), NO_ASSETS)
    folder = store.folder / "tables" / "yield_metrics"
    file = sorted(folder.glob("*.parquet"))[0]
    log = sorted((folder / "_delta_log").glob("*.json"))
    {
        "a data file is gone": file.unlink,
        "a data file is cut": lambda: file.write_bytes(file.read_bytes()[:200]),
        "a data file is noise": lambda: file.write_bytes(b"\x00" * 5000),
        "the log is noise": lambda: log[0].write_bytes(b"\xff{{{"),
        "the log is empty": lambda: log[0].write_bytes(b""),
        "the log has a hole": log[0].unlink,
    }[how]()


@pytest.mark.parametrize(
    "how",
    [
        "a data file is gone",
        "a data file is cut",
        "a data file is noise",
        "the log is noise",
        "the log is empty",
        "the log has a hole",
    ],
)
def test_a_broken_table_gives_one_sentence(store: Store, how: str) -> None:
    broken(store, how)
    for read in (
        store.panel,
        store.metrics,
        store.overview,
        lambda: store.sql("SELECT sum(apy_percent) FROM yield_metrics"),
    ):
        with pytest.raises(DataError) as caught:
            read()
        assert "\n" not in str(caught.value)
        assert "yield_metrics" in str(caught.value) or "tables" in str(caught.value)


def test_files_of_a_write_that_fails_at_its_commit_are_taken_away(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import deltalake

    store.append(metrics(("a", 0, 1.0)), NO_ASSETS)
    folder = store.folder / "tables" / "yield_metrics"
    before = set(folder.iterdir())

    def fails(folder: str, *_: Any, **__: Any) -> None:
        (Path(folder) / "part-new.parquet").write_bytes(b"rows")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(deltalake, "write_deltalake", fails)
    with pytest.raises(DataError, match="the disk is full"):
        store.append(metrics(("a", 1, 1.0)), NO_ASSETS)
    assert set(folder.iterdir()) == before


def test_a_table_of_another_kind_is_not_read(store: Store) -> None:
    from deltalake import write_deltalake

    write_deltalake(str(store.folder / "tables" / "yield_metrics"), pl.DataFrame({"x": [1]}))
    with pytest.raises(DataError, match="has no column 'pool_id'"):
        store.metrics()


def test_what_a_killed_first_import_left_is_no_table(store: Store) -> None:
    log = store.folder / "tables" / "yield_metrics" / "_delta_log"
    log.mkdir(parents=True)
    (log.parent / "part-0-orphan.parquet").write_bytes(b"half a fi")
    (log / "_commit_1.json.tmp").write_bytes(b"{")
    assert not store.exists
    assert store.append(metrics(("a", 0, 1.0)), NO_ASSETS).new == 1
    assert store.metrics().height == 1
