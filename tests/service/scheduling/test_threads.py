"""The threads of one model: where batches run, who is told, and what is left of them."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Sequence

import pytest

from service.clock import MonotonicClock
from service.scheduling.threads import Outcome, WorkerThreads


def echo(payloads: Sequence[int]) -> list[int]:
    return list(payloads)


async def outcome_of(threads: WorkerThreads[int, int], *payloads: int) -> tuple[Outcome[int], bool]:
    """The outcome of a batch, and whether it was delivered on the thread of the event loop."""
    delivered: asyncio.Future[tuple[Outcome[int], bool]] = asyncio.get_running_loop().create_future()
    threads.submit(
        list(payloads), lambda outcome: delivered.set_result((outcome, threading.current_thread() is threading.main_thread()))
    )
    return await delivered


async def test_an_outcome_is_delivered_on_the_event_loop_and_the_batch_runs_elsewhere() -> None:
    ran_on: list[threading.Thread] = []

    def run(payloads: Sequence[int]) -> list[int]:
        ran_on.append(threading.current_thread())
        return list(payloads)

    threads: WorkerThreads[int, int] = WorkerThreads(run, MonotonicClock(), "echo", idle_s=60.0)
    threads.start(asyncio.get_running_loop())
    outcome, is_on_loop = await outcome_of(threads, 1, 2)
    threads.end()
    assert (outcome.results, outcome.error, is_on_loop) == ([1, 2], None, True)
    assert ran_on[0].name == "echo"


@pytest.mark.parametrize("results", [ValueError("no"), [1, 2, 3]], ids=["raises", "other number of results"])
async def test_a_run_that_fails_is_an_outcome_with_its_error(results: list[int] | ValueError) -> None:
    def run(payloads: Sequence[int]) -> list[int]:
        if isinstance(results, ValueError):
            raise results
        return results

    threads: WorkerThreads[int, int] = WorkerThreads(run, MonotonicClock(), "fails", idle_s=60.0)
    threads.start(asyncio.get_running_loop())
    outcome, _ = await outcome_of(threads, 1)
    again, _ = await outcome_of(threads, 1)
    threads.end()
    assert isinstance(outcome.error, ValueError | AssertionError)
    assert type(again.error) is type(outcome.error), "the thread lives on"


async def test_batches_one_after_the_other_share_a_thread() -> None:
    threads: WorkerThreads[int, int] = WorkerThreads(echo, MonotonicClock(), "one after the other", idle_s=60.0)
    threads.start(asyncio.get_running_loop())
    for number in range(20):
        await outcome_of(threads, number)
    alive = [thread for thread in threading.enumerate() if thread.name == "one after the other"]
    threads.end()
    assert len(alive) == 1


async def test_after_the_end_no_thread_is_left() -> None:
    threads: WorkerThreads[int, int] = WorkerThreads(echo, MonotonicClock(), "ended", idle_s=60.0)
    threads.start(asyncio.get_running_loop())
    await outcome_of(threads, 1)
    threads.end()
    assert [thread for thread in threading.enumerate() if thread.name == "ended"] == []


class Owner:
    """Has threads, and is told of outcomes by a method of its own, as a batcher is."""

    def __init__(self) -> None:
        self.threads: WorkerThreads[int, int] = WorkerThreads(echo, MonotonicClock(), "owned", idle_s=60.0)
        self.delivered = asyncio.Event()

    def deliver(self, outcome: Outcome[int]) -> None:
        self.delivered.set()


async def test_who_has_the_threads_is_freed_when_nobody_holds_it() -> None:
    owner = Owner()
    owner.threads.start(asyncio.get_running_loop())
    owner.threads.submit([1], owner.deliver)
    await owner.delivered.wait()
    await asyncio.sleep(0)  # the turn of the loop that delivered is over
    owner.threads.end()
    held = weakref.ref(owner)
    gc.disable()
    try:
        del owner
        assert held() is None, "a model's memory is free at once, not when garbage is collected"
    finally:
        gc.enable()
