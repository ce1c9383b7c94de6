"""What every layer is: options in Keras's words, a torch forward, its ONNX nodes, and the facts that others need of it.

Holds no layer itself. A layer never reads values beyond a row's own length, and keeps nothing between calls: state is an
argument and a result, and what its activity regularizer adds to the loss is a result.

Two things decide which steps count. `lengths` is the batch's: steps behind a row's length do not exist, they only fill the
tensor. `mask` is Keras's: a masked step exists and has its place in the output, and recurrent layers skip it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from training.errors import TrainingError
from training.graph.builder import GraphBuilder
from training.layers.weights import Regularizer, Weight


class OptionError(TrainingError):
    """An option of a layer does not fit; raised inside a layer, which does not know its place in the recipe."""

    def __init__(self, option: str | None, message: str) -> None:
        super().__init__(message)
        self.option = option


class LayerError(TrainingError):
    """A layer cannot be built: names its place in the recipe, its type, and the option."""

    def __init__(self, where: str, kind: str, option: str | None, message: str) -> None:
        place = f"{where} ({kind})" if kind else where
        super().__init__(f'{place}: option "{option}": {message}' if option else f"{place}: {message}")
        self.where = where
        self.kind = kind
        self.option = option


@dataclass(frozen=True)
class Shape:
    """Axes of one row: ("time", 7) is a sequence of 7 features, (7,) a vector, ("time",) token ids of a `vocabulary`.

    The first axis is open where it is a name: "time" is the input's own, "steps" what a layer made of it. (10, 7) is a
    sequence of 10 steps in every row. `ahead` are the steps behind the sequence that are asked for, and how many features
    are known of each; None: nothing is asked of the time behind it. `one_of` is the number of features of which each row
    holds one, where they are rows of their own; None: rows hold all.
    """

    axes: tuple[int | str, ...]
    vocabulary: int | None = None
    ahead: tuple[int, int] | None = None
    one_of: int | None = None

    @property
    def is_sequence(self) -> bool:
        return self.is_tokens or len(self.axes) > 1

    @property
    def is_open(self) -> bool:
        """Whether rows may have different lengths."""
        return bool(self.axes) and isinstance(self.axes[0], str)

    @property
    def is_tokens(self) -> bool:
        return self.vocabulary is not None

    @property
    def features(self) -> int:
        """The last axis, which must not be open."""
        last = self.axes[-1]
        assert isinstance(last, int), self
        return last

    @property
    def fixed_axes(self) -> tuple[int, ...]:
        """All axes, none of which must be open."""
        assert not self.is_open, self
        return tuple(int(axis) for axis in self.axes)

    def with_features(self, features: int) -> Shape:
        """The same axes with another last one."""
        return Shape((*self.axes[:-1], features))

    def __str__(self) -> str:
        axes = ", ".join(str(axis) for axis in ("batch", *self.axes))
        return f"token ids ({axes})" if self.is_tokens else f"({axes})"


@dataclass(frozen=True)
class Signal:
    """What flows between layers in torch: values (B, T, F), (B, F) or ids (B, T), and each row's true length (B,).

    `mask` (B, T) is true where Keras's mask is; None: no step is masked. No other layer reads the rest: `others` are further
    results of the layer, `activity` the scalars that its activity regularizers add to the loss of the batch while training,
    `ahead` (B, N, C) what is known of the steps behind a sequence, and `feature` (B,) the number of the one feature that a row
    holds, in a network's scaled input.
    """

    values: Tensor
    lengths: Tensor
    mask: Tensor | None = None
    others: tuple[Tensor, ...] = ()
    activity: tuple[Tensor, ...] = ()
    ahead: Tensor | None = None
    feature: Tensor | None = None

    def with_values(self, values: Tensor) -> Signal:
        """Other values of the same steps, without `others` and `activity`."""
        return Signal(values, self.lengths, self.mask)

    def rows(self, part: slice) -> Signal:
        """Values, lengths, mask, what is known ahead and the feature of some rows."""
        mask, ahead, feature = (None if tensor is None else tensor[part] for tensor in (self.mask, self.ahead, self.feature))
        return Signal(self.values[part], self.lengths[part], mask, ahead=ahead, feature=feature)


@dataclass(frozen=True)
class Symbol:
    """What flows between layers in the graph: the names of the tensors that `Signal` holds; without lengths all is read."""

    values: str
    lengths: str | None
    mask: str | None = None
    others: tuple[str, ...] = ()
    ahead: str | None = None
    feature: str | None = None

    def with_values(self, values: str) -> Symbol:
        """Other values of the same steps."""
        return Symbol(values, self.lengths, self.mask)


@dataclass(frozen=True)
class StatePart:
    """One tensor of a state, (B, units), which is zero where a sequence begins; later its values lie about in `range`."""

    name: str
    units: int
    range: tuple[float, float] = (-1.0, 1.0)


LayerState = tuple[Tensor, ...]  # one tensor per StatePart; empty: zeros

# What becomes of the masked steps of a sequence: the mask goes on with the output (carried), the output is of the other steps
# alone (used up), or they count like any others (ignored).
MaskUse = Literal["carried", "used up", "ignored"]


class LayerConfig(BaseModel):
    """The options of one layer. Names, defaults and meaning are Keras 3's; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str
    name: str | None = None
    trainable: bool = True


L = TypeVar("L", bound="Layer")


class BuildInner(Protocol):
    """Builds the layer whose table is the value of an option, for rows of `shape`; refuses one that is not a `kind`."""

    def __call__(self, option: str, table: Mapping[str, Any], shape: Shape, kind: type[L]) -> L: ...


class Layer(nn.Module):
    """One layer of a network, built for the `shape` of its input in a network whose scaled input has the shape `source`.

    `forward` takes the signal, the network's scaled `source` (for layers with a direct path from the input) and the
    state the layer starts from; an empty state means zeros, and then none is returned. `write` adds the nodes that
    compute the same in the graph.

    Whatever other code needs to know of a kind of layer is one of the attributes below: none looks at its class or name.
    """

    Config: ClassVar[type[LayerConfig]]
    # Of the class in Keras; None: Keras has no such layer.
    keras_class: ClassVar[str | None] = None
    # Reads a sequence step by step, with a state.
    is_recurrent: ClassVar[bool] = False
    # Reads the network's own input too, past the layers before.
    reads_source: ClassVar[bool] = False
    # Gives a sequence of the steps that are forecast, with what is known of them.
    reads_ahead: ClassVar[bool] = False
    # Gives a sequence of `n` parts of what is forecast, its option, each of equally many steps.
    gives_parts: ClassVar[bool] = False
    # Reads token ids, so that it may be the first layer of a network whose input they are.
    reads_tokens: ClassVar[bool] = False
    # Its first weight is a vector for every token id.
    holds_vectors: ClassVar[bool] = False
    # Needs every step before it gives its first one, so that a sequence cannot come in pieces.
    reads_whole_sequence: ClassVar[bool] = False
    # Reads, makes or drops steps, so that it has no place in a network of plain vectors.
    is_about_steps: ClassVar[bool] = False
    # Has the option `layer`, the table of a layer that it applies to every step.
    is_per_step: ClassVar[bool] = False
    # Each vector along the last axis is computed from itself alone, whatever axes are before it.
    acts_on_last_axis: ClassVar[bool] = False
    # Gives `units` values and then applies `activation`: as the last layer its task may fill in the one and take off the other.
    gives_units: ClassVar[bool] = False
    # Its input's mask is its output's mask, as in Keras.
    hands_mask_on: ClassVar[bool] = False

    def __init__(self, config: LayerConfig, shape: Shape, source: Shape) -> None:
        super().__init__()
        self.config = config
        self.input = shape
        self.output = shape

    @classmethod
    def build(cls, config: Any, shape: Shape, source: Shape, build_inner: BuildInner) -> Self:
        """The layer of a config; one that holds layers builds them with `build_inner`. Raises OptionError."""
        return cls(config, shape, source)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """What a recipe may call it: the values that its Config allows for `type`."""
        return get_args(cls.Config.model_fields["type"].annotation)

    @classmethod
    def mask_use(cls, config: Any) -> MaskUse:
        """What becomes of masked steps in a layer with these options."""
        return "carried" if cls.hands_mask_on else "ignored"

    @property
    def others(self) -> tuple[tuple[str, Shape], ...]:
        """Names and shapes of the results beside the main one."""
        return ()

    @property
    def state(self) -> tuple[StatePart, ...]:
        """What goes from one piece of a sequence to the next."""
        return ()

    @property
    def mask_value(self) -> float | None:
        """What every feature of a step holds that this layer masks; None: it masks none by its value."""
        return None

    @property
    def directions(self) -> tuple[tuple[int, int], ...]:
        """Parts of a step's features, in order, that know no other steps but those up to it (1) or from it on (-1).

        The number of features of each part, and which; empty where that is not so of all features.
        """
        return ()

    @property
    def mixes_rows(self) -> bool:
        """Whether a row's answer depends on the other rows of the batch while training."""
        return False

    @property
    def adapts_to(self) -> Literal["inputs", "answers"] | None:
        """What of the training part `adapt` must be given before the network is fitted; None: nothing."""
        return None

    @property
    def is_stateful(self) -> bool:
        """Whether each batch starts from the state in which the one before ended (Keras's `stateful`)."""
        return False

    @property
    def can_stream(self) -> bool:
        """Whether a sequence in pieces, with state, gives the same as the whole."""
        return not self.reads_whole_sequence

    @property
    def min_length(self) -> int:
        """The fewest steps of the source that a row must have."""
        return 1

    @property
    def notes(self) -> tuple[str, ...]:
        """Hints on the options: those that change nothing, or not what they seem to."""
        return ()

    def check_successor(self) -> None:
        """Raise OptionError if no other layer can read the result."""

    def adapt(self, values: Tensor) -> None:
        """Take statistics of values (N, ..., F); only for layers with `adapts_to`."""
        raise NotImplementedError

    def steps_for(self, num_steps: int) -> int:
        """The fewest steps of the layer's input that give `num_steps` of its output."""
        return num_steps

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Kernel, biases and statistics in the order of Keras's `get_weights()`."""
        return ()

    @property
    def num_parameters(self) -> int:
        """Weights that training may change, counted as Keras counts them."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    @property
    def num_fixed_parameters(self) -> int:
        """Weights that no optimizer changes: statistics, and those of layers with `trainable = false`."""
        return sum(int(np.prod(weight.shape)) for weight in self.weights) - self.num_parameters

    def load_keras_weights(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Take the weights of the same layer of Keras, as its `get_weights()` gives them. Raises OptionError."""
        weights = self.weights
        expected = ", ".join(f"{weight.name} {list(weight.shape)}" for weight in weights) or "none"
        require(len(arrays) == len(weights), "weights", f"expected {expected}, got {len(arrays)} arrays")
        for weight, array in zip(weights, arrays, strict=True):
            found = list(np.shape(array))
            require(found == list(weight.shape), "weights", f"{weight.name}: expected {list(weight.shape)}, got {found}")
            weight.write(torch.as_tensor(np.asarray(array, np.float32)))

    def keras_weights(self) -> list[NDArray[Any]]:
        """What Keras's `get_weights()` would give."""
        return [weight.read().detach().cpu().numpy() for weight in self.weights]

    def penalty(self, activity: Sequence[Tensor] = ()) -> Tensor | None:
        """What all regularizers add to the loss of a batch that gave `activity`; None if there are none."""
        terms = [weight.regularizer(weight.read()) for weight in self.weights if weight.regularizer is not None]
        return sum_of([*terms, *activity])

    @torch.no_grad()
    def constrain(self) -> None:
        """Hold the weights to their constraints; after every step of the optimizer."""
        for weight in self.weights:
            if weight.constraint is not None:
                weight.write(weight.constraint(weight.read()))

    def measure_activity(self, regularizer: Regularizer | None, result: Signal) -> tuple[Tensor, ...]:
        """What `regularizer` adds to the loss for the values and others of `result`, per row; nothing outside of training."""
        if regularizer is None or not self.training:
            return ()
        found = []
        for values in (result.values, *result.others):
            if values is result.values and self.output.is_open:
                steps = torch.arange(values.shape[1], device=values.device)
                beyond = steps >= result.lengths.unsqueeze(1)
                values = values.masked_fill(beyond.view(*beyond.shape, *[1] * (values.dim() - 2)), 0.0)
            found.append(regularizer(values) / len(values))
        return tuple(found)

    def with_activity(self, regularizer: Regularizer | None, result: Signal) -> Signal:
        """`result` with what `measure_activity` finds of it."""
        activity = self.measure_activity(regularizer, result)
        return replace(result, activity=activity) if activity else result

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        raise NotImplementedError

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        raise NotImplementedError


def sum_of(terms: Sequence[Tensor]) -> Tensor | None:
    """The sum of scalars; None if there are none."""
    return torch.stack(list(terms)).sum() if terms else None


def require(condition: bool, option: str | None, message: str) -> None:
    """Raise OptionError unless `condition` holds."""
    if not condition:
        raise OptionError(option, message)


def require_sequence(shape: Shape) -> None:
    """Raise OptionError unless `shape` is a sequence of features."""
    fits = len(shape.axes) == 2 and not shape.is_tokens
    require(fits, None, f"needs a sequence (batch, time, features), got {shape}")


def require_values(shape: Shape) -> None:
    """Raise OptionError if `shape` still is token ids."""
    require(not shape.is_tokens, None, f"needs numbers, got {shape}: put an embedding before it")
