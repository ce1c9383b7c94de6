"""How the states of one graph lie in their blocks, which is the same for all: many of them ↔ tensors with a row each, at once.

Tensor by tensor, the states of a stream with eleven of them would take longer than the rest of their request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from service.errors import StateError
from service.runtime.tensors import Array, Tensors, TensorSpec, is_all_finite
from service.sequences.state import (
    CHECKSUM_BYTES,
    STEPS_PLACE,
    GraphIdentity,
    SequenceState,
    expect_identity,
    head_size,
    tensor_head_size,
)

T = TypeVar("T")

_STEPS = "steps"


class StateLayout:
    """States of one graph ↔ its state tensors. Their bodies are equal but for steps and values, each at its place."""

    def __init__(self, identity: GraphIdentity, specs: Sequence[TensorSpec]) -> None:
        """`specs` are the inputs that take the state; their axes behind the batch are whole numbers."""
        self.identity = identity
        self.specs = specs
        shapes = [tuple(map(int, spec.shape[1:])) for spec in specs]
        zeros = {spec.name: np.zeros(shape, spec.dtype) for spec, shape in zip(specs, shapes, strict=True)}
        body = SequenceState(*identity, 0, zeros).body
        self.num_bytes = len(body) + CHECKSUM_BYTES
        """Of each state, as a block."""
        is_constant = np.ones(len(body), np.bool_)
        is_constant[STEPS_PLACE : STEPS_PLACE + 8] = False
        places = []
        place = head_size(identity.model)
        for name, array in zeros.items():
            place += tensor_head_size(name, array.ndim)
            places.append(place)
            is_constant[place : place + array.nbytes] = False
            place += array.nbytes
        self._fields = {name: str(number) for number, name in enumerate(zeros)}  # a tensor may be called "steps"
        self._dtypes = {name: array.dtype for name, array in zeros.items()}
        dtypes = [array.dtype.newbyteorder("<") for array in zeros.values()]
        self._record = np.dtype(
            {
                "names": [_STEPS, *self._fields.values()],
                "formats": ["<u8", *zip(dtypes, shapes, strict=True)],
                "offsets": [STEPS_PLACE, *places],
                "itemsize": len(body),
            }
        )
        self._blank = np.frombuffer(body, np.uint8)
        self._constant_places = np.flatnonzero(is_constant)
        """Where all bodies are equal: everywhere but at steps and values."""
        self._constants = self._blank[self._constant_places]

    def read(self, states: Sequence[tuple[int, SequenceState]]) -> Tensors:
        """The tensors of these states, a row each; each state comes with the number of its instance.

        Raises StateError, which names the instance, for a state that is not of this graph or holds a number that is not finite.
        """
        identity = self.identity
        for instance, state in states:
            if state.identity != identity:
                _locate(instance, expect_identity, state.identity, self.identity)
        bodies = [state.body for _, state in states]
        joined = b"".join(bodies)
        if not self._are_own(bodies, joined):
            joined = b"".join([_locate(instance, self._arrange, state) for instance, state in states])
        records = np.frombuffer(joined, self._record)
        # Copies: where a field lies between others its numbers need not be aligned as a graph wants them.
        tensors: Tensors = {name: records[field].astype(self._dtypes[name]) for name, field in self._fields.items()}
        if all(state.is_finite for _, state in states):
            return tensors
        for name, array in tensors.items():
            if array.dtype.kind == "f" and not is_all_finite(array):
                instance, _ = states[int(np.argwhere(~np.isfinite(array))[0, 0])]
                raise StateError(f'tensor "{name}" of the state holds a number that is not finite', problem="nonfinite").at(
                    instance
                )
        return tensors

    def write(self, tensors: Mapping[str, Array], steps: Sequence[int]) -> list[SequenceState]:
        """The states that these tensors hold, one for each row, after so many steps; all numbers are finite."""
        size, identity = len(self._blank), self.identity
        bodies = np.empty((len(steps), size), np.uint8)
        bodies[:] = self._blank
        records = bodies.view(self._record)[:, 0]
        records[_STEPS] = steps
        for name, field in self._fields.items():
            records[field] = tensors[name]
        # Each in bytes of its own: a part of this array would keep all of it, for as long as its sequence makes no step.
        whole = bodies.tobytes()
        return [
            SequenceState.from_body(whole[start : start + size], identity, num_steps, is_finite=True)
            for start, num_steps in zip(range(0, len(whole), size), steps, strict=True)
        ]

    def _are_own(self, bodies: Sequence[bytes], joined: bytes) -> bool:
        """Whether these bodies are those of this graph's states, as `write` makes them."""
        if set(map(len, bodies)) != {len(self._blank)}:
            return False
        found = np.frombuffer(joined, np.uint8).reshape(len(bodies), -1)
        return bool((found[:, self._constant_places] == self._constants).all())

    def _arrange(self, state: SequenceState) -> bytes:
        """The body of a state whose tensors are this graph's, in whatever order they are. Raises StateError."""
        expect_tensors(state.tensors, self.specs)
        return SequenceState(*state.identity, state.steps, {spec.name: state.tensors[spec.name] for spec in self.specs}).body


def expect_tensors(tensors: Mapping[str, Array], specs: Sequence[TensorSpec]) -> None:
    """Raise StateError unless the tensors are such as this graph returns: who may write a state may write anything into it."""
    if len(tensors) != len(specs) or any(spec.name not in tensors for spec in specs):
        shown, expected = sorted(name[:128] for name in tensors)[:10], sorted(spec.name for spec in specs)
        raise StateError(
            f"the state holds the tensors {shown}, expected {expected}", problem="tensors", found=shown, expected=expected
        )
    for spec in specs:
        array = tensors[spec.name]
        if array.dtype != spec.dtype or array.shape != spec.shape[1:]:
            found = f"{array.dtype} {list(array.shape)}"
            raise StateError(
                f'tensor "{spec.name}" of the state is {found}, expected {spec}',
                problem="tensors",
                found=found,
                expected=str(spec),
            )


def _locate(instance: int, check: Callable[..., T], *arguments: Any) -> T:
    """What `check` returns for the state of an instance, which a StateError that it raises names."""
    try:
        return check(*arguments)
    except StateError as exc:
        raise exc.at(instance) from exc
