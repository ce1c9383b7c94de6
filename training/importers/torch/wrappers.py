"""What the options of a publication put around a module: scalers, and the shapes of the tasks. All are modules themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.importers.torch.errors import ModuleRefused


@dataclass(frozen=True)
class LinearScale:
    """x ↦ x · factor + offset of each feature: what a fitted MinMaxScaler or StandardScaler computes."""

    factor: NDArray[np.float64]
    offset: NDArray[np.float64]

    @property
    def inverse(self) -> LinearScale:
        return LinearScale(1 / self.factor, -self.offset / self.factor)

    def for_features(self, number: int) -> LinearScale:
        """One number for all features as one for each."""
        if len(self.factor) != 1:
            return self
        return LinearScale(np.repeat(self.factor, number), np.repeat(self.offset, number))

    def take(self, places: Sequence[int]) -> LinearScale:
        """Of these features only."""
        return LinearScale(self.factor[list(places)], self.offset[list(places)])


def read_scaler(scaler: Any, option: str) -> LinearScale:
    """A fitted scaler of scikit-learn, known by its attributes. Raises ModuleRefused for any other."""
    if isinstance(scaler, LinearScale):
        return scaler
    kind = type(scaler).__name__
    if hasattr(scaler, "data_min_") and hasattr(scaler, "scale_"):
        if getattr(scaler, "clip", False):
            raise ModuleRefused(f"{option}: a MinMaxScaler with clip=True cuts off what it has not seen: fit it without")
        return LinearScale(np.asarray(scaler.scale_, np.float64), np.asarray(scaler.min_, np.float64))
    if hasattr(scaler, "with_mean") and hasattr(scaler, "scale_"):
        size = np.asarray(scaler.scale_ if scaler.scale_ is not None else np.ones(scaler.n_features_in_), np.float64)
        mean = np.asarray(scaler.mean_ if scaler.with_mean else np.zeros_like(size), np.float64)
        return LinearScale(1 / size, -mean / size)
    if hasattr(scaler, "fit"):
        raise ModuleRefused(f"{option}: {kind} is not fitted, or is not a MinMaxScaler or StandardScaler")
    raise ModuleRefused(f"{option}: expected a fitted MinMaxScaler or StandardScaler, got {kind}")


class Scaled(nn.Module):
    """The module between two scales, the second for its first output."""

    def __init__(self, model: nn.Module, scale: LinearScale | None, unscale: LinearScale | None) -> None:
        super().__init__()
        self.model = model
        for name, part in (("scale", scale), ("unscale", unscale)):
            factor = None if part is None else torch.from_numpy(part.factor.astype(np.float32))
            offset = None if part is None else torch.from_numpy(part.offset.astype(np.float32))
            self.register_buffer(f"{name}_factor", factor)
            self.register_buffer(f"{name}_offset", offset)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        factor, offset = self.get_scale("scale")
        if factor is not None and offset is not None:
            args = (args[0] * factor + offset, *args[1:])
        result = self.model(*args, **kwargs)
        factor, offset = self.get_scale("unscale")
        if factor is None or offset is None:
            return result
        return _change_first(result, factor, offset)

    def get_scale(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """Factor and offset, None where there is no such scale."""
        return getattr(self, f"{name}_factor"), getattr(self, f"{name}_offset")


def innermost(model: nn.Module) -> nn.Module:
    """The caller's own module."""
    while isinstance(model, Scaled | ForecastHead | ClassifyHead):
        model = model.model
    return model


def _change_first(result: Any, factor: Tensor, offset: Tensor) -> Any:
    if isinstance(result, Tensor):
        return result * factor + offset
    if isinstance(result, tuple) and not hasattr(result, "_fields"):
        return (_change_first(result[0], factor, offset), *result[1:])
    if isinstance(result, dict):
        first = next(iter(result))
        return {**result, first: _change_first(result[first], factor, offset)}
    raise ModuleRefused(f"unscale: the module gives {type(result).__name__}, expected a tensor, a tuple or a dict")


class ForecastHead(nn.Module):
    """The series in its own units in, and the module's answer as the task's tensors out; `targets` are places of features."""

    factor: Tensor | None
    offset: Tensor | None

    def __init__(
        self, model: nn.Module, horizon: int, quantiles: Sequence[float], scale: LinearScale | None, targets: Sequence[int]
    ) -> None:
        super().__init__()
        inverse = None if scale is None else scale.inverse.take(targets)
        self.model = model if scale is None else Scaled(model, scale, None)
        self.horizon, self.num_targets, self.num_quantiles = horizon, len(targets), len(quantiles)
        self.median = list(quantiles).index(0.5) if quantiles else 0
        self.register_buffer("factor", None if inverse is None else torch.from_numpy(inverse.factor.astype(np.float32)))
        self.register_buffer("offset", None if inverse is None else torch.from_numpy(inverse.offset.astype(np.float32)))

    def forward(self, history: Tensor) -> dict[str, Tensor]:
        result = self.model(history)
        while isinstance(result, tuple):
            result = result[0]
        shape = (history.shape[0], self.horizon, self.num_targets)
        if not self.num_quantiles:
            return {POINT: self.unscale(result.reshape(shape), 0)}
        # Levels that cross are put in order, as those of a recipe's networks are.
        quantiles = self.unscale(result.reshape(*shape, self.num_quantiles), 1).sort(dim=-1).values
        return {POINT: quantiles[..., self.median], "quantiles": quantiles}

    def unscale(self, values: Tensor, num_axes: int) -> Tensor:
        """In the units of the series; `num_axes` stand behind the targets."""
        factor, offset = self.factor, self.offset
        if factor is None or offset is None:
            return values
        shape = (-1, *[1] * num_axes)
        return values * factor.reshape(shape) + offset.reshape(shape)


POINT = "forecast"


class ClassifyHead(nn.Module):
    """The module's answer as probabilities."""

    def __init__(self, model: nn.Module, num_labels: int, is_probability: bool) -> None:
        super().__init__()
        self.model = model
        self.num_labels = num_labels
        self.is_probability = is_probability

    def forward(self, tokens: Tensor, *args: Any) -> Any:
        result = self.model(tokens, *args)
        while isinstance(result, tuple):
            result = result[0]
        values = result.reshape(tokens.shape[0], -1)
        if values.shape[1] == 1 and self.num_labels == 2:
            second = values if self.is_probability else torch.sigmoid(values)
            return {"probabilities": torch.cat([1 - second, second], 1)}
        return {"probabilities": values if self.is_probability else torch.softmax(values, 1)}
