"""One sequence that comes in pieces over one connection: a first line that names the model, and its next steps.

What each answer is wrapped in, and how the connection ends, is known to the endpoints (`stream.py`, `websocket.py`). The state
stays with the connection, and is handed out at its end, so the server keeps nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from service.api.access.control import VISIBLE_MODELS, visible_models
from service.api.carried import STATE, StateTokens
from service.api.errors import problem
from service.api.inference import UNKNOWN, RequestObserver, outcome_of, reason_of
from service.api.predict import Models, ServedModel
from service.api.request import Admission, HttpRequest, not_admitted, read_conditions
from service.context import CURRENT
from service.errors import MalformedRequest, Overloaded, PayloadTooLarge, ServiceError
from service.wire import read, write

MAX_LINE_BYTES = 64 * 1024
HEAD_FIELDS = ("model", "version", "parameters", STATE)


class StreamHead(NamedTuple):
    """The first line: which model, and where the sequence goes on."""

    model: str
    version: str | None
    parameters: dict[str, Any]
    token: object
    """None: it begins."""
    wants_states: bool
    """Whether each prediction holds the state after it."""


class Conditions(NamedTuple):
    """What the head of the request says of each of its steps."""

    timeout_s: float
    priority: int


class Streams:
    """Opens the sequences of one endpoint, and counts their steps as requests of their own."""

    def __init__(
        self,
        models: Models,
        observer: RequestObserver,
        tokens: StateTokens,
        *,
        api: str,
        route: str,
        timeout_s: float,
        admission: Admission | None = None,
        check_again: Callable[[HttpRequest, str], None] = lambda request, route: None,
    ) -> None:
        """`api` and `route` are how metrics and admission control call it; `timeout_s` is what one step may take.

        `check_again` raises ServiceError where the request would no longer be let in: a stream may outlast its key.
        """
        self._models = models
        self._observer = observer
        self._tokens = tokens
        self._api = api
        self._route = route
        self._timeout_s = timeout_s
        self._admission = admission
        self._check_again = check_again

    def expect_room(self, request: HttpRequest) -> Conditions:
        """What the request says of its steps. Raises Overloaded where none could be answered in time, and MalformedRequest."""
        conditions = Conditions(*read_conditions(request, self._timeout_s))
        if self._admission is not None:
            try:
                ticket = self._admit(0, conditions)
            except Overloaded:
                self._observer.request_finished(self._api, UNKNOWN, UNKNOWN, "rejected", 0.0, None)
                raise
            self._admission.finish(ticket, 0, is_done=False, has_left=False, model=None)
        return conditions

    def open(self, line: bytes, request: HttpRequest, conditions: Conditions) -> StreamSequence:
        """The sequence that a first line begins or goes on with. Raises ServiceError."""
        head = read_head(line)
        self._check_again(request, self._route)
        model = visible_models(self._models, request.state).get(head.model, head.version)
        model.expect_streaming()
        state = None if head.token is None else self._tokens.read(head.token, model.identity, model.state_bytes)
        request.model = model.name
        return StreamSequence(self, request, model, head, state, conditions)

    def expect_access(self, request: HttpRequest, model: ServedModel) -> None:
        """Raise ServiceError where the request may no longer use the model."""
        self._check_again(request, self._route)
        names = request.state.get(VISIBLE_MODELS)
        assert names is None or isinstance(names, frozenset)
        if names is not None and model.name not in names:
            visible_models(self._models, request.state).get(model.name, model.version)  # which there is not

    async def advance(
        self, model: ServedModel, instance: Any, state: Any, parameters: Mapping[str, Any], conditions: Conditions, num_bytes: int
    ) -> tuple[Any, Any]:
        """The prediction of one instance, and the state after it. Raises ServiceError."""
        started = time.monotonic()
        ticket = None
        is_done = False
        try:
            if self._admission is not None:
                ticket = self._admit(num_bytes, conditions)
                ticket.assign(model.name)
            (prediction,), (new,) = await model.advance(
                [instance], [state], parameters, deadline=started + conditions.timeout_s, is_plain=False, has_turn=False
            )
            is_done = True
        except ServiceError as exc:
            self.count(model, started, exc)
            raise
        finally:
            if ticket is not None and self._admission is not None:
                self._admission.finish(ticket, 1, is_done=is_done, has_left=False, model=model.name)
        self._observer.request_finished(self._api, model.name, model.version, "ok", time.monotonic() - started, None)
        return prediction, new

    def count(self, model: ServedModel, started: float, exc: ServiceError) -> None:
        """A step has failed."""
        duration_s = time.monotonic() - started
        self._observer.request_finished(self._api, model.name, model.version, outcome_of(exc), duration_s, reason_of(exc))

    def write_token(self, state: Any) -> str:
        """The token of a state."""
        return self._tokens.write(state)

    def _admit(self, num_bytes: int, conditions: Conditions) -> Any:
        assert self._admission is not None
        ticket = self._admission.admit(self._route, num_bytes, conditions.timeout_s, conditions.priority)
        if ticket is None:
            raise not_admitted(self._admission.retry_after_s(), conditions.timeout_s)
        return ticket


class StreamSequence:
    """A sequence that was opened; its steps come one after the other."""

    def __init__(
        self,
        streams: Streams,
        request: HttpRequest,
        model: ServedModel,
        head: StreamHead,
        state: Any,
        conditions: Conditions,
    ) -> None:
        self._streams = streams
        self._request = request
        self._model = model
        self._head = head
        self._state = state
        self._conditions = conditions

    async def advance(self, line: bytes) -> bytes:
        """The prediction of the next piece, as JSON. Raises ServiceError; the state is then the one before."""
        try:
            self._streams.expect_access(self._request, self._model)
            instance = read_line(line)
            if type(instance) is dict and STATE in instance and not self._model.has_own_state_field:
                raise MalformedRequest('"state" belongs into the first line: the others go on from it', where=STATE)
        except ServiceError as exc:
            self._streams.count(self._model, time.monotonic(), exc)
            raise
        prediction, self._state = await self._streams.advance(
            self._model, instance, self._state, self._head.parameters, self._conditions, len(line)
        )
        if self._head.wants_states:
            prediction = self._model.with_state(prediction, self._streams.write_token(self._state))
        return write(prediction)

    @property
    def end(self) -> bytes:
        """What the sequence goes on from, as JSON."""
        return write({STATE: None if self._state is None else self._streams.write_token(self._state)})


def read_head(line: bytes) -> StreamHead:
    """The first line of a stream. Raises MalformedRequest."""
    if not line:
        raise MalformedRequest('the body is empty, expected a first line such as {"model": "..."}')
    content = read_line(line)
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


def read_line(line: bytes) -> Any:
    """The JSON of a line. Raises PayloadTooLarge and MalformedRequest."""
    expect_bounded(line)
    try:
        return read(line)
    except ValueError as exc:
        raise MalformedRequest(f"a line is not JSON: {exc}") from exc


def expect_bounded(line: bytes | bytearray) -> None:
    """Raise PayloadTooLarge for a line, or the part of one, that is too long."""
    if len(line) > MAX_LINE_BYTES:
        raise PayloadTooLarge(f"a line has more than {MAX_LINE_BYTES} bytes", limit=MAX_LINE_BYTES)


def describe_error(exc: ServiceError) -> bytes:
    """An error of a stream, as JSON: the problem that it would be as an answer."""
    context = CURRENT.get()
    return problem(exc, None if context is None else context.request_id).body
