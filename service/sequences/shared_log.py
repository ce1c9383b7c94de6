"""The commits of a shared table: of several sequences all or none, whenever the process that makes one is killed."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from service.errors import StoreUnavailable
from service.sequences.shared_arrays import HEAP_TOP, LOG_WORDS, LOGGED, TableArrays
from service.sequences.shared_heap import NoRoomError, StateHeap, rounded
from service.sequences.shared_totals import Totals

MAX_MOVED, MAX_MOVED_BYTES = 1000, 2**20
"""So many states are moved at once when the heap is compacted."""


class CommitLog:
    """Writes what changes, and the new states, aside (`write`); then one number says that it counts (`carry_out`).

    Killed before that number is set, nothing has changed: what was allocated is free when the heap is rebuilt. Killed after it,
    whoever has the lock next carries out the same once more (`recover`), which gives the same; it counts nothing and frees
    nothing, since totals and heap are then rebuilt.
    """

    def __init__(self, arrays: TableArrays, heap: StateHeap, totals: Totals) -> None:
        self._arrays, self._heap, self._totals = arrays, heap, totals
        self._bytes, self._words, self._log = arrays.bytes, arrays.words, arrays.log
        self._owner, self._place, self._size = arrays.owner, arrays.place, arrays.size

    def write(self, entries: Sequence[int], owners: Sequence[int], bodies: Sequence[bytes | None]) -> int:
        """Write what a commit changes, and the states beside; nothing is changed yet. Raises StoreUnavailable.

        `owners` are their numbers + 1, or 0: the sequence ends. Returns the number of changes.
        """
        try:
            return self._write(entries, owners, bodies)
        except NoRoomError:
            self.compact()
        try:
            return self._write(entries, owners, bodies)
        except NoRoomError:
            self.compact()
            raise StoreUnavailable("there is no room for the states of these sequences") from None

    def carry_out(self, num: int) -> None:
        """Make so many changes, as they are written: from here on they are kept, whatever happens to this process."""
        self._words[LOGGED] = num
        self._apply()

    def recover(self) -> None:
        """Make the changes that a process has left which was killed; totals and heap are to be rebuilt."""
        self._apply(is_counted=False)

    def compact(self, num_at_once: int = MAX_MOVED) -> None:
        """Move all states together, so that all that is free is in one piece; moves are logged, as a commit is, so many at once.

        What was written aside, and is not logged yet, is lost.
        """
        words, place_of, size_of, arrays = self._words, self._place, self._size, self._arrays
        self._heap.clear_free()
        kept = np.flatnonzero(arrays.numbers_of_entries("owner"))
        flat: list[int] = []
        place = copy = 0
        for entry in kept[np.argsort(arrays.numbers_of_entries("place")[kept])].tolist():
            size = size_of[entry]
            if place_of[entry] != place:  # by its copy: where it is and where it goes may overlap
                self._bytes.move(arrays.copies + copy, arrays.heap + place_of[entry], size)
                flat += (entry, self._owner[entry], place, size, copy)
                copy += size
            place += rounded(size)
            if len(flat) == LOG_WORDS * num_at_once or copy > MAX_MOVED_BYTES:
                self._move(flat)
                flat, copy = [], 0
        self._move(flat)
        words[HEAP_TOP] = place

    def _move(self, flat: list[int]) -> None:
        """Make these moves, of states whose copies are written."""
        self._log[: len(flat)] = array("Q", flat)
        self._words[LOGGED] = len(flat) // LOG_WORDS
        self._apply(is_counted=False)

    def _write(self, entries: Sequence[int], owners: Sequence[int], bodies: Sequence[bytes | None]) -> int:
        sizes = [0 if body is None else len(body) for body in bodies]
        joined = b"".join([body for body in bodies if body is not None])
        if len(joined) > self._arrays.heap_bytes:
            raise NoRoomError
        owner_of, place_of, size_of = self._owner, self._place, self._size
        flat: list[int] = []
        copy = 0
        for entry, owner, size in zip(entries, owners, sizes, strict=True):
            place = 0
            if owner:
                is_same = owner_of[entry] and (size_of[entry] == size or rounded(size_of[entry]) == rounded(size))
                place = place_of[entry] if is_same else self._heap.allocate(size)
            flat += (entry, owner, place, size, copy)
            copy += size
        self._bytes[self._arrays.copies : self._arrays.copies + copy] = joined
        self._log[: len(flat)] = array("Q", flat)
        return len(entries)

    def _apply(self, *, is_counted: bool = True) -> None:
        """Carry out what is logged; twice gives the same. Not counted where all is counted anew, and freed."""
        words, heap, copies, move = self._words, self._arrays.heap, self._arrays.copies, self._bytes.move
        owner_of, place_of, size_of = self._owner, self._place, self._size
        flat = self._log[: LOG_WORDS * words[LOGGED]].tolist()
        columns = [flat[column::LOG_WORDS] for column in range(LOG_WORDS)]
        for entry, owner, place, size, copy in zip(*columns, strict=True):
            if owner:
                move(heap + place, copies + copy, size)
            before = owner_of[entry]
            if before == owner and size_of[entry] == size and place_of[entry] == place:
                continue  # the next step of a sequence, as nearly all are
            if is_counted and before:
                self._totals.add(entry, -1)
                if place_of[entry] != place or not owner:
                    self._heap.free(place_of[entry], size_of[entry])
            place_of[entry], size_of[entry], owner_of[entry] = place, size, owner
            if is_counted and owner:
                self._totals.add(entry, 1)
        words[LOGGED] = 0
