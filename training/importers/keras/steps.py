"""The step of a layer that Keras saved: which class runs it, and which layers are refused with a sentence of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from training.importers.keras import attention_steps, merge_steps
from training.importers.keras.entry import Entry, KerasFileError, place_of
from training.importers.keras.masked_tensor import MaskedTensor, Result, plain
from training.importers.keras.operations import find_operation, in_our_words
from training.importers.keras.recipe_steps import LayerStep
from training.importers.keras.step import STEPS, Axes, Step, VersionedLayer
from training.importers.keras.tensor_steps import SoftmaxStep
from training.layers.named import snake_case
from training.layers.registry import LAYERS

FILES = (attention_steps, merge_steps)
"""Imported so that their steps are registered."""
# Ended by a sentence of their own: their code is not in the file, or this is no network over one sequence.
REFUSED = {
    "Lambda": "its code is Python that the file holds only compiled: write it with layers (a sum over steps is "
    "keras.ops.sum(x, axis=1)), or publish the network from torch",
    "ConvLSTM1D": "a convolution inside a recurrent step has no node in ONNX",
    "ConvLSTM2D": "a convolution inside a recurrent step has no node in ONNX",
    "Conv2D": "layers of images are not supported: this serves networks over sequences",
    "Conv3D": "layers of images are not supported: this serves networks over sequences",
    "MaxPooling2D": "layers of images are not supported: this serves networks over sequences",
    "AveragePooling2D": "layers of images are not supported: this serves networks over sequences",
}


def graph_classes() -> tuple[str, ...]:
    """Keras's names of the layers that a graph of calls may have."""
    recipes = [layer.keras_class for layer in LAYERS.values() if layer.keras_class is not None]
    return tuple(dict.fromkeys([*recipes, *STEPS]))


def make_step(stored: VersionedLayer) -> Step:
    """The step of a layer. Raises KerasFileError for a class that is not known, before any weight is looked at."""
    require_float32(stored)
    return _find_step(stored.entry)(stored)


def require_known(entries: Iterable[Entry]) -> None:
    """Raise KerasFileError for a layer of a class that is not known, or is refused."""
    for entry in entries:
        _find_step(entry)


def _find_step(entry: Entry) -> type[Step]:
    kind = str(entry["class_name"])
    if is_operation(entry):
        return OperationStep
    if kind in STEPS:
        return STEPS[kind]
    if kind == "Activation" and entry["config"].get("activation") == "softmax":
        return SoftmaxStep  # over the steps too, where they are the last axis
    if any(layer.keras_class == kind for layer in LAYERS.values()) or kind in ("LeakyReLU", "ELU"):
        return LayerStep
    if kind in REFUSED:
        raise KerasFileError(f"{place_of(entry)} cannot be imported: {REFUSED[kind]}")
    raise KerasFileError(f"{place_of(entry)}: there is no such layer; there are {', '.join(graph_classes())}")


class OperationStep(Step):
    """An operation on tensors, which Keras 3 keeps beside the layers."""

    def build(self, shapes: Sequence[Axes]) -> None:
        found = find_operation(str(self.stored.entry["class_name"]), self.stored.config, kind_of(self.stored.entry))
        if found is None:
            what = self.option("function") or self.stored.entry["class_name"]
            raise self.refuse(f'the operation "{what}" is not supported')
        self.operation, self.options = found
        super().build(shapes)

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        given = {**self.options, **in_our_words(plain(dict(kwargs)))}
        try:
            return MaskedTensor(self.operation(*plain(list(args)), **given))
        except (TypeError, ValueError) as exc:
            raise self.refuse(str(exc)) from exc


def is_operation(entry: Entry) -> bool:
    """Whether an entry is an operation on tensors, and no layer."""
    if entry["class_name"] in ("TFOpLambda", "SlicingOpLambda"):
        return True
    module = str(entry.get("module") or "")
    if module:
        return ".ops." in f".{module}."
    # An .h5 file of Keras 3 says no module: layers have options that every layer has, operations have none of them.
    return "trainable" not in entry["config"] and find_operation(str(entry["class_name"]), {}, kind_of(entry)) is not None


def kind_of(entry: Entry) -> str:
    """The name of an operation."""
    return snake_case(str(entry["class_name"]))


def require_float32(stored: VersionedLayer) -> None:
    """Raise KerasFileError where a layer computes in another type."""
    value = stored.config.get("dtype")
    policy = value.get("config", {}).get("name") if isinstance(value, Mapping) else value
    is_ours = policy in (None, "float32") or (is_operation(stored.entry) or policy in ("int32", "int64", "bool"))
    if not is_ours:
        raise KerasFileError(f'{stored.place}: option "dtype": only "float32" is supported, got {policy!r}')
