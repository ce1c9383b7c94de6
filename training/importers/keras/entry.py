"""A layer as Keras saves it, and the error about a file of such layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.errors import TrainingError

Entry = Mapping[str, Any]
"""A layer as Keras saves it: {"class_name": "LSTM", "config": {...}}."""


class KerasFileError(TrainingError):
    """The file cannot be read as one chain of layers; names the layer at fault, where it is one."""


def name_of(entry: Entry) -> str:
    """The layer's name in the model."""
    return str(entry["config"].get("name") or entry.get("name") or entry["class_name"])


def place_of(entry: Entry) -> str:
    """The layer for messages, as `layer "head" (Dense)`."""
    return f'layer "{name_of(entry)}" ({entry["class_name"]})'
