"""Starts a server as a process of its own, waits until it answers, reads its memory, and ends it again."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Server:
    """A running server: where it answers, its process, and the seconds from its start to its first ready answer."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    ready_s: float

    def resident_bytes(self) -> int:
        """Resident memory of the process and of its children, as the kernel counts it."""
        return sum(_resident_bytes(pid) for pid in [self.process.pid, *_children(self.process.pid)])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(name: str, command: Sequence[str], port: int, env: dict[str, str] | None = None) -> Iterator[Server]:
    """Run `command` until the block ends; the server is ready when GET /health/ready answers 200 (60 s at most)."""
    url = f"http://127.0.0.1:{port}"
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", **(env or {})}, stdout=subprocess.DEVNULL
    )
    try:
        while not _is_ready(url):
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with status {process.returncode} before it was ready")
            if time.perf_counter() - started > 60:
                raise RuntimeError(f"{name} was not ready within 60 s")
            time.sleep(0.02)
        yield Server(name, url, process, time.perf_counter() - started)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def sluice(models: Path, **settings: str) -> tuple[list[str], int, dict[str, str]]:
    """Command, port and environment of `python -m service` on a models folder, one process."""
    port = free_port()
    env = {"SLUICE_PORT": str(port), "SLUICE_MODELS": str(models), "SLUICE_DEVICE": "cpu", "SLUICE_WORKERS": "1", **settings}
    return [sys.executable, "-m", "service"], port, env


def handwritten(graph: Path) -> tuple[list[str], int, dict[str, str]]:
    """Command, port and environment of the hand-written endpoint on one graph."""
    port = free_port()
    return [sys.executable, "-m", "benchmarks.handwritten", str(graph), str(port)], port, {}


def echo(answer: Path) -> tuple[list[str], int, dict[str, str]]:
    """Command, port and environment of the server that answers a canned body."""
    port = free_port()
    return [sys.executable, "-m", "benchmarks.echo", str(answer), str(port)], port, {}


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    direct = [int(child) for child in path.read_text().split()] if path.exists() else []
    return direct + [grandchild for child in direct for grandchild in _children(child)]
