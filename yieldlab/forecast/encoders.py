"""Other nets of like size behind the same interface: gated recurrent units and a Transformer encoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from yieldlab.forecast.lstm import RecurrentNet


class GruEncoder(RecurrentNet):
    """As the LSTM net, with gated recurrent units."""

    kind = nn.GRU


class TransformerEncoder(nn.Module):
    """Self-attention over the days with sinusoidal positions (Vaswani et al. 2017), normalised before each part; the
    last day answers."""

    def __init__(self, input_size: int, *, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(input_size, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.output = nn.Linear(width, 1)

    def forward(self, windows: Tensor) -> Tensor:
        days = self.project(windows)
        encoded = self.encoder(days + _positions(days.shape[1], days.shape[2]).to(days))
        answer: Tensor = self.output(encoded[:, -1]).squeeze(-1)
        return answer


def _positions(days: int, width: int) -> Tensor:
    place = torch.arange(days, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10_000.0) / width))
    waves = torch.zeros(days, width)
    waves[:, 0::2] = torch.sin(place * rate)
    waves[:, 1::2] = torch.cos(place * rate)[:, : width // 2]
    return waves
