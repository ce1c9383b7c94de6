"""The network of a recipe: raw values (or token ids) in, answers out, with scaling and softmax inside.

Holds what is the same for all tasks, in training and in the graph; what a task adds is its head's. Does not fit itself
(`fitting/fit.py`) and reads no data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from training.graph.builder import GraphBuilder
from training.layers.base import sum_of
from training.layers.registry import Layer, LayerError, OptionError, Signal, Symbol, build_layers
from training.network.ensemble import combine, merge, rows_of, write_combine
from training.network.heads.head import Head, LayerInput, LayerInputSymbol, Prediction
from training.network.heads.registry import make_head
from training.network.spec import NetworkError, NetworkSpec


@dataclass(frozen=True)
class NamedState:
    """One state tensor of the graph, (B, units): an input called `input`, and the output `output`."""

    input: str
    output: str
    units: int
    range: tuple[float, float] = (-1.0, 1.0)  # where its values lie, about


class Network(nn.Module):
    """A stack of layers, and the head of its task around it.

    Inputs and outputs are dicts with the graph's names, batch first; which, the head decides. Rows are padded on the right
    and each must have `min_length` steps or more. With the state inputs (all of them or none) the new state is returned too;
    without, it starts from zeros. Nothing is kept from one call to the next. Of several members (`spec.members`) each has the
    same layers with weights of its own; while training a row of a batch is read by one of them, else by all, and their last
    layers' values are combined.

    Raises LayerError or NetworkError when the spec cannot be built.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.head = make_head(spec)
        tables = self.head.complete([dict(table) for table in spec.layers])
        members = [build_layers(tables, self.head.first, self.head.scaled_source) for _ in range(spec.members)]
        layers = members[0]
        # Of one member; all have the same.
        self.layer_names = [table.get("name") or f"{table['type']}_{index}" for index, table in enumerate(spec.layers)]
        # Member after member.
        self.layers = nn.ModuleList(layer for member in members for layer in member)
        _check_chain(self.layer_names, layers)
        if spec.members > 1:
            _check_ensemble(self.layer_names, layers)
        self.head.check(layers)
        # Of the answers: name → shape of a row.
        self.outputs = self.head.outputs(layers[-1])
        # Whether a batch in training starts where the one before ended (Keras's `stateful`).
        self.is_stateful = any(layer.is_stateful for layer in layers)
        # Why a sequence in pieces, with state, does not give what it gives whole, in words that follow "the model cannot
        # stream"; empty where it does.
        self.why_not_streaming = _why_not_streaming(self.head, self.layer_names, layers)
        self.can_stream = not self.why_not_streaming
        # A layer behind a repeated vector starts anew: it does not read the sequence that comes in pieces.
        streams = self.can_stream and not self.is_stateful
        self._keeps_state = [layer.is_stateful or (streams and layer.input.is_open) for layer in self.stack]
        # The state tensors by name, the head's, then layer after layer: all if the network can stream, else those of stateful
        # layers.
        self.state = (
            *(NamedState(part.name, f"{part.name}_next", part.units, part.range) for part in self.head.state),
            *(
                NamedState(f"{name}_{part.name}", f"{name}_{part.name}_next", part.units, part.range)
                for name, layer, keeps_state in self._named_layers()
                if keeps_state
                for part in layer.state
            ),
        )

    @property
    def stack(self) -> list[Layer]:
        """The layers in order, typed; those of several members one member after the other."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    @property
    def members(self) -> list[list[Layer]]:
        """The layers of each member, in order; one list where there is no ensemble."""
        count, layers = len(self.layer_names), self.stack
        return [layers[start : start + count] for start in range(0, len(layers), count)]

    @property
    def vectors(self) -> Tensor:
        """The vectors of tokens (ids, D), which the first layer holds."""
        first = self.stack[0]
        assert first.holds_vectors, first
        return first.weights[0].read()

    @property
    def min_length(self) -> int:
        """The fewest steps that a row must have."""
        num_steps = 1
        layers = self.members[0]
        for layer in reversed(layers):
            num_steps = layer.steps_for(num_steps)
        needed = max(self.head.step * num_steps, *(layer.min_length for layer in layers))
        if self.head.read_length is None:
            return max(self.head.min_length(num_steps), needed)
        if needed > self.head.read_length:
            raise NetworkError(f"these layers need {needed} steps, and read_length gives them {self.head.read_length}")
        return self.head.min_length(num_steps)

    @property
    def has_lengths(self) -> bool:
        """Whether rows may have different lengths, which then are the input `lengths`."""
        return self.head.source.is_open

    @property
    def vocabulary_size(self) -> int | None:
        """How many token ids the input may hold; None: it holds numbers."""
        return self.head.first.vocabulary

    @property
    def mask_value(self) -> float | None:
        """What a step holds that the first layer masks; None: it masks none."""
        return self.stack[0].mask_value

    @property
    def notes(self) -> tuple[str, ...]:
        """The layers' hints on their options, with their places."""
        layers = self.members[0]
        return tuple(
            f"layers[{index}] ({layer.config.type}): {note}" for index, layer in enumerate(layers) for note in layer.notes
        )

    @property
    def num_parameters(self) -> int:
        """Weights that training may change, counted as Keras counts them."""
        of_head = sum(parameter.numel() for parameter in self.head.parameters() if parameter.requires_grad)
        return sum(layer.num_parameters for layer in self.stack) + of_head

    @property
    def num_fixed_parameters(self) -> int:
        """Weights that no optimizer changes: statistics, and those of layers with `trainable = false`."""
        return sum(layer.num_fixed_parameters for layer in self.stack)

    def penalty(self, prediction: Prediction) -> Tensor | float:
        """What the regularizers add to the loss of the batch that gave `prediction`; 0.0 if there are none."""
        terms = [layer.penalty(activity) for layer, activity in zip(self.stack, prediction.activity, strict=True)]
        total = sum_of([term for term in terms if term is not None])
        return 0.0 if total is None else total

    def constrain(self) -> None:
        """Hold the weights to their constraints; to be called after every step of the optimizer."""
        for layer in self.stack:
            layer.constrain()

    def initial_state(self, num_rows: int, device: torch.device | None = None) -> dict[str, Tensor]:
        """Zeros for every state input: where sequences begin."""
        return {part.input: torch.zeros(num_rows, part.units, device=device) for part in self.state}

    def check_batches(self, num_rows: int, batch_size: int) -> None:
        """Raise LayerError if a layer is stateful and the rows do not divide into whole batches."""
        for index, layer in enumerate(self.stack):
            if layer.is_stateful and num_rows % batch_size:
                divisors = (number for number in range(1, num_rows + 1) if num_rows % number == 0)
                nearest = min(divisors, key=lambda number: abs(number - batch_size))
                message = (
                    f"{num_rows} rows do not divide by batch_size {batch_size} (by {nearest} they do), "
                    "and each row goes on where that of the batch before ended"
                )
                raise LayerError(f"layers[{index}]", layer.config.type, "stateful", message)

    def set_statistics(self, values: Tensor) -> None:
        """Fit the head's scaling on raw values (N, F) of the training part. Raises NetworkError."""
        self.head.set_statistics(values)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raw inputs to answers, and to the new state if there is one among the inputs."""
        prediction = self.predict(inputs)
        answers = dict(zip(self.outputs, self.head.answer(prediction), strict=True))
        return answers | {f"{name}_next": tensor for name, tensor in prediction.state.items()}

    def predict(self, inputs: Mapping[str, Tensor], perturbation: Tensor | None = None) -> Prediction:
        """What the layers give for raw inputs, for a loss to compare: `forward` without the answer's last step.

        `perturbation` (B, T, D) is added to the vectors of tokens, which the first layer of the one member then must give.
        """
        given = self.head.read(inputs)
        output, activity, state = self._run_members(given, inputs, perturbation)
        prediction = Prediction(self.head.predict(output, given), output.others, given.statistics, activity, state)
        return replace(prediction, state={**self.head.next_state(prediction), **state}) if state else prediction

    def write(self, graph: GraphBuilder) -> dict[str, str]:
        """Add the nodes of `forward`; returns the values of all outputs by name. Raises NetworkError without statistics."""
        given = self.head.write_input(graph)
        output, state = self._write_members(graph, given)
        answers = dict(zip(self.outputs, self.head.write_answer(graph, output, given), strict=True))
        return {**answers, **self.head.write_next_state(graph, output, given), **state}

    def _named_layers(self, member: int | None = None) -> Iterator[tuple[str, Layer, bool]]:
        """Name and layer, and whether it has state inputs: of one member, or of all."""
        count, several = len(self.layer_names), self.spec.members > 1
        numbers = range(self.spec.members) if member is None else [member]
        names = [f"member_{number}_{name}" if several else name for number in numbers for name in self.layer_names]
        part = slice(numbers[0] * count, (numbers[-1] + 1) * count)
        return zip(names, self.stack[part], self._keeps_state[part], strict=True)

    def _run_members(
        self, given: LayerInput, inputs: Mapping[str, Tensor], perturbation: Tensor | None = None
    ) -> tuple[Signal, tuple[tuple[Tensor, ...], ...], dict[str, Tensor]]:
        """`_run_layers` of all members, as one: of rows of their own each while training, else of all rows."""
        num_members, num_rows = self.spec.members, len(given.signal.values)
        if num_members == 1:
            return self._run_layers(given, inputs, 0, perturbation)
        assert perturbation is None, "each member has vectors of its own"
        is_split = self.training and num_rows >= num_members
        outputs: list[Signal] = []
        activity: list[tuple[Tensor, ...]] = []
        state: dict[str, Tensor] = {}
        for number in range(num_members):
            part = given.rows(rows_of(number, num_members)) if is_split else given
            output, own_activity, own_state = self._run_layers(part, inputs, number)
            outputs.append(output)
            activity += own_activity
            state |= own_state
        values = [output.values for output in outputs]
        if not is_split:
            return outputs[0].with_values(combine(values, self.spec.combine)), tuple(activity), state
        lengths = merge([output.lengths for output in outputs], num_rows)
        return Signal(merge(values, num_rows), lengths), tuple(activity), state

    def _run_layers(
        self, given: LayerInput, inputs: Mapping[str, Tensor], member: int, perturbation: Tensor | None = None
    ) -> tuple[Signal, tuple[tuple[Tensor, ...], ...], dict[str, Tensor]]:
        """The last layer's output, the activity of each layer, and the new state by its inputs' names."""
        has_state = self._has_state(inputs)
        signal, activity = given.signal, []
        state: dict[str, Tensor] = {}
        for index, (name, layer, keeps_state) in enumerate(self._named_layers(member)):
            names = [f"{name}_{part.name}" for part in layer.state] if has_state and keeps_state else []
            initial = tuple(inputs[part] for part in names)
            if initial and len(initial[0]) != len(signal.values):
                message = f"a batch of {len(signal.values)} rows follows one of {len(initial[0])}: their states cannot go on"
                raise LayerError(f"layers[{index}]", layer.config.type, "stateful" if layer.is_stateful else None, message)
            # The next layer reads no further results of this one.
            signal, final = layer(signal.with_values(signal.values), given.source, initial)
            activity.append(signal.activity)
            if perturbation is not None and index == 0:
                signal = signal.with_values(signal.values + perturbation)
            state |= dict(zip(names, final, strict=True))
        return signal, tuple(activity), state

    def _has_state(self, inputs: Mapping[str, Tensor]) -> bool:
        """Whether the state is among the inputs. Raises NetworkError if a part of it is."""
        missing = [part.input for part in self.state if part.input not in inputs]
        if missing and len(missing) < len(self.state):
            raise NetworkError(f"state comes whole or not at all: {missing} missing")
        return bool(self.state) and not missing

    def _write_members(self, graph: GraphBuilder, given: LayerInputSymbol) -> tuple[Symbol, dict[str, str]]:
        if self.spec.members == 1:
            return self._write_layers(graph, given, 0)
        written = [self._write_layers(graph, given, number) for number in range(self.spec.members)]
        state = {name: value for _, own in written for name, value in own.items()}
        with graph.scope("ensemble"):
            values = write_combine(graph, [symbol.values for symbol, _ in written], self.spec.combine)
        return written[0][0].with_values(values), state

    def _write_layers(self, graph: GraphBuilder, given: LayerInputSymbol, member: int) -> tuple[Symbol, dict[str, str]]:
        symbol = given.symbol
        state: dict[str, str] = {}
        for index, (name, layer, keeps_state) in enumerate(self._named_layers(member)):
            initial = tuple(f"{name}_{part.name}" for part in layer.state) if keeps_state else ()
            try:
                with graph.scope(name):
                    symbol, final = layer.write(graph, symbol, given.source, initial)
            except OptionError as exc:
                raise LayerError(f"layers[{index}]", layer.config.type, exc.option, exc.message) from exc
            state |= {f"{part}_next": value for part, value in zip(initial, final, strict=True)}
        return symbol, state


def _why_not_streaming(head: Head, names: Sequence[str], layers: Sequence[Layer]) -> str:
    """Why the head or the layers do not give for a sequence in pieces, with state, what they give for the whole; or nothing."""
    if not layers[0].input.is_open:
        return "it reads rows of a fixed size"
    if head.why_no_pieces:
        return f"it {head.why_no_pieces}"
    whole = next((name for name, layer in zip(names, layers, strict=True) if not layer.can_stream), None)
    if whole is not None:
        return f'its layer "{whole}" reads more of a sequence than each step and what came before it'
    keeping = [layer for layer in layers if layer.state and layer.input.is_open]
    if not keeping:
        return "it has no layer that keeps a state"
    if len({layer.is_stateful for layer in keeping}) > 1:
        return "some of its layers are stateful, and the others start anew with every piece"
    return ""


def _check_ensemble(names: Sequence[str], layers: Sequence[Layer]) -> None:
    """Raise LayerError for a layer that several members cannot have."""
    for index, layer in enumerate(layers):
        where = f"layers[{index}]"
        if layer.is_stateful:
            message = "an ensemble's members read rows of their own, and none goes on where the batch before ended"
            raise LayerError(where, layer.config.type, "stateful", message)
        if index == len(layers) - 1 and layer.others:
            raise LayerError(where, layer.config.type, None, f"an ensemble has one answer, {names[index]} gives several results")


def _check_chain(names: Sequence[str], layers: Sequence[Layer]) -> None:
    """Raise LayerError unless the names differ and the layers can follow one another."""
    for index, (name, layer) in enumerate(zip(names, layers, strict=True)):
        where = f"layers[{index}]"
        if name in names[:index]:
            raise LayerError(where, layer.config.type, "name", f"{name!r} is layers[{names.index(name)}]'s already")
        if index < len(layers) - 1:
            try:
                layer.check_successor()
            except OptionError as exc:
                raise LayerError(where, layer.config.type, exc.option, exc.message) from exc
