"""The layers of a network, by the names recipes use; each module holds one family.

`build_layers` turns a recipe's tables into torch modules. Trains nothing, and knows no task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from training.layers.base import L, Layer, LayerConfig, LayerError, LayerState, OptionError, Shape, Signal, Symbol
from training.layers.bidirectional import Bidirectional
from training.layers.convolution import Conv1D, MaxPooling1D
from training.layers.decoder import DecoderInput, ParallelDecoder
from training.layers.dense import ActivationLayer, Dense
from training.layers.dropout import Dropout, GaussianNoise, SpatialDropout
from training.layers.embedding import Embedding, Masking
from training.layers.gru import GRU
from training.layers.lstm import LSTM
from training.layers.normalization import BatchNormalization, LayerNormalization
from training.layers.pooling import ConcatPooling, GlobalAveragePooling, GlobalMaxPooling, Recent
from training.layers.preprocessing import Normalization, PadSequences
from training.layers.reshaping import Flatten, RepeatVector, Reshape, TimeDistributed
from training.layers.simple_rnn import SimpleRNN
from training.layers.smoothing import Smoothing

__all__ = [
    "LAYERS",
    "Layer",
    "LayerError",
    "LayerState",
    "OptionError",
    "Shape",
    "Signal",
    "Symbol",
    "build_layer",
    "build_layers",
    "options_of",
    "read_config",
    "register_layer",
]

LAYERS: dict[str, type[Layer]] = {}


def register_layer(layer: type[Layer]) -> type[Layer]:
    """Let recipes use a layer, under the names that its Config allows for `type`. Raises ValueError if one is in use."""
    for name in layer.names():
        if LAYERS.setdefault(name, layer) is not layer:
            raise ValueError(f'there is a layer "{name}" already: {LAYERS[name].__name__}')
    return layer


for _layer in (
    Embedding,
    LSTM,
    GRU,
    SimpleRNN,
    Bidirectional,
    TimeDistributed,
    Masking,
    Dense,
    ActivationLayer,
    Dropout,
    SpatialDropout,
    GaussianNoise,
    LayerNormalization,
    BatchNormalization,
    Conv1D,
    MaxPooling1D,
    GlobalMaxPooling,
    GlobalAveragePooling,
    ConcatPooling,
    RepeatVector,
    Flatten,
    Reshape,
    Recent,
    Smoothing,
    DecoderInput,
    ParallelDecoder,
    PadSequences,
    Normalization,
):
    register_layer(_layer)


def build_layers(tables: Sequence[Mapping[str, Any]], shape: Shape, source: Shape) -> list[Layer]:
    """Build layer after layer, each for the output of the one before; the first reads rows of `shape`.

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

    def build_inner(option: str, table: Mapping[str, Any], shape: Shape, kind: type[L]) -> L:
        names = [name for name, layer in LAYERS.items() if issubclass(layer, kind)]
        if len(names) < len(LAYERS) and table.get("type") not in names:
            raise OptionError(option, f"its type must be one of {', '.join(names)}, got {table.get('type')!r}")
        layer = build_layer(table, shape, source, f"{where}.{option}")
        assert isinstance(layer, kind)
        return layer

    try:
        layer = LAYERS[config.type].build(config, shape, source, build_inner)
    except OptionError as exc:
        raise LayerError(where, config.type, exc.option, exc.message) from exc
    if not config.trainable:
        layer.requires_grad_(False)
    return layer


def read_config(table: Mapping[str, Any], where: str) -> LayerConfig:
    """Check a layer's table alone. Raises LayerError for an unknown type or option, or a value that does not fit."""
    kind = table.get("type")
    if kind is None:
        raise LayerError(where, "", "type", f"is missing; there are {', '.join(LAYERS)}")
    if not isinstance(kind, str) or kind not in LAYERS:
        raise LayerError(where, "", "type", f"unknown layer {kind!r}; there are {', '.join(LAYERS)}")
    config_class = LAYERS[kind].Config
    try:
        return config_class.model_validate(table)
    except ValidationError as exc:
        # A misspelt option comes first: it often is the one that seems to be missing.
        errors = sorted(exc.errors(include_url=False), key=lambda error: error["type"] != "extra_forbidden")
        error = errors[0]
        option = str(error["loc"][0]) if error["loc"] else None
        if error["type"] == "extra_forbidden":
            message = f"unknown; there are {', '.join(options_of(kind))}"
        elif error["type"] == "missing":
            message = "is missing"
        else:
            message = error["msg"].removeprefix("Value error, ")
            message += f", got {error['input']!r}" if error["loc"] else ""
        raise LayerError(where, kind, option, message) from exc


def options_of(kind: str) -> list[str]:
    """The names of a layer's options, its own before those that all layers have."""
    common = list(LayerConfig.model_fields)
    own = [name for name in LAYERS[kind].Config.model_fields if name not in common]
    return own + [name for name in common if name != "type"]
