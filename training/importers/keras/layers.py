"""From a layer as Keras saves it to the table that stands for it in a recipe. Imports no Keras, and reads no file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.layers.activations import read_activation
from training.layers.named import snake_case
from training.layers.registry import LAYERS, LayerError, options_of, read_config
from training.layers.weights import read_constraint, read_initializer, read_regularizer

# Saved options that change no number, or that repeat the shape of the input.
_IGNORED = {"batch_input_shape", "batch_shape", "input_shape", "input_length", "build_config", "autocast"}
# Options that are supported only at Keras's default, which turns them off.
_ONLY_OFF: dict[str, tuple[Any, ...]] = {
    "lora_rank": (None,),
    "lora_alpha": (None,),
    "quantization_config": (None,),
    "time_major": (False,),
    "renorm": (False,),
    "renorm_clipping": (None,),
    "synchronized": (False,),
    "rms_scaling": (False,),
    "data_format": (None, "channels_last"),
    "fused": (None, True, False),
    "virtual_batch_size": (None,),
}
_ACTIVATION_LAYERS = ("re_lu", "leaky_re_lu", "elu", "softmax")


def from_keras_config(entry: Mapping[str, Any], *, keras_version: str = "3") -> dict[str, Any]:
    """The table of a layer that Keras saved as {"class_name": "LSTM", "config": {...}}, without what is a default.

    `keras_version` decides what "hard_sigmoid" means. The layer's name in Keras becomes the option `name`. Raises LayerError
    that names the layer and the option: an unknown class or option, or a value that is not supported.
    """
    kind, config = str(entry.get("class_name", "")), dict(entry.get("config") or {})
    where = f'layer "{config.get("name") or kind}"'
    type_ = snake_case(kind)
    if type_ in _ACTIVATION_LAYERS:
        kept = {key: config[key] for key in ("name", "trainable") if key in config}
        activation = _activation_of_layer(kind, config, where)
        return {"type": "activation", **kept, "activation": activation}
    if type_ not in LAYERS or LAYERS[type_].keras_class is None:
        raise LayerError(where, kind, None, f"there is no such layer; there are {', '.join(keras_classes())}")
    table: dict[str, Any] = {"type": type_}
    for option, value in config.items():
        if option == "dtype":
            _check_dtype(value, where, kind)
        elif option in _ONLY_OFF:
            if value not in _ONLY_OFF[option]:
                raise LayerError(where, kind, option, f"is not supported, got {value!r}")
        elif option in _IGNORED or (option == "input_dim" and option not in options_of(type_)):
            continue  # changes no number
        elif option not in options_of(type_) and not (option == "activity_regularizer" and value is None):
            raise LayerError(where, kind, option, f"unknown; there are {', '.join(options_of(type_))}")
        elif option in options_of(type_):
            table[option] = _read_option(option, value, where, kind, keras_version)
    return _without_defaults(_without_twin(table) if "backward_layer" in options_of(type_) else table, where)


def _activation_of_layer(kind: str, config: Mapping[str, Any], where: str) -> str | dict[str, Any]:
    """The activation that a layer such as LeakyReLU is. Raises LayerError."""
    match snake_case(kind):
        case "leaky_re_lu":
            return {"name": "leaky_relu", "negative_slope": config.get("negative_slope", config.get("alpha", 0.3))}
        case "elu":
            return {"name": "elu", "alpha": config.get("alpha", 1.0)}
        case "softmax":
            if config.get("axis", -1) != -1:
                raise LayerError(where, kind, "axis", f"only the last axis is supported, got {config['axis']!r}")
            return "softmax"
    for option in ("negative_slope", "threshold"):
        if config.get(option):
            raise LayerError(where, kind, option, f"is not supported, got {config[option]!r}")
    if config.get("max_value") not in (None, 6, 6.0):
        raise LayerError(where, kind, "max_value", f"only 6 is supported, got {config['max_value']!r}")
    return "relu" if config.get("max_value") is None else "relu6"


def _read_option(option: str, value: Any, where: str, kind: str, keras_version: str) -> Any:
    """The option's value as a recipe writes it. Raises LayerError."""
    try:
        if value is None:
            return None
        if option in ("layer", "backward_layer"):
            return from_keras_config(value, keras_version=keras_version)
        if option == "axis" and isinstance(value, list) and len(value) == 1:
            return value[0]
        if option.endswith("activation"):
            if isinstance(value, Mapping) and snake_case(str(value.get("class_name"))) in _ACTIVATION_LAYERS:
                value = _activation_of_layer(str(value["class_name"]), value.get("config") or {}, where)
            read = read_activation(value)
            is_old = read.name == "hard_sigmoid" and keras_version.split(".")[0] in ("1", "2")
            return _named("hard_sigmoid_keras2" if is_old else read.name, read.options)
        if option.endswith("_initializer"):
            initializer = read_initializer(value)
            return _named(initializer.name, ((k, v) for k, v in initializer.options if k != "seed"))
        reader = {"_regularizer": read_regularizer, "_constraint": read_constraint}
        for ending, read_rule in reader.items():
            if option.endswith(ending):
                rule = read_rule(value)
                assert rule is not None
                return _named(rule.name, rule.options)
    except ValueError as exc:
        if isinstance(exc, LayerError):
            raise
        raise LayerError(where, kind, option, str(exc)) from exc
    return value


def _named(name: str, options: Any) -> str | dict[str, Any]:
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in options}
    return {"name": name, **given} if given else name


def _check_dtype(value: Any, where: str, kind: str) -> None:
    policy = value.get("config", {}).get("name") if isinstance(value, Mapping) else value
    if policy not in (None, "float32"):
        raise LayerError(where, kind, "dtype", f'only "float32" is supported, got {policy!r}')


def _without_twin(table: dict[str, Any]) -> dict[str, Any]:
    """Keras saves the backward layer even where it is the forward layer's twin."""
    layer, backward = table.get("layer", {}), table.get("backward_layer")
    if backward is not None and backward.get("go_backwards"):
        same = {key: value for key, value in backward.items() if key not in ("name", "go_backwards")}
        if same == {key: value for key, value in layer.items() if key != "name"}:
            table = {key: value for key, value in table.items() if key != "backward_layer"}
    inner = {"layer": layer, "backward_layer": table.get("backward_layer")}
    # The inner layers' names are made up by Keras.
    unnamed = {key: {k: v for k, v in part.items() if k != "name"} for key, part in inner.items() if part}
    return {**table, **unnamed}


def _without_defaults(table: dict[str, Any], where: str) -> dict[str, Any]:
    config = read_config(table, where)
    fields: Any = type(config).model_fields
    return {
        option: value
        for option, value in table.items()
        if option == "type" or fields[option].is_required() or getattr(config, option) != fields[option].default
    }


def hands_mask_on(class_name: str) -> bool:
    """Whether the mask of a Keras layer's input is that of its output, so that a call with that mask is a call without."""
    return any(layer.hands_mask_on for layer in LAYERS.values() if layer.keras_class == class_name)


def keras_classes() -> tuple[str, ...]:
    """Keras's names of the layers that can be read."""
    return tuple(dict.fromkeys(layer.keras_class for layer in LAYERS.values() if layer.keras_class is not None))
