"""Settings: what wins over what, and that nothing given is ever ignored."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from yieldlab import config
from yieldlab.errors import ConfigError, UsageError
from yieldlab.quality import Thresholds


def test_without_anything_the_defaults_hold(tmp_path: Path) -> None:
    settings = config.load(environment={}, folder=tmp_path)
    assert (settings.data, settings.capital, settings.cost_bps, settings.max_memory) == (
        Path("data"),
        10_000.0,
        10.0,
        2_000_000_000,
    )
    assert settings.file is None
    assert settings.jobs >= 1


def test_a_flag_wins_over_the_environment_which_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "yieldlab.toml").write_text("capital = 1\ncost_bps = 2\ngas_usd = 3\n")
    settings = config.load(
        {"capital": "100", "cost_bps": None},
        environment={"YIELDLAB_CAPITAL": "10", "YIELDLAB_COST_BPS": "20"},
        folder=tmp_path,
    )
    assert (settings.capital, settings.cost_bps, settings.gas_usd) == (100.0, 20.0, 3.0)
    assert settings.flags == {"capital"}


def test_folders_in_the_file_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('data = "d"\nstrategies = ["a", "/b"]\n')
    settings = config.load(file=tmp_path / "other.toml", environment={})
    assert settings.data == tmp_path / "d"
    assert settings.strategies == (tmp_path / "a", Path("/b"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("captial = 1", r"unknown key 'captial'; did you mean 'capital'\?"),
        ("capital = 0", r"capital must be a number > 0, not 0"),
        ("capital = true", r"capital must be a number > 0, not True"),
        ("capital = nan", r"capital must be a number > 0, not nan"),
        ("cost_bps = 10000", r"cost_bps must be a number >= 0 and below 10000"),
        ("jobs = 0", r"jobs must be a whole number >= 1, not 0"),
        ("jobs = 1.5", r"jobs must be a whole number >= 1, not 1.5"),
        ('max_memory = "much"', r"max_memory must be a size of at least 1MB, such as \"2GB\", not 'much'"),
        ("max_memory = 1000", r"max_memory must be a size of at least 1MB"),
        ("data = 3", r"data must be a folder, not 3"),
        ("strategies = [1]", r"strategies must be a list of folders"),
        ("capital = ", r"not valid TOML"),
        ("check = 3", r"check must be a table, \[check\], not 3"),
        ("[check]\nmax_bananas = 3", r"unknown threshold 'max_bananas' of `data check`"),
        ("[check]\nmax_gap_day = 3", r"did you mean 'max_gap_days'"),
        ("[check]\nmax_gap_days = -3", r"max_gap_days must be 0 or more, not -3"),
        ("[check]\nmax_gap_days = 1.5", r"max_gap_days must be a whole number or none, not 1.5"),
        ("[check]\nspike_percent = 'none'", r"spike_percent must be a number or none, not None"),
        ("[capital]\na = 1", r"capital must be a number > 0"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "yieldlab.toml").write_text(text)
    with pytest.raises(ConfigError, match=sentence) as raised:
        config.load(environment={}, folder=tmp_path)
    assert "\n" not in str(raised.value)


def test_thresholds_of_the_file_are_taken_and_none_switches_one_off(tmp_path: Path) -> None:
    (tmp_path / "yieldlab.toml").write_text('[check]\nmax_gap_days = 5\nmax_spike_share = "none"\n')
    assert config.load(environment={}, folder=tmp_path).check == {"max_gap_days": 5, "max_spike_share": None}


def test_a_file_that_is_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no configuration file"):
        config.load(file=tmp_path / "absent.toml", environment={})


def test_a_misspelt_variable_is_an_error_and_a_foreign_one_is_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'YIELDLAB_CAPITAL'"):
        config.load(environment={"YIELDLAB_CAPTIAL": "1"}, folder=tmp_path)
    config.load(environment={"YIELDLAB_REAL_DATA": "x", "HOME": "/"}, folder=tmp_path)


def test_a_bad_flag_is_named_as_the_flag(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--cost-bps must be a number >= 0 and below 10000, not '-3'"):
        config.load({"cost_bps": "-3"}, environment={}, folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2_000_000_000), ("2 GiB", 2_147_483_648), ("500mb", 500_000_000), ("1.5TB", 1.5e12)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: float) -> None:
    assert config.parse_bytes(text) == size


def test_every_key_is_in_the_documentation_with_its_default_and_meaning() -> None:
    page = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    found = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \|$", page, flags=re.MULTILINE)
    rows = {name: told for name, *told in found}
    assert list(rows) == list(config.KEYS)
    for name, key in config.KEYS.items():
        default, right, meaning = rows[name]
        assert (default.replace("`", ""), right, meaning) == (key.default, key.right, key.meaning)


def test_every_threshold_is_in_the_documentation_with_its_default() -> None:
    page = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`|]+)` \| [^|]+ \|$", page, flags=re.MULTILINE))
    defaults = {field.name: field.default for field in fields(Thresholds)}
    assert rows == {name: "none" if value is None else str(value) for name, value in defaults.items()}


def test_every_key_is_a_setting() -> None:
    fields = config.Settings.__dataclass_fields__
    assert set(config.KEYS) | {"check", "file", "flags"} == set(fields)


@pytest.mark.parametrize("value", ["http://127.0.0.1:8080/", "https://yields.example/api"])
def test_an_address_of_the_feed_is_taken_without_its_last_slash(value: str, tmp_path: Path) -> None:
    settings = config.load({"base_url": value}, environment={}, folder=tmp_path)
    assert settings.base_url == value.rstrip("/")


@pytest.mark.parametrize("value", ["yields.llama.fi", "ftp://feed", "http://", "https://feed?key=1", "https://feed#x"])
def test_what_is_no_address_is_refused_with_what_would_be(value: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--base-url must be an address such as https"):
        config.load({"base_url": value}, environment={}, folder=tmp_path)


def test_an_address_with_a_password_is_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        config.load({"base_url": "https://me:hunter2@feed.example"}, environment={}, folder=tmp_path)
    assert "hunter2" not in str(caught.value)
    assert "without a query, a user or a password" in str(caught.value)
