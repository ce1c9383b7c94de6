"""The fully connected layer and the activations it may end in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from training.layers.base import Layer, LayerConfig, Shape, Signal, State, Symbol, require_values
from training.onnx_graph import GraphBuilder

Activation = Literal["linear", "relu", "tanh", "sigmoid", "softmax", "softplus", "elu", "selu"]

# name → torch function, ONNX operator (none for linear), its attributes
_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], str | None, dict[str, Any]]] = {
    "linear": (lambda values: values, None, {}),
    "relu": (torch.relu, "Relu", {}),
    "tanh": (torch.tanh, "Tanh", {}),
    "sigmoid": (torch.sigmoid, "Sigmoid", {}),
    "softmax": (lambda values: torch.softmax(values, -1), "Softmax", {"axis": -1}),
    "softplus": (nn.functional.softplus, "Softplus", {}),
    "elu": (nn.functional.elu, "Elu", {}),
    "selu": (nn.functional.selu, "Selu", {}),
}


def activate(values: Tensor, activation: Activation) -> Tensor:
    """Apply an activation by its Keras name."""
    return _ACTIVATIONS[activation][0](values)


def write_activate(graph: GraphBuilder, values: str, activation: Activation) -> str:
    """`activate` in the graph."""
    _, operator, attributes = _ACTIVATIONS[activation]
    return values if operator is None else graph.add(operator, values, **attributes)


class DenseConfig(LayerConfig):
    """`units` may be left out in the last layer only: the network knows how many answers it owes."""

    type: Literal["dense"]
    units: PositiveInt | None = None
    activation: Activation | None = None
    use_bias: bool = True


class Dense(Layer):
    """activation(values · kernel + bias) over the last axis, of vectors or of every step of a sequence."""

    Config: ClassVar[type[LayerConfig]] = DenseConfig
    config: DenseConfig

    def __init__(self, config: DenseConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_values(shape)
        assert config.units is not None, "the network fills in the last layer's units"
        self.output = shape.with_features(config.units)
        self.kernel = nn.Parameter(torch.empty(shape.features, config.units))
        nn.init.xavier_uniform_(self.kernel)  # Keras's glorot_uniform
        self.bias = nn.Parameter(torch.zeros(config.units)) if config.use_bias else None

    def forward(self, signal: Signal, source: Signal, state: State = ()) -> tuple[Signal, State]:
        values = nn.functional.linear(signal.values, self.kernel.t(), self.bias)
        return Signal(activate(values, self.config.activation or "linear"), signal.lengths), ()

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        kernel = graph.constant(self.kernel.detach().cpu().numpy(), "kernel")
        values = graph.add("MatMul", symbol.values, kernel, named=True)
        if self.bias is not None:
            values = graph.add("Add", values, graph.constant(self.bias.detach().cpu().numpy(), "bias"))
        return Symbol(write_activate(graph, values, self.config.activation or "linear"), symbol.lengths), ()
