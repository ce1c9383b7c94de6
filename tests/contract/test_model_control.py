"""Models that change while a real server of two processes runs: by requests, and as their folders do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.folders import edit_manifest, write_forecast_folder, write_text_folder
from tests.hostile_graphs import write_input_loop_folder
from tests.serving import PATIENCE_S, ROOT, ServerProcess, server_process, wait_until

pytestmark = pytest.mark.resilience

BODY: dict[str, Any] = {"model": "toy-forecast", "instances": [{"history": [1.0, 2.0, 4.0]}]}
EXPLICIT: dict[str, Any] = {"SLUICE_WORKERS": "2", "SLUICE_MODEL_CONTROL": "explicit"}
POLL: dict[str, Any] = {"SLUICE_WORKERS": "2", "SLUICE_MODEL_CONTROL": "poll", "SLUICE_POLL_SECONDS": "0.2"}


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """A client whose requests are each on a connection of their own, and so come to both workers in turn."""
    with httpx.Client(timeout=PATIENCE_S, headers={"connection": "close"}) as client:
        yield client


def publish(models: Path, version: str, *, horizon: int, name: str = "toy-forecast") -> Path:
    """Write a version aside and rename it, as `publish` does."""
    shutil.rmtree(models.parent / "aside" / name / version, ignore_errors=True)
    folder = write_forecast_folder(models.parent / "aside", name, version, horizon=horizon)
    target = models / name / version
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(folder, target))


def answers(client: httpx.Client, server: ServerProcess, num: int = 4, **body: Any) -> set[tuple[Any, ...]]:
    """(status, version, length of the forecast) of some requests, to every worker."""
    found = set()
    for _ in range(num):
        answer = client.post(f"{server.url}/predict", json=BODY | body)
        content = answer.json()
        length = len(content["predictions"][0]["forecast"]) if answer.status_code == 200 else content["code"]
        found.add((answer.status_code, content.get("version"), length))
    return found


def index(client: httpx.Client, server: ServerProcess) -> dict[str, str]:
    entries = client.post(f"{server.url}/v2/repository/index").json()
    return {f"{entry['name']}/{entry.get('version', '')}": entry["state"] for entry in entries}


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


class Load:
    """Requests, without a pause, from a thread each; every answer has to be 200 and whole."""

    def __init__(self, url: str, num_threads: int = 3) -> None:
        self.failures: list[str] = []
        self.num_answers = 0
        self._url = url
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(num_threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        body = BODY | {"instances": BODY["instances"] * 5}
        with httpx.Client(timeout=PATIENCE_S) as client:
            while not self._end.is_set():
                answer = client.post(f"{self._url}/predict", json=body)
                self.num_answers += 1
                if answer.status_code != 200:
                    self.failures.append(answer.text)
                elif len({len(each["forecast"]) for each in answer.json()["predictions"]}) != 1:
                    self.failures.append("the answers of two models in one response")


def test_models_are_loaded_by_request_in_all_processes_or_in_none(tmp_path: Path, client: httpx.Client) -> None:
    models = tmp_path / "models"
    publish(models, "1", horizon=4)
    write_text_folder(models)
    with server_process(models, **EXPLICIT, SLUICE_LOAD_MODELS="toy-sentiment") as server:
        url = server.url
        assert [model["name"] for model in client.get(f"{url}/models").json()["models"]] == ["toy-sentiment"]
        assert answers(client, server) == {(404, None, "model_not_found")}
        loaded = client.post(f"{url}/models/toy-forecast/load")
        assert (loaded.status_code, loaded.json()["state"]) == (200, "READY")
        assert answers(client, server) == {(200, "1", 4)}

        publish(models, "2", horizon=6)
        with Load(url) as load:
            assert client.post(f"{url}/v2/repository/models/toy-forecast/load").content == b""
            assert answers(client, server) == {(200, "2", 6)}
            assert answers(client, server, version="1") == {(200, "1", 4)}
            (models / "toy-forecast" / "3").mkdir()
            (models / "toy-forecast" / "3" / "manifest.json").write_text("{")
            refused = client.post(f"{url}/models/toy-forecast/load")
            assert (refused.status_code, refused.json()["code"]) == (409, "load_failed")
            assert "version 3: manifest.json" in refused.json()["detail"]
            assert answers(client, server) == {(200, "2", 6)}
            shutil.rmtree(models / "toy-forecast" / "3")
            shutil.rmtree(models / "toy-forecast" / "1")
            assert client.post(f"{url}/models/toy-forecast/load").status_code == 200
            assert answers(client, server, version="1") == {(404, None, "model_not_found")}
        assert not load.failures
        assert load.num_answers

        assert client.post(f"{url}/models/toy-forecast/unload").status_code == 200
        assert answers(client, server) == {(404, None, "model_not_found")}
        wait_until(lambda: index(client, server)["toy-forecast/2"] == "UNAVAILABLE", "its requests are answered")
        assert client.get(f"{url}/health/ready").status_code == 200
        assert client.post(f"{url}/models/toy-forecast/unload").status_code == 404
        assert client.post(f"{url}/v2/repository/models/unknown/unload").status_code == 200
        for path in ("models/unknown/load", "v2/repository/models/..%2Fx/load", "models/toy-forecast/load/2"):
            assert client.post(f"{url}/{path}").status_code == 404
        assert client.post(f"{url}/models/toy-forecast/load", content=b"[").status_code == 400
        assert client.get(f"{url}/models/toy-forecast/load").status_code == 405


def test_a_server_without_models_is_ready_and_loads_one(tmp_path: Path, client: httpx.Client) -> None:
    models = tmp_path / "models"
    models.mkdir()
    with server_process(models, **EXPLICIT | {"SLUICE_WORKERS": "1"}) as server:
        assert client.get(f"{server.url}/health/ready").status_code == 200
        publish(models, "1", horizon=4)
        assert client.post(f"{server.url}/models/toy-forecast/load").status_code == 200
        assert answers(client, server) == {(200, "1", 4)}


def test_many_requests_to_load_and_unload_at_once_end_in_one_state(tmp_path: Path, client: httpx.Client) -> None:
    models = tmp_path / "models"
    publish(models, "1", horizon=4)
    with server_process(models, **EXPLICIT, SLUICE_LOAD_MODELS="*") as server:
        statuses: list[int] = []

        def send(action: str) -> None:
            statuses.append(httpx.post(f"{server.url}/v2/repository/models/toy-forecast/{action}", timeout=60).status_code)

        threads = [threading.Thread(target=send, args=("unload" if n % 2 else "load",)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [200] * 12
        assert len(answers(client, server, num=6)) == 1
        client.post(f"{server.url}/models/toy-forecast/load")
        assert answers(client, server) == {(200, "1", 4)}


def test_a_worker_and_a_controlling_process_that_die_are_replaced_and_serve_what_the_others_serve(
    tmp_path: Path, client: httpx.Client
) -> None:
    models = tmp_path / "models"
    publish(models, "1", horizon=4)
    with server_process(models, **EXPLICIT, SLUICE_LOAD_MODELS="*") as server:
        publish(models, "2", horizon=6)
        client.post(f"{server.url}/models/toy-forecast/load").raise_for_status()
        shutil.rmtree(models / "toy-forecast")
        for victim in children(server.process.pid):
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda victim=victim: victim not in children(server.process.pid), "it is gone")
            wait_until(lambda: len(children(server.process.pid)) == 3, "it is replaced")

        def is_served() -> bool:
            try:
                return answers(client, server, num=6) == {(200, "2", 6)} and answers(client, server, version="1") == {
                    (200, "1", 4)
                }
            except httpx.TransportError:
                return False

        wait_until(is_served, "both workers serve it")
        wait_until(lambda: client.post(f"{server.url}/models/toy-forecast/unload").status_code == 200, "it controls")
        assert answers(client, server) == {(404, None, "model_not_found")}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_weights_of_what_is_loaded_later_are_in_memory_once(tmp_path: Path, client: httpx.Client) -> None:
    models = tmp_path / "models"
    shutil.copytree(ROOT / "models" / "forecast-hourly", models / "forecast-hourly")
    with server_process(models, **EXPLICIT) as server:
        assert client.post(f"{server.url}/models/forecast-hourly/load").status_code == 200
        mapped = [files for pid in children(server.process.pid) if (files := weights_of(pid))]
        assert len(mapped) == 2
        assert mapped[0] == mapped[1] != set()
        body = {"model": "forecast-hourly", "instances": [{"history": [float(step % 24) for step in range(168)]}]}
        found = {client.post(f"{server.url}/predict", json=body).text for _ in range(4)}
        assert len(found) == 1
        assert client.post(f"{server.url}/models/forecast-hourly/unload").status_code == 200
        wait_until(lambda: not any(map(weights_of, children(server.process.pid))), "nothing is mapped any more")


def weights_of(pid: int) -> set[str]:
    """The device and inode of each packed graph's weights that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {" ".join(line.split()[3:5]) for line in lines if ".weights" in line}


@pytest.mark.parametrize(
    "settings", [pytest.param(EXPLICIT, id="explicit"), pytest.param(POLL, id="poll", marks=pytest.mark.slow)]
)
def test_where_no_process_can_be_forked_models_are_loaded_and_unloaded_all_the_same(
    tmp_path: Path, client: httpx.Client, settings: dict[str, Any]
) -> None:
    """A thread in the parent rules out a fork: workers and the controlling process start anew, and load for themselves."""
    code = (
        "import sys, threading\n"
        "from service.__main__ import main\n"
        "if __name__ == '__main__':\n"
        "    threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "    sys.exit(main([]))\n"
    )
    is_explicit = settings is EXPLICIT
    models = tmp_path / "models"
    publish(models, "1", horizon=4)
    environ: dict[str, Any] = {**settings, **({"SLUICE_LOAD_MODELS": "*"} if is_explicit else {})}
    with server_process(models, code=code, **environ) as server:
        started = children(server.process.pid)
        spawned = [pid for pid in started if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(spawned) == 3, "two workers, and what decides what is served"
        with Load(server.url) as load:
            publish(models, "2", horizon=6)
            if is_explicit:
                assert client.post(f"{server.url}/models/toy-forecast/load").status_code == 200
            wait_until(lambda: answers(client, server) == {(200, "2", 6)}, "the new version answers")
            assert answers(client, server, version="1") == {(200, "1", 4)}
            broken = write_forecast_folder(tmp_path / "broken", version="3", horizon=8)
            (broken / "model.onnx").write_bytes(b"no graph")
            shutil.move(broken, models / "toy-forecast" / "3")
            if is_explicit:
                assert client.post(f"{server.url}/models/toy-forecast/load").status_code == 409
            wait_until(lambda: index(client, server).get("toy-forecast/3") == "UNAVAILABLE", "it is refused")
            assert answers(client, server) == {(200, "2", 6)}
        assert not load.failures
        shutil.rmtree(models / "toy-forecast")
        if is_explicit:
            assert client.post(f"{server.url}/models/toy-forecast/unload").status_code == 200
        wait_until(lambda: answers(client, server) == {(404, None, "model_not_found")}, "it is gone")
        assert server.end() == 0


def test_a_model_that_one_worker_withdraws_none_serves_until_it_is_loaded_again(tmp_path: Path, client: httpx.Client) -> None:
    write_input_loop_folder(tmp_path)
    write_forecast_folder(tmp_path, horizon=4)
    settings = EXPLICIT | {"SLUICE_LOAD_MODELS": "*", "SLUICE_REQUEST_TIMEOUT_MS": "400"}
    with server_process(tmp_path, **settings) as server:

        def statuses(x: float = 3.0) -> set[int]:
            body = {"model": "input-loop", "instances": [{"x": [x]}]}
            return {client.post(f"{server.url}/predict", json=body).status_code for _ in range(4)}

        assert statuses() == {200}
        endless = {"model": "input-loop", "instances": [{"x": [1e17]}]}
        assert client.post(f"{server.url}/predict", json=endless).status_code == 504
        wait_until(lambda: statuses() == {503}, "every worker has taken it out of service")
        assert "was ended" in client.get(f"{server.url}/models/input-loop").json()["reason"]
        assert answers(client, server) == {(200, "1", 4)}
        assert client.post(f"{server.url}/models/input-loop/load").status_code == 200
        assert statuses() == {200}


def test_folders_are_followed(tmp_path: Path, client: httpx.Client) -> None:
    models = tmp_path / "models"
    publish(models, "1", horizon=4)
    with server_process(models, **POLL) as server, Load(server.url) as load:
        publish(models, "2", horizon=6)
        wait_until(lambda: answers(client, server) == {(200, "2", 6)}, "the new version answers")
        assert client.post(f"{server.url}/models/toy-forecast/load").status_code == 400

        # Half copied, and left so: the old version goes on, and the reason is shown; what is copied in the end is served.
        whole = write_forecast_folder(tmp_path / "aside", version="3", horizon=8)
        half = models / "toy-forecast" / "3"
        half.mkdir()
        content = (whole / "model.onnx").read_bytes()
        shutil.copy(whole / "manifest.json", half)
        (half / "model.onnx").write_bytes(content[: len(content) // 2])
        wait_until(lambda: index(client, server).get("toy-forecast/3") == "UNAVAILABLE", "it is refused")
        about = client.get(f"{server.url}/models/toy-forecast").json()
        assert (about["version"], about["state"]) == ("2", "READY")
        assert "its sha256 is" in about["versions"][-1]["reason"]
        assert client.get(f"{server.url}/health/ready").status_code == 200
        assert answers(client, server) == {(200, "2", 6)}
        wait_until(lambda: 'sluice_model_ready{model="toy-forecast",version="3"} 0.0' in metrics(client, server), "it is counted")
        assert 'sluice_model_reloads_total{outcome="error"} 0.0' not in metrics(client, server)
        (half / "model.onnx").write_bytes(content)
        shutil.copy(whole / "example.json", half)
        wait_until(lambda: answers(client, server) == {(200, "3", 8)}, "the whole version answers")

        # The same version with other files, broken and then right.
        edit_manifest(half, lambda manifest: manifest["forecast"].update(horizon=9))
        wait_until(lambda: "the changed folder is not served" in client.get(f"{server.url}/models").text, "the reason is shown")
        assert answers(client, server) == {(200, "3", 8)}
        shutil.rmtree(half)
        publish(models, "3", horizon=5)
        wait_until(lambda: answers(client, server) == {(200, "3", 5)}, "the other files answer")

        # Renamed and deleted.
        half.rename(models / "toy-forecast" / "old")
        wait_until(lambda: answers(client, server) == {(200, "2", 6)}, "the renamed version is unloaded")
        wait_until(lambda: 'version="3"' not in metrics(client, server), "its series end")
        assert not load.failures
    assert load.num_answers


def metrics(client: httpx.Client, server: ServerProcess) -> str:
    return client.get(f"{server.url}/metrics").text


def test_of_a_model_that_is_pinned_to_the_latest_the_old_version_is_unloaded(tmp_path: Path, client: httpx.Client) -> None:
    models = tmp_path / "models"
    publish(models, "1", horizon=4)
    with server_process(models, **POLL, SLUICE_VERSIONS="toy-forecast:latest") as server, Load(server.url) as load:
        publish(models, "2", horizon=6)
        wait_until(lambda: answers(client, server) == {(200, "2", 6)}, "the new version answers")
        assert answers(client, server, version="1") == {(404, None, "model_not_found")}
    assert not load.failures


def test_control_needs_the_scope_admin(tmp_path: Path, client: httpx.Client) -> None:
    models = tmp_path / "models"
    publish(models, "1", horizon=4)
    keys = tmp_path / "keys.toml"
    made = {}
    for name, scope in (("user", "predict"), ("operator", "admin")):
        command = [sys.executable, "-m", "service", "key", name, "--scope", scope]
        key = subprocess.run(command, capture_output=True, text=True, check=True)
        made[name] = key.stderr.split("\n\n")[1].strip()
        keys.write_text((keys.read_text() if keys.exists() else "") + key.stdout)
    with server_process(models, **EXPLICIT, SLUICE_API_KEYS_FILE=str(keys)) as server:
        for path in ("models/toy-forecast/load", "v2/repository/models/toy-forecast/load"):
            statuses = [
                client.post(f"{server.url}/{path}", headers=headers).status_code
                for headers in ({}, {"x-api-key": made["user"]}, {"x-api-key": made["operator"]})
            ]
            assert statuses == [401, 403, 200]


def test_a_server_that_controls_nothing_says_so(tmp_path: Path, client: httpx.Client) -> None:
    models = tmp_path / "models"
    publish(models, "1", horizon=4)
    with server_process(models) as server:
        for path in ("models/toy-forecast/load", "models/toy-forecast/unload", "v2/repository/models/toy-forecast/load"):
            answer = client.post(f"{server.url}/{path}")
            assert answer.status_code == 400
            assert "SLUICE_MODEL_CONTROL is not explicit" in json.dumps(answer.json())
