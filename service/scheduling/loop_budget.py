"""The time of an event loop, divided: before work on the loop, a request asks whether this turn has time left for it.

A batch that is answered wakes all its clients at once, and their next requests come together: 32 texts of 400 words are
14 ms of splitting in one turn of the loop, in which no batch is begun and no answer goes out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

LONGEST_S = 0.004


class LoopBudget:
    """How long the turns of one event loop may be; there is one for each loop, which all its models share.

    Only what asks `is_spent` first counts; all other work on the loop is not seen.
    """

    def __init__(self, longest_s: float = LONGEST_S, now: Callable[[], float] = time.perf_counter) -> None:
        self._longest_s = longest_s
        self._now = now
        self._ends_at: float | None = None

    def is_spent(self) -> bool:
        """Whether this turn of the loop has been long; then `renewal` is to be awaited."""
        now = self._now()
        if self._ends_at is None:
            self._ends_at = now + self._longest_s
            asyncio.get_running_loop().call_soon(self._renew)
        return now > self._ends_at

    async def renewal(self) -> None:
        """Wait for a turn that has time left, in the order of arrival."""
        while self.is_spent():  # noqa: ASYNC110 - the next turn of the loop is the event
            await asyncio.sleep(0)

    def _renew(self) -> None:
        self._ends_at = None
