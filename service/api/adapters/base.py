"""An endpoint for the wire format of others: the file of each format reads bodies and writes answers, this runs the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

from pydantic import BaseModel

from service.api.access.control import visible_models
from service.api.carried import STATE
from service.api.compression import read_coding
from service.api.errors import InternalError, Problem, find_row, problem
from service.api.inference import Call, InferenceEndpoint, Monitors, RequestLimits, RequestObserver
from service.api.large_bodies import write_large
from service.api.parsing import expect_no_more_than, read_json
from service.api.predict import Predictor, ServedModel
from service.api.request import Answer, HttpRequest, expect_json_type, json_answer
from service.api.sequences import FIELDS as SEQUENCE_FIELDS
from service.errors import InvalidInput, MalformedRequest, ServiceError
from service.wire import write

HEAVY_NUM_INSTANCES = 64
"""Beyond so many, the predictions are brought into the form of their answer on a thread."""


class Models(Protocol):
    """What these endpoints need of the repository."""

    def get(self, name: str, version: str | None = None) -> ServedModel: ...

    def only(self) -> ServedModel:
        """The only model."""
        ...

    def choose(
        self, task: str, instances: Sequence[Any], parameters: Mapping[str, Any], *, purpose: str | None = None
    ) -> ServedModel:
        """The model for a request that names none."""
        ...

    def restricted_to(self, names: frozenset[str]) -> Self: ...


class PredictionRequest(NamedTuple):
    """A request as `/predict` takes it, and what the answer needs of it."""

    instances: list[Any]
    parameters: dict[str, Any]
    model: str | None = None
    version: str | None = None
    task: str | None = None
    """Which task the model must be for where none is named; None: there has to be just one."""
    context: Any = None
    """What `write` needs of the request."""


class Described(NamedTuple):
    """What the OpenAPI document says of the route of a wire format."""

    operation: str
    """Its id."""
    summary: str
    description: str
    request: type[BaseModel]
    response: type[BaseModel]
    error: type[BaseModel]


class Adapter(Protocol):
    """One wire format."""

    @property
    def described(self) -> Described: ...

    @property
    def api(self) -> str:
        """How the metrics call it."""
        ...

    @property
    def paths(self) -> Sequence[str]:
        """The templates of its routes."""
        ...

    def read(self, content: Any, path: str, max_instances: int) -> PredictionRequest:
        """A request from the JSON of its body. Raises MalformedRequest, InvalidInput, and PayloadTooLarge for more instances than
        there may be, before it makes any: a value of a flat list takes a hundred times its memory as an instance.
        """
        ...

    def write(self, parsed: PredictionRequest, model: ServedModel, predictions: Sequence[Any]) -> Any:
        """The answer, as JSON."""
        ...


class AdapterEndpoint(InferenceEndpoint):
    """The endpoint of one wire format."""

    def __init__(
        self,
        adapter: Adapter,
        models: Models,
        observer: RequestObserver,
        limits: RequestLimits,
        monitors: Monitors | None = None,
        predictor: Predictor | None = None,
    ) -> None:
        """`monitors` as of InferenceEndpoint; without a `predictor` every instance is a whole."""
        super().__init__(observer, limits, monitors)
        self._predictor = predictor or Predictor()
        self.api = adapter.api
        self._adapter = adapter
        self._models = models

    def check_head(self, request: HttpRequest) -> None:
        """Raise UnsupportedMediaType for a body that is not JSON, or coded in another way than gzip and deflate."""
        for name, value in request.headers:
            if name == b"content-encoding":
                read_coding(value)
            elif name == b"content-type" and value.partition(b";")[0].strip():
                expect_json_type(value)

    async def respond(self, call: Call) -> Answer:
        """The predictions for one request."""
        request = call.request
        encoding = next((value for name, value in request.headers if name == b"content-encoding"), b"")
        body = await self.decompress(call.body, encoding)
        path = request.path
        parsed = await self.read_in_turn(call, body, len(body), lambda: self._read(body, path), None)
        call.finish_parse(len(parsed.instances))
        model = self._resolve(parsed, visible_models(self._models, request.state))
        call.set_model(model)
        has_turn = self.has_turn(len(body))
        predictions = await self._predictor.predict(call, model, body, parsed.instances, parsed.parameters, has_turn=has_turn)
        written_from = time.monotonic()
        if len(predictions) <= HEAVY_NUM_INSTANCES:
            content = self._adapter.write(parsed, model, predictions)
        else:
            content = await asyncio.to_thread(self._adapter.write, parsed, model, predictions)
        answer = json_answer(await write_large(content))
        call.finish_write(written_from)
        return answer

    def _read(self, body: bytes, path: str) -> PredictionRequest:
        parsed = self._adapter.read(read_json(body), path, self._limits.max_instances)
        if not parsed.instances:
            raise InvalidInput("the request holds no instances, expected at least one", where="instances", found=0)
        expect_no_more_than(self._limits.max_instances, len(parsed.instances))
        return parsed

    def _resolve(self, parsed: PredictionRequest, models: Models) -> ServedModel:
        if parsed.model is not None:
            model = models.get(parsed.model, parsed.version)
            if parsed.task is not None and model.task != parsed.task:
                raise InvalidInput(f'model "{model.name}" is a {model.task} model, expected one for {parsed.task}', where="model")
            return model
        if parsed.task is not None:
            return models.choose(parsed.task, parsed.instances, parsed.parameters)
        return models.only()


def adapter_endpoints(
    adapters: Iterable[Adapter],
    models: Models,
    observer: RequestObserver,
    limits: RequestLimits,
    monitors: Monitors | None = None,
    predictor: Predictor | None = None,
) -> dict[str, AdapterEndpoint]:
    """Template of a path → what answers there."""
    monitors = monitors or Monitors.open(limits)
    endpoints: dict[str, AdapterEndpoint] = {}
    for adapter in adapters:
        endpoints |= dict.fromkeys(adapter.paths, AdapterEndpoint(adapter, models, observer, limits, monitors, predictor))
    return endpoints


ErrorBody = Callable[[int, str, str], object]
"""(status, code, message) → the body of an error."""


def error_shape(body: ErrorBody) -> Callable[[ServiceError], Problem]:
    """The errors of a wire format that knows no 422: what does not fit the model is a bad request there."""

    def describe(exc: ServiceError) -> Problem:
        row = find_row(type(exc))
        status, headers, _ = problem(exc)
        status = 400 if isinstance(exc, InvalidInput) else status
        is_known = row.error is not InternalError or isinstance(exc, InternalError)
        message = exc.message if is_known else "an unexpected error; the log says more"
        content = write(body(status, exc.code if is_known else InternalError.code, message))
        kept = [(name, value) for name, value in headers if name not in (b"content-type", b"content-length")]
        return Problem(
            status, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content)), *kept], content
        )

    return describe


def expect_no_sequence(*places: Mapping[str, Any]) -> None:
    """Raise MalformedRequest for a request that names a sequence, or carries a state, in a format that has no place for them."""
    for field in (*sorted(SEQUENCE_FIELDS), STATE):
        if any(field in place for place in places):
            raise MalformedRequest(
                f'"{field}": this format has no place for sequences and their states, POST /predict has', where=field
            )


def expect_object(content: object, where: str = "the body") -> dict[str, Any]:
    """The content, if it is a JSON object. Raises MalformedRequest."""
    if type(content) is not dict:
        raise MalformedRequest(f"{where} is no JSON object", where=where)
    return content


def expect_list(content: Mapping[str, Any], field: str) -> list[Any]:
    """A field that is a list. Raises MalformedRequest."""
    value = content.get(field)
    if type(value) is not list:
        raise MalformedRequest(f'"{field}" is missing, or no list', where=field)
    return value


def optional(content: Mapping[str, Any], field: str, kind: type, name: str) -> Any:
    """A field that may be left out, or null. Raises MalformedRequest for another type."""
    value = content.get(field)
    if value is not None and type(value) is not kind:
        raise MalformedRequest(f'"{field}": expected {name}', where=field)
    return value
