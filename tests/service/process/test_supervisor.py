"""Which workers are replaced, when, and which get the connections: with real processes, which test_main.py has speak HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from service.errors import RestartReason
from service.process.supervisor import MAX_DELAY_S, MIN_UPTIME_S, replacement_delay_s
from tests.serving import PATIENCE_S, ROOT, wait_until


@pytest.mark.parametrize(
    ("uptime_s", "previous_s", "delay_s"),
    [
        (MIN_UPTIME_S, 0.0, 0.0),
        (3600.0, MAX_DELAY_S, 0.0),
        (1.0, 0.0, 0.5),
        (1.0, 0.5, 1.0),
        (1.0, 4.0, 8.0),
        (1.0, MAX_DELAY_S, MAX_DELAY_S),
    ],
)
def test_a_worker_that_ends_soon_is_replaced_later_and_later(uptime_s: float, previous_s: float, delay_s: float) -> None:
    assert replacement_delay_s(uptime_s, previous_s) == delay_s


class Toy:
    """A running `tests.toy_workers`."""

    def __init__(self, folder: Path, how: str, *options: str) -> None:
        self._out, self._err = folder / "stdout", folder / "stderr"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            command = [sys.executable, "-m", "tests.toy_workers", how, *options]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err)
        wait_until(lambda: "loaded 2 workers" in self.output, "the workers are loaded")
        self.port = int(self.output[0])

    @property
    def output(self) -> list[str]:
        return self._out.read_text().splitlines()

    @property
    def log(self) -> str:
        return self._err.read_text()

    def connect(self) -> tuple[socket.socket, int]:
        """A connection, and the pid of the worker that has it."""
        connection = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
        with connection.makefile() as lines:
            return connection, int(lines.readline())


@contextmanager
def running(toy: Toy) -> Iterator[Toy]:
    try:
        yield toy
    finally:
        toy.process.terminate()
        assert toy.process.wait(PATIENCE_S) == 0


@pytest.fixture(params=["fork", "spawn"])
def toy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Toy]:
    with running(Toy(tmp_path, request.param)) as toy:
        yield toy


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_connections_are_spread_evenly_and_the_worker_with_fewer_gets_the_next(how: str, tmp_path: Path) -> None:
    # Checked seldom: on a busy machine a worker may miss two checks within a second, and gets no connection then.
    with running(Toy(tmp_path, how, str(PATIENCE_S))) as toy, ExitStack() as stack:
        of_worker: dict[int, list[socket.socket]] = {}
        for _ in range(16):
            connection, pid = toy.connect()
            of_worker.setdefault(pid, []).append(stack.enter_context(connection))
        assert [len(connections) for connections in of_worker.values()] == [8, 8]
        least = min(of_worker)
        for connection in of_worker[least][:4]:
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""  # the worker has counted that it is closed
        for _ in range(4):
            connection, pid = toy.connect()
            stack.enter_context(connection)
            assert pid == least


def test_a_worker_that_hangs_shows_where_and_is_replaced(toy: Toy) -> None:
    connection, victim = toy.connect()
    with connection:
        connection.sendall(b"hang")
        wait_until(lambda: "replaced hung" in toy.output, "it is replaced")
    assert f"died {victim}" in toy.output
    assert "in _run_order" in toy.log
    connection, pid = toy.connect()
    connection.close()
    assert pid != victim


def test_a_stopped_worker_is_replaced(toy: Toy) -> None:
    connection, victim = toy.connect()
    with connection:
        os.kill(victim, signal.SIGSTOP)
        wait_until(lambda: "replaced hung" in toy.output, "it is replaced")
        assert toy.output.count("loaded 2 workers") == 1


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGKILL, "crashed"), (None, "ended")])
def test_a_worker_that_ends_is_replaced_with_its_reason(toy: Toy, number: int | None, reason: RestartReason) -> None:
    connection, victim = toy.connect()
    with connection:
        if number is None:
            connection.sendall(b"exit")
        else:
            os.kill(victim, number)
        assert connection.recv(1) == b""
    wait_until(lambda: f"replaced {reason}" in toy.output, "it is replaced")
    assert f"died {victim}" in toy.output
    # Until its successor is there, the other one serves alone.
    connection, pid = toy.connect()
    connection.close()
    assert pid != victim


def test_a_notice_reaches_all_workers_and_those_that_come_later(toy: Toy) -> None:
    def list_notices(connection: socket.socket) -> str:
        connection.sendall(b"list")
        with connection.makefile() as lines:
            return lines.readline().strip()

    (first, publisher), (second, other) = toy.connect(), toy.connect()
    assert publisher != other
    with first, second:
        first.sendall(b"publish")
        for connection in (second, first):  # the order to publish is not to come in one piece with another
            wait_until(lambda connection=connection: list_notices(connection) == str(publisher), "it has got the notice, once")
        first.sendall(b"publish")
        second.sendall(b"exit")
        wait_until(lambda: f"died {other}" in toy.output, "the other one has ended")
        wait_until(lambda: toy.output.count("replaced ended") == 1, "it is replaced")

    def is_known() -> bool:
        connection, pid = toy.connect()
        with connection:
            return pid not in (publisher, other) and list_notices(connection) == str(publisher)

    wait_until(is_known, "its successor has got the notice")


def test_a_worker_that_keeps_too_much_memory_is_replaced(toy: Toy) -> None:
    (first, victim), (second, other) = toy.connect(), toy.connect()
    with first, second:
        first.sendall(b"grow")
        wait_until(lambda: f"died {victim}" in toy.output, "it has ended")
        wait_until(lambda: "replaced memory" in toy.output, "it is replaced")
        assert "worker keeps too much memory" in toy.log
        assert f"died {other}" not in toy.output
