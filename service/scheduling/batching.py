"""The queue in front of one model: items are run in batches, each gets its own result, and what is too much is refused.

Knows nothing of HTTP, onnxruntime or Prometheus; time comes from the clock it is given. The event loop owns the queue and
the futures; worker threads get values and give values back.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from service.clock import Alarm, Clock, MonotonicClock
from service.context import CURRENT, BatchRun, RequestContext
from service.errors import DeadlineExceeded, InferenceFailed, ModelNotReady, Overloaded, RequestError, ServiceError
from service.scheduling.observer import BatchObserver, DequeueReason, SilentObserver
from service.scheduling.planning import Limits, plan
from service.scheduling.threads import Outcome, WorkerThreads

log = logging.getLogger(__name__)

# Of a thousand models most wait: only those with recent requests have threads.
THREAD_IDLE_S = 60.0
# A run that took too long has so much time to prove that it is over.
CONFIRM_S = 1.0
# How often it is seen whether a run that is to end has ended.
END_CHECK_S = 0.05

T = TypeVar("T")
R = TypeVar("R")


class Submission(NamedTuple, Generic[T]):
    """One item of `submit_all`: the payload and what the plan must know about it (see `Batcher.submit`)."""

    payload: T
    rows: int = 1
    steps: int = 1
    true_steps: int | None = None
    key: Hashable = None


@dataclass(slots=True, eq=False)
class _QueuedItem(Generic[T, R]):
    payload: T
    rows: int
    steps: int
    true_steps: int
    key: Hashable
    deadline: float | None
    enqueued_at: float
    result: asyncio.Future[R]
    context: RequestContext | None
    runs_alone: bool = False

    @property
    def is_cancelled(self) -> bool:
        return self.result.done()


@dataclass(slots=True, eq=False)
class _Batch(Generic[T, R]):
    items: list[_QueuedItem[T, R]]
    taken_at: float


class Batcher(Generic[T, R]):
    """Gathers items into batches and runs them on at most `num_workers` threads, which end when nothing runs for a while.

    `run` gets the payloads of one batch and returns one result each, in order; it must be thread-safe. All methods belong
    to the event loop that called `start`.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Sequence[R]],
        limits: Limits,
        num_workers: int = 1,
        clock: Clock | None = None,
        observer: BatchObserver | None = None,
        *,
        name: str = "",
        max_run_s: float = math.inf,
        on_overdue: Callable[[], None] = lambda: None,
        idle_s: float = THREAD_IDLE_S,
    ) -> None:
        """Threads that were not needed for `idle_s` end. `on_overdue` is called once a batch has run for longer than
        `max_run_s`, or still runs when `stop` gives up.
        """
        self.name = name
        self._max_run_s = max_run_s
        self._on_overdue = on_overdue
        self._watch: Alarm | None = None
        self._overdue: set[int] = set()
        self.limits = limits
        self.num_workers = num_workers
        self._clock = clock or MonotonicClock()
        self._threads = WorkerThreads(run, self._clock, name, idle_s)
        self._observer: BatchObserver = observer or SilentObserver()
        self._queue: dict[_QueuedItem[T, R], None] = {}  # an ordered set: the oldest first, and each is removed at once
        self._queued_rows = 0
        self._running: dict[int, _Batch[T, R]] = {}
        self._num_batches = 0
        self._row_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_open = False
        self._is_dispatch_due = False
        self._alarm: Alarm | None = None
        self._alarm_at = math.inf
        self._delay: Alarm | None = None
        self._finished: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Take items from here on, on this event loop. Threads start when there is something to run."""
        assert self._loop is None, "a batcher starts once"
        self._loop = asyncio.get_running_loop()
        self._threads.start(self._loop)
        self._is_open = True

    async def stop(self, *, drain: bool = True, grace_s: float = 30.0) -> None:
        """Refuse new items, run the queued ones (with `drain=False`: fail them), wait for what runs, end the threads.

        After `grace_s` all that still waits fails with ModelNotReady. A graph that runs cannot be interrupted: its thread is
        then left to end by itself.
        """
        if self._loop is None or not self._is_open:
            return
        self._is_open = False
        if not drain:
            self._fail(list(self._queue), "stopped")
        if self._queue or self._running:
            self._finished = self._loop.create_future()
            grace = self._clock.call_at(self._clock.now() + grace_s, self._give_up)
            await self._finished
            grace.cancel()
        for alarm in (self._alarm, self._delay, self._watch):
            if alarm is not None:
                alarm.cancel()
        self._threads.end()

    async def submit(
        self,
        payload: T,
        *,
        rows: int = 1,
        steps: int = 1,
        true_steps: int | None = None,
        deadline: float | None = None,
        key: Hashable = None,
    ) -> R:
        """The result of one item of `rows` rows of `steps` steps each, of which `true_steps` in all are no padding.

        `deadline` is in the clock's seconds; only items with equal `key` share a batch. Raises Overloaded at once when the
        queue is full, DeadlineExceeded at the deadline even if the batch runs on, InferenceFailed (or the ServiceError
        that `run` raised) when the item failed, and ModelNotReady before `start` and after `stop`.
        """
        item = self._admit(payload, rows, steps, true_steps, key, deadline)
        try:
            return await item.result
        except asyncio.CancelledError:
            self._discard(item)
            raise

    async def submit_all(self, items: Sequence[Submission[T]], *, deadline: float | None = None) -> list[R]:
        """The results of the items of one request, in order; raises what `submit` raises, and gives up the other items.

        Only as many are under way at once as keep the workers busy, so that a request may have more rows than the queue.
        """
        window = min(2 * self.num_workers * self.limits.max_batch_size, self.limits.max_queue_size)
        admitted: list[_QueuedItem[T, R]] = []
        results: list[R] = []
        rows_under_way = 0
        try:
            while len(results) < len(items):
                while len(admitted) < len(items):
                    submission = items[len(admitted)]
                    is_first = len(admitted) == len(results)
                    if not is_first and (rows_under_way + submission.rows > window or not self._has_room(submission.rows)):
                        break
                    admitted.append(self._admit(*submission, deadline))
                    rows_under_way += submission.rows
                oldest = admitted[len(results)]
                results.append(await oldest.result)
                rows_under_way -= oldest.rows
        finally:
            for item in admitted[len(results) :]:
                self._discard(item)
        return results

    def expect_time_left(self, deadline: float | None) -> None:
        """Raise DeadlineExceeded where the deadline has passed, in the clock's seconds: before work that would be for nothing."""
        if deadline is not None and deadline <= self._clock.now():
            raise self._deadline_exceeded()

    async def has_ended(self, within_s: float) -> bool:
        """Whether every run that is under way ends within so many seconds."""
        last = self._clock.now() + within_s
        while self._running and self._clock.now() < last:  # noqa: ASYNC110  (rare, and the hot path need not know of it)
            await asyncio.sleep(END_CHECK_S)
        return not self._running

    @property
    def num_queued(self) -> int:
        """Items that wait."""
        return len(self._queue)

    @property
    def queued_rows(self) -> int:
        """Rows that wait."""
        return self._queued_rows

    @property
    def oldest_wait_s(self) -> float | None:
        """How long the item that waits longest has waited; None when the queue is empty."""
        oldest = min((item.enqueued_at for item in self._queue), default=None)
        return None if oldest is None else self._clock.now() - oldest

    def __repr__(self) -> str:
        state = "open" if self._is_open else "closed"
        return (
            f"<Batcher {self.name!r} {state}: {len(self._queue)} items ({self._queued_rows} rows) queued, "
            f"{len(self._running)} of {self.num_workers} workers busy>"
        )

    def _admit(
        self, payload: T, rows: int, steps: int, true_steps: int | None, key: Hashable, deadline: float | None
    ) -> _QueuedItem[T, R]:
        if not self._is_open or self._loop is None:
            raise self._not_running()
        now = self._clock.now()
        if deadline is not None:
            if deadline <= now:
                raise self._deadline_exceeded()
            if deadline < self._alarm_at:
                self._set_alarm(deadline)
        if not self._has_room(rows):
            self._observer.refused(rows)
            raise self._overloaded()
        result: asyncio.Future[R] = self._loop.create_future()
        true_steps = rows * steps if true_steps is None else true_steps
        item = _QueuedItem(payload, rows, steps, true_steps, key, deadline, now, result, CURRENT.get())
        self._queue[item] = None
        self._queued_rows += rows
        self._observer.enqueued(rows)
        if not self._is_dispatch_due and len(self._running) < self.num_workers:
            # Not at once: what else arrives in this turn of the loop joins the same batch. It costs a lone item a few µs; with
            # 64 clients and 80 µs of Python a request it brings 5 to 10 % more answers (two workers: 32 rows a batch, not 15).
            self._is_dispatch_due = True
            # In a context of its own: what a batch logs is not of the request that happens to be the first in it.
            self._loop.call_soon(self._dispatch, context=contextvars.Context())
        return item

    def _has_room(self, rows: int) -> bool:
        """Whether the queue takes so many rows. An empty queue takes any item, or a large one could never be served."""
        if self._queued_rows + rows <= self.limits.max_queue_size or not self._queue:
            return True
        if len(self._running) >= self.num_workers:
            return False
        self._dispatch()  # a worker is free: what is queued waits for nothing but the next turn of the loop
        return self._queued_rows + rows <= self.limits.max_queue_size or not self._queue

    def _dispatch(self) -> None:
        """Give free workers what has gathered."""
        self._is_dispatch_due = False
        while self._queue and len(self._running) < self.num_workers:
            now = self._clock.now()
            decision = plan(self._queue, now, self.limits)
            if decision.expired:
                self._fail(decision.expired, "expired")
            if decision.cancelled:
                self._remove(decision.cancelled, "cancelled")
            if decision.batch:
                self._remove(decision.batch, "taken")
                number = self._num_batches = self._num_batches + 1
                is_inline = self._should_run_inline(decision.batch)
                self._running[number] = _Batch(decision.batch, now)
                payloads = [item.payload for item in decision.batch]
                if is_inline:
                    self._deliver(number, self._threads.attempt(payloads))
                else:
                    if self._watch is None and self._max_run_s < math.inf:
                        self._watch = self._clock.call_at(now + self._max_run_s, self._check_runs)
                    self._threads.submit(payloads, functools.partial(self._deliver, number))
            elif decision.wait_until is not None:
                self._dispatch_at(decision.wait_until)
                break
        if self._finished is not None and not self._queue and not self._running and not self._finished.done():
            self._finished.set_result(None)

    def _check_runs(self) -> None:
        """One alarm for all runs, which is set again only when the last one went off: nearly all runs are over by then.

        A run is seen to be overdue twice: where the process was stopped meanwhile, the run may be over and not yet known to be.
        """
        self._watch = None
        now = self._clock.now()
        overdue = {number for number, batch in self._running.items() if now - batch.taken_at >= self._max_run_s}
        if overdue & self._overdue:
            log.error("a run of the graph does not end", extra={"model": self.name, "seconds": round(self._max_run_s, 3)})
            self._on_overdue()
            return
        self._overdue = overdue
        if overdue:
            self._watch = self._clock.call_at(now + CONFIRM_S, self._check_runs)
        elif self._running:
            oldest = min(batch.taken_at for batch in self._running.values())
            self._watch = self._clock.call_at(oldest + self._max_run_s, self._check_runs)

    def _should_run_inline(self, batch: Sequence[_QueuedItem[T, R]]) -> bool:
        """Whether to run it here: the way to a thread and back costs a lone item 0.1 ms and more, most of it waking up.

        Only where nothing else waits or runs, so that under load the loop is free for requests while threads compute.
        """
        if len(batch) > 1 or self._running or self._queue or not self.limits.max_inline_ms:
            return False
        return self.limits.cost.predict_ms(batch[0].rows, batch[0].steps) <= self.limits.max_inline_ms

    def _deliver(self, number: int, outcome: Outcome[R]) -> None:
        """Back on the loop: hand each item that still waits its result."""
        batch = self._running.pop(number)
        self._observe(batch, outcome)
        if outcome.error is None:
            self._dispatch()  # first of all, so that the worker computes while the results go out
            for item, result in zip(batch.items, outcome.results, strict=True):
                if not item.result.done():
                    item.result.set_result(result)
            return
        waiting = [item for item in batch.items if not item.result.done()]
        if len(batch.items) > 1:
            log.warning(
                "batch of %d items failed, each is tried alone: %s",
                len(batch.items),
                self.name,
                exc_info=outcome.error,
                extra={"request_ids": [item.context.request_id for item in batch.items if item.context is not None]},
            )
            self._retry_alone(waiting)
        else:
            failure = self._failure(outcome.error, batch.items[0].context)
            for item in waiting:
                item.result.set_exception(failure)
        self._dispatch()

    def _observe(self, batch: _Batch[T, R], outcome: Outcome[R]) -> None:
        rows = sum(item.rows for item in batch.items)
        self._observer.batch_executed(
            rows=rows,
            steps=sum(item.true_steps for item in batch.items),
            padded_steps=rows * max(item.steps for item in batch.items),
            queue_s=[batch.taken_at - item.enqueued_at for item in batch.items],
            compute_s=outcome.compute_s,
            is_ok=outcome.error is None,
        )
        self._add_stages(batch, rows, outcome)
        row_s = outcome.compute_s / rows
        self._row_s = row_s if self._row_s == 0.0 else 0.9 * self._row_s + 0.1 * row_s

    def _add_stages(self, batch: _Batch[T, R], rows: int, outcome: Outcome[R]) -> None:
        """Tell the requests that are timed how long they waited, and when their graph ran."""
        run: BatchRun | None = None
        for item in batch.items:
            if item.context is None or item.context.timing is None:
                continue
            timing = item.context.timing
            if run is None:
                run = BatchRun(rows, outcome.started_at, outcome.started_at + outcome.compute_s)
            if timing.stages is not None:
                run.requests.append(item.context)
            timing.add("queue", item.enqueued_at, run.started_at, run)
            timing.add("run", run.started_at, run.ended_at, run)

    def _retry_alone(self, items: Sequence[_QueuedItem[T, R]]) -> None:
        """Put them back before all others, which came later."""
        now = self._clock.now()
        for item in items:
            item.runs_alone, item.enqueued_at = True, now
            self._queued_rows += item.rows
            self._observer.enqueued(item.rows)
        self._queue = {**dict.fromkeys(items), **self._queue}

    def _failure(self, error: BaseException, context: RequestContext | None) -> ServiceError:
        if isinstance(error, RequestError):
            return error
        request = {} if context is None else {"request_id": context.request_id}
        log.error("the model failed: %s", self.name, exc_info=error, extra=request)
        if isinstance(error, ServiceError):
            return error
        failure = InferenceFailed("the model failed on this input", model=self.name or None)
        failure.__cause__ = error
        return failure

    def _discard(self, item: _QueuedItem[T, R]) -> None:
        """Its request is given up: take the item out of the queue, or ignore its result."""
        if item in self._queue:
            self._remove([item], "cancelled")
        item.result.cancel()  # of a failure that is already there, asyncio then no longer logs that it was never retrieved

    def _remove(self, items: Sequence[_QueuedItem[T, R]], reason: DequeueReason) -> None:
        rows = 0
        for item in items:
            del self._queue[item]
            rows += item.rows
        self._queued_rows -= rows
        self._observer.left_queue(len(items), rows, reason)

    def _fail(self, items: Sequence[_QueuedItem[T, R]], reason: Literal["expired", "stopped"]) -> None:
        """Take items out of the queue; their requests fail for this reason."""
        if items:
            self._remove(items, reason)
        for item in items:
            if not item.result.done():
                item.result.set_exception(self._deadline_exceeded() if reason == "expired" else self._not_running())

    def _set_alarm(self, when: float) -> None:
        """One alarm for all deadlines: timeouts are mostly equal, so it goes off rarely and is almost never moved."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = when
        self._alarm = self._clock.call_at(when, self._expire)

    def _expire(self) -> None:
        """Fail all whose deadline has passed, queued or running, and set the alarm for the next one."""
        now = self._clock.now()
        self._fail([item for item in self._queue if item.deadline is not None and item.deadline <= now], "expired")
        running = [item for batch in self._running.values() for item in batch.items if not item.result.done()]
        following = math.inf
        for item in [*running, *self._queue]:
            if item.deadline is None:
                continue
            if item.deadline <= now:
                item.result.set_exception(self._deadline_exceeded())
            else:
                following = min(following, item.deadline)
        self._alarm, self._alarm_at = None, math.inf
        if following < math.inf:
            self._set_alarm(following)

    def _dispatch_at(self, until: float) -> None:
        if self._delay is not None:
            self._delay.cancel()
        self._delay = self._clock.call_at(until, self._dispatch)

    def _give_up(self) -> None:
        """The grace of `stop` is over: all that waits fails."""
        self._fail(list(self._queue), "stopped")
        for batch in self._running.values():
            for item in batch.items:
                if not item.result.done():
                    item.result.set_exception(self._not_running())
        if self._finished is not None and not self._finished.done():
            self._finished.set_result(None)
        if self._running:
            self._on_overdue()

    def _overloaded(self) -> Overloaded:
        retry_after_s = self._queued_rows * self._row_s / self.num_workers if self._row_s else 1.0
        return Overloaded(
            f"the queue is full: {self._queued_rows} rows wait, the limit is {self.limits.max_queue_size}",
            retry_after_s=min(max(retry_after_s, 0.05), 60.0),
            model=self.name or None,
            queued=self._queued_rows,
            limit=self.limits.max_queue_size,
        )

    def _deadline_exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded("the answer was not there before the deadline", model=self.name or None)

    def _not_running(self) -> ModelNotReady:
        return ModelNotReady("the model is not running (any more)", model=self.name or None)
