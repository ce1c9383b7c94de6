"""The reference network of the comparison: two LSTM layers of 64 units with a dense head, as a valid model folder.

Its weights are drawn, not learned: a graph's speed does not depend on them. Histories are divided by their own mean, so the
graph has no state, and its only inputs are `history` and `lengths`.

    python -m benchmarks.reference              writes benchmarks/.work/models/lstm-2x64/1
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.servers import ROOT
from training.export.answers import format_forecast
from training.export.graph import describe_tensors, write_graph
from training.export.publish import Publication, publish
from training.export.verify import verify
from training.network.heads.forecast import ForecastSpec
from training.network.network import Network
from training.scoring.evaluate import Graph

MODELS = ROOT / "benchmarks" / ".work" / "models"
NAME, SEED = "lstm-2x64", 1
MIN_LENGTH, CONTEXT_LENGTH, HORIZON = 8, 512, 24
SPEC = ForecastSpec(
    layers=(
        {"type": "lstm", "units": 64, "return_sequences": True},
        {"type": "lstm", "units": 64},
        {"type": "dense", "units": HORIZON},
    ),
    horizon=HORIZON,
    scaling={"kind": "window"},  # type: ignore[arg-type]  # pydantic reads the table
)


@dataclass(frozen=True)
class Subject:
    """Name and description of the folder, in place of a recipe."""

    name: str = NAME
    version: int = 1
    task: str = "forecast"
    description: str = "Two LSTM layers of 64 units with drawn weights, to measure speed with; its forecasts mean nothing."
    licence: str = ""
    seed: int = SEED

    def as_json(self) -> dict[str, Any]:
        return {"layers": list(SPEC.layers)}


def reference_folder(models: Path = MODELS) -> Path:
    """The version folder under `models`; written if it does not exist, or was written from another network."""
    folder = models / NAME / "1"
    spec = SPEC.model_dump(mode="json", exclude_defaults=True)
    if _recorded(folder) == spec:
        return folder
    torch.manual_seed(SEED)
    network = Network(SPEC).eval()
    graph = write_graph(network).SerializeToString()
    verify(network, graph, SEED)
    instances, predictions = _example(Graph(graph))
    forecast_spec = {
        "context_length": CONTEXT_LENGTH,
        "min_length": MIN_LENGTH,
        "horizon": HORIZON,
        "frequencies": [],
        "season_length": 24,
        "quantiles": [],
        "point": SPEC.point,
        "features": ["y"],
        "targets": ["y"],
    }
    publication = Publication(
        recipe=Subject(),
        graph=graph,
        tensors=describe_tensors(network),
        spec=forecast_spec,
        instances=instances,
        predictions=predictions,
        metrics={},
        baselines={},
        data=[],
        facts={"num_parameters": network.num_parameters, "network": spec},
    )
    return publish(publication, models, replace=True)


def _recorded(folder: Path) -> Any:
    """The network that the folder's manifest records; None where there is no folder."""
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8"))["training"].get("network") if path.exists() else None


def _example(graph: Graph) -> tuple[list[Any], list[Any]]:
    random = np.random.default_rng(SEED)
    histories = [random.uniform(50, 150, length).round(2) for length in (168, MIN_LENGTH)]
    outputs = [
        graph.run({"history": history[None, :, None].astype(np.float32), "lengths": np.array([len(history)])})
        for history in histories
    ]
    return [{"history": history.tolist()} for history in histories], [format_forecast(output, []) for output in outputs]


if __name__ == "__main__":
    print(reference_folder())
