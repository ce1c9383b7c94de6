"""A program as an ONNX graph: walks its calls in order and lets each one's rule write the nodes.

Raises Untranslatable, with the line of the user's code, where there is no rule, or where none can keep the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from training.graph.builder import GraphBuilder, ModelProto
from training.importers.torch import (  # noqa: F401  the rules register themselves
    ops_elementwise,
    ops_factory,
    ops_indexing,
    ops_linear,
    ops_recurrent,
    ops_reduce,
    ops_shape,
)
from training.importers.torch.axes import BATCH, Axis, MergedAxis, Time, Value, canonical
from training.importers.torch.errors import Untranslatable
from training.importers.torch.loops import LoopResults, LoopWriter
from training.importers.torch.ops_indexing import select
from training.importers.torch.ops_shape import reshape_to
from training.importers.torch.program import (
    Final,
    Loop,
    Node,
    Program,
    StepOf,
    Steps,
    TurnNumber,
    find_needed,
    transform,
)
from training.importers.torch.recording import Constant, Ref
from training.importers.torch.rules import RULES
from training.importers.torch.writer import DATATYPE, Writer

LENGTHS = "lengths"
STEPS = "steps"
"""The open axis of a graph whose batches hold rows of one length."""


@dataclass(frozen=True)
class GraphInput:
    """An input of the graph: its axes begin with "batch", and `order` says which of them each axis of the module's is."""

    name: str
    axes: tuple[str | int, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class GraphTensor:
    """A tensor of the graph, as the manifest lists it."""

    name: str
    datatype: str
    shape: tuple[str | int, ...]


@dataclass(frozen=True)
class Translation:
    """The graph and what goes in and comes out."""

    model: ModelProto
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]


def translate(
    program: Program, inputs: Sequence[GraphInput], outputs: Sequence[GraphTensor], *, is_equal: bool = False
) -> Translation:
    """Write the program. `inputs` are in the order of the program's; `outputs` declare the tensors of its result.

    With `is_equal` all rows of a batch have one length, which is read off the inputs.
    """
    return _Translator(program, inputs, is_equal).translate(outputs)


def result_leaves(result: Any) -> list[Any]:
    """The tensors of what a module returned, in order; None where it returned None."""
    if isinstance(result, dict):
        return [leaf for part in result.values() for leaf in result_leaves(part)]
    if isinstance(result, list | tuple):
        return [leaf for part in result for leaf in result_leaves(part)]
    return [result]


class _Translator:
    def __init__(self, program: Program, inputs: Sequence[GraphInput], is_equal: bool) -> None:
        self.program = program
        self.is_equal = is_equal
        self.graph = GraphBuilder("torch")
        self.inputs = inputs
        self.w = Writer(self.graph, _batch_of(program, inputs))
        self.results: list[Any] = []
        self.lengths = ""
        self.given: list[Value] = []
        self.constants: dict[int, Value] = {}
        self.leaves: list[Any] = []

    def translate(self, declared: Sequence[GraphTensor]) -> Translation:
        tensors = self._write_inputs()
        self.graph.reserve([output.name for output in declared])
        needed, self.leaves = find_needed(self.program)
        for index, node in enumerate(self.program.nodes):
            if index not in needed:
                self.results.append(None)
            else:
                self.results.append(self._loop(node, index) if isinstance(node, Loop) else self.write_node(node, self.resolve))
        outputs = self._write_outputs(declared)
        return Translation(self.graph.build(), tuple(tensors), tuple(outputs))

    # ---------------------------------------------------------------------------------------------- inputs and outputs

    def _write_inputs(self) -> list[GraphTensor]:
        tensors = []
        values: list[Value] = []
        for entry, dims, dtype in zip(self.inputs, self.program.shapes, self.program.dtypes, strict=True):
            datatype = DATATYPE[canonical(dtype)]
            shape = self._declare(entry.axes)
            tensors.append(GraphTensor(entry.name, datatype, shape))
            self.graph.input(entry.name, datatype, shape)
            axes: list[Axis] = []
            for place, axis in enumerate(entry.axes):
                if axis == "time":
                    axes.append(Time(self._write_lengths(entry.name, place), dims[entry.order.index(place)]))
                else:
                    axes.append(BATCH if axis == "batch" else int(axis))
            value = Value(entry.name, tuple(axes), canonical(dtype))
            self.w.add_rows(entry.name)
            for place, part in enumerate(axes):
                if isinstance(part, Time):
                    self.w.add_time(part, entry.name, place)
            values.append(value)
        if self.w.times and not self.is_equal and LENGTHS not in [entry.name for entry in self.inputs]:
            self.graph.input(LENGTHS, "INT64", ["batch"])
            tensors.append(GraphTensor(LENGTHS, "INT64", ("batch",)))
        for entry, value in zip(self.inputs, values, strict=True):
            self.given.append(self.w.transpose(value, list(entry.order)))
        return tensors

    def _declare(self, axes: Sequence[str | int]) -> tuple[str | int, ...]:
        """Axes as the graph has them; steps that all rows share have a name of their own."""
        return tuple(STEPS if axis == "time" and self.is_equal else axis for axis in axes)

    def _write_lengths(self, name: str, place: int) -> str:
        """The rows' lengths, INT64 (B,): an input, or all the same."""
        if not self.is_equal:
            return LENGTHS
        if not self.lengths:
            size, rows = (self.graph.add("Shape", name, start=axis, end=axis + 1) for axis in (place, 0))
            self.lengths = self.graph.add("Expand", size, rows)
        return self.lengths

    def _write_outputs(self, declared: Sequence[GraphTensor]) -> list[GraphTensor]:
        leaves = [leaf for leaf in result_leaves(self.program.result) if leaf is not None]
        outputs = []
        for known, leaf in zip(declared, leaves, strict=True):
            name = known.name
            value = self.resolve(leaf)
            if not isinstance(value, Value):
                raise Untranslatable(f'output "{name}" is {type(leaf).__name__}, not a tensor')
            value = self._rows_first(value, name)
            for axis in value.axes[1:]:
                if isinstance(axis, Time) and axis.lengths != LENGTHS and not self.is_equal:
                    raise Untranslatable(f'output "{name}" has another number of steps than the input')
                if isinstance(axis, MergedAxis):
                    raise Untranslatable(f'output "{name}" has the axis {axis}')
            if len(known.shape) != value.rank:
                raise Untranslatable(f'output "{name}" has {len(known.shape)} axes, the graph gives {value}')
            datatype, shape = DATATYPE[value.dtype], self._declare(known.shape)
            self.graph.output(self.w.name(value), name, datatype, shape)
            outputs.append(GraphTensor(name, datatype, shape))
        return outputs

    def _rows_first(self, value: Value, name: str) -> Value:
        merged = next((place for place, axis in enumerate(value.axes) if isinstance(axis, MergedAxis)), None)
        if merged is not None:
            axis = value.axes[merged]
            assert isinstance(axis, MergedAxis)
            axes = (*value.axes[:merged], *axis.axes, *value.axes[merged + 1 :])
            value = reshape_to(self.w, value, [_dims(self.w, part) for part in axes])
        if BATCH not in value.axes:
            raise Untranslatable(f'output "{name}" has no axis for the rows: {value}')
        place = value.axes.index(BATCH)
        return self.w.transpose(value, [place, *(other for other in range(value.rank) if other != place)])

    # ------------------------------------------------------------------------------------------------------------ calls

    def write_node(self, node: Node, resolve: Callable[[Any], Any]) -> Any:
        """Write a call, whose arguments `resolve` finds; a list of its results."""
        w = self.w
        if node.values is not None:
            return [w.constant(value) for value in node.values]
        write = RULES.get(node.function)
        if write is None:
            raise Untranslatable(f"torch function {node.function} has no rule", node.place)
        w.node = node
        try:
            args = transform(node.args, resolve)
            kwargs = {key: value for key, value in transform(node.kwargs, resolve).items() if key not in _WITHOUT_EFFECT}
            kwargs = {_OTHER_NAMES.get(key, key): value for key, value in kwargs.items()}
            with w.graph.scope(node.position.scope.replace(".", "/") or node.function.strip("_")):
                result = write(w, *args, **kwargs)
        except Untranslatable as exc:
            if exc.place is None:
                raise Untranslatable(exc.message, node.place) from exc
            raise
        except (TypeError, AssertionError, IndexError, ValueError, KeyError, AttributeError) as exc:
            raise Untranslatable(f"{node.function} with these arguments: {exc}", node.place) from exc
        results = list(result) if isinstance(result, tuple | list) else [result]
        self._check(node, results)
        return results

    def _check(self, node: Node, results: Sequence[Any]) -> None:
        """Hold the axes that a rule found against the sizes that were recorded."""
        for value, dims in zip(results, node.shapes, strict=False):
            if not isinstance(value, Value) or value.is_packed or value.is_order:
                continue
            if len(results) == 1 and len(node.shapes) > 1:
                continue  # a list of the steps
            expected = tuple(dims)
            found = tuple(_dims(self.w, axis) for axis in value.axes)
            if found != expected:
                raise Untranslatable(f"{node.function} gives {expected}, its rule {found}", node.place)

    def resolve(self, leaf: Any) -> Any:
        """What a leaf of the program is in the graph."""
        if isinstance(leaf, Constant):
            if id(leaf.tensor) not in self.constants:
                self.constants[id(leaf.tensor)] = self.w.constant(leaf.tensor)
            return self.constants[id(leaf.tensor)]
        if isinstance(leaf, Ref):
            if leaf.call < 0:
                return self.given[leaf.part]
            results, node = self.results[leaf.call], self.program.nodes[leaf.call]
            if isinstance(node, Node) and len(results) == 1 and len(node.shapes) > 1:
                return select(self.w, results[0], 0, leaf.part)
            return results[leaf.part]
        if isinstance(leaf, Final):
            return self.results[leaf.loop].finals[leaf.call, leaf.part]
        if isinstance(leaf, StepOf):
            if isinstance(leaf.index, TurnNumber):
                raise Untranslatable("one step of a list outside its loop")
            return select(self.w, self.all_steps(leaf.source), 0, leaf.index)
        if isinstance(leaf, Steps):
            before, after = (tuple(self.resolve(entry) for entry in entries) for entries in (leaf.before, leaf.after))
            return replace(leaf, source=self.all_steps(leaf.source), before=before, after=after)
        return leaf

    def all_steps(self, source: Ref | Final) -> Value:
        """A tensor of one entry for every step, time first."""
        if isinstance(source, Final):
            steps: Value = self.results[source.loop].steps[source.call, source.part]
            return steps
        first: Value = self.results[source.call][0]
        return first

    # ------------------------------------------------------------------------------------------------------------ loops

    def _loop(self, loop: Loop, index: int) -> LoopResults:
        try:
            return LoopWriter(self, loop, index).write()
        except Untranslatable as exc:
            raise exc if exc.place else Untranslatable(exc.message, loop.place) from exc


def _dims(w: Writer, axis: Axis) -> tuple[int, ...]:
    if isinstance(axis, int):
        return (axis,) * len(w.batch)
    if isinstance(axis, Time):
        return axis.steps
    if isinstance(axis, MergedAxis):
        sizes = [_dims(w, part) for part in axis.axes]
        product = sizes[0]
        for size in sizes[1:]:
            product = tuple(a * b for a, b in zip(product, size, strict=True))
        return product
    return w.batch


def _batch_of(program: Program, inputs: Sequence[GraphInput]) -> tuple[int, ...]:
    entry = inputs[0]
    return program.shapes[0][entry.order.index(0)]


_WITHOUT_EFFECT = {"inplace", "out", "device", "memory_format", "non_blocking", "pin_memory", "requires_grad", "layout", "copy"}
_OTHER_NAMES = {"axis": "dim", "keepdims": "keepdim", "axes": "dim"}
