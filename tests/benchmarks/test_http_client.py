"""Requests that are posted together are all in flight before the first response is read."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.http_client import post, post_together

NUM_REQUESTS = 5
TIMEOUT_S = 20


class _Barrier(BaseHTTPRequestHandler):
    """Echoes a body after as many requests have arrived as it takes; the body `bad` gets 503 at once."""

    arrived = threading.Barrier(NUM_REQUESTS)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if body == b"bad":
            self.send_response_only(503)
        else:
            if self.path == "/together":
                self.arrived.wait(TIMEOUT_S)
            self.send_response_only(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Barrier) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_requests_posted_together_are_in_flight_at_the_same_time(url: str) -> None:
    bodies = [b"%d" % number for number in range(NUM_REQUESTS)]
    assert post_together(f"{url}/together", bodies) == bodies


def test_an_error_status_is_an_exception(url: str) -> None:
    assert post(f"{url}/alone", b"good") == b"good"
    with pytest.raises(OSError, match="503"):
        post(f"{url}/alone", b"bad")
    with pytest.raises(http.client.HTTPException, match="503"):
        post_together(f"{url}/alone", [b"good", b"bad"])
