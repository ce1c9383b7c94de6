"""What each door takes and gives, for the documentation: every field with its description and an example.

The hot doors do not parse with these models (`predict.py` reads bytes, tasks check instances field by field); a test
holds both readers to the same answers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, create_model

from service.api.errors import TABLE

ModelName = Annotated[str, Field(description="Name of the model, as `GET /models` lists it.", examples=["forecast-hourly"])]
Version = Annotated[
    str | None, Field(description="Version of the model, a whole number as a string; the highest if absent.", examples=["1"])
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
    predictions: list[Any] = Field(description="One per instance, in order.", examples=[[{"forecast": [140.2, 138.9]}]])


# ------------------------------------------------------------------------------------------- the endpoints of the tasks


class EndpointTypes(Protocol):
    """What one instance, the parameters and one prediction of an endpoint are."""

    @property
    def instance(self) -> Any: ...

    @property
    def examples(self) -> tuple[Any, ...]: ...

    @property
    def parameters(self) -> Any: ...

    @property
    def prediction(self) -> Any: ...


def predict_models(name: str, types: EndpointTypes) -> tuple[type[BaseModel], type[BaseModel]]:
    """The models of a request and of a response, called `NameRequest` and `NameResponse`."""
    examples: dict[str, Any] = {"examples": [list(types.examples)]} if types.examples else {}
    instances = Field(min_length=1, description="What to predict, one prediction each.", **examples)
    request = create_model(
        f"{name.capitalize()}Request",
        __base__=_Strict,
        __doc__="Instances for one model, which may be left out.",
        model=(
            ModelName | None,
            Field(
                default=None, description="Name of the model; if absent, the one that fits the request.", examples=["my-model"]
            ),
        ),
        version=(Version, None),
        instances=(list[types.instance], instances),  # type: ignore[name-defined]
        parameters=(types.parameters | None, Field(default=None, description="Defaults for every instance.", examples=[{}])),
    )
    response = create_model(
        f"{name.capitalize()}Response",
        __doc__="Predictions in the order of the instances.",
        model=(ModelName, ...),
        version=(str, Field(description="Version that answered.", examples=["1"])),
        predictions=(list[types.prediction], Field(description="One per instance, in order.")),  # type: ignore[name-defined]
    )
    return request, response


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
        description="`ready` once every model is READY; with SLUICE_STRICT_READINESS=false once one of them is.",
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
