"""`data ...` and `sql` on real stores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REAL_DATA = os.environ.get("YIELDLAB_REAL_DATA")  # read before the fixtures clear the environment


def test_the_sample_is_labelled_and_adds_nothing_twice(yieldlab, empty: Path) -> None:
    first = yieldlab("data", "sample")
    assert first.code == 0
    assert "SYNTHETIC" in first.out
    assert "13,396 observations of 12 pools, 13,396 of them new" in first.out
    assert yieldlab("data", "sample", "--json").document["data"]["appended"]["new"] == 0


def test_a_sample_of_any_size(yieldlab, empty: Path) -> None:
    told = yieldlab("data", "sample", "--pools", "30", "--days", "40", "--json")
    assert told.code == 0
    assert told.document["data"]["pools"] == 30
    assert yieldlab("data", "sample", "--pools", "30").code == 2


def test_the_list_shows_pools_and_versions(yieldlab, lab: Path) -> None:
    told = yieldlab("data", "list")
    assert told.code == 0
    assert "curve-3pool" in told.out
    assert "SYNTHETIC" in told.out
    document = yieldlab("data", "list", "--json").document
    assert len(document["data"]["pools"]) == 12
    assert document["data"]["tables"]["yield_metrics"]["rows"] == 13_396


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "list"],
        ["data", "check"],
        ["data", "compact"],
        ["sql", "SELECT 1"],
        ["backtest", "highest_apy", "--strategies", "."],
        ["sweep", "run", "highest_apy", "--strategies", "."],
    ],
)
def test_without_data_every_command_says_how_to_get_some(yieldlab, empty: Path, arguments: list[str]) -> None:
    import shutil

    from yieldlab.strategy import bundled_folder

    shutil.copy(bundled_folder() / "highest_apy.py", empty)
    told = yieldlab(*arguments)
    assert (told.code, told.out) == (3, "")
    assert "run `yieldlab data import FILE`, `yieldlab data backfill` or `yieldlab data sample`" in told.err
    assert not (empty / "data").exists()


def test_a_corrupt_table_is_a_data_error(yieldlab, lab: Path) -> None:
    for path in (lab / "data" / "tables" / "yield_metrics").glob("*.parquet"):
        path.write_bytes(path.read_bytes()[:100])
    for arguments in (["data", "list"], ["sql", "SELECT count(*) FROM yield_metrics"], ["backtest", "highest_apy"]):
        told = yieldlab(*arguments)
        assert told.code == 3, told.err
        assert told.err.count("\n") == 1


def test_sql_answers_and_cannot_write(yieldlab, lab: Path) -> None:
    told = yieldlab("sql", "SELECT protocol, count(*) AS pools FROM assets GROUP BY protocol ORDER BY protocol")
    assert told.code == 0
    assert "aave-v3" in told.out
    document = yieldlab("sql", "SELECT count(*) AS n FROM yield_metrics", "--json").document
    assert document["data"]["rows"] == [{"n": 13_396}]
    for query in ("SELCT 1", "DROP VIEW assets", "COPY assets TO 'x.csv'", "SELECT * FROM 'yieldlab.toml'"):
        told = yieldlab("sql", query)
        assert told.code == 2, query
        assert told.err.count("\n") == 1
    assert not (lab / "x.csv").exists()


def test_sql_shows_a_thousand_rows_unless_told_otherwise(yieldlab, lab: Path) -> None:
    told = yieldlab("sql", "SELECT pool_id FROM yield_metrics")
    assert "1,000 of 13,396 rows are shown" in told.err
    assert told.out.count("\n") < 1_010
    assert (
        len(yieldlab("sql", "SELECT pool_id FROM yield_metrics", "--limit", "0", "--json").document["data"]["rows"])
        > 13_000
    )


def test_compact_keeps_every_row(yieldlab, lab: Path) -> None:
    told = yieldlab("data", "compact", "--json")
    assert told.code == 0
    assert told.document["data"]["after"]["yield_metrics"]["rows"] == 13_396


GOOD = "pool_id,time,apy_percent,tvl_usd,mystery\na,2025-01-01,5,100,x\na,2025-01-02,6,100,x\n"


def test_an_import_counts_what_it_took(yieldlab, empty: Path) -> None:
    Path("good.csv").write_text(GOOD)
    told = yieldlab("data", "import", "good.csv")
    assert told.code == 0
    assert "2 rows read, 2 new" in told.out
    assert "Columns not read: mystery" in told.out
    [again] = yieldlab("data", "import", "good.csv", "--json").document["data"]["files"]
    assert (again["new"], again["unchanged"]) == (0, 2)


def test_refused_rows_make_the_import_partial_and_are_kept_with_their_reasons(yieldlab, empty: Path) -> None:
    Path("mixed.csv").write_text(
        GOOD + "a,never,5,1,x\na,2025-01-03,-100,1,x\n,2025-01-03,5,1,x\na,2025-01-04,5,-1,x\n"
    )
    told = yieldlab("data", "import", "mixed.csv")
    assert told.code == 4
    assert "4 refused" in told.out
    document = yieldlab("data", "import", "mixed.csv", "--json").document
    assert document["status"] == "partial"
    assert sum(document["data"]["files"][0]["refused"].values()) == 4
    assert Path(document["data"]["files"][0]["rejects_path"]).is_file()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("broken.csv", '"pool_id,time\n"a'),
        ("foreign.csv", "a,b\n1,2\n"),
        ("unusable.csv", "pool_id,time,apy_percent\na,never,5\n"),
        ("empty.csv", ""),
        ("broken.parquet", "PAR1 and then nothing"),
    ],
)
def test_a_file_that_cannot_be_used_leaves_no_table(yieldlab, empty: Path, name: str, text: str) -> None:
    Path(name).write_text(text)
    told = yieldlab("data", "import", name)
    assert (told.code, told.out) == (3, "")
    assert told.err.count("\n") == 1
    assert not Path("data/tables").exists()


def test_a_missing_file_stops_an_import_before_it_begins(yieldlab, empty: Path) -> None:
    Path("good.csv").write_text(GOOD)
    told = yieldlab("data", "import", "good.csv", "absent.csv")
    assert told.code == 3
    assert "there is no file absent.csv; nothing was imported" in told.err
    assert not Path("data").exists()


def test_one_bad_file_of_several_makes_the_import_partial(yieldlab, empty: Path) -> None:
    Path("good.csv").write_text(GOOD)
    Path("bad.csv").write_text("a,b\n1,2\n")
    told = yieldlab("data", "import", "good.csv", "bad.csv")
    assert told.code == 4
    assert "2 new" in told.out
    assert "warning: bad.csv" in told.err


def test_made_up_and_real_observations_do_not_mix(yieldlab, empty: Path) -> None:
    Path("good.csv").write_text(GOOD)
    assert yieldlab("data", "import", "good.csv").code == 0
    told = yieldlab("data", "sample")
    assert told.code == 2
    assert "already holds real observations" in told.err
    assert yieldlab("data", "sample", "--data", "other").code == 0
    told = yieldlab("data", "import", "good.csv", "--data", "other")
    assert told.code == 0
    assert "also holds synthetic pools" in told.err
    assert "SYNTHETIC: 12 of 13 pools" in yieldlab("data", "list", "--data", "other").out


def test_a_real_file_goes_in_whole(yieldlab, empty: Path) -> None:
    folder = REAL_DATA
    if not folder or not (Path(folder) / "yields.parquet").is_file():
        pytest.skip("set YIELDLAB_REAL_DATA to a folder with yields.parquet")
    told = yieldlab("data", "import", str(Path(folder) / "yields.parquet"), "--json")
    [imported] = told.document["data"]["files"]
    assert imported["rows_read"] == imported["new"] + sum(imported["refused"].values()) + imported["duplicates"]
    assert told.code in (0, 4)
    assert yieldlab("data", "list").code == 0


def test_a_sound_store_passes_its_check_and_says_what_it_found(yieldlab, lab: Path) -> None:
    told = yieldlab("data", "check")
    assert told.code == 0
    assert "all within the thresholds; SYNTHETIC data" in told.out
    document = yieldlab("data", "check", "--json").document
    assert document["status"] == "ok"
    assert document["data"]["totals"]["rows"] == 13_396


def test_data_above_a_threshold_ends_with_3_and_names_the_pool(yieldlab, lab: Path) -> None:
    told = yieldlab("data", "check", "--threshold", "max_gap_days=10")
    assert told.code == 3
    assert "aave-v3-dai was not observed for 12 days in a row; max_gap_days is 10" in told.out
    document = yieldlab("data", "check", "--threshold", "max_gap_days=10", "--json").document
    assert document["status"] == "failed"
    assert not document["data"]["sound"]


def test_thresholds_come_from_the_file_and_flags_win(yieldlab, lab: Path) -> None:
    (lab / "yieldlab.toml").write_text("[check]\nmax_gap_days = 1\n")
    assert yieldlab("data", "check").code == 3
    assert yieldlab("data", "check", "--threshold", "max_gap_days=none").code == 0
    for wrong in ("max_gap_day=3", "max_gap_days=1,2", "max_gap_days=-1", "max_gap_days=soon", "max_gap_days"):
        told = yieldlab("data", "check", "--threshold", wrong)
        assert told.code == 2, wrong
        assert told.err.count("\n") == 1


def test_two_synthetic_worlds_do_not_mix(yieldlab, lab: Path) -> None:
    assert yieldlab("data", "sample").code == 0
    other = yieldlab("data", "sample", "--seed", "5")
    assert other.code == 2
    assert "already holds another synthetic sample" in other.err


@pytest.mark.parametrize(("source", "said"), [("defillama/chart", "1 simple rate converted"), ("", "taken as APY")])
def test_rows_of_the_feed_that_came_by_a_file_are_read_as_those_that_came_straight_from_it(
    yieldlab, lab: Path, source: str, said: str
) -> None:
    header = "pool_id,time,apy_percent,protocol,symbol,chain" + (",source" if source else "")
    rows = [f"p,2025-01-0{day},10,aave-v3,USDC,Ethereum{',' if source else ''}{source}" for day in range(1, 6)]
    (lab / "rows.csv").write_text("\n".join([header, *rows]) + "\n")
    assert yieldlab("data", "import", "rows.csv", "--data", "other").code == 0
    told = yieldlab(
        "backtest", "highest_apy", "--data", "other", "--cost-bps", "0", "--set", "warmup=0", "--json"
    ).document
    apy = (1 + 0.10 / 365) ** 365 - 1 if source else 0.10
    assert told["data"]["trials"][0]["measures"]["total_return"] == pytest.approx((1 + apy) ** (4 / 365) - 1, rel=1e-9)
    assert said.replace("1 simple rate", "5 simple rates") in " ".join(
        yieldlab("backtest", "highest_apy", "--data", "other").out.split()
    )
