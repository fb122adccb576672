"""Backtests and parameter sweeps for on-chain yield: which pools to hold, how much, and when a move pays for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yieldlab.backtest import BacktestResult
    from yieldlab.errors import AuditError, CausalityError, DataError, StrategyError, UsageError, YieldlabError
    from yieldlab.market import Market
    from yieldlab.panel import Panel
    from yieldlab.simulate.policy import policies
    from yieldlab.space import Grid
    from yieldlab.store import Store
    from yieldlab.strategy import Strategy
    from yieldlab.sweep import SweepResult

#: Public name -> the module it lives in; imported when it is first asked for, so that `import yieldlab` costs nothing.
_HOME = {
    "AuditError": "yieldlab.errors",
    "BacktestResult": "yieldlab.backtest",
    "CausalityError": "yieldlab.errors",
    "DataError": "yieldlab.errors",
    "Grid": "yieldlab.space",
    "Market": "yieldlab.market",
    "Panel": "yieldlab.panel",
    "Store": "yieldlab.store",
    "Strategy": "yieldlab.strategy",
    "StrategyError": "yieldlab.errors",
    "SweepResult": "yieldlab.sweep",
    "UsageError": "yieldlab.errors",
    "YieldlabError": "yieldlab.errors",
    "policies": "yieldlab.simulate.policy",
}

__all__ = [
    "AuditError",
    "BacktestResult",
    "CausalityError",
    "DataError",
    "Grid",
    "Market",
    "Panel",
    "Store",
    "Strategy",
    "StrategyError",
    "SweepResult",
    "UsageError",
    "YieldlabError",
    "policies",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        from importlib import import_module

        value: object = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name == "__version__":
        from importlib.metadata import version

        return version("yieldlab")
    raise AttributeError(f"module 'yieldlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
