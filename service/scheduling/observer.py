"""What is reported of a batcher's items and batches. Counts nothing itself, and knows no metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

DequeueReason = Literal["taken", "expired", "cancelled", "stopped"]
"""Why items left the queue: into a batch, past their deadline, their request was given up, the batcher stopped."""


class BatchObserver(Protocol):
    """Events of a batcher, each reported once, always on the event loop."""

    def enqueued(self, rows: int) -> None:
        """One item was admitted to the queue."""
        ...

    def refused(self, rows: int) -> None:
        """One item was refused: the queue is full."""
        ...

    def left_queue(self, num_items: int, rows: int, reason: DequeueReason) -> None:
        """Items that had been enqueued are no longer waiting."""
        ...

    def batch_executed(
        self, *, rows: int, steps: int, padded_steps: int, queue_s: Sequence[float], compute_s: float, is_ok: bool
    ) -> None:
        """A batch ran. `steps` are true ones, `padded_steps` are rows x longest; `queue_s` holds each item's wait.

        A failed batch of several items is reported with `is_ok=False`; its items are then run, and reported, alone.
        """
        ...


class SilentObserver:
    """Ignores every event."""

    def enqueued(self, rows: int) -> None:
        pass

    def refused(self, rows: int) -> None:
        pass

    def left_queue(self, num_items: int, rows: int, reason: DequeueReason) -> None:
        pass

    def batch_executed(
        self, *, rows: int, steps: int, padded_steps: int, queue_s: Sequence[float], compute_s: float, is_ok: bool
    ) -> None:
        pass
