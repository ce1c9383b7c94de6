"""Sluice beside the obvious hand-written endpoint and beside its ceilings: same graph, same history, one process each.

    make bench                               medians of several rounds, as a Markdown table
    python -m benchmarks.compare --rounds 3 --seconds 3

All servers run all the time and take turns under load, so that a machine whose speed drifts is unfair to none; a number to
quote is a ratio within one run. The load generator shares the machine's cores with them.

Efficiency is what is measured as a share of what one process could at best: HTTP and graph one after the other, at the
speeds of a server that answers a canned body (`echo.py`) and of the bare graph at its best batch size (`bare_graph.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.bare_graph import best
from benchmarks.load import Load, burst
from benchmarks.rivals import RIVALS
from benchmarks.servers import ROOT, Server, echo, free_port, running, sluice

OURS, RIVAL, CANNED = "Sluice", "hand-written", "canned answer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="forecast-hourly", help="a forecasting model of one feature")
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the models folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="length of one burst")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64, 256])
    options = parser.parse_args()

    folder = max((options.models / options.model).iterdir(), key=lambda path: int(path.name)).resolve()
    manifest = json.loads((folder / "manifest.json").read_text())
    num_steps = manifest["forecast"]["context_length"]
    history = [round(100 + 40 * ((step % 24) / 24) + step % 7, 2) for step in range(num_steps)]
    asked = {"model": options.model, "instances": [{"history": history}]}
    bodies: dict[str, Any] = {OURS: asked, RIVAL: {"instances": asked["instances"]}, CANNED: asked}

    with ExitStack() as stack:
        ours = stack.enter_context(running(OURS, *sluice(options.models.resolve())))
        canned = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "answer.json"
        canned.write_bytes(_answer(f"{ours.url}/predict", asked))
        port = free_port()
        command, env = RIVALS[0].command(Path(sys.executable), folder, port, 1)
        rival = stack.enter_context(running(RIVAL, command, port, env))
        servers = [ours, rival, stack.enter_context(running(CANNED, *echo(canned)))]
        for server in servers:
            burst(f"{server.url}/predict", bodies[server.name], 16, 2)
        loads: dict[tuple[str, int], list[Load]] = {}
        graphs: list[tuple[float, int]] = []
        for _ in range(options.rounds):
            graphs.append(best(folder / "model.onnx", num_steps))
            for connections in options.connections:
                for server in servers:
                    load = burst(f"{server.url}/predict", bodies[server.name], connections, options.seconds)
                    loads.setdefault((server.name, connections), []).append(load)
        print(
            f"{options.model}, a history of {num_steps} values; {os.cpu_count()} cores, Python {platform.python_version()}; "
            f"medians of {options.rounds} rounds\n"
        )
        report(loads, graphs, options.connections)
        for server in (ours, rival):
            print(memory(server))


def report(loads: dict[tuple[str, int], list[Load]], graphs: list[tuple[float, int]], counts: list[int]) -> None:
    """Print the medians as a Markdown table, with the ratio and the efficiency of each round."""
    print("| connections | Sluice req/s | hand-written req/s | ratio | efficiency | p50 / p99 ms | hand-written p50 / p99 ms |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for connections in counts:
        ours, theirs, canned = (loads[name, connections] for name in (OURS, RIVAL, CANNED))
        ratio = statistics.median(a.requests_per_s / b.requests_per_s for a, b in zip(ours, theirs, strict=True))
        efficiency = statistics.median(
            load.requests_per_s * (1 / http.requests_per_s + 1 / rate)
            for load, http, (rate, _) in zip(ours, canned, graphs, strict=True)
        )
        cells = [f"{statistics.median(load.requests_per_s for load in side):.0f}" for side in (ours, theirs)]
        times = [
            f"{statistics.median(load.p50_ms for load in side):.2f} / {statistics.median(load.p99_ms for load in side):.2f}"
            for side in (ours, theirs)
        ]
        print(f"| {connections} | {cells[0]} | {cells[1]} | {ratio:.2f} | {efficiency:.2f} | {times[0]} | {times[1]} |")
    http = statistics.median(load.requests_per_s for load in loads[CANNED, counts[-1]])
    rate, size = statistics.median_low(graphs)
    print(f"\nceilings of one process: {http:.0f} canned answers/s, {rate:.0f} rows/s of the bare graph (batch {size})")
    failed = {
        name: sum(load.num_failed for (whose, _), some in loads.items() if whose == name for load in some) for name, _ in loads
    }
    print(f"failed requests: {failed}")


def memory(server: Server) -> str:
    return f"{server.name}: ready in {server.ready_s:.2f} s, {server.resident_bytes() / 1e6:.0f} MB resident after the load"


def _answer(url: str, body: object) -> bytes:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: bytes = answer.read()
        return content


if __name__ == "__main__":
    main()
