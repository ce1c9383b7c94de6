"""The int8 form: near the graph it came from, a row in a batch is the row alone, and what stays fp32 is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from training.export.graph import write_graph
from training.export.int8_graph import WEIGHT_LIMIT, NotQuantizable, find_ranged_tensors, quantize_graph, with_outputs
from training.export.quantize import measure_ranges
from training.export.verify import verify
from training.network.heads.classify import ClassifySpec
from training.network.heads.forecast import ForecastSpec
from training.network.heads.tensor import TensorSpec
from training.network.network import Network
from training.scoring.evaluate import Graph

Tensors = dict[str, NDArray[Any]]
LSTM: dict[str, Any] = {"type": "lstm", "units": 10}
SEQUENCES: dict[str, Any] = {**LSTM, "return_sequences": True}
BOTH_WAYS: dict[str, Any] = {"type": "bidirectional", "layer": SEQUENCES}
DENSE: dict[str, Any] = {"type": "dense"}
EMBEDDING: dict[str, Any] = {"type": "embedding", "output_dim": 6}
VOCABULARY = 1000


def forecast(*layers: dict[str, Any], **options: Any) -> Network:
    torch.manual_seed(0)
    spec = ForecastSpec(layers=layers, **options)
    network = Network(spec)
    network.set_statistics(torch.randn(200, spec.num_features))
    return network


def classify(*layers: dict[str, Any]) -> Network:
    torch.manual_seed(0)
    return Network(ClassifySpec(layers=layers, labels=("no", "yes"), vocabulary_size=VOCABULARY))


def vectors(*layers: dict[str, Any]) -> Network:
    torch.manual_seed(0)
    return Network(TensorSpec(layers=layers, input={"shape": ("time", 300)}))  # type: ignore[arg-type]


NETWORKS: dict[str, tuple[Callable[[], Network], int]] = {
    "one layer": (lambda: forecast(LSTM, DENSE), 1),
    "two layers, one behind the other": (lambda: forecast(SEQUENCES, LSTM, DENSE, num_features=3), 2),
    "backwards, in front of another": (lambda: forecast({**SEQUENCES, "go_backwards": True}, LSTM, DENSE), 2),
    "three layers, two directions": (lambda: forecast(BOTH_WAYS, {"type": "dropout", "rate": 0.1}, BOTH_WAYS, LSTM, DENSE), 3),
    "hard sigmoid": (lambda: forecast({**LSTM, "recurrent_activation": "hard_sigmoid"}, DENSE), 1),
    "window scaling, folded days": (
        lambda: forecast(
            LSTM, DENSE, scaling={"kind": "window", "transform": "log"}, step=4, seasonal_lag=8, quantiles=(0.1, 0.5)
        ),
        1,
    ),
    "texts": (lambda: classify(EMBEDDING, BOTH_WAYS, {"type": "concat_pooling"}, DENSE), 2),
    "texts, masked": (lambda: classify({**EMBEDDING, "mask_zero": True}, LSTM, DENSE), 2),
    "a table that two layers read": (
        lambda: classify(EMBEDDING, {"type": "conv1d", "filters": 8, "kernel_size": 3}, LSTM, DENSE),
        2,
    ),
    "a large dense layer on every step": (lambda: vectors({**DENSE, "units": 256}, SEQUENCES), 2),
    "with a GRU": (lambda: forecast(SEQUENCES, {"type": "gru", "units": 5}, DENSE), 1),
}


def rows_of(network: Network, batch_size: int, seed: int = 0) -> Tensors:
    random = np.random.default_rng(seed)
    num_steps = 40
    lengths = random.integers(16, num_steps + 1, batch_size)
    name, source = network.head.input_name, network.head.source
    if source.is_tokens:
        return {name: random.integers(0, VOCABULARY, (batch_size, num_steps)), "lengths": lengths}
    return {name: random.normal(size=(batch_size, num_steps, source.features)).astype(np.float32), "lengths": lengths}


def quantized(network: Network) -> tuple[bytes, bytes, tuple[str, ...], tuple[str, ...]]:
    payload = write_graph(network).SerializeToString()
    int8 = quantize_graph(payload, measure_ranges(payload, [rows_of(network, 64, seed) for seed in range(3)]))
    return payload, int8.payload, int8.quantized, int8.kept


@pytest.mark.parametrize("name", NETWORKS)
def test_the_int8_graph_is_near_and_passes_the_other_checks(name: str) -> None:
    build, num_quantized = NETWORKS[name]
    network = build()
    payload, int8, done, _ = quantized(network)
    assert len(done) == num_quantized
    verify(network, int8, 0, original=payload)  # raises where a row depends on other rows, its padding or its pieces
    rows = rows_of(network, 32, 7)
    for output, expected in Graph(payload).run(rows).items():
        found = Graph(int8).run(rows)[output]
        assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max(), output


def test_a_row_is_the_same_to_the_bit_alone_and_beside_rows_of_another_scale() -> None:
    network = forecast(SEQUENCES, LSTM, DENSE)
    _, int8, _, _ = quantized(network)
    names = [
        name for node in onnx.load_from_string(int8).graph.node if "LSTM" in node.op_type for name in node.output[1:] if name
    ]
    graph = Graph(with_outputs(int8, names))
    one = rows_of(network, 1)
    others = rows_of(network, 5, 3)
    batch = {"history": np.concatenate([one["history"], 1e4 * others["history"]])}
    alone, beside = graph.run(one), graph.run({**batch, "lengths": np.concatenate([one["lengths"], others["lengths"]])})
    for name in names:
        assert np.array_equal(alone[name][:, 0], beside[name][:, 0]), name


def test_weights_have_seven_bits() -> None:
    _, int8, _, _ = quantized(forecast(LSTM, DENSE))
    kernels = [
        onnx.numpy_helper.to_array(entry)
        for entry in onnx.load_from_string(int8).graph.initializer
        if "kernel_int8" in entry.name
    ]
    assert len(kernels) == 2
    assert {int(np.abs(kernel.astype(int)).max()) for kernel in kernels} == {WEIGHT_LIMIT}


def test_the_int8_graph_is_smaller() -> None:
    payload, int8, _, _ = quantized(classify({**EMBEDDING, "output_dim": 64}, LSTM, DENSE))
    assert len(int8) < 0.35 * len(payload)


def test_the_output_of_an_lstm_needs_no_range() -> None:
    two = write_graph(forecast(SEQUENCES, LSTM, DENSE)).SerializeToString()
    assert [tensor.values for tensor in find_ranged_tensors(two)] == ["lstm_0/Transpose"]
    assert find_ranged_tensors(write_graph(classify(EMBEDDING, LSTM, DENSE)).SerializeToString()) == ()


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        ({"type": "gru", "units": 8}, '"gru_0" stays fp32: onnxruntime has no quantised GRU, only an LSTM'),
        ({"type": "simple_rnn", "units": 8}, '"simple_rnn_0" stays fp32: onnxruntime has no quantised RNN, only an LSTM'),
        (
            {**LSTM, "activation": "relu"},
            '"lstm_0" stays fp32: int8 needs hidden states between -1 and 1, so tanh; it has Relu, Sigmoid',
        ),
        ({**LSTM, "activation": "gelu"}, "the graph has no LSTM"),
        ({"type": "flatten"}, "the graph has no LSTM"),
    ],
    ids=["gru", "simple_rnn", "relu", "loop", "none"],
)
def test_what_cannot_be_int8_is_refused_with_the_reason(layer: dict[str, Any], sentence: str) -> None:
    layers = [layer, {**DENSE, "units": 2}]
    spec = TensorSpec(layers=tuple(layers), input={"shape": (6, 2)}, output="y")  # type: ignore[arg-type]
    with pytest.raises(NotQuantizable) as caught:
        quantize_graph(write_graph(Network(spec)).SerializeToString(), {})
    assert sentence in str(caught.value)


def test_a_layer_that_stays_is_named_beside_one_that_does_not() -> None:
    _, _, done, kept = quantized(forecast(SEQUENCES, {"type": "gru", "units": 5}, DENSE))
    assert done == ("lstm_0",)
    assert kept == ('"gru_1" stays fp32: onnxruntime has no quantised GRU, only an LSTM',)
