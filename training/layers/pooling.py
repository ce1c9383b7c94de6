"""From a sequence to one vector per row, each row within its own length; and the direct path from the input."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.base import (
    Layer,
    LayerConfig,
    LayerState,
    MaskUse,
    Shape,
    Signal,
    StatePart,
    Symbol,
    require,
    require_sequence,
)


class GlobalPoolingConfig(LayerConfig):
    """What Keras's two have in common; `keepdims` leaves a time axis of one step."""

    data_format: Literal["channels_last"] | None = None
    keepdims: bool = False


class GlobalMaxPoolingConfig(GlobalPoolingConfig):
    """Keras's GlobalMaxPooling1D over all steps within each row's length; it reads masked steps too, as Keras does."""

    type: Literal["global_max_pooling1d", "global_max_pooling"]


class GlobalAveragePoolingConfig(GlobalPoolingConfig):
    """Keras's GlobalAveragePooling1D; masked steps do not count. A row without any step gives NaN, as in Keras."""

    type: Literal["global_average_pooling1d", "global_average_pooling"]


class ConcatPoolingConfig(LayerConfig):
    """Maximum and mean side by side (Howard and Ruder 2018, arXiv:1801.06146), both without masked steps."""

    type: Literal["concat_pooling"]


class RecentConfig(LayerConfig):
    """Appends the last `n` steps of the network's scaled input: a direct path past the layers before.

    Behind a sequence `n` is 1: to each step is appended what the input is at that step.
    """

    type: Literal["recent"]
    n: PositiveInt


class _Pooling(Layer):
    reads_whole_sequence = True
    is_about_steps = True
    multiple: ClassVar[int] = 1

    def __init__(self, config: LayerConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_sequence(shape)
        features = shape.features * self.multiple
        self.output = Shape((1, features) if self.keepdims else (features,))

    @property
    def keepdims(self) -> bool:
        return False

    def pool(self, signal: Signal) -> Tensor:
        """(B, T, F) to (B, F · multiple)."""
        raise NotImplementedError

    def write_pool(self, graph: GraphBuilder, symbol: Symbol) -> str:
        """`pool` in the graph."""
        raise NotImplementedError

    def steps_for(self, num_steps: int) -> int:
        return 1

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        values = self.pool(signal)
        if self.keepdims:
            return Signal(values.unsqueeze(1), torch.ones_like(signal.lengths)), ()
        return Signal(values, signal.lengths), ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        values = self.write_pool(graph, symbol)
        if self.keepdims:
            return Symbol(graph.add("Unsqueeze", values, graph.constant([1])), None), ()
        return Symbol(values, symbol.lengths), ()


class _GlobalPooling(_Pooling):
    config: GlobalPoolingConfig

    @property
    def keepdims(self) -> bool:
        return self.config.keepdims


class GlobalMaxPooling(_GlobalPooling):
    """The largest value of each feature."""

    Config: ClassVar[type[LayerConfig]] = GlobalMaxPoolingConfig
    keras_class = "GlobalMaxPooling1D"

    def pool(self, signal: Signal) -> Tensor:
        return _max(Signal(signal.values, signal.lengths))

    def write_pool(self, graph: GraphBuilder, symbol: Symbol) -> str:
        return _write_max(graph, Symbol(symbol.values, symbol.lengths))


class GlobalAveragePooling(_GlobalPooling):
    """The mean of each feature."""

    Config: ClassVar[type[LayerConfig]] = GlobalAveragePoolingConfig
    keras_class = "GlobalAveragePooling1D"

    @classmethod
    def mask_use(cls, config: Any) -> MaskUse:
        return "used up"

    def pool(self, signal: Signal) -> Tensor:
        return _mean(signal)

    def write_pool(self, graph: GraphBuilder, symbol: Symbol) -> str:
        return _write_mean(graph, symbol)


class ConcatPooling(_Pooling):
    """Maximum, then mean, of each feature: (B, 2 · F).

    Of a sequence in pieces both are of all steps so far: the state holds the maximum, the sum, and how many steps there were.
    A network that streams masks no step, so that a piece without any need not be thought of.
    """

    Config: ClassVar[type[LayerConfig]] = ConcatPoolingConfig
    multiple = 2
    reads_whole_sequence = False

    @property
    def state(self) -> tuple[StatePart, ...]:
        features = self.input.features
        return (StatePart("maximum", features), StatePart("sum", features), StatePart("num_steps", 1, (0.0, 20.0)))

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        if not state:
            return super().forward(signal, source)
        maximum, total, num_steps = state
        largest = _max(signal)
        # Zeros are no maximum of no steps.
        maximum = torch.where(num_steps > 0, torch.maximum(maximum, largest), largest)
        total = total + signal.values.masked_fill(~_is_read(signal), 0.0).sum(1)
        num_steps = num_steps + signal.lengths.unsqueeze(1).to(num_steps.dtype)
        return Signal(torch.cat([maximum, total / num_steps], 1), signal.lengths), (maximum, total, num_steps)

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        if not state:
            return super().write(graph, symbol, source)
        maximum, total, num_steps = state
        assert symbol.lengths is not None
        largest = _write_max(graph, symbol)
        has_steps = graph.add("Greater", num_steps, graph.constant(0.0))
        maximum = graph.add("Where", has_steps, graph.add("Max", maximum, largest), largest)
        total = graph.add("Add", total, _write_sum(graph, symbol))
        num_new = graph.add("Cast", ragged.write_column(graph, symbol.lengths), to=1)
        num_steps = graph.add("Add", num_steps, num_new)
        values = graph.add("Concat", maximum, graph.add("Div", total, num_steps), axis=1)
        return Symbol(values, symbol.lengths), (maximum, total, num_steps)

    def pool(self, signal: Signal) -> Tensor:
        if signal.mask is not None:
            # A row that is masked wholly is read as if it were not: there is no maximum of nothing.
            mask = signal.mask & (torch.arange(signal.mask.shape[1], device=signal.mask.device) < signal.lengths.unsqueeze(1))
            signal = Signal(signal.values, signal.lengths, mask | ~mask.any(1, keepdim=True))
        return torch.cat([_max(signal), _mean(signal)], 1)

    def write_pool(self, graph: GraphBuilder, symbol: Symbol) -> str:
        if symbol.mask is not None:
            is_read = ragged.write_is_read(graph, symbol)
            assert is_read is not None
            is_empty = graph.add("Equal", ragged.write_count(graph, is_read), graph.constant(0))
            mask = graph.add("Or", is_read, ragged.write_column(graph, is_empty))
            symbol = Symbol(symbol.values, symbol.lengths, mask)
        return graph.add("Concat", _write_max(graph, symbol), _write_mean(graph, symbol), axis=1)


class Recent(Layer):
    """The vector so far, and after it the last `n` steps of the source: (B, F + n · source features).

    Of a sequence each step, and after it the source's same step: (B, T, F + source features).
    """

    Config: ClassVar[type[LayerConfig]] = RecentConfig
    config: RecentConfig
    reads_source = True
    is_about_steps = True

    def __init__(self, config: RecentConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        self.is_per_step_of_source = shape.axes[0] == "time" and not shape.is_tokens and config.n == 1
        fits = self.is_per_step_of_source or not shape.is_sequence
        require(fits, None, f"needs one vector per row, or n = 1 and the input's own steps, got {shape}")
        require(not source.is_tokens, None, "needs a numeric input, this network reads tokens")
        fits = len(source.axes) == 2 and source.is_open
        require(fits, None, f"needs a network whose input has an open time axis, this one reads {source}")
        self.num_source_features = source.features
        self.output = shape.with_features(shape.features + config.n * source.features)

    @property
    def can_stream(self) -> bool:
        return self.is_per_step_of_source

    @property
    def min_length(self) -> int:
        return self.config.n

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        if self.is_per_step_of_source:
            return signal.with_values(torch.cat([signal.values, source.values], 2)), ()
        offsets = torch.arange(self.config.n, device=source.values.device)
        recent = ragged.last_steps(source.values, source.lengths, offsets, self.config.n)  # (B, n, F)
        return signal.with_values(torch.cat([signal.values, recent.flatten(1)], 1)), ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        n = self.config.n
        if self.is_per_step_of_source:
            return symbol.with_values(graph.add("Concat", symbol.values, source.values, axis=2, named=True)), ()
        assert source.lengths is not None
        recent = ragged.write_last_steps(graph, source.values, source.lengths, list(range(n)), n)
        flat = graph.add("Reshape", recent, graph.constant([0, n * self.num_source_features]))
        return symbol.with_values(graph.add("Concat", symbol.values, flat, axis=1, named=True)), ()


def _is_read(signal: Signal) -> Tensor:
    """(B, T, 1), true where a step counts."""
    within = ragged.mask(signal.values, signal.lengths)
    return within if signal.mask is None else within & signal.mask.unsqueeze(2)


def _write_is_read(graph: GraphBuilder, symbol: Symbol) -> str | None:
    is_read = ragged.write_is_read(graph, symbol)
    return None if is_read is None else graph.add("Unsqueeze", is_read, graph.constant([2]))


def _max(signal: Signal) -> Tensor:
    return signal.values.masked_fill(~_is_read(signal), -torch.inf).amax(1)


def _write_max(graph: GraphBuilder, symbol: Symbol) -> str:
    is_read = _write_is_read(graph, symbol)
    values = symbol.values
    if is_read is not None:
        values = graph.add("Where", is_read, values, graph.constant(float("-inf")))
    return graph.add("ReduceMax", values, axes=[1], keepdims=0)


def _mean(signal: Signal) -> Tensor:
    is_read = _is_read(signal)
    return signal.values.masked_fill(~is_read, 0.0).sum(1) / is_read.sum(1)


def _write_mean(graph: GraphBuilder, symbol: Symbol) -> str:
    is_read = _write_is_read(graph, symbol)
    if is_read is None:
        return graph.add("ReduceMean", symbol.values, axes=[1], keepdims=0)
    total = _write_sum(graph, symbol)
    count = graph.add("ReduceSum", graph.add("Cast", is_read, to=1), graph.constant([1]), keepdims=0)  # (B, 1)
    return graph.add("Div", total, count)


def _write_sum(graph: GraphBuilder, symbol: Symbol) -> str:
    is_read = _write_is_read(graph, symbol)
    values = symbol.values if is_read is None else graph.add("Where", is_read, symbol.values, graph.constant(0.0))
    return graph.add("ReduceSum", values, graph.constant([1]), keepdims=0)
