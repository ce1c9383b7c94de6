"""The memory of a process: how much it may have, and its heap, whose unused part is returned when the process becomes idle.

The heap is glibc's, the C library of most Linux systems; elsewhere nothing happens. Knows nothing of requests: a process is busy
or idle by the processor time that it uses.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

# mallopt's names in <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
# Seconds of processor time in one second: above, the process is busy.
BUSY_SHARE = 0.05
CHECK_INTERVAL_S = 1.0


def configure_malloc() -> bool:
    """Keep freed blocks for the next run of a graph, in one heap; to be called before other threads allocate.

    By default glibc gives every thread a heap, most of which can never be returned, and returns large blocks at each free: the
    next run then waits for the kernel to clear the same pages (docs/explanation/performance.md). False where it is not glibc.
    """
    mallopt = _libc_function("mallopt")
    if mallopt is None:
        return False
    # 32 MB is the most that glibc takes; setting one of them also ends its own moving of both.
    return all(mallopt(*pair) == 1 for pair in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 1 << 30)))


def trim_heap() -> None:
    """Return every unused page to the system. Takes some 20 ms for 150 MB, without the GIL; threads that allocate wait."""
    trim = _libc_function("malloc_trim")
    if trim is not None:
        trim(0)


def bound_address_space(num_bytes: int) -> bool:
    """Have allocations of this process fail once it has so many bytes more than now. False where that cannot be (not Linux).

    What fails is the allocation that goes beyond, most likely the largest: a run of a graph then ends with an error.
    """
    pages = _read_statm("self")
    if pages is None:
        return False
    import resource  # Unix only

    bound = pages[0] * resource.getpagesize() + num_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        bound = min(bound, hard)
    resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    return True


def own_memory_bytes(pid: int) -> int:
    """The memory of a process that no file backs, whether it shares it with its parent or not; 0 where that is not known."""
    pages = _read_statm(str(pid))
    return 0 if pages is None else (pages[1] - pages[2]) * os.sysconf("SC_PAGE_SIZE")


def _read_statm(pid: str) -> list[int] | None:
    """Pages of a process: all that are mapped, those in memory, and those of them that files back."""
    try:
        return [int(number) for number in Path(f"/proc/{pid}/statm").read_text().split()]
    except OSError:
        return None


class IdleDetector:
    """Detects when a busy process becomes idle. `cpu_s` gives the processor time that it has used so far."""

    def __init__(self, cpu_s: Callable[[], float] = time.process_time) -> None:
        self._cpu_s = cpu_s
        self._used_s = cpu_s()
        self._was_busy = True

    def has_become_idle(self) -> bool:
        """To be called every CHECK_INTERVAL_S: whether this is the first idle interval after a busy one."""
        before_s, self._used_s = self._used_s, self._cpu_s()
        is_busy = self._used_s - before_s > BUSY_SHARE * CHECK_INTERVAL_S
        has_become_idle = self._was_busy and not is_busy
        self._was_busy = is_busy
        return has_become_idle

    def mark_busy(self) -> None:
        """Take the process for busy until the next idle interval: what it did left memory to return, in however little time."""
        self._was_busy = True


async def trim_heap_when_idle(detector: IdleDetector | None = None) -> None:
    """Trim the heap each time the process becomes idle, for ever."""
    detector = detector or IdleDetector()
    while True:
        await asyncio.sleep(CHECK_INTERVAL_S)
        if detector.has_become_idle():
            await asyncio.to_thread(trim_heap)


def _libc_function(name: str) -> Callable[..., int] | None:
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):
        return None
    return function
