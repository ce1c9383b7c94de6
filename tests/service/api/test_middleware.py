"""What every request passes on its way in and out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.api.middleware import CLIENT_LEFT, Edge


class Told:
    """Remembers, per route, the requests it was told about."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.finished: list[tuple[str, str, int, int, int]] = []

    def http(self, route: str) -> Route:
        return Route(self, route)


class Route:
    def __init__(self, told: Told, route: str) -> None:
        self.told, self.route = told, route

    def started(self) -> None:
        self.told.in_flight += 1

    def finished(self, method: str, status: int, duration_s: float, request_bytes: int, response_bytes: int) -> None:
        assert duration_s >= 0
        self.told.in_flight -= 1
        self.told.finished.append((self.route, method, status, request_bytes, response_bytes))


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


class Hot:
    """A hot door."""

    async def answer(self, scope: Any, receive: Any) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        return 200, [], b"hot!"


async def ask(edge: Edge, method: str, path: str, *, port: int = 80, headers: tuple[tuple[bytes, bytes], ...] = ()) -> list[Any]:
    sent: list[Any] = []
    scope = {"type": "http", "method": method, "path": path, "server": ("x", port), "headers": headers}

    async def receive() -> Any:
        raise AssertionError("nobody reads here")

    async def send(message: Any) -> None:
        sent.append(message)

    await edge(scope, receive, send)
    return sent


def edge_of(inner: Any, told: Told, **options: Any) -> Edge:
    return Edge(inner, hot={"/hot": Hot()}, routes=["/hot", "/things/{name}", "/metrics"], observers=told, **options)


@pytest.mark.parametrize(
    ("method", "path", "route", "answered_by"),
    [
        ("POST", "/hot", "/hot", b"hot!"),
        ("GET", "/hot", "/hot", b"inner!"),
        ("GET", "/things/a.b", "/things/{name}", b"inner!"),
        ("GET", "/things/a/b", "_unknown", b"inner!"),
        ("GET", "/things/", "_unknown", b"inner!"),
        ("GET", "/xthings/a", "_unknown", b"inner!"),
    ],
)
async def test_a_request_finds_its_door_and_is_told_by_the_template(
    method: str, path: str, route: str, answered_by: bytes
) -> None:
    told = Told()
    sent = await ask(edge_of(answer_with(b"inner"), told), method, path, headers=((b"content-length", b"12"),))
    assert b"".join(message["body"] for message in sent[1:]) == answered_by
    assert told.finished == [(route, method, 200, 12, len(answered_by))]
    assert told.in_flight == 0


async def test_what_nobody_expected_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    sent = await ask(edge_of(answer_with(b"", ZeroDivisionError("/secret")), told), "GET", "/hot")
    assert (sent[0]["status"], json.loads(sent[1]["body"])["code"]) == (500, "internal_error")
    assert b"secret" not in sent[1]["body"]
    assert "secret" in caplog.text
    assert [entry[2] for entry in told.finished] == [500]


async def test_half_an_answer_ends_the_connection() -> None:
    told = Told()
    with pytest.raises(ZeroDivisionError):
        await ask(edge_of(answer_with(b"", ZeroDivisionError(), stops_after="half"), told), "GET", "/hot")
    assert told.in_flight == 0


async def test_an_error_after_the_answer_is_logged_and_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    sent = await ask(edge_of(answer_with(b"a", ZeroDivisionError("late"), stops_after="end"), told), "GET", "/hot")
    assert [message.get("body") for message in sent] == [None, b"a", b"!"]
    assert "late" in caplog.text


async def test_a_request_without_an_answer_is_told_as_left() -> None:
    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        return

    told = Told()
    await ask(edge_of(nothing, told), "GET", "/hot")
    assert [entry[2] for entry in told.finished] == [CLIENT_LEFT]


@pytest.mark.parametrize(
    ("port", "path", "status"), [(9100, "/metrics", 200), (80, "/metrics", 404), (9100, "/hot", 404), (80, "/hot", 200)]
)
async def test_a_port_of_their_own_keeps_metrics_apart(port: int, path: str, status: int) -> None:
    sent = await ask(edge_of(answer_with(b""), Told(), metrics_port=9100), "GET", path, port=port)
    assert sent[0]["status"] == status
