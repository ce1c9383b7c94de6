"""wrk sends every body in turn, and its report is parsed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.load import Load, parse, run_wrk, write_bodies
from tests.stalling import StallingServer

REPORT = """Running 4s test @ http://127.0.0.1:8000/predict
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    12.32ms    2.25ms  45.10ms   84.69%
    Req/Sec     5.21k   350.12     5.80k    75.00%
  Latency Distribution
     50%  980.00us
     75%   12.91ms
     90%   14.02ms
     99%    1.20s
  20000 requests in 4.00s, 9.23MB read
"""


def test_the_rate_and_the_latencies_are_read_in_milliseconds() -> None:
    text = REPORT + "Requests/sec:   5000.00\nTransfer/sec:      2.31MB\n"
    assert parse(text) == Load(requests_per_s=5000.0, p50_ms=0.98, p99_ms=1200.0, num_failed=0)


def test_error_statuses_and_broken_sockets_count_as_failed() -> None:
    text = (
        REPORT
        + "  Socket errors: connect 1, read 2, write 0, timeout 4\n  Non-2xx or 3xx responses: 10\nRequests/sec:   5000.00\n"
    )
    assert parse(text).num_failed == 17


def test_error_statuses_are_not_part_of_the_rate() -> None:
    text = REPORT + "  Non-2xx or 3xx responses: 15000\nRequests/sec:   5000.00\n"
    assert parse(text).requests_per_s == 1250.0


def test_a_report_without_a_rate_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rate"):
        parse("unable to connect")


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_all_bodies_are_sent_unchanged(tmp_path: Path) -> None:
    bodies = [b'{"text": "]==] ]] \\" \xc3\xa9"}', b"{}", b'{"history": [1.5, 2.25]}']
    with StallingServer() as server:
        load = run_wrk(server.url, write_bodies(bodies, tmp_path / "bodies"), 2, 1)
    assert set(server.bodies) == set(bodies)
    assert load.requests_per_s > 0
    assert load.num_failed == 0
