"""A real Prometheus scrapes a real server of two workers and finds every request counted once."""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from tests.folders import write_forecast_folder
from tests.prometheus import query_value, running_prometheus
from tests.serving import server_process

PATIENCE_S = 60.0
NUM_REQUESTS = 40


def awaited(prometheus: str, query: str, expected: float) -> float | None:
    """What a query gives once it gives `expected`, or at last whatever it gave after a minute of scrapes."""
    until = time.monotonic() + PATIENCE_S
    while (found := query_value(prometheus, query)) != expected and time.monotonic() < until:
        time.sleep(0.2)
    return found


def test_every_request_to_two_workers_is_counted_once_and_all_are_seen(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_forecast_folder(models)
    with (
        server_process(models, SLUICE_WORKERS="2") as server,
        running_prometheus(tmp_path, server.url.removeprefix("http://")) as prometheus,
    ):
        for number in range(NUM_REQUESTS):
            history = [1.0] * (3 + number % 5)
            # a connection each, so that the kernel spreads them over the workers
            answer = httpx.post(f"{server.url}/predict/forecast", json={"instances": [{"history": history}]}, timeout=30)
            assert answer.status_code == 200
        assert httpx.post(f"{server.url}/predict/forecast", json={"instances": []}, timeout=30).status_code == 422

        answered = 'sum(sluice_inference_requests_total{outcome="ok"})'
        assert awaited(prometheus, answered, NUM_REQUESTS) == NUM_REQUESTS
        assert awaited(prometheus, 'sum(sluice_inference_requests_total{outcome="invalid"})', 1) == 1
        assert awaited(prometheus, "sluice_inference_request_duration_seconds_count", NUM_REQUESTS) == NUM_REQUESTS
        assert awaited(prometheus, "sluice_inference_rows_total", NUM_REQUESTS) == NUM_REQUESTS
        assert awaited(prometheus, "min(sluice_model_ready)", 1) == 1
        assert query_value(prometheus, "sum(sluice_queue_depth_rows)") == 0
        assert query_value(prometheus, "count(sluice_build_info)") == 1


def test_prometheus_finds_the_traces_of_slow_requests(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_forecast_folder(models)
    traces = [f"{number:032x}" for number in range(1, 9)]
    histogram = "sluice_inference_request_duration_seconds_bucket"
    with (
        server_process(models, SLUICE_WORKERS="2") as server,
        running_prometheus(tmp_path, server.url.removeprefix("http://"), "--enable-feature=exemplar-storage") as prometheus,
    ):

        def find() -> set[str]:
            now = time.time()
            window = {"query": histogram, "start": str(now - 600), "end": str(now + 600)}
            try:
                answer = httpx.get(f"{prometheus}/api/v1/query_exemplars", params=window, timeout=5).json()
            except httpx.HTTPError:
                return set()
            return {exemplar["labels"]["trace_id"] for series in answer["data"] for exemplar in series["exemplars"]}

        for trace in traces:  # a connection each, so that both workers get some
            headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
            body = {"instances": [{"history": [1.0, 2.0]}]}
            assert httpx.post(f"{server.url}/predict/forecast", json=body, headers=headers, timeout=30).status_code == 200
            unsampled = {"traceparent": f"00-{'f' * 32}-b7ad6b7169203331-00"}
            assert httpx.post(f"{server.url}/predict/forecast", json=body, headers=unsampled, timeout=30).status_code == 200
        until = time.monotonic() + PATIENCE_S
        while not (found := find()) and time.monotonic() < until:
            time.sleep(0.2)
    assert found
    assert found <= set(traces)
