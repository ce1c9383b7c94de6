"""Tensors as clients send and receive them, nested lists or bytes, ↔ arrays. Pure.

Names, datatypes and the layout of bytes are those of the Open Inference Protocol: row-major, little-endian, without padding;
an element of BYTES is its length as a 32-bit number, and the bytes.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np

from service.errors import InvalidInput, InvalidReason
from service.runtime.tensors import DATATYPES, Array, TensorSpec

MAX_AXES = 32
MAX_SIZE = 2**31
"""Of one axis."""
_LENGTH_BYTES = 4
_NUMBERS = frozenset((int, float))


class TensorData(Protocol):
    """One tensor of a request."""

    @property
    def name(self) -> str: ...

    @property
    def datatype(self) -> str: ...

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def data(self) -> list[Any] | bytes | memoryview:
        """Nested lists of the shape or one flat list of JSON values, or bytes."""
        ...


def read_tensor(given: TensorData, spec: TensorSpec) -> Array:
    """The array of one tensor of a request; nothing is allocated before the declared shape was compared with the data.

    Raises InvalidInput that names the tensor: for another datatype or number of axes than the model's, for data that does
    not fill the declared shape, and for values that are not of the datatype. One value per row may come as a column, [rows, 1].
    """
    shape = given.shape
    if given.datatype != spec.datatype:
        raise _refuse(spec, f"expected {spec}, got the datatype {given.datatype}", "dtype")
    # As Triton and MLServer have one value per row; their clients send no other shape.
    is_column = spec.shape == ("batch",) and len(shape) == 2 and shape[1] == 1
    if len(shape) != len(spec.shape) and not is_column:
        raise _refuse(spec, f"expected {len(spec.shape)} axes ({spec}), got the shape {_show(shape)}")
    if any(not 0 < size <= MAX_SIZE for size in shape):
        raise _refuse(spec, f"expected sizes from 1 to {MAX_SIZE}, got the shape {_show(shape)}")
    count = math.prod(shape)
    final = shape[:1] if is_column else shape
    if isinstance(given.data, list):
        values = _flatten(given.data, shape, count, spec)
        return _from_values(values, spec).reshape(final)
    if spec.datatype == "BYTES":
        return _read_elements(memoryview(given.data), count, spec).reshape(final)
    expected = count * spec.dtype.itemsize
    if len(given.data) != expected:
        raise _refuse(spec, f"the shape {_show(shape)} of {spec.datatype} takes {expected} bytes, got {len(given.data)}")
    read = np.frombuffer(given.data, spec.dtype.newbyteorder("<"))
    if spec.datatype == "BOOL" and (read.view(np.uint8) > 1).any():
        raise _refuse(spec, "a BOOL is a byte of 0 or 1", "dtype")
    return read.reshape(final)


def write_bytes(values: Array) -> bytes | memoryview:
    """The bytes of an array, which must not be changed any more: numbers as they lie, strings as elements of BYTES."""
    if values.dtype.kind == "O":
        parts = [value.encode() if isinstance(value, str) else bytes(value) for value in values.ravel()]
        return b"".join(chain.from_iterable((len(part).to_bytes(_LENGTH_BYTES, "little"), part) for part in parts))
    if not values.size:  # of which there is no view in bytes
        return b""
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data.cast("B")


def write_values(values: Array) -> Any:
    """The values of an array in one flat list, or as a flat array that `wire.write` takes."""
    if values.dtype.kind == "O":
        return [value if isinstance(value, str) else value.decode() for value in values.ravel()]
    return np.ascontiguousarray(values).ravel()


def largest_classes(values: Array, num_classes: int, labels: Sequence[str] = ()) -> Array:
    """Per row the largest values, as strings "value:index" or "value:index:label": BYTES [rows, classes].

    The classification extension of the Open Inference Protocol.
    """
    rows = values.reshape(len(values), -1)
    width = rows.shape[1]
    # Backwards, so that of equals the first comes first; a minus sign would turn unsigned and smallest numbers around.
    order = (width - 1 - np.argsort(rows[:, ::-1], axis=1, kind="stable"))[:, ::-1][:, :num_classes]
    names = [f"{index}:{labels[index]}" if index < len(labels) else str(index) for index in range(width)]
    largest = np.take_along_axis(rows, order, axis=1)
    classes = np.empty(order.shape, np.object_)
    for row, (values_of_row, indices) in enumerate(zip(largest, order, strict=True)):
        pairs = zip(values_of_row.tolist(), indices.tolist(), strict=True)
        classes[row] = [f"{value:.6f}:{names[index]}" for value, index in pairs]
    return classes


def datatype_of(values: Array) -> str:
    """What the protocol calls the type of an array."""
    return "BYTES" if values.dtype.kind in "OUS" else _NAMES[values.dtype]


_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


def _flatten(data: list[Any], shape: Sequence[int], count: int, spec: TensorSpec) -> list[Any]:
    """The values of nested lists that have the shape, or of a flat list that fills it."""
    if len(shape) < 2 or not data or type(data[0]) is not list:
        if len(data) != count:
            raise _refuse(spec, f"the shape {_show(shape)} takes {count} values, got {len(data)}")
        return data
    values = data
    for axis, size in enumerate(shape):
        if axis > 0:
            if set(map(type, values)) != {list}:
                raise _refuse(spec, f"expected lists {axis} deep, as the shape {_show(shape)} says")
            if set(map(len, values)) != {size}:
                raise _refuse(spec, f"expected lists of {size} in axis {axis}, as the shape {_show(shape)} says")
            values = list(chain.from_iterable(values))
        elif len(values) != size:
            raise _refuse(spec, f"expected a list of {size}, as the shape {_show(shape)} says, got {len(values)}")
    return values


def _from_values(values: list[Any], spec: TensorSpec) -> Array:
    types = set(map(type, values))
    match spec.dtype.kind:
        case "f":
            if spec.dtype.itemsize == 2:
                raise _refuse(spec, "FP16 has no JSON form: send it as binary data", "dtype")
            is_fine = types <= _NUMBERS
        case "i" | "u":
            is_fine = types == {int}
        case "b":
            is_fine = types == {bool}
        case _:
            is_fine = types == {str}
    if not is_fine:
        found = sorted({_JSON_NAMES.get(kind, "numbers") for kind in types})
        raise _refuse(spec, f"expected values of {spec.datatype}, got {' and '.join(found)}", "dtype")
    try:
        if spec.datatype == "FP32":
            return np.frombuffer(array("f", values), np.float32)
        if spec.datatype == "BYTES":
            strings = np.empty(len(values), np.object_)
            strings[:] = values
            return strings
        return np.array(values, spec.dtype)
    except OverflowError as exc:
        raise _refuse(spec, f"a number is too large for {spec.datatype}", "nonfinite") from exc


_JSON_NAMES = {str: "strings", bool: "true or false", type(None): "null", list: "lists", dict: "objects"}


def _read_elements(data: memoryview, count: int, spec: TensorSpec) -> Array:
    """The strings of a BYTES tensor. Each takes four bytes at least, so that `count` is bounded before it is believed."""
    if count * _LENGTH_BYTES > len(data):
        raise _refuse(spec, f"{count} elements take {count * _LENGTH_BYTES} bytes at least, got {len(data)}")
    strings = np.empty(count, np.object_)
    place = 0
    for index in range(count):
        start = place + _LENGTH_BYTES
        place = start + int.from_bytes(data[place:start], "little")
        if start > len(data) or place > len(data):
            raise _refuse(spec, f"element {index} ends beyond the data")
        try:
            strings[index] = str(data[start:place], "utf-8")
        except UnicodeDecodeError as exc:
            raise _refuse(spec, f"element {index} is not UTF-8", "dtype") from exc
    if place != len(data):
        raise _refuse(spec, f"{len(data) - place} bytes are left behind the last of {count} elements")
    return strings


def _refuse(spec: TensorSpec, why: str, reason: InvalidReason = "shape") -> InvalidInput:
    return InvalidInput(f'tensor "{spec.name}": {why}', reason=reason, where=spec.name, expected=str(spec))


def _show(shape: Sequence[int]) -> str:
    return str(list(shape[:MAX_AXES]))[:200]
