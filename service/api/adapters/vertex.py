"""The contract of a custom container of Vertex AI: `{"instances": [...], "parameters": {...}}` at the route that it chooses.

https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements: the variables `AIP_HTTP_PORT`,
`AIP_HEALTH_ROUTE` and `AIP_PREDICT_ROUTE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.api.adapters.base import Described, PredictionRequest, error_shape, expect_list, expect_object, optional
from service.api.adapters.schemas import VertexError, VertexRequest, VertexResponse
from service.api.predict import ServedModel

describe_error = error_shape(lambda status, code, message: {"error": {"code": status, "message": message}})


class VertexAi:
    """`instances` and `parameters` → `predictions`; the container serves one model, or `parameters.model` names it."""

    api = "vertex_ai"
    described = Described(
        "vertex_predict",
        "Predict as Vertex AI does",
        "Instances at the route that the platform chose.",
        VertexRequest,
        VertexResponse,
        VertexError,
    )

    def __init__(self, path: str) -> None:
        self.paths = (path,)

    def read(self, content: Any, path: str, max_instances: int) -> PredictionRequest:
        """The instances and the parameters."""
        content = expect_object(content)
        parameters = dict(optional(content, "parameters", dict, "an object") or {})
        model = optional(parameters, "model", str, "a string")
        parameters.pop("model", None)
        return PredictionRequest(expect_list(content, "instances"), parameters, model)

    def write(self, parsed: PredictionRequest, model: ServedModel, predictions: Sequence[Any]) -> Any:
        """One prediction per instance."""
        return {"predictions": predictions, "model": model.name, "modelVersionId": model.version}
