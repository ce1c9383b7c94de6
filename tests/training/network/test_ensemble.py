"""Several members in one network: each learns from rows of its own, and their values are combined into one answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.network.networks import DENSE, LSTM, forecast, histories, run
from training.layers.registry import LayerError
from training.network.ensemble import combine, merge, rows_of
from training.network.network import Network

MEMBERS = 3


def member(network: Network, number: int) -> Network:
    """One member as a network of its own."""
    own = forecast(horizon=2)
    count = len(own.layers)
    own.layers = network.layers[number * count : (number + 1) * count]
    own.head = network.head
    return own


def test_mean_and_median_are_taken_element_by_element() -> None:
    parts = [torch.tensor([[1.0, 9.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[6.0, 3.0]])]
    assert combine(parts, "mean").tolist() == [[3, 4]]
    assert combine(parts, "median").tolist() == [[2, 3]]
    assert combine([*parts, torch.tensor([[4.0, 5.0]])], "median").tolist() == [[3, 4]]


def test_rows_come_back_in_the_order_of_the_batch() -> None:
    batch = torch.arange(8.0).unsqueeze(1)
    parts = [batch[rows_of(number, MEMBERS)] for number in range(MEMBERS)]
    assert [len(part) for part in parts] == [3, 3, 2]
    assert merge(parts, 8).equal(batch)


@pytest.mark.parametrize("how", ["mean", "median"])
def test_the_answer_is_the_combination_of_the_members(how: Any) -> None:
    network = forecast(horizon=2, members=MEMBERS, combine=how)
    inputs = histories([8, 5, 3])
    alone = [member(network, number).predict(inputs).values for number in range(MEMBERS)]
    assert not torch.allclose(alone[0], alone[1])
    torch.testing.assert_close(network.predict(inputs).values, combine(alone, how))


def test_while_training_each_row_is_read_by_one_member() -> None:
    network = forecast(horizon=2, members=MEMBERS).train()
    inputs = histories([8, 5, 3, 6, 4])
    values = network.predict(inputs).values
    for number in range(MEMBERS):
        own = member(network, number).predict(inputs).values
        torch.testing.assert_close(values[number::MEMBERS], own[number::MEMBERS])
    torch.autograd.backward(values[1::MEMBERS].sum())
    has_gradient = [any(p.grad is not None and bool(p.grad.any()) for p in layer.parameters()) for layer in network.layers]
    assert has_gradient == [False, False, True, True, False, False]


def test_a_batch_of_fewer_rows_than_members_is_read_by_all() -> None:
    network = forecast(horizon=2, members=MEMBERS)
    inputs = histories([8, 5])
    expected = run(network, inputs)["forecast"]
    torch.testing.assert_close(run(network.train(), inputs)["forecast"], expected)


def test_an_ensemble_streams_with_a_state_for_each_member() -> None:
    network = forecast(members=2)
    names = [part.input for part in network.state]
    assert names == ["member_0_lstm_0_hidden", "member_0_lstm_0_cell", "member_1_lstm_0_hidden", "member_1_lstm_0_cell"]
    inputs = histories([9])
    whole = run(network, inputs)["forecast"]

    def piece(first: int, last: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        part = {"history": inputs["history"][:, first:last], "lengths": torch.tensor([last - first])}
        return run(network, {**part, **state})

    begun = piece(0, 4, network.initial_state(1))
    state = {part.input: begun[part.output] for part in network.state}
    torch.testing.assert_close(piece(4, 9, state)["forecast"], whole)


def test_weights_are_counted_over_all_members() -> None:
    assert forecast(members=4).num_parameters == 4 * forecast().num_parameters


def test_a_stateful_layer_is_refused() -> None:
    with pytest.raises(
        LayerError, match=r'layers\[0\] \(lstm\): option "stateful": an ensemble\'s members read rows of their own'
    ):
        forecast({**LSTM, "stateful": True}, DENSE, members=2)
