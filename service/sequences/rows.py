"""The states of the sequences in one request: fed to its rows, and taken from what the graph returns.

Knows nothing of tasks, queues or where states are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from service.errors import InferenceFailed, StateError
from service.runtime.tensors import Array, Item, Signature, Tensors, TensorSpec, is_all_finite
from service.sequences.state import GraphIdentity, SequenceState, block_size, expect_identity


class StatefulTensors(dict[str, Array]):
    """Tensors of rows whose new states are wanted beside their outputs."""


class SequenceRows:
    """One sequence per instance of a request, in order.

    `attach` adds the states to items before a run, `collect` takes the new ones from its outputs. Where an instance takes several
    runs, each goes on from the one before, and `states` are those after the first: the others read values that were not given.
    """

    def __init__(self, states: Sequence[SequenceState | None], signature: Signature, identity: GraphIdentity) -> None:
        """A state of None begins a sequence. Raises StateError for a state that this graph cannot go on from."""
        self._identity = identity
        self._specs = signature.state_specs
        self._outputs = dict(signature.state)
        for index, state in enumerate(states):
            if state is not None:
                try:
                    expect_identity(state.identity, identity)
                    _check_tensors(state.tensors, self._specs)
                except StateError as exc:
                    raise exc.at(index) from exc
        self.steps_seen = [0 if state is None else state.steps for state in states]
        """How many steps each sequence had before this request."""
        self._current: list[Mapping[str, Array] | None] = [None if state is None else state.tensors for state in states]
        self._new: list[SequenceState | None] = [None] * len(states)
        self._items: Sequence[Item] = ()

    @property
    def states(self) -> list[SequenceState]:
        """The new state of each sequence."""
        return [state for state in self._new if state is not None]

    def attach(self, items: Sequence[Item]) -> list[Item]:
        """The same items, whose rows begin in the states of their sequences."""
        self._items = items
        return [item._replace(tensors=self._attach(item)) for item in items]

    def collect(self, outputs: Sequence[Tensors]) -> None:
        """Take the new states from the outputs of the items that were attached last. Raises InferenceFailed for NaN."""
        for item, output in zip(self._items, outputs, strict=True):
            for number, index in enumerate(_indices(item)):
                tensors = take_state(output, number, self._outputs, index)
                self._current[index] = tensors
                if self._new[index] is None:
                    self._new[index] = SequenceState(*self._identity, self.steps_seen[index] + int(item.lengths[number]), tensors)

    def _attach(self, item: Item) -> StatefulTensors:
        tensors = StatefulTensors(item.tensors)
        given = [self._current[index] for index in _indices(item)]
        if len(given) > 1:
            tensors.update(stack_states(given, self._specs))
        elif given[0] is not None:
            tensors.update({name: array[np.newaxis] for name, array in given[0].items()})
        return tensors


def state_size(identity: GraphIdentity, signature: Signature) -> int:
    """The bytes of every state of this graph, as a block."""
    sizes = [(spec, [int(size) for size in spec.shape[1:]]) for spec in signature.state_specs]
    return block_size(
        identity.model, [(spec.name, len(shape), spec.dtype.itemsize * int(np.prod(shape))) for spec, shape in sizes]
    )


def stack_states(states: Sequence[Mapping[str, Array] | None], specs: Sequence[TensorSpec]) -> Tensors:
    """The states of rows as tensors with a batch axis, None as zeros; nothing where all of them are None."""
    if all(state is None for state in states):
        return {}
    stacked: Tensors = {}
    for spec in specs:
        rows = stacked[spec.name] = np.zeros((len(states), *map(int, spec.shape[1:])), spec.dtype)
        for row, state in zip(rows, states, strict=True):
            if state is not None:
                row[...] = state[spec.name]
    return stacked


def take_state(outputs: Tensors, row: int, names: Mapping[str, str], instance: int) -> Tensors:
    """The new state of one row, as a copy: a view would keep its whole batch. `names` are input → output.

    Raises InferenceFailed where a number is not finite: nothing could go on from it.
    """
    tensors = {before: outputs[after][row].copy() for before, after in names.items()}
    for before, array in tensors.items():
        if array.dtype.kind == "f" and not is_all_finite(array):
            raise InferenceFailed(
                f'instance {instance}: the model\'s new state "{names[before]}" is not finite',
                instance=instance,
                output=names[before],
            )
    return tensors


def _indices(item: Item) -> Sequence[int]:
    """The instances that the rows of an item are."""
    return item.instances or range(item.rows)


def _check_tensors(tensors: Mapping[str, Array], specs: Sequence[TensorSpec]) -> None:
    """Raise StateError unless the tensors are such as this graph returns: who may write a state may write anything into it."""
    if len(tensors) != len(specs) or any(spec.name not in tensors for spec in specs):
        shown, expected = sorted(name[:128] for name in tensors)[:10], sorted(spec.name for spec in specs)
        raise StateError(
            f"the state holds the tensors {shown}, expected {expected}", problem="tensors", found=shown, expected=expected
        )
    for spec in specs:
        name, array = spec.name, tensors[spec.name]
        if array.dtype != spec.dtype or array.shape != spec.shape[1:]:
            found = f"{array.dtype} {list(array.shape)}"
            raise StateError(
                f'tensor "{name}" of the state is {found}, expected {spec}', problem="tensors", found=found, expected=str(spec)
            )
        if array.dtype.kind == "f" and not is_all_finite(array):
            raise StateError(f'tensor "{name}" of the state holds a number that is not finite', problem="nonfinite")
