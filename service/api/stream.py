"""`POST /predict/stream`: the pieces of one sequence as lines of a body, each answered by a server-sent event as it comes.

A line is read when the one before has been answered and its event has gone out: a client that reads slowly is read from slowly.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from fastapi import Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from service.api.connections import StreamLimit
from service.api.draining import Drain
from service.api.errors import UnsupportedMediaType
from service.api.request import AsgiRequest, ClientDisconnected
from service.api.stream_sequence import Streams, StreamSequence, describe_error, expect_bounded
from service.errors import ServiceError

STREAM_PATH = "/predict/stream"
API = "stream"
"""How the metrics call it: each line is a request."""
_MEDIA_TYPES = (b"application/x-ndjson", b"application/jsonl", b"application/json", b"application/x-www-form-urlencoded", b"")
_NO_SPACE = re.compile(rb"\S")
# Without the last one nginx holds events back.
_HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]


class StreamEndpoint:
    """The endpoint as an ASGI app, behind FastAPI's routing and errors."""

    def __init__(self, streams: Streams, drain: Drain, limit: StreamLimit) -> None:
        """`limit` counts the streams of this process."""
        self._streams = streams
        self._limit = limit
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._limit.begin():
            await self._stream(AsgiRequest(scope, receive), send)

    async def _stream(self, request: AsgiRequest, send: Send) -> None:
        _expect_lines(request.headers)
        conditions = self._streams.expect_room(request)
        try:
            async with contextlib.aclosing(read_lines(request)) as lines:
                sequence = self._streams.open(await anext(lines, b""), request, conditions)
                await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
                await self._answer(sequence, lines, send)
        except ClientDisconnected:
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _answer(self, sequence: StreamSequence, lines: AsyncIterator[bytes], send: Send) -> None:
        """An event for each line, one for the error that ends the sequence, and the last one with its state."""
        try:
            async for line in lines:
                await _send_event(send, await sequence.advance(line))
                if self._drain.is_active:
                    break  # the state is good for another server
        except ServiceError as exc:
            await _send_event(send, describe_error(exc), b"error")
        await _send_event(send, sequence.end, b"end")


def documented_stream() -> APIRoute:
    """The same path as FastAPI documents it. Its function is never called."""
    return APIRoute(
        STREAM_PATH,
        stream_sequence,
        methods=["POST"],
        tags=["streams"],
        summary="Stream a sequence",
        response_class=Response,
        responses=_RESPONSES,
        openapi_extra=_BODY,
    )


async def stream_sequence() -> None:
    """A sequence as lines of one body (NDJSON), each answered by a server-sent event as soon as it has come.

    The first line names the model: an object with `model`, and perhaps `version`, `parameters` and `state`: `null`, or that of an
    earlier answer to go on from. Where it is there, each prediction holds the state after it. Each other line, of at most 64 KB,
    is an instance as `POST /predict` takes it, without a `state`; an empty line says nothing.

    An event without a name is the prediction of a line. The event `error` is a problem, of a line that could not be answered:
    then, as at the end of the body, the event `end` comes last, with the `state` to go on from. What is wrong with the first line
    is an ordinary error. `GET /predict/ws` is the same over a WebSocket.
    """
    raise NotImplementedError


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-ndjson": {
                "schema": {"type": "string", "description": "Lines of JSON."},
                "example": '{"model": "sensor-stream", "parameters": {"horizon": 2}}\n{"history": [20.5]}\n{"history": [20.7]}\n',
            }
        },
    }
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "An event for each line, and a last one",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'data: {"forecast":[20.6,20.8]}\n\nevent: end\ndata: {"state":"U0xTMQ"}\n\n',
            }
        },
    },
    400: {"description": "The first line is not JSON, or has unknown fields or wrong types"},
    404: {"description": "No such model"},
    408: {"description": "The first line did not come in time"},
    413: {"description": "The first line is too long"},
    415: {"description": "The body is declared as something else"},
    422: {"description": "The model cannot stream, or not go on from this state"},
    503: {"description": "Too busy, or the model is loading; Retry-After says when to try again"},
}


async def read_lines(request: AsgiRequest) -> AsyncGenerator[bytes, None]:
    """The lines of a body as they come, without those that are empty. The last one need not end.

    Raises PayloadTooLarge for a line that is too long, RequestTimedOut where nothing comes, and ClientDisconnected.
    """
    rest = bytearray()
    has_more = True
    while has_more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        has_more = message.get("more_body", False)
        start = len(rest)
        rest += message.get("body", b"")
        begin = 0
        while (end := rest.find(b"\n", max(begin, start))) >= 0:
            line = bytes(rest[begin:end])
            expect_bounded(line)
            begin = _skip_empty_lines(rest, end)
            if stripped := line.strip():
                yield stripped
        del rest[:begin]
        expect_bounded(rest)
    if last := rest.strip():
        yield bytes(last)


def _skip_empty_lines(content: bytearray, end: int) -> int:
    """Where the next line begins behind the end of one, found in one go: 256 KB of empty lines may come at once."""
    found = _NO_SPACE.search(content, end)
    return content.rfind(b"\n", end, len(content) if found is None else found.start()) + 1


def _expect_lines(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raise UnsupportedMediaType for a body that is declared as something other than lines of JSON."""
    for name, value in headers:
        if name == b"content-type" and value.partition(b";")[0].strip().lower() not in _MEDIA_TYPES:
            found = value.decode("latin-1")[:100]
            raise UnsupportedMediaType(
                f'Content-Type is "{found}"; send "application/x-ndjson"', found=found, expected="application/x-ndjson"
            )


async def _send_event(send: Send, data: bytes, name: bytes = b"") -> None:
    event = b"data: " + data + b"\n\n"
    await send({"type": "http.response.body", "body": b"event: " + name + b"\n" + event if name else event, "more_body": True})
