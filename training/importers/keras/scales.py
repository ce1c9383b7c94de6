"""Scalers that lie outside a model: which fit it, and how a chain of layers takes them in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.importers.adapters.classify import ClassifyOptions
from training.importers.adapters.forecast import ForecastOptions
from training.importers.keras.chain import NotAChain
from training.importers.model import FeatureScale, ModelImportError, SourceLayer, SourceModel
from training.importers.options import ImportOptions
from training.importers.torch.wrappers import LinearScale

SMALLEST = 1e-6
"""A deviation; layers of Keras take smaller ones for another."""


@dataclass(frozen=True)
class Scales:
    """Of the first input and, inverted, of the first output; `scaler` is that of a series' features, there and back."""

    scale: LinearScale | None = None
    unscale: LinearScale | None = None
    scaler: LinearScale | None = None


NO_SCALES = Scales()


def require_scales_that_fit(scales: Scales, options: ImportOptions, name: str, num_features: int | None) -> None:
    """Raise ModelImportError unless the task and the first input take them; `num_features` is None for token ids."""
    if isinstance(options, ForecastOptions):
        if scales.scale is not None or scales.unscale is not None:
            raise ModelImportError("--scale and --unscale: a forecast has one scaler, of its features: --scaler")
        return
    if scales.scaler is not None:
        raise ModelImportError(f"--scaler belongs to --task forecast, the task is {options.task}")
    if scales.scale is not None and num_features is None:
        raise ModelImportError(f'--scale: the first input "{name}" is of token ids')
    if scales.scale is not None and len(scales.scale.factor) not in (1, num_features):
        raise ModelImportError(f"--scale: it has {len(scales.scale.factor)} features, the input {num_features}")
    if scales.unscale is not None and isinstance(options, ClassifyOptions):
        raise ModelImportError("--unscale: a classifier gives probabilities")


def with_scales(model: SourceModel, scales: Scales, options: ImportOptions) -> SourceModel:
    """The chain with its scales as layers, or as the scale of its features.

    Raises NotAChain where no layer can be one, and ModelImportError for scales that do not fit.
    """
    num_features = None if model.has_tokens else model.input_shape[-1]
    require_scales_that_fit(scales, options, model.input_name, num_features)
    layers = model.layers
    if scales.scale is not None:
        if layers[0].table["type"] == "masking":
            raise NotAChain("a mask behind a scale")
        layers = (_as_layer(scales.scale, "scale", invert=False), *layers)
    if scales.unscale is not None:
        last = model.layers[-1].table
        if last.get("return_state") or last.get("layer", {}).get("return_state") or last.get("merge_mode", "concat") is None:
            raise NotAChain("a scale behind the first of several results")
        layers = (*layers, _as_layer(scales.unscale, "unscale", invert=True))
    if scales.scaler is None:
        return replace(model, layers=layers)
    assert num_features is not None
    if len(scales.scaler.factor) not in (1, num_features):
        raise ModelImportError(f"--scaler: it has {len(scales.scaler.factor)} features, the model {num_features}")
    offset, deviation = _as_deviation(scales.scaler.for_features(num_features))
    return replace(model, layers=layers, scale=FeatureScale(offset, deviation))


def _as_layer(scale: LinearScale, name: str, *, invert: bool) -> SourceLayer:
    mean, deviation = _as_deviation(scale)
    variance = np.square(deviation)
    size = len(mean)
    table = {
        "type": "normalization",
        "name": name,
        "mean": float(mean[0]) if size == 1 else mean.tolist(),
        "variance": float(variance[0]) if size == 1 else variance.tolist(),
        **({"invert": True} if invert else {}),
    }
    return SourceLayer(table, f"--{name}")


def _as_deviation(scale: LinearScale) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x · factor + offset as (x - mean) / deviation. Raises NotAChain where the deviation is not one that layers have."""
    if (scale.factor <= 0).any() or (1 / scale.factor < SMALLEST).any():
        raise NotAChain("a scale whose deviation is not above zero")
    return -scale.offset / scale.factor, 1 / scale.factor
