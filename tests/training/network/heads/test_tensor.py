"""The head of plain stacks: its input, the names of its outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.training.network.networks import EMBEDDING, LSTM
from training.layers.registry import LayerError
from training.network.heads.tensor import TensorSpec
from training.network.network import Network


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "Input should be a valid dictionary or instance of TensorInput"),
        ({"shape": ()}, "at least 1 item"),
        ({"shape": (3, "time")}, 'only the first axis may be "time"'),
        ({"shape": ("time",)}, "floats with a time axis need features"),
        ({"shape": (3, 2), "kind": "tokens"}, "token ids have one axis"),
        ({"shape": (3, 2), "vocabulary_size": 4}, 'option "vocabulary_size" belongs to kind "tokens"'),
    ],
)
def test_the_input_of_task_tensor_is_checked(given: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TensorSpec(layers=[LSTM], input=given)  # type: ignore[arg-type]


def test_task_tensor_names_its_inputs_and_outputs() -> None:
    layers = [{**LSTM, "return_state": True, "name": "reader"}]
    network = Network(TensorSpec(layers=layers, input={"name": "x", "shape": ("time", 2)}, output="y"))  # type: ignore[arg-type]
    outputs = network({"x": torch.randn(3, 4, 2), "lengths": torch.tensor([4, 1, 2])})
    assert {name: tuple(values.shape) for name, values in outputs.items()} == {"y": (3, 5), "y_hidden": (3, 5), "y_cell": (3, 5)}
    assert [part.input for part in network.state] == ["reader_hidden", "reader_cell"]
    with pytest.raises(LayerError, match=r'layers\[0\] \(embedding\): option "input_dim": is missing: how many ids'):
        Network(TensorSpec(layers=[EMBEDDING], input={"kind": "tokens", "shape": (4,)}))  # type: ignore[arg-type]
