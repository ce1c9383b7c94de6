"""How the memory of a shared table is laid out: arrays of numbers and of bytes. Knows nothing of how they are read and changed.

Most of the numbers are of entries: the places of sequences of which something is kept, or which a request has. An entry is in use
if it has an owner (a state is kept) or a ticket; all else (buckets, free places, totals) can be made again from those in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.sequences.shared_memory import SharedMemory
from service.sequences.table import Bounds

MAX_KEYS = 65_536
"""Sequences of one request at most."""
MAX_BUSY = 65_536
"""Sequences that requests have, or wait for, beyond those that the bounds allow."""
MAX_WAITING = 65_536
MAX_NAMES = 65_536
"""Versions of models, and holders, that there ever were."""
NAME_BYTES = 256
ALIGNMENT = 64
MAX_CLASSES = 256
DIGEST_BYTES = 16

# Single numbers: places in the first array. A change is under way; changes that are logged.
CHANGING, LOGGED = 0, 1
TICKET, SECRET, EXPIRED = 2, 3, 4  # the last ticket; what keys are digested with; when idle sequences were last ended
TOP, FREE, HEAP_TOP = 5, 6, 7  # entries that were ever used; the first that is free, + 1; bytes of the heap that were
NUM_SEQUENCES, NUM_BYTES, WAITING, NUM_OWNERS, NUM_HOLDERS, NUM_CLASSES = 8, 9, 10, 11, 12, 13
NUM_WORDS = 16
# Of a logged change: the entry, its owner's number + 1 (0: the sequence ends), place and bytes of the state, place of its copy.
LOG_WORDS = 5
# Of a ticket's turn that is waited for: the ticket, the entry, the process, when its time is over (nanoseconds). They lie in one
# of two halves; one number says in which (its lowest bit), and how many there are (the rest).
WAIT_WORDS = 4


@dataclass(frozen=True)
class Layout:
    """Where each array lies: numbers of 8 bytes by name and length, then bytes."""

    num_entries: int
    num_buckets: int
    heap_bytes: int

    @classmethod
    def of(cls, bounds: Bounds) -> Layout:
        num = min(bounds.max_sequences, bounds.max_bytes // ALIGNMENT) + MAX_BUSY
        # Twice what may be kept: states are rounded up, those that requests have count on top, and sizes change.
        return cls(num, 1 << num.bit_length(), 2 * bounds.max_bytes + 2**24)

    @property
    def words(self) -> dict[str, int]:
        entries = dict.fromkeys(
            ("chain", "ticket", "process", "expires", "used", "holder", "owner", "place", "size"), self.num_entries
        )
        names = dict.fromkeys(("owner_version", "owner_count", "owner_bytes", "holder_count", "holder_bytes"), MAX_NAMES)
        others = {"words": NUM_WORDS, "buckets": self.num_buckets, "class_size": MAX_CLASSES}
        others |= {"class_free": MAX_CLASSES, "log": LOG_WORDS * MAX_KEYS, "waiting": 2 * WAIT_WORDS * MAX_WAITING}
        return others | entries | names

    @property
    def blocks(self) -> dict[str, int]:
        digests = {"digests": DIGEST_BYTES * self.num_entries, "holder_digests": DIGEST_BYTES * MAX_NAMES}
        # The copies of a commit take as much as the states at most.
        return digests | {"owner_names": NAME_BYTES * MAX_NAMES, "heap": self.heap_bytes, "copies": self.heap_bytes}

    def places(self) -> Iterator[tuple[str, int, int]]:
        """Name, place and bytes of each array, each from a page of its own."""
        place = 0
        for name, size in [*((name, 8 * num) for name, num in self.words.items()), *self.blocks.items()]:
            yield name, place, size
            place += -(-size // 4096) * 4096

    @property
    def num_bytes(self) -> int:
        *_, (_, place, size) = self.places()
        return place + size


def table_bytes(bounds: Bounds) -> int:
    """The size of the memory of a table; most of it is never written, and takes none."""
    return Layout.of(bounds).num_bytes


class TableArrays:
    """The arrays of a table as one process sees them. Who reads or changes them has the memory's lock.

    A number that is set through a view is set at once, whenever the process is killed; several of them, or bytes, are not.
    """

    def __init__(self, memory: SharedMemory, bounds: Bounds) -> None:
        """`memory` has `table_bytes(bounds)`."""
        layout = Layout.of(bounds)
        self.bytes = memory.bytes
        self.num_entries, self.heap_bytes = layout.num_entries, layout.heap_bytes
        places = {name: place for name, place, _ in layout.places()}
        whole = memoryview(memory.bytes)
        views = {name: whole[places[name] : places[name] + 8 * num].cast("Q") for name, num in layout.words.items()}
        self._views = views
        self.words, self.buckets, self.log, self.waiting = views["words"], views["buckets"], views["log"], views["waiting"]
        # Of each entry: the next one of its bucket, + 1, or of those that are free; the ticket that has it, 0 for none, with its
        # process and when its time is over; when it was last used; the number of its holder, and of its owner, + 1; its state.
        self.chain, self.ticket, self.process, self.expires = (views[each] for each in ("chain", "ticket", "process", "expires"))
        self.used, self.holder, self.owner = views["used"], views["holder"], views["owner"]
        self.place, self.size = views["place"], views["size"]
        self.class_size, self.class_free = views["class_size"], views["class_free"]
        self.owner_version, self.owner_count, self.owner_bytes = (
            views[each] for each in ("owner_version", "owner_count", "owner_bytes")
        )
        self.holder_count, self.holder_bytes = views["holder_count"], views["holder_bytes"]
        # Where these bytes begin.
        self.digests, self.holder_digests, self.owner_names = (
            places[each] for each in ("digests", "holder_digests", "owner_names")
        )
        self.heap, self.copies = places["heap"], places["copies"]

    def numbers(self, name: str, num: int | None = None) -> npt.NDArray[np.uint64]:
        """The first numbers of an array by its name, all for None: to look at many at once, and to change them."""
        return np.frombuffer(self._views[name], np.uint64, -1 if num is None else num)

    def numbers_of_entries(self, name: str) -> npt.NDArray[np.uint64]:
        """Those of the entries that were ever used."""
        return self.numbers(name, self.words[TOP])
