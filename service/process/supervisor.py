"""One parent, several worker processes: deals connections out to them, replaces those that die or hang, ends them all gracefully.

Knows nothing of models or HTTP: a worker is a function that is called in a new process and serves until SIGTERM.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import multiprocessing
import os
import selectors
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from service.errors import RestartReason
from service.process.connections import MAX_ON_WAY, Slot, Standing, choose, hand_over, raised, slots

log = logging.getLogger(__name__)

CANNOT_START = 3
"""Exit status of a worker that would fail again at every try: nothing is replaced, the parent ends too."""
LOCK_FILE = "lock"
# A worker that dies young is replaced later and later, so that a crash at start does not become a storm.
YOUNG_S = 10.0
MAX_DELAY_S = 30.0
# How often the parent looks whether event loops turn. Who was silent for so many looks in a row gets no new connections, or
# is replaced. Looks are counted, not seconds: after a pause of the whole machine or container nobody is taken for hung.
LOOK_EVERY_S = 1.0
SILENT_LOOKS = 2
HUNG_LOOKS = 30
# Who has not loaded yet may be silent longer: a device may compile graphs for minutes.
MORE_LOOKS_TO_LOAD = 10
ENDINGS = (signal.SIGTERM, signal.SIGINT)
# At this signal a worker writes the stack of every thread to stderr.
SHOW_STACKS = getattr(signal, "SIGUSR1", signal.SIGTERM)  # Windows has none, and no several workers
# While no worker takes connections, they wait in the kernel's queue, and we look again after so long.
RETRY_S = 0.01
ACCEPT_AT_ONCE = 64


@dataclass(frozen=True)
class Seat:
    """What a worker is given: where connections come from, whom to tell how it goes, and where to say that it has loaded."""

    channel: socket.socket
    """Connections come over it (`connections.take_over`) until the parent ends."""
    slot: Slot
    reports: Connection
    """Gets one string when the worker has loaded."""


Work = Callable[[Seat], None]
"""Runs in a child: serves what comes until SIGTERM."""


class SupervisorObserver(Protocol):
    """What the supervisor tells, in the parent."""

    def loaded(self, report: str) -> None:
        """Every worker has loaded; one's report. Told once."""
        ...

    def died(self, pid: int) -> None:
        """A worker ended, killed or not."""
        ...

    def replaced(self, reason: RestartReason) -> None:
        """A worker that should not have ended did, and gets a successor."""
        ...


def replacement_delay_s(lifetime_s: float, previous_s: float) -> float:
    """How long to wait before a worker that lived so long is replaced."""
    if lifetime_s >= YOUNG_S:
        return 0.0
    return min(MAX_DELAY_S, max(0.5, 2 * previous_s))


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    channel: socket.socket
    slot: Slot
    reports: Connection
    started_at: float
    delay_s: float
    has_loaded: bool = False
    num_given: int = 0
    num_beats: int = 0
    num_silent_looks: int = 0

    @property
    def standing(self) -> Standing:
        is_ready = self.has_loaded and self.num_silent_looks < SILENT_LOOKS
        return Standing(is_ready, self.num_given - self.slot.num_taken, self.num_given - self.slot.num_closed)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def hung_looks(self, allowed: int) -> int:
        """How many silent looks are too many."""
        return allowed if self.has_loaded else allowed * MORE_LOOKS_TO_LOAD

    def look(self) -> None:
        """See whether the event loop turned since the last look."""
        beats = self.slot.num_beats
        self.num_silent_looks = 0 if beats != self.num_beats else self.num_silent_looks + 1
        self.num_beats = beats


@dataclass(frozen=True)
class _Vacancy:
    """A place that waits for its next worker."""

    slot: Slot
    due_at: float
    delay_s: float


class Supervisor:
    """Keeps `num_workers` processes of `work` alive until SIGTERM or SIGINT, and gives them the connections of `listeners`.

    With `forks`, workers are copies of this process as it stands, and share its memory until they write to it: it must have
    no other threads. Else they are processes of their own, and `work` is pickled.
    """

    def __init__(
        self,
        work: Work,
        listeners: Sequence[socket.socket],
        num_workers: int,
        *,
        observer: SupervisorObserver,
        forks: bool = False,
        grace_s: float = 30.0,
        look_every_s: float = LOOK_EVERY_S,
        hung_looks: int = HUNG_LOOKS,
    ) -> None:
        self._work = work
        self._listeners = list(listeners)
        self._observer = observer
        self._forks = forks
        self._grace_s = grace_s
        self._look_every_s = look_every_s
        self._hung_looks = hung_looks
        self._context: multiprocessing.context.ForkContext | multiprocessing.context.SpawnContext = (
            multiprocessing.get_context("fork") if forks else multiprocessing.get_context("spawn")
        )
        self._workers: list[_Worker] = []
        self._vacancies = [_Vacancy(slot, 0.0, 0.0) for slot in slots(self._context, num_workers)]
        self._selector = selectors.DefaultSelector()
        self._signals: tuple[socket.socket, ...] = ()
        self._next_look_at = 0.0
        self._next_place = 0
        self._is_listening = False
        self._is_greeted = False
        self._is_ending = False
        self._status = 0

    def run(self) -> int:
        """Serve until a signal; returns the exit status."""
        for listener in self._listeners:
            listener.setblocking(False)
        if self._forks:
            # The collector of a worker would else write to every page that it shares.
            gc.collect()
            gc.freeze()
        with self._selector, _signals_as_bytes() as self._signals:
            self._selector.register(self._signals[0], selectors.EVENT_READ, self._hear)
            self._next_look_at = time.monotonic() + self._look_every_s
            self._fill()
            self._listen()
            while not self._is_ending:
                self._wait()
                self._bury()
                self._look()
                self._fill()
            self._end()
        return self._status

    # ------------------------------------------------------------------------------------------ workers come and go

    def _fill(self) -> None:
        """Start a worker at every vacant place whose time has come."""
        now = time.monotonic()
        for vacancy in [vacancy for vacancy in self._vacancies if vacancy.due_at <= now and not self._is_ending]:
            self._vacancies.remove(vacancy)
            self._start(vacancy)

    def _start(self, vacancy: _Vacancy) -> None:
        vacancy.slot.clear()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        reports, told = self._context.Pipe(duplex=False)
        # A forked worker holds what is open here; it must let go, or it would keep the port, and never see us end.
        closed: list[socket.socket | Connection | selectors.BaseSelector] = []
        if self._forks:
            closed = [ours, reports, *self._listeners, *self._signals, self._selector]
            closed += [end for worker in self._workers for end in (worker.channel, worker.reports)]
        process = self._context.Process(target=_live, args=(self._work, Seat(theirs, vacancy.slot, told), closed))
        # Between the fork and its first line, a child would take signals for us.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
        try:
            process.start()
        except OSError as exc:  # too many processes, or no memory for one more
            log.error("a worker cannot be started: %s", exc.strerror)
            ours.close()
            reports.close()
            self._vacancies.append(replace(vacancy, due_at=time.monotonic() + MAX_DELAY_S))
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)
            theirs.close()
            told.close()
        worker = _Worker(process, ours, vacancy.slot, reports, time.monotonic(), vacancy.delay_s)
        self._workers.append(worker)
        self._selector.register(process.sentinel, selectors.EVENT_READ, lambda: None)
        self._selector.register(reports, selectors.EVENT_READ, lambda: self._read(worker))

    def _read(self, worker: _Worker) -> None:
        """A worker says that it has loaded, or its end of the pipe is closed because it died."""
        self._selector.unregister(worker.reports)
        with contextlib.suppress(EOFError, OSError):
            report = worker.reports.recv()
            worker.has_loaded = True
            if not self._is_greeted and not self._vacancies and all(worker.has_loaded for worker in self._workers):
                self._is_greeted = True
                self._observer.loaded(report)
        worker.reports.close()

    def _bury(self) -> None:
        """Forget the dead, and plan when each is replaced."""
        for worker in [worker for worker in self._workers if worker.process.exitcode is not None]:
            self._workers.remove(worker)
            self._selector.unregister(worker.process.sentinel)
            if not worker.reports.closed:
                self._selector.unregister(worker.reports)
                worker.reports.close()
            worker.channel.close()
            pid, status = worker.pid, worker.process.exitcode
            worker.process.close()
            self._observer.died(pid)
            if status == CANNOT_START:
                self._status, self._is_ending = CANNOT_START, True
            if self._is_ending:
                continue
            lifetime_s = time.monotonic() - worker.started_at
            delay_s = replacement_delay_s(lifetime_s, worker.delay_s)
            self._vacancies.append(_Vacancy(worker.slot, time.monotonic() + delay_s, delay_s))
            is_hung = worker.num_silent_looks >= worker.hung_looks(self._hung_looks)
            reason: RestartReason = "hung" if is_hung else "ended" if status == 0 else "crashed"
            self._observer.replaced(reason)
            log.error(
                "worker died",
                extra={
                    "worker": pid,
                    "reason": reason,
                    "exit_status": status,
                    "lifetime_s": round(lifetime_s, 1),
                    "replaced_in_s": delay_s,
                },
            )

    def _look(self) -> None:
        """See whose event loop turns; whose does not for long enough is asked where it stands, and ended."""
        now = time.monotonic()
        if now < self._next_look_at:
            return
        self._next_look_at = now + self._look_every_s
        for worker in self._workers:
            worker.look()
            too_many = worker.hung_looks(self._hung_looks)
            if worker.num_silent_looks == too_many:
                silent_s = round(too_many * self._look_every_s, 1)
                log.error("worker hangs: its event loop stands still", extra={"worker": worker.pid, "silent_s": silent_s})
                os.kill(worker.pid, SHOW_STACKS)
            elif worker.num_silent_looks > too_many:
                worker.process.kill()

    def _end(self) -> None:
        """Ask every worker to finish what it answers; end by force those that do not."""
        for listener in self._listeners:
            listener.close()
        for worker in self._workers:
            worker.process.terminate()
        deadline = time.monotonic() + self._grace_s
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()
        self._bury()

    # -------------------------------------------------------------------------------------------------- what happens

    def _wait(self) -> None:
        """Until something happens: a signal, a report, a death, connections, or the time to look or to replace somebody."""
        due_at = min([self._next_look_at, *(vacancy.due_at for vacancy in self._vacancies)])
        timeout_s = max(0.0, due_at - time.monotonic())
        if not self._is_listening:
            timeout_s = min(timeout_s, RETRY_S)
        events = self._selector.select(timeout_s)
        self._listen()
        for key, _ in events:
            key.data()

    def _hear(self) -> None:
        number = self._signals[0].recv(1)[0]
        log.info("ending", extra={"signal": signal.Signals(number).name})
        self._is_ending = True

    def _listen(self) -> None:
        if not self._is_listening:
            for listener in self._listeners:
                self._selector.register(listener, selectors.EVENT_READ, lambda listener=listener: self._deal(listener))
            self._is_listening = True

    def _pause(self) -> None:
        """Leave connections where they are until we look again."""
        if self._is_listening:
            for listener in self._listeners:
                self._selector.unregister(listener)
            self._is_listening = False

    def _deal(self, listener: socket.socket) -> None:
        """Hand the connections that have come to the workers."""
        standings = [worker.standing for worker in self._workers]
        for _ in range(ACCEPT_AT_ONCE):
            if self._is_ending or choose(standings, self._next_place) is None:
                return self._pause()
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionError):
                return None
            except OSError as exc:
                log.error("a connection cannot be accepted: %s", exc.strerror)
                return self._pause()
            with connection:
                self._give(connection, standings)
        return None

    def _give(self, connection: socket.socket, standings: list[Standing]) -> None:
        """To the worker whose turn it is, or to the next one if that one has just died. Keeps the standings up to date."""
        while (place := choose(standings, self._next_place)) is not None:
            worker, standing = self._workers[place], standings[place]
            if hand_over(worker.channel, connection):
                worker.num_given += 1
                self._next_place += 1
                standings[place] = standing._replace(num_on_way=standing.num_on_way + 1, num_open=standing.num_open + 1)
                return
            standings[place] = standing._replace(is_ready=False, num_on_way=MAX_ON_WAY)
        log.warning("a connection is dropped: no worker takes it")


def _live(work: Work, seat: Seat, closed: Sequence[socket.socket | Connection | selectors.BaseSelector]) -> None:
    """The first lines of a worker: let go of what is its parent's, and listen to signals for itself."""
    signal.set_wakeup_fd(-1)
    for number in ENDINGS:
        signal.signal(number, signal.SIG_DFL)
    for end in closed:
        end.close()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)
    faulthandler.enable()
    faulthandler.register(SHOW_STACKS)
    work(replace(seat, channel=raised(seat.channel)))


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
def _signals_as_bytes() -> Iterator[tuple[socket.socket, socket.socket]]:
    """SIGTERM and SIGINT as bytes: where they are read and where they are written, so that one `select` hears them too."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in ENDINGS}
    before_fd = signal.set_wakeup_fd(writer.fileno())
    try:
        yield reader, writer
    finally:
        signal.set_wakeup_fd(before_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()
