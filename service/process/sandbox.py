"""Jobs in child processes that can be killed: each has its time, and memory that is bounded.

Knows nothing of what the jobs are. Linux: children are forked, from a process without other threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

from service.process.memory import bound_address_space

J = TypeVar("J")
R = TypeVar("R")

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
_FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None


@dataclass(frozen=True)
class Failure:
    """What became of a job that has no result."""

    reason: str
    stage: str
    """The stage that it reported last."""


Report = Callable[[str], None]
"""A job calls it with what it begins to do."""


@dataclass(eq=False)
class _Child(Generic[J]):
    process: BaseProcess
    connection: Connection
    job: J
    deadline: float
    stage: str = ""


def run_in_children(
    jobs: Iterable[J],
    work: Callable[[J, Report], R],
    *,
    num_children: int,
    timeout_s: float,
    memory_bytes: int,
) -> Iterator[tuple[J, R | Failure]]:
    """Every job with its result, as they finish; so many children work side by side, each at one job after the other.

    A job that takes longer than `timeout_s`, or whose process dies, is a Failure; its child is killed, and another one is forked
    for the rest. A child may have `memory_bytes` more than this process has: beyond them its allocations fail. `work` must not
    raise.
    """
    waiting = deque(jobs)
    children: list[_Child[J]] = []
    try:
        while waiting or children:
            while waiting and len(children) < num_children:
                children.append(_spawn(work, waiting.popleft(), timeout_s, memory_bytes))
            due_s = min(child.deadline for child in children) - time.monotonic()
            ready = set(wait([child.connection for child in children], max(0.0, due_s)))
            for child in list(children):
                outcome: Any = None
                if child.connection in ready:
                    try:
                        is_done, outcome = child.connection.recv()
                    except (EOFError, OSError):
                        child.process.join()
                        outcome = Failure(f"its process ended ({describe_exit(child.process.exitcode)})", child.stage)
                    else:
                        if not is_done:
                            child.stage, outcome = outcome, None
                            continue
                        yield child.job, outcome
                        if waiting:
                            child.job, child.stage, child.deadline = waiting.popleft(), "", time.monotonic() + timeout_s
                            child.connection.send(child.job)
                            continue
                        _end(child)
                        children.remove(child)
                        continue
                elif time.monotonic() >= child.deadline:
                    outcome = Failure(f"it took more than {timeout_s:g} s", child.stage)
                if outcome is not None:
                    _end(child)
                    children.remove(child)
                    yield child.job, outcome
    finally:
        for child in children:
            _end(child)


def run_beside(work: Callable[[Connection], None]) -> tuple[BaseProcess, Connection]:
    """Fork a process that runs `work`, and ends with this one; gives the end of its pipe to receive from."""
    assert _FORK is not None
    receiver, sender = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_run_beside, args=(work, sender, receiver), daemon=False)
    process.start()
    sender.close()
    return process, receiver


def _run_beside(work: Callable[[Connection], None], sender: Connection, receiver: Connection) -> None:
    receiver.close()
    end_with_parent()
    with contextlib.suppress(BrokenPipeError):
        work(sender)
    sender.close()


def _spawn(work: Callable[[J, Report], R], job: J, timeout_s: float, memory_bytes: int) -> _Child[J]:
    assert _FORK is not None
    ours, theirs = _FORK.Pipe()
    process = _FORK.Process(target=_serve_jobs, args=(work, theirs, ours, memory_bytes))
    process.start()
    theirs.close()
    ours.send(job)
    return _Child(process, ours, job, time.monotonic() + timeout_s)


def _serve_jobs(work: Callable[[J, Report], R], connection: Connection, other: Connection, memory_bytes: int) -> None:
    other.close()
    end_with_parent()
    bound_memory(memory_bytes)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            result = work(connection.recv(), lambda stage: connection.send((False, stage)))
            connection.send((True, result))


def _end(child: _Child[J]) -> None:
    child.connection.close()
    child.process.kill()
    child.process.join()
    child.process.close()


def describe_exit(exit_code: int | None) -> str:
    """How a process ended: its exit status, or the signal that ended it."""
    if exit_code is None or exit_code >= 0:
        return f"exit status {exit_code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-exit_code).name
    return f"signal {-exit_code}"


def end_with_parent() -> None:
    """Be killed when the parent ends, however it does; signals to end are the parent's to handle."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.getppid() != parent:
        os._exit(1)


def bound_memory(num_bytes: int) -> None:
    import resource  # Unix only, as are forks

    with contextlib.suppress(OSError):  # whoever runs out of memory, it is this process that the system ends
        Path("/proc/self/oom_score_adj").write_text("1000")
    bound_address_space(num_bytes)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
