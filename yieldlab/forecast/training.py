"""How a net learns from windows and forecasts: batches gathered from one block, early stopping, the best state kept.

What a net answers for a window is what `scaling.Target` says.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from yieldlab.errors import DataError, UsageError, did_you_mean
from yieldlab.folds import Rows
from yieldlab.forecast.encoders import GruEncoder, TransformerEncoder
from yieldlab.forecast.lstm import YieldForecaster
from yieldlab.forecast.protocol import EpochDone
from yieldlab.forecast.scaling import Scaler, Target, check_target
from yieldlab.forecast.windows import Ints, Windows
from yieldlab.space import Value

Floats = NDArray[np.float64]

LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "huber": nn.functional.huber_loss,
    "mse": nn.functional.mse_loss,
}

#: Settings that are numbers of something.
_COUNTS = ("epochs", "batch", "stride", "hidden", "hidden_last", "heads", "width", "layers")

#: Windows that are forecast together: what bounds the memory of a prediction.
PREDICTED_TOGETHER = 4_096


@dataclass(frozen=True, slots=True, eq=False)
class _Samples:
    """Windows by the row of `block` (cells, F) at which each begins; all of it lies on the net's device."""

    block: Tensor
    days: Tensor
    begin: Tensor

    def windows(self, chosen: Tensor) -> Tensor:
        """(B, lookback, F) of the samples `chosen` (B,): the only copy of a window that is ever made."""
        return nn.functional.embedding(self.begin[chosen][:, None] + self.days, self.block)


class NetForecaster:
    """A net with what it needs to read windows and to give yields."""

    def __init__(self, name: str, settings: Mapping[str, Value]) -> None:
        self.name = name
        self.settings = dict(settings)
        self.trained_through = -1
        self.history: list[EpochDone] = []
        self._device = _device(str(settings["device"]))
        check_target(name, str(settings["target"]))
        if (loss := str(settings["loss"])) not in LOSSES:
            raise UsageError(f"unknown loss {loss!r} of model {name!r}{did_you_mean(loss, LOSSES)}")
        for key in _COUNTS:
            if key in settings and self._whole(key) < 1:
                raise UsageError(f"setting {key} of model {name!r} must be 1 or more, not {settings[key]}")
        if not float(str(settings["dropout"])) < 1.0:
            raise UsageError(f"setting dropout of model {name!r} must be below 1, not {settings['dropout']}")
        last = "width" if "width" in settings else "hidden_last"
        if self._whole(last) * (2 if settings.get("bidirectional") else 1) % self._whole("heads"):
            raise UsageError(
                f"setting heads of model {name!r} must divide {last}, and {settings['heads']} does not divide "
                f"{settings[last]}"
            )

    # -- learning -----------------------------------------------------------------------------------------------

    def fit(self, windows: Windows, train: Rows, valid: Rows | None) -> Iterator[EpochDone]:
        """Learn; an event after each epoch. The state kept is the best on validation, the last one without."""
        if threads := self._whole("threads"):
            torch.set_num_threads(threads)
        t, n = windows.samples(train, labelled=True, stride=self._whole("stride"))
        self._scaler = Scaler.fit(windows, t, n)
        self._target = Target.fit(str(self.settings["target"]), windows, t, n)
        self.trained_through = int(t.max()) + windows.horizon
        self._net = self._made(self._whole("seed"))
        scaled = self._scaled(windows)
        learned = self._samples(windows, scaled, t, n), self._wanted(windows, t, n)
        checked: tuple[_Samples, Tensor] | None = None
        if valid is not None:
            t, n = self._scaler.to_stop_by(windows, valid)
            checked = self._samples(windows, scaled, t, n), self._wanted(windows, t, n)
            self.trained_through = max(self.trained_through, int(t.max()) + windows.horizon)
        yield from self._epochs(learned, checked)

    def _epochs(self, learned: tuple[_Samples, Tensor], checked: tuple[_Samples, Tensor] | None) -> Iterator[EpochDone]:
        epochs = self._whole("epochs")
        loss_of = LOSSES[str(self.settings["loss"])]
        optimizer = torch.optim.AdamW(
            self._net.parameters(),
            lr=float(str(self.settings["learning_rate"])),
            weight_decay=float(str(self.settings["weight_decay"])),
        )
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
        chance = torch.Generator().manual_seed(self._whole("seed"))
        best, best_state, waited = math.inf, None, 0
        self.history = []
        for epoch in range(1, epochs + 1):
            train_loss = self._epoch(*learned, optimizer, loss_of, chance)
            valid_loss = None if checked is None else float(loss_of(self._answers(checked[0]), checked[1]))
            told = train_loss if valid_loss is None else valid_loss
            # The last step of an epoch is in no training loss, so that the numbers themselves are looked at too.
            whole = all(bool(torch.isfinite(each).all()) for each in self._net.parameters())
            if not math.isfinite(train_loss) or not math.isfinite(told) or not whole:
                raise DataError(
                    f"the loss of model {self.name!r} is not a number after epoch {epoch}; "
                    f"lower its learning_rate ({self.settings['learning_rate']})"
                )
            schedule.step(told)
            better = valid_loss is None or valid_loss < best
            if better:
                best, waited = told, 0
                best_state = {name: value.detach().clone() for name, value in self._net.state_dict().items()}
            else:
                waited += 1
            self.history.append(EpochDone(epoch, epochs, train_loss, valid_loss, better))
            yield self.history[-1]
            if waited > self._whole("patience"):
                break
        if best_state is not None:
            self._net.load_state_dict(best_state)

    def _epoch(
        self,
        samples: _Samples,
        wanted: Tensor,
        optimizer: torch.optim.Optimizer,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        chance: torch.Generator,
    ) -> float:
        """One pass over the samples in an order by `chance`; gives the mean loss."""
        self._net.train()
        total = torch.zeros((), device=self._device)
        order = torch.randperm(wanted.shape[0], generator=chance)
        with self._noise(int(torch.randint(2**62, (), generator=chance))):
            for chosen in torch.split(order.to(self._device), self._whole("batch")):
                optimizer.zero_grad(set_to_none=True)
                with self._mixed():
                    loss = loss_of(self._net(samples.windows(chosen)).float(), wanted[chosen])
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self._net.parameters(), 1.0)
                optimizer.step()
                total += loss.detach() * chosen.shape[0]
        return float(total) / wanted.shape[0]

    def unseen(self, windows: Windows) -> list[str | None]:
        return self._scaler.unseen(windows)

    def refit_settings(self) -> dict[str, Value]:
        """As many epochs as led to the state that was kept."""
        return {**self.settings, "epochs": max(each.epoch for each in self.history if each.best)}

    # -- forecasting --------------------------------------------------------------------------------------------

    def fields(self, windows: Windows, rows: Rows) -> dict[str, Floats]:
        """Forecast APY of every usable window; none for a pool of a protocol that the training never saw."""
        t, n = self._scaler.samples(windows, rows, labelled=False)
        result = np.full((rows[1] - rows[0], windows.shape[1]), np.nan)
        if t.size:
            samples = self._samples(windows, self._scaled(windows), t, n)
            answers = self._answers(samples).double().cpu().numpy()
            result[t - rows[0], n] = self._target.apy(windows, t, n, answers)
        return {f"forecast_{self.name}": result}

    # -- saving -------------------------------------------------------------------------------------------------

    def document(self) -> dict[str, object]:
        return {
            "scaler": self._scaler.document(),
            **self._target.document(),
            "history": [[each.epoch, each.train_loss, each.valid_loss, each.best] for each in self.history],
        }

    def weights(self) -> bytes | None:
        """A plain `state_dict`, to be read with `torch.load(..., weights_only=True)`."""
        content = io.BytesIO()
        torch.save({name: value.cpu() for name, value in self._net.state_dict().items()}, content)
        return content.getvalue()

    def restore(self, document: Mapping[str, Any], weights: bytes | None) -> None:
        try:
            self._scaler = Scaler.restore(document["scaler"])
            self._target = Target.restore(str(self.settings["target"]), document)
            epochs = self._whole("epochs")
            self.history = [EpochDone(e, epochs, loss, valid, best) for e, loss, valid, best in document["history"]]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"the card of model {self.name!r} does not describe a net") from error
        self._net = self._made(0)
        try:
            with warnings.catch_warnings(action="ignore"):  # the sentence below says it
                state = torch.load(io.BytesIO(weights or b""), map_location="cpu", weights_only=True)
            self._net.load_state_dict(state)
            if not all(bool(torch.isfinite(each).all()) for each in self._net.parameters()):
                raise ValueError("they are no numbers")
        except Exception as error:  # whatever a foreign file makes torch raise
            raise DataError(f"the weights of model {self.name!r} are not those of its card") from error

    # -- helpers ------------------------------------------------------------------------------------------------

    def _whole(self, name: str) -> int:
        return int(str(self.settings[name]))

    def _made(self, seed: int) -> nn.Module:
        """A fresh net; the global source of random numbers is left as it was."""
        own = {
            key: self.settings[key]
            for key in ("hidden", "hidden_last", "heads", "dropout", "bidirectional", "width", "layers")
            if key in self.settings
        }
        kind: Any = {"lstm": YieldForecaster, "gru": GruEncoder, "transformer": TransformerEncoder}[self.name]
        with self._noise(seed):
            try:
                net: nn.Module = kind(self._scaler.width, **own)
            except (AssertionError, ValueError, RuntimeError, ZeroDivisionError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise UsageError(f"the settings of model {self.name!r} make no net: {reason}") from error
        return net.to(self._device)

    @contextmanager
    def _noise(self, seed: int) -> Iterator[None]:
        """Random numbers from a seed, as a net's first state and its dropout take them from the global source; that is
        afterwards as it was."""
        cuda = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed(seed)
            yield

    def _wanted(self, windows: Windows, t: Ints, n: Ints) -> Tensor:
        return torch.from_numpy(self._target.wanted(windows, t, n).astype(np.float32)).to(self._device)

    def _scaled(self, windows: Windows) -> Tensor:
        """(N * T, F) scaled features of the panel, pool after pool."""
        scaled = self._scaler.apply(windows)
        return torch.from_numpy(scaled.reshape(-1, scaled.shape[2])).to(self._device)

    def _samples(self, windows: Windows, scaled: Tensor, t: Ints, n: Ints) -> _Samples:
        begin = torch.from_numpy(windows.position(t, n)).to(self._device)
        return _Samples(scaled, torch.arange(windows.lookback, device=self._device), begin)

    def _answers(self, samples: _Samples) -> Tensor:
        self._net.eval()
        every = torch.arange(samples.begin.shape[0], device=self._device)
        with torch.inference_mode(), self._mixed():
            return torch.cat(
                [self._net(samples.windows(part)).float() for part in torch.split(every, PREDICTED_TOGETHER)]
            )

    def _mixed(self) -> torch.autocast:
        """Half precision where the device gains by it; bfloat16 needs no scaling of the loss."""
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._device.type == "cuda")


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"unknown device {name!r}{did_you_mean(name, ('auto', 'cpu', 'cuda'))}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is cuda, and PyTorch finds none here; leave it at auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
