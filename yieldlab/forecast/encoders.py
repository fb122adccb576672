"""Other nets of like size behind the same interface: gated recurrent units and a Transformer encoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class GruEncoder(nn.Module):
    """As the LSTM net, with gated recurrent units."""

    def __init__(
        self, input_size: int, *, hidden: int, hidden_last: int, heads: int, dropout: float, bidirectional: bool
    ) -> None:
        super().__init__()
        ways = 2 if bidirectional else 1
        self.gru = nn.GRU(input_size, hidden, 2, batch_first=True, dropout=dropout, bidirectional=bidirectional)
        self.gru_last = nn.GRU(hidden * ways, hidden_last, batch_first=True, bidirectional=bidirectional)
        self.attention = nn.MultiheadAttention(hidden_last * ways, heads, batch_first=True)
        self.output = nn.Linear(hidden_last * ways, 1)

    def forward(self, windows: Tensor) -> Tensor:
        days, _ = self.gru(windows)
        days, _ = self.gru_last(days)
        attended, _ = self.attention(days[:, -1:], days, days, need_weights=False)
        answer: Tensor = self.output(attended[:, -1]).squeeze(-1)
        return answer


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
