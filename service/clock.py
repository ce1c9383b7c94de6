"""Time as the rest of the service sees it: seconds that only go forward, and alarms. Tests hand in one that they turn by hand."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Seconds that only go forward, and an alarm."""

    def now(self) -> float: ...

    def call_at(self, when: float, callback: Callable[[], None]) -> Alarm: ...


class Alarm(Protocol):
    def cancel(self) -> None: ...


class MonotonicClock:
    """`time.monotonic()` with alarms of the running event loop (uvloop's own time stands still within one iteration)."""

    def now(self) -> float:
        return time.monotonic()

    def call_at(self, when: float, callback: Callable[[], None]) -> Alarm:
        loop = asyncio.get_running_loop()
        # An alarm is nobody's: what it logs is not of the request that happens to set it.
        return loop.call_later(max(0.0, when - time.monotonic()), callback, context=contextvars.Context())
