"""Writes nodes for tensors whose axes are known: casts, broadcasts, masks of the steps behind a row's end.

Knows no torch function; the rules in `ops_*.py` are written with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.graph.builder import GraphBuilder
from training.importers.torch.axes import BATCH, Axes, Axis, Batch, MergedAxis, Time, Value, canonical
from training.importers.torch.errors import Untranslatable
from training.importers.torch.program import Dims, Node, TurnNumber, VaryingNumber

ONNX_TYPE = {torch.float32: 1, torch.int64: 7, torch.bool: 9}
DATATYPE = {torch.float32: "FP32", torch.int64: "INT64", torch.bool: "BOOL"}


class Writer:
    """A graph that is being written. `node` is the call at hand, with its sizes in every recording."""

    def __init__(self, graph: GraphBuilder, batch: Dims) -> None:
        self.graph = graph
        self.batch = batch
        self.node: Node | None = None
        self.times: dict[str, Time] = {}  # by the name of their lengths
        self._sizes: dict[str, tuple[str, int]] = {}  # of a time: the tensor and the axis that it is padded to
        self._rows = ""
        self._linear: dict[str, tuple[str, int]] = {}  # sums by name: what was added to what

    # ------------------------------------------------------------------------------------------------------ sizes

    def add_rows(self, tensor: str) -> None:
        """`tensor` has the batch as axis 0."""
        self._rows = tensor

    def add_time(self, time: Time, tensor: str, axis: int) -> None:
        """Axis `axis` of `tensor` is `time`."""
        self.times.setdefault(time.lengths, time)
        self._sizes.setdefault(time.lengths, (tensor, axis))

    def num_rows(self) -> str:
        """INT64 (1,)."""
        return self.graph.add("Shape", self._rows, start=0, end=1)

    def num_steps(self, time: Time) -> str:
        """How many steps the longest row has, INT64 (1,)."""
        tensor, axis = self._sizes[time.lengths]
        return self.graph.add("Shape", tensor, start=axis, end=axis + 1)

    def size(self, axis: Axis) -> str:
        """INT64 (1,)."""
        if isinstance(axis, int):
            return self.graph.constant([axis])
        if isinstance(axis, Batch):
            return self.num_rows()
        if isinstance(axis, Time):
            return self.num_steps(axis)
        sizes = [self.size(part) for part in axis.axes]
        product = sizes[0]
        for size in sizes[1:]:
            product = self.graph.add("Mul", product, size)
        return product

    def shape(self, axes: Axes) -> str:
        """INT64 (rank,)."""
        if all(isinstance(axis, int) for axis in axes):
            return self.graph.constant(np.array(axes, np.int64))
        return self.graph.add("Concat", *(self.size(axis) for axis in axes), axis=0)

    def axis_of(self, dims: Dims) -> Axis:
        """What an axis stands for that had these sizes in the recordings."""
        if len(set(dims)) == 1:
            return dims[0]
        if dims == self.batch:
            return BATCH
        for time in self.times.values():
            if dims == time.steps:
                return time
        for time in self.times.values():
            if dims == tuple(rows * steps for rows, steps in zip(self.batch, time.steps, strict=True)):
                return MergedAxis((BATCH, time))
        raise Untranslatable(f"an axis of a size that follows from no input ({', '.join(map(str, dims))} in three runs)")

    def result_axes(self, part: int = 0) -> Axes:
        """What the axes of the call's result stand for, by their sizes."""
        assert self.node is not None
        return tuple(self.axis_of(dims) for dims in self.node.shapes[part])

    def result_dims(self, part: int = 0) -> tuple[Dims, ...]:
        assert self.node is not None
        return self.node.shapes[part]

    def result_dtype(self, part: int = 0) -> torch.dtype:
        assert self.node is not None
        return canonical(self.node.dtypes[part])

    def affine(self, values: Sequence[Any]) -> tuple[int, int, Time] | None:
        """(a, b, time) where the number was a · steps + b in every recording."""
        for time in self.times.values():
            steps = time.steps
            if steps[1] == steps[0] or not all(isinstance(value, int) for value in values):
                continue
            slope, rest = divmod(values[1] - values[0], steps[1] - steps[0])
            offset = values[0] - slope * steps[0]
            if not rest and all(value == slope * step + offset for value, step in zip(values, steps, strict=True)):
                return slope, offset, time
        return None

    def row_number(self, number: VaryingNumber) -> Value:
        """A number that follows from the row's length, INT64 (B,)."""
        found = self.affine(number.values)
        if found is None:
            what = "the number of rows" if number.values[0] == number.values[1] else "the length, not linearly"
            raise Untranslatable(f"a number that depends on {what}")
        slope, offset, time = found
        return Value(self.linear(time.lengths, slope, offset), (BATCH,), torch.int64)

    def linear(self, name: str, slope: int, offset: int) -> str:
        """slope · name + offset of INT64 values."""
        if slope != 1:
            name = self.graph.add("Mul", name, self.graph.constant([slope]))
        # Steps added and taken away again are the same steps: axes are known by the name of their lengths.
        base, before = self._linear.get(name, (name, 0))
        if not before + offset:
            return base
        total = self.graph.add("Add", base, self.graph.constant([before + offset]))
        self._linear[total] = (base, before + offset)
        return total

    # ----------------------------------------------------------------------------------------------------- values

    def constant(self, tensor: Tensor | NDArray[Any] | float) -> Value:
        """A constant of the graph."""
        tensor = torch.as_tensor(tensor).detach().cpu()
        if tensor.is_complex():
            raise Untranslatable("complex numbers")
        dtype = canonical(tensor.dtype)
        return Value("", tuple(tensor.shape), dtype, constant=tensor.to(dtype))

    def filled(self, number: float, axes: Axes, dtype: torch.dtype) -> Value:
        """One number everywhere."""
        return Value("", axes, dtype, fill=number)

    def name(self, value: Value) -> str:
        """The tensor's name, once it is written."""
        if value.name:
            return value.name
        if value.constant is not None:
            return self.graph.constant(value.constant.numpy())
        assert value.fill is not None, value
        scalar = self.graph.constant(np.array(value.fill, _numpy(value.dtype)))
        return self.graph.add("Expand", scalar, self.shape(value.axes)) if value.axes else scalar

    def small(self, value: Value) -> str:
        """The tensor, or where it is filled with one number, that number: enough where it is broadcast."""
        if value.fill is not None and not value.name:
            return self.graph.constant(np.array(value.fill, _numpy(value.dtype)))
        return self.name(value)

    def cast(self, value: Value, dtype: torch.dtype) -> Value:
        """The same numbers in another type."""
        if value.dtype == dtype:
            return value
        if value.constant is not None:
            return self.constant(value.constant.to(dtype))
        if value.fill is not None:
            return self.filled(value.fill, value.axes, dtype)
        return Value(self.graph.add("Cast", value.name, to=ONNX_TYPE[dtype]), value.axes, dtype, is_clean=value.is_clean)

    def operand(self, value: Any, dtype: torch.dtype) -> Value:
        """A tensor or number as a tensor of this type."""
        if isinstance(value, Value):
            return self.cast(value, dtype)
        if isinstance(value, VaryingNumber):
            return self.cast(self.row_number(value), dtype)
        if isinstance(value, TurnNumber):
            raise Untranslatable("arithmetic with the number of the step")
        if isinstance(value, bool | int | float):
            return Value("", (), dtype, constant=torch.tensor(value, dtype=dtype))
        raise Untranslatable(f"{value!r} where a tensor is expected")

    def elementwise(
        self, operator: str | Callable[..., str], values: Sequence[Any], dtype: torch.dtype, to: torch.dtype
    ) -> Value:
        """A node over operands of type `dtype`, broadcast as torch does; its result has type `to`."""
        numbers = [isinstance(value, VaryingNumber) for value in values]
        operands = [self.operand(value, dtype) for value in values]
        is_packed = any(operand.is_packed for operand in operands)
        if is_packed and any(operand.rank > 1 and not operand.is_packed for operand in operands):
            raise Untranslatable("arithmetic with the data of a PackedSequence")
        axes = join([operand.axes for operand, number in zip(operands, numbers, strict=True) if not number])
        names = []
        for operand, number in zip(operands, numbers, strict=True):
            name = self.small(operand)
            if number:
                if BATCH not in axes:
                    raise Untranslatable("a number that depends on the length beside a tensor without rows")
                behind = len(axes) - 1 - axes.index(BATCH)
                name = self.unsqueeze(name, list(range(1, behind + 1)))
            names.append(name)
        written = operator(*names) if callable(operator) else self.graph.add(operator, *names)
        return Value(written, axes, to, is_packed=is_packed)

    def unsqueeze(self, name: str, axes: Sequence[int]) -> str:
        return self.graph.add("Unsqueeze", name, self.graph.constant(list(axes))) if axes else name

    def squeeze(self, name: str, axes: Sequence[int]) -> str:
        return self.graph.add("Squeeze", name, self.graph.constant(list(axes))) if axes else name

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """The axes in another order."""
        if list(order) == list(range(value.rank)):
            return value
        if value.constant is not None:
            return self.constant(value.constant.permute(*order))
        axes = tuple(value.axes[index] for index in order)
        if value.fill is not None:
            return self.filled(value.fill, axes, value.dtype)
        return Value(self.graph.add("Transpose", value.name, perm=list(order)), axes, value.dtype, is_clean=value.is_clean)

    # ------------------------------------------------------------------------------------------------------- time

    def within(self, axes: Axes, axis: int) -> str:
        """BOOL, to be broadcast to `axes`: true where axis `axis` is within the row's own length."""
        time = axes[axis]
        assert isinstance(time, Time)
        if BATCH not in axes:
            raise Untranslatable("a reduction over the time axis of a tensor without rows")
        rows = axes.index(BATCH)
        graph = self.graph
        steps = graph.add(
            "Range", graph.constant(0), graph.add("Squeeze", self.num_steps(time), graph.constant([0])), graph.constant(1)
        )
        # Both get the place of their axis, counted from the last.
        lengths = self.unsqueeze(time.lengths, list(range(1, len(axes) - rows)))
        steps = self.unsqueeze(steps, list(range(1, len(axes) - axis)))
        return graph.add("Less", steps, lengths)

    def masked(self, value: Value, axis: int, fill: float, *, always: bool = False) -> Value:
        """`fill` behind every row's end along `axis`; where it is not a time axis the value itself."""
        if not isinstance(value.axes[axis], Time) or (fill == 0 and value.is_clean and not always):
            return value
        number = self.graph.constant(np.array(fill, _numpy(value.dtype)))
        within = self.within(value.axes, axis)
        name = self.graph.add("Where", within, self.name(value), number)
        return Value(name, value.axes, value.dtype, is_clean=fill == 0 and len(value.times) == 1)

    def count(self, axes: Axes, dtype: torch.dtype) -> Value:
        """How many numbers a row has along `axes`: a constant, or (B,)."""
        constant, counts = 1, []
        for axis in axes:
            if isinstance(axis, int):
                constant *= axis
            elif isinstance(axis, Time):
                counts.append(axis.lengths)
            else:
                raise Untranslatable(f"a reduction over the axis {axis}: a row would depend on the others")
        if not counts:
            return self.operand(constant, dtype)
        product = counts[0]
        for count in counts[1:]:
            product = self.graph.add("Mul", product, count)
        return self.cast(Value(self.linear(product, constant, 0), (BATCH,), torch.int64), dtype)

    def take_step(self, value: Value, axis: int, index: str) -> Value:
        """Of each row the step `index` (INT64, (B,)) of axis `axis`, which goes away."""
        if BATCH not in value.axes:
            raise Untranslatable("a step from the end of a tensor without rows")
        rows = value.axes.index(BATCH)
        rest = [place for place in range(value.rank) if place not in (rows, axis)]
        ordered = self.transpose(value, [rows, axis, *rest])
        column = self.unsqueeze(index, [1])
        taken = self.graph.add("GatherND", self.name(ordered), column, batch_dims=1)  # (B, rest)
        result = Value(taken, (BATCH, *(value.axes[place] for place in rest)), value.dtype)
        remaining = [place for place in range(value.rank) if place != axis]
        return self.transpose(result, [[rows, *rest].index(place) for place in remaining])

    def take_steps(self, value: Value, axis: int, index: str, to: Axis) -> Value:
        """Of each row the steps `index` (INT64, (B, N)) of axis `axis`, which becomes the axis `to`."""
        if BATCH not in value.axes:
            raise Untranslatable("steps from the end of a tensor without rows")
        rows = value.axes.index(BATCH)
        rest = [place for place in range(value.rank) if place not in (rows, axis)]
        order = [rows, axis, *rest]
        ordered = self.transpose(value, order)
        taken = self.graph.add("GatherND", self.name(ordered), self.unsqueeze(index, [2]), batch_dims=1)
        axes = (BATCH, to, *(value.axes[place] for place in rest))
        if isinstance(to, Time):
            self.add_time(to, taken, 1)
        return self.transpose(Value(taken, axes, value.dtype), [order.index(place) for place in range(value.rank)])

    def steps_range(self, count: str) -> str:
        """0, 1, ... below `count` (1,)."""
        graph = self.graph
        return graph.add("Range", graph.constant(0), graph.add("Squeeze", count, graph.constant([0])), graph.constant(1))


def join(shapes: Sequence[Axes]) -> Axes:
    """The axes of tensors that are broadcast together."""
    rank = max((len(axes) for axes in shapes), default=0)
    joined: list[Axis] = []
    for place in range(1, rank + 1):
        found: Axis = 1
        for axes in shapes:
            if place > len(axes) or axes[-place] == 1:
                continue
            if found not in (1, axes[-place]):
                raise Untranslatable(f"the axes {found} and {axes[-place]} in one operation: they differ in each row")
            found = axes[-place]
        joined.insert(0, found)
    return tuple(joined)


def positive(dim: int, rank: int) -> int:
    """The axis counted from the front."""
    return dim + rank if dim < 0 else dim


def _numpy(dtype: torch.dtype) -> Any:
    return {torch.float32: np.float32, torch.int64: np.int64, torch.bool: np.bool_}[dtype]
