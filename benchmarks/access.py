"""What access and observing cost a request: keys, rates, CORS, ids, access log and tracing, each by itself, in this process.

    python -m benchmarks.access

Each line is the best of several turns for a request to predict with six headers and its key, less what no hook costs; threads
that write or send are part of it. Without sockets and batches, so that it tells more exactly than `benchmarks.hooks` what is
added, and less what it means for a server. The clocks that a timed request reads in the endpoint and the batcher are not in it.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import timeit
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.api.access.addresses import ClientAddresses
from service.api.access.keys import describe_entry, new_key
from service.api.access.wiring import AccessOptions, make_rate_tables, open_access
from service.api.access_log import AccessLog
from service.api.request import AsgiRequest, Headers, HttpRequest
from service.api.request_ids import add_ids, identify, new_context
from service.context import CURRENT, RequestContext, StageName, Timing
from service.errors import RateScope
from service.observability.access_log import AccessLogWriter, Times
from service.observability.tracing import Tracing

NUM_KEYS = 100
# Never reached: what is measured is a request that passes.
RATE = "900000000/s"
STAGES: tuple[StageName, ...] = get_args(StageName)
NUM_REQUESTS, TURNS, REPEATS = 1000, 20, 9
HEADERS: Headers = [
    (b"host", b"localhost:8000"),
    (b"user-agent", b"python-httpx/0.28.1"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"content-type", b"application/json"),
    (b"content-length", b"2048"),
]


class SilentObserver:
    """Counts nothing."""

    def rate_limited(self, scope: RateScope, key: str) -> None:
        raise AssertionError("the rate was reached")


async def _receive() -> dict[str, object]:
    raise AssertionError("the body was read")


def request(*headers: tuple[bytes, bytes]) -> HttpRequest:
    """The head of a request to predict."""
    scope = {"method": "POST", "path": "/predict", "headers": [*HEADERS, *headers], "client": ("203.0.113.9", 4711)}
    made = AsgiRequest(scope, _receive)
    made.route = "/predict"
    return made


def cost_us(options: AccessOptions, *headers: tuple[bytes, bytes]) -> float:
    """Microseconds of one request; rates are counted in tables that workers share."""
    hooks = open_access(options, SilentObserver(), make_rate_tables(options, multiprocessing.get_context("fork"))).hooks
    requests = [request(*headers) for _ in range(NUM_REQUESTS)]

    def run() -> None:
        for each in requests:
            added: Headers = []
            for hook in hooks:
                hook.before(each)
            for hook in hooks:
                hook.after(each, added)
            for hook in hooks:
                hook.finished(each)

    return min(timeit.repeat(run, number=TURNS, repeat=REPEATS)) / (TURNS * NUM_REQUESTS) * 1e6


def identification_us() -> float:
    """Microseconds to make the ids of one request, to make them known to log lines, and to add them to the answer."""
    requests = [request() for _ in range(NUM_REQUESTS)]

    def run() -> None:
        for each in requests:
            context = identify(each.headers)
            CURRENT.set(context)
            add_ids(context, [])

    return min(timeit.repeat(run, number=TURNS, repeat=REPEATS)) / (TURNS * NUM_REQUESTS) * 1e6


def timed_us(
    begin: Callable[[HttpRequest, RequestContext], None], finish: Callable[[HttpRequest, RequestContext], None]
) -> float:
    """Microseconds of what is called at the begin and at the end of a request whose stages are kept, and of keeping them."""
    requests = []
    for _ in range(NUM_REQUESTS):
        made = request()
        made.status, made.response_bytes, made.duration_s, made.started_at = 200, 4000, 0.005, time.monotonic()
        made.num_instances = 1
        made.context = new_context()
        requests.append((made, made.context))

    def run() -> None:
        for each, context in requests:
            timing = context.timing = Timing()
            begin(each, context)
            timing.model, timing.version = "forecast-hourly", "1"
            for stage in STAGES:
                timing.add(stage, 1.0, 1.0001)
            finish(each, context)

    return min(timeit.repeat(run, number=TURNS, repeat=REPEATS)) / (TURNS * NUM_REQUESTS) * 1e6


def access_log_us(form: Literal["text", "json"]) -> float:
    """Microseconds of one line, written to nowhere."""
    with open(os.devnull, "wb") as nowhere:
        writer = AccessLogWriter(form, lambda _: None, descriptor=nowhere.fileno(), max_lines=10**9)
        writer.start()
        log = AccessLog(writer.put, ClientAddresses(), Times().text)
        found = timed_us(lambda *_: None, lambda each, _: log.finished(each))
        writer.stop(60)
    return found


def tracing_us(ratio: float) -> float:
    """Microseconds of one request with this share of them sampled; the spans go nowhere."""
    tracing = Tracing(lambda: BatchSpanProcessor(InMemorySpanExporter(max_spans=1)))
    os.environ |= {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": str(ratio)}
    tracing.open()
    found = timed_us(tracing.start, tracing.finish)
    tracing.close(60)
    return found


def costs(keys_file: Path, key: str) -> Sequence[tuple[str, float]]:
    """What is switched on → its microseconds."""
    credential = (b"authorization", b"Bearer " + key.encode())
    nothing = cost_us(AccessOptions())
    cases = {
        f"{NUM_KEYS} keys": (AccessOptions(keys_file=keys_file), [credential]),
        f"{NUM_KEYS} keys with rates": (AccessOptions(keys_file=keys_file, rate_limit=RATE), [credential]),
        "rates by address": (AccessOptions(rate_limit=RATE), []),
        "rates by address behind a trusted proxy": (
            AccessOptions(rate_limit=RATE, trusted_proxies="203.0.113.0/24"),
            [(b"x-forwarded-for", b"198.51.100.7")],
        ),
        "CORS": (AccessOptions(cors_origins="https://app.example.com"), [(b"origin", b"https://app.example.com")]),
    }
    return [
        *((name, cost_us(options, *headers) - nothing) for name, (options, headers) in cases.items()),
        ("request ids", identification_us()),
        ("access log, JSON", access_log_us("json")),
        ("access log, text", access_log_us("text")),
        ("tracing, one request in a hundred", tracing_us(0.01)),
        ("tracing, every request", tracing_us(1.0)),
    ]


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.toml"
        keys = [new_key() for _ in range(NUM_KEYS)]
        file.write_text("".join(describe_entry(key, f"name-{number}", scopes=["predict"]) for number, key in enumerate(keys)))
        for name, found_us in costs(file, keys[0]):
            print(f"{found_us:6.2f} µs  {name}")


if __name__ == "__main__":
    main()
