"""Tables in memory that processes share, what is to hold of them, and processes that are killed at a line of theirs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from service.sequences import shared_memory, shared_table
from service.sequences.shared import create_memory
from service.sequences.shared_arrays import TableArrays
from service.sequences.shared_memory import SharedMemory
from service.sequences.shared_table import SharedTable
from service.sequences.state import CHECKSUM_BYTES
from service.sequences.table import Bounds, Owner
from tests.fakes import PATIENCE_S

OWNER, OTHER = Owner("toy", 1), Owner("toy", 2)
FILES = {str(path) for path in Path(shared_table.__file__).parent.glob("shared_*.py")} - {shared_memory.__file__}
"""All that change the memory, under its lock."""


def open_table(bounds: Bounds | None = None) -> SharedTable:
    bounds = bounds or Bounds(1000, 2**20)
    return SharedTable(create_memory(bounds), bounds)


def open_memory(bounds: Bounds, **bodies: bytes | None) -> tuple[SharedMemory, SharedTable]:
    """Memory for other tables too, and one in it that keeps these."""
    memory = create_memory(bounds)
    table = SharedTable(memory, bounds)
    keep(table, **bodies)
    return memory, table


def open_arrays(bounds: Bounds) -> TableArrays:
    return TableArrays(create_memory(bounds), bounds)


def keep(table: SharedTable, **bodies: bytes | None) -> None:
    ticket = table.enqueue([*bodies], PATIENCE_S)
    assert table.commit(ticket, [None if body is None else OWNER for body in bodies.values()], [*bodies.values()])


def bodies_of(table: SharedTable, *keys: str) -> list[bytes | None]:
    return [None if (found := table.find(key)) is None else found.stored.value for key in keys]


def expect_consistent(table: SharedTable, *keys: str) -> None:
    """The totals are those of what is kept, and all of it can be had."""
    kept = [body for body in bodies_of(table, *keys) if body is not None]
    totals = table.totals().values()
    assert sum(total.num_sequences for total in totals) == len(kept)
    assert sum(total.num_bytes for total in totals) == sum(len(body) + CHECKSUM_BYTES for body in kept)
    ticket = table.enqueue(keys, PATIENCE_S)
    assert ticket.is_granted
    assert [body for body in table.read(ticket) if body is not None] == kept
    table.release(ticket)


def fork(act: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return pid


def be_killed_at_line(number: int) -> None:
    """Have this process killed at so many lines of the table from here on."""
    num_lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal num_lines
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line":
            num_lines += 1
            if num_lines == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def was_killed(pid: int) -> bool:
    """Whether it was, once it has ended; False where it has done all that it was to do."""
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return status != 0


def killed_at_line(number: int, act: Callable[[], object]) -> bool:
    """Have another process do it that is killed at so many lines of the table; False where there are not as many."""

    def run() -> None:
        be_killed_at_line(number)
        act()

    return was_killed(fork(run))
