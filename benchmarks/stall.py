"""Stalls of the event loop under each kind of load: how many, how long, and at which line of the code.

    python -m benchmarks.stall
    python -m benchmarks.stall --seconds 10 --only "8 MB"

Every request waits while the loop is blocked, so no stall should reach 10 ms. The server's own
`sluice_event_loop_lag_seconds` shows stalls too, but the monitor (`stall_monitor.py`) samples ten times as often, records the
location, and leaves out the time in which the loop's thread was runnable without a core: other processes cause that.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.client import run_closed_loop
from benchmarks.servers import ROOT, free_port
from benchmarks.traffic import FORECAST, SENTIMENT, Check, Request, RequestBodies, expect_problem, is_ok, post

READY_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Scenario:
    """One kind of load: the requests, the number of connections, and how often the metrics are scraped meanwhile."""

    name: str
    requests: Sequence[Request]
    connections: int
    scrapes_per_s: float = 0.0


def scenarios(bodies: RequestBodies) -> list[Scenario]:
    """Every load under which the loop should not stall."""

    def requests(contents: Sequence[Any], is_expected: Check = is_ok) -> list[Request]:
        return [Request("valid", post("/predict", _bytes(content)), is_expected) for content in contents]

    usual = requests([bodies.forecast(num_steps=336) for _ in range(50)])
    mixed = requests(bodies.mixed(200))
    million = {"model": FORECAST, "instances": [{"history": bodies.series(900_000)}]}
    thousands = {"model": FORECAST, "instances": [{"history": bodies.series(336)} for _ in range(3000)]}
    texts = {"model": SENTIMENT, "instances": [bodies.text(200) for _ in range(500)]}
    with_nan = json.dumps(million).encode()[:-4] + b", NaN]}]}"
    truncated = json.dumps(million).encode()[:-9]
    return [
        Scenario("nothing", [], 0),
        Scenario("64 connections, histories of 336", usual, 64),
        Scenario("the same, scraped 5 times a second", usual, 64, scrapes_per_s=5),
        Scenario("256 connections, histories of 336", usual, 256),
        Scenario("64 connections, mixed", mixed, 64),
        Scenario("64 connections, texts of 400 words", requests([bodies.sentiment(num_words=400) for _ in range(50)]), 64),
        Scenario("4 connections, 256 histories each", requests([bodies.forecast(256, 336) for _ in range(4)]), 4),
        Scenario("4 connections, 256 texts each", requests([bodies.sentiment(256, 50) for _ in range(4)]), 4),
        Scenario("2 connections, one history of 7 MB", requests([million]), 2),
        Scenario("2 connections, 3000 histories in 8 MB", requests([thousands]), 2),
        Scenario("2 connections, 500 texts in 0.8 MB", requests([texts]), 2),
        Scenario("1 connection, 7 MB with NaN at its end", requests([with_nan], expect_problem(422, "invalid_input")), 1),
        Scenario("1 connection, 7 MB cut off", requests([truncated], expect_problem(400, "malformed_request")), 1),
    ]


def _bytes(content: Any) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode()


@dataclass
class MonitorOutput:
    """The events that the monitored server prints, read as they come."""

    process: subprocess.Popen[str]
    stalls: list[dict[str, Any]] = field(default_factory=list)
    collections: list[dict[str, Any]] = field(default_factory=list)
    is_ready: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        """Read until the server ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                event = json.loads(line)
                (self.stalls if "stall_ms" in event else self.collections).append(event)
            elif "is ready" in line:
                self.is_ready.set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the models folder")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one scenario")
    parser.add_argument("--only", default="", help="only scenarios with this in their name")
    options = parser.parse_args()

    port = free_port()
    command = [sys.executable, "-m", "benchmarks.stall_monitor", f"--models={options.models.resolve()}", f"--port={port}"]
    # Above the default: what such bodies cost is what the bound is chosen by.
    command += [
        "--device=cpu",
        "--request-timeout-ms=60000",
        "--workers=1",
        "--drain-seconds=0",
        f"--max-body-bytes={8 * 1024 * 1024}",
        "--max-json-values=3000000",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    output = MonitorOutput(process)
    reader = threading.Thread(target=output.read)
    reader.start()
    try:
        if not output.is_ready.wait(READY_TIMEOUT_S):
            raise RuntimeError(f"the server was not ready within {READY_TIMEOUT_S:.0f} s")
        print("| load | requests/s | stalls above 10 ms, per s | longest, ms | garbage collector, ms | where, most often first |")
        print("|---|---:|---:|---:|---:|---|")
        for scenario in scenarios(RequestBodies(options.models)):
            if options.only in scenario.name:
                print(run_scenario(scenario, port, output, options.seconds), flush=True)
        print("\nas the server itself counted:")
        print(lag_buckets(port))
    finally:
        process.terminate()
        process.wait(READY_TIMEOUT_S)
        reader.join()


def run_scenario(scenario: Scenario, port: int, output: MonitorOutput, seconds: float) -> str:
    """Measure one scenario and return its row of the table. Raises RuntimeError after an unexpected response."""
    time.sleep(0.2)
    output.stalls.clear()
    output.collections.clear()
    rate = 0.0
    ended = threading.Event()
    scraper = threading.Thread(target=_scrape, args=(port, scenario.scrapes_per_s, ended))
    scraper.start()
    started = time.perf_counter()
    if scenario.requests:
        requests = itertools.cycle(scenario.requests)
        result = run_closed_loop("127.0.0.1", port, requests, scenario.connections, duration_s=seconds)
        if result.num_errors:
            raise RuntimeError(f"{scenario.name}: {result.errors}")
        rate = result.rate("valid")
    else:
        time.sleep(seconds)
    took_s = time.perf_counter() - started
    ended.set()
    scraper.join()
    time.sleep(0.2)
    stalls = list(output.stalls)
    longest = max((stall["stall_ms"] for stall in stalls), default=0.0)
    collected = max((run["gc_ms"] for run in output.collections), default=0.0)
    figures = f"{rate:.0f} | {len(stalls) / took_s:.1f} | {longest:.0f} | {collected:.0f}"
    return f"| {scenario.name} | {figures} | {'; '.join(common_locations(stalls))} |"


def common_locations(stalls: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The three most frequent locations in our own code, each with its count and its median length."""
    lengths: dict[str, list[float]] = {}
    for stall in stalls:
        own = [line for line in stall["stack"] if line.startswith("service/")]
        lengths.setdefault((own or stall["stack"])[0], []).append(stall["stall_ms"])
    for line, count in Counter({line: len(times) for line, times in lengths.items()}).most_common(3):
        yield f"{count}x {line} ({statistics.median(lengths[line]):.0f} ms)"


def _scrape(port: int, per_s: float, ended: threading.Event) -> None:
    while per_s and not ended.wait(1 / per_s):
        _metrics(port)


def _metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        text: str = response.read().decode()
        return text


def lag_buckets(port: int) -> str:
    """The server's own histogram of the event loop's lag."""
    found = re.findall(r'sluice_event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', _metrics(port))
    return ", ".join(f"{float(count):.0f} up to {bound} s" for bound, count in found)


if __name__ == "__main__":
    main()
