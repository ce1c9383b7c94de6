"""The hand-written endpoint, well tuned, as a rival: FastAPI and onnxruntime without batching, as fast as they get.

One onnxruntime thread in each process, so that processes do not compete for cores, and a process per core; the session is opened
in the lifespan; orjson reads the JSON and writes the output arrays without lists between; plain routes without models and
dependencies; uvloop and httptools. The endpoint is a coroutine, and the graph runs in an executor of one thread: on the event
loop itself it would cost 5 to 15 % less processor time per request, but the loop then accepts one new connection per round of
requests, and the last of 64 waits up to 2 s. A body that is not a request gets 422.

    RIVAL_OPTIONS=... python -m uvicorn --factory benchmarks.rivals.handwritten_tuned:create_app --loop uvloop --http httptools
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import orjson
from fastapi import FastAPI, Request, Response

from benchmarks.rivals.graph import Graph
from benchmarks.rivals.options import read_options


async def predict(request: Request) -> Response:
    state = request.app.state
    try:
        instances = orjson.loads(await request.body())["instances"]
        predictions = await asyncio.get_running_loop().run_in_executor(state.executor, state.graph.predict_arrays, instances)
    except (ValueError, LookupError, TypeError) as exc:
        return _json({"error": f"not a request: {exc}"}, 422)
    return _json({"predictions": predictions})


async def ready(request: Request) -> Response:
    return _json({"ready": True})


def _json(content: object, status: int = 200) -> Response:
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, media_type="application/json")


def create_app(environ: Mapping[str, str] = os.environ) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        options = read_options(environ)
        app.state.graph = Graph(options.folder, options.num_threads)
        with ThreadPoolExecutor(1) as app.state.executor:
            yield

    app = FastAPI(lifespan=lifespan)
    # Plain routes: FastAPI's own resolve dependencies for every request, 40 to 50 µs.
    app.add_route("/predict", predict, methods=["POST"])
    app.add_route("/health/ready", ready)
    return app
