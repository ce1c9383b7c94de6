"""A job in a child process that can be killed: it gives its result back, or why there is none.

Knows nothing of what the job is. Where processes cannot be forked, the job runs on a thread, and nothing can end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from service.process.machine import can_fork
from service.process.sandbox import bound_memory, describe_exit, end_with_parent

R = TypeVar("R")
# Beside a busy server a job waits for its turn.
NICENESS = 15


class JobFailed(Exception):
    """The job has no result: it took too long, or its process died."""


async def run_job(work: Callable[[], R], timeout_s: float, memory_bytes: int) -> R:
    """The result of `work`, which must not raise, from a process that is forked for it. Raises JobFailed.

    It may have `memory_bytes` more than this process has: beyond them its allocations fail.
    """
    if not can_fork():
        return await asyncio.to_thread(work)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_run, args=(work, sender, memory_bytes))
    process.start()
    sender.close()
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(receiver.fileno(), functools.partial(_set, readable))
    try:
        async with asyncio.timeout(timeout_s):
            await readable
        result: R = receiver.recv()
    except TimeoutError as exc:
        raise JobFailed(f"it took more than {timeout_s:g} s") from exc
    except (EOFError, OSError) as exc:
        process.join()
        raise JobFailed(f"its process ended ({describe_exit(process.exitcode)})") from exc
    finally:
        loop.remove_reader(receiver.fileno())
        receiver.close()
        process.kill()
        process.join()
        process.close()
    return result


def _run(work: Callable[[], Any], sender: Connection, memory_bytes: int) -> None:
    end_with_parent()
    bound_memory(memory_bytes)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    sender.send(work())


def _set(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)
