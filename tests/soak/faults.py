"""The faults of a soak: what is done to the server's processes, when, and which broken connections that explains.

A connection that is open when its worker is killed, or when the server ends, may break, and so may one that comes before the
kernel has ended the worker; a connection may be refused until the
server is back. A worker that is stopped and continued breaks none. Nothing else explains anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.soak.clients import Record

FaultKind = Literal["kill", "stop", "restart"]
"""SIGKILL to a worker; SIGSTOP to a worker, and SIGCONT later; SIGHUP to the server, which is started again when it has ended."""

STOPPED_S = 3.0
WATCHED_S = 60.0
"""Memory is watched in runs of so many seconds or more."""
# What the kernel still delivers, and what waits for its turn in the client, after the server's side is gone.
MARGIN_S = 2.0


@dataclass(frozen=True)
class Fault:
    """One fault: from its signal to the end of it, when the server was whole again, by the monotonic clock."""

    kind: FaultKind
    at: float
    ended_at: float


def schedule(duration_s: float) -> Iterator[tuple[float, FaultKind]]:
    """When which fault comes, in seconds from the start: at most one in ten seconds, or three in less than a minute.

    Of a minute or more, restarts come in the first fifth only: memory is compared after it, and that of a new server says nothing
    of the old one's.
    """
    is_long = duration_s >= WATCHED_S
    interval_s = max(10.0, duration_s / 40) if is_long else duration_s / 4
    kinds: Sequence[FaultKind] = ("restart", "kill", "stop") if is_long else ("kill", "stop", "restart")
    for number, kind in zip(itertools.count(1), itertools.cycle(kinds)):
        at = number * interval_s
        if at > duration_s - interval_s / 2:
            return
        is_late = is_long and kind == "restart" and at > duration_s / 5
        yield at, ("kill" if is_late else kind)


def is_explained(record: Record, faults: Iterable[Fault]) -> bool:
    """Whether a fault is the reason that a request was not answered."""
    for fault in faults:
        if fault.kind == "stop":
            continue
        if record.is_refused_connection:
            if fault.kind == "restart" and fault.at <= record.ended_at <= fault.ended_at + MARGIN_S:
                return True
        elif record.connected_at <= fault.ended_at and fault.at <= record.ended_at <= fault.ended_at + MARGIN_S:
            return True
    return False
