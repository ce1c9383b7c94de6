"""The layers of a saved Keras model in the order in which they follow one another, from its input to its outputs.

Reads the model's configuration alone, of Keras 2 or 3, and no file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.importers.keras.entry import Entry, KerasFileError, name_of, place_of
from training.importers.keras.layers import hands_mask_on

_MODELS = ("Sequential", "Functional", "Model")
# How Keras 3 writes the masks of a functional model: as operations beside the layers, NotEqual or Any of NotEqual.
_MASK_OPERATIONS = ("NotEqual", "Any")


class NotAChain(KerasFileError):
    """The layers do not follow one another: they branch, join, are shared, or the model has several inputs or outputs."""


@dataclass(frozen=True)
class StoredInput:
    """The input of the model: `shape` without the batch, None where an axis is open."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Chain:
    """The layers in the order in which they follow one another, and what each is called in a .keras archive."""

    input: StoredInput
    entries: tuple[Entry, ...]
    groups: tuple[str, ...]
    outputs: tuple[int, ...]


def read_chain(model: Any) -> Chain:
    """The layers of a Sequential or a linear functional model."""
    kind, config = require_layers(model)
    if kind == "Sequential":
        entries: Any = config["layers"] if isinstance(config, Mapping) else config
        given = config.get("build_input_shape") if isinstance(config, Mapping) else None
        inputs = [entry for entry in entries if entry.get("class_name") == "InputLayer"]
        layers = [entry for entry in entries if entry.get("class_name") != "InputLayer"]
        groups = groups_of(entries)
        outputs: tuple[int, ...] = ()
    else:
        layers, inputs, outputs = _follow(config)
        groups = groups_of(config["layers"])
        given = None
    if not layers:
        raise KerasFileError("the model has no layers")
    for layer in layers:
        if layer["class_name"] in _MODELS:
            raise NotAChain(f"{place_of(layer)} is a model inside the model: that is not supported, list its layers instead")
    return Chain(read_input(inputs, layers[0], given), tuple(layers), tuple(groups[name_of(layer)] for layer in layers), outputs)


def is_model(entry: Entry) -> bool:
    """Whether a layer is a model."""
    return entry["class_name"] in _MODELS


def require_layers(model: Any) -> tuple[str, Any]:
    """Sequential or Functional, and the model's configuration."""
    kind = str(model.get("class_name", "")) if isinstance(model, Mapping) else ""
    if kind not in _MODELS:
        raise KerasFileError(
            f'a model of the class "{kind}" cannot be imported: its code is not in the file; Sequential and functional models can'
        )
    config = model.get("config")
    entries = config.get("layers") if isinstance(config, Mapping) else config
    is_listed = isinstance(entries, list) and all(
        isinstance(entry, Mapping) and isinstance(entry.get("config"), Mapping) and "class_name" in entry for entry in entries
    )
    if not is_listed or not (isinstance(config, Mapping) or kind == "Sequential"):
        raise KerasFileError(f'the configuration of the {kind} model lists no layers ("class_name" and "config" of each)')
    return kind, config


def groups_of(entries: Sequence[Entry]) -> dict[str, str]:
    """Layer name → its group in a .keras archive: the class and a number, lstm, lstm_1, in the order of the model."""
    seen: Counter[str] = Counter()
    groups = {}
    for entry in entries:
        kind = snake_case(str(entry["class_name"]))
        groups[name_of(entry)] = f"{kind}_{seen[kind]}" if seen[kind] else kind
        seen[kind] += 1
    return groups


def _follow(config: Entry) -> tuple[list[Entry], list[Entry], tuple[int, ...]]:
    """The layers of a functional model from its input to its output. Raises KerasFileError where they branch."""
    by_name = {name_of(entry): entry for entry in config["layers"]}
    inputs, outputs = list_tensors(config.get("input_layers")), list_tensors(config.get("output_layers"))
    if len(inputs) != 1:
        listed = ", ".join(f'"{name}"' for name, _, _ in inputs)
        raise NotAChain(f"several inputs are not supported, the model has {len(inputs)}: {listed}")
    if not outputs:
        raise KerasFileError("the model names no output")
    if len({name for name, _, _ in outputs}) > 1:
        listed = ", ".join(dict.fromkeys(f'"{name}"' for name, _, _ in outputs))
        raise NotAChain(f"outputs of several layers are not supported, the model has those of {listed}")

    masks = {name: entry for name, entry in by_name.items() if entry["class_name"] in _MASK_OPERATIONS}
    chain: list[Entry] = []
    name, last = outputs[0][0], outputs[0][0]
    while name != inputs[0][0]:
        if name not in by_name:
            raise KerasFileError(f'layer "{name}" is used and not in the model')
        entry = by_name[name]
        if entry in chain:
            raise KerasFileError(f'layer "{name}" is fed by itself')
        source, index = _source_of(entry, masks)
        if index != 0:
            raise NotAChain(f'{place_of(entry)} reads result {index} of "{source}": only the first result can be read')
        chain.insert(0, entry)
        name = source
    _require_own_masks(chain, masks)
    others = [entry for name, entry in by_name.items() if name not in masks]
    readers = Counter(source for entry in others for source in _sources_of(entry) if source not in masks)
    for source, count in readers.items():
        if count > 1:
            readers_of = [name_of(entry) for entry in others if source in _sources_of(entry)]
            listed = " and ".join(f'"{reader}"' for reader in dict.fromkeys(readers_of))
            raise NotAChain(f'layer "{source}" is read more than once, by {listed}: branches are not supported')
    if last in readers:
        raise NotAChain(f'the output of layer "{last}" is also read by another layer: branches are not supported')
    return chain, [by_name[inputs[0][0]]], tuple(index for _, _, index in outputs)


def _require_own_masks(chain: Sequence[Entry], masks: Mapping[str, Entry]) -> None:
    """Pass the masks that layers hand on by themselves, which Keras 3 writes down like any other. Raises KerasFileError."""
    mask: tuple[str, float, bool] | None = None
    for entry in chain:
        given = _mask_given(entry, masks)
        # Softmax lays the mask of the steps over the features.
        is_own = mask is not None and entry["class_name"] != "Softmax"
        if given is not None and not (is_own and _mask_of(given, masks) == mask):
            raise NotAChain(
                f'{place_of(entry)} is called with "mask": that is not supported, but for the mask of the layers before'
            )
        kind, config = entry["class_name"], entry["config"]
        if kind == "Masking":
            mask = (_source_of(entry, masks)[0], float(config.get("mask_value", 0.0)), True)
        elif kind == "Embedding":
            mask = (_source_of(entry, masks)[0], 0.0, False) if config.get("mask_zero") else None
        elif not hands_mask_on(kind):
            mask = None


def _mask_given(entry: Entry, masks: Mapping[str, Entry]) -> str | None:
    """The operation whose result a layer is called with as its mask."""
    for node in entry.get("inbound_nodes") or []:
        for name, _ in _references(_call_options(node).get("mask")):
            if name in masks:
                return name
    return None


def _mask_of(name: str, masks: Mapping[str, Entry]) -> tuple[str, float, bool] | None:
    """What a mask was made from: the tensor, the value that is masked, and whether it is looked for in all features."""
    entry, is_any = masks[name], masks[name]["class_name"] == "Any"
    if is_any:
        inner = [source for source in _sources_of(entry) if source in masks]
        if len(inner) != 1 or entry["config"].get("axis") != -1 or entry["config"].get("keepdims"):
            return None
        entry = masks[inner[0]]
    arguments = [part for node in entry.get("inbound_nodes") or [] if isinstance(node, Mapping) for part in node.get("args", [])]
    sources = _sources_of(entry)
    if entry["class_name"] != "NotEqual" or len(arguments) != 2 or len(sources) != 1 or type(arguments[1]) not in (int, float):
        return None
    return sources[0], float(arguments[1]), is_any


def _source_of(entry: Entry, masks: Mapping[str, Entry]) -> tuple[str, int]:
    """The one tensor that a layer reads beside its mask: the layer it comes from, and which of that layer's results it is."""
    nodes = entry.get("inbound_nodes") or []
    if len(nodes) != 1:
        raise NotAChain(f"{place_of(entry)} is used {len(nodes)} times: shared layers are not supported")
    if str(entry["class_name"]) == "InputLayer":
        raise KerasFileError(f"{place_of(entry)} is not the model's input")
    is_masked = _mask_given(entry, masks) is not None
    found = [(name, index) for name, index in _references(nodes[0]) if not (is_masked and name in masks)]
    if len(found) != 1:
        listed = " and ".join(f'"{name}"' for name, _ in dict.fromkeys(found))
        raise NotAChain(f"{place_of(entry)} reads {len(found)} tensors, {listed}: branches are not supported")
    for option, value in _call_options(nodes[0]).items():
        if value not in (None, False) and not (option == "mask" and is_masked):
            raise NotAChain(f'{place_of(entry)} is called with "{option}": that is not supported')
    return found[0]


def _sources_of(entry: Entry) -> list[str]:
    return [name for node in entry.get("inbound_nodes") or [] for name, _ in _references(node)]


def _references(value: Any) -> Iterator[tuple[str, int]]:
    """Every tensor named in a node: Keras 3 writes {"keras_history": [layer, node, index]}, Keras 2 [layer, node, index, {}]."""
    if isinstance(value, Mapping):
        if value.get("class_name") == "__keras_tensor__":
            name, _, index = value["config"]["keras_history"]
            yield str(name), int(index)
        else:
            for part in value.values():
                yield from _references(part)
    elif isinstance(value, list):
        if _is_keras2_reference(value):
            yield value[0], value[2]
            yield from _references(value[3] if len(value) > 3 else {})
        else:
            for part in value:
                yield from _references(part)


def _is_keras2_reference(value: list[Any]) -> bool:
    return (
        len(value) in (3, 4)
        and isinstance(value[0], str)
        and type(value[1]) is int
        and type(value[2]) is int
        and value[0] != "_CONSTANT_VALUE"
        and (len(value) == 3 or isinstance(value[3], Mapping))
    )


def _call_options(node: Any) -> Entry:
    """What a layer was called with beside its input."""
    if isinstance(node, Mapping):
        options: Entry = node.get("kwargs") or {}
        return options
    first = node[0] if node and isinstance(node[0], list) else node
    return first[3] if len(first) > 3 else {}


def list_tensors(value: Any) -> list[tuple[str, int, int]]:
    """The model's inputs or outputs: one [layer, node, index], a list of them, or a table of them."""
    if isinstance(value, Mapping):
        return [tensor for part in value.values() for tensor in list_tensors(part)]
    if not isinstance(value, list):
        return []
    if len(value) == 3 and isinstance(value[0], str):
        return [(value[0], int(value[1]), int(value[2]))]
    return [tensor for part in value for tensor in list_tensors(part)]


def read_input(inputs: Sequence[Entry], first: Entry, given: Any) -> StoredInput:
    """From the InputLayer; older files say it in the first layer, or in the model itself (`given`)."""
    config = inputs[0]["config"] if inputs else first["config"]
    shape = config.get("batch_shape") or config.get("batch_input_shape") or given
    if not isinstance(shape, list) or not shape:
        raise KerasFileError("the model was never built, its input has no shape: call it once, or give it an Input")
    for option in ("sparse", "ragged"):
        if inputs and config.get(option):
            raise KerasFileError(f'layer "{config.get("name")}" (InputLayer): option "{option}" is not supported')
    dtype = config.get("dtype", "float32")
    if isinstance(dtype, Mapping):
        dtype = dtype.get("config", {}).get("name", "float32")
    name = str(config.get("name", "input")) if inputs else "input"
    return StoredInput(name, tuple(None if axis is None else int(axis) for axis in shape[1:]), str(dtype))


def snake_case(name: str) -> str:
    """As Keras names groups: LSTM, lstm; TimeDistributed, time_distributed; Conv1D, conv1d."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
