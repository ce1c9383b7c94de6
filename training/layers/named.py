"""Options that name a function: "he_normal", or a table with the function's own options, in a recipe's or Keras's form."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any


def read_named(value: object, functions: Mapping[str, Callable[..., Any]]) -> tuple[str, dict[str, Any]]:
    """Name and options of one of `functions`: "max_norm", {name = "max_norm", max_value = 3}, or what Keras saves.

    Keras saves {"class_name": "MaxNorm", "config": {"max_value": 3, "axis": 0}}. Raises ValueError that lists what there is.
    """
    options: dict[str, Any] = {}
    if isinstance(value, str):
        name = value
    elif isinstance(value, Mapping) and "class_name" in value:
        config = value.get("config") or {}
        # A saved function is {"class_name": "function", "config": "its name"}.
        name = config if isinstance(config, str) else str(value["class_name"])
        options = {} if isinstance(config, str) else dict(config)
    elif isinstance(value, Mapping) and "name" in value:
        name, options = str(value["name"]), {key: option for key, option in value.items() if key != "name"}
    else:
        raise ValueError(f"must be a name or a table with a name; there are {', '.join(functions)}")
    name = name if name in functions else snake_case(name)
    if name not in functions:
        raise ValueError(f"unknown {name!r}; there are {', '.join(functions)}")
    known = inspect.signature(functions[name]).parameters
    for option in options:
        if option not in known:
            listed = ", ".join(known) or "no options"
            raise ValueError(f'"{name}" has no option "{option}"; there are {listed}')
    return name, options


def snake_case(name: str) -> str:
    """Keras's way from a class to a name: GlorotUniform, glorot_uniform; Conv1D, conv1d; SimpleRNN, simple_rnn."""
    name = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
