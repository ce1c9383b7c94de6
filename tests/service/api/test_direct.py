"""Bodies in, answers out, and clients that leave, over bare ASGI."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest

from service.api.direct import MAX_DROPPED_BODIES, DirectDoor
from service.errors import Overloaded

LIMIT = 100


class Client:
    """An ASGI client: sends the messages it was given, then leaves or stays; keeps what comes back."""

    def __init__(self, *chunks: bytes, leaves: bool = False, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.sent: list[dict[str, Any]] = []
        self.num_read = 0
        self.has_left = asyncio.Event()
        self.scope = {"type": "http", "method": "POST", "path": "/predict", "headers": list(headers)}
        self._messages = [
            {"type": "http.request", "body": chunk, "more_body": leaves or number + 1 < len(chunks)}
            for number, chunk in enumerate(chunks)
        ]
        if leaves:
            self.has_left.set()

    async def receive(self) -> dict[str, Any]:
        if self.num_read < len(self._messages):
            self.num_read += 1
            return self._messages[self.num_read - 1]
        await self.has_left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def ask(self, door: DirectDoor) -> tuple[int, dict[str, Any]]:
        await door(self.scope, self.receive, self.send)
        return self.sent[0]["status"], json.loads(self.sent[1]["body"])


class Echo:
    """An endpoint that tells the size of the body."""

    def __init__(self) -> None:
        self.num_calls = 0

    async def __call__(self, body: Awaitable[bytes]) -> bytes:
        content = await body
        self.num_calls += 1
        return json.dumps({"size": len(content)}).encode()


@pytest.mark.parametrize("chunks", [[b"x" * LIMIT], [b"x" * 99, b"x"], [b"", b"x" * LIMIT, b""], [b"x"] * LIMIT])
async def test_a_body_within_the_limit_is_read_however_it_arrives(chunks: list[bytes]) -> None:
    status, answer = await Client(*chunks).ask(DirectDoor(Echo(), LIMIT))
    assert (status, answer) == (200, {"size": LIMIT})


@pytest.mark.parametrize("chunks", [[b"x" * 101], [b"x" * LIMIT, b"x"], [b"x"] * 101])
async def test_a_body_beyond_the_limit_never_reaches_the_endpoint(chunks: list[bytes]) -> None:
    echo = Echo()
    client = Client(*chunks)
    status, answer = await client.ask(DirectDoor(echo, LIMIT))
    assert (status, answer["code"], answer["limit"], echo.num_calls) == (413, "payload_too_large", LIMIT, 0)
    assert client.num_read == len(chunks)
    assert (b"connection", b"close") in client.sent[0]["headers"]


async def test_an_endless_body_is_not_read_to_its_end() -> None:
    client = Client(*[b"x" * LIMIT] * 1000)
    status, _ = await client.ask(DirectDoor(Echo(), LIMIT))
    assert status == 413
    assert client.num_read == MAX_DROPPED_BODIES + 1


async def test_a_body_declared_far_too_large_is_not_read_at_all() -> None:
    client = Client(b"x", headers=[(b"content-length", b"%d" % (LIMIT * MAX_DROPPED_BODIES + 1))])
    status, answer = await client.ask(DirectDoor(Echo(), LIMIT))
    assert (status, client.num_read, answer["found"]) == (413, 0, LIMIT * MAX_DROPPED_BODIES + 1)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (b"application/json", 200),
        (b"application/json; charset=utf-8", 200),
        (b"Application/JSON", 200),
        (b"application/vnd.api+json", 200),
        (b"text/plain", 415),
        (b"application/jsonlines", 415),
        (b"multipart/form-data; boundary=x", 415),
    ],
)
async def test_only_json_is_taken(content_type: bytes, status: int) -> None:
    found, _ = await Client(b"{}", headers=[(b"content-type", content_type)]).ask(DirectDoor(Echo(), LIMIT))
    assert found == status


async def test_a_body_of_no_declared_type_is_taken_as_json() -> None:
    assert (await Client(b"{}").ask(DirectDoor(Echo(), LIMIT)))[0] == 200


async def test_a_client_that_leaves_while_it_sends_gets_nothing() -> None:
    echo = Echo()
    client = Client(b"x", leaves=True)
    await DirectDoor(echo, LIMIT)(client.scope, client.receive, client.send)
    assert (client.sent, echo.num_calls) == ([], 0)


class Slow:
    """An endpoint that waits until it is let go, or cancelled."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.may_go = asyncio.Event()
        self.was_cancelled = False

    async def __call__(self, body: Awaitable[bytes]) -> bytes:
        await body
        self.entered.set()
        try:
            await self.may_go.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        return b"{}"


async def test_a_client_that_leaves_while_it_waits_cancels_its_request_and_nothing_else() -> None:
    slow = Slow()
    client = Client(b"{}")
    task = asyncio.create_task(DirectDoor(slow, LIMIT, watch_after_s=0.0)(client.scope, client.receive, client.send))
    await slow.entered.wait()
    client.has_left.set()
    await task
    assert slow.was_cancelled
    assert client.sent == []
    assert (task.cancelled(), task.cancelling()) == (False, 0)


async def test_a_client_that_stays_is_answered_though_it_was_watched() -> None:
    slow = Slow()
    client = Client(b"{}")
    watched = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if client.num_read:
            watched.set()
        return await client.receive()

    task = asyncio.create_task(DirectDoor(slow, LIMIT, watch_after_s=0.0)(client.scope, receive, client.send))
    await watched.wait()
    slow.may_go.set()
    await task
    assert client.sent[0]["status"] == 200


async def test_a_server_that_ends_cancels_its_requests() -> None:
    slow = Slow()
    client = Client(b"{}")
    task = asyncio.create_task(DirectDoor(slow, LIMIT)(client.scope, client.receive, client.send))
    await slow.entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("error", "status", "code"), [(Overloaded("full"), 503, "overloaded"), (ZeroDivisionError("/secret"), 500, "internal_error")]
)
async def test_what_the_endpoint_raises_is_answered(
    error: Exception, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(body: Awaitable[bytes]) -> bytes:
        await body
        raise error

    found, answer = await Client(b"{}").ask(DirectDoor(fail, LIMIT))
    assert (found, answer["code"]) == (status, code)
    assert "secret" not in json.dumps(answer)
    assert ("secret" in caplog.text) == (status == 500)
