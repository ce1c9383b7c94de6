"""What every request passes: the measuring, the quick way to the hot doors, and the last net under everything.

Bare ASGI, outermost. Knows routes by their template, and nothing of what they do.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Mapping
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import InternalError, NotFound, problem

log = logging.getLogger(__name__)

UNKNOWN_ROUTE = "_unknown"
CLIENT_LEFT = 499
"""What the metrics call a request whose client did not wait for the answer."""
# On a port of their own: the metrics, and what an orchestrator asks.
SCRAPE_ROUTES = frozenset(("/metrics", "/health/live", "/health/ready"))


class HttpObserver(Protocol):
    """Told about every request to one route."""

    def started(self) -> None: ...

    def finished(self, method: str, status: int, duration_s: float, request_bytes: int, response_bytes: int) -> None: ...


class HttpObservers(Protocol):
    def http(self, route: str) -> HttpObserver:
        """The observer of one route template."""
        ...


class HotDoor(Protocol):
    """A door that is asked directly. It words every failure itself."""

    async def answer(self, scope: Scope, receive: Receive) -> tuple[int, list[tuple[bytes, bytes]], bytes] | None:
        """Status, headers and body; None when the client left."""
        ...


class Edge:
    """The app that the server runs. Hot doors are found by their path alone; all else goes through `inner`.

    FastAPI's own way to a route takes about 20 µs before the door is reached, 55 with its request and response objects;
    a look into a mapping 0.1.
    """

    def __init__(
        self,
        inner: ASGIApp,
        *,
        hot: Mapping[str, HotDoor],
        routes: Iterable[str],
        observers: HttpObservers,
        metrics_port: int = 0,
    ) -> None:
        self._inner = inner
        self._hot = hot
        self._metrics_port = metrics_port
        self._unknown = observers.http(UNKNOWN_ROUTE)
        self._exact: dict[str, HttpObserver] = {}
        self._patterns: list[tuple[re.Pattern[str], HttpObserver]] = []
        for route in routes:
            if "{" in route:
                pattern = re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(route)))
                self._patterns.append((pattern, observers.http(route)))
            else:
                self._exact[route] = observers.http(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        path: str = scope["path"]
        method: str = scope["method"]
        if method == "POST" and self.is_hot(path, scope.get("server")):
            answer = await self.answer(scope, receive)
            if answer is not None:
                status, headers, body = answer
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
            return
        observer = self._exact.get(path) or self._observer(path)
        status = CLIENT_LEFT
        response_bytes = 0
        is_complete = False

        async def watched_send(message: Message) -> None:
            nonlocal status, response_bytes, is_complete
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                response_bytes += len(message.get("body", b""))
                is_complete = not message.get("more_body", False)
            await send(message)

        observer.started()
        started = time.perf_counter()
        try:
            if self._is_on_its_port(scope.get("server"), path):
                await self._inner(scope, receive, watched_send)
            else:
                await send_problem(NotFound(f'there is nothing at "{path}"', path=path), watched_send)
        except Exception:
            log.exception("unexpected error", extra={"path": path})
            if status == CLIENT_LEFT:
                await send_problem(InternalError("an unexpected error; the log says more"), watched_send)
            elif not is_complete:
                raise  # half an answer cannot be mended; the server closes the connection
        finally:
            observer.finished(method, status, time.perf_counter() - started, _request_bytes(scope), response_bytes)

    def is_hot(self, path: str, server: tuple[str, int | None] | None) -> bool:
        """Whether a POST to this path, on this address of ours, is for a hot door: `answer` then takes it."""
        return path in self._hot and self._is_on_its_port(server, path)

    async def answer(self, scope: Scope, receive: Receive) -> tuple[int, list[tuple[bytes, bytes]], bytes] | None:
        """What a hot door answers: status, headers and body; None when the client left. Only `path` and `headers` are read."""
        path: str = scope["path"]
        observer = self._exact[path]
        status, response_bytes = CLIENT_LEFT, 0
        observer.started()
        started = time.perf_counter()
        try:
            answer = await self._hot[path].answer(scope, receive)
            if answer is not None:
                status, response_bytes = answer[0], len(answer[2])
            return answer
        finally:
            observer.finished("POST", status, time.perf_counter() - started, _request_bytes(scope), response_bytes)

    def _observer(self, path: str) -> HttpObserver:
        return next((observer for pattern, observer in self._patterns if pattern.fullmatch(path)), self._unknown)

    def _is_on_its_port(self, server: tuple[str, int | None] | None, path: str) -> bool:
        if not self._metrics_port:
            return True
        is_scrape_port = server is not None and server[1] == self._metrics_port
        return path in SCRAPE_ROUTES if is_scrape_port else path != "/metrics"


async def send_problem(exc: NotFound | InternalError, send: Send) -> None:
    """Answer with a problem over bare ASGI."""
    status, headers, body = problem(exc)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _request_bytes(scope: Scope) -> int:
    """What the request declares; a chunked body counts as 0."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
