"""What a connection may send, over real sockets and on both paths: bounded heads, ignored upgrades, answers before the end."""

from __future__ import annotations

import logging
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.api.regular_path import (
    MAX_CHUNKS,
    MAX_HEAD_BYTES,
    MAX_MARKS,
    MAX_URL_BYTES,
    holds_many_chunks,
    holds_many_requests,
)
from tests.fakes import PATIENCE_S
from tests.folders import write_forecast_folder
from tests.service.api.test_both_paths import FORECAST, FORECAST_PATH, JSON, Answer, Connection, request, serving

UPGRADE = ["Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA", "Upgrade: h2c"]


@pytest.fixture(scope="module", params=[True, False], ids=["fast path", "regular path"])
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("models")
    write_forecast_folder(folder)
    with serving(folder, fast_path=request.param) as port:
        yield port


@contextmanager
def connected(port: int) -> Iterator[Connection]:
    connection = Connection(port)
    try:
        yield connection
    finally:
        connection.close()


def statuses(connection: Connection) -> list[int]:
    """Of all answers until the connection ends."""
    found = []
    while (answer := connection.receive()) is not None:
        found.append(status(answer))
    return found


def status(answer: Answer | None) -> int:
    assert answer is not None
    return int(answer.first_line.split()[1])


# ------------------------------------------------------------------------------------------------------------- upgrades


@pytest.mark.parametrize("num_parts", [1, 2, 7, 60])
def test_an_upgrade_is_ignored_however_its_request_is_split(port: int, num_parts: int) -> None:
    whole = request(headers=[*UPGRADE, JSON, "User-Agent: Java-http-client/21"])
    size = -(-len(whole) // num_parts)
    with connected(port) as connection:
        for _ in range(2):
            for start in range(0, len(whole), size):
                connection.send(whole[start : start + size])
            answer = connection.receive()
            assert status(answer) == 200
            assert answer is not None
            assert b'"forecast"' in answer.body


def test_many_upgrades_in_one_packet_are_answered_one_by_one(port: int) -> None:
    with connected(port) as connection:
        connection.send(request(headers=[*UPGRADE, JSON]) * 100)
        connection.half_close()
        assert statuses(connection) == [200] * 100


JAVA_CLIENT = """
import java.net.URI;
import java.net.http.*;

public class Post {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0])).header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(arguments[1])).build();
        for (int number = 0; number < 3; number++) {
            System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).statusCode());
        }
    }
}
"""


@pytest.mark.slow
def test_a_client_of_the_jdk_gets_its_answers(port: int, tmp_path: Path) -> None:
    java = shutil.which("java")
    if java is None or "jdk.compiler" not in subprocess.run([java, "--list-modules"], capture_output=True, text=True).stdout:
        pytest.skip("no JDK is installed")
    source = tmp_path / "Post.java"
    source.write_text(JAVA_CLIENT)
    arguments = [java, str(source), f"http://127.0.0.1:{port}{FORECAST_PATH}", FORECAST.decode()]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=10 * PATIENCE_S)
    assert (done.stdout.split(), done.stderr) == (["200"] * 3, "")


# ----------------------------------------------------------------------------------------------------------- large heads


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("within the bound", "X: " + "x" * (MAX_HEAD_BYTES - 1000), 200),
        ("one value", "X: " + "x" * MAX_HEAD_BYTES, 431),
        ("one name", "X" * MAX_HEAD_BYTES + ": x", 431),
        ("many headers", "\r\n".join(["X: x"] * (MAX_HEAD_BYTES // 5)), 431),
        ("one value of 4 MB", "X: " + "x" * 4_000_000, 431),
    ],
    ids=lambda value: value if len(str(value)) < 30 else "",
)
def test_a_head_beyond_its_bound_is_refused_and_closes(port: int, name: str, line: str, expected: int) -> None:
    with connected(port) as connection:
        connection.send(request(headers=[JSON, line, "Connection: close"]))
        assert statuses(connection) == [expected]


@pytest.mark.parametrize(("size", "expected"), [(MAX_URL_BYTES, 200), (MAX_URL_BYTES + 1, 414), (100_000, 414), (1_000_000, 414)])
def test_a_url_beyond_its_bound_is_refused_and_closes(port: int, size: int, expected: int) -> None:
    url = FORECAST_PATH + "?"
    with connected(port) as connection:
        connection.send(request(url + "q" * (size - len(url)), headers=[JSON, "Connection: close"]))
        assert statuses(connection) == [expected]


@pytest.mark.parametrize("begin", [b"GET / HTTP/1.1\r\nX: ", b"POST /", b"GET / HTTP/1.1\r\nUpgrade: h2c\r\nConnection: "])
def test_of_an_endless_head_only_a_bounded_part_is_received(port: int, begin: bytes) -> None:
    block, num_sent = b"x" * 1_000_000, 0
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
        client.sendall(begin)
        try:
            while num_sent < 128_000_000:
                client.sendall(block)
                num_sent += len(block)
        except ConnectionError:
            pass
    assert num_sent < 40_000_000


def test_a_refused_head_says_why(port: int) -> None:
    with connected(port) as connection:
        connection.send(request(headers=["X: " + "x" * MAX_HEAD_BYTES]))
        answer = connection.receive()
    assert answer is not None
    assert b'"code":"head_too_large"' in answer.body
    assert b"content-type: application/problem+json" in answer.headers
    assert b"connection: close" in answer.headers


def test_an_endless_trailer_section_is_refused(port: int) -> None:
    head = request(body=b"", headers=[JSON, "Transfer-Encoding: chunked"], length=None)
    with connected(port) as connection:
        connection.send(head + b"%x\r\n%s\r\n0\r\nX: " % (len(FORECAST), FORECAST))
        for _ in range(4):
            connection.send(b"x" * 500_000)
        assert statuses(connection) == [431]


def test_a_head_in_front_of_a_large_body_is_not_counted_with_it(port: int) -> None:
    body = FORECAST + b" " * 500_000
    with connected(port) as connection:
        connection.send(request(headers=[JSON, "X: " + "x" * 60_000], body=body) * 2)
        connection.half_close()
        assert statuses(connection) == [200, 200]


# ------------------------------------------------------------------------------------------------------- many requests


@pytest.mark.parametrize("least", [b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.0\n\n"], ids=["CRLF", "LF"])
@pytest.mark.parametrize(("num_requests", "expected"), [(1, False), (MAX_MARKS, False), (MAX_MARKS + 1, True), (500, True)])
def test_many_requests_are_recognised_however_short_they_are_and_where_the_last_one_is_cut(
    least: bytes, num_requests: int, expected: bool
) -> None:
    head = least.rstrip(b"\r\n")
    for end in range(len(head), len(least) + 1):
        assert holds_many_requests(least * (num_requests - 1) + least[:end]) is expected, end


@pytest.mark.parametrize(
    "body", [b"[0.1]" * 9000, b"[\n0.1\n]" * 9000, b"HTTP/1." * 9000, b""], ids=["a line", "lines", "marks", "empty"]
)
def test_one_request_is_not_taken_for_many_whatever_its_body(body: bytes) -> None:
    assert not holds_many_requests(request(headers=[JSON, "Connection: keep-alive"], body=body))


@pytest.mark.parametrize(
    "chunk", [b"1\r\n5\r\n", b"0001 \r\n\n\r\n", b"1;x=y\r\na\r\n"], ids=["digits", "line feeds", "extensions"]
)
@pytest.mark.parametrize(("num_chunks", "expected"), [(1, False), (MAX_CHUNKS, False), (MAX_CHUNKS + 2, True), (40_000, True)])
def test_many_chunks_are_recognised_however_short_they_are(chunk: bytes, num_chunks: int, expected: bool) -> None:
    assert holds_many_chunks(chunk * num_chunks) is expected


@pytest.mark.parametrize("body", [b"[\r\n0.1,\r\n2\r\n]" * 60, b"[\r\n0.1\r\n]" * 9000, b"{\n}" * 9000, b"0" * 90_000])
def test_a_body_is_not_taken_for_many_chunks(body: bytes) -> None:
    assert not holds_many_chunks(request(headers=[JSON], body=body))


def test_a_body_in_chunks_of_a_byte_is_read_whole_and_others_are_answered_meanwhile(port: int) -> None:
    body = b" " * 100_000 + FORECAST
    head = request(body=b"", headers=[JSON, "Transfer-Encoding: chunked"], length=None)
    with connected(port) as connection, connected(port) as other:
        connection.send(head + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        other.send(request())
        other.half_close()
        assert statuses(other) == [200]
        connection.half_close()
        assert statuses(connection) == [200]


# ------------------------------------------------------------------------------------------------- the end of a connection


def test_a_request_in_front_of_garbage_gets_its_answer(port: int) -> None:
    with connected(port) as connection:
        connection.send(request() + b"\x00garbage")
        assert statuses(connection) == [200, 400]


def test_all_requests_in_front_of_garbage_get_their_answers(port: int) -> None:
    with connected(port) as connection:
        connection.send(request() * 5 + request("/models", b"", method="GET") + b"\x00garbage")
        assert statuses(connection) == [200] * 6 + [400]


def test_a_client_that_closes_its_side_behind_its_requests_gets_their_answers(port: int) -> None:
    for num_requests in (1, 4):
        with connected(port) as connection:
            connection.send(request() * num_requests)
            connection.half_close()
            assert statuses(connection) == [200] * num_requests


@pytest.mark.parametrize("sent", [b"", b"POST /pre", request()[:-1], request(), request() * 9, request(body=b" " * 900_000)[:-9]])
def test_a_reset_of_the_client_logs_one_line_at_most(port: int, sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
        client.sendall(sent)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with connected(port) as connection:  # answered behind the reset
        connection.send(request(headers=[JSON, "Connection: close"]))
        assert statuses(connection) == [200]
    assert len(caplog.records) <= 1
    assert all(record.exc_info is None for record in caplog.records)


@pytest.mark.parametrize("path", [FORECAST_PATH, "/v2/models/toy-forecast/infer"])
def test_who_expects_to_be_told_to_go_on_and_sends_no_chunk_is_refused_without_a_stack_trace(
    port: int, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(port) as connection:
        connection.send(head.encode() + b"no chunk\r\n")
        assert statuses(connection) == [400]
    with connected(port) as connection:  # answered behind it
        connection.send(request(headers=[JSON, "Connection: close"]))
        assert statuses(connection) == [200]
    assert all(record.exc_info is None for record in caplog.records)
