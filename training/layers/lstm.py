"""Keras's LSTM. The gates are i, f, g and o: input, forget, cell and output."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from training.graph.builder import GraphBuilder
from training.layers.activations import SIGMOID, TANH, Activation
from training.layers.base import LayerConfig, LayerState, StatePart
from training.layers.recurrent import GatedConfig, GatedRecurrent, Product


class LSTMConfig(GatedConfig):
    """Keras's LSTM."""

    type: Literal["lstm"]
    unit_forget_bias: bool = True


class LSTM(GatedRecurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997) with a forget gate that starts open."""

    Config: ClassVar[type[LayerConfig]] = LSTMConfig
    config: LSTMConfig
    keras_class = "LSTM"
    operator = "LSTM"
    keras_gates = (0, 1, 2, 3)  # torch and Keras: i, f, g, o
    onnx_gates = (0, 3, 1, 2)  # i, o, f, g

    def make_cell(self) -> Any:
        return nn.LSTM(self.input.features, self.config.units, bias=self.config.use_bias, batch_first=True)

    def draw_bias(self, shape: tuple[int, ...]) -> Tensor:
        if not self.config.unit_forget_bias:
            return super().draw_bias(shape)
        units = self.config.units
        draw = self.config.bias_initializer
        return torch.cat([draw((units,)), torch.ones(units), draw((2 * units,))])

    @property
    def state(self) -> tuple[StatePart, ...]:
        return (StatePart("hidden", self.config.units), StatePart("cell", self.config.units))

    def step(self, inputs: Tensor, state: LayerState, product: Product) -> LayerState:
        hidden, cell = state
        gate, activation = self.gate_activation, self.config.activation
        i, f, g, o = (inputs + product(hidden, 0, 4)).chunk(4, 1)
        cell = gate(f) * cell + gate(i) * activation(g)
        return gate(o) * activation(cell), cell

    def write_step(self, graph: GraphBuilder, inputs: str, state: tuple[str, ...]) -> tuple[str, ...]:
        hidden, cell = state
        gate, activation = self.gate_activation, self.config.activation
        total = graph.add("Add", inputs, self.write_product(graph, hidden, 0, 4))
        i, f, g, o = self.write_split(graph, total, 1, 1, 1, 1)
        kept = graph.add("Mul", gate.write(graph, f), cell)
        cell = graph.add("Add", kept, graph.add("Mul", gate.write(graph, i), activation.write(graph, g)))
        return graph.add("Mul", gate.write(graph, o), activation.write(graph, cell)), cell

    def run_fused(self, values: Tensor, lengths: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        initial = tuple(part.unsqueeze(0) for part in state) or None
        if bool((lengths == values.shape[1]).all()):
            outputs, (hidden, cell) = self.rnn(values, initial)
            return outputs, (hidden.squeeze(0), cell.squeeze(0))
        # Packed, and slow: the cell state at a row's own end is not among the outputs.
        packed = pack_padded_sequence(values, lengths.cpu(), batch_first=True, enforce_sorted=False)
        packed_outputs, (hidden, cell) = self.rnn(packed, initial)
        outputs, _ = pad_packed_sequence(packed_outputs, batch_first=True, total_length=values.shape[1])
        return outputs, (hidden.squeeze(0), cell.squeeze(0))

    @property
    def onnx_activations(self) -> tuple[Activation, ...]:
        return (self.gate_activation, self.config.activation, self.config.activation)

    @property
    def onnx_defaults(self) -> tuple[Activation, ...]:
        return (SIGMOID, TANH, TANH)
