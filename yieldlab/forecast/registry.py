"""Which models there are, which settings each takes, and how one is made. Nothing heavy is imported to ask."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from yieldlab.errors import MissingPackageError, UsageError, did_you_mean
from yieldlab.features.sets import SETS
from yieldlab.folds import Rows
from yieldlab.forecast.protocol import EpochDone, Model
from yieldlab.forecast.windows import Windows
from yieldlab.panel import Panel
from yieldlab.space import Value, alike

#: Raised when the same input gives other numbers than before, so that no result of older code is used again.
REVISION = 1

RISK = "risk"
ENSEMBLE = "ensemble"

_WINDOW: Mapping[str, Value] = {"horizon": 7, "lookback": 30, "features": "study"}
_NET: Mapping[str, Value] = {
    **_WINDOW,
    "epochs": 20,
    "batch": 128,
    "learning_rate": 1e-3,
    "weight_decay": 1e-4,
    "dropout": 0.3,
    "loss": "huber",
    "target": "change",
    "patience": 4,
    "stride": 1,
    "device": "auto",
    "threads": 0,
    "seed": 0,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A model: where it lives, every setting with its default, what it is in one line, and what it needs."""

    module: str
    maker: str
    settings: Mapping[str, Value]
    meaning: str
    #: Packages of the extra `ml`.
    needs: tuple[str, ...] = ()
    #: What its own file is called after a dot, None where the card holds all of it.
    suffix: str | None = None


MODELS: Mapping[str, Entry] = {
    "persistence": Entry("baselines", "Persistence", _WINDOW, "today's APY stays"),
    "ewma": Entry("baselines", "Ewma", {**_WINDOW, "halflife": 7.0}, "exponentially weighted mean of the APY so far"),
    "pool_mean": Entry("baselines", "PoolMean", _WINDOW, "each pool's mean APY on the training days"),
    "ar": Entry(
        "baselines", "AutoRegression", {**_WINDOW, "lags": 7, "ridge": 1e-3}, "a linear autoregression per pool"
    ),
    "lstm": Entry(
        "training",
        "NetForecaster",
        {**_NET, "hidden": 128, "hidden_last": 64, "heads": 4, "bidirectional": False},
        "two LSTM layers, one more, self-attention (273,217 parameters on 16 features)",
        ("torch",),
        "pth",
    ),
    "gru": Entry(
        "training",
        "NetForecaster",
        {**_NET, "hidden": 152, "hidden_last": 72, "heads": 4, "bidirectional": False},
        "the same with gated recurrent units",
        ("torch",),
        "pth",
    ),
    "transformer": Entry(
        "training",
        "NetForecaster",
        {**_NET, "width": 104, "layers": 2, "heads": 4, "dropout": 0.1},
        "a Transformer encoder of like size",
        ("torch",),
        "pth",
    ),
    "xgboost": Entry(
        "boosted_trees",
        "BoostedTrees",
        {
            **_WINDOW,
            "target": "change",
            "n_estimators": 400,
            "learning_rate": 0.05,
            "max_depth": 5,
            "min_child_weight": 5.0,
            "subsample": 0.8,
            "colsample_bytree": 0.8,
            "reg_lambda": 1.0,
            "early_stopping": 30,
            "threads": 0,
            "seed": 0,
        },
        "gradient-boosted trees on the window's last row and lags",
        ("xgboost",),
        "json",
    ),
    RISK: Entry(
        "risk",
        "RiskClassifier",
        {
            "horizon": 30,
            "lookback": 30,
            "features": "study",
            "tvl_fall_high": 0.5,
            "apy_fall_high": 0.8,
            "tvl_fall_medium": 0.2,
            "deviation_quantile": 0.8,
            "n_estimators": 300,
            "learning_rate": 0.05,
            "max_depth": 4,
            "early_stopping": 30,
            "threads": 0,
            "seed": 0,
        },
        "classes of risk: low, medium, high, by what happened in the 30 days after",
        ("xgboost", "sklearn"),
        "json",
    ),
    ENSEMBLE: Entry(
        "ensemble",
        "Ensemble",
        {**_WINDOW, "how": "inverse_error", "members": "ewma lstm xgboost"},
        "other models' forecasts, weighed by their errors on validation days",
        suffix="zip",
    ),
}

#: The largest number that a setting may be: what a 63-bit whole number holds; and the most threads.
_MOST = 2**63 - 1
_MOST_THREADS = 256

#: Models that forecast a yield, and those that an ensemble can be made of.
FORECASTERS = tuple(name for name in MODELS if name != RISK)
MEMBERS = tuple(name for name in FORECASTERS if name != ENSEMBLE)


def entry(name: str) -> Entry:
    """The model of this name. Raises UsageError with the nearest one."""
    if name not in MODELS:
        raise UsageError(f"unknown model {name!r}{did_you_mean(name, MODELS)}")
    return MODELS[name]


def members_of(names: str | Sequence[str]) -> tuple[str, ...]:
    """The members of an ensemble, sorted, from a text with spaces between or one by one: in whatever order they are
    named, it is the same ensemble. Raises UsageError for those that it cannot have."""
    members = names.split() if isinstance(names, str) else list(names)
    for name in members:
        if name not in MEMBERS:
            raise UsageError(f"{name!r} cannot be a member of an ensemble{did_you_mean(name, MEMBERS)}")
    if len(set(members)) < 2 or len(set(members)) < len(members):
        raise UsageError(f"an ensemble has two or more different members, not {', '.join(members) or 'none'}")
    return tuple(sorted(members))


def known_settings(name: str, given: Mapping[str, Value] | None = None) -> dict[str, Value]:
    """Setting -> default of all that the model takes. Those of an ensemble are its own, its members', as `lstm.epochs`,
    and the `weight` of each, which counts where weights are `given`."""
    known = dict(entry(name).settings)
    if name == ENSEMBLE:
        for member in members_of(str((given or {}).get("members", known["members"]))):
            own = {"weight": 1.0, **entry(member).settings}
            known |= {f"{member}.{key}": value for key, value in own.items() if key not in _WINDOW}
    return known


def deciding(settings: Mapping[str, Value]) -> dict[str, Value]:
    """The settings that decide what is learned: all but how many threads do it."""
    return {key: value for key, value in settings.items() if key.rpartition(".")[2] != "threads"}


def settings_of(name: str, given: Mapping[str, Value] | None = None) -> dict[str, Value]:
    """Every setting of the model: what is given, else its default. Raises UsageError for an unknown one, a wrong kind
    or a number that is no finite one of 0 or more."""
    known = known_settings(name, given)
    settings = dict(known)
    for key, value in (given or {}).items():
        if key not in known:
            raise UsageError(f"model {name!r} has no setting {key!r}{did_you_mean(key, known)}")
        settings[key] = alike(key, value, known[key])
    for key, value in settings.items():
        if type(value) is not type(known[key]):  # `alike` lets none, and fractions of whole numbers, pass
            kind = {int: "whole number", float: "number"}.get(type(known[key]), "value of another kind")
            raise UsageError(f"setting {key} of model {name!r} takes a {kind}, not {value!r}")
        if isinstance(value, int | float) and not 0 <= value <= _MOST:
            raise UsageError(f"setting {key} of model {name!r} must be from 0 to {_MOST:.0e}, not {value}")
        if key.rpartition(".")[2] == "threads" and int(str(value)) > _MOST_THREADS:
            raise UsageError(f"setting {key} of model {name!r} must be from 0 to {_MOST_THREADS}, not {value}")
        if key.rpartition(".")[2] == "learning_rate" and not value:
            raise UsageError(f"with a {key} of 0 model {name!r} learns nothing; set one above 0")
    for key in ("horizon", "lookback"):
        if int(str(settings[key])) < 1:
            raise UsageError(f"{key} must be a whole number of days, 1 or more, not {settings[key]!r}")
    if settings["features"] not in SETS:
        raise UsageError(f"unknown feature set {settings['features']!r}{did_you_mean(str(settings['features']), SETS)}")
    if name == ENSEMBLE:
        settings["members"] = " ".join(members_of(str(settings["members"])))
    return settings


def make(name: str, given: Mapping[str, Value] | None = None) -> Model:
    """A fresh model. Raises UsageError for a name or setting that does not exist or cannot be, MissingPackageError
    where the package it needs is not installed."""
    found, settings = entry(name), settings_of(name, given)
    for package in found.needs:
        check_package(package, f"model {name!r}")
    maker = getattr(import_module(f"yieldlab.forecast.{found.module}"), found.maker)
    model: Model = maker(name, settings)
    return model


def to_judge(model: Model, windows: Windows, train: Rows) -> Generator[EpochDone, None, Model]:
    """The model whose forecasts of the validation rows are a test. A baseline, having nothing to stop early, is fitted
    on those rows like on any others, so that one which was not takes its place."""
    if entry(model.name).module != "baselines":
        return model
    other = make(model.name, model.settings)
    yield from other.fit(windows, train, None)
    return other


def check_package(package: str, what: str) -> None:
    """Raise MissingPackageError, which says how to get it, unless the package that `what` needs is installed."""
    try:
        there = find_spec(package) is not None
    except ModuleNotFoundError:
        there = False
    if not there:
        raise MissingPackageError(
            f'{what} needs the package {package}, which is not installed; get it with: pip install "yieldlab[ml]"'
        )


def released_name(name: str) -> str:
    """What the files of the model to use are called; those of the best state on validation are `<name>_best`."""
    return f"{name}_classifier" if name == RISK else f"{name}_yield_predictor"


def windows_of(panel: Panel, settings: Mapping[str, Value]) -> Windows:
    """The samples that a model of these settings learns from."""
    return Windows.of(
        panel,
        feature_set=str(settings["features"]),
        lookback=int(str(settings["lookback"])),
        horizon=int(str(settings["horizon"])),
    )
