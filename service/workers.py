"""One parent, several worker processes on one listening socket: replaces the dead, ends them all gracefully.

Knows nothing of models or HTTP: a worker is a function that is called in a new process and serves until SIGTERM.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

CANNOT_START = 3
"""Exit status of a worker that would fail again at every try: nothing is replaced, the parent ends too."""
LOCK_FILE = "lock"
# A worker that dies young is replaced later and later, so that a crash at start does not become a storm.
YOUNG_S = 10.0
MAX_DELAY_S = 30.0

Work = Callable[[Sequence[socket.socket], Connection], None]
"""Runs in a child: serves the sockets until SIGTERM, and sends one string over the connection when it has loaded."""


def replacement_delay_s(lifetime_s: float, previous_s: float) -> float:
    """How long to wait before a worker that lived so long is replaced."""
    if lifetime_s >= YOUNG_S:
        return 0.0
    return min(MAX_DELAY_S, max(0.5, 2 * previous_s))


class _Worker(NamedTuple):
    process: SpawnProcess
    reports: Connection
    started_at: float
    delay_s: float


class Supervisor:
    """Keeps `num_workers` processes of `work` alive until SIGTERM or SIGINT.

    `on_loaded` gets the first worker's report when all have reported; `on_death` gets the pid of every worker that ended,
    killed or not.
    """

    def __init__(
        self,
        work: Work,
        sockets: Sequence[socket.socket],
        num_workers: int,
        *,
        on_loaded: Callable[[str], None],
        on_death: Callable[[int], None],
        grace_s: float = 30.0,
    ) -> None:
        self._work = work
        self._sockets = list(sockets)
        self._num_workers = num_workers
        self._on_loaded = on_loaded
        self._on_death = on_death
        self._grace_s = grace_s
        # Not fork: a child must not inherit threads, event loops or a half-used runtime.
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._due: list[tuple[float, float]] = []
        self._num_reports = 0
        self._is_ending = False
        self._status = 0

    def run(self) -> int:
        """Serve until a signal; returns the exit status."""
        with _signals_as_bytes() as signalled:
            for _ in range(self._num_workers):
                self._start(0.0)
            while not self._is_ending:
                self._wait(signalled)
                self._bury()
                self._replace()
            self._end()
        return self._status

    def _start(self, delay_s: float) -> None:
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=self._work, args=(self._sockets, theirs))
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours, time.monotonic(), delay_s))

    def _wait(self, signalled: socket.socket) -> None:
        """Until something happens: a signal, a report, a death, or the time to replace somebody."""
        sentinels = [worker.process.sentinel for worker in self._workers]
        reports = {worker.reports: worker for worker in self._workers if not worker.reports.closed}
        timeout = max(0.0, min(due for due, _ in self._due) - time.monotonic()) if self._due else None
        for ready in wait([signalled, *sentinels, *reports], timeout):
            if ready is signalled:
                log.info("ending", extra={"signal": signal.Signals(signalled.recv(1)[0]).name})
                self._is_ending = True
            elif isinstance(ready, Connection):
                self._read(ready)

    def _read(self, reports: Connection) -> None:
        try:
            report = reports.recv()
        except EOFError:
            reports.close()
            return
        reports.close()
        self._num_reports += 1
        if self._num_reports == self._num_workers:
            self._on_loaded(report)

    def _bury(self) -> None:
        """Forget the dead, and plan when each is replaced."""
        for worker in [worker for worker in self._workers if worker.process.exitcode is not None]:
            self._workers.remove(worker)
            assert worker.process.pid is not None
            self._on_death(worker.process.pid)
            worker.reports.close()
            if worker.process.exitcode == CANNOT_START:
                self._status, self._is_ending = CANNOT_START, True
            if self._is_ending:
                continue
            lifetime_s = time.monotonic() - worker.started_at
            delay_s = replacement_delay_s(lifetime_s, worker.delay_s)
            self._due.append((time.monotonic() + delay_s, delay_s))
            log.error(
                "worker died",
                extra={
                    "pid": worker.process.pid,
                    "exit_status": worker.process.exitcode,
                    "lifetime_s": round(lifetime_s, 1),
                    "replaced_in_s": delay_s,
                },
            )
            worker.process.close()

    def _replace(self) -> None:
        now = time.monotonic()
        for entry in [entry for entry in self._due if entry[0] <= now and not self._is_ending]:
            self._due.remove(entry)
            self._start(entry[1])

    def _end(self) -> None:
        """Ask every worker to finish what it answers; end by force those that do not."""
        for sock in self._sockets:
            sock.close()  # the last one to hold it refuses new connections
        for worker in self._workers:
            worker.process.terminate()
        deadline = time.monotonic() + self._grace_s
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()
        self._bury()


@contextlib.contextmanager
def shared_folder(prefix: str, inside: Path) -> Iterator[Path]:
    """A folder for the workers of one parent, removed at the end, and with it those whose parents were killed."""
    for other in inside.glob(f"{prefix}*"):
        if _is_orphaned(other):
            shutil.rmtree(other, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=inside) as name:
        folder = Path(name)
        # Under its name only once it is held: an unheld lock means that the parent is dead. Unlike a pid, it is true also
        # between containers that share a folder.
        held = os.open(folder / "lock.new", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            _try_lock(held)
            (folder / "lock.new").rename(folder / LOCK_FILE)
            yield folder
        finally:
            os.close(held)


def _is_orphaned(folder: Path) -> bool:
    try:
        if folder.lstat().st_uid != os.getuid():
            return False
        lock = os.open(folder / LOCK_FILE, os.O_RDWR)
    except OSError:
        return False  # just being made, or just removed
    try:
        return _try_lock(lock)
    finally:
        os.close(lock)


def _try_lock(file: int) -> bool:
    import fcntl  # Unix only, as are several workers

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _signals_as_bytes() -> Iterator[socket.socket]:
    """SIGTERM and SIGINT as bytes on a socket, so that one `wait` hears them too."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    before_fd = signal.set_wakeup_fd(writer.fileno())
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()
