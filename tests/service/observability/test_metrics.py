"""What is counted, under which name, and how it reads."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx
import pytest

from service.observability.meters import INVALID_REASONS, OUTCOMES
from service.observability.metrics import Metrics
from service.observability.prometheus import RESTART_REASONS
from tests.folders import write_forecast_folder, write_text_folder
from tests.serving import PATIENCE_S, ROOT, client_of

Samples = Mapping[str, float]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_forecast_folder(folder)
    write_text_folder(folder)
    (write_text_folder(folder, "broken") / "model.onnx").write_bytes(b"nothing")
    return folder


@pytest.fixture
async def client(models: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(models, max_queue_size=77) as client:
        yield client


def read(text: str) -> Samples:
    """Sample → value, names and labels as they are written."""
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


async def scrape(client: httpx.AsyncClient) -> Samples:
    return read((await client.get("/metrics")).text)


def changed(before: Samples, after: Samples, name: str) -> dict[str, float]:
    """Which series of one metric moved, and by how much."""
    return {key: after[key] - before.get(key, 0) for key in after if key.startswith(name) and after[key] != before.get(key, 0)}


TOY = '{model="toy-forecast",version="1"}'


async def test_known_series_are_there_before_anything_happened(client: httpx.AsyncClient) -> None:
    samples = await scrape(client)
    for outcome in OUTCOMES:
        for model, version in (("toy-forecast", "1"), ("_unknown", "_unknown")):
            labels = f'{{api="predict",model="{model}",outcome="{outcome}",version="{version}"}}'
            assert samples[f"sluice_inference_requests_total{labels}"] == 0
    for reason in INVALID_REASONS:
        assert samples[f'sluice_invalid_inputs_total{{model="toy-forecast",reason="{reason}",version="1"}}'] == 0
    for restart in RESTART_REASONS:
        assert samples[f'sluice_worker_restarts_total{{reason="{restart}"}}'] == 0
    for name in ("inference_rows_total", "inference_timesteps_total", "batch_executions_total", "queue_depth_rows"):
        assert samples[f"sluice_{name}{TOY}"] == 0
    assert samples[f"sluice_queue_capacity_rows{TOY}"] == 77
    assert samples[f"sluice_batch_limit_rows{TOY}"] >= 1
    assert samples[f"sluice_batch_limit_padded_steps{TOY}"] >= 1
    # Seconds, as every duration: a run of the toy takes far less than a tenth of one.
    costs = [samples[f"sluice_batch_cost_{part}_seconds{TOY}"] for part in ("overhead", "row", "step", "row_step")]
    assert 0 < sum(costs) < 0.1
    assert samples[f"sluice_model_last_inference_timestamp_seconds{TOY}"] == 0


async def test_one_request_is_counted_once_everywhere(client: httpx.AsyncClient) -> None:
    before = await scrape(client)
    body = {"instances": [{"history": [1, 2, 3]}, {"history": [1, 2, 3, 4, 5]}]}
    answer = await client.post("/predict/forecast", json=body)
    assert answer.status_code == 200
    after = await scrape(client)
    route = 'route="/predict/forecast"'
    assert (
        changed(before, after, "sluice_http_requests_total")[f'sluice_http_requests_total{{method="POST",{route},status="200"}}']
        == 1
    )
    assert after[f'sluice_http_request_duration_seconds_count{{method="POST",{route}}}'] == 1
    assert after[f"sluice_http_request_size_bytes_sum{{{route}}}"] == len(answer.request.content)
    assert after[f"sluice_http_response_size_bytes_sum{{{route}}}"] == len(answer.content)
    assert after[f"sluice_http_requests_in_flight{{{route}}}"] == 0
    assert changed(before, after, "sluice_inference_requests_total") == {
        'sluice_inference_requests_total{api="predict",model="toy-forecast",outcome="ok",version="1"}': 1
    }
    assert after[f"sluice_inference_rows_total{TOY}"] == 2
    assert after[f"sluice_inference_timesteps_total{TOY}"] == 8
    for name in ("inference_request", "inference_preprocess", "inference_postprocess"):
        assert after[f"sluice_{name}_duration_seconds_count{TOY}"] == 1
    num_batches = after[f"sluice_batch_executions_total{TOY}"]
    assert num_batches >= 1
    assert after[f"sluice_batch_size_rows_count{TOY}"] == num_batches
    assert after[f"sluice_batch_size_rows_sum{TOY}"] == 2
    assert after[f"sluice_batch_padding_ratio_count{TOY}"] == num_batches
    provider = 'provider="CPUExecutionProvider"'
    assert after[f'sluice_inference_compute_duration_seconds_count{{model="toy-forecast",{provider},version="1"}}'] == num_batches
    assert after[f"sluice_inference_queue_duration_seconds_count{TOY}"] >= num_batches
    assert after[f"sluice_model_last_inference_timestamp_seconds{TOY}"] > 1e9
    assert after[f"sluice_queue_depth_rows{TOY}"] == 0


@pytest.mark.parametrize(
    ("content", "model", "reason"),
    [
        (b"{", "_unknown", "json"),
        (b'{"instances": [{"history": [NaN]}]}', "_unknown", "nonfinite"),
        (b'{"model": "toy-forecast", "instances": [{"history": [1]}]}', "toy-forecast", "length"),
        (b'{"instances": [' + b"1," * 10_000 + b"1]}", "_unknown", "payload"),
    ],
)
async def test_what_was_wrong_with_a_request_is_counted(
    client: httpx.AsyncClient, content: bytes, model: str, reason: str
) -> None:
    before = await scrape(client)
    answer = await client.post("/predict/forecast", content=content)
    assert answer.status_code in (400, 413, 422)
    after = await scrape(client)
    version = "1" if model == "toy-forecast" else "_unknown"
    assert changed(before, after, "sluice_invalid_inputs_total") == {
        f'sluice_invalid_inputs_total{{model="{model}",reason="{reason}",version="{version}"}}': 1
    }
    assert changed(before, after, "sluice_inference_requests_total") == {
        f'sluice_inference_requests_total{{api="predict",model="{model}",outcome="invalid",version="{version}"}}': 1
    }


async def test_what_a_client_makes_up_is_no_label(client: httpx.AsyncClient) -> None:
    before = await scrape(client)
    await client.get("/made/up")
    await client.request("BREW", "/models")
    await client.post("/predict", json={"model": "made-up", "instances": [1]})
    await client.get("/models/made-up")
    after = await scrape(client)
    assert not [key for key in after if "made" in key or "BREW" in key]
    assert changed(before, after, "sluice_http_requests_total") == {
        'sluice_http_requests_total{method="GET",route="_unknown",status="404"}': 1,
        'sluice_http_requests_total{method="_other",route="/models",status="405"}': 1,
        'sluice_http_requests_total{method="POST",route="/predict",status="404"}': 1,
        'sluice_http_requests_total{method="GET",route="/models/{name}",status="404"}': 1,
        'sluice_http_requests_total{method="GET",route="/metrics",status="200"}': 1,
    }


async def test_models_tell_what_they_are_and_whether_they_are_ready(client: httpx.AsyncClient) -> None:
    text = (await client.get("/metrics")).text
    samples = read(text)
    assert samples[f"sluice_model_ready{TOY}"] == 1
    assert samples['sluice_model_ready{model="broken",version="1"}'] == 0
    assert samples['sluice_model_loads_total{model="broken",outcome="error",version="1"}'] == 1
    assert samples['sluice_model_loads_total{model="toy-forecast",outcome="ok",version="1"}'] == 1
    assert samples[f"sluice_model_load_duration_seconds{TOY}"] > 0
    (info,) = re.findall(r"sluice_model_info\{(.*toy-forecast.*)\} 1.0", text)
    assert re.fullmatch(
        r'horizon="4",model="toy-forecast",opset="\d+",precision="fp32",provider="CPUExecutionProvider",'
        r'sha256="[0-9a-f]{64}",task="forecast",version="1"',
        info,
    )
    assert re.search(r'sluice_build_info\{onnxruntime="\S+",python="3\.\S+",version="\S+"\} 1.0', text)
    assert samples["process_resident_memory_bytes"] > 1e7


async def test_a_scraper_gets_the_format_it_asks_for(client: httpx.AsyncClient) -> None:
    plain = await client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    open_metrics = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
    assert open_metrics.text.endswith("# EOF\n")


async def test_with_a_port_of_their_own_metrics_are_nowhere_else(models: Path) -> None:
    async with client_of(models, metrics_port=9100) as client:
        assert (await client.get("/metrics")).status_code == 404
        assert (await client.get("/models")).status_code == 200
        scraper = httpx.AsyncClient(transport=client._transport, base_url="http://sluice:9100")
        assert (await scraper.get("/metrics")).status_code == 200
        assert (await scraper.get("/health/live")).status_code == 200
        assert (await scraper.get("/models")).status_code == 404


def test_a_value_stands_in_the_bucket_that_prometheus_expects() -> None:
    metrics = Metrics(version="0", onnxruntime="1")
    meter = metrics.http("/x")
    for duration_s in (0.0005, 0.00051, 3.0, 99.0):
        meter.started()
        meter.finished("GET", 200, duration_s, 0, 0)
    samples = read(metrics.render()[0].decode())
    found = {
        bound: samples[f'sluice_http_request_duration_seconds_bucket{{le="{bound}",method="GET",route="/x"}}']
        for bound in ("0.0005", "0.001", "2.5", "5.0", "10.0", "+Inf")
    }
    assert found == {"0.0005": 1, "0.001": 2, "2.5": 2, "5.0": 3, "10.0": 3, "+Inf": 4}
    assert samples['sluice_http_request_duration_seconds_sum{method="GET",route="/x"}'] == pytest.approx(102.00101)


def test_a_model_that_nobody_uses_has_no_series_of_histograms() -> None:
    metrics = Metrics(version="0", onnxruntime="1")
    idle = len(read(metrics.render()[0].decode()))
    for number in range(100):
        metrics.unavailable(f"unused-{number}", "1", "", 0.1)
    used = metrics.model("used", "1")
    samples = read(metrics.render()[0].decode())
    assert not [name for name in samples if 'model="u' in name and "_bucket" in name]
    assert len(samples) - idle < 101 * 40
    used.batch_executed(rows=2, steps=4, padded_steps=4, queue_s=[0.1], compute_s=0.1, is_ok=True)
    samples = read(metrics.render()[0].decode())
    assert samples['sluice_batch_size_rows_count{model="used",version="1"}'] == 1
    assert samples['sluice_batch_size_rows_bucket{le="1.0",model="used",version="1"}'] == 0


FORGOTTEN = """
import gc
import os
from pathlib import Path
from prometheus_client import CollectorRegistry, values
from service.observability.prometheus import Families, WorkerSumCollector

def num_values():
    gc.collect()
    return sum(type(each) is values.ValueClass for each in gc.get_objects())

families = Families(CollectorRegistry())
families.rows.labels("other", "1").inc(7)
before = num_values()
for version in ("1", "2", "3"):
    families.rows.labels("toy", version).inc()
    families.queue.labels("toy", version).observe(0.1)
assert num_values() > before + 3
for version in ("1", "2", "3"):
    families.forget_model("toy", version)
assert num_values() == before, (num_values(), before)
families.rows.labels("other", "1").inc(1)
families.rows.labels("toy", "1").inc(1)  # loaded once more: it goes on from where it was
found = WorkerSumCollector(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])).collect()
samples = [sample for metric in found for sample in metric.samples if sample.name == "sluice_inference_rows_total"]
print({(each.labels["model"], each.labels["version"]): each.value for each in samples})
"""


def test_of_a_version_that_is_unloaded_a_worker_keeps_no_values_and_others_go_on(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", FORGOTTEN], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    counts = ast.literal_eval(found.stdout)
    assert counts == {("other", "1"): 8.0, ("toy", "1"): 2.0, ("toy", "2"): 1.0, ("toy", "3"): 1.0}


def test_a_scrape_changes_nothing() -> None:
    metrics = Metrics(version="0", onnxruntime="1")
    meter = metrics.http("/x")
    meter.started()
    meter.finished("GET", 200, 0.1, 10, 10)
    first, second = (
        {key: value for key, value in read(metrics.render()[0].decode()).items() if key.startswith("sluice_")} for _ in range(2)
    )
    assert first == second


async def test_promtool_has_nothing_to_say_about_the_metrics(client: httpx.AsyncClient) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    await client.post("/predict/forecast", json={"instances": [{"history": [1, 2, 3]}]})
    text = (await client.get("/metrics")).content
    found = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)  # noqa: ASYNC221
    assert (found.returncode, found.stdout + found.stderr) == (0, b"")


async def test_the_event_loop_tells_how_late_it_is(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (samples := await scrape(client))["sluice_event_loop_lag_seconds_count"] == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert samples["sluice_event_loop_lag_seconds_sum"] >= 0
