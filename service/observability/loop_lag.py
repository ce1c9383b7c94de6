"""How late the event loop is: a timer is set again and again, and the delay of each is observed.

Whatever holds the loop, a long calculation or the garbage collector, holds every request; the timer waits like they do. A
stall that falls between two timers is seen from the later one on only, so the worst of many is near the truth.
"""

from __future__ import annotations

from collections.abc import Callable

from service.clock import Alarm, Clock, MonotonicClock

# 50 times a second, 4 µs each: 0.02 % of a core that is awake anyhow.
INTERVAL_S = 0.02


class LoopLagMonitor:
    """Calls `observe` with the seconds by which each timer was late, from `start` to `stop`, on the loop that started it."""

    def __init__(self, observe: Callable[[float], None], clock: Clock | None = None, interval_s: float = INTERVAL_S) -> None:
        self._observe = observe
        self._clock = clock or MonotonicClock()
        self._interval_s = interval_s
        self._due_at = 0.0
        self._timer: Alarm | None = None

    def start(self) -> None:
        self._due_at = self._clock.now() + self._interval_s
        self._timer = self._clock.call_at(self._due_at, self._fire)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        # uvloop's timers count whole milliseconds and may be early by a part of one.
        self._observe(max(0.0, self._clock.now() - self._due_at))
        self.start()
