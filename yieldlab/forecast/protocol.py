"""What every model can do, whatever it is made of, and what it tells while it learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from yieldlab.folds import Rows
from yieldlab.forecast.windows import Windows
from yieldlab.space import Value

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EpochDone:
    """One pass over the training samples: mean losses (scaled units) and whether it is the best on validation so far.
    `valid_loss` is None where there is no validation."""

    epoch: int
    epochs: int
    train_loss: float
    valid_loss: float | None
    best: bool


class Model(Protocol):
    """One model: fitted once, then asked. `trained_through` is the last row of any value used in fitting, -1 before;
    `settings` is every setting it was made with."""

    name: str
    trained_through: int

    @property
    def settings(self) -> Mapping[str, Value]: ...

    def fit(self, windows: Windows, train: Rows, valid: Rows | None) -> Iterator[EpochDone]:
        """Learn from the labelled samples that end in `train`; `valid` decides when to stop and calibrates, None = no
        such rows. Raises DataError when there is too little to learn from, or learning fails."""
        ...

    def fields(self, windows: Windows, rows: Rows) -> dict[str, Floats]:
        """Panel field -> (rows, N) values, NaN = none: rates as fractions."""
        ...

    def unseen(self, windows: Windows) -> list[str | None]:
        """Of each pool, in words, the kind that it is of and that no pool of the training was, so that it has no
        forecast; None where there is no such kind."""
        ...

    def refit_settings(self) -> dict[str, Value]:
        """The settings for learning once more on more days, without a validation to stop by."""
        ...

    def document(self) -> dict[str, object]:
        """What was fitted, in JSON's own kinds, less what is in `weights`."""
        ...

    def weights(self) -> bytes | None:
        """The content of the model's own file, if it has one."""
        ...

    def restore(self, document: Mapping[str, object], weights: bytes | None) -> None:
        """Be the model that was saved. Raises DataError when these are not its document and weights."""
        ...
