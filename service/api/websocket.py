"""`GET /predict/ws`: the pieces of one sequence as messages of a WebSocket, each answered by a message as it comes.

Each message is an object with one field: `prediction`, `error` (a problem) or `end` (with the state to go on from). A message is
read when the one before has been answered. What is refused before the WebSocket is open is an ordinary answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.api.connections import StreamLimit
from service.api.draining import Drain
from service.api.errors import Forbidden, RequestTimedOut, UpgradeRequired, find_row
from service.api.request import Headers, HttpRequest
from service.api.stream_sequence import Conditions, Streams, StreamSequence, describe_error
from service.errors import CapacityError, MalformedRequest, Overloaded, PayloadTooLarge, ServiceError

WEBSOCKET_PATH = "/predict/ws"
API = "websocket"
"""How the metrics call it: each message is a request."""
SUBPROTOCOL = "sluice"
"""What is chosen where it is offered: a page that presents an API key as a subprotocol offers this one beside it."""
END = b"null"
"""The message that ends a sequence."""
# Codes of RFC 6455, 7.4.1, and of its registry.
NORMAL, UNSUPPORTED_DATA, POLICY_VIOLATION, TOO_BIG, INTERNAL_ERROR, SERVICE_RESTART, TRY_AGAIN_LATER = (
    1000,
    1003,
    1008,
    1009,
    1011,
    1012,
    1013,
)


class UnsupportedMessage(MalformedRequest):
    """A message of bytes, and not of text."""


class _Drained(Exception):
    """The server is about to end."""


class WebSocketEndpoint:
    """What answers over WebSockets, each of which is a sequence."""

    def __init__(
        self,
        streams: Streams,
        drain: Drain,
        *,
        allows_origin: Callable[[Headers], bool],
        limit: StreamLimit,
        head_timeout_s: float,
        idle_timeout_s: float,
    ) -> None:
        """`allows_origin` tells by the headers whether a page may read the answers; `limit` counts the streams of this process.

        The first message has to come within `head_timeout_s`, each other one within `idle_timeout_s` of the answer before it.
        """
        self._streams = streams
        self._drain = drain
        self._allows_origin = allows_origin
        self._limit = limit
        self._head_timeout_s = head_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._waiting: set[asyncio.Timeout] = set()
        drain.on_start(self._end_waiting)

    async def serve(self, request: HttpRequest, websocket: WebSocket, accept: Callable[[str | None], Awaitable[None]]) -> None:
        """Answer a request to open a WebSocket; `accept` opens it, with the subprotocol that was chosen.

        Raises ServiceError before that, and WebSocketDisconnect where the client does not wait for the end.
        """
        if not self._allows_origin(request.headers):
            raise Forbidden("pages of this origin may not open a WebSocket here: SLUICE_CORS_ORIGINS lists those that may")
        if self._drain.is_active:
            raise Overloaded("the server is about to end", retry_after_s=1.0)
        with self._limit.begin():
            conditions = self._streams.expect_room(request)
            await accept(SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None)
            await self._converse(request, websocket, conditions)

    async def _converse(self, request: HttpRequest, websocket: WebSocket, conditions: Conditions) -> None:
        sequence: StreamSequence | None = None
        code = NORMAL
        try:
            sequence = self._streams.open(await self._receive(websocket, self._head_timeout_s), request, conditions)
            while (message := await self._receive(websocket, self._idle_timeout_s)) != END:
                await _send(websocket, "prediction", await sequence.advance(message))
        except _Drained:
            code = SERVICE_RESTART
        except ServiceError as exc:
            code = close_code(exc)
            await _send(websocket, "error", describe_error(exc))
        if sequence is not None:
            await _send(websocket, "end", sequence.end)
        await websocket.close(code)

    async def _receive(self, websocket: WebSocket, timeout_s: float) -> bytes:
        """The next message that is not empty. Raises RequestTimedOut, MalformedRequest, _Drained and WebSocketDisconnect."""
        while True:
            if self._drain.is_active:
                raise _Drained
            timeout = asyncio.timeout(timeout_s)
            try:
                async with timeout:
                    self._waiting.add(timeout)
                    message = await websocket.receive()
            except TimeoutError:
                if self._drain.is_active:
                    raise _Drained from None
                raise RequestTimedOut("no message has come in time", limit=timeout_s) from None
            finally:
                self._waiting.discard(timeout)
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message["code"], message.get("reason"))
            text: str | None = message.get("text")
            if text is None:
                raise UnsupportedMessage("the message is binary, expected text: JSON")
            if content := text.strip().encode():
                return content

    def _end_waiting(self) -> None:
        """The server is about to end: no other message is awaited."""
        for timeout in self._waiting:
            if not timeout.expired():
                timeout.reschedule(0)


def close_code(exc: ServiceError) -> int:
    """The code with which a WebSocket is closed behind an error."""
    if isinstance(exc, UnsupportedMessage):
        return UNSUPPORTED_DATA
    if isinstance(exc, PayloadTooLarge):
        return TOO_BIG
    if isinstance(exc, CapacityError):
        return TRY_AGAIN_LATER
    return POLICY_VIOLATION if find_row(type(exc)).status < 500 else INTERNAL_ERROR


def websocket_router() -> APIRouter:
    """The route for requests that open no WebSocket, and what OpenAPI can say of it."""

    async def open_stream() -> None:
        raise UpgradeRequired('this endpoint speaks WebSocket: send "Upgrade: websocket" with version 13 and a key')

    open_stream.__doc__ = DESCRIPTION
    router = APIRouter(tags=["streams"])
    router.add_api_route(
        WEBSOCKET_PATH,
        open_stream,
        methods=["GET"],
        summary="Stream a sequence over a WebSocket",
        status_code=101,
        response_description="The WebSocket is open",
        responses={
            403: {"description": "A page of this origin may not open a WebSocket"},
            426: {"description": "The request opens no WebSocket"},
            503: {"description": "Too busy, or too many WebSockets; Retry-After says when to try again"},
        },
    )
    return router


DESCRIPTION = """A sequence over a WebSocket (RFC 6455), which OpenAPI cannot describe. Messages are JSON texts of at most 64 KB.

The first message names the model: `{"model": "..."}`, with `version`, `parameters` and `state` as in `POST /predict/stream`.
Each other one is an instance, the next piece of the sequence, and is answered by `{"prediction": ...}`; `null` ends the
sequence. The last answer is `{"end": {"state": ...}}`, with an `{"error": ...}` before it where something went wrong; then the
server closes: 1000 at the end, 1003 for bytes, 1008 for what it refuses, 1009 for a message that is too large, 1011 for what
failed, 1012 when it is about to end, 1013 when it is too busy.
"""


async def _send(websocket: WebSocket, field: str, content: bytes) -> None:
    await websocket.send_text(f'{{"{field}":{content.decode()}}}')
