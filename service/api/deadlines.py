"""Requests whose deadline passes: their task is cancelled, whatever it waits for, so that the answer is not late.

What runs on a thread cannot be interrupted and goes on; nothing waits for it any longer.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any


class DeadlineMonitor:
    """Cancels tasks at their deadlines, in seconds of `time.monotonic()`.

    One timer for all of them: timeouts are mostly equal, so it is set rarely, and a timer per request costs 2 to 3 µs.
    """

    def __init__(self) -> None:
        self._deadlines: dict[asyncio.Task[Any], float] = {}
        self._expired: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def watch(self, task: asyncio.Task[Any], deadline: float, now: float) -> None:
        """Cancel `task` at `deadline` unless `forget` is called before; `now` is the same clock's time."""
        self._deadlines[task] = deadline
        if deadline < self._timer_at:
            self._set_timer(task.get_loop(), deadline, now)

    def has_expired(self, task: asyncio.Task[Any]) -> bool:
        """Whether the task was cancelled at its deadline."""
        return task in self._expired

    def forget(self, task: asyncio.Task[Any]) -> None:
        """The request is over."""
        self._deadlines.pop(task, None)
        self._expired.discard(task)

    def _set_timer(self, loop: asyncio.AbstractEventLoop, deadline: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = loop.call_later(max(0.0, deadline - now), self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        now = self._timer_at
        self._timer, self._timer_at = None, math.inf
        following = math.inf
        for task, deadline in self._deadlines.items():
            if deadline > now:
                following = min(following, deadline)
            elif task not in self._expired:
                self._expired.add(task)
                task.cancel()
        if following < math.inf:
            self._set_timer(loop, following, now)
