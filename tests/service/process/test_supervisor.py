"""Who is replaced, when, and who gets the connections: with real processes, which test_main.py has speak HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from service.errors import RestartReason
from service.process.supervisor import LOCK_FILE, MAX_DELAY_S, YOUNG_S, replacement_delay_s, shared_folder
from tests.serving import PATIENCE_S, ROOT, wait_until


@pytest.mark.parametrize(
    ("lifetime_s", "previous_s", "delay_s"),
    [
        (YOUNG_S, 0.0, 0.0),
        (3600.0, MAX_DELAY_S, 0.0),
        (1.0, 0.0, 0.5),
        (1.0, 0.5, 1.0),
        (1.0, 4.0, 8.0),
        (1.0, MAX_DELAY_S, MAX_DELAY_S),
    ],
)
def test_who_dies_young_is_replaced_later_and_later(lifetime_s: float, previous_s: float, delay_s: float) -> None:
    assert replacement_delay_s(lifetime_s, previous_s) == delay_s


def test_a_shared_folder_is_removed_at_its_end_and_not_by_others(tmp_path: Path) -> None:
    with shared_folder("toy-", tmp_path) as first:
        with shared_folder("toy-", tmp_path) as second:
            assert first != second
            assert first.is_dir()
        assert list(tmp_path.iterdir()) == [first]
    assert list(tmp_path.iterdir()) == []


def test_shared_folders_of_the_dead_are_removed_at_the_next_start(tmp_path: Path) -> None:
    for name in ("toy-dead", "other-dead"):
        (tmp_path / name).mkdir()
        (tmp_path / name / LOCK_FILE).touch()
    (tmp_path / "toy-just-made").mkdir()
    with shared_folder("toy-", tmp_path) as folder:
        assert {path.name for path in tmp_path.iterdir()} == {"other-dead", "toy-just-made", folder.name}


class Toy:
    """A running `tests.toy_workers`."""

    def __init__(self, folder: Path, how: str) -> None:
        self._out, self._err = folder / "stdout", folder / "stderr"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            command = [sys.executable, "-m", "tests.toy_workers", how]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err)
        wait_until(lambda: "loaded 2 workers" in self.told, "the workers are loaded")
        self.port = int(self.told[0])

    @property
    def told(self) -> list[str]:
        return self._out.read_text().splitlines()

    @property
    def log(self) -> str:
        return self._err.read_text()

    def connect(self) -> tuple[socket.socket, int]:
        """A connection, and the pid of the worker that has it."""
        connection = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
        with connection.makefile() as lines:
            return connection, int(lines.readline())


@pytest.fixture(params=["fork", "spawn"])
def toy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Toy]:
    toy = Toy(tmp_path, request.param)
    try:
        yield toy
    finally:
        toy.process.terminate()
        assert toy.process.wait(PATIENCE_S) == 0


def test_connections_are_spread_evenly_and_who_lost_some_gets_the_next(toy: Toy) -> None:
    with ExitStack() as stack:
        of_worker: dict[int, list[socket.socket]] = {}
        for _ in range(16):
            connection, pid = toy.connect()
            of_worker.setdefault(pid, []).append(stack.enter_context(connection))
        assert [len(connections) for connections in of_worker.values()] == [8, 8]
        poorer = min(of_worker)
        for connection in of_worker[poorer][:4]:
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""  # the worker has told that it is over
        for _ in range(4):
            connection, pid = toy.connect()
            stack.enter_context(connection)
            assert pid == poorer


def test_a_worker_that_hangs_shows_where_and_is_replaced(toy: Toy) -> None:
    connection, victim = toy.connect()
    with connection:
        connection.sendall(b"hang")
        wait_until(lambda: "replaced hung" in toy.told, "it is replaced")
    assert f"died {victim}" in toy.told
    assert "in _obey" in toy.log
    connection, pid = toy.connect()
    connection.close()
    assert pid != victim


def test_a_stopped_worker_is_replaced(toy: Toy) -> None:
    connection, victim = toy.connect()
    with connection:
        os.kill(victim, signal.SIGSTOP)
        wait_until(lambda: "replaced hung" in toy.told, "it is replaced")
        assert toy.told.count("loaded 2 workers") == 1


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGKILL, "crashed"), (None, "ended")])
def test_a_worker_that_ends_is_replaced_with_its_reason(toy: Toy, number: int | None, reason: RestartReason) -> None:
    connection, victim = toy.connect()
    with connection:
        if number is None:
            connection.sendall(b"exit")
        else:
            os.kill(victim, number)
        assert connection.recv(1) == b""
    wait_until(lambda: f"replaced {reason}" in toy.told, "it is replaced")
    assert f"died {victim}" in toy.told
    # Until its successor is there, the other one serves alone.
    connection, pid = toy.connect()
    connection.close()
    assert pid != victim
