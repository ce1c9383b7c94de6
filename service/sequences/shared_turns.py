"""Which request has which sequences of a shared table, and which wait for them, in the order in which they came."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import getpid

import numpy as np
import numpy.typing as npt

from service.errors import StoreUnavailable
from service.sequences.shared_arrays import MAX_WAITING, TICKET, WAIT_WORDS, WAITING, TableArrays
from service.sequences.shared_entries import Entries
from service.sequences.shared_memory import SharedMemory

MAX_PROCESSES = 4096


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


class Turns:
    """The tickets of a table: each entry has at most one that has it, all others wait for their turns.

    Killed anywhere, a process leaves each entry to somebody: its ticket is one number, which is set last when it is taken, and
    when it is handed on. Turns are dropped by writing the others into a second place and setting the one number that says where
    they are; what was handed on by a process that was killed before is found by `recover`. What a process that is killed still
    has is taken from it by those that wait for it (`poll`), by all now and then (`expire`), and by the next one with its number.
    """

    def __init__(self, arrays: TableArrays, memory: SharedMemory, entries: Entries) -> None:
        self._arrays, self._memory, self._entries, self._words = arrays, memory, entries, arrays.words
        self._ticket, self._process, self._expires = arrays.ticket, arrays.process, arrays.expires
        self._halves = np.frombuffer(arrays.waiting, np.uint64).reshape(2, MAX_WAITING, WAIT_WORDS)
        self._number: int | None = None  # of this process, once it has taken one
        self._pid = 0
        self._granted: list[int] = []
        self.tickets: dict[int, SharedTicket] = {}
        """Those of this process, by their numbers."""

    def enqueue(self, entries: Iterable[int], now: int, expires: int) -> SharedTicket:
        """A ticket of this process for these entries, each taken as soon as it is there: finding the next may fail.

        Raises StoreUnavailable, and what `entries` raises of it; nothing is taken then.
        """
        process = self._claim(now)
        ticket_of, expires_of, process_of = self._ticket, self._expires, self._process
        number = self._words[TICKET] = self._words[TICKET] + 1
        taken: list[int] = []
        waiting: list[int] = []
        try:
            for entry in entries:
                taken.append(entry)
                if ticket_of[entry]:
                    waiting.append(entry)
                else:
                    expires_of[entry], process_of[entry], ticket_of[entry] = expires, process, number
            self._wait(number, waiting, process, expires)
        except StoreUnavailable:
            self._leave(number, taken, now)
            raise
        ticket = self.tickets[number] = SharedTicket(number, taken, expires, not waiting)
        return ticket

    def has_all(self, ticket: SharedTicket) -> bool:
        """Whether a ticket, once granted, still has its sequences: others may get them when its time is over."""
        return ticket.is_valid and all(self._ticket[entry] == ticket.number for entry in ticket.entries)

    def finish(self, ticket: SharedTicket, now: int) -> None:
        """Take a ticket of this process out of all queues; the next ones get what it had."""
        ticket.is_valid = False
        self.tickets.pop(ticket.number, None)
        self._leave(ticket.number, ticket.entries, now)

    def poll(self, now: int) -> None:
        """See which tickets of this process, of those that wait, are granted now or no longer valid (`take_granted`)."""
        self._drop_lost({self._ticket[entry]: entry for entry in {*self.waiting()[:, 1].tolist()}}, now)
        waiting = {*self.waiting()[:, 0].tolist()}
        for ticket in [ticket for ticket in self.tickets.values() if not ticket.is_granted]:
            if ticket.number not in waiting or ticket.expires_ns <= now:
                ticket.is_granted = True  # or its time is over: who waits for it is told
                self._granted.append(ticket.number)
                if ticket.expires_ns <= now or not self.has_all(ticket):
                    self.finish(ticket, now)

    def expire(self, now: int) -> None:
        """Finish all tickets whose time is over or whose process has ended."""
        ticket = self._arrays.numbers_of_entries("ticket")
        held = np.flatnonzero(ticket)
        self._drop_lost(dict(zip(ticket[held].tolist(), held.tolist(), strict=True)), now)

    def take_granted(self) -> list[int]:
        """The tickets of this process that were granted, or are no longer valid, by what it did since it asked last."""
        granted, self._granted = self._granted, []
        return granted

    def waiting(self) -> npt.NDArray[np.uint64]:
        """The turns that are waited for, in the order in which they came: ticket, entry, process, end of its time."""
        num, half = divmod(self._words[WAITING], 2)
        return self._halves[half, :num]

    def recover(self) -> None:
        """Drop the turns of entries that the ticket has already, or that nobody has: a process was killed before it did."""
        turns = self.waiting()
        had_by = self._arrays.numbers("ticket")[turns[:, 1]]
        self._keep((had_by != 0) & (had_by != turns[:, 0]))

    def end_process(self) -> None:
        """Take the lock, and give back the number of this process, which has no ticket any more. Raises StoreUnavailable."""
        if self._number is not None and self._pid == getpid():
            self._memory.acquire()
            self._memory.end(self._number)
            self._number = None
            self._memory.release()

    def _claim(self, now: int) -> int:
        """The number of this process, which others see to live."""
        if self._number is None or self._pid != getpid():
            self._pid = getpid()
            number = next(filter(self._memory.live, range(1, MAX_PROCESSES)), None)
            if number is None:
                raise StoreUnavailable("too many processes use the states of sequences")
            self._leave_all(number, now)  # one that had it before
            self._number = number
            self.tickets.clear()
        return self._number

    def _is_alive(self, process: int) -> bool:
        return not self._memory.is_free(process)

    def _wait(self, number: int, entries: Sequence[int], process: int, expires: int) -> None:
        if not entries:
            return
        num, half = divmod(self._words[WAITING], 2)
        if num + len(entries) > MAX_WAITING:
            raise StoreUnavailable("too many requests wait for their sequences")
        self._halves[half, num : num + len(entries)] = [(number, entry, process, expires) for entry in entries]
        self._words[WAITING] += 2 * len(entries)

    def _keep(self, are_kept: npt.NDArray[np.bool_]) -> None:
        """Drop the other turns; at once, whenever this process is killed."""
        kept = self.waiting()[are_kept]
        half = 1 - self._words[WAITING] % 2
        self._halves[half, : len(kept)] = kept
        self._words[WAITING] = 2 * len(kept) + half

    def _leave(self, number: int, entries: Sequence[int], now: int) -> None:
        """Take a ticket out of all queues; the next ones get what it had."""
        ticket, used, owner = self._ticket, self._arrays.used, self._arrays.owner
        if self._words[WAITING] > 1:
            are_others = self.waiting()[:, 0] != number
            if not are_others.all():
                self._keep(are_others)
            self._hand_on([entry for entry in entries if ticket[entry] == number], now)
        for entry in entries:
            if ticket[entry] != number:
                continue
            used[entry] = now
            ticket[entry] = 0
            if not owner[entry]:
                self._entries.forget(entry)

    def _hand_on(self, entries: Sequence[int], now: int) -> None:
        """Give each of these entries to the first that waits for it and lives; where there is none it stays whose it is."""
        turns = self.waiting()
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
        self._keep(are_kept)
        own = [self.tickets[number] for number in following if number in self.tickets]
        if own:
            still_waiting = {*self.waiting()[:, 0].tolist()}
            for ticket in own:
                if ticket.number not in still_waiting:
                    ticket.is_granted = True
                    self._granted.append(ticket.number)

    def _drop_lost(self, holders: dict[int, int], now: int) -> None:
        """Finish those of these tickets, each with one entry that it has, whose time is over or whose process has ended."""
        for number, entry in holders.items():
            if number and (self._expires[entry] <= now or not self._is_alive(self._process[entry])):
                own = self.tickets.pop(number, None)
                if own is not None:
                    own.is_valid = False
                    self._granted.append(number)  # who waits for it is told
                self._leave(number, self._entries_of(number), now)

    def _leave_all(self, process: int, now: int) -> None:
        """Finish the tickets of a process that has ended."""
        self._keep(self.waiting()[:, 2] != process)
        ticket, had_by = self._arrays.numbers_of_entries("ticket"), self._arrays.numbers_of_entries("process")
        for number in {*ticket[(ticket > 0) & (had_by == process)].tolist()}:
            self._leave(number, self._entries_of(number), now)

    def _entries_of(self, number: int) -> list[int]:
        """Those that a ticket has."""
        return np.flatnonzero(self._arrays.numbers_of_entries("ticket") == number).tolist()
