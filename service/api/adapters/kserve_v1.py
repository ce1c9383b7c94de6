"""KServe's protocol v1, and the row form of TensorFlow Serving, which is the same: `/v1/models/{name}:predict`.

https://kserve.github.io/website: "V1 protocol"; https://www.tensorflow.org/tfx/serving/api_rest: "Predict API".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.api.adapters.base import Described, PredictionRequest, error_shape, expect_list, expect_object, optional
from service.api.adapters.schemas import KserveRequest, KserveResponse
from service.api.predict import ServedModel
from service.api.v2.schemas import ProtocolError
from service.errors import MalformedRequest

ONE, ONE_OF_VERSION = "/v1/models/{name}:predict", "/v1/models/{name}/versions/{version}:predict"

describe_error = error_shape(lambda status, code, message: {"error": message})


class KServeV1:
    """`{"instances": [...]}` → `{"predictions": [...]}`."""

    api = "kserve_v1"
    described = Described(
        "kserve_predict",
        "Predict as KServe v1 does",
        "Rows for one model, in the protocol v1 of KServe, which is the row form of TensorFlow Serving.",
        KserveRequest,
        KserveResponse,
        ProtocolError,
    )
    paths = (ONE, ONE_OF_VERSION)

    def read(self, content: Any, path: str, max_instances: int) -> PredictionRequest:
        """The instances; `parameters` beside them are taken as `/predict` takes them."""
        content = expect_object(content)
        if "inputs" in content and "instances" not in content:
            raise MalformedRequest('"inputs", the column form, is not accepted: send "instances", a list of rows', where="inputs")
        optional(content, "signature_name", str, "a string")
        parts = path.removesuffix(":predict").split("/")  # "", v1, models, NAME[, versions, VERSION]
        parameters = optional(content, "parameters", dict, "an object") or {}
        return PredictionRequest(expect_list(content, "instances"), parameters, parts[3], parts[5] if len(parts) > 5 else None)

    def write(self, parsed: PredictionRequest, model: ServedModel, predictions: Sequence[Any]) -> Any:
        """One prediction per instance."""
        return {"predictions": predictions}
