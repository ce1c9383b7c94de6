"""Slow, silent and greedy clients against a real server: they are closed, counted, and others do not notice them."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.folders import write_forecast_folder
from tests.serving import PATIENCE_S, ServerProcess, server_process, wait_until
from tests.streams import cells, write_forecast_stream

PATH = "/predict/forecast"
BODY = b'{"instances": [{"history": [1, 2, 3]}]}'
HEAD = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
NUM_SLOW = 200
MAX_CONNECTIONS = 400


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_forecast_folder(folder)
    return folder


@pytest.fixture(scope="module", params=["true", "false"], ids=["fast path", "regular path"])
def server(request: pytest.FixtureRequest, models: Path) -> Iterator[ServerProcess]:
    """One whose limits are short; nothing in these tests waits for their whole length in the usual settings."""
    with server_process(
        models,
        SLUICE_FAST_PATH=request.param,
        SLUICE_NUM_THREADS="1",
        SLUICE_HEADER_TIMEOUT_MS="600",
        SLUICE_BODY_TIMEOUT_MS="600",
        SLUICE_SEND_TIMEOUT_MS="1000",
        SLUICE_KEEP_ALIVE_SECONDS="1",
        SLUICE_MAX_CONNECTIONS=str(MAX_CONNECTIONS),
    ) as server:
        yield server
        assert server.end() == 0
        assert "Traceback" not in server.log


def connect(server: ServerProcess) -> socket.socket:
    found = urlsplit(server.url)
    return socket.create_connection((found.hostname, found.port), timeout=PATIENCE_S)


@contextlib.contextmanager
def connections(server: ServerProcess, number: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(server)) for _ in range(number)]


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            received += part
    return received


def count(server: ServerProcess, reason: str) -> float:
    text = httpx.get(server.url + "/metrics").text
    found = re.search(rf'sluice_http_connections_closed_total{{reason="{reason}"}} (\S+)', text)
    assert found is not None
    return float(found[1])


def assert_serves(client: httpx.Client) -> None:
    answer = client.post(PATH, content=BODY, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text


BEGUN: dict[str, tuple[bytes, str, bytes]] = {
    "a byte": (b"P", "header_timeout", b"408"),
    "half a head": (b"POST /predict HTTP/1.1\r\nX-Slow: ", "header_timeout", b"408"),
    "a head without its end": (HEAD[:-2] % (PATH.encode(), 100), "header_timeout", b"408"),
    "no body": (HEAD % (PATH.encode(), len(BODY)), "body_timeout", b"408"),
    "half a body": (HEAD % (PATH.encode(), len(BODY)) + BODY[:9], "body_timeout", b"408"),
    "half a large body": (HEAD % (PATH.encode(), 900_000) + b" " * 9_000, "body_timeout", b"408"),
    "a chunk": (
        b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n9\r\n{",
        "body_timeout",
        b"408",
    ),
    "a body that nothing reads": (b"GET /health/live HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n", "body_timeout", b"200"),
    "nothing": (b"", "idle", b""),
    "empty lines": (b"\r\n\r\n\r\n", "idle", b""),
    "a request and no other": (HEAD % (PATH.encode(), len(BODY)) + BODY, "idle", b"200"),
    "a request and half of one": (HEAD % (PATH.encode(), len(BODY)) + BODY + b"POST /", "header_timeout", b"200"),
}


def test_what_comes_too_slowly_is_answered_408_and_closed(server: ServerProcess) -> None:
    """All at once, so that their times pass together."""
    expected_counts = Counter(reason for _, reason, _ in BEGUN.values())
    before = {reason: count(server, reason) for reason in expected_counts}
    with connections(server, len(BEGUN)) as opened:
        for connection, (sent, _, _) in zip(opened, BEGUN.values(), strict=True):
            connection.sendall(sent)
        received = {name: read_all(connection) for name, connection in zip(BEGUN, opened, strict=True)}
    for name, (_, _, status) in BEGUN.items():
        statuses = re.findall(rb"HTTP/1.1 (\d+)", received[name])
        expected = [status] if status else []
        if name == "a request and half of one":
            expected.append(b"408")
        assert statuses == expected, name
        if b"408" in statuses:
            assert b'"code":"request_timeout"' in received[name]
            assert b"connection: close" in received[name].lower()
    for reason, number in expected_counts.items():
        wait_until(lambda: count(server, reason) >= before[reason] + number, f"each connection is counted: {reason}")  # noqa: B023


def test_a_body_that_comes_at_a_fair_rate_is_taken_however_long_it_takes(server: ServerProcess) -> None:
    # The time of the body is over after 0.6 s; what has come of it by then gives it some seconds more.
    body = BODY + b" " * 200_000
    with connect(server) as connection, httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
        connection.sendall(HEAD % (PATH.encode(), len(body)) + body[:150_000])
        with connect(server) as slower:  # what is slow is closed meanwhile
            slower.sendall(HEAD % (PATH.encode(), len(body)))
            assert b"408" in read_all(slower)
        connection.sendall(body[150_000:])
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        assert_serves(client)


def test_hundreds_of_slow_clients_hold_nobody_up(server: ServerProcess) -> None:
    """The slow ones declare bodies for which the server has no memory together, and send them byte by byte."""
    kinds = [b"P", b"POST /predict HTTP/1.1\r\n", HEAD % (PATH.encode(), 60_000), HEAD % (PATH.encode(), 2_000_000), b"", b"\r\n"]
    with (
        connections(server, NUM_SLOW) as slow,
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client,
    ):
        for number, connection in enumerate(slow):
            connection.sendall(kinds[number % len(kinds)])
        for _ in range(3):
            for connection in slow:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(b"\r\n" if connection in slow[4::6] + slow[5::6] else b"X")
            for _ in range(30):
                assert_serves(client)
        for connection in slow:
            read_all(connection)  # until the server closes it
        assert_serves(client)


def test_a_client_that_reads_nothing_is_disconnected(server: ServerProcess) -> None:
    before = count(server, "send_timeout")
    request = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"
    with connect(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request * 400)  # 40 MB of answers, beyond what the systems keep for it
        wait_until(lambda: count(server, "send_timeout") > before, "the client is disconnected")
    with httpx.Client(base_url=server.url) as client:
        assert_serves(client)


def test_refusals_that_nobody_reads_do_not_pile_up(server: ServerProcess) -> None:
    """Half a million requests whose heads are refused, from a client that reads no answer: it is held, then disconnected."""
    before = count(server, "send_timeout")
    request = b"POST /predict HTTP/1.1\r\nHost: a\r\nX-Request-Priority: none\r\nContent-Length: 0\r\n\r\n"
    block, num_sent = request * 10_000, 0
    with connect(server) as connection:
        with contextlib.suppress(ConnectionError):
            for _ in range(50):
                connection.sendall(block)
                num_sent += len(block)
        wait_until(lambda: count(server, "send_timeout") > before, "the client is disconnected")
    assert num_sent < 50 * len(block)


@pytest.mark.parametrize("path", ["/health/live", "/predict"])
def test_thousands_of_requests_in_one_piece_leave_turns_for_others(server: ServerProcess, path: str) -> None:
    method = b"GET" if path == "/health/live" else b"POST"
    request = method + f" {path} HTTP/1.1\r\nContent-Length: 0\r\n\r\n".encode()
    number = 4000
    with connect(server) as greedy, httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
        greedy.sendall(request * number)
        for _ in range(5):
            assert_serves(client)
        num_answers, tail = 0, b""
        while num_answers < number:
            part = greedy.recv(1 << 20)
            assert part, "closed before all were answered"
            num_answers += (tail + part).count(b"HTTP/1.1 ")
            tail = (tail + part)[-8:]
    assert num_answers == number


def test_more_connections_than_there_may_be_are_refused_and_idle_ones_make_room(server: ServerProcess) -> None:
    refused, evicted = count(server, "too_many"), count(server, "evicted")
    slow = HEAD % (PATH.encode(), 60_000)
    with connections(server, MAX_CONNECTIONS) as held:
        for connection in held:
            connection.sendall(slow)
        with connect(server) as late:
            answer = read_all(late)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "overloaded"
        for connection in held:
            assert b"408" in read_all(connection)
    wait_until(lambda: count(server, "too_many") > refused, "the refusal is counted")
    with connections(server, MAX_CONNECTIONS) as idle:
        for connection in idle[-3:]:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        wait_until(lambda: is_served(server), "an idle connection makes room")
    wait_until(lambda: count(server, "evicted") > evicted, "the eviction is counted")


def is_served(server: ServerProcess) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(server.url + "/health/live").status_code == 200
    return False


@pytest.mark.parametrize(
    ("sent", "reason", "status"),
    [
        (b"GET /%s HTTP/1.1\r\n\r\n" % (b"a" * 10_000), "url_too_long", 414),
        (b"GET / HTTP/1.1\r\nX: %s\r\n\r\n" % (b"a" * 70_000), "head_too_large", 431),
        (b"\0\r\n\r\n", "malformed", 400),
    ],
)
def test_what_is_not_read_counts_as_a_request_and_as_a_connection(
    server: ServerProcess, sent: bytes, reason: str, status: int
) -> None:
    def requests() -> float:
        text = httpx.get(server.url + "/metrics").text
        name = "sluice_http_requests_total"
        found = re.search(rf'{name}{{method="_other",route="_unknown",status="{status}"}} (\S+)', text)
        return float(found[1]) if found else 0.0

    before, requests_before = count(server, reason), requests()
    with connect(server) as connection:
        connection.sendall(sent)
        assert read_all(connection).startswith(b"HTTP/1.1 %d " % status)
    wait_until(lambda: count(server, reason) > before, "the connection is counted")
    assert requests() > requests_before


@pytest.mark.parametrize(("workers", "fast_path"), [("1", "true"), ("2", "true"), ("1", "false")])
def test_a_server_that_ends_awaits_no_body_longer_than_it_drains(tmp_path: Path, workers: str, fast_path: str) -> None:
    write_forecast_folder(tmp_path)
    hour = "3600000"
    with server_process(
        tmp_path,
        SLUICE_WORKERS=workers,
        SLUICE_FAST_PATH=fast_path,
        SLUICE_BODY_TIMEOUT_MS=hour,
        SLUICE_REQUEST_TIMEOUT_MS=hour,
        SLUICE_DRAIN_SECONDS="0",
    ) as server:
        found = urlsplit(server.url)
        with socket.create_connection((found.hostname, found.port), PATIENCE_S) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
            assert httpx.get(server.url + "/health/live").status_code == 200
            assert server.end() == 0
            head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 "), "the client was not slow: another server may take its request"
    assert {b"retry-after: 1", b"connection: close"} <= set(head.lower().splitlines())
    assert json.loads(body)["code"] == "overloaded"


def test_streams_that_do_not_end_leave_connections_to_others(tmp_path: Path) -> None:
    write_forecast_stream(tmp_path, cells("lstm"))
    head = b"POST /predict/stream HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    first_line = b'{"model": "toy-sensor"}\n'
    begin = head + b"%x\r\n%s\r\n" % (len(first_line), first_line)
    with server_process(tmp_path, SLUICE_MAX_CONNECTIONS="20") as server:
        with connections(server, 19) as held:
            for stream in held[:10]:
                stream.sendall(begin)
                assert stream.recv(100).startswith(b"HTTP/1.1 200 ")
            for stream in held[10:]:
                stream.sendall(begin)
                answer = b""
                while not answer.endswith(b"}"):
                    part = stream.recv(1 << 16)
                    assert part, answer
                    answer += part
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b"retry-after: 1" in answer
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"] == "there are too many streams"
            assert httpx.get(server.url + "/health/live").status_code == 200

        def is_streamed() -> bool:
            with connect(server) as stream:
                stream.sendall(begin + b"0\r\n\r\n")
                return stream.recv(100).startswith(b"HTTP/1.1 200 ")

        wait_until(is_streamed, "streams whose clients have gone make room")
