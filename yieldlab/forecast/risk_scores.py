"""How good are classes and their probabilities? What a model's own test and the report on its walk-forward both ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from yieldlab.forecast.risk_labels import CLASSES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Probabilities below are taken as this before their logarithm.
LEAST_PROBABILITY = 1e-9


def confusion(label: Ints, given: Ints) -> tuple[tuple[int, ...], ...]:
    """Rows: what happened, columns: the class given.

    >>> confusion(np.array([0, 2, 2]), np.array([0, 0, 2]))
    ((1, 0, 0), (0, 0, 0), (1, 0, 1))
    """
    counted = np.bincount(label * len(CLASSES) + given, minlength=len(CLASSES) ** 2)
    return tuple(tuple(row) for row in counted.reshape(len(CLASSES), len(CLASSES)).tolist())


def log_loss(label: Ints, probabilities: Floats) -> float:
    """Mean of -log of the probability given to what happened, taken as 1e-9 where it is below."""
    came = probabilities[np.arange(label.size), label]
    return float(-np.log(np.maximum(came, LEAST_PROBABILITY)).mean())


def gain_shares(gains: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over several fits of each feature's share of the gain, the largest first.

    >>> gain_shares([{"a": 3.0, "b": 1.0}, {"b": 2.0}])
    {'b': 0.625, 'a': 0.375}
    """
    total: dict[str, float] = {}
    for fit in gains:
        for name, gain in fit.items():
            total[name] = total.get(name, 0.0) + gain / sum(fit.values()) / len(gains)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))
