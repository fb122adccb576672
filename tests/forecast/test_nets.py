"""Nets: their size and form, that they learn what there is to learn from the past only, and the same bits each time."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import polars as pl
import pytest

pytest.importorskip("torch", reason="needs the extra: ml")

import torch
from torch import Tensor, nn

from yieldlab.causality import assert_causal
from yieldlab.errors import DataError, UsageError
from yieldlab.forecast import training
from yieldlab.forecast.encoders import GruEncoder, TransformerEncoder
from yieldlab.forecast.lstm import YieldForecaster, parameters
from yieldlab.forecast.protocol import EpochDone
from yieldlab.forecast.registry import settings_of, windows_of
from yieldlab.forecast.training import NetForecaster
from yieldlab.panel import Panel
from yieldlab.space import Value
from yieldlab.testing import tiny_panel

NETS = ("lstm", "gru", "transformer")
TRAIN, VALID = (0, 80), (83, 110)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def quick(name: str = "lstm", **given: Value) -> NetForecaster:
    small: dict[str, Value] = {"lookback": 6, "horizon": 3, "epochs": 1, "batch": 32, "device": "cpu", "heads": 2}
    small |= {"width": 8, "layers": 1} if name == "transformer" else {"hidden": 8, "hidden_last": 8}
    return NetForecaster(name, settings_of(name, small | given))


def learn(model: NetForecaster, panel: Panel, valid: tuple[int, int] | None = VALID) -> list[EpochDone]:
    return list(model.fit(windows_of(panel, model.settings), TRAIN, valid))


def forecast(model: NetForecaster, panel: Panel, rows: tuple[int, int] | None = None) -> np.ndarray:
    return model.fields(windows_of(panel, model.settings), rows or (0, panel.shape[0]))[f"forecast_{model.name}"]


@pytest.fixture
def panel() -> Panel:
    return tiny_panel(times=140, pools=4, seed=3)


# -- form -----------------------------------------------------------------------------------------------------------


def test_the_studys_net_has_273_217_parameters() -> None:
    assert parameters(YieldForecaster(input_size=16)) == 273_217
    own = settings_of("lstm")
    net = YieldForecaster(16, hidden=own["hidden"], hidden_last=own["hidden_last"], heads=own["heads"])  # type: ignore[arg-type]
    assert parameters(net) == 273_217


def test_the_other_nets_are_of_like_size() -> None:
    gru, transformer = settings_of("gru"), settings_of("transformer")
    nets = (
        GruEncoder(16, **{key: gru[key] for key in ("hidden", "hidden_last", "heads", "dropout", "bidirectional")}),  # type: ignore[arg-type]
        TransformerEncoder(16, **{key: transformer[key] for key in ("width", "layers", "heads", "dropout")}),  # type: ignore[arg-type]
    )
    for net in nets:
        assert abs(parameters(net) / 273_217 - 1.0) < 0.1
        assert net(torch.randn(3, 30, 16)).shape == (3,)


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"hidden": 20, "hidden_last": 12, "heads": 3}, {"heads": 1}]
)
def test_asking_for_the_last_day_alone_is_self_attention_over_all_days(options: dict[str, int]) -> None:
    torch.manual_seed(0)
    net = YieldForecaster(input_size=16, **options).eval()  # type: ignore[arg-type]
    windows = torch.randn(5, 30, 16)
    days, _ = net.last(net.first(windows)[0])
    attended, _ = net.attention(days, days, days)
    torch.testing.assert_close(net(windows), net.output(attended[:, -1]).squeeze(-1))


def test_attention_is_that_of_plain_arithmetic() -> None:
    torch.manual_seed(1)
    net = YieldForecaster(input_size=3, hidden=8, hidden_last=4, heads=2).eval()
    windows = torch.randn(2, 6, 3)
    days = net.last(net.first(windows)[0])[0].detach().double().numpy()
    weight, bias = (
        each.detach().double().numpy() for each in (net.attention.in_proj_weight, net.attention.in_proj_bias)
    )
    query, key, value = (days @ weight[4 * i : 4 * i + 4].T + bias[4 * i : 4 * i + 4] for i in range(3))
    heads = []
    for head in (slice(0, 2), slice(2, 4)):
        score = np.exp(np.einsum("be,bte->bt", query[:, -1, head], key[:, :, head]) / math.sqrt(2.0))
        heads.append(np.einsum("bt,bte->be", score / score.sum(axis=1, keepdims=True), value[:, :, head]))
    out, last = net.attention.out_proj, net.output
    joined = np.concatenate(heads, axis=1) @ out.weight.detach().double().numpy().T + out.bias.detach().double().numpy()
    answer = joined @ last.weight.detach().double().numpy().T + last.bias.detach().double().numpy()
    np.testing.assert_allclose(net(windows).detach().numpy(), answer[:, 0], rtol=1e-4, atol=1e-6)


def test_options_change_the_net_as_they_say() -> None:
    both = YieldForecaster(16, hidden=20, hidden_last=12, heads=3, bidirectional=True, dropout=0.1)
    assert both.first.bidirectional
    assert both.first.dropout == 0.1
    assert both.attention.embed_dim == 24
    assert both.attention.num_heads == 3
    assert both(torch.randn(2, 9, 16)).shape == (2,)


def test_a_transformer_tells_days_apart() -> None:
    torch.manual_seed(0)
    net = TransformerEncoder(4, width=7, layers=1, heads=1, dropout=0.0).eval()
    windows = torch.randn(3, 10, 4)
    turned = windows.clone()
    turned[:, :-1] = windows[:, :-1].flip(1)
    assert not torch.allclose(net(windows), net(turned), atol=1e-4)


# -- learning -------------------------------------------------------------------------------------------------------


def drifting(days: int = 260, pools: int = 4, seed: int = 0) -> Panel:
    """The logarithm of a yield swings about its level within a fortnight, as its last two days and a shock say."""
    generator = np.random.default_rng(seed)
    moved = np.zeros((days, pools))
    first, second = 2.0 * 0.97 * math.cos(2.0 * math.pi / 14.0), -(0.97**2)
    for t in range(2, days):
        moved[t] = first * moved[t - 1] + second * moved[t - 2] + 0.05 * generator.normal(size=pools)
    return Panel(
        np.datetime64("2024-01-01", "D") + np.arange(days),
        pl.DataFrame({"pool_id": [f"p{n}" for n in range(pools)], "protocol": ["curve"] * pools}),
        {"apy": 0.05 * np.exp(moved), "tvl_usd": np.full(moved.shape, 1e7)},
    )


@pytest.mark.parametrize(
    ("name", "target"), [("lstm", "change"), ("lstm", "level"), ("gru", "change"), ("transformer", "change")]
)
def test_a_world_that_can_be_learned_is_forecast_better_than_by_persistence(name: str, target: str) -> None:
    panel = drifting()
    model = quick(name, epochs=10, learning_rate=1e-2, dropout=0.0, target=target)
    windows = windows_of(panel, model.settings)
    list(model.fit(windows, (0, 180), (183, 210)))
    rows = slice(213, 257)
    told, label, last = forecast(model, panel)[rows], windows.label[rows], windows.last[rows]
    assert np.abs(told - label).mean() < 0.75 * np.abs(last - label).mean()


@pytest.mark.parametrize("name", NETS)
def test_the_same_seed_gives_the_same_bits_whatever_chance_does_elsewhere(name: str, panel: Panel) -> None:
    torch.manual_seed(1)
    first = quick(name, epochs=2)
    events = learn(first, panel)
    torch.manual_seed(99)
    second = quick(name, epochs=2)
    again = []
    for event in second.fit(windows_of(panel, second.settings), TRAIN, VALID):
        again.append(event)
        torch.rand(7)  # someone else draws between two epochs
    assert again == events
    assert first.weights() == second.weights()
    np.testing.assert_array_equal(forecast(first, panel), forecast(second, panel))
    other = quick(name, epochs=2, seed=1)
    learn(other, panel)
    assert other.weights() != first.weights()


def test_the_global_source_of_chance_is_left_as_it_was(panel: Panel) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = quick(epochs=2, dropout=0.5)
    for _ in model.fit(windows_of(panel, model.settings), TRAIN, VALID):
        assert torch.equal(torch.get_rng_state(), before)
    forecast(model, panel)
    quick().restore(model.document(), model.weights())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_forecast_between_two_epochs_does_not_disturb_the_learning(panel: Panel) -> None:
    quiet, asked = quick(epochs=3), quick(epochs=3)
    learn(quiet, panel)
    for _ in asked.fit(windows_of(panel, asked.settings), TRAIN, VALID):
        forecast(asked, tiny_panel(times=50, pools=3, seed=8))
    assert asked.weights() == quiet.weights()


def test_the_state_that_is_kept_is_the_best_on_validation_and_learning_stops_in_time() -> None:
    panel, model = drifting(120), quick(epochs=40, learning_rate=0.02, patience=2)
    events = learn(model, panel)
    losses = [event.valid_loss for event in events]
    assert None not in losses
    best = int(np.argmin(losses))  # type: ignore[arg-type]
    assert 0 < best < len(events) - 1  # it was better before the end, which the world is chosen for
    assert len(events) == best + 1 + 3 < 40
    assert [event.best for event in events] == [loss == min(losses[: i + 1]) for i, loss in enumerate(losses)]  # type: ignore[type-var]
    assert model.refit_settings()["epochs"] == best + 1
    windows = windows_of(panel, model.settings)
    t, n = windows.samples(VALID, labelled=True)
    moved, spread = model._target.transform.forward, model._target.spread
    told = moved(forecast(model, panel)[t, n]) - moved(windows.last[t, n])
    wanted = moved(windows.label[t, n]) - moved(windows.last[t, n])
    loss = nn.functional.huber_loss(torch.tensor(told / spread), torch.tensor(wanted / spread))
    assert float(loss) == pytest.approx(losses[best], rel=1e-4)


def test_the_defaults_are_those_of_the_study() -> None:
    net = YieldForecaster()
    assert (net.first.num_layers, net.first.hidden_size, net.first.dropout) == (2, 128, 0.3)
    assert (net.last.num_layers, net.last.hidden_size, net.attention.num_heads) == (1, 64, 4)
    settings = settings_of("lstm")
    wanted = {"hidden": 128, "hidden_last": 64, "heads": 4, "dropout": 0.3, "lookback": 30, "horizon": 7, "epochs": 20}
    assert {name: settings[name] for name in wanted} == wanted
    assert (settings["loss"], settings["bidirectional"], settings["features"]) == ("huber", False, "study")


def test_the_mean_square_may_be_what_is_learned_by(panel: Panel) -> None:
    model = quick(loss="mse")
    (event,) = learn(model, panel)
    windows = windows_of(panel, model.settings)
    t, n = windows.samples(VALID, labelled=True)
    moved, spread = model._target.transform.forward, model._target.spread
    errors = (moved(forecast(model, panel)[t, n]) - moved(windows.label[t, n])) / spread
    assert event.valid_loss == pytest.approx(np.mean(errors**2), rel=1e-4)


def test_it_learns_by_adamw_at_a_rate_that_halves_on_a_plateau(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.optim.AdamW] = []
    whole = torch.optim.AdamW

    def adamw(*arguments: object, **options: object) -> torch.optim.AdamW:
        made.append(whole(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(torch.optim, "AdamW", adamw)
    model = quick(epochs=6, learning_rate=1e-12, weight_decay=0.25, patience=9, batch=10_000)
    rates = [made[0].param_groups[0]["lr"] for _ in model.fit(windows_of(panel, model.settings), TRAIN, VALID)]
    assert made[0].param_groups[0]["weight_decay"] == 0.25
    # Steps of 1e-12 change no loss: each second epoch that is no better halves the rate.
    assert rates == pytest.approx([1e-12, 1e-12, 5e-13, 5e-13, 2.5e-13, 2.5e-13])


def test_every_epoch_learns_with_dropout_and_is_checked_without(panel: Panel) -> None:
    _, first, second = learn(quick(epochs=3, learning_rate=1e-300, weight_decay=0.0, dropout=0.5, batch=10_000), panel)
    assert first.valid_loss == second.valid_loss
    assert first.train_loss != pytest.approx(second.train_loss, rel=1e-6)
    first, second = learn(quick(epochs=2, learning_rate=1e-300, weight_decay=0.0, dropout=0.0, batch=10_000), panel)
    assert first.train_loss == pytest.approx(second.train_loss, rel=1e-6)


def test_without_validation_every_epoch_is_run_and_the_last_state_kept(panel: Panel) -> None:
    model = quick(epochs=5, learning_rate=0.05, patience=0)
    events = learn(model, panel, None)
    assert [event.best for event in events] == [True] * 5
    assert all(event.valid_loss is None for event in events)
    assert model.refit_settings()["epochs"] == 5


def test_what_a_fit_has_seen_is_its_last_label(panel: Panel) -> None:
    model = quick()
    windows = windows_of(panel, model.settings)
    learn(model, panel, None)
    assert model.trained_through == int(windows.samples(TRAIN, labelled=True)[0].max()) + 3
    learn(model, panel)
    through = model.trained_through
    assert through == int(windows.samples(VALID, labelled=True)[0].max()) + 3
    changed = {name: panel.raw(name).copy() for name in panel.fields}
    for values in changed.values():
        values[through + 1 :] *= 5.0
    again = quick()
    learn(again, panel.with_fields(changed))
    assert again.weights() == model.weights()
    assert again.document() == model.document()


def wider(panel: Panel) -> Panel:
    """The panel with a pool more, first by name, which begins after the days learned from."""
    pools = pl.concat([panel.pools.head(1).with_columns(pl.lit("a-newcomer").alias("pool_id")), panel.pools])
    late = {name: np.column_stack([panel.raw(name)[:, 0], panel.raw(name)]) for name in panel.fields}
    for values in late.values():
        values[:100, 0] = np.nan
    return Panel(panel.times, pools, late)


def test_a_stride_learns_from_every_so_manieth_day(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each pool, from a day on that its name decides: pools that come later change nothing of it."""
    seen: list[np.ndarray] = []
    fit = training.Scaler.fit
    monkeypatch.setattr(training.Scaler, "fit", lambda windows, t, n: (seen.append((t, n)), fit(windows, t, n))[1])
    learn(quick(stride=3), panel)
    for pool in (0, 1, 2):
        days = seen[0][0][seen[0][1] == pool]
        assert set(np.diff(days) % 3) == {0}
    days = {panel.pool_ids[n]: {int(each) % 3 for each in seen[0][0][seen[0][1] == n]} for n in range(4)}
    assert days == {f"pool-0{n}": {-crc32(f"pool-0{n}".encode()) % 3} for n in range(4)}
    assert len(set(map(frozenset, days.values()))) > 1
    with_others = wider(panel)
    learn(quick(stride=3), with_others)
    own = [with_others.pool_ids.index(each) for each in panel.pool_ids]
    for n, place in enumerate(own):
        np.testing.assert_array_equal(seen[0][0][seen[0][1] == n], seen[1][0][seen[1][1] == place])
    with pytest.raises(UsageError, match=r"a stride of 1099511627776 days leaves none of the [0-9]+ windows"):
        learn(quick(stride=2**40), panel)


# -- forecasting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_a_forecast_depends_on_no_later_row(name: str, panel: Panel) -> None:
    model = quick(name)
    learn(model, panel)

    def told(seen: Panel) -> np.ndarray:
        return forecast(model, seen) if seen.shape[0] > 6 else np.full(seen.shape, np.nan)

    assert_causal(told, panel, name=name, tolerance=1e-5, rows=(7, 8, 40, 70, 71, 72, 110, 139))


def test_a_forecast_is_the_nets_answer_on_the_plain_window(panel: Panel) -> None:
    model = quick(target="level")
    windows = windows_of(panel, model.settings)
    learn(model, panel)
    told = forecast(model, panel)
    scaled = model._scaler.apply(windows)
    for t, n in ((20, 0), (60, 1), (139, 2)):
        assert windows.usable[t, n]
        with torch.inference_mode():
            answer = float(model._net(torch.from_numpy(scaled[n, t - 5 : t + 1][None])))
        target = model._target
        expected = math.sinh(answer * target.spread + target.centre) * target.transform.size / 100.0
        assert told[t, n] == pytest.approx(expected, rel=1e-4)
    assert np.isnan(told[~windows.usable]).all()
    assert np.isfinite(told[windows.usable]).all()


def test_a_protocol_that_was_never_seen_has_no_forecast(panel: Panel) -> None:
    model = quick()
    learn(model, panel)
    fields = {name: panel.raw(name) for name in panel.fields}
    pools = panel.pools.with_columns(pl.Series("protocol", ["protocol-0", "curve", "protocol-2", "newcomer"]))
    told = forecast(model, Panel(panel.times, pools, fields))
    assert np.isnan(told[:, [1, 3]]).all()  # curve has a column, and the net never saw one
    before = forecast(model, panel)
    np.testing.assert_allclose(told[:, [0, 2]], before[:, [0, 2]], rtol=1e-5)


# -- what cannot be learned -----------------------------------------------------------------------------------------


def test_a_learning_rate_that_breaks_the_net_is_told(panel: Panel) -> None:
    model = quick(learning_rate=1e6, epochs=30, weight_decay=1.0)
    with pytest.raises(
        DataError, match=r"loss of model 'lstm' is not a number after epoch \d+; lower its learning_rate"
    ):
        learn(model, panel)


@pytest.mark.parametrize("valid", [None, VALID])
def test_a_loss_that_is_no_number_is_told(panel: Panel, monkeypatch: pytest.MonkeyPatch, valid: object) -> None:
    def planted(told: Tensor, wanted: Tensor) -> Tensor:
        return nn.functional.mse_loss(told, wanted) * float("nan")

    monkeypatch.setattr(training, "LOSSES", {**training.LOSSES, "huber": planted})
    with pytest.raises(DataError, match="is not a number after epoch 1; lower its learning_rate"):
        learn(quick(), panel, valid)  # type: ignore[arg-type]


def test_a_last_step_that_breaks_the_net_is_told(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    step = torch.optim.AdamW.step

    def broken(self: torch.optim.AdamW, *given: object) -> None:
        step(self)
        for group in self.param_groups:
            group["params"][0].data.fill_(float("nan"))

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    with pytest.raises(DataError, match="is not a number after epoch 1"):
        learn(quick(batch=100_000), panel, None)


def test_a_constant_yield_is_nothing_to_learn(panel: Panel) -> None:
    constant = panel.with_fields({"apy": np.full(panel.shape, 0.05)})
    for target in ("change", "level"):
        with pytest.raises(DataError, match=r"never changes on the [0-9,]+ training samples"):
            learn(quick(target=target), constant)


def test_too_little_to_learn_from_and_missing_features_are_told(panel: Panel) -> None:
    model = quick()
    windows = windows_of(panel, model.settings)
    with pytest.raises(DataError, match="no window of 6 days with an APY 3 days later"):
        list(model.fit(windows, (0, 4), VALID))
    with pytest.raises(DataError, match="no window with a label on the validation days"):
        list(model.fit(windows, TRAIN, (138, 140)))
    with pytest.raises(DataError, match="the feature tvl_usd has no value"):
        learn(quick(), panel.with_fields({"tvl_usd": np.full(panel.shape, np.nan)}))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"heads": 3}, "setting heads of model 'lstm' must divide hidden_last, and 3 does not divide 8"),
        ({"heads": 0}, "setting heads of model 'lstm' must be 1 or more, not 0"),
        ({"hidden": 0}, "setting hidden of model 'lstm' must be 1 or more, not 0"),
        ({"hidden": 10**12}, "settings of model 'lstm' make no net"),
        ({"dropout": 1.0}, "setting dropout of model 'lstm' must be below 1, not 1.0"),
        ({"learning_rate": 0.0}, "with a learning_rate of 0 model 'lstm' learns nothing"),
        ({"threads": 1000}, "setting threads of model 'lstm' must be from 0 to 256, not 1000"),
        ({"loss": "hubert"}, "unknown loss 'hubert' of model 'lstm'; did you mean 'huber'"),
        ({"target": "levle"}, "unknown target 'levle' of model 'lstm'; did you mean 'level'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"epochs": 0}, "setting epochs of model 'lstm' must be 1 or more, not 0"),
        ({"epochs": 2.5}, "setting epochs of model 'lstm' takes a whole number, not 2.5"),
        ({"learning_rate": float("nan")}, "setting learning_rate of model 'lstm' must be from 0 to"),
        ({"seed": 2**64}, "setting seed of model 'lstm' must be from 0 to"),
        ({"lookback": 0}, "lookback must be a whole number of days"),
    ],
)
def test_settings_that_make_no_net_are_refused(given: dict[str, Value], sentence: str, panel: Panel) -> None:
    with pytest.raises(UsageError) as told:
        learn(quick(**given), panel)
    assert sentence in str(told.value)
    assert "\n" not in str(told.value)


# -- saving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_a_net_comes_back_from_its_document_and_weights(name: str, panel: Panel) -> None:
    model = quick(name)
    learn(model, panel)
    again = quick(name, seed=7)
    again.restore(json.loads(json.dumps(model.document(), allow_nan=False)), model.weights())
    np.testing.assert_array_equal(forecast(again, panel), forecast(model, panel))
    assert again.refit_settings()["epochs"] == model.refit_settings()["epochs"]


def test_foreign_documents_and_weights_are_refused_in_one_sentence(panel: Panel) -> None:
    model = quick()
    learn(model, panel)
    document, weights = model.document(), model.weights()
    assert weights is not None
    other = quick(hidden=16)
    learn(other, panel)
    for damaged in (None, b"", b"abc", b"PK\x03\x04", weights[: len(weights) // 2], other.weights()):
        with pytest.raises(DataError, match=r"the weights of model 'lstm' are not those of its card$"):
            quick().restore(document, damaged)
    for part in (
        {"scaler": None},
        {"transform": {}},
        {"transform": {"apy_percent_size": 0.0}},
        {"target": {"centre": float("nan"), "spread": 1.0}},
        {"target": {"centre": 0.0, "spread": 0.0}},
        {"target": 3},
        {"history": [[1, 2]]},
    ):
        with pytest.raises(DataError) as told:
            quick().restore({**document, **part}, weights)
        assert "\n" not in str(told.value)


def test_without_the_extra_a_net_names_what_to_install() -> None:
    program = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "xgboost"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from yieldlab.errors import UsageError
from yieldlab.forecast.registry import make
for name in ("persistence", "ewma", "pool_mean", "ar"):
    make(name)
for name in ("lstm", "gru", "transformer", "xgboost", "risk"):
    try:
        make(name)
    except UsageError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "model 'lstm' needs the package torch, which is not installed; get it with: pip install \"yieldlab[ml]\""
    )
    assert [line.split("package ")[1].split(",")[0] for line in lines] == ["torch"] * 3 + ["xgboost"] * 2


def test_asking_for_a_model_loads_nothing_heavy() -> None:
    program = """
import sys
import yieldlab.forecast.registry, yieldlab.forecast.artifacts, yieldlab.forecast.train
yieldlab.forecast.registry.make("ar")
assert not {"torch", "xgboost", "sklearn"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
