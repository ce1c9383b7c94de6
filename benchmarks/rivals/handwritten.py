"""The obvious hand-written endpoint, as a rival: FastAPI, a pydantic body, onnxruntime with its defaults, one run per request.

It serves the same graph as Sluice and does nothing else: no batching across requests, no limits, no metrics. One
uvicorn process or several, by uvicorn's own --workers; the folder is an environment variable, as each worker imports anew.

    MODEL_FOLDER=models/forecast-hourly/1 python -m uvicorn --factory benchmarks.rivals.handwritten:create_app
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.rivals.graph import Graph


class Instance(BaseModel):
    history: list[float]


class Histories(BaseModel):
    instances: list[Instance]


class Texts(BaseModel):
    instances: list[str]


class Predictions(BaseModel):
    predictions: list[dict[str, Any]]


def create_app() -> FastAPI:
    graph = Graph(Path(os.environ["MODEL_FOLDER"]))
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
