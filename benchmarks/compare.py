"""Sluice beside the obvious hand-written endpoint: same graph, same history, one process each, interleaved rounds.

    make bench                               medians of several rounds, as a Markdown table
    python -m benchmarks.compare --rounds 3 --seconds 3

Both servers run all the time and take turns under load, so that a machine whose speed drifts is unfair to neither; a
number to quote is a ratio within one run. The load generator shares the machine's cores with them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from contextlib import ExitStack
from pathlib import Path

from benchmarks.load import Load, burst
from benchmarks.servers import ROOT, Server, handwritten, running, sluice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="forecast-hourly", help="a forecasting model of models/")
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the models folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="length of one burst")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64, 256])
    options = parser.parse_args()

    folder = max((options.models / options.model).iterdir(), key=lambda path: int(path.name))
    manifest = json.loads((folder / "manifest.json").read_text())
    history = [round(100 + 40 * ((step % 24) / 24) + step % 7, 2) for step in range(manifest["forecast"]["context_length"])]
    bodies = {"Sluice": {"model": options.model, "instances": [{"history": history}]}, "hand-written": {"history": history}}

    with ExitStack() as stack:
        servers: list[Server] = []
        for name, (command, port, env) in {
            "Sluice": sluice(options.models.resolve()),
            "hand-written": handwritten((folder / "model.onnx").resolve()),
        }.items():
            servers.append(stack.enter_context(running(name, command, port, env)))
        for server in servers:
            burst(f"{server.url}/predict", bodies[server.name], 16, 2)
        loads: dict[tuple[str, int], list[Load]] = {}
        for _ in range(options.rounds):
            for connections in options.connections:
                for server in servers:
                    load = burst(f"{server.url}/predict", bodies[server.name], connections, options.seconds)
                    loads.setdefault((server.name, connections), []).append(load)
        report(servers, loads, options.connections, f"{options.model}, a history of {len(history)} values", options.rounds)


def report(servers: list[Server], loads: dict[tuple[str, int], list[Load]], counts: list[int], what: str, rounds: int) -> None:
    """Print the medians as a Markdown table, with the ratio of each round's pair."""
    print(f"{what}; {os.cpu_count()} cores, Python {platform.python_version()}; medians of {rounds} rounds\n")
    print(
        "| connections | Sluice req/s | hand-written req/s | ratio | Sluice p50 / p99 ms | hand-written p50 / p99 ms | failed |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for connections in counts:
        ours, theirs = loads["Sluice", connections], loads["hand-written", connections]
        ratio = statistics.median(a.requests_per_s / b.requests_per_s for a, b in zip(ours, theirs, strict=True))
        cells = [f"{statistics.median(load.requests_per_s for load in side):.0f}" for side in (ours, theirs)]
        times = [
            f"{statistics.median(load.p50_ms for load in side):.2f} / {statistics.median(load.p99_ms for load in side):.2f}"
            for side in (ours, theirs)
        ]
        failed = f"{sum(load.num_failed for load in ours)} / {sum(load.num_failed for load in theirs)}"
        print(f"| {connections} | {cells[0]} | {cells[1]} | {ratio:.2f} | {times[0]} | {times[1]} | {failed} |")
    print()
    for server in servers:
        print(f"{server.name}: ready in {server.ready_s:.2f} s, {server.resident_bytes() / 1e6:.0f} MB resident after the load")


if __name__ == "__main__":
    main()
