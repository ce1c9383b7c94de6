"""The JSON of the Open Inference Protocol as the OpenAPI document describes it: the fields of `inference_rest.md`, and of the
extensions that Triton's pages define. Binary data beside it has no schema.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Parameters = dict[str, str | int | float | bool]
Name = Field(description="Its name.", examples=["history"])
Datatype = Field(description="BOOL, UINT8 to UINT64, INT8 to INT64, FP16 (binary only), FP32, FP64 or BYTES.", examples=["FP32"])
ModelName = Field(description="Name of the model.", examples=["forecast-hourly"])


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class ProtocolError(BaseModel):
    """An error under `/v2` and `/v1/models`."""

    error: str = Field(description="What happened, for people.", examples=['there is no model "x"'])


class ServerMetadata(BaseModel):
    """The server."""

    name: str = Field(description="Always `sluice`.", examples=["sluice"])
    version: str = Field(description="Version of the server.", examples=["0.1.0"])
    extensions: list[str] = Field(description="What is offered beyond the protocol.", examples=[["binary_tensor_data"]])


class ServerLive(BaseModel):
    """The process answers."""

    live: bool = Field(description="Always true.", examples=[True])


class ServerReady(BaseModel):
    """Whether requests should be sent to this server."""

    ready: bool = Field(description="As at `/health/ready`.", examples=[True])


class ModelNames(BaseModel):
    """Which models there are."""

    models: list[str] = Field(description="Their names.", examples=[["forecast-hourly", "sentiment-en"]])


class ModelReady(BaseModel):
    """Whether a model answers."""

    name: str = ModelName
    ready: bool = Field(description="Whether it answers.", examples=[True])


class TensorMetadata(BaseModel):
    """One tensor of a model."""

    name: str = Name
    datatype: str = Datatype
    shape: list[int] = Field(description="Its axes; -1 is an open one.", examples=[[-1, -1, 1]])


class ModelMetadata(BaseModel):
    """A model's tensors."""

    name: str = ModelName
    versions: list[str] = Field(default=[], description="The versions that answer.", examples=[["1"]])
    platform: str = Field(description="What runs it.", examples=["onnxruntime_onnx"])
    inputs: list[TensorMetadata] = Field(description="What it takes.")
    outputs: list[TensorMetadata] = Field(description="What it gives.")


class ModelConfiguration(_Open):
    """A model's configuration, in Triton's words, as far as clients read it."""

    name: str = ModelName
    platform: str = Field(description="What runs it.", examples=["onnxruntime_onnx"])
    max_batch_size: int = Field(description="Rows of one request at most; 0 where it is not batched.", examples=[10000])
    input: list[dict[str, Any]] = Field(
        description="Its inputs.", examples=[[{"name": "history", "data_type": "TYPE_FP32", "dims": [-1, 1]}]]
    )
    output: list[dict[str, Any]] = Field(
        description="Its outputs.", examples=[[{"name": "forecast", "data_type": "TYPE_FP32", "dims": [48, 1]}]]
    )


class ModelStatistics(BaseModel):
    """Counts and times since the start, of all processes of the server."""

    model_stats: list[dict[str, Any]] = Field(
        description="One entry per version, as in Triton's statistics extension; times are in nanoseconds.",
        examples=[[{"name": "forecast-hourly", "version": "1", "inference_count": 7}]],
    )


class IndexRequest(BaseModel):
    """Which versions to list."""

    ready: bool = Field(default=False, description="Only those that are READY.", examples=[True])


class IndexEntry(BaseModel):
    """One version of a model."""

    name: str = ModelName
    version: str = Field(default="", description="A whole number as a string.", examples=["1"])
    state: Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"] = Field(description="Its state.", examples=["READY"])
    reason: str = Field(description="Why it is UNAVAILABLE; else empty.", examples=[""])


class RepositoryRequest(BaseModel):
    """What a request to load or unload a model may hold."""

    parameters: Parameters | None = Field(
        default=None,
        description="To load: none, a model is loaded as its folder has it. To unload: ignored.",
        examples=[{}],
    )


class InferInput(_Open):
    """One input tensor, as JSON."""

    name: str = Name
    datatype: str = Datatype
    shape: list[int] = Field(description="The size of each axis, at least 1; axis 0 is the batch.", examples=[[1, 168, 1]])
    data: list[Any] = Field(
        description="Its values, flat in row-major order or nested as the shape; FP16 has no JSON form.",
        examples=[[10.5, 11.0, 9.5]],
    )
    parameters: Parameters | None = Field(
        default=None,
        description="`binary_data_size` where the values follow the JSON as bytes, in place of `data`.",
        examples=[{}],
    )


class InferOutput(_Open):
    """One output that a request wants."""

    name: str = Field(description="Its name.", examples=["forecast"])
    parameters: Parameters | None = Field(
        default=None,
        description="`binary_data`: whether it comes as bytes; `classification`: how many largest values are named.",
        examples=[{"binary_data": False}],
    )


_HISTORY: dict[str, Any] = {
    "name": "history",
    "datatype": "FP32",
    "shape": [1, 168, 1],
    "data": [hour % 24 for hour in range(168)],
}


class InferRequest(_Open):
    """Tensors for one model."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"id": "7", "inputs": [_HISTORY]}]})

    id: str | None = Field(default=None, description="The answer repeats it.", examples=["7"])
    parameters: Parameters | None = Field(
        default=None,
        description="`timeout` in microseconds; `binary_data_output`: whether outputs that are not named come as bytes.",
        examples=[{"timeout": 500_000}],
    )
    inputs: list[InferInput] = Field(min_length=1, description="The model's inputs, in any order.")
    outputs: list[InferOutput] | None = Field(default=None, description="The outputs that are wanted; all if absent.")


class OutputTensor(BaseModel):
    """One output tensor."""

    name: str = Field(description="Its name.", examples=["forecast"])
    datatype: str = Datatype
    shape: list[int] = Field(description="The size of each axis.", examples=[[1, 48, 1]])
    data: list[Any] | None = Field(
        default=None, description="Its values, flat in row-major order; absent where they come as bytes.", examples=[[10.9, 11.3]]
    )
    parameters: Parameters | None = Field(
        default=None, description="`binary_data_size` where its values come as bytes.", examples=[{"binary_data_size": 192}]
    )


class InferResponse(BaseModel):
    """The outputs for one request."""

    model_name: str = Field(description="Name of the model that answered.", examples=["forecast-hourly"])
    model_version: str = Field(description="Version of the model that answered.", examples=["1"])
    id: str | None = Field(default=None, description="That of the request; absent if it had none.", examples=["7"])
    outputs: list[OutputTensor] = Field(description="The outputs that the request named, in its order; else all.")
