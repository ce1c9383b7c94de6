"""BentoML with its adaptive batching, a worker per core, access log off. Runs in BentoML's environment.

As docs.bentoml.com advises: get-started/adaptive-batching (`batchable`, `max_batch_size` found by measuring),
build-with-bentoml/parallelize-requests (a worker per core). Folder and workers are environment variables, since `bentoml
serve` imports this file anew in every worker.

    MODEL_FOLDER=models/forecast-hourly/1 NUM_WORKERS=2 python -m bentoml serve benchmarks.rivals.bentoml_server:GraphService
"""

# No `from __future__ import annotations`: BentoML derives the request's schema from the annotations.
import os
from pathlib import Path
from typing import Any

import bentoml

from benchmarks.rivals.graph import Graph

MAX_BATCH_SIZE = 32
"""In instances: BentoML joins the lists of several requests and cuts the list of a larger one."""


@bentoml.service(
    name="graph",
    workers=int(os.environ.get("NUM_WORKERS", "1")),
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
)
class GraphService:
    def __init__(self) -> None:
        self._graph = Graph(Path(os.environ["MODEL_FOLDER"]), num_threads=1)

    @bentoml.api(route="/predict", batchable=True, batch_dim=0, max_batch_size=MAX_BATCH_SIZE)
    def predict(self, instances: list[Any]) -> list[dict[str, Any]]:
        return self._graph.predict(instances)
