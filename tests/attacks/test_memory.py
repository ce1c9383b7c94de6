"""Runs that take more memory than a process may have: they fail, and nothing else does."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.folders import write_forecast_folder
from tests.hostile_graphs import write_input_memory_folder
from tests.processes import descendants
from tests.serving import server_process

FORECAST = {"model": "toy-forecast", "instances": [{"history": [1, 2, 3]}]}
SETTINGS: dict[str, Any] = {"SLUICE_NUM_THREADS": "1", "SLUICE_PROCESS_MEMORY_BYTES": "1000000000"}


def hungry(num_values: float) -> dict[str, Any]:
    return {"model": "input-memory", "instances": [{"x": [num_values]}]}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_run_that_takes_too_much_memory_fails_and_every_other_request_is_answered(tmp_path: Path, workers: str) -> None:
    write_forecast_folder(tmp_path)
    write_input_memory_folder(tmp_path)
    with server_process(tmp_path, SLUICE_WORKERS=workers, **SETTINGS) as server:
        before = descendants(server.process.pid)
        answers: list[httpx.Response] = []

        def send() -> None:
            answers.extend(httpx.post(f"{server.url}/predict", json=hungry(2e9), timeout=60) for _ in range(8))

        threads = [threading.Thread(target=send) for _ in range(2)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert httpx.post(f"{server.url}/predict", json=FORECAST, timeout=60).status_code == 200
            assert httpx.post(f"{server.url}/predict", json=hungry(1000.0), timeout=60).status_code == 200
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [500] * 16
        assert {(answer.json()["code"], answer.json()["setting"]) for answer in answers} == {
            ("inference_failed", "SLUICE_PROCESS_MEMORY_BYTES")
        }
        assert descendants(server.process.pid) == before  # no worker had to be replaced
        assert server.end() == 0
