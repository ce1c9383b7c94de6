"""A server of two workers that knows no HTTP: each connection is told the worker's pid, and may ask it to die.

    python -m tests.toy_workers fork|spawn

Prints its port, then what its supervisor tells; looks at event loops twice a second.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
import time

from service.errors import RestartReason
from service.process.connections import take_over
from service.process.supervisor import Seat, Supervisor

NUM_WORKERS = 2


def work(seat: Seat) -> None:
    seat.reports.send(f"{NUM_WORKERS} workers")
    with selectors.DefaultSelector() as selector:
        selector.register(seat.channel, selectors.EVENT_READ)
        while True:
            seat.slot.beat()
            for key, _ in selector.select(0.01):
                if key.fileobj is seat.channel:
                    _take(seat, selector)
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    _obey(key.fileobj, seat, selector)


def _take(seat: Seat, selector: selectors.BaseSelector) -> None:
    try:
        connection = take_over(seat.channel)
    except EOFError:
        os._exit(0)
    assert connection is not None
    seat.slot.taken()
    connection.sendall(b"%d\n" % os.getpid())
    selector.register(connection, selectors.EVENT_READ)


def _obey(connection: socket.socket, seat: Seat, selector: selectors.BaseSelector) -> None:
    order = connection.recv(100)
    if order == b"hang":
        time.sleep(3600)
    elif order == b"exit":
        os._exit(0)
    elif not order:
        selector.unregister(connection)
        seat.slot.closed()
        connection.close()


class Teller:
    def loaded(self, report: str) -> None:
        print("loaded", report, flush=True)

    def died(self, pid: int) -> None:
        print("died", pid, flush=True)

    def replaced(self, reason: RestartReason) -> None:
        print("replaced", reason, flush=True)


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        forks = sys.argv[1] == "fork"
        supervisor = Supervisor(work, [listener], NUM_WORKERS, observer=Teller(), forks=forks, look_every_s=0.5, hung_looks=5)
        sys.exit(supervisor.run())
