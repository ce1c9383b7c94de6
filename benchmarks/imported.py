"""Whether a torch module that was published serves as fast as the same network from a recipe, and how long publishing takes.

    python -m benchmarks.imported
    python -m benchmarks.imported --rounds 9 --seconds 5

Both networks are two LSTM layers of 64 units and a dense layer on the last step; their weights are drawn, since speed does not
depend on them. One is written by `training.export`, as every recipe's network is, the other is an `nn.LSTM` given to `publish`.
They lie in one models folder. In each round a server is started anew, and each gets the same requests right after the other, the
order alternating; the table has the medians, and the median of the ratios within each round with their range. Linux only; needs
wrk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.load import run_wrk, write_bodies
from benchmarks.processes import cpu_seconds
from benchmarks.servers import Server, sluice
from training.export.graph import describe_tensors, write_graph
from training.export.publish import Publication
from training.export.publish import publish as write_folder
from training.export.verify import verify
from training.importers.torch.publishing import publish
from training.network.heads.tensor import TensorInput, TensorSpec
from training.network.network import Network
from training.scoring.evaluate import Graph

FEATURES, UNITS, ANSWERS, SEED = 3, 64, 24, 1
LENGTHS, NUM_BODIES = (60, 120), 64
CONNECTIONS = (1, 64)
NAMES = ("recipe", "torch")
WARM_UP_S = 1


class TutorialLSTM(nn.Module):
    """States of zeros made by hand, and the last step, as in many a tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, UNITS, num_layers=2, batch_first=True)
        self.fc = nn.Linear(UNITS, ANSWERS)

    def forward(self, x: Tensor) -> Any:
        h0, c0 = torch.zeros(2, x.size(0), UNITS), torch.zeros(2, x.size(0), UNITS)
        out, _ = self.lstm(x, (h0, c0))
        return self.fc(out[:, -1])


@dataclass(frozen=True)
class Subject:
    """Name and description of the folder, in place of a recipe."""

    name: str = "recipe"
    version: int = 1
    task: str = "tensor"
    description: str = "Two LSTM layers of 64 units with drawn weights, to measure speed with."
    licence: str = ""
    seed: int = SEED

    def as_json(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Sample:
    """One measurement: requests per second, and the server's processor time per request in microseconds."""

    requests_per_s: float
    cpu_us: float


def make_recipe_network() -> Network:
    """The module's layers as a recipe has them."""
    layers = (
        {"type": "lstm", "units": UNITS, "return_sequences": True},
        {"type": "lstm", "units": UNITS},
        {"type": "dense", "units": ANSWERS},
    )
    return Network(TensorSpec(layers=layers, input=TensorInput(shape=("time", FEATURES)))).eval()


def publish_recipe_network(network: Network, models: Path) -> None:
    """As a run of `training` publishes its network."""
    payload = write_graph(network).SerializeToString()
    verify(network, payload, SEED)
    rows = draw_rows(2)
    answers = [
        Graph(payload).run({"input": row[None], "lengths": np.array([len(row)], np.int64)})["output"][0].tolist() for row in rows
    ]
    publication = Publication(
        recipe=Subject(),
        graph=payload,
        tensors=describe_tensors(network),
        spec={},
        instances=[row.tolist() for row in rows],
        predictions=answers,
        metrics={},
        baselines={},
        data=[],
    )
    write_folder(publication, models)


def draw_rows(number: int) -> list[Any]:
    """Rows of different length."""
    random = np.random.default_rng(SEED)
    lengths = np.linspace(*LENGTHS, number).astype(int)
    return [random.standard_normal((length, FEATURES)).round(3).astype(np.float32) for length in lengths]


def measure(server: Server, bodies: Path, connections: int, seconds: float) -> Sample:
    """Load one model of a server."""
    pids = [process.pid for process in server.members()]
    started_s, used_s = time.monotonic(), sum(map(cpu_seconds, pids))
    load = run_wrk(f"{server.url}/predict", bodies, connections, seconds)
    used_s, took_s = sum(map(cpu_seconds, pids)) - used_s, time.monotonic() - started_s
    if load.num_failed:
        raise SystemExit(f"{load.num_failed} requests failed: {server.log}")
    return Sample(load.requests_per_s, 1e6 * used_s / max(1.0, load.requests_per_s * took_s))


def run(rounds: int, seconds: float, folder: Path) -> Iterator[str]:
    """Publish both, measure in turns, and give the lines of the report."""
    torch.manual_seed(SEED)
    module = TutorialLSTM().eval()
    models = folder / "models"
    started_s = time.monotonic()
    published = publish(module, "torch", example=draw_rows(3), models=models)
    yield f"published in {time.monotonic() - started_s:.1f} s: {published.route}, {published.batching} batches"
    publish_recipe_network(make_recipe_network(), models)
    bodies = {
        name: write_bodies(
            [json.dumps({"model": name, "instances": [row.tolist()]}).encode() for row in draw_rows(NUM_BODIES)], folder / name
        )
        for name in NAMES
    }
    samples: dict[tuple[int, str], list[Sample]] = {(count, name): [] for count in CONNECTIONS for name in NAMES}
    for number in range(rounds):
        with sluice(models) as server:
            for count in CONNECTIONS:
                for name in NAMES:
                    measure(server, bodies[name], count, WARM_UP_S)
                for name in NAMES if number % 2 else NAMES[::-1]:
                    samples[count, name].append(measure(server, bodies[name], count, seconds))
    yield ""
    yield "| traffic | recipe, req/s | torch, req/s | torch / recipe | recipe, µs of processor | torch, µs | torch / recipe |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for count in CONNECTIONS:
        recipe, torch_ = samples[count, "recipe"], samples[count, "torch"]
        rates = [[sample.requests_per_s for sample in own] for own in (recipe, torch_)]
        costs = [[sample.cpu_us for sample in own] for own in (recipe, torch_)]
        yield f"| {count} connection{'s' if count > 1 else ''} | {_compare(*rates)} | {_compare(*costs)} |"


def _compare(before: Sequence[float], after: Sequence[float]) -> str:
    """Both medians, and the ratio within each round."""
    return f"{statistics.median(before):,.0f} | {statistics.median(after):,.0f} | {_ratio(before, after)}"


def _ratio(before: Sequence[float], after: Sequence[float]) -> str:
    ratios = [two / one for one, two in zip(before, after, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.imported", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for line in run(options.rounds, options.seconds, Path(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
