"""pad_sequences and normalization against Keras's own, in torch and in the graph."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from training.export.graph import write_graph
from training.export.verify import verify
from training.importers.keras.layers import from_keras_config
from training.layers.preprocessing import Normalization
from training.layers.registry import LayerError
from training.network.heads.tensor import TensorInput, TensorSpec
from training.network.network import Network

ROWS = ([3, 1, 2], [4, 5, 6, 7, 8, 9], [2], [9, 8, 7, 6])


@pytest.fixture(scope="module")
def keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras", reason="Keras is not installed")


def padded(rows: tuple[list[int], ...]) -> dict[str, torch.Tensor]:
    tokens = torch.full((len(rows), 8), 9)  # garbage behind each row
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
    return {"tokens": tokens, "lengths": torch.tensor([len(row) for row in rows])}


@pytest.mark.parametrize("padding", ["pre", "post"])
@pytest.mark.parametrize("truncating", ["pre", "post"])
@pytest.mark.parametrize("value", [0, 1])
def test_rows_are_padded_and_cut_as_keras_does(padding: str, truncating: str, value: int, keras: Any) -> None:
    options = {"maxlen": 4, "padding": padding, "truncating": truncating, "value": value}
    # One-hot vectors, flattened: the answer shows every id at its place.
    layers: tuple[dict[str, Any], ...] = (
        {"type": "pad_sequences", **options},
        {"type": "embedding", "output_dim": 10, "weights": [np.eye(10).tolist()]},
    )
    spec = TensorSpec(layers=layers, input=TensorInput(name="tokens", kind="tokens", shape=("time",), vocabulary_size=10))
    network = Network(spec).eval()
    inputs = padded(ROWS)
    expected = keras.utils.pad_sequences(ROWS, **options)
    found = network(inputs)["output"].argmax(-1).numpy()
    np.testing.assert_array_equal(found, expected)
    payload = write_graph(network).SerializeToString()
    session = onnxruntime.InferenceSession(payload, providers=["CPUExecutionProvider"])
    (answer,) = session.run(["output"], {name: tensor.numpy() for name, tensor in inputs.items()})
    np.testing.assert_array_equal(answer.argmax(-1), expected)
    verify(network, payload, seed=1)


def test_padding_is_for_the_ids_of_the_input() -> None:
    layers: tuple[dict[str, Any], ...] = ({"type": "pad_sequences", "maxlen": 4},)
    with pytest.raises(LayerError, match=r"layers\[0\] \(pad_sequences\): is for token ids, as the first layer"):
        Network(TensorSpec(layers=layers, input=TensorInput(shape=("time", 2))))


def test_a_normalization_adapts_as_keras_does(keras: Any) -> None:
    values = np.random.default_rng(1).normal(5, [1, 30, 0.01], (40, 3)).astype(np.float32)
    oracle = keras.layers.Normalization()
    oracle.adapt(values)
    layers: tuple[dict[str, Any], ...] = ({"type": "normalization"},)
    network = Network(TensorSpec(layers=layers, input=TensorInput(shape=(3,)))).eval()
    with pytest.raises(LayerError, match='option "mean": is neither given nor fitted'):
        write_graph(network)
    layer = network.layers[0]
    assert isinstance(layer, Normalization)
    layer.adapt(torch.from_numpy(values))
    expected = torch.as_tensor(oracle(values)).detach().numpy()
    np.testing.assert_allclose(network({"input": torch.from_numpy(values)})["output"].numpy(), expected, atol=1e-4)
    assert (network.num_parameters, network.num_fixed_parameters) == (0, oracle.count_params())
    session = onnxruntime.InferenceSession(write_graph(network).SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["output"], {"input": values})[0], expected, atol=1e-4)


def test_an_adapted_normalization_is_read_from_keras(keras: Any) -> None:
    values = np.random.default_rng(1).normal(5, 2, (40, 3)).astype(np.float32)
    oracle = keras.layers.Normalization()
    oracle.adapt(values)
    table = from_keras_config({"class_name": "Normalization", "config": oracle.get_config()})
    network = Network(TensorSpec(layers=(table,), input=TensorInput(shape=(3,)))).eval()
    layer = network.layers[0]
    assert isinstance(layer, Normalization)
    layer.load_keras_weights([weight.value.detach().numpy() for weight in oracle.weights])
    assert layer.is_fitted
    expected = torch.as_tensor(oracle(values)).detach().numpy()
    np.testing.assert_allclose(network({"input": torch.from_numpy(values)})["output"].numpy(), expected, atol=1e-5)


def test_given_statistics_are_taken_and_inverted(keras: Any) -> None:
    values = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)
    for invert in (False, True):
        options: dict[str, Any] = {"mean": [1.0, 2.0], "variance": [4.0, 9.0], "invert": invert}
        layers = ({"type": "normalization", **options},)
        network = Network(TensorSpec(layers=layers, input=TensorInput(shape=(2,)))).eval()
        expected = torch.as_tensor(keras.layers.Normalization(**options)(values)).detach().numpy()
        np.testing.assert_allclose(network({"input": torch.from_numpy(values)})["output"].numpy(), expected, rtol=1e-6)
