"""A task is cancelled at its deadline, and only then."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.api.deadlines import DeadlineMonitor


async def wait_watched(monitor: DeadlineMonitor, timeout_s: float) -> str:
    task = asyncio.current_task()
    assert task is not None
    now = time.monotonic()
    monitor.watch(task, now + timeout_s, now)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        if not monitor.has_expired(task):
            raise
        task.uncancel()
        return "expired"
    finally:
        monitor.forget(task)
    raise AssertionError("nothing sets the event")


async def test_tasks_expire_in_the_order_of_their_deadlines() -> None:
    monitor = DeadlineMonitor()
    order: list[float] = []

    async def record(timeout_s: float) -> None:
        assert await wait_watched(monitor, timeout_s) == "expired"
        order.append(timeout_s)

    await asyncio.gather(*(record(timeout_s) for timeout_s in (0.06, 0.02, 0.04)))
    assert order == [0.02, 0.04, 0.06]


async def test_a_deadline_that_has_passed_expires_at_once() -> None:
    assert await wait_watched(DeadlineMonitor(), 0.0) == "expired"


async def test_a_task_that_is_forgotten_is_left_alone() -> None:
    monitor = DeadlineMonitor()
    task = asyncio.current_task()
    assert task is not None
    monitor.watch(task, time.monotonic(), time.monotonic())
    monitor.forget(task)
    assert await wait_watched(monitor, 0.01) == "expired"  # the timer of the first has gone off by now
    assert task.cancelling() == 0


async def test_another_cancellation_is_not_taken_for_a_deadline() -> None:
    waiting = asyncio.ensure_future(wait_watched(DeadlineMonitor(), 60))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
