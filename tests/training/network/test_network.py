"""The network as a whole: padding, other rows, state, what the layers need of each other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.training.network.networks import DENSE, EMBEDDING, LSTM, classify, forecast, histories, run
from training.export.graph import describe_tensors
from training.layers.registry import LayerError
from training.network.heads.tensor import TensorInput, TensorSpec
from training.network.network import Network
from training.network.spec import NetworkError


def silence(network: Network) -> Network:
    """All weights zero: what is left is what happens around the layers."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    return network


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: forecast({"type": "lstm"}, DENSE), r'layers\[0\] \(lstm\): option "units": is missing'),
        (lambda: forecast({"type": "lsmt"}, DENSE), r'layers\[0\]: option "type": unknown layer \'lsmt\'; there are embedding'),
        (lambda: forecast(LSTM, {"type": "dens"}), r'layers\[1\]: option "type": unknown layer \'dens\'; there are embedding'),
        (
            lambda: forecast(LSTM, DENSE, DENSE),
            r'layers\[1\] \(dense\): option "units": is missing: it may be left out in the last layer only',
        ),
        (
            lambda: forecast(LSTM, {"type": "repeat_vector", "n": 2}, {"type": "time_distributed", "layer": DENSE}, horizon=2),
            r'layers\[2\]\.layer \(dense\): option "units": is missing: it may be left out in the last layer only',
        ),
        (
            lambda: forecast({**LSTM, "name": "a"}, {**DENSE, "name": "a"}),
            r"layers\[1\] \(dense\): option \"name\": 'a' is layers\[0\]'s already",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused_by_place_and_option(build: Any, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        build()


def test_results_that_only_the_last_layer_gives_out_are_dropped_behind_it() -> None:
    layers = ({**LSTM, "return_state": True}, {"type": "dropout", "rate": 0.5})
    network = Network(TensorSpec(layers=layers, input=TensorInput(shape=(4, 2)))).eval()
    assert set(run(network, {"input": torch.zeros(3, 4, 2)})) == {"output"}


def test_the_answer_does_not_depend_on_the_padding_or_the_other_rows() -> None:
    network = forecast(
        {"type": "bidirectional", "layer": {**LSTM, "return_sequences": True}},
        {"type": "concat_pooling"},
        {"type": "recent", "n": 4},
        DENSE,
        scaling={"kind": "window", "length": 6, "transform": "log"},
        step=2,
        seasonal_lag=4,
        horizon=5,
        quantiles=(0.1, 0.5, 0.9),
    )
    inputs = histories([11, 4, 8])
    together = run(network, inputs)
    for row, length in enumerate([11, 4, 8]):
        alone = {"history": inputs["history"][row : row + 1, :length], "lengths": torch.tensor([length])}
        for name, values in run(network, alone).items():
            torch.testing.assert_close(together[name][row : row + 1], values)


def test_the_shortest_history_follows_from_what_is_read_of_it() -> None:
    assert forecast().min_length == 1
    assert forecast(step=4).min_length == 4
    assert forecast(step=4, seasonal_lag=6).min_length == 6
    assert forecast(LSTM, {"type": "recent", "n": 9}, DENSE, step=4, seasonal_lag=6).min_length == 9
    assert forecast(scaling={"kind": "window", "length": 50}).min_length == 1
    assert classify().min_length == 1


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (lambda: forecast(), True),
        (lambda: forecast(scaling={"kind": "minmax"}), True),
        (lambda: forecast({**LSTM, "return_sequences": True}, {"type": "gru", "units": 3}, DENSE), True),
        (lambda: classify(), True),
        (lambda: forecast(scaling={"kind": "window"}), False),
        (lambda: forecast(seasonal_lag=2), False),
        (lambda: forecast(step=2), False),
        (lambda: forecast(LSTM, {"type": "recent", "n": 2}, DENSE), False),
        (lambda: forecast({**LSTM, "go_backwards": True}, DENSE), False),
        (lambda: forecast({"type": "bidirectional", "layer": LSTM}, DENSE), False),
        (lambda: forecast({**LSTM, "return_sequences": True}, {"type": "global_max_pooling"}, DENSE), False),
        (lambda: classify({**EMBEDDING, "mask_zero": True}, LSTM, DENSE), False),
        (lambda: classify(EMBEDDING, {**LSTM, "return_sequences": True}, {"type": "concat_pooling"}, DENSE), True),
        (lambda: forecast({**LSTM, "return_sequences": True}, {"type": "concat_pooling"}, DENSE), True),
    ],
)
def test_only_a_network_that_reads_forward_step_by_step_can_stream(network: Any, expected: bool) -> None:
    built: Network = network()
    assert built.can_stream is expected
    assert bool(built.why_not_streaming) is not expected
    assert bool(built.state) is expected


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (lambda: forecast(scaling={"kind": "window"}), "it scales each history by a part of itself"),
        (lambda: forecast(seasonal_lag=7), "it corrects the value 7 steps earlier"),
        (lambda: forecast(theta_share=0.5), "it mixes in the Theta method's forecast"),
        (lambda: forecast(step=24), "it folds 24 steps into one"),
        (
            lambda: forecast(LSTM, {"type": "recent", "n": 2}, DENSE),
            'its layer "recent_1" reads more of a sequence than each step',
        ),
        (
            lambda: forecast({**LSTM, "stateful": True, "return_sequences": True}, LSTM, DENSE),
            "some of its layers are stateful, and the others start anew",
        ),
    ],
)
def test_a_network_says_why_it_cannot_stream_and_its_manifest_too(network: Any, reason: str) -> None:
    built: Network = network()
    assert built.why_not_streaming.startswith(reason)
    assert describe_tensors(built)["cannot_stream"] == built.why_not_streaming
    assert "cannot_stream" not in describe_tensors(forecast())


def test_a_sequence_in_pieces_gives_what_it_gives_whole() -> None:
    network = forecast(
        {**LSTM, "return_sequences": True}, {"type": "gru", "units": 3}, DENSE, scaling={"kind": "standard"}, horizon=2
    )
    names = ["lstm_0_hidden", "lstm_0_cell", "gru_1_hidden"]
    assert [(part.input, part.output) for part in network.state] == [(name, f"{name}_next") for name in names]
    whole = histories([7, 7])
    state = {part.input: torch.zeros(2, part.units) for part in network.state}
    outputs = run(network, {**whole, **state})
    for start, end in ((0, 3), (3, 4), (4, 7)):
        piece = {"history": whole["history"][:, start:end], "lengths": torch.full((2,), end - start)}
        streamed = run(network, {**piece, **state})
        state = {part.input: streamed[part.output] for part in network.state}
    assert streamed.keys() == outputs.keys() == {"forecast", *(f"{name}_next" for name in names)}
    for name, values in outputs.items():
        torch.testing.assert_close(streamed[name], values)
    torch.testing.assert_close(run(network, whole)["forecast"], outputs["forecast"])


def test_a_call_leaves_nothing_behind() -> None:
    network = forecast({**LSTM, "stateful": True, "activity_regularizer": "l2"}, DENSE).train()
    inputs = histories([4, 4])
    before = {name: value for name, value in vars(network).items() if not name.startswith("_")}
    first, second = network.predict(inputs), network.predict(inputs)
    assert first.values.equal(second.values)
    assert first.state == {}
    carried = network.predict({**inputs, **network.initial_state(2)})
    assert carried.values.equal(first.values)
    assert carried.state.keys() == network.initial_state(2).keys()
    assert not network.predict({**inputs, **carried.state}).values.equal(first.values)
    assert {name: value for name, value in vars(network).items() if not name.startswith("_")} == before
    assert [value for layer in network.stack for value in vars(layer).values() if isinstance(value, list)] == []


def test_state_of_other_rows_than_the_batch_has_is_refused() -> None:
    network = forecast()
    with pytest.raises(LayerError, match=r"layers\[0\] \(lstm\): a batch of 2 rows follows one of 3"):
        network({**histories([3, 3]), **network.initial_state(3)})


def test_half_a_state_is_refused() -> None:
    inputs = {**histories([3]), "lstm_0_hidden": torch.zeros(1, 5)}
    with pytest.raises(NetworkError, match=r"state comes whole or not at all: \['lstm_0_cell'\] missing"):
        forecast()(inputs)


def test_a_network_learns_through_all_of_its_parts() -> None:
    network = forecast(
        {"type": "bidirectional", "layer": {**LSTM, "return_sequences": True, "dropout": 0.1}},
        {"type": "spatial_dropout", "rate": 0.1},
        {"type": "gru", "units": 4},
        {"type": "recent", "n": 2},
        DENSE,
        step=2,
        seasonal_lag=2,
        horizon=2,
        scaling={"kind": "window"},
    ).train()
    inputs = histories([9, 4, 12, 7])
    prediction = network.predict(inputs)
    target = network.head.scale_target(torch.ones(4, 2, 1), prediction)
    torch.nn.functional.mse_loss(prediction.values, target).backward()  # type: ignore[no-untyped-call]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("layer", [LSTM, {"type": "gru", "units": 3}, {"type": "simple_rnn", "units": 3}], ids=str)
def test_a_copy_or_another_precision_has_weights_of_its_own(layer: dict[str, Any]) -> None:
    network = forecast(layer, DENSE)
    inputs = histories([4, 2])
    before = run(network, inputs)["forecast"]
    duplicate = copy.deepcopy(network)
    assert run(duplicate, inputs)["forecast"].equal(before)
    silence(duplicate)
    assert not run(duplicate, inputs)["forecast"].any()
    assert run(network, inputs)["forecast"].equal(before)
    doubled = run(network.double(), {**inputs, "history": inputs["history"].double()})["forecast"]
    torch.testing.assert_close(doubled.float(), before)
