"""Loops over the steps, as of a cell in Python, as ONNX Scans: what is carried on, what is read at each step, what is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from training.graph.builder import GraphBuilder
from training.importers.torch.axes import BATCH, Axes, Time, Value, canonical
from training.importers.torch.errors import Untranslatable
from training.importers.torch.ops_indexing import getitem, take_slice
from training.importers.torch.ops_shape import expand_to, flip_time, unsqueeze
from training.importers.torch.program import CarriedValue, Final, Inner, Loop, Node, StepOf, Steps, TurnNumber, VaryingNumber
from training.importers.torch.recording import Ref, SliceOf
from training.importers.torch.writer import DATATYPE, Writer


class Translator(Protocol):
    """What a loop needs of the translator around it."""

    w: Writer
    leaves: list[Any]
    """All that the program's needed calls and its result refer to."""

    def resolve(self, leaf: Any) -> Any:
        """What a leaf of the program is in the graph."""
        ...

    def all_steps(self, source: Ref | Final) -> Value:
        """A tensor of one entry for every step, time first."""
        ...

    def write_node(self, node: Node, resolve: Callable[[Any], Any]) -> Any:
        """Write a call, whose arguments `resolve` finds; a list of its results."""
        ...


@dataclass
class LoopResults:
    """What a loop left, by the body's call and part: after the last turn, and of all turns, time first."""

    finals: dict[tuple[int, int], Value]
    steps: dict[tuple[int, int], Value]


class LoopWriter:
    """A loop over the steps as an ONNX Scan. A row whose steps are over keeps what it has."""

    def __init__(self, translator: Translator, loop: Loop, index: int) -> None:
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

    def write(self) -> LoopResults:
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
    ) -> LoopResults:
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
        return LoopResults({key: finals[key] for key in (*wanted_finals, *sources)}, steps)

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
        value = self.t.resolve(first)
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
        return self.t.write_node(node, self._resolve)

    def _resolve(self, leaf: Any) -> Any:
        if isinstance(leaf, Inner):
            return self.results[leaf.call][leaf.part]
        if isinstance(leaf, CarriedValue):
            return self.states[leaf.index]
        if isinstance(leaf, StepOf) and isinstance(leaf.index, TurnNumber):
            return self._scan(self._in_outer(lambda: self.t.all_steps(leaf.source)), leaf.index)
        if isinstance(leaf, StepOf | Steps):
            return self._in_outer(lambda: self.t.resolve(leaf))
        return self.t.resolve(leaf) if not isinstance(leaf, Ref) else self._in_outer(lambda: self.t.resolve(leaf))

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
        if len(places) > 1 or isinstance(leaf, Inner | CarriedValue):
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
            if entry.step not in (None, 1) or not isinstance(entry.start, TurnNumber) or not _is_next(entry.start, entry.stop):
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

    def _scan(self, value: Value, index: TurnNumber) -> Value:
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

    def _prepare(self, value: Value, index: TurnNumber) -> tuple[Value, bool]:
        """The part of the tensor that the turns go through, and whether from its end."""
        w, axis = self.w, value.axes[0]
        num_turns = self.loop.counts
        if index.step not in (1, -1):
            raise Untranslatable("a loop that leaves out steps")
        starts = index.start.values if isinstance(index.start, VaryingNumber) else (index.start,) * len(num_turns)
        low = starts if index.step == 1 else tuple(start - turns + 1 for start, turns in zip(starts, num_turns, strict=True))
        if len(set(low)) > 1:
            raise Untranslatable("a loop that begins at a step that follows from the length")
        first = low[0]
        if isinstance(axis, int):
            stop = VaryingNumber(tuple(first + turns for turns in num_turns))
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
    return isinstance(entry, TurnNumber) or (isinstance(entry, SliceOf) and isinstance(entry.start, TurnNumber))


def _is_next(start: TurnNumber, stop: Any) -> bool:
    if not isinstance(stop, TurnNumber) or stop.step != start.step:
        return False
    one, other = start.start, stop.start
    if isinstance(one, VaryingNumber) and isinstance(other, VaryingNumber):
        return all(b - a == 1 for a, b in zip(one.values, other.values, strict=True))
    return isinstance(one, int) and isinstance(other, int) and other - one == 1
