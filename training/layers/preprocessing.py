"""Keras's preprocessing as first layers of a network, so that it is part of the graph: `pad_sequences`, `Normalization`.

Masks nothing (that is `mask_zero` of the embedding) and splits no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt, field_validator
from torch import Tensor

from training.graph.builder import GraphBuilder
from training.layers.base import Layer, LayerConfig, LayerState, Shape, Signal, Symbol, require, require_values
from training.layers.ragged import write_column
from training.layers.weights import Weight

EPSILON = 1e-7  # Keras's bound of the standard deviation


class PadSequencesConfig(LayerConfig):
    """The arguments of keras.utils.pad_sequences, with its defaults."""

    type: Literal["pad_sequences"]
    maxlen: PositiveInt
    padding: Literal["pre", "post"] = "pre"
    truncating: Literal["pre", "post"] = "pre"
    value: int = 0


class PadSequences(Layer):
    """Ids (B, T) to (B, maxlen): of longer rows the last ("pre") or first ("post") ids are kept, shorter ones are padded.

    The layers behind it read the padding as values like any other, as in Keras.
    """

    Config: ClassVar[type[LayerConfig]] = PadSequencesConfig
    config: PadSequencesConfig
    reads_tokens = True
    reads_whole_sequence = True
    is_about_steps = True

    def __init__(self, config: PadSequencesConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require(shape.is_tokens and shape.is_open, None, f"is for token ids, as the first layer of a network; got {shape}")
        assert shape.vocabulary is not None
        fits = 0 <= config.value < shape.vocabulary
        require(fits, "value", f"must be an id below {shape.vocabulary}, got {config.value}")
        self.output = Shape((config.maxlen,), shape.vocabulary)

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        maxlen = self.config.maxlen
        places = torch.arange(maxlen, device=signal.values.device)  # (maxlen,)
        lengths = signal.lengths.unsqueeze(1)  # (B, 1)
        num_kept = lengths.clamp(max=maxlen)
        start = maxlen - num_kept if self.config.padding == "pre" else torch.zeros_like(num_kept)
        is_padding = (places < start) | (places >= start + num_kept)  # (B, maxlen)
        origin = places - start
        if self.config.truncating == "pre":
            origin = origin + (lengths - num_kept)
        chosen = signal.values.gather(1, origin.masked_fill(is_padding, 0))
        values = chosen.masked_fill(is_padding, self.config.value)
        return Signal(values, torch.full_like(signal.lengths, maxlen)), ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        assert symbol.lengths is not None
        maxlen, zero = graph.constant(self.config.maxlen), graph.constant(0)
        places = graph.constant(np.arange(self.config.maxlen)[None, :])
        lengths = write_column(graph, symbol.lengths)
        num_kept = graph.add("Min", lengths, maxlen)
        start = graph.add("Sub", maxlen, num_kept) if self.config.padding == "pre" else zero
        is_early = graph.add("Less", places, start)
        is_late = graph.add("GreaterOrEqual", places, graph.add("Add", start, num_kept))
        is_padding = graph.add("Or", is_early, is_late)
        origin = graph.add("Sub", places, start)
        if self.config.truncating == "pre":
            origin = graph.add("Add", origin, graph.add("Sub", lengths, num_kept))
        chosen = graph.add("GatherElements", symbol.values, graph.add("Where", is_padding, zero, origin), axis=1)
        values = graph.add("Where", is_padding, graph.constant(self.config.value), chosen, named=True)
        return Symbol(values, None), ()


class NormalizationConfig(LayerConfig):
    """Keras's Normalization of each feature, or with `axis` null of all values alike.

    Without `mean` and `variance` they are fitted on the training part.
    """

    type: Literal["normalization"]
    axis: int | None = -1
    mean: float | list[float] | None = None
    variance: float | list[float] | None = None
    invert: bool = False

    @field_validator("axis", mode="before")
    @classmethod
    def _as_keras_saves_it(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) == 1:
            return value[0]
        return None if value == [] else value


class Normalization(Layer):
    """(values - mean) / standard deviation of each feature; `invert` goes back."""

    Config: ClassVar[type[LayerConfig]] = NormalizationConfig
    config: NormalizationConfig
    keras_class = "Normalization"
    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, config: NormalizationConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_values(shape)
        # Counted with the rows, as in Keras.
        is_last = config.axis in (None, -1, len(shape.axes))
        require(is_last, "axis", f"must be -1, the features, or null, all values alike; got {config.axis}")
        both = (config.mean is None) == (config.variance is None)
        require(both, "mean" if config.mean is None else "variance", "mean and variance are given both, or none of them")
        self.is_given = config.mean is not None
        for name, values in (("mean", config.mean or 0.0), ("variance", 1.0 if config.variance is None else config.variance)):
            found = torch.as_tensor(values, dtype=torch.float32)
            fits = found.numel() == 1 or (found.numel() == shape.features and config.axis is not None)
            expected = "a number" if config.axis is None else f"a number or {shape.features}"
            require(fits, name, f"expected {expected}, got {found.numel()}")
            found = found.reshape(()) if found.numel() == 1 else found
            self.register_buffer(name, found.expand(() if config.axis is None else (shape.features,)).clone())
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @property
    def is_fitted(self) -> bool:
        """Whether there is a mean to subtract."""
        return self.is_given or bool(self.count > 0)

    @property
    def weights(self) -> tuple[Weight, ...]:
        if self.is_given:
            return ()
        return tuple(_statistic(name, getattr(self, name)) for name in ("mean", "variance", "count"))

    def load_keras_weights(self, arrays: Sequence[NDArray[Any]]) -> None:
        super().load_keras_weights(arrays)
        self.count.clamp_(min=1)  # Keras 3.15 leaves it 0 after `adapt`

    @property
    def adapts_to(self) -> Literal["inputs", "answers"] | None:
        if self.is_given:
            return None
        return "answers" if self.config.invert else "inputs"

    @torch.no_grad()
    def adapt(self, values: Tensor) -> None:
        """Take mean and variance of each feature of values (N, ..., F), or of all, as Keras's `adapt` does."""
        rows = values.double().reshape(-1, *(() if self.config.axis is None else values.shape[-1:]))
        self.mean.copy_(rows.mean(0))
        self.variance.copy_(rows.var(0, correction=0))
        self.count.fill_(len(rows))

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        deviation = self.variance.sqrt().clamp(min=EPSILON)
        if self.config.invert:
            return signal.with_values(signal.values * deviation + self.mean), ()
        return signal.with_values((signal.values - self.mean) / deviation), ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        require(self.is_fitted, "mean", "is neither given nor fitted")
        mean = graph.constant(self.mean.cpu().numpy(), "mean")
        deviation = graph.constant(self.variance.sqrt().clamp(min=EPSILON).cpu().numpy(), "deviation")
        if self.config.invert:
            return symbol.with_values(graph.add("Add", graph.add("Mul", symbol.values, deviation), mean)), ()
        return symbol.with_values(graph.add("Div", graph.add("Sub", symbol.values, mean), deviation)), ()


def _statistic(name: str, values: Tensor) -> Weight:
    @torch.no_grad()
    def write(given: Tensor) -> None:
        values.copy_(given)

    return Weight(name, lambda: values, write, is_statistic=True)
