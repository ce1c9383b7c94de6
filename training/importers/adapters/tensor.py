"""Task `tensor`: nested lists in, nested lists out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from training.importers.adapters.base import (
    LENGTHS,
    SEED,
    ExampleRow,
    Target,
    check_length,
    example_lengths,
    plain_numbers,
    read_numbers,
)
from training.importers.model import ModelImportError, SourceModel
from training.importers.options import ImportOptions
from training.network.heads.tensor import TensorInput, TensorSpec
from training.network.network import Network


class TensorOptions(ImportOptions):
    """Options of task `tensor`: those of every task."""

    task: Literal["tensor"] = "tensor"


class TensorAdapter:
    """The model as it is: its input, and all that its last layer gives."""

    Options: ClassVar[type[ImportOptions]] = TensorOptions

    def __init__(self, model: SourceModel, options: TensorOptions) -> None:
        self.input = tensor_input(model)
        self.target = Target(model, tensor_spec(model))

    def draw_instances(self, network: Network) -> list[Any]:
        rng = np.random.default_rng(SEED)
        model = self.target.model
        rows: list[Any] = []
        for length in example_lengths(network, model.max_length, model.is_open):
            shape = (length, *(int(axis) for axis in self.input.shape[1:]))
            if network.vocabulary_size is None:
                rows.append(rng.uniform(0, 1, shape).round(4).tolist())
            else:
                rows.append(rng.integers(min(1, network.vocabulary_size - 1), network.vocabulary_size, shape).tolist())
        return rows

    def read_instance(self, network: Network, instance: Any, place: str) -> ExampleRow:
        given = self.input
        if isinstance(instance, Mapping):
            if set(instance) != {given.name}:
                raise ModelImportError(f'{place}: expected the input "{given.name}", got {sorted(instance)}')
            instance = instance[given.name]
        values = read_numbers(instance, len(given.shape), place)
        expected = tuple(values.shape[0] if axis == "time" else axis for axis in given.shape)
        if values.shape != expected:
            raise ModelImportError(f"{place}: expected the shape {list(given.shape)}, got {list(values.shape)}")
        if network.vocabulary_size is not None:
            if (values != np.floor(values)).any() or values.min() < 0 or values.max() >= network.vocabulary_size:
                raise ModelImportError(f"{place}: token ids are whole numbers from 0 to {network.vocabulary_size - 1}")
            values = values.astype(np.int64)
        else:
            values = values.astype(np.float32)
        inputs = {given.name: values[None]}
        if given.is_open:
            check_length(len(values), network.min_length, self.target.model.max_length, place)
            inputs[LENGTHS] = np.array([len(values)], np.int64)
        return ExampleRow(inputs)

    def format_prediction(self, network: Network, answer: Mapping[str, NDArray[Any]], row: ExampleRow) -> Any:
        values = {name: plain_numbers(answer[name][0]) for name in network.outputs}
        return values if len(values) > 1 else next(iter(values.values()))

    def manifest_block(self, network: Network) -> dict[str, Any]:
        return {}


def tensor_spec(model: SourceModel) -> TensorSpec:
    """The network of a model as it is."""
    return TensorSpec(layers=model.tables, input=tensor_input(model))


def tensor_input(model: SourceModel) -> TensorInput:
    """The model's input; its first axis is open where rows may differ in length."""
    axes = ("time" if model.is_open else model.input_shape[0], *model.input_shape[1:])
    return TensorInput(name=model.input_name, kind="tokens" if model.has_tokens else "floats", shape=axes)  # type: ignore[arg-type]
