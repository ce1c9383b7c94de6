"""The layers of a network, by the names recipes use; each module holds one family.

`build_layers` turns a recipe's tables into torch modules. Trains nothing, and knows no task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from training.layers.base import Layer, LayerConfig, LayerError, OptionError, Shape, Signal, State, Symbol
from training.layers.bidirectional import Bidirectional, BidirectionalConfig
from training.layers.convolution import Conv1D, MaxPooling1D
from training.layers.dense import ActivationLayer, Dense
from training.layers.dropout import Dropout, GaussianNoise, SpatialDropout
from training.layers.embedding import Embedding, Masking
from training.layers.normalization import BatchNormalization, LayerNormalization
from training.layers.pooling import ConcatPooling, GlobalAveragePooling, GlobalMaxPooling, Recent
from training.layers.preprocessing import Normalization, PadSequences
from training.layers.recurrent import GRU, LSTM, Recurrent, SimpleRNN
from training.layers.reshaping import Flatten, RepeatVector, Reshape, TimeDistributed, TimeDistributedConfig

__all__ = [
    "LAYERS",
    "Layer",
    "LayerError",
    "OptionError",
    "Shape",
    "Signal",
    "State",
    "Symbol",
    "build_layer",
    "build_layers",
    "options_of",
    "read_config",
]

LAYERS: dict[str, type[Layer]] = {
    "embedding": Embedding,
    "lstm": LSTM,
    "gru": GRU,
    "simple_rnn": SimpleRNN,
    "bidirectional": Bidirectional,
    "time_distributed": TimeDistributed,
    "masking": Masking,
    "dense": Dense,
    "activation": ActivationLayer,
    "dropout": Dropout,
    "spatial_dropout1d": SpatialDropout,
    "spatial_dropout": SpatialDropout,
    "gaussian_noise": GaussianNoise,
    "layer_normalization": LayerNormalization,
    "batch_normalization": BatchNormalization,
    "conv1d": Conv1D,
    "max_pooling1d": MaxPooling1D,
    "max_pooling": MaxPooling1D,
    "global_max_pooling1d": GlobalMaxPooling,
    "global_max_pooling": GlobalMaxPooling,
    "global_average_pooling1d": GlobalAveragePooling,
    "global_average_pooling": GlobalAveragePooling,
    "concat_pooling": ConcatPooling,
    "repeat_vector": RepeatVector,
    "flatten": Flatten,
    "reshape": Reshape,
    "recent": Recent,
    "pad_sequences": PadSequences,
    "normalization": Normalization,
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
            layer: Layer = Bidirectional(config, shape, source, *_build_pair(config, shape, source, where))
        elif isinstance(config, TimeDistributedConfig):
            layer = TimeDistributed(config, shape, source, _build_step(config, shape, source, where))
        else:
            layer = layer_class(config, shape, source)
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
    if kind not in LAYERS:
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


def _build_pair(config: BidirectionalConfig, shape: Shape, source: Shape, where: str) -> tuple[Recurrent, Recurrent]:
    forward = _build_recurrent("layer", config.layer, shape, source, where)
    if config.backward_layer is not None:
        return forward, _build_recurrent("backward_layer", config.backward_layer, shape, source, where)
    # Keras makes the other one from the same options, but that it reads backward.
    table = {**config.layer, "go_backwards": True}
    return forward, _build_recurrent("layer", table, shape, source, where)


def _build_recurrent(option: str, table: Mapping[str, Any], shape: Shape, source: Shape, where: str) -> Recurrent:
    kind = table.get("type")
    if not (isinstance(kind, str) and kind in LAYERS and issubclass(LAYERS[kind], Recurrent)):
        recurrent = ", ".join(name for name, layer in LAYERS.items() if issubclass(layer, Recurrent))
        raise OptionError(option, f"its type must be one of {recurrent}, got {kind!r}")
    layer = build_layer(table, shape, source, f"{where}.{option}")
    assert isinstance(layer, Recurrent)
    return layer


def _build_step(config: TimeDistributedConfig, shape: Shape, source: Shape, where: str) -> Layer:
    if shape.is_tokens or len(shape.axes) < 2:
        raise OptionError(None, f"needs a sequence (batch, time, ...), got {shape}")
    layer = build_layer(config.layer, Shape(shape.axes[1:]), source, f"{where}.layer")
    if isinstance(layer, Recent):
        raise OptionError("layer", "recent reads the network's input, which no single step has")
    if layer.is_stateful:
        raise OptionError("layer", "a stateful layer inside is not supported: the steps would share one state")
    if layer.others:
        raise OptionError("layer", "a layer with more than one result inside is not supported, in Keras neither")
    return layer
