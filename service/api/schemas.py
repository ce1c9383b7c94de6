"""What each endpoint accepts and returns, for the OpenAPI document: every field with its description, bounds and examples.

The prediction endpoints do not parse with these models (`predict.py` reads bytes, tasks check instances field by field); tests
hold both to the same verdict on generated bodies. What depends on the model, and so cannot stand in a schema, is listed in
`openapi.BEYOND_SCHEMA`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, create_model

from service.api.errors import TABLE

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
TimeoutMs = Annotated[
    float | None,
    Field(
        gt=0,
        description="Milliseconds that the answer may take at most, where that is less than the server allows; then 504.",
        examples=[500],
    ),
]
# A week of hourly values, the shortest history of the bundled model: a daily wave, lower at the weekend.
_WEEK: list[Any] = [round(300 + 80 * math.sin(math.tau * (hour - 9) / 24) - 60 * (hour >= 120)) for hour in range(168)]


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
        "most SLUICE_MAX_INSTANCES of them, 10,000 by default. An instance of a model that can stream may have a `state`: `null` "
        "begins a sequence, and the `state` of an answer goes on with it.",
        examples=[[{"history": _WEEK}]],
    )
    parameters: dict[str, Any] | None = Field(
        default=None,
        description="Defaults for every instance: `horizon`, `quantiles`, `frequency` and `point` for a forecast, `explain` for "
        "a classification, none for other tasks. "
        "For the next step of a sequence whose state is kept: `sequence_id`, a number from 1 or a string, and `sequence_start` "
        "and `sequence_end`, which are true or false; an instance that is an object may have these three itself.",
        examples=[{"horizon": 6}],
    )
    timeout_ms: TimeoutMs = None


class PredictResponse(BaseModel):
    """Predictions in the order of the instances."""

    model: AnsweringModel
    version: AnsweringVersion
    predictions: list[Any] = Field(
        description="One per instance, in order: a forecast, a classification, or the model's output as nested lists.",
        examples=[[{"forecast": [140.2, 138.9]}]],
    )


# ------------------------------------------------------------------------------------------ the endpoints of the tasks


class EndpointTypes(Protocol):
    """What OpenAPI says of an endpoint for one task."""

    @property
    def name(self) -> str: ...

    @property
    def instance(self) -> Any: ...

    @property
    def parameters(self) -> Any: ...

    @property
    def prediction(self) -> Any: ...

    @property
    def examples(self) -> Sequence[Mapping[str, Any]]: ...


def predict_models(endpoint: EndpointTypes) -> tuple[type[BaseModel], type[BaseModel]]:
    """The models of a request to this endpoint and of its response, called `NameRequest` and `NameResponse`."""
    name = endpoint.name.capitalize()
    examples = [dict(example) for example in endpoint.examples]
    extra: dict[str, Any] = {"examples": examples} if examples else {}
    config = ConfigDict(extra="forbid", json_schema_extra=extra)
    request = create_model(
        f"{name}Request",
        __config__=config,
        __doc__="Instances for one model, which may be left out.",
        model=(
            ModelName | None,
            Field(
                default=None,
                description="Name of the model, as `GET /models` lists it; if absent, the one that fits the request answers.",
                examples=[example["model"] for example in examples if "model" in example] or ["my-model"],
            ),
        ),
        version=(Version, None),
        instances=(
            list[endpoint.instance],  # type: ignore[name-defined]
            Field(
                min_length=1,
                description="One entry per prediction; at most SLUICE_MAX_INSTANCES of them, 10,000 by default.",
                examples=[example["instances"] for example in examples] or None,
            ),
        ),
        parameters=(endpoint.parameters | None, Field(default=None, description="Defaults for every instance.", examples=[{}])),
        timeout_ms=(TimeoutMs, None),
    )
    response = create_model(
        f"{name}Response",
        __doc__="Predictions in the order of the instances.",
        model=(AnsweringModel, ...),
        version=(AnsweringVersion, ...),
        predictions=(list[endpoint.prediction], Field(description="One per instance, in order.")),  # type: ignore[name-defined]
    )
    return request, response


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


class TensorDescription(_Open):
    """A named tensor of the graph."""

    name: str = Field(description="Its name.", examples=["history"])
    datatype: str = Field(description="Its datatype, by the name of the Open Inference Protocol.", examples=["FP32"])
    shape: list[int | str] = Field(description="Its axes: a size, or the name of an open axis.", examples=[["batch", "time", 1]])


class Streaming(BaseModel):
    """Whether sequences can come in pieces, each of which goes on from the state of the one before."""

    can_stream: bool = Field(description="Whether instances may have a `state`.", examples=[True])
    reason: str | None = Field(
        default=None, description="Why not; else absent.", examples=["its manifest declares no recurrent state"]
    )
    state_bytes: int | None = Field(
        default=None, description="Size of a state, before it is written as text; absent where there is none.", examples=[620]
    )


class FeatureDrift(BaseModel):
    """How far one feature is from the training part."""

    psi: float = Field(
        description="Population stability index: 0 for none; from 0.25 on, by the usual reading, a lot.", examples=[0.04]
    )
    ks: float = Field(description="Kolmogorov-Smirnov distance, 0 to 1.", examples=[0.06])


class Drift(BaseModel):
    """The drift of a model in the window of SLUICE_DRIFT_WINDOW_SECONDS, over all workers."""

    num_rows: int | None = Field(default=None, description="Sampled rows in the window.", examples=[4711])
    features: dict[str, FeatureDrift] | None = Field(
        default=None,
        description="Feature → its drift; empty below 200 rows.",
        examples=[{"length": {"psi": 0.04, "ks": 0.06}}],
    )
    reason: str | None = Field(
        default=None, description="Why it is not measured.", examples=["its manifest has no statistics of the training part"]
    )


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
    batching: Batching | None = Field(default=None, description="How its requests are put together.")
    streaming: Streaming | None = Field(default=None, description="Whether its sequences can come in pieces.")
    drift: Drift | None = Field(
        default=None, description="How far its requests are from the training part; absent unless SLUICE_DRIFT_MODELS names it."
    )


def model_description(tasks: Mapping[str, Any]) -> type[BaseModel]:
    """The description of a model, with what each task says of its own: name of the task → type."""
    fields: dict[str, Any] = {
        name: (about | None, Field(default=None, description=f"Present for a model of the task {name}."))
        for name, about in tasks.items()
    }
    made: type[BaseModel] = create_model(
        "ModelDescription", __base__=ModelDescription, __doc__=ModelDescription.__doc__, **fields
    )
    return made


class ModelList(BaseModel):
    """Every model of the models folder, broken ones too."""

    models: list[ModelState] = Field(description="In the order of their names.")


# ------------------------------------------------------------------------------------------------------- /sequences


class SequenceDescription(BaseModel):
    """What is kept of a sequence."""

    id: str = Field(description="Its id; a number as its digits.", examples=["sensor-17"])
    model: AnsweringModel
    version: AnsweringVersion
    steps: int = Field(description="Steps of the series, or tokens of the text, that its state has seen.", examples=[42])
    bytes: int = Field(description="Size of its state.", examples=[600])
    idle_seconds: float = Field(description="Time since its last request, in seconds.", examples=[1.5])
    is_busy: bool = Field(
        description="Whether a request is running a step of it now; what is shown is before that.", examples=[False]
    )
    state: str = Field(description="Its state, as `PUT` and the field `state` of an instance take it.", examples=["U0xTMQ…"])


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
