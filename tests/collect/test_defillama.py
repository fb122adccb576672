"""Answers of the yields service as rows: every fault of its data by its name, against a plain reading of the JSON."""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from feed_server import DATA_FAULTS, FeedServer
from feed_world import World, encode
from hypothesis import given, settings
from hypothesis import strategies as st

from yieldlab import schema
from yieldlab.collect import defillama
from yieldlab.collect._http import Broken, Client, InvalidPool, UnknownPool, Unreachable
from yieldlab.collect.defillama import Chart, chart, parse_chart, parse_pools, pools
from yieldlab.store import Store

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DAYS = 400


@pytest.fixture(scope="module")
def server() -> Iterator[FeedServer]:
    with FeedServer(pools=3, days=DAYS) as server:
        yield server


@pytest.fixture
def client(server: FeedServer) -> Iterator[Client]:
    with Client(server.url, requests_per_minute=1e6, backoff=0.001) as client:
        yield client


def plain_chart(body: bytes) -> dict[datetime, tuple[float | None, ...]]:
    """A plain slow reading: stamp -> apy, base, reward, TVL of its last row that can be used."""

    def number(value: object) -> float | None:
        if value is None or isinstance(value, bool):
            return None
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return None

    told = {}
    for row in json.loads(body)["data"]:
        values = tuple(number(row.get(name)) for name in ("apy", "apyBase", "apyReward", "tvlUsd"))
        apy, tvl = values[0], values[3]
        if apy is None or not math.isfinite(apy) or apy <= -100.0 or (tvl is not None and tvl < 0):
            continue
        told[datetime.fromisoformat(row["timestamp"])] = values
    return dict(sorted(told.items()))


def got(server: FeedServer, client: Client, fault: str) -> Chart:
    """The chart of a pool with a fault in its data, held to the plain reading of what was sent."""
    pool = server.pool_ids[0]
    server.plan(f"/chart/{pool}", fault)
    answer, told = chart(client, pool)
    columns = ("apy_percent", "apy_base_percent", "apy_reward_percent", "tvl_usd")
    rows = {row[0]: row[1:] for row in told.frame.select("valid_at", *columns).iter_rows()}
    assert rows == plain_chart(answer.body)
    assert list(rows) == sorted(rows)
    assert told.rows_read == told.frame.height + told.refused.height + told.duplicates
    assert set(told.frame["source"]) == {"defillama/chart"}
    assert set(told.frame["pool_id"]) == {pool}
    return told


def reasons(told: Chart) -> dict[str, int]:
    return dict(told.refused.group_by("reason").len().rows())


# -- the faults of the specification, by name -------------------------------------------------------------------------


def test_fault_null_apy_refuses_57_rows_of_400(server: FeedServer, client: Client) -> None:
    told = got(server, client, "null_apy")
    assert (told.frame.height, reasons(told)) == (343, {"missing apy": 57})
    assert told.refused["row"].to_list() == list(range(4, 401, 7))


def test_fault_nan_string_refuses_57_rows_of_400(server: FeedServer, client: Client) -> None:
    told = got(server, client, "nan_string")
    assert (told.frame.height, reasons(told)) == (343, {"apy is not finite": 57})


def test_fault_num_string_is_a_number(server: FeedServer, client: Client) -> None:
    told = got(server, client, "num_string")
    assert (told.frame.height, reasons(told)) == (400, {})
    assert told.frame.equals(got(server, client, "ok").frame)


def test_fault_missing_field_refuses_the_rows_that_lack_it(server: FeedServer, client: Client) -> None:
    assert reasons(got(server, client, "missing_field")) == {"missing apy": 57}


def test_fault_missing_field_that_is_not_needed_is_null(server: FeedServer) -> None:
    rows = [{name: row[name] for name in ("timestamp", "apy")} for row in server.chart(server.pool_ids[0])]
    told = parse_chart(encode(rows), "p", fetched_at=NOW)
    assert told.frame.height == 400
    assert told.frame["tvl_usd"].null_count() == told.frame["apy_base_percent"].null_count() == 400


def test_fault_dup_ts_keeps_the_last_and_counts(server: FeedServer, client: Client) -> None:
    told = got(server, client, "dup_ts")
    assert told.rows_read == 402
    assert (told.frame.height, told.duplicates) == (400, 1)
    assert reasons(told) == {"replaced by a later row of the same pool and time": 1}
    assert 99.0 not in told.frame["apy_percent"]


def test_fault_same_day_twice_keeps_both_instants(server: FeedServer, client: Client) -> None:
    told = got(server, client, "same_day_twice")
    assert (told.frame.height, told.same_day, told.duplicates) == (401, 1, 0)


def test_fault_unordered_is_sorted_and_counted(server: FeedServer, client: Client) -> None:
    told = got(server, client, "unordered")
    honest = got(server, client, "ok")
    assert told.frame.equals(honest.frame)
    assert told.out_of_order > 300
    assert honest.out_of_order == 0


def test_fault_negative_is_kept_where_it_can_be(server: FeedServer, client: Client) -> None:
    """A loss is a yield; a loss of all, or a TVL below nothing, is none."""
    told = got(server, client, "negative")
    assert reasons(told) == {"apy of -100 % or less": 1, "negative tvl": 1}
    assert told.frame["apy_percent"].min() == -5.0


def test_fault_spike_is_stored_as_it_came(server: FeedServer, client: Client) -> None:
    told = got(server, client, "spike")
    assert told.frame["apy_percent"].max() == 1_000_000.0
    assert told.frame.filter(pl.col("apy_percent") == 50_000.0).height == 1


def test_fault_zero_tvl_is_zero(server: FeedServer, client: Client) -> None:
    told = got(server, client, "zero_tvl")
    assert told.frame.filter(pl.col("tvl_usd") == 0.0).height == 5


def test_fault_gap_stays_a_gap(server: FeedServer, client: Client) -> None:
    told = got(server, client, "gap")
    assert told.frame.height == 370
    steps = told.frame["valid_at"].diff().drop_nulls()
    assert steps.max() > timedelta(days=30, hours=23)


def test_fault_stale_repeat_is_stored_as_it_came(server: FeedServer, client: Client) -> None:
    told = got(server, client, "stale_repeat")
    assert told.frame.height == 400
    assert (told.frame["apy_percent"].diff() == 0.0).sum() >= 10


def test_fault_apr_switch_is_stored_as_it_came(server: FeedServer, client: Client) -> None:
    told, honest = got(server, client, "apr_switch"), got(server, client, "ok")
    assert told.frame[:200].equals(honest.frame[:200])
    assert (told.frame["apy_percent"] > honest.frame["apy_percent"]).sum() == 200


def test_fault_units_switch_is_stored_as_it_came(server: FeedServer, client: Client) -> None:
    told, honest = got(server, client, "units_switch"), got(server, client, "ok")
    ratio = (told.frame["apy_percent"] / honest.frame["apy_percent"])[200:]
    assert ratio.is_between(0.0099, 0.0101).all()


def test_every_fault_of_data_has_its_test() -> None:
    for fault in DATA_FAULTS:
        assert any(name.startswith(f"test_fault_{fault}_") for name in globals()), fault


# -- charts -----------------------------------------------------------------------------------------------------------


def test_a_chart_has_the_columns_of_the_store_that_the_feed_tells_of(server: FeedServer, client: Client) -> None:
    told = got(server, client, "ok")
    wanted = [name for name in schema.YIELD_METRICS if name in told.frame.columns]
    assert told.frame.columns == wanted
    assert all(told.frame.schema[name] == schema.YIELD_METRICS[name] for name in wanted)
    assert not {"observed_at", "ingested_at", "volume_24h_usd"} & set(wanted)


def test_a_chart_hides_nothing_that_is_known_from_elsewhere(tmp_path: Path, server: FeedServer, client: Client) -> None:
    """The feed's chart has no volume: a volume in the store stays."""
    told = got(server, client, "ok")
    pool = pl.DataFrame({"pool_id": [server.pool_ids[0]]})
    store = Store(tmp_path)
    store.append(told.frame[:1].with_columns(volume_24h_usd=pl.lit(7.0)), pool, now=NOW)
    appended = store.append(told.frame.with_columns(pl.col("apy_percent") + 1.0), pool, now=NOW)
    assert (appended.new, appended.revised, appended.kept) == (399, 1, 1)
    first = store.metrics(as_of=NOW).sort("valid_at").row(0, named=True)
    assert first["volume_24h_usd"] == 7.0
    assert first["apy_percent"] == told.frame["apy_percent"][0] + 1.0


def test_an_unknown_pool_and_an_id_that_is_none_are_told_apart(server: FeedServer, client: Client) -> None:
    stranger = "00000000-0000-4000-8000-000000000000"
    with pytest.raises(UnknownPool, match=f"no history of pool '{stranger}'"):
        chart(client, stranger)
    assert server.hits[f"/chart/{stranger}"] == 3
    for name in ("aave-usdc", "a/b c?d#e", "../pools", "ü"):
        with pytest.raises(InvalidPool, match="does not take"):
            chart(client, name)
        assert server.hits[f"/chart/{name}"] == 1


def test_an_unknown_pool_is_said_only_by_empty_answers(server: FeedServer, client: Client) -> None:
    """Two empty answers among other faults are not the truth yet."""
    pool = server.pool_ids[1]
    server.plan(f"/chart/{pool}", "empty_data", "502", "empty_data", "truncated")
    assert chart(client, pool)[1].frame.height == 400
    server.plan(f"/chart/{pool}", "empty_data", "502", "empty_data", "502", "502", "502")
    with pytest.raises(Unreachable):
        chart(client, pool)


def test_a_row_of_a_later_time_than_its_answer_is_refused(server: FeedServer) -> None:
    rows = server.chart(server.pool_ids[0])
    stamp = datetime.fromisoformat(rows[-1]["timestamp"])
    at = parse_chart(encode(rows), "p", fetched_at=stamp)
    assert (at.frame.height, reasons(at)) == (400, {})
    before = parse_chart(encode(rows), "p", fetched_at=stamp - timedelta(microseconds=1))
    assert (before.frame.height, reasons(before)) == (399, {"time in the future": 1})


def test_the_seam_of_stamps_is_two_instants() -> None:
    """Midnight in the first era, late in the evening afterwards: nearly two days between two neighbours."""
    world = World(1, 1200)
    told = parse_chart(encode(world.chart(world.pool_ids[0])), "p", fetched_at=NOW)
    steps = told.frame["valid_at"].diff().drop_nulls()
    assert timedelta(hours=46) < steps.max() < timedelta(hours=48)
    assert told.same_day == 0


BAD_ROWS = [
    (None, "missing time"),
    (17, "missing time"),
    ({}, "missing time"),
    ({"timestamp": None, "apy": 1.0}, "missing time"),
    ({"timestamp": "yesterday", "apy": 1.0}, "unreadable time"),
    ({"timestamp": {"a": 1}, "apy": 1.0}, "unreadable time"),
    ({"timestamp": "1999-01-01T00:00:00.000Z", "apy": 1.0}, "time before the first blockchain"),
    ({"timestamp": "2025-01-01T00:00:00.000Z", "apy": "much"}, "apy is not a number"),
    ({"timestamp": "2025-01-01T00:00:00.000Z", "apy": True}, "apy is not a number"),
    ({"timestamp": "2025-01-01T00:00:00.000Z", "apy": [1.0]}, "apy is not a number"),
    ({"timestamp": "2025-01-01T00:00:00.000Z", "apy": 10**400}, "apy is not finite"),
    ({"timestamp": "2025-01-01T00:00:00.000Z", "apy": "\ud800"}, "missing apy"),
    ({"timestamp": "2025-01-01T00:00:00.000Z", "apy": 1.0, "tvlUsd": "inf"}, "tvl is not finite"),
    ({"timestamp": "2025-01-01T00:00:00.000Z", "apy": 1.0, "apyBase": "x"}, "apy_base_percent is not a number"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_a_bad_row_costs_no_other(server: FeedServer, row: object, reason: str) -> None:
    rows: list[object] = list(server.chart(server.pool_ids[0]))
    honest = parse_chart(encode(rows), "p", fetched_at=NOW)
    body = json.dumps({"status": "success", "data": [*rows[:100], row, *rows[100:]]}).encode()
    told = parse_chart(body, "p", fetched_at=NOW)
    assert told.refused.rows() == [(101, "p", reason)]
    assert told.frame.equals(honest.frame)


def test_all_bad_rows_at_once_cost_no_other(server: FeedServer) -> None:
    rows = server.chart(server.pool_ids[0])
    honest = parse_chart(encode(rows), "p", fetched_at=NOW)
    body = json.dumps({"status": "success", "data": [row for row, _ in BAD_ROWS] + rows}).encode()
    told = parse_chart(body, "p", fetched_at=NOW)
    assert told.refused["reason"].to_list() == [reason for _, reason in BAD_ROWS]
    assert told.frame.equals(honest.frame)


def test_a_chart_of_bad_rows_alone_has_no_row(server: FeedServer) -> None:
    told = parse_chart(json.dumps({"status": "success", "data": [{}, 5]}).encode(), "p", fetched_at=NOW)
    assert (told.frame.height, told.refused.height, told.same_day) == (0, 2, 0)
    assert told.frame.schema["valid_at"] == schema.UTC


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
FIELDS = ("timestamp", "pool", "apy", "apyBase", "apyReward", "tvlUsd", "project", "symbol", "stablecoin", "poolMeta")
ROWS = st.lists(st.dictionaries(st.sampled_from(FIELDS), JSONS) | JSONS, max_size=6)


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_whatever_the_rows_are_they_are_kept_or_refused_and_all_are_counted(rows: list[object]) -> None:
    good = {"timestamp": "2025-02-03T23:01:00.000Z", "pool": "good", "apy": 5.0, "tvlUsd": 1000}
    body = json.dumps({"status": "success", "data": [*rows, good]}).encode()
    told = parse_chart(body, "p", fetched_at=NOW)
    assert told.rows_read == len(rows) + 1 == told.frame.height + told.refused.height + told.duplicates
    assert told.frame.filter(pl.col("apy_percent") == 5.0).height >= 1
    listed = parse_pools(body)
    assert listed.rows_read == len(rows) + 1 == listed.frame.height + listed.refused.height + listed.duplicates
    assert "good" in listed.frame["pool_id"]


# -- envelopes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"[]", "not the feed's envelope but of type list"),
        (b"null", "not the feed's envelope but nothing"),
        (b'{"data": []}', 'its status is null, not "success"'),
        (b'{"status": "success"}', "its data are not a list of rows but nothing"),
        (b'{"status": "success", "data": {"a": 1}}', "its data are not a list of rows but of type dict"),
        (b'{"status": "success", "data": [{"apy": NaN}]}', "NaN is no number in JSON"),
        (b'{"status": "success", "data": [{"apy": 1', "not JSON"),
    ],
)
def test_an_envelope_that_is_none_is_broken(body: bytes, sentence: str) -> None:
    with pytest.raises(Broken, match=sentence):
        parse_pools(body)
    with pytest.raises(Broken, match=sentence):
        parse_chart(body, "p", fetched_at=NOW)


# -- pools ------------------------------------------------------------------------------------------------------------


def test_pools_are_read_as_they_are_listed(server: FeedServer, client: Client) -> None:
    _, told = pools(client)
    rows = json.loads(server.body("/pools")[1])["data"]
    names = ("pool", "project", "symbol", "chain", "poolMeta", "stablecoin")
    numbers = ("apy", "apyBase", "apyReward", "tvlUsd", "volumeUsd1d")
    assert told.frame.rows() == [tuple(row[name] for name in (*names, *numbers)) for row in rows]
    assert told.frame.columns[: len(defillama.POOLS)] == list(defillama.POOLS)
    assert told.refused.is_empty()


def test_a_bad_pool_costs_no_other(server: FeedServer) -> None:
    rows: list[object] = [
        *server.pools(),
        {"pool": 17, "apy": 1.0},
        {"pool": "no-yield", "apy": None},
        {"pool": "too-much", "apy": 1e3, "tvlUsd": -4},
        "nothing",
    ]
    told = parse_pools(json.dumps({"status": "success", "data": rows}).encode())
    assert told.frame["pool_id"].to_list() == [row["pool"] for row in server.pools()]
    assert told.refused.rows() == [
        (4, None, "missing pool_id"),
        (5, "no-yield", "missing apy"),
        (6, "too-much", "negative tvl"),
        (7, None, "missing pool_id"),
    ]


def test_a_pool_that_is_listed_twice_counts_as_it_is_listed_last(server: FeedServer) -> None:
    rows = server.pools()
    told = parse_pools(encode([*rows, rows[0], rows[1] | {"apy": 77.0}]))
    assert told.frame.height == 3
    assert told.duplicates == 1
    assert told.refused["pool_id"].to_list() == [rows[1]["pool"]]
    assert told.frame.filter(pl.col("pool_id") == rows[1]["pool"])["apy_percent"].to_list() == [77.0]


def test_a_list_without_a_usable_pool_is_broken() -> None:
    """A feed that renamed its fields must not look like one from which all pools vanished."""
    with pytest.raises(Broken, match=r"none of its 2 rows can be used \(the first: missing pool_id\)"):
        parse_pools(encode([{"id": "a", "apy": 1.0}, {"id": "b", "apy": 2.0}]))


def test_foreign_kinds_of_text_and_flag_are_not_told(server: FeedServer) -> None:
    row = {"pool": " p1 ", "apy": 1, "project": 5, "symbol": "  ", "chain": "\ud800", "stablecoin": "yes"}
    body = json.dumps({"status": "success", "data": [row]}).encode()
    assert parse_pools(body).frame.rows() == [("p1", None, None, None, None, None, 1.0, None, None, None, None)]


def test_the_real_snapshot_is_read_whole() -> None:
    folder = os.environ.get("YIELDLAB_REAL_DATA")
    path = Path(folder or "") / "pools_snapshot.json.gz"
    if not folder or not path.is_file():
        pytest.skip("set YIELDLAB_REAL_DATA to a folder with pools_snapshot.json.gz")
    body = gzip.decompress(path.read_bytes())
    rows = json.loads(body)["data"]
    told = parse_pools(body)
    assert (told.rows_read, told.refused.height, told.duplicates) == (1134, 0, 0)
    assert told.frame["apy_percent"].to_list() == [row["apy"] for row in rows]
    assert told.frame["tvl_usd"].sum() == pytest.approx(math.fsum(row["tvlUsd"] for row in rows))
    assert told.frame["volume_24h_usd"].null_count() == 67
    assert told.frame["apy_reward_percent"].null_count() == 194
