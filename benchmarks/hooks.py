"""What the hooks around a request cost a server: keys, request ids, the access log, tracing. Needs wrk and Linux.

    git worktree add ../before COMMIT
    python -m benchmarks.hooks --before ../before

One process of each server runs with `forecast-hourly`, all at once; in every round each gets the same bodies over 64 connections,
one server after the other in an order that changes from round to round. Compared is the processor time of a server's process per
request, its threads and the kernel's part included, which other processes on the machine disturb less than rates. A ratio is
taken within a round, to the first row; the table shows medians, and the least and largest ratio; on a machine that does other
work at the same time, the least time tells more. Request ids are in every answer,
so what they cost shows beside an older commit only. `python -m benchmarks.access` measures the hooks of access one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.cases import HOURLY, Case
from benchmarks.load import Load, run_wrk, write_bodies
from benchmarks.machine import machine
from benchmarks.processes import cpu_seconds
from benchmarks.servers import ROOT, Server, free_port, running, sluice_command
from benchmarks.workloads import draw_requests
from service.api.access.keys import describe_entry, new_key

CASE = Case("c64", f"`{HOURLY}`, 64 connections", "hooks", HOURLY, 64, lengths=(336, 336))
PATH = "/predict"
NUM_KEYS = 100
WARM_UP_S = 1.0


@dataclass
class Variant:
    """A server with some hooks switched on, the headers that it is sent, and its samples."""

    name: str
    checkout: Path = ROOT
    settings: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    cpu_us: list[float] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)


def variants(folder: Path, collector: str, before: Path | None) -> list[Variant]:
    """What is measured; the first row is what the others are compared with."""
    file = folder / "keys.toml"
    keys = [new_key() for _ in range(NUM_KEYS)]
    file.write_text("".join(describe_entry(key, f"name-{number}", scopes=["predict"]) for number, key in enumerate(keys)))
    keyed = {"SLUICE_API_KEYS_FILE": str(file)}
    sent = {"Authorization": f"Bearer {keys[0]}"}
    traced = {"SLUICE_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": collector}
    sampled = {**traced, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}
    return [
        *([] if before is None else [Variant("the commit before", before.resolve())]),
        Variant("request ids (the default)"),
        Variant("request ids, keys", settings=keyed, headers=sent),
        Variant("request ids, keys, access log (JSON)", settings={**keyed, "SLUICE_ACCESS_LOG": "json"}, headers=sent),
        Variant("request ids, keys, access log (text)", settings={**keyed, "SLUICE_ACCESS_LOG": "text"}, headers=sent),
        Variant("request ids, drift of every model", settings={"SLUICE_DRIFT_MODELS": "*"}),
        Variant("tracing, one request in a hundred", settings={**sampled, "OTEL_TRACES_SAMPLER_ARG": "0.01"}),
        Variant("tracing, every request", settings=traced),
    ]


def measure(server: Server, variant: Variant, bodies: Path, seconds: float) -> None:
    """Add one sample."""
    pids = [process.pid for process in server.members()]
    used_s = sum(map(cpu_seconds, pids))
    load = run_wrk(server.url + PATH, bodies, CASE.connections, seconds, variant.headers)
    used_s = sum(map(cpu_seconds, pids)) - used_s
    variant.cpu_us.append(1e6 * used_s / max(1.0, load.requests_per_s * seconds))
    variant.loads.append(load)


def render(found: Sequence[Variant]) -> str:
    """The table in Markdown."""
    lines = ["| hooks | µs of processor per request | least | ratio | requests/s | failed |", "|---|---:|---:|---:|---:|---:|"]
    for variant in found:
        ratios = [own / first for own, first in zip(variant.cpu_us, found[0].cpu_us, strict=True)]
        rate = statistics.median(load.requests_per_s for load in variant.loads)
        failed = sum(load.num_failed for load in variant.loads)
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})"
        median, least = statistics.median(variant.cpu_us), min(variant.cpu_us)
        lines.append(f"| {variant.name} | {median:,.0f} | {least:,.0f} | {spread} | {rate:,.0f} | {failed} |")
    return "\n".join(lines)


class Sink(BaseHTTPRequestHandler):
    """A collector that takes spans and forgets them."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def running_sink() -> Iterator[str]:
    """A collector on a free port; gives its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def main(arguments: Sequence[str]) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hooks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="another checkout of Sluice, as a git worktree of an older commit")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="length of one measurement; default: 3")
    options = parser.parse_args(arguments)
    print(", ".join(f"{name}: {value}" for name, value in machine().items()), flush=True)
    with tempfile.TemporaryDirectory() as name, running_sink() as collector, ExitStack() as stack:
        folder = Path(name)
        requests = [json.dumps({"model": CASE.model, "instances": each}).encode() for each in draw_requests(CASE)]
        bodies = write_bodies(requests, folder / "bodies")
        found = variants(folder, collector, options.before)
        servers = []
        for variant in found:
            command, env = sluice_command(variant.checkout / "models", port := free_port())
            env |= {**variant.settings, "PYTHONPATH": str(variant.checkout), "PATH": os.environ["PATH"]}
            servers.append(stack.enter_context(running(variant.name, command, port, env, cwd=variant.checkout)))
        for server, variant in zip(servers, found, strict=True):
            run_wrk(server.url + PATH, bodies, CASE.connections, WARM_UP_S, variant.headers)
        for number in range(options.rounds):
            first = number % len(found)
            for index in [*range(first, len(found)), *range(first)]:
                measure(servers[index], found[index], bodies, options.seconds)
            print(f"round {number + 1}: " + ", ".join(f"{variant.cpu_us[-1]:.0f}" for variant in found) + " µs", flush=True)
    print(f"\n{render(found)}")


if __name__ == "__main__":
    main(sys.argv[1:])
