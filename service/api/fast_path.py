"""uvicorn's HTTP protocol with a fast path to the direct endpoints: from the parser to the gateway, and back in one write.

A transport only: what is answered, and what is counted, logged or refused on the way, is decided by the gateway on both paths.
Only a request that is simple in every respect takes the fast path (see `_simple_length`); all others take the regular path,
uvicorn's with bounds (`regular_path.py`). What uvicorn does for each request that is saved here, of 22 µs and more: two system
calls to send (head and body apart, each of which wakes the client), an event and two callbacks, a timer that is set and
cancelled, regular expressions over the headers that we wrote ourselves.

Builds on names that uvicorn keeps private, so it is imported by `transport.py` alone, for the versions that were tested.
"""

from __future__ import annotations

import asyncio
import functools
import http
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from starlette.types import Message

from service.api.connections import Phase
from service.api.regular_path import RegularPathProtocol
from service.api.request import Address, Answer, Headers, HttpRequest, read_length
from service.errors import ServiceError

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024
"""A larger body takes the regular path, which stops reading from the socket while its parts are not yet received."""
REFUSED_S = 1.0
"""A connection that returns within this time after a refusal did not wait as Retry-After says; its refusal may be held."""
STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}
# With one of these headers a request is not simple, whatever the value; nor with another value of Connection.
ODD_HEADERS = frozenset((b"transfer-encoding", b"proxy-connection", b"upgrade"))
SIMPLE_CONNECTIONS = frozenset((b"keep-alive", b"Keep-Alive", b"close"))


class FastRequest(HttpRequest):
    """A request on the fast path. uvicorn's protocol takes it for a RequestResponseCycle."""

    __slots__ = (
        "_callback",
        "_error",
        "_is_read",
        "_waiter",
        "body",
        "disconnected",
        "keep_alive",
        "more_body",
        "request_bytes",
        "response_complete",
        "task",
    )

    request_bytes: int
    task: asyncio.Task[None]
    """The one that answers it."""

    def __init__(
        self,
        path: str,
        headers: Headers,
        request_bytes: int,
        client: Address | None,
        server: Address | None,
        keep_alive: bool,
    ) -> None:
        self.method = "POST"
        self.path = path
        self.headers = headers
        self.request_bytes = request_bytes
        self.client = client
        self.server = server
        self.state = {}
        self.ticket = None
        self.timeout_s = math.inf
        self.num_instances = 0
        self.model = None
        self.context = None
        self.keep_alive = keep_alive
        self.body = bytearray()
        self.more_body = True
        self.response_complete = False
        self.disconnected = False
        self._error: ServiceError | None = None
        self._is_read = False
        self._callback: Callable[[], object] | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def message_event(self) -> FastRequest:
        """What uvicorn sets when a part of the body or the end of the connection has come."""
        return self

    @property
    def has_whole_body(self) -> bool:
        return not self.more_body

    def set(self) -> None:
        """As of an asyncio.Event; what matters is the end of the body, and of the connection."""
        is_due = self.disconnected or not (self.more_body or self._is_read)
        if is_due and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.disconnected and self._callback is not None:
            self._callback()

    def on_disconnect(self, callback: Callable[[], object] | None) -> bool:
        self._callback = callback
        return True

    @property
    def has_disconnected(self) -> bool:
        return self.disconnected

    def time_out(self, error: ServiceError) -> None:
        """The body has not come in time; `receive` then raises the error."""
        self._error = error
        self.more_body = False
        self.set()

    async def receive(self) -> Message:
        """The whole body at once, and then nothing until the client disconnects."""
        if not self.disconnected and (self.more_body or self._is_read):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error is not None:
            raise self._error
        if self.disconnected:
            return {"type": "http.disconnect"}
        self._is_read = True
        return {"type": "http.request", "body": self.body, "more_body": False}


class RefusedRequest:
    """A request that was answered before it was parsed: all that uvicorn and the monitor of connections want to know of it."""

    __slots__ = ()

    response_complete = True
    more_body = disconnected = False

    @property
    def message_event(self) -> RefusedRequest:
        """As of FastRequest."""
        return self

    def set(self) -> None:
        """Nobody waits for it."""


class FastPathProtocol(RegularPathProtocol):
    """One connection. The app is a Gateway."""

    # The first bytes of a refusal, for these default headers: uvicorn replaces the list once a second.
    _default_headers: Sequence[tuple[bytes, bytes]] | None = None
    _refusal_head = b""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refused_until = 0.0

    # Callbacks of the parser and of the transport.

    def data_received(self, data: bytes) -> None:
        if self._gateway.may_refuse_early and self._refuse_early(data):
            return
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._is_dropping = False
        self._begin_head()
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        if not self._complete_head():
            return
        num_bytes = self._simple_length()
        if num_bytes is not None:
            keep_alive = self.parser.should_keep_alive()
            request = FastRequest(self.url.decode(), self.headers, num_bytes, self.client, self.server, keep_alive)
            self.cycle = self._running = cast(Any, request)
            # Behind answers that the client does not read a refusal waits for its turn, as an answer does.
            refusal = None if self.flow.write_paused else self._gateway.refuse(request)
            if refusal is not None:
                self._refuse(request, refusal)
                return
            # As uvicorn does: what is refused by its head is refused at once. A small body is there before the task begins.
            request.task = self.loop.create_task(self._answer(request))
            self.tasks.add(request.task)
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        self._make_scope()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers  # the list that the scope holds
        self._start_regular()

    def eof_received(self) -> bool:  # type: ignore[override]
        """As the base class; a client that closed its connection looks like one that only closed its side."""
        is_open = super().eof_received()
        if is_open and isinstance(self.cycle, FastRequest) and self.cycle.ticket is not None:
            self.cycle.ticket.close()
        return is_open

    # The fast path.

    def _await_body(self) -> None:
        # At once and not only when its task begins: heads that come together would else be refused for each other's bodies.
        cycle: Any = self.cycle
        if isinstance(cycle, FastRequest) and cycle.ticket is not None:
            cycle.ticket.await_body()

    def _time_out_body(self, cycle: Any, error: ServiceError) -> None:
        if isinstance(cycle, FastRequest):
            cycle.time_out(error)
        else:
            super()._time_out_body(cycle, error)

    def _simple_length(self) -> int | None:
        """The size of the body of a simple request, None where the request is not simple.

        That is a POST by HTTP/1.1 to a direct endpoint, with a small body of known size, behind requests that were answered.
        """
        path = self.url
        if not (
            self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and not self.expect_100_continue
            and not self.parser.should_upgrade()
            and (self.cycle is None or self.cycle.response_complete)
            and self.limit_concurrency is None
            and path.isascii()
            and self._gateway.is_direct(path.decode(), self.server)
        ):
            return None
        size = None
        for name, value in self.headers:
            if name == b"content-length":
                if size is not None or not value.isdigit():
                    return None
                size = read_length(value)
            elif name in ODD_HEADERS or (name == b"connection" and value not in SIMPLE_CONNECTIONS):
                return None
        return size if size is not None and size <= MAX_BODY_BYTES else None

    def _refuse_early(self, data: bytes) -> bool:
        """Answer with a refusal if these bytes are a whole request that is to be refused and looks as most do."""
        is_between = self.phase is Phase.REQUEST and not self._unfed and (self.cycle is None or self.cycle.response_complete)
        # Behind answers that the client does not read a refusal waits for its turn, as an answer does.
        if not is_between or self._is_ending or self.flow.write_paused:
            return False
        content = self._gateway.refuse_early(data, self.server)
        if content is None:
            return False
        delay_s = self._hold_s()
        if delay_s:
            request = FastRequest("", [], 0, self.client, self.server, keep_alive=True)
            request.more_body = False
            self.cycle = self._running = cast(Any, request)
            send = functools.partial(self._send_held_refusal, content, request)
            self._gateway.held_refusals.add(self.loop, delay_s, send)
        else:
            self.cycle = self._running = cast(Any, RefusedRequest())  # a new one: the connection has not been idle
            self._send_early_refusal(content)
            self.server_state.total_requests += 1
        return True

    def _send_early_refusal(self, content: bytes) -> None:
        cls = type(self)
        if cls._default_headers is not self.server_state.default_headers:
            cls._default_headers = self.server_state.default_headers
            lines = [b"%s: %s\r\n" % header for header in self.server_state.default_headers]
            cls._refusal_head = b"".join([STATUS_LINES[503], *lines])
        self.transport.write(cls._refusal_head + content)

    def _send_held_refusal(self, content: bytes, request: FastRequest) -> None:
        if not self.transport.is_closing():
            self._send_early_refusal(content)
            self._complete(request)

    def _refuse(self, request: FastRequest, answer: Answer) -> None:
        """Send a refusal, without a task: at once, or a little later where refusals themselves would become the load."""
        delay_s = self._hold_s() if answer.status == 503 else 0.0
        if delay_s:
            self._is_dropping = True
            self._gateway.held_refusals.add(self.loop, delay_s, functools.partial(self._send_refusal, request, answer))
        else:
            self._send_refusal(request, answer)

    def _hold_s(self) -> float:
        """How long a refusal is to be held: 0 where the client did not return before it was due, or few do."""
        now = self.loop.time()
        delay_s = self._gateway.refusal_delay_s() if now < self._refused_until else 0.0
        self._refused_until = now + delay_s + REFUSED_S
        return delay_s

    def _send_refusal(self, request: FastRequest, answer: Answer) -> None:
        if not request.disconnected and not self.transport.is_closing():
            self._send(request, answer)

    async def _answer(self, request: FastRequest) -> None:
        try:
            answer = await self._gateway.answer(request)
            if self.flow.write_paused and not request.disconnected:
                await self.flow.drain()
            if answer is not None and not request.disconnected and not self.transport.is_closing():
                self._send(request, answer)
        except Exception:
            log.exception("unexpected error", extra={"path": request.path})
        finally:
            self.tasks.discard(request.task)
            if not request.response_complete:
                self.transport.close()

    def _send(self, request: FastRequest, answer: Answer) -> None:
        status, headers, body = answer
        head = [STATUS_LINES[status]]
        for name, value in self.server_state.default_headers:
            head += (name, b": ", value, b"\r\n")
        for name, value in headers:
            head += (name, b": ", value, b"\r\n")
            if name == b"connection":
                request.keep_alive = False
        if not request.keep_alive and (b"connection", b"close") not in headers:
            head.append(b"connection: close\r\n")
        head.append(b"\r\n")
        self.transport.writelines((b"".join(head), body))
        self._complete(request)

    def _complete(self, request: FastRequest) -> None:
        """The answer is sent: await the next request, or close."""
        request.response_complete = True
        if request.keep_alive:
            if self.pipeline or self._is_ending or self.flow.is_held or self.transport.is_closing():
                self.on_response_complete()
                return
            self.flow.resume_reading()
        else:
            self.transport.close()
        self.server_state.total_requests += 1
