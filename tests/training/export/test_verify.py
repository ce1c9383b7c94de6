"""The four checks: every graph that is written passes them, and each notices its own kind of broken graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from training.export.graph import write_graph
from training.export.verify import NetworkUndetermined, Verification, VerificationFailed, verify
from training.layers.bases import BaseConfig
from training.layers.covariates import CovariateConfig
from training.network.heads.classify import ClassifySpec
from training.network.heads.forecast import ForecastSpec
from training.network.heads.tensor import TensorInput, TensorSpec
from training.network.network import Network

LSTM: dict[str, Any] = {"type": "lstm", "units": 6}
GRU: dict[str, Any] = {"type": "gru", "units": 5}
DENSE: dict[str, Any] = {"type": "dense"}
EMBEDDING: dict[str, Any] = {"type": "embedding", "output_dim": 4}
COVARIATES = (
    CovariateConfig(),
    CovariateConfig(kind="category", size=3, first=1),
    CovariateConfig(kind="cycle", size=9),
)
BOTH_WAYS: dict[str, Any] = {"type": "bidirectional", "layer": {**LSTM, "return_sequences": True}}


def sequences(layer: dict[str, Any]) -> dict[str, Any]:
    return {**layer, "return_sequences": True}


def forecast(*layers: dict[str, Any], **options: Any) -> Network:
    torch.manual_seed(0)
    spec = ForecastSpec(layers=layers, **options)
    network = Network(spec)
    generator = torch.Generator().manual_seed(0)
    network.set_statistics(100 + 10 * torch.randn(40, spec.num_features + len(spec.covariates), generator=generator))
    return network


def stream(*layers: dict[str, Any], **options: Any) -> Network:
    running = {"kind": "running", "span": 20}
    return forecast(*layers, streaming=True, scaling=running, warm_up=4, quantiles=(0.05, 0.25, 0.5, 0.9), **options)


def classify(*layers: dict[str, Any], labels: tuple[str, ...] = ("no", "yes")) -> Network:
    torch.manual_seed(0)
    return Network(ClassifySpec(layers=layers, labels=labels, vocabulary_size=12))


BASES = (BaseConfig(lag=1), BaseConfig(lag=4), BaseConfig(lag=12, cycles=2))
DECOMPOSED: dict[str, Any] = {
    "scaling": {"kind": "window", "transform": "log", "centre": "last"},
    "decomposition": "classical",
    "season_length": 4,
    "step": 3,
    "horizon": 7,
    "quantiles": (0.1, 0.5, 0.9),
    "mape_point": True,
}
NETWORKS: dict[str, Callable[[], Network]] = {
    "plain": lambda: forecast(LSTM, DENSE),
    "minmax, stacked": lambda: forecast(
        sequences(LSTM), {"type": "dropout", "rate": 0.2}, GRU, DENSE, scaling={"kind": "minmax"}, horizon=3
    ),
    "standard, several features": lambda: forecast(
        sequences({"type": "simple_rnn", "units": 3}),
        {"type": "dense", "units": 4, "activation": "relu"},
        {**GRU, "reset_after": False},
        DENSE,
        scaling={"kind": "standard"},
        num_features=3,
        targets=(2, 0),
        horizon=2,
        quantiles=(0.1, 0.5),
    ),
    "backwards": lambda: forecast(sequences({**GRU, "go_backwards": True}), {**LSTM, "go_backwards": True}, DENSE),
    "daily steps": lambda: forecast(
        {"type": "lstm", "units": 16},
        {"type": "recent", "n": 14},
        DENSE,
        scaling={"kind": "window", "length": 14, "transform": "log"},
        step=7,
        seasonal_lag=14,
        horizon=17,
        quantiles=(0.1, 0.5, 0.9),
    ),
    "daily steps, several features": lambda: forecast(
        BOTH_WAYS,
        {"type": "concat_pooling"},
        {"type": "recent", "n": 3},
        DENSE,
        scaling={"kind": "window", "transform": "asinh"},
        num_features=3,
        targets=(1,),
        step=4,
        seasonal_lag=3,
        horizon=5,
    ),
    "stream": lambda: stream(sequences(LSTM), {"type": "recent", "n": 1}, DENSE, horizon=3),
    "stream, several features": lambda: stream(
        sequences(GRU), sequences(LSTM), DENSE, num_features=3, targets=(2, 0), horizon=5, seasonal_lag=4
    ),
    "text, pooled in pieces": lambda: classify(EMBEDDING, sequences(LSTM), {"type": "concat_pooling"}, DENSE),
    "season, level and unit of the history": lambda: forecast(
        {"type": "gru", "units": 4}, {"type": "smoothing", "of": "changes"}, DENSE, **DECOMPOSED
    ),
    "a share of the Theta method": lambda: forecast(GRU, DENSE, theta_share=0.5, num_features=3, targets=(2, 0), **DECOMPOSED),
    "a share of the Theta method, independent features": lambda: forecast(
        GRU, DENSE, theta_share=0.9, independent=True, num_features=2, targets=(1,), horizon=3
    ),
    "an odd season, several features": lambda: forecast(
        GRU,
        {"type": "smoothing", "rates": [0.3]},
        DENSE,
        scaling={"kind": "standard", "centre": "last"},
        decomposition="classical",
        season_length=3,
        num_features=3,
        targets=(2, 0),
        horizon=5,
    ),
    "bases of the history": lambda: forecast(
        {"type": "lstm", "units": 4},
        {"type": "recent", "n": 5},
        DENSE,
        scaling={"kind": "seasonal"},
        bases=BASES,
        base_origins=3,
        season_length=4,
        context_length=40,
        read_length=14,
        step=4,
        members=2,
        combine="median",
        horizon=7,
        quantiles=(0.1, 0.5, 0.9),
        mape_point=True,
    ),
    "bases of several features": lambda: forecast(
        GRU,
        DENSE,
        scaling={"kind": "seasonal"},
        bases=BASES[1:],
        season_length=2,
        context_length=20,
        read_length=8,
        num_features=3,
        targets=(2, 0),
        horizon=5,
    ),
    "independent features": lambda: forecast(
        GRU,
        {"type": "recent", "n": 3},
        DENSE,
        scaling={"kind": "standard", "centre": "last"},
        independent=True,
        seasonal_lag=4,
        step=2,
        members=2,
        num_features=3,
        targets=(2, 0),
        horizon=5,
        quantiles=(0.1, 0.5),
        mape_point=True,
    ),
    "features relative to their last values": lambda: forecast(
        GRU, DENSE, scaling={"kind": "standard", "centre": "level"}, independent=True, num_features=2, targets=(1,), horizon=3
    ),
    "independent features in parts, an ensemble": lambda: forecast(
        sequences(GRU),
        GRU,
        {"type": "parallel_decoder", "n": 2},
        DENSE,
        scaling={"kind": "standard", "centre": "level"},
        independent=True,
        step=2,
        members=2,
        num_features=3,
        targets=(2, 0),
        horizon=6,
        quantiles=(0.1, 0.5),
    ),
    "features in parts": lambda: forecast(
        GRU, {"type": "parallel_decoder", "n": 3}, DENSE, num_features=2, targets=(1, 0), horizon=6, quantiles=(0.1, 0.5, 0.9)
    ),
    "independent features by their mean": lambda: forecast(
        LSTM,
        DENSE,
        independent=True,
        scaling={"kind": "window"},
        decomposition="classical",
        season_length=3,
        num_features=2,
        targets=(0, 1),
        horizon=4,
        seasonal_lag=2,
    ),
    "covariates": lambda: forecast(
        LSTM,
        {"type": "decoder_input", "lags": [2, 5]},
        sequences(GRU),
        DENSE,
        scaling={"kind": "window", "transform": "log"},
        horizon=4,
        quantiles=(0.1, 0.5, 0.9),
        covariates=COVARIATES,
    ),
    "covariates, in pieces": lambda: forecast(
        LSTM, {"type": "decoder_input"}, sequences(LSTM), DENSE, horizon=3, num_features=2, covariates=COVARIATES[1:]
    ),
    "covariates, daily steps, an ensemble": lambda: forecast(
        GRU, {"type": "decoder_input"}, sequences(GRU), DENSE, step=3, members=2, horizon=3, covariates=COVARIATES[:1]
    ),
    "an ensemble by its mean": lambda: forecast(GRU, DENSE, members=3, horizon=2, quantiles=(0.5, 0.9)),
    "an ensemble by its median": lambda: forecast(
        LSTM, {"type": "recent", "n": 2}, DENSE, members=4, combine="median", scaling={"kind": "window"}, horizon=2
    ),
    "text": lambda: classify(EMBEDDING, LSTM, DENSE, labels=("a", "b", "c")),
    "text, sigmoid": lambda: classify(EMBEDDING, GRU, {"type": "dense", "units": 1, "activation": "sigmoid"}),
    "text, pooled": lambda: classify(
        {**EMBEDDING, "mask_zero": True},
        {"type": "spatial_dropout", "rate": 0.2},
        BOTH_WAYS,
        {"type": "concat_pooling"},
        {"type": "dense", "units": 8, "activation": "tanh"},
        {"type": "dense", "activation": "softmax"},
    ),
    "bag of words": lambda: classify(EMBEDDING, {"type": "global_average_pooling"}, DENSE),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_written_graph_passes_the_checks(name: str, seed: int) -> None:
    network = NETWORKS[name]().train()
    verification = verify(network, write_graph(network).SerializeToString(), seed)
    assert network.training
    assert (verification.streamed_vs_whole is not None) == network.can_stream
    errors = [verification.graph_vs_torch, verification.row_vs_batch, verification.padded_vs_alone]
    assert max(*errors, verification.streamed_vs_whole or 0.0) < 1e-5
    assert min(errors) >= 0


def test_the_same_seed_measures_the_same() -> None:
    network = NETWORKS["daily steps"]()
    graph = write_graph(network).SerializeToString()
    assert verify(network, graph, 5) == verify(network, graph, 5)
    assert isinstance(verify(network, graph, 5), Verification)


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if node.name == name)
    return found


def before_output(model: onnx.ModelProto, output: str, *nodes: onnx.NodeProto) -> None:
    """Put nodes, which read "x" and give "y", before an output."""
    last = node(model, f"{output}/output")
    for added in nodes:
        added.input[:] = [last.input[0] if name == "x" else name for name in added.input]
        model.graph.node.insert(list(model.graph.node).index(last), added)
    last.input[0] = "y"


def other_weights(model: onnx.ModelProto) -> None:
    for constant in model.graph.initializer:
        if constant.name == "dense_1/kernel":
            constant.CopyFrom(numpy_helper.from_array(1.01 * numpy_helper.to_array(constant), constant.name))


def gates_in_torch_order(model: onnx.ModelProto) -> None:
    for constant in model.graph.initializer:
        if constant.name == "lstm_0/kernel":
            values = numpy_helper.to_array(constant)
            onnx_order = np.split(values, 4, axis=1)
            constant.CopyFrom(numpy_helper.from_array(np.concatenate([onnx_order[i] for i in (0, 2, 3, 1)], 1), constant.name))


def mix_rows(model: onnx.ModelProto) -> None:
    """x + (x - mean of x over the batch): a row alone is untouched."""
    before_output(
        model,
        "forecast",
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]),
        helper.make_node("Sub", ["x", "m"], ["d"]),
        helper.make_node("Add", ["x", "d"], ["y"]),
    )


def drop_lengths(model: onnx.ModelProto) -> None:
    node(model, "lstm_0").input[4] = ""


def drop_the_state(model: onnx.ModelProto) -> None:
    node(model, "lstm_0").input[5:] = ["", ""]


def swap_the_state(model: onnx.ModelProto) -> None:
    hidden, cell = node(model, "lstm_0_hidden_next/output"), node(model, "lstm_0_cell_next/output")
    hidden.input[0], cell.input[0] = cell.input[0], hidden.input[0]


def give_nan(model: onnx.ModelProto) -> None:
    before_output(
        model, "forecast", helper.make_node("Sub", ["x", "x"], ["zero"]), helper.make_node("Div", ["zero", "zero"], ["y"])
    )


STATE_AND_ANSWER = {"graph_vs_torch", "streamed_vs_whole"}


@pytest.mark.parametrize(
    ("break_it", "failed"),
    [
        (other_weights, {"graph_vs_torch"}),
        (gates_in_torch_order, {"graph_vs_torch"}),
        (mix_rows, {"graph_vs_torch", "row_vs_batch"}),
        (drop_lengths, {"graph_vs_torch", "padded_vs_alone", "streamed_vs_whole"}),
        (drop_the_state, STATE_AND_ANSWER),
        (swap_the_state, STATE_AND_ANSWER),
        (give_nan, {"graph_vs_torch", "row_vs_batch", "padded_vs_alone", "streamed_vs_whole"}),
    ],
)
def test_each_check_notices_its_break(break_it: Callable[[onnx.ModelProto], None], failed: set[str]) -> None:
    network = forecast(LSTM, DENSE)
    model = write_graph(network)
    break_it(model)
    onnx.checker.check_model(model)
    with pytest.raises(VerificationFailed) as failure:
        verify(network, model.SerializeToString(), 0)
    assert set(failure.value.failed) == failed
    assert all(finding.error > 1e-4 for finding in failure.value.findings)


class ReadsThePadding(Network):
    """Wrong in just the way its graph is wrong: torch and graph agree."""

    def forward(self, inputs: Any) -> dict[str, torch.Tensor]:
        full = torch.full_like(inputs["lengths"], inputs["history"].shape[1])
        return super().forward({**inputs, "lengths": full})


class MixesRows(Network):
    """Likewise, for rows that see one another."""

    def forward(self, inputs: Any) -> dict[str, torch.Tensor]:
        outputs = super().forward(inputs)
        return {**outputs, "forecast": 2 * outputs["forecast"] - outputs["forecast"].mean(0, keepdim=True)}


class DropsTheState(Network):
    """Likewise, for a network that starts anew with every piece."""

    def forward(self, inputs: Any) -> dict[str, torch.Tensor]:
        zeros = {part.input: torch.zeros_like(inputs[part.input]) for part in self.state}
        return super().forward({**inputs, **zeros})


@pytest.mark.parametrize(
    ("network_class", "break_it", "failed"),
    [
        (ReadsThePadding, drop_lengths, {"padded_vs_alone", "streamed_vs_whole"}),
        (MixesRows, mix_rows, {"row_vs_batch"}),
        (DropsTheState, drop_the_state, {"streamed_vs_whole"}),
    ],
)
def test_a_graph_may_equal_a_wrong_network_and_still_be_refused(
    network_class: type[Network], break_it: Callable[[onnx.ModelProto], None], failed: set[str]
) -> None:
    torch.manual_seed(0)
    network = network_class(ForecastSpec(layers=(LSTM, DENSE)))
    model = write_graph(network)
    break_it(model)
    with pytest.raises(VerificationFailed) as failure:
        verify(network, model.SerializeToString(), 0)
    assert set(failure.value.failed) == failed


def test_the_message_names_the_check_the_output_and_the_lengths() -> None:
    network = forecast(LSTM, DENSE)
    model = write_graph(network)
    mix_rows(model)
    with pytest.raises(VerificationFailed, match=r'row_vs_batch: error \S+ at output "forecast", batch \d, lengths \[1, '):
        verify(network, model.SerializeToString(), 0)


def test_a_graph_frozen_to_one_batch_size_is_refused_with_the_shapes() -> None:
    network = forecast(LSTM, DENSE)
    model = write_graph(network)
    for constant in model.graph.initializer:
        if constant.name == node(model, "answer/Reshape").input[1]:
            constant.CopyFrom(numpy_helper.from_array(np.array([1, 1, 1]), constant.name))
    with pytest.raises(VerificationFailed, match=r"graph_vs_torch: error inf at the graph does not run at \{'history': \(2, "):
        verify(network, model.SerializeToString(), 0)


def test_a_graph_with_another_output_is_refused() -> None:
    model = write_graph(forecast(LSTM, DENSE))
    node(model, "forecast/output").output[0] = model.graph.output[0].name = "average"
    with pytest.raises(VerificationFailed, match='output "forecast" is missing') as failure:
        verify(forecast(LSTM, DENSE), model.SerializeToString(), 0)
    assert failure.value.findings[0].error == math.inf


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(VerificationFailed, match="load: "):
        verify(forecast(LSTM, DENSE), b"nonsense", 0)


def test_the_tolerance_is_the_callers() -> None:
    network = forecast(LSTM, DENSE)
    graph = write_graph(network).SerializeToString()
    with pytest.raises(VerificationFailed, match="tolerance 0"):
        verify(network, graph, 0, tolerance=0.0)


def deep_relu(gain: float) -> Network:
    """Four relu LSTMs over 60 steps, as much copied code has them; larger weights amplify every rounding."""
    torch.manual_seed(0)
    layer = {"type": "lstm", "units": 50, "activation": "relu", "return_sequences": True}
    layers = (layer, layer, layer, {**layer, "return_sequences": False}, {"type": "dense", "units": 1})
    network = Network(TensorSpec(layers=layers, input=TensorInput(shape=(60, 1))))
    for stacked in network.stack:
        for weight in stacked.weights:
            weight.write(weight.read().detach() * gain)
    return network.eval()


def cancelling() -> Network:
    """Its answer is a small difference of large numbers, so that float32 keeps few digits of it."""
    torch.manual_seed(0)
    layers = ({"type": "lstm", "units": 64}, {"type": "dense", "units": 2}, {"type": "dense", "units": 1})
    network = Network(TensorSpec(layers=layers, input=TensorInput(shape=("time", 8))))
    _, large, difference = network.stack
    kernel = 1e4 * torch.randn(64, 1)
    large.load_keras_weights([torch.cat([kernel, 1.00001 * kernel], 1).numpy(), np.zeros(2)])
    difference.load_keras_weights([np.array([[1.0], [-1.0]]), np.zeros(1)])
    return network.eval()


def test_the_tolerance_follows_the_networks_own_rounding() -> None:
    network = cancelling()
    verification = verify(network, write_graph(network).SerializeToString(), 0)
    assert verification.graph_vs_torch > 1e-4
    assert verification.graph_vs_torch < 8 * verification.rounding
    assert verification.rows == ("rows from N(0, 1)", "rows between 0 and 1")


def test_scales_at_which_the_network_is_mostly_rounding_are_left_out_and_named() -> None:
    network = deep_relu(2.5)
    verification = verify(network, write_graph(network).SerializeToString(), 0)
    assert verification.rows == ("rows between 0 and 1",)
    (note,) = verification.notes
    assert "amplifies its own rounding at rows from N(0, 1)" in note


def test_a_broken_graph_of_such_a_network_is_still_refused() -> None:
    network = deep_relu(2.5)
    model = write_graph(network)
    for constant in model.graph.initializer:
        if constant.name == "dense_4/kernel":
            constant.CopyFrom(numpy_helper.from_array(1.05 * numpy_helper.to_array(constant), constant.name))
    with pytest.raises(VerificationFailed, match=r"graph_vs_torch: .*rows between 0 and 1"):
        verify(network, model.SerializeToString(), 0)


def test_a_network_that_overflows_by_itself_is_called_that() -> None:
    network = deep_relu(1e6)
    with pytest.raises(NetworkUndetermined, match="overflows by itself at rows from N"):
        verify(network, write_graph(network).SerializeToString(), 0)


def test_rows_of_the_caller_are_verified_at_first() -> None:
    network = deep_relu(1.0)
    graph = write_graph(network).SerializeToString()
    rows = [{"input": np.full((1, 60, 1), value, np.float32)} for value in (0.1, 0.2)]
    assert verify(network, graph, 0, examples=rows).rows[0] == "the example's rows"


def test_rows_of_the_caller_may_differ_in_length() -> None:
    network = forecast(LSTM, DENSE)
    rows = [{"history": np.full((1, n, 1), 100, np.float32), "lengths": np.array([n])} for n in (9, 4)]
    verification = verify(network, write_graph(network).SerializeToString(), 0, examples=rows)
    assert verification.rows[0] == "the example's rows"
    assert verification.padded_vs_alone < 1e-5
