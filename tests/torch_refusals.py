"""Torch modules that no graph can serve, with the words that the refusal must hold."""

# mypy: disable-error-code="no-any-return, var-annotated, no-untyped-call, misc"

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic
from torch.nn import functional as F  # as people import it

from tests.torch_models import FEATURES, HIDDEN, ROWS, TorchCase, TutorialLSTM, case, floats

FILE = "torch_refusals.py, line "


class AlwaysDrops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.lstm(x)[0][:, -1], 0.5)


class RandomState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h0, c0 = torch.randn(1, x.size(0), HIDDEN), torch.randn(1, x.size(0), HIDDEN)
        return self.lstm(x, (h0, c0))[0][:, -1]


class KeptState(nn.Module):
    """The hidden state is an attribute, as in old tutorials."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.hidden is None or self.hidden.size(1) != x.size(0):
            self.hidden = torch.zeros(1, x.size(0), HIDDEN)
        out, self.hidden = self.gru(x, self.hidden)
        return out[:, -1]


class BatchStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.norm = nn.BatchNorm1d(HIDDEN, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.lstm(x)[0].transpose(1, 2)).mean(2)


class BatchFirstForgotten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0][:, -1])


class SoftmaxOverRows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(self.fc(self.lstm(x)[0][:, -1]), dim=0)


class Flattened(nn.Module):
    """Twelve steps and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(12 * HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.fc(out.reshape(x.size(0), -1))


class ViewedAsTwelve(nn.Module):
    """A view with the number of steps written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return out.contiguous().view(-1, 12, HIDDEN).sum(1)


class BranchOnValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.lstm(x)[0][:, -1]
        if out.mean() > 0:
            out = out * 2
        return out


class ReadsItem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x / x.abs().max().item())[0][:, -1]


class ReadsNumpy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        scaled = x.numpy() / 2
        return self.lstm(torch.from_numpy(scaled))[0][:, -1]


class GivesNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return {"answer": self.lstm(x)[0][:, -1], "steps": x.size(1)}


class NoRule(nn.Module):
    """What neither the translator nor the exporters write."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.logcumsumexp(self.lstm(x)[0], dim=1)


def _changed(change: Callable[[TutorialLSTM], Any]) -> Callable[[], Any]:
    def make() -> Any:
        torch.manual_seed(3)
        net = TutorialLSTM()
        found = change(net)
        return net if found is None else found

    return make


def _set(net: TutorialLSTM, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Replace a weight of the last layer."""
    setattr(net.fc, name, nn.Parameter(change(getattr(net.fc, name).detach()), requires_grad=False))


def _with_nan(weight: Tensor) -> Tensor:
    weight[0] = float("nan")
    return weight


def _quantised(net: TutorialLSTM) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to remove such tensors
        return quantize_dynamic(net.eval(), {nn.Linear}, dtype=torch.qint8)


def _lightning_checkpoint(net: TutorialLSTM) -> Any:
    return {"pytorch-lightning_version": "2.4", "state_dict": net.state_dict(), "hyper_parameters": {}}


MODULES: tuple[TorchCase, ...] = (
    case("always-drops", AlwaysDrops, route="refuse", words=(FILE, "dropout", "training=self.training")),
    case("random-state", RandomState, route="refuse", words=(FILE, "random numbers (randn)")),
    case("kept-state", KeptState, route="refuse", words=("two calls", "self.hidden", "state=")),
    case("batch-statistics", BatchStatistics, route="refuse", words=("other rows", 'BatchNorm1d "norm"')),
    case("batch-first-forgotten", BatchFirstForgotten, route="refuse", words=("other rows", "batch_first=True")),
    case("softmax-over-rows", SoftmaxOverRows, route="refuse", words=("other rows",)),
    case("flattened", Flattened, floats(12, 9), route="refuse", words=(FILE, "the length is frozen", "12", "9")),
    case("viewed-as-twelve", ViewedAsTwelve, floats(12, 9), route="refuse", words=(FILE, "the length is frozen", "12", "9")),
    case("branch-on-values", BranchOnValues, route="refuse", words=(FILE, "a branch on values", "torch.where")),
    case("reads-item", ReadsItem, route="refuse", words=(FILE, ".item()")),
    case("reads-numpy", ReadsNumpy, route="refuse", words=(FILE, "numpy in forward")),
    case("gives-numbers", GivesNumbers, route="refuse", words=('output "steps" is int, not a tensor',)),
    case("one-length", TutorialLSTM, floats(6, 6), route="refuse", words=("all have the shape (6, 5)", "two lengths")),
)
"""Modules whose behaviour is refused."""

OBJECTS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "file": (lambda: "best.pt", ("best.pt is a file", "load_state_dict")),
    "state-dict": (_changed(lambda net: net.state_dict()), ("a state_dict holds weights", "net = Net(...)")),
    "checkpoint": (_changed(lambda net: {"model_state_dict": net.state_dict(), "epoch": 3}), ('under "model_state_dict"',)),
    "lightning-checkpoint": (_changed(_lightning_checkpoint), ("load_from_checkpoint",)),
    "class": (lambda: TutorialLSTM, ("TutorialLSTM is a class",)),
    "function": (lambda: print, ("expected a torch.nn.Module",)),
    "half": (_changed(lambda net: net.half()), ('"lstm.weight_ih_l0" is float16', "net.float()")),
    "bfloat16": (_changed(lambda net: _set(net, "bias", Tensor.bfloat16)), ('"fc.bias" is bfloat16',)),
    "complex": (_changed(lambda net: _set(net, "bias", lambda bias: bias + 1j)), ('"fc.bias" is complex',)),
    "quantised": (_changed(_quantised), ('"fc" (Linear) is quantised', "float32")),
    "sparse": (_changed(lambda net: _set(net, "weight", Tensor.to_sparse)), ('"fc.weight" is sparse', ".to_dense()")),
    "two-devices": (
        _changed(lambda net: _set(net, "bias", lambda bias: bias.to("meta"))),
        ("several devices", '"fc.bias" on meta'),
    ),
    "no-values": (_changed(lambda net: net.to("meta")), ("meta device",)),
    "nan": (_changed(lambda net: _set(net, "weight", _with_nan)), ('"fc.weight" holds numbers that are not finite',)),
}
"""Things that are given in place of a network, or networks with weights that cannot be served."""

NO_WAY = case("no-rule", NoRule, ROWS, route="refuse", words=("no way to a graph", "logcumsumexp has no rule", "exporter"))
"""Slow to refuse, for every exporter has to fail first."""
