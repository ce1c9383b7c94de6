"""Sluice of two checkouts side by side: whether a change made it slower.

    git worktree add ../before COMMIT
    make bench-against BEFORE=../before
    python -m benchmarks.before_after --before ../before --quick
    python -m benchmarks.before_after --before ../before --cases texts --processes 2 --rounds 9

Both servers run with this python, each in its own checkout, with that checkout's models and default settings, and get the same
bodies; predictions are not compared. In every round both are started anew, since what a server measures at its start decides its
batches, and each kind of traffic is sent to one right after the other, the order alternating from round to round. A ratio is
computed within each round; the table shows the median of these with their range, and marks a median below 0.97. Where the range
is wide the machine is noisy: measure the case again with more rounds, and look at the server's processor time per request, which
other processes on the machine disturb less.

The load comes from wrk where it is installed, else from `client.py`, which costs about as much as the server. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.cases import HOURLY, SENTIMENT, Case, select_cases
from benchmarks.client import run_closed_loop
from benchmarks.http_client import post
from benchmarks.load import Load, run_wrk, write_bodies
from benchmarks.machine import machine
from benchmarks.processes import cpu_seconds
from benchmarks.servers import ROOT, Server, free_port, running, sluice_command
from benchmarks.traffic import Request, is_ok
from benchmarks.traffic import post as post_message
from benchmarks.workloads import draw_requests

GROUP = "before and after"
CASES = (
    *(
        Case(f"c{count}", f"`{HOURLY}`, {count} connection{'s' if count > 1 else ''}", GROUP, HOURLY, count, lengths=(336, 336))
        for count in (1, 64, 256)
    ),
    Case("ragged", f"`{HOURLY}`, histories of 168 to 512 values, 64 connections", GROUP, HOURLY, lengths=(168, 512)),
    Case("texts", f"`{SENTIMENT}`, texts of 5 to 400 words, 64 connections", GROUP, SENTIMENT, lengths=(5, 400)),
    Case("i16", f"`{HOURLY}`, 16 instances, 16 connections", GROUP, HOURLY, 16, num_instances=16, lengths=(336, 336)),
)
QUICK = ("c64", "ragged", "texts")
SLOWER = 0.97
WARM_UP_S, READY_TIMEOUT_S = 1.0, 60.0
PATH = "/predict"

Generator = Callable[[str, Path, int, float], Load]
"""(URL, folder of bodies, connections, seconds) → the load's result."""


@dataclass(frozen=True)
class Sample:
    """One measurement of one server: the load's result, and the processor time that all its processes used per request."""

    load: Load
    cpu_us: float


@dataclass
class Comparison:
    """One kind of traffic with one number of processes: the samples before and after of each round, or why there are none."""

    case: Case
    num_processes: int
    before: list[Sample] = field(default_factory=list)
    after: list[Sample] = field(default_factory=list)
    reason: str = ""

    @property
    def rate_ratios(self) -> list[float]:
        """Requests per second after over before, of each round."""
        return self._ratios(lambda sample: sample.load.requests_per_s)

    @property
    def cpu_ratios(self) -> list[float]:
        """Processor time per request after over before, of each round."""
        return self._ratios(lambda sample: sample.cpu_us)

    @property
    def is_slower(self) -> bool:
        return bool(self.before) and statistics.median(self.rate_ratios) < SLOWER

    def _ratios(self, value: Callable[[Sample], float]) -> list[float]:
        pairs = [(value(after), value(before)) for before, after in zip(self.before, self.after, strict=True)]
        return [after / before if before else 0.0 for after, before in pairs]


def main(arguments: Sequence[str]) -> None:
    """Measure, and print the table."""
    options = _parser().parse_args(arguments)
    checkouts = {"before": verify_checkout(options.before), "after": verify_checkout(options.after)}
    rounds, seconds = options.rounds or (3 if options.quick else 5), options.seconds or (2.0 if options.quick else 3.0)
    cases = select_cases(options.cases or (QUICK if options.quick else [case.name for case in CASES]), CASES)
    generator = run_wrk if options.client == "wrk" else run_client
    comparisons = [Comparison(case, count) for count in options.processes for case in cases]
    print(f"before: {describe_checkout(checkouts['before'])}\nafter: {describe_checkout(checkouts['after'])}")
    print(", ".join(f"{name}: {value}" for name, value in machine().items()))
    print(f"{rounds} rounds of {seconds:g} s, load from {options.client}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bodies = {case.name: write_bodies(list(_bodies(case)), Path(folder) / case.name) for case in cases}
        for number in range(rounds):
            for count in options.processes:
                _log(f"round {number + 1} of {rounds}, {count} process{'es' if count > 1 else ''}")
                wanted = [comparison for comparison in comparisons if comparison.num_processes == count]
                run_round(wanted, number, checkouts, bodies, seconds, generator)
    print()
    print(render(comparisons))


def run_round(
    comparisons: Sequence[Comparison],
    number: int,
    checkouts: Mapping[str, Path],
    bodies: Mapping[str, Path],
    seconds: float,
    generator: Generator,
) -> None:
    """Start both servers, add a sample of each to every comparison (all with the same number of processes), and end them.

    A comparison whose request one of the servers refuses gets the reason and no further samples.
    """
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(_serve(name, checkout, comparisons[0].num_processes))
            for name, checkout in checkouts.items()
        }
        for comparison in comparisons:
            comparison.reason = comparison.reason or _refusal(comparison.case, servers, bodies)
        wanted = [comparison for comparison in comparisons if not comparison.reason]
        for case in {comparison.case.model: comparison.case for comparison in wanted}.values():
            for server in servers.values():
                generator(server.url + PATH, bodies[case.name], case.connections, min(WARM_UP_S, seconds))
        for comparison in wanted:
            case = comparison.case
            samples = {name: _measure(servers[name], case, bodies[case.name], seconds, generator) for name in order(number)}
            comparison.before.append(samples["before"])
            comparison.after.append(samples["after"])
            rates = " → ".join(f"{samples[name].load.requests_per_s:,.0f}" for name in ("before", "after"))
            times = " → ".join(f"{samples[name].cpu_us:,.0f}" for name in ("before", "after"))
            _log(f"  {case.name}: {rates} requests/s, {times} µs of processor time each")


def _measure(server: Server, case: Case, bodies: Path, seconds: float, generator: Generator) -> Sample:
    pids = [process.pid for process in server.members()]
    started_s, used_s = time.monotonic(), sum(map(cpu_seconds, pids))
    load = generator(server.url + PATH, bodies, case.connections, seconds)
    used_s, took_s = sum(map(cpu_seconds, pids)) - used_s, time.monotonic() - started_s
    # The generator's own start and end are part of the time, but too short to count.
    return Sample(load, 1e6 * used_s / max(1.0, load.requests_per_s * took_s))


def order(number: int) -> tuple[str, str]:
    """Which checkout is measured first in a round: they alternate."""
    return ("before", "after") if number % 2 == 0 else ("after", "before")


def render(comparisons: Sequence[Comparison]) -> str:
    """The table in Markdown: medians of the rounds, and the ratio with its least and largest value."""
    lines = [
        "| traffic | processes | before, req/s | after, req/s | after / before | µs of processor per request "
        "| before, p50 / p99 ms | after, p50 / p99 ms | failed | |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for comparison in comparisons:
        start = f"| {comparison.case.title} | {comparison.num_processes} "
        if comparison.reason or not comparison.before:
            lines.append(f"{start}| – | – | – | – | – | – | – | not measured: {comparison.reason or 'no rounds'} |")
            continue
        sides = (comparison.before, comparison.after)
        cpu_us = " → ".join(f"{statistics.median(sample.cpu_us for sample in side):,.0f}" for side in sides)
        cells = [
            *(f"{statistics.median(sample.load.requests_per_s for sample in side):,.0f}" for side in sides),
            _spread(comparison.rate_ratios),
            f"{cpu_us}, {_spread(comparison.cpu_ratios)}",
            *(_latencies(side) for side in sides),
            f"{sum(sample.load.num_failed for side in sides for sample in side)}",
            "**slower**" if comparison.is_slower else "",
        ]
        lines.append(f"{start}| {' | '.join(cells)} |")
    return "\n".join(lines)


def run_client(url: str, bodies: Path, connections: int, duration_s: float) -> Load:
    """The load of `client.py`, with wrk's parameters."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    paths = sorted(bodies.iterdir(), key=lambda path: int(path.name))
    requests = [Request("valid", post_message(parts.path, path.read_bytes()), is_ok) for path in paths]
    result = run_closed_loop(parts.hostname, parts.port, itertools.cycle(requests), connections, duration_s=duration_s)
    rate = (result.num_responses - result.num_errors) / result.duration_s
    return Load(rate, result.quantile_ms("valid", 0.5), result.quantile_ms("valid", 0.99), result.num_errors)


def verify_checkout(path: Path) -> Path:
    """The absolute path of a checkout of Sluice. Raises SystemExit where its server would not be the one that runs."""
    checkout = path.resolve()
    if not (checkout / "service" / "__main__.py").exists() or not (checkout / "models").is_dir():
        raise SystemExit(f"{path} is not a checkout of Sluice: it has no service/__main__.py or no models/")
    # An installed package of the same name could come first.
    command = [sys.executable, "-c", "import service; print(service.__file__)"]
    found = subprocess.run(command, cwd=checkout, env=_environment(checkout), check=True, capture_output=True, text=True).stdout
    if not Path(found.strip()).resolve().is_relative_to(checkout):
        raise SystemExit(f"in {path}, `import service` gives {found.strip()}")
    return checkout


def describe_checkout(checkout: Path) -> str:
    """The folder's name and its commit."""
    command = ["git", "log", "-1", "--format=%h %s"]
    return f"{checkout.name} {subprocess.run(command, cwd=checkout, capture_output=True, text=True).stdout.strip()}".strip()


def _serve(name: str, checkout: Path, num_processes: int) -> AbstractContextManager[Server]:
    command, env = sluice_command(checkout / "models", port := free_port(), num_processes)
    # A server from before 0.2.0 refuses to start with a setting that it does not know, and ends at once anyway.
    if "drain_seconds" not in (checkout / "service" / "settings.py").read_text(encoding="utf-8"):
        del env["SLUICE_DRAIN_SECONDS"]
    return running(f"Sluice {name}", command, port, env | _environment(checkout), cwd=checkout)


def _environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout)}


def _refusal(case: Case, servers: Mapping[str, Server], bodies: Mapping[str, Path]) -> str:
    """Why a case cannot be measured; empty when both servers predict. Waits for models that are still loading."""
    ends_at = time.monotonic() + READY_TIMEOUT_S
    for name, server in servers.items():
        while True:
            try:
                post(server.url + PATH, (bodies[case.name] / "0").read_bytes())
                break
            except urllib.error.HTTPError as exc:
                if exc.code != 503 or time.monotonic() > ends_at:
                    return f"{name}: status {exc.code}, {exc.read()[:100].decode(errors='replace')}"
                time.sleep(0.1)
    return ""


def _bodies(case: Case) -> Iterator[bytes]:
    for instances in draw_requests(case):
        yield json.dumps({"model": case.model, "instances": instances}).encode()


def _latencies(samples: Sequence[Sample]) -> str:
    p50, p99 = (
        statistics.median(values) for values in zip(*((one.load.p50_ms, one.load.p99_ms) for one in samples), strict=True)
    )
    return f"{p50:.1f} / {p99:.1f}"


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _log(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.before_after", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--before", type=Path, required=True, help="another checkout of Sluice, as a git worktree of an older commit"
    )
    parser.add_argument("--after", type=Path, default=ROOT, help="default: this checkout")
    parser.add_argument("--quick", action="store_true", help=f"3 rounds of 2 s of {', '.join(QUICK)}: two minutes")
    parser.add_argument("--rounds", type=int, help="default: 5")
    parser.add_argument("--seconds", type=float, help="length of one measurement (wrk: whole seconds); default: 3")
    parser.add_argument("--cases", nargs="+", default=[], metavar="NAME", help=", ".join(case.name for case in CASES))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2], help="server processes; default: 1 2")
    client = "wrk" if shutil.which("wrk") else "python"
    parser.add_argument("--client", choices=("wrk", "python"), default=client, help="default: wrk where it is installed")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
