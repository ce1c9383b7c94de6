"""Layer normalization and batch normalization."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.base import Layer, LayerConfig, LayerState, MaskUse, Shape, Signal, Symbol, require, require_values
from training.layers.weights import (
    EPSILON,
    ONES,
    ZEROS,
    ConstraintOption,
    InitializerOption,
    RegularizerOption,
    Weight,
    weight_of,
)


class NormalizationConfig(LayerConfig):
    """What the two have in common."""

    epsilon: Annotated[float, Field(ge=0)] = 1e-3
    center: bool = True
    scale: bool = True
    beta_initializer: InitializerOption = ZEROS
    gamma_initializer: InitializerOption = ONES
    beta_regularizer: RegularizerOption = None
    gamma_regularizer: RegularizerOption = None
    beta_constraint: ConstraintOption = None
    gamma_constraint: ConstraintOption = None


class LayerNormalizationConfig(NormalizationConfig):
    """`axis` counts the batch as 0, as in Keras."""

    type: Literal["layer_normalization"]
    axis: int | list[int] = -1
    rms_scaling: Literal[False] = False


class BatchNormalizationConfig(NormalizationConfig):
    """Over the last axis; `renorm` and `synchronized` are not there."""

    type: Literal["batch_normalization"]
    axis: int = -1
    momentum: float = 0.99
    moving_mean_initializer: InitializerOption = ZEROS
    moving_variance_initializer: InitializerOption = ONES
    renorm: Literal[False] = False
    renorm_clipping: None = None
    renorm_momentum: float = 0.99
    synchronized: Literal[False] = False


class _Normalization(Layer):
    config: NormalizationConfig
    hands_mask_on = True

    def make_weights(self, shape: tuple[int, ...]) -> None:
        config = self.config
        self.gamma = nn.Parameter(config.gamma_initializer(shape)) if config.scale else None
        self.beta = nn.Parameter(config.beta_initializer(shape)) if config.center else None

    @property
    def weights(self) -> tuple[Weight, ...]:
        config = self.config
        found = []
        if self.gamma is not None:
            found.append(weight_of("gamma", self.gamma, config.gamma_regularizer, config.gamma_constraint))
        if self.beta is not None:
            found.append(weight_of("beta", self.beta, config.beta_regularizer, config.beta_constraint))
        return tuple(found)


class LayerNormalization(_Normalization):
    """Each row (and step) normalized over `axis` by its own mean and variance (Ba et al. 2016)."""

    Config: ClassVar[type[LayerConfig]] = LayerNormalizationConfig
    config: LayerNormalizationConfig
    keras_class = "LayerNormalization"

    @classmethod
    def mask_use(cls, config: Any) -> MaskUse:
        return "carried" if config.axis in (-1, 2, [-1], [2]) else "ignored"  # else steps are normalized by one another

    def __init__(self, config: LayerNormalizationConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_values(shape)
        num_axes = 1 + len(shape.axes)
        given = config.axis if isinstance(config.axis, list) else [config.axis]
        for axis in given:
            fits = -num_axes < axis < num_axes and axis != 0
            require(fits, "axis", f"must be an axis of {shape} behind the batch, got {axis}")
        axes = sorted({axis % num_axes for axis in given})
        sizes = [shape.axes[axis - 1] for axis in axes]
        fixed = [size for size in sizes if isinstance(size, int)]
        require(len(fixed) == len(sizes), "axis", f"{config.axis} holds the open time axis of {shape}")
        self.axes = [axis - num_axes for axis in axes]  # counted from the end
        self.make_weights(tuple(fixed))
        # gamma and beta in the shape that broadcasts against the values
        self.aligned = [int(shape.axes[axis - 1]) if axis in axes else 1 for axis in range(axes[0], num_axes)]

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        values = signal.values
        centred = values - values.mean(self.axes, keepdim=True)
        values = centred * (centred.square().mean(self.axes, keepdim=True) + self.config.epsilon).rsqrt()
        if self.gamma is not None:
            values = values * self.gamma.view(self.aligned)
        if self.beta is not None:
            values = values + self.beta.view(self.aligned)
        return signal.with_values(values), ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        mean = graph.add("ReduceMean", symbol.values, axes=self.axes, keepdims=1)
        centred = graph.add("Sub", symbol.values, mean)
        variance = graph.add("ReduceMean", graph.add("Mul", centred, centred), axes=self.axes, keepdims=1)
        deviation = graph.add("Sqrt", graph.add("Add", variance, graph.constant(self.config.epsilon)))
        values = graph.add("Div", centred, deviation, named=True)
        for operator, part, name in (("Mul", self.gamma, "gamma"), ("Add", self.beta, "beta")):
            if part is not None:
                values = graph.add(operator, values, graph.constant(part.detach().view(self.aligned).cpu().numpy(), name))
        return symbol.with_values(values), ()


class BatchNormalization(_Normalization):
    """Each feature normalized by its mean and variance: the batch's while training, their moving averages after."""

    Config: ClassVar[type[LayerConfig]] = BatchNormalizationConfig
    config: BatchNormalizationConfig
    keras_class = "BatchNormalization"
    moving_mean: Tensor
    moving_variance: Tensor

    def __init__(self, config: BatchNormalizationConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_values(shape)
        is_last = config.axis in (-1, len(shape.axes))
        require(is_last, "axis", f"only the last axis of {shape} is taken, got {config.axis}")
        features = (shape.features,)
        self.make_weights(features)
        self.register_buffer("moving_mean", config.moving_mean_initializer(features))
        self.register_buffer("moving_variance", config.moving_variance_initializer(features))

    @property
    def mixes_rows(self) -> bool:
        return True

    @property
    def weights(self) -> tuple[Weight, ...]:
        mean = weight_of("moving_mean", self.moving_mean, is_statistic=True)
        return (*super().weights, mean, weight_of("moving_variance", self.moving_variance, is_statistic=True))

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        config, values = self.config, signal.values
        if self.training and config.trainable:
            mean, variance = self._moments(signal)
            with torch.no_grad():
                self.moving_mean.lerp_(mean, 1 - config.momentum)
                self.moving_variance.lerp_(variance, 1 - config.momentum)
        else:
            mean, variance = self.moving_mean, self.moving_variance
        values = (values - mean) * (variance + config.epsilon).rsqrt()
        if self.gamma is not None:
            values = values * self.gamma
        if self.beta is not None:
            values = values + self.beta
        return signal.with_values(values), ()

    def _moments(self, signal: Signal) -> tuple[Tensor, Tensor]:
        """Mean and variance of each feature over the steps that exist and are not masked."""
        values = signal.values
        axes = list(range(values.dim() - 1))
        if not self.input.is_open and signal.mask is None:
            return values.mean(axes), values.var(axes, correction=0)
        is_read = ragged.mask(values, signal.lengths)
        if signal.mask is not None:
            is_read = is_read & signal.mask.unsqueeze(2)
        is_read = is_read.view(*is_read.shape[:2], *[1] * (values.dim() - 2))
        # Keras counts a little more than there is, so that nothing is divided by zero.
        count = is_read.expand_as(values).sum(axes) + EPSILON
        mean = values.masked_fill(~is_read, 0.0).sum(axes) / count
        variance = (values - mean).masked_fill(~is_read, 0.0).square().sum(axes) / count
        return mean, variance

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        factor = (self.moving_variance.double() + self.config.epsilon).rsqrt()
        if self.gamma is not None:
            factor = factor * self.gamma.detach()
        offset = -self.moving_mean * factor
        if self.beta is not None:
            offset = offset + self.beta.detach()
        values = graph.add("Mul", symbol.values, graph.constant(factor.cpu().numpy(), "factor"))
        values = graph.add("Add", values, graph.constant(offset.cpu().numpy(), "offset"), named=True)
        return symbol.with_values(values), ()
