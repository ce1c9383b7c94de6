"""Open-loop load: a stall counts for every request that was due meanwhile, and no failure makes a server look fast."""

from __future__ import annotations

import asyncio
import http.client
import time

import numpy as np
import pytest

from benchmarks.open_loop import OpenLoad, Times, arrivals_s, generate
from tests.stalling import CLOSE, CLOSING, OK, REFUSED, StallingServer

STALL_S = 0.5


def load(server: StallingServer, times: Times, connections: int = 8, timeout_s: float = 30) -> OpenLoad:
    return asyncio.run(generate(server.url, [b'{"a": 1}', b'{"b": 2}'], times, connections, timeout_s))


def closed_loop_s(server: StallingServer, num_requests: int) -> list[float]:
    """The latencies on one connection that sends its next request after the response."""
    host = server.url.split("/")[2]
    connection = http.client.HTTPConnection(host)
    latencies = []
    for _ in range(num_requests):
        started = time.perf_counter()
        connection.request("POST", "/predict", b"{}")
        connection.getresponse().read()
        latencies.append(time.perf_counter() - started)
    connection.close()
    return latencies


def test_a_stall_that_a_closed_loop_hides_raises_the_open_loops_percentiles() -> None:
    num_requests = 300
    with StallingServer(stall_at=100, stall_s=STALL_S) as server:
        closed_loop = closed_loop_s(server, num_requests)
    with StallingServer(stall_at=100, stall_s=STALL_S) as server:
        open_load = load(server, arrivals_s(200, num_requests / 200))
    assert max(closed_loop) >= STALL_S
    # One request of 300 met the stall; the others were not sent until it was over.
    assert np.percentile(closed_loop, 99) < STALL_S / 2
    assert open_load.p99_ms > 1e3 * STALL_S / 2
    assert open_load.num_failed == 0


def test_waiting_for_a_free_connection_is_part_of_the_latency() -> None:
    with StallingServer(stall_at=0, stall_s=STALL_S) as server:
        found = load(server, np.array([0.0, 0.01, 0.02, 0.03]), connections=1)
    # All four waited for the one that stalled.
    assert found.p50_ms > 1e3 * (STALL_S - 0.03)
    assert found.num_failed == 0


def test_bodies_are_sent_in_turn() -> None:
    with StallingServer() as server:
        load(server, np.linspace(0, 0.1, 6), connections=1)
    assert server.bodies == [b'{"a": 1}', b'{"b": 2}'] * 3


def test_error_statuses_are_failures_without_a_latency() -> None:
    with StallingServer(lambda number: REFUSED if number % 2 else OK) as server:
        found = load(server, np.linspace(0, 0.2, 20))
    assert found.num_failed == 10
    assert found.requests_per_s == pytest.approx(found.arrivals_per_s / 2, rel=0.5)


def test_a_connection_that_the_server_closes_is_opened_again() -> None:
    with StallingServer(lambda number: CLOSING) as server:
        found = load(server, np.linspace(0, 0.2, 20), connections=2)
    assert found.num_failed == 0


def test_a_connection_closed_without_a_response_is_a_failure() -> None:
    with StallingServer(lambda number: CLOSE if number in (3, 4) else OK) as server:
        found = load(server, np.linspace(0, 0.2, 20), connections=2)
    assert found.num_failed == 2


def test_a_timeout_is_a_failure_with_the_time_as_latency() -> None:
    with StallingServer(stall_at=2, stall_s=1.0) as server:
        found = load(server, np.array([0.0, 0.01, 0.02]), connections=3, timeout_s=0.2)
    assert found.num_failed == 1
    assert found.p999_ms > 190


def test_a_server_without_2xx_responses_has_no_numbers() -> None:
    with StallingServer(lambda number: REFUSED) as server, pytest.raises(ValueError, match="none of 5 requests"):
        load(server, np.linspace(0, 0.1, 5))


def test_a_late_generator_reports_its_lag() -> None:
    async def hold_up_the_loop() -> None:
        await asyncio.sleep(0.05)
        time.sleep(0.3)  # noqa: ASYNC251  # what a generator without a core to itself goes through

    async def both(url: str) -> OpenLoad:
        load, _ = await asyncio.gather(generate(url, [b"{}"], np.linspace(0, 0.4, 40), 8), hold_up_the_loop())
        return load

    with StallingServer() as server:
        found = asyncio.run(both(server.url))
    assert found.lag_max_ms > 150


def test_arrivals_are_a_poisson_process() -> None:
    times = arrivals_s(1000, 20)
    gaps = np.diff(times)
    assert times[-1] < 20
    assert len(times) == pytest.approx(20_000, rel=0.03)
    # Exponential gaps: the deviation is the mean.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert gaps.min() > 0
    np.testing.assert_array_equal(times, arrivals_s(1000, 20))


def test_without_arrivals_there_is_nothing_to_measure() -> None:
    with StallingServer() as server, pytest.raises(ValueError, match="no request is due"):
        load(server, arrivals_s(0.001, 0.1))
