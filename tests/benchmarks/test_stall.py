"""Where the loop stood is told by our own line, the commonest first."""

from __future__ import annotations

import sys
import threading

from benchmarks.stall import where
from benchmarks.watched import places, waited_for_core_s


def test_the_commonest_of_our_own_lines_comes_first() -> None:
    stalls = [
        {"stall_ms": 30.0, "place": ["asyncio/runners.py:1 run", "service/wire.py:18 read"]},
        {"stall_ms": 12.0, "place": ["api/predict.py:9 parse", "service/models/model.py:1 predict"]},
        {"stall_ms": 14.0, "place": ["api/predict.py:9 parse"]},
        {"stall_ms": 11.0, "place": ["asyncio/runners.py:1 run"]},
    ]
    assert list(where(stalls)) == [
        "2x api/predict.py:9 parse (13 ms)",
        "1x service/wire.py:18 read (30 ms)",
        "1x asyncio/runners.py:1 run (11 ms)",
    ]


def test_a_place_is_told_innermost_first() -> None:
    here = places(sys._getframe())
    assert here[0].startswith("benchmarks/test_stall.py:")
    assert here[0].endswith(" test_a_place_is_told_innermost_first")
    assert len(here) > 1


def test_the_wait_for_a_core_is_known_of_every_thread() -> None:
    assert waited_for_core_s(threading.get_native_id()) >= 0
