"""Sequences and their states in memory that several processes share: what `table.py` does for one process, with the same rules.

Every operation has the memory's lock for its time. What it changes is laid out so that a process may be killed at any point of
it: what counts (states, tickets, turns) changes by setting one number, all else is made again by whoever has the lock next. Each
part says for itself how: `shared_entries.py` (where the sequence of a key is), `shared_turns.py` (who has it and who waits),
`shared_heap.py` (where its state lies), `shared_log.py` (commits), `shared_totals.py`, `shared_eviction.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import repeat
from types import TracebackType

import numpy as np

from service.errors import StoreUnavailable
from service.sequences.shared_arrays import CHANGING, EXPIRED, MAX_KEYS, NUM_BYTES, NUM_SEQUENCES, TableArrays
from service.sequences.shared_entries import Entries
from service.sequences.shared_eviction import LeastRecent
from service.sequences.shared_heap import StateHeap
from service.sequences.shared_log import CommitLog
from service.sequences.shared_memory import SharedMemory
from service.sequences.shared_totals import Holders, Owners, Totals
from service.sequences.shared_turns import SharedTicket, Turns
from service.sequences.state import CHECKSUM_BYTES
from service.sequences.table import Bounds, Eviction, Found, Owner, Stored, Total, holder_of

MAX_ENDED = 2000
"""So many idle sequences are ended at once: others wait for the lock meanwhile, some tens of milliseconds."""


class SharedTable:
    """One process's view of the table: sequences by their keys, and who has them. Of one thread: the lock is the process's.

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
        self._memory, self._now_ns, self._on_evicted = memory, now_ns, on_evicted
        self._ttl_ns = int(bounds.ttl_s * 1e9)
        arrays = self._arrays = TableArrays(memory, bounds)
        self._words, self._owner, self._ticket, self._used = arrays.words, arrays.owner, arrays.ticket, arrays.used
        self._owners, self._holders, self._totals = Owners(arrays), Holders(arrays), Totals(arrays)
        self._entries = Entries(arrays)
        self._turns = Turns(arrays, memory, self._entries)
        self._heap = StateHeap(arrays)
        self._log = CommitLog(arrays, self._heap, self._totals)
        self._least_recent = LeastRecent(arrays, bounds)
        self._change = _Change(memory, arrays, self._recover)

    def enqueue(self, keys: Sequence[str], within_s: float) -> SharedTicket:
        """A ticket for these sequences, all different, for so many seconds; it has what is kept of them where it is granted.

        Raises StoreUnavailable.
        """
        if len(keys) > MAX_KEYS:
            raise StoreUnavailable(f"a request may have {MAX_KEYS} sequences at once, this one has {len(keys)}")
        now = self._now_ns()
        with self._change:
            ticket = self._turns.enqueue(map(self._find_or_add, keys, repeat(now)), now, now + int(within_s * 1e9))
            if ticket.is_granted:
                ticket.bodies = self._heap.read(ticket.entries)
        return ticket

    def read(self, ticket: SharedTicket) -> list[bytes | None]:
        """What is kept of the sequences of a granted ticket, None where there is nothing. To be asked once.

        Only None, and the ticket is no longer valid, where its time was over. Raises StoreUnavailable.
        """
        bodies, ticket.bodies = ticket.bodies, None
        if bodies is None:
            with self._change:  # others may have the sequences since it was granted, and their states may be moved
                if self._turns.has_all(ticket):
                    return self._heap.read(ticket.entries)
                self._turns.finish(ticket, self._now_ns())
                bodies = [None] * len(ticket.entries)
        return bodies

    def poll(self) -> None:
        """See which of the tickets that wait in this process have their sequences now, or are no longer valid.

        `take_granted` then returns them. Raises StoreUnavailable.
        """
        now = self._now_ns()
        with self._change:
            self._turns.poll(now)

    def commit(self, ticket: SharedTicket, owners: Sequence[Owner | None], bodies: Sequence[bytes | None]) -> bool:
        """Keep these of its sequences, None for both: end one, and finish the ticket.

        False, and no change, where its time was over. Raises StoreUnavailable where there is no room, and where the lock cannot
        be had: the ticket is then to be released.
        """
        now = self._now_ns()
        with self._change:
            if not self._turns.has_all(ticket):
                self._turns.finish(ticket, now)
                return False
            try:
                # Those of one request are of one graph: its number is looked for once.
                numbers = {owner: 0 if owner is None else self._owners.number_of(owner) + 1 for owner in {*owners}}
                self._log.carry_out(self._log.write(ticket.entries, [numbers[owner] for owner in owners], bodies))
            finally:
                self._turns.finish(ticket, now)
            self._end_least_recent()
        return True

    def release(self, ticket: SharedTicket) -> None:
        """Finish the ticket, granted or not, and leave its sequences as they are. Raises StoreUnavailable: to be called again."""
        if not ticket.is_valid:
            return
        with self._change:
            self._turns.finish(ticket, self._now_ns())
            self._end_least_recent()

    def find(self, key: str) -> Found[bytes] | None:
        """The sequence as it is, whoever has it; looking at it is no use. Raises StoreUnavailable."""
        now = self._now_ns()
        with self._change:
            _, entry = self._entries.find(key)
            if entry is None or not self._owner[entry] or self._end_if_idle(entry, now):
                return None
            body = self._heap.read([entry])[0] or b""
            is_busy = self._ticket[entry] != 0
            stored = Stored(self._owners.at(self._owner[entry] - 1), len(body) + CHECKSUM_BYTES, body)
            idle_s = 0.0 if is_busy else max(0.0, (now - self._used[entry]) / 1e9)
            return Found(stored, idle_s, is_busy)

    def expire(self, interval_s: float = 0.0) -> bool:
        """End what is idle for too long, and tickets whose time is over or whose process has ended. To be called now and then.

        Nothing is done where a process has done it within `interval_s`. True where there is more to end: to be called again soon.
        Raises StoreUnavailable.
        """
        now = self._now_ns()
        if now - self._words[EXPIRED] < interval_s * 1e9:
            return False
        has_more = False
        with self._change:
            if now > self._ttl_ns:
                owner, ticket, used = (self._arrays.numbers_of_entries(name) for name in ("owner", "ticket", "used"))
                idle = np.flatnonzero((owner > 0) & (ticket == 0) & (used <= np.uint64(now - self._ttl_ns)))
                has_more = len(idle) > MAX_ENDED
                for entry in idle[:MAX_ENDED].tolist():
                    self._evict(entry, "idle")
            self._turns.expire(now)
            self._end_least_recent()
            if not has_more:
                self._words[EXPIRED] = now
        return has_more

    def totals(self) -> dict[Owner, Total]:
        """What is kept of each version of a model; one of which nothing is kept any more stays, with zeros.

        Raises StoreUnavailable.
        """
        self._change.acquire()
        try:
            return {self._owners.at(number): total for number, total in enumerate(self._totals.of_owners())}
        finally:
            self._memory.release()

    def take_granted(self) -> list[int]:
        """The tickets of this process that were granted, or are no longer valid, by what it did since it asked last."""
        return self._turns.take_granted()

    def close(self) -> None:
        """Release all that this process has. Raises StoreUnavailable."""
        for ticket in [*self._turns.tickets.values()]:
            self.release(ticket)
        self._turns.end_process()

    def __repr__(self) -> str:
        return f"<SharedTable: {self._words[NUM_SEQUENCES]} sequences, {self._words[NUM_BYTES]} bytes>"

    def _recover(self) -> None:
        """Make the table consistent again after a process has ended while it changed it; twice gives the same."""
        self._log.recover()  # first: all else is made from the entries as they are then
        self._entries.rebuild()
        self._totals.rebuild()
        self._heap.rebuild()
        self._turns.recover()

    def _find_or_add(self, key: str, now: int) -> int:
        """The entry of a key; a new one where there is none, and where its sequence was idle for too long."""
        digest, entry = self._entries.find(key)
        if entry is None or (self._owner[entry] and self._end_if_idle(entry, now)):
            return self._entries.add(digest, self._holders.number_of(holder_of(key)))
        return entry

    def _end_if_idle(self, entry: int, now: int) -> bool:
        if self._ticket[entry] or now - self._used[entry] < self._ttl_ns:
            return False
        self._evict(entry, "idle")
        return True

    def _end_least_recent(self) -> None:
        while (entry := self._least_recent.find()) is not None:
            self._evict(entry, "lru")

    def _evict(self, entry: int, reason: Eviction) -> None:
        """End a sequence that no request has: from the moment in which its owner is 0."""
        owner = self._owners.at(self._owner[entry] - 1)
        self._totals.add(entry, -1)
        self._owner[entry] = 0
        self._heap.free(self._arrays.place[entry], self._arrays.size[entry])
        self._entries.forget(entry)
        self._on_evicted(owner, reason)


class _Change:
    """Has the memory's lock, and the table is consistent. Raises StoreUnavailable.

    Whoever ends within it, or fails otherwise than by StoreUnavailable, leaves a number that says so, and whoever has the lock
    next recovers the table first. A context of its own class: that of a generator takes a microsecond more for each request.
    """

    def __init__(self, memory: SharedMemory, arrays: TableArrays, recover: Callable[[], None]) -> None:
        self._memory, self._words, self._recover = memory, arrays.words, recover

    def acquire(self) -> None:
        """Take the lock, of a table that is consistent: to look at it alone."""
        self._memory.acquire()
        if self._words[CHANGING]:
            try:
                self._recover()
            except BaseException:
                self._memory.release()
                raise
            self._words[CHANGING] = 0

    def __enter__(self) -> None:
        self.acquire()
        self._words[CHANGING] = 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None or issubclass(kind, StoreUnavailable):
                self._words[CHANGING] = 0
        finally:
            self._memory.release()
