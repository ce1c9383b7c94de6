"""The states of the sequences in one request: fed to its rows, and taken from what the graph returns.

Knows nothing of tasks, queues or where states are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.errors import InferenceFailed
from service.runtime.tensors import Array, Item, Signature, Tensors, is_all_finite
from service.sequences.layout import StateLayout
from service.sequences.state import SequenceState


class StatefulTensors(dict[str, Array]):
    """Tensors of rows whose new states are wanted beside their outputs."""


class SequenceRows:
    """One sequence per instance of a request, in order.

    `attach` adds the states to items before a run, `collect` takes the new ones from its outputs. Where an instance takes several
    runs, each goes on from the one before, and `states` are those after the first: the others read values that were not given.
    """

    def __init__(self, states: Sequence[SequenceState | None], signature: Signature, layout: StateLayout) -> None:
        """A state of None begins a sequence. Raises StateError for a state that this graph cannot go on from."""
        self._layout = layout
        self._outputs = dict(signature.state)
        self.steps_seen = [0 if state is None else state.steps for state in states]
        """How many steps each sequence had before this request."""
        self._current = list(states)
        self._tensors: Tensors | None = _read(self._current, layout)
        self._new: list[SequenceState | None] = [None] * len(states)
        self._items: Sequence[Item] = ()

    @property
    def states(self) -> list[SequenceState]:
        """The new state of each sequence."""
        return [state for state in self._new if state is not None]

    def attach(self, items: Sequence[Item]) -> list[Item]:
        """The same items, whose rows begin in the states of their sequences."""
        if self._tensors is None:
            self._tensors = _read(self._current, self._layout)
        self._items = items
        return [item._replace(tensors=self._attach(item, self._tensors)) for item in items]

    def collect(self, outputs: Sequence[Tensors]) -> None:
        """Take the new states from the outputs of the items that were attached last. Raises InferenceFailed for NaN."""
        for item, output in zip(self._items, outputs, strict=True):
            indices = _indices(item)
            tensors = {before: output[after] for before, after in self._outputs.items()}
            self._expect_finite(tensors, indices)
            place = _find_slice(indices)
            if place is not None and self._new[indices[0]] is None and self._new[place] == [None] * len(indices):
                before = self.steps_seen[place]
                steps = [seen + length for seen, length in zip(before, item.lengths, strict=True)]
                self._new[place] = self._current[place] = self._layout.write(tensors, steps)
                continue
            steps = [self.steps_seen[index] + length for index, length in zip(indices, item.lengths, strict=True)]
            for index, state in zip(indices, self._layout.write(tensors, steps), strict=True):
                self._current[index] = state
                if self._new[index] is None:
                    self._new[index] = state
        self._tensors = None

    def _attach(self, item: Item, states: Tensors) -> StatefulTensors:
        tensors = StatefulTensors(item.tensors)
        rows = _indices(item)
        place = _find_slice(rows)
        for name, array in states.items():
            tensors[name] = array[list(rows)] if place is None else array[place]
        return tensors

    def _expect_finite(self, tensors: Tensors, instances: Sequence[int]) -> None:
        """Raise InferenceFailed where a number of the new states is not finite: nothing could go on from it."""
        for before, array in tensors.items():
            if array.dtype.kind == "f" and not is_all_finite(array):
                instance = instances[int(np.argwhere(~np.isfinite(array))[0, 0])]
                raise InferenceFailed(
                    f'instance {instance}: the model\'s new state "{self._outputs[before]}" is not finite',
                    instance=instance,
                    output=self._outputs[before],
                )


def _read(states: Sequence[SequenceState | None], layout: StateLayout) -> Tensors:
    """The states as tensors with a row for each, zeros for None; nothing where all of them are None. Raises StateError."""
    given = [(row, state) for row, state in enumerate(states) if state is not None]
    if not given:
        return {}
    tensors = layout.read(given)
    if len(given) == len(states):
        return tensors
    rows = [row for row, _ in given]
    padded = {name: np.zeros((len(states), *array.shape[1:]), array.dtype) for name, array in tensors.items()}
    for name, array in tensors.items():
        padded[name][rows] = array
    return padded


def _find_slice(rows: Sequence[int]) -> slice | None:
    """The rows as a slice, which is a view of an array; None where they do not follow each other."""
    first, num = rows[0], len(rows)
    if rows[-1] - first != num - 1 or (num > 1 and list(rows) != list(range(first, first + num))):
        return None
    return slice(first, first + num)


def _indices(item: Item) -> Sequence[int]:
    """The instances that the rows of an item are."""
    return item.instances or range(item.rows)
