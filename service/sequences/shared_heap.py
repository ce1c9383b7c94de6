"""Where the states of a shared table lie: places of so many bytes in one heap, and those that are free again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.sequences.shared_arrays import ALIGNMENT, HEAP_TOP, MAX_CLASSES, NUM_CLASSES, TableArrays


class NoRoomError(Exception):
    """The heap is full, or in too many pieces."""


class StateHeap:
    """Takes places and gives them back. The free ones of a size (rounded up, a class) are a list: each names the next one.

    Nothing of it need outlive a process that is killed: `rebuild` has all free that lies beyond the last state. What is free
    between the states is found again when they are moved together. A state is changed in its place only from a copy that a log
    names (`CommitLog`).
    """

    def __init__(self, arrays: TableArrays) -> None:
        self._arrays, self._bytes, self._words, self._start = arrays, arrays.bytes, arrays.words, arrays.heap
        self._place, self._size, self._owner = arrays.place, arrays.size, arrays.owner
        self._class_size, self._class_free = arrays.class_size, arrays.class_free
        self._classes: dict[int, int] = {}  # numbers of classes by their size, as this process knew them

    def read(self, entries: Sequence[int]) -> list[bytes | None]:
        """The states of these entries, None where nothing is kept."""
        memory, heap, place_of, size_of, owner_of = self._bytes, self._start, self._place, self._size, self._owner
        starts = [heap + place_of[entry] if owner_of[entry] else None for entry in entries]
        return [
            None if start is None else memory[start : start + size_of[entry]]
            for entry, start in zip(entries, starts, strict=True)
        ]

    def allocate(self, size: int) -> int:
        """The place of so many bytes. Raises NoRoomError."""
        length = rounded(size)
        number = self._find_class(length)
        if number is not None and self._class_free[number]:
            place = self._class_free[number] - 1
            start = self._start + place
            self._class_free[number] = int.from_bytes(self._bytes[start : start + 8], "little")
            return place
        place = self._words[HEAP_TOP]
        if place + length > self._arrays.heap_bytes:
            raise NoRoomError
        self._words[HEAP_TOP] = place + length
        return place

    def free(self, place: int, size: int) -> None:
        """Give back the place of a state of so many bytes."""
        length = rounded(size)
        number = self._find_class(length)
        if number is None:
            number = self._words[NUM_CLASSES]
            if number == MAX_CLASSES:
                return  # until the heap is compacted
            self._class_size[number], self._class_free[number] = length, 0
            self._words[NUM_CLASSES] = number + 1
        start = self._start + place
        self._bytes[start : start + 8] = self._class_free[number].to_bytes(8, "little")
        self._class_free[number] = place + 1

    def clear_free(self) -> None:
        """Have no free places between the states: they are moved there."""
        self._words[NUM_CLASSES] = 0

    def rebuild(self) -> None:
        """Have all free that lies beyond the last state."""
        self.clear_free()
        kept = np.flatnonzero(self._arrays.numbers_of_entries("owner"))
        places, sizes = (self._arrays.numbers_of_entries(name)[kept].tolist() for name in ("place", "size"))
        self._words[HEAP_TOP] = max([place + rounded(size) for place, size in zip(places, sizes, strict=True)], default=0)

    def _find_class(self, length: int) -> int | None:
        """The number of the states of this size, of which places are free or were."""
        number = self._classes.get(length)
        sizes, num = self._class_size, self._words[NUM_CLASSES]
        if number is not None and number < num and sizes[number] == length:
            return number
        found = next((number for number in range(num) if sizes[number] == length), None)
        if found is not None:
            self._classes[length] = found
        return found


def rounded(size: int) -> int:
    """The bytes that a state of so many takes, at least those in which a free place names the next one."""
    return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
