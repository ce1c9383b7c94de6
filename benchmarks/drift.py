"""What drift costs a model that is watched, part by part, as the share of a core that it can take at most.

    python -m benchmarks.drift
    python -m benchmarks.drift --model models/sentiment-en/1 --rows 1 --steps 40

Whole servers side by side cannot show it: with drift and without they differ by less than by chance (`benchmarks.hooks`).
Each part is timed by itself in processor time, the least of many turns, which other work on the machine disturbs least: the call
that declines a batch, a sample that is taken from a batch and counted, and the update of the scores. How often each happens is
bounded by the clock (`SAMPLE_S`, `UPDATE_S`) or, for what declines, by the batches.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.servers import ROOT
from service.models.folder import ModelOptions, examine
from service.observability.drift import SAMPLE_S, UPDATE_S, DriftMonitor
from service.runtime.synthetic import synthetic

NUM_TURNS = 40
PER_TURN = 25


class Cost(NamedTuple):
    """Microseconds of processor time."""

    declined_us: float
    """Of a batch of which no sample is taken."""
    sample_us: float
    """To copy the rows of a sample, and to count them later."""
    update_us: float
    """Of a model, to add up the window, to show it to other workers and to compare it."""
    batch_us: float
    """Of the graph for the batch, beside it."""

    @property
    def share_of_core(self) -> float:
        """Of one model, however many requests come, without the calls that decline."""
        return (self.sample_us / SAMPLE_S + self.update_us / UPDATE_S) / 1e6

    @property
    def share_of_batch(self) -> float:
        """Of a call that declines."""
        return self.declined_us / self.batch_us


def least_us(call: Callable[[], object], number: int = PER_TURN) -> float:
    """The least time of a turn, of one call."""
    least = float("inf")
    for _ in range(NUM_TURNS):
        started = time.process_time()
        for _ in range(number):
            call()
        least = min(least, time.process_time() - started)
    return least / number * 1e6


def measure(folder: Path, rows: int, steps: int) -> Cost:
    """Of batches of so many rows of a model whose manifest has statistics."""
    parts, findings = examine(folder, ModelOptions("cpu"))
    if parts is None:
        raise SystemExit("; ".join(findings))
    statistics = parts.manifest.statistics
    if statistics is None:
        raise SystemExit(f"{folder} has no statistics of its training part")
    inputs = synthetic(parts.signature, [steps] * rows)
    outputs = parts.runtime.run(inputs)
    now = [0.0]
    with tempfile.TemporaryDirectory() as shared:
        monitor = DriftMonitor(3600.0, Path(shared), now=lambda: now[0])
        sampler = monitor.open_sampler(parts.manifest.name, parts.manifest.version, statistics, parts.task.measure)

        def take() -> None:
            now[0] += SAMPLE_S
            sampler.offer(inputs, outputs)

        def take_and_count() -> None:
            for _ in range(PER_TURN):
                take()
            sampler.count()

        take()
        declined = least_us(lambda: sampler.offer(inputs, outputs), 1000)
        sample = least_us(take_and_count, 1) / PER_TURN
        update = least_us(monitor.update, 1)
    return Cost(declined, sample, update, least_us(lambda: parts.runtime.run(inputs), 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "forecast-hourly" / "1", help="a version")
    parser.add_argument("--rows", type=int, default=32, help="of a batch (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=336, help="of a row (default: %(default)s)")
    options = parser.parse_args()
    cost = measure(options.model, options.rows, options.steps)
    print("| | µs | at most |\n|---|---:|---|")
    print(
        f"| a batch that is declined | {cost.declined_us:.2f} | {cost.share_of_batch:.4%} of its run of {cost.batch_us:,.0f} µs |"
    )
    print(f"| a sample, copied and counted | {cost.sample_us:.1f} | {1 / SAMPLE_S:.0f} a second |")
    print(f"| an update of the scores | {cost.update_us:.0f} | every {UPDATE_S:.0f} s |")
    print(f"| together, of a core | | {cost.share_of_core:.2%} |")


if __name__ == "__main__":
    main()
