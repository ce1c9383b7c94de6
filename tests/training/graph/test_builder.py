"""The ONNX model: its names, its nodes, its declared tensors; that it computes the right numbers is in test_verify."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from training.export.graph import describe_tensors, write_graph
from training.graph.builder import GraphBuilder
from training.network.heads.classify import ClassifySpec
from training.network.heads.forecast import ForecastSpec
from training.network.network import Network
from training.network.spec import NetworkError

DENSE: dict[str, Any] = {"type": "dense"}


def forecast(*layers: dict[str, Any], **options: Any) -> Network:
    torch.manual_seed(0)
    return Network(ForecastSpec(layers=layers, **options))


def text(*layers: dict[str, Any]) -> Network:
    torch.manual_seed(0)
    return Network(ClassifySpec(layers=layers, labels=("no", "yes"), vocabulary_size=9))


STREAMING = forecast({"type": "lstm", "units": 4, "return_sequences": True}, {"type": "gru", "units": 3}, DENSE, horizon=2)
QUANTILES = forecast(
    {"type": "lstm", "units": 4},
    {"type": "recent", "n": 4},
    DENSE,
    num_features=2,
    targets=(1,),
    horizon=3,
    quantiles=(0.1, 0.5, 0.9),
    scaling={"kind": "window", "length": 4, "transform": "log"},
    step=2,
    seasonal_lag=4,
)
TEXT = text(
    {"type": "embedding", "output_dim": 4},
    {"type": "bidirectional", "layer": {"type": "lstm", "units": 4, "return_sequences": True}},
    {"type": "dropout", "rate": 0.3},
    {"type": "concat_pooling"},
    DENSE,
)
NETWORKS = pytest.mark.parametrize("network", [STREAMING, QUANTILES, TEXT], ids=["streaming", "quantiles", "text"])


def declared(values: Any) -> dict[str, tuple[int, list[int | str]]]:
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


@NETWORKS
def test_a_graph_is_valid_and_old_enough_for_the_runtimes_it_is_for(network: Network) -> None:
    model = write_graph(network)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert [(opset.domain, opset.version <= 22) for opset in model.opset_import] == [("", True)]


@NETWORKS
def test_a_graph_declares_the_tensors_that_the_manifest_lists(network: Network) -> None:
    model, tensors = write_graph(network), describe_tensors(network)
    types = {"FP32": onnx.TensorProto.FLOAT, "INT64": onnx.TensorProto.INT64}
    for kind, found in (("inputs", model.graph.input), ("outputs", model.graph.output)):
        assert declared(found) == {tensor["name"]: (types[tensor["datatype"]], tensor["shape"]) for tensor in tensors[kind]}


def test_the_tensors_of_a_forecast_with_state() -> None:
    assert describe_tensors(STREAMING) == {
        "inputs": [
            {"name": "history", "datatype": "FP32", "shape": ["batch", "time", 1]},
            {"name": "lengths", "datatype": "INT64", "shape": ["batch"]},
            {"name": "lstm_0_hidden", "datatype": "FP32", "shape": ["batch", 4]},
            {"name": "lstm_0_cell", "datatype": "FP32", "shape": ["batch", 4]},
            {"name": "gru_1_hidden", "datatype": "FP32", "shape": ["batch", 3]},
        ],
        "outputs": [
            {"name": "forecast", "datatype": "FP32", "shape": ["batch", 2, 1]},
            {"name": "lstm_0_hidden_next", "datatype": "FP32", "shape": ["batch", 4]},
            {"name": "lstm_0_cell_next", "datatype": "FP32", "shape": ["batch", 4]},
            {"name": "gru_1_hidden_next", "datatype": "FP32", "shape": ["batch", 3]},
        ],
        "state": [
            {"input": "lstm_0_hidden", "output": "lstm_0_hidden_next"},
            {"input": "lstm_0_cell", "output": "lstm_0_cell_next"},
            {"input": "gru_1_hidden", "output": "gru_1_hidden_next"},
        ],
    }


def test_the_tensors_of_quantiles_and_of_a_text() -> None:
    assert describe_tensors(QUANTILES)["outputs"] == [
        {"name": "forecast", "datatype": "FP32", "shape": ["batch", 3, 1]},
        {"name": "quantiles", "datatype": "FP32", "shape": ["batch", 3, 1, 3]},
    ]
    assert describe_tensors(TEXT) == {
        "inputs": [
            {"name": "tokens", "datatype": "INT64", "shape": ["batch", "time"]},
            {"name": "lengths", "datatype": "INT64", "shape": ["batch"]},
        ],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": ["batch", 2]}],
        "state": [],
        "cannot_stream": 'its layer "bidirectional_1" reads more of a sequence than each step and what came before it',
    }


@NETWORKS
def test_each_recurrent_layer_is_one_node_with_its_own_name(network: Network) -> None:
    nodes = [node for node in write_graph(network).graph.node if node.op_type in ("LSTM", "GRU", "RNN")]
    recurrent = [name for name in network.layer_names if name.split("_")[0] in ("lstm", "gru", "bidirectional")]
    assert [node.name for node in nodes] == recurrent
    # all read lengths, and all start from the state where there is one
    assert all(node.input[4] for node in nodes)
    assert all(len(node.input) == (5 if not network.can_stream else 7 if node.op_type == "LSTM" else 6) for node in nodes)


@NETWORKS
def test_every_name_tells_its_layer_and_stands_once(network: Network) -> None:
    graph = write_graph(network).graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    outputs = {value.name for value in graph.output}
    places = {"scaling", "step", "seasonal", "answer", *outputs, *network.layer_names}
    assert {name.split("/")[0] for name in names} <= places
    assert {constant.name.split("/")[0] for constant in graph.initializer} <= places


@NETWORKS
def test_the_weights_stand_in_the_graph_once(network: Network) -> None:
    constants = [numpy_helper.to_array(constant) for constant in write_graph(network).graph.initializer]
    num_weights = sum(array.size for array in constants if array.dtype == np.float32)
    # ONNX has two biases per gate where Keras has one, and a handful of constants of the scaling.
    assert network.num_parameters <= num_weights <= network.num_parameters + 2 * 2 * 4 * 4 + 10


def test_a_graph_without_statistics_is_not_written() -> None:
    network = forecast({"type": "lstm", "units": 2}, DENSE, scaling={"kind": "standard"})
    with pytest.raises(NetworkError, match='scaling "standard" has no statistics yet'):
        write_graph(network)
    network.set_statistics(torch.rand(9, 1))
    onnx.checker.check_model(write_graph(network))


def test_equal_constants_and_equal_nodes_stand_once() -> None:
    graph = GraphBuilder("g")
    one = graph.constant(1.0)
    assert graph.constant(1.0) == one
    assert graph.constant(np.array(1.0, np.float32)) == one
    assert graph.constant(1) != one
    assert graph.constant([1.0]) != one
    value = graph.input("x", "FP32", ["batch"])
    with graph.scope("layer_0"):
        first = graph.add("Add", value, one)
        assert graph.add("Add", value, one) == first == "layer_0/Add"
        assert graph.add("Add", one, value) == "layer_0/Add_1"
        assert graph.add("ReduceMax", value, axes=[0], keepdims=0) != graph.add("ReduceMax", value, axes=[0], keepdims=1)


def test_what_has_the_scopes_name_is_the_layers_own_node() -> None:
    graph = GraphBuilder("g")
    value = graph.input("x", "FP32", ["batch", 2])
    with graph.scope("dense_0"):
        assert graph.add("Relu", value, named=True) == "dense_0"
        assert graph.add_many("TopK", value, graph.constant([1]), num_outputs=2) == ("dense_0/TopK:0", "dense_0/TopK:1")
