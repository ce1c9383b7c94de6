"""What each door takes and gives, for the documentation: every field with its description and an example.

The hot doors do not parse with these models (`predict.py` reads bytes, tasks check instances field by field); a test
holds both readers to the same answers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.errors import TABLE

Number = float | None
ModelName = Annotated[str, Field(description="Name of the model, as `GET /models` lists it.", examples=["forecast-hourly"])]
Version = Annotated[
    str | None, Field(description="Version of the model, a whole number as a string; the highest if absent.", examples=["1"])
]
Horizon = Annotated[
    int | None,
    Field(
        ge=1,
        description="Steps to forecast; the model's own horizon if absent. Beyond it, forecasts are fed back as history, up "
        "to SLUICE_MAX_HORIZON_MULTIPLE horizons.",
        examples=[24],
    ),
]
Quantiles = Annotated[
    list[float] | None,
    Field(
        description="Levels to answer; all of the model's if absent. Levels between two of the model's are interpolated.",
        examples=[[0.1, 0.5, 0.9]],
    ),
]
Frequency = Annotated[
    str | None, Field(description="Distance between two steps: S T H D W M Q Y, with a count such as 15T.", examples=["H"])
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


# ------------------------------------------------------------------------------------------------------------ /predict


class PredictRequest(_Strict):
    """Instances for one model of any task."""

    model: ModelName
    version: Version = None
    instances: list[Any] = Field(
        min_length=1,
        description="What to predict, one entry per prediction: as in /predict/forecast or /predict/sentiment, or for a model "
        'of plain tensors a nested list of one row, or {"input name": nested list}.',
        examples=[[{"history": [112, 118, 132, 129, 121, 135]}]],
    )
    parameters: dict[str, Any] | None = Field(
        default=None,
        description="Defaults for every instance, such as horizon, quantiles and frequency of a forecast.",
        examples=[{"horizon": 6}],
    )


class PredictResponse(BaseModel):
    """Predictions in the order of the instances."""

    model: ModelName
    version: str = Field(description="Version that answered.", examples=["1"])
    predictions: list[Any] = Field(description="One per instance, in order.", examples=[[{"mean": [140.2, 138.9]}]])


# --------------------------------------------------------------------------------------------------- /predict/forecast


class ForecastInstance(_Strict):
    """One series to be continued."""

    history: list[Number] | list[list[Number]] = Field(
        min_length=1,
        description="Past values, oldest first, in their own units: numbers, or rows where the model has several features. "
        "`null` is a gap and is interpolated. Of a history longer than the model reads, the last part counts; at most 1,000,000 "
        "values.",
        examples=[[112, 118, 132, 129, None, 135, 148, 148, 136, 119, 104, 118]],
    )
    horizon: Horizon = None
    quantiles: Quantiles = None
    frequency: Frequency = None
    start: str | None = Field(
        default=None,
        description="ISO 8601 time of the first value of `history`; with a frequency, the answer holds timestamps.",
        examples=["2026-01-01T00:00:00"],
    )


class ForecastParameters(_Strict):
    """Defaults for every instance of the request."""

    horizon: Horizon = None
    quantiles: Quantiles = None
    frequency: Frequency = None


class ForecastRequest(_Strict):
    """Series to be continued by one forecasting model."""

    model: ModelName | None = Field(
        default=None, description="Name of the model; the default forecasting model if absent.", examples=["forecast-hourly"]
    )
    version: Version = None
    instances: list[ForecastInstance] = Field(min_length=1, description="The series, one prediction each.")
    parameters: ForecastParameters | None = Field(default=None, description="Defaults for every instance.")


class Forecast(BaseModel):
    """The continuation of one series."""

    mean: list[float] | list[list[float]] = Field(
        description="The forecast, step by step, in the units of the history; rows where the model has several targets.",
        examples=[[140.2, 138.9, 131.0]],
    )
    quantiles: dict[str, list[float] | list[list[float]]] = Field(
        default_factory=dict,
        description="Level → values as in `mean`; absent for models without quantiles. Beyond the model's own horizon they do "
        "not widen with the uncertainty of what was fed back.",
        examples=[{"0.1": [121.0, 119.5, 111.8], "0.9": [158.8, 159.0, 151.3]}],
    )
    timestamps: list[str] | None = Field(
        default=None,
        description="Times of the forecast steps; present if `start` and a frequency were given.",
        examples=[["2026-01-01T12:00:00", "2026-01-01T13:00:00", "2026-01-01T14:00:00"]],
    )
    num_interpolated: int | None = Field(
        default=None, description="Gaps that were filled; absent if there were none.", examples=[1]
    )


class ForecastResponse(BaseModel):
    """Forecasts in the order of the instances."""

    model: ModelName
    version: str = Field(description="Version that answered.", examples=["1"])
    predictions: list[Forecast] = Field(description="One per instance, in order.")


# -------------------------------------------------------------------------------------------------- /predict/sentiment


class SentimentInstance(_Strict):
    """One text."""

    text: str = Field(
        min_length=1,
        description="The text, in any characters; not empty, at most 100,000 characters.",
        examples=["A quiet, moving film."],
    )


class SentimentRequest(_Strict):
    """Texts to be judged by one text model."""

    model: Annotated[
        str | None, Field(description="Name of the model; the default text model if absent.", examples=["sentiment-en"])
    ] = None
    version: Version = None
    instances: list[str | SentimentInstance] = Field(
        min_length=1,
        description="The texts, one prediction each.",
        examples=[["A quiet, moving film.", {"text": "Two hours of my life that I want back."}]],
    )
    parameters: dict[str, Any] | None = Field(default=None, description="Takes none yet.", examples=[{}])


class Sentiment(BaseModel):
    """The judgement of one text."""

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


class SentimentResponse(BaseModel):
    """Judgements in the order of the texts."""

    model: str = Field(description="Name of the model that answered.", examples=["sentiment-en"])
    version: str = Field(description="Version that answered.", examples=["1"])
    predictions: list[Sentiment] = Field(description="One per instance, in order.")


# -------------------------------------------------------------------------------------------------- models and health


class Cost(BaseModel):
    """What a run of the graph costs, in milliseconds: overhead + rows · row + steps · (step + rows · row_step)."""

    overhead_ms: float = Field(description="Whatever is in the batch.", examples=[0.03])
    row_ms: float = Field(description="Per row.", examples=[0.001])
    step_ms: float = Field(description="Per time step, however many rows.", examples=[0.0007])
    row_step_ms: float = Field(description="Per time step of each row.", examples=[0.001])
    is_measured: bool = Field(
        description="True if this graph was measured at load; false if it refused made-up rows: then it is a small LSTM's.",
        examples=[True],
    )


class BestBatch(BaseModel):
    """The smallest batch of long rows that the graph was measured to run about as fast as any."""

    rows: int = Field(description="Its rows.", examples=[16])
    steps: int = Field(description="The time steps of each row; 1 where the model has no time.", examples=[168])
    ms: float = Field(description="How long the graph took.", examples=[2.9])
    rows_per_s: float = Field(
        description="Rows per second of one thread that runs such batches, with what a batch costs beside the graph.",
        examples=[5000],
    )


class Batching(BaseModel):
    """How requests to a model are put together."""

    max_batch_size: int = Field(description="Rows that run together at most.", examples=[64])
    max_padded_steps: int = Field(
        description="Time steps of a batch at most, padding included: rows times the longest row.", examples=[2688]
    )
    max_queue_size: int = Field(description="Rows that may wait.", examples=[1024])
    max_queue_delay_ms: float = Field(description="How long a batch waits for more rows.", examples=[0])
    num_workers: int = Field(description="Threads that run the graph.", examples=[2])
    latency_target_ms: float = Field(
        description="How long a batch may take by its cost, where the bounds were chosen and not given.", examples=[50]
    )
    cost: Cost = Field(description="What a run costs; it decides whose company is worth the padding.")
    best: BestBatch | None = Field(default=None, description="What the bounds were drawn from; absent if nothing was measured.")


class ModelState(_Open):
    """One model of the models folder."""

    name: str = Field(description="Name of the model.", examples=["forecast-hourly"])
    version: str = Field(description="Version, a whole number as a string.", examples=["1"])
    state: Literal["READY", "LOADING", "UNAVAILABLE"] = Field(
        description="READY after it answered its own example; UNAVAILABLE when its folder is broken.", examples=["READY"]
    )
    reason: str | None = Field(
        default=None, description="Why it is UNAVAILABLE; else absent.", examples=["manifest.json cannot be read"]
    )


class ModelDescription(ModelState):
    """One model with everything that its manifest promises, and how this server runs it."""

    provider: str | None = Field(
        default=None, description="What really runs the graph, by onnxruntime's name.", examples=["CPUExecutionProvider"]
    )
    device: str | None = Field(default=None, description="The device that was asked for.", examples=["auto"])
    fallback: str | None = Field(
        default=None,
        description="Why the CPU runs the graph although a GPU was there to be had; else absent.",
        examples=["onnxruntime fell back to CPUExecutionProvider"],
    )
    batching: Batching | None = Field(default=None, description="How its requests are put together; absent until READY.")


class ModelList(BaseModel):
    """Every model of the models folder, broken ones too."""

    models: list[ModelState] = Field(description="By name and version.")


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = Field(description="Always `live`.", examples=["live"])


class Readiness(BaseModel):
    """Whether requests should be sent here."""

    status: Literal["ready", "not ready"] = Field(
        description="`ready` once a model is READY and none is LOADING; a broken folder does not stand in the way.",
        examples=["ready"],
    )
    models: list[ModelState] = Field(description="Every model with its state.")


class Index(BaseModel):
    """What this server is and where its doors are."""

    name: str = Field(description="Always `sluice`.", examples=["sluice"])
    version: str = Field(description="Version of the server.", examples=["0.1.0"])
    doors: dict[str, str] = Field(description="Path → what it is for.", examples=[{"/models": "The models served here."}])


class Problem(_Open):
    """An error as RFC 9457 writes it; further members are the facts of the case."""

    type: str = Field(description="Where the error is explained.", examples=["/docs#error-invalid_input"])
    title: str = Field(description="What kind of error this is.", examples=["Input does not fit the model"])
    status: int = Field(description="The HTTP status, once more.", examples=[422])
    detail: str = Field(
        description="What happened this time, for people.",
        examples=["instance 0: history: expected at least 24 steps, got 6"],
    )
    code: str = Field(
        description="What happened, for programs.",
        examples=["invalid_input"],
        json_schema_extra={"enum": [entry.error.code for entry in TABLE]},
    )
    instance_index: int | None = Field(default=None, description="Which instance of the request is meant.", examples=[0])
