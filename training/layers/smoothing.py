"""Exponentially weighted means of the network's input: a linear path past the layers before."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.base import Layer, LayerConfig, LayerState, Shape, Signal, Symbol, require


class SmoothingConfig(LayerConfig):
    """Appends means of the network's scaled input, weighted by (1 - rate) ** age; the rate 0 is the mean of all steps.

    `of` = "changes" takes the means of what each step adds to the one before, which is 0 for the first.
    """

    type: Literal["smoothing"]
    of: Literal["values", "changes"] = "values"
    rates: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(min_length=1)] = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


class Smoothing(Layer):
    """The vector so far, and after it a mean of the source for every rate: (B, F + rates · source features).

    With a dense layer behind it, forecasts are linear in simple exponential smoothings at several rates (Brown 1959).
    """

    Config: ClassVar[type[LayerConfig]] = SmoothingConfig
    config: SmoothingConfig
    reads_source = True
    reads_whole_sequence = True
    is_about_steps = True

    def __init__(self, config: SmoothingConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require(not shape.is_sequence, None, f"needs one vector per row, got {shape}")
        require(not source.is_tokens, None, "needs a numeric input, this network reads tokens")
        fits = len(source.axes) == 2 and source.is_open
        require(fits, None, f"needs a network whose input has an open time axis, this one reads {source}")
        self.num_means = len(config.rates) * source.features
        self.logs = [math.log(1 - rate) for rate in config.rates]
        self.output = Shape((shape.features + self.num_means,))

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        values = source.values
        if self.config.of == "changes":
            before = torch.arange(-1, values.shape[1] - 1, device=values.device).clamp(min=0)
            values = values - values.index_select(1, before)
        within = ragged.mask(values, source.lengths)  # (B, T, 1)
        steps = torch.arange(values.shape[1], device=values.device)
        ages = (source.lengths.unsqueeze(1) - 1 - steps).clamp(min=0).unsqueeze(2).to(values.dtype)
        logs = torch.tensor(self.logs, dtype=values.dtype, device=values.device)
        weights = (ages * logs).exp() * within.to(values.dtype)  # (B, T, rates)
        weights = weights / weights.sum(1, keepdim=True)
        means: Tensor = torch.matmul(weights.transpose(1, 2), values.masked_fill(~within, 0.0))  # (B, rates, F)
        return signal.with_values(torch.cat([signal.values, means.flatten(1)], 1)), ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        assert source.lengths is not None
        within = ragged.write_mask(graph, source.values, source.lengths)
        steps = ragged.write_range(graph, ragged.write_num_steps(graph, source.values))
        last = graph.add("Sub", ragged.write_column(graph, source.lengths), graph.constant([1]))
        ages = graph.add("Max", graph.add("Sub", last, steps), graph.constant([0]))
        ages = graph.add("Cast", graph.add("Unsqueeze", ages, graph.constant([2])), to=1)
        weights = graph.add("Exp", graph.add("Mul", ages, graph.constant(self.logs, "rates")))
        weights = graph.add("Mul", weights, graph.add("Cast", within, to=1))
        weights = graph.add("Div", weights, graph.add("ReduceSum", weights, graph.constant([1]), keepdims=1))
        values = source.values
        if self.config.of == "changes":
            before = graph.add("Max", graph.add("Sub", steps, graph.constant(1)), graph.constant(0))
            values = graph.add("Sub", values, graph.add("Gather", values, before, axis=1))
        values = graph.add("Where", within, values, graph.constant(0.0))
        means = graph.add("MatMul", graph.add("Transpose", weights, perm=[0, 2, 1]), values)
        flat = graph.add("Reshape", means, graph.constant([0, self.num_means]))
        return symbol.with_values(graph.add("Concat", symbol.values, flat, axis=1, named=True)), ()
