"""What each endpoint accepts and returns, for the OpenAPI document: every field with its description, bounds and examples.

The prediction endpoints do not parse with these models (`predict.py` reads bytes, tasks check instances field by field); tests
hold both to the same verdict on generated bodies. What depends on the model, and so cannot stand in a schema, is listed in
`openapi.BEYOND_SCHEMA`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.errors import TABLE

# Bounds of the tasks, repeated because this folder imports leaves only; a test compares them.
FLOAT32_MAX = 3.4028234663852886e38
MAX_HISTORY_VALUES = 1_000_000
MAX_CHARACTERS = 100_000
MAX_QUANTILES = 99
# The longest name of a frequency is six digits, `annually` and an anchor such as `-SUN`.
MAX_FREQUENCY_LENGTH = 20

Number = Annotated[float, Field(ge=-FLOAT32_MAX, le=FLOAT32_MAX)] | None
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
AnsweringModel = Annotated[str, Field(description="Name of the model that answered.", examples=["forecast-hourly"])]
AnsweringVersion = Annotated[str, Field(description="Version of the model that answered.", examples=["1"])]
Version = Annotated[
    Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")] | None,
    Field(
        description="Version of the model, a whole number as a string; the highest if absent. Needs `model` beside it.",
        examples=["1"],
    ),
]
Horizon = Annotated[
    Annotated[int, Field(ge=1)] | None,
    Field(
        description="Number of steps to forecast; the model's own horizon if absent. Beyond it, forecasts are fed back as "
        "history, up to the `max_horizon` of `GET /models/{name}`.",
        examples=[24],
    ),
]
Quantiles = Annotated[
    Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(max_length=MAX_QUANTILES)] | None,
    Field(
        description="Quantile levels to return; all of the model's if absent, none if empty. Levels between two of the model's "
        "are interpolated.",
        examples=[[0.1, 0.5, 0.9]],
    ),
]
Frequency = Annotated[
    Annotated[str, Field(pattern=r"^([1-9][0-9]{0,5})?[A-Za-z]+(-[A-Z]{3})?$", max_length=MAX_FREQUENCY_LENGTH)] | None,
    Field(
        description="Distance between two steps: S, T, H, D, W, M, Q or Y, or a name such as `min`, `hourly` or `MS`, with a "
        "count in front where it is more than one, such as `15T`.",
        examples=["H"],
    ),
]
Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS, pattern=r"\S")]

# A week of hourly values, the shortest history of the bundled model: a daily wave, lower at the weekend, with one gap.
_WEEK: list[Any] = [round(300 + 80 * math.sin(math.tau * (hour - 9) / 24) - 60 * (hour >= 120)) for hour in range(168)]
_HISTORY: list[Any] = [*_WEEK[:30], None, *_WEEK[31:]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


# ------------------------------------------------------------------------------------------------------------ /predict


class PredictRequest(_Strict):
    """Instances for one model of any task."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "forecast-hourly", "instances": [{"history": _WEEK}], "parameters": {"horizon": 6}},
                {"model": "sentiment-en", "instances": ["A quiet, moving film."]},
            ]
        }
    )

    model: ModelName = Field(
        description="Name of the model, as `GET /models` lists it.", examples=["forecast-hourly", "sentiment-en"]
    )
    version: Version = None
    instances: list[Any] = Field(
        min_length=1,
        description="One entry per prediction, in the form that the model's task accepts: as in `/predict/forecast`, as in "
        '`/predict/classify`, or for a model of plain tensors a nested list of one row or `{"input name": nested list}`. At '
        "most SLUICE_MAX_INSTANCES of them, 10,000 by default.",
        examples=[[{"history": _WEEK}]],
    )
    parameters: dict[str, Any] | None = Field(
        default=None,
        description="Defaults for every instance: `horizon`, `quantiles` and `frequency` for a forecast, none for other tasks.",
        examples=[{"horizon": 6}],
    )


class PredictResponse(BaseModel):
    """Predictions in the order of the instances."""

    model: AnsweringModel
    version: AnsweringVersion
    predictions: list[Any] = Field(
        description="One per instance, in order: a forecast, a classification, or the model's output as nested lists.",
        examples=[[{"forecast": [140.2, 138.9]}]],
    )


# --------------------------------------------------------------------------------------------------- /predict/forecast

Values = Annotated[list[Number], Field(min_length=1, max_length=MAX_HISTORY_VALUES)]
Rows = Annotated[list[Annotated[list[Number], Field(min_length=1)]], Field(min_length=1, max_length=MAX_HISTORY_VALUES)]


class ForecastInstance(_Strict):
    """One series to be continued."""

    history: Values | Rows = Field(
        description="Past values, oldest first, in their own units: numbers, or one row of numbers per step where the model has "
        "several features. `null` is a gap and is interpolated. Of a history longer than the model reads, the last part counts; "
        "at most 1,000,000 values.",
        examples=[_HISTORY],
    )
    horizon: Horizon = None
    quantiles: Quantiles = None
    frequency: Frequency = None
    start: str | None = Field(
        default=None,
        description="ISO 8601 time of the first value of `history`. With a frequency, the prediction holds timestamps.",
        examples=["2026-01-05T00:00:00"],
    )


class ForecastParameters(_Strict):
    """Defaults for every instance of the request."""

    horizon: Horizon = None
    quantiles: Quantiles = None
    frequency: Frequency = None


class ForecastRequest(_Strict):
    """Series to be continued by one forecasting model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"instances": [{"history": _HISTORY, "start": "2026-01-05T00:00:00", "frequency": "H", "horizon": 6}]},
                {
                    "model": "forecast-hourly",
                    "instances": [{"history": _WEEK}, {"history": _WEEK[::-1], "horizon": 3}],
                    "parameters": {"horizon": 6, "quantiles": [0.1, 0.9]},
                },
            ]
        }
    )

    model: ModelName | None = Field(
        default=None,
        description="Name of the model, as `GET /models` lists it; the default forecasting model if absent.",
        examples=["forecast-hourly"],
    )
    version: Version = None
    instances: list[ForecastInstance] = Field(
        min_length=1,
        description="The series, one prediction each; at most SLUICE_MAX_INSTANCES of them, 10,000 by default.",
    )
    parameters: ForecastParameters | None = Field(default=None, description="Defaults for every instance.")


class Forecast(BaseModel):
    """The continuation of one series."""

    forecast: list[float] | list[list[float]] = Field(
        description="The point forecast, step by step, in the units of the history; one row per step where the model has several "
        "targets. It is the mean or the median of the model's distribution: `forecast.point` of `GET /models/{name}` says which.",
        examples=[[140.2, 138.9, 131.0]],
    )
    quantiles: dict[str, list[float] | list[list[float]]] | None = Field(
        default=None,
        description="Level → values as in `forecast`; absent for models without quantiles. Beyond the model's own horizon they "
        "do not widen with the uncertainty of what was fed back.",
        examples=[{"0.1": [121.0, 119.5, 111.8], "0.9": [158.8, 159.0, 151.3]}],
    )
    timestamps: list[str] | None = Field(
        default=None,
        description="ISO 8601 times of the forecast steps; present if `start` and a frequency were given.",
        examples=[["2026-01-12T00:00:00", "2026-01-12T01:00:00", "2026-01-12T02:00:00"]],
    )
    num_interpolated: int | None = Field(
        default=None,
        description="Number of gaps that were filled, of the steps that the model reads; absent if there were none.",
        examples=[1],
    )


class ForecastResponse(BaseModel):
    """Forecasts in the order of the instances."""

    model: AnsweringModel
    version: AnsweringVersion
    predictions: list[Forecast] = Field(description="One per instance, in order.")


# ------------------------------------------------------------------------------- /predict/classify, /predict/sentiment


class ClassifyInstance(_Strict):
    """One text."""

    text: Text = Field(
        description="The text, in any characters; at most 100,000 of them, and not only white space.",
        examples=["A quiet, moving film."],
    )


class ClassifyParameters(_Strict):
    """A classification has no parameters yet."""


class ClassifyRequest(_Strict):
    """Texts to be classified by one model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"instances": ["A quiet, moving film.", {"text": "A dull plot, badly acted."}]}],
        }
    )

    model: ModelName | None = Field(
        default=None,
        description="Name of the model, as `GET /models` lists it; the default text classifier if absent.",
        examples=["sentiment-en"],
    )
    version: Version = None
    instances: list[Text | ClassifyInstance] = Field(
        min_length=1,
        description="The texts, one prediction each; at most SLUICE_MAX_INSTANCES of them, 10,000 by default.",
        examples=[["A quiet, moving film.", {"text": "A dull plot, badly acted."}]],
    )
    parameters: ClassifyParameters | None = Field(default=None, description="None yet.", examples=[{}])


class Classification(BaseModel):
    """The labels of one text with their probabilities."""

    label: str = Field(description="The most probable label.", examples=["positive"])
    score: float = Field(description="Its probability, 0 to 1.", examples=[0.97])
    probabilities: dict[str, float] = Field(
        description="Label → probability; they sum to 1.", examples=[{"negative": 0.03, "positive": 0.97}]
    )
    truncated: bool | None = Field(
        default=None,
        description="True if the text was too long and only its beginning and end were read; else absent.",
        examples=[True],
    )


class ClassifyResponse(BaseModel):
    """Classifications in the order of the texts."""

    model: str = Field(description="Name of the model that answered.", examples=["sentiment-en"])
    version: AnsweringVersion
    predictions: list[Classification] = Field(description="One per instance, in order.")


class SentimentRequest(ClassifyRequest):
    """Texts to be classified by one model of sentiment."""

    model: ModelName | None = Field(
        default=None,
        description="Name of the model, as `GET /models` lists it; the default model of sentiment if absent.",
        examples=["sentiment-en"],
    )


class SentimentResponse(ClassifyResponse):
    """Sentiments in the order of the texts."""


# ------------------------------------------------------------------------------------------------------------ /models


class Cost(BaseModel):
    """What a run of the graph costs, in milliseconds: overhead + rows · row + steps · (step + rows · row_step)."""

    overhead_ms: float = Field(description="Cost of any batch.", examples=[0.03])
    row_ms: float = Field(description="Cost per row.", examples=[0.001])
    step_ms: float = Field(description="Cost per time step, whatever the number of rows.", examples=[0.0007])
    row_step_ms: float = Field(description="Cost per time step of each row.", examples=[0.001])
    is_measured: bool = Field(
        description="True if this graph was measured at load; false if it refused synthetic rows: then it is a small LSTM's.",
        examples=[True],
    )


class BestBatch(BaseModel):
    """The smallest batch of long rows whose measured rate is close to the best."""

    rows: int = Field(description="Number of rows.", examples=[16])
    steps: int = Field(description="Time steps of each row; 1 where the model has no time.", examples=[168])
    ms: float = Field(description="Measured duration of the run, in milliseconds.", examples=[2.9])
    rows_per_s: float = Field(
        description="Rows per second of one thread that runs such batches, including what a batch costs beside the graph.",
        examples=[5000],
    )


class Batching(BaseModel):
    """How requests to a model are put together."""

    max_batch_size: int = Field(description="Largest number of rows of one batch.", examples=[64])
    max_padded_steps: int = Field(
        description="Largest number of time steps of one batch, padding included: rows times the longest row.", examples=[2688]
    )
    max_queue_size: int = Field(description="Largest number of rows in the queue.", examples=[1024])
    max_queue_delay_ms: float = Field(description="How long a batch waits for more rows.", examples=[0])
    num_workers: int = Field(description="Number of threads that run the graph.", examples=[2])
    latency_target_ms: float = Field(
        description="Bound on the duration of a batch, where the limits were measured and not configured.", examples=[50]
    )
    cost: Cost = Field(description="What a run costs; it decides which rows share one.")
    best: BestBatch | None = Field(
        default=None, description="The measurement that the limits follow from; absent if nothing was measured."
    )


class VersionState(_Open):
    """One version of a model."""

    version: str = Field(description="A whole number as a string.", examples=["1"])
    state: Literal["READY", "LOADING", "UNAVAILABLE"] = Field(description="As of the model.", examples=["READY"])
    reason: str | None = Field(
        default=None, description="Why it is UNAVAILABLE; else absent.", examples=["manifest.json cannot be read"]
    )


class ModelState(_Open):
    """One model of the models folder."""

    name: str = Field(description="Name of the model.", examples=["forecast-hourly"])
    version: str | None = Field(
        description="The version that answers where a request names none, a whole number as a string; null if there is none.",
        examples=["1"],
    )
    state: Literal["READY", "LOADING", "UNAVAILABLE"] = Field(
        description="READY once the model reproduced its own example; UNAVAILABLE if its folder is broken.", examples=["READY"]
    )
    reason: str | None = Field(
        default=None, description="Why it is UNAVAILABLE; else absent.", examples=["manifest.json cannot be read"]
    )
    task: str | None = Field(
        default=None, description="forecast, classify or tensor; absent unless READY.", examples=["forecast", "classify"]
    )
    description: str | None = Field(
        default=None,
        description="What the model is for, in the words of its manifest.",
        examples=["Two days ahead"],
    )
    versions: list[VersionState] | None = Field(default=None, description="Every version in the folder, in ascending order.")


class ForecastDescription(_Open):
    """What a forecasting model accepts and returns. Lengths count time steps."""

    horizon: int = Field(description="Steps forecast in one run; the default `horizon` of a request.", examples=[48])
    max_horizon: int = Field(description="Largest `horizon` of a request.", examples=[480])
    min_length: int = Field(description="Shortest history.", examples=[24])
    context_length: int = Field(description="Longest part of a history that the network reads.", examples=[336])
    frequencies: list[str] = Field(description="Frequencies it was trained for; empty: any.", examples=[["H"]])
    quantiles: list[float] = Field(description="Its own quantile levels, ascending; empty: none.", examples=[[0.1, 0.5, 0.9]])
    point: Literal["mean", "median"] = Field(description="What the point forecast is.", examples=["median"])
    features: list[str] = Field(description="Names of the values of one step, in the order of a row.", examples=[["value"]])
    targets: list[str] = Field(description="The features that are forecast, in the order of a row.", examples=[["value"]])


class ClassifyDescription(_Open):
    """What a text classifier accepts and returns."""

    labels: list[str] = Field(description="Every label, in the order of the output.", examples=[["negative", "positive"]])
    max_length: int = Field(description="Number of tokens read of one text.", examples=[256])
    language: str = Field(description="BCP 47 tag of the texts, or `und`.", examples=["en"])


class TensorDescription(_Open):
    """A named tensor of the graph."""

    name: str = Field(description="Its name.", examples=["history"])
    datatype: str = Field(description="Its datatype, by the name of the Open Inference Protocol.", examples=["FP32"])
    shape: list[int | str] = Field(description="Its axes: a size, or the name of an open axis.", examples=[["batch", "time", 1]])


class ModelDescription(ModelState):
    """One model: what its manifest says, and how this server runs it. Everything but the state is absent until READY."""

    provider: str | None = Field(
        default=None, description="What runs the graph, by onnxruntime's name.", examples=["CPUExecutionProvider"]
    )
    device: str | None = Field(default=None, description="The device that was requested.", examples=["auto"])
    fallback: str | None = Field(
        default=None,
        description="Why the CPU runs the graph although a GPU was requested or found; else absent.",
        examples=["onnxruntime fell back to CPUExecutionProvider"],
    )
    precision: str | None = Field(default=None, description="Precision of the graph that runs.", examples=["fp32", "int8"])
    inputs: list[TensorDescription] | None = Field(default=None, description="Inputs of the graph.")
    outputs: list[TensorDescription] | None = Field(default=None, description="Outputs of the graph.")
    forecast: ForecastDescription | None = Field(default=None, description="Present for a forecasting model.")
    classify: ClassifyDescription | None = Field(default=None, description="Present for a text classifier.")
    batching: Batching | None = Field(default=None, description="How its requests are put together.")


class ModelList(BaseModel):
    """Every model of the models folder, broken ones too."""

    models: list[ModelState] = Field(description="In the order of their names.")


# ----------------------------------------------------------------------------------------------- health, index, errors


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = Field(description="Always `live`.", examples=["live"])


class Readiness(BaseModel):
    """Whether requests should be sent to this server."""

    status: Literal["ready", "not ready"] = Field(
        description="`ready` once every model folder is READY; with SLUICE_STRICT_READINESS=false once loading is over and at "
        "least one is.",
        examples=["ready"],
    )
    reason: str | None = Field(
        default=None, description="Why it is not ready; else absent.", examples=["the models are still loading"]
    )
    models: list[ModelState] = Field(description="Every model with its state.")


class Index(BaseModel):
    """The server and its endpoints."""

    name: str = Field(description="Always `sluice`.", examples=["sluice"])
    version: str = Field(description="Version of the server.", examples=["0.1.0"])
    endpoints: dict[str, str] = Field(
        description="Path → method and what it is for.", examples=[{"/models": "GET: List the models"}]
    )


class Problem(_Open):
    """An error as RFC 9457 defines it; further members are the facts of the case."""

    type: str = Field(description="Where the error is explained.", examples=["/docs/errors#invalid_input"])
    title: str = Field(description="What kind of error this is.", examples=["Input does not fit the model"])
    status: int = Field(description="The HTTP status, repeated.", examples=[422])
    detail: str = Field(
        description="What happened this time, for people.",
        examples=["instance 0: history: expected at least 24 steps, got 6"],
    )
    code: str = Field(
        description="What happened, for programs.",
        examples=["invalid_input"],
        json_schema_extra={"enum": [entry.error.code for entry in TABLE]},
    )
    instance_index: int | None = Field(
        default=None, description="Index of the instance that was refused, from 0; absent if none is meant.", examples=[0]
    )
    where: str | None = Field(
        default=None, description="The field, and the place in it, that was refused.", examples=["history[3]"]
    )
