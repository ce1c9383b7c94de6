"""How late the event loop is: an alarm is set again and again, and each time its delay is told.

Whatever keeps the loop, a long calculation or the garbage collector, keeps every request; the alarm waits in the same line.
A stall that falls between two alarms is seen from the later one on only, so the worst of many is near the truth.
"""

from __future__ import annotations

from collections.abc import Callable

from service.clock import Alarm, Clock, MonotonicClock

# 50 times a second, 4 µs each: 0.02 % of a core that is awake anyhow.
EVERY_S = 0.02


class LagWatch:
    """Calls `observe` with the seconds by which each alarm came late, from `start` to `stop`, on the loop that started it."""

    def __init__(self, observe: Callable[[float], None], clock: Clock | None = None, every_s: float = EVERY_S) -> None:
        self._observe = observe
        self._clock = clock or MonotonicClock()
        self._every_s = every_s
        self._due = 0.0
        self._alarm: Alarm | None = None

    def start(self) -> None:
        self._due = self._clock.now() + self._every_s
        self._alarm = self._clock.call_at(self._due, self._ring)

    def stop(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self) -> None:
        # uvloop's timers count whole milliseconds and may be early by a part of one.
        self._observe(max(0.0, self._clock.now() - self._due))
        self.start()
