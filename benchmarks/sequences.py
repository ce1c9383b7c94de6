"""What a step of a sequence costs whose state the server keeps, by the place where it is kept; and 10,000 sequences at once.

    python -m benchmarks.sequences
    python -m benchmarks.sequences --rounds 5 --seconds 1

Processor time of the server, of the process that keeps the states and of redis-server, in µs per step of one value, in rounds
that take every place in turn: medians. With one caller beside sending 168 values again; with 64 callers, one sequence each. Then
one step a second of each of 10,000 sequences, 100 in a request, evenly spread over two workers: the times of the answers, from
when each request was due. Linux only; Redis is left out where redis-server is not installed.
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
from typing import Any, NamedTuple

from benchmarks.processes import cpu_seconds
from benchmarks.protocols import repeat
from benchmarks.servers import Server, sluice
from benchmarks.streams import AGAIN, MODEL, WINDOW, body, send, series, write_model
from tests.service.sequences.stores import redis_server

NUM_CALLERS = 64
NUM_SEQUENCES, PER_REQUEST = 10_000, 100


class Place(NamedTuple):
    """Where states are kept, and the server that keeps them there."""

    name: str
    server: Server
    others: list[int]
    """Processes beside the server's own."""

    def cpu_s(self) -> float:
        return sum(map(cpu_seconds, [*(process.pid for process in self.server.members()), *self.others]))


def step(*ids: str, is_start: bool = False) -> bytes:
    """The next value of each of these sequences."""
    instances = [{"history": [10.5], "sequence_id": id} for id in ids]
    return json.dumps({"model": MODEL, "instances": instances, "parameters": {"sequence_start": is_start}}).encode()


@contextlib.contextmanager
def places(models: Path) -> Iterator[list[Place]]:
    """A server for each place."""
    with contextlib.ExitStack() as stack:
        found = [
            Place("memory, 1 process", stack.enter_context(sluice(models)), []),
            Place("a process, 2 workers", stack.enter_context(sluice(models, SLUICE_WORKERS="2")), []),
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


def measure_latencies(place: Place, seconds: float) -> list[float]:
    """Milliseconds from when each request was due to its answer, sorted: 100 requests a second, of 100 sequences each."""
    ids = [f"all-{number}" for number in range(NUM_SEQUENCES)]
    groups = [ids[first : first + PER_REQUEST] for first in range(0, NUM_SEQUENCES, PER_REQUEST)]
    found: list[float] = []
    local = threading.local()

    def call(content: bytes, due_at: float) -> None:
        if not hasattr(local, "connection"):
            local.connection = connect(place)
        time.sleep(max(0.0, due_at - time.monotonic()))
        send(local.connection, content)
        found.append(1e3 * (time.monotonic() - due_at))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda ids: call(step(*ids, is_start=True), 0.0), groups))
        found.clear()
        started, interval_s = time.monotonic() + 0.1, PER_REQUEST / NUM_SEQUENCES
        calls: list[Any] = [
            pool.submit(call, step(*groups[number % len(groups)]), started + number * interval_s)
            for number in range(round(seconds / interval_s))
        ]
        for each in calls:
            each.result()
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=64, help="of the LSTM")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement in a round, at least")
    parser.add_argument("--spread-seconds", type=float, default=10.0, help=f"of the run of {NUM_SEQUENCES:,} sequences")
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
            times = measure_latencies(all_places[1], options.spread_seconds)
    print(f"{'step':44} µs of processor")
    for kind, values in found.items():
        print(f"{kind:44} {statistics.median(values):15.0f}")
    p50, p99 = (times[int(share * (len(times) - 1))] for share in (0.5, 0.99))
    print(f"{NUM_SEQUENCES:,} sequences, a step each per second, {PER_REQUEST} in a request: p50 {p50:.1f} ms, p99 {p99:.1f} ms")


if __name__ == "__main__":
    main()
