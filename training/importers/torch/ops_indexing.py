"""Rules of item access, gather and their like: which steps of which row are read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from training.importers.torch.axes import BATCH, Time, Value
from training.importers.torch.errors import Untranslatable
from training.importers.torch.ops_shape import cut, squeeze, unsqueeze
from training.importers.torch.program import Steps, VaryingNumber
from training.importers.torch.recording import SliceOf
from training.importers.torch.rules import rule
from training.importers.torch.writer import Writer, positive


@rule("__getitem__")
def getitem(w: Writer, input: Value, index: Any) -> Value:
    entries = list(index) if isinstance(index, tuple | list) and not _is_numbers(index) else [index]
    if any(isinstance(entry, Value | list) and not _is_scalar(entry) for entry in entries):
        return _take(w, input, entries)
    num_read = sum(entry is not None and entry is not Ellipsis for entry in entries)
    if Ellipsis in [entry for entry in entries if entry is Ellipsis]:
        place = next(number for number, entry in enumerate(entries) if entry is Ellipsis)
        entries[place : place + 1] = [SliceOf(None, None, None)] * (input.rank - num_read)
    value, place = input, 0
    for entry in entries:
        if entry is None:
            value, place = unsqueeze(w, value, place), place + 1
        elif isinstance(entry, SliceOf):
            value, place = take_slice(w, value, place, entry), place + 1
        else:
            value = select(w, value, place, entry)
    return value


def _is_numbers(index: Any) -> bool:
    """A list of numbers takes them all; a tuple is one entry for each axis."""
    return isinstance(index, list) and bool(index) and all(isinstance(entry, int) for entry in index)


def _is_scalar(entry: Any) -> bool:
    return isinstance(entry, Value) and entry.constant is not None and entry.constant.dim() == 0


@rule("select")
def select(w: Writer, input: Value, dim: int, index: Any) -> Value:
    """One step of an axis, which goes away."""
    place = positive(dim, input.rank)
    axis = input.axes[place]
    if _is_scalar(index):
        index = int(index.constant)
    if isinstance(axis, int):
        if not isinstance(index, int):
            raise Untranslatable("an index that follows from the input, into an axis of fixed size")
        start = positive(index, axis)
        return squeeze(w, cut(w, input, place, start, start + 1), place)
    if axis == BATCH:
        raise Untranslatable("one row of the batch is read: a row's answer would depend on the others")
    if not isinstance(axis, Time):
        raise Untranslatable(f"one entry of the axis {axis}")
    axes = (*input.axes[:place], *input.axes[place + 1 :])
    if isinstance(index, int) and (index >= 0 or BATCH not in input.axes):
        # Without rows the tensor is as long as the longest of them: only its beginning is everyone's.
        if index < 0:
            raise Untranslatable("a step from the end of a tensor without rows")
        name = w.graph.add("Gather", w.name(input), w.graph.constant(index), axis=place)
        return Value(name, axes, input.dtype)
    return w.take_step(input, place, _from_end(w, axis, index))


def _from_end(w: Writer, time: Time, index: Any) -> str:
    """The number of a step as INT64 (B,)."""
    if isinstance(index, int):
        return w.linear(time.lengths, 1, index)
    if isinstance(index, VaryingNumber):
        return w.row_number(index).name
    raise Untranslatable("an index that is computed")


def take_slice(w: Writer, value: Value, place: int, bounds: SliceOf) -> Value:
    """start:stop:step of one axis."""
    axis = value.axes[place]
    start, stop, step = bounds.start, bounds.stop, bounds.step or 1
    if start in (None, 0) and stop is None and step == 1:
        return value
    if isinstance(axis, int):
        if isinstance(stop, VaryingNumber) and isinstance(axis, int) and start in (None, 0) and step == 1:
            return _table_of_steps(w, value, place, stop)
        if not all(isinstance(bound, int | None) for bound in (start, stop)):
            raise Untranslatable("a slice of a fixed axis by a number that follows from the input")
        numbers = range(axis)[slice(start, stop, step)]
        return cut(w, value, place, numbers.start, max(numbers.stop, numbers.start), step)
    if not isinstance(axis, Time):
        raise Untranslatable(f"a slice of the {axis} axis")
    return _slice_time(w, value, place, axis, start or 0, stop, step)


def _slice_time(w: Writer, value: Value, place: int, axis: Time, start: Any, stop: Any, step: int) -> Value:
    graph = w.graph
    first, last = _bound(w, axis, start), (1, 0) if stop is None else _bound(w, axis, stop)
    whole = Value(w.name(value), value.axes, value.dtype)
    if first[0] == 0 and last[0] == 0:
        # As many steps in every row.
        if first[1] > last[1]:
            raise Untranslatable("an empty slice of the time axis")
        size = len(range(first[1], last[1], step))
        name = graph.add("Slice", whole.name, *(graph.constant([n]) for n in (first[1], last[1], place, step)))
        return Value(name, (*value.axes[:place], size, *value.axes[place + 1 :]), value.dtype)
    if first[0] == 1 and last[0] == 1:
        count = last[1] - first[1]
        size = len(range(0, count, step))
        index = graph.add("Add", w.unsqueeze(axis.lengths, [1]), graph.constant([first[1] + step * n for n in range(size)]))
        return w.take_steps(whole, place, index, size)
    if first[0] == 0 and last[0] == 1:
        end = 2**62 if last[1] == 0 else last[1]
        name = graph.add("Slice", whole.name, *(graph.constant([n]) for n in (first[1], end, place, step)))
        change = last[1] - first[1]
        # ceil((length + change) / step)
        lengths = w.linear(axis.lengths, 1, change + step - 1)
        if step > 1:
            lengths = graph.add("Div", lengths, graph.constant([step]))
        time = Time(lengths, tuple((steps + change + step - 1) // step for steps in axis.steps))
        w.add_time(time, name, place)
        return Value(name, (*value.axes[:place], time, *value.axes[place + 1 :]), value.dtype)
    raise Untranslatable("a slice of the time axis from its end to a fixed step")


def _bound(w: Writer, axis: Time, bound: Any) -> tuple[int, int]:
    """A bound as (1, n): n steps behind the row's end, or (0, n): step n."""
    if isinstance(bound, VaryingNumber):
        found = w.affine(bound.values)
        own = [step - axis.steps[0] for step in axis.steps]
        if found is None or found[0] != 1 or [value - bound.values[0] for value in bound.values] != own:
            raise Untranslatable("a slice of the time axis at a step that follows from its length, not by addition")
        return 1, bound.values[0] - axis.steps[0]
    if not isinstance(bound, int):
        raise Untranslatable("a slice of the time axis at a step that is computed")
    return (0, bound) if bound >= 0 else (1, bound)


def _table_of_steps(w: Writer, value: Value, place: int, stop: VaryingNumber) -> Value:
    """As many entries of a table as there are steps: a positional encoding."""
    to = w.axis_of(stop.values)
    if not isinstance(to, Time):
        raise Untranslatable("a slice of a fixed axis by a number that follows from the input")
    bounds = [w.graph.constant([0]), w.num_steps(to), w.graph.constant([place])]
    name = w.graph.add("Slice", w.name(value), *bounds)
    return Value(name, (*value.axes[:place], to, *value.axes[place + 1 :]), value.dtype)


@rule("narrow")
def narrow(w: Writer, input: Value, dim: int, start: Any, length: Any) -> Value:
    if isinstance(start, int) and isinstance(length, int):
        return take_slice(w, input, positive(dim, input.rank), SliceOf(start, start + length, None))
    raise Untranslatable("narrow by numbers that follow from the input")


@rule("slice")
def slice_of(w: Writer, input: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    stop = None if isinstance(end, int) and end >= 2**62 else end
    return take_slice(w, input, positive(dim, input.rank), SliceOf(start, stop, step))


def _take(w: Writer, input: Value, entries: list[Any]) -> Value:
    """Item access with tensors."""
    tensors = [(place, entry) for place, entry in enumerate(entries) if isinstance(entry, Value | list)]
    if any(isinstance(entry, Value) and entry.dtype == torch.bool for _, entry in tensors):
        raise Untranslatable("a boolean mask as index: how many numbers it takes depends on their values")
    if len(tensors) == 1:
        place, entry = tensors[0]
        if entries[:place] and any(item is None or item is Ellipsis for item in entries[:place]):
            raise Untranslatable("an index of tensors behind None or ...")
        value = index_select(w, input, place, entry)
        after = entries[place + 1 :]
        if after:
            rank = 1 if isinstance(entry, list) else entry.rank
            value = getitem(w, value, (*[SliceOf(None, None, None)] * (place + rank), *after))
        before = entries[:place]
        return getitem(w, value, tuple(before)) if before else value
    if len(tensors) == 2 and tensors[0][0] == 0 and _is_row_numbers(tensors[0][1]) and isinstance(tensors[1][1], Value):
        # x[arange(batch), index]: of each row its own step.
        place, index = tensors[1]
        assert isinstance(index, Value)
        if index.axes == (BATCH,) and input.axes[0] == BATCH:
            steps = w.cast(index, torch.int64)
            taken = w.take_step(input, place, _from_front(w, steps, input, place))
            rest = [entry for number, entry in enumerate(entries) if number not in (0, place)]
            return getitem(w, taken, (SliceOf(None, None, None), *rest)) if rest else taken
    raise Untranslatable("an index of several tensors")


def _from_front(w: Writer, index: Value, value: Value, place: int) -> str:
    """Indices below zero count from the padded end in GatherND; torch counts from the row's own."""
    name = w.name(index)
    axis = value.axes[place]
    ends = axis.lengths if isinstance(axis, Time) else w.graph.constant([axis])  # type: ignore[list-item]
    below = w.graph.add("Less", name, w.graph.constant(0))
    return w.graph.add("Where", below, w.graph.add("Add", name, ends), name)


def _is_row_numbers(entry: Any) -> bool:
    return isinstance(entry, Value) and entry.is_order


@rule("index_select")
def index_select(w: Writer, input: Value, dim: int, index: Any) -> Value:
    place = positive(dim, input.rank)
    axis = input.axes[place]
    if _is_row_numbers(index) and axis == BATCH:
        return input
    if isinstance(index, list):
        index = w.constant(np.array(index))
    if isinstance(axis, Time) and index.constant is not None:
        numbers = index.constant.tolist() if index.constant.dim() == 1 else None
        if numbers is not None and all(number < 0 for number in numbers):
            steps = w.graph.add("Add", w.unsqueeze(axis.lengths, [1]), w.graph.constant(numbers))
            return w.take_steps(input, place, steps, len(numbers))
        if numbers is None or any(number < 0 for number in numbers):
            raise Untranslatable("steps counted from the front and from the end in one index")
    elif not isinstance(axis, int):
        raise Untranslatable(f"an index into the {axis} axis")
    if BATCH in input.axes and BATCH in index.axes:
        raise Untranslatable("an index that differs from row to row")
    name = w.graph.add("Gather", w.name(input), w.name(w.cast(index, torch.int64)), axis=place)
    return Value(name, (*input.axes[:place], *index.axes, *input.axes[place + 1 :]), input.dtype)


@rule("gather", "take_along_dim")
def gather(w: Writer, input: Value, dim: int, index: Value, *, sparse_grad: bool = False) -> Value:
    place = positive(dim, input.rank)
    for number, (axis, taken) in enumerate(zip(input.axes, index.axes, strict=True)):
        if number != place and axis != taken:
            raise Untranslatable("gather of fewer rows or features than there are")
    name = w.graph.add("GatherElements", w.name(input), w.name(w.cast(index, torch.int64)), axis=place)
    return Value(name, index.axes, input.dtype)


@rule("__setitem__")
def setitem(w: Writer, input: Value, index: Any, value: Any) -> Value:
    """Along fixed axes, and of the time axis all steps or none."""
    entries = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [entry for entry in entries if entry is Ellipsis]:
        place = next(number for number, entry in enumerate(entries) if entry is Ellipsis)
        entries[place : place + 1] = [SliceOf(None, None, None)] * (input.rank - len(entries) + 1)
    entries += [SliceOf(None, None, None)] * (input.rank - len(entries))
    if any(not isinstance(entry, int | SliceOf) for entry in entries):
        raise Untranslatable("a tensor or None as the index of an assignment")
    chosen = None
    for place, entry in enumerate(entries):
        axis = input.axes[place]
        if isinstance(entry, SliceOf) and entry.start in (None, 0) and entry.stop is None and entry.step in (None, 1):
            continue
        if not isinstance(axis, int):
            raise Untranslatable(f"an assignment to a part of the {axis} axis")
        numbers = np.zeros(axis, bool)
        numbers[entry if isinstance(entry, int) else slice(entry.start, entry.stop, entry.step)] = True
        mask = numbers.reshape(-1, *[1] * (input.rank - 1 - place))
        chosen = mask if chosen is None else chosen & mask
    dtype = w.result_dtype()
    assigned = w.operand(value, dtype)
    for place, entry in enumerate(entries):
        if isinstance(entry, int) and assigned.rank >= input.rank - place and place >= input.rank - assigned.rank - 1:
            assigned = unsqueeze(w, assigned, assigned.rank - (input.rank - 1 - place))
        elif isinstance(entry, SliceOf) and chosen is not None and assigned.rank >= input.rank - place:
            own = assigned.axes[assigned.rank - (input.rank - place)]
            axis = input.axes[place]
            if own not in (1, axis):
                raise Untranslatable("an assignment of several entries to a part of an axis")
    if chosen is None:
        raise Untranslatable("an assignment to a whole tensor")
    names = (w.graph.constant(chosen), w.small(assigned), w.name(w.cast(input, dtype)))
    return Value(w.graph.add("Where", *names), input.axes, dtype)


@rule("one_hot")
def one_hot(w: Writer, tensor: Value, num_classes: int = -1) -> Value:
    if num_classes < 0:
        raise Untranslatable("one_hot without num_classes: how many there are depends on the values")
    classes = w.graph.constant(np.arange(num_classes))
    equal = w.graph.add("Equal", w.unsqueeze(w.name(tensor), [tensor.rank]), classes)
    return Value(w.graph.add("Cast", equal, to=7), (*tensor.axes, num_classes), torch.int64)


# ------------------------------------------------------------------------------------------------ lengths and row order


@rule("sort")
def sort(w: Writer, input: Value, dim: int = -1, descending: bool = False, stable: bool = False) -> tuple[Value, ...]:
    """Of the lengths: in a batch of rows that are alone, each as long as itself, their order stays."""
    if input.axes == (BATCH,) and input.dtype == torch.int64:
        return input, Value("", (BATCH,), torch.int64, is_order=True)
    return _top(w, input, dim, None, descending)


@rule("argsort")
def argsort(w: Writer, input: Value, dim: int = -1, descending: bool = False, stable: bool = False) -> Value:
    return sort(w, input, dim, descending)[1]


@rule("topk")
def topk(w: Writer, input: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Value, ...]:
    return _top(w, input, dim, k, largest)


def _top(w: Writer, input: Value, dim: int, count: int | None, largest: bool) -> tuple[Value, Value]:
    place = positive(dim, input.rank)
    axis = input.axes[place]
    if isinstance(axis, Time) and count is not None:
        # Steps behind a row's end are never among the first; a row shorter than `count` fails in torch too.
        input = w.masked(w.cast(input, torch.float32), place, -math.inf if largest else math.inf)
        size = count
    elif isinstance(axis, int):
        size = axis if count is None else count
    else:
        raise Untranslatable(f"sorting along the {axis} axis")
    number = w.graph.constant([size])
    names = w.graph.add_many("TopK", w.name(input), number, num_outputs=2, axis=place, largest=int(largest), sorted=1)
    axes = (*input.axes[:place], size, *input.axes[place + 1 :])
    return Value(names[0], axes, input.dtype), Value(names[1], axes, torch.int64)


@rule("scatter_", "scatter")
def scatter(w: Writer, input: Value, dim: int, index: Value, src: Any) -> Value:
    if index.is_order:
        return Value("", (BATCH,), torch.int64, is_order=True)
    raise Untranslatable("scatter")


@rule("empty_like")
def empty_like(w: Writer, input: Value, **kwargs: Any) -> Value:
    return w.filled(0.0, input.axes, w.result_dtype())


__all__ = ["Steps"]
