"""Gives the rows' lengths to a graph that knows none: to its recurrent nodes, its last steps, and its sums over time.

What comes out is a candidate, measured like any other: where a graph reads the padding in a way that is not known here, the
checks find it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from training.importers.onnx.measured_axes import measure_axes
from training.importers.onnx.recurrent_nodes import RECURRENT, SEQUENCE_LENS, input_of
from training.importers.torch.errors import Untranslatable
from training.importers.torch.translate import LENGTHS

OPSET = 13
"""The first whose Squeeze, Unsqueeze and ReduceSum take axes as an input, and that has all that is written here."""
LOWEST = -1e30
"""In place of a padded step where the largest is looked for, and before a softmax; half precision is not read."""


class NodeWriter(Protocol):
    """What adds nodes and constants to the graph."""

    def add(self, operator: str, *inputs: str, nodes: list[NodeProto] | None = None, **attributes: Any) -> str: ...
    def constant(self, array: NDArray[Any]) -> str: ...


@dataclass(frozen=True)
class _Sequence:
    """A value with rows and steps."""

    name: str
    batch: int
    time: int
    rank: int
    dtype: np.dtype[Any]


def set_lengths(model: ModelProto, writer: NodeWriter, opset: int) -> None:
    """Rewrite the nodes of a model whose inputs have the axes "batch" and "time"; `lengths` is read under its own name.

    Raises Untranslatable where there is nothing to rewrite, and for an opset that is too old.
    """
    if opset < OPSET:
        raise Untranslatable(f"opset {opset}; lengths are written into graphs of opset {OPSET} and newer")
    _Rewriter(model, writer).rewrite()


class _Rewriter:
    def __init__(self, model: ModelProto, writer: NodeWriter) -> None:
        self.graph: GraphProto = model.graph
        self.writer = writer
        self.nodes: list[NodeProto] = []
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        self.sequences = _find_sequences(model)
        self.lengths32 = ""
        self.masks: dict[tuple[int, int, int], str] = {}

    def rewrite(self) -> None:
        rewritten = 0
        rules: dict[str, Callable[[NodeProto, _Sequence], bool]] = {
            "Gather": self._gather,
            "Slice": self._slice,
            "ReduceMean": self._reduce,
            "ReduceSum": self._reduce,
            "ReduceMax": self._reduce,
            "Softmax": self._softmax,
        }
        for node in self.graph.node:
            if node.op_type in RECURRENT and not input_of(node, SEQUENCE_LENS):
                self._recurrent(node)
                rewritten += 1
                continue
            sequence = self.sequences.get(node.input[0]) if node.input else None
            rule = rules.get(node.op_type)
            if rule is not None and sequence is not None and rule(node, sequence):
                rewritten += 1
            else:
                self.nodes.append(node)
        if not rewritten:
            raise Untranslatable("there is no recurrent node without the rows' lengths, and no step or sum that needs them")
        nodes = list(self.nodes)
        del self.graph.node[:]
        self.graph.node.extend(nodes)

    # ------------------------------------------------------------------------------------------------------- rules

    def _recurrent(self, node: NodeProto) -> None:
        if not self.lengths32:
            self.lengths32 = self.add("Cast", LENGTHS, to=TensorProto.INT32)
        while len(node.input) <= SEQUENCE_LENS:
            node.input.append("")
        node.input[SEQUENCE_LENS] = self.lengths32
        self.nodes.append(node)

    def _gather(self, node: NodeProto, x: _Sequence) -> bool:
        index = self._values(input_of(node, 1))
        if index is None or index.size != 1 or int(index.reshape(-1)[0]) != -1 or _attribute(node, "axis", 0) % x.rank != x.time:
            return False
        if index.ndim > 1:
            return False
        self._write_last(node, x, keep=index.ndim == 1)
        return True

    def _slice(self, node: NodeProto, x: _Sequence) -> bool:
        starts, ends, axes = (self._values(input_of(node, place)) for place in (1, 2, 3))
        if starts is None or ends is None or axes is None or starts.size != 1:
            return False
        steps = self._values(input_of(node, 4)) if input_of(node, 4) else np.ones(1)
        is_last = int(starts[0]) == -1 and int(ends[0]) >= 2**31 - 1 and int(axes[0]) % x.rank == x.time
        if not is_last or steps is None or int(steps[0]) != 1:
            return False
        self._write_last(node, x, keep=True)
        return True

    def _write_last(self, node: NodeProto, x: _Sequence, *, keep: bool) -> None:
        """The last step of each row."""
        rest = [axis for axis in range(x.rank) if axis not in (x.batch, x.time)]
        value = self._transpose(x.name, [x.batch, x.time, *rest])
        one = self.constant(np.array(1, np.int64))
        place = self.add("Unsqueeze", self.add("Sub", LENGTHS, one), self.constant(np.array([1], np.int64)))
        value = self.add("GatherND", value, place, batch_dims=1)
        now = [x.batch, *rest]
        value = self._transpose(value, [now.index(axis) for axis in sorted(now)])
        if keep:
            value = self.add("Unsqueeze", value, self.constant(np.array([x.time], np.int64)))
        self._name(value, node)

    def _reduce(self, node: NodeProto, x: _Sequence) -> bool:
        axes = self._values(input_of(node, 1)) if input_of(node, 1) else _attribute(node, "axes", None)
        if axes is None or [int(axis) % x.rank for axis in axes] != [x.time]:
            return False
        fill = LOWEST if node.op_type == "ReduceMax" else 0.0
        node.input[0] = self._masked(x, fill)
        if node.op_type != "ReduceMean":
            self.nodes.append(node)
            return True
        output = node.output[0]
        node.output[0] = f"{output}/padded"
        self.nodes.append(node)
        # A mean over the padded steps becomes one over the row's own.
        shape = [1] * x.rank
        shape[x.batch] = -1
        if not _attribute(node, "keepdims", 1):
            del shape[x.time]
        number = helper.np_dtype_to_tensor_dtype(x.dtype)
        steps = self.add("Cast", self._size(x), to=number)
        own = self.add("Cast", LENGTHS, to=number)
        factor = self.add("Reshape", self.add("Div", steps, own), self.constant(np.array(shape, np.int64)))
        self.nodes.append(helper.make_node("Mul", [node.output[0], factor], [output]))
        return True

    def _softmax(self, node: NodeProto, x: _Sequence) -> bool:
        if _attribute(node, "axis", -1) % x.rank != x.time:
            return False
        node.input[0] = self._masked(x, LOWEST)
        self.nodes.append(node)
        return True

    # ------------------------------------------------------------------------------------------------------- parts

    def _size(self, x: _Sequence) -> str:
        shape = self.add("Shape", x.name)
        return self.add("Gather", shape, self.constant(np.array(x.time, np.int64)), axis=0)

    def _masked(self, x: _Sequence, fill: float) -> str:
        """`x` with `fill` behind every row's end."""
        zero, one = (self.constant(np.array(number, np.int64)) for number in (0, 1))
        steps = self.add("Range", zero, self._size(x), one)
        lengths = self.add("Unsqueeze", LENGTHS, self.constant(np.array([1], np.int64)))
        mask = self.add("Less", steps, lengths)  # (B, T)
        if x.batch > x.time:
            mask = self.add("Transpose", mask, perm=[1, 0])
        others = [axis for axis in range(x.rank) if axis not in (x.batch, x.time)]
        if others:
            mask = self.add("Unsqueeze", mask, self.constant(np.array(others, np.int64)))
        return self.add("Where", mask, x.name, self.constant(np.array(fill, x.dtype)))

    def _transpose(self, value: str, order: Sequence[int]) -> str:
        return value if list(order) == sorted(order) else self.add("Transpose", value, perm=list(order))

    def _name(self, value: str, node: NodeProto) -> None:
        self.nodes.append(helper.make_node("Identity", [value], [node.output[0]]))

    def _values(self, name: str) -> NDArray[Any] | None:
        tensor = self.constants.get(name)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self.writer.add(operator, *inputs, nodes=self.nodes, **attributes)

    def constant(self, array: NDArray[Any]) -> str:
        return self.writer.constant(array)


def _find_sequences(model: ModelProto) -> dict[str, _Sequence]:
    """The values with one axis of rows and one of steps: as measured, or as ONNX's own inference of shapes has them.

    Inference loses the steps behind a Reshape whose target is computed, as torch's default exporter writes it.
    """
    found = {
        name: _Sequence(name, axes.index("batch"), axes.index("time"), len(axes), dtype)
        for name, (axes, dtype) in measure_axes(model).items()
        if axes.count("batch") == 1 and axes.count("time") == 1
    }
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return found
    for entry in [*inferred.value_info, *inferred.input, *inferred.output]:
        tensor = entry.type.tensor_type
        axes = [dim.dim_param for dim in tensor.shape.dim]
        if axes.count("batch") == 1 and axes.count("time") == 1:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            found.setdefault(entry.name, _Sequence(entry.name, axes.index("batch"), axes.index("time"), len(axes), dtype))
    return found


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default
