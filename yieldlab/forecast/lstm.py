"""The reference study's net: two LSTM layers, a third, self-attention over the days, one number."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class RecurrentNet(nn.Module):
    """From windows (B, days, features) to one number each (B,), by two recurrent layers and one more of a `kind`,
    self-attention and a linear layer.

    With `bidirectional` the recurrent layers also read each window backwards, which stays inside the window and so in
    the past.
    """

    kind: ClassVar[type[nn.LSTM] | type[nn.GRU]]

    def __init__(
        self,
        input_size: int = 16,
        *,
        hidden: int = 128,
        hidden_last: int = 64,
        heads: int = 4,
        dropout: float = 0.3,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        ways = 2 if bidirectional else 1
        self.first = self.kind(input_size, hidden, 2, batch_first=True, dropout=dropout, bidirectional=bidirectional)
        self.last = self.kind(hidden * ways, hidden_last, batch_first=True, bidirectional=bidirectional)
        self.attention = nn.MultiheadAttention(hidden_last * ways, heads, batch_first=True)
        self.output = nn.Linear(hidden_last * ways, 1)

    def forward(self, windows: Tensor) -> Tensor:
        days, _ = self.first(windows)
        days, _ = self.last(days)
        # Only the last day's answer is used, so only it is asked.
        attended, _ = self.attention(days[:, -1:], days, days, need_weights=False)
        answer: Tensor = self.output(attended[:, -1]).squeeze(-1)
        return answer


class YieldForecaster(RecurrentNet):
    """With LSTM layers; it has 273,217 parameters at the defaults."""

    kind = nn.LSTM


def parameters(net: nn.Module) -> int:
    """How many numbers a net learns."""
    return sum(parameter.numel() for parameter in net.parameters())
