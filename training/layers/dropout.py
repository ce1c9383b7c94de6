"""Layers that only act while training: in the graph they are nothing.

Randomness is torch's global generator, which a run seeds.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from training.graph.builder import GraphBuilder
from training.layers.base import Layer, LayerConfig, LayerState, Shape, Signal, Symbol, require, require_sequence, require_values

Rate = Annotated[float, Field(ge=0, lt=1)]


def dropout_mask(values: Tensor, shape: tuple[int, ...], rate: float) -> Tensor:
    """Zeros with probability `rate`, else 1 / (1 - rate), in `shape`, which broadcasts against `values`."""
    keep = 1.0 - rate
    return torch.empty(shape, dtype=values.dtype, device=values.device).bernoulli_(keep).div_(keep)


class DropoutConfig(LayerConfig):
    """`noise_shape` as in Keras: 1 shares the mask along that axis, anything else (null, or an axis' name) is the input's.

    ["batch", "time", 1] drops whole steps: after an embedding that is word dropout.
    """

    type: Literal["dropout"]
    rate: Rate
    noise_shape: list[int | str | None] | None = None
    seed: int | None = None


class SpatialDropoutConfig(LayerConfig):
    """Drops whole features of a sequence (Keras's SpatialDropout1D)."""

    type: Literal["spatial_dropout1d", "spatial_dropout"]
    rate: Rate
    seed: int | None = None


class GaussianNoiseConfig(LayerConfig):
    """Keras's GaussianNoise."""

    type: Literal["gaussian_noise"]
    stddev: Annotated[float, Field(ge=0)]
    seed: int | None = None


class _TrainingOnly(Layer):
    config: DropoutConfig | SpatialDropoutConfig | GaussianNoiseConfig
    hands_mask_on = True

    @property
    def notes(self) -> tuple[str, ...]:
        if self.config.seed is None:
            return ()
        return ('option "seed": accepted, and changes nothing: all randomness follows from the seed of the run',)

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        return symbol.with_values(symbol.values), ()


class Dropout(_TrainingOnly):
    """Zeroes single values, and scales the rest so that the sum stays the same on average."""

    Config: ClassVar[type[LayerConfig]] = DropoutConfig
    config: DropoutConfig
    keras_class = "Dropout"

    def __init__(self, config: DropoutConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_values(shape)
        if config.noise_shape is not None:
            num_axes = 1 + len(shape.axes)
            require(
                len(config.noise_shape) == num_axes,
                "noise_shape",
                f"needs {num_axes} axes for {shape}, got {len(config.noise_shape)}",
            )
            sizes = zip(config.noise_shape, ("batch", *shape.axes), strict=True)
            wrong = [axis for axis, size in sizes if isinstance(axis, int) and axis not in (1, size)]
            require(not wrong, "noise_shape", f"an axis is 1, or the input's, or left open; got {wrong} for {shape}")

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        if not self.training or self.config.rate == 0:
            return signal, ()
        if self.config.noise_shape is None:
            return signal.with_values(nn.functional.dropout(signal.values, self.config.rate)), ()
        sizes = zip(self.config.noise_shape, signal.values.shape, strict=True)
        shape = tuple(1 if axis == 1 else size for axis, size in sizes)
        return signal.with_values(signal.values * dropout_mask(signal.values, shape, self.config.rate)), ()


class SpatialDropout(_TrainingOnly):
    """Zeroes a feature in all steps of a row at once."""

    Config: ClassVar[type[LayerConfig]] = SpatialDropoutConfig
    config: SpatialDropoutConfig
    keras_class = "SpatialDropout1D"
    is_about_steps = True

    def __init__(self, config: SpatialDropoutConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_sequence(shape)

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        if not self.training or self.config.rate == 0:
            return signal, ()
        num_rows, _, num_features = signal.values.shape
        mask = dropout_mask(signal.values, (num_rows, 1, num_features), self.config.rate)
        return signal.with_values(signal.values * mask), ()


class GaussianNoise(_TrainingOnly):
    """Adds noise of mean zero."""

    Config: ClassVar[type[LayerConfig]] = GaussianNoiseConfig
    config: GaussianNoiseConfig
    keras_class = "GaussianNoise"

    def __init__(self, config: GaussianNoiseConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_values(shape)

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        if not self.training or self.config.stddev == 0:
            return signal, ()
        return signal.with_values(signal.values + self.config.stddev * torch.randn_like(signal.values)), ()
