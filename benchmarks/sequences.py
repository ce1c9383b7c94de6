"""What a step of a sequence costs whose state the server keeps, by the place where it is kept.

    python -m benchmarks.sequences
    python -m benchmarks.sequences --rounds 5 --seconds 1

Processor time of the server and of redis-server, in µs per step of one value, in rounds
that take every place in turn: medians. With one caller beside sending 168 values again; with 64 callers, one sequence each. How
many sequences are answered in time is `sequence_rates.py`. Linux only; Redis is left out where redis-server is not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import cpu_seconds
from benchmarks.protocols import repeat
from benchmarks.servers import Server, sluice
from benchmarks.streams import AGAIN, MODEL, WINDOW, body, send, series, write_model
from tests.service.sequences.stores import redis_server

NUM_CALLERS = 64


class Place(NamedTuple):
    """Where states are kept, and the server that keeps them there."""

    name: str
    server: Server
    others: list[int]
    """Processes beside the server's own."""

    def cpu_s(self) -> float:
        return sum(map(cpu_seconds, [*(process.pid for process in self.server.members()), *self.others]))


def step(id: str, *, is_start: bool = False) -> bytes:
    """The next value of a sequence."""
    instances = [{"history": [10.5], "sequence_id": id}]
    return json.dumps({"model": MODEL, "instances": instances, "parameters": {"sequence_start": is_start}}).encode()


@contextlib.contextmanager
def places(models: Path) -> Iterator[list[Place]]:
    """A server for each place."""
    with contextlib.ExitStack() as stack:
        found = [
            Place("memory, 1 process", stack.enter_context(sluice(models)), []),
            Place("shared memory, 2 workers", stack.enter_context(sluice(models, SLUICE_WORKERS="2")), []),
        ]
        if shutil.which("redis-server"):
            redis = stack.enter_context(redis_server())
            assert redis.process is not None
            server = stack.enter_context(sluice(models, SLUICE_SEQUENCE_STORE=redis.url))
            found.append(Place("Redis, 1 process", server, [redis.process.pid]))
        yield found


def connect(place: Place) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", place.server.port, timeout=60)


def measure_one(place: Place, seconds: float) -> dict[str, float]:
    """µs per request of one caller."""
    again = body(history=series(WINDOW))
    with closing(connect(place)) as connection:
        send(connection, step("one", is_start=True))
        return {
            "1 value, kept": repeat(lambda: send(connection, step("one")), place.cpu_s, seconds),
            AGAIN: repeat(lambda: send(connection, again), place.cpu_s, seconds),
        }


def measure_many(place: Place, seconds: float) -> float:
    """µs per step of NUM_CALLERS callers, with a sequence each."""
    ends_at = 0.0
    barrier = threading.Barrier(NUM_CALLERS + 1)

    def call(number: int) -> int:
        count = 0
        content = step(f"many-{number}")
        with closing(connect(place)) as connection:
            send(connection, step(f"many-{number}", is_start=True))
            barrier.wait()
            barrier.wait()
            while time.monotonic() < ends_at:
                send(connection, content)
                count += 1
        return count

    with ThreadPoolExecutor(NUM_CALLERS) as pool:
        calls = [pool.submit(call, number) for number in range(NUM_CALLERS)]
        barrier.wait()
        before = place.cpu_s()
        ends_at = time.monotonic() + seconds
        barrier.wait()
        count = sum(each.result() for each in calls)
        return 1e6 * (place.cpu_s() - before) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=64, help="of the LSTM")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement in a round, at least")
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name), options.units)
        with places(Path(name)) as all_places:
            for turn in range(options.rounds + 1):
                for place in all_places:
                    costs = {f"{place.name}, {kind}": cost for kind, cost in measure_one(place, options.seconds).items()}
                    costs[f"{place.name}, {NUM_CALLERS} callers"] = measure_many(place, options.seconds)
                    if turn > 0:  # the first warms up
                        for kind, cost in costs.items():
                            found.setdefault(kind, []).append(cost)
    print(f"{'step':44} µs of processor")
    for kind, values in found.items():
        print(f"{kind:44} {statistics.median(values):15.0f}")


if __name__ == "__main__":
    main()
