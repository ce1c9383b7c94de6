"""KServe's time series protocol: `POST /v1/timeseries/forecast`.

Types as in `kserve/protocol/rest/timeseries/types.py` of kserve 0.15. `mean_forecast` is the model's point forecast, whatever it
is of the distribution: `GET /models/{name}` says which.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from service.api.adapters.base import (
    Described,
    PredictionRequest,
    error_shape,
    expect_list,
    expect_no_sequence,
    expect_object,
    optional,
)
from service.api.adapters.schemas import TimeseriesError, TimeseriesRequest, TimeseriesResponse
from service.api.parsing import expect_no_more_than
from service.api.predict import ServedModel
from service.errors import MalformedRequest

PATH = "/v1/timeseries/forecast"
MODELS_PATH = "/v1/timeseries/models"
UNIVARIATE, MULTIVARIATE = "univariate_time_series", "multivariate_time_series"

describe_error = error_shape(
    lambda status, code, message: {"error": {"code": str(status), "message": message, "param": None, "type": code}}
)


class TimeSeries:
    """Series in, forecasts out; all have one horizon, and the same levels."""

    api = "kserve_timeseries"
    described = Described(
        "timeseries_forecast",
        "Forecast as KServe's time series protocol does",
        "Forecasts of series, all with one horizon.",
        TimeseriesRequest,
        TimeseriesResponse,
        TimeseriesError,
    )
    paths = (PATH,)

    def read(self, content: Any, path: str, max_instances: int) -> PredictionRequest:
        """One instance per input. Raises MalformedRequest."""
        content = expect_object(content)
        model = optional(content, "model", str, "a string")
        options = expect_object(content.get("options", {}), '"options"')
        expect_no_sequence(content, options)
        parameters = {name: options[name] for name in ("horizon", "quantiles") if options.get(name) is not None}
        given_inputs = expect_list(content, "inputs")
        expect_no_more_than(max_instances, len(given_inputs))
        inputs = [expect_object(given, f"input {index}") for index, given in enumerate(given_inputs)]
        return PredictionRequest(
            [_read_series(given, index) for index, given in enumerate(inputs)], parameters, model, None, "forecast", inputs
        )

    def write(self, parsed: PredictionRequest, model: ServedModel, predictions: Sequence[Any]) -> Any:
        """One output per input."""
        pairs = zip(parsed.context, predictions, strict=True)
        return {
            "id": f"forecast-{uuid.uuid4().hex}",
            "created_at": int(time.time()),
            "status": "completed",
            "error": None,
            "model": model.name,
            "outputs": [
                {
                    "type": "time_series_forecast",
                    "id": f"output-{index}",
                    "status": "completed",
                    "content": [_write_forecast(given, prediction)],
                    "error": None,
                }
                for index, (given, prediction) in enumerate(pairs)
            ],
            "usage": {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None},
        }


def _read_series(given: dict[str, Any], index: int) -> dict[str, Any]:
    expect_no_sequence(given)
    kind = given.get("type", UNIVARIATE)
    if kind not in (UNIVARIATE, MULTIVARIATE):
        raise MalformedRequest(f'input {index}: "type": expected {UNIVARIATE} or {MULTIVARIATE}', where="type")
    if type(given.get("series")) is not list:
        raise MalformedRequest(f'input {index}: "series" is missing, or no list', where="series")
    optional(given, "name", str, "a string")  # which the answer repeats
    instance = {"history": given["series"]}
    for field, name in (("frequency", "frequency"), ("start_timestamp", "start")):
        if given.get(field) is not None:
            instance[name] = given[field]
    return instance


def _write_forecast(given: dict[str, Any], prediction: dict[str, Any]) -> dict[str, Any]:
    timestamps = prediction.get("timestamps")
    return {
        "type": given.get("type", UNIVARIATE),
        "name": given.get("name", "forecast"),
        "mean_forecast": prediction["forecast"],
        "frequency": given.get("frequency"),
        "start_timestamp": timestamps[0] if timestamps else None,
        "quantiles": prediction.get("quantiles"),
    }
