"""The server for tests: the whole app in this process, or a real server process on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from service.api.gateway import Gateway
from service.app import create_app
from service.settings import Settings

ROOT = Path(__file__).parent.parent
PATIENCE_S = 30.0
"""How long a test waits for another process before it fails."""


@contextlib.asynccontextmanager
async def lifespan(app: Gateway) -> AsyncIterator[None]:
    """Start the app as a server would, and end it."""
    to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    from_app: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, to_app.get, from_app.put))
    await to_app.put({"type": "lifespan.startup"})
    assert (await from_app.get())["type"] == "lifespan.startup.complete"
    try:
        yield
    finally:
        await to_app.put({"type": "lifespan.shutdown"})
        assert (await from_app.get())["type"] == "lifespan.shutdown.complete"
        await task


@contextlib.asynccontextmanager
async def client_of(models: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the whole app, with every model loaded; each scrape renders the metrics anew."""
    ready = asyncio.Event()
    app = create_app(
        Settings(models=models, device="cpu", num_threads=1, **settings), on_loaded=lambda _: ready.set(), scrape_interval_s=0
    )
    async with lifespan(app):
        await asyncio.wait_for(ready.wait(), PATIENCE_S)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://sluice") as client:
            yield client


@dataclass
class ServerProcess:
    """`python -m service`, ready, with its output so far."""

    process: subprocess.Popen[bytes]
    url: str
    folder: Path

    @property
    def output(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def log(self) -> str:
        return (self.folder / "stderr").read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal, and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def server_process(
    models: Path, *, code: str | None = None, command: Sequence[str] | None = None, cwd: Path = ROOT, **environ: str
) -> Iterator[ServerProcess]:
    """A real server of one process, unless `environ` says more, on a free port; ended with the block, by its pid.

    `code`, or `command`, is run instead of `python -m service`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = {key: value for key, value in os.environ.items() if not key.startswith("SLUICE_")}
        env |= {"SLUICE_MODELS": str(models), "SLUICE_PORT": "0", "SLUICE_DEVICE": "cpu", "SLUICE_WORKERS": "1", **environ}
        env.setdefault("SLUICE_DRAIN_SECONDS", "0")
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            if command is None:
                command = [sys.executable, "-m", "service"] if code is None else [sys.executable, "-c", code]
            process = subprocess.Popen(command, cwd=cwd, env=env, stdout=out, stderr=err)
        server = ServerProcess(process, "", folder)
        try:
            server.url = _wait_for_url(server)
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


START_PATIENCE_S = 4 * PATIENCE_S
"""For a server that verifies all bundled models before it is ready, each in a process of its own."""


class PartialReader:
    """A connection to a server, by its URL, on which answers are read a part at a time."""

    def __init__(self, url: str, *, receive_buffer: int | None = None) -> None:
        """`receive_buffer` is how much the kernel reads ahead."""
        parts = urlsplit(url)
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect((parts.hostname, parts.port))
        self.received = b""

    def read_until(self, mark: bytes, count: int = 1) -> bytes:
        """All that was received, once the mark is in it so often."""
        while self.received.count(mark) < count:
            data = self.socket.recv(65536)
            assert data, f"closed before {mark!r}: {self.received[-500:]!r}"
            self.received += data
        return self.received

    def close(self) -> None:
        self.socket.close()


def wait_until(is_so: Any, what: str, patience_s: float = PATIENCE_S) -> None:
    """Evaluate again and again, until it is true or the patience is over."""
    deadline = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.02)


def _wait_for_url(server: ServerProcess) -> str:
    found: list[str] = []

    def is_ready() -> bool:
        found[:] = re.findall(r"(?:is ready:|answers at) (https?://\S+)", server.output)
        assert server.process.poll() is None, f"the server ended: {server.log}"
        return bool(found)

    wait_until(is_ready, "the server is ready", START_PATIENCE_S)
    return found[0]
