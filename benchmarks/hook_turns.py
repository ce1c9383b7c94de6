"""What the hooks around a request cost, in turns within one process: no sockets, and little that noise could hide in.

    python -m benchmarks.hook_turns --seconds 60

An app for each set of hooks has `forecast-hourly`; 64 requests at a time go through its gateway, and the apps take turns. Shown
is the processor time per request, of the graph too: the median, the least turn and the tenth percentile, which other work on
the machine disturbs least. The spans of tracing go nowhere, through the SDK's batch processor.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvloop
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from benchmarks.hooks import CASE, PATH
from benchmarks.servers import ROOT
from benchmarks.workloads import draw_requests
from service.api.access.keys import describe_entry, new_key
from service.api.gateway import Gateway
from service.api.request import AsgiRequest
from service.app import create_app
from service.observability.tracing import Tracing
from service.server import GC_THRESHOLDS
from service.settings import Settings
from tests.serving import lifespan

BATCHES_PER_TURN = 2
# So that a turn in which the machine is busy is slow, and not refused.
PATIENCE: dict[str, Any] = {"request_timeout_ms": 600_000.0, "max_queue_size": 100_000}


def make_app(settings: dict[str, Any], ratio: str | None) -> tuple[Gateway, asyncio.Event]:
    """An app and when it is ready; `ratio` is the share of requests whose spans are kept, None without tracing."""
    ready, tracing = asyncio.Event(), None
    if ratio is not None:
        os.environ |= {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": ratio}
        tracing = Tracing(lambda: BatchSpanProcessor(InMemorySpanExporter(max_spans=1)))
    models = Settings(models=ROOT / "models", device="cpu", num_threads=1, **PATIENCE, **settings)
    return create_app(models, tracing=tracing, on_loaded=lambda _: ready.set()), ready


async def predict(app: Gateway, body: bytes, key: str) -> None:
    """One request through the gateway."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"authorization", b"Bearer " + key.encode())]
    headers.append((b"content-length", b"%d" % len(body)))
    scope = {"method": "POST", "path": PATH, "headers": headers, "client": ("127.0.0.1", 4711), "server": ("127.0.0.1", 8000)}
    answer = await app.answer(AsgiRequest(scope, receive))
    assert answer is not None
    assert answer.status == 200, answer.body


async def take_turn(app: Gateway, bodies: Iterator[bytes], key: str) -> float:
    """Microseconds of processor time per request."""
    started = time.process_time()
    for _ in range(BATCHES_PER_TURN):
        await asyncio.gather(*(asyncio.create_task(predict(app, next(bodies), key)) for _ in range(CASE.connections)))
    return 1e6 * (time.process_time() - started) / (BATCHES_PER_TURN * CASE.connections)


async def measure(seconds: float) -> dict[str, list[float]]:
    """Hooks → the turns of their app."""
    key = new_key()
    bodies = itertools.cycle([json.dumps({"model": CASE.model, "instances": each}).encode() for each in draw_requests(CASE)])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.toml"
        file.write_text(describe_entry(key, "name", scopes=["predict"]))
        keyed = {"api_keys_file": file}
        specs: dict[str, tuple[dict[str, Any], str | None]] = {
            "request ids (the default)": ({}, None),
            "request ids, keys": (keyed, None),
            "request ids, keys, access log (JSON)": ({**keyed, "access_log": "json"}, None),
            "request ids, keys, access log (text)": ({**keyed, "access_log": "text"}, None),
            "tracing, one request in a hundred": ({}, "0.01"),
            "tracing, every request": ({}, "1.0"),
        }
        async with contextlib.AsyncExitStack() as stack:
            apps: dict[str, Gateway] = {}
            for name, (settings, ratio) in specs.items():
                apps[name], ready = make_app(settings, ratio)
                await stack.enter_async_context(lifespan(apps[name]))
                await ready.wait()
                await take_turn(apps[name], bodies, key)
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            found: dict[str, list[float]] = {name: [] for name in apps}
            names, ends_at = list(apps), time.monotonic() + seconds
            while time.monotonic() < ends_at or len(found[names[0]]) < 2:
                names.append(names.pop(0))
                for name in names:
                    found[name].append(await take_turn(apps[name], bodies, key))
    return found


@contextlib.contextmanager
def without_output() -> Iterator[None]:
    """The access log goes to standard output: to nowhere meanwhile."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(nowhere)
        os.close(kept)


def main(arguments: Sequence[str]) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hook_turns", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args(arguments)
    with without_output():
        found = uvloop.run(measure(options.seconds))
    print("| hooks | median, µs | least | tenth percentile |\n|---|---:|---:|---:|")
    for name, turns in found.items():
        print(f"| {name} | {statistics.median(turns):.0f} | {min(turns):.0f} | {statistics.quantiles(turns, n=10)[0]:.0f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
