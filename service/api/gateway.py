"""The ASGI app around FastAPI: every request passes it, and gets its hooks, its metrics and an answer whatever happens.

Requests to direct endpoints are answered from here, on the fast path and on the regular path by the same code; all others are
forwarded to FastAPI. Knows routes by their template, and nothing of what they do.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.api.connections import ConnectionMonitor
from service.api.draining import Drain
from service.api.early_refusals import HeldRefusals, Recogniser, RefusalTemplate
from service.api.error_shapes import ErrorShapes
from service.api.errors import InternalError, NotFound, RequestTimedOut, find_row
from service.api.request import (
    Address,
    Admission,
    Answer,
    AsgiRequest,
    BodyTooLarge,
    ClientDisconnected,
    Endpoint,
    Headers,
    Hook,
    HttpRequest,
    UnreadRequest,
    not_admitted,
    read_conditions,
)
from service.api.request_ids import add_ids, identify, new_context
from service.context import CURRENT, RequestContext, Timing
from service.errors import Overloaded, ServiceError

log = logging.getLogger(__name__)

UNKNOWN_ROUTE = "_unknown"
SWITCHING_PROTOCOLS = 101
FAILED = 1011
"""The code with which a WebSocket is closed when something unexpected happened."""
CLIENT_DISCONNECTED = 499
"""The status, in the metrics, of a request whose client did not wait for the answer."""
# What a metrics port serves; the main port then serves all but /metrics.
SCRAPE_ROUTES = frozenset(("/metrics", "/health/live", "/health/ready"))


class HttpObserver(Protocol):
    """Counts the requests to one route."""

    def started(self) -> None: ...

    def finished(self, method: str, status: int, duration_s: float, request_bytes: int, response_bytes: int) -> None: ...


class HttpObservers(Protocol):
    def http(self, route: str) -> HttpObserver:
        """The observer of one route template."""
        ...


class Tracer(Protocol):
    """Keeps a span of each request (`observability/tracing.py`)."""

    def start(self, request: HttpRequest, context: RequestContext) -> None:
        """A request has begun; where its spans are kept, its trace is from now on the tracer's."""
        ...

    def finish(self, request: HttpRequest, context: RequestContext) -> None:
        """A request that was started is over."""
        ...


class WebSocketEndpoint(Protocol):
    """Answers over WebSockets (`websocket.py`)."""

    async def serve(self, request: HttpRequest, websocket: WebSocket, accept: Callable[[str | None], Awaitable[None]]) -> None:
        """Answer a request to open one; `accept` opens it, with the subprotocol that was chosen.

        Raises ServiceError before that, and WebSocketDisconnect where the client does not wait for the end.
        """
        ...


class RefusalBudget(Protocol):
    """How fast refusals may be sent to clients that do not wait (`scheduling/admission.py`)."""

    def delay_s(self) -> float: ...


class _Route(NamedTuple):
    template: str
    observer: HttpObserver


class Gateway:
    """The app that the server runs. Direct endpoints are found by their path alone; all else goes through `inner`.

    FastAPI takes about 20 µs to find a route, 55 with its request and response objects; a look into a mapping takes 0.1.
    """

    def __init__(
        self,
        inner: ASGIApp,
        *,
        direct: Mapping[str, Endpoint],
        routes: Iterable[str],
        observers: HttpObservers,
        hooks: Sequence[Hook] = (),
        admission: Admission | None = None,
        refusals: RefusalBudget | None = None,
        timeout_s: float = math.inf,
        metrics_port: int = 0,
        drain: Drain | None = None,
        error_shapes: ErrorShapes | None = None,
        tracer: Tracer | None = None,
        times_stages: bool = False,
        connections: ConnectionMonitor | None = None,
        streaming_paths: frozenset[str] = frozenset(),
        websockets: Mapping[str, WebSocketEndpoint] | None = None,
    ) -> None:
        """`direct` maps paths, or templates of paths, to the endpoints that answer POST there; `routes` are the templates of all
        routes, in which `{name:path}` may have slashes.

        A body sent to one of the `streaming_paths` may last as long as it goes on coming. `websockets` maps paths to the
        endpoints that answer there over WebSockets.
        `times_stages` where a hook wants to know how long each stage of a request took; a tracer does. `connections` is
        for the protocol that brings the requests.
        """
        self.connections = connections or ConnectionMonitor()
        self.streaming_paths = streaming_paths
        self._websockets = dict(websockets or {})
        self.websocket_paths = frozenset(self._websockets)
        self._inner = inner
        self._hooks = tuple(hooks)
        self._admission = admission
        self._refusals = refusals
        self._timeout_s = timeout_s
        self._metrics_port = metrics_port
        self._drain = drain or Drain()
        self.held_refusals = HeldRefusals()
        """Those of all connections to this event loop."""
        self._recogniser = Recogniser()
        self._early_refusals: dict[tuple[str, int], RefusalTemplate] = {}  # by path and Retry-After
        self._tracer = tracer
        self._times_stages = times_stages or tracer is not None
        self._unknown = _Route(UNKNOWN_ROUTE, observers.http(UNKNOWN_ROUTE))
        self._exact: dict[str, _Route] = {}
        self._patterns: list[tuple[re.Pattern[str], _Route]] = []
        for path in routes:
            template = path.replace(":path}", "}")
            route = _Route(template, observers.http(template))
            if "{" in template:
                pattern = re.sub(r"\\{\w+:path\\}", ".+", re.escape(path))
                self._patterns.append((re.compile(re.sub(r"\\{\w+\\}", "[^/]+", pattern)), route))
            else:
                self._exact[template] = route
        self._direct = {path: (self._exact[path], endpoint) for path, endpoint in direct.items() if "{" not in path}
        # A name in a path that is encoded, as no model's is, is left to FastAPI, which decodes it.
        self._direct_patterns = [
            (re.compile(re.sub(r"\\{\w+\\}", r"[\\w.-]+", re.escape(template)), re.ASCII), (self._route_of(template), endpoint))
            for template, endpoint in direct.items()
            if "{" in template
        ]
        self._error_shapes = error_shapes or ErrorShapes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._converse(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        request = AsgiRequest(scope, receive)
        if request.method == "POST" and self.is_direct(request.path, request.server):
            answer = await self.answer(request)
            if answer is not None:
                await _send(answer, send)
        else:
            await self._forward(request, scope, receive, send)

    def start_draining(self) -> None:
        """Answer every request from here on, those that are being answered too, with `Connection: close`."""
        if not self._drain.is_active:
            self._drain.start()
            self._hooks = (*self._hooks, self._drain)
            self.connections.start_draining()

    def is_direct(self, path: str, server: Address | None) -> bool:
        """Whether a POST to this path, at this address of ours, is for a direct endpoint: `answer` then takes it."""
        return (path in self._direct or self._match_direct(path) is not None) and self._is_served_at(server, path)

    async def answer(self, request: HttpRequest) -> Answer | None:
        """The answer of a direct endpoint, an error's too; None when the client has disconnected."""
        route, endpoint = self._find_direct(request.path)
        context = self._begin(request, route)
        has_begun = False
        try:
            try:
                if request.ticket is None:
                    self._admit(request, route, endpoint)
                for hook in self._hooks:
                    hook.before(request)
                has_begun = True
                answer = await endpoint.answer(request)
            except ClientDisconnected:
                return None
            except asyncio.CancelledError:
                if not self._drain.is_active:
                    raise
                answer = self._describe(_server_ended(), request)
            except Exception as exc:
                answer = self._describe(exc, request)
            self._finish_answer(request, context, answer)
            return answer
        finally:
            if self._admission is not None and request.ticket is not None:
                # What a hook refuses costs nothing: counted as done, it would make other requests look cheap.
                is_done = has_begun and request.status not in (CLIENT_DISCONNECTED, 503, 504)
                has_left = request.status == CLIENT_DISCONNECTED
                self._admission.finish(
                    request.ticket, request.num_instances, is_done=is_done, has_left=has_left, model=request.model
                )
            self._finish(request, route)

    def refuse(self, request: HttpRequest) -> Answer | None:
        """The answer to a request that is not worth beginning, before its body is read; None where it is admitted.

        What is admitted must be answered with `answer`, which gives its place back.
        """
        route, endpoint = self._find_direct(request.path)
        try:
            self._admit(request, route, endpoint)
        except ServiceError as exc:
            context = self._begin(request, route)
            answer = self._describe(exc, request)
            try:
                for hook in self._hooks:
                    hook.before(request)
            except Exception as refusal:  # of a hook, which comes before that of the admission control
                answer = self._describe(refusal, request)
            self._finish_answer(request, context, answer)
            self._finish(request, route)
            CURRENT.set(None)  # there is no task of its own whose end would do it
            return answer
        return None

    def refuse_unread(
        self, error: ServiceError, client: Address | None, server: Address | None, context: RequestContext | None = None
    ) -> Answer:
        """The answer to a request that is not read: it counts as one to an unknown route, and hooks see how it ends.

        `context` is what it was logged with before.
        """
        request = UnreadRequest(client, server)
        context = self._begin(request, self._unknown, context)
        answer = self._describe(error, request)
        self._finish_answer(request, context, answer)
        self._finish(request, self._unknown)
        CURRENT.set(None)
        return answer

    @property
    def may_refuse_early(self) -> bool:
        """Whether `refuse_early` is worth a try: requests are refused, and neither hooks nor a tracer want to see them."""
        return self._admission is not None and self._admission.is_refusing and not (self._hooks or self._tracer)

    def refuse_early(self, received: bytes, server: Address | None) -> bytes | None:
        """What `refuse` would answer to these bytes, where they are a whole request as most are; None where they are not, and
        where the request may be worth beginning. As it is sent, from the first header of the answer on."""
        found = self._recogniser.recognise(received)
        if found is None or self._admission is None or found.path not in self._direct:
            return None
        route, endpoint = self._direct[found.path]
        if not (
            self._admission.would_refuse(route.template, found.num_bytes, self._timeout_s)
            and self._is_served_at(server, found.path)
        ):
            return None
        retry_after_s = math.ceil(self._admission.retry_after_s())
        template = self._early_refusals.get((found.path, retry_after_s))
        if template is None:
            context = new_context()
            _, headers, body = self._error_shapes.describe(
                not_admitted(retry_after_s, self._timeout_s), found.path, context.request_id
            )
            add_ids(context, headers)
            template = self._early_refusals[found.path, retry_after_s] = RefusalTemplate(headers, body, context)
        endpoint.refused()
        route.observer.started()
        route.observer.finished("POST", 503, 0.0, found.num_bytes, template.body_bytes)
        return template.render(new_context())

    def refusal_delay_s(self) -> float:
        """How long the refusal of a connection that did not wait is to be held: 0 as long as there are few of them."""
        return self._refusals.delay_s() if self._refusals is not None else 0.0

    def _admit(self, request: HttpRequest, route: _Route, endpoint: Endpoint) -> None:
        """Set the request's timeout and its ticket. Raises MalformedRequest and Overloaded."""
        timeout_s, priority = read_conditions(request, self._timeout_s)
        request.timeout_s = timeout_s
        if self._admission is None:
            return
        request.ticket = self._admission.admit(route.template, request.request_bytes, timeout_s, priority)
        if request.ticket is None:
            endpoint.refused()
            raise not_admitted(self._admission.retry_after_s(), timeout_s)

    async def _forward(self, request: HttpRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """Have FastAPI answer, and see what it sends."""
        route = self._exact.get(request.path) or self._find_pattern(request.path)
        has_started = is_complete = False

        async def observed_send(message: Message) -> None:
            nonlocal has_started, is_complete
            if message["type"] == "http.response.start":
                has_started = True
                request.status = message["status"]
                headers = list(message.get("headers", ()))
                self._finish_head(request, context, headers)
                message = {**message, "headers": headers}
            else:
                request.response_bytes += len(message.get("body", b""))
                is_complete = not message.get("more_body", False)
            await send(message)

        context = self._begin(request, route)
        try:
            for hook in self._hooks:
                hook.before(request)
            if not self._is_served_at(request.server, request.path):
                path = request.path[:200]
                raise NotFound(f'there is nothing at "{path}"', path=path)
            await self._inner(scope, receive, observed_send)
        except (ClientDisconnected, ClientDisconnect):
            return  # while its body was read; nobody waits for an answer
        except asyncio.CancelledError:
            if has_started or not self._drain.is_active:
                raise
            await _send(self._describe(_server_ended(), request), observed_send)
        except Exception as exc:
            if not has_started:
                await _send(self._describe(exc, request), observed_send)
                return
            log.exception("unexpected error", extra={"path": request.path})
            if not is_complete:
                raise  # half an answer cannot be mended; the server closes the connection
        finally:
            self._finish(request, route)

    async def _converse(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have an endpoint answer over a WebSocket. It passes the hooks as a request that is over when it is closed."""
        request = AsgiRequest(scope, receive)
        endpoint = self._websockets.get(request.path)
        route = self._exact.get(request.path, self._unknown)

        async def observed_send(message: Message) -> None:
            if message["type"] == "websocket.send":
                request.response_bytes += len(message.get("text") or b"")
            await send(message)

        websocket = WebSocket(scope, receive, observed_send)

        async def accept(subprotocol: str | None) -> None:
            request.status = SWITCHING_PROTOCOLS
            headers: Headers = []
            self._finish_head(request, context, headers)
            # What a hook says of the connection would say that it is none.
            await websocket.accept(subprotocol, [header for header in headers if header[0] != b"connection"])

        context = self._begin(request, route)
        try:
            for hook in self._hooks:
                hook.before(request)
            if endpoint is None or not self._is_served_at(request.server, request.path):
                path = request.path[:200]
                raise NotFound(f'there is nothing at "{path}"', path=path)
            await endpoint.serve(request, websocket, accept)
        except WebSocketDisconnect:
            pass
        except asyncio.CancelledError:
            if not self._drain.is_active:
                raise
            _server_ended()
        except Exception as exc:
            try:
                if request.status != SWITCHING_PROTOCOLS:
                    answer = self._describe(exc, request)
                    self._finish_answer(request, context, answer)
                    await _deny(answer, send)
                else:
                    log.exception("unexpected error", extra={"path": request.path})
                    await websocket.close(FAILED)
            except (OSError, WebSocketDisconnect):
                pass  # the client has gone
        finally:
            self._finish(request, route)

    def _finish_answer(self, request: HttpRequest, context: RequestContext, answer: Answer) -> None:
        """The answer is about to be sent: record what it is, and complete its headers."""
        request.status, request.response_bytes = answer.status, len(answer.body)
        self._finish_head(request, context, answer.headers)

    def _finish_head(self, request: HttpRequest, context: RequestContext, headers: Headers) -> None:
        """Add to the headers of an answer what the hooks, and those who read them, want there."""
        add_ids(context, headers)
        for hook in self._hooks:
            hook.after(request, headers)

    def _begin(self, request: HttpRequest, route: _Route, context: RequestContext | None = None) -> RequestContext:
        context = request.context = context or identify(request.headers)
        CURRENT.set(context)
        if self._times_stages:
            context.timing = Timing()
        request.route = route.template
        request.status = CLIENT_DISCONNECTED
        request.response_bytes = 0
        route.observer.started()
        request.started_at = time.monotonic()
        if self._tracer is not None:
            self._tracer.start(request, context)
        return context

    def _finish(self, request: HttpRequest, route: _Route) -> None:
        request.duration_s = time.monotonic() - request.started_at
        route.observer.finished(request.method, request.status, request.duration_s, request.request_bytes, request.response_bytes)
        for hook in self._hooks:
            hook.finished(request)
        if self._tracer is not None and request.context is not None:
            self._tracer.finish(request, request.context)

    def _find_direct(self, path: str) -> tuple[_Route, Endpoint]:
        """The route of a path that `is_direct`."""
        found = self._direct.get(path) or self._match_direct(path)
        assert found is not None, f"{path} is not direct"
        return found

    def _match_direct(self, path: str) -> tuple[_Route, Endpoint] | None:
        return next((found for pattern, found in self._direct_patterns if pattern.fullmatch(path)), None)

    def _route_of(self, template: str) -> _Route:
        return next(route for _, route in self._patterns if route.template == template)

    def _find_pattern(self, path: str) -> _Route:
        return next((route for pattern, route in self._patterns if pattern.fullmatch(path)), self._unknown)

    def _describe(self, exc: Exception, request: HttpRequest) -> Answer:
        """The answer to a request that failed; an error that is not for clients is logged, and its message is not sent."""
        if not isinstance(exc, ServiceError) or (
            find_row(type(exc)).error is InternalError and not isinstance(exc, InternalError)
        ):
            log.error("unexpected error", exc_info=exc, extra={"path": request.path})
            exc = InternalError("an unexpected error; the log says more")
        assert isinstance(exc, ServiceError)
        request_id = None if request.context is None else request.context.request_id
        answer = Answer(*self._error_shapes.describe(exc, request.path, request_id))
        if isinstance(exc, BodyTooLarge | RequestTimedOut):
            answer.headers.append((b"connection", b"close"))
        return answer

    def _is_served_at(self, server: Address | None, path: str) -> bool:
        if not self._metrics_port:
            return True
        is_metrics_port = server is not None and server[1] == self._metrics_port
        return path in SCRAPE_ROUTES if is_metrics_port else path != "/metrics"


def _server_ended() -> Overloaded:
    """Of a request whose task was cancelled by a server that ends: there is no more time for its answer."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()  # the task answers, and ends by itself
    return Overloaded("the server ended before there was an answer", retry_after_s=1.0)


async def _deny(answer: Answer, send: Send) -> None:
    """Answer a request to open a WebSocket as any other one."""
    headers = [(name, value) for name, value in answer.headers if name != b"connection"]
    await send({"type": "websocket.http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": answer.body})


async def _send(answer: Answer, send: Send) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "http.response.body", "body": answer.body})
