from __future__ import annotations

from benchmarks.in_process import compare
from benchmarks.servers import ROOT


def test_two_processes_of_a_checkout_compute_blocks_of_requests_in_turn() -> None:
    times = compare([ROOT, ROOT], num_connections=4, rounds=2, num_requests=8)
    assert [len(each) for each in times] == [2, 2]
    assert min(map(min, times)) > 0.0
