"""Locks and numbers of processes are those of the kernel: another process is needed to see them."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from service.errors import StoreUnavailable
from service.sequences.shared_memory import SharedMemory
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


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_what_one_process_writes_the_others_read_forked_or_not() -> None:
    memory = SharedMemory.create(8192)
    other = pickle.loads(pickle.dumps(memory))  # as a worker gets it that is no fork

    def write() -> bool:
        memory.bytes[5000:5004] = b"here"
        return True

    assert in_another_process(write)
    assert memory.bytes[5000:5004] == other.bytes[5000:5004] == b"here"
    assert memory.bytes[:8] == bytes(8)


def test_one_process_at_a_time_has_the_lock_and_one_that_is_killed_has_it_no_more() -> None:
    memory = SharedMemory.create(4096)
    pid = begin_another_process(memory.acquire)
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        memory.acquire(0.05)
    assert time.monotonic() - started < PATIENCE_S
    end(pid)
    memory.acquire()
    memory.release()


def test_a_number_is_free_when_its_process_has_ended() -> None:
    memory = SharedMemory.create(4096)
    pid = begin_another_process(lambda: memory.live(3))
    assert not memory.is_free(3)
    assert not memory.live(3)
    assert memory.is_free(4)
    end(pid)
    assert memory.is_free(3)
    assert memory.live(3)
    assert in_another_process(lambda: not memory.is_free(3))
    memory.end(3)
    assert in_another_process(lambda: memory.is_free(3))


def test_where_there_are_no_locks_of_the_kernel_a_server_of_one_process_can_be_imported() -> None:
    without = "import sys; sys.modules['fcntl'] = None; import service.sequences.shared"  # as on Windows
    subprocess.run([sys.executable, "-c", without], check=True, timeout=PATIENCE_S)
