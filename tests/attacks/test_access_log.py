"""The access log of a real server: a line for every request by either HTTP path, none that a request forged, none that blocks."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from service.api.access.keys import describe_entry, new_key
from tests.folders import write_forecast_folder
from tests.serving import PATIENCE_S, ROOT, server_process, wait_until

BODY = b'{"instances": [{"history": [1, 2, 3]}, {"history": [1, 2]}]}'


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_forecast_folder(folder)
    return folder


@pytest.mark.parametrize("workers", ["1", "2"])
def test_each_request_leaves_one_line_that_it_cannot_forge(models: Path, tmp_path: Path, workers: str) -> None:
    keys = tmp_path / "keys.toml"
    key = new_key()
    keys.write_text(describe_entry(key, "partner", scopes=["predict"]))
    environ: dict[str, Any] = {"SLUICE_ACCESS_LOG": "json", "SLUICE_API_KEYS_FILE": str(keys), "SLUICE_NUM_THREADS": "1"}
    forged = "/models/%0a%7b%22status%22:200%7d%1b%5b2J%e2%80%a8"
    with (
        server_process(models, SLUICE_WORKERS=workers, **environ) as server,
        httpx.Client(base_url=server.url, headers={"x-api-key": key}, limits=httpx.Limits(max_keepalive_connections=0)) as client,
    ):
        for name, content in (("fast", BODY), ("regular", iter([BODY]))):
            answer = client.post("/predict/forecast", content=content, headers={"x-request-id": name})
            assert answer.status_code == 200
        client.post("/predict/forecast", content=b"{", headers={"x-request-id": "invalid"})
        client.get("/health/live", headers={"x-request-id": "live"})
        client.get(forged, headers={"x-request-id": "forged"})
        client.get("/" + "x" * 5000, headers={"x-request-id": "long"})
        httpx.post(server.url + "/predict", headers={"x-request-id": "no-key"}, content=BODY)
        wait_until(lambda: server.output.count('"request_id"') == 7, "seven lines")
        lines = [line for line in server.output.splitlines() if line.startswith("{")]
        assert key not in server.output
    assert all(re.fullmatch(r"[ -~]{1,1500}", line) for line in lines)
    entries = {entry["request_id"]: entry for entry in map(json.loads, lines)}
    assert {name: (entry["status"], entry["outcome"]) for name, entry in entries.items()} == {
        "fast": (200, "ok"),
        "regular": (200, "ok"),
        "invalid": (400, "invalid"),
        "live": (200, "ok"),
        "forged": (404, "invalid"),
        "long": (404, "invalid"),
        "no-key": (401, "rejected"),
    }
    for name in ("fast", "regular"):
        entry = entries[name]
        assert (entry["model"], entry["version"], entry["rows"], entry["key"]) == ("toy-forecast", "1", 2, "partner")
        assert entry["client"] == "127.0.0.1"
        assert entry["bytes_in"] == (len(BODY) if name == "fast" else 0)
        stages = [entry[f"{stage}_us"] for stage in ("parse", "encode", "queue", "run", "decode", "write")]
        assert all(type(each) is int and each >= 0 for each in stages)
        assert entry["duration_us"] > 0
    assert "key" not in entries["no-key"]


def test_a_pipe_that_nobody_reads_stops_no_request_and_the_drops_are_counted(models: Path) -> None:
    reader, target = os.pipe()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    environ |= {"SLUICE_MODELS": str(models), "SLUICE_PORT": "0", "SLUICE_WORKERS": "1", "SLUICE_DEVICE": "cpu"}
    environ |= {"SLUICE_ACCESS_LOG": "text", "SLUICE_DRAIN_SECONDS": "0"}
    process = subprocess.Popen([sys.executable, "-m", "service"], cwd=ROOT, env=environ, stdout=target, stderr=subprocess.DEVNULL)
    os.close(target)
    output = b""
    try:
        while (found := re.search(rb"is ready: (http://\S+)", output)) is None:
            output += os.read(reader, 4096)
        url = found[1].decode()  # from here on nobody reads
        with httpx.Client(timeout=30) as client:
            filler = "x" * 128
            for _ in range(1000):  # a pipe takes 64 KB, which is less than 200 lines
                assert client.get(f"{url}/health/live", headers={"x-request-id": filler}).status_code == 200
            answer = client.post(f"{url}/predict/forecast", content=BODY)
            assert answer.status_code == 200
            assert "sluice_access_log_dropped_lines_total" in client.get(f"{url}/metrics").text
        process.terminate()
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(reader)


REFUSED = {
    "malformed": (b"GARBAGE\r\n\r\n", 400),
    "a URL of 10 KB": (b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "a head of 80 KB": (b"GET / HTTP/1.1\r\nA: " + b"x" * 80_000 + b"\r\n\r\n", 431),
    "half a head": (b"GET / HTTP/1.1\r\nA", 408),
    "half a body": (b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{", 408),
    "a body that is too large": (b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n{", 413),
}


@pytest.mark.parametrize("fast_path", ["true", "false"])
def test_what_is_refused_before_it_is_read_is_in_the_log_and_in_the_metrics(models: Path, fast_path: str) -> None:
    settings: dict[str, Any] = {"SLUICE_ACCESS_LOG": "json", "SLUICE_NUM_THREADS": "1", "SLUICE_FAST_PATH": fast_path}
    settings |= {"SLUICE_HEADER_TIMEOUT_MS": "500", "SLUICE_BODY_TIMEOUT_MS": "500"}
    with server_process(models, **settings) as server:
        found = urlsplit(server.url)
        assert found.hostname is not None
        assert found.port is not None
        for content, status in REFUSED.values():
            with socket.create_connection((found.hostname, found.port), PATIENCE_S) as connection:
                connection.sendall(content)
                assert connection.recv(12) == b"HTTP/1.1 %d" % status

        def entries() -> list[dict[str, Any]]:
            return [json.loads(line) for line in server.output.splitlines() if line.startswith("{")]

        wait_until(lambda: len(entries()) == len(REFUSED), "a line for each")
        assert [entry["status"] for entry in entries()] == [status for _, status in REFUSED.values()]
        assert {entry["outcome"] for entry in entries()} == {"invalid"}
        metrics = httpx.get(server.url + "/metrics").text
        for _, status in REFUSED.values():
            assert re.search(rf'sluice_http_requests_total{{[^}}]*status="{status}"[^}}]*}} [12]\.0', metrics), status
