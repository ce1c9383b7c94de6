"""How many requests one client may send: a rate such as `100/s`, and the state of each client in memory that workers share.

Knows nothing of HTTP, nor of who a client is.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
import secrets
from collections.abc import Callable
from ctypes import c_double, c_uint64
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import RawArray
from typing import NamedTuple

log = logging.getLogger(__name__)

UNITS_S = {"s": 1, "min": 60, "h": 3600}
RATE = re.compile(rf"([1-9][0-9]{{0,8}})/({'|'.join(UNITS_S)})")
# A client's row is one of so many that follow each other; the one that owes least makes room for a new client.
WAYS = 8
# How long the lock is waited for, which is held for half a microsecond: a worker may have been killed or stopped within it.
MAX_WAIT_S = 0.005
REMEMBERED_CLIENTS = 4096


class Rate(NamedTuple):
    """So many requests at once, and as many in each period after that."""

    num_requests: int
    interval_s: float
    """Between two requests of a client that sends evenly."""
    most_owed_s: float
    """What a client may owe when it sends another one: the intervals of all but one, and a little, for sums are rounded."""
    text: str


def parse_rate(text: str) -> Rate:
    """`100/s`, `6000/min` or `100000/h`. Raises ValueError."""
    found = RATE.fullmatch(text)
    if found is None:
        raise ValueError(f'"{text[:50]}" is not a rate such as 100/s, 6000/min or 100000/h')
    count = int(found[1])
    interval_s = UNITS_S[found[2]] / count
    return Rate(count, interval_s, (count - 0.99) * interval_s, text)


class RateTable:
    """The generic cell rate algorithm (ITU-T I.371; the virtual scheduling form) over a table of bounded size.

    A row holds the time at which its client owes nothing any more. Rows are found by a keyed hash of the client, so that nobody
    can choose clients that meet in one row; when a set of rows is full, a client that owes nothing, or else the one that owes
    least, loses its row, and with it what it owed.

    Processes share the table when it is made before they are started, and see the same `time.monotonic()` (as on Linux). Where
    one of them stops within the lock for longer than `max_wait_s`, another takes its place; what both count may then be lost.
    """

    def __init__(self, num_rows: int, context: BaseContext | None = None, *, max_wait_s: float = MAX_WAIT_S) -> None:
        """`context` starts the processes that share the table; None for one process. `num_rows` is a multiple of WAYS."""
        assert num_rows > 0, "a table has rows"
        assert num_rows % WAYS == 0, f"rows come in sets of {WAYS}"
        self._num_sets = num_rows // WAYS
        self._clients = RawArray(c_uint64, num_rows)
        self._due_at = RawArray(c_double, num_rows)
        self._lock = None if context is None else context.Lock()
        self._max_wait_s = max_wait_s
        self._secret = secrets.token_bytes(16)

    @functools.cached_property
    def _views(self) -> tuple[memoryview[int], memoryview[float]]:
        """The arrays without the cost of ctypes."""
        return memoryview(self._clients).cast("B").cast("Q"), memoryview(self._due_at).cast("B").cast("d")

    @functools.cached_property
    def _fingerprint(self) -> Callable[[str], int]:
        secret = self._secret

        @functools.lru_cache(REMEMBERED_CLIENTS)
        def fingerprint(client: str) -> int:
            return int.from_bytes(hashlib.blake2b(client.encode(), digest_size=8, key=secret).digest()) or 1

        return fingerprint

    def __getstate__(self) -> dict[str, object]:
        cached = ("_views", "_fingerprint")
        return {name: value for name, value in self.__dict__.items() if name not in cached}

    def take(self, client: str, rate: Rate, now: float) -> float:
        """Count one request: 0 where it is within the rate, else the seconds until one would be, and nothing is counted."""
        fingerprint = self._fingerprint(client)
        lock = self._lock
        if lock is not None and not (lock.acquire(False) or lock.acquire(True, self._max_wait_s)):
            # The lock is whole again once this process releases it.
            log.warning("the lock of the rate limits is taken over from a worker that was ended or stopped within it")
        try:
            clients, due_at = self._views
            row = fingerprint % self._num_sets * WAYS
            if clients[row] != fingerprint:
                row = self._find_row(fingerprint, row)
            owed_s = due_at[row] - now
            if owed_s > rate.most_owed_s:
                return owed_s - (rate.num_requests - 1) * rate.interval_s
            due_at[row] = now + rate.interval_s if owed_s < 0 else due_at[row] + rate.interval_s
            return 0.0
        finally:
            if lock is not None:
                try:
                    lock.release()
                except ValueError:  # released already, by the holder or by another process that took over
                    log.debug("the lock of the rate limits was released twice")

    def _find_row(self, fingerprint: int, first: int) -> int:
        """The row of a client in its set; where it has none, the one of which least is owed."""
        clients, due_at = self._views
        rows = range(first, first + WAYS)
        for row in rows:
            if clients[row] == fingerprint:
                return row
        row = min(rows, key=due_at.__getitem__)
        clients[row] = fingerprint
        due_at[row] = 0.0
        return row
