"""The spans of requests: of the whole app, in the exporter in memory, and of two workers, at a collector."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from tests.folders import write_forecast_folder
from tests.serving import PATIENCE_S, ROOT, lifespan, server_process, wait_until

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service.observability.tracing import Tracing

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = {"parse", "encode", "queue", "run", "decode", "write"}
BODY = {"instances": [{"history": [1, 2, 3]}]}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_forecast_folder(tmp_path)
    return tmp_path


@contextlib.asynccontextmanager
async def traced(models: Path, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, InMemorySpanExporter]]:
    """A client of the whole app, whose spans are kept in memory."""
    exporter, ready = InMemorySpanExporter(), asyncio.Event()
    app = create_app(
        Settings(models=models, device="cpu", num_threads=1, **settings),
        tracing=Tracing(lambda: SimpleSpanProcessor(exporter)),
        on_loaded=lambda _: ready.set(),
    )
    async with lifespan(app):
        await asyncio.wait_for(ready.wait(), PATIENCE_S)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://sluice") as client:
            yield client, exporter


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


def ids_of(span: ReadableSpan) -> tuple[str, str]:
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def attributes_of(span: ReadableSpan) -> Mapping[str, Any]:
    assert span.attributes is not None
    return span.attributes


async def test_a_request_has_a_server_span_with_a_span_of_each_stage(models: Path) -> None:
    async with traced(models) as (client, exporter):
        answer = await client.post("/predict/forecast", json=BODY)
    (span,) = named(exporter, "POST /predict/forecast")
    assert span.kind == SpanKind.SERVER
    assert span.parent is None
    assert (
        attributes_of(span).items()
        >= {
            "http.request.method": "POST",
            "http.route": "/predict/forecast",
            "http.response.status_code": 200,
            "url.path": "/predict/forecast",
            "url.scheme": "http",
            "sluice.model": "toy-forecast",
            "sluice.rows": 1,
            "sluice.request_id": answer.headers["x-request-id"],
        }.items()
    )
    trace_id, span_id = ids_of(span)
    assert trace_id == answer.headers["x-request-id"], "one id finds log lines and spans"
    assert answer.headers["traceparent"] == f"00-{trace_id}-{span_id}-01"
    children = {each.name: each for each in exporter.get_finished_spans() if each is not span}
    assert children.keys() == STAGES | {"batch"}
    for child in children.values():
        assert child.parent is not None
        assert child.parent.span_id == int(span_id, 16)
        assert child.start_time is not None
        assert child.end_time is not None
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= child.start_time <= child.end_time <= span.end_time
    assert span.resource.attributes["service.name"] == "sluice"


async def test_the_span_of_a_batch_links_to_its_requests_and_they_to_it(models: Path) -> None:
    async with traced(models, max_queue_delay_ms=50) as (client, exporter):
        await asyncio.gather(*(client.post("/predict/forecast", json=BODY) for _ in range(6)))
    requests = named(exporter, "POST /predict/forecast")
    batches = named(exporter, "batch")
    assert len(requests) == 6
    assert len(batches) < 6, "some shared a batch"
    assert sum(attributes_of(batch)["sluice.batch.rows"] for batch in batches) == 6
    linked = sorted((link.context.trace_id, link.context.span_id) for batch in batches for link in batch.links)
    assert linked == sorted((span.context.trace_id, span.context.span_id) for span in requests if span.context is not None)
    by_batch = Counter(link.context.span_id for run in named(exporter, "run") for link in run.links)
    assert by_batch == {batch.context.span_id: len(batch.links) for batch in batches if batch.context is not None}


async def test_a_trace_that_came_is_continued_and_its_sampling_kept(models: Path) -> None:
    async with traced(models) as (client, exporter):
        headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "a=1"}
        kept = await client.post("/predict/forecast", json=BODY, headers=headers)
        headers["traceparent"] = f"00-{TRACE}-{SPAN}-00"
        dropped = await client.post("/predict/forecast", json=BODY, headers=headers)
    (span,) = named(exporter, "POST /predict/forecast")
    assert span.parent is not None
    assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}", span.parent.is_remote) == (TRACE, SPAN, True)
    assert dict(span.parent.trace_state) == {"a": "1"}
    assert kept.headers["traceparent"] == "00-{}-{}-01".format(*ids_of(span))
    assert dropped.headers["traceparent"].startswith(f"00-{TRACE}-")
    assert dropped.headers["traceparent"].endswith("-00")


async def test_what_is_refused_or_fails_has_a_span_too(models: Path) -> None:
    async with traced(models) as (client, exporter):
        await client.post("/predict/forecast", content=b"{")
        await client.post("/predict/forecast", json=BODY, headers={"x-request-timeout-ms": "0"})
        await client.get("/nothing/%0a" + "x" * 1000)
        await client.request("BREW", "/models")
        await client.get("/health/live")
    invalid, refused = named(exporter, "POST /predict/forecast")
    assert attributes_of(invalid)["http.response.status_code"] == attributes_of(refused)["http.response.status_code"] == 400
    (unknown,) = named(exporter, "GET")
    assert "http.route" not in attributes_of(unknown)
    assert len(attributes_of(unknown)["url.path"]) <= 256
    (brewed,) = named(exporter, "_OTHER /models")
    assert attributes_of(brewed)["http.request.method_original"] == "BREW"
    (live,) = named(exporter, "GET /health/live")
    assert live.status.status_code == StatusCode.UNSET


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"\0\r\n\r\n", 400, id="no HTTP"),
        pytest.param(b"GET /%s HTTP/1.1\r\n\r\n" % (b"a" * 10_000), 414, id="a long URL"),
        pytest.param(b"GET / HTTP/1.1\r\nX: %s\r\n\r\n" % (b"a" * 70_000), 431, id="a large head"),
    ],
)
def test_what_is_refused_before_it_is_read_has_a_span_with_the_ids_of_its_answer(
    models: Path, collector: tuple[str, list[ExportTraceServiceRequest]], sent: bytes, status: int
) -> None:
    url, received = collector
    environ: dict[str, Any] = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with server_process(models, SLUICE_TRACING="true", **environ) as server:
        found = urlsplit(server.url)
        with (
            socket.create_connection((found.hostname, found.port), PATIENCE_S) as connection,
            connection.makefile("rb") as answer,
        ):
            connection.sendall(sent)
            head = answer.read().partition(b"\r\n\r\n")[0].decode()
        assert head.startswith(f"HTTP/1.1 {status} ")
        assert server.end() == 0
    (parent,) = re.findall(r"^traceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-01\r?$", head, re.MULTILINE)
    (span,) = [
        span
        for export in received
        for resource in export.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
        if span.name == "_OTHER"
    ]
    assert (span.trace_id.hex(), span.span_id.hex()) == parent
    attributes = {each.key: each.value for each in span.attributes}
    assert attributes["http.response.status_code"].int_value == status
    assert f"x-request-id: {attributes['sluice.request_id'].string_value}" in head


async def test_a_failure_of_the_server_is_an_error_of_its_span(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    (tmp_path / "toy-forecast" / "1" / "manifest.json").write_text("{}")
    async with traced(tmp_path) as (client, exporter):
        assert (await client.post("/predict", json={"model": "toy-forecast", **BODY})).status_code == 503
    (span,) = named(exporter, "POST /predict")
    assert span.status.status_code == StatusCode.ERROR
    assert attributes_of(span)["error.type"] == "503"


async def test_a_sampler_of_the_environment_decides(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    async with traced(models) as (client, exporter):
        for _ in range(100):
            await client.get("/health/live")
    # The ids that the server makes are spread evenly, so that the ratio holds for few of them.
    assert 20 <= len(named(exporter, "GET /health/live")) <= 30


async def test_without_spans_nothing_is_timed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with traced(models) as (client, exporter):
        answer = await client.post("/predict/forecast", json=BODY)
    assert not exporter.get_finished_spans()
    assert answer.headers["traceparent"].endswith("-00")


class Collector(BaseHTTPRequestHandler):
    """A collector's endpoint for traces, as far as OTLP over HTTP needs one."""

    received: list[ExportTraceServiceRequest]

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        content = self.rfile.read(int(self.headers["content-length"]))
        self.received.append(ExportTraceServiceRequest.FromString(content))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    received: list[ExportTraceServiceRequest] = []
    handler = type("Handler", (Collector,), {"received": received})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_collector_gets_the_spans_of_every_worker(models: Path, collector: tuple[str, list[ExportTraceServiceRequest]]) -> None:
    url, received = collector
    environ: dict[str, Any] = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_SERVICE_NAME": "mine"}
    ids = set()

    def requests_of(name: str) -> dict[str, Any]:
        return {
            span.trace_id.hex(): {each.key: each.value for each in resource.resource.attributes}
            for export in list(received)
            for resource in export.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if span.name == name
        }

    with server_process(models, SLUICE_WORKERS="2", SLUICE_NUM_THREADS="1", SLUICE_TRACING="true", **environ) as server:
        for _ in range(20):  # a connection each, so that both workers get some
            answer = httpx.post(f"{server.url}/predict/forecast", json=BODY, timeout=30)
            assert answer.status_code == 200
            ids.add(answer.headers["traceparent"][3:35])
        wait_until(lambda: requests_of("POST /predict/forecast").keys() == ids, "every span arrives")
        last = httpx.post(f"{server.url}/predict/forecast", json=BODY, timeout=30).headers["traceparent"][3:35]
        assert server.end() == 0
    found = requests_of("POST /predict/forecast")
    assert last in found, "what waited was sent at the end"
    assert {attributes["service.name"].string_value for attributes in found.values()} == {"mine"}
    assert len({trace_id[:16] for trace_id in found}) == 2, "both workers sent spans"
    assert requests_of("batch").keys() <= found.keys()


def test_a_server_whose_collector_is_gone_answers_and_ends(models: Path) -> None:
    environ: dict[str, Any] = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with server_process(models, SLUICE_TRACING="true", **environ) as server:
        for _ in range(5):
            assert httpx.post(f"{server.url}/predict/forecast", json=BODY, timeout=30).status_code == 200
        assert server.end() == 0


def test_without_the_extra_the_server_does_not_start_and_names_it(models: Path) -> None:
    # FastAPI brings the API of OpenTelemetry, so it is the SDK that is missing.
    code = "import sys; sys.modules['opentelemetry.sdk'] = None; from service.__main__ import main; sys.exit(main([]))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"SLUICE_MODELS": str(models), "SLUICE_PORT": "0", "SLUICE_DEVICE": "cpu", "SLUICE_TRACING": "true"},
    )
    assert found.returncode == 3
    assert "SLUICE_TRACING" in found.stderr
    assert "pip install 'sluice-serving[otel]'" in found.stderr
