"""How many sequences, each with a step a second, are answered in time: by the ways in which their steps can come.

    python -m benchmarks.sequence_rates
    python -m benchmarks.sequence_rates --model models/sensor-stream --ways batches websockets --rates 2000 10000 --seconds 10
    python -m benchmarks.sequence_rates --ways batches next --per-request 10 25 50 100 --rates 10000

Two workers, which share the states of sequences, and a generator in a process of its own on the same cores. Each rate is run for
some seconds: arrivals are those of a Poisson process, latencies count from when each step was due. The ways:

    batches     requests with a step of each of 100 sequences, or as many as `--per-request` says (a gateway of sensors)
    next        the same, answered with the next value and its band alone: `horizon` 1 and two quantiles
    requests    a request for each step
    websockets  a WebSocket for each sequence, whose state the server keeps while it is open; steps are evenly spread
    echo        `batches` and their answers at a server that computes nothing (`echo.py`): what HTTP and the generator leave

The table has the median and the 99th percentile in ms, the processor time of all processes of the server in µs per step, how many
cores that is at the rate, and how many the generator took: where both together reach the cores of the machine, the rate is too
high for it. Of WebSockets the time to open them is counted too. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import numpy as np
import uvloop

from benchmarks.http_client import post
from benchmarks.open_loop import run_open_loop
from benchmarks.processes import cpu_seconds
from benchmarks.servers import ROOT, Server, free_port, running, sluice
from tests.websockets import text, upgrade

NUM_WORKERS = 2
PER_REQUEST = 100
NEXT: dict[str, Any] = {"horizon": 1, "quantiles": [0.1, 0.9]}
"""The parameters of `next`."""
RATES = (1000, 2000, 4000, 6000, 8000, 10_000)
PATH = "/predict/forecast"
MAX_CONNECTIONS = 30_000
"""Of a worker; half of them may be WebSockets, which are not evenly spread over the workers."""
OPEN_AT_ONCE = 64
"""WebSockets that are being opened at the same time."""
PATIENCE_S = 60.0


class Found(NamedTuple):
    """One run; `server_s` is the processor time of all processes of the server, `generator` the cores that the generator took."""

    p50_ms: float
    p99_ms: float
    num_failed: int
    server_s: float
    generator: float


def body(model: str, ids: Sequence[str], value: float, **parameters: Any) -> bytes:
    """The next value of each of these sequences."""
    instances = [{"history": [value], "sequence_id": id} for id in ids]
    return json.dumps({"model": model, "instances": instances, "parameters": parameters}).encode()


def groups_of(ids: Sequence[str], size: int) -> list[Sequence[str]]:
    return [ids[first : first + size] for first in range(0, len(ids), size)]


def write_bodies(folder: Path, model: str, ids: Sequence[str], per_request: int, **parameters: Any) -> None:
    """The requests that bring each sequence one step further."""
    folder.mkdir()
    for number, group in enumerate(groups_of(ids, per_request)):
        (folder / str(number)).write_bytes(body(model, group, 10.5 + number % 7, **parameters))


def cpu_s(server: Server) -> float:
    """Processor time of all processes of a server so far."""
    return sum(cpu_seconds(process.pid) for process in server.members())


def run_requests(server: Server, path: str, bodies: Path, per_s: float, seconds: float) -> Found:
    """POST these bodies in turn, so many a second."""
    before = cpu_s(server)
    load = run_open_loop(server.url + path, bodies, per_s, seconds)
    return Found(load.p50_ms, load.p99_ms, load.num_failed, cpu_s(server) - before, load.busy)


def run_sequences(server: Server, model: str, rate: int, per_request: int, seconds: float, **parameters: Any) -> Found:
    """One step a second of so many sequences that the server keeps."""
    ids = [f"{per_request}-{number}" for number in range(rate)]
    for group in groups_of(ids, PER_REQUEST):
        post(server.url + PATH, body(model, group, 10.5, sequence_start=True))
    with tempfile.TemporaryDirectory() as name:
        write_bodies(Path(name) / "bodies", model, ids, per_request, **parameters)
        return run_requests(server, PATH, Path(name) / "bodies", rate / per_request, seconds)


def run_echo(server: Server, model: str, rate: int, per_request: int, seconds: float) -> Found:
    """The requests of `batches`, and answers as long as theirs are with PER_REQUEST."""
    with tempfile.TemporaryDirectory() as name:
        write_bodies(Path(name) / "bodies", model, [f"{number}" for number in range(rate)], per_request)
        return run_requests(server, "/answer", Path(name) / "bodies", rate / per_request, seconds)


# ------------------------------------------------------------------------------------------------------- WebSockets


def run_websockets(server: Server, model: str, rate: int, seconds: float) -> Found:
    """One step a second over each of so many WebSockets, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.sequence_rates", "--websockets-of", server.url, "--model", model]
    command += ["--rates", str(rate), "--seconds", str(seconds)]
    before = cpu_s(server)
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = Found(**json.loads(output))
    return found._replace(server_s=cpu_s(server) - before)


class _Socket(asyncio.Protocol):
    """One WebSocket that is a sequence; messages of the server are not masked, and come one at a time."""

    def __init__(self, number: int, first: bytes, on_answer: Callable[[int, bytes], None]) -> None:
        self._number, self._first, self._on_answer = number, first, on_answer
        self._received = bytearray()
        self.is_open: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # which uvloop's are not by their type
        self.transport.write(upgrade() + self._first)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self.is_open.done():
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            if not self._received.startswith(b"HTTP/1.1 101"):
                self.is_open.set_exception(RuntimeError(bytes(self._received[:100]).decode()))
                return
            del self._received[: end + 4]
            self.is_open.set_result(None)
        while (size := frame_size(self._received)) and size <= len(self._received):
            if self._received[0] & 0x0F == 1:  # a text; the server also sends pings
                self._on_answer(self._number, bytes(self._received[4:20]))
            del self._received[:size]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_open.done():
            self.is_open.set_exception(RuntimeError("closed before it was open"))


def frame_size(received: bytearray) -> int:
    """Bytes of the first frame, with its head; 0 where that has not come."""
    if len(received) < 4:
        return 0
    length = received[1] & 0x7F
    if length < 126:
        return 2 + length
    if length == 126:
        return 4 + int.from_bytes(received[2:4])
    return 10 + int.from_bytes(received[2:10]) if len(received) >= 10 else 0


async def drive_websockets(url: str, model: str, num: int, seconds: float) -> Found:
    """Open them all, then send each a step a second; the steps are evenly spread."""
    parts = urlsplit(url)
    latencies: list[float] = []
    due: dict[int, float] = {}

    def on_answer(number: int, answer: bytes) -> None:
        due_at = due.pop(number, None)
        if due_at is not None and b"prediction" in answer:
            latencies.append(1e3 * (time.monotonic() - due_at))

    loop = asyncio.get_running_loop()
    sockets: list[_Socket] = []
    for first in range(0, num, OPEN_AT_ONCE):
        opened = []
        for number in range(first, min(num, first + OPEN_AT_ONCE)):
            protocol = functools.partial(_Socket, number, text({"model": model}), on_answer)
            _, socket = await loop.create_connection(protocol, parts.hostname or "", parts.port or 80)
            opened.append(socket)
        await asyncio.gather(*(socket.is_open for socket in opened))
        sockets += opened
    step = text({"history": [10.5]})
    num_steps, interval_s = round(seconds * num), 1 / num
    cpu_s, started = time.process_time(), time.monotonic() + 0.1
    sent = late = 0
    while sent < num_steps:
        now = time.monotonic()
        while sent < num_steps and started + sent * interval_s <= now:
            number = sent % num
            if number in due:  # the step before is not answered yet: this one is lost, and counted
                late += 1
            else:
                due[number] = started + sent * interval_s
                sockets[number].transport.write(step)
            sent += 1
        await asyncio.sleep(0.001)
    async with asyncio.timeout(PATIENCE_S):
        while due:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    busy = (time.process_time() - cpu_s) / (time.monotonic() - started)
    for socket in sockets:
        socket.transport.abort()
    p50, p99 = np.percentile(latencies, [50, 99])
    return Found(float(p50), float(p99), late + num_steps - late - len(latencies), 0.0, busy)


# -------------------------------------------------------------------------------------------------------------- all


@contextlib.contextmanager
def echo(answer: bytes) -> Iterator[Server]:
    """A server whose answer to everything at /answer is this one."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "answer").write_bytes(answer)
        port = free_port()
        with running("echo", [sys.executable, "-m", "benchmarks.echo", name, str(port)], port, ready_path="/") as server:
            yield server


def main() -> None:
    ways: dict[str, Callable[[Server, str, int, int, float], Found]] = {
        "batches": run_sequences,
        "next": functools.partial(run_sequences, **NEXT),
        "requests": run_sequences,
        "websockets": lambda server, model, rate, per_request, seconds: run_websockets(server, model, rate, seconds),
        "echo": run_echo,
    }
    alone = ("requests", "websockets")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/sensor-stream", help="the folder of the model")
    parser.add_argument("--ways", nargs="+", choices=ways, default=[*ways])
    parser.add_argument("--rates", nargs="+", type=int, default=RATES, help="steps a second")
    parser.add_argument("--per-request", nargs="+", type=int, default=[PER_REQUEST], help="steps in a request of a gateway")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run")
    parser.add_argument("--workers", type=int, default=NUM_WORKERS)
    parser.add_argument("--websockets-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.websockets_of:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(drive_websockets(options.websockets_of, options.model, options.rates[0], options.seconds))
        print(json.dumps(found._asdict()))
        return
    folder = Path(options.model)
    print(f"{os.cpu_count()} cores")
    heads = ("way", "each", "steps/s", "p50 ms", "p99 ms", "failed", "µs/step", "server", "generator")
    print("{:12} {:>5} {:>8} {:>8} {:>8} {:>7} {:>8} {:>7} {:>10}".format(*heads))
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        shutil.copytree(folder, Path(name) / folder.name)
        server = stack.enter_context(
            sluice(Path(name), SLUICE_WORKERS=str(options.workers), SLUICE_MAX_CONNECTIONS=str(MAX_CONNECTIONS))
        )
        answer = post(
            server.url + PATH, body(folder.name, [f"echo-{number}" for number in range(PER_REQUEST)], 10.5, sequence_start=True)
        )
        for way in options.ways:
            target = stack.enter_context(echo(answer)) if way == "echo" else server
            sizes = [1] if way in alone else options.per_request
            for per_request, rate in itertools.product(sizes, options.rates):
                found = ways[way](target, folder.name, rate, per_request, options.seconds)
                step_us = 1e6 * found.server_s / (rate * options.seconds)
                print(
                    f"{way:12} {per_request:5} {rate:8} {found.p50_ms:8.1f} {found.p99_ms:8.1f} {found.num_failed:7} "
                    f"{step_us:8.0f} {step_us * rate / 1e6:7.2f} {found.generator:10.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
