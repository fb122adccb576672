"""`strategies list|show|new`."""

from __future__ import annotations

from pathlib import Path


def test_the_list_shows_every_file_with_its_state(yieldlab, lab: Path) -> None:
    (lab / "strategies" / "broken.py").write_text("NEEDS = ('apy',)\n")
    (lab / "more").mkdir()
    (lab / "more" / "highest_apy.py").write_text("")
    told = yieldlab("strategies", "list", "--strategies", "strategies", "--strategies", "more")
    assert told.code == 4
    for word in ("steady_carry", "LOAD FAILED", "DUPLICATE", "lookback=1,7,30"):
        assert word in told.out
    document = yieldlab("strategies", "list", "--json").document
    states = {one["name"]: one["state"] for one in document["data"]["strategies"]}
    assert states["broken"] == "LOAD FAILED"
    assert states["highest_apy"] == "OK"


def test_an_unknown_strategy_names_the_nearest(yieldlab, lab: Path) -> None:
    told = yieldlab("strategies", "show", "higest_apy")
    assert told.code == 2
    assert "unknown strategy 'higest_apy'; did you mean 'highest_apy'?" in told.err


def test_show_prints_parameters_and_source(yieldlab, lab: Path) -> None:
    told = yieldlab("strategies", "show", "steady_carry")
    assert told.code == 0
    assert "risk_aversion" in told.out
    assert "def signal(panel: Panel" in told.out


def test_new_writes_a_strategy_that_runs_and_never_overwrites(yieldlab, lab: Path) -> None:
    assert yieldlab("strategies", "new", "my_idea").code == 0
    assert yieldlab("strategies", "show", "my_idea").code == 0
    again = yieldlab("strategies", "new", "my_idea")
    assert again.code == 2
    assert "nothing is overwritten" in again.err
    assert yieldlab("strategies", "new", "my-idea").code == 2


def test_without_a_folder_the_bundled_strategies_are_used(yieldlab, empty: Path) -> None:
    told = yieldlab("strategies", "list")
    assert told.code == 0
    assert "highest_apy" in told.out
    told = yieldlab("strategies", "list", "--strategies", "absent")
    assert told.code == 2
    assert "there is no folder absent" in told.err
