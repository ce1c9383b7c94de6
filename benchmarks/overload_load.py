"""Load beyond what a server can do: outcomes by status and their latencies, from many connections or at random times.

In a closed loop each connection sends its next request once it has the response: at once whatever the response was, or with
`--honour` after a refusal when its Retry-After says so. In an open loop (`--rate`) requests arrive as a Poisson process, over
as many connections as that takes; latencies then count from the intended time, so that the generator's own lateness is part of
them (it is reported, as is its share of a core).

    python -m benchmarks.overload_load http://127.0.0.1:8000/predict FOLDER --connections 1000 --honour
    python -m benchmarks.overload_load http://127.0.0.1:8000/predict FOLDER --rate 4000

FOLDER holds bodies as files 0, 1, ... Runs as a process of its own, as wrk does; prints its report as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import numpy as np
import uvloop

from benchmarks.open_loop import arrivals_s
from benchmarks.servers import ROOT

CONNECT_AT_ONCE = 100
MIN_OPEN_CONNECTIONS, MAX_OPEN_CONNECTIONS = 256, 16_000
"""Of an open loop: as many as requests arrive in 1.5 s, within these bounds, and more while none is free. They are used in
turn: so many clients, each of which seldom sends."""
CONNECTED = "connected"
"""The first line of output: nothing has been sent yet."""
END_S = 2.0
"""An open loop waits so long for what is still to come."""
JITTER = 0.2
"""Clients that honour Retry-After return so much later at most, as a share of it."""


@dataclasses.dataclass(frozen=True)
class OverloadResult:
    """One run. A response counts as goodput when its status is 200 and it came within the deadline.

    `num_good` counts them from the first request on, with the warm-up. `latency_ms` holds p50, p99 and the largest per status.
    `num_lost` counts requests whose connection was closed by the server, `num_left` those whose client did not wait.
    `lag_p99_ms` is the generator's delay behind the intended times of an open loop, `busy` its share of a core.
    """

    goodput_per_s: float
    num_good: int
    counts: dict[str, int]
    latency_ms: dict[str, tuple[float, float, float]]
    num_without_retry_after: int
    num_lost: int
    num_left: int
    num_unanswered: int
    lag_p99_ms: float
    busy: float


@dataclasses.dataclass(frozen=True)
class Pattern:
    """How requests are sent: `connections` in a closed loop, or `rate` per second in an open one.

    With `leave_after_s` a client closes its connection after that time without a response, and opens another.
    """

    connections: int = 32
    rate: float = 0.0
    honours: bool = False
    leave_after_s: float = 0.0

    @property
    def options(self) -> list[str]:
        """The same on the command line."""
        options = ["--rate", str(self.rate)] if self.rate else ["--connections", str(self.connections)]
        options += ["--honour"] if self.honours else []
        return [*options, "--leave-after", str(self.leave_after_s)] if self.leave_after_s else options


def run_overload(
    url: str,
    bodies: Path,
    pattern: Pattern,
    *,
    seconds: float,
    warm_up_s: float,
    deadline_s: float,
    cores: Sequence[int] = (),
    on_connected: Callable[[], None] = lambda: None,
) -> OverloadResult:
    """Send this load from a process of its own, on these cores where they are named.

    `on_connected` is called when all connections are open and nothing has been sent. Raises RuntimeError where that fails.
    """
    command = [sys.executable, "-m", "benchmarks.overload_load", url, str(bodies.resolve()), *pattern.options]
    command += ["--seconds", str(seconds), "--warm-up", str(warm_up_s), "--deadline", str(deadline_s)]
    if cores:
        command += ["--cores", *map(str, cores)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() == CONNECTED:
            on_connected()
        text, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load generator failed: {errors.strip()}")
    return OverloadResult(**json.loads(text))


class Generator:
    """The connections, what each of them is to do next, and the measurements."""

    def __init__(self, url: str, bodies: Sequence[bytes], pattern: Pattern, deadline_s: float) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\nContent-Length: "
        self._address = (parts.hostname, parts.port or 80)
        self._requests = itertools.cycle([f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies])
        self._pattern = pattern
        self._deadline_s = deadline_s
        self._random = random.Random(1)
        self._free: deque[_Connection] = deque()
        self._waiting: deque[float] = deque()
        self._connections: set[_Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._is_sending = self._is_counting = False
        self._latencies_s: dict[int, list[float]] = defaultdict(list)
        self._lags_s: list[float] = []
        self._num_good = self._num_counted_good = self._num_lost = self._num_left = self._num_without_retry_after = 0

    async def run(self, seconds: float, warm_up_s: float) -> OverloadResult:
        """Send for `warm_up_s` without counting, then for `seconds`. Raises OSError when there is no connection to be had."""
        self._loop = asyncio.get_running_loop()
        wanted = self._pattern.connections
        if self._pattern.rate:
            wanted = round(min(MAX_OPEN_CONNECTIONS, max(MIN_OPEN_CONNECTIONS, 1.5 * self._pattern.rate)))
        for start in range(0, wanted, CONNECT_AT_ONCE):
            await asyncio.gather(*(self._connect() for _ in range(min(CONNECT_AT_ONCE, wanted - start))))
        print(CONNECTED, flush=True)
        started, cpu_s = time.perf_counter(), time.process_time()
        self._is_sending = True
        self._is_counting = not warm_up_s
        self._loop.call_later(warm_up_s, self._count)
        if self._pattern.rate:
            await self._send_at_random_times(started, warm_up_s + seconds)
        else:
            free, self._free = self._free, deque()
            for connection in free:
                self._send(connection, time.perf_counter())
            await asyncio.sleep(warm_up_s + seconds)
        took_s, used_s = time.perf_counter() - started, time.process_time() - cpu_s
        self._is_sending = False
        if self._pattern.rate:
            await asyncio.sleep(END_S)
        self._is_counting = False
        result = self._report(seconds, used_s / took_s)
        for task in self._connecting:
            task.cancel()
        for connection in list(self._connections):
            connection.close()
        await asyncio.sleep(0)  # until they are closed
        return result

    def _count(self) -> None:
        self._is_counting = True

    def _report(self, seconds: float, busy: float) -> OverloadResult:
        def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
            p50, p99, longest = np.percentile(values, (50, 99, 100)) * 1e3
            return round(float(p50), 2), round(float(p99), 2), round(float(longest), 2)

        return OverloadResult(
            goodput_per_s=self._num_counted_good / seconds,
            num_good=self._num_good,
            counts={str(status): len(values) for status, values in sorted(self._latencies_s.items())},
            latency_ms={str(status): quantiles(values) for status, values in sorted(self._latencies_s.items())},
            num_without_retry_after=self._num_without_retry_after,
            num_lost=self._num_lost,
            num_left=self._num_left,
            num_unanswered=len(self._waiting) + len(self._connections) - len(self._free) if self._pattern.rate else 0,
            lag_p99_ms=float(np.percentile(self._lags_s, 99)) * 1e3 if self._lags_s else 0.0,
            busy=busy,
        )

    async def _send_at_random_times(self, started: float, seconds: float) -> None:
        for due in (started + arrivals_s(self._pattern.rate, seconds)).tolist():
            if (now := time.perf_counter()) < due:
                await asyncio.sleep(due - now)
                now = time.perf_counter()
            if self._is_counting:
                self._lags_s.append(max(0.0, now - due))
            if self._free:
                self._send(self._free.popleft(), due)
            else:
                self._waiting.append(due)
                if len(self._connections) + len(self._connecting) < MAX_OPEN_CONNECTIONS:
                    self._connect_again()

    def _send(self, connection: _Connection, due: float) -> None:
        connection.send(due, next(self._requests))
        if self._pattern.leave_after_s:
            self._loop.call_later(self._pattern.leave_after_s, connection.leave, due)

    async def _connect(self) -> None:
        await self._loop.create_connection(lambda: _Connection(self), *self._address)

    def _connect_again(self) -> None:
        async def connect() -> None:
            try:
                await self._connect()
            except OSError:
                self._num_lost += 1

        task = self._loop.create_task(connect())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def on_connected(self, connection: _Connection) -> None:
        self._connections.add(connection)
        self._continue(connection)

    def on_response(self, connection: _Connection, due: float, status: int, retry_after_s: float | None) -> None:
        latency_s = time.perf_counter() - due
        is_good = status == 200 and latency_s <= self._deadline_s
        self._num_good += is_good
        if self._is_counting:
            self._latencies_s[status].append(latency_s)
            self._num_counted_good += is_good
            self._num_without_retry_after += status == 503 and retry_after_s is None
        if status == 503 and retry_after_s and self._pattern.honours and not self._pattern.rate:
            self._loop.call_later(retry_after_s * (1 + JITTER * self._random.random()), self._continue, connection)
        else:
            self._continue(connection)

    def on_lost(self, connection: _Connection, *, is_waiting: bool, has_left: bool) -> None:
        self._connections.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        if self._is_counting:
            self._num_left += has_left
            self._num_lost += is_waiting and not has_left
        if self._is_sending:
            self._connect_again()

    def _continue(self, connection: _Connection) -> None:
        if connection.is_closed:
            return
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        elif self._is_sending and not self._pattern.rate:
            self._send(connection, time.perf_counter())
        else:
            self._free.append(connection)


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    __slots__ = ("_due", "_generator", "_has_left", "_received", "_transport", "is_closed")

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._received = b""
        self._due: float | None = None
        self._has_left = self.is_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's transports are not asyncio's classes
        self._generator.on_connected(self)

    def send(self, due: float, request: bytes) -> None:
        self._due = due
        self._transport.write(request)

    def leave(self, due: float) -> None:
        """Close the connection if the request of that time is not answered."""
        if self._due == due and not self.is_closed:
            self._has_left = True
            self._transport.abort()

    def close(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        for status, retry_after_s, is_last, rest in _responses(self._received):
            self._received = rest
            due, self._due = self._due, None
            if due is None:  # more than was requested
                self._transport.abort()
                return
            if is_last:
                self.is_closed = True
                self._transport.close()
            self._generator.on_response(self, due, status, retry_after_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self._generator.on_lost(self, is_waiting=self._due is not None, has_left=self._has_left)


def _responses(received: bytes) -> Iterator[tuple[int, float | None, bool, bytes]]:
    """Each whole response: status, Retry-After, whether the server closes behind it, and what follows.

    A parser of its own, as cheap as can be: the generator shares the machine with the server.
    """
    while (end := received.find(b"\r\n\r\n")) >= 0:
        head = received[:end].lower() + b"\r\n"
        length = _field(head, b"\r\ncontent-length:")
        if length is not None:
            end += 4 + int(length)
        else:  # chunked
            last = received.find(b"\r\n0\r\n\r\n", end)
            end = last + 7 if last >= 0 else len(received) + 1
        if len(received) < end:
            return
        received = received[end:]
        retry_after = _field(head, b"\r\nretry-after:")
        is_last = _field(head, b"\r\nconnection:") == b"close"
        yield int(head[9:12]), float(retry_after) if retry_after is not None else None, is_last, received


def _field(head: bytes, name: bytes) -> bytes | None:
    start = head.find(name)
    return head[start + len(name) : head.index(b"\r\n", start + len(name))].strip() if start >= 0 else None


def main() -> None:
    """Run from the command line, and print the report as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overload_load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("bodies", type=Path, help="a folder with the bodies, files 0, 1, ...")
    parser.add_argument("--connections", type=int, default=32, help="of a closed loop")
    parser.add_argument("--rate", type=float, default=0.0, help="requests per second of an open loop, on average")
    parser.add_argument("--honour", action="store_true", help="wait after a refusal as Retry-After says")
    parser.add_argument("--leave-after", type=float, default=0.0, help="seconds after which a client gives up and reconnects")
    parser.add_argument("--deadline", type=float, default=1.0, help="seconds within which a response is worth something")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds before counting begins")
    parser.add_argument("--cores", type=int, nargs="+", default=[], help="cores that the generator may use")
    options = parser.parse_args()
    if options.cores:
        os.sched_setaffinity(0, options.cores)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    bodies = [path.read_bytes() for path in sorted(options.bodies.iterdir(), key=lambda path: int(path.name))]
    pattern = Pattern(options.connections, options.rate, options.honour, options.leave_after)
    gc.disable()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        generator = Generator(options.url, bodies, pattern, options.deadline)
        try:
            result = runner.run(generator.run(options.seconds, options.warm_up))
        except OSError as exc:
            raise SystemExit(str(exc)) from exc
    print(json.dumps(dataclasses.asdict(result)))


if __name__ == "__main__":
    main()
