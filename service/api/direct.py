"""The short way through HTTP for the doors that must be quick: body bytes in, answer bytes out, over bare ASGI.

FastAPI documents these doors and does not run them: its routing, dependencies and response models cost more than a small
LSTM. Knows nothing of models; what a body means is `predict.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from fastapi.routing import APIRoute
from starlette.types import Message, Receive, Scope, Send

from service.api.errors import InternalError, UnsupportedMediaType, problem
from service.errors import PayloadTooLarge, ServiceError

log = logging.getLogger(__name__)

Endpoint = Callable[[Awaitable[bytes]], Awaitable[bytes]]
"""Awaits the body, which may raise as `read_body` says, and returns the answer."""

# A request that waits longer than about this is watched: when its client leaves, its place in the queue is given up.
# Watching costs a task per request; nearly all requests are answered sooner and pay for an entry in a mapping.
WATCH_AFTER_S = 0.1
_JSON = (b"content-type", b"application/json")
# Of a body that is too large, this many times the limit is read and dropped, so that a client which sends first and reads
# later gets its 413 rather than a broken pipe. Beyond it the connection is closed.
MAX_DROPPED_BODIES = 4


class Answer(NamedTuple):
    """What is sent: HTTP status, headers, body."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class DirectDoor:
    """One door: reads the body within its limit, calls the endpoint, words what went wrong. An ASGI app by itself, too."""

    def __init__(self, endpoint: Endpoint, max_body_bytes: int, watch_after_s: float = WATCH_AFTER_S) -> None:
        self._endpoint = endpoint
        self._max_body_bytes = max_body_bytes
        self._departures = _Departures(watch_after_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self.answer(scope, receive)
        if answer is not None:
            await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
            await send({"type": "http.response.body", "body": answer.body})

    async def answer(self, scope: Scope, receive: Receive) -> Answer | None:
        """The answer to one request; None when its client left."""
        task = asyncio.current_task()
        assert task is not None
        try:
            body = await self._endpoint(self._read(scope, receive, task))
            return Answer(200, [_JSON, (b"content-length", b"%d" % len(body))], body)
        except ClientLeft:
            return None
        except ServiceError as exc:
            status, headers, body = problem(exc)
            if status == 413:
                headers.append((b"connection", b"close"))
            return Answer(status, headers, body)
        except asyncio.CancelledError:
            if not self._departures.has_left(task):
                raise
            task.uncancel()  # it was ours, and the task may end by itself
            return None
        except Exception:
            log.exception("unexpected error", extra={"path": scope["path"]})
            return Answer(*problem(InternalError("an unexpected error; the log says more")))
        finally:
            self._departures.forget(task)

    async def _read(self, scope: Scope, receive: Receive, task: asyncio.Task[Any]) -> bytes:
        body = await read_body(scope, receive, self._max_body_bytes)
        self._departures.watch_later(task, receive)
        return body


class DirectRoute(APIRoute):
    """A route whose signature FastAPI documents, and whose requests a DirectDoor answers."""

    def __init__(self, path: str, documented: Callable[..., Any], door: DirectDoor, **about: Any) -> None:
        super().__init__(path, documented, methods=["POST"], **about)
        self.app = door
        self.door = door


class ClientLeft(Exception):
    """The client closed the connection before its body was complete."""


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The whole body; never holds more than `max_bytes` of it, however it is sent.

    Raises PayloadTooLarge, UnsupportedMediaType when the body is declared as something other than plain JSON, and
    ClientLeft when the connection closes first.
    """
    declared = 0
    for name, value in scope["headers"]:
        if name == b"content-type":
            if value != b"application/json" and not _is_json(value):
                found = value.decode("latin-1")[:100]
                raise UnsupportedMediaType(
                    f'Content-Type is "{found}"; send "application/json"', found=found, expected="application/json"
                )
        elif name == b"content-length":
            declared = int(value)
        elif name == b"content-encoding" and value.lower() != b"identity":
            found = value.decode("latin-1")[:100]
            raise UnsupportedMediaType(f'Content-Encoding is "{found}"; send the JSON as it is', found=found, expected="identity")
    if declared > max_bytes * MAX_DROPPED_BODIES:
        raise _too_large(max_bytes, declared)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False) and len(message["body"]) <= max_bytes:
        return bytes(message["body"])  # the usual case: all of it has arrived
    return await _read_rest(message, receive, max_bytes)


async def _read_rest(message: Message, receive: Receive, max_bytes: int) -> bytes:
    body = bytearray()
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientLeft
        size += len(message.get("body", b""))
        if size <= max_bytes:
            body += message.get("body", b"")
        else:
            body.clear()
        has_more = message.get("more_body", False)
        if not has_more or size > max_bytes * MAX_DROPPED_BODIES:
            break
        message = await receive()
    if size > max_bytes:
        raise _too_large(max_bytes, None if has_more else size)
    return bytes(body)


def _too_large(max_bytes: int, found: int | None) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body has {'more than ' + str(max_bytes) if found is None else found} bytes; SLUICE_MAX_BODY_BYTES is {max_bytes}",
        found=found,
        limit=max_bytes,
        setting="SLUICE_MAX_BODY_BYTES",
    )


def _is_json(content_type: bytes) -> bool:
    media = content_type.partition(b";")[0].strip().lower()
    # `curl -d` declares every body as a form. No door here takes forms, so what it sends is meant as JSON.
    if media in (b"application/json", b"application/x-www-form-urlencoded"):
        return True
    return media.startswith(b"application/") and media.endswith(b"+json")


class _Waiting:
    """A request that is being answered."""

    __slots__ = ("has_left", "receive", "since", "watcher")

    def __init__(self, receive: Receive, since: float) -> None:
        self.receive = receive
        self.since = since
        self.watcher: asyncio.Task[None] | None = None
        self.has_left = False


class _Departures:
    """Watches the connections of slow requests, and cancels the task that answers one when its client leaves.

    One timer for all of them, which runs only while somebody waits: a timer per request costs 2 to 3 µs.
    """

    def __init__(self, watch_after_s: float) -> None:
        self._watch_after_s = watch_after_s
        self._waiting: dict[asyncio.Task[Any], _Waiting] = {}  # in the order of their arrival
        self._is_ticking = False

    def watch_later(self, task: asyncio.Task[Any], receive: Receive) -> None:
        """Begin when the body has been read and the answer is not there after a while."""
        loop = task.get_loop()
        self._waiting[task] = _Waiting(receive, loop.time())
        if not self._is_ticking:
            self._is_ticking = True
            loop.call_later(self._watch_after_s, self._tick, loop)

    def has_left(self, task: asyncio.Task[Any]) -> bool:
        """Whether it was cancelled because its client left."""
        waiting = self._waiting.get(task)
        return waiting is not None and waiting.has_left

    def forget(self, task: asyncio.Task[Any]) -> None:
        """The request is over."""
        waiting = self._waiting.pop(task, None)
        if waiting is not None and waiting.watcher is not None:
            waiting.watcher.cancel()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for task, waiting in self._waiting.items():
            if now - waiting.since < self._watch_after_s / 2:
                break  # younger ones only
            if waiting.watcher is None:
                waiting.watcher = loop.create_task(self._watch(task, waiting))
        self._is_ticking = bool(self._waiting)
        if self._is_ticking:
            loop.call_later(self._watch_after_s, self._tick, loop)

    async def _watch(self, task: asyncio.Task[Any], waiting: _Waiting) -> None:
        message = await waiting.receive()
        if message["type"] == "http.disconnect":
            waiting.has_left = True
            task.cancel()
