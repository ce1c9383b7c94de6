"""The Python load generator reads answers whole, checks each, and counts who left."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.client import burst, read_answer
from benchmarks.traffic import Ask, blend, post, refused, succeeds

HEAD = b"HTTP/1.1 422 Unprocessable Entity\r\ncontent-type: application/json\r\ncontent-length: 5\r\n\r\n"


@pytest.mark.parametrize("received", [b"", HEAD[:40], HEAD, HEAD + b"abcd"])
def test_half_an_answer_is_none(received: bytes) -> None:
    assert read_answer(received) is None


def test_an_answer_ends_where_its_length_says() -> None:
    answer = read_answer(HEAD + b"abcdeHTTP/1.1 200 OK")
    assert answer is not None
    assert (answer.status, answer.body, answer.ends_connection, answer.num_bytes) == (422, b"abcde", False, len(HEAD) + 5)


def test_an_answer_says_that_it_is_the_last() -> None:
    answer = read_answer(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    assert answer is not None
    assert answer.ends_connection


def test_a_problem_is_right_by_its_status_and_its_code() -> None:
    is_right = refused(422, "invalid_input")
    assert is_right(422, b'{"code":"invalid_input"}')
    assert not is_right(400, b'{"code":"invalid_input"}')
    assert not is_right(422, b'{"code":"payload_too_large"}')


def test_a_blend_has_its_shares() -> None:
    valid, invalid, left = (Ask(kind, b"", succeeds) for kind in ("valid", "invalid", "left"))
    kinds = [ask.kind for ask in itertools.islice(blend([valid], [invalid], [left]), 20_000)]
    assert kinds.count("invalid") / len(kinds) == pytest.approx(0.1, abs=0.01)
    assert kinds.count("left") / len(kinds) == pytest.approx(0.05, abs=0.01)
    assert {ask.kind for ask in itertools.islice(blend([valid]), 100)} == {"valid"}


class _Echo(BaseHTTPRequestHandler):
    """Answers with the body it got; `close` in it ends the connection."""

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


def test_a_burst_sends_so_many_and_checks_every_answer(port: int) -> None:
    right = Ask("right", post("/", b"yes"), lambda status, body: (status, body) == (200, b"yes"))
    wrong = Ask("wrong", post("/", b"no"), lambda status, body: body == b"yes")
    last = Ask("last", post("/", b"close"), succeeds)
    seen = burst("127.0.0.1", port, itertools.cycle([right, wrong, last, right]), 3, count=40)
    assert {kind: len(latencies) for kind, latencies in seen.latencies_s.items()} == {"right": 20, "wrong": 10, "last": 10}
    assert seen.num_wrong == 10
    assert seen.wrong[0].startswith("wrong: 200")


def test_who_leaves_is_counted_and_replaced(port: int) -> None:
    stays = Ask("stays", post("/", b"yes"), succeeds)
    leaves = Ask("leaves", post("/", b"yes"), succeeds, sent_share=0.5, leaves_after_s=0.0)
    seen = burst("127.0.0.1", port, itertools.cycle([stays, leaves]), 2, count=20)
    assert (seen.num_answered, seen.num_left, seen.num_wrong) == (10, 10, 0)


def test_a_burst_without_a_server_fails() -> None:
    with pytest.raises(OSError, match="111"):
        burst("127.0.0.1", 1, itertools.repeat(Ask("valid", b"", succeeds)), 2, count=2)
