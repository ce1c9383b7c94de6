"""The layers of a network, by the names recipes use; each module holds one family.

`build_layers` turns a recipe's tables into torch modules. Trains nothing, and knows no task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from training.layers.base import Layer, LayerConfig, LayerError, OptionError, Shape, Signal, State, Symbol
from training.layers.dense import Dense
from training.layers.dropout import Dropout, SpatialDropout
from training.layers.embedding import Embedding
from training.layers.pooling import ConcatPooling, GlobalAveragePooling, GlobalMaxPooling, Recent
from training.layers.recurrent import GRU, LSTM, Bidirectional, BidirectionalConfig, Recurrent, SimpleRNN

__all__ = ["LAYERS", "Layer", "LayerError", "Shape", "Signal", "State", "Symbol", "build_layer", "build_layers"]

LAYERS: dict[str, type[Layer]] = {
    "embedding": Embedding,
    "lstm": LSTM,
    "gru": GRU,
    "simple_rnn": SimpleRNN,
    "bidirectional": Bidirectional,
    "dropout": Dropout,
    "spatial_dropout": SpatialDropout,
    "dense": Dense,
    "global_max_pooling": GlobalMaxPooling,
    "global_average_pooling": GlobalAveragePooling,
    "concat_pooling": ConcatPooling,
    "recent": Recent,
}


def build_layers(tables: Sequence[Mapping[str, Any]], shape: Shape, source: Shape) -> list[Layer]:
    """Build layer after layer, each for the output of the one before; the first is fed `shape`.

    `source` is the shape of the network's scaled input. Raises LayerError that names place, type and option.
    """
    layers: list[Layer] = []
    for index, table in enumerate(tables):
        layers.append(build_layer(table, shape, source, f"layers[{index}]"))
        shape = layers[-1].output
    return layers


def build_layer(table: Mapping[str, Any], shape: Shape, source: Shape, where: str) -> Layer:
    """Build one layer from its table. Raises LayerError."""
    config = read_config(table, where)
    layer_class = LAYERS[config.type]
    try:
        if isinstance(config, BidirectionalConfig):
            pair = [_build_inner(config, shape, source, where) for _ in range(2)]
            return Bidirectional(config, shape, source, *pair)
        return layer_class(config, shape, source)
    except OptionError as exc:
        raise LayerError(where, config.type, exc.option, exc.message) from exc


def read_config(table: Mapping[str, Any], where: str) -> LayerConfig:
    """Check a layer's table alone. Raises LayerError for an unknown type or option, or a value that does not fit."""
    kind = table.get("type")
    if kind is None:
        raise LayerError(where, "", "type", f"is missing; there are {', '.join(LAYERS)}")
    if kind not in LAYERS:
        raise LayerError(where, "", "type", f"unknown layer {kind!r}; there are {', '.join(LAYERS)}")
    config_class = LAYERS[kind].Config
    try:
        return config_class.model_validate(table)
    except ValidationError as exc:
        # A misspelt option comes first: it often is the one that seems to be missing.
        errors = sorted(exc.errors(include_url=False), key=lambda error: error["type"] != "extra_forbidden")
        error = errors[0]
        option = ".".join(str(part) for part in error["loc"])
        if error["type"] == "extra_forbidden":
            known = ", ".join(name for name in config_class.model_fields if name != "type")
            message = f"unknown; there are {known}" if known else "unknown; this layer has no options"
        elif error["type"] == "missing":
            message = "is missing"
        else:
            message = f"{error['msg'].removeprefix('Value error, ')}, got {error['input']!r}"
        raise LayerError(where, kind, option, message) from exc


def _build_inner(config: BidirectionalConfig, shape: Shape, source: Shape, where: str) -> Recurrent:
    kind = config.layer.get("type")
    if not (isinstance(kind, str) and kind in LAYERS and issubclass(LAYERS[kind], Recurrent)):
        recurrent = ", ".join(name for name, layer in LAYERS.items() if issubclass(layer, Recurrent))
        raise OptionError("layer", f"its type must be one of {recurrent}, got {kind!r}")
    layer = build_layer(config.layer, shape, source, f"{where}.layer")
    assert isinstance(layer, Recurrent)
    return layer
