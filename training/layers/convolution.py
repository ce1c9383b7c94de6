"""Layers with a window that slides over time: convolution and maximum."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.activations import LINEAR, ActivationOption
from training.layers.base import Layer, LayerConfig, LayerState, OptionError, Shape, Signal, Symbol, require, require_sequence
from training.layers.weights import (
    GLOROT_UNIFORM,
    ZEROS,
    ConstraintOption,
    InitializerOption,
    Regularizer,
    RegularizerOption,
    Weight,
    weight_of,
)


def _only(value: Any) -> Any:
    """Keras saves [3] for 3."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


Steps = Annotated[PositiveInt, BeforeValidator(_only)]


class Conv1DConfig(LayerConfig):
    """Keras's Conv1D."""

    type: Literal["conv1d"]
    filters: PositiveInt
    kernel_size: Steps
    strides: Steps = 1
    padding: Literal["valid", "same", "causal"] = "valid"
    data_format: Literal["channels_last"] | None = None
    dilation_rate: Steps = 1
    groups: PositiveInt = 1
    activation: ActivationOption = LINEAR
    use_bias: bool = True
    kernel_initializer: InitializerOption = GLOROT_UNIFORM
    bias_initializer: InitializerOption = ZEROS
    kernel_regularizer: RegularizerOption = None
    bias_regularizer: RegularizerOption = None
    activity_regularizer: RegularizerOption = None
    kernel_constraint: ConstraintOption = None
    bias_constraint: ConstraintOption = None

    @model_validator(mode="after")
    def _one_of_strides_and_dilation(self) -> Conv1DConfig:
        if self.strides > 1 and self.dilation_rate > 1:
            raise ValueError("strides and dilation_rate above 1 do not go together, in Keras neither")
        return self


class MaxPooling1DConfig(LayerConfig):
    """Keras's MaxPooling1D."""

    type: Literal["max_pooling1d", "max_pooling"]
    pool_size: Steps = 2
    strides: Steps | None = None
    padding: Literal["valid", "same"] = "valid"
    data_format: Literal["channels_last"] | None = None


class _Window(Layer):
    """A window of `span` steps that moves by `stride`; where rows differ in length, each is padded at its own ends."""

    reads_whole_sequence = True
    is_about_steps = True
    span: int
    stride: int
    padding: str
    fill: ClassVar[float]  # what is in the padding

    def __init__(self, config: LayerConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_sequence(shape)

    def set_window(self, span: int, stride: int, padding: str, features: int) -> None:
        self.span, self.stride, self.padding = span, stride, padding
        steps = self.input.axes[0]
        if isinstance(steps, int):
            num_steps = self.count(steps)
            if num_steps < 1:
                raise OptionError(None, f"its window of {span} steps does not fit into the {steps} of {self.input}")
            self.output = Shape((num_steps, features))
        else:
            keeps_length = stride == 1 and (padding != "valid" or span == 1)
            self.output = Shape((steps if keeps_length else "steps", features))

    def count(self, num_steps: Any) -> Any:
        """How many steps come out, of a number or a tensor."""
        if self.padding == "valid":
            return (num_steps - self.span) // self.stride + 1
        return (num_steps + self.stride - 1) // self.stride

    def steps_for(self, num_steps: int) -> int:
        steps = (num_steps - 1) * self.stride + 1
        return steps + self.span - 1 if self.padding == "valid" else steps

    @property
    def activity_regularizer(self) -> Regularizer | None:
        return None

    def slide(self, values: Tensor) -> Tensor:
        """The window at each of its places in (B, F, T), without padding: (B, features, steps)."""
        raise NotImplementedError

    def write_slide(self, graph: GraphBuilder, values: str) -> str:
        """`slide` in the graph."""
        raise NotImplementedError

    def finish(self, values: Tensor) -> Tensor:
        return values

    def write_finish(self, graph: GraphBuilder, values: str) -> str:
        return values

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        values, lengths = signal.values, signal.lengths
        num_steps = values.shape[1]
        if self.padding == "causal":
            values = functional.pad(values, (0, 0, self.span - 1, 0), value=self.fill)
        elif self.padding == "same" and not self.input.is_open:
            values = functional.pad(values, (0, 0, *self._fixed_padding()), value=self.fill)
        elif self.padding == "same":
            before = self._before(lengths)
            steps = torch.arange((self.count(num_steps) - 1) * self.stride + self.span, device=values.device)
            index = steps - before.unsqueeze(1)  # (B, padded T)
            is_within = (index >= 0) & (index < lengths.unsqueeze(1))
            values = ragged.take_steps(values, index.clamp(0, num_steps - 1)).masked_fill(~is_within.unsqueeze(2), self.fill)
        elif values.shape[1] < self.span:
            values = functional.pad(values, (0, 0, 0, self.span - num_steps))
        result = Signal(self.finish(self.slide(values.transpose(1, 2)).transpose(1, 2)), self.count(lengths))
        return self.with_activity(self.activity_regularizer, result), ()

    def _before(self, lengths: Any) -> Any:
        """Steps of padding before each row: half of what is missing, the smaller half."""
        missing = (self.count(lengths) - 1) * self.stride + self.span - lengths
        return missing.clamp(min=0) // 2

    def _fixed_padding(self) -> tuple[int, int]:
        steps = self.input.fixed_axes[0]
        missing = max((self.count(steps) - 1) * self.stride + self.span - steps, 0)
        return missing // 2, missing - missing // 2

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        values, lengths = symbol.values, symbol.lengths
        ends: tuple[int, int] | None = None
        if self.padding == "causal":
            ends = (self.span - 1, 0)
        elif self.padding == "same" and lengths is None:
            ends = self._fixed_padding()
        elif self.padding == "same":
            assert lengths is not None
            values = self._write_same(graph, values, lengths)
        if ends is not None and any(ends):
            pads = graph.constant([0, ends[0], 0, 0, ends[1], 0])
            values = graph.add("Pad", values, pads, graph.constant(self.fill))
        windows = self.write_slide(graph, graph.add("Transpose", values, perm=[0, 2, 1]))
        values = self.write_finish(graph, graph.add("Transpose", windows, perm=[0, 2, 1]))
        return Symbol(values, None if lengths is None else self._write_count(graph, lengths)), ()

    def _write_count(self, graph: GraphBuilder, lengths: str) -> str:
        """`count` in the graph."""
        added = 1 - self.span + self.stride - 1 if self.padding == "valid" else self.stride - 1
        if added:
            lengths = graph.add("Add", lengths, graph.constant(added))
        return lengths if self.stride == 1 else graph.add("Div", lengths, graph.constant(self.stride))

    def _write_same(self, graph: GraphBuilder, values: str, lengths: str) -> str:
        def needed(num_steps: str) -> str:
            """The steps under all windows."""
            last = graph.add("Sub", self._write_count(graph, num_steps), graph.constant(1))
            return graph.add("Add", graph.add("Mul", last, graph.constant(self.stride)), graph.constant(self.span))

        missing = graph.add("Max", graph.add("Sub", needed(lengths), lengths), graph.constant(0))
        before = ragged.write_column(graph, graph.add("Div", missing, graph.constant(2)))
        num_steps = ragged.write_num_steps(graph, values)
        index = graph.add("Sub", ragged.write_range(graph, needed(num_steps)), before)
        is_behind = graph.add("Less", index, ragged.write_column(graph, lengths))
        is_within = graph.add("And", graph.add("GreaterOrEqual", index, graph.constant(0)), is_behind)
        last = graph.add("Sub", num_steps, graph.constant([1]))
        bounded = graph.add("Min", graph.add("Max", index, graph.constant(0)), last)
        taken = ragged.write_take_steps(graph, values, bounded)
        return graph.add("Where", graph.add("Unsqueeze", is_within, graph.constant([2])), taken, graph.constant(self.fill))


class Conv1D(_Window):
    """activation(window · kernel + bias). A mask ends here, as in Keras."""

    Config: ClassVar[type[LayerConfig]] = Conv1DConfig
    config: Conv1DConfig
    keras_class = "Conv1D"
    fill = 0.0

    def __init__(self, config: Conv1DConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        for option, count in (("groups", shape.features), ("filters", config.filters)):
            fits = count % config.groups == 0
            require(fits, option, f"{config.groups} groups do not divide {count} {'features' if option == 'groups' else option}")
        self.set_window((config.kernel_size - 1) * config.dilation_rate + 1, config.strides, config.padding, config.filters)
        kernel = config.kernel_initializer((config.kernel_size, shape.features // config.groups, config.filters))
        self.kernel = nn.Parameter(kernel.permute(2, 1, 0).contiguous())  # torch and ONNX: (filters, features, size)
        self.bias = nn.Parameter(config.bias_initializer((config.filters,))) if config.use_bias else None

    @property
    def activity_regularizer(self) -> Regularizer | None:
        return self.config.activity_regularizer

    @property
    def weights(self) -> tuple[Weight, ...]:
        config = self.config

        @torch.no_grad()
        def write(values: Tensor) -> None:
            self.kernel.copy_(values.permute(2, 1, 0))

        rules = (config.kernel_regularizer, config.kernel_constraint)
        kernel = Weight("kernel", lambda: self.kernel.permute(2, 1, 0), write, *rules)
        if self.bias is None:
            return (kernel,)
        return kernel, weight_of("bias", self.bias, config.bias_regularizer, config.bias_constraint)

    def slide(self, values: Tensor) -> Tensor:
        config = self.config
        return functional.conv1d(
            values, self.kernel, self.bias, config.strides, dilation=config.dilation_rate, groups=config.groups
        )

    def write_slide(self, graph: GraphBuilder, values: str) -> str:
        config = self.config
        inputs = [values, graph.constant(self.kernel.detach().cpu().numpy(), "kernel")]
        if self.bias is not None:
            inputs.append(graph.constant(self.bias.detach().cpu().numpy(), "bias"))
        attributes = {"strides": [config.strides], "dilations": [config.dilation_rate], "group": config.groups}
        return graph.add("Conv", *inputs, named=True, kernel_shape=[config.kernel_size], **attributes)

    def finish(self, values: Tensor) -> Tensor:
        return self.config.activation(values)

    def write_finish(self, graph: GraphBuilder, values: str) -> str:
        return self.config.activation.write(graph, values)


class MaxPooling1D(_Window):
    """The largest value of each feature in the window. A mask ends here, as in Keras."""

    Config: ClassVar[type[LayerConfig]] = MaxPooling1DConfig
    config: MaxPooling1DConfig
    keras_class = "MaxPooling1D"
    fill = float("-inf")

    def __init__(self, config: MaxPooling1DConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        self.set_window(config.pool_size, config.strides or config.pool_size, config.padding, shape.features)

    def slide(self, values: Tensor) -> Tensor:
        return functional.max_pool1d(values, self.span, self.stride)

    def write_slide(self, graph: GraphBuilder, values: str) -> str:
        return graph.add("MaxPool", values, named=True, kernel_shape=[self.span], strides=[self.stride])
