"""Notices between the workers of one server: what one of them publishes all get, also those that are started later.

Knows nothing of what notices say. Their parent passes them on (`supervisor.py`), which imports this before numpy may be: so it is
Python's own JSON.
"""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Notice = dict[str, Any]
# A pipe that takes anything at once takes so much (Linux: it has three quarters of its 200 KB free).
MAX_NOTICE_BYTES = 16_384


class Notices:
    """The notices of this process and of the others. Without a connection, in a server of one process, nobody gets any."""

    def __init__(self) -> None:
        self.on_notice: Callable[[Notice], None] = lambda _: None
        """Called for each notice, also for those of this process."""
        self._connection: Connection | None = None

    def open(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """Take and give notices by the worker's end of its pipe; what has come already is given before this returns."""
        self._connection = connection
        loop.add_reader(connection.fileno(), self._receive, loop)
        self._receive(loop)

    def publish(self, notice: Notice) -> None:
        """Have all processes get it, if it is not too long."""
        text = json.dumps(notice).encode()
        if self._connection is not None and len(text) <= MAX_NOTICE_BYTES:
            self._connection.send_bytes(text)

    def _receive(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._connection is not None
        try:
            while self._connection.poll():
                self.on_notice(json.loads(self._connection.recv_bytes()))
        except (EOFError, OSError):  # the parent was killed, and the channel of connections ends too
            loop.remove_reader(self._connection.fileno())
            self._connection = None


def can_take(connection: Connection) -> bool:
    """Whether a notice can be sent without waiting for the other end."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_WRITE)
        return bool(selector.select(0))
