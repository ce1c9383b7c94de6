"""A real HTTP server of a few lines that stalls once, refuses or closes as the test decides, and keeps the bodies it was sent."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
CLOSE = b""

Answer = Callable[[int], bytes]
"""Number of the request, from 0 → what is sent back; CLOSE closes the connection without an answer."""


class StallingServer:
    """Answers keep-alive connections, a thread for each. At request number `stall_at`, no request is answered for `stall_s`."""

    def __init__(self, answer: Answer = lambda number: OK, stall_at: int = -1, stall_s: float = 0.0) -> None:
        self._answer = answer
        self._stall_at = stall_at
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.bodies: list[bytes] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/predict"

    def __enter__(self) -> StallingServer:
        self._start(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the other side was first
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                while (body := _read(stream)) is not None:
                    answer = self._take(body)
                    connection.sendall(answer)
                    if answer in (CLOSE, CLOSING):
                        return
            except OSError:
                return

    def _take(self, body: bytes) -> bytes:
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            if number == self._stall_at:
                time.sleep(self._stall_s)
        return self._answer(number)


def _read(stream: object) -> bytes | None:
    """The body of the next request; None at the end."""
    length = 0
    lines = iter(stream.readline, b"")  # type: ignore[attr-defined]
    for line in lines:
        if line == b"\r\n":
            return bytes(stream.read(length))  # type: ignore[attr-defined]
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return None
