"""The last sampled request of each bucket, over all workers, as OpenMetrics shows it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from service.context import CURRENT, RequestContext
from service.observability.exemplars import PUBLISH_INTERVAL_S, Bucket, Exemplar, ExemplarStore
from service.observability.metrics import Metrics
from service.observability.prometheus import HTTP_DURATION, REQUEST_DURATION
from service.observability.worker_files import path_of
from tests.folders import write_forecast_folder
from tests.serving import client_of

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
SPAN = "b7ad6b7169203331"
BOUNDS = (0.1, 1.0)


def parse(text: str) -> list[Metric]:
    """Raises ValueError for what is no OpenMetrics."""
    return list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


def sampled(number: int, flags: str = "01") -> RequestContext:
    return RequestContext("a", f"00-{number:032x}-{SPAN}-{flags}")


def test_the_last_value_of_a_bucket_is_kept() -> None:
    moments = iter(range(100, 200))
    store = ExemplarStore(BOUNDS, now=lambda: next(moments))
    for number, value in enumerate((0.05, 0.1, 0.5, 7.0), 1):
        store.put("h", ("x",), value, sampled(number))
    assert store.collect() == {
        Bucket("h", ("x",), 0): Exemplar(0.1, 101, f"{2:032x}", SPAN),
        Bucket("h", ("x",), 1): Exemplar(0.5, 102, f"{3:032x}", SPAN),
        Bucket("h", ("x",), 2): Exemplar(7.0, 103, f"{4:032x}", SPAN),
    }


def test_workers_see_the_latest_of_all(tmp_path: Path) -> None:
    now = 1000.0
    stores = [ExemplarStore(BOUNDS, tmp_path, lambda: now) for _ in range(2)]
    stores[0].put("h", ("é\n",), 0.5, sampled(1))
    stores[0].publish()
    path_of(tmp_path, "exemplars", os.getpid()).rename(path_of(tmp_path, "exemplars", 1))  # as if it were of another process
    assert stores[1].collect() == stores[0].collect()
    now += 1
    stores[1].put("h", ("é\n",), 0.6, sampled(2))
    assert [exemplar.trace_id for exemplar in stores[1].collect().values()] == [f"{2:032x}"]


def test_files_are_written_when_there_is_something_new_and_not_too_often(tmp_path: Path) -> None:
    now = 1000.0
    store = ExemplarStore(BOUNDS, tmp_path, lambda: now)
    store.publish()
    assert not list(tmp_path.iterdir())
    store.put("h", (), 0.5, sampled(1))
    store.publish()
    (file,) = tmp_path.iterdir()
    first = file.read_bytes()
    store.put("h", (), 0.5, sampled(2))
    store.publish()
    assert file.read_bytes() == first
    now += PUBLISH_INTERVAL_S
    store.publish()
    assert file.read_bytes() != first


def test_a_folder_that_is_gone_harms_nothing(tmp_path: Path) -> None:
    store = ExemplarStore(BOUNDS, tmp_path / "gone")
    store.put("h", (), 0.5, sampled(1))
    store.publish()
    assert len(store.collect()) == 1


@pytest.mark.parametrize("accept", [OPENMETRICS, "text/plain"])
def test_openmetrics_shows_exemplars_of_sampled_requests_only(accept: str) -> None:
    metrics = Metrics(version="1", onnxruntime="1")
    for number, flags, duration_s in ((1, "01", 0.002), (2, "00", 0.2), (3, "01", 99.0)):
        token = CURRENT.set(sampled(number, flags))
        metrics.http("/predict").finished("POST", 200, duration_s, 10, 10)
        metrics.request_finished("predict", "m", "1", "ok", duration_s, None)
        CURRENT.reset(token)
    metrics.http("/predict").finished("POST", 200, 0.2, 10, 10)
    text = metrics.render(accept)[0].decode()
    if accept != OPENMETRICS:
        assert "trace_id" not in text
        return
    found = {
        (family.name, sample.labels["le"]): (sample.exemplar.labels, sample.exemplar.value)
        for family in parse(text)
        for sample in family.samples
        if sample.exemplar is not None
    }
    expected = {
        "0.0025": ({"trace_id": f"{1:032x}", "span_id": SPAN}, 0.002),
        "+Inf": ({"trace_id": f"{3:032x}", "span_id": SPAN}, 99.0),
    }
    assert found == {(name, le): value for name in (HTTP_DURATION, REQUEST_DURATION) for le, value in expected.items()}


async def test_a_scrape_of_the_app_names_the_trace_of_a_request(models: Path) -> None:
    async with client_of(models) as client:
        headers = {"traceparent": f"00-{7:032x}-{SPAN}-01"}
        answer = await client.post("/predict/forecast", json={"instances": [{"history": [1, 2, 3]}]}, headers=headers)
        assert answer.status_code == 200
        scrape = await client.get("/metrics", headers={"accept": OPENMETRICS})
    assert parse(scrape.text)
    named = [line for line in scrape.text.splitlines() if f'trace_id="{7:032x}"' in line]
    assert len(named) == 2
    assert all(f'span_id="{SPAN}"' in line for line in named)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_forecast_folder(tmp_path)
    return tmp_path
