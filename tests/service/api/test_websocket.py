"""`GET /predict/ws`: one answer per message, as it comes; what it refuses, and with which code it ends."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from service.api.access.keys import describe_entry, new_key
from service.api.stream import STREAM_PATH
from service.api.stream_sequence import MAX_LINE_BYTES
from service.api.websocket import WEBSOCKET_PATH
from tests.folders import write_forecast_folder
from tests.service.api.test_both_paths import serving
from tests.serving import PATIENCE_S, ServerProcess, server_process, wait_until
from tests.streams import cells, draw_rows, write_forecast_stream, write_tensor_stream
from tests.websockets import RawSocket, open_websocket, receive, receive_rest, send, text, upgrade


class RawLines:
    """A client of `POST /predict/stream` that sends a line at a time."""

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port or 80), PATIENCE_S)
        head = f"POST {STREAM_PATH} HTTP/1.1\r\nHost: sluice\r\nTransfer-Encoding: chunked\r\nX-API-Key: {key}\r\n\r\n"
        self._socket.sendall(head.encode())
        self._received = b""

    def send(self, *lines: Any) -> None:
        content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        self._socket.sendall(b"%x\r\n%s\r\n" % (len(content), content))

    def read_until(self, mark: bytes) -> bytes:
        while mark not in self._received:
            data = self._socket.recv(65536)
            assert data, f"closed before {mark!r}: {self._received[-500:]!r}"
            self._received += data
        return self._received

    def close(self) -> None:
        self._socket.close()


ROWS = draw_rows(np.random.default_rng(3), 12)
HEAD = {"model": "toy-stream"}
UPGRADE = {
    "connection": "upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": base64.b64encode(bytes(16)).decode(),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    write_tensor_stream(models, cells("lstm"))
    write_forecast_stream(models, cells("gru"))
    write_forecast_folder(models)
    return models


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[ServerProcess]:
    with server_process(models) as server:
        yield server
        wait_until(lambda: in_flight(server) == 0, "every WebSocket is counted as closed")
        assert server.end() == 0
        assert "Traceback" not in server.log


def get(server: ServerProcess, path: str, **options: Any) -> httpx.Response:
    return httpx.get(f"{server.url}{path}", trust_env=False, timeout=PATIENCE_S, **options)


def connected(server: ServerProcess) -> socket.socket:
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname, parts.port), PATIENCE_S)


def in_flight(server: ServerProcess) -> float:
    lines = get(server, "/metrics").text.splitlines()
    mark = f'sluice_http_requests_in_flight{{route="{WEBSOCKET_PATH}"}}'
    return next(float(line.split()[-1]) for line in lines if line.startswith(mark))


def predict(server: ServerProcess, instance: Any) -> Any:
    body = {"model": "toy-stream", "instances": [instance]}
    answer = httpx.post(f"{server.url}/predict", json=body, trust_env=False, timeout=PATIENCE_S)
    return answer.raise_for_status().json()["predictions"][0]


def test_each_message_is_answered_as_all_messages_so_far(server: ServerProcess) -> None:
    with open_websocket(server.url) as websocket:
        send(websocket, HEAD)
        for count, row in enumerate(ROWS, 1):
            send(websocket, [row])
            assert receive(websocket) == ("prediction", predict(server, {"x": ROWS[:count], "state": None})["y"])
        send(websocket, "null")
        whole = predict(server, {"x": ROWS, "state": None})
        assert receive_rest(websocket) == ([("end", {"state": whole["state"]})], 1000)


def test_a_sequence_goes_on_from_a_state_and_hands_it_out_where_it_is_wanted(server: ServerProcess) -> None:
    with open_websocket(server.url) as websocket:
        send(websocket, HEAD, ROWS[:5], "null")
        (_, (_, end)), _ = receive_rest(websocket)
    with open_websocket(server.url) as websocket:
        send(websocket, {**HEAD, **end, "version": "1"}, ROWS[5:9], {"x": ROWS[9:]}, "null")
        messages, code = receive_rest(websocket)
    whole = predict(server, {"x": ROWS, "state": None})
    assert messages[1:] == [("prediction", whole), ("end", {"state": whole["state"]})]
    assert code == 1000


def test_a_series_has_its_parameters(server: ServerProcess) -> None:
    with open_websocket(server.url) as websocket:
        send(websocket, {"model": "toy-sensor", "parameters": {"horizon": 2}}, {"history": [1.0]})
        assert len(receive(websocket)[1]["forecast"]) == 2


def test_empty_messages_say_nothing_and_pings_are_answered(server: ServerProcess) -> None:
    with open_websocket(server.url) as websocket:
        send(websocket, "", HEAD, " \n", [ROWS[0]], "", "null")
        assert websocket.ping().wait(PATIENCE_S)
        messages, _ = receive_rest(websocket)
        assert [field for field, _ in messages] == ["prediction", "end"]


@pytest.mark.parametrize(
    ("bad", "code", "closed"),
    [
        ("{", "malformed_request", 1008),
        ("NaN", "malformed_request", 1008),
        ({"x": "no"}, "invalid_input", 1008),
        ({"y": 1}, "malformed_request", 1008),
        ([[1e39, 0, 0]], "invalid_input", 1008),
        ({"x": ROWS[:1], "state": None}, "malformed_request", 1008),
        (b"[[1, 2, 3]]", "malformed_request", 1003),
        ("[" + " " * MAX_LINE_BYTES + "]", "payload_too_large", 1009),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_bad_message_ends_it_with_its_problem_and_the_state_before_it(
    server: ServerProcess, bad: Any, code: str, closed: int
) -> None:
    with open_websocket(server.url) as websocket:
        send(websocket, HEAD, ROWS[:2], bad, ROWS[:1])
        (_, (field, problem), end), found = receive_rest(websocket)
    assert (field, problem["code"], found) == ("error", code, closed)
    assert problem["request_id"]
    assert end == ("end", {"state": predict(server, {"x": ROWS[:2], "state": None})["state"]})


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ("{", "malformed_request"),
        ("null", "malformed_request"),
        ([1], "malformed_request"),
        ({}, "malformed_request"),
        ({"model": 1}, "malformed_request"),
        ({**HEAD, "instances": []}, "malformed_request"),
        ({"model": "none"}, "model_not_found"),
        ({"model": "toy-forecast"}, "invalid_state"),
        ({**HEAD, "state": "x"}, "invalid_state"),
    ],
    ids=repr,
)
def test_what_is_wrong_with_the_first_message_ends_it_without_a_state(server: ServerProcess, first: Any, code: str) -> None:
    with open_websocket(server.url) as websocket:
        send(websocket, first, ROWS[:1])
        messages, closed = receive_rest(websocket)
    assert [(field, content["code"]) for field, content in messages] == [("error", code)]
    assert closed == 1008


@pytest.fixture(scope="module", params=["fast path", "regular path"])
def port(request: pytest.FixtureRequest, models: Path) -> Iterator[int]:
    with serving(models, fast_path=request.param == "fast path") as port:
        yield port


@pytest.mark.parametrize("num_parts", [1, 2, 30])
def test_the_request_to_open_it_comes_in_any_parts_and_messages_may_come_with_it(port: int, num_parts: int) -> None:
    content = upgrade() + text(HEAD) + text([ROWS[0]]) + text(b"null")
    size = -(-len(content) // num_parts)
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
        for start in range(0, len(content), size):
            connection.sendall(content[start : start + size])
        received = b""
        while b'{"end"' not in received:
            received += connection.recv(65536)
    assert received.startswith(b"HTTP/1.1 101 ")
    assert b"x-request-id: " in received.partition(b"\r\n\r\n")[0]


def test_it_is_opened_behind_requests_of_the_same_connection(server: ServerProcess) -> None:
    with connected(server) as connection:
        received = b""
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        while b"live" not in received:
            received += connection.recv(65536)
        connection.sendall(upgrade() + text(HEAD) + text([ROWS[0]]))
        while b'{"prediction"' not in received:
            received += connection.recv(65536)


@pytest.mark.parametrize(
    "headers",
    [
        {"connection": "close"},
        {"upgrade": "h2c"},
        {"upgrade": "websocket, h2c"},
        {"sec-websocket-key": ""},
        {"sec-websocket-key": "short"},
        {"sec-websocket-version": "8"},
        {"x-long": "a" * 9000},
        {f"x-{number}": "a" for number in range(101)},
        {"content-length": "5"},
    ],
    ids=lambda headers: str(headers)[:30],
)
def test_what_opens_no_websocket_is_426(server: ServerProcess, headers: dict[str, str]) -> None:
    content = b"12345" if "content-length" in headers else b""
    url = f"{server.url}{WEBSOCKET_PATH}"
    answer = httpx.request("GET", url, headers=UPGRADE | headers, content=content, trust_env=False, timeout=PATIENCE_S)
    assert (answer.status_code, answer.json()["code"]) == (426, "upgrade_required")
    assert answer.headers["upgrade"] == "websocket"
    assert answer.headers["sec-websocket-version"] == "13"


def test_other_methods_are_405_and_other_paths_ignore_the_upgrade(server: ServerProcess) -> None:
    assert httpx.post(f"{server.url}{WEBSOCKET_PATH}", headers=UPGRADE, trust_env=False).status_code == 405
    assert get(server, "/health/live", headers=UPGRADE).status_code == 200


def test_messages_are_counted_as_requests_of_their_own_and_the_websocket_as_one(server: ServerProcess) -> None:
    def count(line: str) -> float:
        lines = get(server, "/metrics").text.splitlines()
        return sum(float(each.rpartition(" ")[2]) for each in lines if each.startswith(line))

    steps = 'sluice_inference_requests_total{api="websocket",model="toy-stream",outcome="ok"'
    opened = f'sluice_http_requests_total{{method="GET",route="{WEBSOCKET_PATH}",status="101"}}'
    before = count(steps), count(opened)
    with open_websocket(server.url) as websocket:
        send(websocket, HEAD, ROWS[:1], ROWS[:1], "null")
        receive_rest(websocket)
    wait_until(lambda: (count(steps), count(opened)) == (before[0] + 2, before[1] + 1), "2 steps of one WebSocket are counted")


# --------------------------------------------------------------------------------------------- who may, and how many


def refusal(server: ServerProcess, **headers: str) -> httpx.Response:
    """The answer to a request to open a WebSocket that is not opened."""
    answer = get(server, WEBSOCKET_PATH, headers=UPGRADE | {name.replace("_", "-"): value for name, value in headers.items()})
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    return answer


@pytest.fixture(scope="module")
def guarded(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, dict[str, str]]]:
    """A server with keys, and for pages of another origin; few connections."""
    options: dict[str, Any] = {"all": {}, "sensor": {"models": ["toy-sensor"]}, "admin": {"scopes": ["admin"]}}
    keys = {name: new_key() for name in options}
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text(
        "\n".join(describe_entry(key, name, **{"scopes": ["predict"], **options[name]}) for name, key in keys.items())
    )
    with server_process(
        models,
        SLUICE_API_KEYS_FILE=str(file),
        SLUICE_CORS_ORIGINS="https://app.example.com",
        SLUICE_MAX_CONNECTIONS="6",
        SLUICE_LOG_LEVEL="debug",
    ) as server:
        yield server, keys
        assert server.end() == 0
        assert "Traceback" not in server.log
        assert all(key not in server.log for key in keys.values())


def test_it_needs_a_key_in_a_header_or_as_a_subprotocol(guarded: tuple[ServerProcess, dict[str, str]]) -> None:
    server, keys = guarded
    for headers in ({}, {"x_api_key": "wrong"}, {"sec_websocket_protocol": "sluice, sluice.key.wrong"}):
        answer = refusal(server, **headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert refusal(server, x_api_key=keys["admin"]).status_code == 403
    both = refusal(server, x_api_key=keys["all"], sec_websocket_protocol=f"sluice, sluice.key.{keys['all']}")
    assert both.status_code == 401
    for options in (
        {"additional_headers": {"authorization": f"Bearer {keys['all']}"}},
        {"subprotocols": ["sluice", f"sluice.key.{keys['all']}"]},
    ):
        with open_websocket(server.url, **options) as websocket:
            assert websocket.subprotocol == ("sluice" if "subprotocols" in options else None)
            send(websocket, HEAD, ROWS[:1])
            assert receive(websocket)[0] == "prediction"


def test_a_key_opens_its_own_models_alone(guarded: tuple[ServerProcess, dict[str, str]]) -> None:
    server, keys = guarded
    with open_websocket(server.url, additional_headers={"x-api-key": keys["sensor"]}) as websocket:
        send(websocket, HEAD)
        messages, code = receive_rest(websocket)
    assert [(field, content["code"]) for field, content in messages] == [("error", "model_not_found")]
    assert code == 1008


def test_a_stream_does_not_outlast_its_key_nor_the_models_that_it_opens(models: Path, tmp_path: Path) -> None:
    kept, removed, narrowed = new_key(), new_key(), new_key()

    def write_keys(**entries: str) -> None:
        models_of = {"narrowed": ["toy-sensor"]} if "removed" not in entries else {}
        lines = [describe_entry(key, name, scopes=["predict"], models=models_of.get(name, [])) for name, key in entries.items()]
        (tmp_path / "new").write_text("".join(lines))
        (tmp_path / "new").rename(tmp_path / "keys.toml")

    def opened(key: str) -> Any:
        return open_websocket(server.url, additional_headers={"x-api-key": key})

    write_keys(kept=kept, removed=removed, narrowed=narrowed)
    with (
        server_process(models, SLUICE_API_KEYS_FILE=str(tmp_path / "keys.toml")) as server,
        contextlib.closing(RawLines(server.url, removed)) as lines,
        opened(kept) as first,
        opened(removed) as second,
        opened(narrowed) as third,
        opened(removed) as unused,
    ):
        for websocket in (first, second, third):
            send(websocket, HEAD, ROWS[:1])
            assert receive(websocket)[0] == "prediction"
        lines.send(HEAD, ROWS[:1])
        lines.read_until(b"data: ")
        write_keys(kept=kept, narrowed=narrowed)
        wait_until(lambda: get(server, "/models", headers={"x-api-key": removed}).status_code == 401, "the file was read")
        for websocket in (first, second, third):
            send(websocket, ROWS[1:2])
        send(unused, HEAD, ROWS[:1])
        lines.send(ROWS[1:2])
        assert receive(first)[0] == "prediction"
        found = [
            ([content.get("code") for _, content in messages], code)
            for messages, code in map(receive_rest, (second, third, unused))
        ]
        refused = lines.read_until(b"event: end")
    assert found == [(["unauthorized", None], 1008), (["model_not_found", None], 1008), (["unauthorized"], 1008)]
    assert b'"code":"unauthorized"' in refused


@pytest.mark.parametrize("origin", ["https://evil.example.com", "null", "http://app.example.com", "https://app.example.com:444"])
def test_a_page_of_another_origin_may_not_open_it(guarded: tuple[ServerProcess, dict[str, str]], origin: str) -> None:
    server, keys = guarded
    answer = refusal(server, origin=origin, x_api_key=keys["all"])
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_pages_of_its_own_origin_and_of_those_that_are_listed_may(guarded: tuple[ServerProcess, dict[str, str]]) -> None:
    server, keys = guarded
    for origin in (server.url, "https://app.example.com"):
        with open_websocket(server.url, origin=origin, additional_headers={"x-api-key": keys["all"]}) as websocket:
            send(websocket, HEAD, ROWS[:1])
            assert receive(websocket)[0] == "prediction"


def test_of_the_connections_half_may_be_websockets(guarded: tuple[ServerProcess, dict[str, str]]) -> None:
    server, keys = guarded
    options: dict[str, Any] = {"additional_headers": {"x-api-key": keys["all"]}}
    with open_websocket(server.url, **options), open_websocket(server.url, **options):
        with open_websocket(server.url, **options):
            answer = refusal(server, x_api_key=keys["all"])
            assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
            assert get(server, "/health/live").status_code == 200, "others are served"

        def is_open() -> bool:
            opened = RawSocket(server.url, headers=f"x-api-key: {keys['all']}\r\n")
            status = opened.read_head().split()[1]
            opened.close()
            return status == b"101"

        wait_until(is_open, "one that was closed leaves its place")


# ------------------------------------------------------------------------------------------------------------ its end


def test_where_no_message_comes_any_longer_it_ends_with_its_state(models: Path) -> None:
    with server_process(models, SLUICE_WEBSOCKET_IDLE_SECONDS="0.5", SLUICE_BODY_TIMEOUT_MS="500") as server:
        with open_websocket(server.url) as websocket:
            messages, code = receive_rest(websocket)
            assert [(field, content["code"]) for field, content in messages] == [("error", "request_timeout")]
            assert code == 1008
        with open_websocket(server.url) as websocket:
            send(websocket, HEAD, [ROWS[0]])
            messages, _ = receive_rest(websocket)
            assert [field for field, _ in messages] == ["prediction", "error", "end"]
            assert messages[1][1]["code"] == "request_timeout"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_that_ends_hands_out_every_state_at_once(models: Path, workers: str) -> None:
    with (
        server_process(models, SLUICE_WORKERS=workers, SLUICE_DRAIN_SECONDS="20") as server,
        open_websocket(server.url) as first,
        open_websocket(server.url) as second,
        open_websocket(server.url) as silent,
    ):
        for websocket in (first, second):
            send(websocket, HEAD, [ROWS[0]])
            assert receive(websocket)[0] == "prediction"
        server.process.terminate()
        expected = None
        for websocket in (first, second):
            messages, code = receive_rest(websocket)
            assert code == 1012
            ((field, content),) = messages
            assert field == "end"
            expected = expected or content
            assert content == expected
        assert receive_rest(silent) == ([], 1012)
        if workers == "1":
            answer = refusal(server)
            assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
        server.process.terminate()
        assert server.process.wait(PATIENCE_S) == 0
        assert "Traceback" not in server.log


def test_a_client_that_leaves_takes_nothing_with_it(server: ServerProcess) -> None:
    opened = RawSocket(server.url, first=text(HEAD) + text([ROWS[0]]))
    opened.read_until(b'{"prediction"')
    opened.close()
    with open_websocket(server.url) as websocket:
        send(websocket, HEAD, ROWS[:1])
        assert receive(websocket)[0] == "prediction"
    assert json.loads(get(server, "/health/live").text) == {"status": "live"}
