"""Reads what Keras saved, a `.keras` archive or an `.h5` file: the chain of layers, and the weights of each.

Needs neither Keras nor TensorFlow, and runs nothing that the file holds. Knows no layer: what a layer's options mean is
`layers/keras.py`. The only file that imports h5py.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from training.errors import TrainingError

Format = Literal["keras", "h5"]
Entry = Mapping[str, Any]
"""A layer as Keras saves it: {"class_name": "LSTM", "config": {...}}."""

_ARCHIVE_MAGIC = b"PK\x03\x04"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_MODELS = ("Sequential", "Functional", "Model")
_WEIGHTS = "model.weights.h5"
# Where layers keep the layers inside them, in the order of Keras's `get_weights()`.
_INNER = ("cell", "forward_layer", "backward_layer", "layer")
# How Keras 3 writes the masks of a functional model: as operations beside the layers, NotEqual or Any of NotEqual.
_MASK_OPERATIONS = ("NotEqual", "Any")
# Behind these the mask of the layer before is still the mask, so that a layer called with it is called as by itself.
_HANDS_MASK_ON = (
    *("SimpleRNN", "LSTM", "GRU", "Bidirectional", "TimeDistributed", "Dense", "Activation"),
    *("Dropout", "SpatialDropout1D", "GaussianNoise", "LayerNormalization", "BatchNormalization"),
)
# What fit needs and predict does not: dropout's random numbers. Beside a cell lies only the state of a stateful layer.
_PASSED_OVER = ("seed_generator",)


class KerasFileError(TrainingError):
    """The file cannot be read as one chain of layers; says which layer and what about it, where it is one."""


@dataclass(frozen=True)
class StoredWeight:
    """One weight as it lies in the file; `name` is its name in the file, a number in a .keras archive."""

    name: str
    values: NDArray[Any]


@dataclass(frozen=True)
class StoredLayer:
    """One layer: its configuration, and its weights in the order of Keras's `get_weights()`."""

    name: str
    class_name: str
    entry: Entry
    weights: tuple[StoredWeight, ...]


@dataclass(frozen=True)
class StoredInput:
    """What the model is fed: `shape` without the batch, None where an axis is open."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class KerasFile:
    """A saved model whose layers follow one another. `outputs` are the results of the last layer that the model gives."""

    path: Path
    format: Format
    sha256: str
    keras_version: str
    input: StoredInput
    layers: tuple[StoredLayer, ...]
    outputs: tuple[int, ...]


def read_keras_file(path: Path) -> KerasFile:
    """Read a model that Keras 2 or 3 saved whole, as `.keras` or `.h5`; the content decides which, not the name.

    Raises KerasFileError: no such file, a damaged one, weights without a model, layers that do not follow one another
    (branches, several inputs, a layer used twice), weights that are missing.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as exc:
        raise KerasFileError(f"{path}: no such file") from exc
    except IsADirectoryError as exc:
        raise KerasFileError(f'{path} is a folder: save the model as one file, model.save("name.keras")') from exc
    except OSError as exc:
        raise KerasFileError(f"{path} cannot be read: {exc.strerror}") from exc
    try:
        if content.startswith(_ARCHIVE_MAGIC):
            return _read_archive(path, content)
        if content.startswith(_HDF5_MAGIC):
            return _read_h5(path, content)
    except KerasFileError as exc:
        raise KerasFileError(f"{path}: {exc}") from exc
    raise KerasFileError(f"{path} is neither a .keras archive nor an .h5 file")


def _read_archive(path: Path, content: bytes) -> KerasFile:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = set(archive.namelist())
            for name in ("config.json", _WEIGHTS):
                if name not in names:
                    raise KerasFileError(f"the archive holds no {name}; it holds {', '.join(sorted(names)) or 'nothing'}")
            config = _as_json(archive.read("config.json"), "config.json")
            metadata = _as_json(archive.read("metadata.json"), "metadata.json") if "metadata.json" in names else {}
            weights = archive.read(_WEIGHTS)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError) as exc:
        raise KerasFileError(f"the archive is damaged: {exc}") from exc
    chain = _read_chain(config)
    with _open_h5(weights, _WEIGHTS) as file:
        root = _subgroup(file, "layers") or _subgroup(file, "_layer_checkpoint_dependencies") or file
        found = [
            _weights_of_group(_subgroup(root, group), entry) for entry, group in zip(chain.entries, chain.groups, strict=True)
        ]
    return _assembled(path, "keras", content, str(metadata.get("keras_version", "3")), chain, found)


def _read_h5(path: Path, content: bytes) -> KerasFile:
    with _open_h5(content, "the file") as file:
        text = file.attrs.get("model_config")
        if text is None:
            raise KerasFileError("the file holds weights and no model: save the whole model, with model.save()")
        config = _as_json(text, "model_config")
        chain = _read_chain(config)
        root = _subgroup(file, "model_weights")
        if root is None:
            raise KerasFileError('the file holds a model and no weights: the group "model_weights" is missing')
        found = [_weights_by_name(root, entry) for entry in chain.entries]
        version = _as_text(root.attrs.get("keras_version") or file.attrs.get("keras_version") or "1")
    return _assembled(path, "h5", content, version, chain, found)


def _assembled(
    path: Path, kind: Format, content: bytes, version: str, chain: _Chain, weights: Sequence[tuple[StoredWeight, ...]]
) -> KerasFile:
    layers = tuple(
        StoredLayer(_name_of(entry), str(entry["class_name"]), entry, stored)
        for entry, stored in zip(chain.entries, weights, strict=True)
    )
    digest = hashlib.sha256(content).hexdigest()
    return KerasFile(path, kind, digest, version, chain.input, layers, chain.outputs)


# ------------------------------------------------------------------------------------------------------------ the chain


@dataclass(frozen=True)
class _Chain:
    """The layers in the order in which they follow one another, and what each is called in a .keras archive."""

    input: StoredInput
    entries: tuple[Entry, ...]
    groups: tuple[str, ...]
    outputs: tuple[int, ...]


def _read_chain(model: Any) -> _Chain:
    """The layers of a Sequential or a linear functional model."""
    kind, config = _of_model(model)
    if kind == "Sequential":
        entries: Any = config["layers"] if isinstance(config, Mapping) else config
        given = config.get("build_input_shape") if isinstance(config, Mapping) else None
        inputs = [entry for entry in entries if entry.get("class_name") == "InputLayer"]
        layers = [entry for entry in entries if entry.get("class_name") != "InputLayer"]
        groups = _groups(entries)
        outputs: tuple[int, ...] = ()
    else:
        layers, inputs, outputs = _follow(config)
        groups = _groups(config["layers"])
        given = None
    if not layers:
        raise KerasFileError("the model has no layers")
    for layer in layers:
        if layer["class_name"] in _MODELS:
            raise KerasFileError(f"{_place(layer)} is a model inside the model: that is not supported, list its layers instead")
    return _Chain(
        _read_input(inputs, layers[0], given), tuple(layers), tuple(groups[_name_of(layer)] for layer in layers), outputs
    )


def _of_model(model: Any) -> tuple[str, Any]:
    """Sequential or Functional, and the model's configuration."""
    kind = str(model.get("class_name", "")) if isinstance(model, Mapping) else ""
    if kind not in _MODELS:
        raise KerasFileError(f'a model of the class "{kind}" cannot be taken: Sequential and functional models can')
    config = model.get("config")
    entries = config.get("layers") if isinstance(config, Mapping) else config
    is_listed = isinstance(entries, list) and all(
        isinstance(entry, Mapping) and isinstance(entry.get("config"), Mapping) and "class_name" in entry for entry in entries
    )
    if not is_listed or not (isinstance(config, Mapping) or kind == "Sequential"):
        raise KerasFileError(f'the configuration of the {kind} model lists no layers ("class_name" and "config" of each)')
    return kind, config


def _groups(entries: Sequence[Entry]) -> dict[str, str]:
    """Layer name → its group in a .keras archive: the class and a number, lstm, lstm_1, in the order of the model."""
    seen: Counter[str] = Counter()
    groups = {}
    for entry in entries:
        kind = _snake_case(str(entry["class_name"]))
        groups[_name_of(entry)] = f"{kind}_{seen[kind]}" if seen[kind] else kind
        seen[kind] += 1
    return groups


def _follow(config: Entry) -> tuple[list[Entry], list[Entry], tuple[int, ...]]:
    """The layers of a functional model from its input to its output. Raises KerasFileError where they branch."""
    by_name = {_name_of(entry): entry for entry in config["layers"]}
    inputs, outputs = _tensors(config.get("input_layers")), _tensors(config.get("output_layers"))
    if len(inputs) != 1:
        listed = ", ".join(f'"{name}"' for name, _, _ in inputs)
        raise KerasFileError(f"several inputs are not supported, the model has {len(inputs)}: {listed}")
    if not outputs:
        raise KerasFileError("the model names no output")
    if len({name for name, _, _ in outputs}) > 1:
        listed = ", ".join(dict.fromkeys(f'"{name}"' for name, _, _ in outputs))
        raise KerasFileError(f"outputs of several layers are not supported, the model has those of {listed}")

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
            raise KerasFileError(f'{_place(entry)} reads result {index} of "{source}": only the first result can be read')
        chain.insert(0, entry)
        name = source
    _require_own_masks(chain, masks)
    others = [entry for name, entry in by_name.items() if name not in masks]
    readers = Counter(source for entry in others for source in _sources_of(entry) if source not in masks)
    for source, count in readers.items():
        if count > 1:
            readers_of = [_name_of(entry) for entry in others if source in _sources_of(entry)]
            listed = " and ".join(f'"{reader}"' for reader in dict.fromkeys(readers_of))
            raise KerasFileError(f'layer "{source}" is read more than once, by {listed}: branches are not supported')
    if last in readers:
        raise KerasFileError(f'the output of layer "{last}" is also read by another layer: branches are not supported')
    return chain, [by_name[inputs[0][0]]], tuple(index for _, _, index in outputs)


def _require_own_masks(chain: Sequence[Entry], masks: Mapping[str, Entry]) -> None:
    """Pass the masks that layers hand on by themselves, which Keras 3 writes down like any other. Raises KerasFileError."""
    mask: tuple[str, float, bool] | None = None
    for entry in chain:
        given = _mask_given(entry, masks)
        # Softmax lays the mask of the steps over the features.
        is_own = mask is not None and entry["class_name"] != "Softmax"
        if given is not None and not (is_own and _mask_of(given, masks) == mask):
            raise KerasFileError(
                f'{_place(entry)} is called with "mask": that is not supported, but for the mask of the layers before'
            )
        kind, config = entry["class_name"], entry["config"]
        if kind == "Masking":
            mask = (_source_of(entry, masks)[0], float(config.get("mask_value", 0.0)), True)
        elif kind == "Embedding":
            mask = (_source_of(entry, masks)[0], 0.0, False) if config.get("mask_zero") else None
        elif kind not in _HANDS_MASK_ON:
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
        raise KerasFileError(f"{_place(entry)} is used {len(nodes)} times: shared layers are not supported")
    if str(entry["class_name"]) == "InputLayer":
        raise KerasFileError(f"{_place(entry)} is not the model's input")
    is_masked = _mask_given(entry, masks) is not None
    found = [(name, index) for name, index in _references(nodes[0]) if not (is_masked and name in masks)]
    if len(found) != 1:
        listed = " and ".join(f'"{name}"' for name, _ in dict.fromkeys(found))
        raise KerasFileError(f"{_place(entry)} reads {len(found)} tensors, {listed}: branches are not supported")
    for option, value in _call_options(nodes[0]).items():
        if value not in (None, False) and not (option == "mask" and is_masked):
            raise KerasFileError(f'{_place(entry)} is called with "{option}": that is not supported')
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


def _tensors(value: Any) -> list[tuple[str, int, int]]:
    """The model's inputs or outputs: one [layer, node, index], a list of them, or a table of them."""
    if isinstance(value, Mapping):
        return [tensor for part in value.values() for tensor in _tensors(part)]
    if not isinstance(value, list):
        return []
    if len(value) == 3 and isinstance(value[0], str):
        return [(value[0], int(value[1]), int(value[2]))]
    return [tensor for part in value for tensor in _tensors(part)]


def _read_input(inputs: Sequence[Entry], first: Entry, given: Any) -> StoredInput:
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


def _name_of(entry: Entry) -> str:
    return str(entry["config"].get("name") or entry.get("name") or entry["class_name"])


def _place(entry: Entry) -> str:
    return f'layer "{_name_of(entry)}" ({entry["class_name"]})'


def _snake_case(name: str) -> str:
    """As Keras names groups: LSTM, lstm; TimeDistributed, time_distributed; Conv1D, conv1d."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


# ---------------------------------------------------------------------------------------------------------- the weights


def _weights_of_group(group: h5py.Group | None, entry: Entry) -> tuple[StoredWeight, ...]:
    """The weights below a layer's group of a .keras archive: its own `vars`, then those of the layers inside."""
    if group is None:
        return ()
    own = _subgroup(group, "vars")
    inner = {name: found for name in _INNER if (found := _subgroup(group, name)) is not None}
    strangers = [name for name in group if name not in ("vars", *_INNER, *_PASSED_OVER) and _holds_values(_subgroup(group, name))]
    if strangers:
        raise KerasFileError(f'{_place(entry)}: the file holds weights "{strangers[0]}" that no option speaks of')
    weights = []
    # The own variables of a layer with a cell are the state of a stateful one, with which a prediction does not begin.
    if own is not None and "cell" not in inner:
        names = sorted(own, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0))
        weights += [StoredWeight(name, _values(own, name, entry)) for name in names]
    for name, found in inner.items():
        weights += [StoredWeight(f"{name}/{weight.name}", weight.values) for weight in _weights_of_group(found, entry)]
    return tuple(weights)


def _weights_by_name(root: h5py.Group, entry: Entry) -> tuple[StoredWeight, ...]:
    """The weights of a layer of an .h5 file, in the order of its attribute `weight_names`."""
    group = _subgroup(root, _name_of(entry))
    if group is None:
        return ()
    weights = []
    for name in _listed(group, "weight_names"):
        if name not in group:
            raise KerasFileError(f'{_place(entry)}: weight "{name}" is missing')
        weights.append(StoredWeight(name, _values(group, name, entry)))
    return tuple(weights)


def _listed(group: h5py.Group, name: str) -> list[str]:
    """A list of names among a group's attributes; Keras cuts long ones into name0, name1, ..."""
    parts = [name] if name in group.attrs else []
    while not parts or parts[-1] != name:
        if (part := f"{name}{len(parts)}") not in group.attrs:
            break
        parts.append(part)
    return [_as_text(value) for part in parts for value in group.attrs[part]]


def _values(group: h5py.Group, name: str, entry: Entry) -> NDArray[Any]:
    """The values of a data set that lies in this very file. Raises KerasFileError."""
    place = f'{_place(entry)}: weight "{name}"'
    try:
        found = group[name]
        is_here = isinstance(found, h5py.Dataset) and not found.is_virtual and not found.external
        if not is_here or found.file.id != group.file.id:
            raise KerasFileError(f"{place} does not lie in the file")
        if found.dtype.kind not in "fiu":
            raise KerasFileError(f"{place} holds {found.dtype}, not numbers")
        if found.size and not found.id.get_storage_size():
            raise KerasFileError(f"{place} was announced and never written")
        values = np.asarray(found[()], np.float32)
    except (KeyError, OSError, ValueError, RuntimeError) as exc:
        if isinstance(exc, KerasFileError):
            raise
        raise KerasFileError(f"{place} cannot be read: {exc}") from exc
    if not np.isfinite(values).all():
        raise KerasFileError(f"{place} holds values that are not finite: the training went astray")
    return values


def _subgroup(group: h5py.Group, name: str) -> h5py.Group | None:
    # Links to other files are not followed.
    if name not in group or isinstance(group.get(name, getlink=True), h5py.ExternalLink):
        return None
    found = group[name]
    return found if isinstance(found, h5py.Group) else None


def _holds_values(group: h5py.Group | None) -> bool:
    found: list[str] = []
    if group is not None:
        group.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return bool(found)


def _open_h5(content: bytes, what: str) -> h5py.File:
    try:
        return h5py.File(io.BytesIO(content), "r")
    except (OSError, ValueError, RuntimeError) as exc:
        raise KerasFileError(f"{what} is damaged: {exc}") from exc


def _as_json(content: Any, what: str) -> Any:
    try:
        return json.loads(_as_text(content))
    except ValueError as exc:
        raise KerasFileError(f"{what} is not JSON: {exc}") from exc


def _as_text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
