"""Requests over real sockets: the short way answers as uvicorn's does, and whatever is not simple goes uvicorn's way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from service.api.fast_path import MAX_BODY_BYTES, Exchange, Protocol
from service.api.middleware import Edge
from tests.fakes import PATIENCE_S

LARGE = b"x" * 3_000_000


class Door:
    """A hot door: says what it read and which way it came; holds an answer back until the test lets it go."""

    def __init__(self) -> None:
        self.ways: list[str] = []
        self.gate = asyncio.Event()
        self.has_entered = asyncio.Event()
        self.has_left = asyncio.Event()

    async def answer(self, scope: Any, receive: Any) -> tuple[int, list[tuple[bytes, bytes]], bytes] | None:
        self.ways.append("short" if isinstance(getattr(receive, "__self__", None), Exchange) else "long")
        if (b"x-refuse", b"yes") in scope["headers"]:
            return 415, [(b"content-length", b"0")], b""
        body, has_more = b"", True
        while has_more:
            message = await receive()
            body += message["body"]
            has_more = message["more_body"]
        if body == b"hold":
            self.has_entered.set()
            await self.gate.wait()
        if body == b"watch":
            self.has_entered.set()
            assert (await receive())["type"] == "http.disconnect"
            self.has_left.set()
            return None
        if body == b"break":
            raise ZeroDivisionError
        answer = LARGE if body == b"large" else b"<" + body + b">"
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(answer))]
        if body == b"close":
            headers.append((b"connection", b"close"))
        return (422 if body == b"bad" else 200), headers, answer


class Unheard:
    """Observers that are not listened to."""

    def http(self, route: str) -> Unheard:
        return self

    def started(self) -> None:
        pass

    def finished(self, method: str, status: int, duration_s: float, request_bytes: int, response_bytes: int) -> None:
        pass


async def inner(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"inner"})


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(
        self, body: bytes, *, method: str = "POST", path: str = "/hot", version: str = "1.1", headers: Sequence[str] = ()
    ) -> None:
        lines = [f"{method} {path} HTTP/{version}", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
        self.writer.write("\r\n".join(lines).encode() + body)

    async def receive(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(first.split()[1]), headers, body

    async def is_closed(self) -> bool:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read(1) == b""


@asynccontextmanager
async def served(door: Door, **options: Any) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    edge = Edge(inner, hot={"/hot": door}, routes=["/hot"], observers=Unheard())
    config = uvicorn.Config(
        edge, http=Protocol, lifespan="off", log_config=None, access_log=False, proxy_headers=False, **options
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.create_task(server.serve([listening]))
        try:
            yield server, listening.getsockname()[1]
        finally:
            door.gate.set()
            server.should_exit = True
            async with asyncio.timeout(PATIENCE_S):
                await task


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2 * len(LARGE))
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def test_simple_requests_of_one_connection_take_the_short_way_one_after_the_other() -> None:
    door = Door()
    async with served(door) as (server, port), connected(port) as client:
        for number in range(3):
            client.send(b"%d" % number)
            status, headers, body = await client.receive()
            assert (status, body, headers["content-type"]) == (200, b"<%d>" % number, "text/plain")
            assert "date" in headers
        client.send(b"bad")
        assert (await client.receive())[0] == 422
        assert server.server_state.total_requests == 4
    assert door.ways == ["short"] * 4


@pytest.mark.parametrize(
    ("request_of", "answered"),
    [
        ({"method": "GET"}, b"inner"),
        ({"path": "/other"}, b"inner"),
        ({"path": "/hot?x=1"}, b"<body>"),
        ({"headers": ["Expect: 100-continue"]}, b"<body>"),
        ({"version": "1.0"}, b"<body>"),
    ],
)
async def test_what_is_not_simple_goes_the_long_way_and_is_answered_too(request_of: dict[str, Any], answered: bytes) -> None:
    door = Door()
    async with served(door) as (_, port), connected(port) as client:
        client.send(b"body", **request_of)
        if "headers" in request_of:
            assert b"100 Continue" in await client.reader.readuntil(b"\r\n\r\n")
        assert (await client.receive())[2] == answered
    assert "short" not in door.ways


async def test_a_large_body_and_one_of_unknown_size_go_the_long_way() -> None:
    door = Door()
    async with served(door) as (_, port), connected(port) as client:
        client.send(b"y" * (MAX_BODY_BYTES + 1))
        assert len((await client.receive())[2]) == MAX_BODY_BYTES + 3
        client.writer.write(b"POST /hot HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n")
        assert (await client.receive())[2] == b"<body>"
        client.send(b"y" * MAX_BODY_BYTES)
        assert len((await client.receive())[2]) == MAX_BODY_BYTES + 2
    assert door.ways == ["long", "long", "short"]


async def test_a_body_that_comes_in_pieces_is_one_body() -> None:
    door = Door()
    async with served(door) as (_, port), connected(port) as client:
        whole = b"POST /hot HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabcdef"
        for place in range(len(whole)):
            client.writer.write(whole[place : place + 1])
            await client.writer.drain()
            await asyncio.sleep(0)
        assert (await client.receive())[2] == b"<abcdef>"
    assert door.ways == ["short"]


async def test_requests_sent_before_the_answer_are_answered_in_order() -> None:
    door = Door()
    async with served(door) as (_, port), connected(port) as client:
        for body in (b"hold", b"second", b"third"):
            client.send(body)
        await door.has_entered.wait()
        door.gate.set()
        assert [(await client.receive())[2] for _ in range(3)] == [b"<hold>", b"<second>", b"<third>"]
        client.send(b"fourth")
        assert (await client.receive())[2] == b"<fourth>"
    assert door.ways == ["short", "long", "long", "short"]


async def test_a_large_answer_reaches_a_slow_reader_whole() -> None:
    async with served(Door()) as (_, port), connected(port) as client:
        client.send(b"large")
        client.send(b"next")
        assert (await client.receive())[2] == LARGE
        assert (await client.receive())[2] == b"<next>"


@pytest.mark.parametrize(("body", "headers"), [(b"close", []), (b"body", ["Connection: close"])])
async def test_a_connection_is_closed_where_either_side_asked_for_it(body: bytes, headers: list[str]) -> None:
    async with served(Door()) as (_, port), connected(port) as client:
        client.send(body, headers=headers)
        _, answered, _ = await client.receive()
        assert answered["connection"] == "close"
        assert await client.is_closed()


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    door = Door()
    async with served(door, timeout_keep_alive=1) as (_, port), connected(port) as idle, connected(port) as busy:
        for client, body in ((idle, b"idle"), (busy, b"first")):
            client.send(body)
            await client.receive()
        busy.send(b"hold")
        assert await idle.is_closed()
        door.gate.set()
        assert (await busy.receive())[2] == b"<hold>"


async def test_a_request_that_has_begun_when_the_idle_time_ends_is_not_cut_off() -> None:
    async with served(Door(), timeout_keep_alive=1) as (_, port), connected(port) as client, connected(port) as idle:
        client.send(b"first")
        await client.receive()
        client.writer.write(b"POST /hot HTTP/1.1\r\nHost: x\r\n")
        idle.send(b"idle")
        await idle.receive()
        assert await idle.is_closed()
        client.writer.write(b"Content-Length: 4\r\n\r\nbody")
        assert (await client.receive())[2] == b"<body>"


async def test_a_request_that_is_refused_by_its_head_is_answered_before_its_body() -> None:
    door = Door()
    async with served(door) as (_, port), connected(port) as client:
        client.writer.write(b"POST /hot HTTP/1.1\r\nX-Refuse: yes\r\nContent-Length: 4\r\n\r\n")
        assert (await client.receive())[0] == 415
        client.writer.write(b"body")
        client.send(b"next")
        assert (await client.receive())[2] == b"<next>"
    assert door.ways == ["short", "short"]


async def test_the_door_learns_that_its_client_left() -> None:
    door = Door()
    async with served(door) as (_, port):
        async with connected(port) as client:
            client.send(b"watch")
            await door.has_entered.wait()
        async with asyncio.timeout(PATIENCE_S):
            await door.has_left.wait()


async def test_a_door_that_breaks_costs_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    async with served(Door()) as (_, port), connected(port) as broken, connected(port) as sound:
        broken.send(b"break")
        assert await broken.is_closed()
        sound.send(b"body")
        assert (await sound.receive())[2] == b"<body>"
    assert "ZeroDivisionError" in caplog.text


async def test_a_server_that_ends_finishes_what_it_answers_and_says_goodbye() -> None:
    door = Door()
    async with served(door, timeout_graceful_shutdown=10) as (server, port), connected(port) as client:
        client.send(b"hold")
        await door.has_entered.wait()
        for connection in list(server.server_state.connections):
            connection.shutdown()  # as the server does when it ends
        door.gate.set()
        assert (await client.receive())[2] == b"<hold>"
        assert await client.is_closed()
