"""The obvious hand-written endpoint, as a rival: FastAPI, a pydantic body, onnxruntime with its defaults, one run per request.

It serves the same graph as Sluice and does nothing else: no batching across requests, no limits, no metrics. One
uvicorn process or several, by uvicorn's own --workers; the folder is one of the options of `registry.py`.

    RIVAL_OPTIONS=... python -m uvicorn --factory benchmarks.rivals.handwritten:create_app
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.rivals.graph import Graph
from benchmarks.rivals.options import read_options


class Instance(BaseModel):
    history: list[float]


class Histories(BaseModel):
    instances: list[Instance]


class Texts(BaseModel):
    instances: list[str]


class Predictions(BaseModel):
    predictions: list[dict[str, Any]]


def create_app() -> FastAPI:
    options = read_options()
    graph = Graph(options.folder, options.num_threads)
    app = FastAPI()

    def forecast(body: Histories) -> Predictions:
        return Predictions(predictions=graph.run([instance.history for instance in body.instances]))

    def classify(body: Texts) -> Predictions:
        return Predictions(predictions=graph.run_texts(body.instances))

    app.post("/predict")(forecast if graph.task == "forecast" else classify)

    @app.get("/health/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    return app
