"""Closed-loop load from Python: each of several keep-alive connections sends its next request once it has the response.

Every response is read and checked, and clients may disconnect in the middle of a request: what `wrk` cannot do. It costs about
as much processor time per request as a small server, so both sides of a comparison are driven by it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import uvloop

from benchmarks.traffic import Request

CONNECT_TIMEOUT_S = 30.0
MAX_ERRORS_KEPT = 5


@dataclass
class LoadResult:
    """One run of load: for each kind of request the latencies in seconds, in the order of the responses.

    `num_errors` counts unexpected responses, of which the first few are described in `errors`; `num_disconnected` counts
    clients that closed their connection before the response.
    """

    latencies_s: dict[str, list[float]] = field(default_factory=dict)
    num_disconnected: int = 0
    num_errors: int = 0
    errors: list[str] = field(default_factory=list)
    duration_s: float = 0.0

    @property
    def num_responses(self) -> int:
        return sum(len(latencies) for latencies in self.latencies_s.values())

    def rate(self, kind: str) -> float:
        """Responses of this kind per second."""
        return len(self.latencies_s.get(kind, ())) / self.duration_s

    def quantile_ms(self, kind: str, share: float) -> float:
        ordered = sorted(self.latencies_s[kind])
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def record_error(self, line: str) -> None:
        self.num_errors += 1
        if len(self.errors) < MAX_ERRORS_KEPT:
            self.errors.append(line)


class Response(NamedTuple):
    """One HTTP response; `num_bytes` is its size with the head."""

    status: int
    body: bytes
    ends_connection: bool
    num_bytes: int


def parse_response(received: bytes | bytearray) -> Response | None:
    """The first response in these bytes, None while it is incomplete.

    Reads what Sluice writes and no more of HTTP: header names in lower case, a content length.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(received[:end])
    at = head.find(b"content-length: ") + len(b"content-length: ")
    stop = head.find(b"\r", at)
    num_bytes = end + 4 + int(head[at : stop if stop > 0 else len(head)])
    if len(received) < num_bytes:
        return None
    return Response(int(head[9:12]), bytes(received[end + 4 : num_bytes]), b"\r\nconnection: close" in head, num_bytes)


def run_closed_loop(
    host: str,
    port: int,
    requests: Iterator[Request],
    connections: int,
    *,
    duration_s: float | None = None,
    count: int | None = None,
) -> LoadResult:
    """Send `requests` over `connections` connections for `duration_s`, or `count` of them; returns after the last response.

    Raises OSError when the server cannot be reached.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(host, port, requests, connections, duration_s, count))


async def _run(
    host: str, port: int, requests: Iterator[Request], connections: int, duration_s: float | None, count: int | None
) -> LoadResult:
    generator = _LoadGenerator(host, port, requests, duration_s, count)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: generator.fail(context))
    started = time.perf_counter()
    for _ in range(connections):
        generator.open_connection()
    await generator.finished
    generator.result.duration_s = time.perf_counter() - started
    return generator.result


class _LoadGenerator:
    """The connections of one run, the requests that remain, and the result so far."""

    def __init__(self, host: str, port: int, requests: Iterator[Request], duration_s: float | None, count: int | None) -> None:
        self.result = LoadResult()
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._address = host, port
        self._requests = requests
        self._ends_at = None if duration_s is None else time.perf_counter() + duration_s
        self._num_to_send = count
        self._num_connections = 0
        self._connecting: set[asyncio.Task[None]] = set()

    def next(self) -> Request | None:
        """The next request; None when the run is over."""
        if self._ends_at is not None and time.perf_counter() >= self._ends_at:
            return None
        if self._num_to_send is not None:
            if self._num_to_send == 0:
                return None
            self._num_to_send -= 1
        return next(self._requests)

    def open_connection(self) -> None:
        """Add one connection, which sends as soon as it is there."""
        self._num_connections += 1
        task = asyncio.get_running_loop().create_task(self._connect())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def remove_connection(self) -> None:
        """Count a connection as closed; the run is finished with the last one."""
        self._num_connections -= 1
        if self._num_connections == 0 and not self.finished.done():
            self.finished.set_result(None)

    def fail(self, context: dict[str, Any]) -> None:
        """End the run with an exception of a callback."""
        if not self.finished.done():
            self.finished.set_exception(context.get("exception") or RuntimeError(context["message"]))

    async def _connect(self) -> None:
        create = asyncio.get_running_loop().create_connection(lambda: _Connection(self), *self._address)
        try:
            await asyncio.wait_for(create, CONNECT_TIMEOUT_S)
        except OSError as exc:
            self.fail({"exception": exc})


class _Connection(asyncio.Protocol):
    """One connection with at most one request in flight."""

    def __init__(self, generator: _LoadGenerator) -> None:
        self._generator = generator
        self._received = bytearray()
        self._request: Request | None = None
        self._sent_at = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in what they do, not by their class.
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        response = parse_response(self._received)
        if response is None or self._request is None:
            return
        result, request = self._generator.result, self._request
        del self._received[: response.num_bytes]
        if request.is_cancelled:
            return  # the response was faster than the client, which disconnects at its own time
        result.latencies_s.setdefault(request.kind, []).append(time.perf_counter() - self._sent_at)
        if not request.is_expected(response.status, response.body):
            result.record_error(f"{request.kind}: {response.status} {response.body[:300]!r}")
        self._request = None
        if response.ends_connection:
            self._replace()
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._request is not None:
            self._generator.result.record_error(f"{self._request.kind}: the server closed the connection ({exc})")
            self._request = None
            self._replace()

    def _send(self) -> None:
        assert self._transport is not None
        request = self._request = self._generator.next()
        if request is None:
            self._transport.close()
            self._generator.remove_connection()
            return
        self._sent_at = time.perf_counter()
        if request.disconnect_after_s is None:
            self._transport.write(request.message)
        else:
            self._transport.write(request.message[: int(len(request.message) * request.sent_share)])
            asyncio.get_running_loop().call_later(request.disconnect_after_s, self._disconnect)

    def _disconnect(self) -> None:
        if self._request is not None:
            self._generator.result.num_disconnected += 1
            self._request = None
            self._replace()

    def _replace(self) -> None:
        """Close this connection and open another one."""
        assert self._transport is not None
        self._transport.abort()
        self._generator.open_connection()
        self._generator.remove_connection()
