"""Whether a classifier's numbers are probabilities follows what the module does last, not how its numbers look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.importers.torch.errors import ModuleRefused
from training.importers.torch.tasks import Classify

ROWS = [np.array([1, 2, 3]), np.array([2, 1])]
Last = Callable[[Tensor], Tensor]


class Ending(nn.Module):
    """One number or several of a text, in which logits lie between 0 and 1, and what comes behind them."""

    def __init__(self, last: Last, size: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(5, 4)
        self.head = nn.Linear(4, size)
        with torch.no_grad():
            self.head.weight.mul_(0.01)
            self.head.bias.fill_(1 / size if size > 1 else 0.4)
        self.last = last

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.head(self.words(tokens).mean(1)))


class WithLengths(Ending):
    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        return self.last(self.head(self.words(tokens).sum(1) / lengths[:, None]))


class WithTwo(Ending):
    def forward(self, tokens: Tensor, weights: Tensor, more: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(tokens) * weights * more


def task(size: int = 1) -> Classify:
    return Classify([f"label {index}" for index in range(max(2, size))], Path("none"))


@pytest.mark.parametrize(
    ("last", "size", "expected"),
    [
        (lambda x: x, 1, False),
        (lambda x: x.squeeze(-1), 1, False),
        (lambda x: x + torch.tensor(0.1), 1, False),
        (torch.sigmoid, 1, True),
        (lambda x: torch.sigmoid(x)[:, 0], 1, True),
        (lambda x: x.sigmoid().reshape(-1), 1, True),
        (lambda x: x, 2, False),
        (lambda x: torch.softmax(x, 1), 2, True),
        (lambda x: functional.softmax(x, dim=-1).view(-1, 2), 2, True),
        (lambda x: functional.log_softmax(x, dim=-1), 2, False),
        (lambda x: x.exp() / x.exp().sum(1, keepdim=True), 2, True),
        (lambda x: x - 3.0, 1, False),
    ],
)
def test_what_the_module_does_last_decides(last: Last, size: int, expected: bool) -> None:
    assert task(size).look(Ending(last, size), ROWS) is expected


@pytest.mark.parametrize(("last", "expected"), [(torch.sigmoid, True), (lambda x: x, False)])
def test_a_module_that_takes_lengths_is_looked_at_too(last: Last, expected: bool) -> None:
    assert task().look(WithLengths(last), ROWS) is expected


@pytest.mark.parametrize("model", [Ending(lambda x: x * 1.01), Ending(lambda x: x.clamp(0, 1)), WithTwo(torch.sigmoid)])
def test_where_neither_the_module_nor_its_numbers_tell_the_option_is_needed(model: nn.Module) -> None:
    with pytest.raises(ModuleRefused, match=r"are_probabilities=True \(--probabilities\) or False \(--logits\) must be given"):
        task().look(model, ROWS)


def test_a_module_that_cannot_be_recorded_is_known_by_its_numbers() -> None:
    def through_numpy(x: Tensor) -> Tensor:
        return torch.from_numpy(x.softmax(1).numpy())

    assert task(2).look(Ending(through_numpy, 2), ROWS)
    with pytest.raises(ModuleRefused, match="gives one number"):
        task().look(Ending(lambda x: torch.from_numpy(x.sigmoid().numpy())), ROWS)
