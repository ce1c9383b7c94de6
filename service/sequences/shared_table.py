"""Sequences and their states in memory that several processes share: what `table.py` does for one process, with the same rules.

Every operation has the memory's lock for its time. What it changes is laid out so that a process may be killed at any point of
it: a commit is written aside first and counts from the moment in which one number is set, all else is made again from the
entries (`_recover`), by whoever has the lock next.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import getpid
from typing import Any

import numpy as np
import numpy.typing as npt

from service.errors import StoreUnavailable
from service.sequences.shared_memory import SharedMemory
from service.sequences.state import CHECKSUM_BYTES
from service.sequences.table import Bounds, Eviction, Found, Owner, Stored, Total, holder_of

MAX_KEYS = 65_536
"""Sequences of one request at most."""
MAX_BUSY = 65_536
"""Sequences that requests have, or wait for, beyond those that the bounds allow."""
MAX_WAITING = 65_536
MAX_PROCESSES = 4096
MAX_NAMES = 65_536
"""Versions of models, and holders, that there ever were."""
NAME_BYTES = 256
ALIGNMENT = 64
MAX_CLASSES = 256
DIGEST_BYTES = 16
MAX_KNOWN = 100_000
"""Keys whose entries a process remembers."""
MIN_CANDIDATES = 64
"""So many of the sequences that were not used for longest are found at once."""
MAX_MOVED, MAX_MOVED_BYTES = 1000, 2**20
"""So many states are moved at once when the heap is compacted."""

MAX_ENDED = 2000
"""So many idle sequences are ended at once: others wait for the lock meanwhile, some tens of milliseconds."""

# Single numbers: places in the first array. A change is under way; changes that are logged.
_CHANGING, _LOGGED = 0, 1
_TICKET, _SECRET, _EXPIRED = 2, 3, 4  # the last ticket; what keys are digested with; when idle sequences were last ended
_TOP, _FREE, _HEAP_TOP = 5, 6, 7  # entries that were ever used; the first that is free, + 1; bytes of the heap that were
_NUM_SEQUENCES, _NUM_BYTES, _WAITING, _NUM_OWNERS, _NUM_HOLDERS, _NUM_CLASSES = 8, 9, 10, 11, 12, 13
_NUM_WORDS = 16
# Of a logged change: the entry, its owner's number + 1 (0: the sequence ends), place and bytes of the state, place of its copy.
_LOG_WORDS = 5
# Of a ticket's turn that is waited for: the ticket, the entry, the process, when its time is over (nanoseconds). They lie in one
# of two halves; one number says in which (its lowest bit), and how many there are (the rest).
_WAIT_WORDS = 4


@dataclass(slots=True, eq=False)
class SharedTicket:
    """The places of one request in the queues of its sequences, which it has when it is the first in all of them."""

    number: int
    entries: list[int]
    expires_ns: int
    is_granted: bool
    is_valid: bool = True
    """Until it is finished, or its time is over."""
    bodies: list[bytes | None] | None = None
    """What is kept of its sequences, until it is read."""


@dataclass(frozen=True)
class _Layout:
    """Where each array lies: numbers of 8 bytes by name and length, then bytes."""

    num_entries: int
    num_buckets: int
    heap_bytes: int

    @classmethod
    def of(cls, bounds: Bounds) -> _Layout:
        num = min(bounds.max_sequences, bounds.max_bytes // ALIGNMENT) + MAX_BUSY
        # Twice what may be kept: states are rounded up, those that requests have count on top, and sizes change.
        return cls(num, 1 << num.bit_length(), 2 * bounds.max_bytes + 2**24)

    @property
    def words(self) -> dict[str, int]:
        entries = dict.fromkeys(
            ("chain", "ticket", "process", "expires", "used", "holder", "owner", "place", "size"), self.num_entries
        )
        names = dict.fromkeys(("owner_version", "owner_count", "owner_bytes", "holder_count", "holder_bytes"), MAX_NAMES)
        others = {"words": _NUM_WORDS, "buckets": self.num_buckets, "class_size": MAX_CLASSES}
        others |= {"class_free": MAX_CLASSES, "log": _LOG_WORDS * MAX_KEYS, "waiting": 2 * _WAIT_WORDS * MAX_WAITING}
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
    return _Layout.of(bounds).num_bytes


class SharedTable:
    """One process's view of the table: sequences by their keys, and who has them.

    A process learns that a ticket which was waiting is granted by `poll`, or at once where it finished the one before itself:
    both say so by `take_granted`.
    """

    def __init__(
        self,
        memory: SharedMemory,
        bounds: Bounds,
        now_ns: Callable[[], int] = time.monotonic_ns,
        on_evicted: Callable[[Owner, Eviction], None] = lambda owner, reason: None,
    ) -> None:
        """`memory` has `table_bytes(bounds)`; `now_ns` is a clock that all processes share."""
        layout = _Layout.of(bounds)
        self._memory, self._bounds, self._now_ns, self._on_evicted = memory, bounds, now_ns, on_evicted
        self._bytes = memory.bytes
        self._ttl_ns = int(bounds.ttl_s * 1e9)
        self._heap_bytes = layout.heap_bytes
        self._num_entries = layout.num_entries
        self._mask = layout.num_buckets - 1
        self._places = {name: place for name, place, _ in layout.places()}
        self._heap, self._copies = self._places["heap"], self._places["copies"]
        self._digests = self._places["digests"]
        whole = memoryview(memory.bytes)
        views = {name: whole[self._places[name] : self._places[name] + 8 * num].cast("Q") for name, num in layout.words.items()}
        self._views = views
        self._words, self._buckets, self._chain = views["words"], views["buckets"], views["chain"]
        self._ticket, self._process, self._expires = views["ticket"], views["process"], views["expires"]
        self._used, self._holder, self._owner = views["used"], views["holder"], views["owner"]
        self._place, self._size = views["place"], views["size"]
        self._log = views["log"]
        self._halves = np.frombuffer(views["waiting"], np.uint64).reshape(2, MAX_WAITING, _WAIT_WORDS)
        self._number: int | None = None  # of this process, once it has taken one
        self._pid = 0
        self._owners: dict[Owner, int] = {}
        self._owner_list: list[Owner] = []
        self._holders: dict[str, int] = {}
        self._known: dict[str, tuple[bytes, int]] = {}  # digests of keys, and where they were last
        self._classes: dict[int, int] = {}
        self._candidates: dict[int, deque[tuple[int, int]]] = {}
        self._granted: list[int] = []
        self._tickets: dict[int, SharedTicket] = {}

    # ------------------------------------------------------------------------------------------------- operations

    def enqueue(self, keys: Sequence[str], within_s: float) -> SharedTicket:
        """A ticket for these sequences, all different, for so many seconds; it has what is kept of them where it is granted.

        Raises StoreUnavailable.
        """
        if len(keys) > MAX_KEYS:
            raise StoreUnavailable(f"a request may have {MAX_KEYS} sequences at once, this one has {len(keys)}")
        now = self._now_ns()
        expires = now + int(within_s * 1e9)
        ticket_of, expires_of, process_of = self._ticket, self._expires, self._process
        with self._change() as words:
            process = self._claim()
            number = words[_TICKET] = words[_TICKET] + 1
            entries, waiting = [], []
            try:
                for key in keys:
                    entry = self._find_or_add(key, now)
                    entries.append(entry)
                    if ticket_of[entry]:
                        waiting.append(entry)
                    else:
                        expires_of[entry], process_of[entry], ticket_of[entry] = expires, process, number
                self._wait(number, waiting, process, expires)
            except StoreUnavailable:
                self._leave(number, entries, now)
                raise
            ticket = SharedTicket(number, entries, expires, not waiting, bodies=None if waiting else self._read(entries))
        self._tickets[number] = ticket
        return ticket

    def read(self, ticket: SharedTicket) -> list[bytes | None]:
        """What is kept of the sequences of a granted ticket, None where there is nothing. To be asked once.

        Only None, and the ticket is no longer valid, where its time was over. Raises StoreUnavailable.
        """
        bodies, ticket.bodies = ticket.bodies, None
        if bodies is None:
            with self._change():  # others may have the sequences since it was granted, and their states may be moved
                if self._has_all(ticket):
                    return self._read(ticket.entries)
                self._drop(ticket, self._now_ns())
                bodies = [None] * len(ticket.entries)
        return bodies

    def _has_all(self, ticket: SharedTicket) -> bool:
        return ticket.is_valid and all(self._ticket[entry] == ticket.number for entry in ticket.entries)

    def _drop(self, ticket: SharedTicket, now: int) -> None:
        """Finish a ticket of this process."""
        ticket.is_valid = False
        self._tickets.pop(ticket.number, None)
        self._leave(ticket.number, ticket.entries, now)

    def _read(self, entries: Sequence[int]) -> list[bytes | None]:
        memory, heap, place_of, size_of, owner_of = self._bytes, self._heap, self._place, self._size, self._owner
        starts = [heap + place_of[entry] if owner_of[entry] else None for entry in entries]
        return [
            None if start is None else memory[start : start + size_of[entry]]
            for entry, start in zip(entries, starts, strict=True)
        ]

    def poll(self) -> None:
        """See which of the tickets that wait in this process have their sequences now, or are no longer valid.

        `take_granted` then returns them.
        """
        now = self._now_ns()
        with self._change():
            self._drop_lost({self._ticket[entry]: entry for entry in {*self._turns()[:, 1].tolist()}}, now)
            waiting = {*self._turns()[:, 0].tolist()}
            for ticket in [ticket for ticket in self._tickets.values() if not ticket.is_granted]:
                if ticket.number not in waiting or ticket.expires_ns <= now:
                    self._end_wait(ticket, now)

    def commit(self, ticket: SharedTicket, owners: Sequence[Owner | None], bodies: Sequence[bytes | None]) -> bool:
        """Keep these of its sequences, None for both: end one, and finish the ticket.

        False, and no change, where its time was over. Raises StoreUnavailable where there is no room, and where the lock cannot
        be had: the ticket is then to be released.
        """
        now = self._now_ns()
        with self._change() as words:
            if not self._has_all(ticket):
                self._drop(ticket, now)
                return False
            try:
                num = self._write_log(ticket.entries, owners, bodies)
                words[_LOGGED] = num  # from here on it is kept, whatever happens to this process
                self._apply_log()
            finally:
                self._drop(ticket, now)
            self._end_least_recent()
        return True

    def release(self, ticket: SharedTicket) -> None:
        """Finish the ticket, granted or not, and leave its sequences as they are. Raises StoreUnavailable: to be called again."""
        if not ticket.is_valid:
            return
        with self._change():
            self._drop(ticket, self._now_ns())
            self._end_least_recent()

    def find(self, key: str) -> Found[bytes] | None:
        """The sequence as it is, whoever has it; looking at it is no use."""
        now = self._now_ns()
        with self._change():
            _, entry = self._find_known(key)
            if entry is None or not self._owner[entry] or self._end_if_idle(entry, now):
                return None
            start = self._heap + self._place[entry]
            body = self._bytes[start : start + self._size[entry]]
            is_busy = self._ticket[entry] != 0
            stored = Stored(self._owner_of(self._owner[entry] - 1), len(body) + CHECKSUM_BYTES, body)
            idle_s = 0.0 if is_busy else max(0.0, (now - self._used[entry]) / 1e9)
            return Found(stored, idle_s, is_busy)

    def expire(self, interval_s: float = 0.0) -> bool:
        """End what is idle for too long, and tickets whose time is over or whose process has ended. To be called now and then.

        Nothing is done where a process has done it within `interval_s`. True where there is more to end: to be called again soon.
        """
        now = self._now_ns()
        if now - self._words[_EXPIRED] < interval_s * 1e9:
            return False
        has_more = False
        with self._change() as words:
            top = words[_TOP]
            owner, ticket, used = self._array("owner", top), self._array("ticket", top), self._array("used", top)
            if now > self._ttl_ns:
                idle = np.flatnonzero((owner > 0) & (ticket == 0) & (used <= np.uint64(now - self._ttl_ns)))
                has_more = len(idle) > MAX_ENDED
                for entry in idle[:MAX_ENDED].tolist():
                    self._evict(entry, "idle")
            held = np.flatnonzero(ticket)
            self._drop_lost(dict(zip(ticket[held].tolist(), held.tolist(), strict=True)), now)
            self._end_least_recent()
            if not has_more:
                words[_EXPIRED] = now
        return has_more

    def totals(self) -> dict[Owner, Total]:
        """What is kept of each version of a model; one of which nothing is kept any more stays, with zeros."""
        self._acquire()
        try:
            num = self._words[_NUM_OWNERS]
            counts, sizes = self._views["owner_count"], self._views["owner_bytes"]
            return {self._owner_of(number): Total(counts[number], sizes[number]) for number in range(num)}
        finally:
            self._memory.release()

    def take_granted(self) -> list[int]:
        """The tickets of this process that were granted, or are no longer valid, by what it did since it asked last."""
        granted, self._granted = self._granted, []
        return granted

    def close(self) -> None:
        """Release all that this process has."""
        for ticket in [*self._tickets.values()]:
            self.release(ticket)
        if self._number is not None and self._pid == getpid():
            self._memory.acquire()
            self._memory.end(self._number)
            self._number = None
            self._memory.release()

    def __repr__(self) -> str:
        return f"<SharedTable: {self._words[_NUM_SEQUENCES]} sequences, {self._words[_NUM_BYTES]} bytes>"

    # ------------------------------------------------------------------------------------------------- the lock

    @contextmanager
    def _change(self) -> Iterator[Any]:
        """Has the lock; whoever ends within it, or fails, leaves the table to be recovered."""
        words = self._words
        self._acquire()
        try:
            words[_CHANGING] = 1
            yield words
        except StoreUnavailable:
            words[_CHANGING] = 0
            raise
        else:
            words[_CHANGING] = 0
        finally:
            self._memory.release()

    def _acquire(self) -> None:
        """Take the lock, of a table that is consistent. Raises StoreUnavailable."""
        self._memory.acquire()
        if self._words[_CHANGING]:
            try:
                self._recover()
            except BaseException:
                self._memory.release()
                raise

    def _recover(self) -> None:
        """Make the table consistent again after a process has ended while it changed it."""
        words = self._words
        self._apply_log(is_counted=False)
        top = words[_TOP]
        words[_FREE] = 0
        self._array("buckets")[:] = 0
        for name, num in (("owner", words[_NUM_OWNERS]), ("holder", words[_NUM_HOLDERS])):
            self._array(f"{name}_count", num)[:] = self._array(f"{name}_bytes", num)[:] = 0
        words[_NUM_SEQUENCES] = words[_NUM_BYTES] = 0
        for entry in range(top):
            if self._owner[entry] or self._ticket[entry]:
                bucket = self._bucket(self._digest_at(entry))
                self._chain[entry], self._buckets[bucket] = self._buckets[bucket], entry + 1
                if self._owner[entry]:
                    self._count(entry, 1)
            else:
                self._chain[entry], words[_FREE] = words[_FREE], entry + 1
        self._candidates.clear()
        kept = np.flatnonzero(self._array("owner", top)).tolist()
        # What is free between the states is found again when the heap is compacted.
        words[_HEAP_TOP] = max([self._place[entry] + _rounded(self._size[entry]) for entry in kept], default=0)
        words[_NUM_CLASSES] = 0
        # Who had a sequence is killed before or after the turn of the next one ends: nobody waits for what they have themselves.
        turns = self._turns()
        had_by = self._array("ticket")[turns[:, 1]]
        self._keep_turns((had_by != 0) & (had_by != turns[:, 0]))
        words[_CHANGING] = 0

    def _claim(self) -> int:
        """The number of this process, which others see to live."""
        if self._number is None or self._pid != getpid():
            self._pid = getpid()
            number = next(filter(self._memory.live, range(1, MAX_PROCESSES)), None)
            if number is None:
                raise StoreUnavailable("too many processes use the states of sequences")
            self._release_of(number, self._now_ns())  # one that had it before
            self._number = number
            self._tickets.clear()
        return self._number

    def _is_alive(self, process: int) -> bool:
        return not self._memory.is_free(process)

    def _array(self, name: str, num: int | None = None) -> npt.NDArray[np.uint64]:
        return np.frombuffer(self._views[name], np.uint64, -1 if num is None else num)

    # ------------------------------------------------------------------------------------------------- entries

    def _digest(self, key: str) -> bytes:
        """What stands for a key: clients cannot choose keys whose digests meet, since it is keyed."""
        words = self._words
        if not words[_SECRET]:
            words[_SECRET] = secrets.randbits(63) | 1
        return hashlib.blake2b(
            key.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES, key=words[_SECRET].to_bytes(8, "little")
        ).digest()

    def _digest_at(self, entry: int) -> bytes:
        start = self._digests + DIGEST_BYTES * entry
        return self._bytes[start : start + DIGEST_BYTES]

    def _bucket(self, digest: bytes) -> int:
        return int.from_bytes(digest[:8], "little") & self._mask

    def _find(self, digest: bytes) -> int | None:
        following = self._buckets[self._bucket(digest)]
        while following:
            entry = following - 1
            start = self._digests + DIGEST_BYTES * entry
            if self._bytes[start : start + DIGEST_BYTES] == digest:
                return entry
            following = self._chain[entry]
        return None

    def _find_known(self, key: str) -> tuple[bytes, int | None]:
        """The digest of a key, and its entry."""
        known = self._known.get(key)
        if known is not None:
            digest, entry = known
            start = self._digests + DIGEST_BYTES * entry
            if self._owner[entry] and self._bytes[start : start + DIGEST_BYTES] == digest:
                return digest, entry
        digest = self._digest(key)
        found = self._find(digest)
        if found is not None:
            if len(self._known) == MAX_KNOWN:
                self._known.clear()
            self._known[key] = digest, found
        return digest, found

    def _find_or_add(self, key: str, now: int) -> int:
        digest, entry = self._find_known(key)
        if entry is not None and not (self._owner[entry] and self._end_if_idle(entry, now)):
            return entry
        words = self._words
        holder = self._holder_number(holder_of(key))
        if words[_FREE]:
            entry = words[_FREE] - 1
            words[_FREE] = self._chain[entry]
            is_new = False
        elif words[_TOP] < self._num_entries:
            entry, is_new = words[_TOP], True
        else:
            raise StoreUnavailable("too many requests have sequences at once")
        start = self._digests + DIGEST_BYTES * entry
        self._bytes[start : start + DIGEST_BYTES] = digest
        self._owner[entry] = self._ticket[entry] = 0
        self._holder[entry] = holder
        if is_new:
            words[_TOP] = entry + 1
        bucket = self._bucket(digest)
        self._chain[entry] = self._buckets[bucket]
        self._buckets[bucket] = entry + 1
        return entry

    def _forget(self, entry: int) -> None:
        """Free an entry of which nothing is kept and which nobody has."""
        bucket = self._bucket(self._digest_at(entry))
        following = self._buckets[bucket]
        if following == entry + 1:
            self._buckets[bucket] = self._chain[entry]
        else:
            while self._chain[following - 1] != entry + 1:
                following = self._chain[following - 1]
            self._chain[following - 1] = self._chain[entry]
        self._chain[entry] = self._words[_FREE]
        self._words[_FREE] = entry + 1

    def _count(self, entry: int, sign: int) -> None:
        """Add what is kept of an entry to the totals, or take it away."""
        words, views, size = self._words, self._views, sign * (self._size[entry] + CHECKSUM_BYTES)
        owner, holder = self._owner[entry] - 1, self._holder[entry]
        words[_NUM_SEQUENCES] += sign
        words[_NUM_BYTES] += size
        views["owner_count"][owner] += sign
        views["owner_bytes"][owner] += size
        views["holder_count"][holder] += sign
        views["holder_bytes"][holder] += size

    def _end_if_idle(self, entry: int, now: int) -> bool:
        if self._ticket[entry] or now - self._used[entry] < self._ttl_ns:
            return False
        self._evict(entry, "idle")
        return True

    def _evict(self, entry: int, reason: Eviction) -> None:
        owner = self._owner_of(self._owner[entry] - 1)
        self._end(entry)
        self._forget(entry)
        self._on_evicted(owner, reason)

    def _end(self, entry: int) -> None:
        """Keep nothing of an entry any more."""
        self._count(entry, -1)
        self._owner[entry] = 0
        self._free(self._place[entry], self._size[entry])

    # ------------------------------------------------------------------------------------------------- turns

    def _wait(self, number: int, entries: Sequence[int], process: int, expires: int) -> None:
        if not entries:
            return
        num, half = divmod(self._words[_WAITING], 2)
        if num + len(entries) > MAX_WAITING:
            raise StoreUnavailable("too many requests wait for their sequences")
        self._halves[half, num : num + len(entries)] = [(number, entry, process, expires) for entry in entries]
        self._words[_WAITING] += 2 * len(entries)

    def _turns(self) -> npt.NDArray[np.uint64]:
        """The turns that are waited for, in the order in which they came."""
        num, half = divmod(self._words[_WAITING], 2)
        return self._halves[half, :num]

    def _keep_turns(self, are_kept: npt.NDArray[np.bool_]) -> None:
        """Drop the other turns; at once, whenever this process is killed."""
        kept = self._turns()[are_kept]
        half = 1 - self._words[_WAITING] % 2
        self._halves[half, : len(kept)] = kept
        self._words[_WAITING] = 2 * len(kept) + half

    def _leave(self, number: int, entries: Sequence[int], now: int) -> None:
        """Take a ticket out of all queues; the next ones get what it had."""
        ticket, used, owner = self._ticket, self._used, self._owner
        if self._words[_WAITING] > 1:
            are_others = self._turns()[:, 0] != number
            if not are_others.all():
                self._keep_turns(are_others)
            self._hand_on([entry for entry in entries if ticket[entry] == number], now)
        for entry in entries:
            if ticket[entry] != number:
                continue
            used[entry] = now
            ticket[entry] = 0
            if not owner[entry]:
                self._forget(entry)

    def _hand_on(self, entries: Sequence[int], now: int) -> None:
        """Give each of these entries to the first that waits for it and lives; where there is none it stays whose it is."""
        turns = self._turns()
        places = np.flatnonzero(np.isin(turns[:, 1], np.array(entries, np.uint64))).tolist()
        if not places:
            return
        is_alive: dict[int, bool] = {}
        left = {*entries}
        passed: list[int] = []
        following: dict[int, None] = {}
        for place, (number, entry, process, expires) in zip(places, turns[places].tolist(), strict=True):
            if entry not in left:
                continue
            passed.append(place)
            if process not in is_alive:
                is_alive[process] = self._is_alive(process)
            if expires > now and is_alive[process]:
                self._expires[entry], self._process[entry], self._ticket[entry] = expires, process, number
                left.discard(entry)
                following[number] = None
        are_kept = np.ones(len(turns), np.bool_)
        are_kept[passed] = False
        self._keep_turns(are_kept)
        own = [self._tickets[number] for number in following if number in self._tickets]
        if own:
            still_waiting = {*self._turns()[:, 0].tolist()}
            for ticket in own:
                if ticket.number not in still_waiting:
                    ticket.is_granted = True
                    self._granted.append(ticket.number)

    def _end_wait(self, ticket: SharedTicket, now: int) -> None:
        """A ticket of this process that waits for no turn any more is granted; or its time is over, and what it has is left."""
        ticket.is_granted = True  # who waits for it is told
        self._granted.append(ticket.number)
        if ticket.expires_ns <= now or not self._has_all(ticket):
            self._drop(ticket, now)

    def _drop_lost(self, holders: dict[int, int], now: int) -> None:
        """Finish those of these tickets, each with one entry that it has, whose time is over or whose process has ended."""
        for number, entry in holders.items():
            if number and (self._expires[entry] <= now or not self._is_alive(self._process[entry])):
                own = self._tickets.pop(number, None)
                if own is not None:
                    own.is_valid = False
                    self._granted.append(number)  # who waits for it is told
                top = self._words[_TOP]
                self._leave(number, np.flatnonzero(self._array("ticket", top) == number).tolist(), now)

    def _release_of(self, process: int, now: int) -> None:
        """Finish the tickets of a process that has ended."""
        self._keep_turns(self._turns()[:, 2] != process)
        top = self._words[_TOP]
        ticket, owner = self._array("ticket", top), self._array("process", top)
        for number in {*ticket[(ticket > 0) & (owner == process)].tolist()}:
            self._leave(number, np.flatnonzero(ticket == number).tolist(), now)

    # ------------------------------------------------------------------------------------------------- commits

    def _write_log(self, entries: Sequence[int], owners: Sequence[Owner | None], bodies: Sequence[bytes | None]) -> int:
        """Write what a commit changes, and the states beside; nothing is changed yet. Raises StoreUnavailable."""
        try:
            return self._try_log(entries, owners, bodies)
        except _NoRoomError:
            self._compact()
        try:
            return self._try_log(entries, owners, bodies)
        except _NoRoomError:
            self._compact()
            raise StoreUnavailable("there is no room for the states of these sequences") from None

    def _try_log(self, entries: Sequence[int], owners: Sequence[Owner | None], bodies: Sequence[bytes | None]) -> int:
        sizes = [0 if body is None else len(body) for body in bodies]
        joined = b"".join([body for body in bodies if body is not None])
        if len(joined) > self._heap_bytes:
            raise _NoRoomError
        # Those of one request are of one graph: its number is looked for once.
        numbers = {owner: 0 if owner is None else self._owner_number(owner) + 1 for owner in {*owners}}
        owner_of, place_of, size_of = self._owner, self._place, self._size
        flat: list[int] = []
        copy = 0
        for entry, owner, size in zip(entries, owners, sizes, strict=True):
            place = 0
            if owner is not None:
                is_same = owner_of[entry] and (size_of[entry] == size or _rounded(size_of[entry]) == _rounded(size))
                place = place_of[entry] if is_same else self._allocate(size)
            flat += (entry, numbers[owner], place, size, copy)
            copy += size
        self._bytes[self._copies : self._copies + copy] = joined
        self._log[: len(flat)] = array("Q", flat)
        return len(entries)

    def _apply_log(self, *, is_counted: bool = True) -> None:
        """Carry out what is logged; twice gives the same. Not counted where all is counted anew, and freed."""
        words, heap, copies, move = self._words, self._heap, self._copies, self._bytes.move
        owner_of, place_of, size_of = self._owner, self._place, self._size
        flat = self._log[: _LOG_WORDS * words[_LOGGED]].tolist()
        columns = [flat[column::_LOG_WORDS] for column in range(_LOG_WORDS)]
        for entry, owner, place, size, copy in zip(*columns, strict=True):
            if owner:
                move(heap + place, copies + copy, size)
            before = owner_of[entry]
            if before == owner and size_of[entry] == size and place_of[entry] == place:
                continue  # the next step of a sequence, as nearly all are
            if is_counted and before:
                self._count(entry, -1)
                if place_of[entry] != place or not owner:
                    self._free(place_of[entry], size_of[entry])
            place_of[entry], size_of[entry], owner_of[entry] = place, size, owner
            if is_counted and owner:
                self._count(entry, 1)
        words[_LOGGED] = 0

    # ------------------------------------------------------------------------------------------------- room

    def _allocate(self, size: int) -> int:
        """The place of so many bytes in the heap. Raises _NoRoomError."""
        rounded = _rounded(size)
        number = self._class(rounded)
        if number is not None and self._views["class_free"][number]:
            place = self._views["class_free"][number] - 1
            start = self._heap + place
            self._views["class_free"][number] = int.from_bytes(self._bytes[start : start + 8], "little")
            return place
        place = self._words[_HEAP_TOP]
        if place + rounded > self._heap_bytes:
            raise _NoRoomError
        self._words[_HEAP_TOP] = place + rounded
        return place

    def _free(self, place: int, size: int) -> None:
        rounded = _rounded(size)
        number = self._class(rounded)
        if number is None:
            number = self._words[_NUM_CLASSES]
            if number == MAX_CLASSES:
                return  # until the heap is compacted
            self._views["class_size"][number], self._views["class_free"][number] = rounded, 0
            self._words[_NUM_CLASSES] = number + 1
        free, start = self._views["class_free"], self._heap + place
        self._bytes[start : start + 8] = free[number].to_bytes(8, "little")
        free[number] = place + 1

    def _class(self, rounded: int) -> int | None:
        """The number of the states of this size, of which places are free or were."""
        number = self._classes.get(rounded)
        sizes, num = self._views["class_size"], self._words[_NUM_CLASSES]
        if number is not None and number < num and sizes[number] == rounded:
            return number
        found = [number for number in range(num) if sizes[number] == rounded]
        if not found:
            return None
        self._classes[rounded] = found[0]
        return found[0]

    def _compact(self, num_at_once: int = MAX_MOVED) -> None:
        """Move all states together, so that all that is free is in one piece; moves are logged, as a commit is, so many at once.

        What was written aside, and is not logged yet, is lost.
        """
        words, place_of, size_of, copies = self._words, self._place, self._size, self._copies
        words[_NUM_CLASSES] = 0  # their places are written over
        top, place = words[_TOP], 0
        kept = np.flatnonzero(self._array("owner", top))
        flat: list[int] = []
        copy = 0
        for entry in kept[np.argsort(self._array("place", top)[kept])].tolist():
            size = size_of[entry]
            if place_of[entry] != place:  # by its copy: where it is and where it goes may overlap
                self._bytes.move(copies + copy, self._heap + place_of[entry], size)
                flat += (entry, self._owner[entry], place, size, copy)
                copy += size
            place += _rounded(size)
            if len(flat) == _LOG_WORDS * num_at_once or copy > MAX_MOVED_BYTES:
                self._move(flat)
                flat, copy = [], 0
        self._move(flat)
        words[_HEAP_TOP] = place

    def _move(self, flat: list[int]) -> None:
        """Carry out these moves, of states whose copies are written."""
        self._log[: len(flat)] = array("Q", flat)
        self._words[_LOGGED] = len(flat) // _LOG_WORDS
        self._apply_log(is_counted=False)

    def _end_least_recent(self) -> None:
        words = self._words
        while True:
            if words[_NUM_BYTES] > self._bounds.max_bytes:
                name = "holder_bytes"
            elif words[_NUM_SEQUENCES] > self._bounds.max_sequences:
                name = "holder_count"
            else:
                return
            totals = self._array(name, words[_NUM_HOLDERS])
            for holder in np.argsort(totals)[::-1].tolist():
                entry = self._least_recent(holder) if totals[holder] else None
                if entry is not None:
                    break
            else:
                return
            self._evict(entry, "lru")

    def _least_recent(self, holder: int) -> int | None:
        """The entry of a holder that nobody has and that was not used for longest."""
        candidates = self._candidates.setdefault(holder, deque())
        for is_new in (False, True):
            if is_new:
                candidates.extend(self._find_candidates(holder))
            while candidates:
                used, entry = candidates.popleft()
                # What was found earlier is right as long as it is as it was: all others were used later.
                if self._owner[entry] and not self._ticket[entry] and self._used[entry] == used and self._holder[entry] == holder:
                    return entry
        return None

    def _find_candidates(self, holder: int) -> list[tuple[int, int]]:
        top = self._words[_TOP]
        is_idle = (self._array("owner", top) > 0) & (self._array("ticket", top) == 0) & (self._array("holder", top) == holder)
        idle = np.flatnonzero(is_idle)
        used = self._array("used", top)[idle]
        num = max(MIN_CANDIDATES, len(idle) // 64)
        if num < len(idle):
            chosen = np.argpartition(used, num)[:num]
            idle, used = idle[chosen], used[chosen]
        order = np.lexsort((idle, used))
        return list(zip(used[order].tolist(), idle[order].tolist(), strict=True))

    # ------------------------------------------------------------------------------------------------- names

    def _owner_number(self, owner: Owner) -> int:
        number = self._owners.get(owner)
        if number is None:
            self._read_owners()
            number = self._owners.get(owner)
        if number is None:
            number, name = self._words[_NUM_OWNERS], owner.model.encode()
            if number == MAX_NAMES or len(name) >= NAME_BYTES:
                raise StoreUnavailable("too many versions of models have had sequences")
            start = self._places["owner_names"] + NAME_BYTES * number
            self._bytes[start : start + 1 + len(name)] = bytes([len(name)]) + name
            self._views["owner_version"][number] = owner.version
            self._words[_NUM_OWNERS] = number + 1
            self._read_owners()
        return number

    def _owner_of(self, number: int) -> Owner:
        if number >= len(self._owner_list):
            self._read_owners()
        return self._owner_list[number]

    def _read_owners(self) -> None:
        for number in range(len(self._owner_list), self._words[_NUM_OWNERS]):
            start = self._places["owner_names"] + NAME_BYTES * number
            name = self._bytes[start + 1 : start + 1 + self._bytes[start]].decode()
            owner = Owner(name, self._views["owner_version"][number])
            self._owner_list.append(owner)
            self._owners[owner] = number

    def _holder_number(self, holder: str) -> int:
        number = self._holders.get(holder)
        if number is None:
            digest, num = self._digest(holder), self._words[_NUM_HOLDERS]
            start, end = self._places["holder_digests"], self._places["holder_digests"] + DIGEST_BYTES * num
            known = self._bytes[start:end]
            number = next(
                (
                    place // DIGEST_BYTES
                    for place in range(0, len(known), DIGEST_BYTES)
                    if known[place : place + DIGEST_BYTES] == digest
                ),
                num,
            )
            if number == num:
                if num == MAX_NAMES:
                    raise StoreUnavailable("too many holders have had sequences")
                self._bytes[end : end + DIGEST_BYTES] = digest
                self._words[_NUM_HOLDERS] = num + 1
            self._holders[holder] = number
        return number


class _NoRoomError(Exception):
    """The heap is full, or in too many pieces."""


def _rounded(size: int) -> int:
    """The bytes that a state of so many takes, at least those in which a free place names the next one."""
    return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
