"""Positions of torch calls: the same at every run of the same code."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.importers.torch.recording import Recording, record

WARM_RUNS = 40  # CPython specialises an instruction after a few runs


class CallsOfEveryKind(nn.Module):
    """A property, an item, a generator, a helper, `super()` and functions of C between `forward` and torch."""

    @property
    def scale(self) -> Tensor:
        return torch.ones(1) * 2

    def __getitem__(self, index: int) -> Tensor:
        return torch.ones(1) * index

    def parts(self, x: Tensor) -> list[Tensor]:
        return [x * number for number in range(3)]

    def forward(self, x: Tensor) -> Tensor:
        total = sum((part + 1 for part in self.parts(x)), start=torch.zeros(1))
        return torch.maximum(total, x) * self.scale / self[2]


class Inherited(CallsOfEveryKind):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / len(x.shape)


def test_positions_are_the_same_before_and_after_the_interpreter_has_specialised_the_code() -> None:
    x = torch.ones(2, 3)
    for module in (CallsOfEveryKind(), Inherited()):
        recorded = [record(module, (x,), {}, {"x": x}) for _ in range(WARM_RUNS)]
        first = signatures(recorded[0])
        assert len(first) > 8
        assert all(signatures(recording) == first for recording in recorded)


def test_calls_of_one_line_have_positions_of_their_own() -> None:
    class TwoOnOneLine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(torch.relu(x))

    x = torch.ones(2, 3)
    found = signatures(record(TwoOnOneLine(), (x,), {}, {"x": x}))
    assert len(found) == 2
    assert found[0] != found[1]


def signatures(recording: Recording) -> list[object]:
    return [call.signature for call in recording.calls]
