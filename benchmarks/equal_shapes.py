"""Ragged batches beside batches of equal shapes, in Sluice's own batcher: the gain of `sequence_lens` for mixed lengths.

    python -m benchmarks.equal_shapes models/forecast-hourly/1 24 336

Servers without support for ragged batches put only rows of the same shape into one batch (Triton's dynamic batcher does). That
policy is reproduced here by giving each length a key of its own: items of different keys never share a batch. No HTTP, no JSON:
64 callers, each with a row of its own length, uniformly drawn; the policies alternate.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from service.manifest import Manifest
from service.runtime.onnx_runtime import open_runtime
from service.runtime.tensors import Signature, Tensors, TensorSpec, collate, split
from service.scheduling.batching import Batcher
from service.scheduling.planning import RequestedLimits
from service.scheduling.tuning import tune
from service.tasks.registry import built_in_tasks

NUM_CALLERS = 64
Key = Callable[[int], object]
POLICIES: dict[str, Key] = {"ragged": lambda _: (), "equal shapes": lambda steps: steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the version folder of a forecasting model of one feature")
    parser.add_argument("shortest", type=int)
    parser.add_argument("longest", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(asyncio.run(_compare(options)))


async def _compare(options: argparse.Namespace) -> str:
    manifest = built_in_tasks().read_manifest(options.folder)
    signature = _signature(manifest)
    runtime = open_runtime(options.folder / manifest.graphs[0].file, "cpu")
    tuning = tune(runtime, signature, RequestedLimits(), num_steps=options.longest, latency_target_ms=50.0, budget_s=0.2)
    limits = RequestedLimits().with_defaults() if tuning is None else tuning.limits

    def run(items: list[Tensors]) -> list[Tensors]:
        return split(runtime.run(collate(items, signature)), items, signature)

    rates: dict[str, list[float]] = {name: [] for name in POLICIES}
    for number in range(options.rounds):
        for name, key in POLICIES.items():
            batcher: Batcher[Tensors, Tensors] = Batcher(run, limits, options.threads, name=name)  # type: ignore[arg-type]
            await batcher.start()
            rates[name].append(await _rate(batcher, key, options, seed=number))
            await batcher.stop()
    ratio = statistics.median(a / b for a, b in zip(rates["ragged"], rates["equal shapes"], strict=True))
    lines = [f"{name}: {statistics.median(values):.0f} rows/s" for name, values in rates.items()]
    bounds = f"at most {limits.max_batch_size} rows and {limits.max_padded_steps} padded steps"
    return "\n".join([*lines, f"ratio (median of {options.rounds} rounds): {ratio:.2f}; {bounds}, {options.threads} thread(s)"])


async def _rate(batcher: Batcher[Tensors, Tensors], key: Key, options: argparse.Namespace, seed: int) -> float:
    random = np.random.default_rng(seed)
    values = random.uniform(50, 150, (1, options.longest, 1)).astype(np.float32)
    num_rows, ends = 0, time.perf_counter() + options.seconds

    async def call() -> None:
        nonlocal num_rows
        while time.perf_counter() < ends:
            steps = int(random.integers(options.shortest, options.longest, endpoint=True))
            await batcher.submit({"history": values[:, :steps]}, steps=steps, key=key(steps))
            num_rows += 1

    started = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(NUM_CALLERS)))
    return num_rows / (time.perf_counter() - started)


def _signature(manifest: Manifest) -> Signature:
    specs = [
        tuple(TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in group) for group in (manifest.inputs, manifest.outputs)
    ]
    return Signature(specs[0], specs[1], tuple((pair.input, pair.output) for pair in manifest.state))


if __name__ == "__main__":
    main()
