"""Keras's SimpleRNN: h' = activation(W x + U h + b)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from training.graph.builder import GraphBuilder
from training.layers.activations import TANH, Activation
from training.layers.base import LayerConfig, LayerState
from training.layers.recurrent import Product, Recurrent, RecurrentConfig


class SimpleRNNConfig(RecurrentConfig):
    """Keras's SimpleRNN."""

    type: Literal["simple_rnn"]


class SimpleRNN(Recurrent):
    """h' = activation(W x + U h + b)."""

    Config: ClassVar[type[LayerConfig]] = SimpleRNNConfig
    config: SimpleRNNConfig
    keras_class = "SimpleRNN"
    operator = "RNN"
    keras_gates = (0,)
    onnx_gates = (0,)

    def make_cell(self) -> Any:
        config = self.config
        kind = "relu" if config.activation.name == "relu" else "tanh"
        return nn.RNN(self.input.features, config.units, nonlinearity=kind, bias=config.use_bias, batch_first=True)

    @property
    def is_fused(self) -> bool:
        return self.config.activation.name in ("tanh", "relu")

    def step(self, inputs: Tensor, state: LayerState, product: Product) -> LayerState:
        return (self.config.activation(inputs + product(state[0], 0, 1)),)

    def write_step(self, graph: GraphBuilder, inputs: str, state: tuple[str, ...]) -> tuple[str, ...]:
        total = graph.add("Add", inputs, self.write_product(graph, state[0], 0, 1))
        return (self.config.activation.write(graph, total),)

    @property
    def onnx_activations(self) -> tuple[Activation, ...]:
        return (self.config.activation,)

    @property
    def onnx_defaults(self) -> tuple[Activation, ...]:
        return (TANH,)
