"""JSON bytes ↔ values: the only file that imports orjson. Knows nothing of what the values mean.

orjson, because on the bodies of this service it reads in about half and writes in less than half the time of the other
well-kept ones (a history of 336 values: 5 µs, pydantic_core 9, msgspec 6.5, json 22; a forecast of 48 steps and nine
quantiles: 7 µs, pydantic_core and msgspec 16, json 111), and because it writes numpy arrays as they are: a float32 in the
fewest digits that give the same float32 back, without a Python object per number.
"""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson

from service.json_pieces import read_in_pieces

PAUSE_S = 50e-6
"""For so long a thread that reads a large text lets others run after each piece; to give up the lock alone would not do."""
_INDENTED = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
VALUES_PER_PART = 20_000
"""Of a part of a large text: some 1.2 ms to write."""


class WrittenRows(Sequence[Any]):
    """A list whose items are written together, many at once; one by one they are values only for whoever looks at them."""

    @property
    @abstractmethod
    def num_values(self) -> int:
        """About how many values all of them hold."""

    @abstractmethod
    def write_rows(self, start: int, end: int) -> bytes:
        """The JSON of these, at least one, with commas between them: what `write` makes of each."""


def read(body: bytes | memoryview) -> Any:
    """The value of a JSON text. Raises ValueError for what is no JSON: NaN, Infinity and numbers beyond float64 too."""
    return orjson.loads(body)


def read_large(text: bytes | memoryview) -> Any:
    """`read` in pieces between which other threads run, for threads: raises PayloadTooLarge too, for what cannot be cut."""
    return read_in_pieces(bytes(text), orjson.loads, pause)


def pause() -> None:
    """Let other threads run."""
    time.sleep(PAUSE_S)


def write(value: object) -> bytes:
    """Values, C-contiguous numpy arrays and WrittenRows as JSON. NaN becomes `null`: whoever calls has looked for it before."""
    return orjson.dumps(value, _write_rows, orjson.OPT_SERIALIZE_NUMPY)


def _write_rows(value: object) -> orjson.Fragment:
    if not isinstance(value, WrittenRows):
        raise TypeError
    return orjson.Fragment(b"[" + (value.write_rows(0, len(value)) if len(value) else b"") + b"]")


def write_indented(value: object) -> bytes:
    """Values as JSON that a person can read; NaN becomes `null`.

    Python's own writer takes thirty times as long where it indents: 0.4 s for the list of a thousand models. It writes what
    orjson does not, whole numbers of more than 64 bits.
    """
    try:
        return orjson.dumps(value, option=_INDENTED)
    except TypeError:
        return json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n"


def join_arrays(arrays: Sequence[Any]) -> Any:
    """The values of several arrays in one, which `write` takes: no Python object per number comes into being."""
    return np.concatenate(arrays)


def write_parts(value: Any) -> Iterator[bytes]:
    """The text of `write` in parts of about VALUES_PER_PART values each, for whoever does something else between them."""
    if _size(value) <= VALUES_PER_PART:
        yield write(value)
    elif isinstance(value, dict):
        for number, (name, child) in enumerate(value.items()):
            yield (b"," if number else b"{") + write(name) + b":"
            yield from _write_list(child) if isinstance(child, list) and child else write_parts(child)
        yield b"}"
    elif isinstance(value, list):
        yield from _write_list(value)
    else:  # an array, or rows
        rows = max(1, VALUES_PER_PART * len(value) // _size(value))
        for start in range(0, len(value), rows):
            yield b"," if start else b"["
            if isinstance(value, WrittenRows):
                yield value.write_rows(start, min(start + rows, len(value)))
            else:
                yield write(value[start : start + rows])[1:-1]
        yield b"]"


def _write_list(values: list[Any]) -> Iterator[bytes]:
    separator, start, size = b"[", 0, 0
    for number, value in enumerate(values):
        added = _size(value)
        if start < number and size + added > VALUES_PER_PART:
            yield separator + write(values[start:number])[1:-1]
            separator, start, size = b",", number, 0
        size += added
        if added > VALUES_PER_PART:  # it stands alone
            yield separator
            yield from write_parts(value)
            separator, start, size = b",", number + 1, 0
    yield (separator + write(values[start:])[1:-1] if start < len(values) else b"") + b"]"


def _size(value: Any) -> int:
    """About how many values a JSON value holds; a list is counted until it is more than one part."""
    kind = type(value)
    if kind is dict:
        return len(value) + sum(map(_size, value.values()))
    if kind is list:
        total = len(value)
        for child in value:
            if total > VALUES_PER_PART:
                break
            total += _size(child)
        return total
    size: int = value.num_values if isinstance(value, WrittenRows) else getattr(value, "size", 1)
    return size


def is_plain(body: bytes) -> bool:
    """Whether a JSON text holds neither true, false nor null in any list: each needs a `u` or an `l`, numbers need neither.

    Looks for letters alone, which is fast (0.3 µs; to look at the types of 336 numbers takes 5), and says no where a string
    holds one of them.
    """
    start = body.find(b"[")
    return body.find(b"u", start) < 0 and body.find(b"l", start) < 0
