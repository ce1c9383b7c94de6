"""Forks of the process of the tests, which do something that only another process can."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from tests.fakes import PATIENCE_S


def in_another_process(act: Callable[[], bool]) -> bool:
    """What it returns in a fork of this process, which then ends."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = int(act())
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 1)
    return os.waitstatus_to_exitcode(status) == 1


def begin_another_process(act: Callable[[], object]) -> int:
    """The pid of a fork that has done this and waits for its end."""
    seen, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os.write(done, b".")
            time.sleep(PATIENCE_S)
        finally:
            os._exit(2)
    os.close(done)
    assert os.read(seen, 1) == b"."
    os.close(seen)
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
