"""Layers that only act while training: in the graph they are nothing.

Randomness is torch's global generator, which a run seeds.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from training.layers.base import Layer, LayerConfig, Shape, Signal, State, Symbol, require, require_sequence, require_values
from training.onnx_graph import GraphBuilder

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


class SpatialDropoutConfig(LayerConfig):
    """Drops whole features of a sequence (Keras's SpatialDropout1D)."""

    type: Literal["spatial_dropout"]
    rate: Rate


class _TrainingOnly(Layer):
    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        return symbol, ()


class Dropout(_TrainingOnly):
    """Zeroes single values, and scales the rest so that the sum stays the same on average."""

    Config: ClassVar[type[LayerConfig]] = DropoutConfig
    config: DropoutConfig

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
            wrong = [axis for axis in config.noise_shape if isinstance(axis, int) and axis != 1]
            require(not wrong, "noise_shape", f"an axis is 1 or left open, got {wrong}")

    def forward(self, signal: Signal, source: Signal, state: State = ()) -> tuple[Signal, State]:
        if not self.training or self.config.rate == 0:
            return signal, ()
        if self.config.noise_shape is None:
            return Signal(nn.functional.dropout(signal.values, self.config.rate), signal.lengths), ()
        sizes = zip(self.config.noise_shape, signal.values.shape, strict=True)
        shape = tuple(1 if axis == 1 else size for axis, size in sizes)
        return Signal(signal.values * dropout_mask(signal.values, shape, self.config.rate), signal.lengths), ()


class SpatialDropout(_TrainingOnly):
    """Zeroes a feature in all steps of a row at once."""

    Config: ClassVar[type[LayerConfig]] = SpatialDropoutConfig
    config: SpatialDropoutConfig

    def __init__(self, config: SpatialDropoutConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_sequence(shape)

    def forward(self, signal: Signal, source: Signal, state: State = ()) -> tuple[Signal, State]:
        if not self.training or self.config.rate == 0:
            return signal, ()
        num_rows, _, num_features = signal.values.shape
        mask = dropout_mask(signal.values, (num_rows, 1, num_features), self.config.rate)
        return Signal(signal.values * mask, signal.lengths), ()
