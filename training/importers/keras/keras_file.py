"""Reads what Keras saved, a `.keras` archive or an `.h5` file: the chain of layers, and the weights of each.

Needs neither Keras nor TensorFlow, and runs nothing that the file holds. Knows no layer: what a layer's options mean is
`layers.py`. The only file that imports h5py.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from training.importers.keras.chain import Chain, StoredInput, read_chain
from training.importers.keras.entry import Entry, KerasFileError, name_of, place_of

Format = Literal["keras", "h5"]

_ARCHIVE_MAGIC = b"PK\x03\x04"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_WEIGHTS = "model.weights.h5"
# Where layers keep the layers inside them, in the order of Keras's `get_weights()`.
_INNER = ("cell", "forward_layer", "backward_layer", "layer")
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
    chain = read_chain(config)
    with _open_h5(weights, _WEIGHTS) as file:
        root = _subgroup(file, "layers") or _subgroup(file, "_layer_checkpoint_dependencies") or file
        found = [
            _weights_of_group(_subgroup(root, group), entry) for entry, group in zip(chain.entries, chain.groups, strict=True)
        ]
    return _assemble(path, "keras", content, str(metadata.get("keras_version", "3")), chain, found)


def _read_h5(path: Path, content: bytes) -> KerasFile:
    with _open_h5(content, "the file") as file:
        text = file.attrs.get("model_config")
        if text is None:
            raise KerasFileError("the file holds weights and no model: save the whole model, with model.save()")
        config = _as_json(text, "model_config")
        chain = read_chain(config)
        root = _subgroup(file, "model_weights")
        if root is None:
            raise KerasFileError('the file holds a model and no weights: the group "model_weights" is missing')
        found = [_weights_by_name(root, entry) for entry in chain.entries]
        version = _as_text(root.attrs.get("keras_version") or file.attrs.get("keras_version") or "1")
    return _assemble(path, "h5", content, version, chain, found)


def _assemble(
    path: Path, kind: Format, content: bytes, version: str, chain: Chain, weights: Sequence[tuple[StoredWeight, ...]]
) -> KerasFile:
    layers = tuple(
        StoredLayer(name_of(entry), str(entry["class_name"]), entry, stored)
        for entry, stored in zip(chain.entries, weights, strict=True)
    )
    digest = hashlib.sha256(content).hexdigest()
    return KerasFile(path, kind, digest, version, chain.input, layers, chain.outputs)


def _weights_of_group(group: h5py.Group | None, entry: Entry) -> tuple[StoredWeight, ...]:
    """The weights below a layer's group of a .keras archive: its own `vars`, then those of the layers inside."""
    if group is None:
        return ()
    own = _subgroup(group, "vars")
    inner = {name: found for name in _INNER if (found := _subgroup(group, name)) is not None}
    known = ("vars", *_INNER, *_IGNORED_GROUPS)
    others = [name for name in group if name not in known and _holds_values(_subgroup(group, name))]
    if others:
        raise KerasFileError(f'{place_of(entry)}: the file holds weights "{others[0]}" that no option accounts for')
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
        if found.size and not found.id.get_storage_size():
            raise KerasFileError(f"{place} was announced and never written")
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
    except ValueError as exc:
        raise KerasFileError(f"{what} is not JSON: {exc}") from exc


def _as_text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
