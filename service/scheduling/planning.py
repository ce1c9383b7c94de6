"""Which rows run together: a pure decision about the items in a queue, or the rows of one request, and the limits.

Knows nothing of event loops, threads or what is computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from service.scheduling.costs import HANDOVER_MS, SMALL_LSTM, CostModel

W = TypeVar("W", bound="QueuedItem")


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a batch and of the queue, all of them numbers. An item that alone is larger than a batch runs alone."""

    max_batch_size: int = 32
    """Rows of a batch."""
    max_padded_steps: int = 16384
    """Rows x longest: what the batch costs, so that one long series does not delay every other row.

    Beyond about 16,000 a row-step costs more, not less: the batch leaves the processor's cache (LSTM of 64 and 128 units).
    """
    max_queue_size: int = 1024
    """Rows that may wait."""
    max_queue_delay_s: float = 0.0
    """How long an unfilled batch waits for more rows. 0: a free worker takes what is there."""
    cost: CostModel = SMALL_LSTM
    """What a run of the graph costs: it decides which rows are worth their padding."""
    max_inline_ms: float = 0.0
    """An item that is alone, and whose run costs no more than this, runs on the event loop itself. 0: on a thread, always."""


DEFAULTS = Limits()


@dataclass(frozen=True, slots=True)
class RequestedLimits:
    """The limits as an operator requests them; None: the number that the cost of the graph suggests (`tuning.py`)."""

    max_batch_size: int | None = None
    max_padded_steps: int | None = None
    max_queue_size: int = DEFAULTS.max_queue_size
    max_queue_delay_s: float = DEFAULTS.max_queue_delay_s

    def with_defaults(self) -> Limits:
        """The limits of a graph that is not measured, or not yet."""
        return self.resolve(DEFAULTS.max_batch_size, DEFAULTS.max_padded_steps)

    def resolve(
        self, max_batch_size: int, max_padded_steps: int, *, cost: CostModel = SMALL_LSTM, max_inline_ms: float = 0.0
    ) -> Limits:
        """The limits, with these bounds in place of those that are not requested."""
        return Limits(
            max_batch_size if self.max_batch_size is None else self.max_batch_size,
            max_padded_steps if self.max_padded_steps is None else self.max_padded_steps,
            self.max_queue_size,
            self.max_queue_delay_s,
            cost,
            max_inline_ms,
        )


class QueuedItem(Protocol):
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
        """It was in a batch that failed, and is tried once more by itself."""
        ...

    @property
    def is_cancelled(self) -> bool:
        """Its request was given up; the outputs would go nowhere."""
        ...


@dataclass(frozen=True, slots=True)
class Plan(Generic[W]):
    """A decision: `batch` is to be run now, `expired` and `cancelled` are to be dropped, all else stays in its order.

    When `batch` is empty and `wait_until` is set, there are items, but they may still wait for more rows until then.
    """

    batch: list[W] = field(default_factory=list)
    expired: list[W] = field(default_factory=list)
    cancelled: list[W] = field(default_factory=list)
    wait_until: float | None = None


# How far ahead of its turn an item may be taken to keep a batch even, in batches of rows as long as the oldest.
LOOKAHEAD = 4


def plan(queue: Iterable[W], now: float, limits: Limits) -> Plan[W]:
    """Choose the next batch; drop the items that are cancelled or past their deadline. Pure.

    The oldest item always goes, so none starves. Others join it from among the next in line, those nearest to it in length
    first, as long as the batch stays within its bounds and costs no more than running the newcomer by itself.
    """
    result: Plan[W] = Plan()
    live: list[W] = []
    lookahead = 0
    is_even = True
    for item in queue:
        if item.is_cancelled:
            result.cancelled.append(item)
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
    batch, is_full = _fill_evenly(live, limits) if is_even else _fill(live, limits)
    ready_at = batch[0].enqueued_at + limits.max_queue_delay_s
    if not is_full and now < ready_at and all(item.deadline is None or item.deadline > ready_at for item in batch):
        return Plan([], result.expired, result.cancelled, ready_at)
    result.batch.extend(batch)
    return result


def group_rows(lengths: Sequence[int], limits: Limits) -> list[list[int]]:
    """Cut the rows of one request into groups that are worth a run each: lists of row numbers, none above the limits.

    A group has at least one row. Beginning with the longest, rows join it as long as all its padding costs no more than one
    run more. Such groups cost up to 5 % more than the cheapest partition on random lengths, 40 % on the worst that a search
    found, and take one pass.
    """
    num = len(lengths)
    if num == 1:
        return [[0]]
    longest = max(lengths)
    if longest == min(lengths):
        size = max(1, min(limits.max_batch_size, limits.max_padded_steps // longest))
        return [list(range(start, min(start + size, num))) for start in range(0, num, size)]
    cost = limits.cost
    run_ms, step_ms, row_step_ms = cost.overhead_ms + HANDOVER_MS, cost.step_ms, cost.row_step_ms
    groups: list[list[int]] = []
    group: list[int] = []
    num_padded = 0
    for row in sorted(range(num), key=lengths.__getitem__, reverse=True):
        steps = lengths[row]
        if group:
            num_padded += longest - steps
            is_full = len(group) >= limits.max_batch_size or (len(group) + 1) * longest > limits.max_padded_steps
            if not is_full and num_padded * row_step_ms <= run_ms + steps * step_ms:
                group.append(row)
                continue
            groups.append(sorted(group))
        group, longest, num_padded = [row], steps, 0
    return [*groups, sorted(group)]


def _fill_evenly(live: list[W], limits: Limits) -> tuple[list[W], bool]:
    """As `_fill`, of items that differ in nothing: the usual traffic, and a tenth of the work."""
    num = max(1, min(limits.max_batch_size, limits.max_padded_steps // live[0].steps))
    return live[:num], len(live) >= num


def _fill(live: Sequence[W], limits: Limits) -> tuple[list[W], bool]:
    """The oldest item and those that join it, and whether waiting for more is pointless."""
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
