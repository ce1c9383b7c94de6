"""The strict reader of a model folder's `manifest.json`, field by field as `models/README.md` specifies it.

Knows no task: each supplies the type of its own block (a `Spec`), and `manifest_type` adds it to what all manifests hold.
Reads the manifest alone: whether the graph is what it says is checked in `service/models/folder.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import reduce
from itertools import pairwise
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model, model_validator
from pydantic_core import from_json

from service.errors import FolderError
from service.files import FileRefused, read_confined

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
EXAMPLE_FILE = "example.json"
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_FILE_BYTES = 2**31
"""The most that a protobuf message, and so a graph, may have."""
MAX_EDGES, MAX_FEATURES = 64, 32
"""Of the statistics: with these, the drift of a model has 32 series at most of each kind."""

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]
Precision = Literal["fp32", "int8"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
FileName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="a file of this folder, without any path")
]
Axis = Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class StrictModel(BaseModel):
    """A part of the manifest: unknown fields and values of other types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Spec(StrictModel):
    """The block of one task, named as the task is: what its models read and predict."""


S = TypeVar("S", bound=Spec)


class PrecisionLoss(StrictModel):
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


class Tolerance(StrictModel):
    """How far a number may be from the expected one: absolute + relative x |expected|."""

    absolute: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    relative: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Graph(StrictModel):
    """One ONNX file of the folder; the first of the requested precision is served."""

    file: FileName
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    precision: Precision = "fp32"
    opset: Annotated[int, Field(ge=7)]
    score: dict[str, float] = Field(default_factory=dict, description="the measures of this very graph, by name")
    loss: list[PrecisionLoss] = Field(default_factory=list, description="what it loses against the folder's first graph")
    tolerance: Tolerance | None = Field(None, description="of its answers to the example, in place of the example's own")


class TensorEntry(StrictModel):
    """A named tensor: datatype of the Open Inference Protocol, and a shape whose open axes have names.

    Axis 0 is always `batch`. An axis named `time` may differ between the rows of a batch: it is padded, and the
    input `lengths` (INT64, [batch]) holds each row's true length.
    """

    name: Annotated[str, Field(min_length=1, max_length=256)]
    datatype: Datatype
    shape: Annotated[list[Axis], Field(min_length=1)]

    @model_validator(mode="after")
    def _batch_comes_first(self) -> TensorEntry:
        if self.shape[0] != "batch":
            raise ValueError(f'tensor "{self.name}": axis 0 must be "batch", got {self.shape[0]!r}')
        return self


class StatePair(StrictModel):
    """A recurrent state that a network can carry from one request to the next: fed as `input`, returned as `output`."""

    input: str
    output: str


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


Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class FeatureStatistics(StrictModel):
    """The histogram of one feature of the rows that the model learned from.

    Bin i holds what is above edge i - 1 and at most edge i; the last one what is above all edges.
    """

    name: Annotated[str, Field(min_length=1, max_length=300)]
    edges: Annotated[list[Number], Field(min_length=1, max_length=MAX_EDGES, description="ascending")]
    shares: Annotated[list[Share], Field(description="of the rows, in each bin: one more than there are edges; their sum is 1")]

    @model_validator(mode="after")
    def _edges_ascend_and_shares_add_up(self) -> FeatureStatistics:
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError(f'statistics of "{self.name}": the edges do not ascend')
        if len(self.shares) != len(self.edges) + 1 or abs(sum(self.shares) - 1) > 1e-3:
            raise ValueError(f'statistics of "{self.name}": expected {len(self.edges) + 1} shares whose sum is 1')
        return self


class Statistics(StrictModel):
    """What the rows of the training part looked like, and what the graph answered to them: what drift is measured from."""

    num_rows: Annotated[int, Field(ge=1, description="rows of the training part that were looked at")]
    features: Annotated[list[FeatureStatistics], Field(max_length=MAX_FEATURES)]

    @model_validator(mode="after")
    def _names_do_not_repeat(self) -> Statistics:
        names = [feature.name for feature in self.features]
        if len(set(names)) != len(names):
            raise ValueError(f"statistics: names repeat: {names}")
        return self


class Manifest(StrictModel):
    """A model folder's description of itself, without the block of its task (see `manifest_type`)."""

    schema_version: Literal[1]
    name: Name
    version: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$", description="a whole number, as its folder is named")]
    task: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    description: str = ""
    licence: str = Field("", description="licence of the data the model learned from")
    graphs: Annotated[list[Graph], Field(min_length=1)]
    inputs: Annotated[list[TensorEntry], Field(min_length=1)]
    outputs: Annotated[list[TensorEntry], Field(min_length=1)]
    state: list[StatePair] = Field(default_factory=list)
    cannot_stream: str = Field(
        "", max_length=1000, description="why a sequence cannot come in pieces, whatever state there is; empty where it can"
    )
    min_length: Annotated[int, Field(ge=1, description="the fewest steps of a row along its open axis")] = 1
    statistics: Statistics | None = Field(
        None, description="of the rows that the model learned from: what drift is measured from"
    )
    training: Annotated[Training, Field(default_factory=lambda: Training(created=None))]

    @model_validator(mode="after")
    def _the_parts_fit_together(self) -> Manifest:
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            names = [tensor.name for tensor in tensors]
            if len(set(names)) != len(names):
                raise ValueError(f"{kind} names repeat: {names}")
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
        return self

    @property
    def spec(self) -> Spec | None:
        """The block of its task; None where the task has none."""
        spec: Spec | None = getattr(self, self.task, None)
        return spec

    def spec_of(self, kind: type[S]) -> S:
        """The block of its task, which is of this type."""
        spec = self.spec
        assert isinstance(spec, kind), f"{self.name}: task {self.task} has the block {type(spec).__name__}"
        return spec

    def mismatch(self, kind: Literal["inputs", "outputs"], name: str, datatype: Datatype, shape: list[int | str]) -> list[str]:
        """What is wrong with a tensor that the task of the manifest needs; empty if nothing is."""
        tensors: list[TensorEntry] = getattr(self, kind)
        found = next((tensor for tensor in tensors if tensor.name == name), None)
        if found is None:
            return [f'{MANIFEST_FILE}: {kind}: tensor "{name}" {datatype} {shape} is missing']
        if found.datatype != datatype or found.shape != shape:
            return [f'{MANIFEST_FILE}: {kind}: tensor "{name}": expected {datatype} {shape}, got {found.datatype} {found.shape}']
        return []


def manifest_type(task: str, spec: type[Spec] | None) -> type[Manifest]:
    """The manifests of one task: what all hold, and the block `spec` under the task's name."""
    if task in Manifest.model_fields or hasattr(Manifest, task):
        raise ValueError(f'a task cannot be called "{task}", which every manifest has for something else')
    fields: dict[str, Any] = {"task": (Literal[task], ...)}
    if spec is not None:
        fields[task] = (spec, ...)
    made: type[Manifest] = create_model(
        f"{task.capitalize()}Manifest", __base__=Manifest, __doc__=f"The manifest of a model for task {task}.", **fields
    )
    return made


def read_file(folder: Path, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """A file of a model folder.

    Raises FolderError when it is missing or too large, a link that leads out of the folder, or no regular file: a FIFO or a
    device is refused without being waited for.
    """
    try:
        return read_confined(folder, name, max_bytes)
    except FileRefused as exc:
        raise FolderError(f"{name} {exc}") from exc


def read_manifest(folder: Path, types: Mapping[str, type[Manifest]]) -> Manifest:
    """Read `folder/manifest.json`; `types` are the manifests of each task.

    Raises FolderError that names the field, what was found and what was expected.
    """
    try:
        content = from_json(read_file(folder, MANIFEST_FILE, MAX_MANIFEST_BYTES))
    except ValueError as exc:
        raise FolderError(f"{MANIFEST_FILE} is not JSON: {exc}") from exc
    if not isinstance(content, dict):
        raise FolderError(f"{MANIFEST_FILE}: expected an object")
    task = content.get("task")
    if not isinstance(task, str) or task not in types:
        raise FolderError(f"{MANIFEST_FILE}: task: expected one of {sorted(types)}, got {str(task)[:100]!r}")
    # The block of another task may be there as null, which the schema allowed once.
    content = {name: value for name, value in content.items() if value is not None or name not in types}
    try:
        return types[task].model_validate(content)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise FolderError(f"{MANIFEST_FILE}: {where}: {first['msg']}", num_errors=exc.error_count()) from exc


def manifest_schema(types: Mapping[str, type[Manifest]]) -> str:
    """The JSON Schema of `manifest.json`, as `models/manifest.schema.json` holds it."""
    either: Any = reduce(or_, types.values())
    one: Any = Annotated[either, Field(discriminator="task")] if len(types) > 1 else either
    schema = TypeAdapter(one).json_schema()
    schema = {"title": "Manifest", "description": "A model folder's description of itself.", **schema}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
