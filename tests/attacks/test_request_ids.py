"""Every answer of a real server of two workers has its ids, whatever a request claims them to be, and nothing else gets in."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.folders import write_forecast_folder
from tests.serving import ServerProcess, server_process

BODY = b'{"instances": [{"history": [1, 2, 3]}]}'
MADE = re.compile(rb"[0-9a-f]{32}")
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NUM_IDS = 10_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    models = tmp_path_factory.mktemp("models")
    write_forecast_folder(models)
    with server_process(models, SLUICE_WORKERS="2", SLUICE_NUM_THREADS="1", SLUICE_LOG_FORMAT="json") as server:
        yield server
        for line in server.log.splitlines():
            assert "forged" not in json.loads(line).get("event", "")


class Answer:
    """One answer, as its bytes are."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.split(b"\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = [(name.lower(), value) for name, _, value in (line.partition(b": ") for line in lines[1:])]
        self.body = body

    def only(self, name: bytes) -> bytes:
        (value,) = [value for found, value in self.headers if found == name]
        return value


def connect(server: ServerProcess) -> socket.socket:
    where = urlsplit(server.url)
    return socket.create_connection((where.hostname or "", where.port or 0), timeout=30)


def receive(file: BufferedReader) -> Answer:
    """Read one answer from the file of a socket."""
    lines = []
    while (line := file.readline()) not in (b"\r\n", b""):
        lines.append(line.rstrip(b"\r\n"))
    answer = Answer(b"\r\n".join(lines), b"")
    answer.body = file.read(int(answer.only(b"content-length")))
    return answer


def send(server: ServerProcess, head: bytes, body: bytes = b"") -> Answer:
    with connect(server) as connection, connection.makefile("rb") as file:
        connection.sendall(head + body)
        return receive(file)


def predict(headers: bytes, path: bytes = b"/predict/forecast", body: bytes = BODY, *, is_fast: bool = True) -> bytes:
    head = b"POST %s HTTP/1.1\r\nHost: a\r\n%s" % (path, headers)
    if is_fast:
        return head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


def get(path: bytes, headers: bytes = b"", method: bytes = b"GET") -> bytes:
    return b"%s %s HTTP/1.1\r\nHost: a\r\n%s\r\n" % (method, path, headers)


ANSWERS = {
    "fast path": (predict(b""), 200),
    "regular path": (predict(b"", is_fast=False), 200),
    "not JSON": (predict(b"", body=b"{"), 400),
    "not JSON, regular path": (predict(b"", body=b"{", is_fast=False), 400),
    "no model": (predict(b"", body=b'{"model": "no", "instances": [1]}'), 404),
    "a form": (predict(b"Content-Type: text/csv\r\n"), 415),
    "invalid": (predict(b"", body=b'{"instances": [{"history": []}]}'), 422),
    "too large": (predict(b"", body=b" " * 3_000_000), 413),
    "no time": (predict(b"X-Request-Timeout-Ms: 0\r\n"), 400),
    "no path": (get(b"/nothing"), 404),
    "no method": (get(b"/predict"), 405),
    "live": (get(b"/health/live"), 200),
    "ready": (get(b"/health/ready"), 200),
    "metrics": (get(b"/metrics"), 200),
    "models": (get(b"/models"), 200),
    "page": (get(b"/docs"), 200),
    "file": (get(b"/static/sluice.css"), 200),
    "no file": (get(b"/static/none"), 404),
    "document": (get(b"/openapi.json"), 200),
    "not HTTP": (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
    "large head": (get(b"/", b"X: " + b"x" * 70_000 + b"\r\n"), 431),
    "long URL": (get(b"/" + b"x" * 9000), 414),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_has_its_ids(server: ServerProcess, name: str) -> None:
    sent, status = ANSWERS[name]
    answer = send(server, sent)
    assert answer.status == status, answer.body
    request_id, trace = answer.only(b"x-request-id"), answer.only(b"traceparent")
    assert MADE.fullmatch(request_id)
    assert trace[3:35] == request_id
    if status >= 400:
        assert json.loads(answer.body)["request_id"] == request_id.decode()


@pytest.mark.parametrize(
    "name", [name for name, (_, status) in ANSWERS.items() if name not in ("not HTTP", "large head", "long URL")]
)
def test_every_answer_has_the_ids_that_came(server: ServerProcess, name: str) -> None:
    sent, status = ANSWERS[name]
    line, _, rest = sent.partition(b"\r\n")
    answer = send(server, line + b"\r\nX-Request-ID: mine-1\r\ntraceparent: " + TRACE + b"\r\ntracestate: a=1\r\n" + rest)
    assert answer.status == status, answer.body
    assert answer.only(b"x-request-id") == b"mine-1"
    assert answer.only(b"traceparent") == TRACE
    assert answer.only(b"tracestate") == b"a=1"
    if status >= 400:
        assert json.loads(answer.body)["request_id"] == "mine-1"


ATTACKS = {
    "60 KB": b"X-Request-ID: " + b"a" * 60_000,
    "encoded line feed": b"X-Request-ID: a%0d%0aset-cookie: forged=1",
    "folded": b"X-Request-ID: a\r\n set-cookie: forged=1",
    "folded with a tab": b"X-Request-ID: a\r\n\tset-cookie: forged=1",
    "carriage return": b"X-Request-ID: a\rset-cookie: forged=1",
    "line feed": b"X-Request-ID: a\nset-cookie: forged=1",
    "zero byte": b"X-Request-ID: a\x00b",
    "escape": b"X-Request-ID: \x1b[2Jforged",
    "Latin": b"X-Request-ID: \xe9\xff",
    "UTF-8 line separator": b"X-Request-ID: a\xe2\x80\xa8forged",
    "JSON": b'X-Request-ID: ","status":200,"forged":"',
    "two": b"X-Request-ID: a\r\nX-Request-ID: b",
    "a list": b"X-Request-ID: a, b",
    "empty": b"X-Request-ID:",
    "trace of zeros": b"traceparent: 00-" + b"0" * 32 + b"-b7ad6b7169203331-01",
    "span of zeros": b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-" + b"0" * 16 + b"-01",
    "trace of version ff": b"traceparent: ff" + TRACE[2:],
    "long trace": b"traceparent: 00" + TRACE[2:] + b"-" + b"a" * 60_000,
    "two traces": b"traceparent: " + TRACE + b"\r\ntraceparent: " + TRACE,
    "state without a trace": b"tracestate: a=forged",
}


@pytest.mark.parametrize("is_fast", [True, False], ids=["fast path", "regular path"])
@pytest.mark.parametrize("name", ATTACKS)
def test_in_place_of_what_is_malformed_ids_are_made_and_nothing_gets_into_the_answer(
    server: ServerProcess, name: str, is_fast: bool
) -> None:
    answer = send(server, predict(ATTACKS[name] + b"\r\n", body=b"{", is_fast=is_fast))
    assert answer.status == 400
    request_id = answer.only(b"x-request-id")
    assert MADE.fullmatch(request_id)
    assert answer.only(b"traceparent") == b"00-%s-%s-00" % (request_id, request_id[16:])
    assert json.loads(answer.body)["request_id"] == request_id.decode()
    assert not any(b"forged" in value or found in (b"set-cookie", b"tracestate") for found, value in answer.headers)
    assert b"forged" not in answer.body


def test_an_id_of_a_megabyte_ends_the_connection_with_an_id_of_ours(server: ServerProcess) -> None:
    with connect(server) as connection, connection.makefile("rb") as file:
        try:
            connection.sendall(get(b"/health/live", b"X-Request-ID: " + b"a" * 1_000_000 + b"\r\n"))
        except ConnectionError:
            return  # it was refused while it was sent
        answer = receive(file)
    assert answer.status == 431
    assert MADE.fullmatch(answer.only(b"x-request-id"))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_many_ids_leave_nothing_behind(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_forecast_folder(models)
    with (
        server_process(models, SLUICE_NUM_THREADS="1") as server,
        connect(server) as connection,
        connection.makefile("rb") as file,
    ):

        def send_ids(first: int) -> None:
            for start in range(first, first + NUM_IDS, 50):
                ids = [b"%0128d" % number for number in range(start, start + 50)]
                connection.sendall(b"".join(predict(b"X-Request-ID: %s\r\n" % each, body=b"{") for each in ids))
                assert [receive(file).only(b"x-request-id") for _ in ids] == ids

        send_ids(0)  # what a server needs in any case
        before = resident_bytes(server.process.pid)
        send_ids(NUM_IDS)
        assert resident_bytes(server.process.pid) - before < NUM_IDS * 128
