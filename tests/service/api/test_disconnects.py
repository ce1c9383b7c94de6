"""Clients that disconnect while their request waits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.api.disconnects import DisconnectMonitor
from service.api.request import AsgiRequest


class Client:
    """A client whose body has been read; disconnects when the test says so."""

    def __init__(self) -> None:
        self.is_watched = asyncio.Event()
        self.disconnects = asyncio.Event()
        self.request = AsgiRequest({"type": "http", "method": "POST", "path": "/predict", "headers": []}, self._receive)

    async def _receive(self) -> dict[str, Any]:
        self.is_watched.set()
        await self.disconnects.wait()
        return {"type": "http.disconnect"}


async def wait_watched(monitor: DisconnectMonitor, client: Client, is_answered: asyncio.Event) -> str:
    """A request that waits under the monitor; how it ended."""
    task = asyncio.current_task()
    assert task is not None
    try:
        monitor.watch(task, client.request)
        await is_answered.wait()
        return "answered"
    except asyncio.CancelledError:
        if not monitor.has_cancelled(task, client.request):
            raise
        task.uncancel()
        return "disconnected"
    finally:
        monitor.forget(task, client.request)


async def test_a_client_that_disconnects_cancels_its_request_and_nothing_else() -> None:
    monitor, left, stayed, is_answered = DisconnectMonitor(watch_after_s=0.0), Client(), Client(), asyncio.Event()
    tasks = [asyncio.create_task(wait_watched(monitor, client, is_answered)) for client in (left, stayed)]
    await left.is_watched.wait()
    left.disconnects.set()
    assert await tasks[0] == "disconnected"
    assert (tasks[0].cancelled(), tasks[0].cancelling()) == (False, 0)
    is_answered.set()
    assert await tasks[1] == "answered"


async def test_a_client_that_stays_is_answered_though_it_was_watched() -> None:
    monitor, client, is_answered = DisconnectMonitor(watch_after_s=0.0), Client(), asyncio.Event()
    task = asyncio.create_task(wait_watched(monitor, client, is_answered))
    await client.is_watched.wait()
    is_answered.set()
    assert await task == "answered"


async def test_a_server_that_ends_cancels_its_requests() -> None:
    monitor, client = DisconnectMonitor(watch_after_s=0.0), Client()
    task = asyncio.create_task(wait_watched(monitor, client, asyncio.Event()))
    await client.is_watched.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
