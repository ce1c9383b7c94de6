"""What Python does for one request of two checkouts, in turns: without sockets, and with the graph's outputs from memory.

    python -m benchmarks.in_process --before ../before
    python -m benchmarks.in_process --before ../before --connections 1 --rounds 100

Each checkout runs in a process of its own: the server's app and protocol, on connections that answer at once. Both compute a
block of requests in turn, so that what else the machine does disturbs both alike. The table shows the first quartile of the
rounds' processor times, and the median of their ratios with its quartiles. Beside it stands a second process of `--before`: its
ratio shows the noise, for two processes of one version may differ by a few hundredths, and on a busy machine by more.

Blind to what sockets, the kernel and the graph cost: `before_after.py` measures all of it, less exactly.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL = "forecast-hourly"
NUM_BODIES = 100
READY_TIMEOUT_S = 60.0
# Not what is compared, and not to be measured anew by each process.
SETTINGS = {"device": "cpu", "workers": 1, "max_batch_size": 32, "max_padded_steps": 100_000, "request_timeout_ms": 3_600_000}


class Connection(asyncio.Transport):
    """A connection whose client sends its next request when the answer has come."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client = client
        self.protocol: Any = None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": ("127.0.0.1", 8000), "peername": ("127.0.0.1", 50_000)}.get(name, default)

    def write(self, data: Any) -> None:
        self.client.receive(self, data)

    def writelines(self, parts: Any) -> None:
        self.client.receive(self, b"".join(parts))

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        raise RuntimeError("the server closed the connection")

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


class Client:
    """Sends a number of requests over all connections, the next on each when it has the answer."""

    def __init__(self, requests: Sequence[bytes]) -> None:
        self._requests = requests
        self._loop = asyncio.get_running_loop()
        self._num_left = self._num_pending = 0
        self._done: asyncio.Future[None] = self._loop.create_future()

    async def run(self, connections: Sequence[Connection], number: int) -> None:
        """Send `number` requests. Raises RuntimeError for an answer that is not 200."""
        self._num_left, self._done = number, self._loop.create_future()
        for connection in connections:
            self._loop.call_soon(self._send, connection)
        await self._done

    def receive(self, connection: Connection, data: bytes) -> None:
        self._num_pending -= 1
        if not data.startswith(b"HTTP/1.1 200 "):
            if not self._done.done():
                self._done.set_exception(RuntimeError(f"expected 200, got {data[:300]!r}"))
        elif self._num_left:
            self._loop.call_soon(self._send, connection)
        elif not self._num_pending and not self._done.done():
            self._done.set_result(None)

    def _send(self, connection: Connection) -> None:
        if self._num_left:
            self._num_left -= 1
            self._num_pending += 1
            connection.protocol.data_received(self._requests[self._num_left % len(self._requests)])


async def serve(num_connections: int, num_requests: int) -> None:
    """Compute one block of requests for each line of the input, and print its processor time per request in µs."""
    app = _module("service.app").create_app(_module("service.settings").Settings(models=Path("models"), **SETTINGS))
    received: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    received.put_nowait({"type": "lifespan.startup"})
    has_started = asyncio.Event()

    async def send(_: object) -> None:
        has_started.set()

    lifespan = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, received.get, send))
    await has_started.wait()
    client = Client([_request(seed) for seed in range(NUM_BODIES)])
    connections = _connect(app, client, num_connections)
    # Of all models: what is loaded beside would count as time of the requests.
    probe = Client([b"HEAD /health/ready HTTP/1.1\r\nHost: localhost:8000\r\n\r\n"])
    await _await_models(probe, _connect(app, probe, 1))
    _keep_outputs()
    await client.run(connections, 4 * num_requests)
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000)  # as the server does
    print("ready", flush=True)
    for _ in sys.stdin:
        started_s = time.process_time()
        await client.run(connections, num_requests)
        print(1e6 * (time.process_time() - started_s) / num_requests, flush=True)
    lifespan.cancel()
    os._exit(0)  # threads that wait for batches would keep the process


def _connect(app: Any, client: Client, number: int) -> list[Connection]:
    import uvicorn
    from uvicorn.server import ServerState

    try:
        protocol = _module("service.api.fast_path").FastPathProtocol
    except ImportError:  # before 0.2.0
        protocol = _module("service.protocol").Protocol
    config = uvicorn.Config(
        app, http=protocol, log_config=None, access_log=False, proxy_headers=False, lifespan="off", timeout_keep_alive=3600
    )
    config.load()
    state = ServerState()
    connections = []
    for _ in range(number):
        connection = Connection(client)
        connection.protocol = protocol(config=config, server_state=state, app_state={})
        connection.protocol.connection_made(connection)
        connections.append(connection)
    return connections


async def _await_models(client: Client, connections: Sequence[Connection]) -> None:
    ends_at = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            await client.run(connections, 1)
            return
        except RuntimeError:
            if time.monotonic() > ends_at:
                raise
            await asyncio.sleep(0.1)


def _keep_outputs() -> None:
    """Run the graph once for each shape, and then give the same outputs."""
    try:
        runtime = _module("service.runtime.onnx_runtime").OnnxRuntime
    except ImportError:  # before 0.2.0
        runtime = _module("service.runtime").OnnxRuntime
    run, kept = runtime.run, dict[object, Any]()

    def run_once(self: Any, tensors: Any) -> Any:
        key = id(self), next(iter(tensors.values())).shape
        if key not in kept:
            kept[key] = run(self, tensors)
        return kept[key]

    runtime.run = run_once


def _request(seed: int) -> bytes:
    draw = random.Random(seed)
    history = [round(draw.gauss(100, 20), 2) for _ in range(336)]
    body = json.dumps({"model": MODEL, "instances": [{"history": history}]}).encode()
    head = "POST /predict HTTP/1.1\r\nHost: localhost:8000\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    return head.format(len(body)).encode() + body


def _module(name: str) -> Any:
    """A module of the checkout that this process serves."""
    return importlib.import_module(name)


def compare(checkouts: Sequence[Path], num_connections: int, rounds: int, num_requests: int) -> list[list[float]]:
    """The processor time per request in µs, of each checkout and round."""
    processes = [_start(checkout, num_connections, num_requests) for checkout in checkouts]
    try:
        for process in processes:
            _read(process, "ready")
        times: list[list[float]] = [[] for _ in checkouts]
        for number in range(rounds):
            for place in range(len(processes)):
                index = (place + number) % len(processes)
                process = processes[index]
                assert process.stdin is not None
                process.stdin.write("next\n")
                process.stdin.flush()
                times[index].append(float(_read(process)))
        return times
    finally:
        for process in processes:
            process.kill()
            with process:  # closes the pipes, and waits for the end
                pass


def _start(checkout: Path, num_connections: int, num_requests: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).resolve()), "--serve", str(num_connections), str(num_requests)]
    # The same order of dictionaries and sets in all of them.
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONHASHSEED": "0", "ORT_DISABLE_TELEMETRY": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=checkout, env=environment, stdin=pipe, stdout=pipe, text=True)


def _read(process: subprocess.Popen[str], expected: str = "") -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if not expected or line.strip() == expected:
            return line.strip()
    raise SystemExit(f"a server ended with status {process.wait()}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.in_process", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="another checkout of Sluice")
    parser.add_argument("--after", type=Path, default=ROOT, help="default: this checkout")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 64], help="default: 1 64")
    parser.add_argument("--rounds", type=int, default=60, help="default: 60")
    parser.add_argument("--requests", type=int, default=320, help="of one block, default: 320")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Measure, and print the table."""
    options = _parser().parse_args(arguments)
    before, after = options.before.resolve(), options.after.resolve()
    print("| connections | before, µs | after, µs | after / before | before once more / before |\n|---:|---:|---:|---:|---:|")
    for connections in options.connections:
        first, second, third = compare([before, after, before], connections, options.rounds, options.requests)
        cells = [
            f"{statistics.median(first):.1f}",
            f"{statistics.median(second):.1f}",
            _ratio(second, first),
            _ratio(third, first),
        ]
        print(f"| {connections} | {' | '.join(cells)} |", flush=True)


def _ratio(times: Sequence[float], before: Sequence[float]) -> str:
    low, median, high = statistics.quantiles([mine / theirs for mine, theirs in zip(times, before, strict=True)])
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        import uvloop

        sys.path.remove(str(Path(__file__).resolve().parent))
        uvloop.run(serve(int(sys.argv[2]), int(sys.argv[3])))
    else:
        main(sys.argv[1:])
