"""Recordings of several sizes laid side by side: what differs is a size, what repeats is a loop over the steps.

Recordings 0 and 2 have the same number of steps, 0 and 1 the same number of rows. Knows no function of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from training.importers.torch.errors import Untranslatable
from training.importers.torch.places import Place, Position
from training.importers.torch.recording import Call, Constant, Recording, Ref, SliceOf

Dims = tuple[int, ...]
"""One size in every recording."""


@dataclass(frozen=True)
class VaryingNumber:
    """A number that follows from the sizes: one value for each recording."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class TurnNumber:
    """A number that changes from one turn of a loop to the next: start + step * turn."""

    start: int | VaryingNumber
    step: int


@dataclass(frozen=True)
class Inner:
    """In a loop's body: result `part` of the body's call number `call`, in the same turn."""

    call: int
    part: int


@dataclass(frozen=True)
class CarriedValue:
    """In a loop's body: what the turn before left; an index into `Loop.carried`."""

    index: int


@dataclass(frozen=True)
class Final:
    """What the last turn of loop `loop` left."""

    loop: int
    call: int
    part: int


@dataclass(frozen=True)
class StepOf:
    """One of a list with one entry for every step: entry `index`, from the end if below zero, or the turn's own."""

    source: Ref | Final
    index: int | VaryingNumber | TurnNumber


@dataclass(frozen=True)
class Steps:
    """A list of one entry for every step, from the last to the first if `is_reversed`; with fixed entries around.

    The translator puts the tensor of all entries, time first, in place of their source.
    """

    source: Any
    is_reversed: bool
    before: tuple[Any, ...] = ()
    after: tuple[Any, ...] = ()


@dataclass
class Node:
    """One call, with its sizes in every recording. `values` are the results where they depend neither on inputs nor sizes."""

    function: str
    args: list[Any]
    kwargs: dict[str, Any]
    position: Position
    shapes: list[tuple[Dims, ...]]
    dtypes: list[torch.dtype]
    values: list[Tensor] | None

    @property
    def place(self) -> Place | None:
        return self.position.place


@dataclass
class Loop:
    """A part of the program that runs once for every step. `carried`: what a turn hands on, as (first value, Inner)."""

    body: list[Node]
    counts: Dims
    position: Position
    carried: list[tuple[Any, Inner]] = field(default_factory=list)

    @property
    def place(self) -> Place | None:
        return self.position.place


@dataclass
class Program:
    """The module as a list of calls and loops; references are indices into `nodes`, -1 for the inputs."""

    inputs: list[str]
    shapes: list[tuple[Dims, ...]]
    dtypes: list[torch.dtype]
    nodes: list[Node | Loop]
    result: Any


@dataclass(frozen=True)
class _Segment:
    """Calls from `starts` on; a loop of `counts` turns of `period` calls, or (period 0) one single call."""

    starts: Dims
    period: int = 0
    counts: Dims = ()


def unify(recordings: Sequence[Recording]) -> Program:
    """The program that the three recordings are runs of. Raises Untranslatable where they are not alike."""
    return _Unifier(recordings).unify()


class _Unifier:
    def __init__(self, recordings: Sequence[Recording]) -> None:
        self.recordings = recordings
        first, second, third = recordings
        alike = [call.signature for call in first.calls] == [call.signature for call in third.calls]
        if not alike:
            place = _first_difference(first.calls, third.calls)
            raise Untranslatable("what is computed depends on the number of rows in the batch", place)
        self.segments = _align(first.calls, second.calls)
        # (recording, call) → (segment, turn, offset)
        self.home: list[dict[int, tuple[int, int, int]]] = [{}, {}, {}]
        for number, segment in enumerate(self.segments):
            for recording, start in enumerate(segment.starts):
                for turn in range(segment.counts[recording] if segment.period else 1):
                    for offset in range(segment.period or 1):
                        call = start + turn * segment.period + offset
                        self.home[recording][call] = (number, turn, offset)
        self.nodes: list[Node | Loop] = []

    def unify(self) -> Program:
        for segment in self.segments:
            self.nodes.append(self._loop(segment) if segment.period else self._node(segment))
        first = self.recordings[0]
        return Program(
            first.inputs,
            [_dims([recording.shapes[index] for recording in self.recordings]) for index in range(len(first.inputs))],
            first.dtypes,
            self.nodes,
            self._leaf([recording.result for recording in self.recordings], None),
        )

    def _node(self, segment: _Segment) -> Node:
        calls = [recording.calls[start] for recording, start in zip(self.recordings, segment.starts, strict=True)]
        place = calls[0].position.place
        args = self._leaf([call.args for call in calls], place)
        kwargs = self._leaf([call.kwargs for call in calls], place)
        return self._finished(calls, args, kwargs)

    def _finished(self, calls: Sequence[Call], args: Any, kwargs: Any) -> Node:
        first = calls[0]
        shapes = [_dims([call.shapes[part] for call in calls]) for part in range(len(first.shapes))]
        varies = first.reads_input or any(self._varies(leaf) for leaf in _leaves((args, kwargs)))
        values = None if varies else first.values
        return Node(first.function, args, kwargs, first.position, shapes, first.dtypes, values)

    def _varies(self, leaf: Any) -> bool:
        if isinstance(leaf, Ref):
            if leaf.call < 0:
                return True
            node = self.nodes[leaf.call]
            return isinstance(node, Loop) or node.values is None
        return isinstance(leaf, VaryingNumber | TurnNumber | Inner | CarriedValue | Final | StepOf | Steps)

    # ------------------------------------------------------------------------------------------ leaves outside of loops

    def _leaf(self, values: Sequence[Any], place: Place | None) -> Any:
        """One argument from what it was in each recording."""
        first = values[0]
        if isinstance(first, Ref):
            return self._reference(values, place)
        if isinstance(first, Constant):
            if not all(isinstance(value, Constant) and _same(first.tensor, value.tensor) for value in values):
                raise Untranslatable("a tensor made outside torch depends on the size of the input", place)
            return first
        if isinstance(first, SliceOf):
            parts = [self._leaf([getattr(value, name) for value in values], place) for name in ("start", "stop", "step")]
            return SliceOf(*parts)
        if isinstance(first, list | tuple):
            if not all(type(value) is type(first) for value in values):
                raise Untranslatable("an argument has another type at another size", place)
            if all(len(value) == len(first) for value in values):
                return type(first)(self._leaf(parts, place) for parts in zip(*values, strict=True))
            return self._steps(values, place)
        if isinstance(first, dict):
            if any(value.keys() != first.keys() for value in values):
                raise Untranslatable("a dictionary has other keys at another size", place)
            return {key: self._leaf([value[key] for value in values], place) for key in first}
        if all(type(value) is type(first) and value == first for value in values):
            return first
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            return VaryingNumber(tuple(values))
        raise Untranslatable(f"an argument is {first!r} at one size and {values[1]!r} at another", place)

    def _reference(self, values: Sequence[Any], place: Place | None) -> Any:
        if not all(isinstance(value, Ref) for value in values):
            raise Untranslatable("an argument is computed at one size and constant at another", place)
        if all(value.call < 0 for value in values):
            return values[0]
        homes = [self.home[recording][value.call] for recording, value in enumerate(values)]
        parts = tuple(value.part for value in values)
        if len({(number, offset) for number, _, offset in homes}) > 1:
            raise Untranslatable("what is computed here depends on the number of steps", place)
        number, _, offset = homes[0]
        segment = self.segments[number]
        if not segment.period:
            if len(set(parts)) == 1:
                return Ref(number, parts[0])
            sizes = tuple(len(self.recordings[recording].calls[value.call].shapes) for recording, value in enumerate(values))
            return StepOf(Ref(number, 0), _position_in(parts, sizes, place))
        turns = tuple(turn for _, turn, _ in homes)
        if len(set(parts)) > 1:
            raise Untranslatable("what is computed here depends on the number of steps", place)
        if turns == tuple(count - 1 for count in segment.counts):
            return Final(number, offset, parts[0])
        return StepOf(Final(number, offset, parts[0]), _position_in(turns, segment.counts, place))

    def _steps(self, values: Sequence[Sequence[Any]], place: Place | None) -> Steps:
        """A list whose length follows the number of steps."""
        sources: list[tuple[Any, ...]] = []
        for recording, value in enumerate(values):
            entries = [self._step_source(recording, entry) for entry in value]
            known = [entry for entry in entries if entry is not None]
            counts = {entry[0]: sum(other[0] == entry[0] for other in known) for entry in known}
            if not counts:
                raise Untranslatable("a list is longer at another size", place)
            source = max(counts, key=lambda key: counts[key])
            inside = [index for index, entry in enumerate(entries) if entry is not None and entry[0] == source]
            turns = [entry[1] for entry in entries if entry is not None and entry[0] == source]
            total = self._num_steps(recording, source)
            if inside != list(range(inside[0], inside[-1] + 1)) or turns not in (
                list(range(total)),
                list(range(total - 1, -1, -1)),
            ):
                raise Untranslatable("a list of some of the steps", place)
            sources.append((source, turns[0] != 0, inside[0], len(value) - inside[-1] - 1))
        if len(set(sources)) > 1:
            raise Untranslatable("a list is longer at another size", place)
        (number, offset, part), is_reversed, before, after = sources[0]
        leading = tuple(self._leaf([value[index] for value in values], place) for index in range(before))
        trailing = tuple(self._leaf([value[index - after] for value in values], place) for index in range(after))
        steps = Final(number, offset, part) if self.segments[number].period else Ref(number, 0)
        return Steps(steps, is_reversed, leading, trailing)

    def _step_source(self, recording: int, entry: Any) -> tuple[tuple[int, int, int], int] | None:
        """((segment, offset, part), step) of an entry that is one of many steps."""
        if not isinstance(entry, Ref) or entry.call < 0:
            return None
        number, turn, offset = self.home[recording][entry.call]
        if self.segments[number].period:
            return (number, offset, entry.part), turn
        if len(self.recordings[recording].calls[entry.call].shapes) > 1:
            return (number, 0, 0), entry.part
        return None

    def _num_steps(self, recording: int, source: tuple[int, int, int]) -> int:
        segment = self.segments[source[0]]
        if segment.period:
            return segment.counts[recording]
        return len(self.recordings[recording].calls[segment.starts[recording]].shapes)

    # ------------------------------------------------------------------------------------------------------------ loops

    def _loop(self, segment: _Segment) -> Loop:
        number = len(self.nodes)
        loop = Loop([], segment.counts, self.recordings[0].calls[segment.starts[0]].position)
        if min(segment.counts) < 3:
            raise Untranslatable("a loop with too few steps to be told from single calls", loop.place)
        for offset in range(segment.period):
            turns = [
                [recording.calls[start + turn * segment.period + offset] for turn in range(count)]
                for recording, start, count in zip(self.recordings, segment.starts, segment.counts, strict=True)
            ]
            place = turns[0][0].position.place
            for calls in turns:
                if any(call.shapes != calls[1].shapes for call in calls[1:]):
                    raise Untranslatable("a tensor grows from step to step", place)
            args = self._body_leaf(number, loop, [[call.args for call in calls] for calls in turns], place)
            kwargs = self._body_leaf(number, loop, [[call.kwargs for call in calls] for calls in turns], place)
            node = self._finished([calls[1] for calls in turns], args, kwargs)
            loop.body.append(node)
        return loop

    def _body_leaf(self, number: int, loop: Loop, values: Sequence[Sequence[Any]], place: Place | None) -> Any:
        """One argument of a call in a loop, from what it was in each recording's turns."""
        flat = [value for turns in values for value in turns]
        sample = values[0][1]
        if isinstance(sample, Ref):
            return self._body_reference(number, loop, values, place)
        if isinstance(sample, Constant):
            if not all(isinstance(value, Constant) and _same(sample.tensor, value.tensor) for value in flat):
                raise Untranslatable("other weights at every step", place)
            return sample
        if isinstance(sample, SliceOf):
            parts = [
                self._body_leaf(number, loop, [[getattr(value, name) for value in turns] for turns in values], place)
                for name in ("start", "stop", "step")
            ]
            return SliceOf(*parts)
        if isinstance(sample, list | tuple):
            if not all(type(value) is type(sample) and len(value) == len(sample) for value in flat):
                raise Untranslatable("a list grows from step to step", place)
            columns = [
                self._body_leaf(number, loop, [[value[index] for value in turns] for turns in values], place)
                for index in range(len(sample))
            ]
            return type(sample)(columns)
        if isinstance(sample, dict):
            return {
                key: self._body_leaf(number, loop, [[value[key] for value in turns] for turns in values], place) for key in sample
            }
        if isinstance(sample, int) and not isinstance(sample, bool):
            return _indexed(values, place)
        if all(type(value) is type(sample) and value == sample for value in flat):
            return sample
        raise Untranslatable(f"an argument is {sample!r} at one step and another at another", place)

    def _body_reference(self, number: int, loop: Loop, values: Sequence[Sequence[Any]], place: Place | None) -> Any:
        later = [turns[1:] for turns in values]
        if not all(isinstance(value, Ref) for turns in later for value in turns):
            raise Untranslatable("an argument is computed at one step and constant at another", place)
        located = [[self._locate(recording, value) for value in turns] for recording, turns in enumerate(later)]
        kinds = {
            (home[0], home[2], home[3], home[1] - turn if home[0] == number else None)
            for turns in located
            for turn, home in enumerate(turns, start=1)
        }
        inside = {kind for kind in kinds if kind[0] == number}
        if inside:
            if len(kinds) > 1:
                raise Untranslatable("a step reads several steps before it", place)
            ((_, offset, part, distance),) = inside
            first = [turns[0] for turns in values]
            inner = Inner(offset, part)
            if distance == 0:
                return inner
            if distance != -1:
                raise Untranslatable("a step reads one that is not the step before it", place)
            carried = (self._leaf(first, place), inner)
            if carried not in loop.carried:
                loop.carried.append(carried)
            return CarriedValue(loop.carried.index(carried))
        # From outside: always the same, or one entry of a list for each turn.
        homes = [
            [self._locate(recording, value) if isinstance(value, Ref) else None for value in turns]
            for recording, turns in enumerate(values)
        ]
        if all(len(set(turns)) == 1 for turns in homes):
            return self._leaf([turns[0] for turns in values], place)
        if any(home is None for turns in homes for home in turns):
            raise Untranslatable("the first step computes something else than the others", place)
        found = {(home[0], home[2]) for turns in homes for home in turns if home}
        if len(found) > 1:
            raise Untranslatable("a step reads another tensor than the step before it", place)
        ((source, offset),) = found
        if source >= 0 and self.segments[source].period:
            index = _indexed([[home[1] for home in turns if home] for turns in homes], place)
            return StepOf(Final(source, offset, homes[0][0][3] if homes[0][0] else 0), index)
        index = _indexed([[home[3] for home in turns if home] for turns in homes], place)
        return StepOf(Ref(source, 0), index)

    def _locate(self, recording: int, ref: Ref) -> tuple[int, int, int, int]:
        """(segment, turn, offset, part)."""
        if ref.call < 0:
            return -1, 0, 0, ref.part
        return (*self.home[recording][ref.call], ref.part)


def _align(first: Sequence[Call], second: Sequence[Call]) -> list[_Segment]:
    """Single calls that both make, and loops that the second, of more steps, goes through more often."""
    segments: list[_Segment] = []
    one, other = 0, 0
    before = [call.signature for call in first]
    after = [call.signature for call in second]
    while one < len(before) or other < len(after):
        if one < len(before) and other < len(after) and before[one] == after[other]:
            segments.append(_Segment((one, other, one)))
            one, other = one + 1, other + 1
            continue
        ahead = before[one] if one < len(before) else None
        period, more = _find_period(after, other, ahead, len(segments))
        if not period:
            place = (second[other] if other < len(second) else first[one]).position.place
            raise Untranslatable("what is computed depends on the number of steps", place)
        body = after[other - period : other]
        count, start = 0, one
        while start >= period and before[start - period : start] == body and _are_single(segments[-period:], period):
            del segments[-period:]
            count, start = count + 1, start - period
        segments.append(_Segment((start, other - count * period, start), period, (count, count + more, count)))
        other += more * period
    return segments


def _are_single(segments: Sequence[_Segment], count: int) -> bool:
    return len(segments) == count and all(not segment.period for segment in segments)


def _find_period(after: Sequence[Any], place: int, ahead: Any, most: int) -> tuple[int, int]:
    """(calls in one turn, turns that the longer run makes more) where the runs part; (0, 0) if it is no loop."""
    for period in range(1, most + 1):
        body = after[place - period : place]
        more = 0
        while after[place + more * period : place + (more + 1) * period] == body:
            more += 1
        end = place + more * period
        if more and (after[end] if end < len(after) else None) == ahead:
            return period, more
    return 0, 0


def _first_difference(first: Sequence[Call], second: Sequence[Call]) -> Place | None:
    for one, other in zip(first, second, strict=False):
        if one.signature != other.signature:
            return other.position.place
    longer = first if len(first) > len(second) else second
    return longer[min(len(first), len(second))].position.place


def _position_in(found: Dims, sizes: Dims, place: Place | None) -> int:
    """One index for all recordings: from the start, or below zero from the end."""
    if len(set(found)) == 1:
        return found[0]
    distances = {index - size for index, size in zip(found, sizes, strict=True)}
    if len(distances) == 1:
        return distances.pop()
    raise Untranslatable("a step in the middle of the sequence", place)


def _indexed(values: Sequence[Sequence[int]], place: Place | None) -> int | VaryingNumber | TurnNumber:
    """start + step * turn, for every recording."""
    step = values[0][1] - values[0][0]
    starts = []
    for turns in values:
        if any(value != turns[0] + step * turn for turn, value in enumerate(turns)):
            raise Untranslatable("a number changes from step to step, not by the same amount", place)
        starts.append(turns[0])
    start = starts[0] if len(set(starts)) == 1 else VaryingNumber(tuple(starts))
    return TurnNumber(start, step) if step else start


def _dims(shapes: Sequence[tuple[int, ...]]) -> tuple[Dims, ...]:
    ranks = {len(shape) for shape in shapes}
    if len(ranks) > 1:
        raise Untranslatable("a tensor has another number of axes at another size")
    return tuple(zip(*shapes, strict=True))


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and one.dtype == other.dtype and bool((one == other).all()))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    elif isinstance(value, SliceOf):
        yield from _leaves((value.start, value.stop, value.step))
    elif isinstance(value, Steps):
        yield value
        yield from _leaves((*value.before, *value.after))
    else:
        yield value


def find_needed(program: Program) -> tuple[set[int], list[Any]]:
    """Which nodes the result follows from, and all that these and the result refer to."""
    needed: set[int] = set()
    leaves: list[Any] = []
    waiting = list(_leaves(program.result))
    while waiting:
        leaf = waiting.pop()
        leaves.append(leaf)
        source = leaf.source if isinstance(leaf, StepOf | Steps) else leaf
        index = source.call if isinstance(source, Ref) else source.loop if isinstance(source, Final) else -1
        if index < 0 or index in needed:
            continue
        needed.add(index)
        node = program.nodes[index]
        if isinstance(node, Loop):
            waiting += [found for inner in node.body for found in _leaves((inner.args, inner.kwargs))]
            waiting += [found for first, _ in node.carried for found in _leaves(first)]
        elif node.values is None:
            waiting += _leaves((node.args, node.kwargs))
    return needed, leaves


def transform(value: Any, change: Callable[[Any], Any]) -> Any:
    """`value` with every leaf changed."""
    if isinstance(value, list | tuple):
        return type(value)(transform(part, change) for part in value)
    if isinstance(value, dict):
        return {key: transform(part, change) for key, part in value.items()}
    if isinstance(value, SliceOf):
        return SliceOf(transform(value.start, change), transform(value.stop, change), transform(value.step, change))
    return change(value)
