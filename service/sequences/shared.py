"""The store that several processes of one machine share: a table in memory that all of them have.

No process keeps it: one that ends, killed or not, takes no state with it, and what it had is free again. Unix only, as are
several workers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from service.errors import StoreUnavailable
from service.sequences.shared_arrays import table_bytes
from service.sequences.shared_memory import SharedMemory
from service.sequences.shared_table import SharedTable
from service.sequences.shared_turns import SharedTicket
from service.sequences.state import SequenceState, read_bodies
from service.sequences.store import (
    EXPIRY_INTERVAL_S,
    MARGIN_S,
    Checkout,
    SequenceKey,
    SilentStoreObserver,
    StoredSequence,
    StoreObserver,
    finished,
    lost_checkout,
    owners_of,
)
from service.sequences.table import Bounds

log = logging.getLogger(__name__)

MIN_POLL_S, MAX_POLL_S = 0.001, 0.016
"""How often a process looks whether those that its requests wait for, in other processes, are finished."""

YIELD_S = 0.005
"""For so long others have the memory to themselves while very many sequences end; longer than they wait between two tries."""


def create_memory(bounds: Bounds, folder: Path | None = None) -> SharedMemory:
    """The memory of a store with these bounds, to be given to each of its processes. Raises OSError."""
    return SharedMemory.create(table_bytes(bounds), folder)


class SharedStore:
    """The store as one of the processes sees it."""

    def __init__(
        self,
        memory: SharedMemory,
        bounds: Bounds,
        observer: StoreObserver | None = None,
        *,
        margin_s: float = MARGIN_S,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._margin_s = margin_s
        self.observer: StoreObserver = observer or SilentStoreObserver()
        self.table = SharedTable(memory, bounds, now_ns, self.observer.evicted)
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._unreleased: list[SharedTicket] = []
        self._poll_s = MIN_POLL_S
        self._poller: asyncio.TimerHandle | None = None
        self._is_open = True

    async def checkout(self, keys: Sequence[SequenceKey], within_s: float) -> Checkout:
        ticket = self.table.enqueue([key.text for key in keys], within_s + self._margin_s)
        try:
            if not ticket.is_granted:
                await self._wait(ticket)
            states = read_bodies(self.table.read(ticket))
            if not ticket.is_valid:
                raise lost_checkout() if self._is_open else StoreUnavailable("this process is ending")
        except BaseException:
            self._release(ticket)
            raise
        return Checkout(keys, states, ticket)

    def commit(self, checkout: Checkout, states: Sequence[SequenceState | None]) -> asyncio.Future[None]:
        bodies = [None if state is None else state.body for state in states]
        try:
            is_kept = self.table.commit(checkout.ticket, owners_of(states), bodies)
        except StoreUnavailable as exc:
            self._release(checkout.ticket)
            return finished(exc)
        finally:
            self._wake()
        return finished(None if is_kept else lost_checkout())

    def release(self, checkout: Checkout) -> None:
        self._release(checkout.ticket)

    async def find(self, key: SequenceKey) -> StoredSequence | None:
        found = self.table.find(key.text)
        return None if found is None else StoredSequence(SequenceState.from_body(found.stored.value), found.idle_s, found.is_busy)

    async def run(self) -> None:
        while True:
            unreleased, self._unreleased = self._unreleased, []
            for ticket in unreleased:
                self._release(ticket)
            has_more = False
            try:
                has_more = self.table.expire(EXPIRY_INTERVAL_S / 2)
                self.observer.counted(self.table.totals())
            except StoreUnavailable as exc:
                log.warning("the states of sequences cannot be reached", extra={"reason": exc.message})
            self._wake()
            await asyncio.sleep(YIELD_S if has_more else EXPIRY_INTERVAL_S)

    async def close(self) -> None:
        self._is_open = False
        try:
            self.table.close()
        except StoreUnavailable as exc:  # the end of the process releases all
            log.warning("the states of sequences cannot be reached", extra={"reason": exc.message})
        for granted in self._waiting.values():
            if not granted.done():
                granted.set_result(None)

    def __repr__(self) -> str:
        return f"<SharedStore {self.table!r}, {len(self._waiting)} requests waiting>"

    async def _wait(self, ticket: SharedTicket) -> None:
        """Until it is granted, or no longer valid."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[ticket.number] = granted
        if self._poller is None or self._poll_s > MIN_POLL_S:
            self._poll_after(MIN_POLL_S)
        try:
            await granted
        finally:
            del self._waiting[ticket.number]

    def _poll_after(self, delay_s: float) -> None:
        if self._poller is not None:
            self._poller.cancel()
        self._poll_s = delay_s
        self._poller = asyncio.get_running_loop().call_later(delay_s, self._poll)

    def _poll(self) -> None:
        """Look once for all requests that wait here: each for itself would take the whole processor where many wait."""
        self._poller = None
        if not self._waiting:
            return
        try:
            self.table.poll()
        except StoreUnavailable as exc:  # they wait on, until their own time is over
            log.warning("the states of sequences cannot be reached", extra={"reason": exc.message})
        self._wake()
        self._poll_after(min(2 * self._poll_s, MAX_POLL_S))

    def _release(self, ticket: SharedTicket) -> None:
        try:
            self.table.release(ticket)
        except StoreUnavailable as exc:  # others wait for them
            self._unreleased.append(ticket)
            log.warning("sequences cannot be released", extra={"reason": exc.message})
        self._wake()

    def _wake(self) -> None:
        for number in self.table.take_granted():
            waiting = self._waiting.get(number)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
