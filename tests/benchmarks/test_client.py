"""The Python load generator reads whole responses, checks each, and counts the clients that disconnected."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.client import parse_response, run_closed_loop
from benchmarks.traffic import Request, expect_problem, is_ok, mix, post

HEAD = b"HTTP/1.1 422 Unprocessable Entity\r\ncontent-type: application/json\r\ncontent-length: 5\r\n\r\n"


@pytest.mark.parametrize("received", [b"", HEAD[:40], HEAD, HEAD + b"abcd"])
def test_an_incomplete_response_is_none(received: bytes) -> None:
    assert parse_response(received) is None


def test_a_response_ends_after_its_content_length() -> None:
    response = parse_response(HEAD + b"abcdeHTTP/1.1 200 OK")
    assert response is not None
    assert (response.status, response.body, response.ends_connection, response.num_bytes) == (422, b"abcde", False, len(HEAD) + 5)


def test_the_connection_header_ends_the_connection() -> None:
    response = parse_response(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    assert response is not None
    assert response.ends_connection


def test_a_problem_is_expected_by_its_status_and_its_code() -> None:
    is_expected = expect_problem(422, "invalid_input")
    assert is_expected(422, b'{"code":"invalid_input"}')
    assert not is_expected(400, b'{"code":"invalid_input"}')
    assert not is_expected(422, b'{"code":"payload_too_large"}')


def test_mixed_traffic_has_its_shares() -> None:
    valid, invalid, cancelled = (Request(kind, b"", is_ok) for kind in ("valid", "invalid", "cancelled"))
    kinds = [request.kind for request in itertools.islice(mix([valid], [invalid], [cancelled]), 20_000)]
    assert kinds.count("invalid") / len(kinds) == pytest.approx(0.1, abs=0.01)
    assert kinds.count("cancelled") / len(kinds) == pytest.approx(0.05, abs=0.01)
    assert {request.kind for request in itertools.islice(mix([valid]), 100)} == {"valid"}


class _Echo(BaseHTTPRequestHandler):
    """Echoes the request's body; the body `close` ends the connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response_only(200)
        self.send_header("content-length", str(len(body)))
        if body == b"close":
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_run_sends_its_count_and_checks_every_response(port: int) -> None:
    right = Request("right", post("/", b"yes"), lambda status, body: (status, body) == (200, b"yes"))
    wrong = Request("wrong", post("/", b"no"), lambda status, body: body == b"yes")
    last = Request("last", post("/", b"close"), is_ok)
    result = run_closed_loop("127.0.0.1", port, itertools.cycle([right, wrong, last, right]), 3, count=40)
    assert {kind: len(latencies) for kind, latencies in result.latencies_s.items()} == {"right": 20, "wrong": 10, "last": 10}
    assert result.num_errors == 10
    assert result.errors[0].startswith("wrong: 200")


def test_clients_that_disconnect_are_counted_and_replaced(port: int) -> None:
    complete = Request("complete", post("/", b"yes"), is_ok)
    cancelled = Request("cancelled", post("/", b"yes"), is_ok, sent_share=0.5, disconnect_after_s=0.0)
    result = run_closed_loop("127.0.0.1", port, itertools.cycle([complete, cancelled]), 2, count=20)
    assert (result.num_responses, result.num_disconnected, result.num_errors) == (10, 10, 0)


def test_a_run_without_a_server_fails() -> None:
    with pytest.raises(OSError, match="111"):
        run_closed_loop("127.0.0.1", 1, itertools.repeat(Request("valid", b"", is_ok)), 2, count=2)
