"""From a sequence to one vector per row, each row within its own length; and the direct path from the input."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from training.layers import ragged
from training.layers.base import Layer, LayerConfig, Shape, Signal, State, Symbol, require, require_sequence
from training.onnx_graph import GraphBuilder


class GlobalMaxPoolingConfig(LayerConfig):
    """Keras's GlobalMaxPooling1D over the steps within each row's length."""

    type: Literal["global_max_pooling"]


class GlobalAveragePoolingConfig(LayerConfig):
    """Keras's GlobalAveragePooling1D with a mask."""

    type: Literal["global_average_pooling"]


class ConcatPoolingConfig(LayerConfig):
    """Maximum and mean side by side (Howard and Ruder 2018, arXiv:1801.06146)."""

    type: Literal["concat_pooling"]


class RecentConfig(LayerConfig):
    """Appends the last `n` steps of the network's scaled input: a direct path past the layers before."""

    type: Literal["recent"]
    n: PositiveInt


class _Pooling(Layer):
    reads_whole_sequence = True
    multiple: ClassVar[int] = 1

    def __init__(self, config: LayerConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_sequence(shape)
        self.output = Shape((shape.features * self.multiple,))

    def pool(self, signal: Signal) -> Tensor:
        """(B, T, F) to (B, F · multiple)."""
        raise NotImplementedError

    def write_pool(self, graph: GraphBuilder, symbol: Symbol) -> str:
        """`pool` in the graph."""
        raise NotImplementedError

    def forward(self, signal: Signal, source: Signal, state: State = ()) -> tuple[Signal, State]:
        return Signal(self.pool(signal), signal.lengths), ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        return Symbol(self.write_pool(graph, symbol), symbol.lengths), ()


class GlobalMaxPooling(_Pooling):
    """The largest value of each feature."""

    Config: ClassVar[type[LayerConfig]] = GlobalMaxPoolingConfig

    def pool(self, signal: Signal) -> Tensor:
        return _max(signal)

    def write_pool(self, graph: GraphBuilder, symbol: Symbol) -> str:
        return _write_max(graph, symbol)


class GlobalAveragePooling(_Pooling):
    """The mean of each feature."""

    Config: ClassVar[type[LayerConfig]] = GlobalAveragePoolingConfig

    def pool(self, signal: Signal) -> Tensor:
        return _mean(signal)

    def write_pool(self, graph: GraphBuilder, symbol: Symbol) -> str:
        return _write_mean(graph, symbol)


class ConcatPooling(_Pooling):
    """Maximum, then mean, of each feature: (B, 2 · F)."""

    Config: ClassVar[type[LayerConfig]] = ConcatPoolingConfig
    multiple = 2

    def pool(self, signal: Signal) -> Tensor:
        return torch.cat([_max(signal), _mean(signal)], 1)

    def write_pool(self, graph: GraphBuilder, symbol: Symbol) -> str:
        return graph.add("Concat", _write_max(graph, symbol), _write_mean(graph, symbol), axis=1)


class Recent(Layer):
    """The vector so far, and after it the last `n` steps of the source: (B, F + n · source features)."""

    Config: ClassVar[type[LayerConfig]] = RecentConfig
    config: RecentConfig
    reads_whole_sequence = True

    def __init__(self, config: RecentConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require(not shape.is_sequence, None, f"needs one vector per row, got {shape}")
        require(not source.is_tokens, None, "needs a numeric input, this network reads tokens")
        self.num_source_features = source.features
        self.output = Shape((shape.features + config.n * source.features,))

    @property
    def min_length(self) -> int:
        return self.config.n

    def forward(self, signal: Signal, source: Signal, state: State = ()) -> tuple[Signal, State]:
        offsets = torch.arange(self.config.n, device=source.values.device)
        recent = ragged.last_steps(source.values, source.lengths, offsets, self.config.n)  # (B, n, F)
        return Signal(torch.cat([signal.values, recent.flatten(1)], 1), signal.lengths), ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        n = self.config.n
        recent = ragged.write_last_steps(graph, source.values, source.lengths, list(range(n)), n)
        flat = graph.add("Reshape", recent, graph.constant([0, n * self.num_source_features]))
        return Symbol(graph.add("Concat", symbol.values, flat, axis=1, named=True), symbol.lengths), ()


def _max(signal: Signal) -> Tensor:
    return signal.values.masked_fill(~ragged.mask(signal.values, signal.lengths), -torch.inf).amax(1)


def _write_max(graph: GraphBuilder, symbol: Symbol) -> str:
    within = ragged.write_mask(graph, symbol.values, symbol.lengths)
    values = graph.add("Where", within, symbol.values, graph.constant(float("-inf")))
    return graph.add("ReduceMax", values, axes=[1], keepdims=0)


def _mean(signal: Signal) -> Tensor:
    values = signal.values.masked_fill(~ragged.mask(signal.values, signal.lengths), 0.0)
    return values.sum(1) / signal.lengths.unsqueeze(1)


def _write_mean(graph: GraphBuilder, symbol: Symbol) -> str:
    within = ragged.write_mask(graph, symbol.values, symbol.lengths)
    values = graph.add("Where", within, symbol.values, graph.constant(0.0))
    total = graph.add("ReduceSum", values, graph.constant([1]), keepdims=0)
    return graph.add("Div", total, graph.add("Cast", ragged.write_column(graph, symbol.lengths), to=1))
