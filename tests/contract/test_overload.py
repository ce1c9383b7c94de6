"""A server that is asked for more than it can do answers as much as it can, and refuses the rest at once and in words."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serving import PATIENCE_S, ROOT, server_process
from tests.websockets import RawSocket, open_websocket, receive, receive_rest, send

pytestmark = pytest.mark.resilience

TEXT = "The film was slow but quiet and moving, and nobody expected how it would end. " * 20
NUM_CLIENTS, NUM_REQUESTS = 150, 3


async def overload(url: str, **headers: str) -> list[httpx.Response]:
    """Many clients that do not wait between their requests."""
    body = json.dumps({"instances": [TEXT]}).encode()
    limits = httpx.Limits(max_connections=NUM_CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:

        async def ask() -> list[httpx.Response]:
            given = {"content-type": "application/json", **headers}
            return [await client.post("/predict/sentiment", content=body, headers=given) for _ in range(NUM_REQUESTS)]

        return [response for each in await asyncio.gather(*(ask() for _ in range(NUM_CLIENTS))) for response in each]


@pytest.mark.parametrize("fast_path", ["true", "false"])
def test_under_overload_every_request_gets_its_answer_or_a_refusal_that_says_when_to_return(fast_path: str) -> None:
    with server_process(ROOT / "models", SLUICE_REQUEST_TIMEOUT_MS="400", SLUICE_FAST_PATH=fast_path) as server:
        alone = httpx.post(f"{server.url}/predict/sentiment", json={"instances": [TEXT]}, timeout=30).json()["predictions"]
        responses = asyncio.run(overload(server.url))
        counts = Counter(response.status_code for response in responses)
        assert counts.keys() <= {200, 503, 504}
        assert counts[200] > 0
        for response in responses:
            if response.status_code == 200:
                (expected,), (found,) = alone, response.json()["predictions"]
                assert found["label"] == expected["label"]
                assert found["score"] == pytest.approx(expected["score"], rel=1e-5)
            elif response.status_code == 503:
                assert 1 <= int(response.headers["retry-after"]) <= 2
                assert response.json()["code"] == "overloaded"
        again = httpx.post(f"{server.url}/predict/sentiment", json={"instances": [TEXT]}, timeout=30)
        assert again.status_code == 200


def test_a_stream_over_a_websocket_is_refused_under_overload_and_one_that_is_open_ends_with_its_state() -> None:
    hurried = {"X-Request-Timeout-Ms": "20", "X-Request-Priority": "9"}
    step = {"history": [20.5]}

    async def load(url: str) -> None:
        while not has_seen.done():
            await overload(url)

    def watch(url: str) -> tuple[bytes, list[tuple[str, Any]], int]:
        """The first refusal of a stream; and what is said of a step in one that was opened before."""
        refused = b""
        while not refused.startswith(b"HTTP/1.1 503"):
            attempt = RawSocket(url, headers="".join(f"{name}: {value}\r\n" for name, value in hurried.items()))
            refused = attempt.read_head()
            attempt.close()
        answers: list[Any] = []
        while not answers or answers[-1][0] == "prediction":
            send(opened, step)
            answers.append(receive(opened))
        rest, code = receive_rest(opened)
        return refused, [answers[-1], *rest], code

    async def watch_under_load(url: str) -> tuple[bytes, list[tuple[str, Any]], int]:
        loading = asyncio.create_task(load(url))
        try:
            return await asyncio.wait_for(asyncio.to_thread(watch, url), PATIENCE_S)
        finally:
            has_seen.set_result(None)
            await loading

    with server_process(ROOT / "models", SLUICE_REQUEST_TIMEOUT_MS="400") as server:
        with open_websocket(server.url, additional_headers=hurried) as opened:
            send(opened, {"model": "sensor-stream"})
            loop = asyncio.new_event_loop()
            has_seen: asyncio.Future[None] = loop.create_future()
            refused, messages, code = loop.run_until_complete(watch_under_load(server.url))
            loop.close()
        assert b"\r\nretry-after: " in refused.lower()
        (error, problem), (end, content) = messages
        assert (error, problem["code"], end, code) == ("error", "overloaded", "end", 1013)
        with open_websocket(server.url) as again:
            send(again, {"model": "sensor-stream", "state": content["state"]}, step, "null")
            messages, code = receive_rest(again)
        assert ([field for field, _ in messages], code) == (["prediction", "end"], 1000)


def test_a_request_with_little_time_is_answered_within_it_or_refused() -> None:
    with server_process(ROOT / "models") as server:
        header = {"X-Request-Timeout-Ms": "1"}
        texts = [TEXT] * 200
        late = httpx.post(f"{server.url}/predict/sentiment", json={"instances": texts}, headers=header, timeout=30)
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        field = httpx.post(f"{server.url}/predict/sentiment", json={"instances": texts, "timeout_ms": 1}, timeout=30)
        assert (field.status_code, field.json()["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Request-Timeout-Ms", "0"),
        ("X-Request-Timeout-Ms", "-5"),
        ("X-Request-Timeout-Ms", "1e3"),
        ("X-Request-Timeout-Ms", "9" * 5000),
        ("X-Request-Priority", "0"),
        ("X-Request-Priority", "10"),
        ("X-Request-Priority", "high"),
    ],
)
def test_a_header_that_says_nothing_sensible_is_refused(shared_server: str, header: str, value: str) -> None:
    answer = httpx.post(f"{shared_server}/predict/sentiment", json={"instances": ["Good."]}, headers={header: value}, timeout=30)
    assert (answer.status_code, answer.json()["code"], answer.json()["where"]) == (400, "malformed_request", header.lower())


def test_a_length_of_thousands_of_digits_is_refused_and_leaves_nothing_behind(shared_server: str) -> None:

    url = httpx.URL(shared_server)
    for path in ("/predict", "/predict/sentiment", "/models"):
        with socket.create_connection((url.host, url.port), timeout=30) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {'9' * 4301}\r\n\r\n"
            connection.sendall(head.encode())
            status = connection.recv(65536).split(b" ")[1]
            assert status in (b"400", b"405", b"413"), status
    metrics = httpx.get(f"{shared_server}/metrics", timeout=30).text
    in_flight = [line for line in metrics.splitlines() if line.startswith("sluice_http_requests_in_flight")]
    assert in_flight
    assert all(line.endswith(" 0.0") or 'route="/metrics"' in line for line in in_flight)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[str]:
    with server_process(ROOT / "models") as server:
        yield server.url
