"""`POST /v2/models/{name}[/versions/{version}]/infer`: tensors in, tensors out, as JSON, binary or both.

HTTP only: what a model's tensors are, and how they are read, is known to the model.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

from service.api.access.control import caller_of, visible_models
from service.api.compression import LARGE_COMPRESSED, MIN_BYTES, choose_coding, compress
from service.api.errors import UnsupportedMediaType
from service.api.inference import Call, InferenceEndpoint, Monitors, RequestLimits, RequestObserver
from service.api.large_bodies import write_large
from service.api.parsing import expect_no_more_than
from service.api.request import Answer, Headers, HttpRequest
from service.api.sequences import KeptSequences
from service.api.v2.parsing import InferRequest, InputTensor, RawTensor, RequestedOutput, parse, read_json_length
from service.errors import InvalidInput, MalformedRequest

INFER_ROUTES = ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")
JSON, BINARY = b"application/json", b"application/octet-stream"
# Types of bodies that are taken for JSON, or for what the length of the JSON says; curl declares every body as a form.
_ACCEPTED_TYPES = (JSON, BINARY, b"application/x-www-form-urlencoded", b"")


class Tensor(Protocol):
    """What is known of one public tensor of a model."""

    @property
    def name(self) -> str: ...

    @property
    def datatype(self) -> str: ...

    @property
    def shape(self) -> Sequence[int | str]:
        """Axis 0 is the batch, of one where the model is not batched; a name is an open axis."""
        ...

    @property
    def dtype(self) -> Any: ...


class PublicTensors(Protocol):
    @property
    def inputs(self) -> Sequence[Any]: ...

    @property
    def outputs(self) -> Sequence[Any]: ...


class OutputTensor(Protocol):
    """One tensor of an answer; `data` is what `wire.write` takes, or bytes where it is binary."""

    @property
    def name(self) -> str: ...

    @property
    def datatype(self) -> str: ...

    @property
    def shape(self) -> list[int]: ...

    @property
    def data(self) -> Any: ...

    @property
    def is_binary(self) -> bool: ...


class TensorModel(Protocol):
    """What this endpoint needs of a model."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def is_batched(self) -> bool: ...

    @property
    def public_tensors(self) -> PublicTensors: ...

    async def infer_public(
        self, inputs: Sequence[Any], outputs: Sequence[RequestedOutput] | None, *, deadline: float, has_turn: bool = False
    ) -> Sequence[OutputTensor]: ...

    async def advance_public(
        self, inputs: Sequence[Any], states: Sequence[Any], outputs: Sequence[RequestedOutput] | None, *, deadline: float
    ) -> tuple[Sequence[OutputTensor], Sequence[Any]]:
        """The outputs, and the new states."""
        ...


class TensorModels(Protocol):
    """What this endpoint needs of the repository."""

    def get(self, name: str, version: str | None = None) -> TensorModel: ...

    def restricted_to(self, names: frozenset[str]) -> Self:
        """Of these names, for a request that may see no others."""
        ...


class Head(NamedTuple):
    """What the headers of a request say of its body and of the answer to it."""

    encoding: bytes
    accept_encoding: bytes


class InferEndpoint(InferenceEndpoint):
    """The endpoint of both routes."""

    api = "v2"

    def __init__(
        self,
        models: TensorModels,
        observer: RequestObserver,
        limits: RequestLimits,
        monitors: Monitors | None = None,
        sequences: KeptSequences | None = None,
    ) -> None:
        """`monitors` as of InferenceEndpoint. `sequences` are those whose states are kept; None: none are."""
        super().__init__(observer, limits, monitors)
        self._models = models
        self._sequences = sequences

    def check_head(self, request: HttpRequest) -> None:
        """Raise UnsupportedMediaType for a body that is neither JSON nor binary."""
        read_head(request.headers)

    async def respond(self, call: Call) -> Answer:
        """The outputs for one request."""
        request = call.request
        head = read_head(request.headers)
        body = await self.decompress(call.body, head.encoding)
        # Before the body is read: nobody's tensors are parsed for a model that is not there.
        model = visible_models(self._models, request.state).get(*find_model(request.path))
        call.set_model(model)
        json_length = read_json_length(request.headers, len(body))
        text_size = len(body) if json_length is None else json_length
        read = await self.read_in_turn(call, body, text_size, lambda: parse(body, json_length), model.name)
        parsed = read if isinstance(read, InferRequest) else InferRequest([_raw_input(read, model)], None, True)
        num_rows = _num_rows(parsed, model)
        call.finish_parse(num_rows)
        expect_no_more_than(self._limits.max_instances, num_rows)
        call.shorten(parsed.timeout_s)
        outputs = parsed.outputs
        if outputs is None and parsed.is_binary:
            outputs = [RequestedOutput(spec.name, True) for spec in model.public_tensors.outputs]
        has_turn = self.has_turn(text_size)
        if parsed.step is None or self._sequences is None:
            values = await model.infer_public(parsed.inputs, outputs, deadline=call.deadline, has_turn=has_turn)
        else:
            advance = functools.partial(self._advance, model, parsed.inputs, outputs, call.deadline)
            values = await self._sequences.advance(
                model, [parsed.step], advance, deadline=call.deadline, holder=caller_of(request.state)
            )
        written_from = time.monotonic()
        answer = await self._write(model, parsed.id, values, head)
        call.finish_write(written_from)
        return answer

    @staticmethod
    async def _advance(
        model: TensorModel,
        inputs: Sequence[Any],
        outputs: Sequence[RequestedOutput] | None,
        deadline: float,
        states: Sequence[Any],
    ) -> tuple[Sequence[OutputTensor], Sequence[Any]]:
        return await model.advance_public(inputs, states, outputs, deadline=deadline)

    async def _write(self, model: TensorModel, identifier: str | None, outputs: Sequence[OutputTensor], head: Head) -> Answer:
        content: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
        if identifier is not None:
            content["id"] = identifier
        content["outputs"] = [_describe_output(output) for output in outputs]
        text = await write_large(content)
        binary = [output.data for output in outputs if output.is_binary]
        headers: Headers = []
        body = text
        if binary:
            body = b"".join((text, *binary))
            headers.append((b"inference-header-content-length", b"%d" % len(text)))
        if head.accept_encoding and len(body) >= MIN_BYTES:
            coding = choose_coding(head.accept_encoding)
            headers.append((b"vary", b"accept-encoding"))
            if coding is not None:
                is_large = len(body) > LARGE_COMPRESSED
                body = await asyncio.to_thread(compress, body, coding) if is_large else compress(body, coding)
                headers.append((b"content-encoding", coding.encode()))
        kind = BINARY if binary else JSON
        return Answer(200, [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *headers], body)


def find_model(path: str) -> tuple[str, str | None]:
    """The name and the version that a path of this API names."""
    parts = path.split("/")  # "", v2, models, NAME, versions, VERSION, infer
    return parts[3], parts[5] if len(parts) > 6 else None


def read_head(headers: Headers) -> Head:
    """What the headers say of the body. Raises UnsupportedMediaType for one that is neither JSON nor binary."""
    encoding = accept = b""
    for name, value in headers:
        if name == b"content-encoding":
            encoding = value
        elif name == b"accept-encoding":
            accept = value
        elif name == b"content-type":
            media = value.partition(b";")[0].strip().lower()
            if media not in _ACCEPTED_TYPES and not (media.startswith(b"application/") and media.endswith(b"+json")):
                found = value.decode("latin-1")[:100]
                raise UnsupportedMediaType(
                    f'Content-Type is "{found}"; send "application/json" or "application/octet-stream"',
                    found=found,
                    expected="application/json or application/octet-stream",
                )
    return Head(encoding, accept)


def _num_rows(parsed: InferRequest, model: TensorModel) -> int:
    """The rows of a request, as far as it says so itself; the model compares."""
    if not model.is_batched:
        return 1
    return max((tensor.shape[0] for tensor in parsed.inputs if tensor.shape), default=1)


def _raw_input(raw: RawTensor, model: TensorModel) -> InputTensor:
    """The only input of a model from the bytes of a body, as a batch of one. Raises MalformedRequest and InvalidInput."""
    inputs: Sequence[Tensor] = [spec for spec in model.public_tensors.inputs if spec.name != "lengths"]
    if len(inputs) != 1:
        raise MalformedRequest(
            f"a raw request is for a model with one input, this one has {[spec.name for spec in inputs]}", where="inputs"
        )
    spec = inputs[0]
    sizes = list(spec.shape[1:])
    if spec.datatype == "BYTES":
        element = len(raw.data).to_bytes(4, "little") + bytes(raw.data)
        shape = [1, *(size if isinstance(size, int) else 1 for size in sizes)]
        return InputTensor(spec.name, spec.datatype, shape if model.is_batched else shape[1:], memoryview(element))
    num_open = sum(isinstance(size, str) for size in sizes)
    row_bytes = math.prod(size for size in sizes if isinstance(size, int)) * spec.dtype.itemsize
    if num_open > 1:
        raise MalformedRequest(
            f'a raw request needs an input with one open axis at most, "{spec.name}" is {spec}', where=spec.name
        )
    if not raw.data or len(raw.data) % row_bytes or (num_open == 0 and len(raw.data) != row_bytes):
        raise InvalidInput(
            f'input "{spec.name}": {len(raw.data)} bytes do not fill {spec}, which takes {row_bytes} each',
            where=spec.name,
            found=len(raw.data),
        )
    sizes = [size if isinstance(size, int) else len(raw.data) // row_bytes for size in sizes]
    shape = [1, *(int(size) for size in sizes)]
    return InputTensor(spec.name, spec.datatype, shape if model.is_batched else shape[1:], raw.data)


def _describe_output(output: OutputTensor) -> dict[str, Any]:
    about: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
    if output.is_binary:
        return about | {"parameters": {"binary_data_size": len(output.data)}}
    return about | {"data": output.data}
