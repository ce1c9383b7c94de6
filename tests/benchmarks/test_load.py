"""The load generator's report is read as it was printed."""

from __future__ import annotations

import pytest

from benchmarks.load import Load, parse

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
  20755 requests in 4.00s, 9.23MB read
"""


def test_the_rate_and_the_latencies_are_read_in_milliseconds() -> None:
    text = REPORT + "Requests/sec:   5187.13\nTransfer/sec:      2.31MB\n"
    assert parse(text) == Load(requests_per_s=5187.13, p50_ms=0.98, p99_ms=1200.0, num_failed=0)


def test_refused_answers_and_broken_sockets_count_as_failed() -> None:
    text = (
        REPORT
        + "  Socket errors: connect 1, read 2, write 0, timeout 4\n  Non-2xx or 3xx responses: 10\nRequests/sec:   100.00\n"
    )
    assert parse(text).num_failed == 17


def test_a_report_without_a_rate_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rate"):
        parse("unable to connect")
