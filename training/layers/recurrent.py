"""SimpleRNN, LSTM and GRU, and two of them reading in both directions.

Rows are padded, not packed: on a CPU a packed LSTM of torch trains seven times slower. Forward, a step within a row's
length never sees the padding behind it; backward, each row is reversed within its own length first. The numbers are
those of packed sequences. In the graph a layer, or a pair of directions, is one LSTM, GRU or RNN node.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from training.layers import ragged
from training.layers.base import (
    Layer,
    LayerConfig,
    Shape,
    Signal,
    State,
    StatePart,
    Symbol,
    require,
    require_sequence,
)
from training.layers.dropout import Rate, dropout_mask
from training.onnx_graph import GraphBuilder


class RecurrentConfig(LayerConfig):
    """What the three recurrent layers have in common."""

    units: PositiveInt
    activation: Literal["tanh"] = "tanh"
    use_bias: bool = True
    return_sequences: bool = False
    go_backwards: bool = False
    dropout: Rate = 0.0
    recurrent_dropout: Rate = 0.0

    @field_validator("recurrent_dropout")
    @classmethod
    def _recurrent_dropout_is_zero(cls, rate: float) -> float:
        if rate:
            raise ValueError("is not supported, the fused kernels have none; use dropout")
        return rate


class SimpleRNNConfig(RecurrentConfig):
    """Keras's SimpleRNN."""

    type: Literal["simple_rnn"]
    activation: Literal["tanh", "relu"] = "tanh"  # type: ignore[assignment]


class LSTMConfig(RecurrentConfig):
    """Keras's LSTM."""

    type: Literal["lstm"]
    recurrent_activation: Literal["sigmoid"] = "sigmoid"
    unit_forget_bias: bool = True


class GRUConfig(RecurrentConfig):
    """Keras's GRU; `reset_after = false` (the paper's form) runs step by step while training."""

    type: Literal["gru"]
    recurrent_activation: Literal["sigmoid"] = "sigmoid"
    reset_after: bool = True


class Recurrent(Layer):
    """One direction of a recurrent layer: the last step's output (B, units), or all of them (B, T, units).

    Subclasses choose the cell. `rnn` holds the weights under torch's names: `weight_ih_l0` (gates · units, F),
    `weight_hh_l0` (gates · units, units) and the biases, gates in torch's order. Where Keras has one bias, the second
    one of torch is a constant zero, so that parameters are counted, and learn, as in Keras.
    """

    config: RecurrentConfig
    operator: ClassVar[str]
    num_gates: ClassVar[int]
    # onnx_gates[i] is torch's number of the gate that ONNX puts at i
    onnx_gates: ClassVar[tuple[int, ...]]

    def __init__(self, config: RecurrentConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        require_sequence(shape)
        self.output = Shape(("time", config.units) if config.return_sequences else (config.units,))
        self.rnn = self.make_cell()
        nn.init.xavier_uniform_(self.rnn.weight_ih_l0)  # Keras's glorot_uniform, over all gates at once
        nn.init.orthogonal_(self.rnn.weight_hh_l0)
        if config.use_bias:
            nn.init.zeros_(self.rnn.bias_ih_l0)
            nn.init.zeros_(self.rnn.bias_hh_l0)

    def make_cell(self) -> Any:
        """The torch module that runs all steps."""
        raise NotImplementedError

    @property
    def state(self) -> tuple[StatePart, ...]:
        return (StatePart("hidden", self.config.units),)

    @property
    def can_stream(self) -> bool:
        return not self.config.go_backwards

    def run(self, values: Tensor, lengths: Tensor, state: State = ()) -> tuple[Tensor, State]:
        """All steps of (B, T, F), oldest first: outputs (B, T, units), and the new state if one was given."""
        if self.training and self.config.dropout:
            # One mask for all steps, as Keras draws it.
            shape = (values.shape[0], 1, values.shape[2])
            values = values * dropout_mask(values, shape, self.config.dropout)
        if not state:
            outputs, _ = self.rnn(values)
            return outputs, ()
        return self.run_from(values, lengths, state)

    def run_from(self, values: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        """`run` from a given state."""
        (hidden,) = state
        outputs, _ = self.rnn(values, hidden.unsqueeze(0))
        return outputs, (ragged.last_step(outputs, lengths),)

    def forward(self, signal: Signal, source: Signal, state: State = ()) -> tuple[Signal, State]:
        values = signal.values
        if self.config.go_backwards:
            values = ragged.reverse(values, signal.lengths)
        outputs, state = self.run(values, signal.lengths, state)
        if not self.config.return_sequences:
            outputs = ragged.last_step(outputs, signal.lengths)
        return Signal(outputs, signal.lengths), state

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        direction = "reverse" if self.config.go_backwards else "forward"
        outputs, finals = write_recurrent(graph, [self], direction, symbol, state)
        if state or not self.config.return_sequences:
            first = graph.constant([0])
            finals = tuple(graph.add("Squeeze", final, first) for final in finals)  # (1, B, H) → (B, H)
        if self.config.return_sequences:
            # (T, 1, B, H) → (B, T, H)
            values = graph.add("Transpose", graph.add("Squeeze", outputs, graph.constant([1])), perm=[1, 0, 2])
            if self.config.go_backwards:
                # ONNX gives the steps in the order of time, Keras in the order they were read.
                values = ragged.write_reverse(graph, values, symbol.lengths)
        else:
            values = finals[0]
        return Symbol(values, symbol.lengths), finals if state else ()

    def onnx_weights(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """W (G · H, F), R (G · H, H) and B (2 · G · H), gates in ONNX's order."""
        units = self.config.units

        def ordered(tensor: Tensor) -> NDArray[Any]:
            gates = np.split(tensor.detach().cpu().numpy(), self.num_gates)
            return np.concatenate([gates[gate] for gate in self.onnx_gates])

        if self.config.use_bias:
            biases = np.concatenate([ordered(self.rnn.bias_ih_l0), ordered(self.rnn.bias_hh_l0)])
        else:
            biases = np.zeros(2 * self.num_gates * units, np.float32)
        return ordered(self.rnn.weight_ih_l0), ordered(self.rnn.weight_hh_l0), biases

    @property
    def onnx_attributes(self) -> dict[str, Any]:
        """Attributes of the node beyond size and direction."""
        return {}

    @property
    def onnx_activations(self) -> tuple[str, ...]:
        """The activations of one direction, where they are not ONNX's defaults."""
        return ()


class SimpleRNN(Recurrent):
    """h' = activation(W x + U h + b)."""

    Config: ClassVar[type[LayerConfig]] = SimpleRNNConfig
    config: SimpleRNNConfig
    operator = "RNN"
    num_gates = 1
    onnx_gates = (0,)

    def make_cell(self) -> Any:
        config = self.config
        cell = nn.RNN(self.input.features, config.units, nonlinearity=config.activation, bias=config.use_bias, batch_first=True)
        return _with_one_bias(cell)

    @property
    def onnx_activations(self) -> tuple[str, ...]:
        return ("Relu",) if self.config.activation == "relu" else ()


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997) with a forget gate that starts open."""

    Config: ClassVar[type[LayerConfig]] = LSTMConfig
    config: LSTMConfig
    operator = "LSTM"
    num_gates = 4
    onnx_gates = (0, 3, 1, 2)  # torch: input, forget, cell, output; ONNX: input, output, forget, cell

    def __init__(self, config: LSTMConfig, shape: Shape, source: Shape) -> None:
        super().__init__(config, shape, source)
        if config.use_bias and config.unit_forget_bias:
            with torch.no_grad():
                self.rnn.bias_ih_l0[config.units : 2 * config.units] = 1.0

    def make_cell(self) -> Any:
        config = self.config
        return _with_one_bias(nn.LSTM(self.input.features, config.units, bias=config.use_bias, batch_first=True))

    @property
    def state(self) -> tuple[StatePart, ...]:
        return (StatePart("hidden", self.config.units), StatePart("cell", self.config.units))

    def run_from(self, values: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        # Packed: the cell state at a row's own end is not among the outputs. Slow, but only streaming asks for it.
        packed = pack_padded_sequence(values, lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs, (hidden, cell) = self.rnn(packed, tuple(part.unsqueeze(0) for part in state))
        padded, _ = nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True, total_length=values.shape[1])
        return padded, (hidden.squeeze(0), cell.squeeze(0))


class GRU(Recurrent):
    """Gated recurrent unit (Cho et al. 2014); by default with the reset gate after the product, as Keras and cuDNN."""

    Config: ClassVar[type[LayerConfig]] = GRUConfig
    config: GRUConfig
    operator = "GRU"
    num_gates = 3
    onnx_gates = (1, 0, 2)  # torch: reset, update, new; ONNX: update, reset, hidden

    def make_cell(self) -> Any:
        config = self.config
        if config.reset_after:
            # The reset gate comes between the two biases: both count.
            return nn.GRU(self.input.features, config.units, bias=config.use_bias, batch_first=True)
        return _ResetBeforeGRU(self.input.features, config.units, config.use_bias)

    @property
    def onnx_attributes(self) -> dict[str, Any]:
        return {"linear_before_reset": int(self.config.reset_after)}


class BidirectionalConfig(LayerConfig):
    """Keras's Bidirectional: `layer` is the table of a recurrent layer, read forward and backward with own weights."""

    type: Literal["bidirectional"]
    layer: dict[str, Any] = Field(description="the options of the recurrent layer, its `type` too")
    merge_mode: Literal["concat", "sum", "mul", "ave"] = "concat"


class Bidirectional(Layer):
    """Two recurrent layers, one of which reads each row from its end; outputs merged step by step."""

    Config: ClassVar[type[LayerConfig]] = BidirectionalConfig
    config: BidirectionalConfig
    reads_whole_sequence = True

    def __init__(
        self, config: BidirectionalConfig, shape: Shape, source: Shape, forward_layer: Recurrent, backward_layer: Recurrent
    ) -> None:
        super().__init__(config, shape, source)
        inner = forward_layer.config
        require(not inner.go_backwards, "layer", "go_backwards inside is not supported: both directions are read anyway")
        features = inner.units * (2 if config.merge_mode == "concat" else 1)
        self.output = forward_layer.output.with_features(features)
        self.forward_layer = forward_layer
        self.backward_layer = backward_layer

    def forward(self, signal: Signal, source: Signal, state: State = ()) -> tuple[Signal, State]:
        lengths = signal.lengths
        forward, _ = self.forward_layer.run(signal.values, lengths)
        backward, _ = self.backward_layer.run(ragged.reverse(signal.values, lengths), lengths)
        if self.forward_layer.config.return_sequences:
            backward = ragged.reverse(backward, lengths)
        else:
            forward, backward = ragged.last_step(forward, lengths), ragged.last_step(backward, lengths)
        return Signal(self._merge(forward, backward), lengths), ()

    def _merge(self, forward: Tensor, backward: Tensor) -> Tensor:
        match self.config.merge_mode:
            case "concat":
                return torch.cat([forward, backward], -1)
            case "sum":
                return forward + backward
            case "mul":
                return forward * backward
            case "ave":
                return (forward + backward) / 2

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        layers = [self.forward_layer, self.backward_layer]
        outputs, finals = write_recurrent(graph, layers, "bidirectional", symbol, ())
        if self.forward_layer.config.return_sequences:
            values = graph.add("Transpose", outputs, perm=[2, 0, 1, 3])  # (T, 2, B, H) → (B, T, 2, H)
        else:
            values = graph.add("Transpose", finals[0], perm=[1, 0, 2])  # (2, B, H) → (B, 2, H)
        match self.config.merge_mode:
            case "concat":
                axes = [0, 0] if self.forward_layer.config.return_sequences else [0]
                values = graph.add("Reshape", values, graph.constant([*axes, self.output.features]))
            case "sum":
                values = graph.add("ReduceSum", values, graph.constant([-2]), keepdims=0)
            case "mul":
                values = graph.add("ReduceProd", values, axes=[-2], keepdims=0)
            case "ave":
                values = graph.add("ReduceMean", values, axes=[-2], keepdims=0)
        return Symbol(values, symbol.lengths), ()


def write_recurrent(
    graph: GraphBuilder, layers: list[Recurrent], direction: str, symbol: Symbol, state: tuple[str, ...]
) -> tuple[str, tuple[str, ...]]:
    """One node for a layer, or for a pair of directions: outputs (T, D, B, H) and final states (D, B, H)."""
    first = layers[0]
    weights = [np.stack(parts) for parts in zip(*(layer.onnx_weights() for layer in layers), strict=True)]
    time_major = graph.add("Transpose", symbol.values, perm=[1, 0, 2])
    inputs = [time_major]
    inputs += [graph.constant(part, name) for part, name in zip(weights, ("kernel", "recurrent_kernel", "bias"), strict=True)]
    inputs.append(graph.add("Cast", symbol.lengths, to=6))  # sequence_lens is INT32
    inputs += [graph.add("Unsqueeze", part, graph.constant([0])) for part in state]  # (B, H) → (1, B, H)
    attributes: dict[str, Any] = {"direction": direction, "hidden_size": first.config.units, **first.onnx_attributes}
    if first.onnx_activations:
        attributes["activations"] = [name for layer in layers for name in layer.onnx_activations]
    num_outputs = 1 + len(first.state)
    outputs, *finals = graph.add_many(first.operator, *inputs, num_outputs=num_outputs, named=True, **attributes)
    return outputs, tuple(finals)


def _with_one_bias(cell: nn.RNNBase) -> nn.RNNBase:
    """Make torch's second bias a constant zero."""
    if cell.bias:
        zeros = torch.zeros_like(cell.get_parameter("bias_hh_l0"))
        del cell.bias_hh_l0
        cell.register_buffer("bias_hh_l0", zeros, persistent=False)
        cell._init_flat_weights()
    return cell


class _ResetBeforeGRU(nn.Module):
    """The GRU whose reset gate acts before the recurrent product; torch has no kernel for it. One bias, as in Keras."""

    def __init__(self, num_features: int, units: int, use_bias: bool) -> None:
        super().__init__()
        self.units = units
        self.weight_ih_l0 = nn.Parameter(torch.empty(3 * units, num_features))
        self.weight_hh_l0 = nn.Parameter(torch.empty(3 * units, units))
        self.bias_ih_l0 = nn.Parameter(torch.zeros(3 * units)) if use_bias else None
        self.register_buffer("bias_hh_l0", torch.zeros(3 * units), persistent=False)

    def forward(self, values: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        inputs = nn.functional.linear(values, self.weight_ih_l0, self.bias_ih_l0)  # (B, T, 3H)
        gates_kernel, new_kernel = torch.split(self.weight_hh_l0, [2 * self.units, self.units])
        current = values.new_zeros(values.shape[0], self.units) if hidden is None else hidden.squeeze(0)
        outputs = []
        for step in inputs.unbind(1):
            gates_input, new_input = torch.split(step, [2 * self.units, self.units], 1)
            gates = torch.sigmoid(gates_input + nn.functional.linear(current, gates_kernel))
            reset, update = gates.chunk(2, 1)
            new = torch.tanh(new_input + nn.functional.linear(reset * current, new_kernel))
            current = update * current + (1 - update) * new
            outputs.append(current)
        return torch.stack(outputs, 1), current.unsqueeze(0)
