"""How many connections there may be, and how long each may be in its phases: slow, silent and idle ones are closed.

Decides on what a connection shows of itself; the protocol (`regular_path.py`) acts. Nothing is timed per request: one sweep
looks at all connections now and then, as long as there are any.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from service.errors import ConnectionReason, Overloaded

SWEEP_INTERVAL_S = 0.5
SWEEP_AT_ONCE = 500
"""So many connections are looked at in one turn of the loop: some 0.3 ms."""
MIN_RATE = 16 * 1024
"""Bytes per second below which a body, or the reading of an answer, is slow once its time is over: 128 kbit/s."""
STREAMS_SHARE = 0.5
"""Of the connections, those that may carry streams."""
LEAST_BODY_S = 1.0
"""For so long a body may arrive in any case while the server drains."""


class Phase(enum.IntEnum):
    """What a connection waits for."""

    REQUEST = 0
    """The next request to begin, or the answer to the last one."""
    HEAD = 1
    """The end of a head that has begun."""
    BODY = 2
    """The end of a body whose head is complete."""


class ConnectionLimits(NamedTuple):
    """What a connection may take, in seconds, and how many there may be."""

    header_timeout_s: float = 10.0
    body_timeout_s: float = 10.0
    send_timeout_s: float = 30.0
    max_connections: int = 10_000
    drain_s: float = 5.0
    """For so long a server that ends goes on serving."""


class StreamLimit:
    """How many connections may carry streams at a time.

    A stream lasts as long as its client likes and is never idle, so it makes room for no other connection: without a bound of
    their own a few slow clients would take all that there may be.
    """

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self._num_streams = 0

    @contextlib.contextmanager
    def begin(self) -> Iterator[None]:
        """A stream lasts as long as the block. Raises Overloaded where there are too many."""
        if self._num_streams >= self._max_streams:
            raise Overloaded("there are too many streams", retry_after_s=1.0, limit=self._max_streams)
        self._num_streams += 1
        try:
            yield
        finally:
            self._num_streams -= 1

    def __repr__(self) -> str:
        return f"<StreamLimit {self._num_streams} of {self._max_streams}>"


class Connection(Protocol):
    """A connection as it is seen here."""

    phase: Phase
    phase_began_at: float
    """In the loop's seconds; of HEAD and BODY."""
    num_body_bytes: int
    """Received of the body so far."""
    num_drains: int
    """How often what had piled up to be sent was mostly sent."""

    @property
    def idle_since(self) -> object | None:
        """None while a request is received or answered; else an object that is another one after the next request."""
        ...

    @property
    def is_held(self) -> bool:
        """Whether this side has stopped reading: the client then cannot be late."""
        ...

    @property
    def keep_alive_s(self) -> float: ...

    @property
    def num_unsent_bytes(self) -> int: ...

    def time_out(self, reason: ConnectionReason) -> None:
        """Answer as the reason wants it, and close."""
        ...


class ConnectionObserver(Protocol):
    def connection_closed(self, reason: ConnectionReason) -> None:
        """A connection was closed, or refused, by the server."""
        ...


class SilentConnectionObserver:
    """Ignores every event."""

    def connection_closed(self, reason: ConnectionReason) -> None:
        pass


class _Record:
    """What was seen of a connection in earlier sweeps."""

    __slots__ = ("idle_from", "idle_since", "num_drains", "num_unsent_bytes", "unsent_from")

    def __init__(self, now: float) -> None:
        self.idle_since: object | None = None
        self.idle_from = now
        self.unsent_from: float | None = None
        self.num_unsent_bytes = 0
        self.num_drains = 0


class ConnectionMonitor:
    """The connections of one event loop, within limits."""

    def __init__(
        self,
        limits: ConnectionLimits | None = None,
        observer: ConnectionObserver | None = None,
        interval_s: float | None = None,
    ) -> None:
        """`interval_s` between sweeps; None: short enough for the shortest limit."""
        self.limits = limits or ConnectionLimits()
        self.observer: ConnectionObserver = observer or SilentConnectionObserver()
        self._interval_s = interval_s or min(SWEEP_INTERVAL_S, min(self.limits[:3]) / 4)
        self._records: dict[Connection, _Record] = {}
        # Those that may be closed to make room, the idle ones first: as the last sweep found them.
        self._spare: deque[Connection] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due_at = 0.0
        self._drains_from: float | None = None
        self._num_handshakes = 0

    def start_draining(self) -> None:
        """The server ends: a body that has not come when it has drained, at whatever rate, is awaited no more."""
        self._drains_from = -math.inf if self._loop is None else self._loop.time()

    @property
    def num_connections(self) -> int:
        return len(self._records)

    def add(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether there is room for a new connection, if need be in place of an idle one.

        One that came by a handshake has its place already.
        """
        if not self._num_handshakes and self._is_full and not self._make_room():
            self.observer.connection_closed("too_many")
            return False
        self._records[connection] = _Record(loop.time())
        if self._loop is None:
            self._loop = loop
            self._set_timer(loop)
        return True

    @property
    def _is_full(self) -> bool:
        return len(self._records) + self._num_handshakes >= self.limits.max_connections

    def begin_handshake(self) -> bool:
        """Whether there is room for a connection that is to begin with a handshake: it takes a place until `end_handshake`."""
        if self._is_full and not self._make_room():
            self.observer.connection_closed("too_many")
            return False
        self._num_handshakes += 1
        return True

    def replace_handshake(self) -> None:
        """Begin a handshake in the place of another one, which is ended."""
        self._num_handshakes += 1

    def end_handshake(self) -> None:
        """A handshake is over: its connection was added, or has ended."""
        self._num_handshakes -= 1

    def remove(self, connection: Connection) -> None:
        """The connection has ended."""
        self._records.pop(connection, None)

    def _make_room(self) -> bool:
        """Close a connection that waits for its next request, or else one whose head has not come within a sweep.

        In the order in which they were found: what is idle for the longest time is not worth searching for at each connect.
        """
        while self._spare:
            connection = self._spare.popleft()
            record = self._records.get(connection)
            if record is None:
                continue
            is_idle = connection.idle_since is not None and connection.idle_since is record.idle_since
            if is_idle or connection.phase is Phase.HEAD:
                # No longer counted from here on: the transport reports its end in the next turn only.
                del self._records[connection]
                self._close(connection, "evicted")
                return True
        return False

    def _close(self, connection: Connection, reason: ConnectionReason) -> None:
        self.observer.connection_closed(reason)
        connection.time_out(reason)

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_at = loop.time() + self._interval_s
        loop.call_later(self._interval_s, self._begin_sweep, loop)

    def _begin_sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._records:
            self._loop = None  # until the next connection
            self._spare.clear()
            return
        if loop.time() > self._due_at + self._interval_s:
            # The loop has stood still: what clients sent meanwhile has not been read yet.
            self._set_timer(loop)
            return
        self._sweep(loop, iter(list(self._records.items())), [], [])

    def _sweep(
        self,
        loop: asyncio.AbstractEventLoop,
        remaining: Iterator[tuple[Connection, _Record]],
        idle: list[Connection],
        heads: list[Connection],
    ) -> None:
        now = loop.time()
        for _ in range(SWEEP_AT_ONCE):
            found = next(remaining, None)
            if found is None:
                self._spare = deque((*idle, *heads))
                self._set_timer(loop)
                return
            connection, record = found
            if connection not in self._records:
                continue
            reason = find_reason(connection, record, now, self.limits, self._interval_s, self._drains_from)
            if reason is not None:
                self._close(connection, reason)
            elif connection.phase is Phase.HEAD and now - connection.phase_began_at > self._interval_s:
                heads.append(connection)
            elif connection.idle_since is not None:
                idle.append(connection)
        loop.call_soon(self._sweep, loop, remaining, idle, heads)


def find_reason(
    connection: Connection,
    record: _Record,
    now: float,
    limits: ConnectionLimits,
    interval_s: float,
    drains_from: float | None = None,
) -> ConnectionReason | None:
    """Why a connection is to be closed now; None: it is not. Keeps the record up to date.

    `drains_from` is since when the server drains.
    """
    unsent = connection.num_unsent_bytes
    if unsent:
        sent = record.num_unsent_bytes - unsent
        has_drained = connection.num_drains != record.num_drains
        if record.unsent_from is None or has_drained or sent >= MIN_RATE * limits.send_timeout_s:
            record.unsent_from, record.num_unsent_bytes, record.num_drains = now, unsent, connection.num_drains
        elif now - record.unsent_from > limits.send_timeout_s:
            return "send_timeout"
        return None
    record.unsent_from = None
    if connection.phase is Phase.REQUEST:
        since = connection.idle_since
        if since is None or since is not record.idle_since:
            record.idle_since, record.idle_from = since, now
        elif now - record.idle_from > connection.keep_alive_s:
            return "idle"
        return None
    if connection.is_held:
        connection.phase_began_at += interval_s
        return None
    age_s = now - connection.phase_began_at
    if connection.phase is Phase.HEAD:
        return "header_timeout" if age_s > limits.header_timeout_s else None
    if age_s > limits.body_timeout_s + connection.num_body_bytes / MIN_RATE:
        return "body_timeout"
    if drains_from is not None and now > max(drains_from + limits.drain_s, connection.phase_began_at + LEAST_BODY_S):
        return "drained"
    return None
