"""A program as an ONNX graph: walks its calls in order and lets each one's rule write the nodes.

Raises Untranslatable, with the line of the user's code, where there is no rule, or where none can keep the contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

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
from training.importers.torch.axes import BATCH, Axes, Axis, Merged, Time, Value, canonical
from training.importers.torch.errors import Untranslatable
from training.importers.torch.ops_indexing import getitem, select, take_slice
from training.importers.torch.ops_shape import expand_to, flip_time, reshape_to, unsqueeze
from training.importers.torch.program import (
    Carried,
    Final,
    Indexed,
    Inner,
    Loop,
    Node,
    Program,
    StepOf,
    Steps,
    Varying,
    find_needed,
    transform,
)
from training.importers.torch.recording import Constant, Ref, SliceOf
from training.importers.torch.rules import RULES
from training.importers.torch.writer import DATATYPE, Writer

LENGTHS = "lengths"


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


def translate(program: Program, inputs: Sequence[GraphInput], output_names: Sequence[str], *, name: str = "torch") -> Translation:
    """Write the program. `inputs` are in the order of the program's; `output_names` are for the tensors of its result."""
    return _Translator(program, inputs, name).translate(output_names)


def result_leaves(result: Any) -> list[Any]:
    """The tensors of what a module returned, in order; None where it returned None."""
    if isinstance(result, dict):
        return [leaf for part in result.values() for leaf in result_leaves(part)]
    if isinstance(result, list | tuple):
        return [leaf for part in result for leaf in result_leaves(part)]
    return [result]


class _Translator:
    def __init__(self, program: Program, inputs: Sequence[GraphInput], name: str) -> None:
        self.program = program
        self.graph = GraphBuilder(name)
        self.inputs = inputs
        self.w = Writer(self.graph, _batch_of(program, inputs))
        self.results: list[Any] = []
        self.given: list[Value] = []
        self.constants: dict[int, Value] = {}
        self.leaves: list[Any] = []

    def translate(self, output_names: Sequence[str]) -> Translation:
        tensors = self._write_inputs()
        self.graph.reserve(output_names)
        needed, self.leaves = find_needed(self.program)
        for index, node in enumerate(self.program.nodes):
            if index not in needed:
                self.results.append(None)
            else:
                self.results.append(self._loop(node, index) if isinstance(node, Loop) else self._node(node, self._resolve))
        outputs = self._write_outputs(output_names)
        return Translation(self.graph.build(), tuple(tensors), tuple(outputs))

    # ---------------------------------------------------------------------------------------------- inputs and outputs

    def _write_inputs(self) -> list[GraphTensor]:
        tensors = []
        values: list[Value] = []
        for entry, dims, dtype in zip(self.inputs, self.program.shapes, self.program.dtypes, strict=True):
            datatype = DATATYPE[canonical(dtype)]
            tensors.append(GraphTensor(entry.name, datatype, entry.axes))
            self.graph.input(entry.name, datatype, entry.axes)
            axes: list[Axis] = []
            for place, axis in enumerate(entry.axes):
                sizes = dims[entry.order.index(place)]
                axes.append(BATCH if axis == "batch" else Time(LENGTHS, sizes) if axis == "time" else int(axis))
            value = Value(entry.name, tuple(axes), canonical(dtype))
            self.w.add_rows(entry.name)
            for place, part in enumerate(axes):
                if isinstance(part, Time):
                    self.w.add_time(part, entry.name, place)
            values.append(value)
        if self.w.times and LENGTHS not in [entry.name for entry in self.inputs]:
            self.graph.input(LENGTHS, "INT64", ["batch"])
            tensors.append(GraphTensor(LENGTHS, "INT64", ("batch",)))
        for entry, value in zip(self.inputs, values, strict=True):
            self.given.append(self.w.transpose(value, list(entry.order)))
        return tensors

    def _write_outputs(self, names: Sequence[str]) -> list[GraphTensor]:
        leaves = [leaf for leaf in result_leaves(self.program.result) if leaf is not None]
        outputs = []
        for name, leaf in zip(names, leaves, strict=True):
            value = self._resolve(leaf)
            if not isinstance(value, Value):
                raise Untranslatable(f'output "{name}" is {type(leaf).__name__}, not a tensor')
            value = self._rows_first(value, name)
            shape: list[str | int] = ["batch"]
            for axis in value.axes[1:]:
                if isinstance(axis, Time) and axis.lengths != LENGTHS:
                    raise Untranslatable(f'output "{name}" has another number of steps than the input')
                if isinstance(axis, Merged):
                    raise Untranslatable(f'output "{name}" has the axis {axis}')
                shape.append("time" if isinstance(axis, Time) else int(axis))  # type: ignore[arg-type]
            datatype = DATATYPE[value.dtype]
            self.graph.output(self.w.name(value), name, datatype, shape)
            outputs.append(GraphTensor(name, datatype, tuple(shape)))
        return outputs

    def _rows_first(self, value: Value, name: str) -> Value:
        merged = next((place for place, axis in enumerate(value.axes) if isinstance(axis, Merged)), None)
        if merged is not None:
            axis = value.axes[merged]
            assert isinstance(axis, Merged)
            axes = (*value.axes[:merged], *axis.axes, *value.axes[merged + 1 :])
            value = reshape_to(self.w, value, [_dims(self.w, part) for part in axes])
        if BATCH not in value.axes:
            raise Untranslatable(f'output "{name}" has no axis for the rows: {value}')
        place = value.axes.index(BATCH)
        return self.w.transpose(value, [place, *(other for other in range(value.rank) if other != place)])

    # ------------------------------------------------------------------------------------------------------------ calls

    def _node(self, node: Node, resolve: Any) -> Any:
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

    def _resolve(self, leaf: Any) -> Any:
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
            if isinstance(leaf.index, Indexed):
                raise Untranslatable("one step of a list outside its loop")
            return select(self.w, self._all_steps(leaf.source), 0, leaf.index)
        if isinstance(leaf, Steps):
            before, after = (tuple(self._resolve(entry) for entry in entries) for entries in (leaf.before, leaf.after))
            return replace(leaf, source=self._all_steps(leaf.source), before=before, after=after)
        return leaf

    def _all_steps(self, source: Ref | Final) -> Value:
        """A tensor of one entry for every step, time first."""
        if isinstance(source, Final):
            steps: Value = self.results[source.loop].steps[source.call, source.part]
            return steps
        first: Value = self.results[source.call][0]
        return first

    # ------------------------------------------------------------------------------------------------------------ loops

    def _loop(self, loop: Loop, index: int) -> _LoopResults:
        try:
            return _LoopWriter(self, loop, index).write()
        except Untranslatable as exc:
            raise exc if exc.place else Untranslatable(exc.message, loop.place) from exc


@dataclass
class _LoopResults:
    """What a loop left, by the body's call and part: after the last turn, and of all turns, time first."""

    finals: dict[tuple[int, int], Value]
    steps: dict[tuple[int, int], Value]


class _LoopWriter:
    """A loop over the steps as an ONNX Scan. A row whose steps are over keeps what it has."""

    def __init__(self, translator: _Translator, loop: Loop, index: int) -> None:
        self.t = translator
        self.w = translator.w
        self.loop = loop
        self.index = index
        self.time, self.change = self._find_time()
        self.scanned: list[tuple[Value, bool]] = []  # (time first, is read from the end)
        self.step_values: list[Value] = []
        self.results: list[Any] = []
        self.states: list[Value] = []

    def _find_time(self) -> tuple[Time, int]:
        """The time axis that the loop goes along, and how many turns more or less than steps."""
        for time in self.w.times.values():
            changes = {count - steps for count, steps in zip(self.loop.counts, time.steps, strict=True)}
            if len(changes) == 1:
                return time, changes.pop()
        raise Untranslatable("a loop whose number of turns is not that of the steps")

    def write(self) -> _LoopResults:
        w, outer = self.w, self.w.graph
        wanted_finals, wanted_steps = self._wanted()
        turns = Time(w.linear(self.time.lengths, 1, self.change), self.loop.counts)
        carried = list(self.loop.carried)
        sources = [(inner.call, inner.part) for _, inner in carried]
        latest = [key for key in wanted_finals if key not in sources]
        inits = [self._init(first, inner) for first, inner in carried]
        inits += [w.filled(0.0, self._body_axes(*key), self._body_dtype(*key)) for key in latest]

        body = outer.body(f"loop_{self.index}")
        for number, init in enumerate(inits):
            name = body.input(f"{body.name}/state_{number}", DATATYPE[init.dtype], self._symbolic(init.axes))
            self.states.append(replace(init.named(name)))
        goes_on = body.input(f"{body.name}/goes_on", "BOOL", ["batch"])
        self._outer, self._body, self._turns = outer, body, turns
        w.graph = body
        try:
            for node in self.loop.body:
                self.results.append(self._node(node))
            following = [self.results[call][part] for call, part in (*sources, *latest)]
            kept = [self._keep(goes_on, new, old) for new, old in zip(following, self.states, strict=True)]
            for number, value in enumerate(kept):
                body.output(value.name, f"{body.name}/state_{number}_next", DATATYPE[value.dtype], self._symbolic(value.axes))
            for number, (call, part) in enumerate(wanted_steps):
                value = self.results[call][part]
                name = w.name(value)
                body.output(name, f"{body.name}/step_{number}", DATATYPE[value.dtype], self._symbolic(value.axes))
        finally:
            w.graph = outer
        return self._write_scan(body, inits, latest, sources, wanted_finals, wanted_steps, turns)

    def _write_scan(
        self,
        body: GraphBuilder,
        inits: Sequence[Value],
        latest: Sequence[tuple[int, int]],
        sources: Sequence[tuple[int, int]],
        wanted_finals: Sequence[tuple[int, int]],
        wanted_steps: Sequence[tuple[int, int]],
        turns: Time,
    ) -> _LoopResults:
        w, graph = self.w, self.w.graph
        backward = bool(self.scanned) and all(is_backward for _, is_backward in self.scanned)
        if not self.scanned:
            count = w.linear(w.num_steps(self.time), 1, self.change)
        else:
            first = self.scanned[0][0]
            count = graph.add("Shape", w.name(first), start=0, end=1)
        within = graph.add("Less", w.unsqueeze(w.steps_range(count), [1]), turns.lengths)  # (T, B)
        inputs = [within]
        for value, is_backward in self.scanned:
            if is_backward and not backward:
                value = flip_time(w, value, 0)
            inputs.append(w.name(value))
        num_outputs = len(inits) + len(wanted_steps)
        directions: dict[str, Any] = {"scan_output_directions": [int(backward)] * len(wanted_steps)} if wanted_steps else {}
        results = graph.add_many(
            "Scan",
            *(w.name(init) for init in inits),
            *inputs,
            num_outputs=max(num_outputs, 1),
            body=body.build_body(),
            num_scan_inputs=len(inputs),
            scan_input_directions=[int(backward)] * len(inputs),
            **directions,
        )
        finals: dict[tuple[int, int], Value] = {}
        for number, key in enumerate([*sources, *latest]):
            finals[key] = inits[number].named(results[number])
        steps: dict[tuple[int, int], Value] = {}
        for number, key in enumerate(wanted_steps):
            name = results[len(inits) + number]
            value = Value(name, (turns, *self._body_axes(*key)), self._body_dtype(*key))
            w.add_time(turns, name, 0)
            # Lists are in the order of the turns; the graph's are in the order of time.
            steps[key] = flip_time(w, value, 0) if backward else value
        return _LoopResults({key: finals[key] for key in (*wanted_finals, *sources)}, steps)

    def _wanted(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """What is read of the loop after it: results of the last turn, and of all turns."""
        finals: dict[tuple[int, int], None] = {}
        steps: dict[tuple[int, int], None] = {}
        for leaf in self.t.leaves:
            if isinstance(leaf, Final) and leaf.loop == self.index:
                finals[leaf.call, leaf.part] = None
            elif isinstance(leaf, StepOf | Steps) and isinstance(leaf.source, Final) and leaf.source.loop == self.index:
                steps[leaf.source.call, leaf.source.part] = None
        return list(finals), list(steps)

    def _body_axes(self, call: int, part: int) -> Axes:
        return tuple(self.w.axis_of(dims) for dims in self.loop.body[call].shapes[part])

    def _body_dtype(self, call: int, part: int) -> torch.dtype:
        return canonical(self.loop.body[call].dtypes[part])

    def _symbolic(self, axes: Axes) -> list[int | str]:
        return [axis if isinstance(axis, int) else str(axis).replace("*", "_") for axis in axes]

    def _init(self, first: Any, inner: Inner) -> Value:
        axes, dtype = self._body_axes(inner.call, inner.part), self._body_dtype(inner.call, inner.part)
        value = self.t._resolve(first)
        if not isinstance(value, Value):
            return self.w.filled(float(value), axes, dtype)
        return expand_to(self.w, self.w.cast(value, dtype), axes)

    def _keep(self, goes_on: str, new: Value, old: Value) -> Value:
        w = self.w
        if BATCH not in old.axes:
            raise Untranslatable("a loop hands on a tensor without rows")
        if new.axes != old.axes:
            new = expand_to(w, new, old.axes)
        condition = w.unsqueeze(goes_on, list(range(1, old.rank - old.axes.index(BATCH))))
        return old.named(w.graph.add("Where", condition, w.name(w.cast(new, old.dtype)), old.name))

    def _node(self, node: Node) -> Any:
        if node.function in ("__getitem__", "select") and node.values is None:
            found = self._scanned_item(node)
            if found is not None:
                return [found]
        return self.t._node(node, self._resolve)

    def _resolve(self, leaf: Any) -> Any:
        if isinstance(leaf, Inner):
            return self.results[leaf.call][leaf.part]
        if isinstance(leaf, Carried):
            return self.states[leaf.index]
        if isinstance(leaf, StepOf) and isinstance(leaf.index, Indexed):
            return self._scan(self._in_outer(lambda: self.t._all_steps(leaf.source)), leaf.index)
        if isinstance(leaf, StepOf | Steps):
            return self._in_outer(lambda: self.t._resolve(leaf))
        return self.t._resolve(leaf) if not isinstance(leaf, Ref) else self._in_outer(lambda: self.t._resolve(leaf))

    def _in_outer(self, write: Any) -> Any:
        """Write outside of the body."""
        self.w.graph = self._outer
        try:
            return write()
        finally:
            self.w.graph = self._body

    def _scanned_item(self, node: Node) -> Value | None:
        """x[:, t] of a tensor from outside, where t is the turn."""
        if node.function == "select":
            leaf, dim, index = node.args
            entries = [SliceOf(None, None, None)] * dim + [index]
        else:
            leaf, index = node.args
            entries = list(index) if isinstance(index, tuple) else [index]
        places = [place for place, entry in enumerate(entries) if _is_indexed(entry)]
        if not places:
            return None
        if len(places) > 1 or isinstance(leaf, Inner | Carried):
            raise Untranslatable("item access by the number of the step", node.place)
        source = self._resolve(leaf)
        number = places[0]
        if any(entry is Ellipsis for entry in entries[:number]):
            missing = source.rank - sum(entry is not None and entry is not Ellipsis for entry in entries)
            where = next(place for place, entry in enumerate(entries) if entry is Ellipsis)
            entries[where : where + 1] = [SliceOf(None, None, None)] * missing
            number += missing - 1
        if any(entry is None for entry in entries[:number]):
            raise Untranslatable("item access by the number of the step behind None", node.place)
        entry = entries[number]
        keeps = isinstance(entry, SliceOf)
        if keeps:
            if entry.step not in (None, 1) or not isinstance(entry.start, Indexed) or not _is_next(entry.start, entry.stop):
                raise Untranslatable("several steps at once in a loop", node.place)
            entry = entry.start
        # Integers before the place take their axes away.
        order = [number, *(place for place in range(source.rank) if place != number)]
        moved = self._in_outer(lambda: self.w.transpose(source, order))
        step = self._scan(moved, entry)
        value = unsqueeze(self.w, step, number) if keeps else step
        rest = [*entries[:number], *([SliceOf(None, None, None)] if keeps else []), *entries[number + 1 :]]
        self.w.node = node
        return getitem(self.w, value, tuple(rest)) if rest else value

    def _scan(self, value: Value, index: Indexed) -> Value:
        """Of a tensor, time first, the step of the turn; inside the body."""
        key = (value, index)
        if key in self._known:
            return self._known[key]
        prepared, is_backward = self._in_outer(lambda: self._prepare(value, index))
        body, number = self._body, len(self.scanned)
        self.scanned.append((prepared, is_backward))
        axes = value.axes[1:]
        name = body.input(f"{body.name}/input_{number}", DATATYPE[value.dtype], self._symbolic(axes))
        step = Value(name, axes, value.dtype)
        self._known[key] = step
        return step

    @property
    def _known(self) -> dict[Any, Value]:
        return self.__dict__.setdefault("_steps_by_source", {})  # type: ignore[no-any-return]

    def _prepare(self, value: Value, index: Indexed) -> tuple[Value, bool]:
        """The part of the tensor that the turns go through, and whether from its end."""
        w, axis = self.w, value.axes[0]
        num_turns = self.loop.counts
        if index.step not in (1, -1):
            raise Untranslatable("a loop that leaves out steps")
        starts = index.start.values if isinstance(index.start, Varying) else (index.start,) * len(num_turns)
        low = starts if index.step == 1 else tuple(start - turns + 1 for start, turns in zip(starts, num_turns, strict=True))
        if len(set(low)) > 1:
            raise Untranslatable("a loop that begins at a step that follows from the length")
        first = low[0]
        if isinstance(axis, int):
            stop = Varying(tuple(first + turns for turns in num_turns))
            table = take_slice(w, value, 0, SliceOf(0, stop, None))
            return (take_slice(w, table, 0, SliceOf(first, None, None)) if first else table), index.step == -1
        if not isinstance(axis, Time):
            raise Untranslatable(f"a loop over the {axis} axis: a row's answer would depend on the others")
        left = {steps - first - turns for steps, turns in zip(axis.steps, num_turns, strict=True)}
        if len(left) > 1 or min(left) < 0:
            raise Untranslatable("a loop over a part of the steps")
        end = left.pop()
        cut = take_slice(w, value, 0, SliceOf(first or None, -end if end else None, None))
        return cut, index.step == -1


def _is_indexed(entry: Any) -> bool:
    return isinstance(entry, Indexed) or (isinstance(entry, SliceOf) and isinstance(entry.start, Indexed))


def _is_next(start: Indexed, stop: Any) -> bool:
    if not isinstance(stop, Indexed) or stop.step != start.step:
        return False
    one, other = start.start, stop.start
    if isinstance(one, Varying) and isinstance(other, Varying):
        return all(b - a == 1 for a, b in zip(one.values, other.values, strict=True))
    return isinstance(one, int) and isinstance(other, int) and other - one == 1


def _dims(w: Writer, axis: Axis) -> tuple[int, ...]:
    if isinstance(axis, int):
        return (axis,) * len(w.batch)
    if isinstance(axis, Time):
        return axis.steps
    if isinstance(axis, Merged):
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
