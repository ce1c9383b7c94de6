"""Whether memory grows: resident memory after more and more requests, and after loading and unloading a model repeatedly.

    make leaks
    python -m benchmarks.leaks --count 100000 --workers 1

The requests are ragged forecasts and texts with one or several instances, never the same twice. Memory after the last one is
compared with memory after the first thousand, and after the last load with the first ones: growth of more than 5 % counts as a
leak, and the exit status is then 1. Compared is the memory of the idle server; its memory right after the last response is
printed as well, but batches of random sizes leave the heap in random states. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import run_closed_loop
from benchmarks.memory import Memory, memory_of
from benchmarks.servers import ROOT, Server, sluice
from benchmarks.traffic import FORECAST, SENTIMENT, RequestBodies, unique_requests

ALLOWED_GROWTH = 0.05
MARKS = (1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 75_000, 100_000)
NUM_BODIES = 500
# The server checks once a second whether it is idle.
IDLE_S = 4.0
# Memory after so many loads is the baseline: the first ones fill the allocator's pools.
FIRST_LOADS = 5


@dataclass(frozen=True)
class Sample:
    """Memory after `count` requests or loads: right after the last one, and idle."""

    count: int
    busy: Memory
    idle: Memory


def soak(models: Path, marks: Sequence[int], connections: int, **settings: str) -> Iterator[Sample]:
    """Send mixed requests to a server of these models, and read its memory at each of `marks`.

    Raises RuntimeError after an unexpected response.
    """
    with sluice(models, **settings) as server:
        requests = unique_requests(RequestBodies(models).mixed(NUM_BODIES))
        sent = 0
        for mark in marks:
            result = run_closed_loop("127.0.0.1", server.port, requests, connections, count=mark - sent)
            if result.num_errors:
                raise RuntimeError(f"{result.num_errors} unexpected responses: {result.errors}")
            sent = mark
            busy = _memory(server)
            time.sleep(IDLE_S)
            yield Sample(mark, busy, _memory(server))


def _memory(server: Server) -> Memory:
    return memory_of(process.pid for process in server.members())


def reload(folder: Path, times: int) -> list[Sample]:
    """Load a model, run one request and unload it, `times` times, in a process of its own; its memory after each."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_reload, folder, times).result()


def _reload(folder: Path, times: int) -> list[Sample]:
    return asyncio.run(_load_and_unload(folder, times))


async def _load_and_unload(folder: Path, times: int) -> list[Sample]:
    from service.models.folder import ModelOptions
    from service.models.loading import load_model
    from service.process.memory import configure_malloc, trim_heap

    configure_malloc()
    bodies = RequestBodies(folder.parent.parent)
    body = bodies.forecast(20) if folder.parent.name == FORECAST else bodies.sentiment(20)
    samples = []
    for number in range(1, times + 1):
        model = await load_model(folder, ModelOptions(device="cpu", num_workers=2))
        await model.predict(body["instances"])
        await model.stop()
        del model
        gc.collect()  # a model and its batcher refer to each other
        busy = memory_of([os.getpid()])
        trim_heap()
        samples.append(Sample(number, busy, memory_of([os.getpid()])))
    return samples


def growth(before: Sample, after: Sample) -> float:
    """Growth of the idle resident memory, as a share of `before`."""
    return after.idle.resident / before.idle.resident - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the models folder")
    parser.add_argument("--count", type=int, default=MARKS[-1], help="requests in all")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1, help="server processes")
    parser.add_argument("--loads", type=int, default=50, help="how often a model is loaded and unloaded")
    options = parser.parse_args()

    marks = [*(mark for mark in MARKS if mark < options.count), options.count]
    verdicts: list[tuple[bool, str]] = []
    _header("requests", "the first")
    first = None
    for sample in soak(options.models, marks, options.connections, SLUICE_WORKERS=str(options.workers)):
        first = first or sample
        print(_row(sample, first), flush=True)
    assert first is not None
    verdicts.append(_verdict(f"{options.count} mixed requests", growth(first, sample)))
    for name in (FORECAST, SENTIMENT):
        print()
        _header(f"loads of {name}", f"the {FIRST_LOADS}th")
        samples = reload((options.models / name / "1").resolve(), options.loads)
        first = samples[min(FIRST_LOADS, len(samples)) - 1]
        for sample in samples[FIRST_LOADS - 1 :: 5]:
            print(_row(sample, first))
        verdicts.append(_verdict(f"{options.loads} loads of {name}", growth(first, samples[-1])))
    print()
    for _, text in verdicts:
        print(text)
    return 0 if all(passed for passed, _ in verdicts) else 1


def _header(counted: str, baseline: str) -> None:
    print(f"| {counted} | MB resident, busy | MB resident, idle | of which anonymous | against {baseline} |")
    print("|---:|---:|---:|---:|---:|")


def _row(sample: Sample, first: Sample) -> str:
    sizes = (sample.busy.resident, sample.idle.resident, sample.idle.anonymous)
    return f"| {sample.count} | {' | '.join(f'{size / 1e6:.1f}' for size in sizes)} | {growth(first, sample):+.1%} |"


def _verdict(measured: str, share: float) -> tuple[bool, str]:
    passed = share <= ALLOWED_GROWTH
    return passed, f"{'passed' if passed else 'FAILED'}: {measured}: {share:+.1%}, allowed {ALLOWED_GROWTH:+.0%}"


if __name__ == "__main__":
    sys.exit(main())
