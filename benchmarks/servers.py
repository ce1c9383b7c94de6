"""Starts a server in a session of its own, waits until it is ready, reads its memory, and ends all of its processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.processes import MARK, Process, end, members

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "benchmarks" / ".work"
"""Logs and temporary files of the servers; nothing in it is needed after a run."""


@dataclass(frozen=True)
class Server:
    """A running server: its URL, its first process, and the seconds from its start to its first ready response."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    ready_s: float
    mark: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def members(self, known: Iterable[Process] = ()) -> set[Process]:
        """Every running process of this server."""
        return members(self.process.pid, self.mark, known)

    def resident_bytes(self) -> int:
        """Resident memory of all its processes together."""
        return sum(process.resident_bytes() for process in self.members())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    port: int,
    env: dict[str, str] | None = None,
    *,
    cwd: Path = ROOT,
    ready_path: str = "/health/ready",
    timeout_s: float = 60,
    grace_s: float = 15,
) -> Iterator[Server]:
    """Run `command` in the folder `cwd` until the block ends; the server is ready when the status of GET `ready_path` is 200.

    Raises RuntimeError with the end of its output when it ends early or is not ready within `timeout_s`, and when one of its
    processes outlives the block. It has `grace_s` to end by itself. Its output stays in a file under WORK when the block
    fails.
    """
    url = f"http://127.0.0.1:{port}"
    mark = uuid.uuid4().hex
    WORK.mkdir(exist_ok=True)
    log = WORK / f"{name.replace(' ', '-')}-{port}.log"
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", MARK: mark, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(name, url, process, 0.0, mark, log)
    try:
        while not _is_ready(url + ready_path):
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with status {process.returncode} before it was ready: {_last_lines(log)}")
            if time.perf_counter() - started > timeout_s:
                raise RuntimeError(f"{name} was not ready within {timeout_s:.0f} s: {_last_lines(log)}")
            time.sleep(0.02)
        yield replace(server, ready_s=time.perf_counter() - started)
    finally:
        _end(server, grace_s)
    log.unlink()


def sluice_command(models: Path, port: int, num_processes: int = 1) -> tuple[list[str], dict[str, str]]:
    """Command and environment of Sluice with its default settings: only models, port, processes and device are set.

    And that it ends at once: no balancer sends requests to it that it would have to wait for.
    """
    settings = {"MODELS": models.resolve(), "PORT": port, "WORKERS": num_processes, "DEVICE": "cpu", "DRAIN_SECONDS": 0}
    return [sys.executable, "-m", "service"], {f"SLUICE_{name}": str(value) for name, value in settings.items()}


@contextmanager
def sluice(models: Path, **settings: str) -> Iterator[Server]:
    """Run Sluice itself on a models folder, with one worker where SLUICE_WORKERS does not say otherwise."""
    port = free_port()
    command, env = sluice_command(models, port)
    with running("Sluice", command, port, env | settings) as server:
        yield server


def _end(server: Server, grace_s: float) -> None:
    # The first process ends its own children in the right order; only processes that remain are ended one by one.
    known = server.members()
    server.process.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.process.wait(grace_s)
    left = end(lambda found: server.members(known | set(found)), grace_s=min(grace_s, 5))
    server.process.wait()
    if left:
        raise RuntimeError(f"{server.name} left processes behind: {sorted(process.pid for process in left)}")


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _last_lines(log: Path, count: int = 15) -> str:
    return "\n".join(["", *log.read_text(errors="replace").splitlines()[-count:]])
