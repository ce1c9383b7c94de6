"""How connections come to workers: the parent accepts each one and hands it to the worker with the fewest.

Knows nothing of HTTP, and nothing of how workers live and die.

Why not let the workers accept for themselves (2 workers, connections of wrk on each, kept alive;
see docs/explanation/performance.md):
on one shared socket whoever wakes first takes what has gathered: [16, 0] and [58, 6] are as common as [8, 8] and [34, 30];
with a socket per worker (SO_REUSEPORT) the kernel's hash gives [11, 5] and [41, 23], and what it gave to a worker that dies or
hangs is lost with it. Handed over, it is [8, 8] and [32, 32], always. The price is paid once per connection, not per request.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ctypes import Array, c_uint64
from multiprocessing.context import BaseContext
from typing import NamedTuple

# Beyond so many that a worker has not taken yet, others get them: its loop is held up.
MAX_ON_WAY = 64
# The number of a worker's end of its channel, above those of its connections.
CHANNEL_FILE = 16_383


class Slot:
    """What one worker tells its parent, in memory that both see. Only the worker writes."""

    SIZE = 3

    def __init__(self, numbers: Array[c_uint64], number: int) -> None:
        self.number = number
        self._numbers = numbers
        self._at = number * self.SIZE

    def clear(self) -> None:
        """Forget the worker that had this slot, and is dead."""
        for place in range(self.SIZE):
            self._numbers[self._at + place] = 0

    def beat(self) -> None:
        """The worker's event loop turns."""
        self._numbers[self._at] += 1

    def taken(self) -> None:
        """The worker took a connection over."""
        self._numbers[self._at + 1] += 1

    def closed(self) -> None:
        """A connection that was taken is over."""
        self._numbers[self._at + 2] += 1

    @property
    def num_beats(self) -> int:
        return self._numbers[self._at]

    @property
    def num_taken(self) -> int:
        return self._numbers[self._at + 1]

    @property
    def num_closed(self) -> int:
        return self._numbers[self._at + 2]


def slots(context: BaseContext, num_workers: int) -> list[Slot]:
    """One slot for each worker that is started in this context."""
    numbers = context.RawArray(c_uint64, num_workers * Slot.SIZE)
    return [Slot(numbers, number) for number in range(num_workers)]


class Standing(NamedTuple):
    """How a worker stands when a connection comes."""

    is_ready: bool
    """Its models are loaded, and its event loop turns."""
    num_on_way: int
    """Connections it was given and has not taken yet."""
    num_open: int
    """Connections it was given that are not over."""


def choose(standings: Sequence[Standing], start: int) -> int | None:
    """The worker for the next connection, by its place: the one with the fewest, from `start` on where several have as few.

    Only those that are ready are asked, as long as there is one. None when all have too many that they did not take.
    """
    is_any_ready = any(standing.is_ready for standing in standings)
    count = len(standings)
    places = [
        place
        for place in range(count)
        if standings[place].num_on_way < MAX_ON_WAY and (standings[place].is_ready or not is_any_ready)
    ]
    return min(places, key=lambda place: (standings[place].num_open, (place - start) % count), default=None)


def raised(channel: socket.socket) -> socket.socket:
    """The same end of a channel under a high file number, in place of the given one.

    A dying process closes its files from the last to the first (Linux 6.18). With the channel low, clients of a killed worker
    came back before it was closed, and 7 of 434 were handed to the dying worker again; with the channel high, none of 439.
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


def hand_over(channel: socket.socket, connection: socket.socket) -> bool:
    """Give a connection to the worker at the other end; False when it takes none: it is gone, or its channel is full.

    Ours is left open, for the caller to close.
    """
    try:
        socket.send_fds(channel, [b"c"], [connection.fileno()])
    except OSError:
        return False
    return True


def take_over(channel: socket.socket) -> socket.socket | None:
    """The next connection, which does not block. Raises BlockingIOError when there is none now, EOFError when the parent ended.

    None for a connection that was lost on its way because this process has too many files open.
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
