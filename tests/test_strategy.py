"""A strategy file: what is accepted, what each mistake is told, and that the text kept is the text that ran."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from yieldlab.errors import CausalityError, DataError, StrategyError, UsageError
from yieldlab.features import rolling_mean
from yieldlab.panel import Panel
from yieldlab.strategy import _folders, bundled_folder, discover, find, load, template
from yieldlab.testing import check_strategy, corners, tiny_panel

HEAD = "import numpy as np\nfrom yieldlab import Grid\nfrom yieldlab.features import rolling_mean\n"
NEEDS = 'NEEDS = ("apy",)\n'
BODY = 'def signal(panel):\n    return panel["apy"]\n'


def written(folder: Path, *text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.py"
    path.write_text(HEAD + "".join(text))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load(path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.startswith(f"strategy {path.stem!r}: ")
    return sentence.removeprefix(f"strategy {path.stem!r}: ")


# -- loading ------------------------------------------------------------------------------------------------------


def test_a_whole_file_is_loaded_as_written(tmp_path: Path) -> None:
    path = tmp_path / "carry.py"
    path.write_text(
        '"""Hold what is steady.\n\n    Indented.\n"""\n'
        + HEAD
        + 'NEEDS = ("apy", "forecast_{model}")\nWARMUP = "lookback"\n'
        + 'SIGNAL = Grid(lookback=[7, 30], model=["lstm", "xgb"], scale=1.5)\n'
        + "POLICY = Grid(top_n=[3, 5], cost=[0, 0.1])\n"
        + 'def signal(panel, lookback, *, model, scale):\n    return rolling_mean(panel["apy"], lookback) * scale\n'
    )
    found = load(path)
    assert (found.name, found.path, found.doc) == ("carry", path, "Hold what is steady.\n\nIndented.")
    assert found.needs == ("apy", "forecast_{model}")
    assert found.fields() == ("apy", "forecast_lstm")
    assert found.fields({"model": "xgb"}) == ("apy", "forecast_xgb")
    assert found.warmup == "lookback"
    assert (found.warmup_rows(), found.warmup_rows({"lookback": 90})) == (7, 90)
    assert found.params({"scale": 2}) == {"lookback": 7, "model": "lstm", "scale": 2.0}
    assert (len(found.signal_grid), len(found.policy_grid)) == (4, 4)
    assert found.source.encode() == path.read_bytes()
    assert found.source_hash == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_may_be_absent_has_a_default(tmp_path: Path) -> None:
    found = load(written(tmp_path, NEEDS, BODY))
    assert (found.doc, found.warmup, found.warmup_rows(), found.params()) == ("", 0, 0, {})
    assert (len(found.signal_grid), found.policy_grid.defaults()) == (1, {})


def test_the_text_kept_is_the_text_that_ran(tmp_path: Path) -> None:
    path = written(tmp_path, NEEDS, BODY)
    found = load(path)
    before = path.read_text()
    path.write_text(before.replace('panel["apy"]', '-panel["apy"]'))
    panel = tiny_panel()
    assert found.source == before
    np.testing.assert_array_equal(found.signal(panel), panel["apy"])
    np.testing.assert_array_equal(load(path).signal(panel), -panel["apy"])


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_hash_is_that_of_the_bytes_whatever_ends_a_line(tmp_path: Path, newline: str) -> None:
    path = tmp_path / "ends.py"
    path.write_bytes((HEAD + NEEDS + BODY).replace("\n", newline).encode())
    assert load(path).source_hash == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_loaded_file_is_no_importable_module_and_shares_nothing(tmp_path: Path) -> None:
    before = set(sys.modules)
    path = written(
        tmp_path,
        NEEDS,
        "calls = []\n",
        'def signal(panel):\n    calls.append(1)\n    return panel["apy"] * len(calls)\n',
    )
    first, second = load(path), load(path)
    panel = tiny_panel()
    first.signal(panel)
    np.testing.assert_array_equal(second.signal(panel), panel["apy"])
    assert not [name for name in set(sys.modules) - before if "strategy_" in name or "mine" in name]


def test_a_dataclass_with_text_annotations_works_in_a_strategy(tmp_path: Path) -> None:
    path = tmp_path / "data.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        + HEAD
        + NEEDS
        + "@dataclass\nclass Settings:\n    width: int = 3\n"
        + BODY
    )
    assert load(path).name == "data"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (NEEDS, "has no function signal(panel, ...)"),
        (NEEDS + "def signals(panel):\n    return 1\n", "has no function signal(panel, ...); did you mean 'signals'?"),
        (NEEDS + "signal = 3\n", "has no function signal(panel, ...)"),
        (NEEDS + "def signal():\n    return 1\n", "the first parameter of signal() must be 'panel', not 'nothing'"),
        (NEEDS + "def signal(data):\n    return 1\n", "the first parameter of signal() must be 'panel', not 'data'"),
        (
            NEEDS + "def signal(*panel):\n    return 1\n",
            "the first parameter of signal() must be 'panel', not '*panel'",
        ),
        (
            NEEDS + "def signal(panel, *args):\n    return 1\n",
            "signal() takes '*args'; every parameter must be one that a name can be given to",
        ),
        (
            NEEDS + "def signal(panel, **more):\n    return 1\n",
            "signal() takes '**more'; every parameter must be one that a name can be given to",
        ),
        (
            NEEDS + "SIGNAL = Grid(n=[1])\ndef signal(panel, n, /):\n    return 1\n",
            "signal() takes 'n'; every parameter must be one that a name can be given to",
        ),
        (
            NEEDS + "SIGNAL = Grid(lookback=[7])\ndef signal(panel, lookbak):\n    return 1\n",
            "parameter 'lookbak' of signal() has no axis in SIGNAL; did you mean 'lookback'?",
        ),
        (
            NEEDS + "def signal(panel, lookback=7):\n    return 1\n",
            "parameter 'lookback' of signal() has no axis in SIGNAL; add SIGNAL = Grid(lookback=[...])",
        ),
        (
            NEEDS + "SIGNAL = Grid(lookback=[7], zz=[1])\ndef signal(panel, lookback):\n    return 1\n",
            "axis 'zz' of SIGNAL is no parameter of signal(panel, lookback)",
        ),
        (
            NEEDS + "SIGNAL = Grid(lag=[1])\ndef signal(panel, lag):\n    return 1\n",
            "signal parameter 'lag' has the name of a policy parameter; give it another",
        ),
        (
            NEEDS + "SIGNAL = Grid(accrual=['x'])\ndef signal(panel, accrual):\n    return 1\n",
            "signal parameter 'accrual' has the name of a market parameter; give it another",
        ),
        (
            NEEDS + "SIGNAL = Grid(turnover=[1])\ndef signal(panel, turnover):\n    return 1\n",
            "signal parameter 'turnover' has the name of a result column; give it another",
        ),
        *(
            (
                NEEDS + f"SIGNAL = Grid({name}=[1])\ndef signal(panel, {name}):\n    return 1\n",
                f"signal parameter {name!r} has the name of a result column; give it another",
            )
            for name in ("strategy", "trial_id", "reason", "status")
        ),
        (NEEDS + BODY + "def __getattr__(name):\n    raise ValueError('no')\n", "ValueError: no (line 8)"),
        (NEEDS + "SIGNAL = {'n': [1]}\n" + BODY, "SIGNAL must be a Grid, as SIGNAL = Grid(axis=[...]), not dict"),
        (NEEDS + "POLICY = None\n" + BODY, "POLICY must be a Grid, as POLICY = Grid(axis=[...]), not NoneType"),
        (NEEDS + "POLICY = Grid(topn=[3])\n" + BODY, "unknown policy parameter 'topn'; did you mean 'top_n'?"),
        (NEEDS + "POLICY = Grid(top_n=[3, 0])\n" + BODY, "top_n must be a whole number >= 1, not 0"),
        (NEEDS + "POLICY = Grid(cost=[1.0])\n" + BODY, "cost must be a number [0, 1), not 1.0"),
        (NEEDS + "POLICY = Grid(weighting=['tlv'])\n" + BODY, "unknown value of weighting 'tlv'; did you mean 'tvl'?"),
        (
            NEEDS + "POLICY = Grid(max_stale_days=[3])\n" + BODY,
            "'max_stale_days' is a market parameter and no axis of POLICY; set it when you run the strategy",
        ),
        (
            NEEDS + "POLICY = Grid(top_n=[])\n" + BODY,
            "axis 'top_n' of the grid is empty; give it at least one value (line 5) while loading",
        ),
        (BODY, 'NEEDS must be a tuple of panel fields, as NEEDS = ("apy",), not nothing'),
        ('NEEDS = ("apy")\n' + BODY, "NEEDS must be a tuple of panel fields, as NEEDS = (\"apy\",), not 'apy'"),
        ('NEEDS = ["apy"]\n' + BODY, "NEEDS must be a tuple of panel fields, as NEEDS = (\"apy\",), not ['apy']"),
        ("NEEDS = (1,)\n" + BODY, 'NEEDS must be a tuple of panel fields, as NEEDS = ("apy",), not (1,)'),
        (
            'NEEDS = ("tvl",)\n' + BODY,
            "unknown field 'tvl' in NEEDS; did you mean 'tvl_usd'? (or forecast_... and risk_...)",
        ),
        ('NEEDS = ("apy", "apy")\n' + BODY, "NEEDS repeats a field: apy, apy"),
        (
            'NEEDS = ("forecast_{model}",)\n' + BODY,
            "'forecast_{model}' in NEEDS is to be filled from 'model', which is no axis of SIGNAL",
        ),
        (
            'NEEDS = ("forecast_{n}",)\nSIGNAL = Grid(n=[1])\ndef signal(panel, n):\n    return 1\n',
            "'forecast_{n}' in NEEDS is filled from 'n', whose values must be words, not 1",
        ),
        ('NEEDS = ("risk_{",)\n' + BODY, "cannot read 'risk_{' in NEEDS: Single '{' encountered in format string"),
        (
            'NEEDS = ("forecast_",)\n' + BODY,
            "'forecast_' in NEEDS names no model, as forecast_lstm or risk_{model} would",
        ),
        (
            NEEDS + "WARMUP = -1\n" + BODY,
            "WARMUP must be a number of rows >= 0 or the name of a signal parameter, not -1",
        ),
        (
            NEEDS + "WARMUP = True\n" + BODY,
            "WARMUP must be a number of rows >= 0 or the name of a signal parameter, not True",
        ),
        (
            NEEDS + "WARMUP = 7.5\n" + BODY,
            "WARMUP must be a number of rows >= 0 or the name of a signal parameter, not 7.5",
        ),
        (
            NEEDS + "WARMUP = 'lookbak'\nSIGNAL = Grid(lookback=[7])\ndef signal(panel, lookback):\n    return 1\n",
            "WARMUP names 'lookbak', which is no signal parameter; did you mean 'lookback'?",
        ),
        (
            NEEDS + "WARMUP = 'n'\nSIGNAL = Grid(n=[7, 0.5])\ndef signal(panel, n):\n    return 1\n",
            "WARMUP names 'n', whose values must be whole numbers >= 0, not 0.5",
        ),
        ("def signal(panel:\n", "'(' was never closed (line 4)"),
        ("x = 1\n  y = 2\n", "unexpected indent (line 5)"),
        ("x = 'a\x00b'\n", "source code string cannot contain null bytes"),
        (
            "import no_such_library\n",
            "raised ModuleNotFoundError: No module named 'no_such_library' (line 4) while loading",
        ),
        (
            "def f():\n    raise ValueError('two\\n  lines')\nf()\n",
            "raised ValueError: two lines (line 5) while loading",
        ),
        ("raise SystemExit(7)\n", "raised SystemExit: 7 (line 4) while loading"),
        ("raise GeneratorExit\n", "raised GeneratorExit (line 4) while loading"),
        ("class Panic(BaseException): pass\nraise Panic('no')\n", "raised Panic: no (line 5) while loading"),
        ("raise ValueError\n", "raised ValueError (line 4) while loading"),
    ],
)
def test_a_mistake_in_the_file_gets_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    assert refusal(written(tmp_path, text)) == sentence


def test_a_file_that_cannot_be_read_gets_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read strategy file .*none\.py: No such file or directory"):
        load(tmp_path / "none.py")
    with pytest.raises(UsageError, match=r"cannot read strategy file .*: Is a directory"):
        load(tmp_path)
    (tmp_path / "latin.py").write_bytes("# é\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.py is not UTF-8 text \(byte 2\)"):
        load(tmp_path / "latin.py")


def test_ctrl_c_while_loading_is_not_swallowed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        load(written(tmp_path, "raise KeyboardInterrupt\n"))


def test_ctrl_c_in_a_signal_is_not_swallowed(tmp_path: Path) -> None:
    found = load(written(tmp_path, NEEDS, "def signal(panel):\n    raise KeyboardInterrupt\n"))
    with pytest.raises(KeyboardInterrupt):
        found.signal(tiny_panel())


@pytest.mark.parametrize("raising", [False, True])
def test_a_file_changes_nothing_for_those_outside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], raising: bool
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    meddling = (
        "import os, sys, warnings\n"
        "def meddle(word):\n"
        "    print(word)\n    os.chdir('..')\n    np.seterr(all='raise')\n    warnings.simplefilter('error')\n"
        "meddle('loading')\n"
        "def signal(panel):\n    meddle('calling')\n"
        f"    if {raising}:\n        raise ValueError('no')\n    return panel['apy']\n"
    )
    before = (Path.cwd(), np.geterr(), list(warnings.filters), sys.stdout)

    def unchanged() -> bool:
        return (Path.cwd(), np.geterr(), list(warnings.filters), sys.stdout) == before

    found = load(written(tmp_path, NEEDS, meddling))
    assert unchanged()
    with pytest.raises(StrategyError, match="raised ValueError: no") if raising else contextlib.nullcontext():
        found.signal(tiny_panel())
    assert unchanged()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == "loading\ncalling\n"


def test_a_working_folder_that_is_gone_is_nobodys_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, NEEDS, BODY)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert load(path).signal(tiny_panel()).shape == (60, 4)


# -- parameters ---------------------------------------------------------------------------------------------------


def test_an_unknown_parameter_or_kind_is_refused(tmp_path: Path) -> None:
    found = load(
        written(
            tmp_path,
            NEEDS,
            "WARMUP = 'lookback'\nSIGNAL = Grid(lookback=[7])\ndef signal(panel, lookback):\n    return 1\n",
        )
    )
    with pytest.raises(UsageError, match="unknown parameter of strategy 'mine' 'lookbak'; did you mean 'lookback'"):
        found.params({"lookbak": 7})
    with pytest.raises(UsageError, match="parameter 'lookback' takes a whole number, not 'week'"):
        found.signal(tiny_panel(), {"lookback": "week"})
    with pytest.raises(
        UsageError, match="lookback is the warm-up of strategy 'mine' and must be a whole number of rows"
    ):
        found.signal(tiny_panel(), {"lookback": -7})


# -- the signal ---------------------------------------------------------------------------------------------------


def test_a_signal_is_a_fresh_contiguous_float64_array(tmp_path: Path) -> None:
    panel = tiny_panel()
    for expression in ('panel["apy"]', 'np.asfortranarray(panel["apy"])', 'panel["apy"].astype("float32")'):
        views = load(written(tmp_path, NEEDS, f"def signal(panel):\n    return {expression}\n")).signal(panel)
        assert views.dtype == np.float64
        assert views.flags.c_contiguous
        assert views.flags.writeable
        assert not np.shares_memory(views, panel["apy"])
        np.testing.assert_allclose(views, panel["apy"], rtol=1e-7)
    whole = load(written(tmp_path, NEEDS, "def signal(panel):\n    return np.ones(panel.shape, int)\n")).signal(panel)
    assert whole.dtype == np.float64


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            "x = 1\n    raise ValueError('no  such\\n thing')",
            "strategy 'mine' raised ValueError: no such thing (line 7)",
        ),
        ("return 1 / 0", "strategy 'mine' raised ZeroDivisionError: division by zero (line 6)"),
        ("raise SystemExit", "strategy 'mine' raised SystemExit (line 6)"),
        ("raise GeneratorExit", "strategy 'mine' raised GeneratorExit (line 6)"),
        ("raise BaseException('panic')", "strategy 'mine' raised BaseException: panic (line 6)"),
        ("raise ValueError('x' * 1000)", f"strategy 'mine' raised ValueError: {'x' * 288}... (line 6)"),
        (
            "return rolling_mean(panel['apy'], 0)",
            "strategy 'mine': window must be a whole number of rows, 1 or more, not 0 (line 6)",
        ),
        (
            "panel['apy'][0, 0] = 9\n    return panel['apy']",
            "strategy 'mine' raised ValueError: assignment destination is read-only (line 6)",
        ),
        (
            "panel.raw('apy')[0, 0] = 9\n    return panel['apy']",
            "strategy 'mine' raised ValueError: assignment destination is read-only (line 6)",
        ),
        ("return panel['tvl']", "strategy 'mine': the panel has no field 'tvl'; did you mean 'tvl_usd'? (line 6)"),
        ("return None", "strategy 'mine' must return ARRAY, not NoneType"),
        ("return panel['apy'].tolist()", "strategy 'mine' must return ARRAY, not list"),
        ("return panel.pools", "strategy 'mine' must return ARRAY, not DataFrame"),
        ("return np.ma.masked_invalid(panel['apy'])", "strategy 'mine' must return ARRAY, not MaskedArray"),
        ("return panel['apy'].astype(complex)", "strategy 'mine' must return ARRAY, not values of type complex128"),
        ("return panel['apy'].astype(object)", "strategy 'mine' must return ARRAY, not values of type object"),
        ("return panel['apy'].astype(str)", "strategy 'mine' must return ARRAY, not values of type <U32"),
        ("return panel['apy'].T", "strategy 'mine' must return ARRAY, but returned shape (4, 60)"),
        ("return panel['apy'][0]", "strategy 'mine' must return ARRAY, but returned shape (4,)"),
        ("return np.float64(1)", "strategy 'mine' must return ARRAY, not float64"),
        (
            "return panel['apy'] > 0.05",
            "strategy 'mine' returned true and false, which rank no pool above another and cannot say 'no view'; "
            "return np.where(condition, score, np.nan)",
        ),
        (
            "apy = panel['apy'].copy()\n    apy[3, 2] = -np.inf\n    apy[4] = np.inf\n    return apy",
            "strategy 'mine' returned infinite values, 5 in all, the first at 2024-01-04, pool 'pool-02'; "
            "NaN means no view",
        ),
        ("return panel['apy'] * np.nan", "strategy 'mine' has no view on any pool"),
    ],
)
def test_a_signal_that_cannot_be_used_gets_one_sentence(tmp_path: Path, body: str, sentence: str) -> None:
    found = load(written(tmp_path, NEEDS, f"def signal(panel):\n    {body}\n"))
    with pytest.raises(StrategyError) as caught:
        found.signal(tiny_panel())
    array = "a NumPy array of numbers with shape (times, pools) = (60, 4)"
    assert str(caught.value) == sentence.replace("ARRAY", array)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("read", ["", "    read()\ndef read():\n"])
def test_data_that_a_strategy_cannot_use_is_told_as_that(tmp_path: Path, read: str) -> None:
    text = f"def signal(panel):\n{read}    raise DataError('there is no file x')\n"
    found = load(written(tmp_path, "from yieldlab import DataError\n", NEEDS, text))
    with pytest.raises(DataError) as caught:
        found.signal(tiny_panel())
    assert str(caught.value) == "strategy 'mine': there is no file x"
    assert caught.value.exit_code == 3


def test_views_before_the_warm_up_do_not_count(tmp_path: Path) -> None:
    early = (
        "WARMUP = 10\ndef signal(panel):\n    views = panel['apy'].copy()\n    views[10:] = np.nan\n    return views\n"
    )
    with pytest.raises(StrategyError, match=r"has no view on any pool$"):
        load(written(tmp_path, NEEDS, early)).signal(tiny_panel())
    late = load(written(tmp_path, NEEDS, "WARMUP = 60\n", BODY))
    with pytest.raises(StrategyError, match="no view on any pool; its warm-up of 60 rows takes the whole panel of 60"):
        late.signal(tiny_panel())
    assert late.signal(tiny_panel(times=61)).shape == (61, 4)


def test_a_field_the_panel_lacks_is_named_with_its_source(tmp_path: Path) -> None:
    panel = tiny_panel()
    bare = Panel(panel.times, panel.pools, {"apy": panel.raw("apy")})
    text = 'NEEDS = ("apy", "{}")\n' + BODY
    found = load(written(tmp_path, text.format("utilization_rate")))
    with pytest.raises(DataError) as caught:
        found.signal(bare)
    assert str(caught.value) == (
        "strategy 'mine' needs the field 'utilization_rate', which the panel lacks; "
        "it is read from the column 'utilization_rate' of the data"
    )
    for call in (found.signal, found.audit):
        with pytest.raises(DataError, match="needs the field"):
            call(bare)
    model = load(written(tmp_path, text.format("forecast_lstm")))
    with pytest.raises(DataError, match="needs the field 'forecast_lstm', which the panel lacks; a model writes it"):
        model.signal(panel)
    assert model.signal(tiny_panel(fields=["forecast_lstm"])).shape == (60, 4)


# -- the audit ----------------------------------------------------------------------------------------------------


def test_the_audit_names_what_depends_on_the_future(tmp_path: Path) -> None:
    cheat = load(written(tmp_path, NEEDS, "def signal(panel):\n    return np.roll(panel['apy'], -1, axis=0)\n"))
    with pytest.raises(
        CausalityError, match=r"strategy 'mine' depends on the future: at 2024-01-\d\d, pool 'pool-0\d'"
    ):
        cheat.audit(tiny_panel())


def test_the_audit_is_not_fooled_by_what_a_file_remembers(tmp_path: Path) -> None:
    cached = (
        "seen = {}\ndef signal(panel):\n    return panel['apy'] / seen.setdefault('best', np.nanmax(panel['apy']))\n"
    )
    with pytest.raises(CausalityError, match="depends on the future"):
        load(written(tmp_path, NEEDS, cached)).audit(tiny_panel())
    counting = "calls = []\ndef signal(panel):\n    calls.append(1)\n    return panel['apy'] * len(calls)\n"
    with pytest.raises(CausalityError, match=r"depends on what it was called on before: at 2024-01-01, pool 'pool-00'"):
        load(written(tmp_path, NEEDS, counting)).audit(tiny_panel())


def test_an_honest_strategy_passes_the_audit_before_its_warm_up_too(tmp_path: Path) -> None:
    text = (
        "WARMUP = 50\ndef signal(panel):\n    views = panel['apy'].copy()\n    views[:50] = np.nan\n    return views\n"
    )
    load(written(tmp_path, NEEDS, text)).audit(tiny_panel())


WINDOWED = (
    "def signal(panel):\n"
    "    mean = np.lib.stride_tricks.sliding_window_view(panel['apy'], 30, axis=0).mean(axis=-1)\n"
    "    return np.vstack([np.full((29, panel.shape[1]), np.nan), mean])\n"
)


@pytest.mark.parametrize("warmup", [29, 30])
def test_a_window_of_as_many_rows_as_its_warm_up_passes_the_audit(tmp_path: Path, warmup: int) -> None:
    load(written(tmp_path, NEEDS, f"WARMUP = {warmup}\n", WINDOWED)).audit(tiny_panel())


def test_a_window_without_a_warm_up_is_told_that_it_cannot_be_run_on_few_rows(tmp_path: Path) -> None:
    with pytest.raises(CausalityError) as caught:
        load(written(tmp_path, NEEDS, WINDOWED)).audit(tiny_panel())
    told = str(caught.value)
    assert told.startswith("strategy 'mine' cannot be run on 2 rows (raised ValueError: ")
    assert told.endswith("(line 6)); give the rows it needs as its warm-up")


def test_a_gradient_of_two_rows_or_more_is_never_asked_for_one(tmp_path: Path) -> None:
    text = "def signal(panel):\n    np.gradient(panel['apy'], axis=0)\n    return panel['apy']\n"
    load(written(tmp_path, NEEDS, text)).audit(tiny_panel())


def test_a_matrix_product_passes_the_audit(tmp_path: Path) -> None:
    text = (
        "def signal(panel):\n    n = panel.shape[1]\n    weights = np.random.default_rng(0).normal(size=(n, n))\n"
        "    return np.nan_to_num(panel['apy']) @ weights\n"
    )
    panel = tiny_panel(times=200, pools=60)
    whole = panel.with_fields({name: np.nan_to_num(panel.raw(name)) for name in panel.fields})
    load(written(tmp_path, NEEDS, text)).audit(whole)


@pytest.mark.parametrize("owner", ["builtins", "np", "Panel", "rolling_mean"])
@pytest.mark.parametrize("way", ["check_strategy", "audit", "audit after a signal"])
def test_what_is_remembered_outside_the_file_is_forgotten_for_the_audit(tmp_path: Path, owner: str, way: str) -> None:
    text = (
        "import builtins\nfrom yieldlab import Panel\n"
        f"def signal(panel):\n    if not hasattr({owner}, '_x'):\n        {owner}._x = np.nanmax(panel['apy'])\n"
        f"    return panel['apy'] / {owner}._x\n"
    )
    path = written(tmp_path, NEEDS, text)
    found = load(path)
    if way == "audit after a signal":
        found.signal(tiny_panel())
    with pytest.raises(CausalityError, match="depends on the future: at 2024-01-01"):
        check_strategy(path) if way == "check_strategy" else found.audit(tiny_panel())
    assert not any(hasattr(each, "_x") for each in (builtins, np, Panel, rolling_mean))


def test_the_first_call_of_an_audit_holds_the_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "import os\ndef signal(panel):\n    os.environ.setdefault('FIRST_ROWS', str(len(panel.times)))\n"
        "    return panel['apy']\n"
    )
    monkeypatch.setenv("FIRST_ROWS", "")
    monkeypatch.delenv("FIRST_ROWS")
    load(written(tmp_path, NEEDS, text)).audit(tiny_panel())
    assert os.environ["FIRST_ROWS"] == "2"


def test_who_knows_how_many_pools_there_will_be_fails_the_audit(tmp_path: Path) -> None:
    with pytest.raises(CausalityError, match=r"once the pools not observed before \S+ are left out"):
        load(written(tmp_path, NEEDS, "def signal(panel):\n    return panel['apy'] * panel.shape[1]\n")).audit(
            tiny_panel()
        )


# -- folders ------------------------------------------------------------------------------------------------------


def test_a_broken_file_costs_the_others_nothing(tmp_path: Path) -> None:
    written(tmp_path, NEEDS, BODY, name="good")
    written(tmp_path, "def\n", name="broken")
    written(tmp_path, NEEDS, BODY, name="_helper")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "notes.txt").write_text("no strategy")
    (tmp_path / "lost.py").symlink_to(tmp_path / "nowhere.py")
    found = {entry.name: entry for entry in discover([tmp_path, tmp_path / "absent"])}
    assert list(found) == ["broken", "good", "lost"]
    assert (found["good"].state, found["good"].detail) == ("OK", "")
    assert found["good"].strategy is not None
    assert (found["broken"].state, found["broken"].strategy) == ("LOAD FAILED", None)
    assert found["broken"].detail == "strategy 'broken': invalid syntax (line 4)"
    assert found["lost"].state == "LOAD FAILED"


def test_of_two_files_with_one_name_the_first_folder_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
    written(first, NEEDS, BODY, name="same")
    written(second, NEEDS, "raise SystemExit\n", name="same")
    entries = discover([first, second, first, os.path.relpath(first)])
    assert [(entry.state, entry.path.parent.name) for entry in entries] == [("OK", "a"), ("DUPLICATE", "b")]
    assert entries[1].detail == f"not used: {first / 'same.py'} comes first"
    assert find("same", [first, second]).path == first / "same.py"


def test_a_strategy_is_found_by_name_or_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, NEEDS, BODY)
    monkeypatch.chdir(tmp_path)
    for asked in ("mine", "mine.py", str(path), path):
        assert find(asked, [tmp_path]).name == "mine"
    with pytest.raises(UsageError, match="unknown strategy 'mnie'; did you mean 'mine'"):
        find("mnie", [tmp_path])
    with pytest.raises(UsageError, match=r"unknown strategy 'zzz'; known: mine$"):
        find("zzz", [tmp_path])
    with pytest.raises(UsageError, match=r"there is no strategy file mime\.py; did you mean 'mine'"):
        find("mime.py", [])
    with pytest.raises(UsageError, match=r"unknown strategy '\.\./mine'"):
        find("../mine", [tmp_path / "sub"])
    with pytest.raises(UsageError, match="unknown strategy 'x'; none is known"):
        find("x", [])


def test_the_bundled_folder_is_in_the_package_first_then_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (bundled_folder() / "highest_apy.py").is_file()
    package = tmp_path / "yieldlab"
    package.mkdir()
    monkeypatch.setattr(_folders, "__file__", str(package / "strategy" / "_folders.py"))
    with pytest.raises(UsageError, match="the bundled strategies are not in"):
        bundled_folder()
    (tmp_path / "strategies").mkdir()
    assert bundled_folder() == tmp_path / "strategies"
    (package / "_bundled" / "strategies").mkdir(parents=True)
    assert bundled_folder() == package / "_bundled" / "strategies"


# -- new files ----------------------------------------------------------------------------------------------------


def test_a_new_strategy_works_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "fresh_one.py"
    path.write_text(template("fresh_one"))
    found = check_strategy(path)
    assert found.doc.startswith("fresh_one: ")
    assert "NAME" not in found.source
    assert len(found.signal_grid) * len(found.policy_grid) > 1


@pytest.mark.parametrize("name", ["", "two words", "1st", "class", "_hidden", "a-b", "x.py", "../x"])
def test_a_new_strategy_has_a_name_that_can_be_used(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a strategy"):
        template(name)


# -- testing ------------------------------------------------------------------------------------------------------


def test_a_tiny_panel_is_the_same_again_and_has_its_faults() -> None:
    panel = tiny_panel(times=90, pools=6, seed=3, fields=["risk_x"])
    assert panel.digest() == tiny_panel(times=90, pools=6, seed=3, fields=["risk_x"]).digest()
    assert panel.digest() != tiny_panel(times=90, pools=6, seed=4, fields=["risk_x"]).digest()
    apy = panel.raw("apy")
    assert "risk_x" in panel.fields
    assert np.isnan(apy[:15, 1]).all()
    assert np.isnan(panel["apy"][90 // 3 + 5, 2])
    assert np.isnan(apy[-18:, 3]).all()
    assert (apy == 0.0).any()
    assert not np.isnan(apy[:, 0]).any()
    with pytest.raises(UsageError, match="at least one row and one pool, not 0 x 4"):
        tiny_panel(times=0)


def test_check_strategy_tries_the_corners(tmp_path: Path) -> None:
    text = (
        "WARMUP = 'a'\nSIGNAL = Grid(a=[1, 2, 3], b=[0.0, 1.0])\n"
        "def signal(panel, a, b):\n    return panel['apy'] if (a, b) != (3, 1.0) else np.roll(panel['apy'], -1, 0)\n"
    )
    path = written(tmp_path, NEEDS, text)
    assert corners(load(path)) == [{"a": a, "b": b} for a in (1, 3) for b in (0.0, 1.0)]
    with pytest.raises(CausalityError):
        check_strategy(path)
    assert check_strategy(written(tmp_path, 'NEEDS = ("forecast_x",)\n', BODY)).name == "mine"


def test_times_and_pools_of_the_panel_cannot_be_changed(tmp_path: Path) -> None:
    body = "def signal(panel):\n    panel.times[0] = 0\n    return panel['apy']\n"
    with pytest.raises(StrategyError, match="read-only"):
        load(written(tmp_path, NEEDS, body)).signal(tiny_panel())
    pools = "def signal(panel):\n    panel.pools.to_series()[0]\n    return panel['apy']\n"
    panel = tiny_panel()
    before = panel.pools.clone()
    load(written(tmp_path, NEEDS, pools)).signal(panel)
    assert panel.pools.equals(before)
    assert isinstance(panel.pools, pl.DataFrame)
