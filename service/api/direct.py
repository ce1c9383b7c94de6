"""The short way through HTTP for the doors that must be quick: body bytes in, answer bytes out, over bare ASGI.

FastAPI documents these doors and does not run them: its routing, dependencies and response models cost more than a small
LSTM. Knows nothing of models; what a body means is `predict.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi.routing import APIRoute
from starlette.types import Message, Receive, Scope, Send

from service.api.errors import InternalError, UnsupportedMediaType, problem
from service.errors import PayloadTooLarge, ServiceError

log = logging.getLogger(__name__)

Endpoint = Callable[[Awaitable[bytes]], Awaitable[bytes]]
"""Awaits the body, which may raise as `read_body` says, and returns the answer."""

# A request that waits longer than this is watched: when its client leaves, its place in the queue is given up. Watching
# costs a task per request; nearly all requests are answered sooner and pay only for a timer that never fires (1 µs).
WATCH_AFTER_S = 0.1
# Of a body that is too large, this many times the limit is read and dropped, so that a client which sends first and reads
# later gets its 413 rather than a broken pipe. Beyond it the connection is closed.
MAX_DROPPED_BODIES = 4


class DirectDoor:
    """One door as an ASGI app: reads the body within its limit, calls the endpoint, sends the answer or the problem."""

    def __init__(self, endpoint: Endpoint, max_body_bytes: int, watch_after_s: float = WATCH_AFTER_S) -> None:
        self._endpoint = endpoint
        self._max_body_bytes = max_body_bytes
        self._watch_after_s = watch_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        departure = _Departure(receive, self._watch_after_s)
        try:
            answer = await self._endpoint(self._read(scope, receive, departure))
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
            status = 200
        except ClientLeft:
            return
        except ServiceError as exc:
            status, headers, answer = problem(exc)
            if status == 413:
                headers.append((b"connection", b"close"))
        except asyncio.CancelledError:
            if not departure.has_left:
                raise
            departure.forgive()
            return
        except Exception:
            log.exception("unexpected error", extra={"path": scope["path"]})
            status, headers, answer = problem(InternalError("an unexpected error; the log says more"))
        finally:
            departure.stop_watching()
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _read(self, scope: Scope, receive: Receive, departure: _Departure) -> bytes:
        body = await read_body(scope, receive, self._max_body_bytes)
        departure.watch_later()
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


class _Departure:
    """Watches one connection for the task that answers it, and cancels that task when the client leaves."""

    def __init__(self, receive: Receive, watch_after_s: float) -> None:
        self.has_left = False
        self._receive = receive
        self._watch_after_s = watch_after_s
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._caller: asyncio.Task[None] | None = None

    def watch_later(self) -> None:
        """Begin when the body has been read and the answer is not there after a while."""
        self._caller = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(self._watch_after_s, self._watch)

    def stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def forgive(self) -> None:
        """Take the cancellation back: it was ours, and the task may end by itself."""
        assert self._caller is not None
        self._caller.uncancel()

    def _watch(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.has_left = True
            assert self._caller is not None
            self._caller.cancel()
