"""Memory that the processes of one server share, a lock for it, and which of those processes live. Unix only.

Knows nothing of what lies in the memory. The locks are those of the kernel (POSIX record locks on the memory's file): it frees
them when a process ends, however it does.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from service.errors import StoreUnavailable

with contextlib.suppress(ImportError):  # Windows: one worker, which keeps states in memory of its own
    import fcntl

PATIENCE_S = 1.0
"""For so long a process waits for the lock, which others have for fractions of a millisecond."""
FIRST_WAIT_S, LONGEST_WAIT_S = 2e-5, 1e-3


class SharedMemory:
    """Bytes that are zeros at first. They are those of all processes to which the object was forked or pickled.

    It takes memory where something was written. The file is never closed: that would free this process's locks.
    """

    def __init__(self, path: Path, size: int) -> None:
        """The memory at `path`, which `create` has made. Raises OSError."""
        self._path = path
        self._size = size
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.bytes = mmap.mmap(self._file, size)
        self._is_stuck = False
        self._pid = os.getpid()
        self._numbers: set[int] = set()  # of the process with this pid: a fork has none

    @classmethod
    def create(cls, size: int, folder: Path | None = None) -> Self:
        """New memory, for as long as this process lives: without a file system on Linux, elsewhere a file in `folder`.

        Raises OSError.
        """
        try:
            file = os.memfd_create("sluice-sequences")
            path = Path(f"/proc/{os.getpid()}/fd/{file}")  # where the others reach it, also those that are no forks
            os.stat(path)
        except (AttributeError, OSError):  # not Linux, or a system that forbids it
            file, name = tempfile.mkstemp(dir=folder)
            path = Path(name)
        os.ftruncate(file, size)
        return cls(path, size)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._path, self._size)

    def acquire(self, patience_s: float = PATIENCE_S) -> None:
        """Take the lock, for as short a time as possible; nothing may be awaited until `release`. Raises StoreUnavailable.

        Where it could not be had once, because a process was stopped that has it, nobody waits until it can: each request
        would else hold up all others of its process for `patience_s`.
        """
        wait_s = FIRST_WAIT_S
        last = None
        while not self._try_lock(0):
            now = time.monotonic()
            last = last or now + patience_s
            if self._is_stuck or now > last:
                self._is_stuck = True
                raise StoreUnavailable("another process has had the states of sequences for too long")
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        self._is_stuck = False

    def release(self) -> None:
        self._unlock(0)

    def live(self, number: int) -> bool:
        """Have others see that this process lives, under a number from 0; False where one that lives has the number."""
        self._forget_numbers_of_parent()
        if number in self._numbers or not self._try_lock(1 + number):
            return False
        self._numbers.add(number)
        return True

    def end(self, number: int) -> None:
        """The opposite of `live`."""
        self._numbers.discard(number)
        self._unlock(1 + number)

    def is_free(self, number: int) -> bool:
        """Whether no process that lives has the number."""
        self._forget_numbers_of_parent()
        if number in self._numbers or not self._try_lock(1 + number):
            return False
        self._unlock(1 + number)
        return True

    def _forget_numbers_of_parent(self) -> None:
        if self._pid != os.getpid():
            self._pid, self._numbers = os.getpid(), set()

    def _try_lock(self, place: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._size + place)
        except (BlockingIOError, PermissionError):  # by POSIX either of the two
            return False
        return True

    def _unlock(self, place: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._size + place)
