"""Sequences and their states: which request has which, in which order, and which sequences end when there are too many.

Pure: no I/O, no event loop, no threads; time comes from the clock it is given. What a state is, it does not know.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, NamedTuple, TypeVar

Eviction = Literal["idle", "lru"]
"""Why the table ended a sequence: nothing came for its time to live, or others were used later and there is no room."""

V = TypeVar("V")


class Bounds(NamedTuple):
    """How many sequences are kept, and for how long."""

    max_sequences: int = 100_000
    max_bytes: int = 256 * 2**20
    """Of all states together."""
    ttl_s: float = 3600.0
    """A sequence without a step for so long ends."""


class Owner(NamedTuple):
    """The version of a model that a state belongs to."""

    model: str
    version: int


class Stored(NamedTuple, Generic[V]):
    """What is kept of a sequence."""

    owner: Owner
    num_bytes: int
    value: V


class Found(NamedTuple, Generic[V]):
    """A sequence as it is now, for those that only look at it."""

    stored: Stored[V]
    idle_s: float
    is_busy: bool
    """Whether a request has it."""


@dataclass(slots=True)
class Total:
    """So many sequences: those of one version of a model, or of one holder."""

    num_sequences: int = 0
    num_bytes: int = 0


@dataclass(slots=True, eq=False)
class Ticket:
    """The places of one request in the queues of its sequences. It is granted when it is the first in all of them."""

    keys: tuple[str, ...]
    expires_at: float
    on_granted: Callable[[], None]
    num_waiting: int = 0
    """Of its sequences, those that other requests have."""
    is_valid: bool = True
    """Until it is finished, or its time is over."""

    @property
    def is_granted(self) -> bool:
        """Whether the sequences are this request's."""
        return self.num_waiting == 0


@dataclass(slots=True, eq=False)
class _Queue(Generic[V]):
    stored: Stored[V] | None
    tickets: list[Ticket]
    """The first one has the sequence. A list: of nearly all sequences it is the only one."""


@dataclass(slots=True, eq=False)
class _Share(Total):
    """The sequences of one holder."""

    idle: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Those that no request has; the one that was not used for longest is first."""


def holder_of(key: str) -> str:
    """Whose sequence it is, by its key as `SequenceKey.text` writes it; empty where requests need no API key."""
    if "\0" not in key:
        return ""
    return key.partition("\0")[0].partition("/")[2]


class SequenceTable(Generic[V]):
    """Sequences by their keys. A request takes tickets for all of its sequences at once, so no two wait for each other.

    A sequence that no request has ends when it was not used for `ttl_s`. When there are too many, it is the holder of most that
    loses the one that they did not use for longest: so nobody pushes out the sequences of others who keep fewer. Those that
    requests have are never ended: the bounds may be exceeded by as many.
    """

    def __init__(
        self, bounds: Bounds, now: Callable[[], float], on_evicted: Callable[[Owner, Eviction], None] = lambda owner, reason: None
    ) -> None:
        self._bounds = bounds
        self._now = now
        self._on_evicted = on_evicted
        self._idle: OrderedDict[str, tuple[Stored[V], float]] = OrderedDict()  # the one that was not used for longest is first
        self._busy: dict[str, _Queue[V]] = {}
        self._shares: dict[str, _Share] = {}  # of the holders that have any
        self._tickets: set[Ticket] = set()
        self.num_sequences = 0
        self.num_bytes = 0
        self.totals: dict[Owner, Total] = {}
        """A version of which nothing is kept any more stays, with zeros."""

    def enqueue(self, keys: Iterable[str], within_s: float, on_granted: Callable[[], None]) -> Ticket:
        """A ticket for these sequences, all different, for so many seconds.

        `on_granted` is called unless it is granted now: when it is, or when its time is over before.
        """
        now = self._now()
        self._end_idle(now)
        ticket = Ticket(tuple(keys), now + within_s, on_granted)
        for key in ticket.keys:
            queue = self._busy.get(key)
            if queue is None:
                self._busy[key] = _Queue(self._take_idle(key), [ticket])
            else:
                ticket.num_waiting += 1
                queue.tickets.append(ticket)
        self._tickets.add(ticket)
        return ticket

    def read(self, ticket: Ticket) -> list[Stored[V] | None]:
        """What is kept of the sequences of a granted ticket, None where there is nothing."""
        return [self._busy[key].stored for key in ticket.keys]

    def commit(self, ticket: Ticket, changes: Sequence[Stored[V] | None]) -> bool:
        """Keep this of each of its sequences, None: end it, and finish the ticket.

        False, and no change, where its time was over.
        """
        if not ticket.is_valid:
            return False
        for key, stored in zip(ticket.keys, changes, strict=True):
            queue = self._busy[key]
            before, queue.stored = queue.stored, stored
            if stored is not None and before is not None and stored[:2] == before[:2]:
                continue  # the next step of a sequence, as nearly all are: the totals stay
            if stored is not None:
                self._count(key, stored, 1)
            if before is not None:
                self._count(key, before, -1)
        self.release(ticket)
        return True

    def release(self, ticket: Ticket) -> None:
        """Finish the ticket, granted or not, and leave its sequences as they are."""
        if not ticket.is_valid:
            return
        ticket.is_valid = False
        self._tickets.discard(ticket)
        now = self._now()
        granted = []
        for key in ticket.keys:
            queue = self._busy[key]
            if len(queue.tickets) == 1:
                del self._busy[key]
                if queue.stored is not None:
                    self._idle[key] = queue.stored, now
                    self._shares[holder_of(key)].idle[key] = None
                continue
            was_first = queue.tickets[0] is ticket
            queue.tickets.remove(ticket)
            if was_first:
                following = queue.tickets[0]
                following.num_waiting -= 1
                if following.is_granted:
                    granted.append(following)
        self._end_least_recent()
        for following in granted:
            following.on_granted()

    def find(self, key: str) -> Found[V] | None:
        """The sequence as it is, whoever has it; looking at it is no use."""
        now = self._now()
        self._end_idle(now)
        queue = self._busy.get(key)
        if queue is not None:
            return None if queue.stored is None else Found(queue.stored, 0.0, True)
        idle = self._idle.get(key)
        return None if idle is None else Found(idle[0], now - idle[1], False)

    def expire(self) -> None:
        """End what is idle for too long, and the tickets whose time is over. To be called now and then."""
        now = self._now()
        self._end_idle(now)
        for ticket in [ticket for ticket in self._tickets if ticket.expires_at <= now]:
            has_waited = not ticket.is_granted
            self.release(ticket)
            if has_waited:
                ticket.on_granted()

    def __repr__(self) -> str:
        return f"<SequenceTable: {self.num_sequences} sequences, {self.num_bytes} bytes, {len(self._busy)} busy>"

    def _end_idle(self, now: float) -> None:
        while self._idle:
            key, (_, used_at) = next(iter(self._idle.items()))
            if now - used_at < self._bounds.ttl_s:
                return
            self._evict(key, "idle")

    def _end_least_recent(self) -> None:
        while self._idle:
            if self.num_bytes > self._bounds.max_bytes:
                share = max(self._shares.values(), key=lambda share: share.num_bytes if share.idle else -1)
            elif self.num_sequences > self._bounds.max_sequences:
                share = max(self._shares.values(), key=lambda share: share.num_sequences if share.idle else -1)
            else:
                return
            self._evict(next(iter(share.idle)), "lru")

    def _take_idle(self, key: str) -> Stored[V] | None:
        """What is kept of a sequence that no request has; it is now none of these."""
        idle = self._idle.pop(key, None)
        if idle is None:
            return None
        del self._shares[holder_of(key)].idle[key]
        return idle[0]

    def _evict(self, key: str, reason: Eviction) -> None:
        stored = self._take_idle(key)
        assert stored is not None
        self._count(key, stored, -1)
        self._on_evicted(stored.owner, reason)

    def _count(self, key: str, stored: Stored[V], sign: int) -> None:
        total = self.totals.get(stored.owner)
        if total is None:
            total = self.totals[stored.owner] = Total()
        holder = holder_of(key)
        share = self._shares.get(holder)
        if share is None:
            share = self._shares[holder] = _Share()
        for each in (total, share):
            each.num_sequences += sign
            each.num_bytes += sign * stored.num_bytes
        if not share.num_sequences:
            del self._shares[holder]
        self.num_sequences += sign
        self.num_bytes += sign * stored.num_bytes
