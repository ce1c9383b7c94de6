"""The strict reader of a model folder's `manifest.json`, field by field as `models/README.md` specifies it.

Reads the manifest alone: whether the graph keeps what it promises is checked in `model.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import FolderError

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"

Datatype = Literal["BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64", "BYTES"]
Task = Literal["forecast", "classify", "tensor"]
Precision = Literal["fp32", "int8"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
FileName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="a file of this folder, without any path")
]
Axis = Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Loss(_Strict):
    """How much worse than the folder's first graph, by one measure on the same test part; below zero: better."""

    measure: str
    kind: Annotated[
        Literal["absolute", "relative"],
        Field(description="absolute: the difference of the measures; relative: in shares of the first graph's"),
    ]
    value: float
    bound: Annotated[float, Field(ge=0, description="what it may lose and still be served unasked")]

    @property
    def is_within(self) -> bool:
        return self.value <= self.bound

    def __str__(self) -> str:
        unit = " points" if self.kind == "absolute" else " %"
        return f"{self.measure} {100 * self.value:.3g}{unit} (bound {100 * self.bound:g}{unit})"


class Tolerance(_Strict):
    """How far a number may be from the expected one: absolute + relative x |expected|."""

    absolute: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    relative: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Graph(_Strict):
    """One ONNX file of the folder; the first that fits the asked precision is served."""

    file: FileName
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    precision: Precision = "fp32"
    opset: Annotated[int, Field(ge=7)]
    score: dict[str, float] = Field(default_factory=dict, description="the measures of this very graph, by name")
    loss: list[Loss] = Field(default_factory=list, description="what it loses against the folder's first graph")
    tolerance: Tolerance | None = Field(None, description="of its answers to the example, in place of the example's own")


class Tensor(_Strict):
    """A named tensor: datatype of the Open Inference Protocol, and a shape whose open axes have names.

    Axis 0 is always `batch`. An axis named `time` may differ between the rows of a batch: it is padded, and the
    input `lengths` (INT64, [batch]) holds each row's true length.
    """

    name: Annotated[str, Field(min_length=1, max_length=256)]
    datatype: Datatype
    shape: Annotated[list[Axis], Field(min_length=1)]

    @model_validator(mode="after")
    def _batch_comes_first(self) -> Tensor:
        if self.shape[0] != "batch":
            raise ValueError(f'tensor "{self.name}": axis 0 must be "batch", got {self.shape[0]!r}')
        return self


class State(_Strict):
    """A recurrent state that a network can carry from one request to the next: fed as `input`, returned as `output`."""

    input: str
    output: str


class Forecast(_Strict):
    """What a forecasting model eats and gives. Lengths count time steps of the series."""

    context_length: Annotated[int, Field(ge=1, description="the longest part of a history that the network reads")]
    min_length: Annotated[int, Field(ge=1, description="the shortest history that it takes")] = 1
    horizon: Annotated[int, Field(ge=1, description="steps forecast in one run")]
    frequencies: list[str] = Field(default_factory=list, description="S T H D W M Q Y; empty: any")
    season_length: Annotated[int, Field(ge=1)] = 1
    quantiles: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default_factory=list, description="ascending; last axis of output `quantiles`"
    )
    point: Literal["mean", "median"] = Field("mean", description="what the output `mean` holds: the loss decides it")
    features: Annotated[list[str], Field(min_length=1)]
    targets: Annotated[list[str], Field(min_length=1, description="features that are forecast, in the order of the outputs")]

    @model_validator(mode="after")
    def _lengths_and_quantiles_are_ordered(self) -> Forecast:
        if self.min_length > self.context_length:
            raise ValueError(f"min_length {self.min_length} is above context_length {self.context_length}")
        if self.quantiles != sorted(set(self.quantiles)):
            raise ValueError(f"quantiles must ascend without repetition, got {self.quantiles}")
        unknown = [target for target in self.targets if target not in self.features]
        if unknown:
            raise ValueError(f"targets {unknown} are not among the features {self.features}")
        return self


class Truncation(_Strict):
    """Which tokens of an over-long text are read: the first `head` and the last `tail`."""

    head: Annotated[int, Field(ge=0)]
    tail: Annotated[int, Field(ge=0)]


class Classify(_Strict):
    """What a text classifier eats and gives."""

    labels: Annotated[list[str], Field(min_length=2)]
    tokenizer: FileName = "tokenizer.json"
    max_length: Annotated[int, Field(ge=1, description="tokens read of one text")]
    truncation: Truncation
    language: Annotated[str, Field(description="BCP 47 tag of the texts, or `und`")]

    @model_validator(mode="after")
    def _truncation_keeps_max_length(self) -> Classify:
        if self.truncation.head + self.truncation.tail != self.max_length:
            raise ValueError(
                f"truncation keeps {self.truncation.head} + {self.truncation.tail} tokens, max_length is {self.max_length}"
            )
        return self


class Training(BaseModel):
    """Where the model comes from. Read for people and `GET /models/{name}`; the service decides nothing by it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    recipe: dict[str, Any] = Field(default_factory=dict)
    data: list[dict[str, Any]] = Field(default_factory=list, description="per file: name, origin, licence, sha256")
    metrics: dict[str, float] = Field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = Field(default_factory=dict, description="baseline → the same measures")
    seed: int | None = None
    versions: dict[str, str] = Field(default_factory=dict, description="library → version")
    created: str | None = Field(None, description="ISO 8601, UTC")


class Manifest(_Strict):
    """A model folder's description of itself."""

    schema_version: Literal[1]
    name: Name
    version: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$", description="a whole number, as its folder is named")]
    task: Task
    description: str = ""
    licence: str = Field("", description="licence of the data the model learned from")
    graphs: Annotated[list[Graph], Field(min_length=1)]
    inputs: Annotated[list[Tensor], Field(min_length=1)]
    outputs: Annotated[list[Tensor], Field(min_length=1)]
    state: list[State] = Field(default_factory=list)
    forecast: Forecast | None = None
    classify: Classify | None = None
    training: Annotated[Training, Field(default_factory=lambda: Training(created=None))]

    @model_validator(mode="after")
    def _the_parts_fit_together(self) -> Manifest:
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            names = [tensor.name for tensor in tensors]
            if len(set(names)) != len(names):
                raise ValueError(f"{kind} names repeat: {names}")
        for face in ("forecast", "classify"):
            if (getattr(self, face) is not None) != (self.task == face):
                raise ValueError(f'task "{self.task}" and the block "{face}" do not go together')
        inputs = {tensor.name: tensor for tensor in self.inputs}
        outputs = {tensor.name: tensor for tensor in self.outputs}
        for state in self.state:
            if state.input not in inputs or state.output not in outputs:
                raise ValueError(f'state "{state.input}" → "{state.output}" names no input and output of this model')
        has_time = any("time" in tensor.shape for tensor in self.inputs)
        if has_time and (
            "lengths" not in inputs or inputs["lengths"].shape != ["batch"] or inputs["lengths"].datatype != "INT64"
        ):
            raise ValueError('an input with a "time" axis needs the input "lengths", INT64 ["batch"]')
        if self.forecast is not None:
            self._expect(inputs, "history", "FP32", ["batch", "time", len(self.forecast.features)])
            self._expect(outputs, "mean", "FP32", ["batch", self.forecast.horizon, len(self.forecast.targets)])
            if self.forecast.quantiles:
                shape: list[int | str] = [
                    "batch",
                    self.forecast.horizon,
                    len(self.forecast.targets),
                    len(self.forecast.quantiles),
                ]
                self._expect(outputs, "quantiles", "FP32", shape)
        if self.classify is not None:
            self._expect(inputs, "tokens", "INT64", ["batch", "time"])
            self._expect(outputs, "probabilities", "FP32", ["batch", len(self.classify.labels)])
        return self

    @staticmethod
    def _expect(tensors: dict[str, Tensor], name: str, datatype: str, shape: list[int | str]) -> None:
        found = tensors.get(name)
        if found is None:
            raise ValueError(f'tensor "{name}" {datatype} {shape} is missing')
        if found.datatype != datatype or found.shape != shape:
            raise ValueError(f'tensor "{name}": expected {datatype} {shape}, got {found.datatype} {found.shape}')


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json`. Raises FolderError that names the field, what was found and what was expected."""
    path = folder / MANIFEST_FILE
    try:
        text = path.read_bytes()
    except OSError as exc:
        raise FolderError(f"{MANIFEST_FILE} cannot be read: {exc.strerror}") from exc
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise FolderError(f"{MANIFEST_FILE}: {where}: {first['msg']}", num_errors=exc.error_count()) from exc


def manifest_schema() -> str:
    """The JSON Schema of `manifest.json`, as `models/manifest.schema.json` holds it."""
    schema = Manifest.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
