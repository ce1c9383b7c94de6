"""What a server still answers when it is asked for more than it can do, beside hand-written servers, LitServe and Ray Serve.

    python -m benchmarks.overload
    python -m benchmarks.overload --targets sluice --workloads eight --loads 1000 1000h 3x --processes 1 --rounds 5

The capacity of a server is what it answers over 32 connections in a closed loop. Every other load is measured right after it on
the same running server, and its goodput, the responses with status 200 within the deadline of a second, is given as a share of
that capacity. The loads: closed loops of 1000 and 3000 connections that ignore Retry-After, or honour it (`1000h`); open loops
with Poisson arrivals at 1.5, 2 and 3 times the capacity (`1.5x`); `leaving`: 2000 connections whose clients give up after 0.25 s.
Rounds interleave the servers; the table holds medians of the rounds' ratios.

The generator takes processor time too. Where there are cores left beside one per process, the server is pinned to the first ones
and the generator to the rest, so that a server's capacity does not depend on what the generator does; where there are not, both
share all cores, and what the generator uses of a core stands in the table: under overload it is time that the server lacks.
*Cost* compares the server's own processor time per good response with that at capacity, which the generator does not disturb.
Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cases import HOURLY, SENTIMENT, Case
from benchmarks.compare import copy_model_folders, rotate
from benchmarks.http_client import post
from benchmarks.load import write_bodies
from benchmarks.machine import machine
from benchmarks.overload_load import OverloadResult, Pattern, run_overload
from benchmarks.processes import cpu_seconds
from benchmarks.rivals import RIVALS
from benchmarks.rivals.environments import NotInstalledError, environment
from benchmarks.servers import WORK, Server, free_port, running
from benchmarks.targets import READY_TIMEOUT_S, Target, from_rival, sluice
from benchmarks.workloads import draw_requests

GROUP = "overload"
WORKLOADS = {
    "texts": Case("texts", f"`{SENTIMENT}`, a text of 300 words", GROUP, SENTIMENT, lengths=(300, 300)),
    "one": Case("one", f"`{HOURLY}`, one history of 336 values", GROUP, HOURLY, lengths=(336, 336)),
    "eight": Case("eight", f"`{HOURLY}`, eight histories of 336 values", GROUP, HOURLY, num_instances=8, lengths=(336, 336)),
}
CAPACITY = Pattern(connections=32)
CLOSED_LOOPS = {
    "1000": Pattern(connections=1000),
    "1000h": Pattern(connections=1000, honours=True),
    "3000": Pattern(connections=3000),
    "3000h": Pattern(connections=3000, honours=True),
    "leaving": Pattern(connections=2000, leave_after_s=0.25),
}
OPEN_LOOPS = {"1.5x": 1.5, "2x": 2.0, "3x": 3.0}
LOADS = (*CLOSED_LOOPS, *OPEN_LOOPS)
RIVAL_NAMES = ("hand-written", "hand-written tuned", "LitServe", "Ray Serve")
DEADLINE_S = 1.0
# A server that does not start, or does not answer, is noted; the others are measured.
_TARGET_ERRORS = (OSError, ValueError, RuntimeError, subprocess.SubprocessError)


@dataclass(frozen=True)
class Period:
    """How long a load is sent and counted, and how long before it is sent without being counted."""

    seconds: float
    warm_up_s: float


@dataclass(frozen=True)
class Sample:
    """One measurement: the load's result, the server's processor time per good response, and its memory."""

    result: OverloadResult
    cpu_us: float
    resident_bytes: int


@dataclass
class Comparison:
    """One load on one server: the samples of all rounds, each with that of the same server at capacity."""

    target: str
    num_processes: int
    workload: str
    load: str
    pairs: list[tuple[Sample, Sample]] = field(default_factory=list)
    reason: str = ""

    def median(self, name: str) -> float:
        """The median of the rounds of a property of this class that holds a list."""
        values: Sequence[float] = getattr(self, name)
        return statistics.median(values) if values else 0.0

    @property
    def goodput_ratios(self) -> list[float]:
        return [sample.result.goodput_per_s / capacity.result.goodput_per_s for capacity, sample in self.pairs]

    @property
    def cost_ratios(self) -> list[float]:
        return [sample.cpu_us / capacity.cpu_us for capacity, sample in self.pairs if sample.result.goodput_per_s]

    def latencies_ms(self, status: str) -> list[tuple[float, float, float]]:
        """p50, p99 and the largest of each round that had a response of this status."""
        return [sample.result.latency_ms[status] for _, sample in self.pairs if status in sample.result.latency_ms]


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a table per number of processes."""
    options = _parser().parse_args(arguments)
    workloads = {name: WORKLOADS[name] for name in options.workloads}
    print(", ".join(f"{name}: {value}" for name, value in machine().items()))
    print(
        f"{options.rounds} rounds, {options.seconds:g} s each after {options.warm_up:g} s; deadline {DEADLINE_S:g} s", flush=True
    )
    period = Period(options.seconds, options.warm_up)
    folders = copy_model_folders({case.model for case in workloads.values()}, WORK / "overload")
    for num_processes in options.processes:
        targets = select_targets(options.targets, num_processes)
        comparisons = {
            (target.name, workload, load): Comparison(target.name, num_processes, workload, load)
            for workload in workloads
            for load in options.loads
            for target in targets
        }
        server_cores, generator_cores = share_cores(num_processes, sorted(os.sched_getaffinity(0)))
        for number in range(options.rounds):
            for workload, case in workloads.items():
                for target in rotate(targets, number):
                    wanted = [comparisons[target.name, workload, load] for load in options.loads]
                    try:
                        run_target(target, case, folders[case.model], wanted, period, server_cores, generator_cores)
                    except _TARGET_ERRORS as exc:
                        for comparison in wanted:
                            comparison.reason = str(exc).splitlines()[0]
        print(f"\n{render(list(comparisons.values()), is_shared=not server_cores)}\n", flush=True)


def run_target(
    target: Target,
    case: Case,
    folder: Path,
    comparisons: Sequence[Comparison],
    period: Period,
    server_cores: Sequence[int] = (),
    generator_cores: Sequence[int] = (),
) -> None:
    """One server in one round: for each load, the capacity and the load, added to its comparison."""
    command, env = target.command(folder, port := free_port())
    if server_cores:
        command = ["taskset", "--cpu-list", ",".join(map(str, server_cores)), *command]
    with (
        tempfile.TemporaryDirectory() as name,
        running(target.name, command, port, settings(env), ready_path=target.ready_path, timeout_s=READY_TIMEOUT_S) as server,
    ):
        bodies = write_bodies([target.body(case, request) for request in draw_requests(case)], Path(name) / case.name)
        url = server.url + target.path(case)
        post(url, (bodies / "0").read_bytes())
        measure(server, url, bodies, CAPACITY, period, generator_cores)
        for comparison in comparisons:
            try:
                capacity = measure(server, url, bodies, CAPACITY, period, generator_cores)
                if not capacity.result.goodput_per_s:
                    raise ValueError("no response within the deadline over 32 connections")
                pattern = find_pattern(comparison.load, capacity.result.goodput_per_s)
                sample = measure(server, url, bodies, pattern, period, generator_cores)
            except _TARGET_ERRORS as exc:
                comparison.reason = str(exc).splitlines()[-1]
                continue
            comparison.pairs.append((capacity, sample))
            _log(f"  {target.name}, {case.name}, {comparison.load}: {describe(capacity, sample)}")


def measure(server: Server, url: str, bodies: Path, pattern: Pattern, period: Period, cores: Sequence[int] = ()) -> Sample:
    """Send one load, and wait until what it left behind is answered."""
    used_s: list[float] = []
    result = run_overload(
        url,
        bodies,
        pattern,
        seconds=period.seconds,
        warm_up_s=period.warm_up_s,
        deadline_s=DEADLINE_S,
        cores=cores,
        on_connected=lambda: used_s.append(used_cpu_s(server)),
    )
    used_s.append(used_cpu_s(server))
    resident_bytes = server.resident_bytes()
    if pattern != CAPACITY:
        time.sleep(period.warm_up_s)
    return Sample(result, 1e6 * (used_s[-1] - used_s[0]) / max(1, result.num_good), resident_bytes)


def used_cpu_s(server: Server) -> float:
    """Processor time of all processes of the server so far; one that ends meanwhile is left out."""
    used_s = 0.0
    for process in server.members():
        with contextlib.suppress(OSError):
            used_s += cpu_seconds(process.pid)
    return used_s


def find_pattern(load: str, capacity_per_s: float) -> Pattern:
    """How the requests of a load are sent to a server of this capacity."""
    return Pattern(rate=OPEN_LOOPS[load] * capacity_per_s) if load in OPEN_LOOPS else CLOSED_LOOPS[load]


def share_cores(num_processes: int, cores: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """The cores of the server and those of the generator; two empty lists where they have to share all of them."""
    if len(cores) <= num_processes or shutil.which("taskset") is None:
        return [], []
    return cores[:num_processes], cores[num_processes:]


def settings(env: Mapping[str, str]) -> dict[str, str]:
    """The environment of a server, with the deadline for Sluice; the others know none."""
    return {**env, "SLUICE_REQUEST_TIMEOUT_MS": str(round(1000 * DEADLINE_S))}


def select_targets(prefixes: Sequence[str], num_processes: int) -> list[Target]:
    """Sluice and the rivals whose names begin with one of `prefixes` (all, if that is empty); those that cannot be installed
    are named and left out."""

    def is_selected(name: str) -> bool:
        return not prefixes or any(name.lower().startswith(prefix.lower()) for prefix in prefixes)

    targets = [sluice(num_processes)] if is_selected("Sluice") else []
    for rival in RIVALS:
        if rival.name in RIVAL_NAMES and is_selected(rival.name):
            try:
                targets.append(from_rival(rival, num_processes, environment(rival)))
            except NotInstalledError as exc:
                _log(f"{rival.name} is not installed: {exc.reason}")
    return targets


def describe(capacity: Sample, sample: Sample) -> str:
    """One measurement in a line."""
    result = sample.result
    counts = " ".join(f"{status}×{count}" for status, count in result.counts.items())
    return (
        f"{capacity.result.goodput_per_s:,.0f} → {result.goodput_per_s:,.0f} good/s, "
        f"{capacity.cpu_us:,.0f} → {sample.cpu_us:,.0f} µs each, {counts}, ms {result.latency_ms}, "
        f"lost {result.num_lost}, left {result.num_left}, unanswered {result.num_unanswered}, "
        f"{sample.resident_bytes / 1e6:.0f} MB, generator {capacity.result.busy:.2f} → {result.busy:.2f}"
        f" (lag {result.lag_p99_ms:.0f} ms)"
    )


def render(comparisons: Sequence[Comparison], *, is_shared: bool) -> str:
    """The table in Markdown: medians of the rounds."""
    first = comparisons[0]
    cores = "sharing all cores with the generator" if is_shared else "on cores of their own, the generator on others"
    lines = [
        f"Servers of {first.num_processes} process{'es' if first.num_processes > 1 else ''}, {cores}:\n",
        "| workload | load | server | capacity/s | goodput | cost | 503 p50 / p99 ms | 504s | later than the deadline, ms "
        "| lost | memory, MB | generator |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for comparison in comparisons:
        start = f"| {comparison.workload} | {comparison.load} | {comparison.target} "
        if not comparison.pairs:
            lines.append(f"{start}| not measured: {comparison.reason or 'no rounds'} | | | | | | | | |")
            continue
        results = [sample.result for _, sample in comparison.pairs]
        refusals, timeouts = comparison.latencies_ms("503"), comparison.latencies_ms("504")
        lateness_ms = max((longest for _, _, longest in timeouts), default=0.0) - 1000 * DEADLINE_S
        before = statistics.median(capacity.resident_bytes for capacity, _ in comparison.pairs) / 1e6
        after = statistics.median(sample.resident_bytes for _, sample in comparison.pairs) / 1e6
        cells = [
            f"{statistics.median(capacity.result.goodput_per_s for capacity, _ in comparison.pairs):,.0f}",
            f"**{comparison.median('goodput_ratios'):.2f}**",
            f"{comparison.median('cost_ratios'):.2f}",
            " / ".join(f"{statistics.median(each):.0f}" for each in list(zip(*refusals, strict=True))[:2]) if refusals else "–",
            f"{sum(result.counts.get('504', 0) for result in results)}",
            f"{lateness_ms:.0f}" if timeouts else "–",
            f"{sum(result.num_lost for result in results)}",
            f"{before:.0f} → {after:.0f}",
            f"{statistics.median(result.busy for result in results):.2f}",
        ]
        lines.append(f"{start}| {' | '.join(cells)} |")
    return "\n".join(lines)


def _log(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overload", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ", ".join(("Sluice", *RIVAL_NAMES))
    parser.add_argument("--targets", nargs="+", default=[], metavar="NAME", help=f"those whose names begin so, of: {known}")
    parser.add_argument(
        "--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS, metavar="NAME", help=", ".join(WORKLOADS)
    )
    parser.add_argument("--loads", nargs="+", default=list(LOADS), choices=LOADS, metavar="NAME", help=", ".join(LOADS))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2], help="server processes; default: 1 2")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one measurement; default: 4")
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds of the same load before it; default: 2")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
