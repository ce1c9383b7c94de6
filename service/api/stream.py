"""`POST /predict/stream`: the pieces of one sequence as lines of a body, each answered by a server-sent event as it comes.

A line is read when the one before has been answered and its event has gone out: who reads slowly is read slowly. The state stays
with the request, and is handed out at its end, so the server keeps nothing.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

from starlette.types import Receive, Scope, Send

from service.api.access.control import visible_models
from service.api.carried import STATE, StateTokens
from service.api.connections import StreamLimit
from service.api.draining import Drain
from service.api.errors import UnsupportedMediaType, problem
from service.api.inference import RequestObserver, outcome_of, reason_of
from service.api.predict import Models, ServedModel
from service.api.request import AsgiRequest, ClientDisconnected
from service.context import CURRENT
from service.errors import MalformedRequest, PayloadTooLarge, ServiceError
from service.wire import read, write

STREAM_PATH = "/predict/stream"
API = "stream"
"""How the metrics call it: each line is a request."""
MAX_LINE_BYTES = 64 * 1024
HEAD_FIELDS = ("model", "version", "parameters", STATE)
_MEDIA_TYPES = (b"application/x-ndjson", b"application/jsonl", b"application/json", b"application/x-www-form-urlencoded", b"")
# nginx holds events back until it is told not to.
_HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]


class StreamHead(NamedTuple):
    """The first line: which model, and where the sequence goes on."""

    model: str
    version: str | None
    parameters: dict[str, Any]
    token: object
    """None: it begins."""
    wants_states: bool
    """Whether each event holds the state after it."""


class StreamEndpoint:
    """The endpoint as an ASGI app, behind FastAPI's routing and errors."""

    def __init__(
        self,
        models: Models,
        observer: RequestObserver,
        tokens: StateTokens,
        drain: Drain,
        timeout_s: float,
        limit: StreamLimit | None = None,
    ) -> None:
        """`timeout_s` is what the answer to one line may take; `limit` counts the streams of this process."""
        self._limit = limit or StreamLimit(sys.maxsize)
        self._models = models
        self._observer = observer
        self._tokens = tokens
        self._drain = drain
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._limit.begin():
            await self._stream(AsgiRequest(scope, receive), send)

    async def _stream(self, request: AsgiRequest, send: Send) -> None:
        _expect_lines(request.headers)
        try:
            async with contextlib.aclosing(read_lines(request)) as lines:
                head = read_head(await anext(lines, b""))
                model = visible_models(self._models, request.state).get(head.model, head.version)
                model.expect_streaming()
                state = None if head.token is None else self._tokens.read(head.token, model.identity, model.state_bytes)
                await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
                await self._answer(model, head, state, lines, send)
        except ClientDisconnected:
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _answer(self, model: ServedModel, head: StreamHead, state: Any, lines: AsyncIterator[bytes], send: Send) -> None:
        """An event for each line, one for the error that ends the sequence, and the last one with its state."""
        try:
            async for line in lines:
                (prediction,), (state,) = await self._advance(model, line, state, head.parameters)
                if head.wants_states:
                    prediction = model.with_state(prediction, self._tokens.write(state))
                await _send_event(send, write(prediction))
                if self._drain.is_active:
                    break  # who goes on from the state finds another server
        except ServiceError as exc:
            context = CURRENT.get()
            await _send_event(send, problem(exc, None if context is None else context.request_id).body, b"error")
        token = None if state is None else self._tokens.write(state)
        await _send_event(send, write({STATE: token}), b"end")

    async def _advance(
        self, model: ServedModel, line: bytes, state: Any, parameters: Mapping[str, Any]
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        started = time.monotonic()
        try:
            instance = _read_line(line)
            if type(instance) is dict and STATE in instance and not model.has_own_state_field:
                raise MalformedRequest('"state" belongs into the first line: the others go on from it', where=STATE)
            found = await model.advance(
                [instance], [state], parameters, deadline=started + self._timeout_s, is_plain=False, has_turn=False
            )
        except ServiceError as exc:
            duration_s = time.monotonic() - started
            self._observer.request_finished(API, model.name, model.version, outcome_of(exc), duration_s, reason_of(exc))
            raise
        self._observer.request_finished(API, model.name, model.version, "ok", time.monotonic() - started, None)
        return found


async def read_lines(request: AsgiRequest, max_bytes: int = MAX_LINE_BYTES) -> AsyncGenerator[bytes, None]:
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
            line = bytes(_bounded(rest[begin:end], max_bytes)).strip()
            begin = end + 1
            if line:
                yield line
        del rest[:begin]
        _bounded(rest, max_bytes)
    if line := bytes(rest).strip():
        yield line


def read_head(line: bytes) -> StreamHead:
    """The first line of a stream. Raises MalformedRequest."""
    if not line:
        raise MalformedRequest('the body is empty, expected a first line such as {"model": "..."}')
    content = _read_line(line)
    if type(content) is not dict:
        raise MalformedRequest('the first line is no object such as {"model": "..."}', expected="an object")
    unknown = next((field for field in content if field not in HEAD_FIELDS), None)
    if unknown is not None:
        raise MalformedRequest(
            f'"{unknown[:100]}" is not a field of the first line; the fields are {", ".join(HEAD_FIELDS)}',
            where=unknown[:100],
            expected=HEAD_FIELDS,
        )
    model, version, parameters = content.get("model"), content.get("version"), content.get("parameters") or {}
    if type(model) is not str:
        raise MalformedRequest('"model" is missing in the first line, or no string', where="model")
    if version is not None and type(version) is not str:
        raise MalformedRequest('"version" is no string such as "1"', where="version")
    if type(parameters) is not dict:
        raise MalformedRequest('"parameters" is no object', where="parameters")
    return StreamHead(model, version, parameters, content.get(STATE), STATE in content)


def _read_line(line: bytes) -> Any:
    try:
        return read(line)
    except ValueError as exc:
        raise MalformedRequest(f"a line is not JSON: {exc}") from exc


def _bounded(line: Any, max_bytes: int) -> Any:
    if len(line) > max_bytes:
        raise PayloadTooLarge(f"a line has more than {max_bytes} bytes", limit=max_bytes)
    return line


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
