"""Load beyond capacity: what counts as answered, what clients do after a refusal, and a run against Sluice."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.overload import Comparison, Sample, find_pattern, main, render, share_cores
from benchmarks.overload_load import Generator, OverloadResult, Pattern, _responses
from tests.stalling import CLOSING, OK, REFUSED, StallingServer

LATER = REFUSED.replace(b"\r\n\r\n", b"\r\nRetry-After: 5\r\n\r\n")


def load(server: StallingServer, pattern: Pattern, seconds: float = 0.4, deadline_s: float = 10.0) -> OverloadResult:
    return asyncio.run(Generator(server.url, [b"{}"], pattern, deadline_s).run(seconds, 0.0))


def sample(goodput_per_s: float, cpu_us: float = 100.0, **counts: int) -> Sample:
    latencies = dict.fromkeys(counts, (1.0, 2.0, 3.0))
    return Sample(OverloadResult(goodput_per_s, 100, counts, latencies, 0, 0, 0, 0, 0.0, 0.5), cpu_us, 100_000_000)


def test_responses_are_counted_by_status_and_those_in_time_are_goodput() -> None:
    with StallingServer(lambda number: REFUSED if number % 2 else OK) as server:
        found = load(server, Pattern(connections=4))
    assert set(found.counts) == {"200", "503"}
    assert found.goodput_per_s * 0.4 == pytest.approx(found.counts["200"])
    assert found.num_without_retry_after == found.counts["503"]
    with StallingServer() as server:
        assert load(server, Pattern(connections=4), deadline_s=0.0).goodput_per_s == 0


def test_a_client_that_honours_retry_after_sends_nothing_before_and_another_sends_at_once() -> None:
    with StallingServer(lambda number: LATER) as server:
        found = load(server, Pattern(connections=4, honours=True))
    assert (found.counts, found.num_without_retry_after) == ({"503": 4}, 0)
    with StallingServer(lambda number: LATER) as server:
        assert load(server, Pattern(connections=4)).counts["503"] > 4


def test_a_client_that_leaves_closes_its_connection_and_opens_another() -> None:
    with StallingServer(stall_at=0, stall_s=0.3) as server:
        found = load(server, Pattern(connections=1, leave_after_s=0.1))
    assert found.num_left >= 1
    assert found.num_lost == 0


def test_an_open_loop_sends_when_requests_are_due_and_reports_its_lag() -> None:
    with StallingServer() as server:
        found = load(server, Pattern(rate=100.0), seconds=1.0)
    assert found.counts["200"] == pytest.approx(100, abs=40)
    assert found.num_unanswered == 0
    assert found.lag_p99_ms >= 0


def test_a_connection_that_the_server_closes_behind_its_response_is_opened_again() -> None:
    with StallingServer(lambda number: CLOSING) as server:
        found = load(server, Pattern(connections=2))
    assert found.counts["200"] > 2
    assert found.num_lost == 0


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_responses_are_found_however_they_are_cut(cut: int) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    stream = LATER + OK + chunked + CLOSING
    received, found = b"", []
    for start in range(0, len(stream), cut):
        received += stream[start : start + cut]
        for status, retry_after_s, is_last, rest in _responses(received):
            found.append((status, retry_after_s, is_last))
            received = rest
    assert found == [(503, 5.0, False), (200, None, False), (200, None, False), (200, None, True)]
    assert received == b""


def test_goodput_is_a_share_of_the_capacity_of_the_same_round() -> None:
    comparison = Comparison("Sluice", 1, "texts", "2x")
    for capacity, found in ((100.0, 90.0), (200.0, 200.0), (50.0, 40.0)):
        comparison.pairs.append((sample(capacity), sample(found, 110.0, **{"200": 5, "503": 7})))
    assert comparison.median("goodput_ratios") == pytest.approx(0.9)
    assert comparison.median("cost_ratios") == pytest.approx(1.1)
    (line,) = (line for line in render([comparison], is_shared=True).splitlines() if line.startswith("| texts"))
    assert "**0.90**" in line
    assert "1 / 2" in line


def test_an_open_loop_is_a_multiple_of_the_capacity() -> None:
    assert find_pattern("1.5x", 200.0) == Pattern(rate=300.0)
    assert find_pattern("1000h", 200.0) == Pattern(connections=1000, honours=True)


def test_cores_are_shared_only_where_there_are_too_few() -> None:
    assert share_cores(2, [4, 5]) == ([], [])
    assert share_cores(1, [4, 5, 6]) == ([4], [5, 6])


@pytest.mark.slow  # the bundled models; what it is made of is tested above
def test_a_short_run_measures_sluice(capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--targets",
        "sluice",
        "--workloads",
        "one",
        "--loads",
        "2x",
        "--processes",
        "1",
        "--rounds",
        "1",
        "--seconds",
        "0.5",
    ]
    main(options)
    lines = capsys.readouterr().out.splitlines()
    (row,) = (line for line in lines if line.startswith("| one | 2x | Sluice, 1 process |"))
    assert "not measured" not in row
