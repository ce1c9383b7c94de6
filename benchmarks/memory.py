"""Resident memory of a group of processes, every page counted once. Reads /proc, so Linux only."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Memory(NamedTuple):
    """Resident bytes: anonymous pages, and the files (code, above all) that the processes have mapped.

    A page that forked processes share is divided among them, so the sum is right; files are those of the process that has most
    of them. Proportional set size (PSS) would fall when an unrelated process maps the same library.
    """

    anonymous: int
    mapped: int

    @property
    def resident(self) -> int:
        return self.anonymous + self.mapped


def memory_of(pids: Iterable[int]) -> Memory:
    """The memory of these processes together."""
    found = [_read(pid) for pid in pids]
    return Memory(sum(memory.anonymous for memory in found), max(memory.mapped for memory in found))


def _read(pid: int) -> Memory:
    rollup = _fields(Path(f"/proc/{pid}/smaps_rollup"))
    status = _fields(Path(f"/proc/{pid}/status"))
    return Memory(rollup["Pss_Anon"], status["RssFile"] + status["RssShmem"])


def _fields(path: Path) -> dict[str, int]:
    """The lines of a file in /proc that hold a size, in bytes."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[-1] == "kB"}
