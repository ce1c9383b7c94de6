"""BentoML with its adaptive batching, a worker per core, access log off. Runs in BentoML's environment.

As docs.bentoml.com advises: get-started/adaptive-batching (`batchable`, `max_batch_size` found by measuring),
build-with-bentoml/parallelize-requests (a worker per core). The wait for a batch is BentoML's own choice, from the times that it
measures; `max_latency_ms` bounds it. Batch size, latency, workers and threads are the options of `registry.py`.

    RIVAL_OPTIONS=... python -m bentoml serve benchmarks.rivals.bentoml_server:GraphService
"""

# No `from __future__ import annotations`: BentoML derives the request's schema from the annotations.
from typing import Any

import bentoml

from benchmarks.rivals.graph import Graph
from benchmarks.rivals.options import read_options

OPTIONS = read_options()
assert OPTIONS.batching is not None
MAX_BATCH_SIZE, MAX_LATENCY_MS = OPTIONS.batching.max_batch_size, int(OPTIONS.batching.max_delay_ms)


@bentoml.service(
    name="graph",
    workers=OPTIONS.num_processes,
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
)
class GraphService:
    def __init__(self) -> None:
        self._graph = Graph(OPTIONS.folder, OPTIONS.num_threads)

    @bentoml.api(
        route="/predict",
        batchable=True,
        batch_dim=0,
        max_batch_size=MAX_BATCH_SIZE,
        max_latency_ms=MAX_LATENCY_MS,
    )
    def predict(self, instances: list[Any]) -> list[dict[str, Any]]:
        return self._graph.predict(instances)
