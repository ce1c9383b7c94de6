"""From token ids to vectors, and the two layers that mask steps. Splits no text."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from training.graph.builder import GraphBuilder
from training.layers.base import Layer, LayerConfig, LayerState, Shape, Signal, Symbol, require, require_values
from training.layers.weights import UNIFORM, ConstraintOption, InitializerOption, RegularizerOption, Weight, weight_of


class EmbeddingConfig(LayerConfig):
    """`input_dim` may be left out: it then is the vocabulary's size. With `mask_zero` steps with id 0 are masked.

    With `storage = "int8"`, which Keras does not have, a published vector is 8-bit numbers and one factor: a quarter of the size.
    """

    type: Literal["embedding"]
    input_dim: PositiveInt | None = None
    output_dim: PositiveInt
    embeddings_initializer: InitializerOption = UNIFORM
    embeddings_regularizer: RegularizerOption = None
    activity_regularizer: RegularizerOption = None
    embeddings_constraint: ConstraintOption = None
    mask_zero: bool = False
    storage: Literal["float32", "int8"] = "float32"
    weights: list[Any] | None = None


class Embedding(Layer):
    """Ids (B, T) to vectors (B, T, output_dim); weights start uniform in ±0.05, as Keras's do."""

    Config: ClassVar[type[LayerConfig]] = EmbeddingConfig
    config: EmbeddingConfig
    keras_class = "Embedding"
    reads_tokens = True
    holds_vectors = True

    def __init__(self, config: EmbeddingConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require(shape.is_tokens, None, f"needs token ids, got {shape}")
        assert shape.vocabulary is not None
        num_ids = config.input_dim or shape.vocabulary
        require(num_ids >= shape.vocabulary, "input_dim", f"{num_ids} is below the vocabulary's {shape.vocabulary} ids")
        self.output = Shape((*shape.axes, config.output_dim))
        self.embeddings = nn.Parameter(config.embeddings_initializer((num_ids, config.output_dim)))
        if config.weights is not None:
            matrix = np.asarray(config.weights, np.float32)
            self.load_keras_weights([matrix[0] if matrix.ndim == 3 else matrix])

    @property
    def can_stream(self) -> bool:
        """Not with `mask_zero`: Keras's answer to a piece that is masked wholly is zero."""
        return not self.config.mask_zero

    @property
    def weights(self) -> tuple[Weight, ...]:
        config = self.config
        return (weight_of("embeddings", self.embeddings, config.embeddings_regularizer, config.embeddings_constraint),)

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        mask = signal.values != 0 if self.config.mask_zero else None
        vectors = nn.functional.embedding(signal.values, self.embeddings)
        if self.config.storage == "int8" and not self.training:
            codes, scale = _round(vectors)
            vectors = codes * scale
        result = Signal(vectors, signal.lengths, mask)
        return self.with_activity(self.config.activity_regularizer, result), ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        mask = None
        if self.config.mask_zero:
            mask = graph.add("Not", graph.add("Equal", symbol.values, graph.constant(0)))
        if self.config.storage == "int8":
            return Symbol(self._write_codes(graph, symbol.values), symbol.lengths, mask), ()
        weights = graph.constant(self.embeddings.detach().cpu().numpy(), "embeddings")
        return Symbol(graph.add("Gather", weights, symbol.values, named=True), symbol.lengths, mask), ()

    def _write_codes(self, graph: GraphBuilder, ids: str) -> str:
        codes, scale = _round(self.embeddings.detach().cpu())
        found = graph.add("Gather", graph.constant(codes.to(torch.int8).numpy(), "codes"), ids)
        scales = graph.add("Gather", graph.constant(scale.numpy(), "scale"), ids)
        return graph.add("Mul", graph.add("Cast", found, to=1), scales, named=True)


def _round(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The whole numbers from -127 to 127 and the factor (..., 1) whose product is nearest to each vector (..., F)."""
    scale = vectors.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (vectors / scale).round(), scale


class MaskingConfig(LayerConfig):
    """Masks the steps in which every feature is `mask_value`."""

    type: Literal["masking"]
    mask_value: float = 0.0


class Masking(Layer):
    """Keras's Masking: masked steps become zeros."""

    Config: ClassVar[type[LayerConfig]] = MaskingConfig
    config: MaskingConfig
    keras_class = "Masking"
    is_about_steps = True

    def __init__(self, config: MaskingConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_values(shape)
        require(len(shape.axes) == 2, None, f"needs a sequence (batch, time, features), got {shape}")

    @property
    def can_stream(self) -> bool:
        """Keras's answer to a piece that is masked wholly is zero."""
        return False

    @property
    def mask_value(self) -> float | None:
        return self.config.mask_value

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        mask = (signal.values != self.config.mask_value).any(2)
        return Signal(signal.values.masked_fill(~mask.unsqueeze(2), 0.0), signal.lengths, mask), ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        is_value = graph.add("Equal", symbol.values, graph.constant(self.config.mask_value))
        # ReduceMin and ReduceMax take no BOOL; all features count.
        differs = graph.add("Cast", graph.add("Not", is_value), to=1)
        mask = graph.add("Greater", graph.add("ReduceMax", differs, axes=[2], keepdims=0), graph.constant(0.0))
        values = graph.add("Where", graph.add("Unsqueeze", mask, graph.constant([2])), symbol.values, graph.constant(0.0))
        return Symbol(values, symbol.lengths, mask), ()
