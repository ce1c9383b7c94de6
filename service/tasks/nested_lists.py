"""One row of JSON values, as nested lists → a tensor of one row. Strict in types. Pure."""

from __future__ import annotations

import numpy as np

from service.errors import InvalidInput
from service.runtime.tensor_data import VALUES_AT_ONCE
from service.runtime.tensors import Array, TensorSpec, is_all_finite, refuse_nonfinite


def parse_row(values: object, spec: TensorSpec, *, instance: int | None = None) -> Array:
    """One row of JSON values (nested lists without the batch axis, or a number) as an array of shape (1, ...).

    Strict in types: FP wants numbers, INT whole numbers within range, BOOL true or false, BYTES strings. Raises
    InvalidInput for other types, ragged lists, another number of axes and values beyond the datatype (1e39 in FP32).
    """
    name, expected = spec.name, str(spec)
    try:
        array = _to_array(values, spec.datatype)
    except OverflowError as exc:
        message = f'tensor "{name}": a number is too large for {spec.datatype}'
        raise InvalidInput(message, reason="nonfinite", instance=instance, where=name, expected=expected) from exc
    except ValueError as exc:
        message = f'tensor "{name}": the nested lists have different lengths; expected {expected}'
        raise InvalidInput(message, instance=instance, where=name, expected=expected) from exc
    if array.ndim != len(spec.shape) - 1:
        message = f'tensor "{name}": expected {len(spec.shape) - 1} axes in one row of {expected}, got {array.ndim}'
        if not array.size and spec.time_axis is not None:
            message = f'tensor "{name}": the row is empty; expected at least one step of {expected}'
        raise InvalidInput(message, instance=instance, where=name, found=list(array.shape), expected=expected)
    if array.size and not _fits(array, spec):
        message = f'tensor "{name}": expected values of {spec.datatype}, got {_describe(array)}'
        raise InvalidInput(message, reason="dtype", instance=instance, where=name, expected=expected)
    with np.errstate(over="ignore"):
        row = array.astype(spec.dtype)[np.newaxis]
    if spec.dtype.kind == "f" and not is_all_finite(row):
        raise refuse_nonfinite(row, spec, instance=instance)
    return row


def _to_array(values: object, datatype: str) -> Array:
    """numpy's array of nested lists, a part of a long one at a time. Raises ValueError and OverflowError as numpy does."""
    dtype = object if datatype == "BYTES" else None
    if not isinstance(values, list) or not values:
        return np.array(values, dtype)
    step = max(1, VALUES_AT_ONCE // max(1, len(values[0]) if isinstance(values[0], list) else 1))
    if len(values) <= step:
        return np.array(values, dtype)
    return np.concatenate([np.array(values[start : start + step], dtype) for start in range(0, len(values), step)])


def _fits(array: Array, spec: TensorSpec) -> bool:
    kind = array.dtype.kind
    match spec.dtype.kind:
        case "f":
            return kind in "iuf"
        case "i" | "u":
            limits = np.iinfo(spec.dtype)
            return kind in "iu" and int(array.min()) >= limits.min and int(array.max()) <= limits.max
        case "b":
            return kind == "b"
        case _:
            return all(isinstance(value, str | bytes) for value in array.flat)


def _describe(array: Array) -> str:
    if array.dtype.kind == "O":
        return "mixed types, null or a number too large"
    return {"U": "strings", "b": "true or false", "f": "numbers with a fraction"}.get(array.dtype.kind, str(array.dtype))
