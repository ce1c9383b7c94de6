"""The checks of a published module: which rows they are measured at, and how the tolerance follows the module's rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.importers.torch.checks import EXAMPLE_ROWS, UNIT_ROWS
from training.importers.torch.errors import ModuleRefused
from training.importers.torch.publishing import publish


class Cancelling(nn.Module):
    """A small difference of large numbers: float32 keeps few digits of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.LSTM(4, 64, batch_first=True)
        self.large = nn.Linear(64, 1, bias=False)
        self.other = nn.Linear(64, 1, bias=False)
        with torch.no_grad():
            self.large.weight.mul_(1.6e5)
            self.other.weight.copy_(1.00001 * self.large.weight)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.large(out[:, -1]) - self.other(out[:, -1])  # type: ignore[no-any-return]


class Exploding(nn.Module):
    """relu over many steps with weights above one: it overflows by itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.RNN(2, 8, nonlinearity="relu", batch_first=True)
        with torch.no_grad():
            self.rnn.all_weights[0][1].fill_(50.0)
            self.rnn.all_weights[0][0].fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return out[:, -1]  # type: ignore[no-any-return]


def rows(num_features: int, *lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.uniform(0.5, 3, (length, num_features)).astype(np.float32) for length in lengths]


def test_the_tolerance_follows_the_modules_own_rounding() -> None:
    result = publish(Cancelling(), "toy", example=rows(4, 9, 5), dry_run=True)
    largest = max(check.error for check in result.verdict.checks)
    assert 1e-4 < largest < 1e-1
    assert result.verdict.rounding > 1e-4


def test_modules_are_verified_between_0_and_1_too_and_the_result_says_so() -> None:
    result = publish(nn.Linear(3, 2), "toy", example=rows(3, 1, 1), inputs={"input": (1, 3)}, dry_run=True)
    assert result.verdict.rows == (EXAMPLE_ROWS, UNIT_ROWS)
    assert f"at {EXAMPLE_ROWS}, {UNIT_ROWS}" in str(result)


def test_a_module_that_overflows_by_itself_is_called_that() -> None:
    with pytest.raises(ModuleRefused, match="the module overflows by itself at the example's rows"):
        publish(Exploding(), "toy", example=rows(2, 60, 40), dry_run=True)


class OfLastThree(nn.Module):
    """The least or largest of the last three steps: of a shorter row torch takes all, a graph has three in any case."""

    def __init__(self, reduce: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.reduce = reduce

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(x[:, -3:], 1)


@pytest.mark.parametrize("reduce", [torch.amin, torch.amax])
def test_the_shortest_row_is_one_whose_padding_is_not_read_whatever_stands_there(
    reduce: Callable[[Tensor, int], Tensor],
) -> None:
    result = publish(OfLastThree(reduce).eval(), "toy", example=rows(4, 9, 5), dry_run=True)
    assert result.batching == "ragged"
    assert result.verdict.min_length == 3
