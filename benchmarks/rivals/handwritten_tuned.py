"""The hand-written endpoint, well tuned, as a rival: FastAPI and onnxruntime without batching, as fast as they get.

One onnxruntime thread in each process, so that processes do not compete for cores, and a process per core; the session is opened
in the lifespan; orjson reads the JSON and writes the output arrays without lists between; plain routes without models and
dependencies; uvloop and httptools. The endpoint is a coroutine that runs the graph on the event loop: handing it to a thread
costs 40 µs per request, and the other cores have processes of their own. A body that is not a request gets 422.

    RIVAL_OPTIONS=... python -m uvicorn --factory benchmarks.rivals.handwritten_tuned:create_app --loop uvloop --http httptools
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from fastapi import FastAPI, Request, Response

from benchmarks.rivals.graph import Graph
from benchmarks.rivals.options import read_options


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    options = read_options()
    app.state.graph = Graph(options.folder, options.num_threads)
    yield


async def predict(request: Request) -> Response:
    graph: Graph = request.app.state.graph
    try:
        predictions = graph.predict_arrays(orjson.loads(await request.body())["instances"])
    except (ValueError, LookupError, TypeError) as exc:
        return _json({"error": f"not a request: {exc}"}, 422)
    return _json({"predictions": predictions})


async def ready(request: Request) -> Response:
    return _json({"ready": True})


def _json(content: object, status: int = 200) -> Response:
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, media_type="application/json")


def create_app() -> FastAPI:
    app = FastAPI(lifespan=lifespan)
    # Plain routes: FastAPI's own resolve dependencies for every request, 40 to 50 µs.
    app.add_route("/predict", predict, methods=["POST"])
    app.add_route("/health/ready", ready)
    return app
