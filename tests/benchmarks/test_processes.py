"""Processor time is read of every process, all threads together."""

from __future__ import annotations

import os

from benchmarks.processes import cpu_seconds


def test_processor_time_only_grows() -> None:
    before = cpu_seconds(os.getpid())
    sum(range(2_000_000))
    assert cpu_seconds(os.getpid()) >= before > 0
