"""When the heap is trimmed, and that a process which was large becomes small again."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from service.process.memory import IdleDetector

ROOT = Path(__file__).parents[3]


def idle_intervals(*used_s: float) -> list[bool]:
    """What is detected second by second, with so much processor time used in each."""
    total_s = 0.0
    detector = IdleDetector(lambda: total_s)
    found = []
    for used in used_s:
        total_s += used
        found.append(detector.has_become_idle())
    return found


@pytest.mark.parametrize(
    ("used_s", "found"),
    [
        ((0.0, 0.0, 0.0), [True, False, False]),  # the start itself was busy
        ((0.9, 0.9, 0.01, 0.01), [False, False, True, False]),
        ((0.01, 0.01, 0.9, 0.01, 0.9, 0.01), [True, False, False, True, False, True]),
    ],
)
def test_a_process_becomes_idle_once_after_each_busy_stretch(used_s: tuple[float, ...], found: list[bool]) -> None:
    assert idle_intervals(*used_s) == found


def test_a_process_that_was_marked_as_busy_becomes_idle_once_more() -> None:
    detector = IdleDetector(lambda: 0.0)
    assert detector.has_become_idle()
    assert not detector.has_become_idle()
    detector.mark_busy()
    assert detector.has_become_idle()
    assert not detector.has_become_idle()


FREED = """
import sys
from service.process.memory import trim_heap, configure_malloc
assert configure_malloc()
def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
blocks = [bytearray(200_000) for _ in range(500)]
pin = bytearray(200_000)  # above the others: the heap cannot just shrink from its end
full = resident()
del blocks
kept = resident()
trim_heap()
print(full, kept, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_freed_blocks_are_kept_until_the_heap_is_trimmed() -> None:
    found = subprocess.run([sys.executable, "-c", FREED], cwd=ROOT, capture_output=True, text=True, check=True)
    full, kept, trimmed = map(int, found.stdout.split())
    assert kept > full - 10_000_000
    assert trimmed < full - 90_000_000
