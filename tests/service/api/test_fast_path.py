"""Requests over real sockets: simple ones take the fast path, all others the regular one, and each is answered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from service.api.fast_path import MAX_BODY_BYTES, FastPathProtocol, FastRequest
from service.api.gateway import Gateway, RefusalBudget
from service.api.request import Admission, Answer, ClientDisconnected, Headers, Hook, HttpRequest
from tests.fakes import PATIENCE_S

LARGE = b"x" * 3_000_000


class EchoEndpoint:
    """A direct endpoint that answers with what it read, notes the path, and holds an answer back until the test lets it go."""

    def refused(self) -> None:
        self.num_refused += 1

    def __init__(self) -> None:
        self.num_refused = 0
        self.paths: list[str] = []
        self.gate = asyncio.Event()
        self.has_entered = asyncio.Event()
        self.saw_disconnect = asyncio.Event()

    async def answer(self, request: HttpRequest) -> Answer:
        self.paths.append("fast" if isinstance(request, FastRequest) else "regular")
        if (b"x-refuse", b"yes") in request.headers:
            return Answer(415, [(b"content-length", b"0")], b"")
        body, has_more = b"", True
        while has_more:
            message = await request.receive()
            body += message["body"]
            has_more = message["more_body"]
        if body == b"hold":
            self.has_entered.set()
            await self.gate.wait()
        if body == b"watch":
            self.has_entered.set()
            assert (await request.receive())["type"] == "http.disconnect"
            self.saw_disconnect.set()
            raise ClientDisconnected
        if body == b"break":
            raise ZeroDivisionError
        answer = LARGE if body == b"large" else b"<" + body + b">"
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(answer))]
        if body == b"close":
            headers.append((b"connection", b"close"))
        return Answer(422 if body == b"bad" else 200, headers, answer)


class RecordingHook:
    """Remembers what it saw of every request; adds a header to every answer."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    def before(self, request: HttpRequest) -> None:
        assert request.client is not None
        assert request.server is not None
        self.events.append(("before", request.method, request.path, request.client[0], request.server[0], request.route))

    def after(self, request: HttpRequest, headers: Headers) -> None:
        headers.append((b"x-hook", b"%d" % request.status))
        self.events.append(("after", request.status))

    def finished(self, request: HttpRequest) -> None:
        self.events.append(("finished", request.status, request.request_bytes, request.response_bytes))


class SilentObserver:
    """Counts nothing."""

    def http(self, route: str) -> SilentObserver:
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
        self, body: bytes, *, method: str = "POST", path: str = "/direct", version: str = "1.1", headers: Sequence[str] = ()
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
async def served(
    endpoint: EchoEndpoint,
    hooks: Sequence[Hook] = (),
    http: type[FastPathProtocol] = FastPathProtocol,
    admission: Admission | None = None,
    refusals: RefusalBudget | None = None,
    **options: Any,
) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    gateway = Gateway(
        inner,
        direct={"/direct": endpoint},
        routes=["/direct"],
        observers=SilentObserver(),
        hooks=hooks,
        admission=admission,
        refusals=refusals,
        timeout_s=1.0,
    )
    config = uvicorn.Config(gateway, http=http, lifespan="off", log_config=None, access_log=False, proxy_headers=False, **options)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.create_task(server.serve([listening]))
        try:
            yield server, listening.getsockname()[1]
        finally:
            endpoint.gate.set()
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


async def test_simple_requests_of_one_connection_take_the_fast_path_one_after_the_other() -> None:
    endpoint = EchoEndpoint()
    async with served(endpoint) as (server, port), connected(port) as client:
        for number in range(3):
            client.send(b"%d" % number)
            status, headers, body = await client.receive()
            assert (status, body, headers["content-type"]) == (200, b"<%d>" % number, "text/plain")
            assert "date" in headers
        client.send(b"bad")
        assert (await client.receive())[0] == 422
        assert server.server_state.total_requests == 4
    assert endpoint.paths == ["fast"] * 4


@pytest.mark.parametrize(
    ("request_of", "answered"),
    [
        ({"method": "GET"}, b"inner"),
        ({"path": "/other"}, b"inner"),
        ({"path": "/direct?x=1"}, b"<body>"),
        ({"headers": ["Expect: 100-continue"]}, b"<body>"),
        ({"version": "1.0"}, b"<body>"),
    ],
)
async def test_what_is_not_simple_takes_the_regular_path_and_is_answered_too(request_of: dict[str, Any], answered: bytes) -> None:
    endpoint = EchoEndpoint()
    async with served(endpoint) as (_, port), connected(port) as client:
        client.send(b"body", **request_of)
        if "headers" in request_of:
            assert b"100 Continue" in await client.reader.readuntil(b"\r\n\r\n")
        assert (await client.receive())[2] == answered
    assert "fast" not in endpoint.paths


async def test_hooks_see_the_same_on_both_paths() -> None:
    endpoint, hook = EchoEndpoint(), RecordingHook()
    async with served(endpoint, hooks=[hook]) as (_, port), connected(port) as client:
        for path in ("/direct", "/direct?x"):
            client.send(b"body", path=path)
            assert (await client.receive())[1]["x-hook"] == "200"
    assert endpoint.paths == ["fast", "regular"]
    assert hook.events[:3] == hook.events[3:]
    assert [event[0] for event in hook.events[:3]] == ["before", "after", "finished"]
    assert hook.events[2] == ("finished", 200, 4, 6)


async def test_a_large_body_and_one_of_unknown_size_take_the_regular_path() -> None:
    endpoint = EchoEndpoint()
    async with served(endpoint) as (_, port), connected(port) as client:
        client.send(b"y" * (MAX_BODY_BYTES + 1))
        assert len((await client.receive())[2]) == MAX_BODY_BYTES + 3
        client.writer.write(b"POST /direct HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n")
        assert (await client.receive())[2] == b"<body>"
        client.send(b"y" * MAX_BODY_BYTES)
        assert len((await client.receive())[2]) == MAX_BODY_BYTES + 2
    assert endpoint.paths == ["regular", "regular", "fast"]


async def test_a_body_that_comes_in_pieces_is_one_body() -> None:
    endpoint = EchoEndpoint()
    async with served(endpoint) as (_, port), connected(port) as client:
        whole = b"POST /direct HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabcdef"
        for place in range(len(whole)):
            client.writer.write(whole[place : place + 1])
            await client.writer.drain()
            await asyncio.sleep(0)
        assert (await client.receive())[2] == b"<abcdef>"
    assert endpoint.paths == ["fast"]


async def test_requests_sent_before_the_answer_are_answered_in_order() -> None:
    endpoint = EchoEndpoint()
    async with served(endpoint) as (_, port), connected(port) as client:
        for body in (b"hold", b"second", b"third"):
            client.send(body)
        await endpoint.has_entered.wait()
        endpoint.gate.set()
        assert [(await client.receive())[2] for _ in range(3)] == [b"<hold>", b"<second>", b"<third>"]
        client.send(b"fourth")
        assert (await client.receive())[2] == b"<fourth>"
    assert endpoint.paths == ["fast", "regular", "regular", "fast"]


async def test_a_large_answer_reaches_a_slow_reader_whole() -> None:
    async with served(EchoEndpoint()) as (_, port), connected(port) as client:
        client.send(b"large")
        client.send(b"next")
        assert (await client.receive())[2] == LARGE
        assert (await client.receive())[2] == b"<next>"


@pytest.mark.parametrize(("body", "headers"), [(b"close", []), (b"body", ["Connection: close"])])
async def test_a_connection_is_closed_where_either_side_wants_it(body: bytes, headers: list[str]) -> None:
    async with served(EchoEndpoint()) as (_, port), connected(port) as client:
        client.send(body, headers=headers)
        _, answered, _ = await client.receive()
        assert answered["connection"] == "close"
        assert await client.is_closed()


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    endpoint = EchoEndpoint()
    async with served(endpoint, timeout_keep_alive=1) as (_, port), connected(port) as idle, connected(port) as busy:
        for client, body in ((idle, b"idle"), (busy, b"first")):
            client.send(body)
            await client.receive()
        busy.send(b"hold")
        assert await idle.is_closed()
        endpoint.gate.set()
        assert (await busy.receive())[2] == b"<hold>"


async def test_a_request_that_has_begun_when_the_idle_time_ends_is_not_cut_off() -> None:
    async with served(EchoEndpoint(), timeout_keep_alive=1) as (_, port), connected(port) as client, connected(port) as idle:
        client.send(b"first")
        await client.receive()
        client.writer.write(b"POST /direct HTTP/1.1\r\nHost: x\r\n")
        idle.send(b"idle")
        await idle.receive()
        assert await idle.is_closed()
        client.writer.write(b"Content-Length: 4\r\n\r\nbody")
        assert (await client.receive())[2] == b"<body>"


async def test_a_request_that_is_refused_by_its_head_is_answered_before_its_body() -> None:
    endpoint = EchoEndpoint()
    async with served(endpoint) as (_, port), connected(port) as client:
        client.writer.write(b"POST /direct HTTP/1.1\r\nX-Refuse: yes\r\nContent-Length: 4\r\n\r\n")
        assert (await client.receive())[0] == 415
        client.writer.write(b"body")
        client.send(b"next")
        assert (await client.receive())[2] == b"<next>"
    assert endpoint.paths == ["fast", "fast"]


async def test_an_endpoint_receives_the_disconnect_of_its_client() -> None:
    class ImpatientProtocol(FastPathProtocol):
        half_close_s = -1.0  # as if the client had waited for long

    endpoint = EchoEndpoint()
    async with served(endpoint, http=ImpatientProtocol) as (_, port):
        async with connected(port) as client:
            client.send(b"watch")
            await endpoint.has_entered.wait()
        async with asyncio.timeout(PATIENCE_S):
            await endpoint.saw_disconnect.wait()


async def test_an_endpoint_that_raises_answers_500_and_keeps_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    async with served(EchoEndpoint()) as (_, port), connected(port) as client:
        client.send(b"break")
        assert (await client.receive())[0] == 500
        client.send(b"body")
        assert (await client.receive())[2] == b"<body>"
    assert "ZeroDivisionError" in caplog.text


async def test_a_server_that_ends_finishes_what_it_answers_and_closes() -> None:
    endpoint = EchoEndpoint()
    async with served(endpoint, timeout_graceful_shutdown=10) as (server, port), connected(port) as client:
        client.send(b"hold")
        await endpoint.has_entered.wait()
        for connection in list(server.server_state.connections):
            connection.shutdown()  # as the server does when it ends
        endpoint.gate.set()
        assert (await client.receive())[2] == b"<hold>"
        assert await client.is_closed()


class SwitchedAdmission:
    """Refuses everything while the test says so."""

    def __init__(self) -> None:
        self.is_refusing = True
        self.num_asked_early = 0
        self.tickets: list[SwitchedTicket] = []

    def would_refuse(self, endpoint: str, num_bytes: int, timeout_s: float) -> bool:
        self.num_asked_early += 1
        return self.is_refusing

    def admit(self, endpoint: str, num_bytes: int, timeout_s: float, priority: int) -> SwitchedTicket | None:
        if self.is_refusing:
            return None
        self.tickets.append(SwitchedTicket())
        return self.tickets[-1]

    def finish(self, ticket: Any, num_rows: int, *, is_done: bool, has_left: bool, model: str | None) -> None:
        self.tickets.remove(ticket)

    def retry_after_s(self) -> float:
        return 0.7


class SwitchedTicket:
    def __init__(self) -> None:
        self.cancel: Callable[[], object] | None = None
        self.is_displaced = False
        self.closed = asyncio.Event()

    def await_body(self) -> None:
        pass

    def receive(self, num_bytes: int) -> bool:
        return True

    def complete_body(self) -> None:
        pass

    def assign(self, model: str) -> None:
        pass

    def grow(self, factor: float, timeout_s: float) -> bool:
        return True

    def close(self) -> None:
        self.closed.set()


class Held:
    """Holds the refusals of clients that return at once."""

    def __init__(self, delay_s: float) -> None:
        self.value_s = delay_s

    def delay_s(self) -> float:
        return self.value_s


async def test_a_refusal_before_parsing_is_the_refusal_after_it() -> None:
    endpoint, admission = EchoEndpoint(), SwitchedAdmission()
    async with served(endpoint, admission=admission) as (_, port), connected(port) as client:
        answers = []
        for headers in ([], ["Connection: keep-alive"], ["X-Request-Priority: 5"], ["X-Forwarded-For: 1.2.3.4"]):
            client.send(b"body", headers=headers)
            answers.append(await client.receive())
        client.send(b"body", path="/other")
        assert (await client.receive())[2] == b"inner"
    ids = [fields.pop("x-request-id") for _, fields, _ in answers]
    assert len(set(ids)) == len(answers)
    for (_, fields, _), request_id in zip(answers, ids, strict=True):
        fields.pop("date", None)
        assert fields.pop("traceparent") == f"00-{request_id}-{request_id[16:]}-00"
    contents = [body.replace(request_id.encode(), b"ID") for (_, _, body), request_id in zip(answers, ids, strict=True)]
    assert b"ID" in contents[0]
    assert contents == contents[:1] * len(contents)
    assert all(answer[:2] == answers[0][:2] for answer in answers)
    assert (answers[0][0], answers[0][1]["retry-after"]) == (503, "1")
    assert (endpoint.num_refused, endpoint.paths, admission.num_asked_early) == (4, [], 2)


async def test_a_connection_that_was_refused_carries_further_requests() -> None:
    endpoint, admission = EchoEndpoint(), SwitchedAdmission()
    async with served(endpoint, admission=admission) as (_, port), connected(port) as client:
        for number in range(3):
            admission.is_refusing = True
            client.send(b"refused")
            assert (await client.receive())[0] == 503
            admission.is_refusing = False
            client.send(b"%d" % number)
            assert (await client.receive())[2] == b"<%d>" % number
    assert endpoint.paths == ["fast"] * 3


async def test_requests_in_pieces_or_several_at_once_are_refused_one_by_one() -> None:
    endpoint, admission = EchoEndpoint(), SwitchedAdmission()
    request = b"POST /direct HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
    async with served(endpoint, admission=admission) as (_, port), connected(port) as client:
        for pieces in (
            [request[:40], request[40:]],
            [request[:-4], request[-4:]],
            [request * 3],
            [request + request[:30], request[30:]],
        ):
            num_requests = sum(map(len, pieces)) // len(request)
            for piece in pieces:
                client.writer.write(piece)
                await client.writer.drain()
                await asyncio.sleep(0)
            for _ in range(num_requests):
                assert (await client.receive())[0] == 503
        client.writer.write(request)
        assert (await client.receive())[0] == 503
    assert endpoint.num_refused == 8


async def test_hooks_see_every_refusal() -> None:
    endpoint, hook = EchoEndpoint(), RecordingHook()
    async with served(endpoint, [hook], admission=SwitchedAdmission()) as (_, port), connected(port) as client:
        client.send(b"body")
        assert (await client.receive())[1]["x-hook"] == "503"
    assert [event[0] for event in hook.events] == ["before", "after", "finished"]


async def test_a_client_that_returns_at_once_gets_its_refusal_later_and_what_it_sends_meanwhile_after_it() -> None:
    endpoint, admission = EchoEndpoint(), SwitchedAdmission()
    async with served(endpoint, admission=admission, refusals=Held(0.05)) as (_, port), connected(port) as client:
        for headers in ([], ["X-Request-Priority: 5"]):
            client.send(b"body", headers=headers)
            assert (await client.receive())[0] == 503
            client.send(b"held", headers=headers)
            await asyncio.sleep(0.01)  # so that the next one comes in a packet of its own, at most
            admission.is_refusing = False
            client.send(b"behind")
            assert (await client.receive())[0] == 503
            assert (await client.receive())[2] == b"<behind>"
            admission.is_refusing = True


async def test_a_client_that_leaves_while_its_refusal_is_held_leaves_nothing_behind() -> None:
    endpoint = EchoEndpoint()
    async with served(endpoint, admission=SwitchedAdmission(), refusals=Held(0.05)) as (server, port):
        async with connected(port) as client:
            client.send(b"body")
            await client.receive()
            client.send(b"held")
        async with connected(port) as other:
            for _ in range(2):  # the second is held for as long as the one before
                other.send(b"other")
                assert (await other.receive())[0] == 503
    assert endpoint.paths == []
    assert not server.server_state.connections


async def test_a_request_says_that_its_client_has_disconnected() -> None:
    class ImpatientProtocol(FastPathProtocol):
        half_close_s = -1.0

    told = asyncio.Event()

    class WaitingEndpoint(EchoEndpoint):
        async def answer(self, request: HttpRequest) -> Answer:
            await request.receive()
            assert request.on_disconnect(told.set)
            self.has_entered.set()
            await told.wait()
            assert request.has_disconnected
            raise ClientDisconnected

    endpoint = WaitingEndpoint()
    async with served(endpoint, http=ImpatientProtocol) as (_, port), connected(port) as client:
        client.send(b"body")
        await endpoint.has_entered.wait()
        client.writer.close()
        async with asyncio.timeout(PATIENCE_S):
            await told.wait()


async def test_a_client_that_closes_its_side_tells_the_admission_control_and_gets_its_answer() -> None:
    endpoint, admission = EchoEndpoint(), SwitchedAdmission()
    admission.is_refusing = False
    async with served(endpoint, admission=admission) as (_, port), connected(port) as client:
        client.send(b"hold")
        await endpoint.has_entered.wait()
        (ticket,) = admission.tickets
        client.writer.write_eof()
        async with asyncio.timeout(PATIENCE_S):
            await ticket.closed.wait()
        endpoint.gate.set()
        assert (await client.receive())[2] == b"<hold>"
