"""What every endpoint that runs a model does around it: the body within its limit, the deadline, the disconnect, the outcome.

How a body is read and an answer written is each protocol's own affair.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol, Self, TypeVar

from service.api.compression import decompress_body, read_coding
from service.api.deadlines import DeadlineMonitor
from service.api.disconnects import DisconnectMonitor
from service.api.errors import UnsupportedMediaType
from service.api.large_bodies import LargeBodyParser
from service.api.parsing import LARGE_BYTES
from service.api.request import Answer, ClientDisconnected, HttpRequest, receive_body
from service.context import Timing, current_timing
from service.errors import (
    DeadlineExceeded,
    InvalidInput,
    InvalidReason,
    MalformedRequest,
    ModelNotReady,
    Outcome,
    Overloaded,
    PayloadTooLarge,
    RequestError,
    ServiceError,
)

T = TypeVar("T")

UNKNOWN = "_unknown"


class RequestObserver(Protocol):
    """Counts the requests to predict."""

    def request_finished(
        self, api: str, model: str, version: str, outcome: Outcome, duration_s: float, reason: InvalidReason | None
    ) -> None:
        """One request is over, `duration_s` after its body had arrived.

        `model` and `version` are `_unknown` when the request did not get as far as a model. `reason` is set for invalid
        requests that held something wrong.
        """
        ...


class RequestLimits(NamedTuple):
    """How much one request may hold."""

    max_instances: int
    max_body_bytes: int
    max_json_values: int = 1_000_000


class NamedModel(Protocol):
    """A version of a model."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...


class Call:
    """One request whose body has arrived."""

    __slots__ = (
        "_deadlines",
        "_task",
        "body",
        "content",
        "deadline",
        "name",
        "parse_from",
        "request",
        "started",
        "timing",
        "version",
    )

    def __init__(self, request: HttpRequest, body: bytes, task: asyncio.Task[object], deadlines: DeadlineMonitor) -> None:
        self.request = request
        self.body = body
        self.content: object = None
        """What was read of a large body; it is freed in pieces."""
        self.started = self.parse_from = time.monotonic()  # the time that a client takes to send is not counted
        self.deadline = self.started + request.timeout_s
        self.name = self.version = UNKNOWN
        self.timing: Timing | None = current_timing()
        self._task = task
        self._deadlines = deadlines

    def shorten(self, timeout_s: float | None) -> None:
        """Answer within so much time, if that is less than the server allows."""
        if timeout_s is not None and timeout_s < self.request.timeout_s:
            self.deadline = self.started + timeout_s
            self._deadlines.watch(self._task, self.deadline, time.monotonic())

    def finish_parse(self, num_instances: int) -> None:
        """The body has been read."""
        self.request.num_instances = num_instances
        if self.timing is not None:
            self.timing.add("parse", self.parse_from, time.monotonic())

    def count_rows(self, num_rows: int) -> None:
        """The request is so many rows of work, whatever it has instances. Raises Overloaded where there is no room for them."""
        num_instances = self.request.num_instances
        if num_rows <= num_instances:
            return
        self.request.num_instances = num_rows
        ticket = self.request.ticket
        if ticket is not None and not ticket.grow(num_rows / num_instances, self.request.timeout_s):
            raise Overloaded(f"the work that is pending leaves no room for the {num_rows} rows of this request", found=num_rows)

    def finish_write(self, started_at: float) -> None:
        """The answer has been written, since `started_at` of `time.monotonic()`."""
        if self.timing is not None:
            self.timing.add("write", started_at, time.monotonic())

    def set_model(self, model: NamedModel) -> None:
        """This model answers."""
        self.name, self.version = model.name, model.version
        self.request.model = model.name
        if self.request.ticket is not None:
            self.request.ticket.assign(model.name)
        if self.timing is not None:
            self.timing.model, self.timing.version = model.name, model.version


class LoopBudget(Protocol):
    """The time of the event loop, divided (`scheduling/loop_budget.py`)."""

    def is_spent(self) -> bool:
        """Whether this turn of the loop has been long, or others wait already."""
        ...

    async def renewal(self) -> None:
        """Wait for a turn that has time left."""
        ...


class Monitors(NamedTuple):
    """What watches over the requests of all endpoints of one event loop; of several, each would read a large body at once."""

    disconnects: DisconnectMonitor
    deadlines: DeadlineMonitor
    large_bodies: LargeBodyParser
    loop_budget: LoopBudget | None = None
    """None: bodies are read as they come."""

    @classmethod
    def open(cls, limits: RequestLimits, loop_budget: LoopBudget | None = None) -> Self:
        """Those of endpoints with these limits."""
        return cls(DisconnectMonitor(), DeadlineMonitor(), LargeBodyParser(limits.max_json_values), loop_budget)


class InferenceEndpoint:
    """An endpoint that runs a model; `respond` is the protocol's."""

    api: str
    """How the metrics call the protocol."""

    def __init__(self, observer: RequestObserver, limits: RequestLimits, monitors: Monitors | None = None) -> None:
        """`monitors` None: the endpoint is the only one of its event loop."""
        self._observer = observer
        self._limits = limits
        self._disconnects, self._deadlines, self._large_bodies, self._loop_budget = monitors or Monitors.open(limits)

    def refused(self) -> None:
        """A request was refused before it was begun."""
        self._observer.request_finished(self.api, UNKNOWN, UNKNOWN, "rejected", 0.0, None)

    def check_head(self, request: HttpRequest) -> None:
        """Raise for headers with which the body need not be received."""

    async def decompress(self, body: bytes, encoding: bytes) -> bytes:
        """A body without its Content-Encoding. Raises UnsupportedMediaType, MalformedRequest, and PayloadTooLarge for a bomb."""
        return await decompress_body(body, read_coding(encoding), self._limits.max_body_bytes)

    async def respond(self, call: Call) -> Answer:
        """The answer to a request. Raises ServiceError."""
        raise NotImplementedError

    async def read_in_turn(self, call: Call, body: bytes, text_size: int, parse: Callable[[], T], model: str | None) -> T:
        """The result of `parse`, which reads a body whose first `text_size` bytes are JSON.

        A small one is read on the event loop, in a turn that has time left; a large one on a thread. Raises what `parse` raises,
        and PayloadTooLarge for too many values. `model` is the one that the request seems to name.
        """
        if text_size > LARGE_BYTES:
            parsed = await self._large_bodies.read(body if text_size == len(body) else body[:text_size], parse)
            call.content = parsed
            return parsed
        if self._loop_budget is not None and self._loop_budget.is_spent():
            await self.renew_turn(call, model)
        return parse()

    async def renew_turn(self, call: Call, model: str | None) -> None:
        """Wait for a turn of the event loop that has time left.

        The body waits as it is: what is read from it takes five times its memory, and is cold when it is encoded.
        """
        assert self._loop_budget is not None
        ticket = call.request.ticket
        if ticket is not None and model is not None:
            ticket.assign(model)
        await self._loop_budget.renewal()
        call.parse_from = time.monotonic()

    def has_turn(self, text_size: int) -> bool:
        """Whether a body with so much JSON was read in a turn of the event loop that had time left: it needs no other."""
        return text_size <= LARGE_BYTES and self._loop_budget is not None

    async def answer(self, request: HttpRequest) -> Answer:
        """The answer to a request. Raises ServiceError, and ClientDisconnected when its client has gone."""
        task = asyncio.current_task()
        assert task is not None
        started = time.monotonic()
        call: Call | None = None
        outcome: Outcome = "error"
        reason: InvalidReason | None = None
        try:
            self.check_head(request)
            call = Call(request, await receive_body(request, self._limits.max_body_bytes), task, self._deadlines)
            started = call.started
            self._disconnects.watch(task, request)
            self._deadlines.watch(task, call.deadline, started)
            if request.ticket is not None:
                request.ticket.cancel = task.cancel
            answer = await self.respond(call)
            outcome = "ok"
            if call.content is not None:
                self._large_bodies.free(call.content)
            return answer
        except ServiceError as exc:
            outcome, reason = outcome_of(exc), reason_of(exc)
            if call is not None and call.content is not None:
                self._large_bodies.free(call.content)
            raise
        except ClientDisconnected:
            outcome = "cancelled"
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            if request.ticket is not None and request.ticket.is_displaced:
                task.uncancel()
                outcome = "rejected"
                raise displaced_error() from None
            if self._disconnects.has_cancelled(task, request):
                task.uncancel()  # it was ours, and the task may end by itself
                raise ClientDisconnected from None
            if self._deadlines.has_expired(task):
                task.uncancel()
                outcome = "timeout"
                raise DeadlineExceeded("there was no answer before the deadline") from None
            raise
        finally:
            self._disconnects.forget(task, request)
            self._deadlines.forget(task)
            name, version = (UNKNOWN, UNKNOWN) if call is None else (call.name, call.version)
            self._observer.request_finished(self.api, name, version, outcome, time.monotonic() - started, reason)


def displaced_error() -> Overloaded:
    """How a request ends whose ticket was displaced."""
    return Overloaded("the place of this request was given to another one")


def outcome_of(exc: ServiceError) -> Outcome:
    """How the metrics call a request that ended with `exc`."""
    if isinstance(exc, RequestError | UnsupportedMediaType):
        return "invalid"
    if isinstance(exc, Overloaded | ModelNotReady):
        return "rejected"
    return "timeout" if isinstance(exc, DeadlineExceeded) else "error"


def reason_of(exc: ServiceError) -> InvalidReason | None:
    """How the metrics call what was wrong with the request; None when nothing in it was."""
    if isinstance(exc, InvalidInput):
        return exc.reason
    if isinstance(exc, PayloadTooLarge):
        return "payload"
    return "json" if isinstance(exc, MalformedRequest | UnsupportedMediaType) else None
