"""All processes of one started server: which they are, their memory, and how to end every one of them.

Servers start helper processes, and these start sessions of their own (circus and Ray do), so neither the children of a process
nor its group is complete. A process belongs to a server when its environment holds the server's mark, when it is in the
server's session, or when a process that belongs to the server started it. Linux only: everything is read from /proc.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "BENCHMARK_RUN"
"""The environment variable with the mark. Its name cannot begin with SLUICE_: Sluice refuses unknown ones."""

KILL_S = 30
"""How long a process may take to end after SIGKILL, on an overloaded machine."""


@dataclass(frozen=True)
class Process:
    """One process. The kernel reuses ids, so the time of the start (in clock ticks since boot) is part of its identity."""

    pid: int
    started: int

    def is_running(self) -> bool:
        entry = _read(self.pid)
        return entry is not None and entry.process == self and entry.state not in "ZX"

    def resident_bytes(self) -> int:
        """Proportional set size: a page that several processes share is divided among them."""
        try:
            lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            return 0
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has already ended."""
        if self.is_running():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


@dataclass(frozen=True)
class _Entry:
    process: Process
    parent: int
    session: int
    state: str


def members(leader: int, mark: str, known: Iterable[Process] = ()) -> set[Process]:
    """The running processes of the server whose first process is `leader` and whose environment has MARK=`mark`.

    `known` are members found before: processes they have started since belong too, even if the parent has ended.
    """
    entries = [entry for entry in map(_read, _pids()) if entry is not None and entry.state not in "ZX"]
    found = {entry.process for entry in entries if entry.session == leader or _has_mark(entry.process.pid, mark)}
    found |= {process for process in known if process.is_running()}
    while True:
        pids = {process.pid for process in found} | {leader}
        more = {entry.process for entry in entries if entry.parent in pids} - found
        if not more:
            return found
        found |= more


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used so far, all threads together; the kernel counts in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def end(find: Callable[[Iterable[Process]], set[Process]], grace_s: float) -> set[Process]:
    """End every process that `find` returns, by SIGTERM and after `grace_s` by SIGKILL; returns those that still run.

    `find` is called repeatedly, with the processes found before, since processes start others while they end.
    """
    known: set[Process] = set()
    started = time.monotonic()
    while (left := find(known)) and (waited := time.monotonic() - started) < grace_s + KILL_S:
        is_over = waited > grace_s
        for process in left if is_over else left - known:
            process.send(signal.SIGKILL if is_over else signal.SIGTERM)
        known |= left
        time.sleep(0.05)
    return left


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _read(pid: int) -> _Entry | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the command in brackets, and may itself hold brackets and spaces.
    fields = stat.rpartition(")")[2].split()
    return _Entry(Process(pid, int(fields[19])), parent=int(fields[1]), session=int(fields[3]), state=fields[0])


def _has_mark(pid: int, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
