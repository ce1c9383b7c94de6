"""SimpleRNN, LSTM and GRU with every option of Keras's.

Rows are padded, not packed: on a CPU a packed LSTM of torch trains seven times slower. Forward, a step within a row's
length never sees the padding behind it; backward, each row is reversed within its own length first. Masked steps are
taken out before and put back after: what runs in between has no holes. So torch's fused kernels do all the work where
the activations are the usual ones (else a loop over the steps), and in the graph a layer is one LSTM, GRU or RNN node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.activations import SIGMOID, TANH, Activation, ActivationOption
from training.layers.base import (
    Layer,
    LayerConfig,
    OptionError,
    Shape,
    Signal,
    State,
    StatePart,
    Symbol,
    require_sequence,
)
from training.layers.dropout import Rate, dropout_mask
from training.layers.weights import (
    GLOROT_UNIFORM,
    ORTHOGONAL,
    ZEROS,
    ConstraintOption,
    InitializerOption,
    RegularizerOption,
    Weight,
)


class RecurrentConfig(LayerConfig):
    """What the three recurrent layers have in common."""

    units: PositiveInt
    activation: ActivationOption = TANH
    use_bias: bool = True
    kernel_initializer: InitializerOption = GLOROT_UNIFORM
    recurrent_initializer: InitializerOption = ORTHOGONAL
    bias_initializer: InitializerOption = ZEROS
    kernel_regularizer: RegularizerOption = None
    recurrent_regularizer: RegularizerOption = None
    bias_regularizer: RegularizerOption = None
    activity_regularizer: RegularizerOption = None
    kernel_constraint: ConstraintOption = None
    recurrent_constraint: ConstraintOption = None
    bias_constraint: ConstraintOption = None
    dropout: Rate = 0.0
    recurrent_dropout: Rate = 0.0
    seed: int | None = None
    return_sequences: bool = False
    return_state: bool = False
    go_backwards: bool = False
    stateful: bool = False
    unroll: bool = False
    zero_output_for_mask: bool = False
    weights: list[Any] | None = None


class SimpleRNNConfig(RecurrentConfig):
    """Keras's SimpleRNN."""

    type: Literal["simple_rnn"]


class LSTMConfig(RecurrentConfig):
    """Keras's LSTM."""

    type: Literal["lstm"]
    recurrent_activation: ActivationOption = SIGMOID
    unit_forget_bias: bool = True
    implementation: Literal[1, 2] = 2
    use_cudnn: bool | Literal["auto"] = "auto"


class GRUConfig(RecurrentConfig):
    """Keras's GRU; `reset_after = false` (the paper's form) runs step by step while training."""

    type: Literal["gru"]
    recurrent_activation: ActivationOption = SIGMOID
    reset_after: bool = True
    implementation: Literal[1, 2] = 2
    use_cudnn: bool | Literal["auto"] = "auto"


@dataclass(frozen=True)
class Reading:
    """What a layer made of a sequence: outputs (B, T, units) in the order read, the last one (B, units), the final state."""

    outputs: Tensor
    last: Tensor
    final: State


class Recurrent(Layer):
    """One direction of a recurrent layer: the last step's output (B, units), or all of them (B, T, units).

    `rnn` holds the weights under torch's names: `weight_ih_l0` (gates · units, F), `weight_hh_l0` (gates · units, units)
    and the biases, gates in torch's order. Where Keras has one bias, the second one of torch is a constant zero, so that
    parameters are counted, and learn, as in Keras.
    """

    config: RecurrentConfig
    operator: ClassVar[str]
    # keras_gates[i] is torch's number of the gate that Keras puts at i; onnx_gates likewise
    keras_gates: ClassVar[tuple[int, ...]]
    onnx_gates: ClassVar[tuple[int, ...]]

    def __init__(self, config: RecurrentConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_sequence(shape)
        self.output = Shape((shape.axes[0], config.units) if config.return_sequences else (config.units,))
        self.rnn = self.make_cell()
        if not self.has_two_biases:
            _hold_second_bias_at_zero(self.rnn)
        initializers = {"kernel": config.kernel_initializer, "recurrent_kernel": config.recurrent_initializer}
        for weight in self.weights:
            try:
                if weight.name == "bias":
                    weight.write(self.draw_bias(weight.shape))
                else:
                    weight.write(initializers[weight.name](weight.shape))
            except ValueError as exc:
                option = weight.name.removesuffix("_kernel") + "_initializer"
                raise OptionError(option, str(exc)) from exc
        if config.weights is not None:
            self.load_keras_weights([np.asarray(array, np.float32) for array in config.weights])

    def make_cell(self) -> Any:
        """The torch module that holds the weights, and runs all steps where it can."""
        raise NotImplementedError

    def draw_bias(self, shape: tuple[int, ...]) -> Tensor:
        """The bias (Keras's shape) at the start."""
        return self.config.bias_initializer(shape)

    @property
    def has_two_biases(self) -> bool:
        """Whether the input's and the recurrent bias are two weights, (2, gates · units)."""
        return False

    @property
    def gate_activation(self) -> Activation:
        """Of the gates; a layer without gates has none but `activation`."""
        return self.config.activation

    @property
    def num_gates(self) -> int:
        return len(self.keras_gates)

    @property
    def is_fused(self) -> bool:
        """Whether torch has a kernel for these activations."""
        return self.config.activation == TANH and self.gate_activation == SIGMOID

    @property
    def draws_per_gate(self) -> bool:
        """Whether dropout draws for each gate of its own, as Keras does in implementation 1."""
        return False

    @property
    def others(self) -> tuple[tuple[str, Shape], ...]:
        return tuple((part.name, Shape((part.units,))) for part in self.state) if self.config.return_state else ()

    @property
    def state(self) -> tuple[StatePart, ...]:
        return (StatePart("hidden", self.config.units),)

    @property
    def is_stateful(self) -> bool:
        return self.config.stateful

    @property
    def can_stream(self) -> bool:
        return not self.config.go_backwards

    @property
    def notes(self) -> tuple[str, ...]:
        config = self.config
        notes = []
        if config.unroll:
            notes.append('option "unroll": taken, and changes nothing: the numbers are the same')
        if config.seed is not None:
            notes.append('option "seed": taken, and changes nothing: all randomness follows from the seed of the run')
        if "implementation" in config.model_fields_set:
            effect = "the numbers are the same"
            if config.dropout or config.recurrent_dropout:
                effect = "it only decides whether dropout draws once or for each gate"
            notes.append(f'option "implementation": taken: {effect}')
        if "use_cudnn" in config.model_fields_set:
            notes.append('option "use_cudnn": taken, and changes nothing: torch decides by itself')
        if not self.is_fused:
            notes.append("runs step by step while training: torch has fused kernels for Keras's defaults only")
        if not self.has_node:
            notes.append("is a loop over the steps in the graph: ONNX's recurrent nodes lack one of its activations")
        return tuple(notes)

    @property
    def weights(self) -> tuple[Weight, ...]:
        config, rnn = self.config, self.rnn
        kernel = self._kernel("kernel", rnn.weight_ih_l0, config.kernel_regularizer, config.kernel_constraint)
        recurrent = self._kernel("recurrent_kernel", rnn.weight_hh_l0, config.recurrent_regularizer, config.recurrent_constraint)
        if not config.use_bias:
            return kernel, recurrent
        parts = [rnn.bias_ih_l0, rnn.bias_hh_l0] if self.has_two_biases else [rnn.bias_ih_l0]

        def read() -> Tensor:
            ordered = [_reorder(part, self.keras_gates) for part in parts]
            return torch.stack(ordered) if self.has_two_biases else ordered[0]

        @torch.no_grad()
        def write(values: Tensor) -> None:
            for part, row in zip(parts, values if self.has_two_biases else [values], strict=True):
                part.copy_(_reorder(row, _inverse(self.keras_gates)))

        return kernel, recurrent, Weight("bias", read, write, config.bias_regularizer, config.bias_constraint)

    def _kernel(self, name: str, parameter: Tensor, *rules: Any) -> Weight:
        @torch.no_grad()
        def write(values: Tensor) -> None:
            parameter.copy_(_reorder(values.t(), _inverse(self.keras_gates)))

        return Weight(name, lambda: _reorder(parameter, self.keras_gates).t(), write, *rules)

    # torch

    def forward(self, signal: Signal, source: Signal, state: State = ()) -> tuple[Signal, State]:
        config = self.config
        needs_final = bool(state) or config.return_state
        reading = self.read(signal, state, zeros=config.zero_output_for_mask, needs_final=needs_final)
        others = reading.final if config.return_state else ()
        if config.return_sequences:
            result = Signal(reading.outputs, signal.lengths, signal.mask, others)
        else:
            result = Signal(reading.last, signal.lengths, None, others)
        self.note_activity(config.activity_regularizer, result)
        return result, reading.final if state else ()

    def read(self, signal: Signal, state: State, *, zeros: bool, needs_final: bool) -> Reading:
        """The whole sequence, from `state` (empty: zeros). `zeros`: Keras's zero_output_for_mask."""
        values, lengths, mask = signal.values, signal.lengths, signal.mask
        if self.config.go_backwards:
            values = ragged.reverse(values, lengths)
            mask = None if mask is None else ragged.reverse(mask.unsqueeze(2), lengths).squeeze(2)
        if mask is None:
            outputs, final = self.run(values, lengths, state, needs_final)
            return Reading(outputs, ragged.last_step(outputs, lengths), final)
        is_read = mask & (torch.arange(mask.shape[1], device=mask.device) < lengths.unsqueeze(1))
        values, count = ragged.compact(values, is_read)
        # A row without a step still runs one, which is forgotten: no kernel takes rows of length 0.
        outputs, final = self.run(values, count.clamp(min=1), state, needs_final)
        is_empty = (count == 0).unsqueeze(1)
        last = ragged.last_step(outputs, count.clamp(min=1)).masked_fill(is_empty, 0.0)
        if zeros:
            last = last.masked_fill(~is_read.gather(1, (lengths - 1).unsqueeze(1)), 0.0)
        before = state or tuple(torch.zeros_like(part) for part in final)
        final = tuple(torch.where(is_empty, old, new) for old, new in zip(before, final, strict=True))
        if self.config.return_sequences:
            outputs = ragged.spread(outputs, is_read, zeros=zeros)
        return Reading(outputs, last, final)

    def run(self, values: Tensor, lengths: Tensor, state: State, needs_final: bool) -> tuple[Tensor, State]:
        """All steps of (B, T, F), oldest first: outputs (B, T, units), and the state at each row's end if needed."""
        config = self.config
        drops = self.training and config.dropout > 0
        per_gate = self.training and self.draws_per_gate and (drops or config.recurrent_dropout > 0)
        if per_gate or not self.is_fused or (self.training and config.recurrent_dropout > 0):
            return self._run_steps(values, lengths, state, per_gate)
        if drops:
            # One mask for all steps, as Keras draws it.
            values = values * dropout_mask(values, (values.shape[0], 1, values.shape[2]), config.dropout)
        if not state and not needs_final:
            return self.rnn(values)[0], ()
        return self.run_from(values, lengths, state)

    def run_from(self, values: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        """`run` by torch's kernel, with the final state."""
        outputs, _ = self.rnn(values, state[0].unsqueeze(0) if state else None)
        return outputs, (ragged.last_step(outputs, lengths),)

    def _run_steps(self, values: Tensor, lengths: Tensor, state: State, per_gate: bool) -> tuple[Tensor, State]:
        """`run` step by step."""
        config, rnn = self.config, self.rnn
        num_rows, num_steps, num_features = values.shape
        bias = rnn.bias_ih_l0 if config.use_bias else None
        if self.training and config.dropout > 0 and per_gate:
            gates = zip(rnn.weight_ih_l0.chunk(self.num_gates), _chunks(bias, self.num_gates), strict=True)
            shape = (num_rows, 1, num_features)
            parts = [functional.linear(values * dropout_mask(values, shape, config.dropout), w, b) for w, b in gates]
            inputs = torch.cat(parts, 2)
        else:
            if self.training and config.dropout > 0:
                values = values * dropout_mask(values, (num_rows, 1, num_features), config.dropout)
            inputs = functional.linear(values, rnn.weight_ih_l0, bias)  # (B, T, G · H)
        current = state or tuple(values.new_zeros(num_rows, part.units) for part in self.state)
        keep: Tensor | None = None
        if self.training and config.recurrent_dropout > 0:
            keep = dropout_mask(values, (self.num_gates if per_gate else 1, num_rows, config.units), config.recurrent_dropout)
        product = self._recurrent_product(keep)
        outputs = []
        is_ragged = bool((lengths != num_steps).any())
        for step, step_inputs in enumerate(inputs.unbind(1)):
            following = self.step(step_inputs, current, product)
            if is_ragged:
                goes_on = (step < lengths).unsqueeze(1)
                following = tuple(torch.where(goes_on, new, old) for new, old in zip(following, current, strict=True))
            current = following
            outputs.append(current[0])
        return torch.stack(outputs, 1), current

    def _recurrent_product(self, keep: Tensor | None) -> Callable[[Tensor, int, int], Tensor]:
        """h ↦ h · U + b for the gates from `start` to `end`, in torch's order; `keep` (G or 1, B, H) drops parts of h."""
        units = self.config.units
        kernel = self.rnn.weight_hh_l0
        bias = self.rnn.bias_hh_l0 if self.has_two_biases and self.config.use_bias else None

        def product(hidden: Tensor, start: int, end: int) -> Tensor:
            rows = slice(start * units, end * units)
            part = None if bias is None else bias[rows]
            if keep is None:
                return functional.linear(hidden, kernel[rows], part)
            if len(keep) == 1:
                return functional.linear(hidden * keep[0], kernel[rows], part)
            kernels = kernel[rows].view(end - start, units, units).transpose(1, 2)  # (G, H, H)
            gates = torch.bmm(hidden * keep[start:end], kernels).transpose(0, 1).flatten(1)  # (B, G · H)
            return gates if part is None else gates + part

        return product

    def step(self, inputs: Tensor, state: State, product: Callable[[Tensor, int, int], Tensor]) -> State:
        """One step: inputs (B, G · H) that are multiplied already, state → the new state, the output first."""
        raise NotImplementedError

    # the graph

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        config = self.config
        values, final = self.write_read(graph, symbol, state, zeros=config.zero_output_for_mask)
        if config.return_sequences and config.go_backwards:
            # ONNX gives the steps in the order of time, Keras in the order they were read.
            values = ragged.write_reverse(graph, values, symbol.lengths)
        mask = symbol.mask if config.return_sequences else None
        return Symbol(values, symbol.lengths, mask, final if config.return_state else ()), final if state else ()

    def write_read(
        self, graph: GraphBuilder, symbol: Symbol, state: tuple[str, ...], *, zeros: bool
    ) -> tuple[str, tuple[str, ...]]:
        """Outputs in the order of time (B, T, H), or the last one read (B, H); and the final state."""
        config = self.config
        node = write_node(graph, [self], symbol, [state])
        needs_final = bool(state) or config.return_state
        finals: tuple[str, ...] = ()
        if needs_final or not config.return_sequences:
            first = graph.constant([0])
            finals = tuple(graph.add("Squeeze", final, first) for final in node.finals)  # (1, B, H) → (B, H)
        last = finals[0] if finals else ""
        if node.is_empty is not None and finals:
            before = state or [graph.constant(0.0)] * len(finals)
            # Without a step the state stays, while the output is zero.
            last = graph.add("Where", node.is_empty, graph.constant(0.0), last)
            finals = tuple(graph.add("Where", node.is_empty, old, new) for old, new in zip(before, finals, strict=True))
        if not config.return_sequences:
            if zeros and node.is_read is not None:
                last = self._write_zero_if_masked(graph, symbol, node.is_read, last)
            return last, finals if needs_final else ()
        # (T, 1, B, H) → (B, T, H)
        values = graph.add("Transpose", graph.add("Squeeze", node.outputs, graph.constant([1])), perm=[1, 0, 2])
        if node.is_read is not None:
            values = ragged.write_spread(graph, values, node.is_read, zeros=zeros, backward=config.go_backwards)
        return values, finals if needs_final else ()

    def _write_zero_if_masked(self, graph: GraphBuilder, symbol: Symbol, is_read: str, last: str) -> str:
        """Zero where the step read last is masked."""
        if self.config.go_backwards or symbol.lengths is None:
            end = graph.constant([0 if self.config.go_backwards else -1])
            is_last_read = graph.add("Gather", is_read, end, axis=1)
        else:
            index = ragged.write_column(graph, graph.add("Sub", symbol.lengths, graph.constant(1)))
            as_number = graph.add("GatherElements", graph.add("Cast", is_read, to=7), index, axis=1)
            is_last_read = graph.add("Cast", as_number, to=9)
        return graph.add("Where", is_last_read, last, graph.constant(0.0))

    def onnx_weights(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """W (G · H, F), R (G · H, H) and B (2 · G · H), gates in ONNX's order."""

        def ordered(tensor: Tensor) -> NDArray[Any]:
            return _reorder(tensor.detach().cpu(), self.onnx_gates).numpy()

        if self.config.use_bias:
            biases = np.concatenate([ordered(self.rnn.bias_ih_l0), ordered(self.rnn.bias_hh_l0)])
        else:
            biases = np.zeros(2 * self.num_gates * self.config.units, np.float32)
        return ordered(self.rnn.weight_ih_l0), ordered(self.rnn.weight_hh_l0), biases

    @property
    def onnx_attributes(self) -> dict[str, Any]:
        """Attributes of the node beyond size, direction and activations."""
        return {}

    @property
    def onnx_activations(self) -> tuple[Activation, ...]:
        """The activations of one direction, in ONNX's order."""
        return (self.gate_activation, self.config.activation)

    @property
    def onnx_defaults(self) -> tuple[Activation, ...]:
        """What ONNX takes for `activations` where they are not given."""
        return (SIGMOID, TANH)

    @property
    def has_node(self) -> bool:
        """Whether ONNX's own recurrent node knows all activations; if not, the graph holds a loop over the steps."""
        return all(activation.in_node is not None for activation in self.onnx_activations)

    def write_step(self, graph: GraphBuilder, inputs: str, state: tuple[str, ...]) -> tuple[str, ...]:
        """`step` in the body of the graph's loop."""
        raise NotImplementedError

    def _write_product(self, graph: GraphBuilder, hidden: str, start: int, end: int) -> str:
        """`product` of `step` in the graph."""
        rows = slice(start * self.config.units, end * self.config.units)
        kernel = self.rnn.weight_hh_l0.detach().cpu()[rows].t().contiguous().numpy()
        value = graph.add("MatMul", hidden, graph.constant(kernel, "recurrent_kernel"))
        if self.has_two_biases and self.config.use_bias:
            value = graph.add("Add", value, graph.constant(self.rnn.bias_hh_l0.detach().cpu()[rows].numpy(), "recurrent_bias"))
        return value

    def _write_split(self, graph: GraphBuilder, values: str, *counts: int) -> tuple[str, ...]:
        """Cut (B, G · H) into parts of so many gates."""
        sizes = graph.constant([count * self.config.units for count in counts])
        return graph.add_many("Split", values, sizes, num_outputs=len(counts), axis=1)


class SimpleRNN(Recurrent):
    """h' = activation(W x + U h + b)."""

    Config: ClassVar[type[LayerConfig]] = SimpleRNNConfig
    config: SimpleRNNConfig
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

    def step(self, inputs: Tensor, state: State, product: Callable[[Tensor, int, int], Tensor]) -> State:
        return (self.config.activation(inputs + product(state[0], 0, 1)),)

    def write_step(self, graph: GraphBuilder, inputs: str, state: tuple[str, ...]) -> tuple[str, ...]:
        total = graph.add("Add", inputs, self._write_product(graph, state[0], 0, 1))
        return (self.config.activation.write(graph, total),)

    @property
    def onnx_activations(self) -> tuple[Activation, ...]:
        return (self.config.activation,)

    @property
    def onnx_defaults(self) -> tuple[Activation, ...]:
        return (TANH,)


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997) with a forget gate that starts open."""

    Config: ClassVar[type[LayerConfig]] = LSTMConfig
    config: LSTMConfig
    operator = "LSTM"
    keras_gates = (0, 1, 2, 3)  # both: input, forget, cell, output
    onnx_gates = (0, 3, 1, 2)  # input, output, forget, cell

    def make_cell(self) -> Any:
        return nn.LSTM(self.input.features, self.config.units, bias=self.config.use_bias, batch_first=True)

    def draw_bias(self, shape: tuple[int, ...]) -> Tensor:
        if not self.config.unit_forget_bias:
            return super().draw_bias(shape)
        units = self.config.units
        draw = self.config.bias_initializer
        return torch.cat([draw((units,)), torch.ones(units), draw((2 * units,))])

    @property
    def gate_activation(self) -> Activation:
        return self.config.recurrent_activation

    @property
    def draws_per_gate(self) -> bool:
        return self.config.implementation == 1 or self.config.recurrent_dropout > 0

    @property
    def state(self) -> tuple[StatePart, ...]:
        return (StatePart("hidden", self.config.units), StatePart("cell", self.config.units))

    def step(self, inputs: Tensor, state: State, product: Callable[[Tensor, int, int], Tensor]) -> State:
        hidden, cell = state
        gate, activation = self.gate_activation, self.config.activation
        enter, forget, new, leave = (inputs + product(hidden, 0, 4)).chunk(4, 1)
        cell = gate(forget) * cell + gate(enter) * activation(new)
        return gate(leave) * activation(cell), cell

    def write_step(self, graph: GraphBuilder, inputs: str, state: tuple[str, ...]) -> tuple[str, ...]:
        hidden, cell = state
        gate, activation = self.gate_activation, self.config.activation
        total = graph.add("Add", inputs, self._write_product(graph, hidden, 0, 4))
        enter, forget, new, leave = self._write_split(graph, total, 1, 1, 1, 1)
        kept = graph.add("Mul", gate.write(graph, forget), cell)
        cell = graph.add("Add", kept, graph.add("Mul", gate.write(graph, enter), activation.write(graph, new)))
        return graph.add("Mul", gate.write(graph, leave), activation.write(graph, cell)), cell

    def run_from(self, values: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        initial = tuple(part.unsqueeze(0) for part in state) or None
        if bool((lengths == values.shape[1]).all()):
            outputs, (hidden, cell) = self.rnn(values, initial)
            return outputs, (hidden.squeeze(0), cell.squeeze(0))
        # Packed: the cell state at a row's own end is not among the outputs. Slow, but few ask for it.
        packed = pack_padded_sequence(values, lengths.cpu(), batch_first=True, enforce_sorted=False)
        packed_outputs, (hidden, cell) = self.rnn(packed, initial)
        outputs, _ = nn.utils.rnn.pad_packed_sequence(packed_outputs, batch_first=True, total_length=values.shape[1])
        return outputs, (hidden.squeeze(0), cell.squeeze(0))

    @property
    def onnx_activations(self) -> tuple[Activation, ...]:
        return (self.gate_activation, self.config.activation, self.config.activation)

    @property
    def onnx_defaults(self) -> tuple[Activation, ...]:
        return (SIGMOID, TANH, TANH)


class GRU(Recurrent):
    """Gated recurrent unit (Cho et al. 2014); by default with the reset gate after the product, as Keras and cuDNN."""

    Config: ClassVar[type[LayerConfig]] = GRUConfig
    config: GRUConfig
    operator = "GRU"
    keras_gates = (1, 0, 2)  # torch: reset, update, new; Keras: update, reset, new
    onnx_gates = (1, 0, 2)

    def make_cell(self) -> Any:
        return nn.GRU(self.input.features, self.config.units, bias=self.config.use_bias, batch_first=True)

    @property
    def has_two_biases(self) -> bool:
        # The reset gate comes between the two biases: both count.
        return self.config.reset_after

    @property
    def gate_activation(self) -> Activation:
        return self.config.recurrent_activation

    @property
    def is_fused(self) -> bool:
        return super().is_fused and self.config.reset_after

    @property
    def draws_per_gate(self) -> bool:
        return self.config.implementation == 1 or self.config.recurrent_dropout > 0

    def step(self, inputs: Tensor, state: State, product: Callable[[Tensor, int, int], Tensor]) -> State:
        (hidden,) = state
        units = self.config.units
        gates_input, new_input = torch.split(inputs, [2 * units, units], 1)
        if self.config.reset_after:
            gates, new = torch.split(product(hidden, 0, 3), [2 * units, units], 1)
            reset, update = (self.gate_activation(part) for part in (gates_input + gates).chunk(2, 1))
            new = reset * new
        else:
            gates = gates_input + product(hidden, 0, 2)
            reset, update = (self.gate_activation(part) for part in gates.chunk(2, 1))
            new = product(reset * hidden, 2, 3)
        return (update * hidden + (1 - update) * self.config.activation(new_input + new),)

    def write_step(self, graph: GraphBuilder, inputs: str, state: tuple[str, ...]) -> tuple[str, ...]:
        (hidden,) = state
        *gate_inputs, new_input = self._write_split(graph, inputs, 1, 1, 1)
        if self.config.reset_after:
            *products, new = self._write_split(graph, self._write_product(graph, hidden, 0, 3), 1, 1, 1)
        else:
            products = list(self._write_split(graph, self._write_product(graph, hidden, 0, 2), 1, 1))
        sums = [graph.add("Add", *pair) for pair in zip(gate_inputs, products, strict=True)]
        reset, update = (self.gate_activation.write(graph, part) for part in sums)
        if self.config.reset_after:
            new = graph.add("Mul", reset, new)
        else:
            new = self._write_product(graph, graph.add("Mul", reset, hidden), 2, 3)
        new = self.config.activation.write(graph, graph.add("Add", new_input, new))
        kept = graph.add("Mul", update, graph.add("Sub", hidden, new))
        return (graph.add("Add", new, kept),)

    @property
    def onnx_attributes(self) -> dict[str, Any]:
        return {"linear_before_reset": int(self.config.reset_after)}


@dataclass(frozen=True)
class Node:
    """A recurrent node's results: outputs (T, D, B, H) in the order of time without the masked steps, finals (D, B, H)."""

    outputs: str
    finals: tuple[str, ...]
    is_read: str | None  # (B, T); None: nothing was taken out
    is_empty: str | None  # (B, 1): rows that have no step at all


def write_node(graph: GraphBuilder, layers: Sequence[Recurrent], symbol: Symbol, states: Sequence[tuple[str, ...]]) -> Node:
    """One node for a layer, or for one that reads ahead and one that reads back. `states` are theirs, or empty."""
    first = layers[0]
    values, lengths, is_read, is_empty = symbol.values, symbol.lengths, None, None
    if symbol.mask is not None:
        is_read = ragged.write_is_read(graph, symbol)
        assert is_read is not None
        values, count = ragged.write_compact(graph, values, is_read)
        lengths = graph.add("Max", count, graph.constant(1))
        is_empty = ragged.write_column(graph, graph.add("Equal", count, graph.constant(0)))
    if not first.has_node:
        assert len(layers) == 1, layers
        outputs, finals = _write_loop(graph, first, values, lengths, states[0])
        return Node(outputs, finals, is_read, is_empty)
    weights = [np.stack(parts) for parts in zip(*(layer.onnx_weights() for layer in layers), strict=True)]
    inputs = [graph.add("Transpose", values, perm=[1, 0, 2])]
    inputs += [graph.constant(part, name) for part, name in zip(weights, ("kernel", "recurrent_kernel", "bias"), strict=True)]
    inputs.append(graph.add("Cast", lengths, to=6) if lengths is not None else "")  # sequence_lens is INT32
    zero = graph.constant([0])
    for parts in zip(*states, strict=True):
        directions = [graph.add("Unsqueeze", part, zero) for part in parts]  # (B, H) → (1, B, H)
        inputs.append(directions[0] if len(directions) == 1 else graph.add("Concat", *directions, axis=0))
    direction = "bidirectional" if len(layers) == 2 else "reverse" if first.config.go_backwards else "forward"
    attributes: dict[str, Any] = {"direction": direction, "hidden_size": first.config.units, **first.onnx_attributes}
    if any(layer.onnx_activations != layer.onnx_defaults for layer in layers):
        chosen = [activation.in_node for layer in layers for activation in layer.onnx_activations]
        attributes["activations"] = [activation.name for activation in chosen if activation]
        # onnxruntime hands out these numbers in order, to those activations that take one.
        alphas = [activation.alpha for activation in chosen if activation and activation.alpha is not None]
        betas = [activation.beta for activation in chosen if activation and activation.beta is not None]
        attributes |= {"activation_alpha": alphas} if alphas else {}
        attributes |= {"activation_beta": betas} if betas else {}
    num_outputs = 1 + len(first.state)
    outputs, *results = graph.add_many(first.operator, *inputs, num_outputs=num_outputs, named=True, **attributes)
    return Node(outputs, tuple(results), is_read, is_empty)


def _write_loop(
    graph: GraphBuilder, layer: Recurrent, values: str, lengths: str | None, state: tuple[str, ...]
) -> tuple[str, tuple[str, ...]]:
    """What `write_node`'s node gives, as an ONNX Scan: for activations that recurrent nodes do not know."""
    units = layer.config.units
    kernel = layer.rnn.weight_ih_l0.detach().cpu().t().contiguous().numpy()
    inputs = graph.add("MatMul", values, graph.constant(kernel, "kernel"))  # (B, T, G · H)
    if layer.config.use_bias:
        inputs = graph.add("Add", inputs, graph.constant(layer.rnn.bias_ih_l0.detach().cpu().numpy(), "bias"))
    scanned = [graph.add("Transpose", inputs, perm=[1, 0, 2])]
    if not state:
        num_rows = graph.add("Shape", values, start=0, end=1)
        shape = graph.add("Concat", num_rows, graph.constant([units]), axis=0)
        state = (graph.add("Expand", graph.constant(0.0), shape),) * len(layer.state)

    body = graph.body("step")
    before = tuple(body.input(f"{body.name}/{part.name}", "FP32", ["batch", units]) for part in layer.state)
    step_inputs = body.input(f"{body.name}/inputs", "FP32", ["batch", layer.num_gates * units])
    after = layer.write_step(body, step_inputs, before)
    if lengths is not None:
        within = ragged.write_mask(graph, values, lengths)  # (B, T, 1)
        scanned.append(graph.add("Transpose", within, perm=[1, 0, 2]))
        goes_on = body.input(f"{body.name}/goes_on", "BOOL", ["batch", 1])
        after = tuple(body.add("Where", goes_on, new, old) for new, old in zip(after, before, strict=True))
    for part, value in zip(layer.state, after, strict=True):
        body.output(value, f"{body.name}/{part.name}_next", "FP32", ["batch", units])
    body.output(after[0], f"{body.name}/output", "FP32", ["batch", units])

    backward = int(layer.config.go_backwards)
    results = graph.add_many(
        "Scan",
        *state,
        *scanned,
        num_outputs=len(state) + 1,
        named=True,
        body=body.build_body(),
        num_scan_inputs=len(scanned),
        scan_input_directions=[backward] * len(scanned),
        scan_output_directions=[backward],
    )
    zero, one = graph.constant([0]), graph.constant([1])
    outputs = graph.add("Unsqueeze", results[-1], one)  # (T, 1, B, H)
    return outputs, tuple(graph.add("Unsqueeze", final, zero) for final in results[:-1])


def _reorder(tensor: Tensor, gates: Sequence[int]) -> Tensor:
    """The gates along axis 0 in another order."""
    if list(gates) == list(range(len(gates))):
        return tensor
    parts = tensor.chunk(len(gates))
    return torch.cat([parts[gate] for gate in gates])


def _inverse(gates: Sequence[int]) -> list[int]:
    return sorted(range(len(gates)), key=lambda index: gates[index])


def _chunks(bias: Tensor | None, count: int) -> Sequence[Tensor | None]:
    return [None] * count if bias is None else bias.chunk(count)


def _hold_second_bias_at_zero(cell: nn.RNNBase) -> None:
    """Make torch's second bias a constant."""
    if cell.bias:
        zeros = torch.zeros_like(cell.get_parameter("bias_hh_l0"))
        del cell.bias_hh_l0
        cell.register_buffer("bias_hh_l0", zeros, persistent=False)
        cell._init_flat_weights()
