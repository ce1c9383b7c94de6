"""Clients of `GET /predict/ws`: one that keeps to the protocol, and one that sends whatever it is given."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import struct
from collections.abc import Iterator
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from service.api.websocket import WEBSOCKET_PATH
from tests.serving import PATIENCE_S, PartialReader

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10


@contextlib.contextmanager
def open_websocket(url: str, **options: Any) -> Iterator[ClientConnection]:
    """A WebSocket to a server, by its HTTP URL."""
    options = {"proxy": None, "open_timeout": PATIENCE_S, "close_timeout": PATIENCE_S, "compression": None, **options}
    with connect(url.replace("http", "ws", 1) + WEBSOCKET_PATH, **options) as websocket:
        yield websocket


def send(websocket: ClientConnection, *messages: Any) -> None:
    """Send messages; those that come when the server has closed are lost."""
    with contextlib.suppress(ConnectionClosed):
        for message in messages:
            websocket.send(message if isinstance(message, str | bytes) else json.dumps(message))


def receive(websocket: ClientConnection) -> tuple[str, Any]:
    """(field, content) of the next message."""
    ((field, content),) = json.loads(websocket.recv(timeout=PATIENCE_S)).items()
    return field, content


def receive_rest(websocket: ClientConnection) -> tuple[list[tuple[str, Any]], int]:
    """Every message until the server closes, and the code with which it does."""
    messages = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            messages.append(receive(websocket))
    assert websocket.close_code is not None
    return messages, websocket.close_code


class RawSocket(PartialReader):
    """A socket on which a WebSocket is opened, and then any bytes are sent."""

    def __init__(self, url: str, *, first: bytes = b"", headers: str = "", receive_buffer: int | None = None) -> None:
        """`first` is sent in one packet with the request to open it; `receive_buffer` as of PartialReader."""
        super().__init__(url, receive_buffer=receive_buffer)
        self.socket.sendall(upgrade(headers) + first)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_head(self) -> bytes:
        """The answer to the request to open it."""
        head, _, self.received = self.read_until(b"\r\n\r\n").partition(b"\r\n\r\n")
        return head

    def read_rest(self) -> bytes:
        """What comes until the server closes."""
        with contextlib.suppress(ConnectionError):
            while data := self.socket.recv(65536):
                self.received += data
        return self.received


def upgrade(headers: str = "") -> bytes:
    """A request to open a WebSocket, with some more headers, each with its end of line."""
    key = base64.b64encode(os.urandom(16)).decode()
    head = f"GET {WEBSOCKET_PATH} HTTP/1.1\r\nHost: sluice\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    return f"{head}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n".encode()


def frame(opcode: int, payload: bytes = b"", *, is_last: bool = True, is_masked: bool = True) -> bytes:
    """One frame of RFC 6455, masked with zeros."""
    size = len(payload)
    mask = 0x80 if is_masked else 0
    head = bytes([0x80 * is_last | opcode])
    if size < 126:
        head += bytes([mask | size])
    elif size < 1 << 16:
        head += bytes([mask | 126]) + struct.pack(">H", size)
    else:
        head += bytes([mask | 127]) + struct.pack(">Q", size)
    return head + (b"\0\0\0\0" if is_masked else b"") + payload


def text(content: Any) -> bytes:
    """A message of JSON as one frame."""
    return frame(TEXT, content if isinstance(content, bytes) else json.dumps(content).encode())


def close_code(received: bytes) -> int:
    """The code of the close frame at the end of what was received."""
    place = max(received.rfind(bytes([0x80 | CLOSE, size])) for size in range(2, 126) if bytes([0x80 | CLOSE, size]) in received)
    code: int = struct.unpack(">H", received[place + 2 : place + 4])[0]
    return code
