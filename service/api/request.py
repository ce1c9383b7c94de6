"""One HTTP request, whichever path it came by: its head, its body within limits, and what became of it.

The fast path and ASGI both make an `HttpRequest`; endpoints and hooks see nothing else of the transport.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from starlette.types import Message, Receive, Scope

from service.api.errors import RequestTimedOut, UnsupportedMediaType
from service.context import RequestContext
from service.errors import MalformedRequest, Overloaded, PayloadTooLarge, ServiceError

Headers = list[tuple[bytes, bytes]]
"""Names are in lower case."""
Address = tuple[str, int | None]

# Of a body that is too large, this many times the limit is read and dropped, so that a client which sends first and reads
# later gets its 413 rather than a broken pipe. Beyond it the connection is closed.
MAX_DROPPED_BODIES = 4
_JSON = (b"content-type", b"application/json")
KEY_SUBPROTOCOL = "sluice.key."
"""What an API key stands behind where a page presents one: for a WebSocket browsers let it set subprotocols, and no headers."""
TIMEOUT_HEADER, PRIORITY_HEADER = b"x-request-timeout-ms", b"x-request-priority"
MAX_TIMEOUT_MS = 86_400_000
MAX_LENGTH = 2**62
TIMED_OUT = "sluice.timed_out"
"""In the ASGI scope of a request whose body is awaited no longer, the error: what was received of it is not its whole."""
MAX_LENGTH_DIGITS = len(str(MAX_LENGTH))
DEFAULT_PRIORITY, LEAST_URGENT = 5, 9


def read_length(value: bytes) -> int:
    """The number of bytes that Content-Length declares; what is no such number is taken for the largest there may be.

    Python refuses to read more than 4,300 digits, and no body is that long.
    """
    if not value.isdigit():
        return 0
    return int(value) if len(value) <= MAX_LENGTH_DIGITS else MAX_LENGTH


def body_timed_out() -> RequestTimedOut:
    """Of a request whose body came too slowly."""
    return RequestTimedOut("the body did not come in time", setting="SLUICE_BODY_TIMEOUT_MS")


def body_interrupted() -> Overloaded:
    """Of a request whose body a server that ends awaits no longer: the client was not slow, and another server may take it."""
    return Overloaded("the server ended before the body had come", retry_after_s=1.0)


class ClientDisconnected(Exception):
    """The client closed the connection before it was answered."""


class BodyTooLarge(PayloadTooLarge):
    """The body was not read to its end: the connection cannot carry another request."""


class HttpRequest:
    """The head of a request, a way to receive its body, and a record of its answer."""

    __slots__ = (
        "client",
        "context",
        "duration_s",
        "headers",
        "method",
        "model",
        "num_instances",
        "path",
        "response_bytes",
        "route",
        "server",
        "started_at",
        "state",
        "status",
        "ticket",
        "timeout_s",
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
    ticket: Ticket | None
    """Of the admission control, while the request is pending."""
    timeout_s: float
    """How long the answer may take, from the end of the body on."""
    num_instances: int
    """0 until the body has been read."""
    model: str | None
    """The name of the model that the request is for; None until it is known."""
    context: RequestContext | None
    """Its ids and timing, from the gateway on."""
    # From here on: what the gateway fills in.
    route: str
    """The template of the path, as the metrics call it; `_unknown` where there is none."""
    started_at: float
    status: int
    """Of the answer; CLIENT_DISCONNECTED as long as there is none."""
    response_bytes: int
    duration_s: float

    async def receive(self) -> Message:
        """The next part of the body, or the client's disconnect, as an ASGI message.

        Raises RequestTimedOut, and Overloaded where the server ends.
        """
        raise NotImplementedError

    def on_disconnect(self, callback: Callable[[], object] | None) -> bool:
        """Call this once when the client disconnects (None: nothing); False where only `receive` tells that."""
        return False

    @property
    def has_disconnected(self) -> bool:
        """Whether the client has disconnected, where `on_disconnect` works."""
        return False

    @property
    def has_whole_body(self) -> bool:
        """Whether the whole body is known to have come."""
        return False

    @property
    def request_bytes(self) -> int:
        """The size of the body as the head declares it; a chunked body counts as 0."""
        for name, value in self.headers:
            if name == b"content-length":
                return read_length(value)
        return 0


class UnreadRequest(HttpRequest):
    """A request of which nothing is known but where it came from."""

    __slots__ = ()

    def __init__(self, client: Address | None, server: Address | None) -> None:
        self.method = self.path = ""
        self.headers = []
        self.client = client
        self.server = server
        self.state = {}
        self.ticket = None
        self.timeout_s = math.inf
        self.num_instances = 0
        self.model = None
        self.context = None


class AsgiRequest(HttpRequest):
    """A request that came through ASGI; of one to open a WebSocket an API key among its subprotocols is one of its headers."""

    __slots__ = ("_receive", "_scope")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method = scope.get("method", "GET")  # which a request to open a WebSocket is
        self.path = scope["path"]
        self.headers = scope["headers"]
        if "subprotocols" in scope:  # it opens a WebSocket
            self.headers = [*self.headers, *_keys_of(scope["subprotocols"])]
        self.client = scope.get("client")
        self.server = scope.get("server")
        self.state = scope.setdefault("state", {})  # what FastAPI's endpoints see as request.state
        self.ticket = None
        self.timeout_s = math.inf
        self.num_instances = 0
        self.model = None
        self.context = None
        self._receive = receive
        self._scope = scope

    async def receive(self) -> Message:
        message = await self._receive()
        error: ServiceError | None = self._scope.get(TIMED_OUT)
        if error is not None:
            raise error
        return message


def _keys_of(subprotocols: Iterable[str]) -> Headers:
    keys = (each.removeprefix(KEY_SUBPROTOCOL) for each in subprotocols if each.startswith(KEY_SUBPROTOCOL))
    return [(b"x-api-key", key.encode()) for key in keys]


class Answer(NamedTuple):
    """What is sent: HTTP status, headers, body."""

    status: int
    headers: Headers
    body: bytes


def json_answer(body: bytes) -> Answer:
    """200 with a JSON body."""
    return Answer(200, [_JSON, (b"content-length", b"%d" % len(body))], body)


class Ticket(Protocol):
    """The place of an admitted request."""

    def await_body(self) -> None:
        """Its body has not come yet."""
        ...

    def receive(self, num_bytes: int) -> bool:
        """So much more of the body has come; whether there is room for it."""
        ...

    def complete_body(self) -> None:
        """The body has come as a whole, whether it was awaited or not."""
        ...

    cancel: Callable[[], object] | None
    """What ends the request when a more urgent one gets its place."""
    is_displaced: bool
    """Whether that has happened."""

    def assign(self, model: str) -> None:
        """The request is for this model."""
        ...

    def grow(self, factor: float, timeout_s: float) -> bool:
        """The request is so many times the work that its size tells; whether there is room for it."""
        ...

    def close(self) -> None:
        """The client has closed its side of the connection; where others are refused, the request is cancelled."""
        ...


class Admission(Protocol):
    """Decides by the work that is pending whether a request is begun (`scheduling/admission.py`)."""

    is_refusing: bool
    """Whether one of the last requests that came was refused."""

    def would_refuse(self, endpoint: str, num_bytes: int, timeout_s: float) -> bool:
        """Whether a request of the default priority would be refused."""
        ...

    def admit(self, endpoint: str, num_bytes: int, timeout_s: float, priority: int) -> Ticket | None:
        """None where the answer would come too late; a ticket is given back with `finish`."""
        ...

    def finish(self, ticket: Any, num_rows: int, *, is_done: bool, has_left: bool, model: str | None) -> None:
        """The request is over; `is_done` where its work was not given up on the way, `has_left` where its client did not wait.

        `model` is the one that answered."""
        ...

    def retry_after_s(self) -> float:
        """When a refused request may try again."""
        ...


class Endpoint(Protocol):
    """Answers requests without FastAPI in between, on the fast path and on the regular path alike."""

    def refused(self) -> None:
        """A request to this endpoint was refused before it was begun."""
        ...

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


def read_conditions(request: HttpRequest, timeout_s: float) -> tuple[float, int]:
    """The time for an answer in seconds, which the client may shorten, and the priority, as the head says.

    Raises MalformedRequest for a timeout or a priority that is none.
    """
    priority = DEFAULT_PRIORITY
    for name, value in request.headers:
        if name == TIMEOUT_HEADER:
            timeout_s = min(timeout_s, _read_number(name, value, 1, MAX_TIMEOUT_MS, "milliseconds") / 1000)
        elif name == PRIORITY_HEADER:
            priority = _read_number(name, value, 1, LEAST_URGENT, "1 is the most urgent")
    return timeout_s, priority


def not_admitted(retry_after_s: float, timeout_s: float) -> Overloaded:
    """Of a request, or a step, whose answer would come too late: the admission control gave it no ticket."""
    return Overloaded(
        "the work that is pending would not leave time for an answer",
        retry_after_s=retry_after_s,
        timeout_ms=round(1000 * timeout_s),
    )


def _read_number(name: bytes, value: bytes, least: int, most: int, unit: str) -> int:
    if value.isdigit() and len(value) <= len(str(most)) and least <= int(value) <= most:
        return int(value)
    found, header = value.decode("latin-1")[:40], name.decode()
    raise MalformedRequest(
        f'{header}: expected a whole number from {least} to {most} ({unit}), got "{found}"',
        where=header,
        found=found,
        expected=f"{least} to {most}",
    )


async def read_body(request: HttpRequest, max_bytes: int) -> bytes:
    """A whole body of plain JSON: `expect_plain_json`, then `receive_body`; raises what these do."""
    expect_plain_json(request.headers)
    return await receive_body(request, max_bytes)


def expect_plain_json(headers: Headers) -> None:
    """Raise UnsupportedMediaType when the body is declared as something other than plain JSON."""
    for name, value in headers:
        if name == b"content-type":
            expect_json_type(value)
        elif name == b"content-encoding" and value.lower() != b"identity":
            found = value.decode("latin-1")[:100]
            raise UnsupportedMediaType(f'Content-Encoding is "{found}"; send the JSON as it is', found=found, expected="identity")


def expect_json_type(content_type: bytes) -> None:
    """Raise UnsupportedMediaType for a Content-Type that is not JSON."""
    if content_type != b"application/json" and not _is_json(content_type):
        found = content_type.decode("latin-1")[:100]
        raise UnsupportedMediaType(
            f'Content-Type is "{found}"; send "application/json"', found=found, expected="application/json"
        )


async def receive_body(request: HttpRequest, max_bytes: int) -> bytes:
    """The whole body, whatever it is declared as.

    Raises BodyTooLarge, RequestTimedOut, Overloaded when too many bodies are being received, and ClientDisconnected when the
    connection closes first.
    """
    if request.request_bytes > max_bytes * MAX_DROPPED_BODIES:
        raise _too_large(max_bytes, request.request_bytes)
    awaited = None if request.has_whole_body else request.ticket
    if awaited is not None:
        awaited.await_body()
    message = await request.receive()
    if message["type"] == "http.request" and not message.get("more_body", False) and len(message["body"]) <= max_bytes:
        body = bytes(message["body"])  # the usual case: all of it has arrived
    else:
        body = await _read_rest(message, request, max_bytes, awaited)
    if request.ticket is not None:
        request.ticket.complete_body()
    return body


async def _read_rest(message: Message, request: HttpRequest, max_bytes: int, awaited: Ticket | None) -> bytes:
    body = bytearray()
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        size += len(message.get("body", b""))
        if awaited is not None and not awaited.receive(len(message.get("body", b""))):
            raise Overloaded("too many bodies are being received", setting="SLUICE_MAX_PENDING_BYTES")
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
