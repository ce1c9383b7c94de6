"""The threads that run one model's batches: payloads in, results out.

They start when more batches run than there are threads, and end when nothing has needed them for a while. Knows no queue, no
limits and no requests: what runs next, and how many at once, is decided by `batching.py`.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from service.clock import Clock

T = TypeVar("T")
R = TypeVar("R")


class Outcome(NamedTuple, Generic[R]):
    """What a run gives back: the results, or why there are none; when it began and how long it took, in the clock's seconds."""

    results: Sequence[R]
    error: BaseException | None
    started_at: float
    compute_s: float


Deliver: TypeAlias = Callable[[Outcome[R]], None]


class WorkerThreads(Generic[T, R]):
    """Runs batches on threads of their own, and hands each outcome over on the event loop.

    `run` gets the payloads of one batch and returns one result each, in order; it must be thread-safe. All methods belong to the
    event loop that called `start`.
    """

    def __init__(self, run: Callable[[Sequence[T]], Sequence[R]], clock: Clock, name: str, idle_s: float) -> None:
        """Threads that were not needed for `idle_s` end."""
        self._run = run
        self._clock = clock
        self._name = name
        self._idle_s = idle_s
        self._todo: SimpleQueue[tuple[list[T], Deliver[R]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._num_threads = 0  # without those that were told to end
        self._peak_running = 0  # since threads were last ended
        self._num_running = 0
        self._idle_alarm: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver on this event loop. Threads start when there is something to run."""
        self._loop = loop

    def attempt(self, payloads: list[T]) -> Outcome[R]:
        """Run a batch here and now."""
        results: Sequence[R] = ()
        error: BaseException | None = None
        started_at = self._clock.now()
        try:
            results = self._run(payloads)
            assert len(results) == len(payloads), f"{len(results)} results for {len(payloads)} items"
        except BaseException as exc:  # whatever it is, a request waits for the result
            error = exc
        return Outcome(results, error, started_at, self._clock.now() - started_at)

    def submit(self, payloads: list[T], deliver: Deliver[R]) -> None:
        """Run a batch on a thread; `deliver` gets its outcome, on the event loop.

        It comes with each batch, as who made this object would otherwise be held by it, and both live until they are collected.
        """
        self._num_running += 1
        self._peak_running = max(self._peak_running, self._num_running)
        if self._num_threads < self._num_running:
            self._start_thread()
        self._todo.put((payloads, deliver))

    def end(self) -> None:
        """Have all threads end, and wait for them unless one still runs a batch, which nothing can interrupt."""
        if self._idle_alarm is not None:
            self._idle_alarm.cancel()
        for _ in range(self._num_threads):
            self._todo.put(None)
        if not self._num_running:
            for thread in self._threads:
                thread.join()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, args=(self._loop,), name=self._name, daemon=True)
        self._threads = [*(each for each in self._threads if each.is_alive()), thread]
        self._num_threads += 1
        thread.start()
        if self._idle_alarm is None:
            self._set_idle_alarm()

    def _set_idle_alarm(self) -> None:
        assert self._loop is not None, "only what was started has threads"
        self._idle_alarm = self._loop.call_later(self._idle_s, self._end_idle_threads, context=contextvars.Context())

    def _end_idle_threads(self) -> None:
        """Have those threads end that no batch needed since the last time.

        One alarm on the loop instead of a timeout of each thread's `get`: in Python 3.11 a `SimpleQueue.get` of which another
        thread took the value just as its time was over waits on without end.
        """
        self._idle_alarm = None
        while self._num_threads > self._peak_running:
            self._num_threads -= 1
            self._todo.put(None)
        self._peak_running = self._num_running
        if self._num_threads:
            self._set_idle_alarm()

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """The life of a thread."""
        while True:
            todo = self._todo.get()
            if todo is None:
                break
            payloads, deliver = todo
            outcome = self.attempt(payloads)
            try:
                loop.call_soon_threadsafe(self._finish, deliver, outcome)
            except RuntimeError:  # the loop is closed, and with it every request
                return
            # Or the last batch would stay in memory until the next one comes.
            del todo, payloads, deliver, outcome

    def _finish(self, deliver: Deliver[R], outcome: Outcome[R]) -> None:
        self._num_running -= 1
        deliver(outcome)
