"""Two replicas on a real Ray of this machine: what they answer, and that a killed one takes nothing with it but its requests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.servers import Server, free_port, running
from tests.folders import write_text_folder
from tests.peers.environments import ROOT, find_python
from tests.serving import server_process

NUM_REPLICAS = 2
NUM_CLIENTS = 4
PATIENCE_S = 900.0
"""Ray starts some twenty processes."""
SLOW = {
    f"RAY_SERVE_{name}": "120"
    for name in ("PROXY_READY_CHECK_TIMEOUT_S", "PROXY_HEALTH_CHECK_TIMEOUT_S", "MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S")
}
"""Where a machine has other things to do, Ray would take its own processes for dead."""
BODY = {"model": "toy-sentiment", "instances": ["a good film"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_text_folder(folder)
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    port = free_port()
    # The variable that names the python is no setting of the server's.
    command = ["env", "--unset=SLUICE_TEST_RAY", str(find_python("ray")), "-m", "deploy.ray.local", str(port)]
    command += [str(NUM_REPLICAS), f"models={models}", "device=cpu"]
    with running("Ray Serve", command, port, SLOW, timeout_s=PATIENCE_S, grace_s=60) as found:
        yield found


def replicas(server: Server) -> set[int]:
    """The processes of replicas that run."""
    found = set()
    for process in server.members():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"ray::ServeReplica"):
                found.add(process.pid)
    return found


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_replica_that_is_killed_takes_nothing_with_it_but_its_own_requests(server: Server, models: Path) -> None:
    with server_process(models) as plain, httpx.Client(timeout=PATIENCE_S) as client:
        expected = client.post(f"{plain.url}/predict", json=BODY).json()
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
        assert client.post("/predict", json=BODY).json() == expected
        refused = client.post("/predict", json={"model": "toy-sentiment", "instances": [7]})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_input")
        assert refused.headers["content-type"] == "application/problem+json"
        assert client.get("/health/ready").status_code == 200
        assert client.get("/v2/models/toy-sentiment").json()["name"] == "toy-sentiment"

    before = replicas(server)
    assert len(before) == NUM_REPLICAS
    answers: list[list[Any]] = [[] for _ in range(NUM_CLIENTS)]
    failures: list[Any] = []
    is_over = threading.Event()

    def post_until_over(own: list[Any]) -> None:
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
            while not is_over.is_set():
                answer = client.post("/predict", json=BODY)
                (own if answer.status_code == 200 else failures).append(
                    answer.json() if answer.status_code == 200 else answer.text
                )

    threads = [threading.Thread(target=post_until_over, args=(own,)) for own in answers]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(len(own) >= 5 for own in answers), "all clients are answered")
        os.kill(min(before), signal.SIGKILL)
        counts = [len(own) for own in answers]
        wait_until(lambda: all(len(own) >= count + 5 for own, count in zip(answers, counts, strict=True)), "they go on")
        wait_until(lambda: len(replicas(server) - {min(before)}) == NUM_REPLICAS, "another replica runs")
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert all(answer == expected for own in answers for answer in own)
    assert len(failures) <= NUM_CLIENTS, failures


@pytest.mark.slow
def test_settings_that_are_wrong_fail_before_anything_is_deployed() -> None:
    script = "from deploy.ray.sluice_app import sluice_app; sluice_app({'model': 'x'})"
    found = subprocess.run(
        ["env", "--unset=SLUICE_TEST_RAY", str(find_python("ray")), "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert found.returncode == 1
    assert "model" in found.stderr.splitlines()[-1]
