"""Whether memory stays where it is: what is resident after ever more requests, and after loading and unloading a model.

    make soak
    python -m benchmarks.soak --count 100000 --workers 1

The requests are ragged forecasts and texts, one or several at once, never the same twice. Memory after the last one is held
against memory after the first thousand, and after the last load against the first ones: more than 5 % above is a leak until
somebody explains it, and the exit status is then 1. What is compared is what the server keeps at rest; what it held a moment
before, with the last answer just sent, stands beside it: batches of chance sizes leave the heap in chance states. Linux only.
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

from benchmarks.client import burst
from benchmarks.memory import Memory, memory_of
from benchmarks.servers import ROOT, Server, sluice
from benchmarks.traffic import FORECAST, SENTIMENT, Bodies, ever_new

ALLOWED_GROWTH = 0.05
MARKS = (1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 75_000, 100_000)
NUM_BODIES = 500
# The server looks once a second whether it rests.
REST_S = 4.0
# Loads after which memory is compared with that after all: the first ones fill the allocator's pools.
FIRST_LOADS = 5


@dataclass(frozen=True)
class Sample:
    """Memory after so many requests, or so many loads: in the moment of the last, and at rest."""

    count: int
    busy: Memory
    rest: Memory


def soak(models: Path, marks: Sequence[int], connections: int, **settings: str) -> Iterator[Sample]:
    """Send mixed requests to a server of these models, and read its memory each time a mark is reached.

    Raises RuntimeError when an answer is not the right one.
    """
    with sluice(models, **settings) as server:
        asks = ever_new(Bodies(models).mixed(NUM_BODIES))
        sent = 0
        for mark in marks:
            seen = burst("127.0.0.1", server.port, asks, connections, count=mark - sent)
            if seen.num_wrong:
                raise RuntimeError(f"{seen.num_wrong} wrong answers: {seen.wrong}")
            sent = mark
            busy = _memory(server)
            time.sleep(REST_S)
            yield Sample(mark, busy, _memory(server))


def _memory(server: Server) -> Memory:
    return memory_of(process.pid for process in server.members())


def reload(folder: Path, times: int) -> list[Sample]:
    """Load a model, ask it, and let it go, so many times, in a process of its own; its memory after each."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        return alone.submit(_reload, folder, times).result()


def _reload(folder: Path, times: int) -> list[Sample]:
    return asyncio.run(_load_and_drop(folder, times))


async def _load_and_drop(folder: Path, times: int) -> list[Sample]:
    from service.models.folder import ModelOptions
    from service.models.loading import load_model
    from service.process.memory import configure_malloc, trim_heap

    configure_malloc()
    bodies = Bodies(folder.parent.parent)
    body = bodies.forecast(20) if folder.parent.name == FORECAST else bodies.sentiment(20)
    samples = []
    for number in range(1, times + 1):
        model = await load_model(folder, ModelOptions(device="cpu", num_workers=2))
        await model.predict(body["instances"])
        await model.stop()
        del model
        gc.collect()  # a model and its batcher know each other
        busy = memory_of([os.getpid()])
        trim_heap()
        samples.append(Sample(number, busy, memory_of([os.getpid()])))
    return samples


def growth(before: Sample, after: Sample) -> float:
    """How much more memory is resident, as a share of what was."""
    return after.rest.resident / before.rest.resident - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the models folder")
    parser.add_argument("--count", type=int, default=MARKS[-1], help="requests in all")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1, help="server processes")
    parser.add_argument("--loads", type=int, default=50, help="times that a model is loaded and dropped")
    options = parser.parse_args()

    marks = [*(mark for mark in MARKS if mark < options.count), options.count]
    verdicts = []
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
    return 0 if all(is_fine for is_fine, _ in verdicts) else 1


def _header(what: str, first: str) -> None:
    print(f"| {what} | MB resident, busy | MB resident, at rest | of which its own | against {first} |")
    print("|---:|---:|---:|---:|---:|")


def _row(sample: Sample, first: Sample) -> str:
    sizes = (sample.busy.resident, sample.rest.resident, sample.rest.anonymous)
    return f"| {sample.count} | {' | '.join(f'{size / 1e6:.1f}' for size in sizes)} | {growth(first, sample):+.1%} |"


def _verdict(what: str, share: float) -> tuple[bool, str]:
    is_fine = share <= ALLOWED_GROWTH
    return is_fine, f"{'fine' if is_fine else 'GREW'}: {what}: {share:+.1%}, allowed {ALLOWED_GROWTH:+.0%}"


if __name__ == "__main__":
    sys.exit(main())
