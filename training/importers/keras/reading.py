"""The layers of a Keras file as tables, and how long its rows may be. What an option means is in `layers.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from training.importers.keras.entry import KerasFileError
from training.importers.keras.keras_file import KerasFile, StoredLayer
from training.importers.keras.layers import from_keras_config
from training.importers.model import SourceLayer, SourceModel
from training.layers.registry import LAYERS, read_config


def source_model(file: KerasFile) -> SourceModel:
    """The model of a file. Raises LayerError that names the layer and the option, or KerasFileError."""
    tables = [_read_table(layer, file.keras_version) for layer in file.layers]
    tables[-1] = _with_outputs(tables[-1], file)
    shape = file.input.shape
    place = f"{file.path}: the input {('batch', *shape)}".replace("None", "any")
    if not shape or None in shape[1:]:
        raise KerasFileError(f"{place}: only the first axis behind the batch may be open, and there must be one")
    if LAYERS[tables[0]["type"]].reads_tokens:
        if len(shape) != 1:
            raise KerasFileError(f"{place}: an Embedding needs token ids, (batch, time)")
        is_open = shape[0] is None or _masks_padding(tables)
    else:
        if not file.input.dtype.startswith(("float", "bfloat")):
            raise KerasFileError(f"{place}: numbers of the type {file.input.dtype} need an Embedding as the first layer")
        if shape == (None,):
            raise KerasFileError(f"{place}: a vector needs a fixed number of features")
        is_open = shape[0] is None
    layers = tuple(
        SourceLayer(table, f'layer "{stored.name}" ({stored.class_name})', stored)
        for table, stored in zip(tables, file.layers, strict=True)
    )
    origin = {"file": file.path.name, "format": file.format, "sha256": file.sha256, "keras_version": file.keras_version}
    return SourceModel(origin, layers, input_name(file.input.name), shape, is_open)


def _read_table(layer: StoredLayer, keras_version: str) -> dict[str, Any]:
    entry = dict(layer.entry)
    if layer.class_name == "GRU" and keras_version.split(".")[0] in ("1", "2"):
        # Files older than the option were written by a GRU that resets before the product.
        entry["config"] = {"reset_after": False, **entry["config"]}
    return from_keras_config(entry, keras_version=keras_version)


def _with_outputs(table: dict[str, Any], file: KerasFile) -> dict[str, Any]:
    """The last layer, giving what the model gives. Raises KerasFileError if that is neither its first result nor all."""
    inner = dict(table["layer"]) if table["type"] == "bidirectional" else table
    gives_more = inner.get("return_state") or (table["type"] == "bidirectional" and table.get("merge_mode", "concat") is None)
    if not gives_more or not file.outputs:
        return table
    if file.outputs == tuple(range(len(file.outputs))) and len(file.outputs) > 1:
        return table
    if file.outputs == (0,) and table["type"] != "bidirectional":
        return {**table, "return_state": False}
    layer = file.layers[-1]
    chosen = ", ".join(map(str, file.outputs))
    place = f'layer "{layer.name}" ({layer.class_name})'
    raise KerasFileError(f"{place}: the model gives its results {chosen}; only the first or all, in order, can be served")


def _masks_padding(tables: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a row gives the same with and without masked steps at its end, so that rows may have any length.

    So it is as long as Keras carries the mask of an Embedding to the layer that ends the sequence, or to the end.
    """
    if not tables[0].get("mask_zero"):
        return False
    for table in tables[1:]:
        use = LAYERS[table["type"]].mask_use(read_config(table, ""))
        if use != "carried":
            return use == "used up"
    return True


def input_name(name: str) -> str:
    """The name that the author gave the input; "input" where Keras made one up."""
    is_made_up = re.fullmatch(r"(input|input_layer|keras_tensor)(_\d+)?|.*_input", name)
    return "input" if is_made_up or name in ("lengths", "output") or name.startswith("output_") else name
