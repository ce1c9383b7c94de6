"""Rules of the functions that make tensors out of sizes."""

from __future__ import annotations

from typing import Any

import torch

from training.importers.torch.axes import BATCH, Batch, Time, Value
from training.importers.torch.errors import Untranslatable
from training.importers.torch.program import VaryingNumber
from training.importers.torch.rules import rule
from training.importers.torch.writer import Writer


def _filled(w: Writer, number: float) -> Value:
    return w.filled(number, w.result_axes(), w.result_dtype())


@rule("zeros", "zeros_like", "new_zeros", "zero_", "empty", "new_empty")
def zeros(w: Writer, *args: Any, **kwargs: Any) -> Value:
    """Empty ones too: what is read of them before it is written is random, and refused by then."""
    return _filled(w, 0.0)


@rule("ones", "ones_like", "new_ones")
def ones(w: Writer, *args: Any, **kwargs: Any) -> Value:
    return _filled(w, 1.0)


@rule("full", "full_like", "new_full")
def full(w: Writer, size: Any, fill_value: Any, *args: Any, **kwargs: Any) -> Value:
    if not isinstance(fill_value, int | float):
        raise Untranslatable("full with a number that is computed")
    return _filled(w, float(fill_value))


@rule("fill_")
def fill(w: Writer, input: Value, value: Any) -> Value:
    return full(w, None, value)


@rule("arange", "range")
def arange(w: Writer, *args: Any, **kwargs: Any) -> Value:
    (axis,) = w.result_axes()
    numbers = [kwargs.get("start"), kwargs.get("end"), kwargs.get("step")] if "end" in kwargs else list(args)
    start, step = (numbers[0] or 0, 1) if len(numbers) > 1 else (0, 1)
    if len(numbers) > 2 and numbers[2] is not None:
        step = numbers[2]
    if isinstance(start, VaryingNumber) or isinstance(step, VaryingNumber) or step == 0:
        raise Untranslatable("arange from a number that follows from the input")
    dtype = w.result_dtype()
    if isinstance(axis, Batch):
        if start == 0 and step == 1:
            return Value("", (BATCH,), torch.int64, is_order=True)
        raise Untranslatable("arange over the rows of the batch")
    if not isinstance(axis, Time):
        raise Untranslatable("arange to a number that follows from the input")
    value = Value(w.steps_range(w.num_steps(axis)), (axis,), torch.int64)
    scaled = value if step == 1 else w.elementwise("Mul", [value, step], torch.int64, torch.int64)
    moved = scaled if start == 0 else w.elementwise("Add", [scaled, start], torch.int64, torch.int64)
    return w.cast(moved, dtype)


@rule("tensor", "as_tensor", "scalar_tensor", "asarray")
def tensor(w: Writer, data: Any, *args: Any, **kwargs: Any) -> Value:
    if isinstance(data, Value):
        return w.cast(data, w.result_dtype())
    axes = w.result_axes()
    numbers = data if isinstance(data, list | tuple) else [data]
    if axes == (BATCH,) and all(isinstance(number, VaryingNumber) or number == numbers[0] for number in numbers):
        return w.operand(numbers[0], w.result_dtype())
    raise Untranslatable("a tensor made of numbers that follow from the input")


@rule("tril", "triu")
def triangle(w: Writer, input: Value, diagonal: int = 0) -> Value:
    """The part on one side of the diagonal of two last axes of equal size."""
    assert w.node is not None
    rows, columns = input.axes[-2:]
    graph = w.graph
    one = w.unsqueeze(w.steps_range(w.size(rows)), [1])
    other = w.steps_range(w.size(columns))
    shifted = graph.add("Add", one, graph.constant([diagonal]))
    operator = "LessOrEqual" if w.node.function == "tril" else "GreaterOrEqual"
    kept = graph.add(operator, other, shifted)
    if input.dtype == torch.bool:
        return Value(graph.add("And", w.name(input), kept), input.axes, torch.bool)
    zero = w.small(w.filled(0.0, (), input.dtype))
    return Value(graph.add("Where", kept, w.name(input), zero), input.axes, input.dtype)
