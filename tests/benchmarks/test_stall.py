"""Stalls are grouped by our own line of code, the most frequent first."""

from __future__ import annotations

from benchmarks.stall import common_locations


def test_the_most_frequent_own_line_comes_first() -> None:
    stalls = [
        {"stall_ms": 30.0, "stack": ["asyncio/runners.py:1 run", "service/wire.py:18 read"]},
        {"stall_ms": 12.0, "stack": ["service/api/predict.py:9 parse", "service/models/model.py:1 predict"]},
        {"stall_ms": 14.0, "stack": ["json/decoder.py:3 decode", "service/api/predict.py:9 parse"]},
        {"stall_ms": 11.0, "stack": ["asyncio/runners.py:1 run"]},
    ]
    assert list(common_locations(stalls)) == [
        "2x service/api/predict.py:9 parse (13 ms)",
        "1x service/wire.py:18 read (30 ms)",
        "1x asyncio/runners.py:1 run (11 ms)",
    ]
