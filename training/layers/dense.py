"""The fully connected layer, and the layer that is an activation alone."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveInt
from torch import nn

from training.graph.builder import GraphBuilder
from training.layers.activations import LINEAR, ActivationOption
from training.layers.base import Layer, LayerConfig, LayerState, OptionError, Shape, Signal, Symbol, require_values
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
    """`units` may be left out in the last layer only, where the task fixes how many values it needs."""

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
    keras_class = "Dense"
    acts_on_last_axis = True
    gives_units = True
    hands_mask_on = True

    def __init__(self, config: DenseConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_values(shape)
        if config.units is None:
            raise OptionError("units", "is missing: it may be left out in the last layer only, where it follows from the task")
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

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        values = nn.functional.linear(signal.values, self.kernel.t(), self.bias)
        result = signal.with_values(self.config.activation(values))
        return self.with_activity(self.config.activity_regularizer, result), ()

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
    keras_class = "Activation"
    acts_on_last_axis = True
    hands_mask_on = True

    def __init__(self, config: ActivationConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_values(shape)

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        result = signal.with_values(self.config.activation(signal.values))
        return self.with_activity(self.config.activity_regularizer, result), ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        return symbol.with_values(self.config.activation.write(graph, symbol.values)), ()
