"""A serving process as one of several that serve the same: it prepares, applies and reports what the controlling process decides.

Also passes on to it what requests want loaded and unloaded. Knows nothing of sockets: a stream of messages is an argument.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol

from service.errors import DeadlineExceeded, LoadFailed, ModelNotFound, Overloaded, ServiceError, StartError
from service.models.repository import Repository
from service.models.target import Target, Withdrawal, read_target

log = logging.getLogger(__name__)

Action = Literal["load", "unload"]
RECONNECT_S = 0.2
# Requests to load and unload that one process has passed on and that are not finished.
MAX_PENDING = 64
CONTROL_TIMEOUT_S = 120.0
ERRORS: dict[str, type[ServiceError]] = {error.code: error for error in (LoadFailed, ModelNotFound, Overloaded, DeadlineExceeded)}


class Stream(Protocol):
    """A connection to the controlling process (`process/messages.py`)."""

    async def receive(self) -> dict[str, Any] | None: ...

    def send(self, message: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class Membership:
    """Keeps a repository at what the controlling process says. All methods belong to one event loop."""

    def __init__(
        self,
        repository: Repository,
        connect: Callable[[], Awaitable[Stream]],
        *,
        on_started: Callable[[], None],
        on_failed: Callable[[StartError], None],
    ) -> None:
        """`connect` raises OSError while the controlling process is not there. `on_started` is called when everything is served
        first, `on_failed` where this machine lacks what was requested.
        """
        self._repository = repository
        self._on_started = on_started
        self._on_failed = on_failed
        self._is_started = False
        self._connect = connect
        self._stream: Stream | None = None
        self._pending: dict[int, asyncio.Future[None]] = {}
        self._num_requests = 0
        repository.on_withdrawn = self._report

    async def run(self) -> None:
        """Follow the controlling process, and the next one where it ends."""
        while True:
            with contextlib.suppress(OSError):
                stream = await self._connect()
                try:
                    await self._follow(stream)
                finally:
                    self._lose(stream)
            await asyncio.sleep(RECONNECT_S)

    async def load(self, name: str) -> None:
        """Have a model loaded as its folder is now, in all processes.

        Raises ModelNotFound, LoadFailed, Overloaded where too many such requests wait, and DeadlineExceeded.
        """
        await self._request("load", name)

    async def unload(self, name: str) -> None:
        """Have a model taken out of service, in all processes. Raises what `load` raises."""
        await self._request("unload", name)

    async def _request(self, action: Action, name: str) -> None:
        if self._stream is None or len(self._pending) >= MAX_PENDING:
            reason = "the process that loads models is not there" if self._stream is None else "too many models are being loaded"
            raise Overloaded(reason, limit=MAX_PENDING)
        self._num_requests = number = self._num_requests + 1
        result = self._pending[number] = asyncio.get_running_loop().create_future()
        self._stream.send({"type": action, "id": number, "name": name})
        try:
            async with asyncio.timeout(CONTROL_TIMEOUT_S):
                await result
        except TimeoutError as exc:
            raise DeadlineExceeded("the model was not loaded or unloaded in time; it goes on") from exc
        finally:
            self._pending.pop(number, None)

    async def _follow(self, stream: Stream) -> None:
        self._stream = stream
        stream.send({"type": "hello", "pid": os.getpid()})
        for withdrawal in self._repository.withdrawals:  # of which a process that has ended may not have known
            self._report(withdrawal)
        preparing: asyncio.Task[None] | None = None
        target: Target = ()
        try:
            while (message := await stream.receive()) is not None:
                kind = message["type"]
                if kind == "prepare":
                    target = read_target(message["target"])
                    preparing = asyncio.create_task(self._prepare(stream, message["change"], target))
                elif kind == "commit":
                    self._repository.apply(target)
                    stream.send({"type": "committed", "change": message["change"]})
                    if not self._is_started:
                        self._is_started = True
                        self._on_started()
                elif kind == "abort":
                    await _cancel(preparing)
                    self._repository.abort()
                elif kind == "show":
                    self._repository.apply(read_target(message["target"]))
                elif kind == "result":
                    self._finish(message)
        finally:
            await _cancel(preparing)
            self._repository.abort()

    async def _prepare(self, stream: Stream, change: int, target: Target) -> None:
        try:
            failures = await self._repository.prepare(target)
        except StartError as exc:
            self._on_failed(exc)
            return
        stream.send({"type": "prepared", "change": change, "failures": [[*key, reason] for key, reason in failures.items()]})

    def _report(self, withdrawal: Withdrawal) -> None:
        """Have a version withdrawn in all processes; without a controlling process the next one is told."""
        if self._stream is not None:
            self._stream.send({"type": "withdrawn", **withdrawal._asdict()})

    def _finish(self, message: dict[str, Any]) -> None:
        result = self._pending.get(message["id"])
        if result is None or result.done():
            return
        if message["code"] is None:
            result.set_result(None)
        else:
            result.set_exception(ERRORS.get(message["code"], LoadFailed)(message["message"]))

    def _lose(self, stream: Stream) -> None:
        self._stream = None
        stream.close()
        for result in self._pending.values():
            if not result.done():
                result.set_exception(Overloaded("the process that loads models has ended"))


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
