"""Graphs that never end or take all memory, in real servers: the other models are served, and the server ends when it is told."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.folders import write_forecast_folder
from tests.hostile_graphs import write_endless_folder, write_greedy_folder, write_input_loop_folder
from tests.processes import descendants, is_running
from tests.serving import ROOT, ServerProcess, server_process, wait_until

FORECAST = {"model": "toy-forecast", "instances": [{"history": [1, 2, 3]}]}
SLOW = pytest.mark.slow
ONE, TWO = pytest.param("1", id="one process"), pytest.param("2", id="two workers")
SLOW_ONE, SLOW_TWO = (pytest.param("1", id="one process", marks=SLOW), pytest.param("2", id="two workers", marks=SLOW))


@contextlib.contextmanager
def serving(models: Path, workers: str, **settings: Any) -> Iterator[ServerProcess]:
    with server_process(
        models, SLUICE_WORKERS=workers, SLUICE_NUM_THREADS="1", SLUICE_STRICT_READINESS="false", **settings
    ) as server:
        yield server
        assert "\x1b" not in server.log
        assert "asyncio" not in server.log, server.log


def state_of(server: ServerProcess, name: str) -> dict[str, Any]:
    models = httpx.get(server.url + "/models").json()["models"]
    found: dict[str, Any] = next(model for model in models if model["name"] == name)
    return found


def post(server: ServerProcess, body: object) -> httpx.Response:
    return httpx.post(server.url + "/predict", json=body, timeout=30)


def statuses_of(server: ServerProcess, body: object) -> list[int]:
    """The statuses of some requests, each on a connection of its own, so that all workers answer; 0: the connection broke."""
    statuses = []
    for _ in range(6):
        try:
            statuses.append(post(server, body).status_code)
        except httpx.TransportError:
            statuses.append(0)
    return statuses


@pytest.mark.parametrize("workers", [SLOW_ONE, TWO])
def test_a_graph_that_never_ends_or_takes_all_memory_is_unavailable_and_the_others_are_served(
    tmp_path: Path, workers: str
) -> None:
    write_endless_folder(tmp_path, "a-first")
    write_forecast_folder(tmp_path)
    write_endless_folder(tmp_path, "z-last")
    write_greedy_folder(tmp_path)
    plain = write_endless_folder(tmp_path, "plain")
    for name in ("manifest.json", "example.json"):
        (plain / name).unlink()
    with serving(tmp_path, workers, SLUICE_LOAD_TIMEOUT_MS="1500", SLUICE_LOAD_MEMORY_BYTES="500000000") as server:
        assert post(server, FORECAST).status_code == 200
        for name in ("a-first", "z-last", "plain"):
            state = state_of(server, name)
            assert (state["state"], "it took more than 1.5 s" in state["reason"]) == ("UNAVAILABLE", True), state
        assert state_of(server, "greedy")["state"] == "UNAVAILABLE"
        assert state_of(server, "toy-forecast")["state"] == "READY"
        assert post(server, {"model": "a-first", "instances": [{"x": [1.0]}]}).status_code == 503
        assert server.end() == 0


@pytest.mark.parametrize("workers", [ONE, TWO])
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=SLOW)])
def test_a_server_ends_when_it_is_told_while_a_graph_that_never_ends_is_verified(
    tmp_path: Path, workers: str, number: signal.Signals
) -> None:
    write_endless_folder(tmp_path)
    write_endless_folder(tmp_path, "another")
    starting = STARTING.format(models=tmp_path, workers=workers)
    process = subprocess.Popen(["bash", "-c", starting], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "listening" in line:
                break
        wait_until(lambda: len(descendants(process.pid)) >= 3, "the graphs are being verified")
        verifying = descendants(process.pid)
        process.send_signal(number)
        process.wait(20)
        wait_until(lambda: not any(map(is_running, verifying)), "every process has ended")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


STARTING = (
    "exec env SLUICE_MODELS={models} SLUICE_WORKERS={workers} SLUICE_PORT=0 SLUICE_DEVICE=cpu SLUICE_DRAIN_SECONDS=0 "
    "SLUICE_LOAD_TIMEOUT_MS=3600000 .venv/bin/python -m service"
)


@pytest.mark.parametrize("workers", [SLOW_ONE, TWO])
def test_a_run_that_does_not_end_is_ended_and_its_model_unavailable_in_every_worker(tmp_path: Path, workers: str) -> None:
    write_forecast_folder(tmp_path)
    write_input_loop_folder(tmp_path)
    with serving(tmp_path, workers, SLUICE_REQUEST_TIMEOUT_MS="400") as server:
        quick = {"model": "input-loop", "instances": [{"x": [3.0]}]}
        assert post(server, quick).json()["predictions"] == [[6.0]]
        endless = {"model": "input-loop", "instances": [{"x": [1e17]}]}
        statuses: list[int] = []
        client = threading.Thread(target=lambda: statuses.append(post(server, endless).status_code))
        client.start()
        while client.is_alive():
            assert post(server, FORECAST).status_code == 200  # by the worker that is busy with it too
        client.join()
        assert statuses == [504]
        with httpx.Client(base_url=server.url, timeout=30) as busy:
            wait_until(lambda: "was ended" in server.log, "the run is ended")
            assert busy.post("/predict", json=FORECAST).status_code == 200
        wait_until(lambda: set(statuses_of(server, quick)) == {503}, "every worker has taken the model out of service")
        if workers == "2":  # one that comes later too
            for worker in descendants(server.process.pid):
                os.kill(worker, signal.SIGKILL)
            wait_until(lambda: set(statuses_of(server, FORECAST)) == {200}, "the workers are replaced")
        assert statuses_of(server, quick) == [503] * 6
        assert statuses_of(server, FORECAST) == [200] * 6
        state = state_of(server, "input-loop")
        assert state["state"] == "UNAVAILABLE"
        assert state["reason"] == "a run of its graph took more than 5 s and was ended"
        if workers == "1":
            metrics = httpx.get(server.url + "/metrics").text
            assert 'sluice_model_ready{model="input-loop",version="1"} 0.0' in metrics
        assert "cannot be ended" not in server.log
        assert server.end() == 0


@pytest.mark.parametrize("workers", [SLOW_ONE, TWO])
def test_a_server_ends_when_it_is_told_while_a_graph_runs_that_never_ends(tmp_path: Path, workers: str) -> None:
    write_input_loop_folder(tmp_path)
    with serving(tmp_path, workers, SLUICE_REQUEST_TIMEOUT_MS="1000") as server:
        endless = {"model": "input-loop", "instances": [{"x": [1e17]}]}
        assert post(server, endless).status_code == 504
        assert server.end() == 0
