"""Layers that only rearrange values: repeat, flatten, reshape; and the one that applies another layer to every step."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor

from training.graph.builder import GraphBuilder
from training.layers.base import BuildInner, Layer, LayerConfig, LayerState, Shape, Signal, Symbol, require, require_values
from training.layers.weights import Weight


class RepeatVectorConfig(LayerConfig):
    """Keras's RepeatVector."""

    type: Literal["repeat_vector"]
    n: PositiveInt


class FlattenConfig(LayerConfig):
    """Keras's Flatten."""

    type: Literal["flatten"]
    data_format: Literal["channels_last"] | None = None


class ReshapeConfig(LayerConfig):
    """Keras's Reshape: the axes behind the batch; one may be -1."""

    type: Literal["reshape"]
    target_shape: tuple[int, ...]

    @field_validator("target_shape")
    @classmethod
    def _at_most_one_is_left_open(cls, axes: tuple[int, ...]) -> tuple[int, ...]:
        if not axes or axes.count(-1) > 1 or any(axis < 1 and axis != -1 for axis in axes):
            raise ValueError("must be positive numbers, at most one of them -1")
        return axes


class TimeDistributedConfig(LayerConfig):
    """Keras's TimeDistributed: `layer` is the table of the layer applied to every step."""

    type: Literal["time_distributed"]
    layer: dict[str, Any] = Field(description="the options of the layer, its `type` too")


class _Rearrangement(Layer):
    """(B, ...) to (B, *output); of no row is the time axis open."""

    def move(self, values: Tensor) -> Tensor:
        return values.reshape(len(values), *self.output.fixed_axes)

    def write_move(self, graph: GraphBuilder, values: str) -> str:
        return graph.add("Reshape", values, graph.constant([-1, *self.output.fixed_axes]), named=True)

    def steps_for(self, num_steps: int) -> int:
        return 1

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        lengths = torch.full_like(signal.lengths, self.output.fixed_axes[0])
        return Signal(self.move(signal.values), lengths), ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        return Symbol(self.write_move(graph, symbol.values), None), ()


class RepeatVector(_Rearrangement):
    """(B, F) to (B, n, F): the first half of one-to-many."""

    Config: ClassVar[type[LayerConfig]] = RepeatVectorConfig
    config: RepeatVectorConfig
    keras_class = "RepeatVector"
    is_about_steps = True

    def __init__(self, config: RepeatVectorConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_values(shape)
        require(len(shape.axes) == 1, None, f"needs one vector per row, got {shape}")
        self.output = Shape((config.n, shape.features))

    def move(self, values: Tensor) -> Tensor:
        return values.unsqueeze(1).expand(-1, self.config.n, -1)

    def write_move(self, graph: GraphBuilder, values: str) -> str:
        column = graph.add("Unsqueeze", values, graph.constant([1]))
        return graph.add("Tile", column, graph.constant([1, self.config.n, 1]), named=True)


class Flatten(_Rearrangement):
    """All values of a row in one vector."""

    Config: ClassVar[type[LayerConfig]] = FlattenConfig
    keras_class = "Flatten"
    is_about_steps = True

    def __init__(self, config: FlattenConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        _require_fixed(shape)
        self.output = Shape((math.prod(shape.fixed_axes),))


class Reshape(_Rearrangement):
    """The same values in other axes."""

    Config: ClassVar[type[LayerConfig]] = ReshapeConfig
    config: ReshapeConfig
    keras_class = "Reshape"

    def __init__(self, config: ReshapeConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        _require_fixed(shape)
        size, axes = math.prod(shape.fixed_axes), list(config.target_shape)
        known = math.prod(axis for axis in axes if axis != -1)
        if -1 in axes and size % known == 0:
            axes[axes.index(-1)] = size // known
        require(math.prod(axes) == size, "target_shape", f"{list(config.target_shape)} does not hold {size} values of {shape}")
        self.output = Shape(tuple(axes))


class TimeDistributed(Layer):
    """Applies a layer to every step with the same weights."""

    Config: ClassVar[type[LayerConfig]] = TimeDistributedConfig
    config: TimeDistributedConfig
    keras_class = "TimeDistributed"
    is_about_steps = True
    is_per_step = True
    hands_mask_on = True

    def __init__(self, config: TimeDistributedConfig, shape: Shape, source: Shape, layer: Layer) -> None:
        super().__init__(config, shape, source)
        self.layer = layer
        self.output = Shape((shape.axes[0], *layer.output.axes))

    @classmethod
    def build(cls, config: TimeDistributedConfig, shape: Shape, source: Shape, build_inner: BuildInner) -> Self:
        require(not shape.is_tokens and len(shape.axes) > 1, None, f"needs a sequence (batch, time, ...), got {shape}")
        layer = build_inner("layer", config.layer, Shape(shape.axes[1:]), Layer)
        message = f"{layer.config.type} reads the network's input, which no single step has"
        require(not layer.reads_source, "layer", message)
        require(not layer.is_stateful, "layer", "a stateful layer inside is not supported: the steps would share one state")
        message = "a layer with more than one result inside is not supported, in Keras neither"
        require(not layer.others, "layer", message)
        return cls(config, shape, source, layer)

    @property
    def weights(self) -> tuple[Weight, ...]:
        return self.layer.weights

    @property
    def notes(self) -> tuple[str, ...]:
        notes = self.layer.notes
        if getattr(self.layer.config, "activity_regularizer", None) is not None:
            notes += ('option "layer": its activity_regularizer adds nothing, as in Keras, which calls the layer directly',)
        return notes

    @property
    def mixes_rows(self) -> bool:
        return self.layer.mixes_rows

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        values = signal.values
        if self.layer.acts_on_last_axis:
            return signal.with_values(self.layer(signal, source)[0].values), ()
        if self.training and self.mixes_rows:
            # Keras calls the layer step after step, so each step is a batch of its own.
            return signal.with_values(torch.stack([self._apply_to(step, source) for step in values.unbind(1)], 1)), ()
        result = self._apply_to(values.flatten(0, 1), source)
        return signal.with_values(result.view(*values.shape[:2], *result.shape[1:])), ()

    def _apply_to(self, rows: Tensor, source: Signal) -> Tensor:
        lengths = torch.full((len(rows),), rows.shape[1], device=rows.device)
        values: Tensor = self.layer(Signal(rows, lengths), source)[0].values
        return values

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        if self.layer.acts_on_last_axis:
            return symbol.with_values(self.layer.write(graph, symbol, source)[0].values), ()
        rows = graph.add("Reshape", symbol.values, graph.constant([-1, *self.layer.input.fixed_axes]))
        result, _ = self.layer.write(graph, Symbol(rows, None), source)
        leading = graph.add("Shape", symbol.values, start=0, end=2)
        shape = graph.add("Concat", leading, graph.constant(list(self.layer.output.fixed_axes)), axis=0)
        return symbol.with_values(graph.add("Reshape", result.values, shape)), ()


def _require_fixed(shape: Shape) -> None:
    require_values(shape)
    message = f"needs the same number of steps in every row, got {shape}: its time axis is open"
    require(not shape.is_open, None, message)
