"""Keras itself, on torch, and what tests need to build and save its models. Skips where Keras is not installed."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

os.environ["KERAS_BACKEND"] = "torch"  # read when Keras is imported
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    keras = pytest.importorskip("keras")

Array = NDArray[Any]
# Keras warns of layers that end a mask, and of its own use of numpy.
QUIET = [
    pytest.mark.filterwarnings("ignore:Layer '.*' .of type:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def sequential(shape: tuple[int | None, ...], *layers: Any, batch_size: int | None = None, seed: int = 0) -> Any:
    """A Sequential model with random weights, biases and statistics too."""
    return randomized(keras.Sequential([keras.Input(shape, batch_size=batch_size), *layers]), seed)


def functional(shape: tuple[int | None, ...], *layers: Any, name: str | None = None, seed: int = 0) -> Any:
    """The same as a functional model, from the input called `name`."""
    source = keras.Input(shape, name=name)
    result = source
    for layer in layers:
        result = layer(result)
    return randomized(keras.Model(source, result), seed)


def randomized(model: Any, seed: int = 0) -> Any:
    """Other weights than the initial ones, whose zeros and ones hide much; variances stay above zero."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        values = rng.uniform(-0.6, 0.6, variable.shape)
        variable.assign(np.abs(values) + 0.2 if variable.name.endswith("variance") else values)
    return model


def saved(model: Any, path: Path) -> Path:
    """Save as .keras or .h5, as the name says."""
    model.save(path)
    return path


def predicted(model: Any, rows: Array) -> Any:
    """`model.predict` of the rows, as one array or one per output."""
    answer = model.predict(rows, verbose=0)
    return [np.asarray(part) for part in answer] if isinstance(answer, list | tuple) else np.asarray(answer)


def saved_by_keras_2(model: Any, path: Path, *, is_functional: bool = False, version: str = "2.15.0") -> Path:
    """The same model as tf.keras 2 wrote it to an .h5 file: its words for the input, the dtypes and the weights' names."""
    layers = [_in_words_of_keras_2(layer) for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    shape = list(model.input_shape)
    if is_functional:
        names = ["input_1", *(layer["config"]["name"] for layer in layers)]
        first = {
            "class_name": "InputLayer",
            "config": {"batch_input_shape": shape, "dtype": "float32", "sparse": False, "ragged": False, "name": "input_1"},
        }
        nodes: list[dict[str, Any]] = [{**first, "name": "input_1", "inbound_nodes": []}]
        nodes += [
            {**layer, "name": layer["config"]["name"], "inbound_nodes": [[[before, 0, 0, {}]]]}
            for before, layer in zip(names, layers, strict=False)
        ]
        config: dict[str, Any] = {
            "name": "model",
            "layers": nodes,
            "input_layers": [["input_1", 0, 0]],
            "output_layers": [[names[-1], 0, 0]],
        }
        saved_model = {"class_name": "Functional", "config": config}
    else:
        layers[0]["config"]["batch_input_shape"] = shape
        saved_model = {"class_name": "Sequential", "config": {"name": "sequential", "layers": layers}}
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(saved_model)
        file.attrs["keras_version"], file.attrs["backend"] = version, "tensorflow"
        root = file.create_group("model_weights")
        root.attrs["keras_version"], root.attrs["backend"] = version.encode(), b"tensorflow"
        named = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
        root.attrs["layer_names"] = [layer.name.encode() for layer in named]
        for layer in named:
            group = root.create_group(layer.name)
            weights = [*layer.trainable_weights, *layer.non_trainable_weights]
            names = [f"{weight.path.removeprefix(f'{model.name}/')}:0" for weight in weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, weights, strict=True):
                group.create_dataset(name, data=np.asarray(weight.value.detach().cpu()))
    return path


def _in_words_of_keras_2(layer: Any) -> dict[str, Any]:
    entry: dict[str, Any] = _older(keras.saving.serialize_keras_object(layer))
    return entry


def _older(value: Any) -> Any:
    if isinstance(value, list):
        return [_older(part) for part in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") == "DTypePolicy":
        return "float32"
    new = ("module", "registered_name", "build_config", "shared_object_id", "zero_output_for_mask", "seed", "quantization_config")
    older = {key: _older(part) for key, part in value.items() if key not in new}
    if "recurrent_dropout" in older:
        older |= {"implementation": 2, "time_major": False}
    return older
