"""The reference study's net: two LSTM layers, a third, self-attention over the days, one number."""

from __future__ import annotations

from torch import Tensor, nn


class YieldForecaster(nn.Module):
    """From windows (B, days, features) to one number each (B,).

    At the defaults it has 273,217 parameters. With `bidirectional` the recurrent layers also read each window
    backwards, which stays inside the window and so in the past.
    """

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
        self.lstm = nn.LSTM(input_size, hidden, 2, batch_first=True, dropout=dropout, bidirectional=bidirectional)
        self.lstm_last = nn.LSTM(hidden * ways, hidden_last, batch_first=True, bidirectional=bidirectional)
        self.attention = nn.MultiheadAttention(hidden_last * ways, heads, batch_first=True)
        self.output = nn.Linear(hidden_last * ways, 1)

    def forward(self, windows: Tensor) -> Tensor:
        days, _ = self.lstm(windows)
        days, _ = self.lstm_last(days)
        # Only the last day's answer is used, so only it is asked.
        attended, _ = self.attention(days[:, -1:], days, days, need_weights=False)
        answer: Tensor = self.output(attended[:, -1]).squeeze(-1)
        return answer


def parameters(net: nn.Module) -> int:
    """How many numbers a net learns."""
    return sum(parameter.numel() for parameter in net.parameters())
