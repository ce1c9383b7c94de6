"""How connections come to workers: the parent accepts each one and sends it to the worker with the fewest.

Knows nothing of HTTP, and nothing of how workers start and end.

Workers do not accept for themselves: on one shared socket the worker that wakes first takes all that waits, and with a socket
per worker (SO_REUSEPORT) the kernel's hash spreads unevenly, and what it gave to a worker that dies or hangs is lost
(docs/explanation/performance.md). A connection is sent once, so its requests pay nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import selectors
import socket
import struct
import sys
from collections.abc import Sequence
from ctypes import Array, c_uint64
from multiprocessing.context import BaseContext
from typing import NamedTuple

# With so many connections that it has not received yet, a worker's loop is held up: others get the next.
MAX_IN_TRANSIT = 64
# A classic BPF program over a TCP segment, as (code, jump if true, jump if false, operand): load the flags, keep SYN and ACK, and
# drop the segment where only SYN is set; else keep all of it.
IGNORE_SYN = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
SO_ATTACH_FILTER = 26  # of <asm-generic/socket.h>; the socket module does not name it
# The two messages of a channel: a connection, and that the worker is to drain. Its end is the end of the file.
CONNECTION, DRAIN = b"c", b"d"
# The number of a worker's end of its channel, above those of its connections.
CHANNEL_FILE = 16_383


class Slot:
    """The counters that one worker shows to its parent, in memory that both see. Only the worker writes."""

    SIZE = 4

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

    def set_leaving(self) -> None:
        """The worker is to end, and waits for the end of its channel."""
        self._numbers[self._at + 3] = 1

    @property
    def is_leaving(self) -> bool:
        return self._numbers[self._at + 3] == 1

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
    """Its models are loaded, its event loop runs, and it is not to end."""
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


def refuse_handshakes(listener: socket.socket) -> None:
    """Ignore those that begin to connect from here on, so that what has gathered can be accepted and the listener closed.

    Between the last accept and the close a connection would else be accepted by the kernel, and reset. Who is ignored tries again
    within a second, as TCP does after a loss, and is then refused. By a filter of packets, on Linux; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in IGNORE_SYN)
    buffer = ctypes.create_string_buffer(program, len(program))
    with contextlib.suppress(OSError):  # not every sandbox offers filters
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(IGNORE_SYN), ctypes.addressof(buffer)))


def has_waiting(listener: socket.socket) -> bool:
    """Whether a connection waits to be accepted."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        return bool(selector.select(0))


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
        socket.send_fds(channel, [CONNECTION], [connection.fileno()])
    except OSError:
        return False
    return True


def send_drain(channel: socket.socket) -> None:
    """Have the worker at the other end drain; one that has ended does not."""
    with contextlib.suppress(OSError):
        channel.send(DRAIN)


class DrainRequested(Exception):
    """The parent drains, and so are its workers to do."""


def receive_connection(channel: socket.socket) -> socket.socket | None:
    """The next connection, which does not block.

    None for a connection that was lost in transit because this process has too many files open. Raises BlockingIOError when
    there is none now, DrainRequested in its turn, and EOFError when there will be no more: the parent closed its end, or died.
    """
    try:
        message, files, _, _ = socket.recv_fds(channel, 1, 1)
    except ConnectionError as exc:
        raise EOFError from exc
    if not message:
        raise EOFError
    if message == DRAIN:
        raise DrainRequested
    if not files:
        return None
    connection = socket.socket(fileno=files[0])
    connection.setblocking(False)
    # As the event loop does with those that it accepts itself.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
