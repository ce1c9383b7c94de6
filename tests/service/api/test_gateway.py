"""What every request passes on its way in and out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from service.api.gateway import CLIENT_DISCONNECTED, Gateway
from service.api.request import Answer, BodyTooLarge, ClientDisconnected, Headers, HttpRequest
from service.errors import FolderError, Overloaded


class RecordingObservers:
    """Remembers, per route, the requests that were counted."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.finished: list[tuple[str, str, int, int, int]] = []

    def http(self, route: str) -> RecordingObserver:
        return RecordingObserver(self, route)


class RecordingObserver:
    def __init__(self, all_routes: RecordingObservers, route: str) -> None:
        self.all_routes, self.route = all_routes, route

    def started(self) -> None:
        self.all_routes.in_flight += 1

    def finished(self, method: str, status: int, duration_s: float, request_bytes: int, response_bytes: int) -> None:
        assert duration_s >= 0
        self.all_routes.in_flight -= 1
        self.all_routes.finished.append((self.route, method, status, request_bytes, response_bytes))


def answer_with(name: bytes, error: Exception | None = None, *, stops_after: str = "") -> Any:
    """An ASGI app that answers in two parts, or raises before, amid or after its answer."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if error is not None and not stops_after:
            raise error
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": name, "more_body": True})
        if error is not None and stops_after == "half":
            raise error
        await send({"type": "http.response.body", "body": b"!"})
        if error is not None:
            raise error

    return app


class StubEndpoint:
    """A direct endpoint that answers, or raises."""

    def refused(self) -> None:
        pass

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.num_calls = 0

    async def answer(self, request: HttpRequest) -> Answer:
        self.num_calls += 1
        if self.error is not None:
            raise self.error
        return Answer(200, [], b"direct!")


class RecordingHook:
    """Notes what it is called for; refuses requests that have a header X-Refuse."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events

    def before(self, request: HttpRequest) -> None:
        self.events.append(f"{self.name} before {request.method} {request.path} {request.route}")
        if (b"x-refuse", self.name.encode()) in request.headers:
            raise Overloaded("refused")
        request.state[self.name] = "seen"

    def after(self, request: HttpRequest, headers: Headers) -> None:
        self.events.append(f"{self.name} after {request.status}")
        headers.append((b"x-hook", self.name.encode()))

    def finished(self, request: HttpRequest) -> None:
        assert request.duration_s >= 0
        self.events.append(f"{self.name} finished {request.status} {request.response_bytes} {sorted(request.state)}")


async def send_to(
    gateway: Gateway, method: str, path: str, *, port: int = 80, headers: Sequence[tuple[bytes, bytes]] = ()
) -> Any:
    sent: list[Any] = []
    scope = {"type": "http", "method": method, "path": path, "server": ("x", port), "headers": list(headers)}

    async def receive() -> Any:
        raise AssertionError("no body is read here")

    async def send(message: Any) -> None:
        sent.append(message)

    await gateway(scope, receive, send)
    return sent


def gateway_of(inner: Any, observers: RecordingObservers, endpoint: StubEndpoint | None = None, **options: Any) -> Gateway:
    routes = ["/direct", "/things/{name}", "/trees/{name:path}", "/metrics"]
    return Gateway(inner, direct={"/direct": endpoint or StubEndpoint()}, routes=routes, observers=observers, **options)


@pytest.mark.parametrize(
    ("method", "path", "route", "answered_by"),
    [
        ("POST", "/direct", "/direct", b"direct!"),
        ("GET", "/direct", "/direct", b"inner!"),
        ("GET", "/things/a.b", "/things/{name}", b"inner!"),
        ("GET", "/trees/a/b", "/trees/{name}", b"inner!"),
        ("GET", "/things/a/b", "_unknown", b"inner!"),
        ("GET", "/things/", "_unknown", b"inner!"),
        ("GET", "/xthings/a", "_unknown", b"inner!"),
    ],
)
async def test_a_request_finds_its_endpoint_and_is_counted_by_the_template(
    method: str, path: str, route: str, answered_by: bytes
) -> None:
    observers = RecordingObservers()
    sent = await send_to(gateway_of(answer_with(b"inner"), observers), method, path, headers=[(b"content-length", b"12")])
    assert b"".join(message["body"] for message in sent[1:]) == answered_by
    assert observers.finished == [(route, method, 200, 12, len(answered_by))]
    assert observers.in_flight == 0


@pytest.mark.parametrize("error", [ZeroDivisionError("/secret"), FolderError("/secret")])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unexpected_error_is_answered_and_logged(
    method: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    observers = RecordingObservers()
    sent = await send_to(gateway_of(answer_with(b"", error), observers, StubEndpoint(error)), method, "/direct")
    assert (sent[0]["status"], json.loads(sent[1]["body"])["code"]) == (500, "internal_error")
    assert b"secret" not in sent[1]["body"]
    assert "secret" in caplog.text
    assert [finished[2] for finished in observers.finished] == [500]


@pytest.mark.parametrize("error", [ClientDisconnected(), ClientDisconnect()])
async def test_a_client_that_leaves_while_its_body_is_read_is_no_unexpected_error(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    observers = RecordingObservers()
    sent = await send_to(gateway_of(answer_with(b"", error), observers), "PUT", "/things/a")
    assert sent == []
    assert [status for _, _, status, _, _ in observers.finished] == [CLIENT_DISCONNECTED]
    assert caplog.records == []


async def test_half_an_answer_ends_the_connection() -> None:
    observers = RecordingObservers()
    with pytest.raises(ZeroDivisionError):
        await send_to(gateway_of(answer_with(b"", ZeroDivisionError(), stops_after="half"), observers), "GET", "/direct")
    assert observers.in_flight == 0


async def test_an_error_after_the_answer_is_logged_and_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    inner = answer_with(b"a", ZeroDivisionError("late"), stops_after="end")
    sent = await send_to(gateway_of(inner, RecordingObservers()), "GET", "/direct")
    assert [message.get("body") for message in sent] == [None, b"a", b"!"]
    assert "late" in caplog.text


async def test_a_request_without_an_answer_is_counted_as_disconnected() -> None:
    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        return

    observers = RecordingObservers()
    gateway = gateway_of(nothing, observers, StubEndpoint(ClientDisconnected()))
    assert await send_to(gateway, "GET", "/direct") == await send_to(gateway, "POST", "/direct") == []
    assert [finished[2] for finished in observers.finished] == [CLIENT_DISCONNECTED] * 2


async def test_a_request_that_is_cancelled_is_counted_too() -> None:
    observers = RecordingObservers()
    with pytest.raises(asyncio.CancelledError):
        await send_to(gateway_of(answer_with(b""), observers, StubEndpoint(asyncio.CancelledError())), "POST", "/direct")
    assert (observers.in_flight, len(observers.finished)) == (0, 1)


async def test_after_a_body_that_was_not_read_to_its_end_the_connection_is_closed() -> None:
    sent = await send_to(gateway_of(answer_with(b""), RecordingObservers(), StubEndpoint(BodyTooLarge("no"))), "POST", "/direct")
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_hooks_run_around_every_request_in_their_order(method: str) -> None:
    events: list[str] = []
    hooks = [RecordingHook("a", events), RecordingHook("b", events)]
    sent = await send_to(gateway_of(answer_with(b"inner"), RecordingObservers(), hooks=hooks), method, "/direct")
    size = sum(len(message["body"]) for message in sent[1:])
    assert [name for name, _ in sent[0]["headers"]] == [b"x-request-id", b"traceparent", b"x-hook", b"x-hook"]
    assert sent[0]["headers"][2:] == [(b"x-hook", b"a"), (b"x-hook", b"b")]
    assert events == [
        f"a before {method} /direct /direct",
        f"b before {method} /direct /direct",
        "a after 200",
        "b after 200",
        f"a finished 200 {size} ['a', 'b']",
        f"b finished 200 {size} ['a', 'b']",
    ]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_hook_that_refuses_gives_the_answer_and_nothing_behind_it_runs(method: str) -> None:
    events: list[str] = []
    hooks = [RecordingHook(name, events) for name in "abc"]
    endpoint = StubEndpoint()

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it was refused")

    gateway = gateway_of(inner, RecordingObservers(), endpoint, hooks=hooks)
    sent = await send_to(gateway, method, "/direct", headers=[(b"x-refuse", b"b")])
    assert (sent[0]["status"], json.loads(sent[1]["body"])["code"]) == (503, "overloaded")
    assert [pair for pair in sent[0]["headers"] if pair[0] == b"x-hook"] == [(b"x-hook", name) for name in (b"a", b"b", b"c")]
    assert endpoint.num_calls == 0
    assert [event.partition(" /")[0].rsplit(" ", 2)[0] for event in events[:2]] == ["a", "b"]
    assert [event.split()[:3] for event in events[2:]] == [
        [name, what, "503"] for what in ("after", "finished") for name in "abc"
    ]


async def test_hooks_hear_of_a_client_that_disconnected() -> None:
    events: list[str] = []
    hooks = [RecordingHook("a", events)]
    await send_to(
        gateway_of(answer_with(b""), RecordingObservers(), StubEndpoint(ClientDisconnected()), hooks=hooks), "POST", "/direct"
    )
    assert events == ["a before POST /direct /direct", f"a finished {CLIENT_DISCONNECTED} 0 ['a']"]


@pytest.mark.parametrize(
    ("port", "path", "status"), [(9100, "/metrics", 200), (80, "/metrics", 404), (9100, "/direct", 404), (80, "/direct", 200)]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_port_of_their_own_keeps_metrics_apart(method: str, port: int, path: str, status: int) -> None:
    sent = await send_to(gateway_of(answer_with(b""), RecordingObservers(), metrics_port=9100), method, path, port=port)
    assert sent[0]["status"] == status


@pytest.mark.parametrize(("headers", "is_done"), [([], True), ([(b"x-refuse", b"a")], False)])
async def test_what_a_hook_refuses_is_not_counted_as_work_that_was_done(
    headers: list[tuple[bytes, bytes]], is_done: bool
) -> None:
    """A flood of requests without a key would else teach the admission control that requests cost nothing."""

    class RecordingAdmission:
        is_refusing = False

        def __init__(self) -> None:
            self.finished: list[bool] = []

        def admit(self, endpoint: str, num_bytes: int, timeout_s: float, priority: int = 5) -> Any:
            return object()

        def would_refuse(self, endpoint: str, num_bytes: int, timeout_s: float) -> bool:
            return False

        def finish(self, ticket: object, num_rows: int, *, is_done: bool, has_left: bool, model: str | None) -> None:
            self.finished.append(is_done)

        def retry_after_s(self) -> float:
            raise AssertionError("everything is admitted")

    admission = RecordingAdmission()
    gateway = gateway_of(answer_with(b""), RecordingObservers(), hooks=[RecordingHook("a", [])], admission=admission)
    sent = await send_to(gateway, "POST", "/direct", headers=headers)
    assert (sent[0]["status"] == 200) is is_done
    assert admission.finished == [is_done]
