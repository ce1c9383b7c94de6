"""How one process serves: its protocol, and the connections that a worker receives."""

from __future__ import annotations

import asyncio
import multiprocessing

from service.process.connections import create_slots
from service.server import counted_connection


def test_the_end_of_a_connection_is_counted_whatever_the_protocol() -> None:
    class Recording(asyncio.Protocol):
        def __init__(self, name: str) -> None:
            self.name = name
            self.lost: list[Exception | None] = []

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.append(exc)

    [slot] = create_slots(multiprocessing.get_context("spawn"), 1)
    connection = counted_connection(Recording, slot)("a")
    assert isinstance(connection, Recording)
    connection.connection_lost(None)
    assert (connection.name, connection.lost, slot.num_closed) == ("a", [None], 1)
