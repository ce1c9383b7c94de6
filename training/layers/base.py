"""What every layer is: options in Keras's words, a torch forward, and its ONNX nodes.

Holds no layer itself. A layer never reads what lies beyond a row's own length, and keeps no state between calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from training.onnx_graph import GraphBuilder


class OptionError(ValueError):
    """An option of a layer does not fit; raised inside a layer, which does not know its place in the recipe."""

    def __init__(self, option: str | None, message: str) -> None:
        super().__init__(message)
        self.option = option
        self.message = message


class LayerError(ValueError):
    """A layer cannot be built: names its place in the recipe, its type, and the option."""

    def __init__(self, where: str, kind: str, option: str | None, message: str) -> None:
        place = f"{where} ({kind})" if kind else where
        super().__init__(f'{place}: option "{option}": {message}' if option else f"{place}: {message}")
        self.where = where
        self.kind = kind
        self.option = option


@dataclass(frozen=True)
class Shape:
    """Axes of one row: ("time", 7) is a sequence of 7 features, (7,) a vector, ("time",) token ids of a `vocabulary`."""

    axes: tuple[int | str, ...]
    vocabulary: int | None = None

    @property
    def is_sequence(self) -> bool:
        return self.axes[0] == "time"

    @property
    def is_tokens(self) -> bool:
        return self.vocabulary is not None

    @property
    def features(self) -> int:
        """The last axis, which must not be open."""
        last = self.axes[-1]
        assert isinstance(last, int), self
        return last

    def with_features(self, features: int) -> Shape:
        """The same axes with another last one."""
        return Shape((*self.axes[:-1], features))

    def __str__(self) -> str:
        axes = ", ".join(str(axis) for axis in ("batch", *self.axes))
        return f"token ids ({axes})" if self.is_tokens else f"({axes})"


@dataclass(frozen=True)
class Signal:
    """What flows between layers in torch: values (B, T, F), (B, F) or ids (B, T), and each row's true length (B,)."""

    values: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Symbol:
    """What flows between layers in the graph: the names of the tensors that `Signal` holds."""

    values: str
    lengths: str


@dataclass(frozen=True)
class StatePart:
    """One tensor of a layer's state, (B, units)."""

    name: str
    units: int


State = tuple[Tensor, ...]


class LayerConfig(BaseModel):
    """The options of one layer. Names, defaults and meaning are Keras 3's; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str


class Layer(nn.Module):
    """One layer of a network, built for the `shape` it is fed in a network whose scaled input has the shape `source`.

    `forward` takes the signal, the network's scaled `source` (for layers with a direct path from the input) and the
    state the layer starts from; an empty state means zeros, and then none is returned. `write` adds the nodes that
    compute the same in the graph.
    """

    Config: ClassVar[type[LayerConfig]]
    reads_whole_sequence: ClassVar[bool] = False  # such a layer cannot be fed piece by piece

    def __init__(self, config: LayerConfig, shape: Shape, source: Shape) -> None:
        super().__init__()
        self.config = config
        self.input = shape
        self.output = shape

    @property
    def state(self) -> tuple[StatePart, ...]:
        """What the layer remembers from one piece of a sequence to the next."""
        return ()

    @property
    def can_stream(self) -> bool:
        """Whether feeding a sequence in pieces, with state, gives the same as feeding it whole."""
        return not self.reads_whole_sequence

    @property
    def min_length(self) -> int:
        """The fewest steps of the source that a row must have."""
        return 1

    @property
    def num_parameters(self) -> int:
        """Weights that training may change, counted as Keras counts them."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, signal: Signal, source: Signal, state: State = ()) -> tuple[Signal, State]:
        raise NotImplementedError

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        raise NotImplementedError


def require(condition: bool, option: str | None, message: str) -> None:
    """Raise OptionError unless `condition` holds."""
    if not condition:
        raise OptionError(option, message)


def require_sequence(shape: Shape) -> None:
    """Raise OptionError unless `shape` is a sequence of features."""
    require(shape.is_sequence and not shape.is_tokens, None, f"needs a sequence (batch, time, features), got {shape}")


def require_values(shape: Shape) -> None:
    """Raise OptionError if `shape` still is token ids."""
    require(not shape.is_tokens, None, f"needs numbers, got {shape}: put an embedding before it")
