"""Where the states of sequences are kept between requests, as every store does it; and the store in the memory of one process.

Knows nothing of models, HTTP or Prometheus.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from service.errors import DeadlineExceeded, StateError
from service.sequences.state import SequenceState
from service.sequences.table import Bounds, Eviction, Owner, SequenceTable, Stored, Total

log = logging.getLogger(__name__)

EXPIRY_INTERVAL_S = 1.0
"""How often a store looks for sequences and requests whose time is over."""
MARGIN_S = 5.0
"""A request has its sequences for so much longer than it may take: then it is known to have ended without a word."""


class SequenceKey(NamedTuple):
    """A sequence of a model; the same id of another model, or of another holder, is another sequence."""

    model: str
    id: str
    holder: str = ""
    """The name of the API key whose sequence it is; empty where requests need none."""

    @property
    def text(self) -> str:
        """All in one; the name of a model has no slash, an id no control character."""
        return f"{self.model}/{self.holder}\0{self.id}" if self.holder else f"{self.model}/{self.id}"


class Checkout(NamedTuple):
    """Sequences that one request has: no other one reads or changes them until it is committed or released."""

    keys: Sequence[SequenceKey]
    states: list[SequenceState | None]
    """None: there is no such sequence."""
    ticket: Any
    """The store's own."""


class StoredSequence(NamedTuple):
    """A sequence as it is kept now."""

    state: SequenceState
    idle_s: float
    is_busy: bool
    """Whether a request has it."""


Totals = Mapping[Owner, Total]


class SequenceStore(Protocol):
    """Keeps the states of sequences, each with a queue of the requests that want it, in the order in which they came.

    Every method belongs to one event loop. All but `release` raise StoreUnavailable where the store cannot be reached.
    """

    async def checkout(self, keys: Sequence[SequenceKey], within_s: float) -> Checkout:
        """The sequences, all different, once the requests that came before are finished; to be committed or released.

        After `within_s`, and some margin, other requests may get them; whoever waits for so long gets DeadlineExceeded. Whoever
        cancels it leaves the queues.
        """
        ...

    def commit(self, checkout: Checkout, states: Sequence[SequenceState | None]) -> asyncio.Future[None]:
        """Keep these states, None: end the sequence; all of them, or none where the future fails. The checkout is over.

        It has begun when this returns, whoever awaits it. Fails with DeadlineExceeded where others may have got the sequences.
        """
        ...

    def release(self, checkout: Checkout) -> None:
        """Leave the sequences as they were; the checkout is over."""
        ...

    async def find(self, key: SequenceKey) -> StoredSequence | None:
        """A sequence as it is, without waiting for the requests that have it."""
        ...

    async def run(self) -> None:
        """What the store does by itself, without end: it is cancelled when the server ends."""
        ...

    async def close(self) -> None:
        """End what it has opened; no request has a sequence any more."""
        ...


class StoreObserver(Protocol):
    """What happens to the sequences of a store without a request for them."""

    def evicted(self, owner: Owner, reason: Eviction) -> None:
        """A sequence ended."""
        ...

    def counted(self, totals: Totals) -> None:
        """So many are kept now, of each version of a model."""
        ...


class SilentStoreObserver:
    """Ignores every event."""

    def evicted(self, owner: Owner, reason: Eviction) -> None:
        pass

    def counted(self, totals: Totals) -> None:
        pass


class MemoryStore:
    """Keeps states in this process: for a server of one."""

    def __init__(
        self,
        bounds: Bounds,
        observer: StoreObserver | None = None,
        now: Callable[[], float] = time.monotonic,
        *,
        margin_s: float = MARGIN_S,
    ) -> None:
        self._margin_s = margin_s
        self._observer: StoreObserver = observer or SilentStoreObserver()
        self.table: SequenceTable[SequenceState] = SequenceTable(bounds, now, self._observer.evicted)

    async def checkout(self, keys: Sequence[SequenceKey], within_s: float) -> Checkout:
        granted: asyncio.Future[None] | None = None

        def grant() -> None:
            if granted is not None and not granted.done():
                granted.set_result(None)

        ticket = self.table.enqueue([key.text for key in keys], within_s + self._margin_s, grant)
        if not ticket.is_granted:
            granted = asyncio.get_running_loop().create_future()
            try:
                await granted
            except BaseException:
                self.table.release(ticket)
                raise
        if not ticket.is_valid:
            raise lost_checkout()
        return Checkout(keys, [stored and stored.value for stored in self.table.read(ticket)], ticket)

    def commit(self, checkout: Checkout, states: Sequence[SequenceState | None]) -> asyncio.Future[None]:
        is_kept = self.table.commit(checkout.ticket, to_changes(states))
        return finished(None if is_kept else lost_checkout())

    def release(self, checkout: Checkout) -> None:
        self.table.release(checkout.ticket)

    async def find(self, key: SequenceKey) -> StoredSequence | None:
        found = self.table.find(key.text)
        return None if found is None else StoredSequence(found.stored.value, found.idle_s, found.is_busy)

    async def run(self) -> None:
        while True:
            self.table.expire()
            self._observer.counted(self.table.totals)
            await asyncio.sleep(EXPIRY_INTERVAL_S)

    async def close(self) -> None:
        pass

    def __repr__(self) -> str:
        return f"<MemoryStore {self.table!r}>"


def owners_of(states: Sequence[SequenceState | None]) -> list[Owner | None]:
    """Whose states they are: the same object for those of one graph."""
    owners: list[Owner | None] = []
    identity, owner = None, None
    for state in states:
        if state is not None and state.identity is not identity:  # that of the one before, as a rule
            identity = state.identity
            owner = Owner(identity.model, identity.version)
        owners.append(None if state is None else owner)
    return owners


def to_changes(states: Sequence[SequenceState | None]) -> list[Stored[SequenceState] | None]:
    """The states of one commit as the table keeps them."""
    return [
        None if state is None or owner is None else Stored(owner, state.num_bytes, state)
        for state, owner in zip(states, owners_of(states), strict=True)
    ]


def read_block(block: bytes | None) -> SequenceState | None:
    """The state that a block holds; None, and a line in the log, for one that cannot be read: its sequence has to start anew."""
    try:
        return None if block is None else SequenceState.from_kept(block)
    except StateError as exc:
        log.error("the state that is kept of a sequence cannot be read", extra={"reason": exc.message})
        return None


def finished(error: Exception | None = None) -> asyncio.Future[None]:
    """A future that is done, or has failed."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
    return future


def kept_by(answer: asyncio.Future[Any]) -> asyncio.Future[None]:
    """What `commit` returns where others carry it out: done when their answer is true, failed as the answer is or is false.

    Whoever waits may be cancelled meanwhile: the answer then changes nothing here.
    """
    kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish(answer: asyncio.Future[Any]) -> None:
        error = answer.exception() or (None if answer.result() else lost_checkout())
        if kept.done():
            return
        if error is None:
            kept.set_result(None)
        else:
            kept.set_exception(error)

    answer.add_done_callback(finish)
    return kept


def lost_checkout() -> DeadlineExceeded:
    """How a step fails that took so long that others may have got its sequences."""
    return DeadlineExceeded("the step took longer than it may have its sequence: nothing of it was kept")
