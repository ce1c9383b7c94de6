"""What a decoder reads of each step that is forecast."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.base import Layer, LayerConfig, LayerState, Shape, Signal, Symbol, require


class DecoderInputConfig(LayerConfig):
    """What a decoder reads of each step that is forecast: the vector so far, the covariates known of that step, and lags.

    A lag is the network's scaled input so many steps before the step, or a multiple of them where that is still ahead.
    """

    type: Literal["decoder_input"]
    lags: tuple[PositiveInt, ...] = ()


class DecoderInput(Layer):
    """(B, F) to (B, horizon, F + covariates + lags · source features): the first half of a decoder."""

    Config: ClassVar[type[LayerConfig]] = DecoderInputConfig
    config: DecoderInputConfig
    reads_source = True
    reads_ahead = True
    is_about_steps = True

    def __init__(self, config: DecoderInputConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require(not shape.is_sequence, None, f"needs one vector per row, got {shape}")
        require(source.ahead is not None, None, "needs a network that forecasts, whose horizon gives its steps")
        assert source.ahead is not None
        self.horizon, self.num_covariates = source.ahead
        self.output = Shape((self.horizon, shape.features + self.num_covariates + len(config.lags) * source.features))

    @property
    def can_stream(self) -> bool:
        return not self.config.lags

    @property
    def min_length(self) -> int:
        return max(self.config.lags, default=1)

    def steps_for(self, num_steps: int) -> int:
        return 1

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        parts = [signal.values.unsqueeze(1).expand(-1, self.horizon, -1)]
        if source.ahead is not None:
            parts.append(source.ahead)
        steps = torch.arange(self.horizon, device=source.values.device)
        parts += [ragged.last_steps(source.values, source.lengths, steps % lag, lag) for lag in self.config.lags]
        return Signal(torch.cat(parts, 2), torch.full_like(signal.lengths, self.horizon)), ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        column = graph.add("Unsqueeze", symbol.values, graph.constant([1]))
        parts = [graph.add("Tile", column, graph.constant([1, self.horizon, 1]))]
        if source.ahead is not None:
            parts.append(source.ahead)
        for lag in self.config.lags:
            assert source.lengths is not None
            offsets = [step % lag for step in range(self.horizon)]
            parts.append(ragged.write_last_steps(graph, source.values, source.lengths, offsets, lag))
        return Symbol(graph.add("Concat", *parts, axis=2, named=True) if len(parts) > 1 else parts[0], None), ()
