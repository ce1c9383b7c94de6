"""What Ray Serve costs: the same app as one process of its own, and as one replica behind Ray's proxy (deploy/ray).

    python -m benchmarks.ray_serve --ray .venv-ray/bin/python

Both serve the same model and take turns. Processor time of all processes of a server is the figure to go by where the machine
does something else; Ray's is with what its processes do when nothing comes. Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import cpu_seconds
from benchmarks.servers import ROOT, Server, free_port, running, sluice_command

NUM_CONNECTIONS = 4
READY_S = 600.0


class Cost(NamedTuple):
    """What a request took in one round."""

    cpu_ms: float
    median_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray", type=Path, default=ROOT / ".venv-ray" / "bin" / "python", help="the python that has Ray")
    parser.add_argument("--requests", type=int, default=400, help="of a round and connection (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are shown (default: %(default)s)")
    options = parser.parse_args()
    models = ROOT / "models"
    with ExitStack() as stack:
        port = free_port()
        command, env = sluice_command(models, port)
        servers = {"Sluice, one process": stack.enter_context(running("Sluice", command, port, env))}
        port = free_port()
        command = [str(options.ray.absolute()), "-m", "deploy.ray.local", str(port), "1", f"models={models}", "device=cpu"]
        server = stack.enter_context(running("Ray Serve", command, port, timeout_s=READY_S, grace_s=30))
        servers["one replica on Ray Serve"] = server
        found: dict[str, list[Cost]] = {name: [] for name in servers}
        for _ in range(options.rounds):
            for name, each in servers.items():
                found[name].append(measure(each, options.requests))
    print("| | processor time of a request, ms | median ms |\n|---|---:|---:|")
    for name, costs in found.items():
        cpu_ms, median_ms = (statistics.median(column) for column in zip(*costs, strict=True))
        print(f"| {name} | {cpu_ms:.2f} | {median_ms:.2f} |")


def measure(server: Server, num_requests: int) -> Cost:
    """One round: `num_requests` on each connection, one after the other."""
    history = [300 + step % 24 for step in range(168)]
    body = json.dumps({"model": "forecast-hourly", "instances": [{"history": history}]}).encode()
    times: list[float] = []

    def post(num: int) -> None:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        for _ in range(num):
            started = time.perf_counter()
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            times.append(time.perf_counter() - started)
            assert answer.status == 200, answer.status
        connection.close()

    def post_all(num: int) -> None:
        threads = [threading.Thread(target=post, args=(num,)) for _ in range(NUM_CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    post_all(num_requests // 4)
    times.clear()
    processes = server.members()
    before = sum(cpu_seconds(process.pid) for process in processes)
    post_all(num_requests)
    used_s = sum(cpu_seconds(process.pid) for process in processes) - before
    return Cost(used_s / len(times) * 1000, statistics.median(times) * 1000)


if __name__ == "__main__":
    main()
