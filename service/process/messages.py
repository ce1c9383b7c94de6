"""Messages between processes of one server: JSON objects, a line each, over a Unix socket in a folder that is theirs alone.

Knows nothing of what the messages say. Unix only, as are several workers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from service.errors import StartError
from service.wire import read, write

Message = dict[str, Any]
MAX_MESSAGE_BYTES = 64 * 2**20
# Bytes of the path of a Unix socket, at most (Linux; 103 on macOS).
MAX_PATH_BYTES = 103


class MessageStream:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> Message | None:
        """The next message; None when there will be no more."""
        try:
            line = await self._reader.readline()
        except (OSError, ValueError):  # reset, or longer than it may be
            return None
        if not line.endswith(b"\n"):
            return None
        message: Message = read(line)
        return message

    def send(self, message: Message) -> None:
        """Send it, in order; to an end that is gone it is lost."""
        if not self._writer.is_closing():
            self._writer.write(write(message) + b"\n")

    def close(self) -> None:
        """End the connection, at once."""
        with contextlib.suppress(OSError):
            self._writer.transport.abort()


async def connect(path: Path) -> MessageStream:
    """Connect to the process that serves at this path. Raises OSError while there is none."""
    return MessageStream(*await asyncio.open_unix_connection(path, limit=MAX_MESSAGE_BYTES))


def expect_short_path(path: Path) -> None:
    """Raise StartError where no Unix socket can have this path."""
    if len(str(path).encode()) > MAX_PATH_BYTES:
        raise StartError(
            f"the path of the folder for temporary files is too long for a socket in it: {path}; TMPDIR names another"
        )


async def serve(path: Path, on_connected: Callable[[MessageStream], Awaitable[None]]) -> asyncio.Server:
    """Serve at this path: `on_connected` is run for each connection, which ends with it. Raises StartError."""
    expect_short_path(path)

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = MessageStream(reader, writer)
        try:
            await on_connected(stream)
        finally:
            stream.close()

    return await asyncio.start_unix_server(run, path, limit=MAX_MESSAGE_BYTES)
