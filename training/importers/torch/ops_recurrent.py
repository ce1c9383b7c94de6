"""Rules of torch's recurrent kernels: each layer one ONNX node that ends every row at its own length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.importers.torch.axes import BATCH, Axis, MergedAxis, Time, Value
from training.importers.torch.errors import Untranslatable
from training.importers.torch.ops_elementwise import add_of, relu, sigmoid, tanh
from training.importers.torch.ops_linear import linear
from training.importers.torch.ops_shape import chunk, cut, squeeze
from training.importers.torch.rules import rule
from training.importers.torch.writer import Writer

FLOAT = torch.float32
# Gates in ONNX's order, as indices into torch's: LSTM has i, f, g, o there and i, o, f, g here; GRU r, z, n and z, r, n.
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


@rule("lstm")
def lstm(w: Writer, input: Value, *args: Any) -> tuple[Value, ...]:
    return _recurrent(w, "LSTM", input, args)


@rule("gru")
def gru(w: Writer, input: Value, *args: Any) -> tuple[Value, ...]:
    return _recurrent(w, "GRU", input, args)


@rule("rnn_tanh")
def rnn_tanh(w: Writer, input: Value, *args: Any) -> tuple[Value, ...]:
    return _recurrent(w, "RNN", input, args)


@rule("rnn_relu")
def rnn_relu(w: Writer, input: Value, *args: Any) -> tuple[Value, ...]:
    return _recurrent(w, "RNN", input, args, activation="Relu")


def _recurrent(w: Writer, operator: str, input: Value, args: Sequence[Any], activation: str = "") -> tuple[Value, ...]:
    """(outputs, final states ...) of torch's kernel, which takes packed and padded steps alike."""
    if input.is_packed:
        _, state, weights, has_biases, num_layers, dropout, training, is_bidirectional = args
        is_batch_first = False
        merged = input.axes[0]
        assert isinstance(merged, MergedAxis)
        value = Value(input.name, (merged.axes[1], merged.axes[0], *input.axes[1:]), FLOAT)
    else:
        state, weights, has_biases, num_layers, dropout, training, is_bidirectional, is_batch_first = args
        value = input
    if training and dropout and num_layers > 1:
        raise Untranslatable("dropout between recurrent layers in training")
    if value.rank != 3:
        raise Untranslatable("a recurrent layer over one row without a batch axis")
    states = [state] if isinstance(state, Value) else list(state)
    num_directions = 2 if is_bidirectional else 1
    own = len(weights) // (num_layers * num_directions)
    is_projected = operator == "LSTM" and own == (5 if has_biases else 3)
    if is_batch_first:
        value = w.transpose(value, [1, 0, 2])  # (T, B, F)
    time, rows = value.axes[0], value.axes[1]
    if time == BATCH:
        raise Untranslatable("a recurrent layer reads the rows as its steps: is batch_first=True missing?")
    if not isinstance(time, int | Time) or (isinstance(time, Time) and rows != BATCH):
        raise Untranslatable(f"a recurrent layer over the axes {value}")
    lengths = w.graph.add("Cast", time.lengths, to=6) if isinstance(time, Time) else ""  # sequence_lens is INT32
    finals: list[list[Value]] = [[] for _ in states]
    for layer in range(num_layers):
        first = layer * num_directions
        parts = [weights[own * number : own * (number + 1)] for number in range(first, first + num_directions)]
        starts = [cut(w, part, 0, first, first + num_directions) for part in states]
        value, results = _write_layer(w, operator, value, lengths, parts, has_biases, starts, is_projected, activation)
        for total, result in zip(finals, results, strict=True):
            total.append(result)
    outputs = replace(value, is_clean=isinstance(time, Time))
    if input.is_packed:
        outputs = Value(outputs.name, (input.axes[0], outputs.axes[2]), FLOAT, is_packed=True)
    elif is_batch_first:
        outputs = w.transpose(outputs, [1, 0, 2])
    return (outputs, *(_joined(w, parts) for parts in finals))


def _joined(w: Writer, parts: Sequence[Value]) -> Value:
    """Final states of the layers, (layers * directions, B, H)."""
    if len(parts) == 1:
        return parts[0]
    size = sum(part.axes[0] for part in parts if isinstance(part.axes[0], int))
    return Value(w.graph.add("Concat", *(part.name for part in parts), axis=0), (size, *parts[0].axes[1:]), FLOAT)


def _write_layer(
    w: Writer,
    operator: str,
    value: Value,
    lengths: str,
    weights: Sequence[Sequence[Value]],
    has_biases: bool,
    states: Sequence[Value],
    is_projected: bool,
    activation: str,
) -> tuple[Value, list[Value]]:
    """One layer in one or two directions: outputs (T, B, directions * H) and finals (directions, B, H)."""
    graph = w.graph
    arrays = [[_array(part) for part in parts] for parts in weights]
    hidden = arrays[0][1].shape[0] // len(_GATES[operator])
    gates = _GATES[operator]
    projections = [parts[-1] for parts in arrays] if is_projected else []
    is_zero = [state.fill == 0 or (state.constant is not None and not state.constant.any()) for state in states]
    if is_projected and not all(is_zero):
        raise Untranslatable("an LSTM with proj_size and an initial state")
    kernels = np.stack([_ordered(parts[0], gates) for parts in arrays])
    # Gates read the projected state W · h: with R · W in place of R the node needs no projection of its own.
    recurrent = [parts[1] @ parts[-1] if is_projected else parts[1] for parts in arrays]
    recurrents = np.stack([_ordered(part, gates) for part in recurrent])
    biases = (
        np.stack([np.concatenate([_ordered(parts[2], gates), _ordered(parts[3], gates)]) for parts in arrays])
        if has_biases
        else None
    )
    inputs = [w.name(value), graph.constant(kernels, "kernel"), graph.constant(recurrents, "recurrent_kernel")]
    inputs += [graph.constant(biases, "bias") if biases is not None else "", lengths]
    if not all(is_zero):
        shape = (len(weights), value.axes[1], hidden)
        for state in states:
            name = w.name(state)
            if state.axes != shape:
                name = graph.add("Expand", name, w.shape(shape))
            inputs.append(name)
    while not inputs[-1]:
        inputs.pop()
    attributes: dict[str, Any] = {"direction": "bidirectional" if len(weights) == 2 else "forward", "hidden_size": hidden}
    if operator == "GRU":
        attributes["linear_before_reset"] = 1
    if activation:
        attributes["activations"] = [activation] * len(weights)
    num_outputs = 1 + len(states)
    outputs, *finals = graph.add_many(operator, *inputs, num_outputs=num_outputs, **attributes)
    if len(weights) == 1:
        flat = w.squeeze(outputs, [1])  # (T, 1, B, H) → (T, B, H)
    else:
        turned = graph.add("Transpose", outputs, perm=[0, 2, 1, 3])  # (T, B, 2, H)
        flat = graph.add("Reshape", turned, graph.constant([0, 0, 2 * hidden]))
    rows: Axis = value.axes[1]
    results = [Value(final, (len(weights), rows, hidden), FLOAT) for final in finals]
    result = Value(flat, (value.axes[0], rows, len(weights) * hidden), FLOAT)
    if is_projected:
        result, results = _project(w, result, results, projections)
    return result, results


def _project(w: Writer, value: Value, finals: list[Value], kernels: Sequence[NDArray[Any]]) -> tuple[Value, list[Value]]:
    size, hidden = kernels[0].shape
    whole = np.zeros((len(kernels) * hidden, len(kernels) * size), np.float32)
    for number, kernel in enumerate(kernels):
        whole[number * hidden : (number + 1) * hidden, number * size : (number + 1) * size] = kernel.T
    name = w.graph.add("MatMul", value.name, w.graph.constant(whole))
    turned = w.graph.constant(np.stack([kernel.T for kernel in kernels]))
    last = w.graph.add("MatMul", finals[0].name, turned)  # (directions, B, H) · (directions, H, P)
    return (
        Value(name, (*value.axes[:2], whole.shape[1]), FLOAT),
        [Value(last, (*finals[0].axes[:2], size), FLOAT), *finals[1:]],
    )


def _array(value: Value) -> NDArray[Any]:
    if value.constant is None:
        raise Untranslatable("a recurrent layer with computed weights")
    return value.constant.numpy()


def _ordered(array: NDArray[Any], gates: Sequence[int]) -> NDArray[Any]:
    parts = np.split(array, len(gates))
    return np.concatenate([parts[gate] for gate in gates])


# --------------------------------------------------------------------------------------------------------------- cells


def _gates(w: Writer, input: Value, hidden: Value, weights: Sequence[Value | None]) -> tuple[Value, Value]:
    w_ih, w_hh, b_ih, b_hh = weights
    assert w_ih is not None
    assert w_hh is not None
    return linear(w, input, w_ih, b_ih), linear(w, hidden, w_hh, b_hh)


@rule("lstm_cell")
def lstm_cell(
    w: Writer, input: Value, hx: Any, w_ih: Value, w_hh: Value, b_ih: Any = None, b_hh: Any = None
) -> tuple[Value, Value]:
    hidden, cell = hx
    gates = add_of(w, *_gates(w, input, hidden, (w_ih, w_hh, b_ih, b_hh)))
    enter, forget, new, output = chunk(w, gates, 4, -1)
    kept = w.elementwise("Mul", [sigmoid(w, forget), cell], FLOAT, FLOAT)
    added = w.elementwise("Mul", [sigmoid(w, enter), tanh(w, new)], FLOAT, FLOAT)
    cell = add_of(w, kept, added)
    return w.elementwise("Mul", [sigmoid(w, output), tanh(w, cell)], FLOAT, FLOAT), cell


@rule("gru_cell")
def gru_cell(w: Writer, input: Value, hx: Value, w_ih: Value, w_hh: Value, b_ih: Any = None, b_hh: Any = None) -> Value:
    one, other = _gates(w, input, hx, (w_ih, w_hh, b_ih, b_hh))
    reset_x, update_x, new_x = chunk(w, one, 3, -1)
    reset_h, update_h, new_h = chunk(w, other, 3, -1)
    reset = sigmoid(w, add_of(w, reset_x, reset_h))
    update = sigmoid(w, add_of(w, update_x, update_h))
    new = tanh(w, add_of(w, new_x, w.elementwise("Mul", [reset, new_h], FLOAT, FLOAT)))
    apart = w.elementwise("Sub", [hx, new], FLOAT, FLOAT)
    return add_of(w, new, w.elementwise("Mul", [update, apart], FLOAT, FLOAT))


@rule("rnn_tanh_cell")
def rnn_tanh_cell(w: Writer, input: Value, hx: Value, w_ih: Value, w_hh: Value, b_ih: Any = None, b_hh: Any = None) -> Value:
    return tanh(w, add_of(w, *_gates(w, input, hx, (w_ih, w_hh, b_ih, b_hh))))


@rule("rnn_relu_cell")
def rnn_relu_cell(w: Writer, input: Value, hx: Value, w_ih: Value, w_hh: Value, b_ih: Any = None, b_hh: Any = None) -> Value:
    return relu(w, add_of(w, *_gates(w, input, hx, (w_ih, w_hh, b_ih, b_hh))))


# -------------------------------------------------------------------------------------------------------------- packed


@rule("_pack_padded_sequence")
def pack(w: Writer, input: Value, lengths: Value, batch_first: bool) -> tuple[Value, Value]:
    """The steps as they are, time first: in the graph every recurrent node knows the lengths already."""
    value = w.transpose(input, [1, 0, *range(2, input.rank)]) if batch_first else input
    time, rows = value.axes[:2]
    if rows != BATCH or not isinstance(time, Time):
        raise Untranslatable(f"pack_padded_sequence of {input}")
    data = Value(value.name, (MergedAxis((BATCH, time)), *value.axes[2:]), value.dtype, is_packed=True)
    return data, Value("", (time,), torch.int64, fill=0.0)


@rule("_pad_packed_sequence")
def unpack(
    w: Writer, data: Value, batch_sizes: Any, batch_first: bool, padding_value: float, total_length: Any
) -> tuple[Value, ...]:
    merged = data.axes[0]
    assert isinstance(merged, MergedAxis)
    time = merged.axes[1]
    assert isinstance(time, Time)
    value = Value(data.name, (time, BATCH, *data.axes[1:]), data.dtype)
    padded = w.transpose(value, [1, 0, *range(2, value.rank)]) if batch_first else value
    return padded, Value(time.lengths, (BATCH,), torch.int64)


__all__ = ["squeeze"]
