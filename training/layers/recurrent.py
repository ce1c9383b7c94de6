"""What SimpleRNN, LSTM and GRU have in common: every option of Keras's, all steps of ragged and masked rows, the graph.

Rows are padded, not packed: on a CPU a packed LSTM of torch trains seven times slower. Forward, a step within a row's
length never reads the padding behind it; backward, each row is reversed within its own length first. Masked steps are
removed before and inserted after: what runs in between has no holes. So torch's fused kernels do all the work where
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

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.activations import SIGMOID, TANH, Activation, ActivationOption
from training.layers.base import (
    Layer,
    LayerConfig,
    LayerState,
    MaskUse,
    OptionError,
    Shape,
    Signal,
    StatePart,
    Symbol,
    require_sequence,
)
from training.layers.dropout import Rate, dropout_mask
from training.layers.recurrent_node import write_node
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


class GatedConfig(RecurrentConfig):
    """What LSTM and GRU have in common."""

    recurrent_activation: ActivationOption = SIGMOID
    implementation: Literal[1, 2] = 2
    use_cudnn: bool | Literal["auto"] = "auto"


# (hidden, start, end) ↦ hidden · U + b for the gates from `start` to `end`, in torch's order
Product = Callable[[Tensor, int, int], Tensor]


@dataclass(frozen=True)
class SequenceOutput:
    """Of a whole sequence: outputs (B, T, units) in the order read, the last one (B, units), the final state."""

    outputs: Tensor
    last: Tensor
    final: LayerState


class Recurrent(Layer):
    """One direction of a recurrent layer: the last step's output (B, units), or all of them (B, T, units).

    `rnn` holds the weights under torch's names: `weight_ih_l0` (gates · units, F), `weight_hh_l0` (gates · units, units)
    and the biases, gates in torch's order. Where Keras has one bias, the second one of torch is a constant zero, so that
    parameters are counted, and learn, as in Keras.
    """

    config: RecurrentConfig
    is_recurrent = True
    is_about_steps = True
    hands_mask_on = True
    operator: ClassVar[str]  # in ONNX
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

    @classmethod
    def mask_use(cls, config: Any) -> MaskUse:
        return "carried" if config.return_sequences else "used up"

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
    def units(self) -> int:
        return self.config.units

    @property
    def directions(self) -> tuple[tuple[int, int], ...]:
        return ((self.units, 1),) if self.config.return_sequences and not self.goes_backwards else ()

    @property
    def num_gates(self) -> int:
        return len(self.keras_gates)

    @property
    def goes_backwards(self) -> bool:
        return self.config.go_backwards

    @property
    def is_fused(self) -> bool:
        """Whether torch has a kernel for these activations."""
        return self.config.activation == TANH and self.gate_activation == SIGMOID

    @property
    def draws_per_gate(self) -> bool:
        """Whether dropout draws for each gate separately, as Keras does in implementation 1."""
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
            notes.append('option "unroll": accepted, and changes nothing: the numbers are the same')
        if config.seed is not None:
            notes.append('option "seed": accepted, and changes nothing: all randomness follows from the seed of the run')
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

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        config = self.config
        needs_final = bool(state) or config.return_state
        found = self.read(signal, state, zeros=config.zero_output_for_mask, needs_final=needs_final)
        others = found.final if config.return_state else ()
        if config.return_sequences:
            result = Signal(found.outputs, signal.lengths, signal.mask, others)
        else:
            result = Signal(found.last, signal.lengths, None, others)
        return self.with_activity(config.activity_regularizer, result), found.final if state else ()

    def read(self, signal: Signal, state: LayerState, *, zeros: bool, needs_final: bool) -> SequenceOutput:
        """The whole sequence, from `state` (empty: zeros). `zeros`: Keras's zero_output_for_mask."""
        values, lengths, mask = signal.values, signal.lengths, signal.mask
        if self.config.go_backwards:
            values = ragged.reverse(values, lengths)
            mask = None if mask is None else ragged.reverse(mask.unsqueeze(2), lengths).squeeze(2)
        if mask is None:
            outputs, final = self.run(values, lengths, state, needs_final)
            return SequenceOutput(outputs, ragged.last_step(outputs, lengths), final)
        is_read = mask & (torch.arange(mask.shape[1], device=mask.device) < lengths.unsqueeze(1))
        values, count = ragged.compact(values, is_read)
        # A row without a step still runs one, whose result is dropped: no kernel accepts rows of length 0.
        outputs, final = self.run(values, count.clamp(min=1), state, needs_final)
        is_empty = (count == 0).unsqueeze(1)
        last = ragged.last_step(outputs, count.clamp(min=1)).masked_fill(is_empty, 0.0)
        if zeros:
            last = last.masked_fill(~is_read.gather(1, (lengths - 1).unsqueeze(1)), 0.0)
        before = state or tuple(torch.zeros_like(part) for part in final)
        final = tuple(torch.where(is_empty, old, now) for old, now in zip(before, final, strict=True))
        if self.config.return_sequences:
            outputs = ragged.spread(outputs, is_read, zeros=zeros)
        return SequenceOutput(outputs, last, final)

    def run(self, values: Tensor, lengths: Tensor, state: LayerState, needs_final: bool) -> tuple[Tensor, LayerState]:
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
        return self.run_fused(values, lengths, state)

    def run_fused(self, values: Tensor, lengths: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """`run` by torch's fused kernel, with the final state."""
        outputs, _ = self.rnn(values, state[0].unsqueeze(0) if state else None)
        return outputs, (ragged.last_step(outputs, lengths),)

    def _run_steps(self, values: Tensor, lengths: Tensor, state: LayerState, per_gate: bool) -> tuple[Tensor, LayerState]:
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
                is_within = (step < lengths).unsqueeze(1)
                following = tuple(torch.where(is_within, now, old) for now, old in zip(following, current, strict=True))
            current = following
            outputs.append(current[0])
        return torch.stack(outputs, 1), current

    def _recurrent_product(self, keep: Tensor | None) -> Product:
        """The product of this layer's weights; `keep` (G or 1, B, H) drops parts of the hidden state."""
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

    def step(self, inputs: Tensor, state: LayerState, product: Product) -> LayerState:
        """One step: inputs (B, G · H), which are products already, and the state → the next state, the output first."""
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
            finals = tuple(graph.add("Where", node.is_empty, old, now) for old, now in zip(before, finals, strict=True))
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
        """See `Cell`, as the other names with `onnx`."""

        def ordered(tensor: Tensor) -> NDArray[Any]:
            return _reorder(tensor.detach().cpu(), self.onnx_gates).numpy()

        if self.config.use_bias:
            biases = np.concatenate([ordered(self.rnn.bias_ih_l0), ordered(self.rnn.bias_hh_l0)])
        else:
            biases = np.zeros(2 * self.num_gates * self.config.units, np.float32)
        return ordered(self.rnn.weight_ih_l0), ordered(self.rnn.weight_hh_l0), biases

    @property
    def onnx_attributes(self) -> dict[str, Any]:
        return {}

    @property
    def onnx_activations(self) -> tuple[Activation, ...]:
        return (self.gate_activation, self.config.activation)

    @property
    def onnx_defaults(self) -> tuple[Activation, ...]:
        return (SIGMOID, TANH)

    @property
    def has_node(self) -> bool:
        return all(activation.in_node is not None for activation in self.onnx_activations)

    def write_inputs(self, graph: GraphBuilder, values: str) -> str:
        kernel = self.rnn.weight_ih_l0.detach().cpu().t().contiguous().numpy()
        inputs = graph.add("MatMul", values, graph.constant(kernel, "kernel"))
        if self.config.use_bias:
            inputs = graph.add("Add", inputs, graph.constant(self.rnn.bias_ih_l0.detach().cpu().numpy(), "bias"))
        return inputs

    def write_step(self, graph: GraphBuilder, inputs: str, state: tuple[str, ...]) -> tuple[str, ...]:
        """`step` in the body of the graph's loop."""
        raise NotImplementedError

    def write_product(self, graph: GraphBuilder, hidden: str, start: int, end: int) -> str:
        """`product` of `step` in the graph."""
        rows = slice(start * self.config.units, end * self.config.units)
        kernel = self.rnn.weight_hh_l0.detach().cpu()[rows].t().contiguous().numpy()
        value = graph.add("MatMul", hidden, graph.constant(kernel, "recurrent_kernel"))
        if self.has_two_biases and self.config.use_bias:
            value = graph.add("Add", value, graph.constant(self.rnn.bias_hh_l0.detach().cpu()[rows].numpy(), "recurrent_bias"))
        return value

    def write_split(self, graph: GraphBuilder, values: str, *counts: int) -> tuple[str, ...]:
        """Cut (B, G · H) into parts of so many gates."""
        sizes = graph.constant([count * self.config.units for count in counts])
        return graph.add_many("Split", values, sizes, num_outputs=len(counts), axis=1)


class GatedRecurrent(Recurrent):
    """LSTM and GRU: the gates have an activation of their own."""

    config: GatedConfig

    @property
    def gate_activation(self) -> Activation:
        return self.config.recurrent_activation

    @property
    def draws_per_gate(self) -> bool:
        return self.config.implementation == 1 or self.config.recurrent_dropout > 0

    @property
    def notes(self) -> tuple[str, ...]:
        config = self.config
        notes = []
        if "implementation" in config.model_fields_set:
            effect = "the numbers are the same"
            if config.dropout or config.recurrent_dropout:
                effect = "it only decides whether dropout draws once or for each gate"
            notes.append(f'option "implementation": accepted: {effect}')
        if "use_cudnn" in config.model_fields_set:
            notes.append('option "use_cudnn": accepted, and changes nothing: torch decides by itself')
        return (*super().notes, *notes)


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
        cell.bias_hh_l0 = zeros  # a buffer that is registered is unknown to the list of weights, one that is set is not
