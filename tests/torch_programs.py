"""Small torch modules composed at random of what people write between recurrent layers; every step keeps `WIDTH` features.

A step of `OVER_TIME` maps (B, T, F) to (B, T', F), one of `TO_ROW` that to (B, F), one of `OF_ROW` (B, F) to itself, and one of
`BACK_TO_TIME` joins (B, F) with the (B, T, F) that it was made of.
"""

# mypy: disable-error-code="no-any-return, no-untyped-call, misc"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # as people import it

WIDTH = 4
Step = Callable[..., Any]


class Function(nn.Module):
    """A function as a step."""

    def __init__(self, function: Step) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Tensor) -> Tensor:
        return self.function(*given)


class Recurrent(nn.Module):
    """A recurrent layer whose outputs, at all steps, have `WIDTH` features; or its final state."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU | nn.RNN], *, final: bool = False, **options: Any) -> None:
        super().__init__()
        size = WIDTH // 2 if options.get("bidirectional") else WIDTH
        self.layer = kind(WIDTH, size, batch_first=True, **options)
        self.final = final

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.layer(x)
        if not self.final:
            return out
        hidden = state[0] if isinstance(state, tuple) else state
        return torch.cat([hidden[-2], hidden[-1]], 1) if self.layer.bidirectional else hidden[-1]


class Convolved(nn.Module):
    """A layer that has its channels before its steps; `left` zeros are put before the first."""

    def __init__(self, layer: nn.Module, left: int = 0) -> None:
        super().__init__()
        self.layer, self.left = layer, left

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.pad(x.transpose(1, 2), (self.left, 0))).transpose(1, 2)


class SelfAttention(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.heads = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "heads":
            return self.heads(x, x, x, need_weights=False)[0]
        if self.kind == "causal":
            return F.scaled_dot_product_attention(x, x, x, is_causal=True)
        return torch.softmax(x @ x.transpose(1, 2) / 2, -1) @ x


class Additive(nn.Module):
    """Attention that sums the steps, by weights that a layer gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(WIDTH, 3), nn.Tanh(), nn.Linear(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.softmax(self.score(x), 1) * x).sum(1)


class CellLoop(nn.Module):
    def __init__(self, cell: type[nn.LSTMCell] | type[nn.GRUCell], *, backward: bool = False) -> None:
        super().__init__()
        self.cell, self.backward_ = cell(WIDTH, WIDTH), backward

    def forward(self, x: Tensor) -> Tensor:
        hidden, memory = torch.zeros(x.size(0), WIDTH), torch.zeros(x.size(0), WIDTH)
        outputs = []
        steps = range(x.size(1) - 1, -1, -1) if self.backward_ else range(x.size(1))
        for step in steps:
            if isinstance(self.cell, nn.LSTMCell):
                hidden, memory = self.cell(x[:, step], (hidden, memory))
            else:
                hidden = self.cell(x[:, step], hidden)
            outputs.append(hidden)
        return torch.stack(outputs, 1)


def _positions(x: Tensor) -> Tensor:
    return x + torch.arange(x.size(1)).float()[None, :, None] / x.size(1)


OVER_TIME: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "rnn": lambda: Recurrent(nn.RNN),
    "bilstm": lambda: Recurrent(nn.LSTM, bidirectional=True),
    "bigru": lambda: Recurrent(nn.GRU, bidirectional=True, num_layers=2),
    "lstm cells": lambda: CellLoop(nn.LSTMCell),
    "gru cells, backward": lambda: CellLoop(nn.GRUCell, backward=True),
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "relu": nn.ReLU,
    "exp": lambda: Function(lambda x: torch.exp(-x.abs())),
    "gelu": nn.GELU,
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "batch norm": lambda: Convolved(nn.BatchNorm1d(WIDTH)),
    "instance norm": lambda: Convolved(nn.InstanceNorm1d(WIDTH)),
    "conv same": lambda: Convolved(nn.Conv1d(WIDTH, WIDTH, 3, padding=1)),
    "conv even": lambda: Convolved(nn.Conv1d(WIDTH, WIDTH, 2, padding="same")),
    "conv valid": lambda: Convolved(nn.Conv1d(WIDTH, WIDTH, 2)),
    "conv causal": lambda: Convolved(nn.Conv1d(WIDTH, WIDTH, 3, dilation=2, groups=2), left=4),
    "conv stride": lambda: Convolved(nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)),
    "max pool": lambda: Convolved(nn.MaxPool1d(2)),
    "max pool same": lambda: Convolved(nn.MaxPool1d(3, stride=1, padding=1)),
    "average pool": lambda: Convolved(nn.AvgPool1d(2, ceil_mode=True)),
    "average pool same": lambda: Convolved(nn.AvgPool1d(3, stride=1, padding=1)),
    "heads": lambda: SelfAttention("heads"),
    "causal": lambda: SelfAttention("causal"),
    "dot": lambda: SelfAttention("dot"),
    "without first": lambda: Function(lambda x: x[:, 1:]),
    "without last": lambda: Function(lambda x: x[:, :-1]),
    "last three": lambda: Function(lambda x: x[:, -3:]),
    "every second": lambda: Function(lambda x: x[:, ::2]),
    "flip": lambda: Function(lambda x: x.flip(1)),
    "differences": lambda: Function(lambda x: x[:, 1:] - x[:, :-1]),
    "lagged": lambda: Function(lambda x: torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1) + x),
    "cumsum": lambda: Function(lambda x: x.cumsum(1)),
    "softmax over time": lambda: Function(lambda x: x.softmax(1)),
    "centred": lambda: Function(lambda x: x - x.mean(1, keepdim=True)),
    "standardised": lambda: Function(lambda x: (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True, unbiased=False) + 0.1)),
    "by last": lambda: Function(lambda x: x * torch.sigmoid(x[:, -1:])),
    "by maximum": lambda: Function(lambda x: x / (x.abs().amax(1, keepdim=True) + 1)),
    "positions": lambda: Function(_positions),
    "padded left": lambda: Function(lambda x: F.pad(x, (0, 0, 2, 0))),
    "padded right": lambda: Function(lambda x: F.pad(x, (0, 0, 0, 1), value=0.5)),
    "twice": lambda: Function(lambda x: torch.cat([x, x.flip(1)], 1)),
    "where": lambda: Function(lambda x: torch.where(x > 0, x, 0.1 * x)),
    "where of its row": lambda: Function(lambda x: torch.where(x > x.mean(1, keepdim=True), x, -x)),
    "flat": lambda: Function(lambda x: torch.tanh(x.reshape(-1, WIDTH)).view(x.size(0), x.size(1), WIDTH)),
    "heads by view": lambda: Function(lambda x: x.view(x.size(0), x.size(1), 2, 2).transpose(2, 3).reshape(x.shape)),
}

TO_ROW: dict[str, Callable[[], nn.Module]] = {
    "last": lambda: Function(lambda x: x[:, -1]),
    "last but one": lambda: Function(lambda x: x[:, -2, :]),
    "first": lambda: Function(lambda x: x[:, 0]),
    "mean": lambda: Function(lambda x: x.mean(1)),
    "max": lambda: Function(lambda x: x.max(dim=1).values),
    "min": lambda: Function(lambda x: x.amin(1)),
    "sum": lambda: Function(lambda x: x.sum(dim=1)),
    "std": lambda: Function(lambda x: x.std(1)),
    "logsumexp": lambda: Function(lambda x: x.logsumexp(1)),
    "norm": lambda: Function(lambda x: x.norm(dim=1)),
    "product": lambda: Function(lambda x: x.sigmoid().prod(1)),
    "top two": lambda: Function(lambda x: x.topk(2, dim=1).values.sum(1)),
    "sorted": lambda: Function(lambda x: x.sort(dim=1, descending=True).values[:, 1]),
    "argmax": lambda: Function(lambda x: x.argmax(1).float()),
    "pooled": lambda: Function(lambda x: F.adaptive_avg_pool1d(x.transpose(1, 2), 1).squeeze(-1)),
    "maximum pooled": lambda: Function(lambda x: F.adaptive_max_pool1d(x.transpose(1, 2), 1).flatten(1)),
    "attention": Additive,
    "final lstm": lambda: Recurrent(nn.LSTM, final=True),
    "final bigru": lambda: Recurrent(nn.GRU, final=True, bidirectional=True),
    "last by weights": lambda: Function(
        lambda x: torch.bmm(torch.softmax(torch.bmm(x, x[:, -1].unsqueeze(2)).squeeze(2), 1).unsqueeze(1), x).squeeze(1)
    ),
    "einsum": lambda: Function(lambda x: torch.einsum("btf,bt->bf", x, x[..., 0])),
    "mean by hand": lambda: Function(lambda x: x.sum(1) / x.size(1)),
    "mean of the rest": lambda: Function(lambda x: x[:, :-1].mean(1) - x[:, -1]),
}

OF_ROW: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "softmax": lambda: nn.Softmax(-1),
    "tanh": nn.Tanh,
    "split": lambda: Function(lambda x: torch.cat([part * 2 for part in reversed(x.chunk(2, 1))], dim=-1)),
}

BACK_TO_TIME: dict[str, Callable[[], nn.Module]] = {
    "added": lambda: Function(lambda row, x: x + row.unsqueeze(1)),
    "expanded": lambda: Function(lambda row, x: row.unsqueeze(1).expand(-1, x.size(1), -1)),
    "repeated": lambda: Function(lambda row, x: row.unsqueeze(1).repeat(1, x.size(1), 1) * x),
    "gate": lambda: Function(lambda row, x: torch.sigmoid(row)[:, None] * x),
    "first of all": lambda: Function(lambda row, x: torch.cat([row.unsqueeze(1), x], 1)),
}

Program = tuple[Sequence[str], Sequence[str], Sequence[str]]


class Composed(nn.Module):
    """`names` in their order, each from the table that fits what came before it; "+" adds what the step before it read."""

    def __init__(self, names: Sequence[tuple[str, str]], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        tables = {"over": OVER_TIME, "to": TO_ROW, "of": OF_ROW, "back": BACK_TO_TIME}
        self.kinds = [kind for kind, _ in names]
        self.names = [name for _, name in names]
        self.steps = nn.ModuleList(Function(torch.add) if kind == "add" else tables[kind][name]() for kind, name in names)
        for buffer_name, buffer in self.named_buffers():
            if buffer_name.endswith("running_mean"):
                buffer.uniform_(-0.5, 0.5)
            if buffer_name.endswith("running_var"):
                buffer.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        sequence = before = x
        for kind, step in zip(self.kinds, self.steps, strict=True):
            if kind == "back":
                x = step(x, sequence)
            elif kind == "add":
                x = step(x, before)
            else:
                before = x
                x = step(x)
            if x.dim() == 3:
                sequence = x
        return x
