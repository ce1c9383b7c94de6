"""The graph that is served, made of the file's: rows first, in the service's types, under names that a manifest can hold.

What the file computes stays as it is; nodes are put before and behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from training.importers.onnx.layout import FileInput, datatype_of
from training.importers.onnx.ragged import set_lengths
from training.importers.onnx.reading import TYPES, graphs_of
from training.importers.onnx.trial import GraphTrial, Layout
from training.importers.torch.artifact import Artifact, Batching
from training.importers.torch.errors import Untranslatable
from training.importers.torch.tasks import Classify, Forecast, Task
from training.importers.torch.translate import LENGTHS, STEPS, GraphTensor
from training.importers.torch.wrappers import POINT

SERVED = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64, "BOOL": TensorProto.BOOL}
ELEMENT = {dtype: number for number, dtype in TYPES.items()}
OPSET_OF_SCAN = 10  # and of a Slice whose ends are values
WITH_LENGTHS = "the rows' lengths were given to recurrent nodes, last steps, and sums and maxima over time"
ONE_BY_ONE = "one row after another within the graph: batches take as long as their rows together"
OPSET_OF_AXES_AS_INPUT = 13
OPSET_OF_TOPK = 11

Way = Literal["as in the file", "with lengths", "row by row"]
"""What becomes of the file's nodes: nothing; they are given the rows' lengths; they are run for one row after another."""


@dataclass(frozen=True)
class Head:
    """What a task makes of the graph's first output, and of its input; None: nothing."""

    task: Task
    num_targets: int = 1
    num_values: int = 1
    """Numbers that the graph gives for a row."""
    input_name: str = ""
    """How the task calls the graph's only input."""

    @property
    def is_plain(self) -> bool:
        """Whether the outputs stay as they are."""
        return not isinstance(self.task, Forecast | Classify)


def make_artifact(trial: GraphTrial, head: Head, batching: Batching, way: Way = "as in the file") -> Artifact:
    """A candidate for the folder. Raises Untranslatable for what this way to a graph cannot do."""
    return _Writer(trial, head, batching).write(way)


class _Writer:
    def __init__(self, trial: GraphTrial, head: Head, batching: Batching) -> None:
        self.trial, self.head, self.batching = trial, head, batching
        self.layout: Layout = trial.layout
        self.opset = self.layout.source.opset
        self.model = ModelProto()
        self.model.CopyFrom(self.layout.opened)
        self.graph = self.model.graph
        self.names = _names_of(self.graph) | {LENGTHS, head.input_name, *(tensor.name for tensor in trial.outputs)}
        self.before: list[NodeProto] = []
        self.after: list[NodeProto] = []
        self.inputs: list[GraphTensor] = []
        self.is_ragged = batching == "ragged" and trial.subject.is_open

    def write(self, way: Way) -> Artifact:
        """Inputs, the file's nodes, outputs, and the task's nodes."""
        self._free_names()
        if way == "with lengths":
            set_lengths(self.model, self, self.opset)
        outputs = list(self.graph.output)
        del self.graph.input[:]
        del self.graph.output[:]
        is_single = self.layout.is_single or way == "row by row"
        values = self._single(outputs) if is_single else self._batched(outputs)
        wanted = self._task(values)
        nodes = [*self.before, *self.graph.node, *self.after]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        if (self.is_ragged or not self.head.is_plain) and LENGTHS not in [tensor.name for tensor in self.inputs]:
            # The service gives the lengths of ragged rows; this graph has no use for them.
            self.inputs.append(GraphTensor(LENGTHS, "INT64", ("batch",)))
        declared = tuple(self._declared(tensor) for tensor in self.trial.outputs)
        for tensor in declared:
            self.graph.node.append(helper.make_node("Identity", [wanted[tensor.name]], [tensor.name]))
        self.graph.input.extend(_value_info(tensor) for tensor in self.inputs)
        self.graph.output.extend(_value_info(tensor) for tensor in declared)
        self.graph.name = "imported"
        # The service reads none of it, and a file may carry anything here.
        del self.model.metadata_props[:]
        notes = (ONE_BY_ONE,) if is_single else (WITH_LENGTHS,) if way == "with lengths" else ()
        return Artifact(self.model.SerializeToString(), tuple(self.inputs), declared, "file", self.batching, self.opset, notes)

    # ------------------------------------------------------------------------------------------------------- inputs

    def _declared(self, tensor: GraphTensor) -> GraphTensor:
        """With the open axis called `steps` where rows of other lengths share no batch."""
        if self.batching == "ragged":
            return tensor
        return GraphTensor(tensor.name, tensor.datatype, tuple(STEPS if axis == "time" else axis for axis in tensor.shape))

    def _given(self, entry: FileInput) -> str:
        """The served value of an input, batch first: an input of the graph, or made of the rows where there is none."""
        is_task = not self.head.is_plain
        first = next(part for part in self.layout.inputs if part.role == "row")
        first_name = self.head.input_name if is_task else first.name
        if entry.role == "state" and is_task:
            return self._zeros(first_name, entry)
        if entry.role == "lengths" and not self.is_ragged:
            return self._full_lengths(first_name)
        name = first_name if entry.role == "row" and is_task else entry.name
        axes: tuple[int | str, ...] = ()
        if entry.role == "row":
            axes = next(spec.axes for spec in self.layout.specs if spec.name == entry.name)
        elif entry.role == "state":
            axes = tuple(dim for dim in entry.row_dims if dim is not None)
        if entry.role == "row" and is_task and not self.trial.subject.is_open:
            axes = ("time", *axes[1:])  # the task gives it rows of this one length
        self.inputs.append(self._declared(GraphTensor(name, datatype_of(entry.port.dtype), ("batch", *axes))))
        return name

    def _zeros(self, rows: str, entry: FileInput) -> str:
        """A state of zeros for as many rows as `rows` has, in float32."""
        sizes = self.constant(np.array([int(dim or 1) for dim in entry.row_dims if isinstance(dim, int)], np.int64))
        shape = self.add("Concat", self._num_rows(rows), sizes, axis=0)
        value = numpy_helper.from_array(np.zeros(1, np.float32))
        return self.add("ConstantOfShape", shape, value=value)

    def _num_rows(self, rows: str) -> str:
        return self.add("Gather", self.add("Shape", rows), self.constant(np.array([0], np.int64)), axis=0)

    def _full_lengths(self, rows: str) -> str:
        """The steps of `rows`, for every row."""
        spec = next(spec for spec in self.layout.specs)
        place = 1 + (spec.time_axis or 0)
        steps = self.add("Gather", self.add("Shape", rows), self.constant(np.array([place], np.int64)), axis=0)
        return self.add("Expand", steps, self._num_rows(rows))

    # ------------------------------------------------------------------------------------------------ the file's nodes

    def _batched(self, outputs: Sequence[Any]) -> dict[str, str]:
        """Feed the file's nodes; returns the served values by the outputs' names."""
        inner: dict[str, str] = {}
        for entry in self.layout.inputs:
            given = self._given(entry)
            value = given
            if entry.batch_axis:
                order = list(range(1, len(entry.port.dims)))
                order.insert(entry.batch_axis, 0)
                value = self.add("Transpose", value, perm=order)
            inner[entry.port.name] = self._as_type(value, entry)
        self._rename(inner)
        values = {}
        for output in outputs:
            axis = self.layout.output_axes[output.name]
            value = self.fresh(f"{output.name}/file")
            self._rename({output.name: value})
            value = self._as_served(value, output.type.tensor_type.elem_type, self.after)
            if axis:
                order = [axis, *(other for other in range(self.layout.output_ranks[output.name]) if other != axis)]
                value = self.add("Transpose", value, nodes=self.after, perm=order)
            values[output.name] = value
        return values

    def _single(self, outputs: Sequence[Any]) -> dict[str, str]:
        """The file's nodes as the body of a Scan over the rows."""
        if self.opset < OPSET_OF_SCAN:
            raise Untranslatable(f"opset {self.opset} has no Scan, which takes rows one by one: export with opset 17")
        body_before: list[NodeProto] = []
        body_after: list[NodeProto] = []
        body_inputs, body_outputs, given = [], [], []
        inner: dict[str, str] = {}
        end = ""
        if self.is_ragged:
            if any("time" in tensor.shape for tensor in self.trial.outputs):
                raise Untranslatable("an output has the steps of its row, and rows of other lengths cannot be stacked")
            length = self.fresh("length/row")
            body_inputs.append(helper.make_tensor_value_info(length, TensorProto.INT64, None))
            given.append(LENGTHS)
            end = self._with_axis("Unsqueeze", length, 0, body_before)
        for entry in self.layout.inputs:
            value = self._given(entry)
            datatype = datatype_of(entry.port.dtype)
            given.append(value)
            row = self.fresh(f"{entry.name}/row")
            body_inputs.append(helper.make_tensor_value_info(row, SERVED[datatype], None))
            place = self._time_place(entry)
            if end and place is not None:
                start, axis = (self.constant(np.array([number], np.int64)) for number in (0, place))
                row = self.add("Slice", row, start, end, axis, nodes=body_before)
            value = self._with_axis("Unsqueeze", row, entry.batch_axis, body_before)
            inner[entry.port.name] = self._as_type(value, entry, body_before)
        self._rename(inner)
        scanned: dict[str, str] = {}
        for output in outputs:
            value = self.fresh(f"{output.name}/file")
            self._rename({output.name: value})
            value = self._as_served(value, output.type.tensor_type.elem_type, body_after)
            rows_axis = self.layout.output_axes[output.name]
            if rows_axis is not None:
                value = self._with_axis("Squeeze", value, rows_axis, body_after)
            name = self.fresh(f"{output.name}/row")
            body_after.append(helper.make_node("Identity", [value], [name]))
            elem_type = SERVED[datatype_of(TYPES[output.type.tensor_type.elem_type])]
            body_outputs.append(helper.make_tensor_value_info(name, elem_type, None))
            scanned[output.name] = self.fresh(f"{output.name}/rows")
        body = helper.make_graph([*body_before, *self.graph.node, *body_after], "one row", body_inputs, body_outputs)
        del self.graph.node[:]
        scan = helper.make_node("Scan", given, list(scanned.values()), body=body, num_scan_inputs=len(given))
        self.graph.node.append(scan)
        return scanned

    def _time_place(self, entry: FileInput) -> int | None:
        """Which axis of a row is the steps."""
        return next((spec.time_axis for spec in self.layout.specs if entry.role == "row" and spec.name == entry.name), None)

    def _with_axis(self, operator: str, value: str, axis: int, nodes: list[NodeProto]) -> str:
        if self.opset < OPSET_OF_AXES_AS_INPUT:
            return self.add(operator, value, nodes=nodes, axes=[axis])
        return self.add(operator, value, self.constant(np.array([axis], np.int64)), nodes=nodes)

    def _as_type(self, value: str, entry: FileInput, nodes: list[NodeProto] | None = None) -> str:
        """In the file's own type."""
        wanted = ELEMENT[entry.port.dtype]
        if wanted == SERVED[datatype_of(entry.port.dtype)]:
            return value
        return self.add("Cast", value, nodes=nodes, to=wanted)

    def _as_served(self, value: str, elem_type: int, nodes: list[NodeProto]) -> str:
        wanted = SERVED[datatype_of(TYPES[elem_type])]
        return value if wanted == elem_type else self.add("Cast", value, nodes=nodes, to=wanted)

    # ------------------------------------------------------------------------------------------------------- the task

    def _task(self, values: Mapping[str, str]) -> Mapping[str, str]:
        """The values of the served outputs, by name."""
        if self.head.is_plain:
            return values
        value = next(iter(values.values()))
        if isinstance(self.head.task, Forecast):
            return self._forecast(value, self.head.task)
        assert isinstance(self.head.task, Classify)
        return self._classify(value, self.head.task)

    def _forecast(self, value: str, task: Forecast) -> Mapping[str, str]:
        shape = [0, task.horizon, self.head.num_targets]
        if not task.quantiles:
            return {POINT: self._reshape(value, shape)}
        if self.opset < OPSET_OF_TOPK:
            raise Untranslatable(f"opset {self.opset} cannot sort quantiles: export with opset 17")
        count = len(task.quantiles)
        size = self.constant(np.array([count], np.int64))
        value = self._reshape(value, [*shape, count])
        ordered = self.fresh("quantiles/sorted")
        node = helper.make_node("TopK", [value, size], [ordered, self.fresh("places")], axis=-1, largest=0, sorted=1)
        self.after.append(node)
        median = self.constant(np.array(list(task.quantiles).index(0.5), np.int64))
        return {POINT: self.add("Gather", ordered, median, nodes=self.after, axis=3), "quantiles": ordered}

    def _classify(self, value: str, task: Classify) -> Mapping[str, str]:
        value = self._reshape(value, [0, -1])
        (output,) = self.trial.outputs
        is_probability = bool(task.are_probabilities)
        if self.head.num_values == 1 and len(task.labels) == 2:
            second = value if is_probability else self.add("Sigmoid", value, nodes=self.after)
            one = self.constant(np.array(1, np.float32))
            first = self.add("Sub", one, second, nodes=self.after)
            return {output.name: self.add("Concat", first, second, nodes=self.after, axis=1)}
        return {output.name: value if is_probability else self.add("Softmax", value, nodes=self.after, axis=1)}

    def _reshape(self, value: str, shape: Sequence[int]) -> str:
        return self.add("Reshape", value, self.constant(np.array(shape, np.int64)), nodes=self.after)

    # ------------------------------------------------------------------------------------------------------- nodes

    def add(self, operator: str, *inputs: str, nodes: list[NodeProto] | None = None, **attributes: Any) -> str:
        """A node of one output, before the file's nodes or at the end of `nodes`; returns the output's name."""
        name = self.fresh(f"served/{operator}")
        (self.before if nodes is None else nodes).append(
            helper.make_node(operator, list(inputs), [name], name=name, **attributes)
        )
        return name

    def constant(self, array: NDArray[Any]) -> str:
        """A constant's name."""
        name = self.fresh("served/constant")
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def fresh(self, wish: str) -> str:
        """A name that no value has."""
        name, number = wish, 1
        while name in self.names:
            name, number = f"{wish}_{number}", number + 1
        self.names.add(name)
        return name

    def _free_names(self) -> None:
        """Rename the file's values that are called as something that is served."""
        own = {port.name for port in [*self.layout.source.inputs, *self.layout.source.outputs]}
        served = (
            {LENGTHS, self.head.input_name, *(tensor.name for tensor in self.trial.outputs)}
            if not self.head.is_plain
            else {LENGTHS}
        )
        renamed = {name: self.fresh(f"{name}/file") for name in served - own}
        self._rename(renamed)
        for initializer in self.graph.initializer:
            initializer.name = renamed.get(initializer.name, initializer.name)

    def _rename(self, names: Mapping[str, str]) -> None:
        """Call values by other names, in the file's nodes and in the graphs within them."""
        for graph in graphs_of(self.graph):
            for node in graph.node:
                for place, name in enumerate(node.input):
                    if name in names:
                        node.input[place] = names[name]
                for place, name in enumerate(node.output):
                    if name in names:
                        node.output[place] = names[name]
            for output in graph.output:
                if output.name in names:
                    output.name = names[output.name]


def _names_of(graph: GraphProto) -> set[str]:
    """Every name of a value, in the graph and in those within it."""
    found = set()
    for part in graphs_of(graph):
        found |= {entry.name for entry in [*part.input, *part.output, *part.initializer]}
        found |= {tensor.values.name for tensor in part.sparse_initializer}
        found |= {name for node in part.node for name in [*node.input, *node.output]}
    return found


def _value_info(tensor: GraphTensor) -> Any:
    return helper.make_tensor_value_info(tensor.name, SERVED[tensor.datatype], list(tensor.shape))
