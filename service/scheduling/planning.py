"""Who goes into the next batch: a pure decision about those who wait, the time and the bounds.

Knows nothing of event loops, threads or what is computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from service.scheduling.costs import HANDOVER_MS, SMALL_LSTM, CostModel

W = TypeVar("W", bound="Waiting")


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a batch and of the queue. An item that alone is larger than a batch may be runs alone."""

    max_batch_size: int = 32
    """Rows of a batch."""
    max_padded_steps: int = 16384
    """Rows x longest: what the batch costs, so that one long series does not make everyone pay.

    Beyond about 16,000 a row-step costs more, not less: the batch leaves the processor's cache (LSTM of 64 and 128 units).
    """
    max_queue_size: int = 1024
    """Rows that may wait."""
    max_queue_delay_s: float = 0.0
    """How long an unfilled batch waits for company. 0: a free worker takes what is there."""
    cost: CostModel = SMALL_LSTM
    """What a run of the graph costs: it decides whose company is worth the padding."""
    max_inline_ms: float = 0.0
    """An item that is alone, and whose run costs no more than this, runs on the event loop itself. 0: on a thread, always."""


class Waiting(Protocol):
    """What `plan` sees of an item in the queue."""

    @property
    def rows(self) -> int: ...

    @property
    def steps(self) -> int:
        """The size of its time axis."""
        ...

    @property
    def enqueued_at(self) -> float: ...

    @property
    def deadline(self) -> float | None: ...

    @property
    def key(self) -> Hashable:
        """Only items with equal keys share a batch."""
        ...

    @property
    def runs_alone(self) -> bool:
        """It was in a batch that failed, and is tried once more without company."""
        ...

    @property
    def has_left(self) -> bool:
        """Nobody waits for the answer any more."""
        ...


@dataclass(frozen=True, slots=True)
class Plan(Generic[W]):
    """A decision: `batch` is to be run now, `expired` and `left` are to be dropped, everything else stays in its order.

    When `batch` is empty and `wait_until` is set, there are items, but they may still wait for company until then.
    """

    batch: list[W] = field(default_factory=list)
    expired: list[W] = field(default_factory=list)
    left: list[W] = field(default_factory=list)
    wait_until: float | None = None


# How far ahead of its turn an item may be taken to keep a batch even, in batches of rows as long as the oldest.
LOOKAHEAD = 4


def plan(waiting: Iterable[W], now: float, limits: Limits) -> Plan[W]:
    """Choose the next batch; drop who left or came too late. Pure.

    The oldest item always goes, so nobody starves. Company is chosen among the next in line, those nearest to it in
    length first, as long as the batch stays within its bounds and costs no more than running the newcomer by itself.
    """
    result: Plan[W] = Plan()
    live: list[W] = []
    lookahead = 0
    is_even = True
    for item in waiting:
        if item.has_left:
            result.left.append(item)
        elif item.deadline is not None and item.deadline <= now:
            result.expired.append(item)
        else:
            if not live:
                lookahead = LOOKAHEAD * max(1, min(limits.max_batch_size, limits.max_padded_steps // max(item.steps, 1)))
            live.append(item)
            if is_even:
                oldest = live[0]
                is_even = item.steps == oldest.steps and item.rows == 1 and not item.runs_alone and item.key == oldest.key
            if len(live) >= (lookahead // LOOKAHEAD if is_even else lookahead):
                break
    if not live:
        return result
    batch, is_full = _first_of_equals(live, limits) if is_even else _choose(live, limits)
    ready_at = batch[0].enqueued_at + limits.max_queue_delay_s
    if not is_full and now < ready_at and all(item.deadline is None or item.deadline > ready_at for item in batch):
        return Plan([], result.expired, result.left, ready_at)
    result.batch.extend(batch)
    return result


def _first_of_equals(live: list[W], limits: Limits) -> tuple[list[W], bool]:
    """As `_choose`, of items that differ in nothing: the usual traffic, and a tenth of the work."""
    num = max(1, min(limits.max_batch_size, limits.max_padded_steps // live[0].steps))
    return live[:num], len(live) >= num


def _choose(live: Sequence[W], limits: Limits) -> tuple[list[W], bool]:
    """The oldest and its company, and whether waiting for more company is pointless."""
    oldest = live[0]
    if oldest.runs_alone:
        return [oldest], True
    batch, rows, longest = [oldest], oldest.rows, oldest.steps
    is_full = rows >= limits.max_batch_size
    wanted, predict_ms = oldest.steps, limits.cost.predict_ms
    for item in sorted(live[1:], key=lambda item: abs(item.steps - wanted)):
        if rows >= limits.max_batch_size:
            return batch, True
        if item.key != oldest.key or item.runs_alone:
            continue
        new_rows, new_longest = rows + item.rows, max(longest, item.steps)
        if new_rows > limits.max_batch_size or new_rows * new_longest > limits.max_padded_steps:
            is_full = True
        elif predict_ms(new_rows, new_longest) <= predict_ms(rows, longest) + predict_ms(item.rows, item.steps) + HANDOVER_MS:
            batch.append(item)
            rows, longest = new_rows, new_longest
    return batch, is_full or rows >= limits.max_batch_size
