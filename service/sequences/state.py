"""The recurrent state of one sequence between two requests, and the block of bytes that holds it.

Knows nothing of where states are kept, of models or of HTTP.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from service.errors import StateError
from service.runtime.tensors import DATATYPES

MAX_STEPS = 2**63 - 1
MAX_AXES = 16
CHECKSUM_BYTES = 16
# What it is and how it is laid out; version of the model, steps, digest of the graph, bytes of the name, number of tensors.
_MAGIC = b"SLS1"
_HEAD = struct.Struct("<4sIQ32sBB")
_STEPS = struct.Struct("<Q")
STEPS_PLACE = 8
"""Where a body has its steps, as UINT64."""
_STEPS_END = STEPS_PLACE + _STEPS.size
# Of each tensor: bytes of its name, datatype, number of axes; behind its name the axes, and then its values.
_TENSOR = struct.Struct("<HBB")
_AXIS = struct.Struct("<I")
# A datatype is its place here: names may only be appended.
_DATATYPES = ("FP32", "FP64", "FP16", "INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8", "BOOL")
_DTYPES = tuple(DATATYPES[name].newbyteorder("<") for name in _DATATYPES)
_CODES = {DATATYPES[name]: code for code, name in enumerate(_DATATYPES)}
MAX_HEAD_BYTES = _HEAD.size + 255
"""The part of a block in which it says what it belongs to."""


class GraphIdentity(NamedTuple):
    """Which graph a state belongs to: no other one can go on from it."""

    model: str
    version: int
    digest: str
    """sha256 of the graph's file, in hex."""


class SequenceState:
    """The recurrent state of one sequence after `steps` steps. Two are equal if their bytes are.

    It holds tensors, or the body of its block, and makes one of the other when it is asked for.
    """

    __slots__ = ("_body", "_tensors", "identity", "is_finite", "steps")

    def __init__(self, model: str, version: int, digest: str, steps: int, tensors: Mapping[str, NDArray[Any]]) -> None:
        """`tensors` by name of the graph's state input: one row each, without the batch axis."""
        self.identity = GraphIdentity(model, version, digest)
        """The graph that it belongs to."""
        self.steps = steps
        self.is_finite = False
        """Whether its numbers are known to be finite: a server has looked when it wrote it."""
        self._tensors: Mapping[str, NDArray[Any]] | None = tensors
        self._body: bytes | None = None

    @property
    def model(self) -> str:
        return self.identity.model

    @property
    def version(self) -> int:
        return self.identity.version

    @property
    def digest(self) -> str:
        """sha256 of the graph's file, in hex."""
        return self.identity.digest

    @property
    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """By name of the graph's state input: one row, without the batch axis; those of a body are read-only.

        Raises StateError for a body that is damaged.
        """
        if self._tensors is None:
            self._tensors = _read_tensors(memoryview(self.body))
        return self._tensors

    @property
    def body(self) -> bytes:
        """The block without its checksum."""
        if self._body is None:
            self._body = self._write_body(self.tensors)
        return self._body

    @property
    def num_bytes(self) -> int:
        """The length of `to_bytes`."""
        if self._body is not None:
            return len(self._body) + CHECKSUM_BYTES
        return block_size(self.model, ((name, array.ndim, array.nbytes) for name, array in self.tensors.items()))

    def to_bytes(self) -> bytes:
        """A block that describes itself, with a checksum; values are little-endian. The same state gives the same bytes."""
        return self.body + _checksum(self.body)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Self:
        """The state that a block holds; its tensors are read-only. Raises StateError for a block that is damaged."""
        state = cls.from_kept(data)
        state._tensors = _read_tensors(memoryview(state.body))
        return state

    @classmethod
    def from_kept(cls, data: bytes | bytearray | memoryview) -> Self:
        """`from_bytes` for a block that a server has kept: what is damaged behind a right checksum shows with its `tensors`."""
        body = bytes(data[:-CHECKSUM_BYTES])
        state = cls.from_body(body)
        if _checksum(body) != data[-CHECKSUM_BYTES:]:
            raise _damaged("its checksum does not fit")
        return state

    @classmethod
    def from_body(
        cls, body: bytes, identity: GraphIdentity | None = None, steps: int | None = None, *, is_finite: bool = False
    ) -> Self:
        """The state whose block begins with this body; `identity` and `steps` where they are known. Raises StateError."""
        state = cls.__new__(cls)
        state.identity = read_identity(body) if identity is None else identity
        if steps is None:
            (steps,) = _STEPS.unpack_from(body, STEPS_PLACE)
        if steps > MAX_STEPS:
            raise _damaged("its parts do not fit together")
        state.steps = steps
        state.is_finite = is_finite
        state._tensors, state._body = None, body
        return state

    def _write_body(self, tensors: Mapping[str, NDArray[Any]]) -> bytes:
        name = self.model.encode()
        head = _HEAD.pack(_MAGIC, self.version, self.steps, bytes.fromhex(self.digest), len(name), len(tensors))
        parts = [head, name]
        for tensor, array in tensors.items():
            code, own_name = _CODES[array.dtype.newbyteorder("=")], tensor.encode()
            parts += (_TENSOR.pack(len(own_name), code, array.ndim), own_name, *map(_AXIS.pack, array.shape))
            parts.append(array.astype(_DTYPES[code], copy=False).tobytes())
        return b"".join(parts)

    def __repr__(self) -> str:
        return f"<SequenceState {self.model}/{self.version} after {self.steps} steps>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SequenceState) and self.body == other.body

    def __hash__(self) -> int:
        return hash((self.identity, self.steps))


def tensor_head_size(name: str, num_axes: int) -> int:
    """The bytes of a body between the values of one tensor and those of the one before."""
    return _TENSOR.size + len(name.encode()) + _AXIS.size * num_axes


def block_size(model: str, tensors: Iterable[tuple[str, int, int]]) -> int:
    """The bytes of a block; `tensors` are (name, number of axes, bytes of the values)."""
    size = head_size(model) + CHECKSUM_BYTES
    return size + sum(tensor_head_size(name, axes) + nbytes for name, axes, nbytes in tensors)


def head_size(model: str) -> int:
    """The bytes of a body in front of its tensors."""
    return _HEAD.size + len(model.encode())


def read_identity(block: bytes | memoryview) -> GraphIdentity:
    """What a block says it belongs to, by its first MAX_HEAD_BYTES. Raises StateError for what is no block.

    Nothing else is verified: it serves to say of a state that it is another model's, whatever the rest of it is.
    """
    if len(block) < _HEAD.size:
        raise _damaged(f"it has {len(block)} bytes")
    magic, version, _, digest, name_size, _ = _HEAD.unpack_from(block)
    name = bytes(block[_HEAD.size : _HEAD.size + name_size])
    if magic != _MAGIC or len(name) != name_size:
        raise _damaged("it does not begin as a state does")
    try:
        return GraphIdentity(name.decode(), version, digest.hex())
    except UnicodeDecodeError as exc:
        raise _damaged("it does not begin as a state does") from exc


def read_bodies(bodies: Sequence[bytes | None], *, is_finite: bool = True) -> list[SequenceState | None]:
    """The states that a server has kept, of one graph as a rule: what they belong to is then read once. Raises StateError."""
    states: list[SequenceState | None] = []
    identity: GraphIdentity | None = None
    start = end = b""
    for body in bodies:
        if body is None:
            states.append(None)
            continue
        # All of a head but the steps.
        if identity is None or body[:STEPS_PLACE] != start or body[_STEPS_END : _STEPS_END + len(end)] != end:
            identity = read_identity(body)
            start, end = body[:STEPS_PLACE], body[_STEPS_END : head_size(identity.model)]
        states.append(SequenceState.from_body(body, identity, is_finite=is_finite))
    return states


def expect_identity(found: GraphIdentity, expected: GraphIdentity) -> None:
    """Raise StateError where a state belongs to another model, version or graph, which says which of them it is."""
    if found == expected:
        return
    name = found.model[:128]
    if found.model != expected.model:
        raise StateError(
            f'the state belongs to model "{name}", expected one of "{expected.model}"',
            problem="model",
            found=name,
            expected=expected.model,
        )
    if found.version != expected.version:
        raise StateError(
            f'the state belongs to version {found.version} of "{name}", expected one of version {expected.version}',
            problem="version",
            found=str(found.version),
            expected=str(expected.version),
        )
    raise StateError(
        f'the state belongs to another graph of "{name}", version {found.version}: its file has changed, or another one runs',
        problem="graph",
        found=found.digest,
        expected=expected.digest,
    )


def _read_tensors(body: memoryview) -> dict[str, NDArray[Any]]:
    """The tensors of a body. Raises StateError where it is not made of them."""
    _, _, _, _, name_size, num_tensors = _HEAD.unpack_from(body)
    place = _HEAD.size + name_size
    tensors: dict[str, NDArray[Any]] = {}
    try:
        for _ in range(num_tensors):
            name, array, place = _read_tensor(body, place)
            tensors[name] = array
    except (struct.error, IndexError, ValueError) as exc:  # UnicodeDecodeError is a ValueError
        raise _damaged("its tensors cannot be read") from exc
    if place != len(body) or len(tensors) != num_tensors:
        raise _damaged("its parts do not fit together")
    return tensors


def _read_tensor(body: memoryview, place: int) -> tuple[str, NDArray[Any], int]:
    """The tensor at a place of a block, and the place behind it."""
    name_size, code, num_axes = _TENSOR.unpack_from(body, place)
    place += _TENSOR.size
    name = bytes(body[place : place + name_size]).decode()
    place += name_size
    if num_axes > MAX_AXES:
        raise ValueError("too many axes")
    shape = struct.unpack_from(f"<{num_axes}I", body, place)
    place += _AXIS.size * num_axes
    dtype = _DTYPES[code]
    count = math.prod(shape)
    if count * dtype.itemsize > len(body) - place:
        raise ValueError("more values than bytes")
    array = np.frombuffer(body, dtype, count, place).reshape(shape)
    return name, array, place + array.nbytes


def _checksum(body: bytes | memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=CHECKSUM_BYTES).digest()


def _damaged(why: str) -> StateError:
    return StateError(f"the state is damaged: {why}", problem="damaged")
