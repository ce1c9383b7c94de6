"""A model of another library in our terms: the tables of its layers, where their weights are, and how long rows may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import TrainingError
from training.layers.registry import LAYERS, Layer


class ModelImportError(TrainingError):
    """The model cannot become a folder with these options: names the option, the layer or the instance."""


@dataclass(frozen=True)
class SourceLayer:
    """One layer: its table as a recipe has it, its name for messages, and what the importer loads its weights from."""

    table: Mapping[str, Any]
    place: str
    weights: Any = None  # None: the layer stands for none of the file


@dataclass(frozen=True)
class FeatureScale:
    """What a model was trained behind: (value - offset) / deviation of each feature."""

    offset: NDArray[np.float64]
    deviation: NDArray[np.float64]


@dataclass(frozen=True)
class SourceModel:
    """A chain of layers. `origin` is what the manifest says of the file; `scale` belongs to a model of a series."""

    origin: Mapping[str, Any]
    layers: tuple[SourceLayer, ...]
    input_name: str
    input_shape: tuple[int | None, ...]  # of a row; None where an axis is open
    is_open: bool  # whether rows may be shorter than the first axis, or of any length
    scale: FeatureScale | None = None

    @property
    def tables(self) -> tuple[dict[str, Any], ...]:
        """The layers as a recipe would list them."""
        return tuple(dict(layer.table) for layer in self.layers)

    @property
    def max_length(self) -> int | None:
        """Steps of the longest row; None: rows may have any number."""
        return self.input_shape[0]

    @property
    def has_tokens(self) -> bool:
        """Whether rows are token ids, not numbers."""
        return LAYERS[self.layers[0].table["type"]].reads_tokens


LoadWeights = Callable[[Layer, SourceLayer], None]
