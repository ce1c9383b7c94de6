"""Rules of the functions that make one number of many: over the time axis only a row's own steps count."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from training.importers.torch.axes import BATCH, Axes, Time, Value
from training.importers.torch.errors import Untranslatable
from training.importers.torch.ops_elementwise import exp, log, negative, reciprocal, sqrt
from training.importers.torch.rules import rule
from training.importers.torch.writer import Writer, positive

FLOAT = torch.float32


def places_of(value: Value, dim: Any) -> tuple[int, ...]:
    """The axes to reduce; None is all of them."""
    if dim is None or (isinstance(dim, list | tuple) and not dim):
        return tuple(range(value.rank))
    dims = [dim] if isinstance(dim, int) else dim
    return tuple(sorted({positive(place, value.rank) for place in dims}))


def _remaining(value: Value, places: Sequence[int], keepdim: bool) -> Axes:
    kept = [1 if place in places else axis for place, axis in enumerate(value.axes)]
    return tuple(kept) if keepdim else tuple(axis for place, axis in enumerate(kept) if place not in places)


def _check_rows(value: Value, places: Sequence[int]) -> None:
    for place in places:
        axis = value.axes[place]
        if not isinstance(axis, int | Time):
            raise Untranslatable(f"a reduction over the {axis} axis: a row's answer would depend on the others")


def reduce(w: Writer, operator: str, value: Value, places: Sequence[int], fill: float, keepdim: bool) -> Value:
    """One of ONNX's reductions, with `fill` behind every row's end."""
    _check_rows(value, places)
    for place in places:
        value = w.masked(value, place, fill)
    axes = _remaining(value, places, keepdim)
    if operator == "ReduceSum":
        name = w.graph.add("ReduceSum", w.name(value), w.graph.constant(list(places)), keepdims=int(keepdim))
    else:
        name = w.graph.add(operator, w.name(value), axes=list(places), keepdims=int(keepdim))
    return Value(name, axes, value.dtype)


@rule("sum", "nansum")
def total(w: Writer, input: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    value = w.cast(input, w.result_dtype())
    places = places_of(value, dim)
    return reduce(w, "ReduceSum", value, places, 0, keepdim) if places else value


def mean_of(w: Writer, value: Value, places: Sequence[int], keepdim: bool) -> Value:
    """The mean over axes; over time of the row's own steps."""
    if not any(isinstance(value.axes[place], Time) for place in places):
        return reduce(w, "ReduceMean", value, places, 0, keepdim)
    summed = reduce(w, "ReduceSum", value, places, 0, True)
    count = w.count(tuple(value.axes[place] for place in places), FLOAT)
    name = _by_row(w, "Div", summed, count)
    axes = _remaining(value, places, keepdim)
    return Value(name if keepdim else w.squeeze(name, list(places)), axes, FLOAT)


def _by_row(w: Writer, operator: str, value: Value, number: Value) -> str:
    """An operation with one number for each row."""
    name = w.name(number)
    if number.axes == (BATCH,):
        name = w.unsqueeze(name, list(range(1, value.rank - value.axes.index(BATCH))))
    return w.graph.add(operator, w.name(value), name)


@rule("mean", "nanmean")
def mean(w: Writer, input: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    return mean_of(w, w.cast(input, FLOAT), places_of(input, dim), keepdim)


def _variance(w: Writer, value: Value, places: Sequence[int], correction: float, keepdim: bool) -> Value:
    center = mean_of(w, value, places, True)
    apart = w.elementwise("Sub", [value, center], FLOAT, FLOAT)
    squares = w.elementwise("Mul", [apart, apart], FLOAT, FLOAT)
    summed = reduce(w, "ReduceSum", squares, places, 0, True)
    count = w.count(tuple(value.axes[place] for place in places), FLOAT)
    less = w.elementwise("Sub", [count, float(correction)], FLOAT, FLOAT)
    name = _by_row(w, "Div", summed, less)
    return Value(name if keepdim else w.squeeze(name, list(places)), _remaining(value, places, keepdim), FLOAT)


def _correction(dim: Any, unbiased: Any, correction: Any) -> tuple[Any, float]:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if correction is not None:
        return dim, float(correction)
    return dim, 0.0 if unbiased is False else 1.0


@rule("var")
def variance(
    w: Writer, input: Value, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> Value:
    dim, less = _correction(dim, unbiased, correction)
    return _variance(w, input, places_of(input, dim), less, keepdim)


@rule("std")
def deviation(
    w: Writer, input: Value, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> Value:
    dim, less = _correction(dim, unbiased, correction)
    return sqrt(w, _variance(w, input, places_of(input, dim), less, keepdim))


def _extreme(operator: str, fill: float) -> Callable[..., Any]:
    def write(w: Writer, input: Value, dim: Any = None, keepdim: bool = False) -> Any:
        if isinstance(dim, Value):
            dtype = w.result_dtype()
            return w.elementwise("Max" if operator == "ReduceMax" else "Min", [input, dim], dtype, dtype)
        value = _numbers(w, input)
        places = places_of(value, dim)
        best = w.cast(reduce(w, operator, value, places, fill, keepdim), input.dtype)
        assert w.node is not None
        if len(w.node.shapes) == 1:
            return best
        which = _arg(w, "ArgMax" if operator == "ReduceMax" else "ArgMin", value, places[0], fill, keepdim)
        return best, which

    return write


def _numbers(w: Writer, value: Value) -> Value:
    # Infinity stands behind the rows' ends: there is none among whole numbers.
    return w.cast(value, FLOAT)


def _arg(w: Writer, operator: str, value: Value, place: int, fill: float, keepdim: bool) -> Value:
    _check_rows(value, [place])
    name = w.graph.add(operator, w.name(w.masked(value, place, fill)), axis=place, keepdims=int(keepdim))
    return Value(name, _remaining(value, [place], keepdim), torch.int64)


maximum_of = rule("max", "amax")(_extreme("ReduceMax", -math.inf))
minimum_of = rule("min", "amin")(_extreme("ReduceMin", math.inf))


@rule("argmax")
def argmax(w: Writer, input: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    if dim is None:
        raise Untranslatable("argmax over all axes")
    return _arg(w, "ArgMax", _numbers(w, input), positive(dim, input.rank), -math.inf, keepdim)


@rule("argmin")
def argmin(w: Writer, input: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    if dim is None:
        raise Untranslatable("argmin over all axes")
    return _arg(w, "ArgMin", _numbers(w, input), positive(dim, input.rank), math.inf, keepdim)


@rule("prod")
def product(w: Writer, input: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    value = w.cast(input, FLOAT)
    return w.cast(reduce(w, "ReduceProd", value, places_of(value, dim), 1.0, keepdim), w.result_dtype())


@rule("any")
def any_of(w: Writer, input: Value, dim: Any = None, keepdim: bool = False) -> Value:
    value = w.cast(w.cast(input, torch.bool), FLOAT)
    return w.cast(reduce(w, "ReduceMax", value, places_of(value, dim), 0.0, keepdim), torch.bool)


@rule("all")
def all_of(w: Writer, input: Value, dim: Any = None, keepdim: bool = False) -> Value:
    value = w.cast(w.cast(input, torch.bool), FLOAT)
    return w.cast(reduce(w, "ReduceMin", value, places_of(value, dim), 1.0, keepdim), torch.bool)


@rule("count_nonzero")
def count_nonzero(w: Writer, input: Value, dim: Any = None) -> Value:
    value = w.cast(w.cast(input, torch.bool), torch.int64)
    return reduce(w, "ReduceSum", value, places_of(value, dim), 0, False)


@rule("logsumexp")
def logsumexp(w: Writer, input: Value, dim: Any, keepdim: bool = False) -> Value:
    places = places_of(input, dim)
    largest = reduce(w, "ReduceMax", input, places, -math.inf, True)
    shifted = exp(w, w.elementwise("Sub", [input, largest], FLOAT, FLOAT))
    summed = log(w, reduce(w, "ReduceSum", shifted, places, 0, True))
    result = w.elementwise("Add", [summed, largest], FLOAT, FLOAT)
    return result if keepdim else Value(w.squeeze(result.name, list(places)), _remaining(input, places, False), FLOAT)


@rule("norm", "linalg_norm", "linalg_vector_norm", "vector_norm")
def norm(w: Writer, input: Value, *args: Any, **kwargs: Any) -> Value:
    options = dict(zip(("p", "dim", "keepdim"), args, strict=False)) | kwargs
    order = options.get("p", options.get("ord", 2))
    places, keepdim = places_of(input, options.get("dim")), bool(options.get("keepdim", False))
    if order in (2, 2.0, None, "fro"):
        squares = w.elementwise("Mul", [input, input], FLOAT, FLOAT)
        return sqrt(w, reduce(w, "ReduceSum", squares, places, 0, keepdim))
    if order == 1:
        size = Value(w.graph.add("Abs", w.name(input)), input.axes, FLOAT)
        return reduce(w, "ReduceSum", size, places, 0, keepdim)
    raise Untranslatable(f"the norm of order {order}")


@rule("normalize")
def normalize(w: Writer, input: Value, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Value:
    size = norm(w, input, p, dim, True)
    return w.elementwise("Div", [input, w.elementwise("Max", [size, eps], FLOAT, FLOAT)], FLOAT, FLOAT)


@rule("cosine_similarity")
def cosine_similarity(w: Writer, x1: Value, x2: Value, dim: int = 1, eps: float = 1e-8) -> Value:
    one, other = normalize(w, x1, 2, dim, eps), normalize(w, x2, 2, dim, eps)
    product = w.elementwise("Mul", [one, other], FLOAT, FLOAT)
    return reduce(w, "ReduceSum", product, places_of(product, dim), 0, False)


@rule("cumsum")
def cumsum(w: Writer, input: Value, dim: int, *, dtype: Any = None) -> Value:
    """Each step adds up those before it: what lies behind a row's end is never reached."""
    place = positive(dim, input.rank)
    _check_rows(input, [place])
    value = w.cast(input, w.result_dtype())
    return value.named(w.graph.add("CumSum", w.name(value), w.graph.constant(place)))


@rule("softmax", "_softmax")
def softmax(w: Writer, input: Value, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Value:
    place = _softmax_axis(input, dim)
    value = w.masked(w.cast(input, FLOAT), place, -math.inf)
    is_clean = isinstance(input.axes[place], Time) and len(input.times) == 1
    return Value(w.graph.add("Softmax", w.name(value), axis=place), value.axes, FLOAT, is_clean=is_clean)


@rule("softmin")
def softmin(w: Writer, input: Value, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Value:
    return softmax(w, negative(w, input), dim)


@rule("log_softmax", "_log_softmax")
def log_softmax(w: Writer, input: Value, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Value:
    place = _softmax_axis(input, dim)
    if isinstance(input.axes[place], Time):
        return w.elementwise("Sub", [input, logsumexp(w, input, place, True)], FLOAT, FLOAT)
    return Value(w.graph.add("LogSoftmax", w.name(w.cast(input, FLOAT)), axis=place), input.axes, FLOAT)


def _softmax_axis(value: Value, dim: int | None) -> int:
    # Torch's implicit axis, deprecated and often not the one that was meant.
    place = positive((0 if value.rank in (0, 1, 3) else 1) if dim is None else dim, value.rank)
    _check_rows(value, [place])
    return place


__all__ = ["reciprocal"]
