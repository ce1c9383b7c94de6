"""Open-loop load: requests are sent when due, whether or not earlier responses have arrived; latencies as callers see them.

A closed loop stops sending while a server stalls, so that a stall of a second counts once per connection: "coordinated
omission" (Gil Tene, "How NOT to Measure Latency", 2013, and his wrk2). Here every request has its intended time, drawn
beforehand, and its latency counts from that, including the wait for a free connection and the generator's own lateness. That
lateness is reported as well, so that a saturated generator is not mistaken for a slow server.

    python -m benchmarks.open_loop http://127.0.0.1:8000/predict FOLDER --rate 2000 --seconds 5

FOLDER holds bodies as files 0, 1, ... Runs as a process of its own, as wrk does; prints its report as JSON. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import httptools
import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks.servers import ROOT

CONNECTIONS = 256
TIMEOUT_S = 10.0
"""How long after the last arrival to wait for responses; requests without one have then failed, with that time as latency."""
SEED = 4

Times = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class OpenLoad:
    """One run: arrivals and 2xx responses per second; latencies from the intended times.

    `lag_p99_ms` and `lag_max_ms` are the generator's delay behind the intended times, `busy` is its share of a core.
    """

    arrivals_per_s: float
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    num_failed: int
    lag_p99_ms: float
    lag_max_ms: float
    busy: float


def run_open_loop(url: str, bodies: Path, rate_per_s: float, duration_s: float) -> OpenLoad:
    """POST the bodies of a folder in turn at random times, `rate_per_s` on average, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.open_loop", url, str(bodies.resolve())]
    command += ["--rate", str(rate_per_s), "--seconds", str(duration_s)]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return OpenLoad(**json.loads(text))


def arrivals_s(rate_per_s: float, duration_s: float, seed: int = SEED) -> Times:
    """Intended times of a Poisson process within `duration_s`, ascending, from 0."""
    random = np.random.default_rng(seed)
    num_likely = int(rate_per_s * duration_s + 10 * (rate_per_s * duration_s) ** 0.5 + 10)
    times = np.cumsum(random.exponential(1 / rate_per_s, num_likely))
    return times[times < duration_s]


async def generate(url: str, bodies: Sequence[bytes], times: Times, connections: int, timeout_s: float = TIMEOUT_S) -> OpenLoad:
    """Send a request at each of the times (seconds from the start, ascending), over at most so many connections.

    Raises ValueError when there is nothing to measure: no times, or no 2xx response.
    """
    if not len(times):
        raise ValueError("no request is due in this time")
    parts = urlsplit(url)
    assert parts.hostname is not None
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\nContent-Length: "
    requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
    generator = _Generator(requests, times, parts.hostname, parts.port or 80)
    for _ in range(connections):
        await generator.connect()
    cpu_s, started = time.process_time(), time.monotonic()
    await generator.run(timeout_s)
    busy = (time.process_time() - cpu_s) / (time.monotonic() - started)
    return _report(times, generator, busy)


def _report(times: Times, generator: _Generator, busy: float) -> OpenLoad:
    if not generator.num_responses:
        raise ValueError(f"none of {len(times)} requests got a 2xx response")
    p50, p99, p999 = np.percentile(generator.latencies_s, [50, 99, 99.9]) * 1e3
    lags = np.array(generator.lags_s)
    return OpenLoad(
        arrivals_per_s=len(times) / times[-1],
        requests_per_s=generator.num_responses / max(times[-1], generator.last_response_s),
        p50_ms=float(p50),
        p99_ms=float(p99),
        p999_ms=float(p999),
        num_failed=len(times) - generator.num_responses,
        lag_p99_ms=float(np.percentile(lags, 99)) * 1e3,
        lag_max_ms=float(lags.max()) * 1e3,
        busy=busy,
    )


class _Generator:
    """The requests that are due, the free connections, and the measurements."""

    def __init__(self, requests: Sequence[bytes], times: Times, host: str, port: int) -> None:
        self._requests = requests
        self._times = times.tolist()
        self._address = (host, port)
        self._free: deque[_Connection] = deque()
        self._waiting: deque[int] = deque()
        self._in_flight: dict[int, _Connection] = {}
        self._num_due = self._num_finished = 0
        self._is_over = False
        self._reconnecting: set[asyncio.Task[None]] = set()
        self._finished = asyncio.Event()
        self._start = 0.0
        self.latencies_s: list[float] = []
        self.lags_s: list[float] = []
        self.num_responses = 0
        self.last_response_s = 0.0

    async def connect(self) -> None:
        """Open one more connection. Raises OSError."""
        await asyncio.get_running_loop().create_connection(lambda: _Connection(self), *self._address)

    async def run(self, timeout_s: float) -> None:
        """Run until all requests are finished, or `timeout_s` after the last arrival."""
        self._timer = _Timer(asyncio.get_running_loop(), self._on_due)
        self._start = time.monotonic()
        try:
            self._timer.set(self._start + self._times[0])
            async with asyncio.timeout(self._times[-1] + timeout_s):
                await self._finished.wait()
        except TimeoutError:
            elapsed_s = time.monotonic() - self._start
            self.latencies_s += [elapsed_s - self._times[number] for number in (*self._waiting, *self._in_flight)]
        finally:
            self._timer.close()
            self._is_over = True
            for task in self._reconnecting:
                task.cancel()
            for connection in (*self._free, *self._in_flight.values()):
                connection.close()

    def _on_due(self) -> None:
        """Send all requests that are due by now; those without a free connection are queued."""
        now_s = time.monotonic() - self._start
        times, number = self._times, self._num_due
        while number < len(times) and times[number] <= now_s:
            self.lags_s.append(now_s - times[number])
            if self._free:
                self._send(self._free.popleft(), number)
            else:
                self._waiting.append(number)
            number += 1
        self._num_due = number
        if number < len(times):
            self._timer.set(self._start + times[number])

    def _send(self, connection: _Connection, number: int) -> None:
        self._in_flight[number] = connection
        connection.send(number, self._requests[number % len(self._requests)])

    def on_free(self, connection: _Connection) -> None:
        """Send the longest queued request on this connection; with none queued, the connection is used last of the free ones."""
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._free.append(connection)

    def on_response(self, number: int, status: int) -> None:
        """Finish a request. A non-2xx response records no latency: a fast error would make the server look better."""
        now_s = time.monotonic() - self._start
        self._in_flight.pop(number, None)
        if 200 <= status < 300:
            self.num_responses += 1
            self.last_response_s = now_s
            self.latencies_s.append(now_s - self._times[number])
        self._finish()

    def on_lost(self, connection: _Connection, number: int | None) -> None:
        """Replace a lost connection; a request in flight on it has failed, with the time so far as latency."""
        if self._is_over:
            return
        if number is None:
            with contextlib.suppress(ValueError):  # closed by the server after its response: not among the free ones
                self._free.remove(connection)
        else:
            self._in_flight.pop(number, None)
            self.latencies_s.append(time.monotonic() - self._start - self._times[number])
            self._finish()
        task = asyncio.get_running_loop().create_task(self._reconnect())
        self._reconnecting.add(task)
        task.add_done_callback(self._reconnecting.discard)

    async def _reconnect(self) -> None:
        while True:
            try:
                return await self.connect()
            except OSError:
                await asyncio.sleep(0.1)

    def _finish(self) -> None:
        self._num_finished += 1
        if self._num_finished == len(self._times):
            self._finished.set()


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    def __init__(self, generator: _Generator) -> None:
        self._generator = generator
        self._number: int | None = None
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's transports are not asyncio's classes
        self._generator.on_free(self)

    def send(self, number: int, request: bytes) -> None:
        self._number = number
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_message_complete(self) -> None:
        number, self._number = self._number, None
        assert number is not None
        self._generator.on_response(number, self._parser.get_status_code())
        if self._parser.should_keep_alive():
            self._generator.on_free(self)
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._generator.on_lost(self, self._number)

    def close(self) -> None:
        self._transport.abort()


class _Timer:
    """Calls back at a time of the monotonic clock, to about 50 µs: the event loop's own timers count milliseconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._spec = (ctypes.c_long * 4)()  # interval and first time, each as seconds and nanoseconds
        self._callback = callback
        loop.add_reader(self._file, self._on_time)

    def set(self, at_s: float) -> None:
        """Call back once at `at_s`, or immediately if that has passed."""
        seconds = int(at_s)
        self._spec[2], self._spec[3] = seconds, max(1, int((at_s - seconds) * 1e9))
        absolute = 1
        self._libc.timerfd_settime(self._file, absolute, self._spec, None)

    def close(self) -> None:
        self._loop.remove_reader(self._file)
        os.close(self._file)

    def _on_time(self) -> None:
        os.read(self._file, 8)
        self._callback()


def main() -> None:
    """Run from the command line, and print the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("bodies", type=Path, help="a folder with the bodies, files 0, 1, ...")
    parser.add_argument("--rate", type=float, required=True, help="requests per second, on average")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    options = parser.parse_args()
    bodies = [path.read_bytes() for path in sorted(options.bodies.iterdir(), key=lambda path: int(path.name))]
    times = arrivals_s(options.rate, options.seconds)
    gc.disable()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            load = runner.run(generate(options.url, bodies, times, options.connections))
        except (ValueError, OSError) as exc:
            raise SystemExit(str(exc)) from exc
    print(json.dumps(dataclasses.asdict(load)))


if __name__ == "__main__":
    main()
