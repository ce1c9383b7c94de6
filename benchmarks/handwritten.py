"""The obvious hand-written endpoint, as a rival: FastAPI, a pydantic body, onnxruntime with its defaults, one run per request.

It serves the very graph that Sluice serves, one forecasting instance per request, and does nothing else: no batching, no
limits, no metrics.

    python -m benchmarks.handwritten models/forecast-hourly/1/model.onnx 8001
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Body(BaseModel):
    history: list[float]


def create_app(graph: str) -> FastAPI:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    # A network that can stream starts from zeros.
    states = {node.name: np.zeros((1, node.shape[1]), np.float32) for node in session.get_inputs()[2:]}
    app = FastAPI()

    @app.post("/predict")
    def predict(body: Body) -> dict[str, list[object]]:
        history = np.array(body.history, dtype=np.float32).reshape(1, -1, 1)
        lengths = np.array([history.shape[1]], dtype=np.int64)
        answers = session.run(None, {"history": history, "lengths": lengths, **states})
        return {name: answer[0].tolist() for name, answer in zip(names, answers, strict=True)}

    @app.get("/health/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), access_log=False, log_level="warning")
