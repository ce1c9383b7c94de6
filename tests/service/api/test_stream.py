"""`POST /predict/stream`: one event per line of the body, as it comes; what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from uvicorn.server import ServerState

from service.api.fast_path import FastPathProtocol
from service.api.regular_path import RegularPathProtocol
from service.api.stream import STREAM_PATH, read_lines
from service.api.stream_sequence import MAX_LINE_BYTES
from service.app import create_app
from service.settings import Settings
from tests.folders import write_forecast_folder
from tests.serving import PATIENCE_S, PartialReader, ServerProcess, server_process, wait_until
from tests.streams import cells, draw_rows, write_forecast_stream, write_tensor_stream

ROWS = draw_rows(np.random.default_rng(3), 12)
HEAD = {"model": "toy-stream"}
Event = tuple[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    models = tmp_path_factory.mktemp("models")
    write_tensor_stream(models, cells("lstm"))
    write_forecast_stream(models, cells("gru"))
    write_forecast_folder(models)
    with server_process(models) as server:
        yield server
        assert "Traceback" not in server.log


def body_of(*lines: Any) -> bytes:
    return b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)


def parse(text: str) -> list[Event]:
    """(name, data) of each event."""
    events = []
    for block in text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        events.append((fields.get("event", "message"), json.loads(fields["data"])))
    return events


def stream(server: ServerProcess, *lines: Any, **headers: str) -> list[Event]:
    answer = httpx.post(
        f"{server.url}{STREAM_PATH}", content=body_of(*lines), headers=headers, trust_env=False, timeout=PATIENCE_S
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream"
    return parse(answer.text)


def predict(server: ServerProcess, instance: Any) -> Any:
    body = {"model": "toy-stream", "instances": [instance]}
    return httpx.post(f"{server.url}/predict", json=body, trust_env=False).json()["predictions"][0]


def test_each_line_is_answered_as_all_lines_so_far(server: ServerProcess) -> None:
    events = stream(server, HEAD, *([row] for row in ROWS))
    assert [name for name, _ in events] == ["message"] * len(ROWS) + ["end"]
    for count, (_, prediction) in enumerate(events[:-1], 1):
        assert prediction == predict(server, {"x": ROWS[:count], "state": None})["y"]
    assert events[-1][1]["state"] == predict(server, {"x": ROWS, "state": None})["state"]


def test_a_stream_goes_on_from_a_state_and_hands_it_out_where_it_is_wanted(server: ServerProcess) -> None:
    *_, (_, end) = stream(server, HEAD, ROWS[:5])
    events = stream(server, {**HEAD, "state": end["state"], "version": "1"}, ROWS[5:9], {"x": ROWS[9:]})
    whole = predict(server, {"x": ROWS, "state": None})
    assert events[1][1] == whole
    assert events[2][1] == {"state": whole["state"]}


def test_a_series_streams_with_its_parameters(server: ServerProcess) -> None:
    events = stream(server, {"model": "toy-sensor", "parameters": {"horizon": 2}}, {"history": [1.0]}, {"history": [2.0, 3.0]})
    assert [len(event["forecast"]) for _, event in events[:2]] == [2, 2]


def test_empty_lines_say_nothing_and_the_last_line_need_not_end(server: ServerProcess) -> None:
    content = b"\n" + body_of(HEAD) + b"\n\r\n" + json.dumps([ROWS[0]]).encode()
    answer = httpx.post(f"{server.url}{STREAM_PATH}", content=content, trust_env=False)
    assert [name for name, _ in parse(answer.text)] == ["message", "end"]


class BodyRequest:
    """A request whose body comes in these parts."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = list(parts)

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self._parts.pop(0), "more_body": bool(self._parts)}


@pytest.mark.parametrize("space", [b"\n", b"\r\n", b" \t\n"])
async def test_empty_lines_are_skipped_in_one_go(space: bytes) -> None:
    num_calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal num_calls
        num_calls += event in ("call", "c_call")

    many = space * 20_000
    request: Any = BodyRequest(many, many + b"{", many + b"}" + many + b"[1]", b"\n" + many, many + b" 2")
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        lines = [line async for line in read_lines(request)]
    finally:
        sys.setprofile(before)
    assert lines == [b"{", b"}", b"[1]", b"2"]
    assert num_calls < 200


def test_a_bad_line_ends_the_stream_with_its_problem_and_the_state_before_it(server: ServerProcess) -> None:
    *_, (_, expected) = stream(server, HEAD, ROWS[:2])
    for bad in (b"{", b"NaN", {"x": "no"}, {"y": 1}, {"x": ROWS[:1], "state": None}, [[1e39, 0, 0]]):
        events = stream(server, HEAD, ROWS[:2], bad, ROWS[:1])
        assert [name for name, _ in events] == ["message", "error", "end"]
        assert events[1][1]["status"] in (400, 422)
        assert events[1][1]["request_id"]
        assert events[2][1] == expected


@pytest.mark.parametrize(
    ("lines", "status", "code"),
    [
        ([], 400, "malformed_request"),
        ([b"{"], 400, "malformed_request"),
        ([[1]], 400, "malformed_request"),
        ([{}], 400, "malformed_request"),
        ([{"model": 1}], 400, "malformed_request"),
        ([{**HEAD, "version": 1}], 400, "malformed_request"),
        ([{**HEAD, "parameters": [1]}], 400, "malformed_request"),
        ([{**HEAD, "instances": []}], 400, "malformed_request"),
        ([{"model": "none"}], 404, "model_not_found"),
        ([{"model": "toy-forecast"}], 422, "invalid_state"),
        ([{**HEAD, "state": "x"}], 422, "invalid_state"),
        ([b" " * (MAX_LINE_BYTES + 1) + b"{}"], 413, "payload_too_large"),
    ],
)
def test_what_is_wrong_with_the_first_line_is_a_problem(server: ServerProcess, lines: list[Any], status: int, code: str) -> None:
    answer = httpx.post(f"{server.url}{STREAM_PATH}", content=body_of(*lines), trust_env=False)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_another_media_type_and_another_method_are_refused(server: ServerProcess) -> None:
    url = f"{server.url}{STREAM_PATH}"
    assert httpx.post(url, content=b"{}", headers={"content-type": "text/plain"}, trust_env=False).status_code == 415
    assert httpx.get(url, trust_env=False).status_code == 405


def test_a_line_that_is_too_long_ends_the_stream(server: ServerProcess) -> None:
    events = stream(server, HEAD, ROWS[:2], b"[" + b" " * MAX_LINE_BYTES + b"]")
    assert [name for name, _ in events] == ["message", "error", "end"]
    assert events[1][1]["code"] == "payload_too_large"


# ------------------------------------------------------------------------------------------------- a line at a time


class Connection(PartialReader):
    """A client that sends and reads a part at a time."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(server.url)
        head = f"POST {STREAM_PATH} HTTP/1.1\r\nHost: sluice\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.socket.sendall(head.encode())

    def send(self, content: bytes) -> None:
        self.socket.sendall(b"%x\r\n%s\r\n" % (len(content), content))


@pytest.fixture
def connection(server: ServerProcess) -> Iterator[Connection]:
    opened = Connection(server)
    yield opened
    opened.close()


def test_an_event_comes_before_the_next_line_is_sent(connection: Connection) -> None:
    connection.send(body_of(HEAD))
    connection.read_until(b"text/event-stream")
    for count in range(1, 4):
        connection.send(body_of([ROWS[count]]))
        connection.read_until(b"data: ", count)
    line = body_of([ROWS[4]])
    connection.send(line[:7])
    connection.send(line[7:])
    connection.read_until(b"data: ", 4)
    connection.socket.sendall(b"0\r\n\r\n")
    assert b"event: end" in connection.read_until(b"0\r\n\r\n")


def test_a_stream_from_which_nothing_comes_any_longer_ends_with_its_state(tmp_path: Path) -> None:
    write_tensor_stream(tmp_path, cells("lstm"))
    with server_process(tmp_path, SLUICE_BODY_TIMEOUT_MS="500") as server:
        opened = Connection(server)
        opened.send(body_of(HEAD, [ROWS[0]]))
        found = opened.read_until(b"event: end")
        assert b'"code":"request_timeout"' in found
        opened.close()


class FakeTransport(asyncio.Transport):
    """Remembers what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


@pytest.mark.parametrize("protocol", [FastPathProtocol, RegularPathProtocol])
@pytest.mark.parametrize(("path", "is_streaming"), [(STREAM_PATH, True), ("/predict", False), ("/metrics", False)])
async def test_the_time_of_a_streaming_body_begins_anew_with_each_part_of_it(
    protocol: type[RegularPathProtocol], path: str, is_streaming: bool, tmp_path: Path
) -> None:
    app = create_app(Settings(models=tmp_path, device="cpu"))
    config = uvicorn.Config(app, http=protocol, log_config=None, proxy_headers=False, lifespan="off")
    config.load()
    connection = protocol(config=config, server_state=ServerState(), app_state={})
    connection.connection_made(FakeTransport())
    head = f"POST {path} HTTP/1.1\r\nHost: sluice\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.data_received(head.encode())
    began_at = connection.phase_began_at = connection.phase_began_at - 100  # as if it had been long ago
    connection.data_received(b"2\r\n\n\n\r\n")
    assert (connection.phase_began_at > began_at) is is_streaming
    assert (connection.num_body_bytes == 0) is is_streaming
    connection.connection_lost(None)


def test_a_client_that_leaves_takes_nothing_with_it(server: ServerProcess) -> None:
    opened = Connection(server)
    opened.send(body_of(HEAD, ROWS[:2]))
    opened.read_until(b"data: ")
    opened.close()
    assert stream(server, HEAD, ROWS[:1])[-1][0] == "end"


def test_who_does_not_read_is_not_read_from(server: ServerProcess) -> None:
    """A client that sends lines without an end and reads none of the events can send only so much."""
    opened = Connection(server)
    opened.send(body_of({**HEAD, "state": None}))
    opened.read_until(b"text/event-stream")
    lines = body_of(*[[ROWS[0]]] * 500)
    opened.socket.settimeout(1.0)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 100_000_000:
            opened.send(lines)
            sent += len(lines)
    assert sent < 100_000_000
    assert stream(server, HEAD, ROWS[:1])[-1][0] == "end"
    opened.close()


def test_lines_are_counted_as_requests_of_their_own(server: ServerProcess) -> None:
    def metrics() -> str:
        return httpx.get(f"{server.url}/metrics", trust_env=False).text

    stream(server, HEAD, ROWS[:1], ROWS[:1])
    wait_until(lambda: 'api="stream"' in metrics(), "the lines are counted")


def test_a_server_that_ends_hands_out_the_state(tmp_path: Path) -> None:
    write_tensor_stream(tmp_path, cells("lstm"))
    with server_process(tmp_path, SLUICE_DRAIN_SECONDS="20") as server:
        opened = Connection(server)
        opened.send(body_of(HEAD, [ROWS[0]]))
        opened.read_until(b"data: ")
        server.process.terminate()
        wait_until(lambda: httpx.get(f"{server.url}/health/ready", trust_env=False).status_code == 503, "the server drains")
        opened.send(body_of([ROWS[1]]))
        found = opened.read_until(b"event: end")
        assert b"event: error" not in found
        opened.close()
        server.process.send_signal(15)
        assert server.process.wait(PATIENCE_S) == 0
