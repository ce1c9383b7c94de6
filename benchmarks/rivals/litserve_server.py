"""LitServe with its dynamic batching, as its own guides set it up for throughput on CPUs. Runs in LitServe's environment.

A worker process per core and an HTTP process per worker, `fast_queue` for more than 100 requests per second, and a batch
window of a few milliseconds (lightning.ai/docs/litserve: features/batching, speed-up-serving-by-200x, and the text
of the class LitServer). In LitServe 0.2.19 `fast_queue` changes nothing: the server hands it to its transport under a name
that the transport does not know. Batch size, window, workers and threads are the options of `registry.py`.

    RIVAL_OPTIONS=... python -m benchmarks.rivals.litserve_server 8001
"""

# No `from __future__ import annotations`: LitServe reads the annotations of its hooks, and not as strings.
import sys
from typing import Any

import litserve
from fastapi import Request

from benchmarks.rivals.graph import Graph, Prediction
from benchmarks.rivals.options import Options, read_options


class GraphAPI(litserve.LitAPI):
    """One request is one member of the batch, with all its instances."""

    def __init__(self, options: Options) -> None:
        assert options.batching is not None
        super().__init__(max_batch_size=options.batching.max_batch_size, batch_timeout=options.batching.max_delay_ms / 1000)
        self._options = options

    def setup(self, device: str) -> None:
        self._graph = Graph(self._options.folder, self._options.num_threads)

    # LitServe reads the annotation: a Request comes as its parsed JSON.
    def decode_request(self, request: Request) -> list[Any]:
        instances: list[Any] = request["instances"]
        return instances

    def batch(self, inputs: list[list[Any]]) -> list[list[Any]]:
        return inputs

    def predict(self, requests: list[list[Any]]) -> list[list[Prediction]]:
        predictions = iter(self._graph.predict([instance for instances in requests for instance in instances]))
        return [[next(predictions) for _ in instances] for instances in requests]

    def unbatch(self, output: list[list[Prediction]]) -> list[list[Prediction]]:
        return output

    def encode_response(self, output: list[Prediction]) -> dict[str, list[Prediction]]:
        return {"predictions": output}


if __name__ == "__main__":
    options = read_options()
    server = litserve.LitServer(GraphAPI(options), accelerator="cpu", workers_per_device=options.num_processes, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning", access_log=False)
