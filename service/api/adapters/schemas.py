"""The JSON of the other wire formats as the OpenAPI document describes it. What their instances hold is the model's affair."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_TEXTS: list[Any] = ["a wonderful film", "a dull mess"]
_HISTORY: list[Any] = [float(hour % 24) for hour in range(168)]
Instances = Field(description="One entry per prediction, as `/predict` takes them.", examples=[_TEXTS])
Predictions = Field(description="One per instance, as `/predict` gives them.", examples=[[{"label": "positive", "score": 0.97}]])
Model = Field(default=None, description="Name of the model; if absent, the one that fits answers.", examples=["forecast-hourly"])


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


# ----------------------------------------------------------------------------------------------------------- KServe v1


class KserveRequest(_Open):
    """Rows for one model, as KServe's protocol v1 and TensorFlow Serving have them."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"instances": _TEXTS}]})

    instances: list[Any] = Instances
    parameters: dict[str, Any] | None = Field(
        default=None, description="Defaults for every instance, as `/predict` takes them.", examples=[{"horizon": 6}]
    )
    signature_name: str | None = Field(default=None, description="Ignored.", examples=["serving_default"])


class KserveResponse(BaseModel):
    """Predictions in the order of the instances."""

    predictions: list[Any] = Predictions


class KserveModel(BaseModel):
    """Whether a model answers, in KServe's words and in those of TensorFlow Serving."""

    name: str = Field(description="Name of the model.", examples=["forecast-hourly"])
    ready: bool = Field(description="Whether it answers.", examples=[True])
    model_version_status: list[dict[str, Any]] = Field(
        description="The state of each version.",
        examples=[[{"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}]],
    )


# ---------------------------------------------------------------------------------------------------- MLflow, SageMaker


class InvocationsRequest(_Open):
    """Rows in one of four forms, just one of them."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [{"instances": _TEXTS, "params": {"model": "sentiment-en"}}]}
    )

    dataframe_split: dict[str, Any] | None = Field(
        default=None, description="Columns and rows of a data frame.", examples=[{"columns": ["text"], "data": [["a film"]]}]
    )
    dataframe_records: list[dict[str, Any]] | None = Field(
        default=None, description="The rows of a data frame as objects.", examples=[[{"text": "a film"}]]
    )
    instances: list[Any] | None = Field(default=None, description="Rows, as `/predict` takes them.", examples=[_TEXTS])
    inputs: Any = Field(default=None, description="Rows, or an object of columns.", examples=[_TEXTS])
    params: dict[str, Any] | None = Field(
        default=None,
        description="The parameters of the request; `model` among them names the model where there are several.",
        examples=[{"model": "sentiment-en"}],
    )


class InvocationsResponse(BaseModel):
    """Predictions in the order of the rows."""

    predictions: list[Any] = Predictions


class InvocationsError(BaseModel):
    """An error as MLflow has it."""

    error_code: str = Field(description="What happened, for programs.", examples=["BAD_REQUEST"])
    message: str = Field(description="What happened, for people.", examples=["the body is empty, expected JSON"])


class Ping(BaseModel):
    """Whether requests should be sent to this server."""

    status: Literal["ready", "not ready"] = Field(description="As at `/health/ready`.", examples=["ready"])


# ----------------------------------------------------------------------------------------------------------- Vertex AI


class VertexRequest(_Open):
    """Instances as Vertex AI sends them."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [{"instances": _TEXTS, "parameters": {"model": "sentiment-en"}}]}
    )

    instances: list[Any] = Instances
    parameters: dict[str, Any] | None = Field(
        default=None,
        description="The parameters of the request; `model` among them names the model where there are several.",
        examples=[{"model": "sentiment-en"}],
    )


class VertexResponse(BaseModel):
    """Predictions in the order of the instances."""

    predictions: list[Any] = Predictions
    model: str = Field(description="Name of the model that answered.", examples=["sentiment-en"])
    modelVersionId: str = Field(description="Version of the model that answered.", examples=["1"])  # noqa: N815  # Vertex's name


class VertexFailure(BaseModel):
    """What happened."""

    code: int = Field(description="The HTTP status, repeated.", examples=[400])
    message: str = Field(description="What happened, for people.", examples=["the body is empty, expected JSON"])


class VertexError(BaseModel):
    """An error as Google's APIs have it."""

    error: VertexFailure = Field(description="The status and the reason.")


# -------------------------------------------------------------------------------------------------- KServe time series


class TimeseriesInput(_Open):
    """One series."""

    type: Literal["univariate_time_series", "multivariate_time_series"] = Field(
        default="univariate_time_series", description="Whether a step is a number or a row.", examples=["univariate_time_series"]
    )
    name: str | None = Field(default=None, description="The answer repeats it.", examples=["load"])
    series: list[Any] = Field(description="Its values, the oldest first.", examples=[_HISTORY])
    frequency: str | None = Field(default=None, description="`S T H D W M Q Y`, or in words.", examples=["H"])
    start_timestamp: str | None = Field(default=None, description="Time of the first value.", examples=["2026-01-05T00:00:00"])


class TimeseriesOptions(_Open):
    """What to forecast."""

    horizon: int | None = Field(default=None, description="How many steps; the model's own if absent.", examples=[24])
    quantiles: list[float] | None = Field(
        default=None, description="Levels between the model's lowest and highest.", examples=[[0.1, 0.9]]
    )


class TimeseriesRequest(_Open):
    """Series for one model."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [{"model": "forecast-hourly", "inputs": [{"series": _HISTORY}], "options": {"horizon": 24}}]
        },
    )

    model: str | None = Model
    inputs: list[TimeseriesInput] = Field(description="The series, all with one horizon.")
    options: TimeseriesOptions = Field(default=TimeseriesOptions(), description="How far to forecast, and which quantiles.")


class TimeseriesForecast(BaseModel):
    """The forecast of one series."""

    type: str = Field(description="As in the request.", examples=["univariate_time_series"])
    name: str | None = Field(description="As in the request.", examples=["load"])
    mean_forecast: list[Any] = Field(description="The model's point forecast, which may be a median.", examples=[[10.9, 11.3]])
    frequency: str | None = Field(description="As in the request.", examples=["H"])
    start_timestamp: str | None = Field(description="Time of the first step.", examples=["2026-01-12T00:00:00"])
    quantiles: dict[str, list[Any]] | None = Field(description="Level → numbers.", examples=[{"0.1": [9.8, 10.1]}])


class TimeseriesOutput(BaseModel):
    """What became of one series."""

    type: Literal["time_series_forecast"] = Field(description="Always the same.", examples=["time_series_forecast"])
    id: str = Field(description="Its number in the request.", examples=["output-0"])
    status: Literal["completed"] = Field(description="Always the same.", examples=["completed"])
    content: list[TimeseriesForecast] = Field(description="One forecast.")
    error: None = Field(description="Always null: one bad series refuses the request.", examples=[None])


class TimeseriesResponse(BaseModel):
    """Forecasts in the order of the series."""

    id: str = Field(description="Made up.", examples=["forecast-7d3f"])
    created_at: int = Field(description="Unix time.", examples=[1_767_225_600])
    status: Literal["completed"] = Field(description="Always the same.", examples=["completed"])
    error: None = Field(description="Always null.", examples=[None])
    model: str = Field(description="Name of the model that answered.", examples=["forecast-hourly"])
    outputs: list[TimeseriesOutput] = Field(description="One per series.")
    usage: dict[str, None] = Field(description="Of language models alone.", examples=[{"prompt_tokens": None}])


class TimeseriesModels(BaseModel):
    """The forecasting models that answer."""

    object: Literal["list"] = Field(description="Always the same.", examples=["list"])
    data: list[dict[str, Any]] = Field(
        description="One entry per model.", examples=[[{"id": "forecast-hourly", "object": "model", "created": 0}]]
    )


class TimeseriesFailure(BaseModel):
    """What happened."""

    code: str = Field(description="The HTTP status, repeated.", examples=["400"])
    message: str = Field(description="What happened, for people.", examples=['"inputs" is missing, or no list'])
    param: None = Field(description="Always null.", examples=[None])
    type: str = Field(description="What happened, for programs.", examples=["malformed_request"])


class TimeseriesError(BaseModel):
    """An error as KServe's time series protocol has it."""

    error: TimeseriesFailure = Field(description="The status and the reason.")


# -------------------------------------------------------------------------------------------------------------- Nixtla


class NixtlaSeries(_Open):
    """All series, one behind the other."""

    y: list[Any] = Field(description="The values of all series.", examples=[_HISTORY])
    sizes: list[int] = Field(description="How many of them are each series'.", examples=[[168]])
    X: list[list[Any]] | None = Field(
        default=None,
        description="Columns that are known ahead, of all series' values: the model's covariates in their order.",
        examples=[None],
    )
    X_future: list[list[Any]] | None = Field(
        default=None, description="The same columns of the steps that are forecast, `h` of each series.", examples=[None]
    )


class NixtlaRequest(_Open):
    """Series as Nixtla's client sends them."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [{"series": {"y": _HISTORY, "sizes": [168]}, "model": "forecast-hourly", "h": 24, "freq": "h"}]
        },
    )

    series: NixtlaSeries = Field(description="All series.")
    model: str | None = Field(
        default=None,
        description="Name of the model; `timegpt-1` and its like: the one for the frequency.",
        examples=["timegpt-1"],
    )
    h: int | None = Field(default=None, description="How many steps; the model's own if absent.", examples=[24])
    freq: str | None = Field(default=None, description="The frequency of the series.", examples=["h"])
    level: list[float] | None = Field(default=None, description="Levels of intervals, in percent.", examples=[[80]])


class NixtlaResponse(BaseModel):
    """The forecasts of all series, one behind the other."""

    mean: list[Any] = Field(description="The model's point forecasts.", examples=[[10.9, 11.3]])
    intervals: dict[str, list[Any]] | None = Field(
        description="The bounds of each level; null where the request has none.", examples=[{"lo-80": [9.8], "hi-80": [12.0]}]
    )
    weights_x: None = Field(description="Always null.", examples=[None])
    feature_contributions: None = Field(description="Always null.", examples=[None])


class NixtlaParameters(BaseModel):
    """How many steps the model for a frequency reads and forecasts."""

    detail: dict[str, int] = Field(description="Steps.", examples=[{"input_size": 336, "horizon": 48}])


class NixtlaDetail(BaseModel):
    """An error, or that there is none, as Nixtla's client reads it."""

    detail: str = Field(description="What happened, for people.", examples=['"series.sizes": expected whole numbers'])
