"""Locks and numbers of processes are those of the kernel: another process is needed to see them."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time

import pytest

from service.errors import StoreUnavailable
from service.sequences.shared_memory import SharedMemory
from tests.fakes import PATIENCE_S
from tests.service.sequences.processes import begin_another_process, in_another_process, kill


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
    kill(pid)
    memory.acquire()
    memory.release()


def test_a_number_is_free_when_its_process_has_ended() -> None:
    memory = SharedMemory.create(4096)
    pid = begin_another_process(lambda: memory.live(3))
    assert not memory.is_free(3)
    assert not memory.live(3)
    assert memory.is_free(4)
    kill(pid)
    assert memory.is_free(3)
    assert memory.live(3)
    assert in_another_process(lambda: not memory.is_free(3))
    memory.end(3)
    assert in_another_process(lambda: memory.is_free(3))


def test_where_there_are_no_locks_of_the_kernel_a_server_of_one_process_can_be_imported() -> None:
    without = "import sys; sys.modules['fcntl'] = None; import service.sequences.shared"  # as on Windows
    subprocess.run([sys.executable, "-c", without], check=True, timeout=PATIENCE_S)


def test_while_a_process_that_is_stopped_has_the_lock_only_the_first_waits_for_it() -> None:
    memory = SharedMemory.create(4096)
    pid = begin_another_process(memory.acquire)
    with pytest.raises(StoreUnavailable):
        memory.acquire(0.05)
    with pytest.raises(StoreUnavailable):
        memory.acquire(10 * PATIENCE_S)  # which pytest would not wait for
    kill(pid)
    memory.acquire(0.0)
    memory.release()


def test_a_number_that_this_process_has_is_not_free_and_its_forks_do_not_have_it() -> None:
    memory = SharedMemory.create(4096)
    assert memory.live(3)
    assert not memory.live(3)
    assert not memory.is_free(3)
    assert in_another_process(lambda: not memory.is_free(3) and memory.live(4))
    assert in_another_process(lambda: memory.is_free(4))
    memory.end(3)
    assert memory.is_free(3)
