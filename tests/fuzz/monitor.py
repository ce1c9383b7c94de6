"""What must hold of the server itself while requests come: it lives, it answers probes, it forgets what is over.

Reads probes, metrics, processes and the log; knows nothing of the requests.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.memory import memory_of

# Zero when nothing is being answered. The scrape that reads them is itself a request to /metrics.
GAUGES = re.compile(
    r"^(sluice_http_requests_in_flight|sluice_queue_depth_rows|sluice_queue_oldest_request_timestamp_seconds)(\{[^}]*\})? (\S+)$",
    re.MULTILINE,
)
RESTARTS = re.compile(r"^sluice_worker_restarts_total\{([^}]*)\} (\S+)$", re.MULTILINE)
# What a log holds only after an error that nobody foresaw.
UNFORESEEN = ("Traceback (most recent call last)", "unexpected error", "Task exception was never retrieved", "worker died")
PROBE_INTERVAL_S = 0.05


@dataclass
class LivenessProbe:
    """Asks `/health/live` over new connections from a thread of its own, from `start` to `stop`."""

    address: tuple[str, int]
    timeout_s: float
    latencies_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def quantile_ms(self, share: float) -> float:
        ordered = sorted(self.latencies_s) or [0.0]
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def _run(self) -> None:
        while not self._is_over.wait(PROBE_INTERVAL_S):
            began_at = time.monotonic()
            connection = http.client.HTTPConnection(*self.address, timeout=self.timeout_s)
            try:
                connection.request("GET", "/health/live")
                response = connection.getresponse()
                body = response.read()
                if response.status != 200 or json.loads(body) != {"status": "live"}:
                    self.problems.append(f"/health/live: status {response.status}: {body[:200]!r}")
            except (OSError, http.client.HTTPException, ValueError) as exc:
                self.problems.append(f"/health/live: {exc!r} after {time.monotonic() - began_at:.1f} s")
            finally:
                connection.close()
            self.latencies_s.append(time.monotonic() - began_at)


def read_metrics(address: tuple[str, int], timeout_s: float = 30.0) -> str:
    connection = http.client.HTTPConnection(*address, timeout=timeout_s)
    try:
        connection.request("GET", "/metrics", headers={"Connection": "close"})
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def busy_gauges(metrics: str) -> list[str]:
    """The gauges of work that say there is some."""
    return [match[0] for match in GAUGES.finditer(metrics) if float(match[3]) != 0 and 'route="/metrics"' not in (match[2] or "")]


def replaced_workers(metrics: str) -> list[str]:
    return [match[0] for match in RESTARTS.finditer(metrics) if float(match[2]) != 0]


def wait_until_idle(address: tuple[str, int], patience_s: float = 30.0) -> list[str]:
    """Wait until no gauge says that there is work; what still says so after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while gauges := busy_gauges(read_metrics(address)):
        if time.monotonic() > deadline:
            return gauges
        time.sleep(0.3)
    return []


def processes_of(pid: int) -> list[int]:
    """The process and its children, as the kernel lists them."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def resident_mb(pids: Sequence[int]) -> float:
    return memory_of(pids).resident / 1e6


def num_open_files(pids: Sequence[int]) -> int:
    """File descriptors, connections among them."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)


def unforeseen_lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if any(words in line for words in UNFORESEEN)]
