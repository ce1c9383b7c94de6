"""The last seconds of a server that has been told to end: not ready, all requests answered, clients sent elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from service.api.request import Headers, HttpRequest


class Drain:
    """Whether the server drains. As a hook, which the gateway runs from `start` on, it closes each connection with its answer."""

    def __init__(self) -> None:
        self.is_active = False
        self._callbacks: list[Callable[[], None]] = []

    def on_start(self, callback: Callable[[], None]) -> None:
        """Call this when the server begins to drain."""
        self._callbacks.append(callback)

    def start(self) -> None:
        """From here on the server drains; there is no way back."""
        self.is_active = True
        for callback in self._callbacks:
            callback()

    def before(self, request: HttpRequest) -> None:
        """Requests are answered as ever."""

    def after(self, request: HttpRequest, headers: Headers) -> None:
        """The client is told to use another connection, for which a balancer chooses another server."""
        if all(name != b"connection" for name, _ in headers):
            headers.append((b"connection", b"close"))

    def finished(self, request: HttpRequest) -> None:
        """Nothing is counted."""
