"""One HTTP request, whichever path it came by: its head, its body within limits, and what became of it.

The fast path and ASGI both make an `HttpRequest`; endpoints and hooks see nothing else of the transport.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from starlette.types import Message, Receive, Scope

from service.api.errors import UnsupportedMediaType
from service.errors import PayloadTooLarge

Headers = list[tuple[bytes, bytes]]
"""Names are in lower case."""
Address = tuple[str, int | None]

# Of a body that is too large, this many times the limit is read and dropped, so that a client which sends first and reads
# later gets its 413 rather than a broken pipe. Beyond it the connection is closed.
MAX_DROPPED_BODIES = 4
_JSON = (b"content-type", b"application/json")


class ClientDisconnected(Exception):
    """The client closed the connection before it was answered."""


class BodyTooLarge(PayloadTooLarge):
    """The body was not read to its end: the connection cannot carry another request."""


class HttpRequest:
    """The head of a request, a way to receive its body, and a record of its answer."""

    __slots__ = (
        "client",
        "duration_s",
        "headers",
        "method",
        "path",
        "response_bytes",
        "route",
        "server",
        "started_at",
        "state",
        "status",
    )

    method: str
    path: str
    """Decoded, without the query."""
    headers: Headers
    client: Address | None
    server: Address | None
    """The address of ours that the request came to."""
    state: dict[str, object]
    """What hooks and endpoints hand on to hooks."""
    # From here on: what the gateway fills in.
    route: str
    """The template of the path, as the metrics call it; `_unknown` where there is none."""
    started_at: float
    status: int
    """Of the answer; CLIENT_DISCONNECTED as long as there is none."""
    response_bytes: int
    duration_s: float

    async def receive(self) -> Message:
        """The next part of the body, or the client's disconnect, as an ASGI message."""
        raise NotImplementedError

    @property
    def request_bytes(self) -> int:
        """The size of the body as the head declares it; a chunked body counts as 0."""
        for name, value in self.headers:
            if name == b"content-length":
                return int(value) if value.isdigit() else 0
        return 0


class AsgiRequest(HttpRequest):
    """A request that came through ASGI."""

    __slots__ = ("_receive",)

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method = scope["method"]
        self.path = scope["path"]
        self.headers = scope["headers"]
        self.client = scope.get("client")
        self.server = scope.get("server")
        self.state = scope.setdefault("state", {})  # what FastAPI's endpoints see as request.state
        self._receive = receive

    async def receive(self) -> Message:
        return await self._receive()


class Answer(NamedTuple):
    """What is sent: HTTP status, headers, body."""

    status: int
    headers: Headers
    body: bytes


def json_answer(body: bytes) -> Answer:
    """200 with a JSON body."""
    return Answer(200, [_JSON, (b"content-length", b"%d" % len(body))], body)


class Endpoint(Protocol):
    """Answers requests without FastAPI in between, on the fast path and on the regular path alike."""

    async def answer(self, request: HttpRequest) -> Answer:
        """The answer to one request. Raises ServiceError for the table of errors, and ClientDisconnected."""
        ...


class Hook(Protocol):
    """Runs around every request to every endpoint, on the fast path and on the regular path alike, on the event loop.

    Each method is called once per request, in this order; `after` is left out where nothing is sent, and `before` where an
    earlier hook has refused the request. Only `before` may raise.
    """

    def before(self, request: HttpRequest) -> None:
        """The head has been read, the body has not. A ServiceError becomes the answer, and the endpoint does not run."""
        ...

    def after(self, request: HttpRequest, headers: Headers) -> None:
        """The answer, or an error, is about to be sent with `request.status`; headers may be added."""
        ...

    def finished(self, request: HttpRequest) -> None:
        """The request is over: `status`, `response_bytes` and `duration_s` are set."""
        ...


async def read_body(request: HttpRequest, max_bytes: int) -> bytes:
    """The whole body; never holds more than `max_bytes` of it, however it is sent.

    Raises BodyTooLarge, UnsupportedMediaType when the body is declared as something other than plain JSON, and
    ClientDisconnected when the connection closes first.
    """
    declared = 0
    for name, value in request.headers:
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
    message = await request.receive()
    if message["type"] == "http.request" and not message.get("more_body", False) and len(message["body"]) <= max_bytes:
        return bytes(message["body"])  # the usual case: all of it has arrived
    return await _read_rest(message, request, max_bytes)


async def _read_rest(message: Message, request: HttpRequest, max_bytes: int) -> bytes:
    body = bytearray()
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        size += len(message.get("body", b""))
        if size <= max_bytes:
            body += message.get("body", b"")
        else:
            body.clear()
        has_more = message.get("more_body", False)
        if not has_more or size > max_bytes * MAX_DROPPED_BODIES:
            break
        message = await request.receive()
    if size > max_bytes:
        raise _too_large(max_bytes, None if has_more else size)
    return bytes(body)


def _too_large(max_bytes: int, found: int | None) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body has {'more than ' + str(max_bytes) if found is None else found} bytes; SLUICE_MAX_BODY_BYTES is {max_bytes}",
        found=found,
        limit=max_bytes,
        setting="SLUICE_MAX_BODY_BYTES",
    )


def _is_json(content_type: bytes) -> bool:
    media = content_type.partition(b";")[0].strip().lower()
    # `curl -d` declares every body as a form. No endpoint accepts forms, so what it sends is meant as JSON.
    if media in (b"application/json", b"application/x-www-form-urlencoded"):
        return True
    return media.startswith(b"application/") and media.endswith(b"+json")
