"""When memory is given back, and that a process which was large becomes small again."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from service.process.memory import Rest

ROOT = Path(__file__).parents[3]


def rests(*used_s: float) -> list[bool]:
    """What is answered second by second, with so much processor time used in each."""
    total_s = 0.0
    rest = Rest(lambda: total_s)
    answers = []
    for used in used_s:
        total_s += used
        answers.append(rest.has_begun())
    return answers


@pytest.mark.parametrize(
    ("used_s", "answers"),
    [
        ((0.0, 0.0, 0.0), [True, False, False]),  # the start itself was busy
        ((0.9, 0.9, 0.01, 0.01), [False, False, True, False]),
        ((0.01, 0.01, 0.9, 0.01, 0.9, 0.01), [True, False, False, True, False, True]),
    ],
)
def test_rest_begins_once_after_each_busy_stretch(used_s: tuple[float, ...], answers: list[bool]) -> None:
    assert rests(*used_s) == answers


FREED = """
import sys
from service.process.memory import give_back, settle_heap
assert settle_heap()
def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
blocks = [bytearray(200_000) for _ in range(500)]
pin = bytearray(200_000)  # above the others: the heap cannot just shrink from its end
full = resident()
del blocks
kept = resident()
give_back()
print(full, kept, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_freed_blocks_are_kept_until_they_are_given_back() -> None:
    found = subprocess.run([sys.executable, "-c", FREED], cwd=ROOT, capture_output=True, text=True, check=True)
    full, kept, given_back = map(int, found.stdout.split())
    assert kept > full - 10_000_000
    assert given_back < full - 90_000_000
