"""An event loop on a thread of its own: what a client that blocks has its calls run by.

A blocking read of a socket ends when a byte has come, and a server that sends one now and then is read from without an end. On an
event loop a deadline ends whatever is under way: looking up the name, the handshake, a head or a body that comes byte by byte.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for threads that wait for them. Ends with `stop`, or with the process."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._serve, name="sluice-client", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it is of this process: a fork takes no threads along."""
        return self._pid == os.getpid() and self._thread.is_alive()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin to run the coroutine: for `wait`. Not behind `stop`."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def stop(self, last: Coroutine[Any, Any, None]) -> None:
        """Cancel what is under way, run a last coroutine, and end; it is not waited for, so any thread may call this."""

        async def end() -> None:
            try:
                others = asyncio.all_tasks() - {asyncio.current_task()}
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)
                await last
            finally:
                self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join()

    def _serve(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()


def wait(future: Future[T]) -> T:
    """What a coroutine returned or raised; where the waiting thread is interrupted, it is cancelled.

    Raises concurrent.futures.CancelledError where the thread of its event loop was stopped.
    """
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
