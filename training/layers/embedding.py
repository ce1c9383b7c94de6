"""From token ids to vectors. Splits no text."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from training.layers.base import Layer, LayerConfig, Shape, Signal, State, Symbol, require
from training.layers.ragged import write_column, write_num_steps, write_range
from training.onnx_graph import GraphBuilder


class EmbeddingConfig(LayerConfig):
    """`input_dim` may be left out: it then is the vocabulary's size. With `mask_zero` ids 0 at a row's end are not read."""

    type: Literal["embedding"]
    input_dim: PositiveInt | None = None
    output_dim: PositiveInt
    mask_zero: bool = False


class Embedding(Layer):
    """Ids (B, T) to vectors (B, T, output_dim); weights start uniform in ±0.05, as Keras's do."""

    Config: ClassVar[type[LayerConfig]] = EmbeddingConfig
    config: EmbeddingConfig

    def __init__(self, config: EmbeddingConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require(shape.is_tokens, None, f"needs token ids, got {shape}")
        assert shape.vocabulary is not None
        num_ids = config.input_dim or shape.vocabulary
        require(num_ids >= shape.vocabulary, "input_dim", f"{num_ids} is below the vocabulary's {shape.vocabulary} ids")
        self.output = Shape((*shape.axes, config.output_dim))
        self.embeddings = nn.Parameter(torch.empty(num_ids, config.output_dim).uniform_(-0.05, 0.05))

    @property
    def can_stream(self) -> bool:
        """Not with `mask_zero`: a piece may then hold no step at all."""
        return not self.config.mask_zero

    def forward(self, signal: Signal, source: Signal, state: State = ()) -> tuple[Signal, State]:
        lengths = _lengths_without_zeros(signal) if self.config.mask_zero else signal.lengths
        return Signal(nn.functional.embedding(signal.values, self.embeddings), lengths), ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        lengths = _write_lengths_without_zeros(graph, symbol) if self.config.mask_zero else symbol.lengths
        weights = graph.constant(self.embeddings.detach().cpu().numpy(), "embeddings")
        return Symbol(graph.add("Gather", weights, symbol.values, named=True), lengths), ()


def _lengths_without_zeros(signal: Signal) -> Tensor:
    steps = torch.arange(signal.values.shape[1], device=signal.values.device)
    is_read = (signal.values != 0) & (steps < signal.lengths.unsqueeze(1))
    # At least one step: onnxruntime's recurrent nodes take no row of length 0.
    return torch.where(is_read, steps + 1, 1).amax(1)


def _write_lengths_without_zeros(graph: GraphBuilder, symbol: Symbol) -> str:
    steps = write_range(graph, write_num_steps(graph, symbol.values))
    is_zero = graph.add("Equal", symbol.values, graph.constant(0))
    is_within = graph.add("Less", steps, write_column(graph, symbol.lengths))
    is_read = graph.add("And", graph.add("Not", is_zero), is_within)
    ends = graph.add("Where", is_read, graph.add("Add", steps, graph.constant(1)), graph.constant(1))
    return graph.add("ReduceMax", ends, axes=[1], keepdims=0)
