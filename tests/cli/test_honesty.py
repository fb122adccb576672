"""`data check` and `data revisions`: screen, JSON, the file of flags, thresholds and exit codes."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from yieldlab.quality import COUNTED, FLAGS
from yieldlab.store import Store

REAL_DATA = os.environ.get("YIELDLAB_REAL_DATA")
DAY = datetime(2024, 3, 1, tzinfo=UTC)
NEAR = '''"""The yield of today."""
from yieldlab import Grid

NEEDS = ("apy",)
SIGNAL = Grid(sign=[1.0])
POLICY = Grid(top_n=[1, 2])


def signal(panel, sign):
    return sign * panel["apy"]
'''


def spoil(lab: Path) -> None:
    """Correct one synthetic day twice, after the fact: the yield, then its TVL."""
    store = Store(lab / "data")
    known = store.metrics().filter(pl.col("pool_id") == "aave-v3-dai", pl.col("valid_at").dt.date() == DAY.date())
    described = store.assets().filter(pl.col("pool_id") == "aave-v3-dai").select("pool_id")
    assert known.height == 1
    columns = ("pool_id", "valid_at", "apy_percent", "tvl_usd", "source")
    for days, change in enumerate((pl.lit(77.0).alias("apy_percent"), pl.lit(0.0).alias("tvl_usd")), start=2):
        known = known.select(columns).with_columns(change)
        store.append(known, described, now=DAY + timedelta(days=days))


def test_flags_are_written_and_told(yieldlab, lab: Path) -> None:
    told = yieldlab("data", "check", "--flags", "flags.parquet", "--json")
    assert told.code == 0
    data = told.document["data"]
    written = pl.read_parquet(lab / "flags.parquet")
    assert written.schema == FLAGS
    assert data["flags_path"] == "flags.parquet"
    assert data["totals"]["flags"] == written.height == sum(data["totals"][column] for column in COUNTED.values())
    assert "flags, one row each, are in flags.parquet" in yieldlab("data", "check", "--flags", "flags.parquet").out


def test_flags_that_cannot_be_written_are_one_sentence_and_code_2(yieldlab, lab: Path) -> None:
    for wrong in ("flags.csv", "nowhere/flags.parquet"):
        told = yieldlab("data", "check", "--flags", wrong)
        assert told.code == 2
        assert told.out == ""
        assert told.err.count("\n") == 1


def test_the_screen_tells_what_was_looked_for_and_the_worst_pools_first(yieldlab, lab: Path) -> None:
    told = yieldlab("data", "check", "--limit", "2", "--threshold", "max_missing_share=0.0001")
    assert told.code == 3
    for label in ("gaps between rows", "APY is not base + reward", "shifts of level", "changed after the fact"):
        assert label in told.out
    assert "2 of 12 pools are shown, worst first; --limit 0 shows all" in told.out
    missing = yieldlab("data", "check", "--json", "--threshold", "max_missing_share=0.0001").document["data"]
    assert len(missing["pools"]) == 12
    assert told.out.count("of the days of its life; max_missing_share") == 2 < len(missing["breaches"])
    everything = yieldlab("data", "check", "--limit", "0", "--threshold", "max_missing_share=0.0001")
    assert everything.out.count("of the days of its life; max_missing_share") == len(missing["breaches"])
    assert f"Above a threshold, 2 of {len(missing['breaches'])}:" in told.out
    assert "Above a threshold:" in everything.out
    assert re.search(r"\d%", told.out) is None


def test_outages_and_pools_that_fell_silent_together_are_told(yieldlab, lab: Path) -> None:
    days = [n for n in range(200) if n not in (5, *range(100, 110))]
    pools = {f"p{k:02}": days if k > 3 else [n for n in days if n < 90] for k in range(12)}
    rows = "\n".join(f"{p},{DAY.date() + timedelta(days=n)},{5 + n % 3},1000000" for p in pools for n in pools[p])
    (lab / "mine.csv").write_text("pool,date,apy,tvl\n" + rows)
    assert yieldlab("data", "import", "mine.csv", "--data", "other").code == 0
    told = yieldlab("data", "check", "--data", "other")
    assert told.code == 3
    first, last = (DAY.date() + timedelta(days=n) for n in (100, 109))
    one, end = (DAY.date() + timedelta(days=n) for n in (5, 89))
    assert f"No pool at all was observed on 11 days: {first} to {last} (10 days), {one} to {one} (1 day)" in told.out
    assert f"Many pools fell silent for good on one day, as when a source ends: 4 of 12 on {end}" in told.out
    assert f"no pool at all was observed for 10 days in a row, {first} to {last}; max_outage_days is 3" in told.out
    assert re.search(r"days without any pool +11 +- +10 d +3 d +1 +max_outage_days", told.out)
    data = yieldlab("data", "check", "--data", "other", "--json").document["data"]
    assert data["crowds"] == [{"day": str(end), "pools": 4, "alive": 12}]
    assert [stretch["days"] for stretch in data["outages"]] == [1, 10]
    lenient = yieldlab("data", "check", "--data", "other", "--threshold", "max_outage_days=10")
    assert lenient.code == 0, lenient.out

    (lab / "strategies" / "near.py").write_text(NEAR)
    sets = ("--set", "delisted=exit", "--data", "other", "--json")
    warned = [w for w in yieldlab("backtest", "near", *sets).document["warnings"] if "looks just like that" in w]
    assert warned == [
        "of 4 deaths of pools, told from more than 30 days of silence, 4 fell silent for good together with many "
        f"others (4 of 12 on {end}): a source that ended or a collector that was down looks just like that"
    ]
    assert [w for w in yieldlab("sweep", "run", "near", *sets).document["warnings"] if "looks just" in w] == warned
    strictly = ("--set", "dead_after_days=8", *sets)
    [outage] = [w for w in yieldlab("backtest", "near", *strictly).document["warnings"] if "looks just like that" in w]
    assert "of 12 deaths of pools" in outage
    assert "8 only within an outage common to all pools" in outage
    before = ("--end", str(end), *sets)
    for words in (sets[2:], before):
        assert "looks just" not in str(yieldlab("backtest", "near", *words).document["warnings"])


def test_only_survivors_are_told_where_data_is_not_made_up(yieldlab, lab: Path) -> None:
    assert "were never collected" not in yieldlab("data", "check").out
    rows = "\n".join(f"mine,{DAY.date() + timedelta(days=n)},{5 + n % 3},1000000" for n in range(700))
    (lab / "mine.csv").write_text("pool,date,apy,tvl\n" + rows)
    assert yieldlab("data", "import", "mine.csv", "--data", "other").code == 0
    told = yieldlab("data", "check", "--data", "other")
    assert "pools that died were never collected" in " ".join(told.out.split())
    years = yieldlab("data", "check", "--data", "other", "--json").document["data"]["years"]
    assert [year["survivor_share"] for year in years] == [1.0] * 3
    breached = yieldlab("data", "check", "--data", "other", "--threshold", "max_survivor_share=0.9")
    assert breached.code == 3
    assert "100.0 % of the pools of 2024 are still alive at the end; max_survivor_share is 0.9" in breached.out


def test_revisions_are_shown_and_narrowed_down(yieldlab, lab: Path) -> None:
    before = yieldlab("data", "revisions")
    assert before.code == 0
    assert "No value was changed after the fact in 13,396 rows" in before.out
    spoil(lab)
    told = yieldlab("data", "revisions")
    assert told.code == 0
    assert "1 of 13,396 rows were changed after the fact, 2 values in 1 pool" in told.out
    data = yieldlab("data", "revisions", "--json").document["data"]
    assert data["totals"]["changed_values"] == 2
    [tvl, apy] = data["changes"]
    assert (apy["column"], apy["after"], apy["days_after"]) == ("apy_percent", 77.0, pytest.approx(2.0, abs=1.0))
    assert (tvl["column"], tvl["after"], tvl["days_after"]) == ("tvl_usd", 0.0, pytest.approx(apy["days_after"] + 1.0))
    assert apy["change"] == pytest.approx(77.0 - apy["before"])
    assert [column["column"] for column in data["columns"]] == ["apy_percent", "tvl_usd"]
    assert data["months"][0]["month"] == "2024-03"
    later = yieldlab("data", "revisions", "--since", "2024-03-04", "--json").document["data"]
    assert [change["column"] for change in later["changes"]] == ["tvl_usd"]
    none = yieldlab("data", "revisions", "--since", "2024-03-05")
    assert "No value was changed after the fact since 2024-03-05 in 13,396 rows (2 before)" in none.out
    none = yieldlab("data", "revisions", "--since", "2024-03-05", "--pool", "aave-v3-usdc")
    assert "(none before either)" in none.out
    other = yieldlab("data", "revisions", "--pool", "aave-v3-usdc", "--json").document["data"]
    assert other["totals"]["changed_values"] == 0
    short = yieldlab("data", "revisions", "--limit", "1", "--json").document
    assert len(short["data"]["changes"]) == 1
    assert short["warnings"] == ["1 of 2 changed values are shown; --limit 0 shows all"]
    checked = yieldlab("data", "check", "--json").document["data"]
    assert checked["totals"]["revised_rows"] == 1
    assert checked["totals"]["no_tvl_rows"] == 1


def test_what_revisions_cannot_answer(yieldlab, lab: Path, empty: Path) -> None:
    for code, *words in (
        (2, "--since", "yesterday"),
        (2, "--since", "2999-01-01"),
        (3, "--pool", "aave-v3-dia"),
    ):
        told = yieldlab("data", "revisions", *words, "--data", str(lab / "data"))
        assert told.code == code
        assert told.err.count("\n") == 1
        assert words[1] in told.err
    for command in ("revisions", "check"):
        told = yieldlab("data", command, "--data", "nothing-here")
        assert told.code == 3
        assert "no data in nothing-here" in told.err


def test_a_backtest_as_of_an_instant_sees_no_later_revision(yieldlab, lab: Path) -> None:
    words = ("backtest", "highest_apy", "--as-of", "2024-03-01", "--json")  # revised a day after its end
    before = yieldlab(*words).document["data"]
    spoil(lab)
    after = yieldlab(*words).document["data"]
    assert after["trials"] == before["trials"]


def test_the_real_file_is_told_as_it_is(yieldlab, empty: Path) -> None:
    if not REAL_DATA or not (Path(REAL_DATA) / "yields.parquet").is_file():
        pytest.skip("set YIELDLAB_REAL_DATA to a folder with yields.parquet")
    assert yieldlab("data", "import", str(Path(REAL_DATA) / "yields.parquet")).code in (0, 4)
    told = yieldlab("data", "check", "--flags", "flags.parquet", "--json")
    assert told.code == 3
    totals = told.document["data"]["totals"]
    counts = dict(pl.read_parquet("flags.parquet").group_by("check").len().rows())
    assert all(counts.get(name, 0) == totals[column] for name, column in COUNTED.items())
    for name in ("gap", "repeated", "spike", "split", "no_tvl", "low_tvl", "level_shift"):
        assert counts[name] > 0, name
    screen = yieldlab("data", "check")
    assert screen.code == 3
    assert screen.out.count("\n") < 90
