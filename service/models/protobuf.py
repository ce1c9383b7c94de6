"""Fields of a protobuf message, without its schema: enough to look into an ONNX file before anything else opens it."""

from __future__ import annotations

from collections.abc import Iterator


def read_fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The values of one field of a message, of those that have a length; everything else is stepped over.

    Raises ValueError or IndexError where the bytes are no message.
    """
    place = 0
    while place < len(message):
        tag, place = _read_varint(message, place)
        kind = tag & 7
        if kind == 0:
            _, place = _read_varint(message, place)
        elif kind == 1:
            place += 8
        elif kind == 5:
            place += 4
        elif kind == 2:
            length, place = _read_varint(message, place)
            if place + length > len(message):
                raise ValueError("a field is longer than its message")
            if tag >> 3 == wanted:
                yield message[place : place + length]
            place += length
        else:
            raise ValueError(f"no protobuf: a field of kind {kind}")


def read_numbers(message: memoryview, wanted: int) -> Iterator[int]:
    """The values of one field of a message that holds whole numbers, as `read_fields`."""
    place = 0
    while place < len(message):
        tag, place = _read_varint(message, place)
        kind = tag & 7
        if kind == 0:
            value, place = _read_varint(message, place)
            if tag >> 3 == wanted:
                yield value
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        elif kind == 2:
            length, place = _read_varint(message, place)
            place += length
        else:
            raise ValueError(f"no protobuf: a field of kind {kind}")


def _read_varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number of 7 bits per byte, and the place behind it."""
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place += 1
        if byte < 128:
            return value, place
        shift += 7
