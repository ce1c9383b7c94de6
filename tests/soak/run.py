"""One soak: starts the server, the clients and the faults, and observes until the time is over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from pathlib import Path

from benchmarks.servers import free_port
from tests.fuzz import monitor
from tests.fuzz.campaign import served_models
from tests.serving import ServerProcess, server_process, wait_until
from tests.soak.clients import Records, make_clients, record_alone
from tests.soak.faults import STOPPED_S, Fault, FaultKind, schedule
from tests.soak.report import Sample, Soak
from tests.soak.traffic import messages

NUM_WORKERS = 2
MEMORY_INTERVAL_S = 0.5


class Server:
    """A server that is started again on the same port."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self._port = free_port()
        self._stack = contextlib.ExitStack()
        self.process: ServerProcess | None = None
        self.num_kills = 0
        self.problems: list[str] = []

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.process.pid

    def start(self) -> None:
        port, workers = str(self._port), str(NUM_WORKERS)
        running = server_process(self._models, SLUICE_PORT=port, SLUICE_WORKERS=workers, SLUICE_DRAIN_SECONDS="1")
        self.process = self._stack.enter_context(running)
        self.num_kills = 0

    def workers(self) -> list[int]:
        return monitor.processes_of(self.pid)[1:]

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it in order, and check what it leaves behind."""
        assert self.process is not None
        status = self.process.end(number)
        if status != 0:
            self.problems.append(f"the server ended with status {status}")
        lines = [line for line in monitor.unforeseen_lines(self.process.log) if "worker died" not in line]
        self.problems += [f"in the log: {line}" for line in lines[:5]]
        self.close()

    def close(self) -> None:
        """End it where it has not ended."""
        self._stack.close()

    def check_at_rest(self) -> None:
        """All that waits is answered, and no worker was replaced but those that were killed."""
        self.problems += [f"not zero when all is answered: {line}" for line in monitor.wait_until_idle(self.address)]
        replaced = monitor.RESTARTS.findall(monitor.read_metrics(self.address))
        counts = {labels: float(value) for labels, value in replaced if float(value)}
        expected = {'reason="crashed"': float(self.num_kills)} if self.num_kills else {}
        if counts != expected:
            self.problems.append(f"workers replaced: {counts}, killed: {self.num_kills}")


def run(duration_s: float, num_clients: int, seed: int, num_messages: int = 60) -> Soak:
    """Soak for `duration_s`."""
    with served_models() as models:
        server = Server(models)
        server.start()
        try:
            return asyncio.run(_run(server, models, duration_s, num_clients, seed, num_messages))
        finally:
            server.close()


async def _run(server: Server, models: Path, duration_s: float, num_clients: int, seed: int, num_messages: int) -> Soak:
    pool = await record_alone(server.address, messages(models, seed, num_messages))
    records = Records()
    memory: list[Sample] = []
    started_at = time.monotonic()
    sampling = asyncio.create_task(_sample(server, memory))
    clients = make_clients(num_clients, server.address, pool, records, seed)
    running = [asyncio.create_task(client.run()) for client in clients]
    faults: list[Fault] = []
    draw = random.Random(seed)
    try:
        for at, kind in schedule(duration_s):
            await asyncio.sleep(max(0.0, started_at + at - time.monotonic()))
            faults.append(await _inject(server, kind, draw))
        await asyncio.sleep(max(0.0, started_at + duration_s - time.monotonic()))
        ended_at = time.monotonic()
    finally:
        records.is_over.set()  # or a client that takes its cancellation for a timeout would go on for ever
    await asyncio.gather(*running)
    sampling.cancel()
    await asyncio.to_thread(server.check_at_rest)
    await asyncio.to_thread(server.end)
    return Soak(started_at, ended_at, records.found, faults, memory, num_clients, server.problems)


async def _inject(server: Server, kind: FaultKind, draw: random.Random) -> Fault:
    """Do it, and wait until the server is whole again."""
    began_at = time.monotonic()
    if kind == "restart":
        await asyncio.to_thread(server.end, signal.SIGHUP)
        await asyncio.to_thread(server.start)
        return Fault(kind, began_at, time.monotonic())
    workers = server.workers()
    victim = draw.choice(workers)
    if kind == "kill":
        os.kill(victim, signal.SIGKILL)
        server.num_kills += 1
        # Connections that are sent to it until it has really ended are lost with it. A successor of a worker that did not live
        # long comes later; the other workers serve meanwhile.
        await asyncio.to_thread(wait_until, lambda: victim not in server.workers(), "the killed worker has ended")
        return Fault(kind, began_at, time.monotonic())
    os.kill(victim, signal.SIGSTOP)
    try:
        await asyncio.sleep(STOPPED_S)
    finally:
        os.kill(victim, signal.SIGCONT)
    return Fault(kind, began_at, time.monotonic())


async def _sample(server: Server, memory: list[Sample]) -> None:
    while True:
        with contextlib.suppress(OSError, ValueError, KeyError):  # a process that has just ended, or is about to begin
            memory.append(Sample(time.monotonic(), await asyncio.to_thread(monitor.resident_mb, [server.pid, *server.workers()])))
        await asyncio.sleep(MEMORY_INTERVAL_S)
