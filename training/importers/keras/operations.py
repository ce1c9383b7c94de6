"""Keras's operations on tensors as torch functions: `x[:, -1, :]`, `x + y`, `keras.ops.sum(x, axis=1)`, and Keras 2's.

Keras 3 saves each as an object of a class (GetItem, Add, Sum) with a configuration, Keras 2 as a TFOpLambda with a function's
name. No operation hands a mask on.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

Operation = Callable[..., Tensor]

DTYPES = {"float32": torch.float32, "int32": torch.int64, "int64": torch.int64, "bool": torch.bool, "float": torch.float32}


def _get_item(x: Tensor, key: Any = None, slice_spec: Any = None) -> Tensor:
    found = slice_spec if key is None else key
    index = tuple(found) if isinstance(found, list | tuple) else (found,)
    result: Tensor = x[index]
    return result


def _reduction(function: Callable[..., Any]) -> Operation:
    def apply(x: Tensor, axis: Any = None, keepdims: bool = False, **others: Any) -> Tensor:
        places = list(range(1, x.dim())) if axis is None else list(axis) if isinstance(axis, list | tuple) else [axis]
        if axis is None or 0 in places or -x.dim() in places:
            raise ValueError("over the rows of the batch: an answer would depend on the other rows")
        result: Tensor = function(x, places, keepdims)
        return result

    return apply


def _largest(x: Tensor, places: list[int], keepdims: bool) -> Tensor:
    return reduce(lambda value, place: value.amax(place, keepdim=True), places, x) if keepdims else x.amax(places)


def _smallest(x: Tensor, places: list[int], keepdims: bool) -> Tensor:
    return reduce(lambda value, place: value.amin(place, keepdim=True), places, x) if keepdims else x.amin(places)


def _joined(function: Callable[..., Tensor]) -> Operation:
    def apply(*tensors: Any, axis: Any = -1, values: Any = None, **others: Any) -> Tensor:
        parts = list(values if values is not None else tensors)
        if parts and isinstance(parts[0], list | tuple):
            axis = parts[1] if len(parts) > 1 and isinstance(parts[1], int) else axis
            parts = list(parts[0])
        return function(parts, dim=axis)

    return apply


def _reshape(x: Tensor, newshape: Sequence[int] | None = None, shape: Sequence[int] | None = None) -> Tensor:
    axes = list(newshape if newshape is not None else shape or ())
    return x.reshape(len(x), *axes[1:])


def _transpose(x: Tensor, axes: Any = None, perm: Any = None) -> Tensor:
    order = axes or perm
    return x.permute(*(order if order else range(x.dim())[::-1]))


def _squeeze(x: Tensor, axis: Any = None) -> Tensor:
    if axis is None:
        raise ValueError("squeeze without an axis")
    return x.squeeze(axis[0] if isinstance(axis, list | tuple) else axis)


def _softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, dim=axis)


def _cast(x: Tensor, dtype: Any = "float32") -> Tensor:
    if dtype not in DTYPES:
        raise ValueError(f"cast to {dtype}")
    # Named so that float64 runs of the same network stay in float64.
    return x.to(torch.get_default_dtype() if DTYPES[dtype] == torch.float32 else DTYPES[dtype])


def _where(condition: Tensor, x1: Any = None, x2: Any = None, x: Any = None, y: Any = None) -> Tensor:
    return torch.where(condition, x1 if x1 is not None else x, x2 if x2 is not None else y)


def _binary(function: Callable[[Any, Any], Any]) -> Operation:
    def apply(x: Any = None, y: Any = None, **others: Any) -> Tensor:
        result: Tensor = function(x if x is not None else others.get("a"), y if y is not None else others.get("b"))
        return result

    return apply


def _unary(function: Callable[[Tensor], Tensor]) -> Operation:
    def apply(x: Tensor, *args: Any, **others: Any) -> Tensor:
        return function(x)

    return apply


def _any(x: Tensor, places: list[int], keepdims: bool) -> Tensor:
    return x.any(places[0], keepdim=keepdims)


def _all(x: Tensor, places: list[int], keepdims: bool) -> Tensor:
    return x.all(places[0], keepdim=keepdims)


def _matmul(one: Tensor, other: Tensor) -> Tensor:
    return torch.matmul(one, other)


OPERATIONS: dict[str, Operation] = {
    "get_item": _get_item,
    "add": _binary(operator.add),
    "subtract": _binary(operator.sub),
    "multiply": _binary(operator.mul),
    "divide": _binary(operator.truediv),
    "true_divide": _binary(operator.truediv),
    "power": _binary(operator.pow),
    "maximum": _binary(lambda x, y: torch.maximum(x, y) if isinstance(y, Tensor) else x.clamp(min=y)),
    "minimum": _binary(lambda x, y: torch.minimum(x, y) if isinstance(y, Tensor) else x.clamp(max=y)),
    "matmul": _binary(_matmul),
    "not_equal": _binary(operator.ne),
    "equal": _binary(operator.eq),
    "greater": _binary(operator.gt),
    "greater_equal": _binary(operator.ge),
    "less": _binary(operator.lt),
    "less_equal": _binary(operator.le),
    "logical_and": _binary(torch.logical_and),
    "logical_or": _binary(torch.logical_or),
    "logical_not": _unary(torch.logical_not),
    "negative": _unary(torch.neg),
    "absolute": _unary(torch.abs),
    "abs": _unary(torch.abs),
    "exp": _unary(torch.exp),
    "log": _unary(torch.log),
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "tanh": _unary(torch.tanh),
    "sigmoid": _unary(torch.sigmoid),
    "relu": _unary(torch.relu),
    "softplus": _unary(torch.nn.functional.softplus),
    "silu": _unary(torch.nn.functional.silu),
    "softmax": _softmax,
    "sum": _reduction(lambda x, places, keepdims: x.sum(places, keepdim=keepdims)),
    "mean": _reduction(lambda x, places, keepdims: x.mean(places, keepdim=keepdims)),
    "max": _reduction(_largest),
    "min": _reduction(_smallest),
    "any": _reduction(_any),
    "all": _reduction(_all),
    "expand_dims": lambda x, axis=-1: x.unsqueeze(axis),
    "squeeze": _squeeze,
    "transpose": _transpose,
    "swapaxes": lambda x, axis1=1, axis2=2: x.transpose(axis1, axis2),
    "reshape": _reshape,
    "concatenate": _joined(torch.cat),
    "stack": _joined(torch.stack),
    "where": _where,
    "cast": _cast,
    "convert_to_tensor": _unary(lambda x: x),
    "clip": lambda x, x_min=None, x_max=None: x.clamp(x_min, x_max),
    "zeros_like": _unary(torch.zeros_like),
    "ones_like": _unary(torch.ones_like),
}

# Functions of TensorFlow as Keras 2 names them, without what stands before the last point.
_OF_TENSORFLOW = {
    "getitem": "get_item",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "divide",
    "div": "divide",
    "pow": "power",
    "neg": "negative",
    "ne": "not_equal",
    "eq": "equal",
    "reduce_sum": "sum",
    "reduce_mean": "mean",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_any": "any",
    "reduce_all": "all",
    "concat": "concatenate",
    "clip_by_value": "clip",
}
_ARGUMENTS_OF_TENSORFLOW = {
    "input_tensor": "x",
    "input": "x",
    "tensor": "x",
    "logits": "x",
    "features": "x",
    "clip_value_min": "x_min",
    "clip_value_max": "x_max",
}


def find_operation(class_name: str, config: Mapping[str, Any], snake_name: str) -> tuple[Operation, dict[str, Any]] | None:
    """The torch function of an operation, and the options that its configuration holds; None where it is not known."""
    if class_name in ("TFOpLambda", "SlicingOpLambda"):
        name = str(config.get("function", "")).rpartition(".")[2].strip("_")
        name = _OF_TENSORFLOW.get(name, name)
        return (OPERATIONS[name], {}) if name in OPERATIONS else None
    if snake_name not in OPERATIONS:
        return None
    given = {key: value for key, value in config.items() if key not in ("name", "dtype", "trainable") and value is not None}
    return OPERATIONS[snake_name], given


def in_our_words(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names that the functions here have."""
    return {_ARGUMENTS_OF_TENSORFLOW.get(key, key): value for key, value in kwargs.items() if key != "name" and value is not None}
