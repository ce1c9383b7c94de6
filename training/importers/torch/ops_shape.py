"""Rules of the functions that move numbers without changing them: views, transposes, joins, cuts, repeats."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from training.importers.torch.axes import BATCH, Axes, Axis, Batch, MergedAxis, Plain, Time, Value
from training.importers.torch.errors import Untranslatable
from training.importers.torch.program import Dims, Steps, TurnNumber, VaryingNumber
from training.importers.torch.recording import SliceOf
from training.importers.torch.rules import rule
from training.importers.torch.writer import Writer, positive

# ------------------------------------------------------------------------------------------------------------- views


def reshape_to(w: Writer, value: Value, sizes: Sequence[Dims]) -> Value:
    """`value` viewed as axes of these sizes in the three recordings."""
    axes = _regroup(w, value, sizes)
    if axes == value.axes:
        return value
    if value.fill is not None:
        return w.filled(value.fill, axes, value.dtype)
    open_axes = [index for index, axis in enumerate(axes) if not isinstance(axis, int)]
    name = w.name(value)
    if len(open_axes) <= 1 or (len(open_axes) == 2 and axes[0] is BATCH and value.axes[0] is BATCH):
        # 0 copies the batch, -1 is what is left.
        shape = [0 if index == 0 and value.axes[:1] == axes[:1] else -1 for index in range(len(axes))]
        target = [axis if isinstance(axis, int) else shape[index] for index, axis in enumerate(axes)]
        reshaped = w.graph.add("Reshape", name, w.graph.constant(np.array(target, np.int64)))
    else:
        reshaped = w.graph.add("Reshape", name, w.shape(axes))
    return Value(reshaped, axes, value.dtype, is_clean=value.is_clean)


def _regroup(w: Writer, value: Value, sizes: Sequence[Dims]) -> Axes:
    """Which axis each of `sizes` is, if the axes of `value` are read in order."""
    found: list[Axis] = []
    parts: list[Plain] = []
    for axis in value.axes:
        parts += axis.axes if isinstance(axis, MergedAxis) else [axis]
    queue = [(axis, _dims_of(w, axis)) for axis in parts]
    for wanted in sizes:
        if set(wanted) == {1} and not (queue and set(queue[0][1]) == {1}):
            found.append(1)
            continue
        taken: list[Plain] = []
        size = (1,) * len(wanted)
        while size != wanted:
            if not queue:
                raise _frozen(value)
            axis, dims = queue.pop(0)
            grown = tuple(one * other for one, other in zip(size, dims, strict=True))
            if isinstance(axis, int) and any(a > b for a, b in zip(grown, wanted, strict=True)):
                # A part of a fixed axis: 12 as 3 of 4.
                share = {b // a for a, b in zip(size, wanted, strict=True)}
                number = share.pop()
                if share or not number or axis % number:
                    raise _frozen(value)
                queue.insert(0, (axis // number, (axis // number,) * len(wanted)))
                axis, grown = number, tuple(a * number for a in size)
            taken.append(axis)
            size = grown
        named = [axis for axis in taken if not isinstance(axis, int)]
        if not named:
            found.append(wanted[0])
        elif len(taken) == 1 or (all(axis == 1 for axis in taken if isinstance(axis, int)) and len(named) == 1):
            found.append(named[0])
        else:
            found.append(MergedAxis(tuple(part for part in taken if part != 1)))
    if any(axis != 1 for axis, _ in queue):
        raise _frozen(value)
    return tuple(found)


def _dims_of(w: Writer, axis: Axis) -> Dims:
    if isinstance(axis, Batch):
        return w.batch
    if isinstance(axis, Time):
        return axis.steps
    assert isinstance(axis, int)
    return (axis,) * len(w.batch)


def _frozen(value: Value) -> Untranslatable:
    return Untranslatable(f"a view that mixes the axes of {value}")


@rule("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "_unsafe_view", "ravel")
def reshape(w: Writer, input: Value, *args: Any, **kwargs: Any) -> Value:
    """The sizes are those of the recorded result, whatever arguments they were given by."""
    if any(isinstance(arg, torch.dtype) for arg in args):
        raise Untranslatable("a view as another type")
    return reshape_to(w, input, w.result_dims())


@rule("squeeze", "squeeze_")
def squeeze(w: Writer, input: Value, dim: Any = None) -> Value:
    dims = range(input.rank) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = [positive(place, input.rank) for place in dims]
    gone = [place for place in gone if input.axes[place] == 1]
    axes = tuple(axis for place, axis in enumerate(input.axes) if place not in gone)
    if not gone:
        return input
    if input.constant is not None:
        return w.constant(input.constant.squeeze(tuple(gone)))
    if input.fill is not None:
        return w.filled(input.fill, axes, input.dtype)
    return Value(w.squeeze(input.name, gone), axes, input.dtype, is_clean=input.is_clean)


@rule("unsqueeze", "unsqueeze_")
def unsqueeze(w: Writer, input: Value, dim: int) -> Value:
    place = positive(dim, input.rank + 1)
    axes = (*input.axes[:place], 1, *input.axes[place:])
    if input.constant is not None:
        return w.constant(input.constant.unsqueeze(place))
    if input.fill is not None:
        return w.filled(input.fill, axes, input.dtype)
    return Value(w.unsqueeze(input.name, [place]), axes, input.dtype, is_clean=input.is_clean)


@rule("transpose", "swapaxes", "swapdims", "transpose_")
def transpose(w: Writer, input: Value, dim0: int, dim1: int) -> Value:
    order = list(range(input.rank))
    one, other = positive(dim0, input.rank), positive(dim1, input.rank)
    order[one], order[other] = order[other], order[one]
    return w.transpose(input, order)


@rule("permute")
def permute(w: Writer, input: Value, *order: Any, dims: Any = ()) -> Value:
    order = order or (dims,)
    if len(order) == 1 and isinstance(order[0], list | tuple):
        order = tuple(order[0])
    return w.transpose(input, [positive(int(dim), input.rank) for dim in order])


@rule("movedim", "moveaxis")
def movedim(w: Writer, input: Value, source: Any, destination: Any) -> Value:
    sources = [source] if isinstance(source, int) else list(source)
    targets = [destination] if isinstance(destination, int) else list(destination)
    sources = [positive(dim, input.rank) for dim in sources]
    targets = [positive(dim, input.rank) for dim in targets]
    order = [dim for dim in range(input.rank) if dim not in sources]
    for target, dim in sorted(zip(targets, sources, strict=True)):
        order.insert(target, dim)
    return w.transpose(input, order)


@rule("t", "T", "mT", "adjoint", "t_")
def transpose_last(w: Writer, input: Value) -> Value:
    if input.rank < 2:
        return input
    if input.rank > 2 and w.node is not None and w.node.function == "T":
        return w.transpose(input, list(range(input.rank))[::-1])
    return transpose(w, input, -1, -2)


# ------------------------------------------------------------------------------------------------------ joins and cuts


@rule("cat", "concat", "concatenate")
def cat(w: Writer, tensors: Any, dim: int = 0) -> Value:
    dtype = w.result_dtype()
    if isinstance(tensors, Steps):
        return _joined_steps(w, tensors, dim, is_stack=False)
    parts = [w.cast(part, dtype) for part in tensors if not (isinstance(part, Value) and part.axes == (0,))]
    if len(parts) == 1:
        return parts[0]
    place = positive(dim, parts[0].rank)
    joined = [part.axes[place] for part in parts]
    rest = {part.axes[:place] + part.axes[place + 1 :] for part in parts}
    if len(rest) > 1:
        raise Untranslatable("cat of tensors whose time axes differ in each row")
    if all(isinstance(axis, int) for axis in joined):
        name = w.graph.add("Concat", *(w.name(part) for part in parts), axis=place)
        axes = (*parts[0].axes[:place], sum(joined), *parts[0].axes[place + 1 :])  # type: ignore[arg-type]
        return Value(name, axes, dtype, is_clean=all(part.is_clean for part in parts))
    result = parts[0]
    for part in parts[1:]:
        result = _append(w, result, part, place)
    return result


def _append(w: Writer, one: Value, other: Value, place: int) -> Value:
    """Two tensors one behind the other along an axis that is time in one or both."""
    first, second = one.axes[place], other.axes[place]
    graph = w.graph
    if isinstance(first, int) and isinstance(second, Time):
        name = graph.add("Concat", w.name(one), w.name(other), axis=place)
        lengths = w.linear(second.lengths, 1, first)
        time = Time(lengths, tuple(first + steps for steps in second.steps))
        w.add_time(time, name, place)
        return Value(name, (*one.axes[:place], time, *one.axes[place + 1 :]), one.dtype)
    if not isinstance(first, Time) or not isinstance(second, Time | int):
        raise Untranslatable("cat along the batch")
    # Steps behind the first's end are taken from where the second begins.
    name = graph.add("Concat", w.name(one), w.name(other), axis=place)
    padded = w.num_steps(first)
    ends = w.unsqueeze(first.lengths, [1])
    if isinstance(second, Time):
        lengths = graph.add("Add", first.lengths, second.lengths)
        total = graph.add("Add", padded, w.num_steps(second))
        steps_of = tuple(a + b for a, b in zip(first.steps, second.steps, strict=True))
    else:
        lengths = w.linear(first.lengths, 1, second)
        total = graph.add("Add", padded, graph.constant([second]))
        steps_of = tuple(a + second for a in first.steps)
    steps = w.steps_range(total)
    moved = graph.add("Add", steps, graph.add("Sub", padded, ends))
    moved = graph.add("Min", moved, graph.add("Sub", total, graph.constant([1])))
    index = graph.add("Where", graph.add("Less", steps, ends), steps, moved)
    time = Time(lengths, steps_of)
    return w.take_steps(Value(name, one.axes, one.dtype), place, index, time)


def _joined_steps(w: Writer, steps: Steps, dim: int, *, is_stack: bool) -> Value:
    """A stack or concatenation of one tensor for every step."""
    source = steps.source
    assert isinstance(source, Value), source  # the translator puts the tensor of all steps here, time first
    place = positive(dim, source.rank - (0 if is_stack else 1))
    if is_stack:
        value = w.transpose(source, [*range(1, place + 1), 0, *range(place + 1, source.rank)])
    else:
        if source.axes[place + 1] != 1:
            raise Untranslatable("cat of steps along an axis that is longer than 1")
        removed = squeeze(w, source, place + 1)
        value = w.transpose(removed, [*range(1, place + 1), 0, *range(place + 1, removed.rank)])
    if steps.is_reversed:
        value = flip_time(w, value, place)
    for extra in (*reversed(steps.before), *steps.after):
        entry = unsqueeze(w, extra, place) if is_stack else extra
        value = _append(w, entry, value, place) if extra in steps.before else _append(w, value, entry, place)
    return value


@rule("stack")
def stack(w: Writer, tensors: Any, dim: int = 0) -> Value:
    if isinstance(tensors, Steps):
        return _joined_steps(w, tensors, dim, is_stack=True)
    place = positive(dim, tensors[0].rank + 1)
    return cat(w, [unsqueeze(w, part, place) for part in tensors], place)


@rule("hstack")
def hstack(w: Writer, tensors: Any) -> Value:
    return cat(w, tensors, 0 if tensors[0].rank == 1 else 1)


def cut(w: Writer, input: Value, place: int, start: int, stop: int, step: int = 1) -> Value:
    """Steps `start` to `stop` of a fixed axis."""
    size = len(range(start, stop, step))
    axes = (*input.axes[:place], size, *input.axes[place + 1 :])
    if axes == input.axes:
        return input
    if input.constant is not None:
        index = [slice(None)] * input.rank
        index[place] = slice(start, stop, step)
        return w.constant(input.constant[tuple(index)])
    if input.fill is not None:
        return w.filled(input.fill, axes, input.dtype)
    name = w.graph.add("Slice", input.name, *(w.graph.constant([n]) for n in (start, stop, place, step)))
    return Value(name, axes, input.dtype, is_clean=input.is_clean)


@rule("chunk")
def chunk(w: Writer, input: Value, chunks: int, dim: int = 0) -> tuple[Value, ...]:
    place = positive(dim, input.rank)
    axis = input.axes[place]
    if not isinstance(axis, int):
        return _unbound(w, input, place, keeps=True)
    return split(w, input, -(-axis // chunks), place)


@rule("split", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk")
def split(w: Writer, tensor: Value, split_size_or_sections: Any, dim: int = 0) -> tuple[Value, ...]:
    place = positive(dim, tensor.rank)
    axis = tensor.axes[place]
    if not isinstance(axis, int):
        if split_size_or_sections == 1:
            return _unbound(w, tensor, place, keeps=True)
        raise Untranslatable(f"a split of the {axis} axis")
    if isinstance(split_size_or_sections, int):
        size = split_size_or_sections
        sizes = [min(size, axis - start) for start in range(0, axis, size)]
    else:
        sizes = list(split_size_or_sections)
    bounds = np.cumsum([0, *sizes]).tolist()
    return tuple(cut(w, tensor, place, start, stop) for start, stop in itertools.pairwise(bounds))


@rule("unbind")
def unbind(w: Writer, input: Value, dim: int = 0) -> tuple[Value, ...]:
    place = positive(dim, input.rank)
    axis = input.axes[place]
    if not isinstance(axis, int):
        return _unbound(w, input, place, keeps=False)
    return tuple(squeeze(w, cut(w, input, place, index, index + 1), place) for index in range(axis))


def _unbound(w: Writer, input: Value, place: int, *, keeps: bool) -> tuple[Value, ...]:
    """A list of the steps: the translator reads it as the tensor of all steps, time first."""
    if not isinstance(input.axes[place], Time):
        raise Untranslatable(f"a list of the {input.axes[place]} axis: a row's answer would depend on the others")
    moved = w.transpose(input, [place, *(index for index in range(input.rank) if index != place)])
    return (unsqueeze(w, moved, place + 1) if keeps else moved,)


# ----------------------------------------------------------------------------------------------------------- repeats


def expand_to(w: Writer, value: Value, axes: Axes) -> Value:
    """`value` repeated along its axes of 1."""
    if value.axes == axes:
        return value
    if value.fill is not None:
        return w.filled(value.fill, axes, value.dtype)
    return Value(w.graph.add("Expand", w.name(value), w.shape(axes)), axes, value.dtype)


@rule("expand", "expand_as", "broadcast_to")
def expand(w: Writer, input: Value, *args: Any, **kwargs: Any) -> Value:
    known = (1,) * (len(w.result_dims()) - input.rank) + input.axes
    axes = tuple(w.axis_of(dims) if axis == 1 else axis for dims, axis in zip(w.result_dims(), known, strict=True))
    return expand_to(w, input, axes)


@rule("repeat", "tile")
def repeat(w: Writer, input: Value, *sizes: Any, repeats: Any = (), dims: Any = ()) -> Value:
    sizes = sizes or (repeats or dims,)
    counts = list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else list(sizes)
    counts = [1] * (input.rank - len(counts)) + counts
    known = (1,) * (len(counts) - input.rank) + input.axes
    axes = tuple(
        axis if count == 1 else w.axis_of(dims) for axis, count, dims in zip(known, counts, w.result_dims(), strict=True)
    )
    if all(count == 1 or axis == 1 for axis, count in zip(known, counts, strict=True)):
        lifted = input
        for _ in range(len(counts) - input.rank):
            lifted = unsqueeze(w, lifted, 0)
        return expand_to(w, lifted, axes)
    if any(not isinstance(count, int) for count in counts) or any(
        not isinstance(axis, int) for axis, count in zip(known, counts, strict=True) if count != 1
    ):
        raise Untranslatable("repeat of an axis whose size follows from the input")
    name = w.unsqueeze(w.name(input), list(range(len(counts) - input.rank)))
    return Value(w.graph.add("Tile", name, w.graph.constant(np.array(counts, np.int64))), axes, input.dtype)


@rule("repeat_interleave")
def repeat_interleave(w: Writer, input: Value, repeats: Any, dim: int | None = None) -> Value:
    if dim is None or isinstance(repeats, Value):
        raise Untranslatable("repeat_interleave without an axis, or with a tensor of counts")
    place = positive(dim, input.rank)
    axis = input.axes[place]
    if isinstance(axis, Time) and isinstance(repeats, int):
        count = w.graph.add("Mul", w.num_steps(axis), w.graph.constant([repeats]))
        index = w.graph.add("Div", w.steps_range(count), w.graph.constant(repeats))
        name = w.graph.add("Gather", w.name(input), index, axis=place)
        time = Time(w.linear(axis.lengths, repeats, 0), tuple(repeats * steps for steps in axis.steps))
        w.add_time(time, name, place)
        return Value(name, (*input.axes[:place], time, *input.axes[place + 1 :]), input.dtype)
    to = w.axis_of(w.result_dims()[place])
    if axis == 1:
        return expand_to(w, input, (*input.axes[:place], to, *input.axes[place + 1 :]))
    if not isinstance(axis, int) or not isinstance(repeats, int):
        raise Untranslatable("repeat_interleave of an axis whose size follows from the input")
    index = w.graph.constant(np.repeat(np.arange(axis), repeats))
    name = w.graph.add("Gather", w.name(input), index, axis=place)
    return Value(name, (*input.axes[:place], axis * repeats, *input.axes[place + 1 :]), input.dtype)


# -------------------------------------------------------------------------------------------------------------- flips


def flip_time(w: Writer, value: Value, place: int) -> Value:
    """Each row reversed within its own length along axis `place`."""
    time = value.axes[place]
    if isinstance(time, int):
        starts = [w.graph.constant([number]) for number in (-1, -(2**63), place, -1)]
        return Value(w.graph.add("Slice", w.name(value), *starts), value.axes, value.dtype)
    if not isinstance(time, Time) or BATCH not in value.axes:
        raise Untranslatable(f"flip of the {time} axis")
    rows = value.axes.index(BATCH)
    rest = [index for index in range(value.rank) if index not in (rows, place)]
    order = [rows, place, *rest]
    ordered = w.transpose(value, order)
    name = w.graph.add("ReverseSequence", w.name(ordered), time.lengths, batch_axis=0, time_axis=1)
    return w.transpose(ordered.named(name, is_clean=value.is_clean), [order.index(index) for index in range(value.rank)])


@rule("flip")
def flip(w: Writer, input: Value, *places: Any, dims: Any = ()) -> Value:
    places = places or (dims,)
    if len(places) == 1 and isinstance(places[0], list | tuple):
        places = tuple(places[0])
    for place in places:
        input = flip_time(w, input, positive(place, input.rank))
    return input


@rule("fliplr")
def fliplr(w: Writer, input: Value) -> Value:
    return flip_time(w, input, 1)


# --------------------------------------------------------------------------------------------------------- the padding


@rule("pad", "constant_pad_nd")
def pad(w: Writer, input: Value, pad: Any, mode: str = "constant", value: Any = None) -> Value:
    if mode != "constant" or not all(isinstance(number, int) for number in pad):
        raise Untranslatable(f'pad with mode "{mode}"' if mode != "constant" else "pad by a number that follows from the input")
    result = input
    for number, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        place = input.rank - 1 - number
        if before or after:
            result = pad_axis(w, result, place, before, after, float(value or 0.0))
    return result


def pad_axis(w: Writer, input: Value, place: int, before: int, after: int, fill: float) -> Value:
    """`fill` before and behind the steps of one axis; below zero: steps cut off."""
    axis = input.axes[place]
    if isinstance(axis, int):
        pads = [0] * (2 * input.rank)
        pads[place], pads[place + input.rank] = before, after
        number = w.name(w.operand(fill, input.dtype))
        name = w.graph.add("Pad", w.name(input), w.graph.constant(np.array(pads, np.int64)), number)
        return Value(name, (*input.axes[:place], axis + before + after, *input.axes[place + 1 :]), input.dtype)
    if not isinstance(axis, Time) or before < 0:
        raise Untranslatable(f"pad of the {axis} axis")
    # What lies behind a row's end becomes the padding.
    value = w.masked(input, place, fill) if after > 0 else input
    pads = [0] * (2 * input.rank)
    pads[place], pads[place + input.rank] = before, after
    number = w.name(w.operand(fill, input.dtype))
    name = w.graph.add("Pad", w.name(value), w.graph.constant(np.array(pads, np.int64)), number)
    change = before + after
    time = axis if not change else Time(w.linear(axis.lengths, 1, change), tuple(steps + change for steps in axis.steps))
    w.add_time(time, name, place)
    return Value(name, (*input.axes[:place], time, *input.axes[place + 1 :]), input.dtype)


def is_whole(bounds: SliceOf) -> bool:
    """Whether a slice takes everything."""
    return bounds.start in (None, 0) and bounds.stop is None and bounds.step in (None, 1)


__all__ = ["TurnNumber", "VaryingNumber", "cut", "expand_to", "flip_time", "is_whole", "pad_axis", "reshape_to"]
