"""Reads what Keras saved, a `.keras` archive or an `.h5` file: the layers as a chain or as calls, and the weights of each.

Needs neither Keras nor TensorFlow, and runs nothing that the file holds. Knows no layer: what a layer's options mean is
`layers.py`. The only file that imports h5py.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from training.importers.keras.calls import CallGraph, read_calls
from training.importers.keras.chain import Chain, StoredInput, read_chain, snake_case
from training.importers.keras.entry import Entry, KerasFileError, name_of, place_of
from training.importers.keras.texts import TextLayer, split_texts

Format = Literal["keras", "h5"]
CheckLayers = Callable[[Sequence[Entry]], None]

_ARCHIVE_MAGIC = b"PK\x03\x04"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_WEIGHTS = "model.weights.h5"
# Bytes that the members of an archive may have beyond this many times the archive's own: Keras stores weights as they are.
_MAX_EXPANSION, _FREE_BYTES = 20, 16 * 1024 * 1024
_FREE_WEIGHT_BYTES = 64 * 1024
# Where layers keep the layers inside them, in the order of Keras's `get_weights()`.
_INNER = ("cell", "cells", "forward_layer", "backward_layer", "layer")
# The products of a MultiHeadAttention, in that order too.
_PRODUCTS = ("query_dense", "key_dense", "value_dense", "output_dense")
# What fit needs and predict does not: dropout's random numbers. Beside a cell lies only the state of a stateful layer.
_IGNORED_GROUPS = ("seed_generator",)


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
class KerasFile:
    """A saved model whose layers follow one another. `outputs` are the results of the last layer that the model gives."""

    path: Path
    format: Format
    sha256: str
    keras_version: str
    input: StoredInput
    layers: tuple[StoredLayer, ...]
    outputs: tuple[int, ...]
    texts: TextLayer | None = None


@dataclass(frozen=True)
class KerasCalls:
    """A saved model of any shape. `weights` are those of each layer, by the names of the models it is in and its own."""

    path: Path
    format: Format
    sha256: str
    keras_version: str
    graph: CallGraph
    weights: Mapping[tuple[str, ...], tuple[StoredWeight, ...]]
    texts: TextLayer | None = None


@dataclass(frozen=True)
class _Content:
    """A file once it is open: the configuration, and the group of weights that the layers' own lie in."""

    format: Format
    sha256: str
    keras_version: str
    layout: Any  # what was read of the configuration, before any weight
    root: h5py.Group
    texts: TextLayer | None


def read_keras_file(path: Path, architecture: Path | None = None, check: CheckLayers | None = None) -> KerasFile:
    """Read a model that Keras 2 or 3 saved whole, as `.keras` or `.h5`; the content decides which, not the name.

    A file of weights alone needs `architecture`, what `model.to_json()` gave. `check` may refuse the layers before any weight is
    looked at. Raises KerasFileError: no such file, a damaged one, weights without a model, weights that are missing; NotAChain,
    where the layers do not follow one another.
    """

    def read(model: Any) -> Chain:
        chain = read_chain(model)
        if check is not None:
            check(chain.entries)
        return chain

    with _open_file(path, architecture, read) as content:
        chain: Chain = content.layout
        return _assemble(path, content, chain, _weights_of_chain(content, chain))


def read_keras_calls(path: Path, architecture: Path | None = None, check: CheckLayers | None = None) -> KerasCalls:
    """Read a saved model of any shape. Raises KerasFileError as `read_keras_file`."""

    def read(model: Any) -> CallGraph:
        graph = read_calls(model)
        if check is not None:
            check(list(graph.called_entries()))
        return graph

    with _open_file(path, architecture, read) as content:
        graph: CallGraph = content.layout
        weights = _weights_of_calls(content.root, graph) if content.format == "keras" else _weights_of_h5(content.root, graph)
        return KerasCalls(path, content.format, content.sha256, content.keras_version, graph, weights, content.texts)


@contextmanager
def _open_file(path: Path, architecture: Path | None, read: Callable[[Any], Any]) -> Iterator[_Content]:
    try:
        content = path.read_bytes()
    except FileNotFoundError as exc:
        raise KerasFileError(f"{path}: no such file") from exc
    except IsADirectoryError as exc:
        raise KerasFileError(f'{path} is a folder: save the model as one file, model.save("name.keras")') from exc
    except OSError as exc:
        raise KerasFileError(f"{path} cannot be read: {exc.strerror}") from exc
    given = None if architecture is None else _read_architecture(architecture)
    try:
        if content.startswith(_ARCHIVE_MAGIC):
            opened = _open_archive(content, read)
        elif content.startswith(_HDF5_MAGIC):
            opened = _open_whole_h5(content, given, read)
        else:
            raise KerasFileError("is neither a .keras archive nor an .h5 file")
        with opened as found:
            yield found
    except KerasFileError as exc:
        # The class says whether the file may still be read in another way.
        raise type(exc)(f"{path}: {exc}") from exc


def _read_architecture(path: Path) -> Any:
    try:
        return _as_json(path.read_bytes(), str(path))
    except OSError as exc:
        raise KerasFileError(f"--architecture: {path}: {exc.strerror}") from exc


@contextmanager
def _open_archive(content: bytes, read: Callable[[Any], Any]) -> Iterator[_Content]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # Archives written on Windows by some versions have backslashes, which Keras itself cannot read elsewhere.
            names = {name.replace("\\", "/"): name for name in archive.namelist()}
            for name in ("config.json", _WEIGHTS):
                if name not in names:
                    raise KerasFileError(f"the archive holds no {name}; it holds {', '.join(sorted(names)) or 'nothing'}")
            size = sum(member.file_size for member in archive.infolist())  # no more than it says is read of a member
            if size > _FREE_BYTES + _MAX_EXPANSION * len(content):
                raise KerasFileError(f"the archive of {len(content)} bytes would unpack to {size}, which no saved model does")
            config = _as_json(archive.read(names["config.json"]), "config.json")
            given = names.get("metadata.json")
            metadata = _as_json(archive.read(given), "metadata.json") if given else {}
            weights = archive.read(names[_WEIGHTS])
            config, texts = split_texts(config, lambda group: _read_vocabulary(archive, names, group))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError) as exc:
        raise KerasFileError(f"the archive is damaged: {exc}") from exc
    layout = read(config)
    with _open_h5(weights, _WEIGHTS) as file:
        digest = hashlib.sha256(content).hexdigest()
        whole = _with_slashes(file)
        yield _Content("keras", digest, str(metadata.get("keras_version", "3")), layout, _layers_of(whole) or whole, texts)


def _read_vocabulary(archive: zipfile.ZipFile, names: Mapping[str, str], group: str) -> str | None:
    """What a layer of texts keeps beside the weights."""
    path = f"assets/layers/{group}/vocabulary.txt"
    return archive.read(names[path]).decode("utf-8") if path in names else None


@contextmanager
def _open_whole_h5(content: bytes, architecture: Any, read: Callable[[Any], Any]) -> Iterator[_Content]:
    with _open_h5(content, "the file") as file:
        digest = hashlib.sha256(content).hexdigest()
        text = file.attrs.get("model_config")
        if text is None and architecture is None:
            raise KerasFileError(
                "the file holds weights and no model: save the whole model with model.save(), or give the architecture that "
                "model.to_json() wrote (--architecture model.json), or write the layers as a recipe"
            )
        config = architecture if text is None else _as_json(text, "model_config")
        version = config.get("keras_version")
        config, texts = split_texts(config, lambda group: None)
        layout = read(config)
        layers = _layers_of(file)
        if layers is not None and "model_weights" not in file:  # save_weights("name.weights.h5") of Keras 3
            yield _Content("keras", digest, str(version or "3"), layout, layers, texts)
            return
        root = file if text is None else _subgroup(file, "model_weights")
        if root is None:
            raise KerasFileError('the file holds a model and no weights: the group "model_weights" is missing')
        version = root.attrs.get("keras_version") or file.attrs.get("keras_version") or version or "1"
        yield _Content("h5", digest, _as_text(version), layout, root, texts)


def _with_slashes(file: h5py.File) -> h5py.File:
    """Keras 2 on Windows wrote the path of a layer as one name with backslashes, which Keras elsewhere does not find."""
    if not any("\\" in name for name in file):
        return file
    whole = h5py.File(io.BytesIO(), "w")
    for name in file:
        group = _subgroup(file, name)
        target = whole.require_group(name.replace("\\", "/"))
        for part in group or ():
            if group is not None and _is_here(group, part):
                file.copy(group[part], target, name=part)
    return whole


def _is_here(group: h5py.Group, name: str) -> bool:
    return isinstance(group.get(name, getlink=True), h5py.HardLink)


def _layers_of(group: h5py.Group) -> h5py.Group | None:
    """The group of a model's layers in a .keras archive."""
    return _subgroup(group, "layers") or _subgroup(group, "_layer_checkpoint_dependencies")


def _weights_of_chain(content: _Content, chain: Chain) -> list[tuple[StoredWeight, ...]]:
    if content.format == "h5":
        return [_weights_by_name(content.root, entry) for entry in chain.entries]
    groups = _groups_there(content.root, dict(zip(map(name_of, chain.entries), chain.groups, strict=True)), chain.entries)
    return [_weights_of_group(_subgroup(content.root, groups[name_of(entry)]), entry) for entry in chain.entries]


def _groups_there(root: h5py.Group, groups: Mapping[str, str], entries: Sequence[Entry]) -> dict[str, str]:
    """Layer → its group; where the numbers are others (TensorFlow 2.13 leaves some out), those there are in their order."""
    found = dict(groups)
    for kind in {snake_case(str(entry["class_name"])) for entry in entries}:
        layers = [entry for entry in entries if snake_case(str(entry["class_name"])) == kind]
        if all(groups[name_of(entry)] in root for entry in layers):
            continue
        numbered = [name for name in root if re.fullmatch(rf"{re.escape(kind)}(_\d+)?", name)]
        numbered.sort(key=lambda name: int(name.rpartition("_")[2]) if name != kind else 0)
        if len(numbered) == len(layers):
            found.update(zip(map(name_of, layers), numbered, strict=True))
    return found


def _weights_of_calls(
    root: h5py.Group, graph: CallGraph, path: tuple[str, ...] = ()
) -> dict[tuple[str, ...], tuple[StoredWeight, ...]]:
    entries = list(graph.entries.values())
    groups = _groups_there(root, graph.groups, entries)
    weights: dict[tuple[str, ...], tuple[StoredWeight, ...]] = {}
    for name, entry in graph.entries.items():
        group = _subgroup(root, groups[name])
        if name in graph.nested:
            inner = None if group is None else _layers_of(group)
            if inner is not None:
                weights |= _weights_of_calls(inner, graph.nested[name], (*path, name))
        else:
            weights[(*path, name)] = _weights_of_group(group, entry)
    return weights


def _weights_of_h5(root: h5py.Group, graph: CallGraph) -> dict[tuple[str, ...], tuple[StoredWeight, ...]]:
    weights: dict[tuple[str, ...], tuple[StoredWeight, ...]] = {}
    for name, entry in graph.entries.items():
        held = _weights_by_name(root, entry)
        if name in graph.nested:
            weights |= _share_out(held, graph.nested[name], (name,))
        else:
            weights[(name,)] = held
    return weights


def _share_out(
    held: Sequence[StoredWeight], graph: CallGraph, path: tuple[str, ...]
) -> dict[tuple[str, ...], tuple[StoredWeight, ...]]:
    """An .h5 file lists the weights of a model inside a model together; their names say whose they are."""
    weights: dict[tuple[str, ...], tuple[StoredWeight, ...]] = {}
    for name in graph.entries:
        own = tuple(weight for weight in held if name in weight.name.split("/")[:-1])
        if name in graph.nested:
            weights |= _share_out(own, graph.nested[name], (*path, name))
        else:
            weights[(*path, name)] = own
    return weights


def _assemble(path: Path, content: _Content, chain: Chain, weights: Sequence[tuple[StoredWeight, ...]]) -> KerasFile:
    layers = tuple(
        StoredLayer(name_of(entry), str(entry["class_name"]), entry, stored)
        for entry, stored in zip(chain.entries, weights, strict=True)
    )
    version = content.keras_version
    return KerasFile(path, content.format, content.sha256, version, chain.input, layers, chain.outputs, content.texts)


def _weights_of_group(group: h5py.Group | None, entry: Entry) -> tuple[StoredWeight, ...]:
    """The weights below a layer's group of a .keras archive: its own `vars`, then those of the layers inside."""
    if group is None:
        return ()
    own = _subgroup(group, "vars")
    names = _inner_names(entry)
    inner = {name: found for name in names if (found := _subgroup(group, name)) is not None}
    known = ("vars", *names, *_IGNORED_GROUPS)
    others = [name for name in group if name not in known and _holds_values(_subgroup(group, name))]
    if others:
        raise KerasFileError(f'{place_of(entry)}: the file holds weights "{others[0]}" that no option accounts for')
    weights = []
    # The own variables of a layer with a cell are the state of a stateful one, with which a prediction does not begin.
    if own is not None and "cell" not in inner:
        numbered = sorted(own, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0))
        weights += [StoredWeight(name, _values(own, name, entry)) for name in numbered]
    for name, found in inner.items():
        weights += [StoredWeight(f"{name}/{weight.name}", weight.values) for weight in _weights_of_group(found, entry)]
    return tuple(weights)


def _inner_names(entry: Entry) -> tuple[str, ...]:
    """Where the layers inside a layer may lie, in the order of Keras's `get_weights()`."""
    cell = entry["config"].get("cell")
    kinds: Counter[str] = Counter()
    cells = []
    for own in (cell["config"].get("cells") or []) if isinstance(cell, Mapping) else []:
        kind = snake_case(str(own["class_name"]))
        cells.append(f"{kind}_{kinds[kind]}" if kinds[kind] else kind)
        kinds[kind] += 1
    # TensorFlow 2.12 and 2.13 write private attributes as they are.
    products = [name for product in _PRODUCTS for name in (product, f"_{product}")]
    return (*_INNER, *cells, *products)


def _weights_by_name(root: h5py.Group, entry: Entry) -> tuple[StoredWeight, ...]:
    """The weights of a layer of an .h5 file, in the order of its attribute `weight_names`."""
    group = _subgroup(root, name_of(entry))
    if group is None:
        return ()
    weights = []
    for name in _read_names(group, "weight_names"):
        if name not in group:
            raise KerasFileError(f'{place_of(entry)}: weight "{name}" is missing')
        weights.append(StoredWeight(name, _values(group, name, entry)))
    return tuple(weights)


def _read_names(group: h5py.Group, name: str) -> list[str]:
    """A list of names among a group's attributes; Keras cuts long ones into name0, name1, ..."""
    parts = [name] if name in group.attrs else []
    while not parts or parts[-1] != name:
        if (part := f"{name}{len(parts)}") not in group.attrs:
            break
        parts.append(part)
    return [_as_text(value) for part in parts for value in group.attrs[part]]


def _values(group: h5py.Group, name: str, entry: Entry) -> NDArray[Any]:
    """The values of a data set that lies in this very file. Raises KerasFileError."""
    place = f'{place_of(entry)}: weight "{name}"'
    try:
        found = group[name]
        is_here = isinstance(found, h5py.Dataset) and not found.is_virtual and not found.external
        if not is_here or found.file.id != group.file.id:
            raise KerasFileError(f"{place} does not lie in the file")
        if found.dtype.kind not in "fiu":
            raise KerasFileError(f"{place} holds {found.dtype}, not numbers")
        stored = found.id.get_storage_size()
        if found.size and not stored:
            raise KerasFileError(f"{place} was announced and never written")
        # A filter, or a chunk of many that are missing, makes gigabytes of a few bytes.
        if found.size * found.dtype.itemsize > _FREE_WEIGHT_BYTES + _MAX_EXPANSION * stored:
            raise KerasFileError(f"{place} has {stored} bytes and would unpack to {list(found.shape)}, which no saved model does")
        values = np.asarray(found[()], np.float32)
    except (KeyError, OSError, ValueError, RuntimeError) as exc:
        if isinstance(exc, KerasFileError):
            raise
        raise KerasFileError(f"{place} cannot be read: {exc}") from exc
    if not np.isfinite(values).all():
        raise KerasFileError(f"{place} holds values that are not finite: the training diverged")
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
    except (ValueError, RecursionError) as exc:
        raise KerasFileError(f"{what} is not JSON: {exc}") from exc


def _as_text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
