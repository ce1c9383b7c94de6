"""The protocol of WebSockets with an app of its own, turn by turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.server import ServerState

from service.api.websocket_protocol import PIECE_BYTES, WebSocketProtocol
from tests.websockets import CLOSE, TEXT, frame

HEAD = b"""GET / HTTP/1.1\r
Host: a\r
Upgrade: websocket\r
Connection: Upgrade\r
Sec-WebSocket-Version: 13\r
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r
\r
"""


class Transport(asyncio.Transport):
    """Takes what is written, and can be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.has_closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.has_closed = True

    def is_closing(self) -> bool:
        return self.has_closed

    def pause_reading(self) -> None:
        """Nothing is read."""

    def resume_reading(self) -> None:
        """Nothing is read."""


@pytest.mark.parametrize(
    ("behind", "late"),
    [
        (frame(3, b"{}"), {"type": "websocket.send", "text": "late"}),
        (frame(3, b"{}"), {"type": "websocket.close"}),
        (frame(CLOSE, b"\x03\xe8"), {"type": "websocket.send", "text": "late"}),
    ],
    ids=["an answer behind no such opcode", "a close behind no such opcode", "an answer behind a close"],
)
async def test_what_is_sent_behind_the_end_finds_that_the_client_has_gone(behind: bytes, late: dict[str, str]) -> None:
    failed: list[BaseException] = []

    async def answer_late(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        assert (await receive())["type"] == "websocket.receive"
        assert (await receive())["type"] == "websocket.disconnect"
        try:
            await send(late)
        except BaseException as exc:
            failed.append(exc)

    config = Config(answer_late, lifespan="off", log_config=None)
    protocol = WebSocketProtocol(
        config=config, server_state=ServerState(), app_state={}, on_closed=lambda exc: None, on_resumed=lambda: None
    )
    transport = Transport()
    protocol.connection_made(transport)
    first = frame(TEXT, b" " * (PIECE_BYTES - len(frame(TEXT, b" " * 126)) + 126))  # its end is that of a piece
    protocol.begin(HEAD, first + behind)
    await asyncio.wait_for(asyncio.gather(*protocol.tasks), 10)
    assert transport.has_closed
    assert [type(exc) for exc in failed] == [ClientDisconnected]
    assert b"late" not in transport.written
