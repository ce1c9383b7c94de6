"""A server of two workers without HTTP: each connection gets the worker's pid, and may order it to hang, to exit, to publish its
pid as a notice, to list the notices that it has got, or to take 300 MB.

    python -m tests.toy_workers fork|spawn [SECONDS]

Prints its port, then the events of its supervisor, which checks heartbeats every so many seconds, by default twice a second.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import time

from service.errors import RestartReason
from service.process.connections import receive_connection
from service.process.supervisor import Supervisor, WorkerContext

NUM_WORKERS = 2
MAX_BYTES = 200_000_000
TAKEN: list[bytes] = []


def worker_main(context: WorkerContext) -> None:
    context.reports.send(f"{NUM_WORKERS} workers")
    with selectors.DefaultSelector() as selector:
        selector.register(context.channel, selectors.EVENT_READ)
        selector.register(context.notices, selectors.EVENT_READ)
        notices: list[bytes] = []
        while True:
            context.slot.count_heartbeat()
            for key, _ in selector.select(0.01):
                if key.fileobj is context.channel:
                    _receive(context, selector)
                elif key.fileobj is context.notices:
                    with contextlib.suppress(EOFError):
                        notices.append(context.notices.recv_bytes())
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    _run_order(key.fileobj, context, selector, notices)


def _receive(context: WorkerContext, selector: selectors.BaseSelector) -> None:
    try:
        connection = receive_connection(context.channel)
    except EOFError:
        os._exit(0)
    assert connection is not None
    context.slot.count_received()
    connection.sendall(b"%d\n" % os.getpid())
    selector.register(connection, selectors.EVENT_READ)


def _run_order(connection: socket.socket, context: WorkerContext, selector: selectors.BaseSelector, notices: list[bytes]) -> None:
    order = connection.recv(100)
    if order == b"hang":
        time.sleep(3600)
    elif order == b"exit":
        os._exit(0)
    elif order == b"publish":
        context.notices.send_bytes(b"%d" % os.getpid())
    elif order == b"grow":
        TAKEN.append(b"x" * 300_000_000)
    elif order == b"list":
        connection.sendall(b" ".join(notices) + b"\n")
    elif not order:
        selector.unregister(connection)
        context.slot.count_closed()
        connection.close()


class PrintingObserver:
    def loaded(self, report: str) -> None:
        print("loaded", report, flush=True)

    def died(self, pid: int) -> None:
        print("died", pid, flush=True)

    def replaced(self, reason: RestartReason) -> None:
        print("replaced", reason, flush=True)


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        supervisor = Supervisor(
            worker_main,
            [listener],
            NUM_WORKERS,
            observer=PrintingObserver(),
            forks=sys.argv[1] == "fork",
            check_interval_s=float(sys.argv[2]) if len(sys.argv) > 2 else 0.5,
            hung_after_checks=5,
            max_bytes=MAX_BYTES,
            too_large_after_checks=2,
        )
        sys.exit(supervisor.run())
