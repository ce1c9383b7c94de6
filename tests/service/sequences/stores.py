"""The stores that keep sequences, each with a way to open clients of it as several processes would; a Redis of the tests' own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from service.sequences.redis_store import RedisStore
from service.sequences.shared import SharedStore, create_memory
from service.sequences.state import SequenceState
from service.sequences.store import MemoryStore, SequenceKey, SequenceStore, Totals
from service.sequences.table import Bounds, Eviction, Owner
from tests.fakes import PATIENCE_S

DIGEST = "ab" * 32
KINDS = ("memory", "shared", "redis")


def make_state(steps: int, model: str = "toy", *, size: int = 3, digest: str = DIGEST) -> SequenceState:
    return SequenceState(model, 1, digest, steps, {"h0": np.full(size, steps, np.float32), "c0": np.ones(size, np.float32)})


@dataclass
class RecordingStoreObserver:
    """Remembers what it was told."""

    evictions: list[tuple[Owner, Eviction]] = field(default_factory=list)
    totals: Totals = field(default_factory=dict)

    def evicted(self, owner: Owner, reason: Eviction) -> None:
        self.evictions.append((owner, reason))

    def counted(self, totals: Totals) -> None:
        self.totals = totals


@dataclass
class Stores:
    """One store, and its clients: the same one again and again where it is of one process."""

    kind: str
    open_client: Callable[[], SequenceStore]
    observer: RecordingStoreObserver

    def __repr__(self) -> str:
        return f"<Stores {self.kind}>"


@contextlib.asynccontextmanager
async def open_stores(
    kind: str, bounds: Bounds | None = None, redis_url: str = "", *, margin_s: float = 5.0
) -> AsyncIterator[Stores]:
    """A store of this kind, empty; its clients are closed at the end."""
    bounds = bounds or Bounds()
    observer = RecordingStoreObserver()
    async with contextlib.AsyncExitStack() as stack:
        opened: list[SequenceStore] = []

        def open_client() -> SequenceStore:
            if kind == "memory":
                if not opened:
                    opened.append(MemoryStore(bounds, observer, margin_s=margin_s))
                return opened[0]
            if kind == "shared":
                opened.append(SharedStore(memory, bounds, observer, margin_s=margin_s))
            else:
                opened.append(RedisStore(redis_url, bounds, observer, margin_s=margin_s))
            return opened[-1]

        if kind == "shared":
            memory = create_memory(bounds)
            expiry = asyncio.create_task(_expire(SharedStore(memory, bounds, observer)))
            stack.callback(expiry.cancel)
        try:
            yield Stores(kind, open_client, observer)
        finally:
            for client in opened:
                await client.close()


async def _expire(store: SharedStore) -> None:
    """What each process that has the table does now and then, oftener."""
    while True:
        store.table.expire()
        store.observer.counted(store.table.totals())
        await asyncio.sleep(0.01)


async def take(client: SequenceStore, *ids: str, within_s: float = PATIENCE_S, model: str = "toy") -> list[SequenceState | None]:
    """The states of these sequences, which are released at once."""
    checkout = await client.checkout([SequenceKey(model, each) for each in ids], within_s)
    client.release(checkout)
    return checkout.states


async def keep(client: SequenceStore, id: str, state: SequenceState | None) -> None:
    checkout = await client.checkout([SequenceKey("toy", id)], PATIENCE_S)
    await client.commit(checkout, [state])


class RedisServer:
    """Debian's redis-server on a free port of the loopback, which keeps nothing on disk; ended by its own pid."""

    def __init__(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("redis-server is not installed (apt install redis-server)")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._folder = tempfile.TemporaryDirectory()
        self._command = [program, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--dir", self._folder.name]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert self.process.poll() is None, "redis-server has ended"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                if connection.recv(16) == b"+PONG\r\n":
                    return
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.02)

    def flush(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE_S) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            assert connection.recv(16) == b"+OK\r\n"

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.kill()
        self._folder.cleanup()


@contextlib.contextmanager
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    try:
        yield server
    finally:
        server.end()
