"""A server that is asked for more than it can do answers as much as it can, and refuses the rest at once and in words."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from tests.serving import ROOT, server_process

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
