"""The command line, and a real server process over a real connection."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service import __version__
from service.__main__ import main
from service.api.access.keys import KeyRing, read_keys
from service.api.regular_path import RegularPathProtocol
from service.app import MIN_READERS
from service.errors import StartError
from service.observability.prometheus import RESTART_REASONS
from service.process.machine import default_workers, memory_bytes, num_cores
from service.server import listen
from service.settings import settings_table
from tests.folders import edit_manifest, write_forecast_folder, write_text_folder
from tests.serving import PATIENCE_S, ROOT, ServerProcess, server_process, wait_until

FORECAST = {"instances": [{"history": [1, 2, 3]}]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_forecast_folder(folder)
    write_text_folder(folder)
    edit_manifest(write_forecast_folder(folder, "broken"), lambda manifest: manifest.update(task="guess"))
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[ServerProcess]:
    with server_process(models, SLUICE_STRICT_READINESS="false") as server:
        yield server


@pytest.fixture(scope="module")
def workers(models: Path) -> Iterator[ServerProcess]:
    with server_process(models, SLUICE_WORKERS="2", SLUICE_NUM_THREADS="1", SLUICE_STRICT_READINESS="false") as server:
        yield server


def run(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("SLUICE_")} | environ
    return subprocess.run(
        [sys.executable, "-m", "service", *args], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )


# ------------------------------------------------------------------------------------------------- the command line


def test_settings_prints_the_table_of_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    assert capsys.readouterr().out == settings_table()


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert (caught.value.code, capsys.readouterr().out) == (0, f"sluice {__version__}\n")


def test_a_new_key_is_shown_once_apart_from_its_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--scope", "predict", "--scope", "admin", "--model", "m", "--expires", "2030-01-01", "--rate-limit", "5/s"]
    assert main(["key", "partner", *options]) == 0
    out, err = capsys.readouterr()
    [key] = re.findall(r"sluice_\S{43}", err)
    assert key not in out
    (tmp_path / "keys.toml").write_text(out)
    [entry] = read_keys(tmp_path / "keys.toml")
    assert KeyRing([entry]).find(key.encode()) is entry
    assert (entry.name, entry.scopes, entry.models) == ("partner", frozenset({"predict", "admin"}), frozenset({"m"}))
    assert main(["key", "partner"]) == 0
    assert key not in capsys.readouterr().err


def test_no_key_is_made_that_the_file_could_not_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "two words"]) == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), "sluice_" in err) == ("", 1, False)
    with pytest.raises(SystemExit):
        main(["key", "a", "--scope", "root"])


def test_check_finds_nothing_in_a_valid_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_forecast_folder(tmp_path)
    assert main(["check", str(folder)]) == 0
    assert main(["check", str(folder.parent)]) == 0
    assert capsys.readouterr().out == f"{folder}: ok\n" * 2


def test_check_prints_what_is_wrong_with_each_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_forecast_folder(tmp_path)
    edit_manifest(write_forecast_folder(tmp_path, version="2"), lambda manifest: manifest.update(surprise=1))
    assert main(["check", str(tmp_path / "toy-forecast")]) == 1
    out = capsys.readouterr().out
    assert f"{tmp_path / 'toy-forecast' / '1'}: ok" in out
    assert f"{tmp_path / 'toy-forecast' / '2'}: 1 finding\n" in out
    assert "surprise" in out


def test_check_of_a_models_folder_checks_every_version_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write_forecast_folder(tmp_path, version=version) for version in ("2", "10")] + [write_text_folder(tmp_path)]
    (tmp_path / ".git").mkdir()
    assert main(["check", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{folder}: ok" for folder in folders]
    (tmp_path / "empty").mkdir()
    assert main(["check", str(tmp_path)]) == 1
    assert f"{tmp_path / 'empty'}: 1 finding\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "environ", "message"),
    [
        (["serve"], {"SLUICE_PROT": "1"}, "SLUICE_PROT is not a setting; did you mean SLUICE_PORT?"),
        (["--port", "many"], {}, "SLUICE_PORT=many"),
        (["--models", "/no/such/folder"], {}, "there is no models folder /no/such/folder"),
        (["--host", "192.0.2.1", "--port", "0", "--models", "models"], {}, "cannot listen on 192.0.2.1:0"),
        (["check", "/no/such/folder"], {}, "there is no folder /no/such/folder"),
    ],
)
def test_an_error_at_start_is_one_line(args: list[str], environ: dict[str, str], message: str) -> None:
    found = run(*args, **environ)
    assert found.returncode == 3
    assert found.stderr.startswith(f"sluice: {message}")
    assert found.stderr.count("\n") == 1


def test_a_taken_port_is_named_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError) as caught:
            listen("127.0.0.1", port, "SLUICE_PORT")
    assert f":{port}: Address already in use; SLUICE_PORT chooses another port" in caught.value.message


def test_score_says_what_became_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_text_folder(tmp_path / "models")
    (tmp_path / "in.csv").write_text("review,id\ngood film,7\n,8\n")
    output = tmp_path / "out.csv"
    args = ["score", "toy-sentiment", str(tmp_path / "in.csv"), str(output), "--column", "text=review", "--keep", "id"]
    args += ["--models", str(tmp_path / "models"), "--device", "cpu", "--num-threads", "1"]
    assert main(args) == 0
    assert "1 scored, 1 rejected" in capsys.readouterr().out
    header, line = output.read_text().splitlines()
    assert header.replace('"', "") == "row,id,label,score,p(negative),p(positive),truncated"
    assert line.startswith('0,"7","')
    assert main(args) == 1
    assert "is there already; --overwrite replaces it" in capsys.readouterr().err
    assert main([*args, "--overwrite", "--max-rejected", "0"]) == 1
    assert "more than 0 were rejected: expected a string, got null" in capsys.readouterr().err
    (tmp_path / "in.csv").write_text("review,id\n,8\n")
    assert main([*args, "--overwrite"]) == 1
    assert "0 scored, 1 rejected" in capsys.readouterr().out
    assert not output.exists()
    assert main([*args, "--parameter", "horizon=3", "--overwrite"]) == 1
    assert main([*args, "--column", "text"]) == 3
    assert "expected NAME=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize("num_workers", ["1", "2"])
def test_a_gpu_that_is_demanded_and_absent_ends_the_start(models: Path, num_workers: str) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime can use CUDA")
    found = run("--models", str(models), "--port", "0", "--device", "cuda", "--workers", num_workers)
    assert found.returncode == 3
    assert "sluice: device cuda was asked for" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_missing_runtime_is_named_with_its_remedy(models: Path) -> None:
    code = "import sys; sys.modules['onnxruntime'] = None; from service.__main__ import main; sys.exit(main())"
    args = [sys.executable, "-c", code, "--models", str(models), "--port", "0"]
    found = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert found.returncode == 3
    assert "pip install 'sluice-serving[cpu]'" in found.stderr
    assert "Traceback" not in found.stderr


# --------------------------------------------------------------------------------------------------- one real process


def test_the_server_prints_its_address_and_a_command_to_try(server: ServerProcess) -> None:
    first, second, command = server.output.splitlines()
    assert first == f"Sluice {__version__} is ready: {server.url} (documentation at {server.url}/docs)"
    assert second == "Try it:"
    curl, *args = shlex.split(command)
    assert (curl, args[0]) == ("curl", "-s")
    answer = httpx.post(args[1], headers=dict([args[3].split(": ")]), content=args[5])
    assert answer.json()["predictions"][0]["label"] in ("negative", "positive")


def test_a_server_without_models_prints_why(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service", "--models", str(tmp_path), "--port", "0", "--drain-seconds", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert "but no model is ready: the models folder" in process.stdout.readline()
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def test_a_broken_folder_is_logged_and_the_others_are_served(server: ServerProcess) -> None:
    assert "model is unavailable model=broken version=1" in server.log
    assert httpx.get(f"{server.url}/health/ready").status_code == 200
    assert httpx.post(f"{server.url}/predict/forecast", json=FORECAST).status_code == 200


def test_many_clients_at_once_get_their_own_answers(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.url) as client:

        def mean(number: int) -> list[float]:
            answer = client.post("/predict/forecast", json={"instances": [{"history": [number, number + 1, number]}]})
            found: list[float] = answer.json()["predictions"][0]["forecast"]
            return found

        alone = [mean(number) for number in range(16)]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            assert list(pool.map(mean, range(16))) == alone


def test_a_body_of_3_mb_and_100000_instances_are_refused(server: ServerProcess) -> None:
    instances = b'{"instances": [' + b'"a",' * 99_999 + b'"a"]}'
    answer = httpx.post(f"{server.url}/predict/sentiment", content=instances)
    assert (answer.status_code, answer.json()["setting"]) == (413, "SLUICE_MAX_INSTANCES")
    answer = httpx.post(f"{server.url}/predict/sentiment", content=b" " * 3_000_000)
    assert (answer.status_code, answer.json()["setting"]) == (413, "SLUICE_MAX_BODY_BYTES")
    chunks = (b" " * 100_000 for _ in range(50))
    answer = httpx.post(f"{server.url}/predict/sentiment", content=chunks)
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
    assert httpx.post(f"{server.url}/predict/forecast", json=FORECAST).status_code == 200


@pytest.mark.resilience
@pytest.mark.parametrize(("number", "num_workers"), [(signal.SIGTERM, "1"), (signal.SIGINT, "1"), (signal.SIGTERM, "2")])
def test_a_signal_ends_the_server_after_the_requests_it_is_answering(models: Path, number: int, num_workers: str) -> None:
    # A batch that waits for more rows keeps its request open while the signal arrives.
    with server_process(models, SLUICE_MAX_QUEUE_DELAY_MS="1500", SLUICE_WORKERS=num_workers) as server:
        with httpx.Client(base_url=server.url) as client, concurrent.futures.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.post, "/predict/forecast", json=FORECAST)
            wait_until(lambda: _sum(server, "sluice_queue_depth_rows") == 1, "the request is queued")
            assert server.end(number) == 0
            assert answer.result().status_code == 200
        assert "Traceback" not in server.log


@pytest.mark.parametrize("num_workers", ["1", "2"])
def test_without_the_fast_path_requests_are_answered_too(models: Path, num_workers: str) -> None:
    with server_process(models, SLUICE_FAST_PATH="false", SLUICE_WORKERS=num_workers) as server:
        post_often(server, 8)
        wait_until(lambda: _sum(server, "sluice_inference_requests_total", outcome="ok") == 8, "all are counted")
        assert server.end() == 0


def test_a_client_that_disconnects_is_counted_as_cancelled(models: Path) -> None:
    with server_process(models, SLUICE_MAX_QUEUE_DELAY_MS="60000", SLUICE_REQUEST_TIMEOUT_MS="120000") as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps(FORECAST).encode()
        head = b"POST /predict/forecast HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head % len(body) + body)
            # A client that closes its side right behind its request may still wait for the answer.
            given_up_at = time.monotonic() + 2 * RegularPathProtocol.half_close_s
            wait_until(lambda: _sum(server, "sluice_queue_depth_rows") == 1, "the request is queued")
            wait_until(lambda: time.monotonic() > given_up_at, "it has waited for longer than a half-closed one would")
        wait_until(lambda: _sum(server, "sluice_inference_requests_total", outcome="cancelled") == 1, "it is counted")
        wait_for_sum(server, 0, "sluice_queue_depth_rows")
        wait_for_sum(server, 1, "sluice_http_requests_total", route="/predict/forecast", status="499")
        assert "Traceback" not in server.log


def test_json_log_lines_are_json(models: Path) -> None:
    with server_process(models, SLUICE_LOG_FORMAT="json") as server:
        assert server.end() == 0
        lines = [json.loads(line) for line in server.log.splitlines()]
    ready = next(line for line in lines if line["event"] == "model is ready")
    assert ready["provider"] == "CPUExecutionProvider"
    assert {"time", "level", "logger"} <= ready.keys()


# ------------------------------------------------------------------------------------------------------ two processes


def test_metrics_add_up_over_the_workers_and_outlive_them(workers: ServerProcess) -> None:
    num_requests = 40
    post_often(workers, num_requests)
    capacity = 2 * 1024
    # Each worker renders once a second, so one may still answer as it was when the other has already counted.
    for name, labels, value in (
        ("sluice_inference_requests_total", {"outcome": "ok"}, num_requests),
        ("sluice_inference_rows_total", {}, num_requests),
        ("sluice_http_request_duration_seconds_count", {"route": "/predict/forecast"}, num_requests),
        ("sluice_queue_capacity_rows", {"model": "toy-forecast"}, capacity),
        ("sluice_model_ready", {"model": "toy-forecast"}, 1),
        ("sluice_model_info", {"model": "toy-forecast"}, 1),
        ("sluice_queue_oldest_request_timestamp_seconds", {"model": "toy-forecast"}, 0),
    ):
        wait_for_sum(workers, value, name, **labels)
    assert _sum(workers, "process_resident_memory_bytes") > 2e7
    assert 'pid="' not in scrape(workers)

    victim = worker_pids(workers)[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: f"worker died worker={victim}" in workers.log, "the parent noticed")
    wait_until(lambda: len(set(worker_pids(workers)) - {victim}) == 2, "the worker is replaced")
    wait_until(lambda: _sum(workers, "sluice_queue_capacity_rows", model="toy-forecast") == capacity, "gauges are of the living")
    wait_for_sum(workers, num_requests, "sluice_inference_requests_total", outcome="ok")
    post_often(workers, num_requests)
    wait_until(lambda: _sum(workers, "sluice_inference_requests_total", outcome="ok") == 2 * num_requests, "counting goes on")


@pytest.mark.resilience
def test_a_killed_worker_breaks_its_own_connections_only_and_their_clients_are_served_again(models: Path) -> None:
    num_clients, limits = 8, httpx.Limits(max_keepalive_connections=1, max_connections=1)
    with server_process(models, SLUICE_WORKERS="2") as server:
        is_over, broken, num_answers = threading.Event(), [0] * num_clients, [0] * num_clients

        def post_on(number: int) -> None:
            with httpx.Client(limits=limits, timeout=PATIENCE_S) as client:
                while not is_over.is_set():
                    try:
                        assert client.post(f"{server.url}/predict/forecast", json=FORECAST).status_code == 200
                        num_answers[number] += 1
                    except httpx.TransportError:
                        broken[number] += 1

        with concurrent.futures.ThreadPoolExecutor(num_clients) as pool, contextlib.ExitStack() as stack:
            stack.callback(is_over.set)  # or a failure would wait for the clients without end
            futures = [pool.submit(post_on, number) for number in range(num_clients)]
            wait_until(lambda: min(num_answers) > 3, "all clients are served")
            workers = worker_pids(server)
            assert [connections_of(pid, server) for pid in workers] == [num_clients // 2] * 2
            os.kill(workers[0], signal.SIGKILL)
            before = list(num_answers)
            wait_until(lambda: all(now > then + 3 for now, then in zip(num_answers, before, strict=True)), "all are served")
            wait_until(lambda: len(set(worker_pids(server)) - {workers[0]}) == 2, "the worker is replaced")
            is_over.set()
            for future in futures:
                future.result()
        # Not all of its clients: one that had just been answered finds the connection closed and opens another.
        assert sum(broken) <= num_clients // 2
        assert max(broken) <= 1
        for reason in RESTART_REASONS:
            wait_for_sum(server, 1 if reason == "crashed" else 0, "sluice_worker_restarts_total", reason=reason)
        pids = worker_pids(server)
        assert server.end() == 0
        assert not any(is_alive(pid) for pid in pids)


def test_workers_share_what_their_parent_has_loaded(workers: ServerProcess) -> None:
    post_often(workers, 8)
    for pid in worker_pids(workers):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            pytest.skip("this kernel does not tell what is shared")
        sizes = {name: int(kb) for name, kb in re.findall(r"^(\w+): +(\d+) kB$", rollup, re.MULTILINE)}
        assert sizes["Pss"] < 0.6 * sizes["Rss"]
        assert sizes["Private_Clean"] + sizes["Private_Dirty"] < 0.4 * sizes["Rss"]


@pytest.mark.resilience
def test_where_a_process_cannot_be_forked_each_worker_loads_for_itself(models: Path) -> None:
    code = (
        "import sys, threading\n"
        "from service.__main__ import main\n"
        "if __name__ == '__main__':\n"
        "    threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "    sys.exit(main([]))\n"
    )
    with server_process(models, code=code, SLUICE_WORKERS="2") as server:
        pids = worker_pids(server)
        assert [b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids] == [True, True]
        post_often(server, 4)
        assert server.end() == 0
        assert not any(is_alive(pid) for pid in pids)


def test_workers_have_no_more_threads_than_their_share_of_the_cores(models: Path) -> None:
    share = max(1, num_cores() // 2)
    with server_process(models, SLUICE_WORKERS="2") as server:
        texts = [f"a text of number {number}" for number in range(200)]
        for _ in range(8):
            httpx.post(f"{server.url}/predict/sentiment", json={"instances": texts}).raise_for_status()
        log = server.log
        threads = {pid: len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in worker_pids(server)}
    assert f"workers=2 threads={share}" in log
    # The event loop, those that read bodies, those of each of the two models, and the tokenizers' own.
    allowed = 1 + max(MIN_READERS, share) + 2 * share + share
    assert len(threads) == 2
    assert max(threads.values()) <= allowed


@pytest.mark.skipif(num_cores() < 2 or not sys.platform.startswith("linux"), reason="there are no two cores to keep to")
def test_pinned_workers_keep_to_cores_of_their_own(models: Path) -> None:
    with server_process(models, SLUICE_WORKERS="2", SLUICE_PIN_WORKERS="true") as server:
        first, second = (os.sched_getaffinity(pid) for pid in worker_pids(server))
        assert len(first) == len(second)
        assert not first & second
        assert server.end() == 0


def test_what_a_worker_logs_names_it(workers: ServerProcess) -> None:
    named = set(re.findall(r"model is ready model=toy-forecast .* worker=(\d+)$", workers.log, re.MULTILINE))
    assert {str(pid) for pid in worker_pids(workers)} <= named


def test_several_workers_print_where_they_are_once(workers: ServerProcess) -> None:
    assert workers.output.count("is ready:") == 1


def test_without_a_number_there_is_a_process_per_core(models: Path) -> None:
    wanted = default_workers(num_cores(), memory_bytes())
    with server_process(models, SLUICE_WORKERS="0") as server:
        assert f" workers={wanted} " in server.log
        assert len(worker_pids(server)) == (wanted if wanted > 1 else 0)


@pytest.mark.resilience
def test_workers_end_when_their_parent_is_killed_and_the_next_one_removes_their_folder(models: Path, tmp_path: Path) -> None:
    with server_process(models, SLUICE_WORKERS="2", TMPDIR=str(tmp_path)) as server:
        pids = worker_pids(server)
        assert len(pids) == 2
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        wait_until(lambda: not any(is_alive(pid) for pid in pids), "the workers ended")
    [left] = tmp_path.iterdir()
    with server_process(models, SLUICE_WORKERS="2", TMPDIR=str(tmp_path)) as server:
        assert not left.exists()
        assert server.end() == 0
    assert list(tmp_path.iterdir()) == []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def post_often(server: ServerProcess, num_requests: int) -> None:
    """Post over new connections, so that every worker gets some."""
    for _ in range(num_requests):
        assert httpx.post(f"{server.url}/predict/forecast", json=FORECAST).status_code == 200


def worker_pids(server: ServerProcess) -> list[int]:
    """The children that serve; multiprocessing's own helper, where workers are not forked, is not one of them."""
    pids = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
            is_child = f"\nPPid:\t{server.process.pid}\n" in text
            command = (status.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if is_child and b"resource_tracker" not in command:
            pids.append(int(status.parent.name))
    return sorted(pids)


def connections_of(pid: int, server: ServerProcess) -> int:
    """The open connections to the server that a worker has."""
    port = f":{int(server.url.rpartition(':')[2]):04X}"
    held = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(line[1].endswith(port) and line[3] == "01" and f"socket:[{line[9]}]" in held for line in lines)


def scrape(server: ServerProcess) -> str:
    return httpx.get(f"{server.url}/metrics").text


def wait_for_sum(server: ServerProcess, value: float, name: str, **labels: str) -> None:
    """Until the sum is this: a scrape shows the metrics as they were up to a second ago."""
    wait_until(lambda: _sum(server, name, **labels) == value, f"{name} is {value}")


def _sum(server: ServerProcess, name: str, **labels: str) -> float:
    """The sum of all series of one name that have these labels."""
    lines = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", scrape(server), re.MULTILINE)
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(float(value) for found, value in lines if all(label in found for label in wanted))


@pytest.mark.resilience
def test_a_worker_that_is_replaced_after_the_folder_has_changed_serves_what_the_others_serve(tmp_path: Path) -> None:
    removed = write_forecast_folder(tmp_path)
    with server_process(tmp_path, SLUICE_WORKERS="2") as server:
        shutil.rmtree(removed.parent)
        write_forecast_folder(tmp_path, "late")
        victim = worker_pids(server)[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(set(worker_pids(server)) - {victim}) == 2, "the worker is replaced")
        wait_until(lambda: server.log.count("model is ready") == 3, "its models are loaded")
        # Connections go to the workers in turn.
        answers = [httpx.get(f"{server.url}/models").json()["models"] for _ in range(8)]
        assert [[(model["name"], model["state"]) for model in models] for models in answers] == [[("toy-forecast", "READY")]] * 8
        post_often(server, 8)
