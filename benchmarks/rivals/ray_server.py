"""Ray Serve with its dynamic request batching, a replica per core, on a Ray of its own. Runs in Ray's environment.

As docs.ray.io/serve advises: advanced-guides/dyn-req-batch (`@serve.batch`, a power of two, a short wait),
advanced-guides/performance (`async` methods with a high `max_ongoing_requests`, RAY_SERVE_THROUGHPUT_OPTIMIZED=1), and the
guide to high throughput (RAY_SERVE_ENABLE_HA_PROXY=1; the HAProxy comes with ray[serve]; 3.2 times the requests per second
of Ray's own proxy on two cores). These variables are set by `benchmarks.rivals.registry`.

Ray's files are in a folder that is removed with it: under the system's temporary folder, since the names of Ray's sockets
may have 107 bytes, which a checkout's path easily uses up.

Batch size, wait, replicas and threads are the options of `registry.py`.

    RIVAL_OPTIONS=... python -m benchmarks.rivals.ray_server 8001
"""

# No `from __future__ import annotations`: Ray Serve reads the annotations.
import os
import signal
import sys
import tempfile
import threading
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from benchmarks.rivals.graph import Graph, Prediction
from benchmarks.rivals.options import Options, read_options

OPTIONS = read_options()
assert OPTIONS.batching is not None
MAX_BATCH_SIZE, BATCH_WAIT_S = OPTIONS.batching.max_batch_size, OPTIONS.batching.max_delay_ms / 1000
MAX_ONGOING_REQUESTS = 1000
OBJECT_STORE_BYTES = 100 * 1024 * 1024
HAPROXY_FILES = {
    "CONFIG_FILE_LOC": "haproxy.cfg",
    "SOCKET_PATH": "haproxy.sock",
    "METRICS_SOCKET_PATH": "metrics.sock",
    "SERVER_STATE_BASE": "haproxy",
    "SERVER_STATE_FILE": "haproxy/state",
}


class GraphDeployment:
    """One request is one member of the batch, with all its instances."""

    def __init__(self, options: Options) -> None:
        self._graph = Graph(options.folder, options.num_threads)

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_S)
    async def predict(self, requests: list[list[Any]]) -> list[list[Prediction]]:
        predictions = iter(self._graph.predict([instance for instances in requests for instance in instances]))
        return [[next(predictions) for _ in instances] for instances in requests]

    async def __call__(self, request: Request) -> JSONResponse:
        if request.method == "GET":
            return JSONResponse({"ready": True})
        body = await request.json()
        return JSONResponse({"predictions": await self.predict(body["instances"])})


def main(options: Options, port: int) -> None:
    """Serve until SIGTERM or SIGINT, then take Ray down (`serve.shutdown` before would wait 30 s for its controller)."""
    stop = threading.Event()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temporary:
        os.environ.update({f"RAY_SERVE_HAPROXY_{name}": f"{temporary}/{file}" for name, file in HAPROXY_FILES.items()})
        os.environ["RAY_TMPDIR"] = temporary  # read when Ray starts; the argument of the same use is private
        ray.init(
            num_cpus=options.num_processes,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
        )
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        deployment = serve.deployment(
            num_replicas=options.num_processes, max_ongoing_requests=MAX_ONGOING_REQUESTS, ray_actor_options={"num_cpus": 1}
        )
        serve.run(deployment(GraphDeployment).bind(options), route_prefix="/predict")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        stop.wait()
        ray.shutdown()


if __name__ == "__main__":
    main(OPTIONS, int(sys.argv[1]))
