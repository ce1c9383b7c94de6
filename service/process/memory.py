"""The process's heap: freed blocks are kept while the process is busy, and unused memory is returned when it becomes idle.

For glibc, the C library of most Linux systems; elsewhere nothing happens. Knows nothing of requests: a process is busy or idle
by the processor time that it uses.
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import Callable

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


class IdleDetector:
    """Detects when a busy process becomes idle. `cpu_s` gives the processor time that it has used so far."""

    def __init__(self, cpu_s: Callable[[], float] = time.process_time) -> None:
        self._cpu_s = cpu_s
        self._used_s = cpu_s()
        self._was_busy = True

    def has_become_idle(self) -> bool:
        """To be called every CHECK_INTERVAL_S: whether this is the first idle interval after a busy one."""
        used_s, self._used_s = self._cpu_s() - self._used_s, self._cpu_s()
        is_busy = used_s > BUSY_SHARE * CHECK_INTERVAL_S
        has_become_idle = self._was_busy and not is_busy
        self._was_busy = is_busy
        return has_become_idle


async def trim_heap_when_idle() -> None:
    """Trim the heap each time the process becomes idle, for ever."""
    detector = IdleDetector()
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
