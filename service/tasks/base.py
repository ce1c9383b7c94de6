"""What all tasks have in common: the dialogue with whoever runs the graph, how rows are grouped, how a refusal is worded.

Pure: no clock, no disk, no threads. A task never runs a graph; it yields what should be run and is sent the outputs, so
that a forecast beyond the model's horizon, which needs several runs, reads from top to bottom and is tested without one.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from service.errors import InferenceFailed, InvalidInput, InvalidReason, MalformedRequest
from service.runtime.tensors import Array, Item, Signature, Tensors

Prediction = Any
"""A JSON value, as POST /predict answers it; lists of numbers may be arrays (C-contiguous, finite)."""

Dialogue = Generator[list[Item], list[Tensors], list[Prediction]]
"""Yields items to run, is sent their prepared outputs in order, perhaps several times; returns the predictions in order."""

IS_FINITE = "/is_finite"
"""What `prepare` adds to the outputs of a batch in which something is not finite: BOOL [batch]."""

STEPS_PER_RUN = 64
"""What a run costs as such, in time steps: rows whose lengths differ by less are not worth a run of their own."""

# Above these, encoding takes milliseconds and belongs on a thread: 64 histories of 336 values need about 0.5 ms.
HEAVY_NUM_INSTANCES = 64
HEAVY_SIZE = 20_000


@dataclass(frozen=True)
class ItemLimits:
    """How large one item may be: the rows of a request are cut into items that fit into a batch."""

    max_rows: int = 32
    max_padded_steps: int = 1 << 16


class Task(Protocol):
    """What instances mean to one model."""

    @property
    def signature(self) -> Signature: ...

    def dialogue(self, instances: Sequence[object], parameters: Mapping[str, object], *, is_plain: bool = False) -> Dialogue:
        """Predict all instances. Nothing is checked before the first `send`.

        `is_plain` says that the instances hold no true, false and null (`wire.is_plain`): they need not be looked for.
        Raises InvalidInput that names the instance and the place in it, MalformedRequest for unknown fields, and
        InferenceFailed when an output is not finite.
        """
        ...

    def prepare(self, outputs: Tensors) -> Tensors:
        """What can be done to the outputs of a whole batch at once, on the thread that ran it."""
        ...

    def is_heavy(self, instances: Sequence[object], parameters: Mapping[str, object]) -> bool:
        """Whether encoding or decoding these would hold up an event loop."""
        ...


def grouped(lengths: Sequence[int], limits: ItemLimits) -> list[list[int]]:
    """Cut rows into groups of similar length, none above the limits (but at least one row each): lists of row numbers."""
    if len(lengths) == 1:
        return [[0]]
    groups: list[list[int]] = []
    group: list[int] = []
    # Ascending: the row that is looked at is the longest of its group, the first one the shortest.
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group:
            is_full = len(group) == limits.max_rows or (len(group) + 1) * lengths[row] > limits.max_padded_steps
            if is_full or lengths[row] + STEPS_PER_RUN > 2 * (lengths[group[0]] + STEPS_PER_RUN):
                groups.append(group)
                group = []
        group.append(row)
    return [*groups, group]


def finite_rows(arrays: Sequence[Array]) -> Array | None:
    """Which rows (axis 0) hold only finite numbers; None if all do, which is the usual and cheap case."""
    if all(array.dtype.kind != "f" or np.isfinite(array).all() for array in arrays):
        return None
    rows = [np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in arrays if array.dtype.kind == "f"]
    is_finite: Array = np.logical_and.reduce(rows)
    return is_finite


def expect_finite(output: Tensors, instances: Sequence[int]) -> None:
    """Raise InferenceFailed that names the first of these instances whose row is not finite, as `prepare` found it."""
    is_finite = output.get(IS_FINITE)
    if is_finite is None or is_finite.all():
        return
    row = int(np.flatnonzero(~is_finite)[0])
    names = [name for name, array in output.items() if array.dtype.kind == "f" and not np.isfinite(array[row]).all()]
    raise InferenceFailed(
        f'instance {instances[row]}: the model\'s output "{names[0]}" is not finite', instance=instances[row], output=names[0]
    )


def expect_instances(instances: Sequence[object]) -> None:
    if not instances:
        raise InvalidInput("instances: expected at least one, got none", where="instances", found=0, expected="at least one")


def unknown_parameters(unknown: Sequence[str], known: Sequence[str]) -> MalformedRequest:
    expected = f"this model takes {list(known)}" if known else "this model takes none"
    return MalformedRequest(f"parameters: unknown {shown(unknown[0])}; {expected}", where="parameters", expected=list(known))


def unknown_fields(index: int, unknown: Iterable[object], known: Iterable[str]) -> MalformedRequest:
    first, expected = min(map(str, unknown)), sorted(known)
    return MalformedRequest(
        f"instance {index}: unknown field {shown(first)}; expected {expected}", instance=index, where=first, expected=expected
    )


def missing(index: int, field: str) -> InvalidInput:
    return InvalidInput(f"instance {index}: {field} is missing", instance=index, where=field)


def wrong_type(index: int | None, where: str, expected: str, found: object, *, reason: InvalidReason = "dtype") -> InvalidInput:
    return InvalidInput(
        f"{place(index, where)}: expected {expected}, got {shown(found)}",
        reason=reason,
        instance=index,
        where=where or None,
        found=shown(found),
        expected=expected,
    )


def place(index: int | None, where: str) -> str:
    if index is None:
        return f"parameters: {where}"
    return f"instance {index}: {where}" if where else f"instance {index}"


def shown(value: object) -> str:
    """A value as it stood in the JSON, cut short; never the whole of what a caller sent."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "an integer of more than 20 digits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return f'"{value[:60]}"' + ("…" if len(value) > 60 else "")
    return str(value)[:60]
