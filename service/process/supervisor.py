"""One parent, several worker processes: sends them connections, replaces those that crash or hang, stops them all gracefully.

Knows nothing of models or HTTP: a worker is a function that is called in a new process and serves until its channel ends.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import math
import multiprocessing
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Protocol

from service.errors import RestartReason
from service.process.connections import (
    MAX_IN_TRANSIT,
    Slot,
    WorkerLoad,
    choose_worker,
    create_slots,
    has_waiting,
    move_to_high_number,
    refuse_handshakes,
    send_connection,
    send_drain,
)
from service.process.memory import own_memory_bytes
from service.process.notices import MAX_NOTICE_BYTES, can_take

log = logging.getLogger(__name__)

CANNOT_START = 3
"""Exit status of a worker that would fail again at every try: nothing is replaced, the parent ends too."""
# A worker that ends earlier is replaced later and later, so that a crash at start does not become a storm.
MIN_UPTIME_S = 10.0
MAX_DELAY_S = 30.0
# How often the parent checks the heartbeats of the event loops. A worker without one for so many checks in a row gets no new
# connections, or is replaced. Checks are counted, not seconds: a pause of the whole machine or container hangs no worker.
CHECK_INTERVAL_S = 1.0
UNREADY_AFTER_CHECKS = 2
HUNG_AFTER_CHECKS = 30
# A worker that has taken more memory than it may at so many checks in a row is replaced: a large request is over before.
TOO_LARGE_AFTER_CHECKS = 10
# A worker that has not loaded yet gets this many times the checks: a device may compile graphs for minutes.
LOADING_FACTOR = 10
STOP_SIGNALS = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none
# At this signal a worker writes the stack of every thread to stderr.
DUMP_SIGNAL = getattr(signal, "SIGUSR1", signal.SIGTERM)  # Windows has none, and no several workers
# While no worker can take connections, they wait in the kernel's queue; this is how often it is tried again.
RETRY_S = 0.01
# For so long connections that were begun before the end are accepted. Longer only while workers cannot take those that wait.
LAST_ACCEPT_S = 0.05
MAX_LAST_ACCEPT_S = 2.0
# Notices are kept for workers to come; so many are, which are more than a server has models.
MAX_NOTICES = 10_000
# At most so many connections are accepted before signals and deaths are looked at again.
ACCEPT_AT_ONCE = 64


@dataclass(frozen=True)
class WorkerContext:
    """What a worker is given by its parent."""

    channel: socket.socket
    """Connections come over it (`connections.receive_connection`) until the parent ends."""
    slot: Slot
    """Its counters, which the parent reads."""
    reports: Connection
    """Takes one string when the worker has loaded."""
    notices: Connection
    """Gives notices (`notices.py`) of other workers, and takes those for them."""


WorkerMain = Callable[[WorkerContext], None]
"""Runs in a child: serves connections until its channel ends. A signal to end may come as well, and is its own to handle."""


class SupervisorObserver(Protocol):
    """Called in the parent."""

    def loaded(self, report: str) -> None:
        """Every worker has loaded; `report` is one's. Called once."""
        ...

    def died(self, pid: int) -> None:
        """A worker, or a companion, ended, killed or not."""
        ...

    def replaced(self, reason: RestartReason) -> None:
        """A worker that should not have ended did, and gets a successor."""
        ...


def signals_to_handle() -> list[signal.Signals]:
    """The signals that end a server; without SIGHUP where it was started to ignore that, as by nohup."""
    return [number for number in STOP_SIGNALS if number != SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


def replacement_delay_s(uptime_s: float, previous_s: float) -> float:
    """How long to wait before a worker that ended after `uptime_s` is replaced; `previous_s` is the delay before it."""
    if uptime_s >= MIN_UPTIME_S:
        return 0.0
    return min(MAX_DELAY_S, max(0.5, 2 * previous_s))


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    channel: socket.socket
    slot: Slot
    reports: Connection
    notices: Connection
    started_at: float
    delay_s: float
    num_notices: int = 0
    """How many of all notices it was sent."""
    first_bytes: int | None = None
    """Its own memory when it had loaded."""
    num_large_checks: int = 0
    is_too_large: bool = False
    kill_at: float = math.inf
    has_loaded: bool = False
    num_sent: int = 0
    num_heartbeats: int = 0
    num_missed_checks: int = 0
    is_channel_open: bool = True

    @property
    def load(self) -> WorkerLoad:
        is_ready = self.has_loaded and self.num_missed_checks < UNREADY_AFTER_CHECKS and not self.slot.is_leaving
        num_in_transit = self.num_sent - self.slot.num_received if self.is_channel_open else MAX_IN_TRANSIT
        return WorkerLoad(is_ready, num_in_transit, self.num_sent - self.slot.num_closed)

    def check_memory(self, max_bytes: int) -> int:
        """See how much memory it has taken since it had loaded."""
        if self.first_bytes is None:
            return 0
        taken = own_memory_bytes(self.pid) - self.first_bytes
        self.num_large_checks = self.num_large_checks + 1 if taken > max_bytes else 0
        return taken

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def max_missed_checks(self, allowed: int) -> int:
        """How many checks without a heartbeat are too many."""
        return allowed if self.has_loaded else allowed * LOADING_FACTOR

    def end_channel(self) -> None:
        """Have it end once it has received, and answered, what was sent to it."""
        self.is_channel_open = False
        with contextlib.suppress(OSError):
            self.channel.shutdown(socket.SHUT_WR)

    def check_heartbeat(self) -> None:
        """See whether the event loop ran since the last check."""
        heartbeats = self.slot.num_heartbeats
        self.num_missed_checks = 0 if heartbeats != self.num_heartbeats else self.num_missed_checks + 1
        self.num_heartbeats = heartbeats


@dataclass(frozen=True)
class _Vacancy:
    """The place of a worker that is to be started."""

    slot: Slot
    due_at: float
    delay_s: float


@dataclass
class _Companion:
    """A process beside the workers."""

    main: Callable[[], None]
    process: BaseProcess | None = None
    started_at: float = 0.0
    delay_s: float = 0.0
    due_at: float = 0.0
    """When it is started anew, where it has ended."""

    def plan_restart(self, now: float) -> None:
        """Set when it is started anew, as for workers: one that lived for long at once, one that did not later and later."""
        self.delay_s = replacement_delay_s(now - self.started_at, self.delay_s)
        self.due_at = now + self.delay_s


class Supervisor:
    """Keeps `num_workers` processes of `worker_main` running until a signal to end, and sends them the listeners' connections.

    With `forks`, workers are copies of this process as it is, and share its memory until they write to it: it must have no
    other threads. Else they are processes of their own, and `worker_main` is pickled.

    Each of `companions` runs in a process of its own beside the workers, and is started anew where it ends.

    A worker that keeps more than `max_bytes` beyond what it had when it had loaded drains, ends and is replaced.

    At the signal the workers drain, and connections are accepted and sent for `drain_s` more; after another `grace_s`, or at a
    second signal, workers that have not ended are killed.
    """

    def __init__(
        self,
        worker_main: WorkerMain,
        listeners: Sequence[socket.socket],
        num_workers: int,
        *,
        observer: SupervisorObserver,
        companions: Sequence[Callable[[], None]] = (),
        forks: bool = False,
        drain_s: float = 0.0,
        grace_s: float = 30.0,
        check_interval_s: float = CHECK_INTERVAL_S,
        hung_after_checks: int = HUNG_AFTER_CHECKS,
        max_bytes: int | None = None,
        too_large_after_checks: int = TOO_LARGE_AFTER_CHECKS,
    ) -> None:
        self._worker_main = worker_main
        self._listeners = list(listeners)
        self._observer = observer
        self._forks = forks
        self._companions = [_Companion(main) for main in companions]
        self._drain_s = drain_s
        self._grace_s = grace_s
        self._check_interval_s = check_interval_s
        self._hung_after_checks = hung_after_checks
        self._max_bytes = max_bytes
        self._too_large_after_checks = too_large_after_checks
        self._context: multiprocessing.context.ForkContext | multiprocessing.context.SpawnContext = (
            multiprocessing.get_context("fork") if forks else multiprocessing.get_context("spawn")
        )
        self._workers: list[_Worker] = []
        self._vacancies = [_Vacancy(slot, 0.0, 0.0) for slot in create_slots(self._context, num_workers)]
        self._selector = selectors.DefaultSelector()
        self._signals: tuple[socket.socket, ...] = ()
        self._notices: list[bytes] = []
        self._next_check_at = 0.0
        self._next_place = 0
        self._is_accepting = False
        self._has_reported = False
        self._drains_until: float | None = None
        self._is_stopping = False
        self._is_killing = False
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
            self._selector.register(self._signals[0], selectors.EVENT_READ, self._read_signal)
            self._next_check_at = time.monotonic() + self._check_interval_s
            self._spawn_due()
            self._resume_accepting()
            while not self._is_stopping:
                self._wait()
                self._reap()
                self._reap_companions()
                self._check_heartbeats()
                self._send_notices()
                self._spawn_due()
                self._is_stopping |= self._drains_until is not None and time.monotonic() >= self._drains_until
            self._stop()
        return self._status

    # ------------------------------------------------------------------------------------------ workers start and end

    def _spawn_due(self) -> None:
        """Start a worker at every vacant place whose time has come, and the companions."""
        now = time.monotonic()
        for companion in self._companions:
            if companion.process is None and companion.due_at <= now and not self._is_stopping:
                self._spawn_companion(companion)
        for vacancy in [vacancy for vacancy in self._vacancies if vacancy.due_at <= now and not self._is_stopping]:
            self._vacancies.remove(vacancy)
            self._spawn(vacancy)

    def _spawn(self, vacancy: _Vacancy) -> None:
        vacancy.slot.clear()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        reports, reports_of_worker = self._context.Pipe(duplex=False)
        notices, notices_of_worker = self._context.Pipe()
        inherited = [ours, reports, notices, *self._inherited()] if self._forks else []
        context = WorkerContext(theirs, vacancy.slot, reports_of_worker, notices_of_worker)
        process = self._context.Process(target=_run_worker, args=(self._worker_main, context, inherited))
        # Between the fork and its first line, a child would take signals for the parent.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            process.start()
        except OSError as exc:  # too many processes, or no memory for one more
            log.error("a worker cannot be started: %s", exc.strerror)
            ours.close()
            reports.close()
            notices.close()
            self._vacancies.append(replace(vacancy, due_at=time.monotonic() + MAX_DELAY_S))
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            theirs.close()
            reports_of_worker.close()
            notices_of_worker.close()
        worker = _Worker(process, ours, vacancy.slot, reports, notices, time.monotonic(), vacancy.delay_s)
        self._workers.append(worker)
        self._send_notices()
        if self._drains_until is not None:
            send_drain(worker.channel)
        self._selector.register(process.sentinel, selectors.EVENT_READ, lambda: None)
        self._selector.register(reports, selectors.EVENT_READ, lambda: self._read_report(worker))
        self._selector.register(notices, selectors.EVENT_READ, lambda: self._read_notice(worker))

    def _inherited(self) -> list[socket.socket | Connection | selectors.BaseSelector]:
        """What a forked process holds of this one, and must close: it would keep the port, and workers not see the parent end."""
        ends = [end for worker in self._workers for end in (worker.channel, worker.reports, worker.notices)]
        return [*self._listeners, *self._signals, self._selector, *ends]

    def _spawn_companion(self, companion: _Companion) -> None:
        companion.started_at = time.monotonic()
        inherited = self._inherited() if self._forks else []
        process = self._context.Process(target=_run_companion, args=(companion.main, inherited))
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            process.start()
        except OSError as exc:
            log.error("a process cannot be started: %s", exc.strerror)
            companion.plan_restart(time.monotonic())
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        companion.process = process
        self._selector.register(process.sentinel, selectors.EVENT_READ, lambda: None)

    def _reap_companions(self) -> None:
        for companion in self._companions:
            process = companion.process
            if process is None or process.exitcode is None:
                continue
            self._selector.unregister(process.sentinel)
            log.error("the process beside the workers died", extra={"worker": process.pid, "exit_status": process.exitcode})
            companion.process = None
            companion.plan_restart(time.monotonic())
            assert process.pid is not None
            self._observer.died(process.pid)
            process.close()

    def _read_report(self, worker: _Worker) -> None:
        """A worker has loaded, or its end of the pipe is closed because it died."""
        self._selector.unregister(worker.reports)
        with contextlib.suppress(EOFError, OSError):
            report = worker.reports.recv()
            worker.has_loaded = True
            worker.num_missed_checks = 0  # those of a start without heartbeats: else it gets nothing until the next check
            worker.first_bytes = own_memory_bytes(worker.pid)
            if not self._has_reported and not self._vacancies and all(worker.has_loaded for worker in self._workers):
                self._has_reported = True
                self._observer.loaded(report)
        worker.reports.close()

    def _read_notice(self, worker: _Worker) -> None:
        """A worker has something for the others, or its end of the pipe is closed because it died."""
        try:
            notice = worker.notices.recv_bytes(MAX_NOTICE_BYTES)
        except (EOFError, OSError):
            self._selector.unregister(worker.notices)
            worker.notices.close()
            return
        if notice not in self._notices and len(self._notices) < MAX_NOTICES:
            self._notices.append(notice)

    def _send_notices(self) -> None:
        """Send every worker the notices that it has not been sent, its own too, as far as its pipe takes them at once."""
        for worker in self._workers:
            with contextlib.suppress(OSError):  # it has died
                while worker.num_notices < len(self._notices) and not worker.notices.closed and can_take(worker.notices):
                    worker.notices.send_bytes(self._notices[worker.num_notices])
                    worker.num_notices += 1

    def _reap(self) -> None:
        """Release what belonged to workers that have ended, and plan when each is replaced."""
        for worker in [worker for worker in self._workers if worker.process.exitcode is not None]:
            self._workers.remove(worker)
            self._selector.unregister(worker.process.sentinel)
            if not worker.reports.closed:
                self._selector.unregister(worker.reports)
                worker.reports.close()
            while not worker.notices.closed:  # what it published last, to the end of the pipe
                self._read_notice(worker)
            worker.channel.close()
            pid, status = worker.pid, worker.process.exitcode
            worker.process.close()
            self._observer.died(pid)
            if status == CANNOT_START:
                self._status, self._is_stopping = CANNOT_START, True
            if self._is_stopping:
                continue
            uptime_s = time.monotonic() - worker.started_at
            delay_s = replacement_delay_s(uptime_s, worker.delay_s)
            self._vacancies.append(_Vacancy(worker.slot, time.monotonic() + delay_s, delay_s))
            is_hung = worker.num_missed_checks >= worker.max_missed_checks(self._hung_after_checks)
            reason: RestartReason = "hung" if is_hung else "ended" if status == 0 else "crashed"
            if worker.is_too_large:
                reason = "memory"
            self._observer.replaced(reason)
            log.error(
                "worker died",
                extra={
                    "worker": pid,
                    "reason": reason,
                    "exit_status": status,
                    "uptime_s": round(uptime_s, 1),
                    "replaced_in_s": delay_s,
                },
            )

    def _check_heartbeats(self) -> None:
        """Find the workers whose event loop stands still: after long enough they write their stacks and are killed."""
        now = time.monotonic()
        if now < self._next_check_at:
            return
        self._next_check_at = now + self._check_interval_s
        for worker in self._workers:
            worker.check_heartbeat()
            if worker.slot.is_leaving and self._drains_until is None:
                worker.end_channel()
            self._check_memory(worker)
            too_many = worker.max_missed_checks(self._hung_after_checks)
            if worker.num_missed_checks == too_many:
                silent_s = round(too_many * self._check_interval_s, 1)
                log.error("worker hangs: its event loop stands still", extra={"worker": worker.pid, "silent_s": silent_s})
                os.kill(worker.pid, DUMP_SIGNAL)
            elif worker.num_missed_checks > too_many:
                worker.process.kill()

    def _check_memory(self, worker: _Worker) -> None:
        """Have a worker end that has taken too much; kill it if it does not end in time."""
        if self._max_bytes is None:
            return
        taken = worker.check_memory(self._max_bytes)
        if worker.is_too_large:
            if time.monotonic() >= worker.kill_at:
                worker.process.kill()
        elif worker.num_large_checks >= self._too_large_after_checks and self._drains_until is None:
            # One at a time: the others serve meanwhile.
            if any(other.is_too_large for other in self._workers):
                return
            log.error(
                "worker keeps too much memory, and is replaced",
                extra={"worker": worker.pid, "taken_bytes": taken, "limit_bytes": self._max_bytes},
            )
            worker.is_too_large, worker.kill_at = True, time.monotonic() + self._grace_s
            os.kill(worker.pid, signal.SIGTERM)

    def _stop(self) -> None:
        """Hand over what the kernel has accepted, and have every worker finish its requests; kill those that do not end."""
        if self._status == 0:
            self._accept_the_last()
        self._pause_accepting()
        for listener in self._listeners:
            listener.close()
        for worker in self._workers:
            worker.end_channel()
        deadline = time.monotonic() + self._grace_s
        while self._workers and not self._is_killing and time.monotonic() < deadline:
            self._select(deadline)
            self._reap()
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
        self._reap()
        for companion in self._companions:
            if companion.process is not None:
                companion.process.kill()
                companion.process.join()

    def _accept_the_last(self) -> None:
        for listener in self._listeners:
            refuse_handshakes(listener)
        began_at = time.monotonic()
        soon, latest = began_at + LAST_ACCEPT_S, began_at + MAX_LAST_ACCEPT_S
        while self._workers and not self._is_killing:
            is_any_waiting = any(map(has_waiting, self._listeners))
            now = time.monotonic()
            if now >= latest or (now >= soon and not is_any_waiting):
                return
            self._resume_accepting()
            self._select(min(now + RETRY_S, latest))
            self._reap()

    # ------------------------------------------------------------------------------------------------------- events

    def _wait(self) -> None:
        """Until something happens: a signal, a report, a death, connections, or the time for a check or a replacement."""
        due_at = min([self._next_check_at, *(vacancy.due_at for vacancy in self._vacancies)])
        if self._drains_until is not None:
            due_at = min(due_at, self._drains_until)
        due_at = min([due_at, *(companion.due_at for companion in self._companions if companion.process is None)])
        self._select(due_at)

    def _select(self, due_at: float) -> None:
        timeout_s = max(0.0, due_at - time.monotonic())
        if not self._is_accepting:
            timeout_s = min(timeout_s, RETRY_S)
        events = self._selector.select(timeout_s)
        if not self._is_stopping:
            self._resume_accepting()
        for key, _ in events:
            key.data()

    def _read_signal(self) -> None:
        number = self._signals[0].recv(1)[0]
        if self._drains_until is not None:
            self._is_stopping = self._is_killing = True
            return
        log.info("stopping", extra={"signal": signal.Signals(number).name, "drain_s": self._drain_s})
        self._drains_until = time.monotonic() + self._drain_s
        for worker in self._workers:
            send_drain(worker.channel)

    def _resume_accepting(self) -> None:
        if not self._is_accepting:
            for listener in self._listeners:
                self._selector.register(listener, selectors.EVENT_READ, lambda listener=listener: self._accept(listener))
            self._is_accepting = True

    def _pause_accepting(self) -> None:
        """Leave connections in the kernel's queue until the next try."""
        if self._is_accepting:
            for listener in self._listeners:
                self._selector.unregister(listener)
            self._is_accepting = False

    def _accept(self, listener: socket.socket) -> None:
        """Send the connections that have come to the workers."""
        for _ in range(ACCEPT_AT_ONCE):
            if choose_worker([worker.load for worker in self._workers], self._next_place) is None:
                return self._pause_accepting()
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionError):
                return None
            except OSError as exc:
                log.error("a connection cannot be accepted: %s", exc.strerror)
                return self._pause_accepting()
            with connection:
                self._send(connection)
        return None

    def _send(self, connection: socket.socket) -> None:
        """To the worker with the fewest, or to the next one if that one has just died."""
        # As they are now: while the last connection was sent, or this one accepted, others may have been closed.
        loads = [worker.load for worker in self._workers]
        while (place := choose_worker(loads, self._next_place)) is not None:
            worker, load = self._workers[place], loads[place]
            if send_connection(worker.channel, connection):
                worker.num_sent += 1
                self._next_place += 1
                return
            loads[place] = load._replace(is_ready=False, num_in_transit=MAX_IN_TRANSIT)
        log.warning("a connection is dropped: no worker can take it")


def _run_companion(main: Callable[[], None], inherited: Sequence[socket.socket | Connection | selectors.BaseSelector]) -> None:
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:  # the parent ends it, when the workers have ended
        signal.signal(number, signal.SIG_IGN)
    for end in inherited:
        end.close()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    main()


def _run_worker(
    worker_main: WorkerMain, context: WorkerContext, inherited: Sequence[socket.socket | Connection | selectors.BaseSelector]
) -> None:
    """The first lines of a worker: close what belongs to its parent, and take signals itself."""
    signal.set_wakeup_fd(-1)
    # A terminal sends these to the parent and its workers alike, and the parent says when they end.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    for end in inherited:
        end.close()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    faulthandler.enable()
    faulthandler.register(DUMP_SIGNAL)
    worker_main(replace(context, channel=move_to_high_number(context.channel)))


@contextlib.contextmanager
def _signals_as_bytes() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Signals to end as bytes on a pair of sockets (reader, writer), so that one `select` waits for them too."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in signals_to_handle()}
    before_fd = signal.set_wakeup_fd(writer.fileno())
    try:
        yield reader, writer
    finally:
        signal.set_wakeup_fd(before_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()
