"""The tuned rival refuses what is not a request, as a careful author's endpoint would."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from benchmarks.rivals.handwritten_tuned import create_app
from benchmarks.rivals.options import Options
from benchmarks.servers import ROOT


@pytest.fixture
def client() -> Iterator[TestClient]:
    options = Options(ROOT / "models" / "forecast-hourly" / "1", num_processes=1, num_threads=1, batching=None)
    with TestClient(create_app(options.to_environ())) as client:
        yield client


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"history",
        b"[1]",
        b'{"instances": 3}',
        b'{"instances": []}',
        b'{"instances": [{"history": ["a"]}]}',
        b'{"instances": ["a"]}',
    ],
)
def test_a_body_that_is_no_request_gets_422(client: TestClient, body: bytes) -> None:
    assert client.post("/predict", content=body).status_code == 422


def test_a_request_gets_a_prediction_per_instance(client: TestClient) -> None:
    histories = [{"history": [float(step % 24 + 1) for step in range(length)]} for length in (200, 336)]
    predictions = client.post("/predict", json={"instances": histories}).json()["predictions"]
    assert len(predictions) == 2
    assert all(len(next(iter(prediction.values()))) == 48 for prediction in predictions)
