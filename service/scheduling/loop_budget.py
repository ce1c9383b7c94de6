"""The time of an event loop, divided: before work on the loop, a request asks whether this turn has time left for it.

A batch that is answered wakes all its clients at once, and their next requests come together: 32 texts of 400 words are
14 ms of splitting in one turn of the loop, in which no batch is begun and no answer goes out.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

LONGEST_S = 0.004


class LoopBudget:
    """How long the turns of one event loop may be; there is one for each loop, which all its models share.

    Only what asks `is_spent` first counts; all other work on the loop is not seen. A turn resumes only as many of those that
    wait as its time is enough for, by what the last ones took: each of a thousand asking in every turn would cost more than
    their work.
    """

    def __init__(self, longest_s: float = LONGEST_S, now: Callable[[], float] = time.perf_counter) -> None:
        self._longest_s = longest_s
        self._now = now
        self._begun_at: float | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._num_resumed = 0
        self._usual_s = longest_s / 2

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a turn; those that were given up are among them until theirs comes."""
        return len(self._waiting)

    def is_spent(self) -> bool:
        """Whether this turn of the loop has been long, or others wait already; then `renewal` is to be awaited."""
        now = self._now()
        if self._begun_at is None:
            self._begin(now)
        assert self._begun_at is not None
        return bool(self._waiting) or now > self._begun_at + self._longest_s

    async def renewal(self) -> None:
        """Wait for a turn that has time left, in the order of arrival."""
        if not self.is_spent():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def _begin(self, now: float) -> None:
        self._begun_at = now
        asyncio.get_running_loop().call_soon(self._renew)

    def _renew(self) -> None:
        """The next turn: resume those who waited longest."""
        now = self._now()
        if self._num_resumed and self._begun_at is not None:
            took_s = (now - self._begun_at) / self._num_resumed
            self._usual_s = 0.8 * self._usual_s + 0.2 * took_s
        self._begun_at = None
        self._num_resumed = 0
        num_turns = max(1, math.ceil(self._longest_s / max(self._usual_s, 1e-5)))
        while self._waiting and self._num_resumed < num_turns:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._num_resumed += 1
        if self._num_resumed or self._waiting:
            self._begin(now)
