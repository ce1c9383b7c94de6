"""The int8 form of a graph: LSTM, large dense and embedding weights as 8-bit integers, everything else as it was.

Reads and writes ONNX. Measures nothing: that is `quantize.py`.

onnxruntime's `DynamicQuantizeLSTM` scales its inputs, and at every step its hidden states, by the largest value of the
whole batch, padding included; with `quantize_dynamic` of onnxruntime a row's answer then depends on the other rows. Here
*guides* hold both scales still, and a row in a batch is the row alone: two columns at the ends of the inputs' range, which
no weight reads, and two hidden units that are +1 and -1 at every step. An LSTM's own states never leave that range.

Weights have 7 bits and one scale per output channel: with 8, processors without VNNI saturate in the middle of a sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from training.errors import TrainingError
from training.graph.builder import OPSET

DOMAIN = "com.microsoft"
WEIGHT_LIMIT = 63
STATE_LIMIT = 1.0
MIN_DENSE_WEIGHTS = 65_536  # below it the quantising costs as much as the product saves
MIN_TABLE_WEIGHTS = 4_096
GUIDES = 2
# onnxruntime's integer kernels take four values at a time: 66 units cost more than 68.
GROUP = 4
# Far beyond where a sigmoid is 0 or 1, and tanh is 1.
SATURATED, SATURATED_CELL = 30.0, 20.0
GATES = (b"Sigmoid", b"HardSigmoid")

Array = NDArray[Any]
Range = tuple[float, float]


class NotQuantizable(TrainingError):
    """Nothing in the graph can become int8, for these reasons."""


@dataclass(frozen=True)
class Int8Graph:
    """A serialised graph, what in it is int8, and in sentences what is not although it could seem so."""

    payload: bytes
    quantized: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True)
class RangedTensor:
    """A tensor (time, batch, features) whose range must be known, and the one that holds its rows' true lengths, or ""."""

    values: str
    lengths: str


def quantize_graph(payload: bytes, ranges: Mapping[str, Range]) -> Int8Graph:
    """The int8 form of a graph that `graph.py` wrote.

    `ranges` are the lowest and highest value of the tensors that `find_ranged_tensors` names; values beyond are clipped.
    Raises NotQuantizable.
    """
    return _Rewriter(payload).rewrite(ranges)


def find_ranged_tensors(payload: bytes) -> tuple[RangedTensor, ...]:
    """The tensors whose range `quantize_graph` needs: what LSTMs read that is neither a table nor an LSTM's output."""
    rewriter = _Rewriter(payload)
    open_lstms = [node for node in rewriter.lstms if rewriter.source_of(node) is None]
    return tuple(dict.fromkeys(RangedTensor(node.input[0], _input(node, 4)) for node in open_lstms))


def with_outputs(payload: bytes, names: Sequence[str]) -> bytes:
    """The graph with further outputs, its inner tensors of these names."""
    model = onnx.load_from_string(payload)
    there = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    return bytes(model.SerializeToString())


class _Rewriter:
    def __init__(self, payload: bytes) -> None:
        self.model = onnx.load_from_string(payload)
        graph = self.model.graph
        opsets = {entry.domain: entry.version for entry in self.model.opset_import}
        if opsets.get("") != OPSET:
            raise NotQuantizable(f"the graph has opset {opsets.get('')}, quantised are those of opset {OPSET}")
        self.constants = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.num_uses: dict[str, int] = {output.name: 1 for output in graph.output}
        for node in graph.node:
            for name in node.input:
                self.num_uses[name] = self.num_uses.get(name, 0) + 1
        self.kept: list[str] = []
        self.lstms = [node for node in graph.node if self._is_quantizable(node)]
        self._names = {_key(node) for node in self.lstms}
        self._nodes: list[onnx.NodeProto] = []
        self._new: dict[str, Array] = {}
        self._scope = ""

    def rewrite(self, ranges: Mapping[str, Range]) -> Int8Graph:
        graph = self.model.graph
        sources = {_key(node): self.source_of(node) for node in self.lstms}
        # Tables and LSTM outputs that only a quantised LSTM reads carry the guides.
        guided = {_key(source) for source in sources.values() if source is not None}
        quantized: list[str] = []
        for node in graph.node:
            name = _key(node)
            self._scope = node.name or name
            if name in self._names:
                self._write_lstm(node, sources[name] is not None, name in guided, ranges)
            elif self._is_table(node):
                (self._write_guided_table if name in guided else self._write_table)(node)
            elif self._is_large_dense(node):
                self._write_dense(node)
            else:
                self._nodes.append(node)
                continue
            quantized.append(self._scope)
        if not quantized:
            raise NotQuantizable(self._why_nothing())
        kept = list(self._nodes)
        del graph.node[:]
        graph.node.extend(kept)
        used = {name for node in kept for name in node.input}
        old = [entry for entry in graph.initializer if entry.name in used]
        del graph.initializer[:]
        graph.initializer.extend(old)
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in self._new.items())
        if all(entry.domain != DOMAIN for entry in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        onnx.checker.check_model(self.model)
        return Int8Graph(bytes(self.model.SerializeToString()), tuple(quantized), tuple(self.kept))

    def source_of(self, lstm: onnx.NodeProto) -> Any | None:
        """The table or quantised LSTM whose output this LSTM alone reads, the last axis untouched; None: something else."""
        name = lstm.input[0]
        while self.num_uses.get(name) == 1 and name in self.producers:
            node = self.producers[name]
            if self._is_table(node):
                return node
            if _key(node) in self._names and node.output[0] == name and self._is_one_way(node):
                return node
            if not self._keeps_last_axis(node):
                return None
            name = node.input[0]
        return None

    # ------------------------------------------------------------------------------------------ what can be quantised

    def _is_quantizable(self, node: onnx.NodeProto) -> bool:
        if node.op_type in ("GRU", "RNN"):
            self.kept.append(f'"{node.name}" stays fp32: onnxruntime has no quantised {node.op_type}, only an LSTM')
        if node.op_type != "LSTM":
            return False
        attributes = _attributes(node)
        activations = attributes.get("activations") or [b"Sigmoid", b"Tanh", b"Tanh"]
        gates, others = activations[::3], [*activations[1::3], *activations[2::3]]
        if any(gate not in GATES for gate in gates) or any(other != b"Tanh" for other in others):
            names = ", ".join(sorted({name.decode() for name in activations}))
            self.kept.append(f'"{node.name}" stays fp32: int8 needs hidden states between -1 and 1, so tanh; it has {names}')
            return False
        if {"clip", "input_forget", "layout"} & {name for name, value in attributes.items() if value} or _input(node, 7):
            self.kept.append(f'"{node.name}" stays fp32: it has options that its int8 form is not verified with')
            return False
        return all(name in self.constants for name in node.input[1:4])

    def _is_table(self, node: onnx.NodeProto) -> bool:
        if node.op_type != "Gather" or _attributes(node).get("axis", 0) != 0 or node.input[1] in self.constants:
            return False
        table = self.constants.get(node.input[0])
        if table is None or table.dtype != np.float32 or table.ndim != 2 or table.size < MIN_TABLE_WEIGHTS:
            return False
        # A single column is the factors of vectors that are 8-bit numbers already.
        return table.shape[1] > 1 and self.num_uses[node.input[0]] == 1

    def _is_large_dense(self, node: onnx.NodeProto) -> bool:
        kernel = self.constants.get(_input(node, 1)) if node.op_type == "MatMul" else None
        return kernel is not None and kernel.ndim == 2 and kernel.size >= MIN_DENSE_WEIGHTS

    def _is_one_way(self, node: onnx.NodeProto) -> bool:
        return len(self.constants[node.input[1]]) == 1

    def _keeps_last_axis(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "Transpose":
            order = _attributes(node)["perm"]
            return bool(order[-1] == len(order) - 1)
        # The last axis of a table's or an LSTM's output is never the one that is squeezed: it holds the features.
        return node.op_type == "Squeeze"

    def _why_nothing(self) -> str:
        if self.kept:
            return "; ".join(self.kept)
        return "the graph has no LSTM, no large dense layer and no large embedding, which are what int8 makes faster"

    # --------------------------------------------------------------------------------------------------------- writing

    def _write_lstm(self, node: onnx.NodeProto, has_guides: bool, carries_guides: bool, ranges: Mapping[str, Range]) -> None:
        kernel, recurrent, bias = (self.constants[name] for name in node.input[1:4])
        directions, _, num_features = kernel.shape
        units = recurrent.shape[2]
        wide = _round_to_group(units + GUIDES)
        features = _round_to_group(num_features + GUIDES)
        kernel = _widen(_widen_gates(kernel, units, wide), features)
        recurrent = _widen(_widen_gates(recurrent, units, wide), wide)
        bias = _widen_gates(bias.reshape(directions, 8 * units), units, wide)
        gates = bias.reshape(directions, 2, 4, wide)[:, 0, :, units : units + GUIDES]  # i, o, f, g
        gates[:] = np.array([-SATURATED, SATURATED, SATURATED, 0], np.float32)[:, None]
        values = node.input[0] if has_guides else self._write_guides(node.input[0], features - num_features, ranges)
        states = self._write_states(node, values, directions, units, wide)
        inputs = [values]
        scales = []
        for name, array in (("kernel", kernel), ("recurrent_kernel", recurrent)):
            quantized, scale = _quantize_weights(array, axis=2)
            inputs.append(self._constant(f"{name}_int8", quantized.transpose(0, 2, 1)))
            scales += [self._constant(f"{name}_scale", scale), self._constant(f"{name}_zero", np.zeros_like(scale, np.int8))]
        inputs += [self._constant("bias_int8", bias), _input(node, 4), *states, "", *scales]
        sliced = [index for index, name in enumerate(node.output) if name and not (carries_guides and index == 0)]
        outputs = [f"{name}/wide" if index in sliced else name for index, name in enumerate(node.output)]
        attributes = {**_attributes(node), "hidden_size": wide}
        self._nodes.append(helper.make_node("DynamicQuantizeLSTM", inputs, outputs, node.name, domain=DOMAIN, **attributes))
        bounds = [self._constant(name, np.array([value])) for name, value in (("first", 0), ("units", units), ("axis", -1))]
        for index in sliced:
            self._add("Slice", outputs[index], *bounds, output=node.output[index])

    def _write_guides(self, values: str, num_columns: int, ranges: Mapping[str, Range]) -> str:
        """Values within their range, and behind them columns at its two ends."""
        low, high = ranges[values]
        ends = [self._constant(name, np.float32(end)) for name, end in (("low", low), ("high", high))]
        columns = np.zeros((1, 1, num_columns), np.float32)
        columns[0, 0, :GUIDES] = low, high
        shape = self._add("Concat", self._add("Shape", values, start=0, end=2), self._one(), axis=0)
        guides = self._add("Expand", self._constant("guides", columns), shape)
        return self._add("Concat", self._add("Clip", values, *ends), guides, axis=2)

    def _write_states(self, node: onnx.NodeProto, values: str, directions: int, units: int, wide: int) -> list[str]:
        """The initial states with those of the guides, which are there from the first step on."""
        states = []
        batch = self._add("Shape", values, start=1, end=2)
        for index, name, level in ((5, "hidden", STATE_LIMIT), (6, "cell", SATURATED_CELL)):
            given = _input(node, index)
            first = 0 if given else units
            start = np.zeros((directions, 1, wide - units + first), np.float32)
            start[:, :, first : first + GUIDES] = level, -level
            shape = self._add("Concat", self._one(), batch, self._one(), axis=0)
            state = self._add("Expand", self._constant(f"first_{name}", start), shape)
            if given:
                # A hidden state that an LSTM returned is between these; anything else would widen the scale.
                ends = [
                    self._constant(side, np.float32(end)) for side, end in (("lowest", -STATE_LIMIT), ("highest", STATE_LIMIT))
                ]
                state = self._add("Concat", self._add("Clip", given, *ends) if index == 5 else given, state, axis=2)
            states.append(state)
        return states

    def _write_guided_table(self, node: onnx.NodeProto) -> None:
        """A table on the grid on which the LSTM reads it: one scale, and the guides are two of its columns."""
        table = self.constants[node.input[0]]
        scale = np.float32(max(np.abs(table).max(), np.finfo(np.float32).tiny) / 127)
        codes = np.zeros((len(table), _round_to_group(table.shape[1] + GUIDES)), np.int8)
        codes[:, : table.shape[1]] = np.round(table / scale)
        codes[:, table.shape[1] : table.shape[1] + GUIDES] = -128, 127
        gathered = self._add("Gather", self._constant("table_int8", codes), node.input[1], axis=0)
        # Not DequantizeLinear: onnxruntime 1.31 moves it through the Transpose, and quantises as UINT8 what was INT8.
        values = self._add("Cast", gathered, to=onnx.TensorProto.FLOAT)
        self._add("Mul", values, self._constant("table_scale", np.array(scale)), output=node.output[0])

    def _write_table(self, node: onnx.NodeProto) -> None:
        """A table with one scale per row."""
        table = self.constants[node.input[0]]
        scale = np.abs(table).max(axis=1, keepdims=True) / 127
        scale[scale == 0] = 1
        codes = np.round(table / scale).astype(np.int8)
        gathered = self._add("Gather", self._constant("table_int8", codes), node.input[1], axis=0)
        scales = self._add("Gather", self._constant("table_scale", scale), node.input[1], axis=0)
        self._add("Mul", self._add("Cast", gathered, to=onnx.TensorProto.FLOAT), scales, output=node.output[0])

    def _write_dense(self, node: onnx.NodeProto) -> None:
        """A product in integers, every row (the last axis) on a scale of its own: `DynamicQuantizeMatMul` has one for all."""
        kernel, scale = _quantize_weights(self.constants[node.input[1]], axis=0)
        values = node.input[0]
        largest = self._add("ReduceMax", self._add("Abs", values), axes=[-1], keepdims=1)
        largest = self._add("Max", largest, self._constant("tiny", np.float32(np.finfo(np.float32).tiny * 1e6)))
        step = self._add("Mul", largest, self._constant("step", np.float32(1 / 127)))
        middle = self._constant("middle", np.array(128, np.uint8))
        codes = self._add("QuantizeLinear", self._add("Div", values, step), self._constant("unit", np.float32(1)), middle)
        zero = self._constant("zero", np.array(0, np.int8))
        product = self._add("MatMulInteger", codes, self._constant("kernel_int8", kernel), middle, zero)
        product = self._add("Cast", product, to=onnx.TensorProto.FLOAT)
        scaled = self._add("Mul", product, self._constant("kernel_scale", scale))
        self._add("Mul", scaled, step, output=node.output[0])

    def _one(self) -> str:
        return self._constant("one", np.array([1]))

    def _constant(self, name: str, values: Array | np.generic) -> str:
        path = f"{self._scope}/{name}"
        self._new[path] = np.ascontiguousarray(values).reshape(np.shape(values))
        return path

    def _add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = f"{self._scope}/int8_{len(self._nodes)}_{operator}"
        self._nodes.append(helper.make_node(operator, list(inputs), [output or name], name, **attributes))
        return output or name


def _key(node: onnx.NodeProto) -> str:
    """What a node is known by: names are optional in ONNX, and need not differ."""
    return next(str(name) for name in node.output if name)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _input(node: onnx.NodeProto, index: int) -> str:
    return str(node.input[index]) if len(node.input) > index else ""


def _round_to_group(count: int) -> int:
    return -(-count // GROUP) * GROUP


def _widen_gates(array: Array, units: int, wide: int) -> Array:
    """(D, G · units, …) to (D, G · wide, …): every gate gets more units, zeros."""
    directions, rows, *rest = array.shape
    gates = array.reshape(directions, rows // units, units, *rest)
    wider = np.zeros((directions, rows // units, wide, *rest), array.dtype)
    wider[:, :, :units] = gates
    return wider.reshape(directions, rows // units * wide, *rest)


def _widen(array: Array, columns: int) -> Array:
    """More columns, zeros."""
    wider = np.zeros((*array.shape[:-1], columns), array.dtype)
    wider[..., : array.shape[-1]] = array
    return wider


def _quantize_weights(weights: Array, axis: int) -> tuple[Array, Array]:
    """7-bit integers, and what one of them is worth in each output channel; `axis` is the one that is summed over."""
    scale = np.abs(weights).max(axis=axis, keepdims=True) / WEIGHT_LIMIT
    scale[scale == 0] = 1
    return np.round(weights / scale).astype(np.int8), np.asarray(scale.squeeze(axis), np.float32)
