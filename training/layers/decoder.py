"""Decoders: what one reads of each step that is forecast, and one whose steps are parts of the horizon."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.base import Layer, LayerConfig, LayerState, Shape, Signal, Symbol, require, require_values
from training.layers.weights import GLOROT_UNIFORM, ORTHOGONAL, Weight, weight_of


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


class ParallelDecoderConfig(LayerConfig):
    """One step of a GRU for each of `n` parts of the horizon, all from the same state: none waits for the one before it."""

    type: Literal["parallel_decoder"]
    n: PositiveInt


class ParallelDecoder(Layer):
    """(B, H) to (B, n, H): the vector so far is the state, and what a step reads is learned.

    Parallel multi-step forecasting (Lin et al. 2023, SegRNN): an input for each part, and where each feature is a row of its
    own one for each feature, so that a network which they share knows which of them it forecasts. A learned vector times an
    input kernel is a learned vector: what is held is what each gate is given, (n, 3 · H) and (features, 3 · H). Gates are in
    torch's order, the reset gate behind the product, as in `GRU`.
    """

    Config: ClassVar[type[LayerConfig]] = ParallelDecoderConfig
    config: ParallelDecoderConfig
    reads_source = True
    gives_parts = True
    is_about_steps = True

    def __init__(self, config: ParallelDecoderConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_values(shape)
        require(not shape.is_sequence, None, f"needs one vector per row, got {shape}")
        self.units = shape.features
        self.output = Shape((config.n, self.units))
        num_gates = 3 * self.units
        self.recurrent_kernel = nn.Parameter(ORTHOGONAL((self.units, num_gates)))
        self.recurrent_bias = nn.Parameter(torch.zeros(num_gates))
        self.parts = nn.Parameter(GLOROT_UNIFORM((config.n, num_gates)))
        self.features = nn.Parameter(GLOROT_UNIFORM((source.one_of, num_gates))) if source.one_of is not None else None

    @property
    def weights(self) -> tuple[Weight, ...]:
        held = ("recurrent_kernel", "recurrent_bias", "parts", "features")
        return tuple(weight_of(name, weight) for name in held if (weight := getattr(self, name)) is not None)

    def steps_for(self, num_steps: int) -> int:
        return 1

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        hidden = signal.values.unsqueeze(1)  # (B, 1, H)
        products = functional.linear(hidden, self.recurrent_kernel.t(), self.recurrent_bias)  # (B, 1, 3 · H)
        inputs = self.parts.unsqueeze(0)  # (1, n, 3 · H)
        if self.features is not None:
            assert source.feature is not None
            inputs = inputs + self.features[source.feature].unsqueeze(1)  # (B, n, 3 · H)
        sizes = [2 * self.units, self.units]
        gate_inputs, n_inputs = torch.split(inputs, sizes, 2)
        gate_products, n_products = torch.split(products, sizes, 2)
        r, z = (gate_inputs + gate_products).sigmoid().chunk(2, 2)
        new: Tensor = (n_inputs + r * n_products).tanh()
        values = new + z * (hidden - new)  # (B, n, H)
        return Signal(values, torch.full_like(signal.lengths, self.config.n)), ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        def constant(name: str) -> str:
            return graph.constant(getattr(self, name).detach().cpu().numpy(), name)

        one = graph.constant([1])
        hidden = graph.add("Unsqueeze", symbol.values, one)
        products = graph.add("Add", graph.add("MatMul", hidden, constant("recurrent_kernel")), constant("recurrent_bias"))
        inputs = graph.add("Unsqueeze", constant("parts"), graph.constant([0]))
        if self.features is not None:
            assert source.feature is not None
            own = graph.add("Gather", constant("features"), source.feature, axis=0)
            inputs = graph.add("Add", inputs, graph.add("Unsqueeze", own, one))
        sizes = graph.constant([2 * self.units, self.units])
        gate_inputs, n_inputs = graph.add_many("Split", inputs, sizes, num_outputs=2, axis=2)
        gate_products, n_products = graph.add_many("Split", products, sizes, num_outputs=2, axis=2)
        gates = graph.add("Sigmoid", graph.add("Add", gate_inputs, gate_products))
        r, z = graph.add_many("Split", gates, graph.constant([self.units] * 2), num_outputs=2, axis=2)
        new = graph.add("Tanh", graph.add("Add", n_inputs, graph.add("Mul", r, n_products)))
        return Symbol(graph.add("Add", new, graph.add("Mul", z, graph.add("Sub", hidden, new)), named=True), None), ()
