"""The fully connected layer, and the layer that is an activation alone."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveInt
from torch import nn

from training.graph.builder import GraphBuilder
from training.layers.activations import LINEAR, ActivationOption
from training.layers.base import Layer, LayerConfig, Shape, Signal, State, Symbol, require_values
from training.layers.weights import (
    GLOROT_UNIFORM,
    ZEROS,
    ConstraintOption,
    InitializerOption,
    RegularizerOption,
    Weight,
    weight_of,
)


class DenseConfig(LayerConfig):
    """`units` may be left out in the last layer only: the network knows how many answers it owes."""

    type: Literal["dense"]
    units: PositiveInt | None = None
    activation: ActivationOption = LINEAR
    use_bias: bool = True
    kernel_initializer: InitializerOption = GLOROT_UNIFORM
    bias_initializer: InitializerOption = ZEROS
    kernel_regularizer: RegularizerOption = None
    bias_regularizer: RegularizerOption = None
    activity_regularizer: RegularizerOption = None
    kernel_constraint: ConstraintOption = None
    bias_constraint: ConstraintOption = None


class Dense(Layer):
    """activation(values · kernel + bias) over the last axis, of vectors or of every step of a sequence."""

    Config: ClassVar[type[LayerConfig]] = DenseConfig
    config: DenseConfig

    def __init__(self, config: DenseConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_values(shape)
        assert config.units is not None, "the network fills in the last layer's units"
        self.output = shape.with_features(config.units)
        self.kernel = nn.Parameter(config.kernel_initializer((shape.features, config.units)))
        self.bias = nn.Parameter(config.bias_initializer((config.units,))) if config.use_bias else None

    @property
    def weights(self) -> tuple[Weight, ...]:
        config = self.config
        kernel = weight_of("kernel", self.kernel, config.kernel_regularizer, config.kernel_constraint)
        if self.bias is None:
            return (kernel,)
        return kernel, weight_of("bias", self.bias, config.bias_regularizer, config.bias_constraint)

    def forward(self, signal: Signal, source: Signal, state: State = ()) -> tuple[Signal, State]:
        values = nn.functional.linear(signal.values, self.kernel.t(), self.bias)
        result = signal.with_values(self.config.activation(values))
        self.note_activity(self.config.activity_regularizer, result)
        return result, ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        kernel = graph.constant(self.kernel.detach().cpu().numpy(), "kernel")
        values = graph.add("MatMul", symbol.values, kernel, named=True)
        if self.bias is not None:
            values = graph.add("Add", values, graph.constant(self.bias.detach().cpu().numpy(), "bias"))
        return symbol.with_values(self.config.activation.write(graph, values)), ()


class ActivationConfig(LayerConfig):
    """Keras's Activation."""

    type: Literal["activation"]
    activation: ActivationOption
    activity_regularizer: RegularizerOption = None


class ActivationLayer(Layer):
    """Applies one activation to every value; softmax over the last axis."""

    Config: ClassVar[type[LayerConfig]] = ActivationConfig
    config: ActivationConfig

    def __init__(self, config: ActivationConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_values(shape)

    def forward(self, signal: Signal, source: Signal, state: State = ()) -> tuple[Signal, State]:
        result = signal.with_values(self.config.activation(signal.values))
        self.note_activity(self.config.activity_regularizer, result)
        return result, ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        return symbol.with_values(self.config.activation.write(graph, symbol.values)), ()
