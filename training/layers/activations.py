"""Activations by their Keras names: each as a torch function, as ONNX nodes, and as what a recurrent node calls it.

Softmax and its like act on the last axis. Holds no layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import PlainValidator
from torch import Tensor
from torch.nn import functional

from training.graph.builder import GraphBuilder
from training.layers.named import read_named


@dataclass(frozen=True)
class NodeActivation:
    """What ONNX calls it in the `activations` of LSTM, GRU and RNN, with the parameters that onnxruntime takes for it."""

    name: str
    alpha: float | None = None
    beta: float | None = None


@dataclass(frozen=True)
class Activation:
    """One activation with its options; equal if name and options are."""

    name: str
    options: tuple[tuple[str, float], ...]
    function: Callable[[Tensor], Tensor] = field(compare=False, repr=False)
    write: Callable[[GraphBuilder, str], str] = field(compare=False, repr=False)
    in_node: NodeActivation | None = field(compare=False, repr=False)  # None: recurrent nodes do not know it

    def __call__(self, values: Tensor) -> Tensor:
        return self.function(values)


_Made = tuple[Callable[[Tensor], Tensor], Callable[[GraphBuilder, str], str], NodeActivation | None]


def _node(operator: str, **attributes: Any) -> Callable[[GraphBuilder, str], str]:
    return lambda graph, values: graph.add(operator, values, **attributes)


def _clip(low: float, high: float) -> Callable[[GraphBuilder, str], str]:
    return lambda graph, values: graph.add("Clip", values, graph.constant(low), graph.constant(high))


def _linear() -> _Made:
    return lambda x: x, lambda graph, x: x, NodeActivation("Affine", 1.0, 0.0)


def _hard_sigmoid(slope: float) -> _Made:
    def function(x: Tensor) -> Tensor:
        return (slope * x + 0.5).clamp(0, 1)

    return function, _node("HardSigmoid", alpha=slope, beta=0.5), NodeActivation("HardSigmoid", slope, 0.5)


def _leaky_relu(negative_slope: float = 0.2) -> _Made:
    def function(x: Tensor) -> Tensor:
        return functional.leaky_relu(x, negative_slope)

    return function, _node("LeakyRelu", alpha=negative_slope), NodeActivation("LeakyRelu", negative_slope)


def _elu(alpha: float = 1.0) -> _Made:
    return lambda x: functional.elu(x, alpha), _node("Elu", alpha=alpha), NodeActivation("Elu", alpha)


def _celu(alpha: float = 1.0) -> _Made:
    return lambda x: functional.celu(x, alpha), _node("Celu", alpha=alpha), None


def _gelu(approximate: bool = False) -> _Made:
    def write(graph: GraphBuilder, x: str) -> str:
        if approximate:
            cubic = graph.add("Mul", graph.constant(0.044715), graph.add("Mul", x, graph.add("Mul", x, x)))
            inner = graph.add("Mul", graph.constant(math.sqrt(2 / math.pi)), graph.add("Add", x, cubic))
            gate = graph.add("Tanh", inner)
        else:
            gate = graph.add("Erf", graph.add("Mul", x, graph.constant(math.sqrt(0.5))))
        half = graph.add("Mul", graph.constant(0.5), x)
        return graph.add("Mul", half, graph.add("Add", graph.constant(1.0), gate))

    return lambda x: functional.gelu(x, approximate="tanh" if approximate else "none"), write, None


def _squareplus(b: float = 4) -> _Made:
    def write(graph: GraphBuilder, x: str) -> str:
        root = graph.add("Sqrt", graph.add("Add", graph.add("Mul", x, x), graph.constant(float(b))))
        return graph.add("Mul", graph.add("Add", x, root), graph.constant(0.5))

    return lambda x: (x + (x * x + b).sqrt()) / 2, write, None


def _write_silu(graph: GraphBuilder, x: str) -> str:
    return graph.add("Mul", x, graph.add("Sigmoid", x))


def _write_mish(graph: GraphBuilder, x: str) -> str:
    return graph.add("Mul", x, graph.add("Tanh", graph.add("Softplus", x)))


def _write_log_sigmoid(graph: GraphBuilder, x: str) -> str:
    return graph.add("Neg", graph.add("Softplus", graph.add("Neg", x)))


def _write_tanh_shrink(graph: GraphBuilder, x: str) -> str:
    return graph.add("Sub", x, graph.add("Tanh", x))


def _write_hard_silu(graph: GraphBuilder, x: str) -> str:
    return graph.add("Mul", x, graph.add("HardSigmoid", x, alpha=1 / 6, beta=0.5))


_MAKERS: dict[str, Callable[..., _Made]] = {
    "linear": _linear,
    "relu": lambda: (torch.relu, _node("Relu"), NodeActivation("Relu")),
    "relu6": lambda: (functional.relu6, _clip(0.0, 6.0), None),
    "leaky_relu": _leaky_relu,
    "tanh": lambda: (torch.tanh, _node("Tanh"), NodeActivation("Tanh")),
    "hard_tanh": lambda: (functional.hardtanh, _clip(-1.0, 1.0), None),
    "sigmoid": lambda: (torch.sigmoid, _node("Sigmoid"), NodeActivation("Sigmoid")),
    "hard_sigmoid": lambda: _hard_sigmoid(1 / 6),
    "hard_sigmoid_keras2": lambda: _hard_sigmoid(0.2),
    "softmax": lambda: (lambda x: torch.softmax(x, -1), _node("Softmax", axis=-1), None),
    "log_softmax": lambda: (lambda x: torch.log_softmax(x, -1), _node("LogSoftmax", axis=-1), None),
    "softplus": lambda: (functional.softplus, _node("Softplus"), NodeActivation("Softplus")),
    "softsign": lambda: (functional.softsign, _node("Softsign"), NodeActivation("Softsign")),
    "elu": _elu,
    "selu": lambda: (functional.selu, _node("Selu"), None),
    "celu": _celu,
    "exponential": lambda: (torch.exp, _node("Exp"), None),
    "gelu": _gelu,
    "silu": lambda: (functional.silu, _write_silu, None),
    "swish": lambda: (functional.silu, _write_silu, None),
    "hard_silu": lambda: (functional.hardswish, _write_hard_silu, None),
    "hard_swish": lambda: (functional.hardswish, _write_hard_silu, None),
    "mish": lambda: (functional.mish, _write_mish, None),
    "log_sigmoid": lambda: (functional.logsigmoid, _write_log_sigmoid, None),
    "tanh_shrink": lambda: (functional.tanhshrink, _write_tanh_shrink, None),
    "squareplus": _squareplus,
}
ACTIVATIONS = tuple(_MAKERS)


def read_activation(value: str | Mapping[str, Any] | Activation | None) -> Activation:
    """An activation from its name, or from a table: its `name` with its options. None is linear. Raises ValueError."""
    if isinstance(value, Activation):
        return value
    name, options = read_named(value or "linear", _MAKERS)
    function, write, in_node = _MAKERS[name](**options)
    return Activation(name, tuple(sorted(options.items())), function, write, in_node)


ActivationOption = Annotated[Activation, PlainValidator(read_activation)]
LINEAR, TANH, SIGMOID = (read_activation(name) for name in ("linear", "tanh", "sigmoid"))
