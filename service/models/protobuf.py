"""Fields of a protobuf message, without its schema: enough to look into an ONNX file before anything else opens it."""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10


def read_fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The values of one field of a message, of those that have a length; everything else is stepped over.

    Raises ValueError or IndexError where the bytes are no message.
    """
    return (value for number, value in read_values(message) if number == wanted)


def read_values(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Every field that has a length, by its number, as `read_fields`."""
    return ((number, value) for number, value in _read(message) if isinstance(value, memoryview))


def read_numbers(message: memoryview, wanted: int) -> Iterator[int]:
    """The values of one field of a message that holds whole numbers, as `read_fields`."""
    return (value for number, value in _read(message) if number == wanted and isinstance(value, int))


def _read(message: memoryview) -> Iterator[tuple[int, int | memoryview | None]]:
    """Every field by its number: a whole number, what has a length, or None for what has a fixed one."""
    place, size = 0, len(message)
    while place < size:
        tag = message[place]
        place += 1
        if tag > 127:  # a call for each number would be half of the time that a graph takes
            tag, place = _read_varint(message, place - 1)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            whole, place = _read_varint(message, place)
            yield number, whole
            continue
        if kind == _LENGTH:
            length = message[place]
            place += 1
            if length > 127:
                length, place = _read_varint(message, place - 1)
        elif kind in _FIXED_BYTES:
            length = _FIXED_BYTES[kind]
        else:
            raise ValueError(f"no protobuf: a field of kind {kind}")
        if place + length > size:
            raise ValueError("a field is longer than its message")
        yield number, message[place : place + length] if kind == _LENGTH else None
        place += length


def _read_varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number of 7 bits per byte, and the place behind it."""
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        byte = message[place]
        value |= (byte & 127) << shift
        place += 1
        if byte < 128:
            return value, place
    raise ValueError("no protobuf: a number of more than 10 bytes")
