"""How connections come to workers: the parent accepts each one and sends it to the worker with the fewest.

Knows nothing of HTTP, and nothing of how workers start and end.

Workers do not accept for themselves: on one shared socket the worker that wakes first takes all that waits, and with a socket
per worker (SO_REUSEPORT) the kernel's hash spreads unevenly, and what it gave to a worker that dies or hangs is lost
(docs/explanation/performance.md). A connection is sent once, so its requests pay nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ctypes import Array, c_uint64
from multiprocessing.context import BaseContext
from typing import NamedTuple

# With so many connections that it has not received yet, a worker's loop is held up: others get the next.
MAX_IN_TRANSIT = 64
# The number of a worker's end of its channel, above those of its connections.
CHANNEL_FILE = 16_383


class Slot:
    """The counters that one worker shows to its parent, in memory that both see. Only the worker writes."""

    SIZE = 3

    def __init__(self, numbers: Array[c_uint64], number: int) -> None:
        self.number = number
        self._numbers = numbers
        self._at = number * self.SIZE

    def clear(self) -> None:
        """Reset the counters of a worker that has ended, for its successor."""
        for place in range(self.SIZE):
            self._numbers[self._at + place] = 0

    def count_heartbeat(self) -> None:
        """The worker's event loop runs."""
        self._numbers[self._at] += 1

    def count_received(self) -> None:
        """The worker received a connection."""
        self._numbers[self._at + 1] += 1

    def count_closed(self) -> None:
        """A connection that was received is closed."""
        self._numbers[self._at + 2] += 1

    @property
    def num_heartbeats(self) -> int:
        return self._numbers[self._at]

    @property
    def num_received(self) -> int:
        return self._numbers[self._at + 1]

    @property
    def num_closed(self) -> int:
        return self._numbers[self._at + 2]


def create_slots(context: BaseContext, num_workers: int) -> list[Slot]:
    """One slot for each worker that is started in this context."""
    numbers = context.RawArray(c_uint64, num_workers * Slot.SIZE)
    return [Slot(numbers, number) for number in range(num_workers)]


class WorkerLoad(NamedTuple):
    """How busy a worker is when a connection arrives."""

    is_ready: bool
    """Its models are loaded, and its event loop runs."""
    num_in_transit: int
    """Connections that were sent to it and that it has not received yet."""
    num_open: int
    """Connections that were sent to it and are not closed."""


def choose_worker(loads: Sequence[WorkerLoad], start: int) -> int | None:
    """The worker for the next connection, by its place: the one with the fewest, from `start` on where several have as few.

    As long as a worker is ready, only those that are ready count. None when all have too many in transit.
    """
    is_any_ready = any(load.is_ready for load in loads)
    count = len(loads)
    places = [
        place
        for place in range(count)
        if loads[place].num_in_transit < MAX_IN_TRANSIT and (loads[place].is_ready or not is_any_ready)
    ]
    return min(places, key=lambda place: (loads[place].num_open, (place - start) % count), default=None)


def move_to_high_number(channel: socket.socket) -> socket.socket:
    """The same end of a channel under a high file number, in place of the given one.

    A dying process closes its files from the last to the first (Linux 6.18): the channel is then closed before the connections
    are, and clients that connect again are not sent to the dying worker once more.
    """
    import fcntl  # Unix only, as are several workers
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = CHANNEL_FILE if limit == resource.RLIM_INFINITY else min(CHANNEL_FILE, limit - 1)
    try:
        file = fcntl.fcntl(channel, fcntl.F_DUPFD_CLOEXEC, number)
    except OSError:  # there is one already
        return channel
    channel.close()
    high = socket.socket(fileno=file)
    high.setblocking(False)
    return high


def send_connection(channel: socket.socket, connection: socket.socket) -> bool:
    """Send a connection to the worker at the other end; False when it cannot take it: it has ended, or its channel is full.

    The connection is left open here, for the caller to close.
    """
    try:
        socket.send_fds(channel, [b"c"], [connection.fileno()])
    except OSError:
        return False
    return True


def receive_connection(channel: socket.socket) -> socket.socket | None:
    """The next connection, which does not block. Raises BlockingIOError when there is none now, EOFError when the parent ended.

    None for a connection that was lost in transit because this process has too many files open.
    """
    try:
        message, files, _, _ = socket.recv_fds(channel, 1, 1)
    except ConnectionError as exc:
        raise EOFError from exc
    if not message:
        raise EOFError
    if not files:
        return None
    connection = socket.socket(fileno=files[0])
    connection.setblocking(False)
    # As the event loop does with those that it accepts itself.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
