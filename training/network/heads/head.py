"""The interface between a network and its task: inputs, what the layers must give, and how that becomes an answer.

Holds the defaults: the layers read the input as it is, and the last layer's output is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.graph.builder import GraphBuilder
from training.layers.base import StatePart
from training.layers.registry import LAYERS, Layer, LayerError, Shape, Signal, Symbol
from training.layers.scaling import Statistics, StatisticsSymbol
from training.network.spec import NetworkError, NetworkSpec

Tables = list[dict[str, Any]]
Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[Any]]
"""Draws the numbers of one row of a shape."""
_UNSCALED, _UNSCALED_SYMBOL = Statistics(), StatisticsSymbol()


@dataclass(frozen=True)
class LayerInput:
    """What the layers read of a batch: the first layer's signal, the scaled input, and what it was scaled by."""

    signal: Signal
    source: Signal
    statistics: Statistics = _UNSCALED

    def rows(self, part: slice) -> LayerInput:
        """Some rows of what the layers read; the statistics stay those of all."""
        return LayerInput(self.signal.rows(part), self.source.rows(part), self.statistics)


@dataclass(frozen=True)
class LayerInputSymbol:
    """`LayerInput` in the graph."""

    symbol: Symbol
    source: Symbol
    statistics: StatisticsSymbol = _UNSCALED_SYMBOL


@dataclass(frozen=True)
class Prediction:
    """What the layers give for a batch, before it becomes an answer: what a loss compares.

    `values` are, for a forecast, scaled (B, horizon, targets) or (B, horizon, targets, Q) with unsorted quantiles; for classes
    the logits (B, labels), or (B, 1) of the second label; else the last layer's output. `activity` is what each layer's
    activity regularizers add to the loss, `state` where each stateful layer ended, by the names of the state's inputs; it is
    empty where no state was given.
    """

    values: Tensor
    others: tuple[Tensor, ...] = ()
    statistics: Statistics = _UNSCALED
    activity: tuple[tuple[Tensor, ...], ...] = ()
    state: Mapping[str, Tensor] = field(default_factory=dict)


class Head(nn.Module):
    """Everything that a network knows of its task; one per network, made from its spec.

    Inputs and outputs are tensors by the graph's names, batch first. There is one input with data, beside it `lengths`
    where rows may differ in length, and `further_inputs`.
    """

    Spec: ClassVar[type[NetworkSpec]]

    def __init__(self, spec: NetworkSpec, input_name: str, source: Shape) -> None:
        super().__init__()
        self.spec = spec
        self.input_name = input_name
        self.source = source  # of a row of the input

    @classmethod
    def from_spec(cls, spec: Any) -> Head:
        """The head of a network with this spec. Raises LayerError where an option of the layers that it needs is missing."""
        raise NotImplementedError

    @property
    def first(self) -> Shape:
        """Of a row that the first layer reads."""
        return self.source

    @property
    def further_inputs(self) -> Mapping[str, Shape]:
        """Inputs with data beside the first one, all FP32: name → shape of a row. A time axis is as long as the first one's."""
        return {}

    @property
    def scaled_source(self) -> Shape:
        """Of a row of the scaled input, which layers may read past others."""
        return self.source

    @property
    def step(self) -> int:
        """How many steps of the input become one for the layers."""
        return 1

    @property
    def read_length(self) -> int | None:
        """Steps that the layers read of each row, however short it is; None: those that it has."""
        return None

    @property
    def why_no_pieces(self) -> str:
        """Why what is done around the layers needs a whole sequence, in words that follow "it"; empty where pieces will do."""
        return ""

    @property
    def state(self) -> tuple[StatePart, ...]:
        """What goes from one piece of a sequence to the next beside the layers' state, by the names of the graph's inputs."""
        return ()

    def min_length(self, num_steps: int) -> int:
        """The fewest steps of the input that a row must have, where the layers need `num_steps`."""
        return num_steps

    def complete(self, tables: Tables) -> Tables:
        """The layers' tables with what follows from the task. Raises LayerError where they contradict it."""
        return tables

    def check(self, layers: Sequence[Layer]) -> None:
        """Raise LayerError unless the last layer gives what the task needs."""

    def outputs(self, last: Layer) -> dict[str, Shape]:
        """Names and shapes of the answers behind the last layer, all FP32, in the order of `answer`."""
        raise NotImplementedError

    def set_statistics(self, values: Tensor) -> None:
        """Fit the scaling on raw values (N, F) of the training part. Raises NetworkError where nothing is scaled."""
        raise NetworkError(f'task "{self.spec.task}" has no scaling to fit')

    # torch

    def read(self, inputs: Mapping[str, Tensor]) -> LayerInput:
        """What the layers read of a batch."""
        values = inputs[self.input_name]
        signal = Signal(values, inputs["lengths"] if self.source.is_open else _full_lengths(values))
        return LayerInput(signal, signal)

    def predict(self, output: Signal, given: LayerInput) -> Tensor:
        """The `values` of a Prediction from the last layer's output."""
        return output.values

    def answer(self, prediction: Prediction) -> tuple[Tensor, ...]:
        """The answers, in the order of `outputs`."""
        return (prediction.values, *prediction.others)

    def next_state(self, prediction: Prediction) -> dict[str, Tensor]:
        """Where the batch ended, by the names of `state`."""
        return {}

    def scale_target(self, target: Tensor, prediction: Prediction) -> Tensor:
        """True answers of the batch in the space of the prediction's values."""
        return target

    def unscale(self, values: Tensor, prediction: Prediction) -> Tensor:
        """Values in the space of the prediction's, in that of the answers: undoes `scale_target`."""
        return values

    def target_scale(self, prediction: Prediction) -> Tensor:
        """What each row's values are divided by in the space of the prediction: broadcasts with true answers."""
        return prediction.values.new_ones(1)

    # the graph

    def write_input(self, graph: GraphBuilder) -> LayerInputSymbol:
        """`read` in the graph. Raises NetworkError without statistics."""
        symbol = Symbol(self.input_name, "lengths" if self.source.is_open else None)
        return LayerInputSymbol(symbol, symbol)

    def write_answer(self, graph: GraphBuilder, output: Symbol, given: LayerInputSymbol) -> tuple[str, ...]:
        """`predict` and `answer` in the graph."""
        return (output.values, *output.others)

    def write_next_state(self, graph: GraphBuilder, output: Symbol, given: LayerInputSymbol) -> dict[str, str]:
        """`next_state` in the graph, by the names of the graph's outputs."""
        return {}

    # verification

    def draws(self) -> dict[str, Draw]:
        """Random numbers such as one row of the input may hold, to verify a graph with: at each scale, by its name.

        Networks are trained on scaled values of one kind or the other, and may be well behaved only there.
        """
        return {
            "from N(0, 1)": lambda random, shape: random.standard_normal(shape),
            "between 0 and 1": lambda random, shape: random.random(shape),
        }

    def draw_further(self, name: str, random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        """Numbers such as one row of the further input `name` may hold."""
        raise NotImplementedError

    def error_scale(self, name: str, expected: NDArray[Any], inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """(B,): per row, what an error of the output called `name` is relative to."""
        return np.ones(len(expected))


def _full_lengths(values: Tensor) -> Tensor:
    return torch.full((len(values),), values.shape[1], device=values.device)


def require_units_last(tables: Tables) -> None:
    """Raise LayerError unless the last layer is of a kind that gives a number of values which the task fixes."""
    kind = str(tables[-1].get("type"))
    if kind in LAYERS and not LAYERS[kind].gives_units:
        names = " or ".join(name for name, layer in LAYERS.items() if layer.gives_units)
        raise LayerError(f"layers[{len(tables) - 1}]", kind, None, f"the last layer must be {names}: it gives the answer")


def require_vector_last(layers: Sequence[Layer]) -> None:
    """Raise LayerError if the last layer reads a sequence."""
    last = layers[-1]
    if last.input.is_sequence:
        message = f"needs one vector per row, got {last.input}: let the layer before return the last step only, or pool"
        raise LayerError(f"layers[{len(layers) - 1}]", last.config.type, None, message)
